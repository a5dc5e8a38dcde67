//! A connection to an engine: made within a limit, written from slices, read by way of one buffer that all connections of a
//! thread share, so that one that waits holds none.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, lookup_host};
use tokio::task::coop::unconstrained;

use crate::engine::HttpAddress;
use crate::turns::TURN;

/// The most that is read at once.
const READ: usize = 64 * 1024;
/// The most slices that are written at once; a leg has some ten.
const SLICES: usize = 16;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ].into());
}

/// What a connection reads from and writes to: TCP, and memory in tests.
pub trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Socket for T {}

/// An open connection. Dropping it closes it.
pub struct Connection(Box<dyn Socket>);

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connection")
    }
}

impl Connection {
    /// A connection that is open already.
    pub fn over(socket: impl Socket + 'static) -> Self {
        Connection(Box::new(socket))
    }

    /// Connects to the first of an engine's addresses that accepts within its share of `limit`.
    pub(super) async fn open(address: &HttpAddress, limit: Duration) -> io::Result<Self> {
        let opening = async {
            let addresses: Vec<_> = lookup_host((address.host.as_str(), address.port)).await?.collect();
            let share = limit / u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
            let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
            for address in addresses {
                match tokio::time::timeout(share, TcpStream::connect(address)).await {
                    Ok(Ok(socket)) => {
                        // Tokens must not wait for an acknowledgement.
                        socket.set_nodelay(true)?;
                        return Ok(Connection::over(socket));
                    }
                    Ok(Err(error)) => last = error,
                    Err(_) => last = io::ErrorKind::TimedOut.into(),
                }
            }
            Err(last)
        };
        tokio::time::timeout(limit, opening).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Whether it is open and has nothing to say, as one that rests must be.
    pub(super) fn is_quiet(&mut self) -> bool {
        let read = std::future::poll_fn(|cx| self.poll_read(cx, |_| ()));
        unconstrained(read).now_or_never().is_none()
    }

    /// Writes as much as goes of the slices from `begin` bytes into the first on, and no more than [`TURN`].
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        parts: &[Bytes],
        begin: usize,
    ) -> Poll<io::Result<usize>> {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let (mut count, mut room, mut begin) = (0, TURN, begin);
        for (slice, part) in slices.iter_mut().zip(parts) {
            let part = &part[std::mem::take(&mut begin)..];
            *slice = IoSlice::new(&part[..part.len().min(room)]);
            (count, room) = (count + 1, room.saturating_sub(part.len()));
            if room == 0 {
                break;
            }
        }
        let written = ready!(Pin::new(&mut *self.0).poll_write_vectored(cx, &slices[..count]))?;
        Poll::Ready(if written == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(written) })
    }

    /// Reads once and has `take` look at what came: nothing at the end.
    pub(super) fn poll_read<T>(&mut self, cx: &mut Context<'_>, take: impl FnOnce(&[u8]) -> T) -> Poll<io::Result<T>> {
        BUFFER.with_borrow_mut(|buffer| {
            let mut buffer = ReadBuf::new(buffer);
            ready!(Pin::new(&mut *self.0).poll_read(cx, &mut buffer))?;
            Poll::Ready(Ok(take(buffer.filled())))
        })
    }
}
