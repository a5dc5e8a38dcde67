//! What answers are made of: responses, errors in OpenAI's shape, and the events of a stream.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Body;
use http::{Response, StatusCode};
use serde_json::{Value, json};

/// An error in OpenAI's shape.
pub(crate) fn error(status: StatusCode, message: &str) -> Response<Body> {
    let kind = if status.is_server_error() { "InternalServerError" } else { "BadRequestError" };
    let body = json!({"error": {"message": message, "type": kind, "param": null, "code": status.as_u16()}});
    json_response(status, body.to_string())
}

/// A JSON answer.
pub(crate) fn json_response(status: StatusCode, body: String) -> Response<Body> {
    typed(status, "application/json", Body::from(body))
}

pub(crate) fn typed(status: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

pub(crate) fn data(value: &Value) -> String {
    format!("data: {value}\n\n")
}

pub(crate) fn event(value: &Value) -> String {
    format!("event: {}\ndata: {value}\n\n", value["type"].as_str().unwrap_or_default())
}

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs())
}
