//! Requests that decode serves alone, where that is asked for: short ones, and those of which it has nearly all. To compute a little
//! itself costs it less than the way over prefill costs the client. Only releases that serve requests without a transfer can
//! (protocol O16); whatever is in the way, the request goes to a pair as all do.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::order::{By, Order, Why};
use super::picked::{Alone, DecodePlace, NoPick, Pick, Short};
use super::prefixes::{Forecast, Longest, Meeting as Expected};
use super::{Demand, Selector};
use crate::engine::Role;
use crate::pool::{Engine, Pool};
use crate::settings::Policy;

impl Selector {
    /// Takes a decode engine for what it may serve alone, else the next pair as [`Selector::pick`] does.
    pub fn pick_any(
        self: &Arc<Self>,
        pool: &Pool,
        demand: Demand<'_>,
        refused: &[u64],
        now: Instant,
    ) -> Result<Pick, NoPick> {
        match self.pick_alone(pool, demand, refused, now) {
            Some(alone) => Ok(Pick::Alone(Box::new(alone))),
            None => Ok(Pick::Pair(Box::new(self.pick(pool, demand, refused, now)?))),
        }
    }

    fn pick_alone(self: &Arc<Self>, pool: &Pool, demand: Demand<'_>, refused: &[u64], now: Instant) -> Option<Alone> {
        let rules = self.rules.decode_alone;
        // Without prefill there is no service, for short requests either.
        if !demand.may_skip_prefill || !rules.is_on() || !pool.has_pair() {
            return None;
        }
        let is_short = demand.bytes < rules.below;
        let longest = if is_short { Longest::default() } else { self.nearly_all(demand, pool.decode_slots.len())? };
        let turn = usize::try_from(self.alone_turn.fetch_add(1, Ordering::Relaxed)).unwrap_or(0);
        let (mut decode, choice) = {
            let side = pool.side(Role::Decode, 1, &self.loads);
            let by = By {
                policy: if is_short { self.rules.policies.decode } else { Policy::CacheAware },
                key: demand.key,
                turn,
                home: None,
                balance: self.rules.affinity.balance,
                longest,
            };
            Order::new(&side, &pool.decode, &pool.decode_slots, by).find_map(|(slot, choice)| {
                let decode = &pool.decode[slot.engine];
                // One that has too much to do besides gets no more for what it has.
                let has_it = choice.why == Why::Hit && longest.holders.contains(&Some((decode.incarnation, 0)));
                let is_fit = (is_short || has_it) && decode.traits.plain_requests;
                let is_fit = is_fit && !refused.contains(&decode.incarnation);
                if !is_fit || !decode.vitals.usable(now) || !self.has_room(decode, now) {
                    return None;
                }
                Some((decode.admit(now)?, choice))
            })?
        };
        // In the order of all picks, of which this takes no turn.
        self.load(&mut decode, 0, 1, self.turn.load(Ordering::Relaxed) + 1);
        let place = DecodePlace { host: turn % decode.engine.registration.doors(), rank: None };
        let (expected, forecast) = self.will_have(&decode.engine, demand.prefix);
        let short = if is_short { Short::Request } else { Short::Missing };
        Some(Alone { decode, place, choice, short, forecast, expected: [None, expected] })
    }

    /// Who has all of a prompt but a little.
    fn nearly_all(&self, demand: Demand<'_>, slots: usize) -> Option<Longest> {
        let longest = self.decoded.as_ref()?.longest(demand.prefix, slots);
        let is_enough = demand.bytes.saturating_sub(longest.bytes()) < self.rules.decode_alone.missing;
        (is_enough && longest.holders[0].is_some()).then_some(longest)
    }

    /// A decode engine is to have all of a prompt. What it is expected to have of it, if anything. Which of several ranks has it nobody
    /// knows.
    pub(super) fn will_have(&self, decode: &Engine, prefix: &[u64]) -> (Option<Expected>, Option<Forecast>) {
        let is_one = decode.registration.dp_size == 1 && !prefix.is_empty();
        match self.decoded.as_ref().filter(|_| is_one) {
            Some(decoded) => {
                let (expected, forecast) = decoded.meet(prefix, (decode.incarnation, 0));
                (Some(expected), forecast)
            }
            None => (None, None),
        }
    }

    /// Decode has answered alone: of so many tokens it had these.
    pub fn learn_decode(&self, forecast: &Forecast, cached: u64, tokens: u64) {
        if let Some(decoded) = &self.decoded {
            decoded.learn_to_trust(forecast, cached, tokens);
        }
    }
}
