//! Requests that decode serves alone, where that is asked for: short ones, and those of which it has nearly all. To compute a little
//! itself costs it less than the way over prefill costs the client. Only releases that serve requests without a transfer can
//! (protocol O16); whatever is in the way, the request goes to a pair as all do.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Instant;

use super::order::{By, Order, Why};
use super::picked::{Alone, DecodePlace, NoPick, Pick, Short};
use super::prefixes::{Forecast, Longest};
use super::{Demand, Selector};
use crate::engine::Role;
use crate::pool::{Engine, Pool};
use crate::settings::Policy;

/// So many answers in a row that do not say what decode had are worth a line.
const SILENT: u32 = 16;
/// Engines' lives that are remembered.
const LIVES: usize = 65_536;

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
        // Doors have their turns once all engines have had theirs.
        let round = turn / pool.decode_slots.len().max(1);
        let place = DecodePlace { host: round % decode.engine.registration.doors(), rank: None };
        let place_of = (decode.engine.incarnation, 0);
        let expected = self.decoded.as_ref().filter(|_| !is_short);
        let forecast = expected.and_then(|decoded| decoded.forecast(demand.prefix, place_of));
        let short = if is_short { Short::Request } else { Short::Missing };
        Some(Alone { decode, place, choice, short, forecast })
    }

    /// Who has all of a prompt but a little.
    fn nearly_all(&self, demand: Demand<'_>, slots: usize) -> Option<Longest> {
        let longest = self.decoded.as_ref()?.longest(demand.prefix, slots);
        let is_enough = demand.bytes.saturating_sub(longest.bytes()) < self.rules.decode_alone.missing;
        (is_enough && longest.holders[0].is_some()).then_some(longest)
    }

    /// Whether it is kept count of what decode engines have.
    pub fn keeps_decode(&self) -> bool {
        self.decoded.is_some()
    }

    /// A decode engine has all of a prompt's KV from now on. Which of several ranks has it nobody knows.
    pub fn decode_has(&self, decode: &Engine, prefix: &[u64]) {
        if let Some(decoded) = self.decoded.as_ref().filter(|_| decode.registration.dp_size == 1) {
            decoded.meet(prefix, (decode.incarnation, 0));
        }
    }

    /// Whether a decode engine has never yet computed a prompt.
    pub fn is_cold_alone(&self, decode: &Engine) -> bool {
        !self.served_alone().contains(&decode.incarnation)
    }

    /// It has.
    pub fn has_served_alone(&self, decode: &Engine) {
        let mut served = self.served_alone();
        if served.len() >= LIVES {
            served.clear();
        }
        served.insert(decode.incarnation);
    }

    fn served_alone(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.served_alone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decode has answered alone: how many tokens it had, and of how many, if it said so.
    pub fn learn_decode(&self, forecast: &Forecast, told: Option<(u64, u64)>) {
        let Some(decoded) = &self.decoded else { return };
        match told {
            Some((cached, tokens)) => decoded.learn_to_trust(forecast, cached, tokens),
            None if decoded.untold(forecast) == SILENT => {
                tracing::warn!(
                    answers = SILENT,
                    "decode serves requests alone for what it should have cached, and its answers do not say what it had: nothing corrects that (--decode-alone-missing; engines' --enable-prompt-tokens-details, clients' usage)"
                );
            }
            None => {}
        }
    }
}
