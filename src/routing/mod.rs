//! Which pair serves an exchange: each role's policy says in which order its slots are looked at, one turn counter for both.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::engine::{Mode, Role};
use crate::pool::bonds::{self, Partner};
use crate::pool::history::PairState;
use crate::pool::loads::{Loads, Side};
use crate::pool::pairs::{Memory, Pairs};
use crate::pool::{Engine, InFlight, Pool};
use crate::settings::{DecodeAlone, PickRules, Policies, Policy};

mod alone;
mod hand_over;
mod order;
mod picked;
mod places;
mod prefixes;
mod sessions;

use order::{By, Order};
pub use order::{Choice, Why};
pub use picked::{Alone, DecodePlace, NoPick, Pick, Picked, Short};
pub use prefixes::{Forecast, Meeting as Expected};
use prefixes::{Longest, Prefixes};
use sessions::{Home, Sessions};

/// What a request is picked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Demand<'a> {
    /// A hash of its session's name.
    pub session: Option<u64>,
    /// A hash of whatever else it can be known by; the session's where it has one.
    pub key: u64,
    /// Bytes that prefill has to read.
    pub bytes: u64,
    /// The prompt's blocks, for `cache_aware`.
    pub prefix: &'a [u64],
    /// Whether decode may serve it alone, where that is asked for.
    pub may_skip_prefill: bool,
}

/// The picker: its rules, its turn counter and what is known of pairs.
#[derive(Debug)]
pub struct Selector {
    rules: PickRules,
    turn: AtomicU64,
    /// What is known of pairs.
    pub pairs: Arc<Pairs>,
    /// What engines have to do.
    pub loads: Arc<Loads>,
    sessions: Sessions,
    /// What prefill engines have computed, where that is asked for.
    prefixes: Option<Prefixes>,
    /// What decode engines have, likewise.
    decoded: Option<Prefixes>,
    /// The turns of requests that decode serves alone, and the lives of engines that have.
    alone_turn: AtomicU64,
    served_alone: Mutex<HashSet<u64>>,
}

impl Selector {
    /// A picker that begins with the first slot.
    pub fn new(rules: PickRules) -> Arc<Self> {
        let (turn, alone_turn, pairs) = (AtomicU64::new(0), AtomicU64::new(0), Pairs::new(rules.allow_stale));
        let of = [rules.policies.prefill == Policy::CacheAware, rules.decode_alone.missing > 0];
        let share = rules.cache.memory / of.iter().filter(|is_on| **is_on).count().max(1) as u64;
        let [prefixes, decoded] = of.map(|is_on| is_on.then(|| Prefixes::new(share)));
        let (loads, sessions, served_alone) = (Arc::default(), Sessions::default(), Mutex::default());
        Arc::new(Selector { rules, turn, pairs, loads, sessions, prefixes, decoded, alone_turn, served_alone })
    }

    /// The policies in force.
    pub fn policies(&self) -> Policies {
        self.rules.policies
    }

    /// Which requests decode serves alone.
    pub fn decode_alone(&self) -> DecodeAlone {
        self.rules.decode_alone
    }

    /// Whether picks want to know what a prompt begins with.
    pub fn wants_prefixes(&self) -> bool {
        self.prefixes.is_some() || self.decoded.is_some()
    }

    /// Prefill has answered: of so many tokens it had these.
    pub fn learn(&self, forecast: &Forecast, cached: u64, tokens: u64) {
        if let Some(prefixes) = &self.prefixes {
            prefixes.learn(forecast, cached, tokens);
        }
    }

    /// A prompt did not come to be computed where that was expected.
    pub fn forget(&self, prefix: &[u64], expected: Expected) {
        if let Some(prefixes) = &self.prefixes {
            prefixes.unmeet(prefix, expected);
        }
    }

    fn has_room(&self, engine: &Engine, now: Instant) -> bool {
        let cap = match engine.role() {
            Role::Prefill => self.rules.caps.prefill,
            Role::Decode => self.rules.caps.decode,
        };
        (cap == 0 || engine.vitals.in_flight() < cap) && !engine.vitals.is_pressed(now)
    }

