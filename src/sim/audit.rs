//! What a correct proxy never does, whatever a real engine would make of it.

use serde_json::{Map, Value};

use super::ask::Ask;
use super::core::Core;
use super::forbidden;
use super::params::{Facts, decode_address, prefill_address};
use super::settings::Mode;
use super::surface::Surface;

const FOREIGN_HEADERS: [&str; 5] = [
    "x-prefiller-host-port",
    "x-encoder-hosts-ports",
    "x-data-parallel-host-port",
    "x-kv-cache-source-host-port",
    "x-api-key",
];

/// All keys that vLLM or a proxy has any business to put into transfer params.
const KNOWN_PARAMS: [&str; 20] = [
    "do_remote_decode",
    "do_remote_prefill",
    "transfer_id",
    "remote_engine_id",
    "remote_block_ids",
    "remote_host",
    "remote_port",
    "remote_handshake_port",
    "remote_notify_port",
    "remote_dp_size",
    "remote_tp_size",
    "tp_size",
    "remote_dp_rank",
    "remote_dp_rank_override",
    "is_request_leader",
    "remote_hosts",
    "remote_dp_size_local",
    "remote_prefill_cached_tokens",
    "prompt_token_ids",
    "_p_side_truncated",
];

const NUMBERS: [&str; 8] = [
    "remote_port",
    "remote_handshake_port",
    "remote_notify_port",
    "remote_dp_size",
    "remote_tp_size",
    "tp_size",
    "remote_dp_rank",
    "remote_dp_size_local",
];

/// Notes everything wrong with a leg that can be told from the leg alone.
pub(crate) fn leg(core: &Core, ask: &Ask, facts: Facts) {
    let note = |text: String| core.books.violation(text);
    headers(core, ask, &note);
    siblings(ask, &note);
    forbidden::fields(ask, facts, &note);
    let Some(params) = ask.params() else { return };
    identifiers(core, ask, params, facts, &note);
    let wanted = if facts.prefill { "do_remote_decode" } else { "do_remote_prefill" };
    let unwanted = if facts.prefill { "do_remote_prefill" } else { "do_remote_decode" };
    if params.get(wanted).and_then(Value::as_bool) != Some(true) {
        note(format!("leg without {wanted}"));
    }
    if params.get(unwanted).and_then(Value::as_bool) != Some(false) {
        note(format!("leg whose {unwanted} is not false"));
    }
    for key in params.keys().filter(|key| !KNOWN_PARAMS.contains(&key.as_str())) {
        note(format!("foreign transfer param {key}"));
    }
    let built_by_proxy = facts.prefill || facts.mode == Mode::Write;
    for key in NUMBERS.iter().filter(|key| built_by_proxy && params.get(**key).is_some_and(|value| !value.is_number()))
    {
        note(format!("{key} is {}, a number is due", params[*key]));
    }
    if !params.contains_key("tp_size") && !params.contains_key("remote_tp_size") {
        note("neither tp_size nor remote_tp_size".into());
    }
    if let (Some(one), Some(other)) = (params.get("tp_size"), params.get("remote_tp_size"))
        && one != other
    {
        note(format!("tp_size {one} and remote_tp_size {other} differ"));
    }
    if facts.prefill {
        prefill(ask, &note);
    } else if facts.mode == Mode::Write
        && params.get("remote_dp_rank_override").and_then(Value::as_bool) == Some(true)
        && ask.rank.is_none()
    {
        note("remote_dp_rank_override on a WRITE leg that is not pinned".into());
    }
}

fn headers(core: &Core, ask: &Ask, note: &dyn Fn(String)) {
    let count = ask.headers.get_all("x-request-id").iter().count();
    if count > 1 {
        note(format!("{count} X-Request-Id headers"));
    }
    for name in FOREIGN_HEADERS.iter().filter(|name| ask.headers.contains_key(**name)) {
        note(format!("foreign header {name}"));
    }
    if core.settings.dp == 1 && ask.headers.contains_key("x-data-parallel-rank") {
        note("rank header on an engine with one rank".into());
    }
}

