//! What prefill keeps for its peers, from the end of its work until it is released, pushed or out of time.

use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::books::lock;
use super::core::Core;
use super::peer::Peer;
use super::state::{Held, Release, State};
use super::transfer::{push_if_due, report_failure};

/// Keeps a finished prefill's blocks, and starts its push if decode has asked already.
pub(crate) fn hold(core: &Arc<Core>, transfer: &str, rank: usize, blocks: Vec<u32>, peer: Option<Peer>, prompt: u64) {
    let held = Held {
        rank,
        blocks,
        deadline: Instant::now() + core.settings.defer_timeout,
        releases: std::collections::HashMap::new(),
        claimed_tp: peer.as_ref().map(|peer| peer.tp),
        target: peer.filter(|_| core.write()),
        prompt,
    };
    {
        let mut state = lock(&core.state);
        state.mapped.remove(transfer);
        if let Some(peer) = &held.target {
            state.layouts.insert(rank, peer.layout.clone());
        }
        if let Some(older) = state.held.insert(transfer.to_string(), held) {
            // The audit has spoken already; the older one's blocks are stranded as on a real engine.
            state.pools[older.rank].leak(older.blocks);
        }
    }
    apply_early(core, transfer);
    push_if_due(core, transfer);
}

/// Frees what nobody fetched in time. Real engines know no such end before 0.23.
pub(crate) async fn reap(core: Arc<Core>) {
    let pause = (core.settings.defer_timeout / 4).clamp(Duration::from_millis(20), Duration::from_secs(1));
    if core.minor < 23 {
        return;
    }
    loop {
        sleep(pause).await;
        let now = Instant::now();
        let due: Vec<(String, Option<Peer>)> = lock(&core.state)
            .held
            .iter()
            .filter(|(_, held)| held.deadline <= now)
            .map(|(transfer, held)| (transfer.clone(), held.target.clone()))
            .collect();
        for (transfer, peer) in due {
            if core.free_held(&transfer) {
                core.books.count(|counters| counters.reaped += 1);
            }
            if let Some(peer) = peer.filter(|_| core.write()) {
                report_failure(&core, &peer, &transfer);
            }
        }
    }
}

/// Applies the releases that came before the transfer was held.
fn apply_early(core: &Arc<Core>, transfer: &str) {
    let mut state = lock(&core.state);
    if let Some(releases) = state.early_releases.remove(transfer) {
        apply_releases(core, state, transfer, &releases);
    }
}

/// Applies releases to a transfer that is held, and frees it with the last one that is due.
pub(crate) fn apply_releases(
    core: &Arc<Core>,
    mut state: MutexGuard<'_, State>,
    transfer: &str,
    releases: &[(usize, u32, Release)],
) {
    let Some(held) = state.held.get_mut(transfer) else {
        return;
    };
    let (mut wrong, mut misplaced) = (None, None);
    for (rank, tp_rank, release) in releases {
        // Each data-parallel rank is a scheduler of its own, and knows its own transfers only.
        if *rank != held.rank {
            misplaced = Some((*rank, held.rank));
            continue;
        }
        let consumer = release.consumer_tp.unwrap_or(1);
        let entry = held.releases.entry(*tp_rank).or_insert((0, 1));
        entry.0 += 1;
        entry.1 = (consumer / core.settings.tp).max(1);
        // Size 1 is also what a proxy says that gives up a transfer in decode's place.
        if consumer > 1 {
            wrong = held.claimed_tp.filter(|claimed| *claimed != consumer).map(|claimed| (claimed, consumer));
        }
    }
    let complete = (0..core.settings.tp).all(|tp| held.releases.get(&tp).is_some_and(|(came, needed)| came >= needed));
    drop(state);
    if let Some((rank, own)) = misplaced {
        core.books.count(|counters| counters.misplaced_releases += 1);
        core.books.violation(format!("release of {transfer} came to rank {rank}, it is on {own}"));
    }
    if let Some((claimed, consumer)) = wrong {
        core.books.violation(format!("prefill leg says decode's tp size is {claimed}, it is {consumer}"));
    }
    if complete && core.free_held(transfer) {
        core.books.count(|counters| counters.released += 1);
    }
}
