//! Anthropic's API as engines serve it: messages whole and streamed, tools that must be called, errors, and the count of tokens.

use axum::body::Body;
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Map, Value, json};

use super::ask::{Ask, has_prompt};
use super::core::Core;
use super::render::render;
use super::response::{error, event, json_response};
use super::surface::Surface;

impl Ask {
    /// The tool that an answer must call: the one that is named, or of any the first.
    fn forced_tool(&self) -> Option<String> {
        let choice = self.body.get("tool_choice")?;
        let named = match choice["type"].as_str()? {
            "tool" => &choice["name"],
            "any" => &self.body.get("tools")?[0]["name"],
            _ => return None,
        };
        named.as_str().map(str::to_owned)
    }
}

/// The message that answers a request.
pub(super) struct AssistantMessage<'a> {
    pub(super) ask: &'a Ask,
    pub(super) id: String,
    pub(super) model: &'a str,
}

impl AssistantMessage<'_> {
    /// All of it at once.
    pub(super) fn whole(&self, text: &str, transfer_params: &Value) -> Value {
        let block = match self.ask.forced_tool() {
            None => json!({"type": "text", "text": text}),
            // The words prove the KV wherever they stand.
            Some(name) => self.tool_use(&name, json!({"words": text})),
        };
        let mut message = self.with_content(json!([block]), self.stop_reason(), self.usage(self.ask.limit));
        message["kv_transfer_params"] = transfer_params.clone();
        message
    }

    /// The events of one token.
    pub(super) fn events(&self, position: usize, piece: &str) -> String {
        let tool = self.ask.forced_tool();
        let mut events = String::new();
        if position == 0 {
            let message = self.with_content(json!([]), Value::Null, self.usage(0));
            let block = match &tool {
                None => json!({"type": "text", "text": ""}),
                Some(name) => self.tool_use(name, json!({})),
            };
            events += &event(&json!({"type": "message_start", "message": message}));
            events += &event(&json!({"type": "content_block_start", "index": 0, "content_block": block}));
        }
        match tool {
            None => events + &delta(json!({"type": "text_delta", "text": piece})),
            Some(_) if position == 0 => events + &argument("{\"words\": \"") + &argument(piece),
            Some(_) => events + &argument(piece),
        }
    }

    /// What follows the last token.
    pub(super) fn tail(&self) -> String {
        let end = if self.ask.forced_tool().is_some() { argument("\"}") } else { String::new() };
        let stop = json!({"stop_reason": self.stop_reason(), "stop_sequence": null});
        end + &event(&json!({"type": "content_block_stop", "index": 0}))
            + &event(&json!({"type": "message_delta", "delta": stop, "usage": self.usage(self.ask.limit)}))
            + &event(&json!({"type": "message_stop"}))
    }

    fn with_content(&self, content: Value, stop_reason: Value, usage: Value) -> Value {
        json!({
            "id": self.id, "type": "message", "role": "assistant", "content": content,
            "model": self.model, "stop_reason": stop_reason, "stop_sequence": null, "usage": usage,
        })
    }

    fn tool_use(&self, name: &str, input: Value) -> Value {
        json!({"type": "tool_use", "id": format!("toolu_{}", self.id), "name": name, "input": input})
    }

    fn usage(&self, output: usize) -> Value {
        json!({"input_tokens": self.ask.prompt.tokens, "output_tokens": output})
    }

    fn stop_reason(&self) -> Value {
        json!(if self.ask.forced_tool().is_some() { "tool_use" } else { "max_tokens" })
    }
}

fn delta(delta: Value) -> String {
    event(&json!({"type": "content_block_delta", "index": 0, "delta": delta}))
}

/// A part of a tool's input, which streams as the text of its JSON.
fn argument(text: &str) -> String {
    delta(json!({"type": "input_json_delta", "partial_json": text}))
}

/// Counts what a request would render to, and does nothing else.
pub(super) fn count_tokens(core: &Core, body: &Bytes) -> Response<Body> {
    let body: Map<String, Value> = serde_json::from_slice(body).unwrap_or_default();
    match has_prompt(Surface::Messages, &body) {
        Err(message) => error(StatusCode::BAD_REQUEST, &message),
        Ok(()) => {
            let count = render(Surface::Messages, &body, core.minor, None).tokens;
            let answer = json!({"input_tokens": count, "context_management": {"original_input_tokens": count}});
            json_response(StatusCode::OK, answer.to_string())
        }
    }
}

/// An answer before any 200 in the shape of its API. The type was OpenAI's until 0.32.
pub(super) async fn worded(surface: Surface, minor: u32, answer: Response<Body>) -> Response<Body> {
    if surface != Surface::Messages || answer.status() == StatusCode::OK {
        return answer;
    }
    let status = answer.status();
    let text = answer.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let openai: Value = serde_json::from_slice(&text).unwrap_or_default();
    let kind = if minor >= 33 { json!(kind(status.as_u16())) } else { openai["error"]["type"].clone() };
    let error = json!({"type": kind, "message": openai["error"]["message"]});
    json_response(status, json!({"type": "error", "error": error}).to_string())
}

/// The type of an error event; one for all until 0.32.
pub(super) fn event_kind(minor: u32, status: u16) -> &'static str {
    if minor >= 33 { kind(status) } else { "internal_error" }
}

fn kind(status: u16) -> &'static str {
    match status {
        400 => "invalid_request_error",
        404 => "not_found_error",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        _ => "api_error",
    }
}
