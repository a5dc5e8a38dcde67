//! The answer's body on its way to the client: decode's bytes as they come, under an idle limit, with the exchange's account
//! and decode's seat inside, so that whatever ends the body ends both.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::account::Exchange;
use crate::engine::Role;
use crate::error::ProxyError;
use crate::metrics::LegStatus;
use crate::parked::Unread;
use crate::policy::Contact;
use crate::pool::{Seat, Verdict};
use crate::upstream::{LegFailure, Retry};

/// The last event of an OpenAI stream, at the start of its line.
const DONE: &[u8] = b"\ndata: [DONE]";
/// Parts that follow each other within this time are a burst, and are passed on together: each write costs a system call.
const BURST: Duration = Duration::from_micros(100);
/// A burst is passed on at this size, whatever follows.
const GATHERED: usize = 16 * 1024;
/// How long decode may take to end its answer after [`DONE`] before the response is ended without it.
const AFTER_DONE: Duration = Duration::from_secs(1);

/// Limits on the time between two parts of decode's answer.
#[derive(Clone, Copy, Debug)]
pub struct RelayLimits {
    /// On the first byte: the limit, what it is a limit on, and the option that sets it.
    pub first_byte: (Duration, &'static str, &'static str),
    /// When prefill was done, from which the limit on the first byte counts.
    pub from: Instant,
    /// Between bytes (`--stream-idle-timeout`).
    pub idle: Duration,
}

/// Decode's answer, as the exchange has it when its head goes to the client.
pub struct Open {
    /// What is left of the body.
    pub body: reqwest::Body,
    /// A first part that was read before the commit.
    pub first: Option<Bytes>,
    /// Decode's place.
    pub seat: Seat,
    /// The pair's meeting.
    pub contact: Contact,
    /// What is owed to the leg as long as no byte has come.
    pub unread: Option<Unread>,
}

/// Why hyper is told to break the connection off: an answer in one piece cannot end with an error event.
#[derive(Debug, thiserror::Error)]
#[error("decode's answer broke off")]
pub struct BrokenOff;

/// The body of the client's response.
pub struct Relay {
    open: Option<Open>,
    exchange: Exchange,
    limits: RelayLimits,
    events: bool,
    waiting_since: Instant,
    /// Whether decode is being waited for; while the client is slow nobody waits for decode.
    waiting: bool,
    begun: bool,
    done: bool,
    tail: Vec<u8>,
    last_part: Instant,
    gathered: BytesMut,
    timer: Pin<Box<Sleep>>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Relay {
    /// Takes over an answer. `events` says whether it is a stream of events; `cut` fires when the process stops waiting for it.
    pub fn new(open: Open, exchange: Exchange, limits: RelayLimits, events: bool, cut: CancellationToken) -> Self {
        Relay {
            open: Some(open),
            exchange,
            limits,
            events,
            waiting_since: limits.from,
            waiting: true,
            begun: false,
            done: false,
            tail: b"\n".to_vec(),
            last_part: limits.from,
            gathered: BytesMut::new(),
            timer: Box::pin(tokio::time::sleep_until((limits.from + limits.first_byte.0).into())),
            cut: Box::pin(cut.cancelled_owned()),
        }
    }

    fn limit(&self) -> (Duration, &'static str, &'static str) {
        match (self.done, self.begun) {
            (true, _) => (AFTER_DONE, "end", ""),
            (false, true) => (self.limits.idle, "byte", "--stream-idle-timeout"),
            (false, false) => self.limits.first_byte,
        }
    }

    fn pass(&mut self, data: &Bytes) {
        if let (false, Some(open)) = (self.begun, &mut self.open) {
            self.begun = true;
            open.contact.prove();
            open.unread = None;
            open.seat.engine.vitals.metrics.answered(self.waiting_since.elapsed());
        }
        self.exchange.relayed(data.len());
        self.waiting = false;
        if self.events {
            self.look_for_done(data);
        }
    }

    /// The end marker may be cut anywhere, so the last bytes of the part before are kept.
    fn look_for_done(&mut self, data: &[u8]) {
        let keep = DONE.len() + 4;
        if data.len() >= keep {
            self.tail.clear();
            self.tail.extend_from_slice(&data[data.len() - keep..]);
        } else {
            self.tail.extend_from_slice(data);
            let surplus = self.tail.len().saturating_sub(keep);
            self.tail.drain(..surplus);
        }
        self.done = self.tail.trim_ascii_end().ends_with(DONE);
    }

    /// The answer is over: the leg's seat is given back, the connection returns to its pool or is closed.
    fn finish(&mut self) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        if let Some(mut open) = self.open.take() {
            open.seat.end(LegStatus::Success, Verdict::Healthy);
            open.unread = None;
        }
        self.exchange.complete();
        match self.gathered.is_empty() {
            true => Poll::Ready(None),
            false => self.flush(),
        }
    }

