//! What transfer params and request id tell an engine of each release, and what it dies of.

use serde_json::{Map, Value};

use super::ask::Ask;
use super::peer::{Layout, Peer};
use super::settings::Mode;

/// What an engine makes of a leg.
#[derive(Clone, Debug)]
pub(crate) enum Plan {
    /// Generation without any transfer.
    Plain,
    /// Prefill and give the KV away; no peer needs to be known for that in READ.
    Prefill { transfer: String, peer: Option<Peer> },
    /// Decode from a peer's KV. `notifies`: whether this rank asks the peer to write.
    Decode { transfer: String, peer: Peer, blocks: Vec<u32>, notifies: bool },
    /// Decode that takes its KV for loaded and never loads it.
    Garbage,
}

/// What decides over a leg besides its own content.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    pub(crate) prefill: bool,
    pub(crate) mode: Mode,
    pub(crate) minor: u32,
    pub(crate) tp: u32,
    pub(crate) rank: usize,
    /// Ranks on each of this engine's hosts.
    pub(crate) local_dp: u32,
}

/// Reads a leg. An error is what the engine process dies of.
pub(crate) fn plan(facts: Facts, ask: &Ask) -> Result<Plan, String> {
    let Some(params) = ask.params().filter(|_| !ask.has_beams()) else {
        return Ok(Plan::Plain);
    };
    let wanted = if facts.prefill { "do_remote_decode" } else { "do_remote_prefill" };
    if params.get(wanted).and_then(Value::as_bool) != Some(true) {
        return Ok(Plan::Plain);
    }
    let write = facts.mode == Mode::Write;
    let required = match (facts.prefill, write) {
        (true, true) => true,
        (true, false) => facts.minor <= 30,
        (false, true) => facts.minor <= 23,
        (false, false) => false,
    };
    if required {
        present(params, "remote_engine_id")?;
        present(params, "remote_block_ids")?;
    }
    if facts.minor <= 19 && facts.prefill {
        present(params, "remote_port")?;
    }
    let request_id = ask.engine_id();
    let request_id = request_id.as_str();
    let transfer = transfer_id(facts, params, ask)?;
    if params.get("remote_dp_size_local").is_some_and(Value::is_null) {
        return Err("remote_dp_size_local is null: unsupported operand type".into());
    }
    if facts.prefill {
        if !write && facts.minor >= 31 {
            return Ok(Plan::Prefill { transfer, peer: peer(facts, params, request_id).ok() });
        }
        return Ok(Plan::Prefill { transfer, peer: Some(peer(facts, params, request_id)?) });
    }
    let peer = peer(facts, params, request_id)?;
    if write {
        let notifies = notifies(facts, params, &peer)?;
        return Ok(Plan::Decode { transfer, peer, blocks: Vec::new(), notifies });
    }
    let loadable = params.contains_key("remote_engine_id") && (facts.minor > 19 || params.contains_key("remote_port"));
    let blocks = block_ids(facts.minor, params.get("remote_block_ids").unwrap_or(&Value::Null))?;
    if !loadable || blocks.is_empty() {
        return Ok(Plan::Garbage);
    }
    Ok(Plan::Decode { transfer, peer, blocks, notifies: true })
}

fn present(params: &Map<String, Value>, key: &str) -> Result<(), String> {
    if params.contains_key(key) { Ok(()) } else { Err(format!("KeyError: {key}")) }
}

fn transfer_id(facts: Facts, params: &Map<String, Value>, ask: &Ask) -> Result<String, String> {
    if facts.minor <= 17 {
        return Ok(ask.internal_id());
    }
    match params.get("transfer_id") {
        Some(Value::String(id)) => Ok(id.clone()),
        None if facts.minor >= 28 => {
            Ok(format!("sidecar-{}-{}", ask.internal_id(), if facts.prefill { "p" } else { "d" }))
        }
        None => Err("KeyError: transfer_id".into()),
        Some(other) => Err(format!("transfer_id is no string: {other}")),
    }
}

fn notifies(facts: Facts, params: &Map<String, Value>, peer: &Peer) -> Result<bool, String> {
    if facts.minor < 28 {
        return Ok(true);
    }
    if let Some(leader) = params.get("is_request_leader") {
        return leader.as_bool().ok_or_else(|| "is_request_leader is no bool".into());
    }
    let overridden = params.get("remote_dp_rank_override").and_then(Value::as_bool).unwrap_or(false);
    let rank = facts.rank as u32;
    Ok(if overridden { rank == peer.dp_rank } else { rank < facts.local_dp })
}

/// Flat before 0.30, nested since: an engine handed the other shape dies.
fn block_ids(minor: u32, value: &Value) -> Result<Vec<u32>, String> {
    let wrong = || format!("TypeError: remote_block_ids {value} do not fit this release");
    let list = match value {
        Value::Null => return Ok(Vec::new()),
        Value::Array(list) => list,
        _ => return Err(wrong()),
    };
    let numbers = |list: &[Value]| -> Option<Vec<u32>> {
        list.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok())).collect()
    };
    if minor < 30 || list.is_empty() {
        return numbers(list).ok_or_else(wrong);
    }
    let groups: Option<Vec<Vec<u32>>> = list.iter().map(|group| numbers(group.as_array()?)).collect();
    Ok(groups.ok_or_else(wrong)?.concat())
}

