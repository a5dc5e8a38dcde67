//! The hosts of an engine whose data-parallel ranks live on several of them (protocol section H). Only its first host registers,
//! so that the others come from the configuration.

use super::address::HttpAddress;

/// The most hosts of one engine.
pub(crate) const MOST: usize = 256;

/// One host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Name or address that peers dial; IPv6 without brackets.
    pub address: String,
    /// Where its ranks take requests themselves; none of a child without HTTP, whose ranks the first host serves.
    pub http: Option<HttpAddress>,
}

/// All hosts of one engine, in the order of their ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hosts {
    all: Box<[Host]>,
    local: u32,
}

/// Who of decode's ranks tells prefill of its blocks in WRITE, where either side spans hosts (protocol H4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Contract {
    /// The second where one host's address stands for all, as the programs do whose options say so; else the first.
    #[default]
    Auto,
    /// Whichever has the leg (`is_request_leader`): all ranks of both sides are used.
    Leader,
    /// The one with prefill's number (`remote_dp_rank_override`), to which decode's leg is pinned: ranks beyond the smaller side
    /// are unused.
    SameRank,
}

impl Hosts {
    /// Hosts of `local` ranks each. None unless there are 1 to 256 of them, at least one rank each, and either no host or every one
    /// but the first takes requests itself.
    pub fn new(all: Vec<Host>, local: u32) -> Option<Hosts> {
        let serving = all.iter().skip(1).filter(|host| host.http.is_some()).count();
        let is_alike = serving == 0 || serving + 1 == all.len();
        (local > 0 && (1..=MOST).contains(&all.len()) && is_alike).then(|| Hosts { all: all.into(), local })
    }

    /// Each of them.
    pub fn all(&self) -> &[Host] {
        &self.all
    }

    /// Ranks of each.
    pub fn local(&self) -> u32 {
        self.local
    }

    /// Whether every host takes requests for its own ranks.
    pub fn serve(&self) -> bool {
        self.all.get(1).is_some_and(|host| host.http.is_some())
    }

    /// Whether the first host's address stands for the others', whose own are not known.
    pub fn is_repeated(&self) -> bool {
        matches!(&self.all[..], [first, second, ..] if first.address == second.address)
    }

    /// A rank's host by its place in the list, and its number there. Past the end it is the first, as engines have it.
    pub(super) fn place(&self, rank: u32) -> (usize, u32) {
        let host = usize::try_from(rank / self.local).unwrap_or(0);
        (if host < self.all.len() { host } else { 0 }, rank % self.local)
    }
}
