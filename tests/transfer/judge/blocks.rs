//! Whose prefill's blocks are, when decode may be woken, and that nothing is left uncounted.

use moriio_proxy::exchange::transfer::{Acknowledged, Answer, Left, Releases};
use moriio_proxy::upstream::failure::Kind;

use super::{Judge, Told, Truth, did_nothing, is_answer, is_connect, length, may_have_run};
use crate::transfer::rules::{Blocks, Decode, Micros, Prefill, SECOND, Stage};

impl Judge {
    pub(super) fn releases(&mut self, now: Micros, truth: &Truth) {
        self.must(self.release.is_none(), "K7: a transfer is released twice");
        self.must(self.left.is_none(), "K1: blocks are released that were left to prefill's timer");
        self.release = Some(now);
        match self.terms.releases {
            Releases::Never => self.fail("K3, K25: a release to a prefill that must not be told"),
            Releases::Answered => {
                let answered = self.answered.is_some_and(|(answer, _)| answer != Answer::Nothing);
                self.must(answered, "K6, D3: a release before prefill's 2xx ends an engine of this version");
            }
            Releases::Always => {}
        }
        if let Some((kind, _)) = self.legs[0].failed {
            self.must(!did_nothing(kind), "L4: a release to a prefill that did nothing");
            self.must(kind != Kind::BadRequest, "L6: a release to a prefill that answered 400");
        }
        self.must(truth.written[0].is_some(), "K26: a release to a prefill that never got the request");
        match self.is_read() {
            true => self.releases_read(truth),
            false => self.releases_write(now, truth),
        }
    }

    fn releases_read(&mut self, truth: &Truth) {
        let message = self.answered.is_some_and(|(answer, _)| answer == Answer::Message);
        self.must(!message, "O15: a release to a prefill that holds nothing");
        let leg = self.legs[1];
        let broken = !leg.revoked && leg.failed.is_some_and(|(kind, _)| kind == Kind::Broken);
        self.must(!broken, "D8: a release although decode may be reading");
        let reads = truth.live[1] && truth.written[1].is_some();
        self.must(!reads || leg.failed.is_some(), "K5: a release although decode has the request");
        self.must(
            !leg.closed || leg.revoked,
            "K5, D10: a release although decode releases what its scheduler knows of",
        );
    }

    /// Sound where decode has taken nothing, or as the first half of giving a transfer up (protocol K5).
    fn releases_write(&mut self, now: Micros, truth: &Truth) {
        let leg = self.legs[1];
        if !leg.sent || leg.revoked {
            return;
        }
        if let Some((kind, _)) = leg.failed {
            let nothing = is_answer(kind) || is_connect(kind) || kind == Kind::Stale;
            let prefill_failed = self.legs[0].failed.is_some_and(|(kind, _)| may_have_run(kind) || kind == Kind::Stale);
            return self
                .must(nothing || prefill_failed, "W10: a release although prefill may write into what decode holds");
        }
        if leg.closed || truth.written[1].is_none() {
            return;
        }
        self.must(!self.report, "W12: a release after decode has reported: prefill has freed its blocks");
        let failed = self.legs[0].failed.is_some();
        let message = self.answered.is_some_and(|(answer, _)| answer == Answer::Message);
        self.must(
            failed || message || self.time_has_passed(now),
            "K5: a release although decode waits for prefill's push",
        );
    }

    /// Whether decode's time has passed: a client's, or that of an orphan (protocol W11, K16).
    fn time_has_passed(&self, now: Micros) -> bool {
        let Some((_, from)) = self.answered else { return false };
        let overdue = self.overdue || self.told == Some(Told::Failure);
        overdue || !self.client && now >= from + length(self.terms.orphan).min(length(self.terms.first_output))
    }

