//! The only owner of engines: takes registrations and probe results, expires the dead, notices restarts, and publishes one
//! snapshot. Time is passed in; message formats and sockets are elsewhere.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

use crate::engine::versions::EngineVersion;
use crate::engine::{HttpAddress, Mode, Registration};
use crate::metrics::Metrics;
use crate::pool::reason::Failure;
use crate::pool::{Engine, Pool, State, Vitals};
use crate::settings::RegistryLimits;

mod claims;
mod entry;
mod peers;
mod probing;

use entry::Entry;
use peers::Peers;

/// The longest wait before a failed probe is repeated.
const PROBE_AGAIN_MAX: Duration = Duration::from_secs(2);
/// How often a ready engine is probed.
const PROBE_READY: Duration = Duration::from_secs(10);
/// How often a ready engine is asked for its release: one that was restarted and not seen to be is known within that.
const RELEASE_AGAIN: Duration = Duration::from_secs(30);

/// What came of a registration message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entered {
    /// An engine that was not known.
    Added,
    /// Nothing new.
    Refreshed,
    /// The engine says something else of itself, or its ping counter fell back: it was restarted.
    Restarted,
    /// Another process has this address, so this one is refused.
    Claimed,
    /// The pool is at `--max-engines`.
    Full,
}

impl Entered {
    /// The value of the label `result`.
    pub fn as_str(self) -> &'static str {
        match self {
            Entered::Added => "added",
            Entered::Refreshed => "refreshed",
            Entered::Restarted => "restarted",
            Entered::Claimed => "claimed",
            Entered::Full => "full",
        }
    }
}

/// What a probe found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// `/health` answered below 500 and no KV port refused.
    Alive(Option<EngineVersion>),
    /// It cannot be used, for this reason.
    Failed(Failure),
    /// The same, and one of its hosts beyond the first refused connections, whatever the reason is.
    HostGone(Failure),
}

/// An engine that wants to be probed.
#[derive(Clone, Debug)]
pub struct ProbeOrder {
    /// Which life of the engine; a result for an earlier one is dropped.
    pub incarnation: u64,
    /// What to probe.
    pub registration: Registration,
    /// Whether it is the engine's first probe, which goes before all others.
    pub first: bool,
    /// Whether its release is to be asked for, too.
    pub release: bool,
    /// Whether another process claims its address: then its KV ports are asked first, since they tell the two apart.
    pub contested: bool,
}

/// All engines.
#[derive(Debug)]
pub struct Registry {
    limits: RegistryLimits,
    metrics: Arc<Metrics>,
    entries: HashMap<HttpAddress, Entry>,
    /// Engines taken for dead: what they said, which life it was, where their pings came from.
    departed: HashMap<HttpAddress, (Registration, u64, Vec<SocketAddr>)>,
    mode: Option<Mode>,
    last_number: u64,
    dirty: bool,
    ended: Vec<u64>,
    snapshot: watch::Sender<Arc<Pool>>,
    refusals: Arc<Notify>,
}

impl Registry {
    /// An empty registry.
    pub fn new(limits: RegistryLimits, metrics: Arc<Metrics>) -> Self {
        let snapshot = watch::Sender::new(Arc::new(Pool::default()));
        Registry {
            limits,
            metrics,
            entries: HashMap::new(),
            departed: HashMap::new(),
            mode: None,
            last_number: 0,
            dirty: true,
            ended: Vec::new(),
            snapshot,
            refusals: Arc::default(),
        }
    }

