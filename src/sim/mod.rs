//! Simulated vLLM engines that run `MoRIIOConnector`, stricter than the real ones.
//!
//! An engine registers over ZMQ, serves the OpenAI API, and speaks to its peers over sockets only. Decode generates its
//! text from the KV that really reached it, so a wrong pairing shows as wrong text, as a hang, or as a death, whichever
//! the real engine would have. Whatever a correct proxy never does is recorded as a violation besides.
//!
//! An engine's ranks may be spread over hosts, which here are addresses of loopback: `Settings::hosts`. What is true of an engine
//! is known to the others' audits (`roster`), so that a leg is judged also where the peer it means can never be reached.
//!
//! ```no_run
//! # async fn demo() -> std::io::Result<()> {
//! use moriio_proxy::sim::{Engine, Fault, FaultKind, Mode, Role, Settings};
//! let prefill = Engine::start(Settings::new(Role::Prefill, Mode::Read, "127.0.0.1:36367")).await?;
//! prefill.set_fault(Fault::times(FaultKind::Status { status: 503, body: "{}".into() }, 1));
//! assert_eq!(prefill.counters().leaked_blocks, 0);
//! prefill.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! Read `leg` for the way of a request, `transfer` for the way of its KV, `params` for what differs between releases, `span` for what
//! several hosts demand.

mod answer;
mod arrival;
mod ask;
mod audit;
mod books;
mod cache;
mod chain;
mod control;
mod core;
mod data;
mod early;
mod engine;
mod fault;
mod forbidden;
mod handshake;
mod held;
mod http;
mod leg;
mod link;
mod listen;
mod mapped;
mod messages;
mod notice;
mod notify;
mod params;
mod peer;
mod ports;
mod prefill;
mod register;
mod render;
mod response;
mod roster;
mod settings;
mod side;
mod span;
mod state;
mod surface;
mod text;
mod transfer;
mod turn;
mod zmtp;

mod cli;
#[cfg(test)]
mod tests;

pub use books::{Counters, ReceivedLeg};
pub use cli::{Options, RunError, run};
pub use control::Control;
pub use engine::Engine;
pub use fault::{Fault, FaultKind};
pub use render::{rendered_text, rendered_tokens};
pub use settings::{Mode, Role, Settings};
pub use text::{expected_text, expected_tokens};
