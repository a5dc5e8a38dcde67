//! The sockets from which an engine pings. One engine may have several: API servers that each say the same over a connection
//! of their own (protocol R5).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Sockets of one engine that are remembered; the one that was heard longest ago makes room.
const REMEMBERED: usize = 16;
/// The shortest and the longest time between two pings that is believed: releases ping every 3 or 5 seconds (protocol R1),
/// queued pings come in bursts (protocol R1), and a starved heartbeat is late.
const INTERVAL: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(5));

/// One socket.
#[derive(Clone, Copy, Debug)]
struct Peer {
    address: SocketAddr,
    first: Instant,
    last: Instant,
    index: Option<u64>,
}

/// All sockets that one engine was heard from of late.
#[derive(Clone, Debug)]
pub(super) struct Peers {
    seen: Vec<Peer>,
    interval: Duration,
}

impl Default for Peers {
    fn default() -> Self {
        Peers { seen: Vec::new(), interval: INTERVAL.1 }
    }
}

impl Peers {
    /// A ping came from `address`. Gives what its counter said before, if that socket is known and counts. Sockets that have
    /// been silent for `forget` are forgotten: their addresses may be anybody's by now.
    pub(super) fn hear(
        &mut self,
        address: Option<SocketAddr>,
        index: Option<u64>,
        now: Instant,
        forget: Duration,
    ) -> Option<u64> {
        let address = address?;
        self.seen.retain(|peer| peer.address == address || now.duration_since(peer.last) <= forget);
        if let Some(peer) = self.seen.iter_mut().find(|peer| peer.address == address) {
            self.interval = now.duration_since(peer.last).clamp(INTERVAL.0, INTERVAL.1);
            peer.last = now;
            return std::mem::replace(&mut peer.index, index);
        }
        if self.seen.len() >= REMEMBERED {
            let oldest = (0..self.seen.len()).min_by_key(|at| self.seen[*at].last);
            oldest.map(|at| self.seen.swap_remove(at));
        }
        self.seen.push(Peer { address, first: now, last: now, index });
        None
    }

    /// Whether pings have come from there.
    pub(super) fn knows(&self, address: SocketAddr) -> bool {
        self.seen.iter().any(|peer| peer.address == address)
    }

    /// Whether nobody is known by an address.
    pub(super) fn is_empty(&self) -> bool {
        self.seen.is_empty()
    }

    /// The addresses alone.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.seen.iter().map(|peer| peer.address).collect()
    }

    /// Those that were first heard no later than `then`.
    pub(super) fn known_at(&self, then: Instant) -> Vec<SocketAddr> {
        self.seen.iter().filter(|peer| peer.first <= then).map(|peer| peer.address).collect()
    }

    /// Whether one that is not among these was first heard no later than `then`.
    pub(super) fn stranger_known_at(&self, among: &[SocketAddr], then: Instant) -> bool {
        self.seen.iter().any(|peer| peer.first <= then && !among.contains(&peer.address))
    }

    /// The socket that was heard last.
    pub(super) fn latest(&self) -> Option<SocketAddr> {
        self.seen.iter().max_by_key(|peer| peer.last).map(|peer| peer.address)
    }

    /// Whether one of `among` has pinged after `since`.
    pub(super) fn spoke(&self, among: &[SocketAddr], since: Instant) -> bool {
        self.seen.iter().any(|peer| peer.last > since && among.contains(&peer.address))
    }

    /// Whether one of `among` may only be between two pings.
    pub(super) fn may_yet_speak(&self, among: &[SocketAddr], now: Instant) -> bool {
        self.seen.iter().any(|peer| now <= peer.last + self.patience() && among.contains(&peer.address))
    }

    /// Whether one that is not among these has pinged after `since`.
    pub(super) fn stranger_spoke(&self, among: &[SocketAddr], since: Instant) -> bool {
        self.seen.iter().any(|peer| peer.last > since && !among.contains(&peer.address))
    }

    /// Silence after which a process that pings from these sockets has stopped: two of its intervals.
    pub(super) fn patience(&self) -> Duration {
        self.interval * 2
    }
}
