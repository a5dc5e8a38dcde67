//! A prefill engine and the blocks that it holds for one transfer.

use super::{Breach, Facts, Form, MS, Micros};

/// Time that a write may take to its end once nobody wants it any more; below the 2 s of protocol K14.
const UNDER_WAY: Micros = 1500 * MS;
/// The same after a 400, below the 1 s of protocol K15.
const AFTER_400: Micros = 800 * MS;

/// How far the request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// The engine has not got the whole request.
    Nothing,
    /// It has it, and has not begun.
    Queued,
    /// Turned away, or given up before it began.
    Refused,
    Computing,
    /// It ended by itself.
    Ended(Micros),
    /// Its client left while it computed.
    Aborted(Micros),
    /// The process that had it is gone.
    Gone,
}

/// Whose the blocks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocks {
    /// Never allocated.
    None,
    Held,
    Free,
    /// Freed by the engine's timer only.
    TimedOut,
    /// Gone with the process.
    Lost,
}

/// How far the push into decode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Push {
    /// Nothing is written.
    Idle,
    /// A write is under way, to its end at this time; whole if `write_done` follows.
    UnderWay { until: Micros, whole: bool },
    /// Everything was written, or nothing more will be.
    Over,
}

/// A prefill engine, as far as one transfer goes.
#[derive(Debug)]
pub struct Prefill {
    pub facts: &'static Facts,
    pub read: bool,
    pub work: Work,
    pub blocks: Blocks,
    push: Push,
    announced: bool,
    released: bool,
}

impl Prefill {
    pub fn new(facts: &'static Facts, read: bool) -> Prefill {
        Prefill {
            facts,
            read,
            work: Work::Nothing,
            blocks: Blocks::None,
            push: Push::Idle,
            announced: false,
            released: false,
        }
    }

    /// The whole request has come.
    pub fn take(&mut self) {
        if self.work == Work::Nothing {
            self.work = Work::Queued;
        }
    }

    /// It is turned away.
    pub fn refuse(&mut self) {
        if self.work == Work::Queued {
            self.work = Work::Refused;
        }
    }

    /// The request is admitted.
    pub fn begin(&mut self) {
        if self.work == Work::Queued {
            (self.work, self.blocks) = (Work::Computing, Blocks::Held);
        }
    }

    /// The request ends by itself. `holds` unless it ended otherwise than by its length limit (protocol K2); `writing` is the
    /// time that a push needs, none if the push comes to nothing. Says when a push is through.
    pub fn end(&mut self, holds: bool, writing: Option<Micros>, now: Micros) -> Option<Micros> {
        if self.work != Work::Computing {
            return None;
        }
        self.work = Work::Ended(now);
        let ends_here = self.released || !holds;
        if ends_here {
            self.blocks = Blocks::Free;
        }
        match (self.announced, ends_here) {
            (true, _) => self.push(writing.filter(|_| !self.released), now),
            (false, true) => {
                self.push = Push::Over;
                None
            }
            (false, false) => None,
        }
    }

    /// Decode has announced its blocks (protocol W1 to W3).
    pub fn announce(&mut self, writing: Option<Micros>, now: Micros) -> Option<Micros> {
        self.announced = true;
        match self.work {
            Work::Ended(_) if self.push == Push::Idle && self.blocks == Blocks::Held => self.push(writing, now),
            // Layers that were computed before the abort.
            Work::Aborted(at) if self.push == Push::Idle && !self.released && self.defers(at, now) => {
                self.push = Push::UnderWay { until: now + UNDER_WAY, whole: false };
                None
            }
            _ => None,
        }
    }

    fn push(&mut self, writing: Option<Micros>, now: Micros) -> Option<Micros> {
        let until = now + writing.unwrap_or(UNDER_WAY);
        self.push = Push::UnderWay { until, whole: writing.is_some() };
        writing.map(|_| until)
    }

    /// Whether a write that was put off is still to be made.
    fn defers(&self, end: Micros, now: Micros) -> bool {
        self.facts.timer.is_none_or(|timer| now < end + timer)
    }

    /// The push is through: says whether `write_done` goes to decode.
    pub fn written(&mut self, now: Micros) -> bool {
        if self.push != (Push::UnderWay { until: now, whole: true }) || self.work == Work::Gone {
            return false;
        }
        (self.push, self.blocks) = (Push::Over, Blocks::Free);
        true
    }

