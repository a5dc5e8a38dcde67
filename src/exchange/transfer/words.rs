//! What goes into the state machine of an attempt, and what comes out of it.

use std::time::{Duration, Instant};

use crate::engine::Role;
pub use crate::notify::Acknowledged;
use crate::upstream::failure::{Kind, Repeat};
use crate::upstream::gauges::Queue;

/// How a pair's KV moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Both legs at once, prefill pushes into decode (protocol W6). `serial`: decode's at prefill's 2xx.
    Write {
        /// `--write-dispatch serial`.
        serial: bool,
    },
    /// Prefill first, then decode with prefill's params (protocol D1, D2).
    Read,
    /// Prefill serves the request alone (protocol O14). Its leg is the one that answers: it goes by the name of decode's.
    Alone,
}

/// When prefill can be told that nobody will fetch or receive a transfer (protocol K3, K6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Releases {
    /// Never: its version knows no message, or messages are off (`--kv-release off`).
    Never,
    /// Once it has answered with a success.
    Answered,
    /// At any time.
    Always,
}

/// What an attempt is to be: what both engines understand, and how long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// How KV moves.
    pub plan: Plan,
    /// Whether the first output comes with the first token; otherwise it comes with the last.
    pub streams: bool,
    /// When prefill can be told of a release.
    pub releases: Releases,
    /// Whether decode's waiting can be ended by a message (protocol K10).
    pub wakes: bool,
    /// Decode's time for its first output, from prefill's 2xx (`--first-byte-timeout`, or `--answer-timeout` for an answer in
    /// one piece).
    pub first_output: Duration,
    /// The same for an orphan, whose first report is enough (`--first-byte-timeout`).
    pub orphan: Duration,
    /// READ: from prefill's 2xx until decode's request is on an open connection (`--hand-over-limit`).
    pub hand_over: Duration,
    /// A woken leg's time for its report (`--unpark-timeout`).
    pub wake: Duration,
}

/// What prefill's 2xx has in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// WRITE: a success. READ: transfer params that name blocks.
    Params,
    /// READ: no params, or none with blocks: it most likely holds nothing (protocol D3).
    Nothing,
    /// Prefill's message is the whole answer (protocol O15).
    Message,
}

/// A message to an engine's notify ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// To prefill.
    Release,
    /// To decode.
    Wake,
}

/// What happens to an attempt. Each is given at most once, unless it says otherwise, and nothing of a leg after its close.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event {
    /// The attempt begins.
    Start,
    /// A leg's request is being written to an open connection (protocol L1).
    Started(Role),
    /// Answers [`Action::Revoke`]: the engine never gets the whole of the request.
    Revoked(Role),
    /// Answers [`Action::Revoke`]: it was too late, the whole request was handed over at this moment.
    Written(Role, Instant),
    /// Prefill's whole 2xx.
    Answered(Answer),
    /// A leg ended without a success: prefill's, or decode's before its first output, an early error event included
    /// (protocol O9).
    Failed(Role, Kind),
    /// Decode's 2xx head.
    Head,
    /// A comment of a server that lives (protocol O2); any number.
    Comment,
    /// As much is kept as may be before the commit, without an output (protocol O13).
    Full,
    /// Decode's first report (protocol O4): it no longer waits.
    Report,
    /// Decode's first output (protocol O5), or the end of an answer without any. It implies the first report.
    Output,
    /// The time for the first output has passed with the head at the client: the relay's clock counts no time in which the client is slow.
    Overdue,
    /// The client has left, or the process stops waiting for it.
    ClientGone,
    /// What came of a message that an action sent.
    Acknowledged(Notice, Acknowledged),
    /// Answers [`Action::Look`]: decode's own word, if it has one.
    Seen(Option<Queue>),
    /// Answers [`Action::Another`]: whether there is another decode engine; if so, the driver has it.
    Another(bool),
    /// The moment of [`Transfer::due`](super::Transfer::due) has come; any number, and harmless too early.
    Due,
}

/// Whose failure the client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// What this leg failed of.
    Leg(Role),
    /// Decode's time for its first output has passed.
    FirstOutput,
    /// READ: decode did not take the hand-over in time (protocol D5).
    HandOver,
    /// READ: prefill's 2xx names no blocks (protocol D3).
    NoBlocks,
}

/// Why prefill's blocks are left to its own timer (protocol K1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Its version knows no message, or messages are off.
    NoMessage,
    /// It failed where it must not be told before its 2xx (protocol K6).
    TooEarly,
    /// It answered 400, which mostly leaves nothing (protocol L6).
    Rejected,
    /// Decode's connection broke: it may read or receive (protocol D8, W10).
    Reader,
}

/// How an orphaned WRITE decode leg ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Orphan {
    /// It reported.
    Written,
    /// It answered an error.
    Refused,
    /// Its connection broke.
    Broken,
    /// It was at work after prefill's 2xx, and was closed.
    Closed,
    /// It was at work, or never taken up, and was closed.
    Ended,
    /// It was woken.
    Woken,
    /// Its time was over: its blocks may be lost.
    Expired,
}

impl Orphan {
    /// The word for metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Orphan::Written => "written",
            Orphan::Refused => "refused",
            Orphan::Broken => "broken",
            Orphan::Closed => "closed",
            Orphan::Ended => "ended",
            Orphan::Woken => "unparked",
            Orphan::Expired => "expired",
        }
    }
}

/// What is to be done, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send this leg.
    Send(Role),
    /// Give this leg's request up if that is still possible, and answer by [`Event::Revoked`] or [`Event::Written`] once all of these
    /// actions are done. Of a leg that broke or ran into its limit this says whether its request was written whole.
    Revoke(Role),
    /// Close this leg.
    Close(Role),
    /// Prefill's leg runs to its own end, which is counted and otherwise of no interest.
    SeeOut,
    /// Decode's answer goes to the client from here on.
    Commit,
    /// Prefill's message goes to the client as the whole answer.
    CommitMessage,
    /// The client is told this, or another attempt follows.
    Fail(Cause, Repeat),
    /// Tell prefill that nobody will fetch or receive the transfer; answered by [`Event::Acknowledged`].
    Release,
    /// Prefill's blocks are left to its own timer, for this reason.
    Leave(Left),
    /// End decode's waiting; answered by [`Event::Acknowledged`].
    Wake,
    /// Decode's version knows no message that ends its waiting, or messages are off: that is counted.
    CannotWake,
    /// Ask decode for its queue; answered by [`Event::Seen`].
    Look,
    /// READ: take a decode engine that was not yet asked; answered by [`Event::Another`] once all of these actions are done.
    Another,
    /// The pair's engines know each other (protocol P4).
    Met,
    /// Nobody has to wait any longer for what comes of this pair's meeting (protocol P4).
    NotMet,
    /// Nothing more will come of the attempt, and nothing is owed to anybody. An orphaned WRITE decode leg ended like this.
    Over(Option<Orphan>),
}

/// An edge of one of the four machines (attempt, prefill's leg, decode's leg, blocks): from which state to which.
pub type Edge = (usize, &'static str, &'static str);
