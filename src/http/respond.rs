//! The response to an exchange that has something to say.

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use tokio_util::sync::CancellationToken;

use super::cached::{Purpose, Told, Watched};
use super::siblings::{Part, Together};
use crate::api::siblings::Shape;
use crate::api::{Api, message};
use crate::exchange::drive::{Drive, Outcome};
use crate::exchange::record::Exchange;
use crate::exchange::relay::Relay;

/// What an attempt gave, as the client gets it: an engine's head and the relay of its body,
/// or prefill's message. `cut` fires when the process stops waiting for the answer.
pub(super) fn respond(
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
            if head.is_events || purpose.is_some() {
                // A stream may lose comments or gain an error event, a usage gain a number.
                headers.remove(header::CONTENT_LENGTH);
            }
            record.committed(head.status.as_u16());
            let relay = Relay::new(drive, &head, record, limits, (api, cut));
            let mut response = Response::new(match purpose {
                Some(purpose) => Body::new(Watched::new(relay, (api, head.is_events), purpose, Relay::grows)),
                None => Body::new(relay),
            });
            *response.status_mut() = head.status;
            *response.headers_mut() = headers;
            response
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
