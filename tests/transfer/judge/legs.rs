//! When a leg may be sent, revoked, closed or seen out.

use moriio_proxy::engine::Role;
use moriio_proxy::exchange::transfer::{Answer, Plan, Releases};
use moriio_proxy::upstream::failure::Kind;

use super::{Judge, Leg, Truth, is_connect, length};
use crate::transfer::rules::{Micros, SECOND};

impl Judge {
    pub(super) fn sends(&mut self, role: Role, now: Micros) {
        let params = self.answered.is_some_and(|(answer, _)| answer == Answer::Params);
        let leg = self.legs[role as usize];
        let again = role == Role::Decode && self.another.take() == Some(true);
        self.must(!leg.sent || again, "a leg is sent twice");
        self.must(self.has_client() && self.told.is_none(), "a leg is sent for nobody");
        match (self.terms.plan, role) {
            (Plan::Alone, Role::Prefill) => self.fail("O14: alone there is one leg"),
            (_, Role::Prefill) | (Plan::Alone, Role::Decode) => {}
            (Plan::Write { serial: true }, _) => self.must(params, "W6: decode was sent before prefill's 2xx"),
            (Plan::Write { serial: false }, _) => {
                let started = self.legs[0].started && self.legs[0].failed.is_none();
                self.must(started, "W6: decode was sent and prefill's connection is not open");
            }
            (Plan::Read, _) => {
                self.must(params, "D3: decode was sent without prefill's block ids");
                let limit = self.answered.map(|(_, at)| at + length(self.terms.hand_over));
                self.must(limit.is_some_and(|limit| now <= limit), "D5: decode was sent after the hand-over limit");
                self.must(self.release.is_none(), "K5: decode was sent to blocks that were released");
            }
        }
        self.legs[role as usize] = Leg { sent: true, ..Leg::default() };
        self.head = false;
    }

    pub(super) fn revokes(&mut self, role: Role, truth: &Truth) {
        let leg = self.legs[role as usize];
        // Of a leg that broke this asks how far its request had come.
        let broke = leg.failed.is_some_and(|(kind, _)| matches!(kind, Kind::Broken | Kind::Stale | Kind::Timeout));
        let over = leg.revoked || leg.closed || !truth.live[role as usize] && !broke;
        self.must(leg.sent && !over, "a leg is revoked that is over, or was never sent");
        self.must(leg.written.is_none(), "a leg is revoked that is known to be written");
    }

    pub(super) fn closes_prefill(&mut self, truth: &Truth) {
        let leg = self.legs[0];
        let open = truth.live[0] || leg.revoked && leg.failed.is_none();
        self.must(leg.sent && open && !leg.closed, "prefill's leg is closed that is over, or was never sent");
        let must_run = self.terms.releases == Releases::Answered && truth.written[0].is_some();
        self.must(!must_run, "K26: prefill's leg is closed where it must run to its end to be released");
        self.must(!self.needs_prefill(truth), "K16: prefill's leg is closed while decode waits for its push");
        self.legs[0].closed = true;
    }

    /// Whether decode's leg may wait for prefill's push.
    fn needs_prefill(&self, truth: &Truth) -> bool {
        self.is_write() && truth.live[1] && !self.report && self.wake.is_none()
    }

    pub(super) fn sees_prefill_out(&mut self, truth: &Truth) {
        self.must(truth.live[0] && !self.seen_out, "prefill's leg is seen out that is over, or was never sent");
        self.seen_out = true;
        self.must(!self.needs_prefill(truth), "K16: prefill's end is not waited for while decode waits for its push");
        self.must(!self.is_read(), "K26: READ, and a prefill leg is seen out of which nobody will read");
    }

    pub(super) fn closes_decode(&mut self, now: Micros, truth: &Truth) {
        let leg = self.legs[1];
        let open = truth.live[1] || leg.revoked && leg.failed.is_none();
        self.must(leg.sent && open && !leg.closed, "decode's leg is closed that is over, or was never sent");
        self.legs[1].closed = true;
        if leg.revoked {
            return;
        }
        let alone = !self.has_client() || self.overdue || self.told.is_none();
        self.must(alone, "decode's leg is closed while it answers the client");
        match self.terms.plan {
            Plan::Alone => {}
            Plan::Read => self.closes_reader(now, truth),
            Plan::Write { .. } => self.closes_writer(now),
        }
    }

    /// Until its scheduler surely knows of it, a READ leg is kept (protocol D10).
    fn closes_reader(&mut self, now: Micros, truth: &Truth) {
        let Some(written) = truth.written[1] else {
            return self.fail("D10: a READ decode leg was closed without being revoked");
        };
        let taken_up = self.report || now >= written + SECOND;
        self.must(taken_up, "D10: a READ decode leg was closed before 1 s has passed");
        let wanted = self.alone.unwrap_or(now).max(written + SECOND);
        self.must(now <= wanted, "D10: a READ decode leg that nobody wants is not closed in time");
    }

    /// A WRITE leg is closed after its report, or when it was seen to be at work (protocol K8, K18, K23).
    fn closes_writer(&mut self, now: Micros) {
        if self.report {
            return;
        }
        let known = self.legs[1].written.is_some() || self.head;
        self.must(known, "K8: a WRITE decode leg was closed without being revoked");
        let seen = self.looks.none_waits() || self.looks.new_tokens();
        let woken = self.wake_acknowledged.is_some();
        let expired = self.may_expire(now);
        self.must(seen || expired, "K8: a WRITE decode leg was closed, and nothing says that it does not wait");
        self.must(
            expired || self.looks.none_waits() || woken,
            "K23: a leg was closed for new tokens, and it was not woken",
        );
        let room = self.woken_by_looks || self.looks.nothing_queued();
        self.must(
            expired || self.looks.none_waits() || room,
            "K23: a leg was closed for new tokens, and it may be queued for room",
        );
    }

    pub(super) fn asks_another(&mut self, now: Micros) {
        let refused = self.legs[1].failed.is_some_and(|(kind, _)| is_connect(kind) || kind == Kind::Stale);
        self.must(self.is_read() && refused, "D6: another decode engine, although this one has a connection");
        self.must(self.has_client() && self.told.is_none(), "another decode engine for nobody");
        let limit = self.answered.map(|(_, at)| at + length(self.terms.hand_over));
        self.must(limit.is_some_and(|limit| now <= limit), "D5: another decode engine after the hand-over limit");
    }
}
