//! Rounds of probes for requests that find no pair: what a probe said before the request came is no reason to refuse it, since an
//! engine may have come up meanwhile.

use tokio::sync::{Notify, watch};

/// Asks for rounds, and tells of their ends. In a round every engine that is not ready is probed once more.
#[derive(Debug)]
pub struct Rounds {
    wanted: Notify,
    /// Rounds that have begun, and those of them that are over.
    counts: watch::Sender<(u64, u64)>,
}

impl Default for Rounds {
    fn default() -> Self {
        Rounds { wanted: Notify::new(), counts: watch::Sender::new((0, 0)) }
    }
}

impl Rounds {
    /// Asks for a round that begins after this; the number of it is for [`Rounds::over`].
    pub fn ask(&self) -> u64 {
        let next = self.counts.borrow().0 + 1;
        self.wanted.notify_one();
        next
    }

    /// Resolves at the end of a round. Without a limit of its own.
    pub async fn over(&self, round: u64) {
        // The sender is in `self`.
        let _ = self.counts.subscribe().wait_for(|(_, over)| *over >= round).await;
    }

    /// Resolves when somebody waits for a round.
    pub(crate) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// A round begins.
    pub(crate) fn begin(&self) {
        self.counts.send_modify(|(begun, _)| *begun += 1);
    }

    /// The round that began last is over, and what it found is published.
    pub(crate) fn end(&self) {
        self.counts.send_modify(|(begun, over)| *over = *begun);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::Rounds;

    #[tokio::test]
    async fn a_round_that_had_begun_is_not_enough() {
        let rounds = Rounds::default();
        rounds.begin();
        let mine = rounds.ask();
        rounds.wanted().now_or_never().expect("it is wanted");
        rounds.end();
        assert!(rounds.over(mine).now_or_never().is_none());
        rounds.begin();
        rounds.end();
        rounds.over(mine).now_or_never().expect("it is over");
        assert!(rounds.wanted().now_or_never().is_none());
    }
}
