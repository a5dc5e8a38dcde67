//! The work that engines have from this proxy, by slot: legs in flight and their weight. It is the proxy's own account: no engine is
//! asked for it, and what others send them is not in it. Kept so that who has least is known without a look at every slot.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::engine::Role;

mod ring;
mod tree;

use ring::Ring;
pub use ring::{Homes, PROBES};
use tree::Tree;

/// An engine and one of its ranks. Decode engines balance their own: they have one slot, of rank 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Index in [`crate::pool::Pool::prefill`] or [`crate::pool::Pool::decode`].
    pub engine: usize,
    /// Rank inside the engine, 0 to `dp_size` - 1.
    pub rank: u32,
}

/// An engine that has slots.
#[derive(Clone, Copy, Debug)]
pub(super) struct Holder<'a> {
    /// Its index in the snapshot.
    pub(super) engine: usize,
    /// Its incarnation.
    pub(super) life: u64,
    /// Its address.
    pub(super) name: &'a str,
    /// How many slots it has.
    pub(super) ranks: u32,
}

/// The work of one slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Legs in flight.
    pub legs: u64,
    /// Their weight: bytes of prompts that prefill has not answered for, streams of decode.
    pub weight: u64,
}

/// An engine's life, as long as it has slots or work.
#[derive(Debug, Default)]
struct Life {
    /// Its first slot's place among those of its side, while it has any.
    first: Option<usize>,
    ranks: Vec<Work>,
}

/// The slots of one role, an engine's ranks side by side.
#[derive(Debug, Default)]
pub struct Side {
    /// The snapshot that they are arranged by, and how many ranks of an engine have slots.
    arranged: (u64, u32),
    lives: BTreeMap<u64, Life>,
    slots: Vec<Slot>,
    /// Legs of all slots.
    legs: u64,
    tree: Tree,
    ring: Ring,
}

impl Side {
    /// Takes over the slots of a snapshot. What engines have to do is kept.
    fn arrange<'a>(&mut self, engines: impl Iterator<Item = Holder<'a>>) {
        for life in self.lives.values_mut() {
            life.first = None;
        }
        self.slots.clear();
        let mut names = Vec::new();
        for Holder { engine, life, name, ranks } in engines {
            let life = self.lives.entry(life).or_default();
            life.first = Some(self.slots.len());
            life.ranks.resize(life.ranks.len().max(ranks as usize), Work::default());
            self.slots.extend((0..ranks).map(|rank| Slot { engine, rank }));
            names.resize(self.slots.len(), name);
        }
        self.lives.retain(|_, life| life.first.is_some() || life.ranks.iter().any(|work| work.legs > 0));
        let mut weights = vec![0; self.slots.len()];
        self.legs = 0;
        for life in self.lives.values() {
            let Some(first) = life.first else { continue };
            // Ranks beyond those that have slots may have work of before.
            let slots = weights[first..].iter_mut().zip(&self.slots[first..]).zip(&life.ranks).zip(0..);
            for (((weight, _), work), _) in slots.take_while(|(((_, slot), _), rank)| slot.rank == *rank) {
                *weight = work.weight;
                self.legs += work.legs;
            }
        }
        self.tree = Tree::over(weights);
        self.ring = Ring::of(names.into_iter().zip(self.slots.iter().map(|slot| slot.rank)));
    }

    fn change(&mut self, life: u64, rank: u32, turn: Option<u64>, act: impl Fn(&mut Work)) {
        let Life { first, ranks } = self.lives.entry(life).or_default();
        let rank = rank as usize;
        if ranks.len() <= rank {
            ranks.resize(rank + 1, Work::default());
        }
        let before = ranks[rank];
        act(&mut ranks[rank]);
        let after = ranks[rank];
        let place = first.map(|first| first + rank);
        let has_slot = |place: usize| self.slots.get(place).is_some_and(|slot| slot.rank as usize == rank);
        match place {
            Some(place) if has_slot(place) => {
                self.legs = (self.legs + after.legs).saturating_sub(before.legs);
                self.tree.set(place, after.weight, turn);
            }
            Some(_) => {}
            None if ranks.iter().all(|work| work.legs == 0) => {
                self.lives.remove(&life);
            }
            None => {}
        }
    }

    /// Slots in their order here.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// The place of an engine's rank.
    pub fn place(&self, life: u64, rank: u32) -> Option<usize> {
        let place = self.lives.get(&life)?.first? + rank as usize;
        self.slots.get(place).is_some_and(|slot| slot.rank == rank).then_some(place)
    }

    /// The work of an engine's rank.
    pub fn work(&self, life: u64, rank: u32) -> Work {
        let ranks = self.lives.get(&life).map(|life| &life.ranks[..]);
        ranks.and_then(|ranks| ranks.get(rank as usize)).copied().unwrap_or_default()
    }

    /// Legs of all slots.
    pub fn legs(&self) -> u64 {
        self.legs
    }

    /// The place with the least weight outside of these, which are in order and do not meet; of equals the one that was picked
    /// longest ago.
    pub fn lightest(&self, but: &[Range<usize>]) -> Option<usize> {
        let ends = but.iter().map(|range| range.start).chain([self.slots.len()]);
        let starts = std::iter::once(0).chain(but.iter().map(|range| range.end));
        let found = starts.zip(ends).filter_map(|(start, end)| self.tree.lightest(start..end.max(start)));
        found.reduce(|one, other| self.tree.lighter(one, other))
    }

    /// Where the keys of this hash have their homes.
    pub fn homes(&self, key: u64) -> Homes {
        self.ring.homes(key)
    }

    /// The places of the engine that has this one.
    pub fn engine_at(&self, place: usize) -> Range<usize> {
        let Some(slot) = self.slots.get(place) else { return place..place };
        let first = place - slot.rank as usize;
        let count = self.slots[first..].iter().take_while(|other| other.engine == slot.engine).count();
        first..first + count
    }
}