    /// What came of it is a 400: it does not write any more, and what it holds its timer frees (protocol L6, K15).
    pub fn rejected(&mut self, now: Micros) {
        match self.push {
            Push::UnderWay { until, whole } if until > now + AFTER_400 => {
                self.push = Push::UnderWay { until: now + AFTER_400, whole: whole && until == now + AFTER_400 };
            }
            Push::Idle => self.push = Push::Over,
            _ => {}
        }
    }

    /// Its client has left: it frees what it computes (protocol L3, K2). After its end that changes nothing. Says whether a
    /// transfer failed by it, which is reported from 0.33.0 (protocol W15).
    pub fn abort(&mut self, now: Micros) -> bool {
        match self.work {
            Work::Computing => {
                (self.work, self.blocks) = (Work::Aborted(now), Blocks::Free);
                if self.announced {
                    self.push = Push::UnderWay { until: now + UNDER_WAY, whole: false };
                }
                self.announced && self.facts.reports
            }
            Work::Nothing | Work::Queued => {
                self.work = Work::Refused;
                false
            }
            _ => false,
        }
    }

    /// A release of ours (protocol K3, K6, K7, K27).
    pub fn release(&mut self, form: Form, now: Micros) -> Result<(), Breach> {
        if !self.facts.releases.contains(&form) {
            return Err("K27: prefill was told in a form that its version does not know: it is ended or deaf");
        }
        if std::mem::replace(&mut self.released, true) {
            return Err("K7: a transfer was released twice");
        }
        match self.work {
            Work::Queued | Work::Computing | Work::Aborted(_) if !self.facts.keeps_early => {
                return Err("K6: a release for a prefill that computes, or was left while it did, ended the engine");
            }
            // Kept until its end, or for ever by one that never got the request.
            Work::Nothing | Work::Queued | Work::Computing | Work::Refused | Work::Gone => return Ok(()),
            Work::Aborted(_) | Work::Ended(_) => {}
        }
        self.free(now);
        Ok(())
    }

    /// Decode has read the blocks and says so (protocol D2).
    pub fn reader_done(&mut self, now: Micros) {
        if self.facts.read_frees {
            self.free(now);
        }
    }

    fn free(&mut self, now: Micros) {
        if self.blocks == Blocks::Held {
            self.blocks = Blocks::Free;
        }
        self.push = match self.push {
            Push::UnderWay { until, .. } => Push::UnderWay { until: until.min(now + UNDER_WAY), whole: false },
            _ => Push::Over,
        };
    }

    /// `defer_timeout` after the end. What is under way goes on.
    pub fn time_out(&mut self) {
        let ended = matches!(self.work, Work::Ended(_) | Work::Aborted(_));
        if ended && self.blocks == Blocks::Held && !matches!(self.push, Push::UnderWay { whole: true, .. }) {
            self.blocks = Blocks::TimedOut;
        }
        if ended && self.push == Push::Idle {
            self.push = Push::Over;
        }
    }

    /// The process ends.
    pub fn crash(&mut self) {
        if self.work != Work::Nothing {
            self.work = Work::Gone;
        }
        if self.blocks == Blocks::Held {
            self.blocks = Blocks::Lost;
        }
        self.push = Push::Over;
    }

    /// Whether anything may still be written into decode's blocks, now or once decode announces them (protocol K12).
    pub fn may_write(&self, now: Micros) -> bool {
        if self.read || self.work == Work::Gone {
            return false;
        }
        match (self.push, self.work) {
            (Push::UnderWay { until, .. }, _) => now < until,
            (Push::Over, _) | (_, Work::Nothing | Work::Refused) => false,
            (Push::Idle, Work::Ended(at) | Work::Aborted(at)) => !self.announced && self.defers(at, now),
            (Push::Idle, Work::Queued | Work::Computing) => true,
            (Push::Idle, Work::Gone) => false,
        }
    }

    /// Whether a write is being made at this moment.
    pub fn writes(&self, now: Micros) -> bool {
        let computing = self.work == Work::Computing && self.announced;
        computing || matches!(self.push, Push::UnderWay { until, .. } if now < until)
    }
}
