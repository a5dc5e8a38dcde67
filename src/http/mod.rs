//! The clients' door: connections and their places, limits, routes, the attempt loop, status pages, routes that need no pair.

mod access;
pub(crate) mod accept;
pub(crate) mod browsers;
pub mod descriptors;
mod pass_through;
mod places;
pub(crate) mod port;
pub mod server;
mod status;
mod stream;
