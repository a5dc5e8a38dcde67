//! The discovery socket: a ZMQ ROUTER behind the guard, on a thread of its own.
//!
//! The thread has a current-thread runtime because the `zeromq` crate loses messages, and can lock up for good, when
//! its tasks run on several workers. What engines send comes out of a bounded channel; nothing is ever sent to them.

#[cfg(test)]
mod tests;
mod watchdog;

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::runtime;
use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinHandle, yield_now};
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{error, info, warn};
use zeromq::{RouterSocket, Socket, SocketRecv, ZmqMessage};

use crate::registration::socket::guard::identity::Identity;
use crate::registration::socket::guard::link::{Den, Link};
use crate::registration::socket::guard::reject::Reject;
use crate::registration::socket::guard::{Guard, Limits, bind};
use crate::registration::socket::listener::watchdog::Watchdog;
use crate::registration::socket::pace;

/// Messages taken in one go before timers and new peers get their turn.
const MESSAGES_A_TURN: u32 = 16;
/// Things said that are remembered, to tell what is only repeated.
const KNOWN: usize = 16_384;
const ERROR_PAUSE: Duration = Duration::from_millis(100);
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// Below this a watchdog is a load, not a check.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);
/// Looks at a thread that shows no sign of life before it is called dead.
const LOOKS: u32 = 6;

/// What the listener needs to know. [`ListenerSettings::new`] has the defaults.
#[derive(Debug, Clone)]
pub struct ListenerSettings {
    /// Where engines connect. `[::]` takes IPv4 as well.
    pub address: SocketAddr,
    /// Most connections at a time.
    pub max_peers: usize,
    /// Most connections at a time from one address.
    pub per_source: usize,
    /// Time a peer has for its handshake.
    pub handshake: Duration,
    /// Time a peer has for a message that it has begun.
    pub message: Duration,
    /// Connections after which the ROUTER is replaced: the crate keeps a few hundred bytes of each for good.
    pub renew_after: u64,
    /// Called when something was heard that the same peer has not said before, or when much waits to be dealt with. What is only
    /// repeated waits until somebody looks: engines repeat themselves all the time, and each wake-up for that costs.
    pub news: Arc<Notify>,
    /// Time between two messages of the listener to itself; after three of them unheard the ROUTER is rebuilt.
    pub watchdog: Duration,
}

impl ListenerSettings {
    /// The defaults for a pool of up to 4096 engines.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            max_peers: 4096,
            per_source: 256,
            handshake: Duration::from_secs(5),
            message: Duration::from_secs(10),
            renew_after: 100_000,
            news: Arc::default(),
            watchdog: Duration::from_secs(10),
        }
    }

    fn limits(&self) -> Limits {
        Limits {
            // One more for the watchdog's own connection.
            max_peers: self.max_peers.saturating_add(1),
            per_source: self.per_source,
            handshake: self.handshake,
            message: self.message,
        }
    }
}

/// One payload, as an engine sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// The one payload frame, undecoded.
    pub payload: Bytes,
    /// The TCP address it came from, IPv4 in its own form. Absent only if a local process went around the guard.
    pub peer: Option<SocketAddr>,
    /// When it came.
    pub at: Instant,
}

/// What is worth counting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Incident {
    /// The guard turned a peer away.
    Rejected(Reject),
    /// A message with other frames than one payload, perhaps after an empty delimiter.
    Malformed,
    /// A payload was lost because the channel was full.
    Dropped,
    /// The ROUTER was deaf, broken or worn and has been replaced; engines reconnect by themselves.
    Rebuilt,
}

/// Why a listener is of no more use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// The thread has ended.
    #[error("discovery thread ended")]
    Thread,
    /// The thread is there but does nothing.
    #[error("discovery thread does not respond")]
    Unresponsive,
}

/// A running listener; dropping it stops it.
#[derive(Debug)]
pub struct Listener {
    address: SocketAddr,
    interval: Duration,
    pulse: Arc<AtomicU64>,
    stop: CancellationToken,
    ended: CancellationToken,
}

