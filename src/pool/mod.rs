//! The pool as a request sees it: engines with their load and breaker, and one immutable snapshot of all of them.

pub(crate) mod bonds;
pub(crate) mod breaker;
pub(crate) mod history;
pub mod loads;
pub mod pairs;
pub mod reason;
pub mod registry;
pub mod rounds;
mod state;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::engine::versions::{self, EngineVersion, Traits};
use crate::engine::{KvEndpoint, Mode, Registration, Role};
use crate::metrics::{EngineMetrics, LegStatus, Metrics};
use crate::pool::breaker::{Admission, Breaker, Circuit};
use crate::pool::loads::{Holder, Load, Loads, Side};
use crate::pool::reason::{Failure, Reason};
use crate::settings::BreakerLimits;
use crate::upstream::Verdict;
use crate::upstream::gauges::LastLooks;

pub use loads::Slot;
pub use state::State;

/// What lives as long as the engine is registered, however often its record is replaced: its load and its breaker.
#[derive(Debug)]
pub struct Vitals {
    in_flight: AtomicUsize,
    breaker: Mutex<Breaker>,
    refused: AtomicBool,
    refusals: Arc<Notify>,
    /// What the engine last said of its queue, and when it was asked.
    pub looks: LastLooks,
    /// Counters of the engine.
    pub metrics: EngineMetrics,
}

impl Vitals {
    /// An idle engine with a closed breaker.
    pub fn new(limits: BreakerLimits, metrics: EngineMetrics) -> Arc<Self> {
        Vitals::watched(limits, metrics, Arc::default())
    }

    /// The same; `refusals` is called when a leg's connection is refused.
    pub(crate) fn watched(limits: BreakerLimits, metrics: EngineMetrics, refusals: Arc<Notify>) -> Arc<Self> {
        Arc::new(Vitals {
            in_flight: AtomicUsize::new(0),
            breaker: Mutex::new(Breaker::new(limits)),
            refused: AtomicBool::new(false),
            refusals,
            looks: LastLooks::default(),
            metrics,
        })
    }

    /// Runs a few statements on the breaker and shows its state in the gauge. The lock is never held across an await.
    fn breaker<T>(&self, act: impl FnOnce(&mut Breaker) -> T) -> T {
        let mut breaker = self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        act(&mut breaker)
    }

    /// Legs in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// The breaker's state.
    pub fn circuit(&self, now: Instant) -> Circuit {
        let circuit = self.breaker(|b| b.circuit(now));
        self.metrics.circuit.set(match circuit {
            Circuit::Closed => 0,
            Circuit::Probation => 1,
            Circuit::Open => 2,
        });
        circuit
    }

    /// Whether a leg's connection was refused since the last call: reason to probe the engine now.
    pub(crate) fn take_refused(&self) -> bool {
        self.refused.swap(false, Ordering::Relaxed)
    }

    /// The engine turns work away: it is given a moment.
    pub(crate) fn press(&self, now: Instant) {
        self.breaker(|b| b.press(now));
    }

    /// Whether it did just now.
    pub(crate) fn is_pressed(&self, now: Instant) -> bool {
        self.breaker(|b| b.is_pressed(now))
    }

    /// Whether the breaker would let a leg through.
    pub fn usable(&self, now: Instant) -> bool {
        self.breaker(|b| b.usable(now))
    }
}

/// Another process that announces an engine's HTTP address, and is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Where its pings come from.
    pub peer: SocketAddr,
    /// Where it says that its connector listens.
    pub kv: KvEndpoint,
}

/// One engine at one moment. A change of what it says or of its state makes a new record with the same [`Vitals`].
#[derive(Debug)]
pub struct Engine {
    /// What it said of itself.
    pub registration: Registration,
    /// Its address as text, made once.
    pub name: String,
    /// Its address as a URL, parsed once.
    pub base: reqwest::Url,
    /// Its version, once its `/version` answered.
    pub version: Option<EngineVersion>,
    /// What that version needs and understands.
    pub traits: &'static Traits,
    /// Where it stands.
    pub state: State,
    /// Names one life of one engine, unique in the process: a restart makes a new one (protocol R9).
    pub incarnation: u64,
    /// A hash of its handshake address, under which peers remember it.
    pub endpoint: u64,
    /// Who else announces its HTTP address.
    pub claimed_by: Vec<Claim>,
    /// Load and breaker.
    pub vitals: Arc<Vitals>,
}

impl Engine {
    /// A record of an engine. `None` when its address makes no URL, which decoding has ruled out.
    pub fn new(
        registration: Registration,
        version: Option<EngineVersion>,
        state: State,
        incarnation: u64,
        vitals: Arc<Vitals>,
    ) -> Option<Self> {
        let mut hasher = DefaultHasher::new();
        (&registration.kv.host, registration.kv.handshake).hash(&mut hasher);
        Some(Engine {
            name: registration.http.to_string(),
            base: registration.http.url("/").parse().ok()?,
            version,
            traits: versions::traits(version, registration.dialect),
            state,
            incarnation,
            endpoint: hasher.finish(),
            claimed_by: Vec::new(),
            vitals,
            registration,
        })
    }

