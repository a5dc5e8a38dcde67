//! Messages to engines' notify ports: a prefill engine is told that nobody will fetch a transfer (release), a parked decode
//! engine that its KV will not come (un-park). Sent over sockets of their own from a thread of their own: an engine that does
//! not take them costs exchanges nothing. Only what an engine of that release understands is sent (`engine/versions.rs`).

pub mod held;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use zeromq::{Socket, SocketSend};

use crate::engine::Registration;
use crate::engine::versions::{ReleaseForm, Traits, notify_ports};
use crate::metrics::Metrics;

/// Messages that wait to be sent; more are dropped and counted.
const QUEUE: usize = 4096;
/// Messages that are being sent at once.
const AT_ONCE: usize = 64;
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

#[derive(Debug)]
struct Message {
    kind: &'static str,
    address: String,
    payload: Bytes,
    told: oneshot::Sender<Heard>,
}

/// What came of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    Yes,
    /// Its port is closed: the engine that it was for is gone.
    Closed,
    No,
}

type Hears = oneshot::Receiver<Heard>;

/// Whether there was somebody to be told, and the message came to one of `good` everywhere.
async fn all(heard: Vec<Hears>, good: &[Heard]) -> bool {
    let heard = futures::future::join_all(heard).await;
    !heard.is_empty() && heard.iter().flatten().filter(|heard| good.contains(heard)).count() == heard.len()
}

/// The sender's handle.
#[derive(Clone, Debug)]
pub struct Notifier {
    queue: Option<mpsc::Sender<Message>>,
    metrics: Arc<Metrics>,
}

impl Notifier {
    /// Starts the sending thread; with `enabled` false (`--kv-release off`) nothing is ever sent.
    ///
    /// # Errors
    /// When the thread or its runtime cannot be made.
    pub fn start(enabled: bool, metrics: Arc<Metrics>) -> std::io::Result<Self> {
        if !enabled {
            return Ok(Notifier { queue: None, metrics });
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (queue, messages) = mpsc::channel(QUEUE);
        let counted = metrics.clone();
        // The thread ends with the last handle: the channel closes, and what is queued is still sent.
        std::thread::Builder::new().name("kv-notify".into()).spawn(move || runtime.block_on(run(messages, counted)))?;
        Ok(Notifier { queue: Some(queue), metrics })
    }

    /// Tells every notify port of a prefill slot that nobody will fetch or receive the transfer (protocol K4, K7), once:
    /// an engine keeps each release that finds nothing to free. What comes back is empty for an engine that must not hear of
    /// what it has not `finished`: it is left to its own timer.
    fn release(
        &self,
        prefill: &Registration,
        traits: &Traits,
        rank: u32,
        transfer_id: &str,
        finished: bool,
    ) -> Vec<Hears> {
        if !finished && !traits.early_release {
            self.metrics.kv_message("release", "unsupported");
            return Vec::new();
        }
        let payload = match traits.release {
            ReleaseForm::None => {
                self.metrics.kv_message("release", "unsupported");
                return Vec::new();
            }
            ReleaseForm::Text => Bytes::from(transfer_id.to_owned()),
            ReleaseForm::Map => packed(&Release { r#type: "release", transfer_id, consumer_tp_size: 1 }),
        };
        self.send("release", prefill, notify_ports(prefill, rank).collect(), payload)
    }

    /// Wakes a parked decode leg into which prefill can certainly not write any more. To be called once in a leg's life, and
    /// never for one that may be at work: a decode engine ends when it is told twice. One that comes before its request is
    /// kept for it. Sent even if nobody waits for what comes back: whether every rank has heard it.
    pub fn unpark(
        &self,
        decode: &Registration,
        traits: &Traits,
        transfer_id: &str,
    ) -> impl Future<Output = bool> + Send + use<> {
        all(self.queue_unpark(decode, traits, transfer_id), &[Heard::Yes])
    }

    fn queue_unpark(&self, decode: &Registration, traits: &Traits, transfer_id: &str) -> Vec<Hears> {
        let (kind, message) = match (traits.write_failed, traits.unpark) {
            (true, _) => ("write_failed", "write_failed"),
            (false, true) => ("unpark", "write_done"),
            (false, false) => {
                self.metrics.kv_message("unpark", "unsupported");
                return Vec::new();
            }
        };
        let payload = packed(&Outcome { r#type: message, transfer_id });
        // Which rank holds the leg is decode's own secret; the others keep a line for a request that never comes.
        let ports = (0..decode.dp_size).flat_map(|rank| notify_ports(decode, rank)).collect();
        self.send(kind, decode, ports, payload)
    }

    /// One message to each port. What comes back is empty when an engine will not hear all.
    fn send(&self, kind: &'static str, engine: &Registration, ports: BTreeSet<u16>, payload: Bytes) -> Vec<Hears> {
        let Some(queue) = &self.queue else { return Vec::new() };
        let mut heard = Vec::new();
        let kv = &engine.kv;
        let host = if kv.host.contains(':') { format!("[{}]", kv.host) } else { kv.host.clone() };
        for port in ports {
            let (told, hears) = oneshot::channel();
            let address = format!("{host}:{port}");
            if queue.try_send(Message { kind, address, payload: payload.clone(), told }).is_err() {
                self.metrics.kv_message(kind, "dropped");
                return Vec::new();
            }
            heard.push(hears);
        }
        heard
    }
}

fn packed<T: Serialize>(message: &T) -> Bytes {
    // Two short texts and a number always encode.
    rmp_serde::to_vec_named(message).map(Bytes::from).unwrap_or_default()
}

async fn run(mut messages: mpsc::Receiver<Message>, metrics: Arc<Metrics>) {
    let room = Arc::new(Semaphore::new(AT_ONCE));
    while let Some(message) = messages.recv().await {
        let Ok(permit) = room.clone().acquire_owned().await else {
            return;
        };
        tokio::spawn(tell(message, metrics.clone(), permit));
    }
    // The handles are gone; what is under way has its own limit.
    let _ = tokio::time::timeout(SEND_LIMIT, room.acquire_many(AT_ONCE as u32)).await;
}

/// Sends one message and counts what came of it.
async fn tell(message: Message, metrics: Arc<Metrics>, permit: OwnedSemaphorePermit) {
    let outcome = match tokio::time::timeout(SEND_LIMIT, deliver(&message)).await {
        Ok(Ok(())) => "sent",
        Ok(Err(_)) => "failed",
        Err(_) => "timeout",
    };
    metrics.kv_message(message.kind, outcome);
    if outcome != "sent" {
        tracing::warn!(kind = message.kind, address = %message.address, outcome, "engine could not be notified");
    }
    drop(permit);
    let heard = match outcome {
        "sent" => Heard::Yes,
        _ if is_closed(&message.address).await => Heard::Closed,
        _ => Heard::No,
    };
    let _ = message.told.send(heard);
}

/// Whether nobody listens any more.
async fn is_closed(address: &str) -> bool {
    let refused = |error: std::io::Error| error.kind() == std::io::ErrorKind::ConnectionRefused;
    let connected = tokio::time::timeout(SEND_LIMIT, tokio::net::TcpStream::connect(address)).await;
    connected.is_ok_and(|connected| connected.is_err_and(refused))
}

async fn deliver(message: &Message) -> zeromq::ZmqResult<()> {
    let mut socket = zeromq::DealerSocket::new();
    socket.connect(&format!("tcp://{}", message.address)).await?;
    let result = socket.send(message.payload.clone().into()).await;
    // `send` resolves when the frame is written, so that closing loses nothing.
    socket.close().await;
    result
}
