//! When `/health` begins to say yes, and what `/ready` waits for beyond a pair.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::pool::{Engine, Pool};
use crate::settings::Expected;

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

/// Whether as many engines as are expected are among those that can be used.
pub(super) fn are_there(expected: &Expected, prefill: &[Arc<Engine>], decode: &[Arc<Engine>]) -> bool {
    let count = |engine: &Arc<Engine>| expected.count(engine.registration.dp_size);
    let sum = |engines: &[Arc<Engine>]| engines.iter().map(count).sum::<usize>();
    sum(prefill) >= expected.prefill && sum(decode) >= expected.decode
}
