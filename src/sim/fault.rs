//! Misbehaviour on script.

use serde::{Deserialize, Serialize};

/// What an engine does wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum FaultKind {
    /// The HTTP port is closed; idle connections close, running answers go on.
    RefuseConnections,
    /// Legs are answered with this status and body.
    Status {
        /// The status code.
        status: u16,
        /// The body, sent as JSON.
        body: String,
    },
    /// Prefill does its work, and answers with this status all the same.
    StatusAfterWork {
        /// The status code.
        status: u16,
    },
    /// Legs are read and never answered.
    Hang,
    /// Legs are taken up only after a while.
    Delay {
        /// How long.
        milliseconds: u64,
    },
    /// The answer stops after some tokens and the connection stays open.
    HangAfterTokens {
        /// Tokens sent before.
        tokens: usize,
    },
    /// A streamed answer tells an error after its 200, in its API's form; an answer in one piece has that status.
    ErrorEvent {
        /// The status that the error names.
        status: u16,
        /// Tokens sent before; 0: the engine never gets the request.
        tokens: usize,
    },
    /// Prefill's first token ends the text, unless the request keeps it from that: nothing is kept or pushed.
    EndsAtOnce,
    /// Decode's load fails once the request was taken up.
    LoadFails,
    /// A stream stays open after its last event.
    HangAfterDone,
    /// The connection ends before the answer, without any work.
    CutBeforeAnswer {
        /// With a TCP reset instead of a normal close.
        reset: bool,
    },
    /// The connection ends after some tokens.
    CutAfterTokens {
        /// Tokens sent before.
        tokens: usize,
        /// With a TCP reset instead of a normal close.
        reset: bool,
    },
    /// Prefill answers with `kv_transfer_params` null.
    NullTransferParams,
    /// Prefill's transfer params carry no block ids.
    NoBlockIds,
    /// Answers 200 with a body that is no JSON.
    UnparsableBody,
    /// `GET /health` says 503.
    Unhealthy,
    /// No pings.
    StopPings,
    /// The next ping comes this much later.
    LateHeartbeat {
        /// How much later.
        milliseconds: u64,
    },
    /// The handshake ports are closed.
    CloseHandshakePort,
    /// The notify ports are closed.
    CloseNotifyPort,
    /// A kept-alive connection closes when its next leg has been read, and the leg is not looked at.
    DieUnread,
}

/// A fault, for ever or for the next few occasions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// What goes wrong.
    #[serde(flatten)]
    pub kind: FaultKind,
    /// How many legs (or health checks, or pings) it lasts; absent: until cleared. Closed ports know no count.
    #[serde(default)]
    pub count: Option<u32>,
}

impl Fault {
    /// A fault that lasts until it is cleared.
    pub fn always(kind: FaultKind) -> Self {
        Self { kind, count: None }
    }

    /// A fault for the next `count` occasions.
    pub fn times(kind: FaultKind, count: u32) -> Self {
        Self { kind, count: Some(count) }
    }
}

/// The faults that strike one leg.
#[derive(Clone, Debug, Default)]
pub(crate) struct LegFaults {
    pub(crate) delay_milliseconds: Option<u64>,
    pub(crate) status: Option<(u16, String)>,
    pub(crate) status_after_work: Option<u16>,
    pub(crate) hang: bool,
    pub(crate) cut: Option<bool>,
    pub(crate) hang_after: Option<usize>,
    pub(crate) hang_after_done: bool,
    pub(crate) error_event: Option<(u16, usize)>,
    pub(crate) load_fails: bool,
    pub(crate) ends_at_once: bool,
    pub(crate) cut_after: Option<(usize, bool)>,
    pub(crate) null_params: bool,
    pub(crate) no_block_ids: bool,
    pub(crate) unparsable: bool,
}

impl LegFaults {
    /// Adds `kind` if it concerns single legs; says whether it does.
    fn add(&mut self, kind: &FaultKind) -> bool {
        match kind {
            FaultKind::Delay { milliseconds } => self.delay_milliseconds = Some(*milliseconds),
            FaultKind::Status { status, body } => self.status = Some((*status, body.clone())),
            FaultKind::StatusAfterWork { status } => self.status_after_work = Some(*status),
            FaultKind::Hang => self.hang = true,
            FaultKind::CutBeforeAnswer { reset } => self.cut = Some(*reset),
            FaultKind::HangAfterTokens { tokens } => self.hang_after = Some(*tokens),
            FaultKind::HangAfterDone => self.hang_after_done = true,
            FaultKind::ErrorEvent { status, tokens } => self.error_event = Some((*status, *tokens)),
            FaultKind::LoadFails => self.load_fails = true,
            FaultKind::EndsAtOnce => self.ends_at_once = true,
            FaultKind::CutAfterTokens { tokens, reset } => self.cut_after = Some((*tokens, *reset)),
            FaultKind::NullTransferParams => self.null_params = true,
            FaultKind::NoBlockIds => self.no_block_ids = true,
            FaultKind::UnparsableBody => self.unparsable = true,
            _ => return false,
        }
        true
    }
}

/// The faults now armed on one engine.
#[derive(Debug, Default)]
pub(crate) struct Script(Vec<Fault>);

impl Script {
    pub(crate) fn arm(&mut self, fault: Fault) {
        self.0.push(fault);
    }

    pub(crate) fn disarm(&mut self, kind: &FaultKind) {
        self.0.retain(|fault| fault.kind != *kind);
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Whether a fault is armed, without using it up.
    pub(crate) fn armed(&self, matches: impl Fn(&FaultKind) -> bool) -> bool {
        self.0.iter().any(|fault| matches(&fault.kind))
    }

    /// Uses up one occasion of the first fault that matches.
    pub(crate) fn strike(&mut self, matches: impl Fn(&FaultKind) -> bool) -> Option<FaultKind> {
        let index = self.0.iter().position(|fault| matches(&fault.kind))?;
        let kind = self.0[index].kind.clone();
        self.use_up(index);
        Some(kind)
    }

    /// Uses up one occasion of every fault that concerns a leg.
    pub(crate) fn strike_leg(&mut self) -> (LegFaults, bool) {
        let mut faults = LegFaults::default();
        let mut struck = false;
        let mut index = 0;
        while index < self.0.len() {
            let applies = faults.add(&self.0[index].kind.clone());
            struck |= applies;
            if !(applies && self.use_up(index)) {
                index += 1;
            }
        }
        (faults, struck)
    }

    /// Counts down; says whether the fault is gone.
    fn use_up(&mut self, index: usize) -> bool {
        let Some(count) = &mut self.0[index].count else {
            return false;
        };
        *count = count.saturating_sub(1);
        let gone = *count == 0;
        if gone {
            self.0.remove(index);
        }
        gone
    }
}
