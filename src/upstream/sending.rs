//! One leg from its connection to the head of its answer, as a value that owns the connection: to drop it is to close that. No
//! task and no channel stands between, so it is known to the byte whether the engine can have got the request.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, header};

use super::answer::{Begun, Incoming, Whole};
use super::connection::Connection;
use super::failure::{Kind, LegFailure, is_shortage};
use super::head::Head;
use super::idle::{Home, Idle};
use crate::engine::{HttpAddress, Role};
use crate::error::EngineAnswer;
use crate::turns::Turns;

/// The pause between two tries where this process has no descriptor left.
const AGAIN: Duration = Duration::from_millis(20);
/// A reused connection that breaks this soon after the request was written died of its idle time, unread.
const UNREAD: Duration = Duration::from_millis(50);

/// What a leg has to tell on its way to its answer's head, each once and in this order.
pub enum Progress {
    /// Its request is being written to an open connection.
    Started,
    /// The head of a success.
    Answered(Response<Incoming>),
    /// No connection, a broken one, or any answer but a success.
    Failed(LegFailure),
}

type Opening = Pin<Box<dyn Future<Output = io::Result<Connection>> + Send>>;

enum State {
    /// There was no connection that rested.
    Opening(Opening),
    /// The request is being written or its answer awaited.
    Open(Connection),
    /// The answer is a refusal, which is read whole.
    Refused(Box<(StatusCode, HeaderMap, Whole)>),
    /// All was told.
    Over,
}

/// A request on its way.
pub struct Sending {
    home: Home,
    role: Role,
    state: State,
    /// What is written: the head, then the body's slices.
    parts: Vec<Bytes>,
    /// How many of those are written.
    done: usize,
    /// How much of the next one is.
    begun: usize,
    turns: Turns,
    /// Whether writing has failed: an answer may have come before.
    unwritable: bool,
    is_reused: bool,
    /// When the first byte was about to be written.
    started: Option<tokio::time::Instant>,
    /// When the last byte had been.
    written: Option<Instant>,
    /// What has come of a head that is not whole.
    read: Vec<u8>,
}

/// Makes a connection. Where this process has no descriptor left, those that rest are given up; if none did, one is waited for
/// within `limit`, since others end all the time.
async fn open(idle: Arc<Idle>, to: HttpAddress, limit: Duration) -> io::Result<Connection> {
    let until = Instant::now() + limit;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match Connection::open(&to, left).await {
            Err(error) if is_shortage(&error) && left > AGAIN => {
                if !idle.give_up() {
                    tokio::time::sleep(AGAIN).await;
                }
            }
            opened => return opened,
        }
    }
}

impl Sending {
    /// A leg on a connection that rested, or on a new one.
    pub(super) fn new(home: Home, to: &HttpAddress, role: Role, connect_limit: Duration, parts: Vec<Bytes>) -> Self {
        let rested = home.take();
        let is_reused = rested.is_some();
        let state = match rested {
            Some(connection) => State::Open(connection),
            None => State::Opening(Box::pin(open(home.idle.clone(), to.clone(), connect_limit))),
        };
        Sending {
            home,
            role,
            state,
            parts,
            done: 0,
            begun: 0,
            turns: Turns::default(),
            unwritable: false,
            is_reused,
            started: None,
            written: None,
            read: Vec::new(),
        }
    }

    /// When the whole request had been handed over. While it has not been, the engine never gets it if the leg is dropped.
    pub fn written(&self) -> Option<Instant> {
        self.written
    }

