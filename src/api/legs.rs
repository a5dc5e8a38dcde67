//! What is written into the two legs of an exchange, as the table of [`crate::api::fields`] says. Every other byte of the client's
//! body passes as it came.
//!
//! `min_tokens: 1` keeps the first token from being a stop token. Prefill hands its blocks over only if it ended at the
//! length limit; a stop token would free them at once. Where an API has no such field, the table has what does the same.

use bytes::Bytes;
use uuid::Uuid;

use crate::api::Api;
use crate::api::fields;
use crate::api::fields::hidden::PARAMS;
use crate::api::fields::row::{Field, Gets, Place, SAMPLING};
use crate::api::fields::values::forces_one_tool;
use crate::api::request::{Limits, Request};
use crate::engine::{Registration, Role};
use crate::json::{Body, BodyError, Edit, Json, Segments};
use crate::lines::is_plain;

/// The engines of one attempt.
#[derive(Clone, Copy, Debug)]
pub struct Pair<'a> {
    /// Computes the prompt.
    pub prefill: &'a Registration,
    /// Generates.
    pub decode: &'a Registration,
    /// The data-parallel rank that prefill is asked for; only where it has more than one.
    pub rank: Option<u32>,
    /// The rank that decode's leg is pinned to, by the same-rank contract only (protocol H4).
    pub decode_rank: Option<u32>,
}

impl Pair<'_> {
    /// Whether either side's ranks live on several hosts.
    fn spans(&self) -> bool {
        self.prefill.spans() || self.decode.spans()
    }
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
    /// New ids. Unless `plain`, the request id embeds both addresses for engines that read them there (protocol I3).
    pub fn fresh(pair: &Pair<'_>, plain: bool) -> Ids {
        let (mut id, mut transfer_id) = (Uuid::encode_buffer(), Uuid::encode_buffer());
        let id = &*Uuid::new_v4().simple().encode_lower(&mut id);
        let transfer_id = &*Uuid::new_v4().simple().encode_lower(&mut transfer_id);
        Ids {
            transfer_id: ["tx-", transfer_id].concat(),
            request_id: match plain {
                true => id.to_owned(),
                false => ["___prefill_addr_", &pair.prefill.kv.text, "___decode_addr_", &pair.decode.kv.text, "_", id]
                    .concat(),
            },
        }
    }
}

impl Ids {
    /// The request id as the body says it. Responses take it from there only, and show it to the client (protocol I5).
    fn for_body(&self, api: Api) -> String {
        match api {
            Api::Responses => format!("resp_{}", self.request_id.rsplit('_').next().unwrap_or_default()),
            _ => self.request_id.clone(),
        }
    }
}

/// Prefill's rank as decode is told it; none where there is only one.
fn prefill_rank(pair: &Pair<'_>) -> Option<u32> {
    pair.rank.filter(|_| pair.prefill.dp_size > 1)
}

/// The body of the prefill leg, the same in both modes.
pub fn prefill_leg(request: &Request, pair: &Pair<'_>, ids: &Ids) -> Segments {
    leg(request, Role::Prefill, ids, Some(Json::Text(built_params(Role::Prefill, pair, ids))))
}

/// The body of the decode leg in WRITE, where nothing of prefill's answer is needed.
pub fn decode_leg_write(request: &Request, pair: &Pair<'_>, ids: &Ids) -> Segments {
    leg(request, Role::Decode, ids, Some(Json::Text(built_params(Role::Decode, pair, ids))))
}

/// The body of the decode leg in READ, made from prefill's answer.
pub fn decode_leg_read(request: &Request, pair: &Pair<'_>, ids: &Ids, params: &PrefillParams) -> Segments {
    leg(request, Role::Decode, ids, Some(Json::Parts(params.completed(pair, ids))))
}

/// The body of a request that prefill answers alone: the client's, limits and stream included, under our id. It has no transfer
/// params, so prefill keeps nothing.
pub fn alone_leg(request: &Request, ids: &Ids) -> Segments {
    let id = Edit::Set("request_id", Json::Text(quoted(&ids.for_body(request.api))));
    let mut edits = vec![id, Edit::Remove(PARAMS)];
    let own = fields::of(request.api).filter(|field| field.gets(Role::Prefill) == Gets::Sibling);
    edits.extend(own.filter_map(|field| own_value(request, field.name)));
    request.body.edit(&edits)
}

/// The body of a request that decode answers alone: as its leg of a pair, but that it has no transfer params.
pub fn decode_leg_alone(request: &Request, ids: &Ids) -> Segments {
    leg(request, Role::Decode, ids, None)
}

