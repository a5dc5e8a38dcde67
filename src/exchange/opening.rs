//! Decode's answer from its head to the commit: read part by part, and kept, until something in it proves that it may go to
//! the client (protocol W7, D12). Comments are dropped until then.

use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use tokio::time::Instant;

use crate::api::Api;
use crate::api::output::{EventError, Scanner, Stage, without_comments};
use crate::error::EngineAnswer;
use crate::pool::InFlight;
use crate::upstream::LegFailure;
use crate::upstream::answer::{Broken, Incoming};

/// How long an engine that has reported may take to show whether it computed: a token, or the error of a failed load, follows
/// within the same step, unless a parser holds tokens back.
const GRACE: Duration = Duration::from_millis(100);
/// The most that is kept before the commit: a preamble repeats the client's instructions.
const KEPT: usize = 1024 * 1024;

/// What one more part of an answer comes to.
#[derive(Debug)]
pub enum Step {
    /// It may go to the client: first output, or the whole of an empty answer.
    Ready,
    /// A comment: the server lives, and says so.
    Comment,
    /// Nothing yet.
    Waiting,
    /// The connection broke, the stream ended without an end, or the engine told an error before any output.
    Failed(LegFailure),
}

/// An answer that is not yet relayed.
#[derive(Debug)]
pub struct Opening {
    /// The engine's place.
    pub guard: InFlight,
    /// What has been read of it.
    pub scanner: Scanner,
    head: http::response::Parts,
    body: Incoming,
    kept: Vec<Bytes>,
    kept_bytes: usize,
    begun: Option<Instant>,
    begun_told: bool,
}

impl Opening {
    /// An answer whose head has come.
    pub fn new(response: Response<Incoming>, guard: InFlight, api: Api) -> Self {
        let (head, body) = response.into_parts();
        let content_type = head.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let events = content_type.is_some_and(|value| value.starts_with("text/event-stream"));
        let scanner = Scanner::new(api, events);
        Opening { guard, scanner, head, body, kept: Vec::new(), kept_bytes: 0, begun: None, begun_told: false }
    }

    /// Reads one more part. Safe to drop and ask again.
    pub async fn step(&mut self) -> Step {
        let body = &mut self.body;
        let part = poll_fn(|cx| body.poll_part(cx));
        let part = match self.begun {
            Some(begun) => match tokio::time::timeout_at(begun + GRACE, part).await {
                Ok(part) => part,
                Err(_) => return Step::Ready,
            },
            None => part.await,
        };
        match part {
            Some(Ok(data)) => self.take(data),
            Some(Err(Broken)) => Step::Failed(LegFailure::broken(self.guard.engine.role())),
            None => {
                self.scanner.finish();
                self.judge(self.scanner.comments()).unwrap_or_else(|| match self.scanner.is_events() {
                    true => Step::Failed(LegFailure::broken(self.guard.engine.role())),
                    false => Step::Ready,
                })
            }
        }
    }

    fn take(&mut self, data: Bytes) -> Step {
        let comments = self.scanner.comments();
        self.scanner.feed(&data);
        self.kept_bytes += data.len();
        self.kept.push(data);
        self.judge(comments).unwrap_or(Step::Waiting)
    }

    /// What is known now; nothing if nothing is new.
    fn judge(&mut self, comments: u32) -> Option<Step> {
        if let Some(error) = self.scanner.take_early_error() {
            return Some(Step::Failed(self.told(error)));
        }
        match self.scanner.stage() {
            Stage::Output | Stage::Ended => return Some(Step::Ready),
            Stage::Begun => self.begun = self.begun.or_else(|| Some(Instant::now())),
            Stage::Waiting => {}
        }
        (self.scanner.comments() > comments).then_some(Step::Comment)
    }

    /// What an error event says of the leg.
    pub fn told(&self, error: EventError) -> LegFailure {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let answer = EngineAnswer { status: error.status, headers, body: error.body };
        LegFailure::refused(self.guard.engine.role(), answer)
    }

    /// Whether the leg no longer waits for KV.
    pub(crate) fn is_begun(&self) -> bool {
        self.scanner.stage() >= Stage::Begun
    }

    /// The same, the first time that it is so.
    pub(crate) fn is_newly_begun(&mut self) -> bool {
        self.is_begun() && !std::mem::replace(&mut self.begun_told, true)
    }

    /// Whether so much is kept that no more is read before the commit.
    pub(crate) fn is_full(&self) -> bool {
        self.kept_bytes > KEPT
    }

    /// Forgets what is kept: nobody will read it.
    pub fn forget(&mut self) {
        self.kept.clear();
        self.kept_bytes = 0;
    }

    /// The answer's status and headers, to be asked for once.
    pub(crate) fn take_head(&mut self) -> (StatusCode, HeaderMap) {
        (self.head.status, std::mem::take(&mut self.head.headers))
    }

    /// Drops the comments that are kept.
    pub(crate) fn drop_comments(&mut self) {
        if self.scanner.comments() > 0 {
            self.kept = vec![without_comments(&self.kept.concat()).into()];
        }
    }

    /// What was kept.
    pub(crate) fn take_kept(&mut self) -> Option<Bytes> {
        if self.kept.is_empty() {
            return None;
        }
        let mut kept = std::mem::take(&mut self.kept);
        match kept.len() {
            1 => kept.pop().filter(|kept| !kept.is_empty()),
            _ => Some(kept.concat().into()),
        }
    }

    /// The next part of the body, once what was kept is taken.
    pub(crate) fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Broken>>> {
        self.body.poll_part(cx)
    }

    /// Whether no byte is left, kept or to come: a body of known length is not asked for more than that.
    pub fn is_over(&self) -> bool {
        self.kept.is_empty() && self.body.is_over()
    }

    /// The bytes that are left, if that is known.
    pub(crate) fn size_hint(&self) -> http_body::SizeHint {
        if self.kept.is_empty() { self.body.size_hint() } else { http_body::SizeHint::default() }
    }
}

#[cfg(test)]
mod tests;
