//! t

pub mod descriptors;
pub mod guard;
pub mod listener;
