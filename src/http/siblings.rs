//! Several answers as one: each sibling is an exchange with a pair and a record of its own, and what they say goes to the client together.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, Limited};
use tokio::task::JoinError;
use tokio_util::task::AbortOnDropHandle;

use super::events::Events;
use crate::api::Api;
use crate::api::siblings::{Becomes, Shape, Streams, merged};
use crate::engine::Role;
use crate::error::ProxyError;
use crate::exchange::record::Exchange;

/// The most of one sibling's whole answer, or of one of its events.
const MOST: usize = 64 << 20;

/// A sibling that has no answer yet: a task of its own, which ends with its handle.
pub(super) type Asking = AbortOnDropHandle<Result<Response, ProxyError>>;

/// What a task came to. One that panics is a defect.
fn answer(ended: Result<Result<Response, ProxyError>, JoinError>) -> Result<Response, ProxyError> {
    ended.unwrap_or(Err(ProxyError::Internal))
}

/// Whole answers, waited for and made one.
pub(super) async fn whole(asking: Vec<Asking>, shape: Shape) -> Result<(HeaderMap, Bytes), ProxyError> {
    let read = asking.into_iter().map(|asking| async {
        let (head, body) = answer(asking.await)?.into_parts();
        match Limited::new(body, MOST).collect().await {
            Ok(body) => Ok((head.headers, body.to_bytes())),
            Err(error) if error.is::<http_body_util::LengthLimitError>() => {
                Err(ProxyError::AnswerTooLarge { role: Role::Decode, limit: MOST })
            }
            Err(_) => Err(ProxyError::Broken { role: Role::Decode }),
        }
    });
    let answers = futures::future::try_join_all(read).await?;
    let bodies: Vec<Bytes> = answers.iter().map(|(_, body)| body.clone()).collect();
    // Larger ones are the sum of what was read anyhow.
    let answer = merged(&bodies, shape).map_err(|_| ProxyError::Unlike)?;
    let mut headers = answers.into_iter().next().map(|(headers, _)| headers).unwrap_or_default();
    headers.remove(header::CONTENT_LENGTH);
    Ok((headers, answer))
}

/// One sibling of a stream.
pub(super) struct Part {
    index: u32,
    state: State,
    events: Events,
}

enum State {
    Asking(Asking),
    Reading(Body),
    Ended,
}

/// Waits until the first of several streams has begun; the others may wait for room that it gives back at its end.
///
/// # Errors
/// What a sibling failed of before that.
pub(super) async fn begun(asking: Vec<Asking>) -> Result<(HeaderMap, Vec<Part>), ProxyError> {
    let mut parts: Vec<Part> = (0..)
        .zip(asking)
        .map(|(index, asking)| Part { index, state: State::Asking(asking), events: Events::default() })
        .collect();
    let mut headers = std::future::poll_fn(|cx| {
        for part in &mut parts {
            let State::Asking(asking) = &mut part.state else { continue };
            if let Poll::Ready(ended) = Pin::new(asking).poll(cx) {
                let (head, body) = answer(ended)?.into_parts();
                part.state = State::Reading(body);
                return Poll::Ready(Ok(head.headers));
            }
        }
        Poll::Pending
    })
    .await?;
    headers.remove(header::CONTENT_LENGTH);
    Ok((headers, parts))
}

/// The streams of all siblings as one body. One that fails ends it.
pub(super) struct Together {
    parts: Vec<Part>,
    streams: Streams,
    api: Api,
    out: BytesMut,
    /// Whether nothing more comes.
    over: bool,
    exchange: Exchange,
}

impl Together {
    /// Takes over what has begun.
    pub(super) fn new(parts: Vec<Part>, (api, shape): (Api, Shape), exchange: Exchange) -> Together {
        Together { parts, streams: Streams::new(shape), api, out: BytesMut::new(), over: false, exchange }
    }

    /// Reads what a sibling has, up to something for the client.
    fn pull(&mut self, number: usize, cx: &mut Context<'_>) {
        while !self.over && self.out.is_empty() {
            let part = &mut self.parts[number];
            match &mut part.state {
                State::Ended => return,
                State::Asking(asking) => match Pin::new(asking).poll(cx).map(answer) {
                    Poll::Pending => return,
                    Poll::Ready(Ok(response)) => part.state = State::Reading(response.into_body()),
                    Poll::Ready(Err(error)) => self.fail(&error),
                },
                State::Reading(body) => match Pin::new(body).poll_frame(cx) {
                    Poll::Pending => return,
                    Poll::Ready(None) if part.events.take().trim_ascii().is_empty() => part.state = State::Ended,
                    // Its events do not end as the API's do.
                    Poll::Ready(None) => self.fail(&ProxyError::Unlike),
                    Poll::Ready(Some(Err(_))) => self.fail(&ProxyError::Broken { role: Role::Decode }),
                    Poll::Ready(Some(Ok(frame))) => {
                        part.events.push(frame.data_ref().map_or(&[][..], |data| data));
                        self.events(number);
                    }
                },
            }
        }
    }

    /// Passes the whole events on that a sibling has sent.
    fn events(&mut self, number: usize) {
        while !self.over {
            let part = &mut self.parts[number];
            let Some(event) = part.events.next() else {
                if part.events.held() > MOST {
                    self.fail(&ProxyError::AnswerTooLarge { role: Role::Decode, limit: MOST });
                }
                return;
            };
            let Some(data) = event.strip_prefix(b"data:").map(|data| event.slice_ref(data.trim_ascii())) else {
                // A comment: its server lives.
                self.out.extend_from_slice(&event);
                continue;
            };
            match self.streams.event(part.index, &data) {
                Ok(Becomes::Data(data)) => {
                    self.exchange.first_output();
                    self.say(&data);
                }
                Ok(Becomes::Kept | Becomes::Done) => {}
                Ok(Becomes::Error) => {
                    self.out.extend_from_slice(&event);
                    self.exchange.cut_by_sibling();
                    self.end();
                }
                Err(_) => self.fail(&ProxyError::Unlike),
            }
        }
    }

    fn say(&mut self, data: &[u8]) {
        for part in [b"data: ", data, b"\n\n"] {
            self.out.extend_from_slice(part);
        }
    }

    fn fail(&mut self, error: &ProxyError) {
        self.exchange.failed(error);
        let event = self.exchange.event(error, self.api);
        self.out.extend_from_slice(event.as_bytes());
        self.end();
    }

    /// Nothing more comes; siblings that are under way are left.
    fn end(&mut self) {
        self.over = true;
        self.parts.clear();
    }

    fn finish(&mut self) {
        if let Some(totals) = self.streams.totals() {
            self.say(&totals);
        }
        self.say(b"[DONE]");
        self.exchange.complete();
        self.end();
    }
}

impl http_body::Body for Together {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        for number in 0..this.parts.len() {
            if !this.over {
                this.pull(number, cx);
            }
        }
        if !this.over && this.parts.iter().all(|part| matches!(part.state, State::Ended)) {
            this.finish();
        }
        if this.out.is_empty() {
            return if this.over { Poll::Ready(None) } else { Poll::Pending };
        }
        this.exchange.relayed(this.out.len());
        Poll::Ready(Some(Ok(Frame::data(this.out.split().freeze()))))
    }
}

#[cfg(test)]
mod tests;