    /// Prefill or decode.
    pub fn role(&self) -> Role {
        self.registration.role
    }

    /// Whether work may be sent to it now.
    pub(crate) fn is_usable(&self, now: Instant) -> bool {
        self.state == State::Ready && self.vitals.usable(now)
    }

    /// Why no work may be sent to it; none while its breaker lets a trial through. What hangs on other engines as well is
    /// the policy's to say.
    pub fn reason(&self, now: Instant) -> Option<Reason> {
        match self.state {
            State::Probing => Some(Reason::FirstProbe),
            State::Unhealthy(failure) => Some(Reason::Failed(failure)),
            State::OtherMode => Some(Reason::OtherMode),
            State::Misfit(misfit) => Some(Reason::Misfit(misfit)),
            State::Ready => (self.vitals.circuit(now) == Circuit::Open).then_some(Reason::CircuitOpen),
        }
    }

    /// A reason in words, with the host that it is about by its address.
    pub fn explain(&self, reason: Reason) -> String {
        let listed = |host: usize| self.registration.host_addresses().nth(host).unwrap_or_default();
        match reason {
            Reason::Failed(Failure::Host(host, lost)) => format!("host {}: {lost}", listed(host)),
            reason => reason.to_string(),
        }
    }

    /// What it can say of hosts to its peers.
    pub(crate) fn spoken(&self) -> (&Registration, &'static Traits) {
        (&self.registration, self.traits)
    }

    /// Takes a place on the engine, or not: its breaker may be open or its trial taken. The place is given back by
    /// [`InFlight::end`], once, or by dropping the guard, which counts as cancelled.
    pub(crate) fn admit(self: &Arc<Self>, now: Instant) -> Option<InFlight> {
        let admission = self.vitals.breaker(|b| b.admit(now))?;
        self.vitals.in_flight.fetch_add(1, Ordering::Relaxed);
        self.vitals.metrics.in_flight.inc();
        Some(InFlight { engine: self.clone(), admission, end: LegEnd::default(), load: None })
    }
}

/// What becomes of a leg. Others than the guard's holder may have it to say, when a limit passes; the first word counts.
#[derive(Debug, Default)]
pub struct Fate {
    dispatched: AtomicBool,
    end: OnceLock<(LegStatus, Verdict)>,
}

/// A leg's fate, shared by all who may have a word or want to know.
pub type LegEnd = Arc<Fate>;

impl Fate {
    /// Says how the leg ended.
    pub fn set(&self, status: LegStatus, verdict: Verdict) {
        let _ = self.end.set((status, verdict));
    }

    /// The word for the log: its status, `running`, or nothing for a leg that was never sent.
    pub fn word(&self) -> Option<&'static str> {
        let sent = self.dispatched.load(Ordering::Relaxed);
        sent.then(|| self.end.get().map_or("running", |(status, _)| status.as_str()))
    }
}

/// One leg's place on an engine: the engine's load goes up with it and down when it is dropped, whatever happens.
#[derive(Debug)]
pub struct InFlight {
    /// The engine.
    pub engine: Arc<Engine>,
    admission: Admission,
    end: LegEnd,
    /// Its part of the engine's work as policies see it.
    load: Option<Load>,
}

impl InFlight {
    /// Its work counts as long as it has its place.
    pub(crate) fn carry(&mut self, load: Load) {
        self.load = Some(load);
    }

    /// The leg is about to be sent: from now on it counts as one.
    pub(crate) fn dispatch(&mut self) {
        self.end.dispatched.store(true, Ordering::Relaxed);
    }

    /// Says how the leg ended.
    pub fn end(&self, status: LegStatus, verdict: Verdict) {
        self.end.set(status, verdict);
    }

    /// For saying it from elsewhere.
    pub(crate) fn leg_end(&self) -> LegEnd {
        self.end.clone()
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        // Whoever reads a leg to its end has said so; what is dropped before was given up.
        let (status, verdict) = *self.end.end.get_or_init(|| (LegStatus::Cancelled, Verdict::None));
        let vitals = &self.engine.vitals;
        if self.end.dispatched.load(Ordering::Relaxed) {
            vitals.metrics.leg(status);
        }
        vitals.in_flight.fetch_sub(1, Ordering::Relaxed);
        vitals.metrics.in_flight.dec();
        let now = Instant::now();
        let opened = vitals.breaker(|breaker| match verdict {
            Verdict::Healthy => {
                breaker.succeed(self.admission);
                false
            }
            Verdict::Ailing => breaker.fail(self.admission, now),
            Verdict::Refusing => {
                vitals.refused.store(true, Ordering::Relaxed);
                vitals.refusals.notify_one();
                breaker.refuse(self.admission, now)
            }
            Verdict::None => {
                breaker.abstain(self.admission);
                false
            }
        });
        if opened {
            tracing::info!(role = %self.engine.role(), engine = %self.engine.name, last = status.as_str(), "circuit opened");
        }
    }
}

