//! Streamed answers. A real server writes the head before its engine has the request: a 200 proves valid input and nothing
//! else. What the engine makes of the request follows as events, its refusal too; meanwhile comments may come.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use http::{Response, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::ask::Ask;
use super::core::Core;
use super::leg::Leg;
use super::link::Link;
use super::messages;
use super::response::{data, event, now, typed};
use super::surface::Surface;

/// Real servers count in whole seconds; the simulator may be quicker.
const COMMENT: &[u8] = b": keep-alive\n\n";

type Events = BoxStream<'static, Bytes>;

/// What the events of one answer need to be worded.
#[derive(Clone)]
struct Wording {
    core: Arc<Core>,
    link: Arc<Link>,
    ask: Ask,
    id: String,
}

/// Answers a streamed leg: its head at once, the rest as it comes.
pub(crate) fn answer(leg: Leg) -> Response<Body> {
    let wording =
        Wording { core: leg.core.clone(), link: leg.link.clone(), ask: leg.ask.clone(), id: leg.ask.internal_id() };
    let refused = leg.faults.error_event;
    let events = stream::iter(wording.preamble()).chain(work(wording.clone(), leg, refused));
    let events = match wording.keep_alive() {
        Some(interval) => with_comments(events.boxed(), interval),
        None => events.boxed(),
    };
    let body = Body::from_stream(events.map(Ok::<_, std::convert::Infallible>));
    typed(StatusCode::OK, "text/event-stream; charset=utf-8", body)
}

/// The engine's part: its events, cut short by the scripted error.
fn work(wording: Wording, leg: Leg, refused: Option<(u16, usize)>) -> Events {
    if let Some((status, 0)) = refused {
        return stream::once(async move { wording.refusal(status, "scripted", false).await }).boxed();
    }
    let working = async move {
        let (head, body) = leg.run().await.into_parts();
        if head.status == StatusCode::OK {
            let parts = body.into_data_stream().filter_map(|part| async { part.ok() });
            return match refused {
                None => parts.boxed(),
                Some((status, tokens)) => {
                    let error = async move { wording.refusal(status, "scripted", false).await };
                    parts.take(tokens).chain(stream::once(error)).boxed()
                }
            };
        }
        let text = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let value: Value = serde_json::from_slice(&text).unwrap_or_default();
        let message = value["error"]["message"].as_str().unwrap_or_default().to_owned();
        stream::once(async move { wording.refusal(head.status.as_u16(), &message, true).await }).boxed()
    };
    stream::once(working).flatten().boxed()
}

/// Comments between events that are late.
fn with_comments(events: Events, interval: Duration) -> Events {
    let next = move |mut events: Events| async move {
        match tokio::time::timeout(interval, events.next()).await {
            Ok(Some(part)) => Some((part, events)),
            Ok(None) => None,
            Err(_) => Some((Bytes::from_static(COMMENT), events)),
        }
    };
    stream::unfold(events, next).boxed()
}

impl Wording {
    /// Comments exist from 0.29.0 on, for completions and chat.
    fn keep_alive(&self) -> Option<Duration> {
        let knows = matches!(self.ask.surface, Surface::Completions | Surface::Chat) && self.core.minor >= 29;
        Some(self.core.settings.keep_alive).filter(|interval| knows && !interval.is_zero())
    }

    /// What is said before the engine is asked.
    fn preamble(&self) -> Vec<Bytes> {
        if self.ask.surface != Surface::Responses {
            return Vec::new();
        }
        let response = json!({
            "id": self.id, "object": "response", "created_at": now(), "status": "in_progress",
            "model": self.core.settings.model, "output": [], "usage": null,
        });
        let types = ["response.created", "response.in_progress"];
        let events = types.into_iter().zip(0..).map(|(kind, number)| {
            Bytes::from(event(&json!({"type": kind, "sequence_number": number, "response": response})))
        });
        events.collect()
    }

    /// An error after the 200, in the API's form. `reported`: the engine had taken the request, so its first report came before.
    async fn refusal(self, status: u16, message: &str, reported: bool) -> Bytes {
        if !reported {
            self.core.books.count(|counters| counters.failed += 1);
        }
        let (kind, role) = (if status < 500 { "BadRequestError" } else { "InternalServerError" }, self.role());
        let error = json!({"error": {"message": message, "type": kind, "param": null, "code": status}});
        let text = match self.ask.surface {
            // The server trips over its own error text.
            Surface::Responses => match self.link.cut(false).await {},
            Surface::Messages => {
                let kind = messages::event_kind(self.core.minor, status);
                event(&json!({"type": "error", "error": {"type": kind, "message": message}}))
            }
            _ => data(&error) + "data: [DONE]\n\n",
        };
        Bytes::from(if reported { role + &text } else { text })
    }

    /// What the first report of an engine makes of chat and messages, a failed load's as well.
    fn role(&self) -> String {
        let model = &self.core.settings.model;
        match self.ask.surface {
            Surface::Chat => data(&json!({
                "id": self.id, "object": "chat.completion.chunk", "created": now(), "model": model,
                "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": null}],
            })),
            Surface::Messages => event(&json!({"type": "message_start", "message": {
                "id": self.id, "type": "message", "role": "assistant", "content": [], "model": model,
            }})),
            _ => String::new(),
        }
    }
}
