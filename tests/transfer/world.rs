//! One attempt under virtual time: carries out what the state machine asks for, against engines that go by `rules`, and tells it
//! what happens.

mod decode;
mod legs;
mod messages;
mod next;
mod prefill;
mod terms;

use std::time::{Duration, Instant};

use moriio_proxy::engine::Role;
use moriio_proxy::engine::versions::Traits;
use moriio_proxy::exchange::transfer::{Action, Event, Plan, Terms, Transfer};
use moriio_proxy::upstream::failure::Kind;

use self::next::{DecodeStep, Next, PrefillStep};
use super::coverage::Coverage;
use super::dice::{Dice, Die};
use super::judge::{Judge, Truth};
use super::rules::{Breach, Decode, MS, Micros, Prefill, SECOND};

/// A leg as the driver knows it.
#[derive(Clone, Copy, Debug, Default)]
struct Leg {
    /// Whether what happens to it is still told.
    live: bool,
    started: bool,
    /// When the whole request was handed over.
    written: Option<Micros>,
    number: u32,
    /// What is told of one leg stays in order.
    last: Micros,
}

/// One line of a history.
#[derive(Clone, Copy, Debug)]
pub enum Line {
    /// What happened in an engine or on a wire.
    World(&'static str),
    /// What the machine was told.
    Event(Event),
    /// What it asked for.
    Action(Action),
}

/// What an attempt showed.
pub struct Outcome {
    pub breach: Option<Breach>,
    pub history: Vec<(Micros, Line)>,
    pub terms: Terms,
    pub versions: [Option<(u16, u16, u16)>; 2],
}

/// Events of one attempt that are more than any attempt needs.
const TOO_MANY: u32 = 30_000;

/// One attempt and its surroundings.
pub struct World<'a> {
    dice: &'a Dice,
    coverage: &'a mut Coverage,
    now: Micros,
    zero: Instant,
    heap: Vec<(u64, Next)>,
    count: u32,
    steps: u32,
    machine: Transfer,
    actions: Vec<Action>,
    answers: Vec<Event>,
    terms: Terms,
    traits: [&'static Traits; 2],
    bound: Micros,
    prefill_limit: Micros,
    legs: [Leg; 2],
    up: [bool; 2],
    prefill: Prefill,
    decode: Decode,
    /// Whether decode was woken by us, or its connection closed by us.
    ended_by_us: bool,
    announced: bool,
    first_token: Option<Micros>,
    tokens: u64,
    /// When the whole engine stood still.
    hangs_since: Option<Micros>,
    others_left: u32,
    judge: Judge,
    history: Option<Vec<(Micros, Line)>>,
}

impl<'a> World<'a> {
    pub fn new(dice: &'a Dice, coverage: &'a mut Coverage, films: bool) -> World<'a> {
        let (terms, facts, traits) = terms::of(dice);
        let read = terms.plan == Plan::Read;
        let prefill_limit = terms::prefill_limit(dice);
        World {
            dice,
            coverage,
            now: 0,
            zero: zero(),
            heap: Vec::with_capacity(16),
            count: 0,
            steps: 0,
            machine: Transfer::new(terms),
            actions: Vec::with_capacity(8),
            answers: Vec::new(),
            terms,
            traits,
            bound: terms::bound(&terms, prefill_limit),
            prefill_limit,
            legs: [Leg::default(); 2],
            up: [true; 2],
            prefill: Prefill::new(facts[0], read),
            decode: Decode::new(facts[1], read),
            ended_by_us: false,
            announced: false,
            first_token: None,
            tokens: 0,
            hangs_since: None,
            others_left: dice.of(Die::Others).below(3),
            judge: Judge::new(terms),
            history: films.then(Vec::new),
        }
    }

    /// The whole attempt, and what comes after it in the engines.
    pub fn run(mut self) -> Outcome {
        self.fate();
        self.give(Event::Start);
        while self.judge.breach.is_none() && self.next() {}
        self.finish();
        Outcome {
            breach: self.judge.breach,
            history: self.history.unwrap_or_default(),
            terms: self.terms,
            versions: [self.prefill.facts.version, self.decode.facts.version],
        }
    }

