//! Moving KV: prefill's push, decode's pull, and the release that decode owes for it.

use std::sync::Arc;

use super::books::lock;
use super::core::{Core, Site};
use super::data::{self, Access, Failure, shard};
use super::handshake::{audit_sizes, session, shares};
use super::notice;
use super::peer::{Metadata, Peer, port};
use super::state::Allocation;
use super::text::{BLOCK_BYTES, Block};

pub(crate) fn report_failure(core: &Core, peer: &Peer, transfer: &str) {
    if core.minor < 33 {
        return;
    }
    for dp in 0..peer.dp_size {
        for tp in 0..peer.tp {
            let (host, local) = peer.place(dp);
            core.notify(host, port(peer.notify, local + tp), notice::write_failed_message(transfer));
        }
    }
}

/// Starts the push of a transfer once both its KV and its allocation are there.
pub(crate) fn push_if_due(core: &Arc<Core>, transfer: &str) {
    if !core.write() {
        return;
    }
    let mut state = lock(&core.state);
    let Some(allocation) = state.allocations.get(transfer) else {
        return;
    };
    if allocation.heard.len() < core.settings.tp as usize {
        return;
    }
    let allocation = allocation.clone();
    let Some(held) = state.held.get_mut(transfer) else {
        return;
    };
    if held.rank != allocation.rank {
        core.books.violation(format!("{transfer} asked of rank {}, it is on {}", allocation.rank, held.rank));
        return;
    }
    let Some(peer) = held.target.take() else { return };
    let blocks = held.blocks.clone();
    drop(state);
    let (worker, transfer, host) = (core.clone(), transfer.to_string(), core.host_of(allocation.rank));
    core.spawn_on(host, async move { push(worker, transfer, blocks, peer, allocation).await });
}

async fn push(core: Arc<Core>, transfer: String, blocks: Vec<u32>, peer: Peer, allocation: Allocation) {
    match write_all(&core, &transfer, &blocks, &peer, &allocation).await {
        Ok(()) => {
            core.books.count(|counters| {
                counters.transfers += 1;
                counters.blocks_moved += blocks.len() as u64;
            });
            report_done(&core, &transfer, &peer, &allocation);
            core.free_held(&transfer);
        }
        Err(Failure::Stale(reason)) => {
            core.die(format!("transfer {transfer} to {}: {reason}", peer.host)).await;
        }
        Err(Failure::Gone(_)) => core.end_with_peer().await,
        Err(Failure::Refused(_)) => report_failure(&core, &peer, &transfer),
    }
}

async fn write_all(
    core: &Core,
    transfer: &str,
    blocks: &[u32],
    peer: &Peer,
    allocation: &Allocation,
) -> Result<(), Failure> {
    let size = core.settings.tp;
    for own in 0..size {
        for tp in shares(own, size, peer.tp) {
            let metadata = session(core, peer, allocation.decode_rank, tp)
                .ok_or_else(|| Failure::Refused("no session with that rank".into()))?;
            audit_sizes(core, peer, &metadata);
            if allocation.sender.is_some_and(|nonce| nonce != metadata.nonce) {
                core.books.count(|counters| counters.kv_mismatch += 1);
                core.books.violation(format!("{transfer} asked for by another engine than its prefill leg named"));
            }
            let bytes = overlap(own, size, tp, peer.tp);
            let mut content = Vec::with_capacity(blocks.len() * bytes.len());
            let prompt = {
                let state = lock(&core.state);
                let Some(held) = state.held.get(transfer) else {
                    return Err(Failure::Refused("released".into()));
                };
                for id in held.blocks.iter().take(allocation.blocks.len()) {
                    content.extend_from_slice(&state.pools[held.rank].read(*id)[bytes.clone()]);
                }
                held.prompt
            };
            let access = Access {
                nonce: metadata.nonce,
                dp_rank: metadata.dp_rank,
                tp_rank: metadata.tp_rank,
                transfer: transfer.to_string(),
                blocks: allocation.blocks.iter().take(blocks.len()).copied().collect(),
                start: bytes.start,
                end: bytes.end,
                tp_size: size,
                write: true,
                prompt,
            };
            data::access(core, &metadata, &access, &content).await?;
        }
    }
    Ok(())
}

/// The bytes of a block that both ranks own, as far as the asker knows.
fn overlap(own: u32, mine: u32, other: u32, theirs: u32) -> std::ops::Range<usize> {
    let (one, two) = (shard(own, mine), shard(other, theirs));
    let start = one.start.max(two.start);
    start..one.end.min(two.end).max(start)
}

