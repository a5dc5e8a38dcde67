//! A client's connection as seen from both ends of a request: bytes that come, an answer that is over. Both tell the places.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, Take};
use tokio::net::TcpStream;

use super::places::{Admission, Caller, Hold, Places};

/// A connection's standing, shared by its socket, its requests and its task. Dropping the last gives its place back.
#[derive(Debug)]
pub(super) struct Visit {
    places: Arc<Places>,
    pub(super) caller: Arc<Caller>,
    heard: AtomicBool,
    arriving: AtomicBool,
}

impl Visit {
    pub(super) fn new(places: Arc<Places>) -> Arc<Self> {
        let caller = places.open(Instant::now());
        Arc::new(Visit { places, caller, heard: AtomicBool::new(false), arriving: AtomicBool::new(false) })
    }

    /// Whether a whole head has come.
    pub(super) fn has_request(&self) -> bool {
        self.heard.load(Ordering::Relaxed)
    }

    /// Whether something came, or lay unread, when the connection was asked to give way.
    pub(super) fn is_arriving(&self) -> bool {
        self.arriving.load(Ordering::Relaxed)
    }

    /// A request's head has come.
    pub(super) fn request(&self, is_probe: bool) -> Admission {
        self.heard.store(true, Ordering::Relaxed);
        self.arriving.store(false, Ordering::Relaxed);
        self.places.request(&self.caller, is_probe, Instant::now())
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.places.close(&self.caller);
    }
}

/// A request that is being answered, until its answer is over or given up.
#[derive(Debug)]
pub(super) struct Serving(pub(super) Arc<Visit>);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.places.answered(&self.0.caller, Instant::now());
    }
}

/// An answer's body that keeps its connection from counting as idle.
pub(super) struct Answer {
    pub(super) body: axum::body::Body,
    pub(super) _serving: Serving,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The most that is read at once. A reader that gets so much keeps a buffer of the next power of two, and grows one that was filled:
/// a connection with a large body has two of these, which for many at once is more than all that their bodies leave behind.
const READ: u64 = 32 * 1024 - 1;

/// The socket, which tells when something comes.
pub(super) struct Stream {
    socket: Take<TcpStream>,
    visit: Arc<Visit>,
}

impl Stream {
    pub(super) fn new(socket: TcpStream, visit: Arc<Visit>) -> Stream {
        Stream { socket: socket.take(READ), visit }
    }

    fn socket(self: Pin<&mut Self>) -> Pin<&mut TcpStream> {
        Pin::new(self.get_mut().socket.get_mut())
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        self.socket.set_limit(READ);
        let read = Pin::new(&mut self.socket).poll_read(cx, buffer);
        let asked_to_go = self.visit.caller.hold() == Hold::Nothing;
        if buffer.filled().len() > before {
            self.visit.places.heard(&self.visit.caller);
            self.visit.arriving.store(asked_to_go, Ordering::Relaxed);
        } else if read.is_pending() && asked_to_go && !self.visit.is_arriving() {
            // The reactor may not yet have noticed bytes that are here. Closing now would lose them.
            let peeked = socket2::SockRef::from(self.socket.get_ref()).peek(&mut [MaybeUninit::uninit()]);
            self.visit.arriving.store(matches!(peeked, Ok(1..)), Ordering::Relaxed);
        }
        read
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.socket().poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.socket().poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.get_ref().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket().poll_shutdown(cx)
    }
}
