//! What decode's gauges have said (protocol K18 to K20, K23).

use moriio_proxy::upstream::gauges::Queue;

use super::{Judge, Truth};
use crate::transfer::rules::{MS, Micros};

/// The last two looks in a row.
#[derive(Clone, Copy, Debug, Default)]
pub struct Looks {
    before: Option<Queue>,
    last: Option<Queue>,
    waits_for_one: bool,
    asked: u64,
    since: Option<Micros>,
}

impl Looks {
    pub fn seen(&mut self, queue: Option<Queue>) {
        (self.before, self.last, self.waits_for_one) = (self.last, queue, false);
    }

    /// No leg of the engine waits.
    pub fn none_waits(&self) -> bool {
        self.last.is_some_and(|queue| queue.deferred == 0.0 && queue.waiting == 0.0)
    }

    /// Tokens were made between two looks.
    pub fn new_tokens(&self) -> bool {
        self.before.zip(self.last).is_some_and(|(before, last)| last.tokens > before.tokens)
    }

    /// Nothing is queued for room in either of two looks in a row.
    pub fn nothing_queued(&self) -> bool {
        self.before.zip(self.last).is_some_and(|(before, last)| before.waiting == 0.0 && last.waiting == 0.0)
    }

    /// Two looks in a row say that the leg waits (protocol K20).
    pub fn says_waiting(&self, streams: bool) -> bool {
        let Some((before, last)) = self.before.zip(self.last) else { return false };
        let both = [before, last];
        let none_come = both.iter().all(|queue| queue.arrived.is_none_or(|arrived| arrived == 0.0));
        let tells = both.iter().all(|queue| queue.arrived.is_some());
        let idle = both.iter().all(|queue| queue.running == 0.0) && none_come;
        let left_out = streams && last.tokens > before.tokens && tells && none_come;
        self.nothing_queued() && last.deferred > 0.0 && (idle || left_out)
    }
}

impl Judge {
    pub(super) fn look(&mut self, now: Micros, truth: &Truth) {
        self.must(!self.looks.waits_for_one, "K18: a look while another is under way");
        // The driver keeps an engine's pace; no leg may make it ask without an end.
        let since = *self.looks.since.get_or_insert(now);
        self.must(self.looks.asked <= 10 + (now - since) / (90 * MS), "K18: decode is looked at without a pause");
        self.must(truth.live[1], "K18: a look for a leg that is over");
        self.must(self.orphaned.is_some(), "K18: a look for a leg that has its client");
        self.looks.waits_for_one = true;
        self.looks.asked += 1;
    }
}
