//! Prefill's answer as the whole answer. Anthropic's API has no field that keeps the first token from ending the text. Where it
//! does, prefill hands nothing over: its answer, sampled with the client's own parameters, is all that there is to say
//! (protocol O15). Decode would wait for KV in vain.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::api::Api;

/// The message in prefill's answer, if that ended by itself and has nothing for decode.
pub fn complete(api: Api, answer: &Bytes) -> Option<Value> {
    if api != Api::Messages {
        return None;
    }
    let mut message: Value = serde_json::from_slice(answer).ok()?;
    let params = message.as_object_mut()?.remove("kv_transfer_params").unwrap_or_default();
    let reason = message["stop_reason"].as_str()?;
    (params.is_null() && reason != "max_tokens").then_some(message)
}

/// A message as the events of a stream.
pub fn events(message: &Value) -> String {
    let event = |value: Value| format!("event: {}\ndata: {value}\n\n", value["type"].as_str().unwrap_or_default());
    let mut start = message.clone();
    start["content"] = json!([]);
    start["stop_reason"] = Value::Null;
    let mut text = event(json!({"type": "message_start", "message": start}));
    let blocks = message["content"].as_array().map(Vec::as_slice).unwrap_or_default();
    for (index, block) in blocks.iter().enumerate() {
        text += &event(json!({"type": "content_block_start", "index": index, "content_block": block}));
        text += &event(json!({"type": "content_block_stop", "index": index}));
    }
    let delta = json!({"stop_reason": message["stop_reason"], "stop_sequence": message["stop_sequence"]});
    text += &event(json!({"type": "message_delta", "delta": delta, "usage": message["usage"]}));
    text + &event(json!({"type": "message_stop"}))
}
