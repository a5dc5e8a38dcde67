//! What the client is told, what is said of the pair, and the end.

use moriio_proxy::engine::Role;
use moriio_proxy::exchange::transfer::{Answer, Cause, Orphan, Plan};
use moriio_proxy::upstream::failure::{Kind, Repeat};

use super::{Judge, NEVER, ONCE, Rights, SAFE, Told, Truth, can_release, is_connect, length};
use crate::transfer::rules::{Micros, SECOND};

impl Judge {
    fn tells(&mut self, what: Told) {
        self.must(self.told.is_none(), "the client is told twice how it ends");
        self.told = Some(what);
    }

    pub(super) fn commits(&mut self) {
        let comment = self.terms.plan == Plan::Alone && self.comment;
        self.must(self.may_commit() || comment, "W7, D12: committed before anything proves that decode answers");
        self.must(self.legs[1].failed.is_none(), "committed to a leg that has failed");
        self.must(self.wake.is_none(), "K10: the answer of a woken leg is worthless, and goes to the client");
        self.tells(Told::Commit);
    }

    pub(super) fn commits_message(&mut self) {
        let message = self.answered.is_some_and(|(answer, _)| answer == Answer::Message);
        self.must(message, "O15: prefill has given no message");
        self.tells(Told::Message);
    }

    pub(super) fn fails(&mut self, cause: Cause, repeat: Repeat, now: Micros) {
        let (is_so, rights) = match cause {
            Cause::Leg(role) => match self.legs[role as usize].failed {
                Some((kind, _)) => (true, self.rights(role, kind)),
                None => (false, NEVER),
            },
            Cause::FirstOutput => (self.time_is_over(now), NEVER),
            Cause::HandOver => {
                let limit = self.answered.map(|(_, at)| at + length(self.terms.hand_over));
                (self.is_read() && !self.legs[1].started && limit.is_some_and(|limit| now >= limit), NEVER)
            }
            Cause::NoBlocks => (self.answered.is_some_and(|(answer, _)| answer == Answer::Nothing), NEVER),
        };
        self.must(is_so, "the client is told of something that did not happen");
        self.must(rights.contains(&repeat), "L9, L10, L2: what is said of a repeat is wrong");
        self.tells(Told::Failure);
    }

    fn time_is_over(&self, now: Micros) -> bool {
        let sent = self.legs[1].sent && self.legs[1].failed.is_none();
        sent && self.output_counts_from().is_some_and(|from| now >= from + length(self.terms.first_output))
    }

    /// What may be said of a repeat after a leg has failed (protocol L2, L9, L10).
    fn rights(&self, role: Role, kind: Kind) -> Rights {
        let releasable = can_release(self.terms.releases, self.answered.is_some());
        match (role, self.terms.plan, kind) {
            (Role::Decode, Plan::Write { .. }, kind) if is_connect(kind) && !releasable => {
                [Repeat::Safe, Repeat::Never]
            }
            (Role::Decode, Plan::Write { .. } | Plan::Read, kind) if is_connect(kind) => SAFE,
            (Role::Decode, Plan::Read, Kind::Stale) => [Repeat::Once, Repeat::Never],
            (_, _, Kind::Stale) => ONCE,
            (Role::Decode, Plan::Write { .. } | Plan::Read, _) => NEVER,
            // Decode's leg waits for what will not come, and is seen to its end.
            (Role::Prefill, _, Kind::Unavailable) if self.legs[1].sent => [Repeat::Safe, Repeat::Never],
            (_, _, kind) if is_connect(kind) || kind == Kind::Unavailable => SAFE,
            _ => NEVER,
        }
    }

    pub(super) fn meets(&mut self) {
        self.must(!self.met && !self.not_met, "P4: what came of the pair's meeting is said twice");
        self.must(self.report || self.full, "P4: the pair's engines have met, and decode has not reported");
        self.must(self.wake.is_none(), "P4: a woken leg proves no meeting");
        self.met = true;
    }

    pub(super) fn meets_not(&mut self) {
        self.must(!self.met && !self.not_met, "P4: what came of the pair's meeting is said twice");
        self.not_met = true;
    }

    /// The last word, and whether all is done by then.
    pub(super) fn is_to_be_over(&mut self, orphan: Option<Orphan>, truth: &Truth) {
        self.over = Some(orphan);
        self.must(self.told.is_some() || !self.client, "over, and the client was told nothing");
        self.must(!truth.live[0], "over, and prefill's leg is neither ended, closed nor seen out");
        let clients = self.told == Some(Told::Commit) && self.client && (self.output || self.full);
        self.must(!truth.live[1] || clients, "over, and decode's leg is neither ended nor closed");
        self.right_outcome(orphan);
    }

    /// How an orphaned WRITE decode leg ended (protocol K17, K21).
    fn right_outcome(&mut self, orphan: Option<Orphan>) {
        if self.orphaned.is_none() || self.legs[1].revoked {
            return self.must(orphan.is_none(), "an outcome of an orphan that there never was");
        }
        let (closed, failed) = (self.legs[1].closed, self.legs[1].failed.map(|(kind, _)| kind));
        let woken = self.wake.is_some();
        let well = match orphan {
            // A leg without a connection, or one that was dead, was never taken up.
            None => failed.is_some_and(|kind| is_connect(kind) || kind == Kind::Stale) || self.never_written(),
            Some(Orphan::Written) => self.report,
            Some(Orphan::Refused) => failed.is_some_and(|kind| kind != Kind::Broken),
            Some(Orphan::Broken) => matches!(failed, Some(Kind::Broken | Kind::Stale)),
            Some(Orphan::Closed) => closed && !self.report && self.answered.is_some(),
            Some(Orphan::Ended) => closed && !self.report,
            Some(Orphan::Woken) => woken,
            Some(Orphan::Expired) => closed && !self.report,
        };
        self.must(well, "K17: the orphan did not end like that");
    }

    fn never_written(&self) -> bool {
        self.legs[1].written.is_none() && self.legs[1].closed
    }

    /// Judging ends after that time (protocol K21).
    pub(super) fn may_expire(&self, now: Micros) -> bool {
        let patience = length(self.terms.first_output).max(600 * SECOND);
        let woken = self.wake.or(self.cannot).is_some_and(|at| now >= at + length(self.terms.wake));
        woken || self.orphaned.is_some_and(|at| now >= at + patience)
    }
}