/// Where the peer is, taken from where this release looks.
fn peer(facts: Facts, params: &Map<String, Value>, request_id: &str) -> Result<Peer, String> {
    let embedded = if facts.prefill { decode_address(request_id) } else { prefill_address(request_id) };
    let explicit = explicit(facts, params)?;
    let unparsable = || format!("cannot parse peer address from request id {request_id:?}");
    let (host, handshake, notify) = match facts.minor {
        ..=19 => explicit.ok_or("KeyError: remote_host, remote_handshake_port or remote_notify_port")?,
        20..=23 => embedded.ok_or_else(unparsable)?,
        24..=27 => match (explicit, embedded) {
            (Some(explicit @ (_, Some(_), _)), _) => explicit,
            (_, Some(embedded)) => embedded,
            (Some(partial), None) => partial,
            (None, None) => return Err(unparsable()),
        },
        _ => embedded.or(explicit).ok_or_else(unparsable)?,
    };
    if handshake.is_none() && (facts.prefill || facts.mode == Mode::Read) {
        return Err("peer has no handshake port".into());
    }
    let tp = match facts.minor {
        ..=24 => facts.tp,
        25..=26 => number(params, "tp_size")?.unwrap_or(1),
        _ => match number(params, "remote_tp_size")?.filter(|tp| *tp > 0) {
            Some(tp) => tp,
            None => number(params, "tp_size")?.filter(|tp| *tp > 0).unwrap_or(facts.tp),
        },
    };
    let reads_rank = facts.mode == Mode::Write || facts.minor >= 27;
    let dp_rank = number(params, "remote_dp_rank")?.filter(|_| reads_rank).unwrap_or(0);
    let dp_size = number(params, "remote_dp_size")?.unwrap_or(1).max(1);
    let layout = layout(facts, params, &host, dp_size)?;
    Ok(Peer { host, handshake, notify, dp_size, tp: tp.clamp(1, 64), dp_rank, layout })
}

/// Looked at in WRITE since 0.28; READ dials all ranks on one host.
fn layout(facts: Facts, params: &Map<String, Value>, host: &str, dp_size: u32) -> Result<Layout, String> {
    if facts.minor < 28 {
        return Ok(Layout::default());
    }
    let wrong = |value: &Value| format!("TypeError: remote_hosts is {value}");
    let hosts = match params.get("remote_hosts") {
        None => vec![host.to_owned()],
        Some(value) => {
            let list = value.as_array().ok_or_else(|| wrong(value))?;
            let names: Option<Vec<String>> = list.iter().map(|name| name.as_str().map(str::to_owned)).collect();
            names.ok_or_else(|| wrong(value))?
        }
    };
    let local = match params.get("remote_dp_size_local") {
        None => 0,
        Some(value) => value.as_i64().ok_or_else(|| format!("TypeError: remote_dp_size_local is {value}"))?,
    };
    if facts.mode == Mode::Read {
        return Ok(Layout::default());
    }
    // 0 stands for all on one host, less than that for no list at all.
    let local = if local == 0 { Some(dp_size) } else { u32::try_from(local).ok() };
    Ok(Layout { hosts, local })
}

type Address = (String, Option<u16>, u16);

fn explicit(facts: Facts, params: &Map<String, Value>) -> Result<Option<Address>, String> {
    if (20..=23).contains(&facts.minor) {
        return Ok(None);
    }
    let port = |key: &str| match params.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Number(port)) => port
            .as_u64()
            .and_then(|port| u16::try_from(port).ok())
            .map(Some)
            .ok_or_else(|| format!("{key} {port} is no port")),
        Some(Value::String(port)) if facts.minor >= 24 => {
            port.parse().map(Some).map_err(|_| format!("ValueError: {key} {port:?}"))
        }
        Some(other) => Err(format!("TypeError: {key} {other}")),
    };
    let (handshake, notify) = (port("remote_handshake_port")?, port("remote_notify_port")?);
    if facts.minor <= 19 && handshake.is_none() {
        return Ok(None);
    }
    match (params.get("remote_host"), notify) {
        (None | Some(Value::Null), _) | (_, None) => Ok(None),
        (Some(Value::String(host)), Some(notify)) => Ok(Some((host.clone(), handshake, notify))),
        (Some(other), _) => Err(format!("TypeError: remote_host {other}")),
    }
}

fn number(params: &Map<String, Value>, key: &str) -> Result<Option<u32>, String> {
    match params.get(key) {
        None => Ok(None),
        Some(value) => value
            .as_u64()
            .and_then(|number| u32::try_from(number).ok())
            .map(Some)
            .ok_or_else(|| format!("TypeError: {key} is {value}")),
    }
}

const PREFILL_MARK: &str = "___prefill_addr_";
const DECODE_MARK: &str = "___decode_addr_";

/// The prefill address in a request id.
pub(crate) fn prefill_address(request_id: &str) -> Option<Address> {
    let (_, rest) = request_id.split_once(PREFILL_MARK)?;
    zmq_address(rest.split_once(DECODE_MARK)?.0)
}

/// The decode address in a request id: what stands before the last `_` and 32 lower-case hex digits.
pub(crate) fn decode_address(request_id: &str) -> Option<Address> {
    let (_, rest) = request_id.split_once(DECODE_MARK)?;
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    rest.match_indices('_').rev().find_map(|(index, _)| {
        let tail = &rest.as_bytes()[index + 1..];
        let fits =
            tail.len() >= 32 && tail[..32].iter().all(|byte| hex(*byte)) && matches!(tail.get(32), None | Some(b'-'));
        if fits { zmq_address(&rest[..index]) } else { None }
    })
}

fn zmq_address(text: &str) -> Option<Address> {
    let (mut host, mut handshake, mut notify) = (None, None, None);
    for part in text.split(',') {
        let (key, value) = part.split_once(':')?;
        match key.trim() {
            "host" => host = Some(value.trim().to_string()),
            "handshake" => handshake = value.trim().parse().ok(),
            "notify" => notify = value.trim().parse().ok(),
            _ => {}
        }
    }
    Some((host?, Some(handshake?), notify?))
}
