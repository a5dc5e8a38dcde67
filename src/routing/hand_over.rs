//! READ: who takes what prefill hands over when decode's own engine refuses.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::prefixes::Longest;
use super::{DecodePlace, Demand, Selector, Want};
use crate::engine::{Mode, Role};
use crate::pool::history::PairState;
use crate::pool::pairs::Meeting;
use crate::pool::{Engine, InFlight, Pool};

impl Selector {
    /// READ: another decode engine for a prefill that has answered, its own refused. `refused` are not asked again.
    pub(crate) fn another_decode(
        self: &Arc<Self>,
        pool: &Pool,
        (prefill, rank): (&Arc<Engine>, u32),
        demand: Demand<'_>,
        refused: &[u64],
        now: Instant,
    ) -> Option<(InFlight, DecodePlace, Meeting)> {
        let turn = usize::try_from(self.turn.load(Ordering::Relaxed)).unwrap_or(0);
        let want = Want { demand, home: None, longest: Longest::default(), turn, now };
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
}
