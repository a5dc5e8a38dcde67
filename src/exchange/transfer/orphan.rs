//! What is owed to the engines once the client has left or has its answer from elsewhere. A leg that can be given up before its
//! request is written whole never was (protocol L1). Otherwise prefill's blocks need their reader or a release, and a WRITE
//! decode leg needs prefill's push, or a wake once none can come: closed before, it would lose its blocks (protocol K8), woken at
//! work, its engine (protocol K11).

use std::time::{Duration, Instant};

use super::judging::{Expected, Judging, TAKEN_UP, Verdict};
use super::states::{Attempt, Blocks, Decode, Prefill};
use super::words::{Acknowledged, Action, Left, Notice, Orphan, Plan, Releases};
use super::{Role, Transfer};

/// How long a prefill that has heard that it shall stop, but may have been writing, is left to end that (protocol K14): what is
/// written into a leg's blocks after the leg gave them back lands in another request's.
const STILL_WRITING: Duration = Duration::from_secs(2);
/// The same for a prefill that must not or could not be told: its own timer, by which it drops what decode did not ask for, and
/// a little.
const LEFT_ALONE: Duration = Duration::from_secs(63);

impl Transfer {
    /// Nobody waits for decode's answer any more.
    pub(super) fn give_up(&mut self) {
        self.deadline = None;
        match self.decode {
            Decode::Unsent | Decode::Over => self.give_prefill_up(),
            Decode::Reported => self.close_reported(),
            _ if self.terms.plan == Plan::Alone => self.close_decode(None),
            Decode::Sending | Decode::Started | Decode::Accepted => self.act(Action::Revoke(Role::Decode)),
            _ => {}
        }
    }

    /// Decode will not fetch or receive anything (protocol K5): prefill is given up, too (protocol K26).
    pub(super) fn give_prefill_up(&mut self) {
        match self.prefill {
            Prefill::Sending | Prefill::Started => self.act(Action::Revoke(Role::Prefill)),
            Prefill::Unwanted | Prefill::Broken => {}
            Prefill::Unsent | Prefill::Idle | Prefill::Rejected => self.over(),
            Prefill::Answered | Prefill::Doubtful | Prefill::Unclear => {
                if self.blocks == Blocks::Ours {
                    self.release();
                }
                self.over();
            }
        }
    }

    /// Tells prefill, where it can be told; says whether it was.
    fn release(&mut self) -> bool {
        let finished = matches!(self.prefill, Prefill::Answered | Prefill::Doubtful);
        match self.terms.releases {
            Releases::Always => {}
            Releases::Answered if finished => {}
            Releases::Answered => return self.leave(Left::TooEarly),
            Releases::Never => return self.leave(Left::NoMessage),
        }
        self.set_blocks(Blocks::Released);
        self.act(Action::Release);
        true
    }

    fn leave(&mut self, why: Left) -> bool {
        if self.blocks != Blocks::Nobody {
            self.set_blocks(Blocks::Timer);
            self.act(Action::Leave(why));
        }
        false
    }

    /// Prefill's engine never gets the whole of its request.
    pub(super) fn prefill_revoked(&mut self, now: Instant) {
        if self.prefill != Prefill::Broken {
            self.act(Action::Close(Role::Prefill));
        }
        self.set_prefill(Prefill::Idle);
        self.prefill_over(now);
    }

    /// Prefill's engine has its request.
    pub(super) fn prefill_written(&mut self, now: Instant) {
        match (self.prefill, self.terms.releases) {
            (Prefill::Broken, _) => {
                self.set_prefill(Prefill::Unclear);
                self.prefill_over(now);
            }
            (Prefill::Sending | Prefill::Started, Releases::Answered) => self.set_prefill(Prefill::Unwanted),
            (Prefill::Sending | Prefill::Started, Releases::Always | Releases::Never) => {
                self.act(Action::Close(Role::Prefill));
                self.set_prefill(Prefill::Unclear);
                self.prefill_over(now);
            }
            _ => {}
        }
    }

