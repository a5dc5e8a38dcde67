//! A proxy in front of vLLM engines that run prefill and decode on different machines with AMD's MoRI-IO connector.
//!
//! Modules stand in reading order; each imports only from those above it (a test holds them to it).
//!
//! A request: [`server`] accepts and reads it, [`request`] parses it by the table of [`fields`], [`policy`] picks a pair from the [`pool`], [`enrich`]
//! writes the legs, [`dispatch`] sends them by [`upstream`], [`relay`] passes decode's bytes on, [`account`] closes the exchange.
//!
//! A registration: [`listener`] hears it behind [`guard`], [`discovery`] has it decoded by [`dialect`], [`registry`] keeps the
//! engine and publishes the [`pool`].

pub mod sim;
pub mod engine;
pub mod api;
pub mod output;
pub mod compat;
pub mod error;
pub mod dialect;
pub mod body;
pub mod fields;
pub mod request;
pub mod enrich;
pub mod health;
pub mod metrics;
pub mod reason;
pub mod pool;
pub mod registry;
pub mod contacts;
pub mod bonds;
pub mod policy;
pub mod upstream;
pub mod opening;
pub mod gauges;
pub mod release;
pub mod parked;
pub mod account;
pub mod relay;
pub mod dispatch;
pub mod descriptors;
pub mod guard;
pub mod listener;
pub mod discovery;
pub mod options;
pub mod config;
pub mod server;
pub mod app;
pub mod demo;
