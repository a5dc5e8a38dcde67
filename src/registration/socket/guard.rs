//! The guard before the discovery socket: what an unknown TCP peer may do before and while it speaks ZMTP.
//!
//! The ROUTER behind it has no limits of its own: a single stream of 73 bytes can end the process. So peers connect
//! here, each stream passes through a [`gate::Gate`], and what passed goes to the ROUTER over a private Unix socket.
//!
//! `gate` decides on bytes, `identity` tells the ROUTER's reader where a message came from, `link` is the private way
//! inside, `sources` counts by address; this file owns sockets, time limits and caps.

pub mod gate;
pub mod identity;
pub(crate) mod link;
pub(crate) mod reject;
mod sources;
#[cfg(test)]
mod tests;

use std::future::pending;
use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{RwLock, Semaphore};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tracing::{debug, warn};

use crate::registration::socket::guard::gate::{GREETING, Gate, Output};
use crate::registration::socket::guard::identity::Identity;
use crate::registration::socket::guard::link::{Link, Reserve};
use crate::registration::socket::guard::reject::Reject;
use crate::registration::socket::guard::sources::Sources;
use crate::registration::socket::pace;

const BACKLOG: i32 = 1024;
const RECEIVE_BUFFER_BYTES: usize = 64 * 1024;
const READ_BYTES: usize = 8 * 1024;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A reply is a few dozen bytes; a peer that takes none of them for this long is not reading.
const REPLY_LIMIT: Duration = Duration::from_secs(10);
/// Time for the ROUTER to read what a peer that is gone had sent.
const FAREWELL_LIMIT: Duration = Duration::from_secs(5);

/// The guard's limits.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Most connections at a time.
    pub max_peers: usize,
    /// Most connections at a time from one address.
    pub per_source: usize,
    /// Time from accept to a complete handshake, and for the ROUTER to answer its part.
    pub handshake: Duration,
    /// Time from the first byte of a message to its last. Between messages a peer may be silent for ever.
    pub message: Duration,
}

/// Accepts peers, checks what they send and passes it to the ROUTER of the current link.
pub struct Guard {
    limits: Limits,
    link: Mutex<Arc<Link>>,
    linking: RwLock<()>,
    sources: Arc<Sources>,
    serial: AtomicU64,
    report: Box<dyn Fn(Reject) + Send + Sync>,
}

impl Guard {
    /// A guard that passes peers to `link` and tells `report` of each rejection.
    pub fn new(limits: Limits, link: Arc<Link>, report: impl Fn(Reject) + Send + Sync + 'static) -> Self {
        let sources = Arc::new(Sources::new(limits.per_source));
        Self {
            limits,
            link: Mutex::new(link),
            linking: RwLock::new(()),
            sources,
            serial: AtomicU64::new(0),
            report: Box::new(report),
        }
    }

    /// Passes new peers to another ROUTER; connections to the one before end.
    pub(crate) fn relink(&self, link: Arc<Link>) {
        let before = std::mem::replace(&mut *self.link.lock().unwrap_or_else(PoisonError::into_inner), link);
        before.close();
    }

