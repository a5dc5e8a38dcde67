//! Another engine: as a leg describes it, and as it describes itself.

use serde::{Deserialize, Serialize};

/// An engine's peer, as a leg describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) host: String,
    /// Unknown only where it is not needed: WRITE decode.
    pub(crate) handshake: Option<u16>,
    pub(crate) notify: u16,
    pub(crate) dp_size: u32,
    pub(crate) tp: u32,
    pub(crate) dp_rank: u32,
}

/// What one rank of an engine says of itself; here the simulated RDMA endpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Metadata {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) nonce: u64,
    pub(crate) dp_size: u32,
    pub(crate) tp_size: u32,
    pub(crate) dp_rank: u32,
    pub(crate) tp_rank: u32,
}
