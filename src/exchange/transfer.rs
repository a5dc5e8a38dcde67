//! The truth about one attempt, as a pure state machine: what happened goes in with the time at which it did, what is to be
//! done comes out. It alone knows when a leg may be closed, when prefill may be told of a release and decode be woken, when
//! an answer goes to the client and what may be repeated.
//!
//! It is made of four small machines (`states.rs`): the attempt, each leg, and whose prefill's blocks are. This file is the time
//! in which the client waits, `orphan.rs` what is owed to the engines after that.

mod edges;
mod judging;
mod orphan;
mod states;
mod words;

use std::time::{Duration, Instant};

use crate::engine::Role;
use crate::upstream::failure::{Kind, Repeat};
use states::{Attempt, Blocks, Decode, Prefill};

pub use words::{Acknowledged, Action, Answer, Cause, Edge, Event, Left, Notice, Orphan, Plan, Releases, Terms};

/// One attempt.
#[derive(Debug)]
pub struct Transfer {
    terms: Terms,
    attempt: Attempt,
    prefill: Prefill,
    decode: Decode,
    blocks: Blocks,
    /// Until when what is being waited for has to come, where a leg's state does not say it.
    deadline: Option<Instant>,
    /// When it became decode's turn, if the client waited: its time for the hand-over and for its first output counts from then.
    from: Option<Instant>,
    /// Whether a wake was sent and acknowledged.
    woken: bool,
    /// How an orphaned decode leg ended.
    outcome: Option<Orphan>,
    todo: Vec<Action>,
    edges: Vec<Edge>,
}

impl Transfer {
    /// An attempt that has not begun.
    pub fn new(terms: Terms) -> Self {
        Transfer {
            terms,
            attempt: Attempt::Dispatching,
            prefill: Prefill::Unsent,
            decode: Decode::Unsent,
            blocks: Blocks::Nobody,
            deadline: None,
            from: None,
            woken: false,
            outcome: None,
            todo: Vec::new(),
            edges: Vec::new(),
        }
    }

    /// Decode's limits, client or none, for what is waited for from now on, and for a hand-over that is under way (protocol P6).
    pub fn set_limits(&mut self, first_output: Duration, orphan: Duration) {
        (self.terms.first_output, self.terms.orphan) = (first_output, orphan);
    }

    /// Takes what has happened, and adds what is to be done.
    pub fn on(&mut self, event: Event, now: Instant, actions: &mut Vec<Action>) {
        if self.attempt != Attempt::Over {
            match event {
                Event::Start => self.start(now),
                Event::Started(Role::Prefill) => self.prefill_started(),
                Event::Started(Role::Decode) => self.decode_started(),
                Event::Revoked(Role::Prefill) => self.prefill_revoked(now),
                Event::Written(Role::Prefill, _) => self.prefill_written(now),
                Event::Revoked(Role::Decode) => self.decode_revoked(),
                Event::Written(Role::Decode, at) => self.decode_written(at, now),
                Event::Answered(answer) => self.answered(answer, now),
                Event::Failed(Role::Prefill, kind) => self.prefill_failed(kind, now),
                Event::Failed(Role::Decode, kind) => self.decode_failed(kind),
                Event::Head => self.accepted(),
                Event::Comment | Event::Full => self.signs_of_life(),
                Event::Report => self.reported(),
                Event::Output => self.output(),
                Event::Overdue => self.overdue(),
                Event::ClientGone => self.client_gone(),
                Event::Acknowledged(message, acknowledged) => self.acknowledged(message, acknowledged, now),
                Event::Seen(queue) => self.seen(queue, now),
                Event::Another(found) => self.another(found, now),
                Event::Due if self.due().is_some_and(|due| now >= due) => self.time_passed(now),
                Event::Due => {}
            }
        }
        actions.append(&mut self.todo);
    }

    /// When [`Event::Due`] is to be given, if at all.
    pub fn due(&self) -> Option<Instant> {
        match self.decode {
            Decode::Expected(expected) | Decode::Awaited(expected) => expected.due(),
            Decode::Judged(judging) => judging.due(),
            _ => self.deadline,
        }
    }

    /// Whether it is over.
    pub fn is_over(&self) -> bool {
        self.attempt == Attempt::Over
    }

    /// Whether a WRITE decode leg is being seen to its end for nobody.
    pub(crate) fn is_orphaned(&self) -> bool {
        let sent = !matches!(self.decode, Decode::Unsent | Decode::Over);
        self.attempt == Attempt::Orphaned && self.is_write() && sent
    }

    fn is_write(&self) -> bool {
        matches!(self.terms.plan, Plan::Write { .. })
    }

    fn act(&mut self, action: Action) {
        self.todo.push(action);
    }

