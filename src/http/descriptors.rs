//! File descriptors: how many this process may hold, and how many peers fit into that.

use std::fs::File;
use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors left for log files, epoll, listening sockets, connections on reserved places (16) and everything else that is
/// neither a peer nor a stream.
const SPARE: u64 = 100;
/// Descriptors held in reserve, so that a probe can be let in when all others are taken.
const IN_RESERVE: usize = 4;
/// A discovery peer holds its TCP socket and both ends of its link to the ROUTER.
const PER_PEER: u64 = 3;
/// The leg that an exchange has open as long as its answer comes, beside its client's connection. The other one lasts until
/// prefill is done: where too many are at that at once, legs wait for a descriptor, and are refused without harm if none comes.
const PER_EXCHANGE: u64 = 1;

/// Raises the soft limit on open descriptors to the hard limit; returns the limit that holds afterwards.
pub(crate) fn raise_descriptors() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
    // A refusal is no reason not to start: the caps are fitted to whatever holds.
    let _ = setrlimit(Resource::Nofile, wanted);
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Caps on discovery peers and client connections, up to those asked for, that fit into `descriptors` together with
/// `max_in_flight` exchanges: beyond them accept loops would meet the limit and spin. An eighth is for peers.
pub fn fit(max_peers: usize, max_connections: usize, max_in_flight: usize, descriptors: u64) -> (usize, usize) {
    let room = descriptors.saturating_sub(SPARE);
    let capped = |wanted: usize, room: u64| wanted.min(usize::try_from(room).unwrap_or(usize::MAX)).max(1);
    let peers = capped(max_peers, room / 8 / PER_PEER);
    let left = room.saturating_sub(PER_PEER.saturating_mul(peers as u64));
    // Where every connection may have an exchange each costs two; where fewer may, the others are idle and cost one.
    let busy = left / (1 + PER_EXCHANGE);
    let idle = left.saturating_sub(PER_EXCHANGE.saturating_mul(max_in_flight as u64));
    (peers, capped(max_connections, busy.max(idle)))
}

/// Descriptors that are held so that they can be given up.
#[derive(Debug, Default)]
pub struct Spares(Vec<File>);

impl Spares {
    /// As many as there should be, if the system has them.
    pub fn new() -> Self {
        let mut spares = Spares::default();
        spares.refill();
        spares
    }

    /// Gives one up; false when none is left.
    pub fn give(&mut self) -> bool {
        self.0.pop().is_some()
    }

    /// Takes back what was given up. Says whether all are there again.
    pub(crate) fn refill(&mut self) -> bool {
        while self.0.len() < IN_RESERVE {
            match File::open("/dev/null") {
                Ok(file) => self.0.push(file),
                // Where there is no such file nothing can be held, and nothing is waited for.
                Err(error) => return !is_exhausted(&error),
            }
        }
        true
    }
}

/// Whether a call failed because the process or the system has no descriptor left.
pub(crate) fn is_exhausted(error: &io::Error) -> bool {
    let codes = [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE].map(rustix::io::Errno::raw_os_error);
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

#[cfg(test)]
mod tests {
    use super::{fit, raise_descriptors};

    #[test]
    fn caps_fit_into_the_descriptors() {
        assert_eq!(fit(4096, 16384, 8192, u64::MAX), (4096, 16384));
        assert_eq!(fit(4096, 16384, 8192, 1024), (38, 405));
        assert_eq!(fit(10, 16384, 8192, 1024), (10, 447));
        assert_eq!(fit(4096, 16384, 8192, 20_000), (829, 9221));
        assert_eq!(fit(4096, 16384, 1000, 20_000), (829, 16_384));
        assert_eq!(fit(4096, 16384, 8192, 0), (1, 1));
    }

    #[test]
    fn raising_twice_gives_the_same_limit() {
        let first = raise_descriptors();
        assert!(first > 0);
        assert_eq!(raise_descriptors(), first);
    }
}
