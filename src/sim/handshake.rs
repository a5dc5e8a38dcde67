//! Handshakes: answered on the handshake ports, dialed once per peer and remembered for ever.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};

use super::books::lock;
use super::core::Core;
use super::peer::{Metadata, Peer};
use super::state::Slot;
use super::zmtp::Connection;

const GET: &[u8] = b"get_meta_msg";
const REDIAL: Duration = Duration::from_millis(100);

/// A msgpack bin.
struct Bin(Vec<u8>);

impl Serialize for Bin {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bin {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Bin;
            fn expecting(&self, text: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                text.write_str("bytes")
            }
            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Bin, E> {
                Ok(Bin(bytes.to_vec()))
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

#[derive(Serialize, Deserialize)]
struct AgentMetadata {
    engine_id: String,
    agent_metadata: Bin,
    kv_caches_base_addr: Vec<u64>,
    num_blocks: u32,
    block_len: u32,
    attn_backend_name: String,
}

/// Serves one connection to a handshake port.
pub(crate) async fn serve(core: Arc<Core>, stream: TcpStream, slot: Slot) {
    let Ok(mut connection) = Connection::greet(stream, "ROUTER").await else {
        return;
    };
    while let Ok(message) = connection.receive().await {
        let deaf = lock(&core.state).deaf.contains(&(true, slot));
        if deaf {
            continue;
        }
        if message.len() != 1 || message[0] != GET {
            go_deaf(&core, true, slot, &format!("handshake message of {} frames", message.len()));
            continue;
        }
        let Ok((metadata, regions)) = describe(&core, slot) else {
            return;
        };
        for body in [metadata, regions] {
            if connection.send(&[Bytes::new(), body]).await.is_err() {
                return;
            }
        }
    }
}

/// A listener thread ends for good, and with it whatever comes to this port.
pub(crate) fn go_deaf(core: &Core, handshake: bool, slot: Slot, why: &str) {
    if lock(&core.state).deaf.insert((handshake, slot)) {
        core.books.count(|counters| counters.deaf += 1);
        let port = if handshake { "handshake" } else { "notify" };
        core.books.violation(format!("{port} listener {} of host {} died of: {why}", slot.offset, slot.host));
    }
}

fn describe(core: &Core, slot: Slot) -> Result<(Bytes, Bytes), rmp_serde::encode::Error> {
    let (dp_rank, tp_rank) = core.ranks(slot);
    let host = core.settings.hosts[slot.host];
    let own = Metadata {
        host: host.to_string(),
        port: core.ports.hosts[slot.host].data.port(),
        nonce: core.site(slot.host).nonce,
        dp_size: core.settings.dp,
        tp_size: core.settings.tp,
        dp_rank: dp_rank as u32,
        tp_rank,
    };
    let metadata = AgentMetadata {
        engine_id: format!("{host}:{}", core.ports.handshake_base()),
        agent_metadata: Bin(serde_json::to_vec(&own).unwrap_or_default()),
        kv_caches_base_addr: vec![0],
        num_blocks: core.settings.blocks,
        block_len: (super::text::BLOCK_BYTES / core.settings.tp as usize) as u32,
        attn_backend_name: "SIMULATED".into(),
    };
    let region = Bin(format!("dp{dp_rank}tp{tp_rank}").into_bytes());
    let regions = std::collections::BTreeMap::from([("layer.0", vec![region])]);
    Ok((rmp_serde::to_vec_named(&metadata)?.into(), rmp_serde::to_vec_named(&regions)?.into()))
}

async fn dial(host: &str, port: u16) -> io::Result<Metadata> {
    let mut connection = Connection::dial(host, port).await?;
    connection.send(&[Bytes::from_static(GET)]).await?;
    let metadata = connection.receive().await?;
    let _regions = connection.receive().await?;
    let wrong = |error: &dyn std::fmt::Display| io::Error::new(io::ErrorKind::InvalidData, error.to_string());
    let body = metadata.last().ok_or_else(|| wrong(&"empty answer"))?;
    let metadata: AgentMetadata = rmp_serde::from_slice(body).map_err(|error| wrong(&error))?;
    serde_json::from_slice(&metadata.agent_metadata.0).map_err(|error| wrong(&error))
}

/// The peer ranks that share KV with this engine's rank `own`, for sizes `mine` and `theirs`.
pub(crate) fn shares(own: u32, mine: u32, theirs: u32) -> std::ops::Range<u32> {
    if theirs >= mine {
        let factor = theirs / mine;
        own * factor..(own + 1) * factor
    } else {
        let mapped = own / (mine / theirs);
        mapped..mapped + 1
    }
}

/// What is remembered of a peer's rank.
pub(crate) fn session(core: &Core, peer: &Peer, dp: u32, tp: u32) -> Option<Arc<Metadata>> {
    let place = peer.handshake_place(peer.handshake?, dp, tp);
    lock(&core.sessions).get(&place).cloned()
}

/// What must still be dialed before this engine can talk to all ranks of `peer`.
fn missing(core: &Core, peer: &Peer) -> Vec<(String, u16)> {
    let Some(base) = peer.handshake else { return Vec::new() };
    let sessions = lock(&core.sessions);
    let mut places = Vec::new();
    for dp in 0..peer.dp_size {
        for tp in (0..core.settings.tp).flat_map(|own| shares(own, core.settings.tp, peer.tp)) {
            let place = peer.handshake_place(base, dp, tp);
            if !sessions.contains_key(&place) && !places.contains(&place) {
                places.push(place);
            }
        }
    }
    places
}

/// Makes sure that a peer is known. The step waits for it, and the step is everybody's.
pub(crate) async fn meet(core: &Arc<Core>, peer: &Peer) {
    let (places, Some(base)) = (missing(core, peer), peer.handshake) else {
        return;
    };
    if places.is_empty() {
        return;
    }
    let key = (peer.host.clone(), base);
    if !lock(&core.meeting).insert(key.clone()) {
        note_overlap(core, peer);
    }
    let (sender, met) = oneshot::channel::<()>();
    let worker = core.clone();
    core.spawn(async move {
        dial_all(&worker, places).await;
        lock(&worker.meeting).remove(&key);
        drop(sender);
    });
    let for_ever = match core.write() {
        true => core.minor <= 22,
        false => !(23..=26).contains(&core.minor),
    };
    let limit = if for_ever { Duration::MAX } else { core.settings.transfer_timeout };
    let (waits, (end, ended)) = (Frozen::new(core), oneshot::channel::<()>());
    // The step goes on when the request's client has gone.
    core.spawn(async move {
        // Whether the peer was met shows when somebody looks for the session.
        let _ = timeout(limit, met).await;
        drop((waits, end));
    });
    let _ = ended.await;
}

/// Holds up the whole engine while it lives.
struct Frozen(watch::Sender<u64>);

impl Frozen {
    fn new(core: &Core) -> Self {
        core.frozen.send_modify(|frozen| *frozen += 1);
        Self(core.frozen.clone())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.0.send_modify(|frozen| *frozen -= 1);
    }
}

/// Notes a leg that arrives while its peer is being met for the first time.
pub(crate) fn audit_first_contact(core: &Core, peer: &Peer) {
    let Some(base) = peer.handshake else { return };
    let being_met = lock(&core.meeting).contains(&(peer.host.clone(), base));
    if being_met {
        note_overlap(core, peer);
    }
}

fn note_overlap(core: &Core, peer: &Peer) {
    core.books.count(|counters| counters.first_contact_overlaps += 1);
    if core.minor < 31 {
        core.books.violation(format!("first contact with {} by several requests at once", peer.host));
    }
}

/// There is one handshake thread, and it waits for ever.
async fn dial_all(core: &Core, places: Vec<(String, u16)>) {
    let _thread = core.handshake_thread.lock().await;
    for place in places {
        if lock(&core.sessions).contains_key(&place) {
            continue;
        }
        let metadata = loop {
            match dial(&place.0, place.1).await {
                Ok(metadata) => break metadata,
                Err(_) => sleep(REDIAL).await,
            }
        };
        core.books.count(|counters| counters.handshakes += 1);
        lock(&core.sessions).insert(place, Arc::new(metadata));
    }
}

/// Records what a leg said wrongly about a peer that is known by now.
pub(crate) fn audit_sizes(core: &Core, peer: &Peer, metadata: &Metadata) {
    if metadata.tp_size != peer.tp {
        core.books.violation(format!("leg says the peer's tp size is {}, it is {}", peer.tp, metadata.tp_size));
    }
    // In READ a rank may be presented as an engine of its own.
    let alone = !core.write() && (peer.dp_size, peer.dp_rank) == (1, 0);
    if metadata.dp_size != peer.dp_size && !alone {
        core.books.violation(format!("leg says the peer's dp size is {}, it is {}", peer.dp_size, metadata.dp_size));
    }
}