    pub(super) fn leaves(&mut self, reason: Left) {
        self.must(self.left.is_none(), "K1: blocks are left to prefill's timer twice");
        self.must(self.release.is_none(), "K1: blocks are left to prefill's timer that were released");
        self.left = Some(reason);
        let (prefill, decode) = (self.legs[0].failed.map(|(kind, _)| kind), self.legs[1].failed.map(|(kind, _)| kind));
        self.must(!prefill.is_some_and(did_nothing), "L4: blocks are left to prefill's timer, and it did nothing");
        let well = match reason {
            Left::NoMessage => self.terms.releases == Releases::Never,
            Left::TooEarly => {
                let ended = prefill.is_some_and(|kind| may_have_run(kind) || kind == Kind::Stale);
                let nothing = self.answered.is_some_and(|(answer, _)| answer == Answer::Nothing);
                self.terms.releases == Releases::Answered && (ended || nothing)
            }
            Left::Rejected => prefill == Some(Kind::BadRequest),
            Left::Reader => decode.is_some_and(|kind| matches!(kind, Kind::Broken | Kind::Stale)),
        };
        self.must(well, "K1: blocks are left to prefill's timer for a wrong reason");
    }

    pub(super) fn wakes(&mut self, now: Micros, truth: &Truth) {
        self.must(self.wake.is_none(), "K11: a leg is woken twice");
        self.wake = Some(now);
        self.must(self.is_write(), "K10: only a WRITE decode leg waits");
        self.must(self.terms.wakes, "K10, K25: a wake to a decode that must not be told");
        self.must(truth.live[1], "K11: a wake for a leg that is over");
        self.must(!self.report, "K11: a wake for a leg that has reported");
        self.must(truth.written[1].is_some(), "K11: a wake for a leg that decode does not have");
        self.must(self.orphaned.is_some(), "K10: a leg is woken whose answer goes to a client");
        let prefill = self.legs[0].failed;
        let at_once = prefill.is_some_and(|(kind, _)| did_nothing(kind) || kind == Kind::Stale);
        if at_once || self.legs[0].revoked {
            return;
        }
        self.woken_by_looks = true;
        self.must(
            self.looks.says_waiting(self.terms.streams),
            "K20: a leg is woken, and two looks do not say that it waits",
        );
        let since = match prefill {
            Some((Kind::BadRequest, at)) => at + SECOND,
            _ => self.unclear_until(prefill.map(|(_, at)| at)),
        };
        self.must(now >= since, "K14, K15: a leg is woken before prefill has surely stopped");
    }

    /// Said once of a leg that should be woken, and cannot be (protocol K25).
    pub(super) fn cannot_wake(&mut self, now: Micros) {
        self.must(!self.terms.wakes, "K25: decode can be told, and is not");
        self.must(self.is_write() && self.orphaned.is_some(), "K25: a leg that waits for nobody's wake");
        let again = self.cannot.replace(now).is_some();
        self.must(!again, "K25: said twice that a leg cannot be woken");
    }

    /// Until when an unclear prefill may still write (protocol K14).
    fn unclear_until(&self, failed: Option<Micros>) -> Micros {
        match (self.release, self.release_acknowledged) {
            (Some(_), Some((Acknowledged::Yes | Acknowledged::Closed, at))) => at + 2 * SECOND,
            (Some(at), _) => at + 63 * SECOND,
            (None, _) => match (failed, self.answered) {
                (Some(at), _) => at + 63 * SECOND,
                (None, Some((_, at))) => at + 63 * SECOND,
                (None, None) => Micros::MAX,
            },
        }
    }

    /// What became of prefill's blocks when nothing happens any more: whoever has not freed them, it must have been said.
    pub fn finished(&mut self, prefill: &Prefill, decode_has_it: bool, decode: &Decode) {
        let kept = matches!(prefill.blocks, Blocks::Held | Blocks::TimedOut);
        if !kept || self.left.is_some() || self.release.is_some() {
            return;
        }
        // Whoever read in READ has released; old versions do not hear it (protocol V2).
        let read = self.is_read() && decode_has_it && !prefill.facts.read_frees;
        let reader =
            self.is_read() && decode_has_it && matches!(decode.stage, Stage::Gone | Stage::Loading | Stage::Server);
        let crashed = decode.stage == Stage::Gone;
        // A leg that was never taken up counts as one at work, of which prefill needs no release (protocol K18, K23).
        let closed = self.is_write() && self.legs[1].closed && decode.stage == Stage::Over;
        // It was timed out before its reader came to it.
        let late = self.is_read() && decode_has_it && prefill.blocks == Blocks::TimedOut;
        self.must(
            read || reader || crashed || closed || late,
            "K1: blocks are left to prefill's timer, and nobody counts it",
        );
    }
}
