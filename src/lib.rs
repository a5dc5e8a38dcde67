//! A proxy in front of vLLM engines that run prefill and decode on different machines with AMD's MoRI-IO connector.
//!
//! Modules stand in reading order; each imports only from those above it (a test holds them to it).

pub mod engine;
pub mod error;