    /// The next thing that the leg has to tell. May be dropped and asked again; not to be asked after the last.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Progress> {
        loop {
            match &mut self.state {
                State::Opening(opening) => match ready!(opening.as_mut().poll(cx)) {
                    Ok(connection) => self.state = State::Open(connection),
                    Err(error) => return self.fail(LegFailure::unconnected(self.role, &error)),
                },
                State::Open(_) => {
                    // The first bytes are on their way when the start is told.
                    self.write(cx);
                    if self.started.is_none() {
                        self.started = Some(tokio::time::Instant::now());
                        return Poll::Ready(Progress::Started);
                    }
                    if let Some(progress) = ready!(self.read(cx)) {
                        return Poll::Ready(progress);
                    }
                }
                State::Refused(refusal) => {
                    let (status, headers, whole) = &mut **refusal;
                    let failure = match ready!(whole.poll(cx)) {
                        Ok(body) => {
                            let mut headers = std::mem::take(headers);
                            headers.remove(header::CONTENT_LENGTH);
                            LegFailure::refused(self.role, EngineAnswer { status: *status, headers, body })
                        }
                        Err(why) => LegFailure::unread(self.role, why),
                    };
                    return self.fail(failure);
                }
                State::Over => return self.fail(LegFailure::broken(self.role)),
            }
        }
    }

    /// Writes as much of the request as goes.
    fn write(&mut self, cx: &mut Context<'_>) {
        let State::Open(connection) = &mut self.state else { return };
        while self.written.is_none() && !self.unwritable {
            if self.turns.poll(cx).is_pending() {
                return;
            }
            match connection.poll_write(cx, &self.parts[self.done..], self.begun) {
                Poll::Pending => return,
                Poll::Ready(Err(_)) => self.unwritable = true,
                Poll::Ready(Ok(count)) => {
                    self.turns.took(count);
                    self.begun += count;
                    while let Some(part) = self.parts.get(self.done)
                        && self.begun >= part.len()
                    {
                        (self.begun, self.done) = (self.begun - part.len(), self.done + 1);
                    }
                    if self.done == self.parts.len() {
                        self.written = Some(Instant::now());
                        // The client's words are not kept while the engine computes.
                        self.parts = Vec::new();
                    }
                }
            }
        }
    }

    /// Reads what comes of the answer: while the request is still being written, too, since an engine may refuse before its end.
    fn read(&mut self, cx: &mut Context<'_>) -> Poll<Option<Progress>> {
        let State::Open(connection) = &mut self.state else { return Poll::Ready(None) };
        let before = &mut self.read;
        match ready!(connection.poll_read(cx, |came| Came::of(before, came))) {
            Ok(Came::More) => Poll::Ready(None),
            Ok(Came::Head(head, begun)) => self.answered(&head, begun),
            Ok(Came::Nonsense) => self.fail(LegFailure::broken(self.role)).map(Some),
            Ok(Came::End) | Err(_) => {
                let soon = self.started.is_some_and(|started| started.elapsed() < UNREAD);
                let unread = self.is_reused && self.read.is_empty() && soon;
                let kind = if unread { Kind::Stale } else { Kind::Broken };
                self.fail(LegFailure { kind, ..LegFailure::broken(self.role) }).map(Some)
            }
        }
    }

    /// The answer's head has come.
    fn answered(&mut self, head: &Head, begun: Begun) -> Poll<Option<Progress>> {
        let State::Open(connection) = std::mem::replace(&mut self.state, State::Over) else { return Poll::Ready(None) };
        let is_whole = self.written.is_some();
        let home = (head.keeps_open && is_whole).then(|| self.home.clone());
        let body = Incoming::new(connection, begun, home);
        if head.status.is_success() {
            // No engine has success with half of a request.
            if !is_whole {
                return self.fail(LegFailure::broken(self.role)).map(Some);
            }
            let mut response = Response::new(body);
            (*response.status_mut(), *response.headers_mut()) = (head.status, head.relayed());
            return Poll::Ready(Some(Progress::Answered(response)));
        }
        if head.status.is_redirection() {
            return self.fail(LegFailure::redirected(self.role)).map(Some);
        }
        self.state = State::Refused(Box::new((head.status, head.relayed(), Whole::new(body))));
        Poll::Ready(None)
    }

    fn fail(&mut self, failure: LegFailure) -> Poll<Progress> {
        self.state = State::Over;
        Poll::Ready(Progress::Failed(failure))
    }
}

/// What a read has come to.
enum Came {
    /// Not yet a whole head.
    More,
    /// A head, and what followed it.
    Head(Head, Begun),
    /// No head.
    Nonsense,
    /// The connection's end.
    End,
}

impl Came {
    /// What `came` is behind what came `before` of a head.
    fn of(before: &mut Vec<u8>, came: &[u8]) -> Came {
        if came.is_empty() {
            return Came::End;
        }
        let is_first = before.is_empty();
        if !is_first {
            before.extend_from_slice(came);
        }
        let text = if is_first { came } else { before.as_slice() };
        match Head::parse(text) {
            Ok(Some((head, end))) => {
                let begun = Begun::read(head.framing, &text[end..]);
                Came::Head(head, begun)
            }
            Ok(None) => {
                if is_first {
                    before.extend_from_slice(came);
                }
                Came::More
            }
            Err(_) => Came::Nonsense,
        }
    }
}
