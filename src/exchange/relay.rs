//! The answer's body on its way to the client: the engine's bytes as they come, under an idle limit, with the exchange's account
//! and the leg's seat inside. What the answer has proved is recorded with the part that proves it, so that no end depends on
//! who drops the body first.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::api::Api;
use crate::api::output::{EventError, Stage};
use crate::engine::Role;
use crate::error::ProxyError;
use crate::exchange::opening::Opening;
use crate::exchange::parked::Unread;
use crate::exchange::record::Exchange;
use crate::metrics::LegStatus;
use crate::pool::pairs::Contact;
use crate::upstream::Verdict;
use crate::upstream::{LegFailure, Retry};

/// Parts that follow each other within this time are a burst, and are passed on together: each write costs a system call.
const BURST: Duration = Duration::from_micros(100);
/// A burst is passed on at this size, whatever follows.
const GATHERED: usize = 16 * 1024;
/// How long an engine may take to end its answer after the last event before the response is ended without it.
const AFTER_END: Duration = Duration::from_secs(1);

/// Limits on the time between two parts of an answer.
#[derive(Clone, Copy, Debug)]
pub struct RelayLimits {
    /// On the first output: the limit, what it is a limit on, and the option that sets it.
    pub first_byte: (Duration, &'static str, &'static str),
    /// When prefill was done, from which the limit on the first output counts.
    pub from: Instant,
    /// Between bytes (`--stream-idle-timeout`).
    pub idle: Duration,
}

/// An engine's answer, as the exchange has it when its head goes to the client.
pub struct Open {
    /// The answer.
    pub opening: Box<Opening>,
    /// The pair's meeting, where there is a pair.
    pub contact: Option<Contact>,
    /// What is owed to the leg as long as it has given no output.
    pub unread: Option<Unread>,
}

/// Why hyper is told to break the connection off: an answer in one piece cannot end with an error event.
#[derive(Debug, thiserror::Error)]
#[error("decode's answer broke off")]
pub struct BrokenOff;

type Passed = Poll<Option<Result<Frame<Bytes>, BrokenOff>>>;

