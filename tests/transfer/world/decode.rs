//! The decode engine at its work.

use moriio_proxy::engine::Role;
use moriio_proxy::exchange::transfer::{Event, Plan};
use moriio_proxy::upstream::failure::Kind;

use super::{DecodeStep, Next, PrefillStep, World, failed};
use crate::transfer::dice::Die;
use crate::transfer::rules::{Blocks, Form, Left, MS, Micros, SECOND, Stage};

/// How a decode leg goes, if nothing else befalls it.
#[derive(Clone, Copy, PartialEq)]
enum Course {
    Answers,
    /// Turned away by status.
    Turned(Kind),
    /// An error event after its head, in place of output (protocol O9).
    Event(Kind),
    /// READ: its load fails (protocol D11).
    LoadFails,
    /// It stays where it is, for ever: in its server, in its load or at work.
    Server,
    Work,
}

const COURSES: [Course; 13] = [
    Course::Answers,
    Course::Turned(Kind::Unavailable),
    Course::Turned(Kind::Refused),
    Course::Turned(Kind::BadRequest),
    Course::Turned(Kind::Error),
    Course::Turned(Kind::Redirected),
    Course::Turned(Kind::Broken),
    Course::Event(Kind::Error),
    Course::Event(Kind::Unavailable),
    Course::Event(Kind::BadRequest),
    Course::LoadFails,
    Course::Server,
    Course::Work,
];
const WEIGHTS: [u32; 13] = [780, 30, 25, 15, 20, 5, 10, 15, 10, 10, 40, 15, 25];

