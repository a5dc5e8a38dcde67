//! Who has met whom. Two rules of the engines hang on it: a pair's first exchange goes alone (protocol P4), and a pair is
//! barred while its dialing side remembers an earlier life of the other (protocol P3). Pure; it is locked by its owner.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use crate::engine::{Mode, Role};
use crate::pool::Engine;

/// Pairs that are remembered. At the limit the map is emptied: first contacts are then repeated, stale pairs forgotten.
const REMEMBERED: usize = 65_536;

/// How often a first exchange that lasts is told of.
const TELL: Duration = Duration::from_secs(10);

/// The dialing side's incarnation, and the handshake endpoint that it dialed.
type Key = (u64, u64);

#[derive(Clone, Copy, Debug)]
struct Met {
    /// The incarnation that the dialer met first: its session cache keeps that one.
    peer: u64,
    /// A first exchange that produced a byte.
    proved: bool,
    /// The first exchange is under way.
    trying: bool,
}

/// A pair whose first exchanges are under way.
#[derive(Debug)]
struct Wait {
    /// How many they are.
    count: usize,
    prefill: String,
    decode: String,
    since: Instant,
    told: Instant,
    /// Whose leg is being waited for.
    role: Role,
}

/// What the past of a pair says about its next exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairState {
    /// Nothing is in the way.
    Known,
    /// The two have not met; the exchange must go alone.
    Cold,
    /// Their first exchange is under way.
    FirstContact,
    /// The dialing side knows an earlier life of the other.
    Stale,
}

/// All meetings of engines since the start. Every exchange looks into the maps six times, and to compare two numbers is cheaper than to
/// hash them.
#[derive(Debug, Default)]
pub struct PairHistory {
    met: BTreeMap<Key, Met>,
    complained: HashSet<(u64, u64)>,
    waits: BTreeMap<Key, Wait>,
    /// Prefill's ranks that a decode engine takes for engines of their own (protocol H5), and whether they have met.
    ranks: BTreeMap<(Key, u32), bool>,
}

/// The key of a pair and the incarnation of its dialed side. WRITE: prefill dials decode; READ: decode dials prefill
/// (protocol P1, P2). New ports make a stranger of the dialed side, since sessions are kept by address.
fn key(prefill: &Engine, decode: &Engine, mode: Mode) -> (Key, u64) {
    let (dialer, peer) = match mode {
        Mode::Write => (prefill, decode),
        Mode::Read => (decode, prefill),
    };
    ((dialer.incarnation, peer.endpoint), peer.incarnation)
}

impl PairHistory {
    /// How a pair stands.
    pub fn state(&self, prefill: &Engine, decode: &Engine, mode: Mode) -> PairState {
        let (key, life) = key(prefill, decode, mode);
        match self.met.get(&key) {
            None => PairState::Cold,
            Some(met) if met.peer != life => PairState::Stale,
            Some(met) if met.proved => PairState::Known,
            Some(met) if met.trying => PairState::FirstContact,
            Some(_) => PairState::Cold,
        }
    }

    /// How a decode engine and one of prefill's ranks stand that is an engine of its own to it.
    pub(crate) fn rank_state(&self, prefill: &Engine, decode: &Engine, rank: u32) -> PairState {
        match self.ranks.get(&(key(prefill, decode, Mode::Read).0, rank)) {
            None => PairState::Cold,
            Some(true) => PairState::Known,
            Some(false) => PairState::FirstContact,
        }
    }

    /// Their first exchange begins.
    pub(crate) fn begin_rank(&mut self, prefill: &Engine, decode: &Engine, rank: u32) {
        if self.ranks.len() >= REMEMBERED {
            self.ranks.clear();
        }
        self.ranks.insert((key(prefill, decode, Mode::Read).0, rank), false);
    }

    /// It produced its first byte, or ended without one.
    pub(crate) fn end_rank(&mut self, prefill: &Engine, decode: &Engine, rank: u32, proved: bool) {
        let key = (key(prefill, decode, Mode::Read).0, rank);
        match proved {
            true => self.ranks.insert(key, true),
            false => self.ranks.remove(&key),
        };
    }

    /// An exchange of the pair begins.
    pub fn begin(&mut self, prefill: &Engine, decode: &Engine, mode: Mode, now: Instant) {
        if self.met.len() >= REMEMBERED {
            self.met.clear();
        }
        let (key, peer) = key(prefill, decode, mode);
        self.met.entry(key).or_insert(Met { peer, proved: false, trying: true }).trying = true;
        let wait = self.waits.entry(key).or_insert_with(|| Wait {
            count: 0,
            prefill: prefill.name.clone(),
            decode: decode.name.clone(),
            since: now,
            told: now,
            role: Role::Prefill,
        });
        wait.count += 1;
    }

