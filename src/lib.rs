//! t

pub mod sim;
