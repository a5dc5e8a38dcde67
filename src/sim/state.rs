//! What one life of an engine changes: its memory, and its tables of transfers.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Range;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::cache::Cache;
use super::peer::{Layout, Peer};
use super::text::{BLOCK_BYTES, Block};

/// How many ended transfers prefill remembers.
const ENDED_KEPT: usize = 4096;

/// The KV memory of one data-parallel rank.
pub(crate) struct Pool {
    limit: u32,
    start: u32,
    next: u32,
    free: Vec<u32>,
    content: HashMap<u32, Block>,
    leaked: Vec<u32>,
    pub(crate) cache: Cache,
}

impl Pool {
    /// An empty pool of `limit` blocks, whose numbers begin at `start`.
    pub(crate) fn new(limit: u32, start: u32, cache: Cache) -> Self {
        Self { limit, start, next: 0, free: Vec::new(), content: HashMap::new(), leaked: Vec::new(), cache }
    }

    pub(crate) fn take(&mut self, count: usize) -> Option<Vec<u32>> {
        if (self.limit - self.next) as usize + self.free.len() < count {
            return None;
        }
        let ids: Vec<u32> = (0..count)
            .map(|_| match self.free.pop() {
                Some(id) => id,
                None => {
                    self.next += 1;
                    (self.start + self.next - 1) % self.limit
                }
            })
            .collect();
        for id in &ids {
            self.content.insert(*id, [0; BLOCK_BYTES]);
        }
        Some(ids)
    }

    /// Freed memory is forgotten at once: who reads it later gets zeros and shows it.
    pub(crate) fn give(&mut self, ids: Vec<u32>) {
        for id in &ids {
            self.content.remove(id);
        }
        self.free.extend(ids);
    }

    /// Blocks that nobody will ever give back.
    pub(crate) fn leak(&mut self, ids: Vec<u32>) {
        self.leaked.extend(ids);
    }

    pub(crate) fn leaked(&self) -> u64 {
        self.leaked.len() as u64
    }

    /// The process that had this memory is gone. Whoever still holds blocks of it gives them back in time.
    fn forget(&mut self) {
        self.content.clear();
        self.free.append(&mut self.leaked);
        self.cache.clear();
    }

    pub(crate) fn used(&self) -> u64 {
        self.content.len() as u64
    }

    pub(crate) fn exists(&self, id: u32) -> bool {
        id < self.limit
    }

    pub(crate) fn read(&self, id: u32) -> Block {
        self.content.get(&id).copied().unwrap_or_default()
    }

    pub(crate) fn block_mut(&mut self, id: u32) -> Option<&mut Block> {
        self.content.get_mut(&id)
    }
}

/// A transfer whose blocks prefill keeps for its peer.
pub(crate) struct Held {
    pub(crate) rank: usize,
    pub(crate) blocks: Vec<u32>,
    pub(crate) deadline: Instant,
    /// Per tensor-parallel rank: how many releases came and how many are needed.
    pub(crate) releases: HashMap<u32, (u32, u32)>,
    /// WRITE: where to push, until the push has begun.
    pub(crate) target: Option<Peer>,
    pub(crate) claimed_tp: Option<u32>,
    /// What prefill rendered.
    pub(crate) prompt: u64,
}

/// A decode request that waits for its KV.
pub(crate) struct Waiter {
    pub(crate) rank: usize,
    /// Per tensor-parallel rank: how many completions came and how many are needed.
    pub(crate) done: HashMap<u32, (u32, u32)>,
    pub(crate) wake: oneshot::Sender<Result<(), String>>,
}

/// Blocks on decode that a peer may write to.
pub(crate) struct Target {
    pub(crate) rank: usize,
    pub(crate) blocks: HashSet<u32>,
    /// Per block, one bit for each byte that came.
    pub(crate) written: HashMap<u32, u32>,
    pub(crate) claimed_tp: Option<u32>,
    /// What decode rendered.
    pub(crate) prompt: u64,
}

