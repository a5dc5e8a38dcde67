//! The registration socket: what an unknown peer may send, and what arrives.

pub mod guard;
pub(crate) mod listener;
mod pace;
