//! Messages to engines' notify ports: a prefill engine is told that nobody will fetch a transfer (release), a decode engine whose
//! leg waits that its KV will not come (wake). Sent over sockets of their own from a thread of their own: an engine that does
//! not take them costs exchanges nothing. Only what an engine of that release understands is sent (`engine/versions.rs`).

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use zeromq::{Socket, SocketSend};

use crate::engine::Registration;
use crate::engine::versions::{ReleaseForm, Traits};
use crate::metrics::Metrics;
use crate::worker;

/// Messages that wait for their turn; more are dropped and counted.
const QUEUE: usize = 2048;
/// Messages that have theirs, most of them waiting for places.
const AT_ONCE: usize = 2048;
/// Ports that are being told at once, of all these messages: a message goes to as many as its engine has ranks.
const PORTS_AT_ONCE: usize = 512;
/// Of one host: one that is out of reach holds its places for two seconds each, and must not hold others' up.
const PORTS_OF_A_HOST: usize = 64;
/// Hosts that are remembered without a message to them.
const HOSTS: usize = 1024;
/// When a message has not gone out by then, its port is looked at: zeromq tries a refused connection again after 50 ms. A port that
/// is open mostly has the message long before, so that it costs no engine a second connection.
const FIRST_TRY: Duration = Duration::from_millis(40);
/// Time for connecting and sending.
const SEND_LIMIT: Duration = Duration::from_secs(2);

#[derive(Debug, Serialize)]
struct Release<'a> {
    r#type: &'static str,
    transfer_id: &'a str,
    consumer_tp_size: u32,
}

#[derive(Debug, Serialize)]
struct Outcome<'a> {
    r#type: &'static str,
    transfer_id: &'a str,
}

/// One message to all ports that are to have it: they are told or not, but never some for want of room.
#[derive(Debug)]
struct Message {
    kind: &'static str,
    addresses: Vec<String>,
    payload: Bytes,
    told: oneshot::Sender<Acknowledged>,
}

/// What came of a message (protocol K22).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acknowledged {
    /// Every port took it.
    Yes,
    /// A port is closed, the others took it: the engine is gone.
    Closed,
    /// Not every port took it in time, or there was no room to send it.
    No,
}

/// What came of one message to several ports. No port at all is nobody who took it.
fn all(answers: &[Acknowledged]) -> Acknowledged {
    let counted = |which| answers.iter().filter(|answer| **answer == which).count();
    let (taken, closed) = (counted(Acknowledged::Yes), counted(Acknowledged::Closed));
    match answers.len() {
        0 => Acknowledged::No,
        ports if ports == taken => Acknowledged::Yes,
        ports if ports == taken + closed => Acknowledged::Closed,
        _ => Acknowledged::No,
    }
}

/// The sender's handle.
#[derive(Clone, Debug)]
pub struct Notifier {
    queue: Option<mpsc::Sender<Message>>,
    metrics: Arc<Metrics>,
    ended: CancellationToken,
}

impl Notifier {
    /// Starts the sending thread; with `enabled` false (`--kv-release off`) nothing is ever sent.
    ///
    /// # Errors
    /// When the thread or its runtime cannot be made.
    pub fn start(enabled: bool, metrics: Arc<Metrics>) -> std::io::Result<Self> {
        let ended = CancellationToken::new();
        if !enabled {
            return Ok(Notifier { queue: None, metrics, ended });
        }
        let runtime = worker::runtime(&mut tokio::runtime::Builder::new_current_thread())?;
        let (queue, messages) = mpsc::channel(QUEUE);
        let counted = metrics.clone();
        let alive = ended.clone().drop_guard();
        // The thread ends with the last handle: the channel closes, and what is queued is still sent.
        std::thread::Builder::new().name("kv-notify".into()).spawn(move || {
            // Dropped at the end, also at one by a panic.
            let _alive = alive;
            runtime.block_on(run(messages, counted));
        })?;
        Ok(Notifier { queue: Some(queue), metrics, ended })
    }

