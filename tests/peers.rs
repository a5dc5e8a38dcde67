//! The proxy against peers that nobody here wrote: libzmq and `msgpack` as engines use them, the official OpenAI SDK, and the
//! probes of job scripts.

mod agent;
mod environment;
mod wording;

mod barrier;
mod pool;
mod registration;
mod restart;
mod sdk;
mod strangers;