fn siblings(ask: &Ask, note: &dyn Fn(String)) {
    for key in ["n", "best_of"] {
        if let Some(count) = ask.limits().get(key).and_then(Value::as_u64).filter(|count| *count > 1) {
            note(format!("{key} is {count}"));
        }
    }
    if let (Surface::Completions, Some(Value::Array(list))) = (ask.surface, ask.body.get("prompt"))
        && list.len() > 1
        && !list.iter().all(Value::is_number)
    {
        note(format!("{} prompts in one leg", list.len()));
    }
}

fn identifiers(core: &Core, ask: &Ask, params: &Map<String, Value>, facts: Facts, note: &dyn Fn(String)) {
    let header = ask.headers.get("x-request-id").and_then(|value| value.to_str().ok());
    // Responses read the id from the body alone.
    let header = if ask.surface == Surface::Responses { ask.request_id.as_deref() } else { header };
    if ask.surface == Surface::Responses && !header.and_then(|id| id.strip_prefix("resp_")).is_some_and(is_hex) {
        note(format!("request_id {header:?} of responses is not resp_ and 32 lower-case hex digits"));
    }
    match header {
        None => note("leg without X-Request-Id".into()),
        Some(id) if !core.books.fresh_request(id) => note(format!("request id {id} used twice")),
        Some(_) => {}
    }
    if let (Some(header), Some(body)) = (header, ask.body.get("request_id"))
        && body.as_str() != Some(header)
    {
        note(format!("body request_id {body} differs from X-Request-Id {header}"));
    }
    match params.get("transfer_id").and_then(Value::as_str) {
        // Releases that do not know the key do not tell it either.
        None if facts.minor <= 19 && !facts.prefill && facts.mode == Mode::Read => {}
        None => note("leg without transfer_id".into()),
        Some(id) => {
            if !core.books.fresh_transfer(id) {
                note(format!("transfer_id {id} used twice"));
            }
            if !id.strip_prefix("tx-").is_some_and(is_hex) {
                note(format!("transfer_id {id:?} is not tx- and 32 lower-case hex digits"));
            }
        }
    }
    addresses(header.unwrap_or_default(), params, facts, note);
}

fn is_hex(digits: &str) -> bool {
    digits.len() == 32 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Request id and transfer params must name the same peer.
fn addresses(id: &str, params: &Map<String, Value>, facts: Facts, note: &dyn Fn(String)) {
    let embedded = if facts.prefill { decode_address(id) } else { prefill_address(id) };
    let Some((host, handshake, notify)) = embedded else {
        return;
    };
    let port = |key: &str| match params.get(key)? {
        Value::String(text) => text.parse::<u64>().ok(),
        value => value.as_u64(),
    };
    let differs = params.get("remote_host").and_then(Value::as_str).is_some_and(|other| other != host)
        || port("remote_handshake_port").is_some_and(|other| Some(other) != handshake.map(u64::from))
        || port("remote_notify_port").is_some_and(|other| other != u64::from(notify));
    if differs {
        note(format!("request id {id} and transfer params name different peers"));
    }
}

fn prefill(ask: &Ask, note: &dyn Fn(String)) {
    if ask.stream {
        note("streamed prefill leg".into());
    }
    if ask.body.contains_key("stream_options") {
        note("prefill leg with stream_options".into());
    }
    let limits = ask.limits();
    let one = |key: &str| limits.get(key).and_then(Value::as_u64) == Some(1);
    let main = if ask.surface == Surface::Responses { "max_output_tokens" } else { "max_tokens" };
    if !one(main) {
        note(format!("prefill leg whose {main} is not 1"));
    }
    if !one("min_tokens") && !matches!(ask.surface, Surface::Responses | Surface::Messages) {
        note("prefill leg whose min_tokens is not 1".into());
    }
    if limits.get("max_completion_tokens").is_some_and(|limit| !limit.is_null()) && !one("max_completion_tokens") {
        note("prefill leg whose max_completion_tokens is not 1".into());
    }
}
