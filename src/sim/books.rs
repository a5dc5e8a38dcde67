//! What an engine remembers across its restarts: counters, received legs, violations and faults.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use tokio::sync::watch;

use super::fault::{Fault, FaultKind, LegFaults, Script};
use super::text::digest;

const LEGS_KEPT: usize = 1000;
const VIOLATIONS_KEPT: usize = 10_000;
/// How much of a leg's body is kept.
pub(crate) const BODY_KEPT: usize = 64 << 10;

/// Numbers of one engine. The last block are gauges; all others only grow, over restarts too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Pings handed to the DEALER.
    pub pings: u64,
    /// Generation requests received, whatever became of them.
    pub legs: u64,
    /// Of those, legs that a rank was found for, by the number of the rank.
    pub legs_by_rank: Vec<u64>,
    /// Of those, prefill legs taken up.
    pub prefill_legs: u64,
    /// Tokens in the prompts of prefill legs that began to be computed.
    pub prompt_tokens: u64,
    /// Of those, tokens that the prefix cache had.
    pub cached_tokens: u64,
    /// Of the legs, decode legs taken up.
    pub decode_legs: u64,
    /// Of the legs, requests without transfer params.
    pub plain: u64,
    /// Answered in full.
    pub completed: u64,
    /// Left by their client before the end, not counting parked ones.
    pub aborted: u64,
    /// Answered with a 4xx by validation.
    pub rejected: u64,
    /// Answered with a 5xx by the engine itself.
    pub failed: u64,
    /// Struck by a scripted fault.
    pub faulted: u64,
    /// Output tokens sent.
    pub tokens: u64,
    /// Handshakes made with peers.
    pub handshakes: u64,
    /// Blocks pulled or pushed by this engine.
    pub blocks_moved: u64,
    /// Transfers completed: pushed (WRITE prefill) or pulled (READ decode).
    pub transfers: u64,
    /// `remote_blocks` received.
    pub remote_blocks: u64,
    /// `write_done` received.
    pub write_done: u64,
    /// `release` received.
    pub releases: u64,
    /// Transfers freed by a release.
    pub released: u64,
    /// Releases of transfers that were over: real engines since 0.26 keep each for ever.
    pub stray_releases: u64,
    /// Releases that came to another rank than the transfer's, which keeps its blocks.
    pub misplaced_releases: u64,
    /// Transfers freed by the defer timeout.
    pub reaped: u64,
    /// KV written where it does not belong, or pushed to another engine than asked for it.
    pub kv_mismatch: u64,
    /// Parked requests whose client hung up.
    pub leaked_requests: u64,
    /// Blocks those took with them.
    pub leaked_blocks: u64,
    /// Parked requests woken without all their KV.
    pub woken_empty: u64,
    /// KV listeners that died of a message.
    pub deaf: u64,
    /// First contacts with a peer that met another first contact with it.
    pub first_contact_overlaps: u64,
    /// Times the engine process died of a request or transfer.
    pub died: u64,
    /// Times it ended because a decode engine did into which it was pushing; not among the deaths.
    pub ended_with_peer: u64,
    /// Why it died last.
    pub died_of: Option<String>,
    /// Violations recorded.
    pub violations: u64,
    /// Starts, the first included.
    pub incarnation: u64,
    /// Gauge: transfers held for a peer (prefill).
    pub held: u64,
    /// Gauge: blocks lost until restart.
    pub leaked: u64,
    /// Gauge: requests parked for their KV (decode).
    pub parked: u64,
    /// Gauge: requests computing or answering.
    pub running: u64,
    /// Gauge: requests waiting for blocks.
    pub waiting: u64,
    /// Gauge: blocks in use, held and leaked ones included.
    pub used_blocks: u64,
    /// Gauge: handshakes the whole engine is frozen by.
    pub frozen: u64,
    /// Gauge: HTTP connections open.
    pub connections: u64,
}

/// One generation request as it arrived.
#[derive(Clone, Debug, Serialize)]
pub struct ReceivedLeg {
    /// Counts the legs of this engine, from 1.
    pub sequence: u64,
    /// The path asked for.
    pub path: String,
    /// All headers, in order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// To which of the engine's hosts it came, from 0.
    pub host: usize,
    /// The body's length.
    pub body_length: usize,
    /// The body's first 64 KiB.
    pub body: String,
    /// The transfer params, whole, or null.
    pub transfer_params: Value,
}

