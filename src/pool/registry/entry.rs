//! What the registry keeps of one engine.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::peers::Peers;
use crate::engine::versions::{self, EngineVersion};
use crate::engine::{Misfit, Registration, reach};
use crate::pool::{State, Vitals};

/// The first wait before a failed probe is repeated; it doubles up to [`super::PROBE_AGAIN_MAX`].
pub(super) const PROBE_AGAIN: Duration = Duration::from_millis(500);
/// How long a ping of a process that has ended may be on its way.
pub(super) const OLD_PINGS: Duration = Duration::from_secs(1);

/// Another process at an engine's address.
#[derive(Clone, Debug)]
pub(super) struct Rival {
    pub(super) says: Registration,
    pub(super) peer: SocketAddr,
    pub(super) since: Instant,
    pub(super) last: Instant,
    /// It had the address before and lost it, yet pings: a refusing port of the one that is there now proves no restart.
    pub(super) ousted: bool,
    pub(super) told: bool,
}

/// An engine that was ready refuses connections. When it answers again and none of the sockets speaks from which its pings came
/// until then, it is another process.
#[derive(Debug)]
pub(super) struct Refusal {
    /// When it was seen first, and last.
    pub(super) first: Instant,
    pub(super) last: Instant,
    /// Where its pings came from as long as it was known to serve. Who was first heard after that may be another process.
    pub(super) then: Vec<SocketAddr>,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) registration: Registration,
    pub(super) order: u64,
    pub(super) incarnation: u64,
    pub(super) vitals: Arc<Vitals>,
    pub(super) state: State,
    pub(super) version: Option<EngineVersion>,
    pub(super) last_ping: Instant,
    pub(super) probing: bool,
    pub(super) next_probe: Instant,
    /// When a probe is to ask for its release again, which only a restart can change.
    pub(super) next_release: Instant,
    pub(super) probe_wait: Duration,
    /// Where its pings come from.
    pub(super) peers: Peers,
    /// It was ready and then refused connections.
    pub(super) refused: Option<Refusal>,
    /// One of its hosts beyond the first refused connections: what was there is gone, and peers hold sessions with it.
    pub(super) lost_host: bool,
    /// One of them could not be reached when it was last looked at.
    pub(super) unreachable: bool,
    /// It answers again, and its next ping is all that is missing.
    pub(super) awaits_ping: bool,
    /// When it last answered a probe as it should, if it ever did.
    pub(super) served: Option<Instant>,
    pub(super) silent: bool,
    /// Others that announce its address.
    pub(super) rivals: Vec<Rival>,
    /// Where the pings of the process came from that had the address before and lost it to this one.
    pub(super) ousted: Vec<SocketAddr>,
}

impl Entry {
    pub(super) fn new(
        registration: Registration,
        (order, incarnation): (u64, u64),
        vitals: Arc<Vitals>,
        peers: Peers,
        now: Instant,
    ) -> Entry {
        Entry {
            registration,
            order,
            incarnation,
            vitals,
            state: State::Probing,
            version: None,
            last_ping: now,
            probing: false,
            next_probe: now,
            next_release: now,
            probe_wait: PROBE_AGAIN,
            peers,
            refused: None,
            lost_host: false,
            unreachable: false,
            awaits_ping: false,
            served: None,
            silent: false,
            rivals: Vec::new(),
            ousted: Vec::new(),
        }
    }

    /// It spoke. Says whether its ping counter fell back, which it does when it is restarted. Sockets count for themselves.
    pub(super) fn hear(&mut self, index: Option<u64>, peer: Option<SocketAddr>, now: Instant, ttl: Duration) -> bool {
        self.last_ping = now;
        if std::mem::take(&mut self.awaits_ping) {
            self.next_probe = now;
        }
        let before = self.peers.hear(peer, index, now, ttl).or(self.registration.index);
        if self.silent {
            self.silent = false;
            tracing::info!(role = %self.registration.role, engine = %self.registration.http, "engine pings again");
        }
        matches!((before, index), (Some(before), Some(now)) if now < before)
    }

    /// What is wrong with what was listed of its hosts.
    pub(super) fn misfit(&self) -> Option<Misfit> {
        reach::misfit(&self.registration, versions::traits(self.version, self.registration.dialect))
    }

    /// One of its hosts beyond the first refuses connections. Before it served there was nothing to lose.
    pub(super) fn lose_host(&mut self) {
        if self.served.is_some() && !std::mem::replace(&mut self.lost_host, true) {
            let (role, engine, held) = (self.registration.role, &self.registration.http, self.vitals.in_flight());
            tracing::warn!(%role, %engine, held, "engine has lost one of its hosts: legs in flight may be lost with it");
        }
    }

    /// A connection was refused.
    pub(super) fn refuse(&mut self, now: Instant) {
        let then = self.own_sockets();
        self.refused.get_or_insert(Refusal { first: now, last: now, then }).last = now;
    }

    /// Where the pings of its present life came from, as far as that is certain: it may have ended after its last sign of life, and
    /// what was first heard since then be its successor, which says the same.
    pub(super) fn own_sockets(&self) -> Vec<SocketAddr> {
        match (&self.refused, self.served) {
            (Some(refusal), _) => refusal.then.clone(),
            (None, Some(served)) => self.peers.known_at(served),
            (None, None) => self.peers.addresses(),
        }
    }

    /// Whether what it says is known to be from its present life. A ping of its former one may still be on its way when it is
    /// missed, so one counts that comes from nowhere known, alone, or clearly later than the last refusal: a process that
    /// pinged while it refused may have ended before another answered. Nothing but a ping can tell: health, version and open ports
    /// are the same for a process that lives and for the next one on its ports, of which its peers must not take the one
    /// for the other (protocol P2).
    pub(super) fn has_spoken_since_refusal(&self, now: Instant) -> bool {
        self.refused.as_ref().is_none_or(|refusal| {
            let Refusal { first, last, then } = refusal;
            // One that was first heard between its last sign of life and its refusal is a successor or a socket more: a socket
            // of before has the time of two pings to tell.
            let in_doubt = self.peers.stranger_known_at(then, *first) && !self.peers.spoke(then, *last + OLD_PINGS);
            if in_doubt && self.peers.may_yet_speak(then, now) {
                return false;
            }
            // Engines ping long before they serve (protocol R6), so that another process mostly has while it refused.
            let stranger_alone =
                |since: Instant| self.peers.stranger_spoke(then, since) && !self.peers.spoke(then, since);
            stranger_alone(*first) || stranger_alone(*first + OLD_PINGS) || self.last_ping > *last + OLD_PINGS
        })
    }

    /// Whether another process answers for it now. Pings over a connection of before are the same process's, whatever its
    /// HTTP server went through, and its KV sessions with its peers hold.
    pub(super) fn was_replaced(&self) -> bool {
        self.refused.as_ref().is_some_and(|refusal| !self.peers.spoke(&refusal.then, refusal.last + OLD_PINGS))
    }
}