/// Binds the port and starts the thread. A port that cannot be bound is an error that names the address.
pub fn start(
    settings: ListenerSettings,
    sink: mpsc::Sender<Heard>,
    report: impl Fn(Incident) + Send + Sync + 'static,
) -> io::Result<Listener> {
    start_with(settings, sink, report, Arc::default())
}

/// `deaf` makes the receive loop stop once, which is how tests make a ROUTER wedge.
fn start_with(
    settings: ListenerSettings,
    sink: mpsc::Sender<Heard>,
    report: impl Fn(Incident) + Send + Sync + 'static,
    deaf: Arc<AtomicBool>,
) -> io::Result<Listener> {
    let socket = bind(settings.address)?;
    let address = socket.local_addr()?;
    let mut den = Den::create(settings.renew_after);
    let (link, inner) = den.open()?;
    let runtime = runtime::Builder::new_current_thread().enable_all().on_thread_park(pace::wait).build()?;
    let stop = CancellationToken::new();
    let ended = CancellationToken::new();
    let pulse = Arc::new(AtomicU64::new(0));
    let interval = settings.watchdog.max(SHORTEST_INTERVAL);

    let report: Report = Arc::new(report);
    let watchdog = Watchdog::new(address, interval, Arc::clone(&pulse));
    let news = settings.news.clone();
    let hearing = Hearing { sink, news, report, watchdog: Arc::new(watchdog), deaf };
    let stopped = stop.clone();
    let alive = ended.clone().drop_guard();
    thread::Builder::new().name("discovery".into()).spawn(move || {
        // Declared first, so dropped last: the end is told when socket and runtime are gone, also by a panic.
        let _alive: DropGuard = alive;
        let runtime = runtime;
        runtime.block_on(async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                Err(error) = run(settings.limits(), socket, den, (link, inner), hearing) => {
                    error!(%error, "discovery ended");
                }
            }
        });
        runtime.shutdown_timeout(Duration::from_secs(1));
    })?;
    Ok(Listener { address, interval, pulse, stop, ended })
}

impl Listener {
    /// The address bound, with the port the system chose if that was left open.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Closes the port and ends the thread; returns when both are done, or after 5 s.
    pub async fn stop(&self) {
        self.stop.cancel();
        if timeout(STOP_LIMIT, self.ended.cancelled()).await.is_err() {
            warn!("discovery thread did not stop in time");
        }
    }

    /// Resolves when the listener is of no more use, [`Listener::stop`] included. Drop-safe: it can be polled in a
    /// `select!` any number of times.
    pub async fn ended(&self) -> Ended {
        tokio::select! {
            () = self.ended.cancelled() => Ended::Thread,
            () = self.lifeless() => Ended::Unresponsive,
        }
    }