impl ReceivedLeg {
    /// The first header of that name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON; null if it is none or was too long to keep.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }
}

#[derive(Default)]
struct Pages {
    counters: Counters,
    legs: VecDeque<ReceivedLeg>,
    violations: Vec<String>,
    script: Script,
    request_ids: HashSet<u64>,
    transfer_ids: HashSet<u64>,
}

/// Locks, whatever happened to earlier holders: every update here is complete in itself.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The books of one engine.
pub(crate) struct Books {
    pages: Mutex<Pages>,
    /// Which doors are closed by a fault.
    pub(crate) refuse: watch::Sender<bool>,
    pub(crate) handshake_closed: watch::Sender<bool>,
    pub(crate) notify_closed: watch::Sender<bool>,
    pub(crate) silent: watch::Sender<bool>,
}

impl Books {
    pub(crate) fn new() -> Self {
        Self {
            pages: Mutex::default(),
            refuse: watch::Sender::new(false),
            handshake_closed: watch::Sender::new(false),
            notify_closed: watch::Sender::new(false),
            silent: watch::Sender::new(false),
        }
    }

    /// Changes counters.
    pub(crate) fn count(&self, change: impl FnOnce(&mut Counters)) {
        change(&mut lock(&self.pages).counters);
    }

    pub(crate) fn counters(&self) -> Counters {
        lock(&self.pages).counters.clone()
    }

    pub(crate) fn violation(&self, text: impl Into<String>) {
        let mut pages = lock(&self.pages);
        pages.counters.violations += 1;
        if pages.violations.len() < VIOLATIONS_KEPT {
            pages.violations.push(text.into());
        }
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        lock(&self.pages).violations.clone()
    }

    pub(crate) fn legs(&self) -> Vec<ReceivedLeg> {
        lock(&self.pages).legs.iter().cloned().collect()
    }

    /// Enters a leg and takes the faults that strike it.
    pub(crate) fn enter(&self, mut leg: ReceivedLeg) -> LegFaults {
        let mut pages = lock(&self.pages);
        pages.counters.legs += 1;
        leg.sequence = pages.counters.legs;
        if pages.legs.len() == LEGS_KEPT {
            pages.legs.pop_front();
        }
        pages.legs.push_back(leg);
        let (faults, struck) = pages.script.strike_leg();
        pages.counters.faulted += u64::from(struck);
        faults
    }

    /// Whether this request id is new to the engine.
    pub(crate) fn fresh_request(&self, id: &str) -> bool {
        lock(&self.pages).request_ids.insert(digest(id.as_bytes()))
    }

    /// Whether this transfer id is new to the engine.
    pub(crate) fn fresh_transfer(&self, id: &str) -> bool {
        lock(&self.pages).transfer_ids.insert(digest(id.as_bytes()))
    }

    pub(crate) fn strike(&self, matches: impl Fn(&FaultKind) -> bool) -> Option<FaultKind> {
        let mut pages = lock(&self.pages);
        let kind = pages.script.strike(matches)?;
        pages.counters.faulted += 1;
        Some(kind)
    }

    pub(crate) fn arm(&self, fault: Fault) {
        lock(&self.pages).script.arm(fault);
        self.set_doors();
    }

    pub(crate) fn disarm(&self, kind: &FaultKind) {
        lock(&self.pages).script.disarm(kind);
        self.set_doors();
    }

    pub(crate) fn clear_faults(&self) {
        lock(&self.pages).script.clear();
        self.set_doors();
    }

    /// The time by which the next ping is late.
    pub(crate) fn lateness(&self) -> Duration {
        match self.strike(|kind| matches!(kind, FaultKind::LateHeartbeat { .. })) {
            Some(FaultKind::LateHeartbeat { milliseconds }) => Duration::from_millis(milliseconds),
            _ => Duration::ZERO,
        }
    }

    fn set_doors(&self) {
        let pages = lock(&self.pages);
        let armed = |wanted: FaultKind| pages.script.armed(|kind| *kind == wanted);
        for (door, closed) in [
            (&self.refuse, armed(FaultKind::RefuseConnections)),
            (&self.handshake_closed, armed(FaultKind::CloseHandshakePort)),
            (&self.notify_closed, armed(FaultKind::CloseNotifyPort)),
            (&self.silent, armed(FaultKind::StopPings)),
        ] {
            door.send_if_modified(|now| std::mem::replace(now, closed) != closed);
        }
    }
}
