//! READ decode legs: an engine that loses its client before its scheduler knows of the request forgets it and leaves prefill
//! holding the blocks, while later it releases them. So a leg is kept that long, whatever its client does.

use std::time::Instant;

use tokio_util::task::TaskTracker;

use super::{DecodeLeg, Keeper, TAKEN_UP, Woken, first_byte};
use crate::notify::held::Held;

/// A READ decode leg that must not be closed at once.
pub struct Reading {
    tasks: TaskTracker,
    until: Instant,
    held: Held,
}

impl Reading {
    /// For a leg whose request was written at `since`, and prefill's blocks, which are decode's to release unless it refuses.
    pub fn new(keeper: &Keeper, since: Instant, mut held: Held) -> Self {
        held.let_go();
        Reading { tasks: keeper.tasks.clone(), until: since + TAKEN_UP, held }
    }

    /// Decode has taken nothing: prefill's blocks are nobody's.
    pub fn refused(mut self) {
        self.held.release();
    }

    /// Closes a leg that nobody reads any more, when its time has come.
    pub fn keep(self, decode: DecodeLeg) {
        let Reading { tasks, until, mut held } = self;
        if Instant::now() < until {
            tasks.spawn(async move {
                if let Ok(Woken::Refused) = tokio::time::timeout_at(until.into(), first_byte(decode)).await {
                    held.reclaim();
                }
            });
        }
    }
}