    /// Counts looks, not seconds: a process that was suspended must not find itself dead when it wakes.
    async fn lifeless(&self) {
        let mut last = self.pulse.load(Ordering::Relaxed);
        let mut looks = 0;
        while looks < LOOKS {
            sleep(self.interval).await;
            let pulse = self.pulse.load(Ordering::Relaxed);
            looks = if pulse == last { looks + 1 } else { 0 };
            last = pulse;
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

type Report = Arc<dyn Fn(Incident) + Send + Sync>;

/// Where payloads go; shared by one ROUTER after the other.
#[derive(Clone)]
struct Hearing {
    sink: mpsc::Sender<Heard>,
    news: Arc<Notify>,
    report: Report,
    watchdog: Arc<Watchdog>,
    deaf: Arc<AtomicBool>,
}

/// Runs the guard and one ROUTER after the other; the public port stays bound throughout.
async fn run(
    limits: Limits,
    socket: StdTcpListener,
    mut den: Den,
    first: (Link, StdUnixListener),
    hearing: Hearing,
) -> io::Result<()> {
    let listener = TcpListener::from_std(socket)?;
    let (link, inner) = first;
    let mut link = Arc::new(link);
    let report = Arc::clone(&hearing.report);
    let guard = Arc::new(Guard::new(limits, Arc::clone(&link), move |reason| report(Incident::Rejected(reason))));
    let mut accepting = tokio::spawn(Arc::clone(&guard).run(listener));
    let mut receiving = Receiving::start(inner, hearing.clone()).await?;
    loop {
        tokio::select! {
            // Only a panic ends it; without it there is nothing to go on with.
            _ = &mut accepting => return Err(io::Error::other("accept loop ended")),
            _ = &mut receiving.task => warn!("discovery socket broke, replacing it"),
            () = link.worn() => info!("discovery socket has had many connections, replacing it"),
            () = hearing.watchdog.unheard() => warn!("discovery socket is deaf, replacing it"),
        }
        drop(receiving);
        (link, receiving) = replace(&mut den, &hearing).await;
        guard.relink(Arc::clone(&link));
        (hearing.report)(Incident::Rebuilt);
    }
}

/// Tries until it has a new ROUTER: want of descriptors passes. If it does not, [`Listener::ended`] notices.
async fn replace(den: &mut Den, hearing: &Hearing) -> (Arc<Link>, Receiving) {
    loop {
        match open(den, hearing).await {
            Ok(opened) => return opened,
            Err(error) => error!(%error, "cannot open a new discovery socket, trying again"),
        }
        sleep(ERROR_PAUSE).await;
    }
}

async fn open(den: &mut Den, hearing: &Hearing) -> io::Result<(Arc<Link>, Receiving)> {
    let (link, inner) = den.open()?;
    Ok((Arc::new(link), Receiving::start(inner, hearing.clone()).await?))
}

/// A ROUTER and the task that reads it; ended on drop.
struct Receiving {
    task: JoinHandle<()>,
}

impl Receiving {
    async fn start(inner: StdUnixListener, hearing: Hearing) -> io::Result<Self> {
        let mut router = RouterSocket::new();
        router.bind_listener(inner).await.map_err(io::Error::other)?;
        // In a task, so that a panic inside the crate costs this ROUTER and not the thread.
        Ok(Self { task: tokio::spawn(receive(router, hearing)) })
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn receive(mut router: RouterSocket, hearing: Hearing) {
    let mut taken: u32 = 0;
    let mut known = HashSet::new();
    loop {
        match router.recv().await {
            Ok(message) => hearing.take(message, &mut known),
            Err(error) => {
                warn!(%error, "discovery socket failed to receive");
                sleep(ERROR_PAUSE).await;
            }
        }
        if hearing.deaf.swap(false, Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        taken = taken.wrapping_add(1);
        if taken.is_multiple_of(MESSAGES_A_TURN) {
            yield_now().await;
        }
    }
}

impl Hearing {
    fn take(&self, message: ZmqMessage, known: &mut HashSet<u64>) {
        let Some(heard) = payload(&message) else {
            (self.report)(Incident::Malformed);
            return;
        };
        if self.watchdog.recognises(&heard.payload) {
            return;
        }
        let is_news = is_news(&heard, known) || self.sink.capacity() < self.sink.max_capacity() / 2;
        if self.sink.try_send(heard).is_err() {
            (self.report)(Incident::Dropped);
        }
        if is_news {
            self.news.notify_one();
        }
    }
}

/// Whether a peer says something else than before. What is no news by mistake, or for want of room is, harms nobody.
fn is_news(heard: &Heard, known: &mut HashSet<u64>) -> bool {
    let mut hasher = DefaultHasher::new();
    (heard.peer, &heard.payload).hash(&mut hasher);
    if known.len() >= KNOWN {
        known.clear();
    }
    known.insert(hasher.finish())
}

/// The payload of `[identity, payload]`, or of `[identity, "", payload]` as a REQ-like peer sends it.
fn payload(message: &ZmqMessage) -> Option<Heard> {
    let at = match message.len() {
        2 => 1,
        3 if message.get(1)?.is_empty() => 2,
        _ => return None,
    };
    Some(Heard { payload: message.get(at)?.clone(), peer: Identity::address(message.get(0)?), at: Instant::now() })
}
