//! What is written into the two legs of an exchange. Every other byte of the client's body passes as it came.
//!
//! | Field | Prefill leg | Decode leg | Why |
//! |---|---|---|---|
//! | `stream` | `false` | – | transfer params come in a JSON answer |
//! | `stream_options` | removed | – | a 400 where nothing streams |
//! | `max_tokens` (completions, chat) | 1 | client's, less the budget | prefill's token is thrown away |
//! | `max_completion_tokens` (completions, chat) | 1 where present | client's, less the budget | engines prefer it to `max_tokens` |
//! | `max_output_tokens` (responses) | 1 | client's, less the budget | the same |
//! | `min_tokens` (not generate) | 1 | client's, capped to the new limit | see below |
//! | `sampling_params.max_tokens`, `.min_tokens` (generate) | 1 | client's, as above | the same; absent for decode if absent |
//! | `request_id` | the request id | the request id | an engine that rejects a leg releases blocks under it |
//! | `kv_transfer_params` | decode's address | prefill's address, or prefill's answer | protocol 4.8; a client's never passes |
//!
//! `min_tokens: 1` keeps the first token from being a stop token. Prefill hands its blocks over only if it ended at the
//! length limit; a stop token would free them at once. The responses API has no such field in engines' schema today; it
//! is sent nevertheless, because engines ignore fields that they do not know, and one that learns it then ends rightly.

use std::fmt::Write as _;

use bytes::Bytes;
use uuid::Uuid;

use crate::api::Api;
use crate::body::{Body, Edit, Json, Segments, quote};
use crate::engine::Registration;
use crate::request::{Limits, Request};

const PARAMS: &str = "kv_transfer_params";

/// The engines of one attempt.
#[derive(Clone, Copy, Debug)]
pub struct Pair<'a> {
    /// Computes the prompt.
    pub prefill: &'a Registration,
    /// Generates.
    pub decode: &'a Registration,
    /// The data-parallel rank that prefill is asked for; only where it has more than one.
    pub rank: Option<u32>,
}

/// The names of one attempt; never used again, not even for a retry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ids {
    /// Joins the two legs inside the engines.
    pub transfer_id: String,
    /// For header and body of both legs.
    pub request_id: String,
}

impl Ids {
    /// New ids. Unless `plain`, the request id embeds both addresses for engines that read them there (protocol 4.4).
    pub fn fresh(pair: &Pair<'_>, plain: bool) -> Ids {
        let id = Uuid::new_v4().simple();
        Ids {
            transfer_id: format!("tx-{}", Uuid::new_v4().simple()),
            request_id: match plain {
                true => id.to_string(),
                false => format!("___prefill_addr_{}___decode_addr_{}_{id}", pair.prefill.kv.text, pair.decode.kv.text),
            },
        }
    }
}

/// The value of the prefill leg's rank header. Decode's leg carries none: its engine balances its own ranks.
pub fn leg_rank_header(pair: &Pair<'_>) -> Option<u32> {
    // A rank header is a range error on an engine with one rank.
    pair.rank.filter(|_| pair.prefill.dp_size > 1)
}