    /// Takes the next pair. One turn is consumed whether or not there is one; what cannot be used is stepped over. Engines
    /// that have `refused` this exchange already are not asked again as long as there are others (protocol L9).
    pub fn pick(
        self: &Arc<Self>,
        pool: &Pool,
        demand: Demand<'_>,
        refused: &[u64],
        now: Instant,
    ) -> Result<Picked, NoPick> {
        let turn = usize::try_from(self.turn.fetch_add(1, Ordering::Relaxed)).unwrap_or(0);
        let session = demand.session.filter(|_| self.rules.affinity.is_on);
        let home = session.and_then(|session| self.sessions.home(session));
        let longest = self.longest(demand.prefix, pool.prefill_slots.len());
        let want = Want { demand, home, longest, turn, now };
        let mut picked = match self.pick_but(pool, &want, refused) {
            Err(NoPick::Nobody) if !refused.is_empty() => self.pick_but(pool, &want, &[]),
            picked => picked,
        }?;
        let prefill = (picked.prefill.engine.incarnation, picked.rank.unwrap_or(0));
        if let Some(prefixes) = self.prefixes.as_ref().filter(|_| !demand.prefix.is_empty()) {
            let (meeting, forecast) = prefixes.meet(demand.prefix, prefill);
            (picked.expected, picked.forecast) = (Some(meeting), forecast);
        }
        if let Some(session) = session {
            let home = Home { prefill, decode: picked.decode.engine.incarnation };
            self.sessions.settle(session, home);
        }
        Ok(picked)
    }

    /// Who has most of a prompt, if it is enough of it.
    fn longest(&self, prefix: &[u64], slots: usize) -> Longest {
        let longest = self.prefixes.as_ref().map(|prefixes| prefixes.longest(prefix, slots)).unwrap_or_default();
        let is_enough = longest.blocks as u64 * 100 >= prefix.len() as u64 * self.rules.cache.hundredths;
        let has_holder = longest.holders[0].is_some();
        if is_enough && has_holder { longest } else { Longest::default() }
    }

    fn pick_but(self: &Arc<Self>, pool: &Pool, want: &Want<'_>, refused: &[u64]) -> Result<Picked, NoPick> {
        let Some(mode) = pool.mode.filter(|_| pool.has_pair()) else {
            return Err(NoPick::Nobody);
        };
        let mut why = NoPick::Nobody;
        let mut memory = self.pairs.memory();
        let reachable = self.reachable(pool, mode);
        let picked = {
            let ranks = reachable.last().map_or(0, |slot| slot.rank + 1);
            let prefills = pool.side(Role::Prefill, ranks, &self.loads);
            let decodes = pool.side(Role::Decode, 1, &self.loads);
            let by = By {
                policy: self.rules.policies.prefill,
                key: want.demand.key,
                turn: want.turn,
                home: want.home.map(|home| home.prefill),
                balance: self.rules.affinity.balance,
                longest: want.longest,
            };
            let order = Order::new(&prefills, &pool.prefill, reachable, by);
            let mut found = None;
            for (slot, choice) in order {
                let prefill = &pool.prefill[slot.engine];
                if refused.contains(&prefill.incarnation) || !prefill.vitals.usable(want.now) {
                    continue;
                }
                if !self.has_room(prefill, want.now) {
                    why = NoPick::Busy;
                    continue;
                }
                match self.pair(&mut memory, (pool, &decodes), (prefill, slot.rank, choice), (mode, want, refused)) {
                    Ok(picked) => {
                        found = Some((picked, slot.rank));
                        break;
                    }
                    Err(not) => why = why.max(not),
                }
            }
            found
        };
        // Noted before anybody else can pick.
        let (mut picked, rank) = picked.ok_or(why)?;
        // The first is 1: before that nobody was picked.
        let turn = want.turn as u64 + 1;
        // What it has need not be computed.
        let place = Some((picked.prefill.engine.incarnation, rank));
        let had = if want.longest.holders.contains(&place) { want.longest.bytes() } else { 0 };
        self.load(&mut picked.prefill, rank, want.demand.bytes.saturating_sub(had), turn);
        self.load(&mut picked.decode, 0, 1, turn);
        Ok(picked)
    }

    /// A leg's work counts from now on.
    fn load(&self, leg: &mut InFlight, rank: u32, weight: u64, turn: u64) {
        let (role, life) = (leg.engine.role(), leg.engine.incarnation);
        leg.carry(self.loads.begin((role, life, rank), weight, turn));
    }

