//! Which prefill ranks have computed which prompts, by the hashes of their blocks: a guess at what is in their caches. Bounded in memory;
//! blocks that were not met for longest go first. What engines say of the prompt tokens that they had corrects it.
//!
//! An engine drops what was not used for longest, too. So when it turns out to lack a block, it has lost whatever it used before that:
//! one number for each rank forgets all of it.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::api::prefix::BLOCK;

/// Memory of one block, roughly: its hash, one holder, and its part of two tables that are seven eighths full at most.
const ENTRY: usize = 64;
/// Holders of a block that are remembered. More have no use: there is one to go to, and others if that is too busy.
pub(super) const HOLDERS: usize = 3;
/// Ranks of engines' lives that are told apart. After as many restarts all is forgotten.
const LIVES: usize = 65_536;
/// Blocks that are dealt with under one lock.
const AT_ONCE: usize = 128;
/// An engine that says that it had less than this part of what was expected has lost it.
const LOST: f64 = 0.5;

/// A prefill engine's life and a rank of it.
pub(super) type Place = (u64, u32);

/// The ranks that have the longest beginning of a prompt that any has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Longest {
    /// Blocks of it.
    pub(super) blocks: usize,
    /// Who has them.
    pub(super) holders: [Option<Place>; HOLDERS],
}

/// What was expected of a rank when it was picked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Forecast {
    place: Place,
    /// The part of the prompt that it was to have.
    part: f64,
    /// When it last met that.
    met: u32,
}

/// A rank that has met a block, and when.
#[derive(Clone, Copy, Debug)]
struct Holder {
    rank: u32,
    met: u32,
}

/// Of several those that met it last.
type Holders = [Option<Holder>; HOLDERS];

/// Hashes are as good as chance already.
#[derive(Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {}

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

type Blocks = HashMap<u64, Holders, BuildHasherDefault<AsItIs>>;

/// The guess.
pub(super) struct Prefixes {
    known: Mutex<Known>,
    /// Blocks of a generation.
    most: usize,
}

#[derive(Default)]
struct Known {
    /// What was met lately, and what was met before that. When the first is full it becomes the second, which is forgotten.
    young: Blocks,
    old: Blocks,
    ranks: HashMap<Place, u32>,
    /// By rank: who it is, and what it has lost whatever it met up to then.
    places: Vec<(Place, u32)>,
    now: u32,
}

impl Known {
    fn holds(&self, holder: &Holder) -> bool {
        self.places.get(holder.rank as usize).is_some_and(|(_, lost)| holder.met > *lost)
    }

    /// Who has a block.
    fn holders(&self, block: u64) -> impl Iterator<Item = Holder> {
        let found = self.young.get(&block).or_else(|| self.old.get(&block)).copied().unwrap_or_default();
        found.into_iter().flatten().filter(|holder| self.holds(holder))
    }

    fn rank(&mut self, place: Place) -> u32 {
        if self.places.len() >= LIVES && !self.ranks.contains_key(&place) {
            *self = Known { now: self.now, ..Known::default() };
        }
        let Known { ranks, places, .. } = self;
        *ranks.entry(place).or_insert_with(|| {
            places.push((place, 0));
            (places.len() - 1) as u32
        })
    }

    fn meet(&mut self, block: u64, rank: u32, met: u32, most: usize) {
        let before = match self.young.get(&block) {
            Some(holders) => *holders,
            None => self.old.get(&block).copied().unwrap_or_default(),
        };
        let mut holders = [Some(Holder { rank, met }), None, None];
        let others = before.into_iter().flatten().filter(|holder| holder.rank != rank && self.holds(holder));
        holders.iter_mut().skip(1).zip(others).for_each(|(place, holder)| *place = Some(holder));
        if self.young.len() >= most && !self.young.contains_key(&block) {
            self.old.clear();
            mem::swap(&mut self.young, &mut self.old);
        }
        self.young.insert(block, holders);
    }
}

