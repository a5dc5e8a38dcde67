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
    pub(crate) layout: Layout,
}

/// How a leg spreads its peer's ranks over hosts, as far as its reader looks at that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) hosts: Vec<String>,
    /// Ranks on each host. Without any the list is off.
    pub(crate) local: Option<u32>,
}

impl Peer {
    /// The host of a rank, and the rank's number there.
    pub(crate) fn place(&self, rank: u32) -> (&str, u32) {
        self.place_by(&self.layout, rank)
    }

    /// The same by another leg's layout. A rank past the end of the list is looked for on the first host.
    pub(crate) fn place_by<'a>(&'a self, layout: &'a Layout, rank: u32) -> (&'a str, u32) {
        let Some(local) = layout.local else { return (&self.host, rank) };
        let host = layout.hosts.get((rank / local) as usize).or(layout.hosts.first());
        (host.unwrap_or(&self.host), rank % local)
    }

    /// The handshake port of a rank, on which host.
    pub(crate) fn handshake_place(&self, base: u16, dp: u32, tp: u32) -> (String, u16) {
        let (host, local) = self.place(dp);
        (host.to_owned(), port(base, local * self.tp + tp))
    }
}

/// The port so far above a base.
pub(crate) fn port(base: u16, offset: u32) -> u16 {
    (u32::from(base) + offset).min(65535) as u16
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
