//! In which order a policy would have the slots of one role. What bars a slot is not its business: it goes on until one will do, and comes to
//! every slot in the end. No order costs more than the logarithm of the number of slots as long as the first few will do, and none
//! allocates.

use std::ops::Range;
use std::sync::Arc;

use crate::pool::loads::{Homes, PROBES, Side};
use crate::pool::{Engine, Slot};
use crate::settings::{Balance, Policy};

use super::prefixes::{HOLDERS, Longest};

/// How many slots are looked at by preference; the others have their turns after that.
const PREFERRED: usize = 8;
/// `consistent_hash`: a slot takes keys as long as its legs are at most this many, or this part of the mean more than the mean.
const BOUND_LEAST: u64 = 4;
const BOUND_SHARE: u64 = 4;

/// Why a slot was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It was the first choice.
    Hit,
    /// The first choice has too much to do.
    Spill,
    /// The first choice cannot be used, or not with what the other role has.
    Fallback,
}

impl Why {
    /// The value of the label `reason`.
    pub fn as_str(self) -> &'static str {
        match self {
            Why::Hit => "hit",
            Why::Spill => "spill",
            Why::Fallback => "fallback",
        }
    }
}

/// Who chose a slot, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Whether the session had a slot, which is then what the choice hangs on; else the policy chose.
    pub by_session: bool,
    /// The policy of the role.
    pub policy: Policy,
    /// Why this slot.
    pub why: Why,
}

impl Choice {
    /// The value of the label `policy`.
    pub fn by(self) -> &'static str {
        if self.by_session { "session" } else { self.policy.as_str() }
    }
}

/// What an order hangs on.
#[derive(Clone, Copy, Debug)]
pub(super) struct By {
    pub(super) policy: Policy,
    /// What `consistent_hash` hashes.
    pub(super) key: u64,
    pub(super) turn: usize,
    /// The slot that has the session's prefix: an engine's life and a rank.
    pub(super) home: Option<(u64, u32)>,
    pub(super) balance: Balance,
    /// `cache_aware`: who has most of the prompt, if it is enough.
    pub(super) longest: Longest,
}

/// The slots in their order.
pub(super) struct Order<'a> {
    side: &'a Side,
    engines: &'a [Arc<Engine>],
    /// The slots in the order of turns.
    slots: &'a [Slot],
    by: By,
    home: Option<Slot>,
    had_home: bool,
    /// The session's slot if it has too much to do: better any other.
    avoided: Option<Slot>,
    /// Slots that were looked at by preference, and by turn.
    preferred: usize,
    turned: usize,
    given: bool,
    /// A slot was passed over for what it has to do.
    spilled: bool,
    homes: Option<Homes>,
    /// Places that were given, in order.
    but: [Range<usize>; PREFERRED],
    /// How many were taken by what they have to do.
    lightened: usize,
    /// Nobody has enough of the prompt.
    missed: bool,
    /// The heavier of two.
    other: Option<Slot>,
}

