//! Which pair serves an exchange: round robin over slots, one turn counter for both sides.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::engine::hosts::Contract;
use crate::engine::versions;
use crate::engine::{Mode, reach};
use crate::pool::bonds::{self, Partner};
use crate::pool::history::PairState;
use crate::pool::pairs::{Meeting, Memory, Pairs};
use crate::pool::{Engine, InFlight, Pool, Slot};
use crate::settings::PickRules;

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
}

impl Selector {
    /// A picker that begins with the first slot.
    pub fn new(rules: PickRules) -> Arc<Self> {
        Arc::new(Selector { rules, turn: AtomicU64::new(0), pairs: Pairs::new(rules.allow_stale) })
    }

    fn has_room(&self, engine: &Engine) -> bool {
        self.rules.engine_in_flight == 0 || engine.vitals.in_flight() < self.rules.engine_in_flight
    }

    /// Takes the next pair. One turn is consumed whether or not there is one; what cannot be used is stepped over. Engines
    /// that have `refused` this exchange already are not asked again as long as there are others (protocol L9).
    pub fn pick(self: &Arc<Self>, pool: &Pool, refused: &[u64], now: Instant) -> Result<Picked, NoPick> {
        let turn = usize::try_from(self.turn.fetch_add(1, Ordering::Relaxed)).unwrap_or(0);
        match self.pick_but(pool, refused, turn, now) {
            Err(NoPick::Nobody) if !refused.is_empty() => self.pick_but(pool, &[], turn, now),
            picked => picked,
        }
    }

    fn pick_but(self: &Arc<Self>, pool: &Pool, refused: &[u64], turn: usize, now: Instant) -> Result<Picked, NoPick> {
        let Some(mode) = pool.mode.filter(|_| pool.has_pair()) else {
            return Err(NoPick::Nobody);
        };
        let mut why = NoPick::Nobody;
        let mut memory = self.pairs.memory();
        for slot in cycle(self.reachable(pool, mode), turn) {
            let prefill = &pool.prefill[slot.engine];
            if refused.contains(&prefill.incarnation) || !prefill.vitals.usable(now) {
                continue;
            }
            if !self.has_room(prefill) {
                why = NoPick::Busy;
                continue;
            }
            match self.pair(&mut memory, pool, (prefill, slot.rank), (mode, turn, refused), now) {
                Ok(picked) => return Ok(picked),
                Err(not) => why = why.max(not),
            }
        }
        Err(why)
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
        let decodes = pool.decode_slots.iter().map(|at| pool.decode[*at].registration.dp_size);
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

    /// The next decode engine for a prefill engine that has room, both places taken.
    fn pair(
        self: &Arc<Self>,
        memory: &mut Memory,
        pool: &Pool,
        (prefill, rank): (&Arc<Engine>, u32),
        (mode, turn, refused): (Mode, usize, &[u64]),
        now: Instant,
    ) -> Result<Picked, NoPick> {
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
        for decode in cycle(&pool.decode_slots, turn.wrapping_add(shift)) {
            let decode = &pool.decode[*decode];
            let is_barred =
                only.is_some_and(|life| life != decode.incarnation) || refused.contains(&decode.incarnation);
            if is_barred || !decode.vitals.usable(now) {
                continue;
            }
            let Some(place) = self.place((prefill, rank), decode, round, mode) else { continue };
            let state = memory.history.state(prefill, decode, mode);
            if !self.has_room(decode) {
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
            return Ok(Picked { prefill: prefill_guard, decode: decode_guard, rank, place, mode, meeting });
        }
        Err(why)
    }

    /// READ: another decode engine for a prefill that has answered, its own refused. `refused` are not asked again.
    pub(crate) fn another_decode(
        self: &Arc<Self>,
        pool: &Pool,
        (prefill, rank): (&Arc<Engine>, u32),
        refused: &[u64],
        now: Instant,
    ) -> Option<(InFlight, DecodePlace, Meeting)> {
        let turn = usize::try_from(self.turn.load(Ordering::Relaxed)).unwrap_or(0);
        let memory = &mut *self.pairs.memory();
        let round = turn / pool.decode_slots.len().max(1);
        for decode in cycle(&pool.decode_slots, turn) {
            let decode = &pool.decode[*decode];
            let Some(place) = self.place((prefill, rank), decode, round, Mode::Read) else { continue };
            let state = memory.history.state(prefill, decode, Mode::Read);
            let barred = match state {
                PairState::Stale => !self.rules.allow_stale,
                PairState::FirstContact => self.alone(prefill, decode),
                PairState::Known | PairState::Cold => false,
            };
            let met = self.rank_state(memory, (prefill, rank), decode, Mode::Read);
            let barred = barred || met == PairState::FirstContact;
            if refused.contains(&decode.incarnation) || barred || !self.has_room(decode) {
                continue;
            }
            let Some(guard) = decode.admit(now) else { continue };
            let first = (met == PairState::Cold).then_some(rank);
            return Some((guard, place, self.pairs.meet(memory, (prefill, first), decode, Mode::Read, now)));
        }
        None
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

/// All of `items`, beginning with the one whose turn it is.
fn cycle<T>(items: &[T], turn: usize) -> impl Iterator<Item = &T> {
    let (before, from) = items.split_at(turn % items.len().max(1));
    from.iter().chain(before)
}

#[cfg(test)]
mod tests;
