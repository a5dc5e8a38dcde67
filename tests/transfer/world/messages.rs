//! Messages to notify ports, and looks at decode's gauges.

use moriio_proxy::engine::Role;
use moriio_proxy::exchange::transfer::{Acknowledged, Notice};
use moriio_proxy::upstream::gauges::Queue;

use super::{DecodeStep, Line, Next, PrefillStep, World};
use crate::transfer::dice::{Die, Roll};
use crate::transfer::rules::{Form, MS, Micros, SECOND, Stage};

impl World<'_> {
    pub(super) fn release(&mut self) {
        let (told, takes) = (self.dice.of(Die::ReleaseTold), self.dice.of(Die::ReleaseTakes));
        self.message(Notice::Release, told, takes, Next::Prefill(PrefillStep::Released));
    }

    pub(super) fn wake(&mut self) {
        let row = self.traits[1];
        let form = if row.write_failed { Form::WriteFailed } else { Form::WriteDone };
        let (told, takes) = (self.dice.of(Die::WakeTold), self.dice.of(Die::WakeTakes));
        self.message(Notice::Wake, told, takes, Next::Decode(DecodeStep::Hears { form, ours: true }));
    }

    /// A message is taken and acknowledged, or is not, or is taken all the same (protocol K22).
    fn message(&mut self, message: Notice, told: Roll, takes: Roll, arrives: Next) {
        let role = if message == Notice::Release { Role::Prefill } else { Role::Decode };
        let time = takes.spread(100, 2 * SECOND);
        if !self.up[role as usize] {
            let how = if told.one_of_1000(700) { Acknowledged::Closed } else { Acknowledged::No };
            return self.after(time, Next::Acknowledged(message, how));
        }
        match told.weighed(&[840, 60, 40, 50, 10]) {
            // Written, and read a little later.
            0 => {
                self.after(time, Next::Acknowledged(message, Acknowledged::Yes));
                let late = takes.again(1).spread(10, 20 * MS);
                self.after(time + late, arrives);
            }
            1 => self.after(2 * SECOND, Next::Acknowledged(message, Acknowledged::No)),
            2 => {
                self.after(time, arrives);
                self.after(2 * SECOND, Next::Acknowledged(message, Acknowledged::No));
            }
            // Its ports are closed: the process is about to end (protocol K22).
            4 => {
                self.after(time, Next::Acknowledged(message, Acknowledged::Closed));
                self.after(time / 2 + MS, Next::Crash(role));
            }
            // Read at once, and acknowledged late.
            _ => {
                self.after(100, arrives);
                self.after(time, Next::Acknowledged(message, Acknowledged::Yes));
            }
        }
    }

    pub(super) fn look(&mut self) {
        let time = self.dice.of(Die::GaugesTake).again(self.count).between(MS, 200 * MS);
        self.after(time, Next::Gauges);
    }

    /// The engine writes down its gauges; they are read a little later.
    pub(super) fn gauges(&mut self) {
        let fails = self.dice.of(Die::GaugesFail);
        let never = fails.one_of_1000(30);
        let silent = never || !self.up[1] || fails.again(self.count).one_of_1000(30);
        let queue = (!silent).then(|| self.queue());
        let roll = self.dice.of(Die::GaugesTake).again(self.count);
        let slow = self.dice.of(Die::GaugesTake).one_of_1000(200);
        let time = match (silent, slow) {
            (true, _) => roll.between(MS, 2 * SECOND),
            (false, true) => roll.between(500 * MS, 1900 * MS),
            (false, false) => roll.spread(MS, 1900 * MS),
        };
        self.after(time, Next::Seen(queue));
    }

    /// The truth of the engine's queue at this moment, other legs included.
    fn queue(&mut self) -> Queue {
        let tokens = self.tokens();
        let others = |die| if self.now < self.others_until(die) { 1.0 } else { 0.0 };
        let one_if = |is: bool| if is { 1.0 } else { 0.0 };
        let stage = self.decode.stage;
        let arrived = one_if(stage == Stage::Arrived) + others(Die::OthersArrived);
        Queue {
            running: others(Die::OthersRun) + one_if(matches!(stage, Stage::Running | Stage::Loading)),
            waiting: others(Die::OthersQueue) + one_if(stage == Stage::Queued),
            deferred: others(Die::OthersWait) + one_if(stage == Stage::Waiting) + arrived,
            arrived: self.decode.facts.tells_arrived.then_some(arrived),
            tokens,
        }
    }

    /// Until when other legs run, wait or are queued.
    pub(super) fn others_until(&self, die: Die) -> Micros {
        let roll = self.dice.of(die);
        let busy = matches!(die, Die::OthersRun | Die::OthersWait) && self.dice.of(Die::Busy).one_of_1000(150);
        let weights = if busy { [0, 500, 500] } else { [700, 280, 20] };
        match roll.weighed(&weights) {
            0 => 0,
            1 => roll.again(1).spread(10 * MS, 60 * SECOND),
            _ => roll.again(1).spread(60 * SECOND, 1000 * SECOND),
        }
    }

    /// A step of the engine: what is admitted begins with one, and tokens come at its end.
    pub(super) fn step_length(&self) -> Micros {
        self.dice.of(Die::Step).spread(5 * MS, 80 * MS)
    }

    /// The next moment at which a step begins.
    pub(super) fn next_step(&self) -> Micros {
        (self.now / self.step_length() + 1) * self.step_length()
    }

    /// Others make a token in each step, and so does ours from its first one on. An engine that hangs makes none.
    pub(super) fn tokens(&mut self) -> f64 {
        let now = self.hangs_since.unwrap_or(self.now);
        let others = now.min(self.others_until(Die::OthersRun)) / self.step_length();
        let ours = match (self.decode.stage, self.first_token) {
            (Stage::Running, Some(at)) => (now - at) / self.step_length() + 1,
            _ => 0,
        };
        self.tokens = self.tokens.max(others + ours);
        self.tokens as f64
    }

    /// What becomes of prefill's blocks is of interest to whoever reads the history.
    pub(super) fn say(&mut self, what: &'static str) {
        self.note(Line::World(what));
    }
}
