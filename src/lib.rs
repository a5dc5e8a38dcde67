//! A proxy in front of vLLM engines that run prefill and decode on different machines with AMD's MoRI-IO connector.
//!
//! The folders stand in reading order, and each imports only from those below it. A test holds them to it.
//!
//! A request: `http` accepts it and loops over attempts, [`routing`] picks a pair from the [`pool`], [`exchange`] sends its
//! legs, which [`api`] writes, by [`upstream`], passes decode's bytes on, and closes the record.
//!
//! A registration: [`registration`] hears it behind its guard, decodes it, and has the registry of the [`pool`] keep the engine
//! and publish a new snapshot.

pub mod demo;
pub mod app;
pub(crate) mod http;
pub mod exchange;
pub mod queue;
pub mod routing;
pub mod registration;
pub mod pool;
pub mod upstream;
pub mod notify;
pub mod api;
pub mod json;
pub mod settings;
pub mod error;
pub mod metrics;
pub mod worker;
pub(crate) mod turns;
pub mod lines;
pub mod engine;
pub mod sim;
