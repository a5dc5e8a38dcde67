//! What a request waits for that finds no pair: probes, the first of new engines and a round of all that are not ready.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;

use crate::error::ProxyError;
use crate::pool::rounds::Rounds;
use crate::pool::{PROBE_WAIT, Pool};

/// What one request has waited for probes.
pub(super) struct Probes<'a> {
    /// When it began to.
    since: Option<tokio::time::Instant>,
    rounds: &'a Rounds,
    /// The round that it asked for.
    round: Option<u64>,
    is_over: bool,
}

impl<'a> Probes<'a> {
    /// For a request that may have to wait for them.
    pub(super) fn new(rounds: &'a Rounds) -> Probes<'a> {
        Probes { since: None, rounds, round: None, is_over: false }
    }

    /// Waits until something is known of the engines that was not in `pool`: a first probe's result, or what a round finds that
    /// was asked for by this request. False once nothing is to be waited for, or it took too long.
    pub(super) async fn may_help(&mut self, pool: &Pool, changes: &mut watch::Receiver<Arc<Pool>>) -> bool {
        let asks = pool.unhealthy > 0 && !self.is_over;
        if !asks && pool.probing == 0 {
            return false;
        }
        let since = *self.since.get_or_insert_with(tokio::time::Instant::now);
        let round = if asks { *self.round.get_or_insert_with(|| self.rounds.ask()) } else { 0 };
        tokio::select! {
            changed = changes.changed() => changed.is_ok(),
            () = self.rounds.over(round), if asks => {
                self.is_over = true;
                true
            }
            () = tokio::time::sleep_until(since + PROBE_WAIT) => false,
        }
    }
}

/// Nobody can be paired, and nothing is to be waited for.
pub(super) fn no_pair(pool: &Pool, now: Instant) -> ProxyError {
    ProxyError::NoPair {
        prefill: pool.prefill.len(),
        usable_prefill: pool.prefill.iter().filter(|e| e.is_usable(now)).count(),
        decode: pool.decode.len(),
        usable_decode: pool.decode.iter().filter(|e| e.is_usable(now)).count(),
        open_circuits: pool.open_circuits(now),
    }
}