/// All engines at one moment, in the order in which they registered.
#[derive(Debug, Default)]
pub struct Pool {
    /// Tells snapshots apart.
    pub number: u64,
    /// Prefill engines in any state.
    pub prefill: Vec<Arc<Engine>>,
    /// Decode engines in any state.
    pub decode: Vec<Arc<Engine>>,
    /// The mode that pairs are made in: that of the engines that came first.
    pub mode: Option<Mode>,
    /// Ready prefill engines' ranks, every engine's first rank before anyone's second.
    pub prefill_slots: Vec<Slot>,
    /// Ready decode engines.
    pub decode_slots: Vec<Slot>,
    /// Whether a ready engine's ranks live on several hosts.
    pub spans: bool,
    /// Whether one host's address stands for all of such an engine.
    pub repeats: bool,
    /// Engines whose first probe is in flight.
    pub probing: usize,
    /// Engines whose HTTP server or KV port did not answer as it should when it was probed last.
    pub unhealthy: usize,
}

impl Pool {
    /// Arranges engines (in order of registration) into a snapshot.
    pub fn new(engines: impl IntoIterator<Item = Arc<Engine>>, mode: Option<Mode>) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed) + 1;
        let mut pool = Pool { number, mode, ..Pool::default() };
        for engine in engines {
            pool.probing += usize::from(engine.state == State::Probing);
            pool.unhealthy += usize::from(matches!(engine.state, State::Unhealthy(_)));
            match engine.role() {
                Role::Prefill => pool.prefill.push(engine),
                Role::Decode => pool.decode.push(engine),
            }
        }
        let ready = |engine: &Arc<Engine>| engine.state == State::Ready;
        let ranks = pool.prefill.iter().filter(|e| ready(e)).map(|e| e.registration.dp_size).max().unwrap_or(0);
        for rank in 0..ranks {
            let has = |e: &Arc<Engine>| ready(e) && rank < e.registration.dp_size;
            let slots = pool.prefill.iter().enumerate().filter(|(_, e)| has(e));
            pool.prefill_slots.extend(slots.map(|(engine, _)| Slot { engine, rank }));
        }
        let decodes = pool.decode.iter().enumerate().filter(|(_, engine)| ready(engine));
        pool.decode_slots = decodes.map(|(engine, _)| Slot { engine, rank: 0 }).collect();
        let any = |of: fn(&Registration) -> bool| pool.engines().any(|e| ready(e) && of(&e.registration));
        (pool.spans, pool.repeats) = (any(Registration::spans), any(Registration::repeats));
        pool
    }

    /// Every engine.
    pub fn engines(&self) -> impl Iterator<Item = &Arc<Engine>> {
        self.prefill.iter().chain(&self.decode)
    }

    /// Whether at least one engine of each role is ready.
    pub(crate) fn has_pair(&self) -> bool {
        !self.prefill_slots.is_empty() && !self.decode_slots.is_empty()
    }

    /// What the slots of a role have to do, the first `ranks` of each engine.
    pub(crate) fn side<'a>(&self, role: Role, ranks: u32, loads: &'a Loads) -> MutexGuard<'a, Side> {
        let engines = if role == Role::Prefill { &self.prefill } else { &self.decode };
        let ready = || engines.iter().enumerate().filter(|(_, engine)| engine.state == State::Ready);
        loads.arranged(role, (self.number, ranks), || {
            ready().map(|(at, engine)| Holder {
                engine: at,
                life: engine.incarnation,
                name: &engine.name,
                ranks: if role == Role::Prefill { engine.registration.dp_size.min(ranks) } else { 1 },
            })
        })
    }

    /// Engines whose breaker lets nothing through.
    pub(crate) fn open_circuits(&self, now: Instant) -> usize {
        self.engines().filter(|e| e.vitals.circuit(now) == Circuit::Open).count()
    }

    /// Sets the gauges of engines by role and state.
    pub fn count(&self, metrics: &Metrics) {
        for (role, engines) in [(Role::Prefill, &self.prefill), (Role::Decode, &self.decode)] {
            for word in State::WORDS {
                metrics.engines(role, word, engines.iter().filter(|e| e.state.as_str() == word).count());
            }
        }
    }
}

/// How long a request waits for probes before it is told that there is no pair (protocol R12).
pub(crate) const PROBE_WAIT: Duration = Duration::from_secs(2);

#[cfg(test)]
pub(crate) mod tests;