/// Blocks that a decode engine has set aside for a transfer.
#[derive(Clone, Debug)]
pub(crate) struct Allocation {
    pub(crate) blocks: Vec<u32>,
    /// Decode's own data-parallel rank.
    pub(crate) decode_rank: u32,
    /// Which prefill rank was asked, and which of its tensor-parallel ranks have heard of it.
    pub(crate) rank: usize,
    pub(crate) heard: Vec<u32>,
    /// The asking life's nonce, told only by simulated engines.
    pub(crate) sender: Option<u64>,
}

/// One release of a transfer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Release {
    pub(crate) consumer_tp: Option<u32>,
}

/// How far the request of a transfer is that the engine's tables know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Prefill computes it.
    Computing,
    /// Prefill's client left before the end; the table never forgets it.
    Aborted,
    /// Decode waits for its KV.
    Parked,
    /// Decode was told that its KV is there. It must not be told again.
    Woken {
        /// On which of its ranks.
        rank: usize,
    },
}

/// A place among the KV listeners of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Slot {
    pub(crate) host: usize,
    /// Above the base.
    pub(crate) offset: u32,
}

/// What the ranks of one host have to do.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    pub(crate) running: u64,
    pub(crate) waiting: u64,
    /// Requests among the running ones whose answers got lost between the scheduler and the client.
    pub(crate) lost: u64,
    pub(crate) connections: u64,
}

/// Everything that one life changes.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) pools: Vec<Pool>,
    pub(crate) held: HashMap<String, Held>,
    pub(crate) allocations: HashMap<String, Allocation>,
    /// Releases that came before their transfer was held, or to another rank: rank, tensor-parallel rank, release.
    pub(crate) early_releases: HashMap<String, Vec<(usize, u32, Release)>>,
    pub(crate) mapped: HashMap<String, Stage>,
    pub(crate) parked: HashMap<String, Waiter>,
    /// Completions that came before their request: rank, tensor-parallel rank, writers.
    pub(crate) early_completions: HashMap<String, Vec<(usize, u32, Option<u32>)>>,
    pub(crate) targets: HashMap<String, Target>,
    pub(crate) ended: HashSet<String>,
    ended_order: VecDeque<String>,
    /// By host.
    pub(crate) loads: Vec<Load>,
    /// Legs without a rank so far, by the host that got them.
    pub(crate) unpinned: Vec<usize>,
    pub(crate) deaf: HashSet<(bool, Slot)>,
    /// WRITE prefill: how the peer of each rank's latest leg is spread.
    pub(crate) layouts: HashMap<usize, Layout>,
}

impl State {
    pub(crate) fn new(pools: Vec<Pool>, hosts: usize) -> Self {
        Self { pools, loads: vec![Load::default(); hosts], unpinned: vec![0; hosts], ..Self::default() }
    }

    /// What the ranks of a host had is gone with them.
    pub(crate) fn lose(&mut self, host: usize, ranks: Range<usize>) {
        for pool in &mut self.pools[ranks.clone()] {
            pool.forget();
        }
        let (gone, held) = std::mem::take(&mut self.held).into_iter().partition(|(_, held)| ranks.contains(&held.rank));
        self.held = held;
        let gone: HashMap<String, Held> = gone;
        for held in gone.into_values() {
            self.pools[held.rank].give(held.blocks);
        }
        self.allocations.retain(|_, allocation| !ranks.contains(&allocation.rank));
        self.parked.retain(|_, waiter| !ranks.contains(&waiter.rank));
        self.targets.retain(|_, target| !ranks.contains(&target.rank));
        for releases in self.early_releases.values_mut() {
            releases.retain(|(rank, ..)| !ranks.contains(rank));
        }
        for completions in self.early_completions.values_mut() {
            completions.retain(|(rank, ..)| !ranks.contains(rank));
        }
        self.layouts.retain(|rank, _| !ranks.contains(rank));
        self.deaf.retain(|(_, slot)| slot.host != host);
    }

    /// Remembers that a transfer is over.
    pub(crate) fn end(&mut self, transfer: &str) {
        self.allocations.remove(transfer);
        self.early_releases.remove(transfer);
        if self.ended.insert(transfer.to_string()) {
            self.ended_order.push_back(transfer.to_string());
            if self.ended_order.len() > ENDED_KEPT
                && let Some(oldest) = self.ended_order.pop_front()
            {
                self.ended.remove(&oldest);
            }
        }
    }
}
