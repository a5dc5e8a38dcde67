//! Answers in OpenAI's shapes, at once or token by token.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::Body;
use bytes::Bytes;
use futures::stream;
use http::{Response, StatusCode};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::ask::Ask;
use super::core::{Blocks, Core, Gauge, Site};
use super::fault::LegFaults;
use super::link::Link;
use super::mapped::Mapped;
use super::messages::AssistantMessage;
use super::response::{data, event, json_response, now, typed};
use super::surface::Surface;
use super::text::Voice;

/// An answer that is about to be given, with all it holds until its end.
pub(crate) struct Answer {
    pub(crate) core: Arc<Core>,
    pub(crate) link: Arc<Link>,
    pub(crate) ask: Ask,
    pub(crate) site: Arc<Site>,
    pub(crate) faults: LegFaults,
    pub(crate) voice: Voice,
    pub(crate) transfer_params: Value,
    /// How many tokens of the prompt prefill's cache had.
    pub(crate) cached: usize,
    pub(crate) holds: Holds,
    /// Where every chunk of the stream begins, made once for all of them.
    pub(crate) prefix: String,
}

/// What ends with the answer. Counts the request as aborted unless told that it completed.
pub(crate) struct Holds {
    pub(crate) core: Arc<Core>,
    pub(crate) blocks: Option<Blocks>,
    pub(crate) completed: bool,
    pub(crate) running: Option<Gauge>,
    /// WRITE decode: the line in the engine's table ends with the answer.
    pub(crate) mapped: Option<Mapped>,
}

impl Drop for Holds {
    fn drop(&mut self) {
        let completed = self.completed;
        self.core.books.count(|counters| if completed { counters.completed += 1 } else { counters.aborted += 1 });
    }
}

impl Answer {
    /// Gives the answer as the request wants it.
    pub(crate) async fn give(mut self) -> Response<Body> {
        if self.faults.unparsable {
            self.holds.completed = true;
            return json_response(StatusCode::OK, "{\"choices\": [oops".into());
        }
        if self.ask.stream {
            return self.stream();
        }
        for position in 0..=self.ask.limit {
            self.pass(position).await;
        }
        self.holds.completed = true;
        json_response(StatusCode::OK, self.ask.with_prompt_side(self.whole()).to_string())
    }

    /// Lets the time of a token pass, and does what the script wants done before it.
    async fn pass(&mut self, position: usize) {
        if self.core.has_lost(&self.site) {
            match self.core.settings.lost_ranks_hang {
                true => std::future::pending::<()>().await,
                false => match self.link.cut(false).await {},
            }
        }
        if let Some((tokens, reset)) = self.faults.cut_after
            && position >= tokens.min(self.ask.limit)
        {
            self.link.cut(reset).await;
        }
        if self.faults.hang_after.is_some_and(|tokens| position >= tokens.min(self.ask.limit)) {
            // One request hangs only where the scheduler is done with it and its answer gets lost on the way.
            self.holds.mapped = None;
            let _lost = Gauge::new(&self.core, self.site.host, |load| &mut load.lost);
            std::future::pending::<()>().await;
        }
        if position == self.ask.limit {
            return;
        }
        self.core.thawed().await;
        if !self.core.settings.token_delay.is_zero() {
            sleep(self.core.settings.token_delay).await;
        }
        // An engine counts with each step, whether or not the text is sent token by token.
        self.core.books.count(|counters| counters.tokens += 1);
        self.site.tokens.fetch_add(1, Ordering::Relaxed);
    }

    fn id(&self) -> String {
        let id = self.ask.request_id.as_deref().unwrap_or("sim");
        match self.ask.surface {
            Surface::Completions => format!("cmpl-{id}-0"),
            Surface::Chat | Surface::Messages => format!("chatcmpl-{id}"),
            Surface::Responses | Surface::Generate => id.to_string(),
        }
    }

    fn usage(&self) -> Value {
        let (prompt, output) = (self.ask.prompt.tokens, self.ask.limit);
        // Before 0.32.0 a prompt of which nothing was cached has no details.
        let told = self.core.settings.prompt_tokens_details && (self.cached > 0 || self.core.minor >= 32);
        match self.ask.surface {
            Surface::Responses => json!({
                "input_tokens": prompt, "output_tokens": output, "total_tokens": prompt + output,
                "input_tokens_details": {"cached_tokens": self.cached}, "output_tokens_details": {"reasoning_tokens": 0},
            }),
            _ => json!({
                "prompt_tokens": prompt, "total_tokens": prompt + output, "completion_tokens": output,
                "prompt_tokens_details": told.then(|| json!({"cached_tokens": self.cached})),
            }),
        }
    }

    fn whole(&self) -> Value {
        let (limit, model) = (self.ask.limit, &self.core.settings.model);
        let text = self.voice.text(limit);
        let params = &self.transfer_params;
        match self.ask.surface {
            Surface::Completions => json!({
                "id": self.id(), "object": "text_completion", "created": now(), "model": model,
                "choices": [{"index": 0, "text": text, "logprobs": null, "finish_reason": "length",
                    "stop_reason": null, "prompt_logprobs": null}],
                "usage": self.usage(), "kv_transfer_params": params,
            }),
            Surface::Chat => json!({
                "id": self.id(), "object": "chat.completion", "created": now(), "model": model,
                "choices": [{"index": 0, "message": {"role": "assistant", "content": text, "refusal": null,
                    "tool_calls": []}, "logprobs": null, "finish_reason": "length", "stop_reason": null}],
                "usage": self.usage(), "prompt_logprobs": null, "kv_transfer_params": params,
            }),
            Surface::Responses => self.responses_object(self.outcome(), &text),
            Surface::Messages => self.message().whole(&text, params),
            Surface::Generate => {
                let tokens: Vec<usize> = (0..limit).map(|position| self.voice.token(position)).collect();
                json!({
                    "request_id": self.id(), "prompt_logprobs": null, "kv_transfer_params": params,
                    "choices": [{"index": 0, "logprobs": null, "finish_reason": "length", "token_ids": tokens}],
                })
            }
        }
    }

