//! Which pair serves an exchange: each role's policy says in which order its slots are looked at, one turn counter for both.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::engine::hosts::Contract;
use crate::engine::versions;
use crate::engine::{Mode, Role, reach};
use crate::pool::bonds::{self, Partner};
use crate::pool::history::PairState;
use crate::pool::loads::{Loads, Side};
use crate::pool::pairs::{Meeting, Memory, Pairs};
use crate::pool::{Engine, InFlight, Pool, Slot};
use crate::settings::{PickRules, Policies};

mod order;
mod sessions;

use order::{By, Order};
pub use order::{Choice, Why};
use sessions::{Home, Sessions};

/// What a request is picked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Demand {
    /// A hash of its session's name.
    pub session: Option<u64>,
    /// A hash of whatever else it can be known by; the session's where it has one.
    pub key: u64,
    /// Bytes that prefill has to read.
    pub bytes: u64,
}

/// A pair with its two places taken.
#[derive(Debug)]
pub struct Picked {
    /// The prefill engine's place.
    pub prefill: InFlight,
    /// The decode engine's place.
    pub decode: InFlight,
    /// Prefill's rank, when it has more than one.
    pub rank: Option<u32>,
    /// Where decode's leg goes.
    pub place: DecodePlace,
    /// Who moves the KV cache.
    pub mode: Mode,
    /// The pair's meeting; its end is told by dropping it.
    pub meeting: Meeting,
    /// Who chose prefill's slot and decode's engine, and why.
    pub choices: [Choice; 2],
}

/// Where on a decode engine a leg goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DecodePlace {
    /// Which of its hosts takes it, 0 where its first serves all.
    pub host: usize,
    /// The rank that it is pinned to, by the same-rank contract only; else its engine balances its own.
    pub rank: Option<u32>,
}

/// Why there is no pair; of several reasons the last of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NoPick {
    /// One side has no usable engine, or every pair is stale.
    Nobody,
    /// Nothing but a first contact is in the way (protocol P4).
    FirstContact,
    /// Usable engines exist; one that would do is at its limit, or bound to another until that has ended.
    Busy,
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
}

impl Selector {
    /// A picker that begins with the first slot.
    pub fn new(rules: PickRules) -> Arc<Self> {
        let (turn, pairs) = (AtomicU64::new(0), Pairs::new(rules.allow_stale));
        Arc::new(Selector { rules, turn, pairs, loads: Arc::default(), sessions: Sessions::default() })
    }

    /// The policies in force.
    pub fn policies(&self) -> Policies {
        self.rules.policies
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
        demand: Demand,
        refused: &[u64],
        now: Instant,
    ) -> Result<Picked, NoPick> {
        let turn = usize::try_from(self.turn.fetch_add(1, Ordering::Relaxed)).unwrap_or(0);
        let session = demand.session.filter(|_| self.rules.affinity.is_on);
        let want = Want { demand, home: session.and_then(|session| self.sessions.home(session)), turn, now };
        let picked = match self.pick_but(pool, &want, refused) {
            Err(NoPick::Nobody) if !refused.is_empty() => self.pick_but(pool, &want, &[]),
            picked => picked,
        }?;
        if let Some(session) = session {
            let prefill = (picked.prefill.engine.incarnation, picked.rank.unwrap_or(0));
            let home = Home { prefill, decode: picked.decode.engine.incarnation };
            self.sessions.settle(session, home);
        }
        Ok(picked)
    }

    fn pick_but(self: &Arc<Self>, pool: &Pool, want: &Want, refused: &[u64]) -> Result<Picked, NoPick> {
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
        self.load(&mut picked.prefill, rank, want.demand.bytes, turn);
        self.load(&mut picked.decode, 0, 1, turn);
        Ok(picked)
    }

    /// A leg's work counts from now on.
    fn load(&self, leg: &mut InFlight, rank: u32, weight: u64, turn: u64) {
        let (role, life) = (leg.engine.role(), leg.engine.incarnation);
        leg.carry(self.loads.begin((role, life, rank), weight, turn));
    }

