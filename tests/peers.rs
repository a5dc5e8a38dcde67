//! The proxy against peers that nobody here wrote: libzmq and `msgpack` as engines use them, the official SDKs of OpenAI and
//! Anthropic, and the probes of job scripts.

mod agent;
mod environment;
mod wording;

mod barrier;
mod messages;
mod pool;
mod registration;
mod restart;
mod sdk;
mod strangers;
