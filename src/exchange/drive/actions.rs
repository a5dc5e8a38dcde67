//! What the machine says is to be done.

use std::time::Instant;

use tokio::sync::oneshot;

use super::{Attempt, Failed, Head, Means, Verdict};
use crate::api::legs::{self, Pair};
use crate::engine::Role;
use crate::error::ProxyError;
use crate::exchange::leg::{AnswerLeg, Hearers, PrefillLeg};
use crate::exchange::transfer::{Action, Cause, Event, Left, Notice, Orphan, Plan};
use crate::metrics::LegStatus;
use crate::upstream::failure::Kind;
use crate::upstream::gauges;
use crate::upstream::{Ask, Destination, LegFailure, Repeat, Verdict as EngineVerdict};

impl Attempt {
    /// Tells the machine what has happened, and does what it says.
    pub(super) fn tell(&mut self, event: Event) {
        let mut actions = std::mem::take(&mut self.actions);
        let mut next = Some(event);
        while let Some(event) = next.take() {
            self.transfer.on(event, Instant::now(), &mut actions);
            for action in actions.drain(..) {
                next = self.act(action).or(next);
            }
        }
        self.actions = actions;
    }

    /// Does one thing. What is answered at once is told the machine next.
    fn act(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Send(role) => self.send(role),
            Action::Revoke(role) => return Some(self.revoke(role)),
            Action::Another => return Some(Event::Another(self.another_decode())),
            Action::Close(Role::Prefill) => self.prefill = None,
            Action::Close(Role::Decode) => self.answer = None,
            Action::SeeOut => {
                if let Some(leg) = self.prefill.take() {
                    self.means.background.spawn(leg.see_out());
                }
            }
            Action::Commit => self.commit(),
            Action::CommitMessage => {
                self.means.metrics.prefill_alone.inc();
                self.verdict = self.message.take().map(Verdict::CommitMessage);
            }
            Action::Fail(cause, repeat) => {
                let error = self.error(cause);
                let refused = std::mem::take(&mut self.refused);
                let turned_away = self.is_turned_away(cause);
                self.verdict = Some(Verdict::Fail(Failed { error, repeat, refused, turned_away }));
            }
            Action::Release => self.release(),
            Action::Leave(Left::NoMessage | Left::TooEarly) => self.means.notifier.unsupported("release"),
            Action::Leave(Left::Rejected | Left::Reader) => {}
            Action::Wake => self.wake(),
            Action::CannotWake => self.means.notifier.unsupported("unpark"),
            Action::Look => self.look(),
            Action::Met => {
                if let Some(meeting) = &mut self.meeting {
                    meeting.prove();
                }
                if let Some(prefix) = self.prefix.take() {
                    self.means.selector.decode_has(&self.decode_engine, &prefix);
                }
                if self.short.is_some() {
                    self.means.selector.has_served_alone(&self.decode_engine);
                }
            }
            Action::NotMet => self.meeting = None,
            Action::Over(orphan) => self.over(orphan),
        }
        None
    }

    fn over(&mut self, orphan: Option<Orphan>) {
        (self.meeting, self.orphan) = (None, orphan);
        if orphan == Some(Orphan::Expired) {
            tracing::warn!(
                role = %Role::Decode, engine = %self.decode_engine.name, transfer_id = %self.ids.transfer_id,
                "parked leg could not be woken: its KV blocks may be lost"
            );
        }
    }

    /// Sends a leg. Only asked for while the client waits.
    fn send(&mut self, role: Role) {
        let guard = match role {
            Role::Prefill => self.prefill_guard.take(),
            Role::Decode => self.answer_guard.take(),
        };
        let (Some(mut guard), Some(asked)) = (guard, self.asked.clone()) else { return self.breach() };
        let pair = Pair {
            prefill: &self.prefill_engine.registration,
            decode: &self.decode_engine.registration,
            rank: self.rank,
            decode_rank: self.place.rank,
        };
        let (request, ids) = (&asked.request, &self.ids);
        let is_prefill = guard.engine.role() == Role::Prefill;
        let body = match (role, self.plan, &self.params) {
            (Role::Prefill, ..) => legs::prefill_leg(request, &pair, ids),
            (Role::Decode, Plan::Alone, _) if is_prefill => legs::alone_leg(request, ids),
            (Role::Decode, Plan::Alone, _) => legs::decode_leg_alone(request, ids),
            (Role::Decode, Plan::Read, Some(params)) => legs::decode_leg_read(request, &pair, ids, params),
            (Role::Decode, Plan::Read, None) => return self.breach(),
            (Role::Decode, Plan::Write { .. }, _) => legs::decode_leg_write(request, &pair, ids),
        };
        let engine = guard.engine.clone();
        let (host, rank) = match is_prefill {
            true => (0, self.rank),
            false => (self.place.host, self.place.rank),
        };
        let says = &engine.registration;
        let door = rank.map_or_else(|| says.any_behind(host), |rank| says.door(rank));
        let (path, id, headers) = (self.api.path(), &ids.request_id, asked.headers.clone());
        let (incarnation, role_of) = (engine.incarnation, engine.role());
        let to = Destination { address: door.address, incarnation, host: door.host, role: role_of };
        let rank = door.rank;
        guard.dispatch();
        let sending = self.means.upstream.send(&to, Ask { path, id, rank, headers, body });
        match role {
            Role::Prefill => {
                self.prefill_written = None;
                let (api, limit, hearers) = (self.api, self.patience.prefill, self.hearers());
                let is_read = self.plan == Plan::Read;
                self.prefill = Some(PrefillLeg::new(sending, guard, limit, (api, is_read), hearers));
            }
            Role::Decode => {
                self.answer_written = None;
                self.answer = Some(AnswerLeg::Sending { sending: Box::new(sending), guard, api: self.api });
            }
        }
    }

    /// Who hears what prefill had of the prompt.
    fn hearers(&mut self) -> Hearers {
        let Means { metrics, selector, tells_cached, .. } = &*self.means;
        let (client, told) = tells_cached.then(oneshot::channel).unzip();
        self.cached = told;
        Hearers { metrics: metrics.clone(), selector: selector.clone(), forecast: self.forecast.take(), client }
    }

    /// The machine asks for what cannot be done: a defect, of which operators are told.
    fn breach(&mut self) {
        debug_assert!(false, "an action that cannot be carried out");
        self.means.metrics.invariant_breaches.inc();
        self.verdict = Some(Verdict::Fail(Failed {
            error: ProxyError::Internal,
            repeat: Repeat::Never,
            refused: Vec::new(),
            turned_away: false,
        }));
    }

    /// Whether a leg's request was handed over whole. One that was not is given up by closing the leg.
    fn revoke(&self, role: Role) -> Event {
        let written = match (role, &self.prefill, &self.answer) {
            (Role::Prefill, Some(leg), _) => leg.written(),
            (Role::Prefill, None, _) => self.prefill_written,
            (Role::Decode, _, Some(AnswerLeg::Sending { sending, .. })) => sending.written(),
            (Role::Decode, ..) => self.answer_written,
        };
        written.map_or(Event::Revoked(role), |at| Event::Written(role, at))
    }

    /// READ: takes a decode engine to which this exchange has not yet tried to connect. That holds for want of a descriptor, too: one
    /// with a resting connection needs none. The time is bounded by that of the hand-over.
    fn another_decode(&mut self) -> bool {
        let pool = self.means.pool.borrow().clone();
        let next = self.means.selector.another_decode(
            &pool,
            (&self.prefill_engine, self.holding_rank),
            self.asked.as_ref().map(|asked| asked.demand()).unwrap_or_default(),
            &self.refused,
            Instant::now(),
        );
        let Some((guard, place, meeting)) = next else { return false };
        self.means.metrics.attempt("hand_over");
        let (from, to) = (&self.decode_engine.name, &guard.engine.name);
        let why = self.failure.as_ref().map(ProxyError::code);
        tracing::warn!(%from, %to, why, "no connection to decode: hand-over to another");
        (self.decode_engine, self.place, self.answer_end) = (guard.engine.clone(), place, guard.leg_end());
        meeting.prefill_answered();
        (self.answer_guard, self.meeting) = (Some(guard), Some(meeting));
        self.look_at_pair();
        true
    }

    fn commit(&mut self) {
        match (self.plan, self.short) {
            (Plan::Alone, None) => _ = self.means.metrics.prefill_alone.inc(),
            (Plan::Alone, Some(short)) => self.means.metrics.decode_alone(short.as_str()),
            (Plan::Write { .. } | Plan::Read, _) => _ = self.means.metrics.disaggregated.inc(),
        }
        let is_write = matches!(self.plan, Plan::Write { .. });
        let Some(opening) = self.opening() else { return self.breach() };
        if is_write {
            opening.drop_comments();
        }
        let (status, headers) = opening.take_head();
        let (role, is_events) = (opening.guard.engine.role(), opening.scanner.is_events());
        self.verdict = Some(Verdict::Commit(Head { role, status, headers, is_events }));
    }

    /// Whether an engine had no room. It is given a moment.
    fn is_turned_away(&self, cause: Cause) -> bool {
        let engine = match cause {
            Cause::Leg(Role::Prefill) => &self.prefill_engine,
            Cause::Leg(Role::Decode) => &self.decode_engine,
            Cause::NoBlocks | Cause::HandOver | Cause::FirstOutput => return false,
        };
        let is_turned_away = self.means.waits_for_room && self.failed_by == Some(Kind::Unavailable);
        if is_turned_away {
            engine.vitals.press(Instant::now());
        }
        is_turned_away
    }

    /// What the client is told.
    fn error(&mut self, cause: Cause) -> ProxyError {
        let limits = &self.means.limits;
        match cause {
            Cause::Leg(_) | Cause::NoBlocks => self.failure.take().unwrap_or_else(|| {
                self.breach();
                ProxyError::Internal
            }),
            Cause::HandOver => {
                self.answer_end.set(LegStatus::Timeout, EngineVerdict::Ailing);
                ProxyError::HandOverTooLate { limit: limits.hand_over }
            }
            Cause::FirstOutput => {
                let late = LegFailure::timeout(self.decode_engine.role(), self.relay_limits().first_byte);
                self.answer_end.set(late.kind.status(), late.kind.verdict());
                late.error
            }
        }
    }

    fn release(&mut self) {
        let engine = &self.prefill_engine;
        let (rank, id) = (self.holding_rank, &self.ids.transfer_id);
        let taken = self.means.notifier.release(&engine.registration, engine.traits, rank, id);
        self.acknowledgement = Some(Box::pin(async move { (Notice::Release, taken.await) }));
    }

    fn wake(&mut self) {
        let engine = &self.decode_engine;
        let behind = engine.registration.ranks_behind(self.place.host);
        let ranks = self.place.rank.map_or(behind, |rank| rank..rank + 1);
        let taken = self.means.notifier.wake(&engine.registration, engine.traits, ranks, &self.ids.transfer_id);
        self.acknowledgement = Some(Box::pin(async move { (Notice::Wake, taken.await) }));
    }

    fn look(&mut self) {
        let (client, engine) = (self.means.upstream.client().clone(), self.decode_engine.clone());
        let (host, last) = (self.place.host, engine.vitals.looks.at(self.place.host));
        self.look = Some(Box::pin(async move {
            let address = engine.registration.any_behind(host).address;
            gauges::queue(&client, address, &last, Instant::now()).await
        }));
    }
}
