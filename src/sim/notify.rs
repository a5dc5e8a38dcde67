//! The notify ports: allocations and releases for prefill, completions for decode.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use tokio::net::TcpStream;

use super::books::lock;
use super::core::Core;
use super::handshake::go_deaf;
use super::held;
use super::mapped::perish;
use super::state::{Allocation, Release, Slot, Stage};
use super::transfer;
use super::zmtp::Connection;

/// Messages kept for requests that have not come. Real engines know no limit, and look at each in every step.
const EARLY_KEPT: usize = 4096;

/// Serves one connection to a notify port.
pub(crate) async fn serve(core: Arc<Core>, stream: TcpStream, slot: Slot) {
    let Ok(mut connection) = Connection::greet(stream, "ROUTER").await else {
        return;
    };
    while let Ok(message) = connection.receive().await {
        let deaf = lock(&core.state).deaf.contains(&(false, slot));
        if deaf {
            continue;
        }
        let handled = match message.as_slice() {
            [payload] => handle(&core, slot, payload),
            frames => Err(format!("a message of {} frames", frames.len())),
        };
        if let Err(reason) = handled {
            go_deaf(&core, false, slot, &reason);
        }
    }
}

/// An error is what the listener thread dies of.
fn handle(core: &Arc<Core>, slot: Slot, payload: &Bytes) -> Result<(), String> {
    match rmp_serde::from_slice::<Value>(payload) {
        Ok(message @ Value::Object(_)) => map(core, slot, &message),
        _ => text(core, slot, payload),
    }
}

fn map(core: &Arc<Core>, slot: Slot, message: &Value) -> Result<(), String> {
    let kind = match message.get("type") {
        Some(kind) => kind.as_str().unwrap_or_default(),
        None if message.get("req_id").is_some() => "remote_blocks",
        None => return Err("a map without type".into()),
    };
    let transfer = || -> Result<String, String> {
        let key = if core.minor <= 17 { "req_id" } else { "transfer_id" };
        Ok(message.get(key).and_then(Value::as_str).ok_or_else(|| format!("KeyError: {key}"))?.to_string())
    };
    let number = |key: &str| message.get(key).and_then(Value::as_u64).map(|number| number as u32);
    match (kind, core.prefill()) {
        ("remote_blocks", true) => remote_blocks(core, slot, transfer()?, message),
        ("write_done", false) if core.minor >= 24 => {
            write_done(core, slot, &transfer()?, number("num_writers"));
            Ok(())
        }
        ("write_failed", false) if core.minor >= 33 => {
            let transfer = transfer()?;
            let mut state = lock(&core.state);
            let (rank, _) = core.ranks(slot);
            let here = state.parked.get(&transfer).is_some_and(|waiter| waiter.rank == rank);
            if here && let Some(waiter) = state.parked.remove(&transfer) {
                state.mapped.insert(transfer, Stage::Woken { rank: waiter.rank });
                drop(state);
                // The request may be gone already; then nobody needs to know.
                let _ = waiter.wake.send(Err("KV transfer failed".into()));
            }
            Ok(())
        }
        ("release", true) if core.minor >= 24 => {
            release(core, slot, &transfer()?, Release { consumer_tp: number("consumer_tp_size") });
            Ok(())
        }
        (kind, prefill) => Err(format!("message of type {kind:?} on {}", if prefill { "prefill" } else { "decode" })),
    }
}

fn text(core: &Arc<Core>, slot: Slot, payload: &Bytes) -> Result<(), String> {
    let text = std::str::from_utf8(payload).map_err(|_| "bytes that are neither msgpack nor text".to_string())?;
    let fits = match core.minor {
        ..=17 => text.starts_with("cmpl"),
        18..=23 => text.starts_with("tx"),
        _ => true,
    };
    if !fits {
        return Err(format!("text {text:?}"));
    }
    if !core.prefill() {
        write_done(core, slot, text, None);
        return Ok(());
    }
    if core.minor <= 22 && !lock(&core.state).held.contains_key(text) {
        return Err(format!("release of unknown {text:?}"));
    }
    release(core, slot, text, Release { consumer_tp: None });
    Ok(())
}