/// A leg by the table.
fn leg(request: &Request, role: Role, ids: &Ids, mut params: Option<Json>) -> Segments {
    let mut top = Vec::with_capacity(16);
    let mut inner = Vec::new();
    let limits = request.decode_limits();
    for field in fields::of(request.api) {
        let edit = match field.gets(role) {
            Gets::Id => Some(Edit::Set(field.name, Json::Text(quoted(&ids.for_body(request.api))))),
            Gets::Params => {
                Some(params.take().map_or(Edit::Remove(field.name), |params| Edit::Set(field.name, params)))
            }
            Gets::Less => less(field, &request.limits, &limits),
            Gets::Sibling => own_value(request, field.name),
            gets => replaced(field, gets, field.home(&request.body, request.sampling.as_ref())),
        };
        match field.place {
            Place::Top => top.extend(edit),
            Place::Sampling => inner.extend(edit),
        }
    }
    if !inner.is_empty() {
        let sampling = request.sampling.as_ref().map_or_else(|| Body::empty().edit(&inner), |s| s.edit(&inner));
        top.push(Edit::Set(SAMPLING, Json::Parts(sampling)));
    }
    request.body.edit(&top)
}

/// What a leg gets that does not depend on the attempt. `home` is the client's object, where there is one.
fn replaced(field: &Field, gets: Gets, home: Option<&Body>) -> Option<Edit> {
    let name = field.name;
    let sent = || home.and_then(|home| home.get(name));
    match gets {
        Gets::Always(text) => Some(Edit::Set(name, Json::Fixed(text))),
        Gets::Instead(text) => sent().filter(|text| *text != b"null").map(|_| Edit::Set(name, Json::Fixed(text))),
        Gets::Nothing => sent().map(|_| Edit::Remove(name)),
        Gets::AnyTool => {
            sent().filter(|text| forces_one_tool(text)).map(|_| Edit::Set(name, Json::Fixed(r#"{"type":"any"}"#)))
        }
        Gets::Sent | Gets::Never | Gets::Id | Gets::Params | Gets::Less | Gets::Sibling => None,
    }
}

/// What a sibling has of its own.
fn own_value(request: &Request, name: &'static str) -> Option<Edit> {
    request.sibling.as_ref()?.edit(name, request.body.get(name).is_some())
}

/// Only what changed is written, so that a limit which stays keeps the client's own text.
fn less(field: &Field, from: &Limits, to: &Limits) -> Option<Edit> {
    let to = to.get(field.name)?;
    (from.get(field.name) != Some(to)).then(|| Edit::Set(field.name, Json::Text(to.to_string())))
}

/// A text as JSON.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    push_quoted(&mut out, text);
    out
}

fn push_quoted(out: &mut String, text: &str) {
    if is_plain(text) {
        out.push('"');
        out.push_str(text);
        out.push('"');
    } else {
        // A text always encodes.
        out.push_str(&serde_json::to_string(text).unwrap_or_default());
    }
}

/// A member, with the comma before it.
fn push_number(out: &mut String, key: &str, number: u32) {
    out.push_str(",\"");
    out.push_str(key);
    out.push_str("\":");
    out.push_str(itoa::Buffer::new().format(number));
}

/// Every key that any release indexes, with the type that it expects: a missing one ends the engine's process. Both legs have them
/// in each exchange, so they are written without a formatter.
fn built_params(leg: Role, pair: &Pair<'_>, ids: &Ids) -> String {
    let peer = match leg {
        Role::Prefill => pair.decode,
        Role::Decode => pair.prefill,
    };
    let (host, port) = (&peer.kv.host, u32::from(peer.kv.handshake));
    let mut out = String::with_capacity(384);
    out.push_str(match leg {
        Role::Prefill => r#"{"do_remote_decode":true,"do_remote_prefill":false,"transfer_id":"#,
        Role::Decode => r#"{"do_remote_decode":false,"do_remote_prefill":true,"transfer_id":"#,
    });
    push_quoted(&mut out, &ids.transfer_id);
    match leg {
        Role::Prefill => out.push_str(r#","remote_engine_id":null,"remote_block_ids":null"#),
        Role::Decode => {
            out.push_str(r#","remote_engine_id":"#);
            push_quoted(&mut out, &[host, ":", itoa::Buffer::new().format(port)].concat());
            out.push_str(r#","remote_block_ids":[]"#);
        }
    }
    out.push_str(r#","remote_host":"#);
    push_quoted(&mut out, host);
    for (key, number) in [
        ("remote_port", port),
        ("remote_handshake_port", port),
        ("remote_notify_port", u32::from(peer.kv.notify)),
        ("remote_dp_size", peer.dp_size),
        ("remote_tp_size", peer.tp_size),
        ("tp_size", peer.tp_size),
    ] {
        push_number(&mut out, key, number);
    }
    if let (Role::Decode, Some(rank)) = (leg, prefill_rank(pair)) {
        push_number(&mut out, "remote_dp_rank", rank);
    }
    if pair.spans() {
        span(&mut out, leg, pair, peer);
    }
    out.push('}');
    out
}

/// What a leg is told of hosts where either side spans several: those of its peer, and on decode's leg who of its ranks tells prefill
/// (protocol H4). A side of one host is a list of one.
fn span(out: &mut String, leg: Role, pair: &Pair<'_>, peer: &Registration) {
    out.push_str(r#","remote_hosts":["#);
    for (at, host) in peer.host_addresses().enumerate() {
        out.push_str(if at == 0 { "" } else { "," });
        push_quoted(out, host);
    }
    out.push(']');
    push_number(out, "remote_dp_size_local", peer.local_ranks());
    out.push_str(match (leg, pair.decode_rank) {
        (Role::Prefill, _) => "",
        (Role::Decode, None) => r#","is_request_leader":true"#,
        (Role::Decode, Some(_)) => r#","remote_dp_rank_override":true"#,
    });
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

impl From<BodyError> for ParamsError {
    fn from(_: BodyError) -> Self {
        ParamsError::Unreadable
    }
}

/// The `kv_transfer_params` of prefill's answer, kept as they came.
#[derive(Clone, Debug)]
pub struct PrefillParams {
    object: Body,
}

impl PrefillParams {
    /// Finds them in prefill's answer. Without block ids decode would take garbage for the prompt's cache, and no release
    /// says so: such an answer is an error here.
    pub fn from_answer(answer: Bytes) -> Result<PrefillParams, ParamsError> {
        let object = Body::inner(answer, PARAMS)?.ok_or(ParamsError::Missing)?;
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

    /// The host of the rank that has the blocks.
    fn host<'a>(&self, pair: &Pair<'a>) -> &'a str {
        let rank = self.named_rank(pair.prefill.dp_size).or(prefill_rank(pair));
        if pair.prefill.spans() { pair.prefill.place(rank.unwrap_or(0)).0 } else { &pair.prefill.kv.host }
    }

    /// Prefill's object with what it left out. A `null` counts as left out: engines index these keys without a check,
    /// and a null host, port or size ends their process just as an absent one.
    fn completed(&self, pair: &Pair<'_>, ids: &Ids) -> Segments {
        let prefill = pair.prefill;
        let mut edits = if prefill.spans() { self.aliased(pair) } else { Vec::with_capacity(8) };
        let mut fill = |key: &'static str, value: &dyn Fn() -> String| {
            if self.object.get_some(key).is_none() && !edits.iter().any(|edit: &Edit| edit.key() == key) {
                edits.push(Edit::Set(key, Json::Text(value())));
            }
        };
        let port = prefill.kv.handshake;
        fill("transfer_id", &|| quoted(&ids.transfer_id));
        fill("remote_engine_id", &|| quoted(&format!("{}:{port}", prefill.kv.host)));
        fill("remote_host", &|| quoted(self.host(pair)));
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
        if prefill.spans() {
            return self.object.edit(&edits);
        }
        let pinned = prefill_rank(pair);
        match (self.object.get("remote_dp_rank"), self.named_rank(prefill.dp_size)) {
            (Some(_), Some(_)) => {}
            (Some(_), None) => edits.push(Edit::Set("remote_dp_rank", Json::Text(pinned.unwrap_or(0).to_string()))),
            (None, _) => edits.extend(pinned.map(|rank| Edit::Set("remote_dp_rank", Json::Text(rank.to_string())))),
        }
        if self.object.get("remote_dp_size_local") == Some(b"null") {
            // Engines take an absent one for "all ranks on one host" and die of a null (protocol T5).
            edits.push(Edit::Remove("remote_dp_size_local"));
        }
        self.object.edit(&edits)
    }

    /// READ from an engine over several hosts: decode would look for each of its ranks on one host, at ports that nobody listens
    /// at, and wait for ever. So the rank that has the blocks is presented as an engine of one rank (protocol H5).
    fn aliased(&self, pair: &Pair<'_>) -> Vec<Edit> {
        let prefill = pair.prefill;
        let rank = self.named_rank(prefill.dp_size).or(prefill_rank(pair)).unwrap_or(0);
        let (host, local) = prefill.place(rank);
        let number = |number: u32| Json::Text(number.to_string());
        let mut edits = vec![
            Edit::Set("remote_handshake_port", number(u32::from(prefill.kv.handshake) + local)),
            Edit::Set("remote_notify_port", number(u32::from(prefill.kv.notify) + local)),
            Edit::Set("remote_dp_rank", Json::Fixed("0")),
            Edit::Set("remote_dp_size", Json::Fixed("1")),
            Edit::Remove("remote_dp_size_local"),
            Edit::Remove("remote_hosts"),
        ];
        // Engines that were all given one `host_ip` name the first host for each rank.
        if !prefill.repeats() {
            edits.push(Edit::Set("remote_host", Json::Text(quoted(host))));
        }
        edits
    }
}

#[cfg(test)]
mod tests;
