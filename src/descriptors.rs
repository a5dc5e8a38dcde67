//! File descriptors: how many this process may hold, and how many peers fit into that.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors left for log files, epoll, listening sockets and everything else that is neither a peer nor a stream.
const SPARE: u64 = 100;
/// A discovery peer holds its TCP socket and both ends of its link to the ROUTER.
const PER_PEER: u64 = 3;
/// A client's connection, and the two legs that its exchange may have open.
const PER_CONNECTION: u64 = 3;

/// Raises the soft limit on open descriptors to the hard limit; returns the limit that holds afterwards.
pub fn raise_descriptors() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
    // A refusal is no reason not to start: the caps are fitted to whatever holds.
    let _ = setrlimit(Resource::Nofile, wanted);
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Caps on discovery peers and client connections, up to those asked for, that fit into `descriptors` together: beyond them
/// accept loops would meet the limit and spin. A quarter is for peers.
pub fn fit(max_peers: usize, max_connections: usize, descriptors: u64) -> (usize, usize) {
    let room = descriptors.saturating_sub(SPARE);
    let capped = |wanted: usize, room: u64| wanted.min(usize::try_from(room).unwrap_or(usize::MAX)).max(1);
    let peers = capped(max_peers, room / 4 / PER_PEER);
    let left = room.saturating_sub(PER_PEER.saturating_mul(peers as u64));
    (peers, capped(max_connections, left / PER_CONNECTION))
}

#[cfg(test)]
mod tests {
    use super::{fit, raise_descriptors};

    #[test]
    fn caps_fit_into_the_descriptors() {
        assert_eq!(fit(4096, 16384, u64::MAX), (4096, 16384));
        assert_eq!(fit(4096, 16384, 1024), (77, 231));
        assert_eq!(fit(10, 16384, 1024), (10, 298));
        assert_eq!(fit(4096, 16384, 0), (1, 1));
    }

    #[test]
    fn raising_twice_gives_the_same_limit() {
        let first = raise_descriptors();
        assert!(first > 0);
        assert_eq!(raise_descriptors(), first);
    }
}
