//! The body of an engine's answer: part by part as it comes, or read to its end.

use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http_body::SizeHint;

use super::connection::Connection;
use super::framing::{Framing, Malformed};
use super::idle::Home;
use crate::engine::Role;
use crate::error::ProxyError;
use crate::turns::Turns;

/// The largest answer that is read whole.
pub(crate) const WHOLE_ANSWER: usize = 64 * 1024 * 1024;
/// What is reserved at once for an answer of announced length.
const RESERVED: u64 = 1024 * 1024;

/// The connection broke, or what came by it breaks the rules of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the engine's answer broke off")]
pub struct Broken;

/// What is taken of a read: its content, and how many bytes that were.
type Taken = (Bytes, Result<usize, Malformed>);

/// What came of a body with its head.
#[derive(Debug)]
pub(super) struct Begun {
    framing: Framing,
    length: usize,
    taken: Taken,
}

impl Begun {
    /// Takes what followed the head.
    pub(super) fn read(mut framing: Framing, read: &[u8]) -> Self {
        let taken = framing.take(read);
        Begun { framing, length: read.len(), taken }
    }
}

/// A body that is on its way. It owns its connection: dropped before its end it closes that, at its end the connection rests.
#[derive(Debug)]
pub struct Incoming {
    connection: Option<Connection>,
    framing: Framing,
    /// What came with the head.
    first: Bytes,
    broken: bool,
    /// Where the connection rests afterwards, if it may.
    home: Option<Home>,
}

impl Incoming {
    /// A chunked body whose head has been read, on a connection that is closed at the end.
    pub fn chunked(connection: Connection) -> Self {
        Incoming::new(connection, Begun::read(Framing::CHUNKED, &[]), None)
    }

    /// A body of which something may have come with the head. With a `home` its connection rests there at the end.
    pub(super) fn new(connection: Connection, begun: Begun, home: Option<Home>) -> Self {
        let Begun { framing, length, taken } = begun;
        let mut body = Incoming { connection: Some(connection), framing, first: Bytes::new(), broken: false, home };
        body.first = body.took(length, taken);
        body
    }

    /// Does what follows from a read of so many bytes; its content is passed on in any case.
    fn took(&mut self, length: usize, (content, taken): Taken) -> Bytes {
        if taken.is_err() {
            self.break_off();
        } else if self.framing == Framing::Over
            && let Some(connection) = self.connection.take()
            && let Some(home) = self.home.take()
            && taken == Ok(length)
        {
            home.rest(connection);
        }
        content
    }

    fn break_off(&mut self) {
        (self.connection, self.broken) = (None, true);
    }

    /// The next part, none of which is empty; nothing at the end.
    pub fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Broken>>> {
        loop {
            if !self.first.is_empty() {
                return Poll::Ready(Some(Ok(std::mem::take(&mut self.first))));
            }
            let Some(connection) = &mut self.connection else {
                return Poll::Ready(self.broken.then_some(Err(Broken)));
            };
            let framing = &mut self.framing;
            match ready!(connection.poll_read(cx, |read| (read.len(), framing.take(read)))) {
                Ok((0, _)) if self.framing == Framing::UntilClose => {
                    (self.connection, self.framing) = (None, Framing::Over);
                }
                Ok((0, _)) | Err(_) => self.break_off(),
                Ok((length, taken)) => self.first = self.took(length, taken),
            }
        }
    }

    /// Whether no byte is left.
    pub fn is_over(&self) -> bool {
        self.connection.is_none() && self.first.is_empty() && !self.broken
    }

    /// The bytes that are left, if that is known.
    pub(crate) fn size_hint(&self) -> SizeHint {
        match self.framing {
            Framing::Over => SizeHint::with_exact(self.first.len() as u64),
            Framing::Length(left) => SizeHint::with_exact(self.first.len() as u64 + left),
            Framing::Chunked(_) | Framing::UntilClose => SizeHint::default(),
        }
    }
}

/// Why an answer was not read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unread {
    /// The connection broke.
    Broken,
    /// It is larger than any sane answer. The limit is the proxy's own.
    TooLarge,
}

impl Unread {
    /// What the client is told.
    pub fn error(self, role: Role) -> ProxyError {
        match self {
            Unread::Broken => ProxyError::Broken { role },
            Unread::TooLarge => ProxyError::AnswerTooLarge { role, limit: WHOLE_ANSWER },
        }
    }
}

/// A body that is read to its end: prefill's, and any engine's refusal.
#[derive(Debug)]
pub(crate) struct Whole {
    body: Incoming,
    /// The first part: mostly all there is.
    first: Bytes,
    rest: BytesMut,
    turns: Turns,
}

impl Whole {
    /// Nothing is read yet.
    pub(crate) fn new(body: Incoming) -> Self {
        Whole { body, first: Bytes::new(), rest: BytesMut::new(), turns: Turns::default() }
    }

    /// Reads on; all of it at the end.
    ///
    /// # Errors
    /// When it breaks, or is larger than the proxy keeps in memory.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, Unread>> {
        loop {
            ready!(self.turns.poll(cx));
            let Some(part) = ready!(self.body.poll_part(cx)) else { break };
            let part = part.map_err(|Broken| Unread::Broken)?;
            self.turns.took(part.len());
            if self.first.is_empty() {
                self.first = part;
                continue;
            }
            if self.rest.is_empty() {
                let left = self.body.size_hint().exact().unwrap_or(0).min(RESERVED);
                self.rest.reserve(self.first.len() + part.len() + usize::try_from(left).unwrap_or(0));
                self.rest.extend_from_slice(&self.first);
            }
            self.rest.extend_from_slice(&part);
            if self.rest.len() > WHOLE_ANSWER {
                return Poll::Ready(Err(Unread::TooLarge));
            }
        }
        let first = std::mem::take(&mut self.first);
        Poll::Ready(Ok(if self.rest.is_empty() { first } else { self.rest.split().freeze() }))
    }
}
