//! The clients' door: connections and their places, limits, routes, the attempt loop, status pages, routes that need no pair.

pub(crate) mod accept;
pub(crate) mod access;
mod attempts;
mod body;
pub(crate) mod browsers;
mod cached;
pub(crate) mod descriptors;
mod events;
mod health;
mod pass_through;
mod places;
pub(crate) mod port;
mod probes;
mod profile;
mod respond;
mod retries;
pub(crate) mod routes;
pub(crate) mod server;
mod session;
mod siblings;
mod status;
mod stream;
pub(crate) mod threads;
mod workers;
