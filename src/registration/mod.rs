//! Engines announce themselves: the socket that hears them, what they say in either wording, and who is a member of the pool.

pub(crate) mod announce;
pub mod decode;
pub(crate) mod membership;
mod probe;
pub mod socket;
pub mod tell;