impl<'a> Order<'a> {
    pub(super) fn new(side: &'a Side, engines: &'a [Arc<Engine>], slots: &'a [Slot], by: By) -> Order<'a> {
        let mut order = Order {
            side,
            engines,
            slots,
            by,
            home: None,
            had_home: by.home.is_some(),
            avoided: None,
            preferred: 0,
            turned: 0,
            given: false,
            spilled: false,
            homes: None,
            but: [const { 0..0 }; PREFERRED],
            lightened: 0,
            missed: false,
            other: None,
        };
        let home = by.home.and_then(|(life, rank)| Some(side.slots()[side.place(life, rank)?]));
        match home {
            Some(slot) if order.is_overloaded(slot) => (order.avoided, order.spilled) = (home, true),
            _ => order.home = home,
        }
        order
    }

    fn legs(&self, slot: Slot) -> u64 {
        self.side.work(self.engines[slot.engine].incarnation, slot.rank).legs
    }

    fn weight(&self, slot: Slot) -> u64 {
        self.side.work(self.engines[slot.engine].incarnation, slot.rank).weight
    }

    /// Whether a session had better move: its slot has more to do than the others on average, by both limits.
    fn is_overloaded(&self, slot: Slot) -> bool {
        let (legs, others) = (self.legs(slot), self.side.slots().len().saturating_sub(1) as u64);
        let theirs = self.side.legs().saturating_sub(legs);
        let Balance { absolute, hundredths } = self.by.balance;
        // legs > theirs / others + absolute, and legs > theirs / others * relative.
        others > 0 && legs * others > theirs + absolute * others && legs * others * 100 > theirs * hundredths
    }

    /// Whether a slot has no room for more keys.
    fn is_full(&self, slot: Slot) -> bool {
        let (legs, count) = (self.legs(slot) + 1, self.side.slots().len() as u64);
        let all = self.side.legs() + 1;
        legs > BOUND_LEAST && legs * count * BOUND_SHARE > all * (BOUND_SHARE + 1)
    }

    fn drawn(&self) -> Slot {
        self.slots[fastrand::usize(..self.slots.len())]
    }

    /// Two of different slots, the lighter first.
    fn two(&self) -> (Slot, Slot) {
        let count = self.slots.len();
        let one = fastrand::usize(..count);
        let other = (one + 1 + fastrand::usize(..count.saturating_sub(1).max(1))) % count;
        let (one, other) = (self.slots[one], self.slots[other]);
        if self.weight(other) < self.weight(one) { (other, one) } else { (one, other) }
    }

    /// The next by preference; none when there are no more.
    fn preference(&mut self) -> Option<Slot> {
        let number = self.preferred;
        self.preferred += 1;
        match self.by.policy {
            Policy::RoundRobin => None,
            Policy::Random if number < PREFERRED => Some(self.drawn()),
            Policy::PowerOfTwo if number == 0 => {
                let (lighter, heavier) = self.two();
                self.other = Some(heavier);
                Some(lighter)
            }
            Policy::PowerOfTwo if number < PREFERRED => Some(self.other.take().unwrap_or_else(|| self.drawn())),
            Policy::LeastLoaded => self.by_load(),
            Policy::ConsistentHash => self.by_hash(number),
            Policy::CacheAware => self.by_cache(number),
            Policy::Random | Policy::PowerOfTwo => None,
        }
    }

    /// The next by what there is to do.
    fn by_load(&mut self) -> Option<Slot> {
        self.lightened += 1;
        let left = PREFERRED.checked_sub(self.lightened)?;
        let place = self.side.lightest(&self.but[left + 1..])?;
        // One that will not do is mostly its engine, not its rank.
        self.but[left] = self.side.engine_at(place);
        self.but[left..].sort_unstable_by_key(|places| places.start);
        Some(self.side.slots()[place])
    }

    /// Those that have most of the prompt, the one with the least to do first; then by load.
    fn by_cache(&mut self, from: usize) -> Option<Slot> {
        for number in from..HOLDERS {
            self.preferred = number + 1;
            let place = |(life, rank): (u64, u32)| Some(self.side.slots()[self.side.place(life, rank)?]);
            let mut near = self.by.longest.holders.map(|holder| holder.and_then(place));
            near.sort_unstable_by_key(|slot| slot.map_or((u64::MAX, 0), |slot| (self.weight(slot), self.legs(slot))));
            let Some(slot) = near[number] else { continue };
            if !self.is_overloaded(slot) && !self.takes_longer(slot) {
                return Some(slot);
            }
            self.spilled = true;
        }
        self.missed |= self.by.longest.blocks == 0;
        self.by_load()
    }

    /// Whether what a slot has to do before is more than what it has of the prompt, so that the one with the least to do is
    /// done sooner.
    fn takes_longer(&self, slot: Slot) -> bool {
        let least = self.side.lightest(&[]).map_or(0, |place| self.weight(self.side.slots()[place]));
        self.weight(slot) > least + self.by.longest.bytes()
    }

    /// The homes of the key that have room, from the given one on.
    fn by_hash(&mut self, from: usize) -> Option<Slot> {
        let homes = *self.homes.get_or_insert_with(|| self.side.homes(self.by.key));
        for number in from..PROBES {
            self.preferred = number + 1;
            if homes[..number].contains(&homes[number]) {
                continue;
            }
            let slot = self.side.slots()[homes[number]];
            if !self.is_full(slot) {
                return Some(slot);
            }
            self.spilled = true;
        }
        None
    }
}

impl Iterator for Order<'_> {
    type Item = (Slot, Choice);

    fn next(&mut self) -> Option<Self::Item> {
        let home = self.home.take();
        let slot = home.or_else(|| self.by_policy())?;
        let is_first = !std::mem::replace(&mut self.given, true);
        let why = match (home, self.spilled) {
            (Some(_), _) => Why::Hit,
            (None, true) => Why::Spill,
            (None, false) if is_first && !self.had_home && !self.missed => Why::Hit,
            (None, false) => Why::Fallback,
        };
        Some((slot, Choice { by_session: self.had_home, policy: self.by.policy, why }))
    }
}

impl Order<'_> {
    /// The next by preference, then those whose turn it is, and what is avoided at the end.
    fn by_policy(&mut self) -> Option<Slot> {
        if self.slots.is_empty() {
            return None;
        }
        while let Some(slot) = self.preference() {
            if self.avoided != Some(slot) {
                return Some(slot);
            }
        }
        while self.turned < self.slots.len() {
            let slot = self.slots[self.by.turn.wrapping_add(self.turned) % self.slots.len()];
            self.turned += 1;
            if self.avoided != Some(slot) {
                return Some(slot);
            }
        }
        self.avoided.take()
    }
}
