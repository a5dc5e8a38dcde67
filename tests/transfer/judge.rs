//! What the proxy may ask for, by what it was told: the rules of `docs/protocol.md` that bind the state machine. What it does to
//! engines is judged by `rules`; here is the rest, so that a rule that was broken without harm shows, too.

mod actions;
mod blocks;
mod legs;
mod looks;

use std::time::Duration;

use moriio_proxy::engine::Role;
use moriio_proxy::exchange::transfer::{
    Acknowledged, Action, Answer, Event, Left, Notice, Orphan, Plan, Releases, Terms,
};
use moriio_proxy::upstream::failure::{Kind, Repeat};

use self::looks::Looks;
use super::rules::{Breach, Micros};

/// What is true of the legs, as their driver knows it.
pub struct Truth {
    pub live: [bool; 2],
    pub written: [Option<Micros>; 2],
}

/// What the client was told.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Told {
    Commit,
    Message,
    Failure,
}

/// One leg, as the machine was told of it and as it has asked.
#[derive(Clone, Copy, Debug, Default)]
struct Leg {
    sent: bool,
    started: bool,
    revoked: bool,
    /// Since when it is known to be written whole.
    written: Option<Micros>,
    closed: bool,
    failed: Option<(Kind, Micros)>,
}

/// The judge of one attempt.
pub struct Judge {
    pub breach: Option<Breach>,
    terms: Terms,
    legs: [Leg; 2],
    answered: Option<(Answer, Micros)>,
    head: bool,
    comment: bool,
    full: bool,
    report: bool,
    output: bool,
    overdue: bool,
    /// Whether a decode engine refused the hand-over, and nobody was asked for another.
    asks: bool,
    another: Option<bool>,
    client: bool,
    told: Option<Told>,
    release: Option<Micros>,
    release_acknowledged: Option<(Acknowledged, Micros)>,
    left: Option<Left>,
    wake: Option<Micros>,
    wake_acknowledged: Option<(Acknowledged, Micros)>,
    /// Whether looks said that it waits, so that it has room.
    woken_by_looks: bool,
    cannot: Option<Micros>,
    looks: Looks,
    seen_out: bool,
    met: bool,
    not_met: bool,
    /// Since when nobody waits for an answer of decode.
    alone: Option<Micros>,
    /// Since when a WRITE decode leg is an orphan.
    orphaned: Option<Micros>,
    over: Option<Option<Orphan>>,
    begun: Micros,
}

impl Judge {
    pub fn new(terms: Terms) -> Judge {
        Judge {
            breach: None,
            terms,
            legs: [Leg::default(); 2],
            answered: None,
            head: false,
            comment: false,
            full: false,
            report: false,
            output: false,
            overdue: false,
            asks: false,
            another: None,
            client: true,
            told: None,
            release: None,
            release_acknowledged: None,
            left: None,
            wake: None,
            wake_acknowledged: None,
            woken_by_looks: false,
            cannot: None,
            looks: Looks::default(),
            seen_out: false,
            met: false,
            not_met: false,
            alone: None,
            orphaned: None,
            over: None,
            begun: 0,
        }
    }

    /// From now on what is waited for has these limits (protocol P6).
    pub fn set_limits(&mut self, first_output: Duration, orphan: Duration) {
        (self.terms.first_output, self.terms.orphan) = (first_output, orphan);
    }

    pub fn fail(&mut self, breach: Breach) {
        self.breach.get_or_insert(breach);
    }

    /// Fails unless `holds`.
    fn must(&mut self, holds: bool, breach: Breach) {
        if !holds {
            self.fail(breach);
        }
    }

    /// Takes note of what the machine is told.
    pub fn event(&mut self, event: Event, now: Micros) {
        match event {
            Event::Start => self.begun = now,
            Event::Started(role) => self.started(role, now),
            Event::Revoked(role) => self.legs[role as usize].revoked = true,
            Event::Written(role, _) => self.legs[role as usize].written = Some(now),
            Event::Answered(answer) => self.answered = Some((answer, now)),
            Event::Failed(role, kind) => self.failed(role, kind, now),
            Event::Head => self.head = true,
            Event::Comment => self.comment = true,
            Event::Full => self.full = true,
            Event::Report => self.report = true,
            Event::Output => (self.report, self.output) = (true, true),
            Event::Overdue => self.overdue = true,
            Event::ClientGone => self.client = false,
            Event::Acknowledged(Notice::Release, how) => self.release_acknowledged = Some((how, now)),
            Event::Acknowledged(Notice::Wake, how) => self.wake_acknowledged = Some((how, now)),
            Event::Seen(queue) => self.looks.seen(queue),
            Event::Another(more) => (self.another, self.asks) = (Some(more), false),
            Event::Due => {}
        }
        self.orphans(now);
    }