    /// Prefill's leg is over, and the client does not wait for decode.
    pub(super) fn prefill_over(&mut self, now: Instant) {
        match self.prefill {
            Prefill::Idle => self.set_blocks(Blocks::Nobody),
            Prefill::Rejected => {
                self.leave(Left::Rejected);
            }
            _ => {}
        }
        match self.decode {
            Decode::Waiting => self.wait_on(now),
            _ => self.give_up(),
        }
    }

    /// Decode's engine never gets the whole of its request.
    pub(super) fn decode_revoked(&mut self) {
        if self.decode != Decode::Broken {
            self.act(Action::Close(Role::Decode));
        }
        self.decode_refused();
    }

    /// Decode took nothing: what prefill holds is nobody's.
    pub(super) fn decode_refused(&mut self) {
        self.outcome = self.ended(Orphan::Refused);
        self.set_decode(Decode::Over);
        if matches!(self.blocks, Blocks::Lent | Blocks::Reader) {
            self.set_blocks(Blocks::Ours);
        }
        self.give_prefill_up();
    }

    /// Decode broke with its request written: it may read, or prefill may be writing (protocol D8, W10).
    pub(super) fn decode_broken(&mut self) {
        self.outcome = self.ended(Orphan::Broken);
        self.set_decode(Decode::Over);
        if matches!(self.blocks, Blocks::Lent | Blocks::Reader) {
            self.leave(Left::Reader);
        }
        self.see_prefill_out();
    }

    fn see_prefill_out(&mut self) {
        if self.prefill.runs() {
            self.act(Action::SeeOut);
        }
        self.over();
    }

    /// How an orphaned decode leg ended; nothing for a leg that was none.
    fn ended(&self, how: Orphan) -> Option<Orphan> {
        let is_orphan = self.is_write() && self.decode.is_orphan();
        is_orphan.then_some(match self.decode {
            Decode::Woken(_) => Orphan::Woken,
            Decode::Awaited(_) if self.woken => Orphan::Woken,
            _ => how,
        })
    }

    fn close_decode(&mut self, how: Option<Orphan>) {
        debug_assert!(!self.is_write() || !self.decode.surely_waits(), "{:?} is closed (protocol K8)", self.decode);
        self.outcome = how.and_then(|how| self.ended(how)).or(self.outcome);
        self.set_decode(Decode::Over);
        self.act(Action::Close(Role::Decode));
        self.see_prefill_out();
    }

    /// A leg that waits no longer may be closed: its engine frees its blocks (protocol K17, D9).
    fn close_reported(&mut self) {
        if matches!(self.blocks, Blocks::Lent | Blocks::Reader) {
            self.set_blocks(if self.is_write() { Blocks::Nobody } else { Blocks::Reader });
        }
        self.outcome = self.ended(Orphan::Written);
        self.set_decode(Decode::Reported);
        self.close_decode(None);
    }

    /// An orphan reports.
    pub(super) fn orphan_reported(&mut self) {
        if self.is_write() && matches!(self.decode, Decode::Waiting | Decode::Expected(_)) {
            self.act(Action::Met);
        }
        if self.decode.is_orphan() {
            self.close_reported();
        }
    }

    /// Decode's engine has its request, since `at`.
    pub(super) fn decode_written(&mut self, at: Instant, now: Instant) {
        if self.decode == Decode::Broken {
            return self.decode_broken();
        }
        if !matches!(self.decode, Decode::Sending | Decode::Started | Decode::Accepted) {
            return;
        }
        if self.blocks == Blocks::Lent {
            self.set_blocks(Blocks::Reader);
        }
        self.set_decode(Decode::Waiting);
        if self.is_write() {
            return self.wait_on(now);
        }
        self.act(Action::NotMet);
        // Its scheduler may not know of it before (protocol D10).
        let until = at + TAKEN_UP;
        self.deadline = Some(until);
        if now >= until {
            self.close_decode(None);
        }
    }

