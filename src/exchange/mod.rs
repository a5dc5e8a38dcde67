//! One client request: its attempts with their legs, decode's bytes on their way to the client, and the record of it all.

pub mod drive;
pub(crate) mod leg;
pub mod opening;
pub(crate) mod prefilled;
pub mod record;
pub mod relay;
pub mod transfer;

#[cfg(test)]
mod tests;
