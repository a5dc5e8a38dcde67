//! Values that describe an engine: its role and mode, where it is reached, and what it said of itself.
//!
//! Nothing here holds state, reads a clock or opens a socket.

mod address;
pub mod versions;

use std::fmt;

pub use address::{BadAddress, HttpAddress};
pub(crate) use address::{plausible_host, port_number};

/// What an engine does with a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Computes the prompt's KV cache (`kv_producer`, registered as `P`).
    Prefill,
    /// Generates from a KV cache that it received (`kv_consumer`, registered as `D`).
    Decode,
}

impl Role {
    /// The word for logs, metrics and error headers.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Prefill => "prefill",
            Role::Decode => "decode",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who moves the KV cache; an engine setting that it registers as `transfer_mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Decode pulls from prefill's blocks, so decode's leg follows prefill's answer.
    Read,
    /// Prefill pushes into decode's blocks, so both legs run at once.
    Write,
}

impl Mode {
    /// The word as engines register it.
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Read => "READ",
            Mode::Write => "WRITE",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The wording of a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// vLLM 0.14.0 to 0.19.1: `type` is `register`, the address is a URL, ports are separate keys.
    A,
    /// vLLM 0.20.0 and later: `type` is the role, the KV address is one text.
    B,
}

/// Where an engine's connector listens for its peers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KvEndpoint {
    /// Name or address that peers dial; IPv6 without brackets.
    pub host: String,
    /// Base port of the handshake listeners, without any rank's offset.
    pub handshake: u16,
    /// Base port of the notify listeners, without any rank's offset.
    pub notify: u16,
    /// The text that goes into request ids: what dialect B sent, verbatim, or the same form made from dialect A.
    pub text: String,
}

/// One engine's account of itself, decoded from either dialect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Prefill or decode.
    pub role: Role,
    /// Its HTTP address: the key under which the registry knows it.
    pub http: HttpAddress,
    /// Its connector's address.
    pub kv: KvEndpoint,
    /// Data-parallel ranks of the instance, 1 to 1024.
    pub dp_size: u32,
    /// Tensor-parallel size, 1 to 1024.
    pub tp_size: u32,
    /// Who moves the KV cache.
    pub mode: Mode,
    /// The wording that was used.
    pub dialect: Dialect,
    /// Dialect A's ping counter. It falls back to 1 when the engine restarts.
    pub index: Option<u64>,
}

impl Registration {
    /// Whether `other` says the same of the engine, its ping counter apart.
    pub(crate) fn same_engine(&self, other: &Registration) -> bool {
        let mut other = other.clone();
        other.index = self.index;
        *self == other
    }
}
