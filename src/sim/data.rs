//! The data port: the simulated RDMA. One request is a length, a JSON head, and the bytes to write; so is an answer.

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::books::lock;
use super::core::Core;
use super::peer::Metadata;
use super::text::BLOCK_BYTES;

const LENGTH_LIMIT: u32 = 256 << 20;

/// What is asked of a peer's memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Access {
    /// The life that the asker believes to talk to.
    pub(crate) nonce: u64,
    pub(crate) dp_rank: u32,
    pub(crate) tp_rank: u32,
    pub(crate) transfer: String,
    pub(crate) blocks: Vec<u32>,
    /// The bytes of each block.
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// The asker's own tensor-parallel size, for the audit only.
    pub(crate) tp_size: u32,
    pub(crate) write: bool,
    /// The asker's rendered prompt, for the audit only.
    pub(crate) prompt: u64,
}

/// How an access ended.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The remembered memory belongs to an earlier life.
    Stale(String),
    /// The peer is no longer there.
    Gone(String),
    /// The peer refused the access, or was never met.
    Refused(String),
}

/// Serves one connection to a host.
pub(crate) async fn serve(core: Arc<Core>, mut stream: TcpStream, host: usize) {
    let (nonce, ranks) = (core.site(host).nonce, core.ranks_of(host));
    let _ = stream.set_nodelay(true);
    while let Ok((head, bytes)) = receive(&mut stream).await {
        let answer = match serde_json::from_slice::<Access>(&head) {
            Ok(access) if access.nonce != nonce => ("stale", Vec::new()),
            Ok(access) if !ranks.contains(&(access.dp_rank as usize)) => ("no such rank", Vec::new()),
            Ok(access) if access.write => (write(&core, &access, &bytes), Vec::new()),
            Ok(access) => read(&core, &access),
            Err(_) => ("unreadable", Vec::new()),
        };
        let head = json!({"status": answer.0}).to_string();
        if send(&mut stream, head.as_bytes(), &answer.1).await.is_err() {
            return;
        }
    }
}

/// The bytes of each block that a rank really owns.
pub(crate) fn shard(tp_rank: u32, tp_size: u32) -> std::ops::Range<usize> {
    let width = (BLOCK_BYTES / tp_size.clamp(1, BLOCK_BYTES as u32) as usize).max(1);
    let start = (tp_rank as usize * width).min(BLOCK_BYTES - width);
    start..start + width
}

fn read(core: &Core, access: &Access) -> (&'static str, Vec<u8>) {
    let own = shard(access.tp_rank, core.settings.tp);
    let state = lock(&core.state);
    let Some(pool) = state.pools.get(access.dp_rank as usize) else {
        return ("no such rank", Vec::new());
    };
    if access.start > access.end || access.end > BLOCK_BYTES || !access.blocks.iter().all(|id| pool.exists(*id)) {
        return ("out of range", Vec::new());
    }
    match state.held.get(&access.transfer) {
        Some(held) if held.rank != access.dp_rank as usize => {
            core.books
                .violation(format!("{} read from rank {}, it is on {}", access.transfer, access.dp_rank, held.rank));
        }
        Some(held) if held.blocks.starts_with(&access.blocks) => same_prompt(core, access, held.prompt),
        Some(_) => core.books.violation(format!("{} read with other block ids than it has", access.transfer)),
        None => core.books.violation(format!("{} read with stale block ids: nothing is held for it", access.transfer)),
    }
    let mut bytes = Vec::with_capacity(access.blocks.len() * (access.end - access.start));
    for id in &access.blocks {
        let block = pool.read(*id);
        bytes.extend((access.start..access.end).map(|at| if own.contains(&at) { block[at] } else { 0 }));
    }
    ("ok", bytes)
}

