//! The messages that engines send to notify ports, as each release words them.

use bytes::Bytes;
use serde_json::{Value, json};

use super::core::Core;
use super::peer::Peer;

/// The message by which decode asks for a push.
///
/// The keys that begin with `sim` are no part of the protocol: they let prefill notice what else would stay unseen.
pub(crate) fn remote_blocks_message(
    core: &Core,
    request: &str,
    transfer: &str,
    blocks: &[u32],
    rank: usize,
    peer: &Peer,
) -> Bytes {
    let message = json!({
        "req_id": request, "transfer_id": transfer, "type": "remote_blocks",
        "block_notify_list": blocks, "decode_rank": rank, "sim_nonce": core.site_of(rank).nonce,
        "sim_peer_tp": peer.tp, "sim_peer_dp": peer.dp_size,
    });
    encode(&message)
}

/// The message by which prefill reports a push.
pub(crate) fn write_done_message(minor: u32, transfer: &str, writers: u32) -> Bytes {
    match minor {
        ..=23 => Bytes::copy_from_slice(transfer.as_bytes()),
        24..=32 => encode(&json!({"type": "write_done", "transfer_id": transfer})),
        _ => encode(&json!({"type": "write_done", "transfer_id": transfer, "num_writers": writers})),
    }
}

/// The message by which prefill reports that no push will come.
pub(crate) fn write_failed_message(transfer: &str) -> Bytes {
    encode(&json!({"type": "write_failed", "transfer_id": transfer}))
}

/// The message by which decode reports that it has read everything.
pub(crate) fn release_message(core: &Core, request: &str, transfer: &str) -> Bytes {
    match core.minor {
        ..=22 => Bytes::copy_from_slice(request.as_bytes()),
        23..=24 => Bytes::copy_from_slice(transfer.as_bytes()),
        _ => encode(&json!({"type": "release", "transfer_id": transfer, "consumer_tp_size": core.settings.tp})),
    }
}

fn encode(message: &Value) -> Bytes {
    rmp_serde::to_vec_named(message).unwrap_or_default().into()
}