    /// The published snapshot, now and later.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Pool>> {
        self.snapshot.subscribe()
    }

    /// Called when a leg's connection to any engine was refused.
    pub(crate) fn refusals(&self) -> Arc<Notify> {
        self.refusals.clone()
    }

    fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// An engine spoke.
    pub fn hear(&mut self, registration: Registration, peer: Option<SocketAddr>, now: Instant) -> Entered {
        let (number, ttl) = (self.number(), self.limits.ttl);
        let Some(entry) = self.entries.get_mut(&registration.http) else {
            if self.entries.len() >= self.limits.max_engines {
                return Entered::Full;
            }
            self.warn_of_overlaps(&registration);
            let incarnation = self.returned(&registration, peer).unwrap_or(number);
            self.add(registration.clone(), Peers::default(), (number, incarnation), now);
            if let Some(entry) = self.entries.get_mut(&registration.http) {
                entry.hear(registration.index, peer, now, ttl);
            }
            return Entered::Added;
        };
        if let Some(peer) = peer.filter(|_| entry.is_of_another(&registration, peer)) {
            let succeeds = entry.challenge(&registration, peer, now);
            self.dirty |= entry.tell_of_rivals();
            if !succeeds {
                return Entered::Claimed;
            }
            self.replace(registration, Some(peer), now);
            return Entered::Restarted;
        }
        let fell_back = entry.hear(registration.index, peer, now, ttl);
        self.dirty |= entry.tell_of_rivals();
        if entry.registration.same_engine(&registration) && !fell_back {
            entry.registration.index = registration.index;
            return Entered::Refreshed;
        }
        self.replace(registration, peer, now);
        Entered::Restarted
    }

    /// A new life at a known address.
    fn replace(&mut self, registration: Registration, peer: Option<SocketAddr>, now: Instant) {
        tracing::warn!(
            role = %registration.role, engine = %registration.http, handshake = registration.kv.handshake,
            notify = registration.kv.notify, mode = %registration.mode, "engine restarted or changed its registration"
        );
        let (number, ttl) = (self.number(), self.limits.ttl);
        let Some(before) = self.entries.get(&registration.http) else { return };
        let order = if before.registration.role == registration.role { before.order } else { number };
        let mut ousted = before.peers.addresses();
        ousted.retain(|address| Some(*address) != peer);
        // Equal words from several sockets are one engine's, whose counters may differ by socket.
        let same = before.registration.same_engine(&registration);
        let peers = if same { before.peers.clone() } else { Peers::default() };
        self.remove(&registration.http);
        let (address, index) = (registration.http.clone(), registration.index);
        self.add(registration, peers, (order, number), now);
        if let Some(entry) = self.entries.get_mut(&address) {
            entry.hear(index, peer, now, ttl);
            entry.ousted = ousted;
        }
    }

    fn add(&mut self, registration: Registration, peers: Peers, (order, incarnation): (u64, u64), now: Instant) {
        let metrics = self.metrics.engine(registration.role, &registration.http.to_string());
        let vitals = Vitals::watched(self.limits.breaker, metrics, self.refusals.clone());
        let address = registration.http.clone();
        self.entries.insert(address, Entry::new(registration, (order, incarnation), vitals, peers, now));
        self.dirty = true;
    }

    fn remove(&mut self, address: &HttpAddress) {
        if let Some(entry) = self.entries.remove(address) {
            self.metrics.forget_engine(entry.registration.role, &address.to_string());
            self.ended.push(entry.incarnation);
            self.dirty = true;
        }
    }

    /// An engine is taken for dead. It may only have been out of reach, so what it knew is not forgotten yet.
    fn depart(&mut self, address: &HttpAddress) {
        let Some(entry) = self.entries.get(address) else { return };
        if entry.lost_host {
            // Whoever pings there again is not what its peers have met.
            return self.remove(address);
        }
        let (registration, incarnation, peers) = (entry.registration.clone(), entry.incarnation, entry.own_sockets());
        self.remove(address);
        self.ended.retain(|ended| *ended != incarnation);
        if self.departed.len() >= self.limits.max_engines {
            self.ended.extend(self.departed.drain().map(|(_, (_, incarnation, _))| incarnation));
        }
        self.departed.insert(address.clone(), (registration, incarnation, peers));
    }

    /// The life of an engine that was taken for dead and pings over a connection of before: it never ended.
    fn returned(&mut self, registration: &Registration, peer: Option<SocketAddr>) -> Option<u64> {
        let (before, incarnation, from) = self.departed.remove(&registration.http)?;
        let same = peer.is_some_and(|peer| from.contains(&peer)) && before.same_engine(registration);
        if !same {
            self.ended.push(incarnation);
            self.dirty = true;
        }
        same.then_some(incarnation)
    }

    /// Two engines on one host whose port ranges meet will serve each other's messages (protocol A4).
    fn warn_of_overlaps(&self, new: &Registration) {
        let span = |base: u16, r: &Registration| (u32::from(base), u32::from(base) + r.local_ranks() * r.tp_size);
        let spans = |r: &Registration| [span(r.kv.handshake, r), span(r.kv.notify, r)];
        let meet = |o: &&Registration| o.host_addresses().any(|host| new.host_addresses().any(|own| own == host));
        for other in self.entries.values().map(|e| &e.registration).filter(meet) {
            let meets = |(from, to): (u32, u32)| spans(other).iter().any(|(low, high)| from < *high && *low < to);
            if spans(new).into_iter().any(meets) {
                tracing::warn!(engine = %new.http, other = %other.http, "KV port ranges of two engines on one host overlap");
                return;
            }
        }
    }

    /// Publishes a snapshot if anything changed, and returns the incarnations that have ended.
    pub fn publish(&mut self) -> Vec<u64> {
        if !std::mem::take(&mut self.dirty) {
            return Vec::new();
        }
        let mut entries: Vec<&Entry> = self.entries.values().collect();
        entries.sort_unstable_by_key(|entry| entry.order);
        let held = entries.iter().any(|e| Some(e.registration.mode) == self.mode);
        if !held {
            self.mode = entries.first().map(|e| e.registration.mode);
        }
        let before = self.snapshot.borrow().clone();
        let known: HashMap<u64, &Arc<Engine>> = before.engines().map(|e| (e.incarnation, e)).collect();
        let engines = entries.into_iter().filter_map(|entry| {
            let state = match entry.state {
                State::Ready if Some(entry.registration.mode) != self.mode => State::OtherMode,
                State::Ready => entry.misfit().map_or(State::Ready, State::Misfit),
                state => state,
            };
            let claims = entry.claims();
            match known.get(&entry.incarnation) {
                Some(engine)
                    if engine.state == state && engine.version == entry.version && engine.claimed_by == claims =>
                {
                    Some((*engine).clone())
                }
                _ => {
                    let (registration, vitals) = (entry.registration.clone(), entry.vitals.clone());
                    let engine = Engine::new(registration, entry.version, state, entry.incarnation, vitals)?;
                    Some(Arc::new(Engine { claimed_by: claims, ..engine }))
                }
            }
        });
        let pool = Pool::new(engines.collect::<Vec<_>>(), self.mode);
        pool.count(&self.metrics);
        self.snapshot.send_replace(Arc::new(pool));
        std::mem::take(&mut self.ended)
    }
}

#[cfg(test)]
mod tests;