    fn started(&mut self, role: Role, now: Micros) {
        self.legs[role as usize].started = true;
        let limit = self.answered.map(|(_, at)| at + length(self.terms.hand_over));
        let late = self.is_read() && role == Role::Decode && limit.is_some_and(|limit| now > limit);
        self.must(!late, "D5: decode's connection was waited for after the hand-over limit");
    }

    fn failed(&mut self, role: Role, kind: Kind, now: Micros) {
        self.legs[role as usize].failed = Some((kind, now));
        let refused = matches!(kind, Kind::ConnectionRefused | Kind::NoConnection);
        self.asks = self.is_read() && role == Role::Decode && refused && self.has_client();
    }

    /// From when on decode's leg is an orphan, if it has become one.
    fn orphans(&mut self, now: Micros) {
        let alone = !self.client || self.overdue || matches!(self.told, Some(Told::Failure | Told::Message));
        let leg = self.legs[1];
        let lives = leg.sent && leg.failed.is_none() && !leg.revoked;
        if alone {
            self.alone.get_or_insert(now);
        }
        if self.orphaned.is_none() && alone && lives && !self.output && self.is_write() {
            self.orphaned = Some(now);
        }
    }

    /// What holds once all answers to what was asked have been given: nobody waits for what could be said already.
    pub fn settled(&mut self, now: Micros) {
        self.orphans(now);
        if !self.is_over() {
            self.not_put_off();
        }
        if !self.has_client() || self.told == Some(Told::Commit) {
            return;
        }
        if self.told.is_none() {
            self.must(!self.may_commit(), "W7, D12, O14: the commit has come, and the client is not told");
            let failed = self.legs.iter().any(|leg| leg.failed.is_some());
            self.must(!failed, "W8, W9: a leg has failed, and the client is not told at once");
            let nothing = self.answered.is_some_and(|(answer, _)| answer != Answer::Params);
            self.must(!nothing, "O15, D3: prefill has answered, and the client is not told at once");
            self.in_time(now);
        }
    }

    /// What has to be done at once.
    fn not_put_off(&mut self) {
        let failed = self.legs[0].failed.map(|(kind, _)| kind);
        let leg = self.legs[1];
        let waits = self.orphaned.is_some() && leg.written.is_some() && leg.failed.is_none() && !self.report;
        let woken = self.wake.or(self.cannot).is_some();
        self.must(
            !waits || woken || !failed.is_some_and(did_nothing),
            "K13: prefill did nothing, and decode is not woken",
        );
        let reported = self.orphaned.is_some() && self.report && leg.failed.is_none();
        self.must(!reported, "K17: an orphan has reported, and is not closed");
        let passed = self.overdue || self.told == Some(Told::Failure) && leg.failed.is_none();
        let gives_up = self.is_write() && passed && self.answered.is_some() && !self.report;
        let told = self.release.is_some() || self.left.is_some();
        self.must(!gives_up || told, "W11: decode's time has passed, and prefill is not released");
        let met = self.met || self.not_met || self.terms.plan == Plan::Alone;
        self.must(met || !self.report, "P4: decode has reported, and others of the pair still wait for that");
        let hopeless = failed.is_some() || passed && self.answered.is_some();
        self.must(met || !hopeless, "P4: nothing will come of the pair's meeting, and others still wait for it");
    }

    /// Limits of time that the machine keeps itself before the commit.
    fn in_time(&mut self, now: Micros) {
        let Some(from) = self.output_counts_from() else { return };
        let late = now > from + length(self.terms.first_output);
        self.must(!late, "W11, D16: decode's time for its first output has passed, and the client is not told");
        let leg = self.legs[1];
        let late = self.is_read() && !leg.started && now > from + length(self.terms.hand_over);
        self.must(!late, "D5: the hand-over limit has passed, and the client is not told");
    }

    /// Since when decode's time for its first output runs (protocol O12).
    fn output_counts_from(&self) -> Option<Micros> {
        match self.terms.plan {
            Plan::Alone => Some(self.begun),
            _ => self.answered.map(|(_, at)| at),
        }
    }

