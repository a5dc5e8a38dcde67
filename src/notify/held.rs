//! A prefill engine's blocks for one transfer, and who has them.

use std::sync::Arc;

use super::{Heard, Hears, Notifier, all};
use crate::engine::versions::ReleaseForm;
use crate::pool::Engine;
use crate::upstream::Sent;

/// A prefill engine's blocks for one transfer, as long as it is certain that nobody reads or writes them: dropping this
/// releases them, unless they were let go.
#[derive(Debug)]
pub struct Held {
    notifier: Notifier,
    prefill: Arc<Engine>,
    rank: u32,
    transfer_id: String,
    armed: bool,
    /// Once prefill was told, or has nothing to be told.
    told: Option<Vec<Hears>>,
    finished: bool,
    reader: Option<Arc<Sent>>,
}

impl Held {
    /// Takes responsibility for the blocks of a transfer.
    pub fn new(notifier: &Notifier, prefill: &Arc<Engine>, rank: Option<u32>, transfer_id: &str) -> Self {
        let (notifier, prefill) = (notifier.clone(), prefill.clone());
        Held {
            notifier,
            prefill,
            rank: rank.unwrap_or(0),
            transfer_id: transfer_id.to_owned(),
            armed: true,
            told: None,
            finished: false,
            reader: None,
        }
    }

    /// Moves the responsibility elsewhere.
    pub fn take(&mut self) -> Held {
        Held {
            notifier: self.notifier.clone(),
            prefill: self.prefill.clone(),
            rank: self.rank,
            transfer_id: std::mem::take(&mut self.transfer_id),
            armed: std::mem::take(&mut self.armed),
            told: self.told.replace(Vec::new()),
            finished: self.finished,
            reader: self.reader.take(),
        }
    }

    /// Prefill has answered: what it holds it holds already.
    pub fn finished(&mut self) {
        self.finished = true;
    }

    /// READ: prefill says which rank holds the blocks.
    pub fn rank(&mut self, rank: u32) {
        self.rank = rank;
    }

    /// The blocks have a reader or writer, or were never allocated: nothing is to be released.
    pub fn let_go(&mut self) {
        self.armed = false;
    }

    /// Decode's request is on its way: once it is written the blocks are the reader's.
    pub fn lend(&mut self, request: Arc<Sent>) {
        self.reader = Some(request);
    }

    /// The reader or writer refused: the blocks are nobody's again.
    pub fn reclaim(&mut self) {
        self.reader = None;
        self.armed = true;
    }

    /// Whether prefill can be told, but only once it has finished.
    pub fn must_wait(&self) -> bool {
        let traits = self.prefill.traits;
        let can_be_told = self.notifier.queue.is_some() && traits.release != ReleaseForm::None;
        can_be_told && !self.finished && !traits.early_release
    }

    /// Prefill holds nothing that it must be told of.
    pub fn nothing_to_tell(&mut self) {
        self.armed = false;
        self.told = Some(Vec::new());
    }

    /// Releases the blocks now, whoever had them; once.
    pub fn release(&mut self) {
        self.armed = false;
        if self.told.is_none() {
            self.told = Some(self.notifier.release(
                &self.prefill.registration,
                self.prefill.traits,
                self.rank,
                &self.transfer_id,
                self.finished,
            ));
        }
    }

    /// Releases the blocks, and says whether prefill has heard of it. An engine that is gone counts as one that has.
    pub async fn released(&mut self) -> bool {
        self.release();
        all(self.told.replace(Vec::new()).unwrap_or_default(), &[Heard::Yes, Heard::Closed]).await
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.armed && self.reader.as_ref().is_none_or(|request| request.revoke()) {
            self.release();
        }
    }
}
