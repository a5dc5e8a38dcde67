//! One life of an engine: what it has, its tasks and its death.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::future::{Future, pending};
use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::books::{Books, Counters, lock};
use super::cache::Cache;
use super::peer::Metadata;
use super::ports::Ports;
use super::settings::{Mode, Role, Settings};
use super::state::{Load, Pool, Slot, State};
use super::turn::Desk;
use super::zmtp::{HIGH_WATER_MARK, Message, dealer};

/// The processes of an engine on one of its hosts.
pub(crate) struct Site {
    pub(crate) host: usize,
    /// By which peers tell these processes from those before them.
    pub(crate) nonce: u64,
    /// Whether they have gone without the engine.
    pub(crate) lost: CancellationToken,
    /// Output tokens made.
    pub(crate) tokens: AtomicU64,
    tasks: watch::Sender<usize>,
}

impl Site {
    fn new(host: usize) -> Arc<Self> {
        let nonce = uuid::Uuid::new_v4().as_u64_pair().0;
        let (lost, tasks) = (CancellationToken::new(), watch::Sender::new(0));
        Arc::new(Self { host, nonce, lost, tokens: AtomicU64::new(0), tasks })
    }
}

/// One life of an engine.
pub(crate) struct Core {
    pub(crate) settings: Settings,
    pub(crate) minor: u32,
    pub(crate) started: SystemTime,
    pub(crate) books: Arc<Books>,
    pub(crate) ports: Arc<Ports>,
    pub(crate) state: Mutex<State>,
    pub(crate) token: CancellationToken,
    /// Told when blocks become free.
    pub(crate) freed: Notify,
    /// How many handshakes hold up the whole engine.
    pub(crate) frozen: watch::Sender<u64>,
    /// What peers said of themselves when they were first met; never asked again.
    pub(crate) sessions: Mutex<HashMap<(String, u16), Arc<Metadata>>>,
    /// An engine makes one handshake at a time.
    pub(crate) handshake_thread: tokio::sync::Mutex<()>,
    /// Peers that are being met for the first time.
    pub(crate) meeting: Mutex<HashSet<(String, u16)>>,
    pub(crate) data_streams: Mutex<HashMap<String, Vec<TcpStream>>>,
    dealers: Mutex<HashMap<(String, u16), mpsc::Sender<Message>>>,
    /// Where each rank computes prompts if it has a rate.
    pub(crate) desks: Vec<Desk>,
    /// By host.
    sites: Mutex<Vec<Arc<Site>>>,
    tasks: watch::Sender<usize>,
}

impl Core {
    pub(crate) fn new(settings: Settings, minor: u32, books: Arc<Books>, ports: Arc<Ports>) -> Self {
        let sites: Vec<Arc<Site>> = (0..settings.hosts.len()).map(Site::new).collect();
        let start = (sites[0].nonce % u64::from(settings.blocks)) as u32;
        let computes = settings.role == Role::Prefill || settings.serves_alone;
        let tokens = if computes { settings.cache_tokens } else { 0 };
        let pools = (0..settings.dp).map(|_| Pool::new(settings.blocks, start, Cache::new(tokens))).collect();
        books.count(|counters| counters.legs_by_rank.resize(settings.dp as usize, 0));
        Self {
            minor,
            started: SystemTime::now(),
            books,
            ports,
            state: Mutex::new(State::new(pools, sites.len())),
            token: CancellationToken::new(),
            freed: Notify::new(),
            frozen: watch::Sender::new(0),
            sessions: Mutex::default(),
            handshake_thread: tokio::sync::Mutex::default(),
            meeting: Mutex::default(),
            data_streams: Mutex::default(),
            dealers: Mutex::default(),
            desks: (0..settings.dp).map(|_| Desk::new()).collect(),
            sites: Mutex::new(sites),
            tasks: watch::Sender::new(0),
            settings,
        }
    }

    pub(crate) fn prefill(&self) -> bool {
        self.settings.role == Role::Prefill
    }

    pub(crate) fn write(&self) -> bool {
        self.settings.mode == Mode::Write
    }

    /// The data-parallel and the tensor-parallel rank that listen at a slot.
    pub(crate) fn ranks(&self, slot: Slot) -> (usize, u32) {
        let local = self.settings.local_dp();
        let first = slot.host * local as usize;
        if local > 1 { (first + slot.offset as usize, 0) } else { (first, slot.offset) }
    }

    pub(crate) fn ranks_of(&self, host: usize) -> Range<usize> {
        let local = self.settings.local_dp() as usize;
        host * local..(host + 1) * local
    }

    /// On which of the hosts a rank lives.
    pub(crate) fn host_of(&self, rank: usize) -> usize {
        rank / self.settings.local_dp() as usize
    }

    pub(crate) fn site(&self, host: usize) -> Arc<Site> {
        lock(&self.sites)[host].clone()
    }

    pub(crate) fn site_of(&self, rank: usize) -> Arc<Site> {
        self.site(self.host_of(rank))
    }

    /// Whether these processes are gone, without the engine or with it.
    pub(crate) fn has_lost(&self, site: &Site) -> bool {
        self.token.is_cancelled() || site.lost.is_cancelled()
    }

    /// The processes on a host end, and the others go on.
    pub(crate) async fn lose(&self, host: usize) {
        let site = self.site(host);
        site.lost.cancel();
        // The sender lives in `site`, so waiting cannot fail.
        let _ = site.tasks.subscribe().wait_for(|tasks| *tasks == 0).await;
        lock(&self.state).lose(host, self.ranks_of(host));
        self.freed.notify_waiters();
    }

    /// Others take the place of the processes that were lost on a host.
    pub(crate) fn replace(&self, host: usize) {
        lock(&self.sites)[host] = Site::new(host);
    }

