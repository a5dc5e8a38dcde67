//! The response to an exchange that has something to say.

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::stream;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::BodyExt;
use tokio_util::sync::CancellationToken;

use super::cached::{MOST, Purpose, Told, Watched};
use super::siblings::{Part, Together};
use crate::api::siblings::Shape;
use crate::api::{Api, message};
use crate::exchange::drive::{Drive, Outcome};
use crate::exchange::record::Exchange;
use crate::exchange::relay::Relay;

/// What an attempt gave, as the client gets it: an engine's head and the relay of its body,
/// or prefill's message. `cut` fires when the process stops waiting for the answer.
pub(super) async fn respond(
    outcome: Outcome,
    (api, streams): (Api, bool),
    mut record: Exchange,
    cut: CancellationToken,
) -> Response {
    match outcome {
        Outcome::Relayed(mut drive, mut head, limits) => {
            let mut headers = std::mem::take(&mut head.headers);
            // Engines' errors have no usage.
            let purpose = purpose(&mut drive).filter(|_| head.status.is_success());
            let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
            if head.is_events {
                // A stream may lose comments or gain an error event.
                headers.remove(header::CONTENT_LENGTH);
            }
            record.committed(head.status.as_u16());
            let relay = Relay::new(drive, &head, record, limits, (api, cut));
            let Some(purpose) = purpose else {
                return answer(head.status, headers, Body::new(relay));
            };
            let is_told = matches!(purpose, Purpose::Tell(_)) && !head.is_events;
            let watched = Watched::new(relay, (api, head.is_events), purpose, Relay::grows);
            if !is_told || length.is_none_or(|length| length > MOST as u64) {
                return answer(head.status, headers, Body::new(watched));
            }
            // Its length is known once a number has been put in.
            match watched.collect().await {
                Ok(whole) => {
                    headers.remove(header::CONTENT_LENGTH);
                    answer(head.status, headers, Body::from(whole.to_bytes()))
                }
                Err(broken) => {
                    let broken = stream::once(std::future::ready(Err::<Bytes, _>(broken)));
                    answer(head.status, headers, Body::from_stream(broken))
                }
            }
        }
        Outcome::Message(text, limits) => {
            record.committed(200);
            record.alone();
            let (text, kind) = match streams {
                true => (message::events(&text), "text/event-stream; charset=utf-8"),
                false => (text.to_string(), "application/json"),
            };
            let relay = Relay::at_hand(text.into(), record, limits, api, cut);
            let mut response = Response::new(Body::new(relay));
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
            response
        }
    }
}

fn answer(status: StatusCode, headers: HeaderMap, body: Body) -> Response {
    let mut response = Response::new(body);
    (*response.status_mut(), *response.headers_mut()) = (status, headers);
    response
}

/// What the usage of an answer is looked at for.
fn purpose(drive: &mut Drive) -> Option<Purpose> {
    let told = drive.take_cached().map(|told| Purpose::Tell(Told::by(told)));
    told.or_else(|| drive.take_expected().map(|hear| Purpose::Hear(Some(Box::new(hear)))))
}

/// Whole answers of siblings that were made one.
pub(super) fn respond_whole(headers: HeaderMap, answer: Bytes, mut record: Exchange) -> Response {
    record.committed(200);
    record.first_output();
    record.relayed(answer.len());
    record.complete();
    let mut response = Response::new(Body::from(answer));
    *response.headers_mut() = headers;
    response
}

/// Streams of siblings as one.
pub(super) fn respond_together(
    headers: HeaderMap,
    parts: Vec<Part>,
    (api, shape): (Api, Shape),
    mut record: Exchange,
) -> Response {
    record.committed(200);
    let mut response = Response::new(Body::new(Together::new(parts, (api, shape), record)));
    *response.headers_mut() = headers;
    response
}
