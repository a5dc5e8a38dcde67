//! When `/health` begins to say yes.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::pool::Pool;

/// `/health` never falls back once it was 200: callers take a step back for a dead server and end the job (protocol E1).
pub(super) struct Health {
    waits: bool,
    reached: AtomicBool,
}

impl Health {
    pub(super) fn new(waits: bool) -> Self {
        Health { waits, reached: AtomicBool::new(false) }
    }

    pub(super) fn is_up(&self, pool: &Pool) -> bool {
        if !self.waits || self.reached.load(Ordering::Relaxed) {
            return true;
        }
        let up = pool.has_pair();
        self.reached.fetch_or(up, Ordering::Relaxed);
        up
    }
}
