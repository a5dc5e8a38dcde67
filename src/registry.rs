//! The only owner of engines: takes registrations and probe results, expires the dead, notices restarts, and publishes one
//! snapshot. Time is passed in; message formats and sockets are elsewhere.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::compat::{self, Release};
use crate::engine::{HttpAddress, Mode, Registration};
use crate::health::BreakerLimits;
use crate::metrics::Metrics;
use crate::pool::{Engine, Pool, State, Vitals};

/// The first wait before a failed probe is repeated; it doubles up to [`PROBE_AGAIN_MAX`].
const PROBE_AGAIN: Duration = Duration::from_millis(500);
/// The longest wait before a failed probe is repeated.
const PROBE_AGAIN_MAX: Duration = Duration::from_secs(2);
/// How often a ready engine is probed.
const PROBE_READY: Duration = Duration::from_secs(10);

/// How long a ping of a process that has ended may be on its way.
const OLD_PINGS: Duration = Duration::from_secs(1);

/// What came of a registration message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An engine that was not known.
    Added,
    /// Nothing new.
    Refreshed,
    /// The engine says something else of itself, or its ping counter fell back: it was restarted.
    Restarted,
    /// The pool is at `--max-engines`.
    Full,
}

impl Outcome {
    /// The value of the label `result`.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Added => "added",
            Outcome::Refreshed => "refreshed",
            Outcome::Restarted => "restarted",
            Outcome::Full => "full",
        }
    }
}

/// What a probe found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// `/health` answered below 500 and no KV port refused.
    Alive(Option<Release>),
    /// `/health` answered 500 or above, or a KV port refused.
    Unhealthy,
    /// Nobody listens at the HTTP address.
    Refused,
    /// No answer in time, or an answer that is no HTTP.
    Silent,
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
}

#[derive(Debug)]
struct Entry {
    registration: Registration,
    order: u64,
    incarnation: u64,
    vitals: Arc<Vitals>,
    state: State,
    release: Option<Release>,
    last_ping: Instant,
    probing: bool,
    next_probe: Instant,
    probe_wait: Duration,
    /// Where its pings come from.
    peer: Option<SocketAddr>,
    /// It was ready and then refused a connection, then, and pings came from there: when it answers again it is another process.
    refused: Option<(Instant, Option<SocketAddr>)>,
    was_ready: bool,
    silent: bool,
}

impl Entry {
    /// Whether what it says is from its present life. A ping of its former one may still be on its way when it is missed, so
    /// one counts that comes over another connection or clearly later.
    fn has_spoken_since_refusal(&self) -> bool {
        self.refused
            .is_none_or(|(at, peer)| self.last_ping > at && (self.peer != peer || self.last_ping > at + OLD_PINGS))
    }

    /// Whether another process answers for it now. Pings over the connection of before are the same process's, whatever its
    /// HTTP server went through, and its KV sessions with its peers hold.
    fn was_replaced(&self) -> bool {
        self.refused.is_some_and(|(_, peer)| peer.is_none() || self.peer != peer)
    }
}

/// Settings of the registry.
#[derive(Clone, Copy, Debug)]
pub struct RegistryLimits {
    /// Silence after which an engine is suspect (`--engine-ttl`).
    pub ttl: Duration,
    /// Engines that are kept (`--max-engines`).
    pub max_engines: usize,
    /// For the breakers of new engines.
    pub breaker: BreakerLimits,
}

