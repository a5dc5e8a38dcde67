//! One life of an engine: its memory, its tasks and its death.

use std::collections::{HashMap, HashSet, VecDeque};
use std::convert::Infallible;
use std::future::{Future, pending};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::books::{Books, Counters, lock};
use super::mapped::Stage;
use super::notify::{Allocation, Release};
use super::peer::{Metadata, Peer};
use super::ports::Ports;
use super::settings::{Mode, Role, Settings};
use super::text::{BLOCK_BYTES, Block};
use super::zmtp::{HIGH_WATER_MARK, Message, dealer};

/// How many ended transfers prefill remembers.
const ENDED_KEPT: usize = 4096;

/// The KV memory of one data-parallel rank.
pub(crate) struct Pool {
    limit: u32,
    start: u32,
    next: u32,
    free: Vec<u32>,
    content: HashMap<u32, Block>,
}

impl Pool {
    /// An empty pool of `limit` blocks, whose numbers begin at `start`.
    fn new(limit: u32, start: u32) -> Self {
        Self { limit, start, next: 0, free: Vec::new(), content: HashMap::new() }
    }

    fn take(&mut self, count: usize) -> Option<Vec<u32>> {
        if (self.limit - self.next) as usize + self.free.len() < count {
            return None;
        }
        let ids: Vec<u32> = (0..count)
            .map(|_| match self.free.pop() {
                Some(id) => id,
                None => {
                    self.next += 1;
                    (self.start + self.next - 1) % self.limit
                }
            })
            .collect();
        for id in &ids {
            self.content.insert(*id, [0; BLOCK_BYTES]);
        }
        Some(ids)
    }

    /// Freed memory is forgotten at once: who reads it later gets zeros and shows it.
    fn give(&mut self, ids: Vec<u32>) {
        for id in &ids {
            self.content.remove(id);
        }
        self.free.extend(ids);
    }

    pub(crate) fn used(&self) -> u64 {
        self.content.len() as u64
    }

    pub(crate) fn exists(&self, id: u32) -> bool {
        id < self.limit
    }

    pub(crate) fn read(&self, id: u32) -> Block {
        self.content.get(&id).copied().unwrap_or_default()
    }

    pub(crate) fn block_mut(&mut self, id: u32) -> Option<&mut Block> {
        self.content.get_mut(&id)
    }
}

/// A transfer whose blocks prefill keeps for its peer.
pub(crate) struct Held {
    pub(crate) rank: usize,
    pub(crate) blocks: Vec<u32>,
    pub(crate) deadline: Instant,
    /// Per tensor-parallel rank: how many releases came and how many are needed.
    pub(crate) releases: HashMap<u32, (u32, u32)>,
    /// WRITE: where to push, until the push has begun.
    pub(crate) target: Option<Peer>,
    pub(crate) claimed_tp: Option<u32>,
    /// What prefill rendered.
    pub(crate) prompt: u64,
}

/// A decode request that waits for its KV.
pub(crate) struct Waiter {
    pub(crate) rank: usize,
    /// Per tensor-parallel rank: how many completions came and how many are needed.
    pub(crate) done: HashMap<u32, (u32, u32)>,
    pub(crate) wake: oneshot::Sender<Result<(), String>>,
}

/// Blocks on decode that a peer may write to.
pub(crate) struct Target {
    pub(crate) rank: usize,
    pub(crate) blocks: HashSet<u32>,
    /// Per block, one bit for each byte that came.
    pub(crate) written: HashMap<u32, u32>,
    pub(crate) claimed_tp: Option<u32>,
    /// What decode rendered.
    pub(crate) prompt: u64,
}

/// Everything that one life changes.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) pools: Vec<Pool>,
    pub(crate) held: HashMap<String, Held>,
    pub(crate) allocations: HashMap<String, Allocation>,
    pub(crate) early_releases: HashMap<String, Vec<(u32, Release)>>,
    pub(crate) mapped: HashMap<String, Stage>,
    pub(crate) parked: HashMap<String, Waiter>,
    /// Completions that came before their request: rank, tensor-parallel rank, writers.
    pub(crate) early_completions: HashMap<String, Vec<(usize, u32, Option<u32>)>>,
    pub(crate) targets: HashMap<String, Target>,
    pub(crate) ended: HashSet<String>,
    ended_order: VecDeque<String>,
    pub(crate) running: u64,
    pub(crate) waiting: u64,
    pub(crate) leaked: u64,
    /// Requests among the running ones whose answers got lost between the scheduler and the client.
    pub(crate) lost: u64,
    pub(crate) connections: u64,
    pub(crate) next_rank: usize,
    pub(crate) deaf: HashSet<(bool, u32)>,
}

impl State {
    pub(crate) fn new(pools: Vec<Pool>) -> Self {
        Self { pools, ..Self::default() }
    }

    /// Remembers that a transfer is over.
    pub(crate) fn end(&mut self, transfer: &str) {
        self.allocations.remove(transfer);
        self.early_releases.remove(transfer);
        if self.ended.insert(transfer.to_string()) {
            self.ended_order.push_back(transfer.to_string());
            if self.ended_order.len() > ENDED_KEPT
                && let Some(oldest) = self.ended_order.pop_front()
            {
                self.ended.remove(&oldest);
            }
        }
    }
}

/// One life of an engine.
pub(crate) struct Core {
    pub(crate) settings: Settings,
    pub(crate) minor: u32,
    pub(crate) nonce: u64,
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
    tasks: watch::Sender<usize>,
}

impl Core {
    pub(crate) fn new(settings: Settings, minor: u32, books: Arc<Books>, ports: Arc<Ports>) -> Self {
        let nonce = uuid::Uuid::new_v4().as_u64_pair().0;
        let start = (nonce % u64::from(settings.blocks)) as u32;
        let pools = (0..settings.dp).map(|_| Pool::new(settings.blocks, start)).collect();
        Self {
            minor,
            nonce,
            started: SystemTime::now(),
            books,
            ports,
            state: Mutex::new(State::new(pools)),
            token: CancellationToken::new(),
            freed: Notify::new(),
            frozen: watch::Sender::new(0),
            sessions: Mutex::default(),
            handshake_thread: tokio::sync::Mutex::default(),
            meeting: Mutex::default(),
            data_streams: Mutex::default(),
            dealers: Mutex::default(),
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
        counters.leaked = state.leaked;
        counters.parked = state.parked.len() as u64;
        counters.running = state.running;
        counters.waiting = state.waiting;
        counters.connections = state.connections;
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
            waiting.get_or_insert_with(|| Gauge::new(core, |state| &mut state.waiting));
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

/// One up on a gauge, down again when dropped.
pub(crate) struct Gauge {
    core: Arc<Core>,
    field: fn(&mut State) -> &mut u64,
}

impl Gauge {
    pub(crate) fn new(core: &Arc<Core>, field: fn(&mut State) -> &mut u64) -> Self {
        *field(&mut lock(&core.state)) += 1;
        Self { core: core.clone(), field }
    }
}

impl Drop for Gauge {
    fn drop(&mut self) {
        *(self.field)(&mut lock(&self.core.state)) -= 1;
    }
}