    /// Accepts peers until dropped. A peer takes its place before it is accepted: beyond the cap, peers wait in the
    /// kernel until a place is free, and silent ones lose theirs after the handshake limit.
    pub async fn run(self: Arc<Self>, listener: TcpListener) {
        // More than it can count is no limit.
        let places = Arc::new(Semaphore::new(self.limits.max_peers.min(Semaphore::MAX_PERMITS)));
        let mut starved = false;
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            // A reserve before each peer, so that inside nobody ever has to accept a link without a descriptor for it.
            // Not while a link is being made: its descriptors are free then, but promised.
            let reserve = {
                let _quiet = self.linking.write().await;
                Reserve::take()
            };
            let accepted = match reserve {
                Ok(reserve) => listener.accept().await.map(|accepted| (accepted, reserve)),
                Err(error) => Err(error),
            };
            let ((stream, address), reserve) = match accepted {
                Ok(accepted) => {
                    pace::hurry();
                    accepted
                }
                Err(error) => {
                    if !starved {
                        warn!(%error, "cannot accept discovery peers");
                    }
                    starved = true;
                    (self.report)(Reject::Accept);
                    // Without a pause, want of descriptors turns this loop into a spin.
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            starved = false;
            let Some(counted) = self.sources.take(address.ip()) else {
                self.reject(Reject::Source, address);
                continue;
            };
            let guard = Arc::clone(&self);
            tokio::spawn(async move {
                if let Err(reason) = guard.serve(stream, address, reserve).await {
                    guard.reject(reason, address);
                }
                drop((counted, place));
            });
        }
    }

    fn reject(&self, reason: Reject, address: SocketAddr) {
        debug!(peer = %address, %reason, "discovery peer rejected");
        (self.report)(reason);
    }

    fn current_link(&self) -> Arc<Link> {
        Arc::clone(&self.link.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Serves one peer to its end: `Ok` when either side closed, the reason when the guard did.
    async fn serve(&self, mut peer: TcpStream, address: SocketAddr, reserve: Reserve) -> Result<(), Reject> {
        // Heartbeat answers must not wait for more bytes to send with.
        let _ = peer.set_nodelay(true);
        let mut gate = Gate::new(Identity::new(self.serial.fetch_add(1, Ordering::Relaxed), address));
        let deadline = Instant::now() + self.limits.handshake;
        let shaken = timeout_at(deadline, shake_hands(&mut peer, &mut gate)).await.map_err(|_| Reject::Timeout)?;
        let Some((first, rejected)) = shaken? else {
            return Ok(());
        };

        let link = self.current_link();
        let admitted = timeout(self.limits.handshake, async {
            let _promised = self.linking.read().await;
            admit(&link, reserve, &first).await
        });
        let mut router = tokio::select! {
            () = link.closed() => return Ok(()),
            admitted = admitted => match admitted {
                Ok(Ok(router)) => router,
                Ok(Err(_)) | Err(_) => return Err(Reject::Unanswered),
            },
        };
        drop(first);
        let ended = match rejected {
            Some(reason) => Err(reason),
            None => tokio::select! {
                () = link.closed() => return Ok(()),
                ended = self.copy(peer, &mut router, gate) => ended,
            },
        };
        // Closing with the ROUTER's READY unread would reset the link, and with it lose the peer's last words.
        let _ = router.shutdown().await;
        let _ = timeout(FAREWELL_LIMIT, drain(&router)).await;
        ended
    }

    /// Passes messages until one side closes. The ROUTER never sends, so its side is read only to see it close.
    async fn copy(&self, mut peer: TcpStream, router: &mut UnixStream, mut gate: Gate) -> Result<(), Reject> {
        let mut completed = gate.completed();
        let mut begun = Instant::now();
        loop {
            let due = (!gate.is_resting()).then_some(begun + self.limits.message);
            let readable = tokio::select! {
                readable = peer.readable() => readable,
                ended = drain(router) => ended,
                () = reach(due) => return Err(Reject::Timeout),
            };
            if readable.is_err() {
                return Ok(());
            }
            let was_resting = gate.is_resting();
            let mut output = Output::default();
            let fed = match read(&peer, &mut gate, &mut output) {
                Read::Nothing => continue,
                Read::Closed => return Ok(()),
                Read::Fed(fed) => fed,
            };
            if was_resting || gate.completed() != completed {
                completed = gate.completed();
                begun = Instant::now();
            }
            if router.write_all(&output.forward).await.is_err() {
                return Ok(());
            }
            fed?;
            reply(&mut peer, &output).await;
        }
    }
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Guard").field("limits", &self.limits).finish_non_exhaustive()
    }
}

enum Read {
    Nothing,
    Closed,
    Fed(Result<(), Reject>),
}

/// Reads once into a buffer on the stack: thousands of idle peers hold no buffer of their own.
fn read(peer: &TcpStream, gate: &mut Gate, output: &mut Output) -> Read {
    let mut buffer = [0; READ_BYTES];
    match peer.try_read(&mut buffer) {
        Ok(0) => Read::Closed,
        Ok(count) => Read::Fed(gate.feed(&buffer[..count], output)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Read::Nothing,
        Err(_) => Read::Closed,
    }
}

/// Reads until the handshake is complete. Returns what the ROUTER is to be sent first, and the rejection that followed
/// in the same read if there was one; nothing if the peer left.
async fn shake_hands(peer: &mut TcpStream, gate: &mut Gate) -> Result<Option<(Vec<u8>, Option<Reject>)>, Reject> {
    loop {
        if peer.readable().await.is_err() {
            return Ok(None);
        }
        let mut output = Output::default();
        match read(peer, gate, &mut output) {
            Read::Nothing => {}
            Read::Closed => return Ok(None),
            Read::Fed(Err(reason)) if !gate.is_ready() => return Err(reason),
            Read::Fed(fed) => {
                reply(peer, &output).await;
                if gate.is_ready() {
                    return Ok(Some((output.forward, fed.err())));
                }
            }
        }
    }
}

/// Connects to the ROUTER, sends it the peer's first bytes and waits for its greeting.
async fn admit(link: &Link, reserve: Reserve, first: &[u8]) -> io::Result<UnixStream> {
    let mut router = link.connect(reserve).await?;
    // The ROUTER keeps its first read for good, as part of the identity; it is smaller without the greeting.
    let (greeting, rest) = first.split_at(GREETING.len().min(first.len()));
    router.write_all(greeting).await?;
    router.read_exact(&mut [0; GREETING.len()]).await?;
    router.write_all(rest).await?;
    Ok(router)
}

/// Sends the peer what the gate has for it. A peer that closed after its last message is still read to the end, so a
/// failure is not looked at.
async fn reply(peer: &mut TcpStream, output: &Output) {
    if !output.reply.is_empty() {
        let _ = timeout(REPLY_LIMIT, peer.write_all(&output.reply)).await;
    }
}

/// Reads and forgets what the ROUTER sends; returns when it has closed.
async fn drain(router: &UnixStream) -> io::Result<()> {
    loop {
        router.readable().await?;
        match router.try_read(&mut [0; 256]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

async fn reach(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => pending().await,
    }
}

/// Binds the public port. Accepted sockets inherit these options.
pub fn bind(address: SocketAddr) -> io::Result<StdTcpListener> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("cannot bind {address}: {error}"));
    bind_socket(address).map_err(named)
}

fn bind_socket(address: SocketAddr) -> io::Result<StdTcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(15)).with_interval(Duration::from_secs(5)).with_retries(3);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(Duration::from_secs(30)))?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
