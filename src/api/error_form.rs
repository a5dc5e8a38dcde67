//! What a client reads of an error: the shape of the API that was asked, as an answer or as the last event of a stream.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::api::Api;
use crate::error::{ERROR_SOURCE, EngineAnswer, ProxyError, Source};

impl ProxyError {
    /// The error as JSON text, in the shape of the API that was asked; outside of them it is OpenAI's.
    pub(crate) fn body_for(&self, api: Option<Api>) -> String {
        match api {
            Some(Api::Messages) => self.anthropic().to_string(),
            _ => self.body(),
        }
    }

    /// The error as the last event of a stream of `api`.
    pub fn event(&self, api: Api) -> String {
        match api {
            Api::Completions | Api::Chat | Api::Generate => format!("data: {}\n\n", self.body()),
            Api::Messages => format!("event: error\ndata: {}\n\n", self.anthropic()),
            Api::Responses => {
                // The API's own event, and the object in which clients of streams look for an error.
                let (_, kind, code) = self.wording();
                let message = self.to_string();
                let error = json!({"message": message, "type": kind, "param": null, "code": code});
                let event = json!({"type": "error", "code": code, "message": message, "param": null, "error": error});
                format!("event: error\ndata: {event}\n\n")
            }
        }
    }

    /// Anthropic's error object. Its types follow the status; `code` is ours, beside them.
    fn anthropic(&self) -> Value {
        let message = match self {
            ProxyError::Engine { answer, .. } => answer.message().unwrap_or_else(|| self.to_string()),
            other => other.to_string(),
        };
        let error = json!({"type": anthropic_type(self.status()), "message": message, "code": self.code()});
        json!({"type": "error", "error": error})
    }

    /// OpenAI's error object, as JSON text.
    pub fn body(&self) -> String {
        let (_, kind, code) = self.wording();
        let param = match self {
            ProxyError::BadRequest { param, .. } => param.as_deref(),
            _ => None,
        };
        json!({"error": {"message": self.to_string(), "type": kind, "param": param, "code": code}}).to_string()
    }

    /// The answer for the client of an API. An engine's own answer keeps its status, body and content type, but that Anthropic's
    /// clients get their shape for what engines word in OpenAI's (protocol E5).
    pub(crate) fn into_response_for(self, api: Option<Api>) -> Response<Bytes> {
        use ProxyError as E;
        let mut response = match self {
            ProxyError::Engine { role, mut answer } => {
                if api == Some(Api::Messages) && !answer.is_anthropic() {
                    let error = ProxyError::Engine { role, answer: answer.clone() };
                    answer.body = Bytes::from(error.anthropic().to_string());
                    answer.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
                }
                let mut response = Response::new(answer.body);
                *response.status_mut() = answer.status;
                *response.headers_mut() = answer.headers;
                response.headers_mut().insert(ERROR_SOURCE, HeaderValue::from_static(Source::from(role).as_str()));
                return response;
            }
            other => {
                let mut response = Response::new(Bytes::from(other.body_for(api)));
                *response.status_mut() = other.status();
                response.headers_mut().insert(ERROR_SOURCE, HeaderValue::from_static(other.source().as_str()));
                if let Some(seconds) = other.retry_after() {
                    response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
                }
                if matches!(other, E::BodyTooLarge { .. } | E::BodyTimeout { .. } | E::NoPlace) {
                    // What is left of the body is not read, so the connection cannot carry another request.
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                if matches!(other, ProxyError::Unauthorized) {
                    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
                }
                response
            }
        };
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

impl EngineAnswer {
    /// Whether its body is an error in Anthropic's shape.
    fn is_anthropic(&self) -> bool {
        let body = serde_json::from_slice::<Value>(&self.body).unwrap_or_default();
        body["type"] == "error" && body["error"]["type"].is_string()
    }

    /// What the engine says, in whichever of its wordings: an object, a text, or a validation's detail.
    fn message(&self) -> Option<String> {
        let body = serde_json::from_slice::<Value>(&self.body).ok()?;
        let error = [&body["error"]["message"], &body["error"], &body["message"], &body["detail"]];
        error.into_iter().find_map(|text| text.as_str()).map(str::to_owned)
    }
}

/// Anthropic's error type for a status.
fn anthropic_type(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 | 529 => "overloaded_error",
        504 => "timeout_error",
        400..=499 => "invalid_request_error",
        _ => "api_error",
    }
}

#[cfg(test)]
mod tests;
