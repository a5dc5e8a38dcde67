//! Which prefill ranks have computed which prompts, by the hashes of their blocks: a guess at what is in their caches. Bounded in memory;
//! blocks that were not met for longest go first. What engines say of the prompt tokens that they had corrects it.
//!
//! An engine drops what was not used for longest, too. So when it turns out to lack a block, it has lost whatever it used before that:
//! one number for each rank forgets all of it.
//!
//! A prompt that leaves known ground where another went on is the beginning of a new conversation, from a system prompt that many have. It
//! goes to a rank that has that, but not where many more have begun lately than elsewhere: whoever begins will stay, and a cache holds
//! only so many.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::api::prefix::BLOCK;

mod belief;

/// Memory of a block in a table: its hash, itself, a byte of the table's own.
const ENTRY: usize = size_of::<(u64, Block)>() + 1;
/// Memory of the first further holder of a block, and of each of them.
const FIRST: usize = 48;
const FURTHER: usize = 2 * size_of::<Holder>();
/// Holders of a block that are remembered, and those of them that are looked at.
const MOST_HOLDERS: usize = 32;
pub(super) const HOLDERS: usize = 8;
/// Conversations a slot that count for those that have begun lately.
const LATELY: u64 = 64;
/// A rank gets no new conversation for what it has when so many more than the mean and a quarter of it have begun there.
const CROWDED: u64 = 2;
/// Ranks of engines' lives that are told apart. After as many restarts all is forgotten.
const LIVES: usize = 65_536;
/// Blocks that are dealt with under one lock.
const AT_ONCE: usize = 128;

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
    /// Bytes of the prompt.
    bytes: u64,
}

/// That a rank was to compute a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meeting {
    rank: u32,
    met: u32,
}

/// A rank that has met a block, and when.
#[derive(Clone, Copy, Debug)]
struct Holder {
    rank: u32,
    met: u32,
}

/// A block.
#[derive(Debug)]
struct Block {
    /// Who met it last.
    holder: Holder,
    /// Others that have it.
    others: Vec<Holder>,
    /// Half of the hash of the block that came after it first; 0 if none has.
    next: u32,
}

impl Block {
    /// Bytes of its further holders, roughly.
    fn further(&self) -> usize {
        if self.others.is_empty() { 0 } else { FIRST + self.others.len() * FURTHER }
    }

    fn holders(&self) -> impl Iterator<Item = &Holder> {
        std::iter::once(&self.holder).chain(&self.others)
    }
}

/// By what blocks are told apart that come after the same one.
fn tag(next: Option<&u64>) -> u32 {
    next.map_or(0, |hash| (hash >> 32) as u32 | 1)
}

/// A rank of an engine's life.
#[derive(Debug)]
struct Rank {
    place: Place,
    /// It has lost whatever it met up to then.
    lost: u32,
    /// Conversations that have begun there lately.
    begun: u64,
    /// For how many prompts it was not believed when it disappointed last.
    doubt: u32,
    /// How often in a row it said nothing of what it had.
    untold: u32,
}

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

type Blocks = HashMap<u64, Block, BuildHasherDefault<AsItIs>>;

/// The guess.
pub(super) struct Prefixes {
    known: Mutex<Known>,
    /// Bytes of a generation.
    most: usize,
}

#[derive(Default)]
struct Known {
    /// What was met lately, and what was met before that. When the first is full it becomes the second, which is forgotten.
    young: Blocks,
    old: Blocks,
    /// Bytes of further holders of the young ones, roughly.
    further: usize,
    numbers: HashMap<Place, u32>,
    ranks: Vec<Rank>,
    /// Conversations that have begun lately, and slots that there were when somebody asked last.
    begun: u64,
    slots: usize,
    now: u32,
}

impl Known {
    fn holds(&self, holder: &Holder) -> bool {
        self.ranks.get(holder.rank as usize).is_some_and(|rank| holder.met > rank.lost)
    }

    fn block(&self, hash: u64) -> Option<&Block> {
        self.young.get(&hash).or_else(|| self.old.get(&hash))
    }

    /// Those of a block's holders that still have it, those where the fewest have begun first; of a beginning that others left for
    /// another end, only those that have not many more than `slots` ranks have on average.
    fn holders(&self, hash: u64, next: Option<&u64>, slots: usize) -> Option<[Option<Place>; HOLDERS]> {
        let block = self.block(hash)?;
        // By how many have begun there; of equals the one that met it last.
        let mut all = [((u64::MAX, 0), None); MOST_HOLDERS];
        let with = block.holders().filter(|holder| self.holds(holder)).map(|holder| {
            let rank = &self.ranks[holder.rank as usize];
            ((rank.begun, u32::MAX - holder.met), Some(rank.place))
        });
        all.iter_mut().zip(with).for_each(|(to, holder)| *to = holder);
        // Nobody has it any more.
        all[0].1?;
        let is_beginning = next.is_some() && block.next != 0 && block.next != tag(next);
        let most = self.begun / slots.max(1) as u64 * 5 / 4 + CROWDED;
        if is_beginning {
            all.iter_mut().filter(|((begun, _), _)| *begun > most).for_each(|holder| holder.1 = None);
        }
        all.sort_unstable_by_key(|(begun, place)| (place.is_none(), *begun));
        Some(std::array::from_fn(|number| all[number].1))
    }