impl Prefixes {
    /// Nothing is known; so many bytes at most will be.
    pub(super) fn new(bytes: u64) -> Prefixes {
        let most = usize::try_from(bytes).unwrap_or(usize::MAX) / ENTRY / 2;
        Prefixes { known: Mutex::default(), most: most.max(1) }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who has the longest beginning of a prompt with these blocks.
    pub(super) fn longest(&self, blocks: &[u64]) -> Longest {
        // From the end: where a block is known, so was all before it.
        let mut end = blocks.len();
        for part in blocks.rchunks(AT_ONCE) {
            let known = self.known();
            for block in part.iter().rev() {
                let mut holders = [None; HOLDERS];
                let found = known.holders(*block).map(|holder| known.places[holder.rank as usize].0);
                holders.iter_mut().zip(found).for_each(|(to, place)| *to = Some(place));
                if holders[0].is_some() {
                    return Longest { blocks: end, holders };
                }
                end -= 1;
            }
        }
        Longest::default()
    }

    /// A rank is to compute a prompt with these blocks. What it is expected to have of it, if anything.
    pub(super) fn meet(&self, blocks: &[u64], place: Place) -> Option<Forecast> {
        let (rank, now) = {
            let mut known = self.known();
            known.now = known.now.saturating_add(1);
            (known.rank(place), known.now)
        };
        let (mut had, mut last) = (0, 0);
        for (part, number) in blocks.chunks(AT_ONCE).zip(0..) {
            let mut known = self.known();
            for (block, at) in part.iter().zip(number * AT_ONCE..) {
                let met = known.holders(*block).find(|holder| holder.rank == rank).map(|holder| holder.met);
                if let Some(met) = met.filter(|_| had == at) {
                    (had, last) = (at + 1, met);
                }
                known.meet(*block, rank, now, self.most);
            }
        }
        let part = had as f64 / blocks.len() as f64;
        (had > 0).then_some(Forecast { place, part, met: last })
    }

    /// What part of a prompt a rank turned out to have.
    pub(super) fn learn(&self, forecast: &Forecast, part: f64) {
        if part >= forecast.part * LOST {
            return;
        }
        let mut known = self.known();
        let rank = known.rank(forecast.place);
        if let Some((_, lost)) = known.places.get_mut(rank as usize) {
            *lost = forecast.met.max(*lost);
        }
    }

    /// Blocks that are known.
    #[cfg(test)]
    fn len(&self) -> usize {
        let known = self.known();
        known.young.len() + known.old.len()
    }
}

impl std::fmt::Debug for Prefixes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prefixes").field("most", &self.most).finish_non_exhaustive()
    }
}

impl Longest {
    /// Bytes of the prompt that need not be computed there.
    pub(super) fn bytes(&self) -> u64 {
        (self.blocks * BLOCK) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOME: u64 = 1 << 20;

    fn blocks(prompt: u64, count: u64) -> Vec<u64> {
        (0..count).map(|number| (prompt << 32 | number).wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect()
    }

    #[test]
    fn the_longest_beginning_is_found() {
        let prefixes = Prefixes::new(SOME);
        let all = blocks(1, 300);
        assert_eq!(prefixes.longest(&all), Longest::default());
        assert_eq!(prefixes.meet(&all[..100], (7, 0)), None);
        prefixes.meet(&all[..200], (8, 1));
        let found = prefixes.longest(&all);
        assert_eq!((found.blocks, found.holders, found.bytes()), (200, [Some((8, 1)), None, None], 200 * 2048));
        let found = prefixes.longest(&all[..90]);
        assert_eq!((found.blocks, found.holders), (90, [Some((8, 1)), Some((7, 0)), None]));
        let forecast = prefixes.meet(&all, (7, 0)).unwrap();
        assert_eq!((forecast.place, (forecast.part * 300.0).round()), ((7, 0), 100.0));
        assert_eq!(prefixes.longest(&[]), Longest::default());
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_go() {
        let prefixes = Prefixes::new(SOME);
        let most = SOME as usize / 64;
        for prompt in 0..100 {
            prefixes.meet(&blocks(prompt, 1000), (prompt % 3, 0));
            // One that is met now and then.
            if prompt % 5 == 0 {
                prefixes.meet(&blocks(1000, 10), (9, 0));
            }
        }
        assert!((most / 2..=most).contains(&prefixes.len()), "{} of {most}", prefixes.len());
        assert_eq!(prefixes.longest(&blocks(99, 1000)).blocks, 1000);
        assert_eq!((prefixes.longest(&blocks(1000, 10)).blocks, prefixes.longest(&blocks(0, 1000)).blocks), (10, 0));
    }

    /// What an engine has lost shows by one prompt, and whatever it met before that is forgotten with it.
    #[test]
    fn what_an_engine_has_lost_is_unlearned() {
        let prefixes = Prefixes::new(SOME);
        let place = (7, 0);
        for prompt in 1..=4 {
            prefixes.meet(&blocks(prompt, 10), place);
        }
        prefixes.meet(&blocks(1, 10), (8, 0));
        // It had most of what was expected: nothing is wrong.
        let forecast = prefixes.meet(&blocks(4, 12), place).unwrap();
        prefixes.learn(&forecast, 0.6);
        assert_eq!(prefixes.longest(&blocks(2, 10)).blocks, 10);
        // Of the third it has nothing left.
        let forecast = prefixes.meet(&blocks(3, 10), place).unwrap();
        prefixes.learn(&forecast, 0.0);
        let holders = |prompt| prefixes.longest(&blocks(prompt, 10)).holders[0];
        assert_eq!([1, 2, 3, 4].map(holders), [Some((8, 0)), None, Some(place), Some(place)]);
    }
}