    /// What befalls engines and client whatever the attempt does.
    fn fate(&mut self) {
        for (role, crashes, at) in [
            (Role::Prefill, Die::PrefillCrashes, Die::PrefillCrashAt),
            (Role::Decode, Die::DecodeCrashes, Die::DecodeCrashAt),
        ] {
            if self.dice.of(crashes).one_of_1000(40) {
                let at = self.dice.of(at).spread(MS, 100 * SECOND);
                self.at(at, Next::Crash(role));
            }
        }
        if self.dice.of(Die::Client).weighed(&[60, 22, 18]) == 1 {
            let at = self.dice.of(Die::ClientAt).spread(100, 200 * SECOND);
            self.at(at, Next::ClientLeaves);
        }
    }

    /// Does what comes next; false when nothing does.
    fn next(&mut self) -> bool {
        let due = match self.judge.is_over() {
            true => None,
            false => self.machine.due().map(|due| micros(self.zero, due).max(self.now)),
        };
        let first = self.first();
        let Some((index, key)) = first.filter(|(_, key)| due.is_none_or(|due| self.comes_first(key >> 24, due))) else {
            match due {
                Some(due) => {
                    self.now = due;
                    self.give(Event::Due);
                }
                None if self.judge.is_over() => return false,
                None => self.judge.fail("nothing can happen any more, and the attempt is not over: it waits for ever"),
            }
            return true;
        };
        let (_, next) = self.heap.swap_remove(index);
        self.now = key >> 24;
        self.happen(next);
        if !self.judge.is_over() && self.now > self.bound {
            self.judge.fail("the attempt takes longer than all its limits together");
        }
        true
    }

    /// At one and the same moment either may come first.
    fn comes_first(&self, entry: Micros, due: Micros) -> bool {
        entry < due || entry == due && self.dice.of(Die::Ties).again(self.count).one_of_1000(500)
    }

    fn first(&self) -> Option<(usize, u64)> {
        let mut first = None;
        let mut least = u64::MAX;
        for (index, entry) in self.heap.iter().enumerate() {
            if entry.0 < least {
                least = entry.0;
                first = Some((index, least));
            }
        }
        first
    }

    /// Puts something in its place; what falls on one moment comes in random order.
    fn at(&mut self, time: Micros, next: Next) {
        self.count += 1;
        let tie = u64::from(self.dice.of(Die::Ties).again(self.count).below(256));
        self.heap.push((time << 24 | tie << 16 | u64::from(self.count & 0xffff), next));
    }

    fn after(&mut self, time: Micros, next: Next) {
        self.at(self.now + time, next);
    }

    /// A short time on the wire, another for each use.
    fn wire(&mut self) -> Micros {
        self.dice.of(Die::Latency).again(self.count).spread(100, 40 * MS)
    }

    fn happen(&mut self, next: Next) {
        match next {
            Next::Connects(role, number) => self.connects(role, number),
            Next::Whole(role, number) => self.whole(role, number),
            Next::Tell(role, number, event) => self.hear(role, number, event),
            Next::Prefill(step) => self.prefill(step),
            Next::Decode(step) => self.decode(step),
            Next::Crash(role) => self.crash(role),
            Next::Restart(role) => self.up[role as usize] = true,
            Next::Acknowledged(message, how) => self.give(Event::Acknowledged(message, how)),
            Next::Gauges => self.gauges(),
            Next::Seen(queue) => self.give(Event::Seen(queue)),
            Next::ClientLeaves => self.client_leaves(),
            Next::Overdue if self.judge.may_be_overdue() => self.give(Event::Overdue),
            Next::Overdue => {}
            Next::PrefillLimit => self.prefill_limit(),
        }
    }

    fn client_leaves(&mut self) {
        if self.judge.has_client() {
            self.give(Event::ClientGone);
        }
    }