    fn message(&self) -> AssistantMessage<'_> {
        AssistantMessage { ask: &self.ask, id: self.id(), model: &self.core.settings.model }
    }

    /// How Responses call an answer that its limit has ended.
    fn outcome(&self) -> &'static str {
        if self.core.minor >= 33 { "incomplete" } else { "completed" }
    }

    fn responses_object(&self, status: &str, text: &str) -> Value {
        let incomplete = (status == "incomplete").then(|| json!({"reason": "max_output_tokens"}));
        let output = json!([{"type": "message", "id": format!("msg_{}", self.id()), "status": status,
            "role": "assistant", "content": [{"type": "output_text", "text": text, "annotations": []}]}]);
        json!({
            "id": self.id(), "object": "response", "created_at": now(), "status": status,
            "model": self.core.settings.model, "output": output,
            "parallel_tool_calls": true, "tool_choice": "auto", "tools": [], "error": null,
            "incomplete_details": incomplete, "instructions": null, "metadata": null,
            "usage": self.usage(), "kv_transfer_params": self.transfer_params,
        })
    }

    fn stream(mut self) -> Response<Body> {
        self.prefix = self.chunk_prefix();
        let chunks = stream::unfold((self, 0), |(mut answer, position)| async move {
            let limit = answer.ask.limit;
            if position > limit {
                if answer.faults.hang_after_done {
                    std::future::pending::<()>().await;
                }
                return None;
            }
            answer.pass(position).await;
            let chunk = if position == limit { answer.tail() } else { answer.chunk(position) };
            if position == limit {
                answer.holds.completed = true;
                // Whoever has read the last byte finds the blocks free.
                answer.holds.blocks = None;
                answer.holds.running = None;
                answer.holds.mapped = None;
            }
            Some((Ok::<_, std::io::Error>(Bytes::from(chunk)), (answer, position + 1)))
        });
        typed(StatusCode::OK, "text/event-stream; charset=utf-8", Body::from_stream(chunks))
    }

    /// What the chunks of completions and chat have in common.
    fn chunk_prefix(&self) -> String {
        let object = if self.ask.surface == Surface::Chat { "chat.completion.chunk" } else { "text_completion" };
        let head = json!({"id": self.id(), "object": object, "created": now(), "model": self.core.settings.model});
        let head = head.to_string();
        format!("data: {},\"choices\":[{{\"index\":0,", head.trim_end_matches('}'))
    }

    /// The events of one token. The words need no escapes.
    fn chunk(&self, position: usize) -> String {
        let piece = self.voice.piece(position);
        let last = position + 1 == self.ask.limit;
        let reason = if last { json!("length") } else { Value::Null };
        let (id, prefix) = (self.id(), &self.prefix);
        match self.ask.surface {
            Surface::Completions => format!(
                "{prefix}\"text\":\"{piece}\",\"logprobs\":null,\"finish_reason\":{reason},\"stop_reason\":null}}]}}\n\n"
            ),
            Surface::Chat => {
                let chat = |delta: &str, reason: &Value| {
                    format!("{prefix}\"delta\":{{{delta}}},\"logprobs\":null,\"finish_reason\":{reason}}}]}}\n\n")
                };
                let role = "\"role\":\"assistant\",\"content\":\"\"";
                let role = if position == 0 { chat(role, &Value::Null) } else { String::new() };
                role + &chat(&format!("\"content\":\"{piece}\""), &reason)
            }
            Surface::Responses => {
                let item =
                    json!({"type": "message", "id": format!("msg_{id}"), "status": "in_progress", "content": []});
                let added = json!({
                    "type": "response.output_item.added", "sequence_number": 2, "output_index": 0, "item": item,
                });
                let added = if position == 0 { event(&added) } else { String::new() };
                added
                    + &event(&json!({
                        "type": "response.output_text.delta", "sequence_number": position + 3, "item_id": format!("msg_{id}"),
                        "output_index": 0, "content_index": 0, "delta": piece, "logprobs": [],
                    }))
            }
            Surface::Messages => self.message().events(position, &piece),
            Surface::Generate => data(&json!({
                "request_id": id,
                "choices": [{"index": 0, "token_ids": [self.voice.token(position)], "finish_reason": reason}],
            })),
        }
    }

    /// What follows the last token.
    fn tail(&self) -> String {
        let object = match self.ask.surface {
            Surface::Completions => "text_completion",
            Surface::Chat => "chat.completion.chunk",
            Surface::Responses => {
                let (status, number) = (self.outcome(), self.ask.limit + 3);
                let response = self.responses_object(status, &self.voice.text(self.ask.limit));
                let kind = format!("response.{status}");
                return event(&json!({"type": kind, "sequence_number": number, "response": response}));
            }
            Surface::Messages => return self.message().tail(),
            Surface::Generate => return "data: [DONE]\n\n".into(),
        };
        let mut tail = String::new();
        if self.ask.include_usage {
            tail = data(&json!({
                "id": self.id(), "object": object, "created": now(), "model": self.core.settings.model,
                "choices": [], "usage": self.usage(),
            }));
        }
        tail + "data: [DONE]\n\n"
    }
}