fn write(core: &Core, access: &Access, bytes: &[u8]) -> &'static str {
    let own = shard(access.tp_rank, core.settings.tp);
    let width = access.end.saturating_sub(access.start);
    if access.end > BLOCK_BYTES || bytes.len() != width * access.blocks.len() {
        return "out of range";
    }
    let mut state = lock(&core.state);
    let state = &mut *state;
    let Some(pool) = state.pools.get_mut(access.dp_rank as usize) else {
        return "no such rank";
    };
    let mut mismatch = None;
    match state.targets.get_mut(&access.transfer) {
        None => mismatch = Some("no request waits for it"),
        Some(target) => {
            same_prompt(core, access, target.prompt);
            if let Some(claimed) = target.claimed_tp.filter(|claimed| *claimed != access.tp_size) {
                core.books
                    .violation(format!("decode leg says prefill's tp size is {claimed}, it is {}", access.tp_size));
            }
            if target.rank != access.dp_rank as usize || !access.blocks.iter().all(|id| target.blocks.contains(id)) {
                mismatch = Some("the blocks belong to another request");
            }
            for id in &access.blocks {
                let bits = (access.start..access.end).filter(|at| own.contains(at)).fold(0, |bits, at| bits | 1 << at);
                *target.written.entry(*id).or_insert(0) |= bits;
            }
        }
    }
    if access.start < own.start || access.end > own.end {
        mismatch = Some("it reaches into another rank's shard");
    }
    for (index, id) in access.blocks.iter().enumerate() {
        let Some(block) = pool.block_mut(*id) else { continue };
        for at in (access.start..access.end).filter(|at| own.contains(at)) {
            block[at] = bytes[index * width + at - access.start];
        }
    }
    if let Some(why) = mismatch {
        core.books.count(|counters| counters.kv_mismatch += 1);
        core.books.violation(format!("KV of {} written although {why}", access.transfer));
    }
    "ok"
}

/// Engines never compare what they rendered: decode's text is wrong and nobody is told.
fn same_prompt(core: &Core, access: &Access, own: u64) {
    if access.prompt != own {
        core.books.violation(format!("{}: the legs render different prompts", access.transfer));
    }
}

/// Reads or writes a peer's memory.
pub(crate) async fn access(core: &Core, peer: &Metadata, access: &Access, bytes: &[u8]) -> Result<Vec<u8>, Failure> {
    let head = serde_json::to_vec(access).map_err(|error| Failure::Refused(error.to_string()))?;
    let key = format!("{}:{}", peer.host, peer.port);
    let kept = lock(&core.data_streams).get_mut(&key).and_then(Vec::pop);
    let mut answer = Err(io::ErrorKind::NotConnected.into());
    if let Some(stream) = kept {
        answer = ask(stream, &head, bytes).await;
    }
    if answer.is_err() {
        answer = match TcpStream::connect((peer.host.as_str(), peer.port)).await {
            Ok(stream) => ask(stream, &head, bytes).await,
            Err(error) => Err(error),
        };
    }
    let (stream, head, data) = answer.map_err(|error| Failure::Gone(error.to_string()))?;
    lock(&core.data_streams).entry(key).or_default().push(stream);
    let head: serde_json::Value = serde_json::from_slice(&head).unwrap_or_default();
    match head["status"].as_str() {
        Some("ok") => Ok(data),
        Some("stale") => Err(Failure::Stale("the peer was restarted".into())),
        other => Err(Failure::Refused(other.unwrap_or("unreadable").to_string())),
    }
}

async fn ask(mut stream: TcpStream, head: &[u8], bytes: &[u8]) -> io::Result<(TcpStream, Vec<u8>, Vec<u8>)> {
    let _ = stream.set_nodelay(true);
    send(&mut stream, head, bytes).await?;
    let (head, data) = receive(&mut stream).await?;
    Ok((stream, head, data))
}

async fn send(stream: &mut TcpStream, head: &[u8], bytes: &[u8]) -> io::Result<()> {
    let mut whole = Vec::with_capacity(8 + head.len() + bytes.len());
    for part in [head, bytes] {
        whole.extend((part.len() as u32).to_be_bytes());
        whole.extend(part);
    }
    stream.write_all(&whole).await
}

async fn receive(stream: &mut TcpStream) -> io::Result<(Vec<u8>, Vec<u8>)> {
    Ok((part(stream).await?, part(stream).await?))
}

async fn part(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u32().await?;
    if length > LENGTH_LIMIT {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; length as usize];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}