    /// The pair's exchange produced its first byte, or ended without one.
    pub fn end(&mut self, prefill: &Engine, decode: &Engine, mode: Mode, proved: bool) {
        let (key, _) = key(prefill, decode, mode);
        if let Some(wait) = self.waits.get_mut(&key) {
            wait.count -= 1;
            if proved || wait.count == 0 {
                self.waits.remove(&key);
            }
        }
        if let Some(met) = self.met.get_mut(&key) {
            met.trying = false;
            met.proved |= proved;
        }
    }

    /// The prefill engine of a pair's first exchange has answered.
    pub(crate) fn prefill_answered(&mut self, prefill: &Engine, decode: &Engine, mode: Mode) {
        if let Some(wait) = self.waits.get_mut(&key(prefill, decode, mode).0) {
            wait.role = Role::Decode;
        }
    }

    /// First exchanges that last, each named every ten seconds: whose leg is waited for, the engine, and since when.
    pub(crate) fn lasting(&mut self, now: Instant) -> Vec<(Role, String, Duration)> {
        let lasting = self.waits.values_mut().filter(|wait| now.duration_since(wait.told) >= TELL);
        let named = lasting.map(|wait| {
            wait.told = now;
            let engine = if wait.role == Role::Prefill { &wait.prefill } else { &wait.decode };
            (wait.role, engine.clone(), now.duration_since(wait.since))
        });
        named.collect()
    }

    /// Whether a stale pair is worth a word: once for each pair of lives.
    pub fn complain(&mut self, prefill: &Engine, decode: &Engine) -> bool {
        self.complained.len() < REMEMBERED && self.complained.insert((prefill.incarnation, decode.incarnation))
    }

    /// Forgets what a dialer that has ended knew.
    pub(crate) fn forget_dialer(&mut self, incarnation: u64) {
        self.met.retain(|(dialer, _), _| *dialer != incarnation);
        self.waits.retain(|(dialer, _), _| *dialer != incarnation);
        self.ranks.retain(|((dialer, _), _), _| *dialer != incarnation);
        self.complained.retain(|(prefill, decode)| *prefill != incarnation && *decode != incarnation);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::pool::tests::engine_of;

    fn engine(port: u16, role: Role, incarnation: u64) -> Arc<Engine> {
        engine_of(port, role, 1, incarnation)
    }

    #[test]
    fn the_first_exchange_goes_alone() {
        let (prefill, decode) = (engine(1, Role::Prefill, 1), engine(2, Role::Decode, 2));
        let mut history = PairHistory::default();
        for proved in [false, true] {
            assert_eq!(history.state(&prefill, &decode, Mode::Read), PairState::Cold);
            history.begin(&prefill, &decode, Mode::Read, Instant::now());
            assert_eq!(history.state(&prefill, &decode, Mode::Read), PairState::FirstContact);
            history.end(&prefill, &decode, Mode::Read, proved);
        }
        assert_eq!(history.state(&prefill, &decode, Mode::Read), PairState::Known);
        assert_eq!(history.state(&prefill, &decode, Mode::Write), PairState::Cold, "the other side dials");
    }

    #[test]
    fn a_first_exchange_that_lasts_is_named_with_the_leg_that_is_waited_for() {
        let (prefill, decode) = (engine(1, Role::Prefill, 1), engine(2, Role::Decode, 2));
        let (mut history, start) = (PairHistory::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        history.begin(&prefill, &decode, Mode::Write, start);
        history.begin(&prefill, &decode, Mode::Write, after(1));
        history.end(&prefill, &decode, Mode::Write, false);
        assert_eq!(history.lasting(after(9)), []);
        let waited = |role, engine: &Engine, seconds| (role, engine.name.clone(), Duration::from_secs(seconds));
        assert_eq!(history.lasting(after(10)), [waited(Role::Prefill, &prefill, 10)]);
        assert_eq!(history.lasting(after(19)), []);
        history.prefill_answered(&prefill, &decode, Mode::Write);
        assert_eq!(history.lasting(after(21)), [waited(Role::Decode, &decode, 21)]);
        history.end(&prefill, &decode, Mode::Write, true);
        assert_eq!(history.lasting(after(60)), []);
    }

    #[test]
    fn a_pair_is_stale_until_its_dialing_side_is_new() {
        let (prefill, decode) = (engine(1, Role::Prefill, 1), engine(2, Role::Decode, 2));
        let mut history = PairHistory::default();
        history.begin(&prefill, &decode, Mode::Write, Instant::now());
        history.end(&prefill, &decode, Mode::Write, true);
        let decode_again = engine(2, Role::Decode, 3);
        assert_eq!(history.state(&prefill, &decode_again, Mode::Write), PairState::Stale);
        let moved = engine(3, Role::Decode, 4);
        assert_eq!(history.state(&prefill, &moved, Mode::Write), PairState::Cold, "new ports are a stranger's");
        let prefill_again = engine(1, Role::Prefill, 5);
        history.forget_dialer(1);
        assert_eq!(history.state(&prefill_again, &decode_again, Mode::Write), PairState::Cold);
        assert_eq!(history.state(&prefill_again, &decode, Mode::Read), PairState::Cold);
    }
}