/// All engines.
#[derive(Debug)]
pub struct Registry {
    limits: RegistryLimits,
    metrics: Arc<Metrics>,
    entries: HashMap<HttpAddress, Entry>,
    /// Engines taken for dead: what they said, which life it was, where their pings came from.
    departed: HashMap<HttpAddress, (Registration, u64, Option<SocketAddr>)>,
    mode: Option<Mode>,
    last_number: u64,
    dirty: bool,
    ended: Vec<u64>,
    snapshot: watch::Sender<Arc<Pool>>,
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
        }
    }

    /// The published snapshot, now and later.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Pool>> {
        self.snapshot.subscribe()
    }

    fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// An engine spoke.
    pub fn hear(&mut self, registration: Registration, peer: Option<SocketAddr>, now: Instant) -> Outcome {
        let number = self.number();
        let Some(entry) = self.entries.get_mut(&registration.http) else {
            if self.entries.len() >= self.limits.max_engines {
                return Outcome::Full;
            }
            self.warn_of_overlaps(&registration);
            let incarnation = self.returned(&registration, peer).unwrap_or(number);
            self.add(registration, peer, number, incarnation, now);
            return Outcome::Added;
        };
        (entry.last_ping, entry.peer) = (now, peer);
        if entry.silent {
            entry.silent = false;
            tracing::info!(role = %registration.role, engine = %registration.http, "engine pings again");
        }
        let fell_back =
            matches!((entry.registration.index, registration.index), (Some(before), Some(now)) if now < before);
        if entry.registration.same_engine(&registration) && !fell_back {
            entry.registration.index = registration.index;
            return Outcome::Refreshed;
        }
        tracing::warn!(
            role = %registration.role, engine = %registration.http, handshake = registration.kv.handshake,
            notify = registration.kv.notify, mode = %registration.mode, "engine restarted or changed its registration"
        );
        let order = if entry.registration.role == registration.role { entry.order } else { number };
        self.remove(&registration.http);
        self.add(registration, peer, order, number, now);
        Outcome::Restarted
    }

    fn add(
        &mut self,
        registration: Registration,
        peer: Option<SocketAddr>,
        order: u64,
        incarnation: u64,
        now: Instant,
    ) {
        let metrics = self.metrics.engine(registration.role, &registration.http.to_string());
        let entry = Entry {
            order,
            incarnation,
            vitals: Vitals::new(self.limits.breaker, metrics),
            state: State::Probing,
            release: None,
            last_ping: now,
            probing: false,
            next_probe: now,
            probe_wait: PROBE_AGAIN,
            peer,
            refused: None,
            was_ready: false,
            silent: false,
            registration: registration.clone(),
        };
        self.entries.insert(registration.http, entry);
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
        let (registration, incarnation, peer) = (entry.registration.clone(), entry.incarnation, entry.peer);
        self.remove(address);
        self.ended.retain(|ended| *ended != incarnation);
        if self.departed.len() >= self.limits.max_engines {
            self.ended.extend(self.departed.drain().map(|(_, (_, incarnation, _))| incarnation));
        }
        self.departed.insert(address.clone(), (registration, incarnation, peer));
    }

    /// The life of an engine that was taken for dead and pings over the connection of before: it never ended.
    fn returned(&mut self, registration: &Registration, peer: Option<SocketAddr>) -> Option<u64> {
        let (before, incarnation, from) = self.departed.remove(&registration.http)?;
        let same = peer.is_some() && peer == from && before.same_engine(registration);
        if !same {
            self.ended.push(incarnation);
            self.dirty = true;
        }
        same.then_some(incarnation)
    }

    /// Two engines on one host whose port ranges meet will serve each other's messages (requirement RS-18).
    fn warn_of_overlaps(&self, new: &Registration) {
        let span = |base: u16, r: &Registration| (u32::from(base), u32::from(base) + r.dp_size * r.tp_size);
        let spans = |r: &Registration| [span(r.kv.handshake, r), span(r.kv.notify, r)];
        for other in self.entries.values().map(|e| &e.registration).filter(|o| o.kv.host == new.kv.host) {
            let meets = |(from, to): (u32, u32)| spans(other).iter().any(|(low, high)| from < *high && *low < to);
            if spans(new).into_iter().any(meets) {
                tracing::warn!(engine = %new.http, other = %other.http, "KV port ranges of two engines on one host overlap");
                return;
            }
        }
    }

    /// A probe came back.
    pub fn probed(&mut self, address: &HttpAddress, incarnation: u64, probe: Probe, now: Instant) {
        let ttl = self.limits.ttl;
        let number = self.number();
        let Some(entry) = self.entries.get_mut(address).filter(|e| e.incarnation == incarnation) else {
            return;
        };
        entry.probing = false;
        let silent = now.duration_since(entry.last_ping) > ttl;
        match probe {
            // It serves again, but what it said of its ports is from before: its first ping is waited for.
            Probe::Alive(_) if !entry.has_spoken_since_refusal() => {}
            Probe::Alive(_) if entry.was_replaced() => {
                let (registration, order, peer) = (entry.registration.clone(), entry.order, entry.peer);
                tracing::warn!(role = %registration.role, engine = %address, "engine is back after it refused connections: a new incarnation");
                self.remove(address);
                self.add(registration, peer, order, number, now);
                return self.probed(address, number, probe, now);
            }
            Probe::Alive(release) => {
                entry.refused = None;
                if silent && !entry.silent {
                    entry.silent = true;
                    tracing::warn!(role = %entry.registration.role, engine = %address, "engine has stopped pinging but answers: it stays");
                }
                entry.next_probe = now + PROBE_READY.min(ttl);
                entry.probe_wait = PROBE_AGAIN;
                entry.was_ready = true;
                if entry.state != State::Ready || (release.is_some() && entry.release != release) {
                    entry.state = State::Ready;
                    entry.release = release.or(entry.release);
                    self.dirty = true;
                    let traits = compat::traits(entry.release, entry.registration.dialect);
                    log_ready(&entry.registration, entry.release, traits);
                }
                return;
            }
            Probe::Refused | Probe::Silent if silent => {
                tracing::warn!(role = %entry.registration.role, engine = %address, "engine left: no ping and no answer");
                return self.depart(address);
            }
            // A busy engine may be late with its answer; its pings and its legs speak for it.
            Probe::Silent if entry.state == State::Ready => {}
            Probe::Refused | Probe::Unhealthy | Probe::Silent => {
                if probe == Probe::Refused && entry.was_ready {
                    entry.refused = Some((now, entry.peer));
                }
                if entry.state != State::Unhealthy {
                    let waits = entry.state == State::Probing;
                    tracing::info!(role = %entry.registration.role, engine = %address, ?probe, waits, "engine cannot be used yet");
                    entry.state = State::Unhealthy;
                    self.dirty = true;
                }
            }
        }
        entry.next_probe = now + entry.probe_wait;
        entry.probe_wait = (entry.probe_wait * 2).min(PROBE_AGAIN_MAX);
    }

    /// Engines whose probe is due; each is given out once until its result is in.
    pub fn due(&mut self, now: Instant) -> Vec<ProbeOrder> {
        let ttl = self.limits.ttl;
        let due = self.entries.values_mut().filter_map(|entry| {
            let suspect = now.duration_since(entry.last_ping) > ttl && !entry.silent;
            let refusing = entry.vitals.take_refused();
            if entry.probing || !(now >= entry.next_probe || suspect || refusing) {
                return None;
            }
            entry.probing = true;
            let first = !entry.was_ready && entry.state == State::Probing;
            Some(ProbeOrder { incarnation: entry.incarnation, registration: entry.registration.clone(), first })
        });
        due.collect()
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
                state => state,
            };
            match known.get(&entry.incarnation) {
                Some(engine) if engine.state == state && engine.release == entry.release => Some((*engine).clone()),
                _ => record(entry, state, self.mode).map(Arc::new),
            }
        });
        let pool = Pool::new(engines.collect::<Vec<_>>(), self.mode);
        pool.count(&self.metrics);
        self.snapshot.send_replace(Arc::new(pool));
        std::mem::take(&mut self.ended)
    }
}

fn record(entry: &Entry, state: State, mode: Option<Mode>) -> Option<Engine> {
    let registration = entry.registration.clone();
    if state == State::OtherMode {
        let pool = mode.map_or("none", Mode::as_str);
        tracing::warn!(role = %registration.role, engine = %registration.http, mode = %registration.mode, pool, "engine has another mode than the pool: unused");
    }
    Engine::new(registration, entry.release, state, entry.incarnation, entry.vitals.clone())
}

fn log_ready(registration: &Registration, release: Option<Release>, traits: &compat::Traits) {
    let release = release.map_or_else(|| "unknown".to_owned(), |r| r.to_string());
    tracing::info!(
        role = %registration.role, engine = %registration.http, kv = %registration.kv.text, mode = %registration.mode,
        dp_size = registration.dp_size, tp_size = registration.tp_size, %release, "engine ready"
    );
    if let Some(warning) = traits.warning(registration.mode) {
        tracing::warn!(engine = %registration.http, "{warning}");
    }
}

#[cfg(test)]
mod tests;
