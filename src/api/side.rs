//! The side at fault inside an error, as MAD's proxy words it: `fail_side`, and `transfer_id` where there is one.

use bytes::Bytes;
use http::{Response, header};
use serde_json::Value;

use crate::error::Source;

/// The side's name there, which knows no fault of clients.
pub(crate) fn word(source: Source) -> &'static str {
    match source {
        Source::Client | Source::Proxy => "proxy",
        Source::Prefill => "prefill",
        Source::Decode => "decode",
    }
}

/// An answer with both in its error; one that is no JSON object stays as it is.
pub(crate) fn told(response: Response<Bytes>, source: Source, transfer_id: Option<&str>) -> Response<Bytes> {
    let Some(body) = named(response.body(), source, transfer_id) else { return response };
    let mut response = response.map(|_| Bytes::from(body));
    response.headers_mut().remove(header::CONTENT_LENGTH);
    response
}

/// An event with both in its error.
pub(crate) fn in_event(event: &str, source: Source, transfer_id: Option<&str>) -> String {
    let line =
        |line: &str| match line.strip_prefix("data: ").and_then(|data| named(data.as_bytes(), source, transfer_id)) {
            Some(data) => format!("data: {data}"),
            None => line.to_owned(),
        };
    event.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

fn named(text: &[u8], source: Source, transfer_id: Option<&str>) -> Option<String> {
    let mut whole = serde_json::from_slice::<Value>(text).ok()?;
    // Engines of some releases have no object around what they say.
    let error = if whole["error"].is_object() { &mut whole["error"] } else { &mut whole };
    let error = error.as_object_mut()?;
    error.insert(String::from("fail_side"), word(source).into());
    if let Some(id) = transfer_id {
        error.insert(String::from("transfer_id"), id.into());
    }
    Some(whole.to_string())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::Response;
    use serde_json::{Value, json};

    use super::{in_event, told};
    use crate::error::Source;

    #[test]
    fn the_side_stands_inside_the_error() {
        let check = |body: &str, wanted: &str| {
            let response = Response::builder().header("content-length", body.len()).body(Bytes::from(body.to_owned()));
            let response = told(response.unwrap(), Source::Prefill, Some("tx-1"));
            assert_eq!(response.headers().contains_key("content-length"), body == wanted, "{body}");
            assert_eq!(response.body(), wanted);
        };
        let inside = r#"{"error":{"message":"m","fail_side":"prefill","transfer_id":"tx-1"}}"#;
        check(r#"{"error": {"message": "m"}}"#, inside);
        check(r#"{"error":"m"}"#, r#"{"error":"m","fail_side":"prefill","transfer_id":"tx-1"}"#);
        check(r#"{"message":"m"}"#, r#"{"message":"m","fail_side":"prefill","transfer_id":"tx-1"}"#);
        for other in ["", "[1]", "Internal Server Error", "null"] {
            check(other, other);
        }
    }

    #[test]
    fn events_keep_their_form() {
        let event = "event: error\ndata: {\"error\":{\"code\":\"c\"}}\n\n";
        for (source, side) in [(Source::Client, "proxy"), (Source::Proxy, "proxy"), (Source::Decode, "decode")] {
            let named = in_event(event, source, None);
            let data = named.strip_prefix("event: error\ndata: ").and_then(|rest| rest.strip_suffix("\n\n"));
            let data: Value = serde_json::from_str(data.unwrap()).unwrap();
            assert_eq!(data, json!({"error": {"code": "c", "fail_side": side}}));
        }
    }
}