    /// The prefill ranks that have their turns: those below `--route-ranks`, and under the same-rank contract those that some decode
    /// engine has, too. Slots are sorted by rank, so that turns go evenly over what is left.
    fn reachable<'a>(&self, pool: &'a Pool, mode: Mode) -> &'a [Slot] {
        let below = |ranks: u32| pool.prefill_slots.partition_point(|slot| slot.rank < ranks);
        let routed = if self.rules.route_ranks == 0 { u32::MAX } else { self.rules.route_ranks };
        let slots = &pool.prefill_slots[..below(routed)];
        if !self.pins(mode, pool.spans, pool.repeats) {
            return slots;
        }
        let decodes = pool.decode_slots.iter().map(|slot| pool.decode[slot.engine].registration.dp_size);
        let ranks = decodes.max().unwrap_or(0);
        &slots[..below(ranks).min(slots.len())]
    }

    /// Where on a decode engine the leg of a prefill rank goes; nowhere if the pair cannot work, or not that rank.
    ///
    /// Hosts that serve have their turns by `round`: how often all decode engines have had theirs.
    fn place(&self, prefill: (&Engine, u32), decode: &Engine, round: usize, mode: Mode) -> Option<DecodePlace> {
        let (prefill, rank) = prefill;
        if !reach::hosts_agree(prefill.spoken(), decode.spoken(), mode) {
            return None;
        }
        let (prefill, decode) = (&prefill.registration, &decode.registration);
        let repeats = prefill.repeats() || decode.repeats();
        if !self.pins(mode, prefill.spans() || decode.spans(), repeats) {
            return Some(DecodePlace { host: round % decode.doors(), rank: None });
        }
        (rank < decode.dp_size).then(|| DecodePlace { host: decode.door(rank).host, rank: Some(rank) })
    }

    /// Whether decode's legs are pinned to prefill's ranks.
    fn pins(&self, mode: Mode, spans: bool, repeats: bool) -> bool {
        let by_contract = match self.rules.contract {
            Contract::Auto => repeats,
            Contract::Leader => false,
            Contract::SameRank => true,
        };
        mode == Mode::Write && spans && by_contract
    }

    /// In which order decode engines are looked at.
    fn decodes<'a>(&self, pool: &'a Pool, side: &'a Side, mode: Mode, want: &Want, shift: usize) -> Order<'a> {
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
        };
        Order::new(side, &pool.decode, &pool.decode_slots, by)
    }

    /// The next decode engine for a prefill engine that has room, both places taken.
    fn pair(
        self: &Arc<Self>,
        memory: &mut Memory,
        (pool, side): (&Pool, &Side),
        (prefill, rank, chosen): (&Arc<Engine>, u32, Choice),
        (mode, want, refused): (Mode, &Want, &[u64]),
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
                if memory.history.complain(prefill, decode) {
                    let restart = if mode == Mode::Write { &prefill.name } else { &decode.name };
                    tracing::warn!(prefill = %prefill.name, decode = %decode.name, %restart, "pair is not used: one side remembers an earlier life of the other until it is restarted");
                }
                continue;
            }
            // Another thread may have taken a probation's only place since `usable` looked.
            let Some(prefill_guard) = prefill.admit(now) else {
                break;
            };
            let Some(decode_guard) = decode.admit(now) else {
                why = NoPick::Busy;
                continue;
            };
            let first = (met == PairState::Cold).then_some(rank);
            let meeting = self.pairs.meet(memory, (prefill, first), decode, mode, now);
            let rank = (prefill.registration.dp_size > 1).then_some(rank);
            let choices = [chosen, choice];
            return Ok(Picked { prefill: prefill_guard, decode: decode_guard, rank, place, mode, meeting, choices });
        }
        Err(why)
    }

    /// READ: another decode engine for a prefill that has answered, its own refused. `refused` are not asked again.
    pub(crate) fn another_decode(
        self: &Arc<Self>,
        pool: &Pool,
        (prefill, rank): (&Arc<Engine>, u32),
        demand: Demand,
        refused: &[u64],
        now: Instant,
    ) -> Option<(InFlight, DecodePlace, Meeting)> {
        let turn = usize::try_from(self.turn.load(Ordering::Relaxed)).unwrap_or(0);
        let want = Want { demand, home: None, turn, now };
        let memory = &mut *self.pairs.memory();
        let round = turn / pool.decode_slots.len().max(1);
        let found = {
            let side = pool.side(Role::Decode, 1, &self.loads);
            self.decodes(pool, &side, Mode::Read, &want, 0).find_map(|(slot, _)| {
                let decode = &pool.decode[slot.engine];
                let place = self.place((prefill, rank), decode, round, Mode::Read)?;
                let state = memory.history.state(prefill, decode, Mode::Read);
                let barred = match state {
                    PairState::Stale => !self.rules.allow_stale,
                    PairState::FirstContact => self.alone(prefill, decode),
                    PairState::Known | PairState::Cold => false,
                };
                let met = self.rank_state(memory, (prefill, rank), decode, Mode::Read);
                let barred = barred || met == PairState::FirstContact;
                if refused.contains(&decode.incarnation) || barred || !self.has_room(decode, now) {
                    return None;
                }
                Some((decode.admit(now)?, place, met))
            })
        };
        let (mut guard, place, met) = found?;
        self.load(&mut guard, 0, 1, turn as u64 + 1);
        let first = (met == PairState::Cold).then_some(rank);
        let meeting = self.pairs.meet(memory, (prefill, first), &guard.engine, Mode::Read, now);
        Some((guard, place, meeting))
    }

    /// How a decode engine and a prefill rank stand, where it takes that for an engine of its own and must meet it alone (protocol
    /// P4, H5).
    fn rank_state(&self, memory: &Memory, prefill: (&Engine, u32), decode: &Engine, mode: Mode) -> PairState {
        let (prefill, rank) = prefill;
        let is_own = mode == Mode::Read && prefill.registration.spans() && self.alone(prefill, decode);
        if is_own { memory.history.rank_state(prefill, decode, rank) } else { PairState::Known }
    }

    /// Whether the pair's first exchange must go alone: not when both are known to be 0.31.0 or newer.
    fn alone(&self, prefill: &Engine, decode: &Engine) -> bool {
        self.rules.first_contact && versions::first_contact_gate(prefill.traits, decode.traits)
    }
}

/// One pick.
struct Want {
    demand: Demand,
    /// Where its session was served last.
    home: Option<Home>,
    turn: usize,
    now: Instant,
}

#[cfg(test)]
mod tests;