    /// Resolves when the sending thread has ended; never, if there is none. Is no handle.
    pub fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        self.ended.clone().cancelled_owned()
    }

    /// Whether messages are sent at all (`--kv-release`).
    pub(crate) fn is_on(&self) -> bool {
        self.queue.is_some()
    }

    /// A release or a wake was called for that the engine's version does not know, or not at this moment: that is counted.
    pub(crate) fn unsupported(&self, kind: &'static str) {
        if self.is_on() {
            self.metrics.kv_message(kind, "unsupported");
        }
    }

    /// Tells every notify port of a prefill rank that nobody will fetch or receive the transfer (protocol K4). To be called once
    /// for a transfer: an engine keeps each release that finds nothing to free (protocol K7). Sent even if nobody waits for
    /// what comes of it.
    pub fn release(
        &self,
        prefill: &Registration,
        traits: &Traits,
        rank: u32,
        transfer_id: &str,
    ) -> impl Future<Output = Acknowledged> + Send + use<> {
        let payload = match traits.release {
            ReleaseForm::None => None,
            ReleaseForm::Text => Some(Bytes::from(transfer_id.to_owned())),
            ReleaseForm::Map => Some(packed(&Release { r#type: "release", transfer_id, consumer_tp_size: 1 })),
        };
        let ports = prefill.notify_ports(rank).collect();
        let answer = payload.and_then(|payload| self.send("release", ports, payload));
        acknowledged(answer)
    }

    /// Wakes a decode leg that waits for KV that prefill can certainly not write any more (protocol K10 to K12). To be called once
    /// in a leg's life, with the ranks that may have it. One that comes before its request is kept for it. Sent even if nobody waits
    /// for what comes of it.
    pub fn wake(
        &self,
        decode: &Registration,
        traits: &Traits,
        ranks: Range<u32>,
        transfer_id: &str,
    ) -> impl Future<Output = Acknowledged> + Send + use<> {
        let message = match (traits.write_failed, traits.wake) {
            (true, _) => Some(("write_failed", "write_failed")),
            (false, true) => Some(("unpark", "write_done")),
            (false, false) => None,
        };
        // Which of them holds the leg is decode's own secret; the others keep a line for a request that never comes.
        let ports = ranks.flat_map(|rank| decode.notify_ports(rank)).collect();
        let answer = message
            .and_then(|(kind, message)| self.send(kind, ports, packed(&Outcome { r#type: message, transfer_id })));
        acknowledged(answer)
    }

    /// One message to each port. Nothing comes back where there is no room for it.
    fn send(
        &self,
        kind: &'static str,
        ports: BTreeSet<(&str, u16)>,
        payload: Bytes,
    ) -> Option<oneshot::Receiver<Acknowledged>> {
        let queue = self.queue.as_ref()?;
        let (told, answer) = oneshot::channel();
        let address = |(host, port): (&str, u16)| match host.contains(':') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        };
        let addresses = ports.into_iter().map(address).collect();
        if queue.try_send(Message { kind, addresses, payload, told }).is_err() {
            self.metrics.kv_message(kind, "dropped");
            return None;
        }
        Some(answer)
    }
}

/// What comes of a message, if it is sent at all.
async fn acknowledged(answer: Option<oneshot::Receiver<Acknowledged>>) -> Acknowledged {
    match answer {
        Some(answer) => answer.await.unwrap_or(Acknowledged::No),
        None => Acknowledged::No,
    }
}

fn packed<T: Serialize>(message: &T) -> Bytes {
    // Two short texts and a number always encode.
    rmp_serde::to_vec_named(message).map(Bytes::from).unwrap_or_default()
}

async fn run(mut messages: mpsc::Receiver<Message>, metrics: Arc<Metrics>) {
    let (room, ports) = (Arc::new(Semaphore::new(AT_ONCE)), Arc::new(Semaphore::new(PORTS_AT_ONCE)));
    let mut hosts: HashMap<String, Arc<Semaphore>> = HashMap::new();
    while let Some(message) = messages.recv().await {
        let Ok(permit) = room.clone().acquire_owned().await else {
            return;
        };
        if hosts.len() > HOSTS {
            hosts.retain(|_, places| Arc::strong_count(places) > 1);
        }
        let of_its_host = |address: &String| {
            let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
            hosts.entry(host.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(PORTS_OF_A_HOST))).clone()
        };
        let places: Vec<_> = message.addresses.iter().map(of_its_host).collect();
        tokio::spawn(tell(message, places, metrics.clone(), permit, ports.clone()));
    }
    // The handles are gone; what is under way has its own limit.
    let _ = tokio::time::timeout(SEND_LIMIT, room.acquire_many(AT_ONCE as u32)).await;
}

/// Sends one message to its ports, each by a place of its host's, and counts what came of each.
async fn tell(
    message: Message,
    places: Vec<Arc<Semaphore>>,
    metrics: Arc<Metrics>,
    permit: OwnedSemaphorePermit,
    ports: Arc<Semaphore>,
) {
    let Message { kind, addresses, payload, told } = message;
    let (ports, metrics, payload) = (&ports, &metrics, &payload);
    let sends = addresses.iter().zip(places).map(|(address, place)| async move {
        // Never closed, either of them. Whoever waits for its host holds nothing of the others'.
        let (_place, _room) = (place.acquire_owned().await, ports.acquire().await);
        let (outcome, acknowledged) = match tokio::time::timeout(SEND_LIMIT, deliver(address, payload)).await {
            Ok(Ok(Acknowledged::Yes)) => ("sent", Acknowledged::Yes),
            Ok(Ok(not_sent)) => ("failed", not_sent),
            Ok(Err(_)) => ("failed", Acknowledged::No),
            Err(_) => ("timeout", Acknowledged::No),
        };
        metrics.kv_message(kind, outcome);
        (address, outcome, acknowledged)
    });
    let mut answers = futures::future::join_all(sends).await;
    let mut failed = answers.iter().filter(|(_, outcome, _)| *outcome != "sent");
    if let Some((address, outcome, _)) = failed.next() {
        let others = failed.count();
        tracing::warn!(kind, %address, outcome, others, "engine could not be notified");
    }
    drop(permit);
    let looks = answers.iter_mut().filter(|(.., acknowledged)| *acknowledged == Acknowledged::No);
    let looks = looks.map(|(address, _, acknowledged)| async {
        if is_closed(address).await {
            *acknowledged = Acknowledged::Closed;
        }
    });
    futures::future::join_all(looks).await;
    let answers: Vec<Acknowledged> = answers.into_iter().map(|(.., acknowledged)| acknowledged).collect();
    let _ = told.send(all(&answers));
}

/// Whether nobody listens any more.
async fn is_closed(address: &str) -> bool {
    let refused = |error: std::io::Error| error.kind() == std::io::ErrorKind::ConnectionRefused;
    let connected = tokio::time::timeout(SEND_LIMIT, tokio::net::TcpStream::connect(address)).await;
    connected.is_ok_and(|connected| connected.is_err_and(refused))
}

/// Sends a message, unless nobody listens. zeromq does not tell of a refused connection but tries again: an engine that is back
/// within the limit would pass for one that was there all the time, and get what was meant for its former life.
async fn deliver(address: &str, payload: &Bytes) -> zeromq::ZmqResult<Acknowledged> {
    let refused = async {
        tokio::time::sleep(FIRST_TRY).await;
        if !is_closed(address).await {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        biased;
        sent = send(address, payload) => sent.map(|()| Acknowledged::Yes),
        () = refused => Ok(Acknowledged::Closed),
    }
}

async fn send(address: &str, payload: &Bytes) -> zeromq::ZmqResult<()> {
    let mut socket = zeromq::DealerSocket::new();
    socket.connect(&format!("tcp://{address}")).await?;
    let result = socket.send(payload.clone().into()).await;
    // `send` resolves when the frame is written, so that closing loses nothing.
    socket.close().await;
    result
}