fn remote_blocks(core: &Arc<Core>, slot: Slot, transfer: String, message: &Value) -> Result<(), String> {
    core.books.count(|counters| counters.remote_blocks += 1);
    let blocks: Vec<u32> = match message.get("block_notify_list") {
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_u64).map(|id| id as u32).collect(),
        _ => Vec::new(),
    };
    if blocks.is_empty() {
        return Err("empty block_notify_list".into());
    }
    let own = [("sim_peer_tp", core.settings.tp), ("sim_peer_dp", core.settings.dp)];
    for (key, size) in own {
        if let Some(claimed) = message.get(key).and_then(Value::as_u64).filter(|claimed| *claimed != u64::from(size)) {
            core.books.violation(format!("decode leg says {key} is {claimed}, prefill has {size}"));
        }
    }
    let (rank, tp_rank) = core.ranks(slot);
    {
        let mut state = lock(&core.state);
        if state.ended.contains(&transfer) {
            return Ok(());
        }
        let decode_rank = message.get("decode_rank").and_then(Value::as_u64).unwrap_or(0) as u32;
        let sender = message.get("sim_nonce").and_then(Value::as_u64);
        let allocation = state.allocations.entry(transfer.clone()).or_insert_with(|| Allocation {
            blocks,
            decode_rank,
            rank,
            heard: Vec::new(),
            sender,
        });
        if !allocation.heard.contains(&tp_rank) {
            allocation.heard.push(tp_rank);
        }
    }
    transfer::push_if_due(core, &transfer);
    Ok(())
}

fn write_done(core: &Arc<Core>, slot: Slot, transfer: &str, writers: Option<u32>) {
    core.books.count(|counters| counters.write_done += 1);
    let (rank, tp_rank) = core.ranks(slot);
    complete(core, transfer, rank, tp_rank, writers);
}

/// Applies the completions that came before their request was parked.
pub(crate) fn complete_early(core: &Arc<Core>, transfer: &str) {
    let early = lock(&core.state).early_completions.remove(transfer);
    for (rank, tp_rank, writers) in early.unwrap_or_default() {
        complete(core, transfer, rank, tp_rank, writers);
    }
}

fn complete(core: &Arc<Core>, transfer: &str, rank: usize, tp_rank: u32, writers: Option<u32>) {
    let mut state = lock(&core.state);
    if state.mapped.get(transfer) == Some(&Stage::Woken { rank }) {
        drop(state);
        return perish(core, "write_done for a request that no longer waits: the scheduler's assertion fails");
    }
    let Some(waiter) = state.parked.get_mut(transfer).filter(|waiter| waiter.rank == rank) else {
        // Kept until its request comes, for ever if none does.
        if core.minor >= 23 && state.early_completions.len() < EARLY_KEPT {
            state.early_completions.entry(transfer.to_string()).or_default().push((rank, tp_rank, writers));
        }
        return;
    };
    let entry = waiter.done.entry(tp_rank).or_insert((0, 1));
    entry.0 += 1;
    entry.1 = writers.unwrap_or(1);
    let complete = (0..core.settings.tp).all(|tp| waiter.done.get(&tp).is_some_and(|(came, needed)| came >= needed));
    if complete && let Some(waiter) = state.parked.remove(transfer) {
        state.mapped.insert(transfer.to_string(), Stage::Woken { rank });
        drop(state);
        // The request may be gone already; then nobody needs to know.
        let _ = waiter.wake.send(Ok(()));
    }
}

fn release(core: &Arc<Core>, slot: Slot, transfer: &str, release: Release) {
    core.books.count(|counters| counters.releases += 1);
    let (rank, tp_rank) = core.ranks(slot);
    let mut state = lock(&core.state);
    if state.held.contains_key(transfer) {
        return held::apply_releases(core, state, transfer, &[(rank, tp_rank, release)]);
    }
    match (state.mapped.get(transfer), core.minor) {
        (Some(_), ..=27) => {
            drop(state);
            perish(core, "release of a prefill that has not finished: the scheduler's assertion fails");
        }
        // Nothing is held, and nothing will be.
        (Some(Stage::Aborted), _) => {}
        (None, ..=25) => {}
        _ if state.ended.contains(transfer) => core.books.count(|counters| counters.stray_releases += 1),
        _ if state.early_releases.len() < EARLY_KEPT => {
            state.early_releases.entry(transfer.to_string()).or_default().push((rank, tp_rank, release));
        }
        _ => {}
    }
}
