//! File descriptors: how many this process may hold, and how many peers fit into that.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors left for log files, epoll, listening sockets and everything else that is neither a peer nor a stream.
const SPARE: u64 = 100;
/// A discovery peer holds its TCP socket and both ends of its link to the ROUTER.
const PER_PEER: u64 = 3;
/// An exchange holds its client's socket and one upstream socket most of the time.
const PER_STREAM: u64 = 2;

/// Raises the soft limit on open descriptors to the hard limit; returns the limit that holds afterwards.
pub fn raise_descriptors() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    // A refusal is no reason not to start: the caps are fitted to whatever holds.
    let _ = setrlimit(Resource::Nofile, wanted);
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// The largest number of discovery peers, up to `max_peers`, that leaves room for `max_streams` streams within
/// `descriptors`; never below one.
pub fn fit_peers(max_peers: usize, max_streams: usize, descriptors: u64) -> usize {
    let streams = u64::try_from(max_streams)
        .unwrap_or(u64::MAX)
        .saturating_mul(PER_STREAM);
    let room = descriptors.saturating_sub(SPARE).saturating_sub(streams) / PER_PEER;
    max_peers.min(usize::try_from(room).unwrap_or(usize::MAX)).max(1)
}

#[cfg(test)]
mod tests {
    use super::{fit_peers, raise_descriptors};

    #[test]
    fn peers_fit_into_the_descriptors_left_by_streams() {
        assert_eq!(fit_peers(4096, 1000, u64::MAX), 4096);
        assert_eq!(fit_peers(4096, 1000, 3 * 4096 + 2 * 1000 + 100), 4096);
        assert_eq!(fit_peers(4096, 1000, 3 * 4096 + 2 * 1000 + 99), 4095);
        assert_eq!(fit_peers(4096, 0, 1024), 308);
        assert_eq!(fit_peers(4096, 1000, 1024), 1);
        assert_eq!(fit_peers(0, usize::MAX, 0), 1);
    }

    #[test]
    fn raising_twice_gives_the_same_limit() {
        let first = raise_descriptors();
        assert!(first > 0);
        assert_eq!(raise_descriptors(), first);
    }
}
