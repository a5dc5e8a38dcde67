//! One run: the proxy's own picker against eight engines, in virtual time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use moriio_proxy::engine::versions::EngineVersion;
use moriio_proxy::engine::{Dialect, HttpAddress, KvEndpoint, Mode, Registration, Role};
use moriio_proxy::metrics::Metrics;
use moriio_proxy::pool::{InFlight, Pool, State, Vitals};
use moriio_proxy::routing::{Demand, Forecast, Selector};
use moriio_proxy::settings::{Affinity, Balance, BreakerLimits, Cache, PickRules, Policies, Policy};

use crate::engine::{BLOCK, Engine};
use crate::workload::{Session, Workload, sessions};

/// Prefill engines, and decode engines.
const ENGINES: u16 = 8;
/// Blocks of tokens in a block of the proxy's: 2 KB of text at four letters a token.
const PART: usize = 32;

/// What is compared.
#[derive(Clone, Copy, Debug)]
pub struct Subject {
    /// How prefill engines are chosen.
    pub policy: Policy,
    /// Whether sessions stay where they are.
    pub sessions: bool,
    /// Whether engines' answers correct what is expected of them.
    pub learns: bool,
    /// Tokens that an engine's cache holds.
    pub tokens: usize,
}

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The part of all prompt tokens that was cached.
    pub hit: f64,
    /// Seconds from arrival to the first token, of each request, sorted.
    pub first: Vec<f64>,
    /// The most that an engine computed, by the mean.
    pub imbalance: f64,
}

impl Outcome {
    /// The time that so many of a hundred requests stay below.
    pub fn percentile(&self, percent: usize) -> f64 {
        self.first
            .get((self.first.len() * percent / 100).min(self.first.len().saturating_sub(1)))
            .copied()
            .unwrap_or(0.0)
    }
}

/// One request on its way.
struct Request {
    session: usize,
    turn: usize,
    arrived: f64,
    prompt: Vec<u64>,
    prefill: Option<InFlight>,
    decode: Option<InFlight>,
    forecast: Option<Forecast>,
}

#[derive(Clone, Copy, PartialEq)]
enum Event {
    /// A session's turn comes.
    Turn(usize, usize),
    /// An engine is done with the first of its queue.
    Computed(usize),
    /// An answer is over.
    Answered(usize),
}

/// A moment; events of one moment come in the order in which they were made.
#[derive(Clone, Copy, PartialEq)]
struct At(f64, u64, Event);

impl Eq for At {}

impl PartialOrd for At {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for At {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0).then(self.1.cmp(&other.1))
    }
}

fn pool() -> Pool {
    let metrics = Metrics::new();
    let limits = BreakerLimits { failures: 5, open: Duration::from_secs(5), open_max: Duration::from_secs(30) };
    let engine = |number: u16| {
        let role = if number < ENGINES { Role::Prefill } else { Role::Decode };
        let host = String::from("10.0.0.1");
        let registration = Registration {
            role,
            http: HttpAddress { host: host.clone(), port: 1000 + number },
            kv: KvEndpoint { host, handshake: 3000 + number, notify: 61_005, text: String::new() },
            dp_size: 1,
            tp_size: 1,
            mode: Mode::Write,
            dialect: Dialect::B,
            index: None,
            hosts: None,
        };
        let vitals = Vitals::new(limits, metrics.engine(role, &number.to_string()));
        let version = Some(EngineVersion::new(0, 32, 0));
        moriio_proxy::pool::Engine::new(registration, version, State::Ready, number.into(), vitals).map(Arc::new)
    };
    Pool::new((0..2 * ENGINES).filter_map(engine), Some(Mode::Write))
}

/// Everything that moves.
struct World {
    subject: Subject,
    selector: Arc<Selector>,
    pool: Pool,
    engines: Vec<Engine>,
    sessions: Vec<Session>,
    /// What each session's prompt is by now.
    prompts: Vec<Vec<u64>>,
    requests: Vec<Request>,
    events: BinaryHeap<Reverse<At>>,
    made: u64,
    first: Vec<f64>,
    tokens: [f64; 2],
}

impl World {
    fn at(&mut self, time: f64, event: Event) {
        self.made += 1;
        self.events.push(Reverse(At(time, self.made, event)));
    }