    /// Tells the machine, and carries out what it asks for.
    fn give(&mut self, event: Event) {
        if self.judge.is_over() || self.judge.breach.is_some() {
            return;
        }
        self.step(event);
        while self.judge.breach.is_none() && !self.answers.is_empty() {
            let answer = self.answers.remove(0);
            if self.judge.is_over() {
                self.judge.fail("over although an answer was asked for");
            }
            self.step(answer);
        }
        if self.judge.breach.is_none() {
            self.judge.settled(self.now);
        }
        self.steps += 1;
        if self.steps > TOO_MANY {
            self.judge.fail("the attempt never comes to its end: too many events");
        }
        let leaves_after = self.dice.of(Die::Client).weighed(&[60, 22, 18]) == 2;
        if leaves_after && self.dice.of(Die::ClientAfter).below(12) + 1 == self.steps {
            self.client_leaves();
        }
    }

    fn step(&mut self, event: Event) {
        if matches!(event, Event::Answered(_) | Event::Another(true)) {
            self.limits_change();
        }
        self.note(Line::Event(event));
        self.coverage.event(&event);
        self.judge.event(event, self.now);
        let mut actions = std::mem::take(&mut self.actions);
        self.machine.on(event, self.zero + Duration::from_micros(self.now), &mut actions);
        self.coverage.edges(self.machine.edges());
        for action in actions.drain(..) {
            if self.judge.breach.is_some() {
                break;
            }
            self.note(Line::Action(action));
            self.coverage.action(&action);
            let truth = self.truth();
            self.judge.action(action, self.now, &truth);
            self.perform(action);
        }
        self.actions = actions;
    }

    /// The pair may have answered elsewhere meanwhile, or is another: its limits are others from here on (protocol P6).
    fn limits_change(&mut self) {
        let dice = self.dice.of(Die::OtherLimits).again(self.steps);
        if dice.one_of_1000(200) {
            (self.terms.first_output, self.terms.orphan) = terms::other_limits(dice);
            self.machine.set_limits(self.terms.first_output, self.terms.orphan);
            self.judge.set_limits(self.terms.first_output, self.terms.orphan);
            self.bound = self.bound.max(terms::bound(&self.terms, self.prefill_limit));
            self.note(Line::World("the pair's limits are others from now on"));
        }
    }

    fn truth(&self) -> Truth {
        Truth { live: [self.legs[0].live, self.legs[1].live], written: [self.legs[0].written, self.legs[1].written] }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Send(role) => self.send(role),
            Action::Revoke(role) => self.revoke(role),
            Action::Close(role) => self.close(role),
            Action::SeeOut => self.legs[0].live = false,
            Action::Commit => self.committed(),
            Action::Release => self.release(),
            Action::Wake => self.wake(),
            Action::Look => self.look(),
            Action::Another => self.another(),
            Action::Fail(..)
            | Action::CommitMessage
            | Action::Leave(_)
            | Action::CannotWake
            | Action::Met
            | Action::NotMet
            | Action::Over(_) => {}
        }
    }

    /// From now on the relay's clock runs: it counts no time in which the client is slow.
    fn committed(&mut self) {
        if self.judge.had_output() {
            return;
        }
        let slow = self.dice.of(Die::Slow);
        let slow = if slow.one_of_1000(200) { slow.again(1).spread(MS, 10 * SECOND) } else { 0 };
        let due = self.judge.counts_from() + length(self.terms.first_output);
        self.at(due.max(self.now) + slow, Next::Overdue);
    }

    fn note(&mut self, line: Line) {
        if let Some(history) = &mut self.history {
            history.push((self.now, line));
        }
    }

    /// What is left when nothing happens any more.
    fn finish(&mut self) {
        if self.judge.breach.is_none() {
            self.judge.finished(&self.prefill, self.legs[1].written.is_some(), &self.decode);
        }
    }
}

fn length(duration: Duration) -> Micros {
    duration.as_micros() as Micros
}

/// A moment in virtual time, rounded up.
pub fn micros(zero: Instant, time: Instant) -> Micros {
    let nanos = time.saturating_duration_since(zero).as_nanos();
    nanos.div_ceil(1000) as Micros
}

/// The moment at which virtual time begins.
pub fn zero() -> Instant {
    static ZERO: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    *ZERO.get_or_init(Instant::now)
}

/// A leg that ended without a success.
fn failed(role: Role, kind: Kind) -> Event {
    Event::Failed(role, kind)
}
