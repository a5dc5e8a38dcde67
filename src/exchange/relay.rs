//! The answer's body on its way to the client: the engine's bytes as they come, under an idle limit, with the exchange's account
//! and the leg's guard inside. What the answer has proved is recorded with the part that proves it, so that no end depends on
//! who drops the body first.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::api::Api;
use crate::api::output::{EventError, Stage};
use crate::engine::Role;
use crate::error::ProxyError;
use crate::exchange::drive::{Drive, Head, RelayLimits};
use crate::exchange::record::Exchange;
use crate::exchange::transfer::Event;
use crate::metrics::LegStatus;
use crate::upstream::failure::Kind;
use crate::upstream::{LegFailure, Limit, Verdict};

/// How long an engine may take to end its answer after the last event before the response is ended without it.
const AFTER_END: Duration = Duration::from_secs(1);

/// Why hyper is told to break the connection off: an answer in one piece cannot end with an error event.
#[derive(Debug, thiserror::Error)]
#[error("decode's answer broke off")]
pub struct BrokenOff;

type Passed = Poll<Option<Result<Frame<Bytes>, BrokenOff>>>;

/// The body of the client's response.
pub struct Relay {
    /// The attempt with the answer that is passed on, until that is at its end.
    drive: Option<Drive>,
    exchange: Exchange,
    limits: RelayLimits,
    api: Api,
    role: Role,
    events: bool,
    /// How long the engine was waited for before the present wait, comments apart.
    waited: Duration,
    waiting_since: Instant,
    /// Whether the engine is being waited for; while the client is slow nobody waits for it.
    waiting: bool,
    begun: bool,
    output: bool,
    /// The last event was passed, or the engine's own error.
    ended: bool,
    /// The proxy's own words, which end the answer.
    own: Bytes,
    timer: Pin<Box<Sleep>>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Relay {
    /// Takes over an answer; `cut` fires when the process stops waiting for it.
    pub fn new(
        drive: Drive,
        head: &Head,
        exchange: Exchange,
        limits: RelayLimits,
        (api, cut): (Api, CancellationToken),
    ) -> Self {
        let mut relay = Relay::closed(exchange, limits, api, cut);
        (relay.drive, relay.role, relay.events) = (Some(drive), head.role, head.is_events);
        // A body that is over already is never asked for.
        relay.finish_if_over();
        relay
    }

    /// An answer that is at hand as a whole.
    pub(crate) fn at_hand(
        text: Bytes,
        exchange: Exchange,
        limits: RelayLimits,
        api: Api,
        cut: CancellationToken,
    ) -> Self {
        let mut relay = Relay::closed(exchange, limits, api, cut);
        relay.own = text;
        relay.exchange.first_output();
        relay.exchange.relayed(relay.own.len());
        relay.exchange.complete();
        relay
    }

    /// The client gets so many bytes more than were passed, or fewer.
    pub(crate) fn grows(&mut self, bytes: i64) {
        self.exchange.grows(bytes);
    }

    fn closed(exchange: Exchange, limits: RelayLimits, api: Api, cut: CancellationToken) -> Self {
        Relay {
            drive: None,
            exchange,
            limits,
            api,
            role: Role::Decode,
            events: false,
            waited: Duration::ZERO,
            waiting_since: limits.from,
            waiting: true,
            begun: false,
            output: false,
            ended: false,
            own: Bytes::new(),
            timer: Box::pin(tokio::time::sleep_until(limits.from + limits.first_byte.time)),
            cut: Box::pin(cut.cancelled_owned()),
        }
    }

    fn limit(&self) -> Limit {
        match (self.ended, self.begun) {
            (true, _) => Limit::new(AFTER_END, "end", ""),
            (false, true) => Limit::new(self.limits.idle, "byte", "--stream-idle-timeout"),
            (false, false) => self.limits.first_byte,
        }
    }

    /// A part goes to the client. `speaks` unless it is nothing but comments, which move no clock.
    fn pass(&mut self, data: &Bytes, speaks: bool) {
        self.exchange.relayed(data.len());
        match (speaks, self.waiting) {
            (true, _) => self.waited = Duration::ZERO,
            (false, true) => self.waited += self.waiting_since.elapsed(),
            (false, false) => {}
        }
        self.waiting = false;
        self.judge();
    }

    /// Records what the answer has proved by now.
    fn judge(&mut self) {
        let Some(drive) = &mut self.drive else { return };
        let Some(opening) = drive.opening() else { return };
        let (stage, error) = (opening.scanner.stage(), opening.scanner.take_error());
        if stage >= Stage::Begun && !self.begun {
            self.begun = true;
            self.exchange.first_output();
            opening.guard.engine.vitals.metrics.answered(self.limits.from.elapsed());
            drive.tell(Event::Report);
        }
        // One part may have both, and what comes first decides what is owed to prefill.
        if stage >= Stage::Output && !self.output && error.as_ref().is_none_or(|error| error.after >= Stage::Output) {
            self.output = true;
            drive.tell(Event::Output);
        }
        if let Some(error) = error {
            self.told(error);
        }
        if stage == Stage::Ended && !self.ended {
            self.succeed();
        }
    }

    /// The engine has told the client an error itself.
    fn told(&mut self, error: EventError) {
        let Some(drive) = &mut self.drive else { return };
        let Some(opening) = drive.opening() else { return };
        let failure = opening.told(error);
        opening.guard.end(failure.kind.status(), failure.kind.verdict());
        self.exchange.failed(&failure.error);
        self.ended = true;
        // After its first output that is nothing to the engines any more.
        drive.tell(Event::Failed(Role::Decode, failure.kind));
    }

    /// All of the answer has been passed: from here on nothing can make a failure of it, a client that leaves included.
    fn succeed(&mut self) {
        if let Some(drive) = &mut self.drive {
            if let Some(opening) = drive.opening() {
                opening.guard.end(LegStatus::Success, Verdict::Healthy);
            }
            drive.tell(Event::Output);
        }
        self.exchange.complete();
        self.ended = true;
    }

    /// Ends an answer with its last byte: nobody asks a body for more than was announced.
    fn finish_if_over(&mut self) {
        let is_over = self.drive.as_ref().and_then(Drive::peek).is_some_and(|opening| opening.is_over());
        if is_over && (self.ended || !self.events) {
            self.close();
        }
    }

    /// The answer has come to its end: the leg's place is given back, the connection returns to its pool.
    fn close(&mut self) {
        if !self.ended {
            self.succeed();
        }
        self.drive = None;
    }

    /// Decode's body is at its end.
    fn finish(&mut self) -> Passed {
        if let Some(opening) = self.drive.as_mut().and_then(Drive::opening) {
            opening.scanner.finish();
        }
        self.judge();
        if self.events && !self.ended {
            return self.fail(LegFailure::broken(self.role));
        }
        self.close();
        Poll::Ready(None)
    }

    /// The leg has failed, which ends the answer.
    fn fail(&mut self, failure: LegFailure) -> Passed {
        let event = match failure.kind {
            Kind::Timeout | Kind::ColdTimeout => Event::Overdue,
            kind => Event::Failed(Role::Decode, kind),
        };
        self.cut_off(&failure.error, (failure.kind.status(), failure.kind.verdict()), event)
    }

    /// The answer ends before its end.
    fn cut_off(&mut self, error: &ProxyError, end: (LegStatus, Verdict), event: Event) -> Passed {
        self.exchange.failed(error);
        let mut last = String::new();
        if let Some(mut drive) = self.drive.take() {
            if let Some(opening) = drive.opening() {
                opening.guard.end(end.0, end.1);
                if !opening.scanner.is_between_events() {
                    last.push_str("\n\n");
                }
            }
            drive.tell(event);
        }
        if !self.events {
            return Poll::Ready(Some(Err(BrokenOff)));
        }
        // A client that reads events must not take silence for a complete answer: one error event, no end marker.
        last.push_str(&self.exchange.event(error, self.api));
        Poll::Ready(Some(Ok(Frame::data(last.into()))))
    }

    /// One part of the answer, passed on as it is: all that came in one read.
    fn part(&mut self, data: Bytes) -> Passed {
        let opening = self.drive.as_mut().and_then(Drive::opening);
        let speaks = opening.is_some_and(|opening| opening.scanner.feed(&data));
        self.pass(&data, speaks);
        self.finish_if_over();
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    /// Waits for the engine within its limits. The timer is armed once and moved only when it fires: nothing is paid per part.
    fn wait(&mut self, cx: &mut Context<'_>) -> Passed {
        if self.cut.as_mut().poll(cx).is_ready() {
            let end = (LegStatus::Cancelled, Verdict::None);
            return self.cut_off(&ProxyError::Stopping, end, Event::ClientGone);
        }
        if !std::mem::replace(&mut self.waiting, true) {
            self.waiting_since = Instant::now();
        }
        loop {
            let limit = self.limit();
            // Before anything has begun the limit counts from prefill's end, whatever the client did meanwhile.
            let due = match self.begun || self.ended {
                true => self.waiting_since + limit.time.saturating_sub(self.waited),
                false => self.limits.from + limit.time,
            };
            if self.timer.deadline() > due {
                self.timer.as_mut().reset(due);
            }
            ready!(self.timer.as_mut().poll(cx));
            if Instant::now() < due {
                self.timer.as_mut().reset(due);
            } else if self.ended {
                self.close();
                return Poll::Ready(None);
            } else {
                return self.fail(LegFailure::timeout(self.role, limit));
            }
        }
    }
}

impl Body for Relay {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Passed {
        let relay = &mut *self;
        let Some(opening) = relay.drive.as_mut().and_then(Drive::opening) else {
            let own = std::mem::take(&mut relay.own);
            return Poll::Ready((!own.is_empty()).then(|| Ok(Frame::data(own))));
        };
        if let Some(kept) = opening.take_kept() {
            relay.pass(&kept, true);
            relay.finish_if_over();
            return Poll::Ready(Some(Ok(Frame::data(kept))));
        }
        match opening.poll_part(cx) {
            Poll::Ready(Some(Ok(data))) => relay.part(data),
            // What comes after the end is of no interest.
            Poll::Ready(Some(Err(_))) if !relay.ended => relay.fail(LegFailure::broken(relay.role)),
            Poll::Ready(_) => relay.finish(),
            Poll::Pending => relay.wait(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.drive.is_none() && self.own.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        match self.drive.as_ref().and_then(Drive::peek) {
            Some(opening) => opening.size_hint(),
            None => SizeHint::with_exact(self.own.len() as u64),
        }
    }
}

#[cfg(test)]
mod tests;