    fn arrive(&mut self, now: f64, session: usize, turn: usize) {
        let (prompt, tenant) = (&mut self.prompts[session], self.sessions[session].tenant);
        prompt.extend_from_slice(&self.sessions[session].turns[turn].adds);
        let prompt = prompt.clone();
        // Chained, as the proxy's are.
        let mut last = 0u64;
        let hash = |part: &[u64]| {
            last = part
                .iter()
                .fold(last, |hash, block| (hash ^ block).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29));
            last
        };
        let prefix: Vec<u64> = prompt.chunks_exact(PART).map(hash).collect();
        let named = self.subject.sessions.then_some(session as u64 + 1);
        let bytes = (prompt.len() * BLOCK * 4) as u64;
        let demand =
            Demand { session: named, key: named.unwrap_or(tenant), bytes, prefix: &prefix, ..Demand::default() };
        let Ok(mut picked) = self.selector.pick(&self.pool, demand, &[], Instant::now()) else { return };
        picked.meeting.prove();
        let engine = usize::try_from(picked.prefill.engine.incarnation).unwrap_or(0);
        let (prefill, decode, forecast) = (Some(picked.prefill), Some(picked.decode), picked.forecast);
        self.requests.push(Request { session, turn, arrived: now, prompt, prefill, decode, forecast });
        self.engines[engine].queue.push_back(self.requests.len() - 1);
        if self.engines[engine].queue.len() == 1 {
            self.begin(now, engine);
        }
    }

    /// The first of an engine's queue is computed.
    fn begin(&mut self, now: f64, engine: usize) {
        let Some(number) = self.engines[engine].queue.front().copied() else { return };
        let prompt = std::mem::take(&mut self.requests[number].prompt);
        let (had, takes) = self.engines[engine].compute(&prompt);
        let tokens = prompt.len() * BLOCK;
        self.tokens[0] += had as f64;
        self.tokens[1] += tokens as f64;
        let forecast = self.requests[number].forecast.take();
        if let Some(forecast) = forecast.filter(|_| self.subject.learns) {
            self.selector.learn(&forecast, had as u64, tokens as u64);
        }
        self.at(now + takes, Event::Computed(engine));
    }

    fn computed(&mut self, now: f64, engine: usize) {
        let Some(number) = self.engines[engine].queue.pop_front() else { return };
        let request = &mut self.requests[number];
        request.prefill = None;
        self.first.push(now - request.arrived);
        let answer = self.sessions[request.session].turns[request.turn].answer;
        self.at(now + answer, Event::Answered(number));
        self.begin(now, engine);
    }

    fn answered(&mut self, now: f64, number: usize) {
        let Request { session, turn, .. } = self.requests[number];
        self.requests[number].decode = None;
        let turns = &self.sessions[session].turns;
        if turn + 1 < turns.len() {
            let pause = turns[turn].pause;
            self.at(now + pause, Event::Turn(session, turn + 1));
        } else {
            self.prompts[session] = Vec::new();
        }
    }
}

/// Runs a workload of so many seconds.
pub fn run(subject: Subject, workload: Workload, seed: u64, seconds: f64) -> Outcome {
    fastrand::seed(seed);
    let policies = Policies { prefill: subject.policy, decode: Policy::LeastLoaded };
    let affinity = Affinity { is_on: subject.sessions, balance: Balance { absolute: 64, hundredths: 150 } };
    let cache = Cache { hundredths: 30, memory: 64 << 20 };
    let sessions = sessions(workload, seed, seconds);
    let mut world = World {
        subject,
        selector: Selector::new(PickRules { policies, affinity, cache, ..PickRules::default() }),
        pool: pool(),
        engines: (0..ENGINES).map(|_| Engine::new(subject.tokens)).collect(),
        prompts: sessions.iter().map(|_| Vec::new()).collect(),
        sessions,
        requests: Vec::new(),
        events: BinaryHeap::new(),
        made: 0,
        first: Vec::new(),
        tokens: [0.0; 2],
    };
    for session in 0..world.sessions.len() {
        world.at(world.sessions[session].begins, Event::Turn(session, 0));
    }
    while let Some(Reverse(At(now, _, event))) = world.events.pop() {
        match event {
            Event::Turn(session, turn) => world.arrive(now, session, turn),
            Event::Computed(engine) => world.computed(now, engine),
            Event::Answered(number) => world.answered(now, number),
        }
    }
    assert!(world.selector.loads.is_idle(), "nothing is left to do");
    world.first.sort_unstable_by(f64::total_cmp);
    let computed = || world.engines.iter().map(|engine| engine.computed);
    let mean = computed().sum::<f64>() / f64::from(ENGINES);
    Outcome {
        hit: world.tokens[0] / world.tokens[1],
        imbalance: computed().fold(0.0, f64::max) / mean,
        first: world.first,
    }
}
