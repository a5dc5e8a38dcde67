//! Values that describe an engine: its role and mode, where it is reached, and what it said of itself.
//!
//! Nothing here holds state, reads a clock or opens a socket.

mod address;
pub mod hosts;
pub(crate) mod reach;
pub mod versions;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use self::hosts::Hosts;

pub use address::{BadAddress, HttpAddress};
pub(crate) use address::{is_same_host, plausible_host, port_number};

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

/// Which host of an engine, counted from 0, takes a leg, and what its rank header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Door<'a> {
    /// The host's place in the list; 0 where its first host serves all.
    pub host: usize,
    /// Where the leg is posted.
    pub address: &'a HttpAddress,
    /// What `X-data-parallel-rank` says: global at a first host that serves all, else the index among the host's ranks.
    pub rank: Option<u32>,
}

/// Why what was said of an engine's hosts is not what it registered, or not what its version can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Misfit {
    /// Hosts times ranks of each are not the ranks that it registered.
    Ranks {
        /// Hosts that were listed.
        hosts: u32,
        /// Ranks of each.
        local: u32,
        /// Ranks that it registered.
        ranks: u32,
    },
    /// The first host is not the one that registered.
    Master,
    /// Its version cannot span hosts.
    Version,
    /// Its version is not known, so it may be one that cannot.
    UnknownVersion,
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
    /// Its hosts, where they were listed: no message names them.
    pub hosts: Option<Arc<Hosts>>,
}

impl Registration {
    /// Whether `other` says the same of the engine, its ping counter apart.
    pub(crate) fn same_engine(&self, other: &Registration) -> bool {
        let mut other = other.clone();
        other.index = self.index;
        *self == other
    }

    /// Whether its ranks live on more than one host.
    pub fn spans(&self) -> bool {
        self.hosts.as_ref().is_some_and(|hosts| hosts.all().len() > 1)
    }

    /// Whether its first host's address stands for those of all its hosts.
    pub(crate) fn repeats(&self) -> bool {
        self.hosts.as_ref().is_some_and(|hosts| hosts.is_repeated())
    }

    /// What is wrong with the hosts that were listed for it.
    pub(crate) fn misfit(&self) -> Option<Misfit> {
        let hosts = self.hosts.as_ref()?;
        let (count, local, ranks) = (u32::try_from(hosts.all().len()).unwrap_or(u32::MAX), hosts.local(), self.dp_size);
        if count.checked_mul(local) != Some(ranks) {
            return Some(Misfit::Ranks { hosts: count, local, ranks });
        }
        let is_first = hosts.all().first().is_some_and(|first| is_same_host(&first.address, &self.kv.host));
        (!is_first).then_some(Misfit::Master)
    }

    /// Ranks on each of its hosts.
    pub(crate) fn local_ranks(&self) -> u32 {
        self.hosts.as_ref().map_or(self.dp_size, |hosts| hosts.local())
    }

    /// The addresses of its hosts as peers dial them.
    pub(crate) fn host_addresses(&self) -> impl Iterator<Item = &str> {
        let listed = self.hosts.iter().flat_map(|hosts| hosts.all().iter().map(|host| host.address.as_str()));
        listed.chain(self.hosts.is_none().then_some(self.kv.host.as_str()))
    }

    /// The host of a rank, and the rank's number there, which its KV ports are counted by (protocol H2).
    pub(crate) fn place(&self, rank: u32) -> (&str, u32) {
        match &self.hosts {
            Some(hosts) => {
                let (host, local) = hosts.place(rank);
                (&hosts.all()[host].address, local)
            }
            None => (&self.kv.host, rank),
        }
    }

    /// The notify ports of one data-parallel rank, one for each tensor-parallel rank, with its host: base + the rank's number there
    /// + tp (protocol A5, H2).
    ///
    /// Release goes to all of those of prefill's rank, un-park and `write_failed` to all of those of decode's rank. Where
    /// decode's rank is not known, because its leg is not pinned, send to the ports of every rank.
    pub(crate) fn notify_ports(&self, rank: u32) -> impl Iterator<Item = (&str, u16)> {
        let (host, local) = self.place(rank);
        let first = u32::from(self.kv.notify).saturating_add(local);
        let port = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
        (first..first.saturating_add(self.tp_size.max(1))).map(move |number| (host, port(number)))
    }

    /// How many of its hosts take legs, each for ranks of its own; 1 where the first serves all.
    pub(crate) fn doors(&self) -> usize {
        self.hosts.as_ref().filter(|hosts| hosts.serve()).map_or(1, |hosts| hosts.all().len())
    }

    /// Where a leg for one of its ranks goes. The header is left out where there is no choice: it is a range error on an engine
    /// of one rank.
    pub(crate) fn door(&self, rank: u32) -> Door<'_> {
        match &self.hosts {
            Some(hosts) if hosts.serve() => {
                let (host, local) = hosts.place(rank);
                let address = hosts.all()[host].http.as_ref().unwrap_or(&self.http);
                Door { host, address, rank: (hosts.local() > 1).then_some(local) }
            }
            _ => Door { host: 0, address: &self.http, rank: (self.dp_size > 1).then_some(rank) },
        }
    }

    /// Where a leg goes that any rank behind one of its doors may take.
    pub(crate) fn any_behind(&self, host: usize) -> Door<'_> {
        let listed = self.hosts.as_ref().filter(|hosts| hosts.serve()).and_then(|hosts| hosts.all().get(host));
        let address = listed.and_then(|host| host.http.as_ref()).unwrap_or(&self.http);
        Door { host, address, rank: None }
    }

    /// The ranks behind one of its doors.
    pub(crate) fn ranks_behind(&self, host: usize) -> Range<u32> {
        match &self.hosts {
            Some(hosts) if hosts.serve() => {
                let first = u32::try_from(host).unwrap_or(u32::MAX).saturating_mul(hosts.local());
                first..first.saturating_add(hosts.local()).min(self.dp_size)
            }
            _ => 0..self.dp_size,
        }
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Misfit::Ranks { hosts, local, ranks } => {
                write!(f, "it registered {ranks} ranks, --engine-hosts says {hosts} hosts of {local}")
            }
            Misfit::Master => f.write_str("the first host of --engine-hosts is not the KV host that it registered"),
            Misfit::UnknownVersion => f.write_str("its vLLM version is not known: 0.28.0 or newer can span hosts"),
            Misfit::Version => f.write_str("its vLLM version cannot span hosts: 0.28.0 or newer does"),
        }
    }
}

#[cfg(test)]
mod tests;