    fn fail(&mut self, failure: LegFailure) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        self.exchange.failed(&failure.error);
        if let Some(mut open) = self.open.take() {
            open.seat.end(failure.status, failure.verdict);
            if let (LegStatus::Timeout, Some(unread)) = (failure.status, &mut open.unread) {
                unread.overdue();
            }
            leave(open);
        }
        if !self.events {
            return Poll::Ready(Some(Err(BrokenOff)));
        }
        // A client that reads events must not take silence for a complete answer: one error event, no end marker.
        let event = format!("data: {}\n\n", failure.error.body());
        self.gathered.extend_from_slice(event.as_bytes());
        self.flush()
    }

    fn flush(&mut self) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        Poll::Ready(Some(Ok(Frame::data(self.gathered.split().freeze()))))
    }

    /// One part of decode's answer: passed on as it is, unless it is one of a burst. Those are gathered as long as decode's
    /// connection has more to give at once, which it is given one turn to say.
    fn part(&mut self, data: Bytes, cx: &Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        self.pass(&data);
        let now = Instant::now();
        let burst = self.events && now.duration_since(std::mem::replace(&mut self.last_part, now)) < BURST;
        if !burst && self.gathered.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        self.gathered.extend_from_slice(&data);
        if self.gathered.len() >= GATHERED {
            return self.flush();
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Lets go of an answer that is not read to its end: a leg that must not be closed yet is handed on.
fn leave(open: Open) {
    let Open { body, first, seat, contact, unread } = open;
    if let (Some(unread), None) = (unread, first) {
        unread.outlive(body, seat, contact);
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

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let relay = &mut *self;
        let Some(open) = &mut relay.open else {
            return Poll::Ready(None);
        };
        if let Some(first) = open.first.take() {
            relay.pass(&first);
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        match Pin::new(&mut open.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => relay.part(data, cx),
                Err(_) => relay.finish(),
            },
            Poll::Ready(Some(Err(_))) => relay.fail(LegFailure::broken(Role::Decode)),
            Poll::Ready(None) => relay.finish(),
            Poll::Pending if !relay.gathered.is_empty() => relay.flush(),
            Poll::Pending => {
                if relay.cut.as_mut().poll(cx).is_ready() {
                    let error = ProxyError::Stopping;
                    let (status, verdict) = (LegStatus::Cancelled, Verdict::None);
                    return relay.fail(LegFailure { error, status, verdict, retry: Retry::Never });
                }
                if !std::mem::replace(&mut relay.waiting, true) {
                    relay.waiting_since = Instant::now();
                }
                // The timer is armed once and moved only when it fires: nothing is paid per part.
                loop {
                    let (limit, what, option) = relay.limit();
                    let due = relay.waiting_since + limit;
                    if relay.timer.deadline() > due.into() {
                        relay.timer.as_mut().reset(due.into());
                    }
                    ready!(relay.timer.as_mut().poll(cx));
                    if Instant::now() < due {
                        relay.timer.as_mut().reset(due.into());
                    } else if relay.done {
                        return relay.finish();
                    } else {
                        return relay.fail(LegFailure::timeout(Role::Decode, what, limit, option));
                    }
                }
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.open {
            Some(open) if open.first.is_none() => open.body.size_hint(),
            _ => SizeHint::default(),
        }
    }
}
