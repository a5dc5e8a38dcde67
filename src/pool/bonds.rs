//! Which decode engine a prefill engine is bound to (protocol P5). In WRITE, engines of 0.28.0 to 0.30.0 keep the hosts that a
//! completion goes to in one place per worker: requests to two decode engines at a time overwrite it, and the right decode
//! never hears that its KV has come (protocol P5). The state is prefill's, so its release decides. Pure; it is
//! locked by its owner.

use std::collections::HashMap;
use std::sync::Arc;

use crate::engine::Mode;
use crate::engine::versions;
use crate::pool::{Engine, Pool};

/// Whether a prefill engine works with one decode engine only.
pub(crate) fn binds(prefill: &Engine, mode: Mode) -> bool {
    mode == Mode::Write && versions::bound_pairs(prefill.traits, prefill.registration.dialect)
}

/// With whom a prefill engine may work now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Partner {
    /// Whoever is picked: it need not be bound, or nobody can be used.
    Any,
    /// The decode engine of this incarnation.
    One(u64),
    /// Nobody, until its transfers to the decode engine of before have ended; then another.
    Later,
}

/// All bonds, by the incarnations of prefill and decode engines.
#[derive(Debug, Default)]
pub struct Bonds {
    of: HashMap<u64, u64>,
    /// Exchanges of a bound prefill engine whose decode has given no byte: its KV may be on its way.
    open: HashMap<u64, usize>,
}

impl Bonds {
    /// The decode engine that a prefill engine is bound to.
    pub fn of(&self, prefill: &Engine) -> Option<u64> {
        self.of.get(&prefill.incarnation).copied()
    }

    /// An exchange of a bound prefill engine begins, with the decode engine that it is bound to from now on.
    pub fn begin(&mut self, prefill: &Engine, decode: &Engine) {
        self.of.insert(prefill.incarnation, decode.incarnation);
        *self.open.entry(prefill.incarnation).or_default() += 1;
    }

    /// Its decode gave a byte, or it is over.
    pub fn end(&mut self, prefill: &Engine) {
        if let Some(open) = self.open.get_mut(&prefill.incarnation) {
            *open = open.saturating_sub(1);
            if *open == 0 {
                self.open.remove(&prefill.incarnation);
            }
        }
    }

    /// Nothing of the prefill engine is in flight, so that nothing can be told to the wrong decode engine.
    fn is_idle(&self, prefill: &Engine) -> bool {
        prefill.vitals.in_flight() == 0 && !self.open.contains_key(&prefill.incarnation)
    }

    /// With whom a prefill engine that has to be bound may work. It is bound anew when its decode engine has left or was
    /// replaced, and when that one is not `fit` and nothing is in flight.
    pub(crate) fn partner(&mut self, pool: &Pool, prefill: &Engine, fit: impl Fn(&Engine) -> bool) -> Partner {
        let before = self.of(prefill);
        let decode = before.and_then(|life| pool.decode.iter().find(|decode| decode.incarnation == life));
        if let Some(decode) = decode.filter(|decode| fit(decode)) {
            return Partner::One(decode.incarnation);
        }
        let Some(chosen) = self.choose(pool, prefill, fit) else {
            return decode.map_or(Partner::Any, |decode| Partner::One(decode.incarnation));
        };
        if decode.is_some() && !self.is_idle(prefill) {
            return Partner::Later;
        }
        self.bind(prefill, chosen);
        Partner::One(chosen.incarnation)
    }

    /// The fit decode engine with the fewest prefill engines bound to it; of several the one that the turn pairs it with
    /// first, so that prefill engines which need not be bound do not all meet the same one.
    fn choose<'a>(&self, pool: &'a Pool, prefill: &Engine, fit: impl Fn(&Engine) -> bool) -> Option<&'a Arc<Engine>> {
        let load = self.load(pool);
        let place = pool.prefill.iter().position(|other| other.incarnation == prefill.incarnation).unwrap_or(0);
        let count = pool.decode_slots.len().max(1);
        let (before, from) = pool.decode_slots.split_at(place % count);
        let ready = from.iter().chain(before).map(|slot| &pool.decode[slot.engine]).filter(|decode| fit(decode));
        ready.min_by_key(|decode| load.get(&decode.incarnation).copied().unwrap_or(0))
    }

    /// Prefill engines of the pool by the decode engine that they are bound to.
    fn load(&self, pool: &Pool) -> HashMap<u64, usize> {
        let mut load = HashMap::new();
        for life in pool.prefill.iter().filter_map(|prefill| self.of(prefill)) {
            *load.entry(life).or_default() += 1;
        }
        load
    }

    fn bind(&mut self, prefill: &Engine, decode: &Engine) {
        self.of.insert(prefill.incarnation, decode.incarnation);
        tracing::info!(prefill = %prefill.name, decode = %decode.name, "prefill engine is bound to one decode engine, as its release needs it in WRITE");
    }

    /// Moves prefill engines to decode engines that came later, where nothing is in flight and that spreads them more evenly,
    /// or as evenly and as a first choice would have it. Each move brings both nearer, so that moving ends.
    pub fn spread(&mut self, pool: &Pool, mode: Mode, fit: impl Fn(&Engine, &Engine) -> bool) {
        let mut load = self.load(pool);
        let ready: Vec<_> = pool.decode_slots.iter().map(|slot| &pool.decode[slot.engine]).collect();
        for (place, prefill) in pool.prefill.iter().enumerate().filter(|(_, prefill)| binds(prefill, mode)) {
            let of = |decode: &Engine| load.get(&decode.incarnation).copied().unwrap_or(0);
            let Some(before) = ready.iter().find(|decode| self.of(prefill) == Some(decode.incarnation)) else {
                continue;
            };
            let home = ready[place % ready.len()];
            let fewest = ready.iter().map(|decode| of(decode)).min().unwrap_or(0);
            if (of(before) < fewest + 2 && of(home) >= of(before)) || !self.is_idle(prefill) {
                continue;
            }
            let is_home = |decode: &Engine| decode.incarnation == home.incarnation;
            let better =
                |decode: &Engine| of(decode) + usize::from(!is_home(decode)) < of(before) && fit(prefill, decode);
            let better = ready.iter().filter(|decode| better(decode));
            let Some(chosen) = better.min_by_key(|decode| (of(decode), !is_home(decode))) else { continue };
            *load.entry(before.incarnation).or_default() -= 1;
            *load.entry(chosen.incarnation).or_default() += 1;
            self.bind(prefill, chosen);
        }
    }

    /// Whether a decode engine has nothing to do because each usable prefill engine is bound to another.
    pub(crate) fn leaves_out(&self, pool: &Pool, decode: &Engine) -> bool {
        let mut prefills =
            pool.prefill_slots.iter().filter(|slot| slot.rank == 0).map(|slot| &pool.prefill[slot.engine]);
        let another = |prefill: &Arc<Engine>| {
            binds(prefill, Mode::Write) && self.of(prefill).is_some_and(|life| life != decode.incarnation)
        };
        pool.mode == Some(Mode::Write) && pool.has_pair() && prefills.all(another)
    }

    /// An engine's life has ended.
    pub fn forget(&mut self, incarnation: u64) {
        self.of.retain(|prefill, decode| *prefill != incarnation && *decode != incarnation);
        self.open.remove(&incarnation);
    }
}