/// The body of the prefill leg, the same in both modes.
pub fn prefill_leg(request: &Request, pair: &Pair<'_>, ids: &Ids) -> Segments {
    const ONE: Json = Json::Fixed("1");
    let mut edits = Vec::with_capacity(8);
    edits.push(Edit::Set("stream", Json::Fixed("false")));
    edits.push(Edit::Remove("stream_options"));
    match (request.api, &request.sampling) {
        (Api::Completions | Api::Chat, _) => {
            edits.push(Edit::Set("max_tokens", ONE));
            if request.limits.max_completion_tokens.is_some() {
                edits.push(Edit::Set("max_completion_tokens", ONE));
            }
            edits.push(Edit::Set("min_tokens", ONE));
        }
        (Api::Responses, _) => {
            edits.push(Edit::Set("max_output_tokens", ONE));
            edits.push(Edit::Set("min_tokens", ONE));
        }
        (Api::Messages, _) => edits.push(Edit::Set("max_tokens", ONE)),
        (Api::Generate, Some(sampling)) => {
            let clamped = sampling.edit(&[Edit::Set("max_tokens", ONE), Edit::Set("min_tokens", ONE)]);
            edits.push(Edit::Set("sampling_params", Json::Parts(clamped)));
        }
        (Api::Generate, None) => {
            let clamped = Json::Fixed(r#"{"max_tokens":1,"min_tokens":1}"#);
            edits.push(Edit::Set("sampling_params", clamped));
        }
    }
    edits.push(request_id(ids));
    edits.push(Edit::Set(PARAMS, Json::Text(built_params(Leg::Prefill, pair, ids))));
    request.body.edit(&edits)
}

/// The body of the decode leg in WRITE, where nothing of prefill's answer is needed.
pub fn decode_leg_write(request: &Request, pair: &Pair<'_>, ids: &Ids) -> Segments {
    decode_leg(request, ids, Json::Text(built_params(Leg::Decode, pair, ids)))
}

/// The body of the decode leg in READ, made from prefill's answer.
pub fn decode_leg_read(request: &Request, pair: &Pair<'_>, ids: &Ids, params: &PrefillParams) -> Segments {
    decode_leg(request, ids, Json::Parts(params.completed(pair, ids)))
}

fn decode_leg(request: &Request, ids: &Ids, params: Json) -> Segments {
    let mut edits = Vec::with_capacity(6);
    let limits = request.decode_limits();
    match &request.sampling {
        Some(sampling) if limits != request.limits => {
            let spent = sampling.edit(&limit_edits(&request.limits, &limits));
            edits.push(Edit::Set("sampling_params", Json::Parts(spent)));
        }
        Some(_) => {}
        None => edits = limit_edits(&request.limits, &limits),
    }
    edits.push(request_id(ids));
    edits.push(Edit::Set(PARAMS, params));
    request.body.edit(&edits)
}

/// Only what changed is written, so that a limit which stays keeps the client's own text.
fn limit_edits(from: &Limits, to: &Limits) -> Vec<Edit> {
    let mut edits = Vec::with_capacity(6);
    let fields = [
        ("max_tokens", from.max_tokens, to.max_tokens),
        ("max_completion_tokens", from.max_completion_tokens, to.max_completion_tokens),
        ("max_output_tokens", from.max_output_tokens, to.max_output_tokens),
        ("min_tokens", from.min_tokens, to.min_tokens),
    ];
    for (key, from, to) in fields {
        if let (true, Some(to)) = (from != to, to) {
            edits.push(Edit::Set(key, Json::Text(to.to_string())));
        }
    }
    edits
}

fn request_id(ids: &Ids) -> Edit {
    Edit::Set("request_id", Json::Text(quoted(&ids.request_id)))
}

fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    quote(&mut out, text);
    out
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Leg {
    Prefill,
    Decode,
}

/// Every key that any release indexes, with the type that it expects: a missing one ends the engine's process.
fn built_params(leg: Leg, pair: &Pair<'_>, ids: &Ids) -> String {
    let peer = match leg {
        Leg::Prefill => pair.decode,
        Leg::Decode => pair.prefill,
    };
    let (host, port) = (&peer.kv.host, peer.kv.handshake);
    let mut out = String::with_capacity(384);
    let (save, load) = (leg == Leg::Prefill, leg == Leg::Decode);
    // Writing to a String cannot fail.
    let _ = write!(out, r#"{{"do_remote_decode":{save},"do_remote_prefill":{load},"transfer_id":"#);
    quote(&mut out, &ids.transfer_id);
    match leg {
        Leg::Prefill => out.push_str(r#","remote_engine_id":null,"remote_block_ids":null"#),
        Leg::Decode => {
            out.push_str(r#","remote_engine_id":"#);
            quote(&mut out, &format!("{host}:{port}"));
            out.push_str(r#","remote_block_ids":[]"#);
        }
    }
    out.push_str(r#","remote_host":"#);
    quote(&mut out, host);
    let (notify, dp_size, tp_size) = (peer.kv.notify, peer.dp_size, peer.tp_size);
    let _ = write!(
        out,
        r#","remote_port":{port},"remote_handshake_port":{port},"remote_notify_port":{notify},"remote_dp_size":{dp_size},"remote_tp_size":{tp_size},"tp_size":{tp_size}"#
    );
    if let (Leg::Decode, Some(rank)) = (leg, leg_rank_header(pair)) {
        let _ = write!(out, r#","remote_dp_rank":{rank}"#);
    }
    out.push('}');
    out
}

/// Why prefill's answer gives decode nothing to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParamsError {
    /// The answer is no JSON object.
    #[error("prefill's answer is not a JSON object")]
    Unreadable,
    /// No transfer params, or none with block ids.
    #[error("prefill's answer has no transfer params with block ids")]
    Missing,
}

/// The `kv_transfer_params` of prefill's answer, kept as they came.
#[derive(Clone, Debug)]
pub struct PrefillParams {
    object: Body,
}

impl PrefillParams {
    /// Finds them in the body of prefill's answer. Without block ids decode would take garbage for the prompt's cache,
    /// and no release says so: such an answer is an error here.
    pub fn from_answer(answer: &Bytes) -> Result<PrefillParams, ParamsError> {
        let answer = Body::parse(answer.clone()).map_err(|_| ParamsError::Unreadable)?;
        let object = match answer.nested(PARAMS) {
            Some(Ok(object)) => object,
            _ => return Err(ParamsError::Missing),
        };
        // Flat or nested lists of numbers; a digit tells that one is there.
        let has_blocks = |ids: &[u8]| ids.starts_with(b"[") && ids.iter().any(u8::is_ascii_digit);
        if object.get("remote_block_ids").is_some_and(has_blocks) {
            Ok(PrefillParams { object })
        } else {
            Err(ParamsError::Missing)
        }
    }

    /// Their text, as prefill wrote it.
    pub fn text(&self) -> &Bytes {
        self.object.text()
    }

    /// The rank that prefill says it ran on, if it is one of its ranks.
    pub fn named_rank(&self, dp_size: u32) -> Option<u32> {
        let rank = self.object.get("remote_dp_rank")?;
        serde_json::from_slice::<u32>(rank).ok().filter(|rank| *rank < dp_size)
    }

    /// Prefill's object with what it left out. A `null` counts as left out: engines index these keys without a check,
    /// and a null host, port or size ends their process just as an absent one.
    fn completed(&self, pair: &Pair<'_>, ids: &Ids) -> Segments {
        let prefill = pair.prefill;
        let mut edits = Vec::with_capacity(8);
        let mut fill = |key: &'static str, value: &dyn Fn() -> String| {
            if self.object.get_some(key).is_none() {
                edits.push(Edit::Set(key, Json::Text(value())));
            }
        };
        let port = prefill.kv.handshake;
        fill("transfer_id", &|| quoted(&ids.transfer_id));
        fill("remote_engine_id", &|| quoted(&format!("{}:{port}", prefill.kv.host)));
        fill("remote_host", &|| quoted(&prefill.kv.host));
        fill("remote_port", &|| port.to_string());
        fill("remote_handshake_port", &|| port.to_string());
        fill("remote_notify_port", &|| prefill.kv.notify.to_string());
        fill("remote_dp_size", &|| prefill.dp_size.to_string());
        fill("remote_tp_size", &|| prefill.tp_size.to_string());
        fill("tp_size", &|| prefill.tp_size.to_string());
        // Whatever prefill says, decode must load and must not save.
        for (key, value) in [("do_remote_prefill", "true"), ("do_remote_decode", "false")] {
            if self.object.get(key) != Some(value.as_bytes()) {
                edits.push(Edit::Set(key, Json::Fixed(value)));
            }
        }
        let pinned = leg_rank_header(pair);
        match (self.object.get("remote_dp_rank"), self.named_rank(prefill.dp_size)) {
            (Some(_), Some(_)) => {}
            (Some(_), None) => edits.push(Edit::Set("remote_dp_rank", Json::Text(pinned.unwrap_or(0).to_string()))),
            (None, _) => edits.extend(pinned.map(|rank| Edit::Set("remote_dp_rank", Json::Text(rank.to_string())))),
        }
        if self.object.get("remote_dp_size_local") == Some(b"null") {
            // Engines take an absent one for "all ranks on one host" and die of a null (protocol 4.5).
            edits.push(Edit::Remove("remote_dp_size_local"));
        }
        self.object.edit(&edits)
    }
}

#[cfg(test)]
mod tests;

/// The prefix tokens that prefill says it had cached, from its answer's usage; nothing where it says none.
pub fn cached_tokens(answer: &[u8]) -> Option<u64> {
    #[derive(serde::Deserialize)]
    struct Answer {
        usage: Option<Usage>,
    }
    #[derive(serde::Deserialize)]
    struct Usage {
        prompt_tokens_details: Option<Details>,
    }
    #[derive(serde::Deserialize)]
    struct Details {
        cached_tokens: Option<u64>,
    }
    serde_json::from_slice::<Answer>(answer).ok()?.usage?.prompt_tokens_details?.cached_tokens
}