    /// The client is told a failure; what is owed to the engines is left.
    fn fail(&mut self, cause: Cause, repeat: Repeat) {
        self.act(Action::Fail(cause, repeat));
        self.set_attempt(Attempt::Orphaned);
        self.deadline = None;
    }

    fn over(&mut self) {
        self.set_attempt(Attempt::Over);
        self.act(Action::Over(self.outcome));
    }

    fn start(&mut self, now: Instant) {
        if self.terms.plan == Plan::Alone {
            self.set_decode(Decode::Sending);
            self.deadline = Some(now + self.terms.first_output);
            self.act(Action::Send(Role::Decode));
        } else {
            self.set_prefill(Prefill::Sending);
            self.set_blocks(Blocks::Ours);
            self.act(Action::Send(Role::Prefill));
        }
    }

    /// WRITE: decode is asked once prefill's connection is up, so that a refused prefill harms nobody (protocol W6).
    fn prefill_started(&mut self) {
        if self.prefill == Prefill::Sending {
            self.set_prefill(Prefill::Started);
            if self.attempt == Attempt::Dispatching && self.terms.plan == (Plan::Write { serial: false }) {
                self.send_decode();
            }
        }
    }

    fn send_decode(&mut self) {
        self.set_decode(Decode::Sending);
        self.set_blocks(Blocks::Lent);
        self.act(Action::Send(Role::Decode));
    }

    /// READ: the hand-over is done in time (protocol D5); what is left is the limit on the first output.
    fn decode_started(&mut self) {
        if self.decode == Decode::Sending {
            self.set_decode(Decode::Started);
            if self.terms.plan == Plan::Read && self.attempt == Attempt::Dispatching {
                self.deadline = self.from.map(|from| from + self.terms.first_output);
            }
        }
    }

    /// Prefill's 2xx. Decode's clock begins (protocol O12).
    fn answered(&mut self, answer: Answer, now: Instant) {
        let client_waits = self.attempt == Attempt::Dispatching;
        match answer {
            Answer::Message => {
                // It ended by itself and holds nothing (protocol K2); whether it has pushed before is not known (protocol O15).
                self.set_prefill(Prefill::Doubtful);
                self.set_blocks(Blocks::Nobody);
                if client_waits {
                    self.act(Action::CommitMessage);
                    self.set_attempt(Attempt::Orphaned);
                }
            }
            Answer::Nothing => {
                self.set_prefill(Prefill::Unclear);
                if client_waits {
                    self.fail(Cause::NoBlocks, Repeat::Never);
                }
            }
            Answer::Params => {
                self.set_prefill(Prefill::Answered);
                if client_waits {
                    return self.hand_over(now);
                }
            }
        }
        self.prefill_over(now);
    }

    /// Prefill is done, and the client waits: it is decode's turn.
    fn hand_over(&mut self, now: Instant) {
        self.from = Some(now);
        self.limit_hand_over();
        match self.decode {
            Decode::Unsent => self.send_decode(),
            Decode::Accepted | Decode::Reported => self.commit(),
            _ => {}
        }
    }

    /// Until when decode's first output has to come, or in READ before that its connection (protocol D5).
    fn limit_hand_over(&mut self) {
        let mut limit = self.terms.first_output;
        if self.terms.plan == Plan::Read {
            limit = limit.min(self.terms.hand_over);
        }
        self.deadline = self.from.map(|from| from + limit);
    }

    /// Decode's answer goes to the client (protocol W7, D12).
    fn commit(&mut self) {
        self.act(Action::Commit);
        self.set_attempt(Attempt::Committed);
        self.deadline = None;
    }

    fn accepted(&mut self) {
        if matches!(self.decode, Decode::Sending | Decode::Started) {
            self.set_decode(Decode::Accepted);
            if self.attempt == Attempt::Dispatching && self.is_write() && self.prefill == Prefill::Answered {
                self.commit();
            }
        }
    }

    /// Whoever turned comments on wants them in time, and no more is kept than so much. In WRITE neither proves anything
    /// before prefill's 2xx, after which nothing is kept back (protocol W7, O13).
    fn signs_of_life(&mut self) {
        if self.attempt == Attempt::Dispatching && !self.is_write() {
            self.commit();
        }
    }

    /// Decode no longer waits. In WRITE everything was written by then, or its load has failed.
    fn reported(&mut self) {
        match self.attempt {
            Attempt::Orphaned => self.orphan_reported(),
            Attempt::Dispatching | Attempt::Committed if self.decode != Decode::Reported => {
                self.set_decode(Decode::Reported);
                self.act(Action::Met);
            }
            _ => {}
        }
    }