/// The body of the client's response.
pub struct Relay {
    open: Option<Open>,
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
    /// The last event was passed, or the engine's own error.
    ended: bool,
    last_part: Instant,
    gathered: BytesMut,
    timer: Pin<Box<Sleep>>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Relay {
    /// Takes over an answer; `cut` fires when the process stops waiting for it.
    pub fn new(open: Open, exchange: Exchange, limits: RelayLimits, api: Api, cut: CancellationToken) -> Self {
        let (role, events) = (open.opening.seat.engine.role(), open.opening.scanner.is_events());
        let mut relay = Relay::closed(exchange, limits, api, cut);
        (relay.open, relay.role, relay.events) = (Some(open), role, events);
        // A body that is over already is never asked for.
        relay.finish_if_over();
        relay
    }

    /// An answer that is at hand as a whole.
    pub fn at_hand(text: Bytes, exchange: Exchange, limits: RelayLimits, api: Api, cut: CancellationToken) -> Self {
        let mut relay = Relay::closed(exchange, limits, api, cut);
        relay.gathered = text.into();
        relay.exchange.first_output();
        relay.exchange.relayed(relay.gathered.len());
        relay.exchange.complete();
        relay
    }

    fn closed(exchange: Exchange, limits: RelayLimits, api: Api, cut: CancellationToken) -> Self {
        Relay {
            open: None,
            exchange,
            limits,
            api,
            role: Role::Decode,
            events: false,
            waited: Duration::ZERO,
            waiting_since: limits.from,
            waiting: true,
            begun: false,
            ended: false,
            last_part: limits.from,
            gathered: BytesMut::new(),
            timer: Box::pin(tokio::time::sleep_until((limits.from + limits.first_byte.0).into())),
            cut: Box::pin(cut.cancelled_owned()),
        }
    }

    fn limit(&self) -> (Duration, &'static str, &'static str) {
        match (self.ended, self.begun) {
            (true, _) => (AFTER_END, "end", ""),
            (false, true) => (self.limits.idle, "byte", "--stream-idle-timeout"),
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
        let Some(open) = &mut self.open else { return };
        let stage = open.opening.scanner.stage();
        if stage >= Stage::Begun && !self.begun {
            self.begun = true;
            if let Some(contact) = &mut open.contact {
                contact.prove();
            }
            self.exchange.first_output();
            open.opening.seat.engine.vitals.metrics.answered(self.limits.from.elapsed());
        }
        if let Some(error) = open.opening.scanner.take_error() {
            self.told(error);
        } else if stage >= Stage::Output {
            open.unread = None;
        }
        if stage == Stage::Ended && !self.ended {
            self.succeed();
        }
    }

    /// The engine has told the client an error itself.
    fn told(&mut self, error: EventError) {
        let Some(open) = &mut self.open else { return };
        let early = error.after < Stage::Output;
        let failure = open.opening.told(error);
        open.opening.seat.end(failure.status, failure.verdict);
        self.exchange.failed(&failure.error);
        self.ended = true;
        // Its own clean-up does not run once a head was sent, so nobody has told prefill.
        if let (Some(unread), true) = (open.unread.take(), early) {
            unread.refused();
        }
    }

    /// All of the answer has been passed: from here on nothing can make a failure of it, a client that leaves included.
    fn succeed(&mut self) {
        if let Some(open) = &mut self.open {
            open.opening.seat.end(LegStatus::Success, Verdict::Healthy);
            open.unread = None;
        }
        self.exchange.complete();
        self.ended = true;
    }

    /// Ends an answer of known length with its last byte: nobody asks a body for more than was announced.
    fn finish_if_over(&mut self) -> bool {
        let over = self.open.as_ref().is_some_and(|open| open.opening.is_over()) && (self.ended || !self.events);
        if over {
            self.close();
        }
        over
    }

    /// The answer has come to its end: the leg's place is given back, the connection returns to its pool.
    fn close(&mut self) {
        if !self.ended {
            self.succeed();
        }
        self.open = None;
    }

    /// Decode's body is at its end.
    fn finish(&mut self) -> Passed {
        if let Some(open) = &mut self.open {
            open.opening.scanner.finish();
        }
        self.judge();
        if self.events && !self.ended {
            return self.fail(LegFailure::broken(self.role));
        }
        self.close();
        if self.gathered.is_empty() { Poll::Ready(None) } else { self.flush() }
    }

    fn fail(&mut self, failure: LegFailure) -> Passed {
        self.exchange.failed(&failure.error);
        if self.open.as_ref().is_some_and(|open| !open.opening.scanner.is_between_events()) {
            self.gathered.extend_from_slice(b"\n\n");
        }
        if let Some(mut open) = self.open.take() {
            open.opening.seat.end(failure.status, failure.verdict);
            if let (LegStatus::Timeout, Some(unread)) = (failure.status, &mut open.unread) {
                unread.overdue();
            }
            leave(open);
        }
        if !self.events {
            return Poll::Ready(Some(Err(BrokenOff)));
        }
        // A client that reads events must not take silence for a complete answer: one error event, no end marker.
        self.gathered.extend_from_slice(failure.error.event(self.api).as_bytes());
        self.flush()
    }

    fn flush(&mut self) -> Passed {
        Poll::Ready(Some(Ok(Frame::data(self.gathered.split().freeze()))))
    }

    /// One part of the answer: passed on as it is, unless it is one of a burst. Those are gathered as long as the engine's
    /// connection has more to give at once, which it is given one turn to say.
    fn part(&mut self, data: Bytes, cx: &Context<'_>) -> Passed {
        let speaks = self.open.as_mut().is_some_and(|open| open.opening.scanner.feed(&data));
        self.pass(&data, speaks);
        let over = self.finish_if_over();
        let now = Instant::now();
        let burst = self.events && now.duration_since(std::mem::replace(&mut self.last_part, now)) < BURST;
        if !burst && self.gathered.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        self.gathered.extend_from_slice(&data);
        if over || self.gathered.len() >= GATHERED {
            return self.flush();
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Waits for the engine within its limits. The timer is armed once and moved only when it fires: nothing is paid per part.
    fn wait(&mut self, cx: &mut Context<'_>) -> Passed {
        if self.cut.as_mut().poll(cx).is_ready() {
            let (status, verdict) = (LegStatus::Cancelled, Verdict::None);
            return self.fail(LegFailure { error: ProxyError::Stopping, status, verdict, retry: Retry::Never });
        }
        if !std::mem::replace(&mut self.waiting, true) {
            self.waiting_since = Instant::now();
        }
        loop {
            let (limit, what, option) = self.limit();
            // Before anything has begun the limit counts from prefill's end, whatever the client did meanwhile.
            let due = match self.begun || self.ended {
                true => self.waiting_since + limit.saturating_sub(self.waited),
                false => self.limits.from + limit,
            };
            if self.timer.deadline() > due.into() {
                self.timer.as_mut().reset(due.into());
            }
            ready!(self.timer.as_mut().poll(cx));
            if Instant::now() < due {
                self.timer.as_mut().reset(due.into());
            } else if self.ended {
                self.close();
                return Poll::Ready(None);
            } else {
                return self.fail(LegFailure::timeout(self.role, what, limit, option));
            }
        }
    }
}

/// Lets go of an answer that is not read to its end: a leg that must not be closed yet is handed on.
fn leave(open: Open) {
    let Open { opening, contact, unread } = open;
    if let (Some(unread), false) = (unread, opening.is_begun()) {
        unread.outlive(opening, contact);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(open) = self.open.take() {
            leave(open);
        }
    }
}

impl Body for Relay {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Passed {
        let relay = &mut *self;
        let Some(open) = &mut relay.open else {
            return if relay.gathered.is_empty() { Poll::Ready(None) } else { relay.flush() };
        };
        if let Some(kept) = open.opening.take_kept() {
            relay.pass(&kept, true);
            relay.finish_if_over();
            return Poll::Ready(Some(Ok(Frame::data(kept))));
        }
        match open.opening.poll_part(cx) {
            Poll::Ready(Some(Ok(data))) => relay.part(data, cx),
            // What comes after the end is of no interest.
            Poll::Ready(Some(Err(()))) if !relay.ended => relay.fail(LegFailure::broken(relay.role)),
            Poll::Ready(_) => relay.finish(),
            Poll::Pending if !relay.gathered.is_empty() => relay.flush(),
            Poll::Pending => relay.wait(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.open.is_none() && self.gathered.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.open {
            Some(open) => open.opening.size_hint(),
            None => SizeHint::with_exact(self.gathered.len() as u64),
        }
    }
}