    /// Runs `work` until it ends, or the engine or this one of its hosts does.
    pub(crate) fn spawn_on(&self, host: usize, work: impl Future<Output = ()> + Send + 'static) {
        let site = self.site(host);
        let guard = TaskGuard::new(site.tasks.clone());
        self.spawn(async move {
            tokio::select! {
                // First, or what is cut off might answer once more.
                biased;
                () = site.lost.cancelled() => {}
                () = work => {}
            }
            drop(guard);
        });
    }

    /// Runs `work` until it ends or the engine does.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let token = self.token.clone();
        let guard = TaskGuard::new(self.tasks.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = token.cancelled() => {}
                () = work => {}
            }
            drop(guard);
        });
    }

    /// Waits until every task of a cancelled life has let go of its sockets.
    pub(crate) async fn gone(&self) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.tasks.subscribe().wait_for(|tasks| *tasks == 0).await;
    }

    /// The engine process ends; the caller is never heard of again.
    pub(crate) async fn die(&self, reason: impl Into<String>) -> Infallible {
        if !self.token.is_cancelled() {
            let reason = reason.into();
            self.books.count(|counters| {
                counters.died += 1;
                counters.died_of = Some(reason);
            });
        }
        self.token.cancel();
        pending().await
    }

    /// The engine process ends because a peer did into which it was pushing (seen on 0.32.0). Nobody's fault but the peer's.
    pub(crate) async fn end_with_peer(&self) {
        if !self.token.is_cancelled() {
            self.books.count(|counters| counters.ended_with_peer += 1);
        }
        self.token.cancel();
    }

    /// Sends on a DEALER that keeps trying for ever.
    pub(crate) fn notify(&self, host: &str, port: u16, payload: impl Into<Bytes>) {
        let mut dealers = lock(&self.dealers);
        let queue = dealers.entry((host.to_string(), port)).or_insert_with(|| {
            let (sender, receiver) = mpsc::channel(HIGH_WATER_MARK);
            self.spawn(dealer(host.to_string(), port, receiver));
            sender
        });
        // A full queue drops, as a socket at its high-water mark with a send timeout does.
        let _ = queue.try_send(vec![payload.into()]);
    }

    /// Waits until no handshake holds the engine up.
    pub(crate) async fn thawed(&self) {
        if *self.frozen.borrow() == 0 {
            return;
        }
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.frozen.subscribe().wait_for(|frozen| *frozen == 0).await;
    }

    /// Fills in the gauges.
    pub(crate) fn gauges(&self, counters: &mut Counters) {
        let state = lock(&self.state);
        counters.held = state.held.len() as u64;
        counters.leaked = state.pools.iter().map(Pool::leaked).sum();
        counters.parked = state.parked.len() as u64;
        let sum = |field: fn(&Load) -> u64| state.loads.iter().map(field).sum();
        counters.running = sum(|load| load.running);
        counters.waiting = sum(|load| load.waiting);
        counters.connections = sum(|load| load.connections);
        counters.used_blocks = state.pools.iter().map(Pool::used).sum();
        counters.frozen = *self.frozen.borrow();
    }

    /// Frees a held transfer for good.
    pub(crate) fn free_held(&self, transfer: &str) -> bool {
        let mut state = lock(&self.state);
        let Some(held) = state.held.remove(transfer) else {
            return false;
        };
        state.pools[held.rank].give(held.blocks);
        state.end(transfer);
        drop(state);
        self.freed.notify_waiters();
        true
    }
}

struct TaskGuard(watch::Sender<usize>);

impl TaskGuard {
    fn new(tasks: watch::Sender<usize>) -> Self {
        tasks.send_modify(|count| *count += 1);
        Self(tasks)
    }
}

impl Drop for TaskGuard {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// Blocks in use by a request; dropping frees them.
pub(crate) struct Blocks {
    core: Arc<Core>,
    pub(crate) rank: usize,
    pub(crate) ids: Vec<u32>,
}

impl Blocks {
    /// Waits for `count` free blocks on a rank.
    pub(crate) async fn allocate(core: &Arc<Core>, rank: usize, count: usize) -> Self {
        let mut waiting = None;
        loop {
            let freed = core.freed.notified();
            let ids = lock(&core.state).pools[rank].take(count);
            if let Some(ids) = ids {
                return Self::of(core, rank, ids);
            }
            waiting.get_or_insert_with(|| Gauge::new(core, core.host_of(rank), |load| &mut load.waiting));
            freed.await;
        }
    }

    /// Puts blocks into a guard's care.
    pub(crate) fn of(core: &Arc<Core>, rank: usize, ids: Vec<u32>) -> Self {
        Self { core: core.clone(), rank, ids }
    }

    /// Takes the blocks out of this guard's care.
    pub(crate) fn into_ids(mut self) -> Vec<u32> {
        std::mem::take(&mut self.ids)
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        if !self.ids.is_empty() {
            lock(&self.core.state).pools[self.rank].give(std::mem::take(&mut self.ids));
            self.core.freed.notify_waiters();
        }
    }
}

/// One up on a host's gauge, down again when dropped.
pub(crate) struct Gauge {
    core: Arc<Core>,
    host: usize,
    field: fn(&mut Load) -> &mut u64,
}

impl Gauge {
    pub(crate) fn new(core: &Arc<Core>, host: usize, field: fn(&mut Load) -> &mut u64) -> Self {
        *field(&mut lock(&core.state).loads[host]) += 1;
        Self { core: core.clone(), host, field }
    }
}

impl Drop for Gauge {
    fn drop(&mut self) {
        *(self.field)(&mut lock(&self.core.state).loads[self.host]) -= 1;
    }
}