    fn rank(&mut self, place: Place) -> u32 {
        if self.ranks.len() >= LIVES && !self.numbers.contains_key(&place) {
            *self = Known { now: self.now, ..Known::default() };
        }
        let Known { numbers, ranks, .. } = self;
        *numbers.entry(place).or_insert_with(|| {
            ranks.push(Rank { place, lost: 0, begun: 0, doubt: 0, untold: 0 });
            (ranks.len() - 1) as u32
        })
    }

    /// Bytes of the young generation with one block more.
    fn bytes(&self) -> usize {
        let blocks = self.young.capacity().max(self.young.len() + 1);
        // Tables have a power of two of places, of which an eighth stays free.
        (blocks * 8 / 7).next_power_of_two() * ENTRY + self.further
    }

    /// A rank meets a block. When it did last, if it has it still, and whether others went on elsewhere.
    fn meet(&mut self, hash: u64, next: u32, holder: Holder, most: usize) -> (Option<u32>, bool) {
        let young = self.young.remove(&hash);
        if let Some(block) = &young {
            self.further = self.further.saturating_sub(block.further());
        }
        let mut block = match young.or_else(|| self.old.remove(&hash)) {
            Some(block) => block,
            None => Block { holder, others: Vec::new(), next: 0 },
        };
        let before = block.holders().find(|other| other.rank == holder.rank && other.met < holder.met);
        let before = before.filter(|before| self.holds(before)).map(|before| before.met);
        if block.holder.rank != holder.rank {
            let last = std::mem::replace(&mut block.holder, holder);
            block.others.retain(|other| other.rank != holder.rank && self.holds(other));
            if block.others.len() < MOST_HOLDERS - 1 && self.holds(&last) {
                block.others.push(last);
            }
        }
        block.holder = holder;
        let is_left = next != 0 && block.next != 0 && block.next != next;
        if block.next == 0 {
            block.next = next;
        }
        if self.bytes() > most {
            (self.old, self.further) = (mem::take(&mut self.young), 0);
        }
        self.further += block.further();
        self.young.insert(hash, block);
        (before, is_left)
    }

    fn of(&mut self, place: Place, change: impl FnOnce(&mut Rank, u32)) {
        let (rank, now) = (self.rank(place), self.now);
        if let Some(rank) = self.ranks.get_mut(rank as usize) {
            change(rank, now);
        }
    }

    fn begin(&mut self, rank: u32) {
        if let Some(rank) = self.ranks.get_mut(rank as usize) {
            (rank.begun, self.begun) = (rank.begun + 1, self.begun + 1);
        }
        // Ranks of lives that have ended are remembered, too.
        if self.begun > LATELY * self.slots.max(1) as u64 {
            self.ranks.iter_mut().for_each(|rank| rank.begun /= 2);
            self.begun = self.ranks.iter().map(|rank| rank.begun).sum();
        }
    }
}

impl Prefixes {
    /// Nothing is known; so many bytes at most will be.
    pub(super) fn new(bytes: u64) -> Prefixes {
        Prefixes { known: Mutex::default(), most: usize::try_from(bytes).unwrap_or(usize::MAX) / 2 }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who has the longest beginning of a prompt with these blocks, and may go on with it, of so many slots.
    pub(super) fn longest(&self, blocks: &[u64], slots: usize) -> Longest {
        // From the end: where a block is known, so was all before it.
        let mut end = blocks.len();
        for part in blocks.rchunks(AT_ONCE) {
            let mut known = self.known();
            known.slots = slots;
            for block in part.iter().rev() {
                if let Some(holders) = known.holders(*block, blocks.get(end), slots) {
                    return Longest { blocks: end, holders };
                }
                end -= 1;
            }
        }
        Longest::default()
    }

    /// A rank is to compute a prompt with these blocks. What it is expected to have of it, if anything.
    pub(super) fn meet(&self, blocks: &[u64], place: Place) -> (Meeting, Option<Forecast>) {
        let holder = {
            let mut known = self.known();
            known.now = known.now.saturating_add(1);
            Holder { rank: known.rank(place), met: known.now }
        };
        let (mut had, mut last, mut is_beginning) = (0, 0, true);
        for (part, number) in blocks.chunks(AT_ONCE).zip(0..) {
            let mut known = self.known();
            for (block, at) in part.iter().zip(number * AT_ONCE..) {
                let (before, is_left) = known.meet(*block, tag(blocks.get(at + 1)), holder, self.most);
                if let Some(met) = before.filter(|_| had == at) {
                    (had, last, is_beginning) = (at + 1, met, is_left);
                }
            }
        }
        if is_beginning {
            self.known().begin(holder.rank);
        }
        let part = had as f64 / blocks.len() as f64;
        let bytes = (blocks.len() * BLOCK) as u64;
        let meeting = Meeting { rank: holder.rank, met: holder.met };
        (meeting, (had > 0).then_some(Forecast { place, part, met: last, bytes }))
    }

    /// It did not come to that: what the rank had of it before is not known any more.
    pub(super) fn unmeet(&self, blocks: &[u64], meeting: Meeting) {
        let is_it = |holder: &Holder| holder.rank == meeting.rank && holder.met == meeting.met;
        for part in blocks.chunks(AT_ONCE) {
            let mut known = self.known();
            let Known { young, further, .. } = &mut *known;
            for hash in part {
                let Some(block) = young.get_mut(hash) else { continue };
                let before = block.further();
                block.others.retain(|other| !is_it(other));
                let is_last = is_it(&block.holder) && block.others.pop().map(|other| block.holder = other).is_none();
                *further = (*further + block.further()).saturating_sub(before);
                if is_last {
                    young.remove(hash);
                }
            }
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
mod tests;