    /// In which order decode engines are looked at.
    fn decodes<'a>(&self, pool: &'a Pool, side: &'a Side, mode: Mode, want: &Want<'_>, shift: usize) -> Order<'a> {
        // Where decode reads the whole prompt's KV anyway, nothing is won by staying.
        let stays = |life: &u64| {
            let engine = side.place(*life, 0).map(|place| &pool.decode[side.slots()[place].engine]);
            mode == Mode::Read && engine.is_some_and(|engine| engine.traits.reads_missing)
        };
        let by = By {
            policy: self.rules.policies.decode,
            key: want.demand.key,
            turn: want.turn.wrapping_add(shift),
            home: want.home.map(|home| home.decode).filter(stays).map(|life| (life, 0)),
            balance: self.rules.affinity.balance,
            // What decode has read is not kept count of.
            longest: Longest::default(),
        };
        Order::new(side, &pool.decode, &pool.decode_slots, by)
    }

    /// The next decode engine for a prefill engine that has room, both places taken.
    fn pair(
        self: &Arc<Self>,
        memory: &mut Memory,
        (pool, side): (&Pool, &Side),
        (prefill, rank, chosen): (&Arc<Engine>, u32, Choice),
        (mode, want, refused): (Mode, &Want<'_>, &[u64]),
    ) -> Result<Picked, NoPick> {
        let Want { turn, now, .. } = *want;
        let fit = |decode: &Engine| self.pairs.is_fit(&memory.history, prefill, decode, mode, now);
        let bound = bonds::binds(prefill, mode);
        let only = match if bound { memory.bonds.partner(pool, prefill, fit) } else { Partner::Any } {
            Partner::Any => None,
            Partner::One(life) => Some(life),
            Partner::Later => return Err(NoPick::Busy),
        };
        let mut why = NoPick::Nobody;
        // A rank that is pinned would meet the same decode engines for ever: they move on by one each time that ranks are through.
        let is_pinned = self.pins(mode, pool.spans, pool.repeats);
        let shift = if is_pinned { turn / self.reachable(pool, mode).len().max(1) } else { 0 };
        let round = turn / pool.decode_slots.len().max(1);
        for (slot, choice) in self.decodes(pool, side, mode, want, shift) {
            let decode = &pool.decode[slot.engine];
            let is_barred =
                only.is_some_and(|life| life != decode.incarnation) || refused.contains(&decode.incarnation);
            if is_barred || !decode.vitals.usable(now) {
                continue;
            }
            let Some(place) = self.place((prefill, rank), decode, round, mode) else { continue };
            let state = memory.history.state(prefill, decode, mode);
            if !self.has_room(decode, now) {
                why = NoPick::Busy;
                continue;
            }
            if state == PairState::FirstContact && self.alone(prefill, decode) {
                why = why.max(NoPick::FirstContact);
                continue;
            }
            let met = self.rank_state(memory, (prefill, rank), decode, mode);
            if met == PairState::FirstContact {
                why = why.max(NoPick::FirstContact);
                continue;
            }
            if state == PairState::Stale && !self.rules.allow_stale {
                complain(memory, prefill, decode, mode);
                continue;
            }
            // Another thread may have taken a probation's only place since `usable` looked.
            let Some(prefill_guard) = prefill.admit(now) else { break };
            let Some(decode_guard) = decode.admit(now) else {
                why = NoPick::Busy;
                continue;
            };
            let first = (prefill, (met == PairState::Cold).then_some(rank));
            let meeting = self.pairs.meet(memory, first, decode, mode, now);
            let (rank, choices) = ((prefill.registration.dp_size > 1).then_some(rank), [chosen, choice]);
            return Ok(Picked {
                prefill: prefill_guard,
                decode: decode_guard,
                rank,
                place,
                mode,
                meeting,
                choices,
                forecast: None,
                expected: None,
            });
        }
        Err(why)
    }
}

/// Says once that a pair is stale, and which engine to restart.
fn complain(memory: &mut Memory, prefill: &Engine, decode: &Engine, mode: Mode) {
    if memory.history.complain(prefill, decode) {
        let restart = if mode == Mode::Write { &prefill.name } else { &decode.name };
        tracing::warn!(prefill = %prefill.name, decode = %decode.name, %restart, "pair is not used: one side remembers an earlier life of the other until it is restarted");
    }
}

/// One pick.
struct Want<'a> {
    demand: Demand<'a>,
    /// Where its session was served last.
    home: Option<Home>,
    /// Who has most of its prompt.
    longest: Longest,
    turn: usize,
    now: Instant,
}

#[cfg(test)]
mod tests;
