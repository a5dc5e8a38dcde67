//! The states of the four small machines that a transfer is made of. `docs/architecture.md` has them as drawings, which a test
//! holds to what happens.

use super::judging::{Expected, Judging};

/// How the attempt stands with its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    /// The client waits, and has got nothing.
    Dispatching,
    /// Decode's answer goes to the client, and has shown no output yet.
    Committed,
    /// The client has left or has its answer from elsewhere; what is owed to engines is left.
    Orphaned,
    /// Nothing is owed to anybody.
    Over,
}

/// How far prefill's leg is, and what it may have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prefill {
    /// It was not sent.
    Unsent,
    /// It looks for a connection.
    Sending,
    /// Its request is being written, or was.
    Started,
    /// Nobody wants it any more, but it must not be told before its end (protocol K6).
    Unwanted,
    /// It broke; whether its request was written whole is being asked.
    Broken,
    /// It answered 2xx.
    Answered,
    /// It answered 2xx, and nobody knows whether it has written (protocol O15) or will in time (protocol W11).
    Doubtful,
    /// It did nothing and will do nothing (protocol L1, L4), or was closed.
    Idle,
    /// It answered 400: it writes no more, but may have written (protocol L6).
    Rejected,
    /// It ended otherwise: it may have written, or be writing (protocol L5).
    Unclear,
}

/// How far decode's leg is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Decode {
    /// It was not sent.
    Unsent,
    /// It looks for a connection.
    Sending,
    /// Its request is being written, or was.
    Started,
    /// Its 2xx head has come, which proves nothing (protocol O1).
    Accepted,
    /// It has reported: it waits no longer (protocol O4).
    Reported,
    /// It broke before its first output; whether its request was written whole is being asked.
    Broken,
    /// Orphaned with its request written: it counts as waiting (protocol K8), in READ as not yet taken up (protocol D9).
    Waiting,
    /// The same after prefill's 2xx: the push wakes it (protocol K16).
    Expected(Expected),
    /// The same while prefill is told to stop (protocol K14).
    Doubted,
    /// Its engine's gauges are read (protocol K18).
    Judged(Judging),
    /// A wake is being sent; whether decode was known to have room for it.
    Woken(bool),
    /// It was woken, or could not be (protocol K24).
    Awaited(Expected),
    /// It ended, was closed or was revoked.
    Over,
}

/// Whose prefill's blocks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blocks {
    /// There are none, or the engine frees them by itself.
    Nobody,
    /// Ours to release.
    Ours,
    /// Decode's request is on its way: its reader's once that is written whole.
    Lent,
    /// Decode's: to read and release in READ, to receive in WRITE.
    Reader,
    /// Prefill was told of their release.
    Released,
    /// Left to prefill's own timer.
    Timer,
}

impl Attempt {
    pub(super) fn name(self) -> &'static str {
        match self {
            Attempt::Dispatching => "Dispatching",
            Attempt::Committed => "Committed",
            Attempt::Orphaned => "Orphaned",
            Attempt::Over => "Over",
        }
    }
}

impl Prefill {
    pub(super) fn name(self) -> &'static str {
        match self {
            Prefill::Unsent => "Unsent",
            Prefill::Sending => "Sending",
            Prefill::Started => "Started",
            Prefill::Unwanted => "Unwanted",
            Prefill::Broken => "Broken",
            Prefill::Answered => "Answered",
            Prefill::Doubtful => "Doubtful",
            Prefill::Idle => "Idle",
            Prefill::Rejected => "Rejected",
            Prefill::Unclear => "Unclear",
        }
    }

    /// Whether the leg has not come to its end.
    pub(super) fn runs(self) -> bool {
        matches!(self, Prefill::Sending | Prefill::Started | Prefill::Unwanted)
    }
}

impl Decode {
    pub(super) fn name(self) -> &'static str {
        match self {
            Decode::Unsent => "Unsent",
            Decode::Sending => "Sending",
            Decode::Started => "Started",
            Decode::Accepted => "Accepted",
            Decode::Reported => "Reported",
            Decode::Broken => "Broken",
            Decode::Waiting => "Waiting",
            Decode::Expected(_) => "Expected",
            Decode::Doubted => "Doubted",
            Decode::Judged(_) => "Judged",
            Decode::Woken(_) => "Woken",
            Decode::Awaited(_) => "Awaited",
            Decode::Over => "Over",
        }
    }

    /// Whether all that is known is that it waits: it has not reported, and its engine's gauges were not read.
    pub(super) fn surely_waits(self) -> bool {
        matches!(self, Decode::Accepted | Decode::Waiting | Decode::Doubted | Decode::Woken(_))
    }

    /// Whether the leg is seen to its end for nobody, with its request written.
    pub(super) fn is_orphan(self) -> bool {
        match self {
            Decode::Unsent | Decode::Sending | Decode::Started | Decode::Accepted => false,
            Decode::Reported | Decode::Broken | Decode::Over => false,
            Decode::Waiting | Decode::Expected(_) | Decode::Doubted => true,
            Decode::Judged(_) | Decode::Woken(_) | Decode::Awaited(_) => true,
        }
    }
}

impl Blocks {
    pub(super) fn name(self) -> &'static str {
        match self {
            Blocks::Nobody => "Nobody",
            Blocks::Ours => "Ours",
            Blocks::Lent => "Lent",
            Blocks::Reader => "Reader",
            Blocks::Released => "Released",
            Blocks::Timer => "Timer",
        }
    }
}
