//! An answer whose usage tells what prefill had of its prompt (`--report-cached-tokens`), or from whose usage is heard what decode
//! alone had of it. Every other event passes as it comes.

use std::panic::resume_unwind;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame};
use memchr::memchr;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::Sleep;
use tokio_util::task::AbortOnDropHandle;

use super::events::Events;
use crate::api::{Api, usage};
use crate::turns::LARGE;

/// The most that is kept until its end has come. What is longer passes as it is.
pub(super) const MOST: usize = 64 << 20;
/// WRITE: how long the usage waits for prefill's answer, which mostly came long before.
const GRACE: Duration = Duration::from_secs(1);

/// Hears of how many cached tokens an engine says, and of how many in all; of an answer that ends without a word of it, too.
pub(super) type Hear = Box<dyn FnOnce(Option<(u64, u64)>) + Send>;

/// What a usage is looked at for.
pub(super) enum Purpose {
    /// It is to tell what prefill had.
    Tell(Told),
    /// It is heard, once.
    Hear(Option<Hear>),
}

/// What prefill had.
pub(super) enum Told {
    /// It may be told yet; the first that asks waits for a moment, nobody after that.
    Waiting(oneshot::Receiver<u64>, Patience),
    Known(Option<u64>),
}

/// How long is waited.
pub(super) enum Patience {
    Unasked,
    Waits(Pin<Box<Sleep>>),
    Over,
}

impl Told {
    /// It will be told by this.
    pub(super) fn by(receiver: oneshot::Receiver<u64>) -> Told {
        Told::Waiting(receiver, Patience::Unasked)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<u64>> {
        let (receiver, patience) = match self {
            Told::Known(tokens) => return Poll::Ready(*tokens),
            Told::Waiting(receiver, patience) => (receiver, patience),
        };
        if let Poll::Ready(told) = Pin::new(receiver).poll(cx) {
            let tokens = told.ok();
            *self = Told::Known(tokens);
            return Poll::Ready(tokens);
        }
        if matches!(patience, Patience::Unasked) {
            *patience = Patience::Waits(Box::pin(tokio::time::sleep(GRACE)));
        }
        if let Patience::Waits(timer) = patience {
            ready!(timer.as_mut().poll(cx));
            *patience = Patience::Over;
        }
        Poll::Ready(None)
    }
}

/// What was looked at: what the client gets, by how many bytes more than it was, and what an engine tells.
struct Seen {
    piece: Bytes,
    growth: i64,
    told: Option<(u64, u64)>,
}

impl Seen {
    /// Looks for what an engine tells, or puts in what prefill had.
    fn of(piece: Bytes, (api, is_events): (Api, bool), tells: Option<Option<u64>>) -> Seen {
        let as_it_is = |told| Seen { piece: piece.clone(), growth: 0, told };
        let data = if is_events { data(&piece) } else { Some(piece.clone()) };
        let Some(data) = data else { return as_it_is(None) };
        let Some(tokens) = tells else { return as_it_is(usage::told(api, &data)) };
        let Some(corrected) = usage::corrected(api, &data, tokens) else { return as_it_is(None) };
        let growth = corrected.len() as i64 - data.len() as i64;
        if data.len() == piece.len() {
            return Seen { piece: corrected, growth, told: None };
        }
        let from = data.as_ptr() as usize - piece.as_ptr() as usize;
        let parts = [&piece[..from], &corrected, &piece[from + data.len()..]];
        Seen { piece: parts.concat().into(), growth, told: None }
    }
}

/// The body of such an answer.
pub(super) struct Watched<B> {
    answer: B,
    api: Api,
    is_events: bool,
    purpose: Purpose,
    /// Told by how many bytes more the client gets.
    grows: fn(&mut B, i64),
    events: Events,
    /// What has a usage, and waits for prefill.
    held: Option<Bytes>,
    /// A large one, looked at apart from the threads that serve.
    apart: Option<AbortOnDropHandle<Seen>>,
    out: BytesMut,
    /// It is too long to be kept.
    as_it_is: bool,
    is_over: bool,
}

impl<B> Watched<B> {
    /// An answer, and what its usage is looked at for.
    pub(super) fn new(
        answer: B,
        (api, is_events): (Api, bool),
        purpose: Purpose,
        grows: fn(&mut B, i64),
    ) -> Watched<B> {
        Watched {
            answer,
            api,
            is_events,
            purpose,
            grows,
            events: Events::default(),
            held: None,
            apart: None,
            out: BytesMut::new(),
            as_it_is: false,
            is_over: false,
        }
    }

