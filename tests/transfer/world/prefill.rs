//! The prefill engine at its work.

use moriio_proxy::engine::Role;
use moriio_proxy::exchange::transfer::{Answer, Event};
use moriio_proxy::upstream::failure::Kind;

use super::{DecodeStep, Line, Next, PrefillStep, World, failed};
use crate::transfer::dice::Die;
use crate::transfer::rules::{Blocks, Form, MS, Micros, SECOND, Work};

/// How a prefill leg ends, if nothing else befalls it.
#[derive(Clone, Copy, PartialEq)]
enum End {
    Success,
    /// Before anything was done.
    Turned(Kind),
    /// READ: it ended at its first token, and has no params.
    Nothing,
    Message,
    /// After the work.
    Late(Kind),
    /// In the midst of the work.
    Breaks,
    /// Never.
    Hangs,
}

const ENDS: [End; 14] = [
    End::Success,
    End::Turned(Kind::Unavailable),
    End::Turned(Kind::Refused),
    End::Turned(Kind::BadRequest),
    End::Turned(Kind::Redirected),
    End::Turned(Kind::Error),
    // A refusal whose body breaks off (protocol L8).
    End::Turned(Kind::Broken),
    End::Nothing,
    End::Message,
    End::Late(Kind::Error),
    End::Late(Kind::BadRequest),
    End::Late(Kind::TooLarge),
    End::Late(Kind::Broken),
    End::Breaks,
];
const WEIGHTS: [u32; 15] = [640, 40, 30, 30, 10, 30, 10, 25, 30, 45, 30, 20, 25, 20, 15];

impl World<'_> {
    fn end(&self) -> End {
        let end = ENDS.get(self.dice.of(Die::PrefillEnds).weighed(&WEIGHTS)).copied().unwrap_or(End::Hangs);
        match end {
            End::Nothing if self.is_write() => End::Success,
            End::Late(Kind::BadRequest) if !self.prefill.facts.late_400 => End::Turned(Kind::BadRequest),
            end => end,
        }
    }

    pub(super) fn prefill_takes(&mut self) {
        self.prefill.take();
        let time = self.dice.of(Die::PrefillServes).spread(MS, 800 * MS);
        self.after(time, Next::Prefill(PrefillStep::Served));
    }

    pub(super) fn prefill(&mut self, step: PrefillStep) {
        match step {
            PrefillStep::Served => self.prefill_served(),
            PrefillStep::Begins => self.prefill_begins(),
            PrefillStep::Breaks => self.prefill_breaks(),
            PrefillStep::Ends => self.prefill_ends(),
            PrefillStep::Announced => {
                let until = self.prefill.announce(self.pushing(), self.now);
                self.pushes(until);
            }
            PrefillStep::Pushed => self.prefill_pushed(),
            PrefillStep::Notices => self.prefill_notices(),
            PrefillStep::TimesOut => self.prefill.time_out(),
            PrefillStep::Released => self.prefill_released(),
            PrefillStep::ReaderDone => self.prefill.reader_done(self.now),
        }
    }

    fn prefill_served(&mut self) {
        if self.prefill.work != Work::Queued {
            return;
        }
        if let End::Turned(kind) = self.end() {
            self.prefill.refuse();
            return self.tell(Role::Prefill, failed(Role::Prefill, kind));
        }
        let queues = self.dice.of(Die::PrefillQueues);
        let time = if queues.one_of_1000(150) { queues.again(1).spread(MS, 20 * SECOND) } else { 0 };
        self.after(time, Next::Prefill(PrefillStep::Begins));
    }

    fn prefill_begins(&mut self) {
        if self.prefill.work != Work::Queued {
            return;
        }
        self.prefill.begin();
        let time = self.dice.of(Die::PrefillComputes).spread(MS, 60 * SECOND);
        if self.end() == End::Breaks {
            let at = self.dice.of(Die::PrefillBreaksAt).between(0, time);
            self.after(at, Next::Prefill(PrefillStep::Breaks));
        }
        if self.end() != End::Hangs {
            self.after(time, Next::Prefill(PrefillStep::Ends));
        }
    }

    /// The connection breaks; the engine sees it, too.
    fn prefill_breaks(&mut self) {
        self.note(Line::World("prefill's connection breaks"));
        self.tell(Role::Prefill, failed(Role::Prefill, Kind::Broken));
        let time = self.dice.of(Die::PrefillNotices).spread(100, 500 * MS);
        self.after(time, Next::Prefill(PrefillStep::Notices));
    }

    fn prefill_ends(&mut self) {
        if self.prefill.work != Work::Computing {
            return;
        }
        let (holds, event) = match self.end() {
            End::Nothing => (false, Event::Answered(Answer::Nothing)),
            End::Message => (false, Event::Answered(Answer::Message)),
            End::Late(kind) => (true, failed(Role::Prefill, kind)),
            _ => (true, Event::Answered(Answer::Params)),
        };
        self.note(Line::World("prefill has computed"));
        let until = self.prefill.end(holds, self.pushing(), self.now);
        if event == failed(Role::Prefill, Kind::BadRequest) {
            self.prefill.rejected(self.now);
        }
        self.pushes(until);
        if let Some(timer) = self.prefill.facts.timer {
            self.after(timer, Next::Prefill(PrefillStep::TimesOut));
        }
        self.tell(Role::Prefill, event);
    }

    /// The time of a push; none where it comes to nothing.
    fn pushing(&self) -> Option<Micros> {
        if !self.is_write() || self.dice.of(Die::PrefillPushes).one_of_1000(40) {
            return None;
        }
        let roll = self.dice.of(Die::PrefillPushing);
        Some(match self.end() {
            End::Success => roll.spread(MS, 20 * SECOND),
            // Late enough to be met by a look that was begun before.
            _ if roll.one_of_1000(500) => roll.between(MS, SECOND),
            _ => roll.spread(MS, 2 * SECOND),
        })
    }

    fn pushes(&mut self, until: Option<Micros>) {
        if let Some(until) = until {
            self.at(until, Next::Prefill(PrefillStep::Pushed));
        }
    }

    fn prefill_pushed(&mut self) {
        if self.prefill.written(self.now) {
            self.note(Line::World("prefill has written all, and says so"));
            let time = self.wire();
            self.after(time, Next::Decode(DecodeStep::Hears { form: Form::WriteDone, ours: false }));
        }
    }

    fn prefill_notices(&mut self) {
        let fails = self.prefill.abort(self.now);
        if !matches!(self.prefill.work, Work::Aborted(at) if at == self.now) {
            return;
        }
        self.note(Line::World("prefill aborts"));
        if let Some(timer) = self.prefill.facts.timer {
            self.after(timer, Next::Prefill(PrefillStep::TimesOut));
        }
        let heard = self.decode.facts.wakes.contains(&Form::WriteFailed);
        if fails && heard && self.dice.of(Die::PrefillReports).one_of_1000(500) {
            let time = self.wire();
            self.after(time, Next::Decode(DecodeStep::Hears { form: Form::WriteFailed, ours: false }));
        }
    }

    /// Our release comes, to the process that has the request or to a later one.
    fn prefill_released(&mut self) {
        self.note(Line::World("a release comes to prefill"));
        let form = match self.traits[0].release {
            moriio_proxy::engine::versions::ReleaseForm::Text => Form::Text,
            _ => Form::Release,
        };
        let held = self.prefill.blocks == Blocks::Held;
        if let Err(breach) = self.prefill.release(form, self.now) {
            self.judge.fail(breach);
        }
        if held && self.decode.may_read() {
            self.judge.fail("K5: prefill's blocks were released while decode reads them, or is about to");
        }
    }
}