/// Both roles' slots, locked for a few statements each time.
#[derive(Debug, Default)]
pub struct Loads {
    sides: [Mutex<Side>; 2],
    /// Wakes whoever waits for room on an engine, at each leg's end.
    pub freed: Notify,
}

impl Loads {
    fn lock(&self, role: Role) -> MutexGuard<'_, Side> {
        self.sides[role as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A role's slots as they are in the snapshot of this number, the first `ranks` of each engine; who they are is asked when that is
    /// another than before.
    pub(super) fn arranged<'a, Engines: Iterator<Item = Holder<'a>>>(
        &self,
        role: Role,
        by: (u64, u32),
        engines: impl FnOnce() -> Engines,
    ) -> MutexGuard<'_, Side> {
        let mut side = self.lock(role);
        if side.arranged != by {
            side.arranged = by;
            side.arrange(engines());
        }
        side
    }

    /// A leg of this weight begins on a rank of an engine's life; it ends with what is returned.
    pub(crate) fn begin(self: &Arc<Self>, (role, life, rank): (Role, u64, u32), weight: u64, turn: u64) -> Load {
        self.lock(role).change(life, rank, Some(turn), |work| {
            *work = Work { legs: work.legs + 1, weight: work.weight + weight };
        });
        Load { loads: self.clone(), role, life, rank, weight }
    }

    /// The work of all ranks of an engine's life.
    pub fn work(&self, role: Role, life: u64) -> Work {
        let side = self.lock(role);
        let ranks = side.lives.get(&life).map_or(&[][..], |life| &life.ranks);
        let all = |of: fn(&Work) -> u64| ranks.iter().map(of).sum();
        Work { legs: all(|work| work.legs), weight: all(|work| work.weight) }
    }

    /// Whether nobody has anything to do.
    pub fn is_idle(&self) -> bool {
        [Role::Prefill, Role::Decode].into_iter().all(|role| {
            let side = self.lock(role);
            side.lives.values().flat_map(|life| &life.ranks).all(|work| *work == Work::default())
        })
    }
}

/// One leg's part of the work.
#[derive(Debug)]
pub struct Load {
    loads: Arc<Loads>,
    role: Role,
    life: u64,
    rank: u32,
    weight: u64,
}

impl Drop for Load {
    fn drop(&mut self) {
        self.loads.lock(self.role).change(self.life, self.rank, None, |work| {
            let (legs, weight) = (work.legs.checked_sub(1), work.weight.checked_sub(self.weight));
            debug_assert!(legs.is_some() && weight.is_some(), "a leg that ends has begun");
            *work = Work { legs: legs.unwrap_or(0), weight: weight.unwrap_or(0) };
        });
        self.loads.freed.notify_waiters();
    }
}
