//! A decode request that is parked until its KV has arrived.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::books::lock;
use super::core::{Blocks, Core, Site};
use super::mapped::Mapped;
use super::peer::Peer;
use super::state::{Stage, Target, Waiter};
use super::text::Prompt;

/// A parked request. Dropped while parked, it loses its blocks for good, as real engines do.
pub(crate) struct Arrival {
    core: Arc<Core>,
    site: Arc<Site>,
    transfer: String,
    blocks: Option<Blocks>,
    mapped: Option<Mapped>,
}

type Woken = oneshot::Receiver<Result<(), String>>;

impl Arrival {
    pub(crate) fn park(core: &Arc<Core>, transfer: &str, blocks: Blocks, prompt: Prompt, peer: &Peer) -> (Self, Woken) {
        let (wake, woken) = oneshot::channel();
        let rank = blocks.rank;
        let waiter = Waiter { rank, done: Default::default(), wake };
        let target = Target {
            rank,
            blocks: blocks.ids[..prompt.blocks()].iter().copied().collect(),
            written: Default::default(),
            claimed_tp: Some(peer.tp),
            prompt: prompt.digest,
        };
        let mapped = Some(Mapped::enter(core, transfer, Stage::Parked));
        let mut state = lock(&core.state);
        state.parked.insert(transfer.to_string(), waiter);
        state.targets.insert(transfer.to_string(), target);
        drop(state);
        (
            Self {
                core: core.clone(),
                site: core.site_of(rank),
                transfer: transfer.to_string(),
                blocks: Some(blocks),
                mapped,
            },
            woken,
        )
    }

    /// Ends the parking; says whether all KV had come.
    pub(crate) fn wake(mut self) -> (Blocks, Option<Mapped>, bool) {
        let target = lock(&self.core.state).targets.remove(&self.transfer);
        let complete =
            target.is_some_and(|target| target.blocks.iter().all(|id| target.written.get(id) == Some(&u32::MAX)));
        let blocks = self.blocks.take().unwrap_or_else(|| Blocks::of(&self.core, 0, Vec::new()));
        (blocks, self.mapped.take(), complete)
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        let Some(blocks) = self.blocks.take() else { return };
        if self.core.has_lost(&self.site) {
            return;
        }
        let (rank, ids) = (blocks.rank, blocks.into_ids());
        let lost = ids.len() as u64;
        let mut state = lock(&self.core.state);
        state.parked.remove(&self.transfer);
        state.pools[rank].leak(ids);
        drop(state);
        self.core.books.count(|counters| {
            counters.leaked_requests += 1;
            counters.leaked_blocks += lost;
        });
    }
}