impl World<'_> {
    fn course(&self) -> Course {
        let course = COURSES[self.dice.of(Die::DecodeEnds).weighed(&WEIGHTS)];
        match course {
            Course::Event(kind) if !self.terms.streams => Course::Turned(kind),
            // Its scheduler knows of it within a second (protocol D10).
            Course::Server if self.decode.read => Course::Work,
            Course::LoadFails if !self.decode.read => Course::Answers,
            course => course,
        }
    }

    pub(super) fn decode_takes(&mut self) {
        self.decode.stage = Stage::Server;
        let time = self.dice.of(Die::DecodeServes).spread(500, 900 * MS);
        self.after(time, Next::Decode(DecodeStep::Served));
        let breaks = self.dice.of(Die::DecodeBreaks);
        if breaks.one_of_1000(50) {
            let at = self.dice.of(Die::DecodeBreakAt).spread(MS, 100 * SECOND);
            self.after(at, Next::Decode(DecodeStep::Breaks));
        }
    }

    pub(super) fn decode(&mut self, step: DecodeStep) {
        match step {
            DecodeStep::Served => self.decode_served(),
            DecodeStep::Room => self.decode_has_room(),
            DecodeStep::Loaded => self.decode_has_loaded(),
            DecodeStep::Hears { form, ours } => self.decode_hears(form, ours),
            DecodeStep::Admitted => self.decode_admits(),
            DecodeStep::FirstToken => self.decode_makes_a_token(),
            DecodeStep::Answer => self.decode_answers(),
            DecodeStep::Breaks => self.decode_breaks(),
            DecodeStep::Notices { ours } => self.decode_notices(ours),
        }
    }

    /// Its server has looked at it.
    fn decode_served(&mut self) {
        if self.decode.stage != Stage::Server {
            return;
        }
        let course = self.course();
        if let Course::Turned(kind) = course {
            self.decode.stage = Stage::Over;
            return self.tell(Role::Decode, failed(Role::Decode, kind));
        }
        if self.terms.streams {
            self.tell(Role::Decode, Event::Head);
            self.preamble();
        }
        match course {
            Course::Event(kind) => {
                self.decode.stage = Stage::Over;
                self.tell(Role::Decode, failed(Role::Decode, kind));
            }
            Course::Server => {}
            _ => {
                self.decode.stage = Stage::Queued;
                let queues = self.dice.of(Die::DecodeQueues);
                let time = match queues.weighed(&[850, 120, 30]) {
                    0 => 0,
                    1 => queues.again(1).spread(MS, 20 * SECOND),
                    _ => queues.again(1).spread(20 * SECOND, 400 * SECOND),
                };
                self.after(time, Next::Decode(DecodeStep::Room));
            }
        }
    }

    /// Comments, and a preamble that is too long to keep.
    fn preamble(&mut self) {
        let comments = self.dice.of(Die::Comments);
        if comments.one_of_1000(120) {
            let number = self.legs[1].number;
            for n in 1..=1 + comments.again(9).below(3) {
                let at = comments.again(n).spread(MS, 40 * SECOND);
                self.after(at + MS * 50, Next::Tell(Role::Decode, number, Event::Comment));
            }
        }
        if self.dice.of(Die::DecodeFull).one_of_1000(25) {
            self.tell(Role::Decode, Event::Full);
        }
    }

    /// The scheduler has room for it.
    fn decode_has_room(&mut self) {
        if self.decode.stage != Stage::Queued {
            return;
        }
        match self.terms.plan {
            Plan::Alone => self.decode_runs(),
            Plan::Read => self.decode_loads(),
            Plan::Write { .. } => {
                self.say("decode has room and announces its blocks");
                let time = self.wire();
                self.after(time, Next::Prefill(PrefillStep::Announced));
                self.announced = true;
                match self.decode.wait() {
                    Stage::Arrived => self.admit(),
                    Stage::Over => self.decode_fails(),
                    _ => {}
                }
            }
        }
    }

    fn decode_loads(&mut self) {
        self.decode.stage = Stage::Loading;
        if !self.up[0] || self.prefill.blocks == Blocks::Lost {
            // Nobody listens: it stands still for ever, or fails (protocol D13, D11).
            if self.dice.of(Die::DecodeLoads).one_of_1000(500) {
                return;
            }
        } else if self.prefill.blocks == Blocks::Free {
            return self.judge.fail("K5: decode loads blocks that were released");
        }
        self.say("decode loads");
        let time = self.dice.of(Die::DecodeLoads).again(1).spread(MS, 2 * SECOND);
        self.after(time, Next::Decode(DecodeStep::Loaded));
    }

    fn decode_has_loaded(&mut self) {
        if self.decode.stage != Stage::Loading {
            return;
        }
        self.reader_done();
        let lost = self.prefill.blocks == Blocks::Lost;
        if lost || self.course() == Course::LoadFails {
            self.decode.stage = Stage::Over;
            return self.decode_fails();
        }
        self.decode_runs();
    }

    /// Decode releases prefill's blocks itself.
    fn reader_done(&mut self) {
        self.say("decode releases prefill's blocks");
        let time = self.wire();
        self.after(time, Next::Prefill(PrefillStep::ReaderDone));
    }

    /// Its load or its transfer failed: an error, after a report or without.
    fn decode_fails(&mut self) {
        self.gives_back();
        if self.terms.streams && self.dice.of(Die::DecodeReports).one_of_1000(300) {
            self.tell(Role::Decode, Event::Report);
        }
        self.tell(Role::Decode, failed(Role::Decode, Kind::Error));
    }

    fn decode_hears(&mut self, form: Form, ours: bool) {
        self.say(if ours { "our wake comes to decode" } else { "prefill's message comes to decode" });
        let waited = self.decode.stage == Stage::Waiting;
        if ours {
            self.ended_by_us = true;
            if self.announced_or_will() && self.prefill.may_write(self.now) {
                return self.judge.fail("K12: decode was woken while prefill can still write");
            }
        }
        match self.decode.hears(form, ours) {
            Err(breach) => self.judge.fail(breach),
            Ok(Stage::Arrived) if waited => self.admit(),
            Ok(Stage::Over) if waited => self.decode_fails(),
            Ok(_) => {}
        }
    }

    /// Whether decode has announced its blocks or may still do so.
    fn announced_or_will(&self) -> bool {
        let never = self.decode.stage == Stage::Server && self.course() == Course::Server;
        !never && !matches!(self.decode.stage, Stage::Over | Stage::Lost | Stage::Gone)
    }

    /// Its KV has come: the engine takes it up in its next step, or when there is a place.
    fn admit(&mut self) {
        let room = self.dice.of(Die::Room);
        let full = self.now < self.others_until(Die::OthersRun) && room.one_of_1000(300);
        let steps = if full { room.again(1).below(120) } else { 0 };
        let mut at = self.next_step() + Micros::from(steps) * self.step_length();
        if full {
            // Never longer than others run.
            at = at.min(self.others_until(Die::OthersRun).max(self.next_step()));
        }
        self.at(at, Next::Decode(DecodeStep::Admitted));
    }

    fn decode_admits(&mut self) {
        if self.decode.stage != Stage::Arrived {
            return;
        }
        if !self.ended_by_us && self.dice.of(Die::Preempted).one_of_1000(8) {
            // Preempted at once: it waits for a second write (protocol W16).
            self.say("decode is preempted, and waits again");
            self.decode.stage = Stage::Waiting;
            return;
        }
        self.decode_runs();
    }

    fn decode_runs(&mut self) {
        self.decode.stage = Stage::Running;
        self.say("decode is at work");
        if self.course() == Course::Work {
            // With the whole engine: its ranks step together (protocol K20).
            self.hangs_since = Some(self.now);
            return;
        }
        let step = self.dice.of(Die::FirstStep);
        if step.one_of_1000(60) {
            // One for which the engine has to build something: nobody gets a token meanwhile.
            self.hangs_since = Some(self.now);
            return self.after(step.again(1).spread(100 * MS, 20 * SECOND), Next::Decode(DecodeStep::FirstToken));
        }
        let at = self.next_step();
        self.at(at, Next::Decode(DecodeStep::FirstToken));
    }

    /// The first token exists.
    fn decode_makes_a_token(&mut self) {
        if self.decode.stage != Stage::Running {
            return;
        }
        (self.first_token, self.hangs_since) = (Some(self.now), None);
        if !self.terms.streams {
            let time = self.dice.of(Die::DecodeComputes).spread(10 * MS, 200 * SECOND);
            return self.after(time, Next::Decode(DecodeStep::Answer));
        }
        let reports = self.dice.of(Die::DecodeReports);
        if reports.one_of_1000(600) {
            self.tell(Role::Decode, Event::Report);
            let time = reports.again(1).spread(100, 100 * MS);
            return self.after(time, Next::Decode(DecodeStep::Answer));
        }
        self.decode_answers();
    }

    fn decode_answers(&mut self) {
        if self.decode.stage != Stage::Running {
            return;
        }
        if !self.terms.streams {
            self.tell(Role::Decode, Event::Head);
        }
        self.tell(Role::Decode, Event::Output);
    }

    /// An accident on the wire; mostly the engine sees it, too.
    fn decode_breaks(&mut self) {
        if matches!(self.decode.stage, Stage::Over | Stage::Gone) || !self.legs[1].live {
            return;
        }
        self.say("decode's connection breaks");
        self.tell(Role::Decode, failed(Role::Decode, Kind::Broken));
        let notices = self.dice.of(Die::DecodeNotices);
        if !notices.one_of_1000(200) {
            self.after(notices.again(1).spread(100, 500 * MS), Next::Decode(DecodeStep::Notices { ours: false }));
        }
    }

    fn decode_notices(&mut self, ours: bool) {
        self.tokens();
        let was = self.decode.stage;
        let left = self.decode.close();
        self.say("decode sees that its connection is closed");
        match left {
            Left::Releases => self.reader_done(),
            Left::Lost if ours && !self.judge.is_expired() => {
                self.judge.fail("K8: a decode leg that waits was closed: its blocks are lost for good");
            }
            Left::Forgotten if ours => {
                self.judge.fail("D9: a READ decode leg was closed before its scheduler knew of it")
            }
            // A process that is gone gives nothing back.
            Left::Freed if !matches!(was, Stage::Over | Stage::Gone) => {
                self.ended_by_us |= ours;
                self.gives_back();
            }
            Left::Freed | Left::Lost | Left::Forgotten | Left::GoesOn => {}
        }
    }

    /// Decode's blocks are free for others: nobody may write into them any more, if it was us that ended the leg.
    fn gives_back(&mut self) {
        if self.ended_by_us && self.announced && self.prefill.may_write(self.now) {
            self.judge.fail("K12: decode gave blocks back into which prefill can still write");
        }
    }
}