    /// The next that can be looked at: an event, or the whole.
    fn piece(&mut self) -> Option<Bytes> {
        if let Some(event) = self.held.take() {
            return Some(event);
        }
        if !self.is_events || self.is_over {
            return (self.is_over && self.events.held() > 0).then(|| self.events.take());
        }
        self.events.next()
    }

    /// Passes on what can be; pending while something waits.
    fn pass(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(apart) = &mut self.apart {
                match ready!(Pin::new(apart).poll(cx)) {
                    Ok(seen) => self.take(seen),
                    // A defect ends this answer as it would have here.
                    Err(cut) if cut.is_panic() => resume_unwind(cut.into_panic()),
                    // The runtime ends.
                    Err(_) => return Poll::Pending,
                }
                self.apart = None;
            }
            let Some(piece) = self.piece() else { break };
            if !usage::is_in(&piece) {
                self.out.extend_from_slice(&piece);
                continue;
            }
            let tells = match &mut self.purpose {
                Purpose::Hear(_) => None,
                Purpose::Tell(told) => match told.poll(cx) {
                    Poll::Ready(tokens) => Some(tokens),
                    Poll::Pending => {
                        self.held = Some(piece);
                        return Poll::Pending;
                    }
                },
            };
            let of = (self.api, self.is_events);
            if piece.len() < LARGE {
                self.take(Seen::of(piece, of, tells));
            } else {
                // Of a client that has left nobody need begin.
                self.apart = Some(AbortOnDropHandle::new(spawn_blocking(move || Seen::of(piece, of, tells))));
            }
        }
        if self.events.held() > MOST {
            self.as_it_is = true;
            self.out.extend_from_slice(&self.events.take());
        }
        Poll::Ready(())
    }

    fn take(&mut self, seen: Seen) {
        let Seen { piece, growth, told } = seen;
        if let (Purpose::Hear(hear), Some(told)) = (&mut self.purpose, told) {
            hear.take().into_iter().for_each(|hear| hear(Some(told)));
        }
        if growth != 0 {
            (self.grows)(&mut self.answer, growth);
        }
        match self.out.is_empty() {
            true => self.out = BytesMut::from(piece),
            false => self.out.extend_from_slice(&piece),
        }
    }
}

/// The data of an event.
fn data(event: &Bytes) -> Option<Bytes> {
    let mut rest = &event[..];
    loop {
        let end = memchr(b'\n', rest).unwrap_or(rest.len());
        match rest[..end].strip_prefix(b"data:") {
            Some(data) => return Some(event.slice_ref(data.trim_ascii())),
            None => rest = rest.get(end + 1..)?,
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Watched<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        loop {
            let passed = this.pass(cx);
            if !this.out.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(this.out.split().freeze()))));
            }
            ready!(passed);
            if this.is_over {
                if let Purpose::Hear(hear) = &mut this.purpose {
                    hear.take().into_iter().for_each(|hear| hear(None));
                }
                return Poll::Ready(None);
            }
            let part = match ready!(Pin::new(&mut this.answer).poll_frame(cx)) {
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => {
                    this.is_over = true;
                    continue;
                }
            };
            let is_whole = this.is_events && this.events.held() == 0 && part.ends_with(b"\n\n");
            if this.as_it_is || (is_whole && !usage::is_in(&part)) {
                return Poll::Ready(Some(Ok(Frame::data(part))));
            }
            this.events.push(&part);
        }
    }
}

#[cfg(test)]
mod tests;