    /// After the first output nothing is owed to either engine (protocol O11, W12).
    fn output(&mut self) {
        self.reported();
        if self.attempt == Attempt::Orphaned || self.attempt == Attempt::Over {
            return;
        }
        if self.attempt == Attempt::Dispatching {
            self.commit();
        }
        self.set_blocks(Blocks::Nobody);
        if self.prefill.runs() {
            self.act(Action::SeeOut);
        }
        self.over();
    }

    /// Prefill ended without a success. The client hears of it now (protocol W8, D15).
    fn prefill_failed(&mut self, kind: Kind, now: Instant) {
        debug_assert!(self.terms.plan != Plan::Alone, "the only leg of prefill alone is the answering one");
        if self.attempt == Attempt::Dispatching {
            self.fail(Cause::Leg(Role::Prefill), kind.repeat());
        }
        let next = match kind {
            Kind::ConnectionRefused | Kind::NoConnection | Kind::Shortage | Kind::Unavailable => Prefill::Idle,
            Kind::Refused | Kind::Redirected => Prefill::Idle,
            Kind::BadRequest => Prefill::Rejected,
            Kind::Error | Kind::TooLarge => Prefill::Unclear,
            // It was asked for before: its request was written whole.
            Kind::Stale | Kind::Broken | Kind::Timeout | Kind::ColdTimeout if self.prefill == Prefill::Unwanted => {
                Prefill::Unclear
            }
            // A request that was not written whole has done nothing (protocol L1).
            Kind::Stale | Kind::Broken | Kind::Timeout | Kind::ColdTimeout => {
                self.set_prefill(Prefill::Broken);
                return self.act(Action::Revoke(Role::Prefill));
            }
        };
        self.set_prefill(next);
        self.prefill_over(now);
    }

    /// Decode ended without a success, before its first output.
    fn decode_failed(&mut self, kind: Kind) {
        let (client_waits, orphan) = (self.attempt == Attempt::Dispatching, self.decode.is_orphan());
        match kind {
            Kind::ConnectionRefused | Kind::NoConnection | Kind::Shortage
                if client_waits && self.terms.plan == Plan::Read =>
            {
                // The same params go to another decode engine (protocol D6).
                self.set_decode(Decode::Unsent);
                self.set_blocks(Blocks::Ours);
                self.act(Action::Another);
            }
            Kind::Stale | Kind::Broken | Kind::Timeout | Kind::ColdTimeout if orphan => self.decode_broken(),
            Kind::Stale | Kind::Broken | Kind::Timeout | Kind::ColdTimeout => {
                self.set_decode(Decode::Broken);
                self.decode_told(kind.repeat());
                self.act(Action::Revoke(Role::Decode));
            }
            // It has taken nothing that it still holds (protocol O9).
            _ => {
                let repeat = match kind {
                    // Prefill has its leg: another try would cost another prefill (protocol L10).
                    Kind::Unavailable if self.terms.plan != Plan::Alone => Repeat::Never,
                    kind => kind.repeat(),
                };
                self.decode_told(repeat);
                self.decode_refused();
            }
        }
    }

    /// The client is told of decode's failure. With the head at the client that is done by who passes the answer on.
    fn decode_told(&mut self, repeat: Repeat) {
        if self.attempt == Attempt::Dispatching {
            self.fail(Cause::Leg(Role::Decode), repeat);
        }
        self.set_attempt(Attempt::Orphaned);
    }

    /// READ: whether there is another decode engine to take the hand-over, in the time that it has by its own limits.
    fn another(&mut self, found: bool, now: Instant) {
        self.limit_hand_over();
        if found && self.deadline.is_some_and(|limit| now < limit) {
            return self.send_decode();
        }
        self.fail(Cause::Leg(Role::Decode), Repeat::Safe);
        self.give_prefill_up();
    }

    /// A limit has passed while the client waits for a head.
    pub(super) fn client_waited(&mut self, now: Instant) {
        let first_output = self.from.map(|from| from + self.terms.first_output);
        let hand_over = self.decode == Decode::Sending && first_output.is_some_and(|limit| now < limit);
        self.fail(if hand_over { Cause::HandOver } else { Cause::FirstOutput }, Repeat::Never);
        self.decode_late();
    }

    /// The same with the head at the client.
    fn overdue(&mut self) {
        if self.attempt == Attempt::Committed {
            self.set_attempt(Attempt::Orphaned);
            self.decode_late();
        }
    }

    /// Decode's time is over: nothing is to be hoped for from a push (protocol W11, D16).
    fn decode_late(&mut self) {
        if self.is_write() && self.prefill == Prefill::Answered {
            self.set_prefill(Prefill::Doubtful);
        }
        self.give_up();
    }

    fn client_gone(&mut self) {
        if matches!(self.attempt, Attempt::Dispatching | Attempt::Committed) {
            self.set_attempt(Attempt::Orphaned);
            self.give_up();
        }
    }
}
