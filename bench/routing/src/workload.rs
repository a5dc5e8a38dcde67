//! Three kinds of traffic, each the same for all policies by its seed.

use fastrand::Rng;

use crate::engine::BLOCK;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// Agents of many turns over a growing history; a long system prompt that all have; they come in bursts.
    Agents,
    /// Prompts and answers of 1024 tokens, none like another.
    Random,
    /// Many short sessions of fifty tenants, of whom one has half of the traffic.
    Tenants,
}

impl Workload {
    /// All of them.
    pub const ALL: [Workload; 3] = [Workload::Agents, Workload::Random, Workload::Tenants];

    /// Its name in the tables.
    pub fn name(self) -> &'static str {
        match self {
            Workload::Agents => "multi-turn agents",
            Workload::Random => "1k/1k random",
            Workload::Tenants => "short sessions, one hot tenant",
        }
    }
}

/// One session: its turns follow each other.
pub struct Session {
    /// Whose it is, which is what `consistent_hash` goes by without sessions.
    pub tenant: u64,
    /// When it begins, in seconds.
    pub begins: f64,
    /// Its turns.
    pub turns: Vec<Turn>,
}

/// One request.
pub struct Turn {
    /// Tokens that it adds to the prompt before it, with the answer of the turn before.
    pub adds: Vec<u64>,
    /// Seconds that its answer takes after the first token.
    pub answer: f64,
    /// Seconds from the answer's end to the next turn.
    pub pause: f64,
}

/// A time between two events that come so often in a second.
fn gap(random: &mut Rng, rate: f64) -> f64 {
    -(1.0 - random.f64()).ln() / rate
}

/// Text that nobody else has, by blocks.
fn own(random: &mut Rng, tokens: usize) -> Vec<u64> {
    (0..tokens / BLOCK).map(|_| random.u64(..)).collect()
}

/// Text that all of this number have.
fn shared(number: u64, tokens: usize) -> Vec<u64> {
    own(&mut Rng::with_seed(number ^ 0x5eed), tokens)
}

/// The sessions of a workload, of so many seconds.
pub fn sessions(workload: Workload, seed: u64, seconds: f64) -> Vec<Session> {
    let random = &mut Rng::with_seed(seed);
    match workload {
        Workload::Agents => agents(random, seconds),
        Workload::Random => {
            let mut at = 0.0;
            let mut all = Vec::new();
            while at < seconds {
                at += gap(random, 50.0);
                let turn = Turn { adds: own(random, 1024), answer: 20.0, pause: 0.0 };
                all.push(Session { tenant: random.u64(..), begins: at, turns: vec![turn] });
            }
            all
        }
        Workload::Tenants => tenants(random, seconds),
    }
}

fn agents(random: &mut Rng, seconds: f64) -> Vec<Session> {
    let system = shared(1, 12_000);
    let mut all = Vec::new();
    let mut at = 0.0;
    while at < seconds {
        // A job fans out into several agents at once.
        for _ in 0..random.usize(1..=6) {
            let first = [&system[..], &own(random, 2000)].concat();
            let turns = random.usize(8..=24);
            let turn = |number: usize| Turn {
                adds: match number {
                    0 => first.clone(),
                    _ => later(random),
                },
                answer: 2.0 + random.f64() * 8.0,
                pause: gap(random, 0.5),
            };
            let turns = (0..turns).map(turn).collect();
            all.push(Session { tenant: 1, begins: at, turns });
        }
        at += gap(random, 0.22);
    }
    all
}

/// An answer and what tools say: mostly short, sometimes long.
fn later(random: &mut Rng) -> Vec<u64> {
    let part = random.f64();
    own(random, 400 + (part * part * 4000.0) as usize)
}

fn tenants(random: &mut Rng, seconds: f64) -> Vec<Session> {
    let mut all = Vec::new();
    let mut at = 0.0;
    while at < seconds {
        at += gap(random, 9.0);
        let tenant = if random.bool() { 0 } else { random.u64(1..50) };
        let system = shared(100 + tenant, 3000);
        let turn = |number: usize| Turn {
            adds: match number {
                0 => [&system[..], &own(random, 500)].concat(),
                _ => own(random, 600),
            },
            answer: 4.0,
            pause: gap(random, 0.3),
        };
        all.push(Session { tenant, begins: at, turns: (0..3).map(turn).collect() });
    }
    all
}