    pub fn counts_from(&self) -> Micros {
        self.output_counts_from().unwrap_or(self.begun)
    }

    /// Whether the commit has come (protocol W7, D12, O13, O14).
    fn may_commit(&self) -> bool {
        match self.terms.plan {
            Plan::Write { .. } => {
                self.output || self.head && self.answered.is_some_and(|(answer, _)| answer == Answer::Params)
            }
            Plan::Read | Plan::Alone => self.output || self.full || self.comment && self.is_read(),
        }
    }

    fn is_read(&self) -> bool {
        self.terms.plan == Plan::Read
    }

    fn is_write(&self) -> bool {
        matches!(self.terms.plan, Plan::Write { .. })
    }

    /// Whether anybody waits for an answer, or gets one.
    pub fn has_client(&self) -> bool {
        self.client && self.over.is_none() && !matches!(self.told, Some(Told::Failure | Told::Message))
    }

    pub fn is_over(&self) -> bool {
        self.over.is_some()
    }

    pub fn is_expired(&self) -> bool {
        self.over == Some(Some(Orphan::Expired))
    }

    pub fn had_output(&self) -> bool {
        self.output
    }

    pub fn sees_out(&self) -> bool {
        self.seen_out
    }

    pub fn may_be_overdue(&self) -> bool {
        self.told == Some(Told::Commit) && self.has_client() && !self.output && self.legs[1].failed.is_none()
    }

    /// More is kept than may be only before the commit.
    pub fn may_be_full(&self) -> bool {
        self.told.is_none() && self.has_client() && !self.output
    }

    /// Whether decode's answer is not read on (protocol O13).
    pub fn is_held(&self) -> bool {
        self.full && self.is_write() && self.may_be_full()
    }

    /// Judges what is asked for.
    pub fn action(&mut self, action: Action, now: Micros, truth: &Truth) {
        self.must(self.over.is_none(), "something is asked for after the attempt is over");
        match action {
            Action::Send(role) => self.sends(role, now),
            Action::Revoke(role) => self.revokes(role, truth),
            Action::Close(Role::Prefill) => self.closes_prefill(truth),
            Action::Close(Role::Decode) => self.closes_decode(now, truth),
            Action::SeeOut => self.sees_prefill_out(truth),
            Action::Commit => self.commits(),
            Action::CommitMessage => self.commits_message(),
            Action::Fail(cause, repeat) => self.fails(cause, repeat, now),
            Action::Release => self.releases(now, truth),
            Action::Leave(reason) => self.leaves(reason),
            Action::Wake => self.wakes(now, truth),
            Action::CannotWake => self.cannot_wake(now),
            Action::Look => self.look(now, truth),
            Action::Another => self.asks_another(now),
            Action::Met => self.meets(),
            Action::NotMet => self.meets_not(),
            Action::Over(orphan) => self.is_to_be_over(orphan, truth),
        }
        self.orphans(now);
    }
}

fn length(duration: Duration) -> Micros {
    duration.as_micros() as Micros
}

fn is_connect(kind: Kind) -> bool {
    matches!(kind, Kind::ConnectionRefused | Kind::NoConnection)
}

/// Whether an engine answered with an error: it has taken nothing (protocol O9, K5).
fn is_answer(kind: Kind) -> bool {
    matches!(kind, Kind::Unavailable | Kind::Error | Kind::BadRequest | Kind::Refused | Kind::Redirected)
}

/// Whether prefill did nothing (protocol L4).
fn did_nothing(kind: Kind) -> bool {
    is_connect(kind) || matches!(kind, Kind::Unavailable | Kind::Refused | Kind::Redirected)
}

/// Whether prefill may have run (protocol L5, L7, L8).
fn may_have_run(kind: Kind) -> bool {
    matches!(kind, Kind::Broken | Kind::Timeout | Kind::Error | Kind::TooLarge)
}

/// What is right to say of a repeat, one or the other where the rules leave it open.
type Rights = [Repeat; 2];

const NEVER: Rights = [Repeat::Never; 2];
const ONCE: Rights = [Repeat::Once; 2];
const SAFE: Rights = [Repeat::Safe; 2];

/// Whether prefill can be told of a release now, by its version.
fn can_release(releases: Releases, answered: bool) -> bool {
    match releases {
        Releases::Never => false,
        Releases::Answered => answered,
        Releases::Always => true,
    }
}