fn report_done(core: &Core, transfer: &str, peer: &Peer, allocation: &Allocation) {
    let size = core.settings.tp;
    let writers = (size / peer.tp).max(1);
    // A worker of these releases has one place for hosts and local size, and the latest leg's are in it.
    let latest = lock(&core.state).layouts.get(&allocation.rank).cloned().filter(|_| (28..=30).contains(&core.minor));
    let layout = latest.as_ref().unwrap_or(&peer.layout);
    let (host, local) = peer.place_by(layout, allocation.decode_rank);
    if (host, local) != peer.place(allocation.decode_rank) {
        core.books.violation(format!("write_done of {transfer} goes to {host}: two decode engines at a time"));
    }
    for own in 0..size {
        let message = notice::write_done_message(core.minor, transfer, writers);
        if core.minor < 33 {
            core.notify(host, port(peer.notify, local + own), message);
            continue;
        }
        for tp in shares(own, size, peer.tp) {
            core.notify(host, port(peer.notify, local + tp), message.clone());
        }
    }
}

/// What READ decode owes to prefill: a release, also when the request ends before anything was read or the load fails.
pub(crate) struct Debt {
    pub(crate) core: Arc<Core>,
    pub(crate) site: Arc<Site>,
    pub(crate) request: String,
    pub(crate) transfer: String,
    pub(crate) peer: Peer,
}

impl Drop for Debt {
    fn drop(&mut self) {
        if !self.core.has_lost(&self.site) {
            release(&self.core, &self.request, &self.transfer, &self.peer);
        }
    }
}

/// Tells every rank of the peer that holds data for this engine that nobody will read it any more.
pub(crate) fn release(core: &Core, request: &str, transfer: &str, peer: &Peer) {
    let size = core.settings.tp;
    for own in 0..size {
        for tp in shares(own, size, peer.tp) {
            // Never folded: of a peer over several hosts it finds the first host's ranks alone.
            let offset = if core.minor <= 24 { own } else { peer.dp_rank * peer.tp + tp };
            core.notify(&peer.host, port(peer.notify, offset), notice::release_message(core, request, transfer));
        }
    }
}

/// READ decode: pulls the peer's blocks into `local`.
pub(crate) async fn pull(
    core: &Arc<Core>,
    transfer: &str,
    peer: &Peer,
    remote: &[u32],
    local: (usize, &[u32]),
    prompt: u64,
) -> Result<(), String> {
    if local.1.len() > remote.len() {
        core.books.violation(format!("{transfer}: the legs render different prompts, or blocks are missing"));
        return Err(format!("prompt needs {} blocks, the peer reported {}", local.1.len(), remote.len()));
    }
    let remote = &remote[..local.1.len()];
    let mut content = vec![[0u8; BLOCK_BYTES]; remote.len()];
    let size = core.settings.tp;
    for own in 0..size {
        for tp in shares(own, size, peer.tp) {
            let Some(metadata) = session(core, peer, peer.dp_rank, tp) else {
                continue;
            };
            audit_sizes(core, peer, &metadata);
            let bytes = overlap(own, size, tp, peer.tp);
            read_shard(core, (transfer, prompt), &metadata, remote, bytes, &mut content).await?;
        }
    }
    {
        let mut state = lock(&core.state);
        for (id, block) in local.1.iter().zip(&content) {
            if let Some(memory) = state.pools[local.0].block_mut(*id) {
                *memory = *block;
            }
        }
    }
    core.books.count(|counters| {
        counters.transfers += 1;
        counters.blocks_moved += remote.len() as u64;
    });
    Ok(())
}

async fn read_shard(
    core: &Core,
    (transfer, prompt): (&str, u64),
    metadata: &Metadata,
    remote: &[u32],
    bytes: std::ops::Range<usize>,
    content: &mut [Block],
) -> Result<(), String> {
    let access = Access {
        nonce: metadata.nonce,
        dp_rank: metadata.dp_rank,
        tp_rank: metadata.tp_rank,
        transfer: transfer.to_string(),
        blocks: remote.to_vec(),
        start: bytes.start,
        end: bytes.end,
        tp_size: core.settings.tp,
        write: false,
        prompt,
    };
    match data::access(core, metadata, &access, &[]).await {
        Ok(data) => {
            for (block, part) in content.iter_mut().zip(data.chunks(bytes.len().max(1))) {
                block[bytes.clone()].copy_from_slice(part);
            }
            Ok(())
        }
        Err(Failure::Stale(reason) | Failure::Gone(reason) | Failure::Refused(reason)) => {
            Err(format!("KV load failed: {reason}"))
        }
    }
}