    /// What wakes an orphan, now that prefill is as it is (protocol K13 to K16).
    fn wait_on(&mut self, now: Instant) {
        let streams = self.terms.streams;
        match self.prefill {
            Prefill::Unsent | Prefill::Sending | Prefill::Started | Prefill::Unwanted | Prefill::Broken => {}
            Prefill::Answered => self.set_decode(Decode::Expected(Expected::push(now, self.terms.orphan, streams))),
            Prefill::Idle => {
                self.act(Action::NotMet);
                self.wake(false, now);
            }
            Prefill::Rejected => {
                self.act(Action::NotMet);
                self.judge(now, false, TAKEN_UP);
            }
            Prefill::Doubtful | Prefill::Unclear => {
                self.act(Action::NotMet);
                self.doubt(now);
            }
        }
    }

    /// Prefill is told to stop, before anything else is decided.
    fn doubt(&mut self, now: Instant) {
        if self.release() {
            self.set_decode(Decode::Doubted);
        } else {
            self.judge(now, false, LEFT_ALONE);
        }
    }

    fn judge(&mut self, now: Instant, stopped: bool, writes: Duration) {
        let (streams, patience) = (self.terms.streams, self.terms.first_output);
        self.set_decode(Decode::Judged(Judging::new(now, stopped, writes, (streams, patience))));
        self.act(Action::Look);
    }

    /// Ends the waiting of a leg into which nobody has written or will write; `admitted` if decode is known to have room for it.
    fn wake(&mut self, admitted: bool, now: Instant) {
        if self.terms.wakes {
            self.set_decode(Decode::Woken(admitted));
            self.act(Action::Wake);
        } else {
            // What is left is patience: closing the leg would lose its blocks, another end may still come (protocol K24, K25).
            self.set_decode(Decode::Awaited(Expected::wake(now, self.terms.wake, self.terms.streams, None)));
            self.act(Action::CannotWake);
        }
    }

    pub(super) fn acknowledged(&mut self, message: Notice, acknowledged: Acknowledged, now: Instant) {
        match (message, self.decode) {
            (Notice::Release, Decode::Doubted) => {
                // An engine that is gone writes nothing (protocol K22).
                let stopped = acknowledged != Acknowledged::No;
                self.judge(now, stopped, if stopped { STILL_WRITING } else { LEFT_ALONE });
            }
            (Notice::Wake, Decode::Woken(admitted)) => {
                self.woken = acknowledged == Acknowledged::Yes;
                let known = self.woken.then_some(admitted);
                self.set_decode(Decode::Awaited(Expected::wake(now, self.terms.wake, self.terms.streams, known)));
            }
            _ => {}
        }
    }

    pub(super) fn seen(&mut self, queue: Option<crate::upstream::gauges::Queue>, now: Instant) {
        let (closes, how) = match &mut self.decode {
            Decode::Expected(expected) => (expected.look(queue, now), Orphan::Closed),
            Decode::Awaited(expected) => (expected.look(queue, now), Orphan::Ended),
            Decode::Judged(judging) => {
                judging.look(queue, now);
                (false, Orphan::Ended)
            }
            _ => return,
        };
        if closes {
            self.close_decode(Some(how));
        }
    }

    /// What is due has come.
    pub(super) fn time_passed(&mut self, now: Instant) {
        match &mut self.decode {
            Decode::Expected(expected) | Decode::Awaited(expected) if !expected.is_over(now) => {
                expected.ask();
                self.act(Action::Look);
            }
            Decode::Expected(_) => {
                self.set_prefill(Prefill::Doubtful);
                self.act(Action::NotMet);
                self.doubt(now);
            }
            Decode::Awaited(_) => self.close_decode(Some(Orphan::Expired)),
            Decode::Judged(judging) => match judging.verdict(now) {
                Verdict::Close => self.close_decode(Some(Orphan::Ended)),
                Verdict::Wake => self.wake(true, now),
                Verdict::Again => self.act(Action::Look),
                Verdict::Lost => self.close_decode(Some(Orphan::Expired)),
            },
            Decode::Waiting => self.close_decode(None),
            _ if self.attempt == Attempt::Dispatching => self.client_waited(now),
            _ => {}
        }
    }
}
