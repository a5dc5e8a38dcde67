use http::HeaderMap;
use serde_json::{Value, json};

use super::*;
use crate::engine::Role;

#[test]
fn every_error_is_an_openai_object_with_a_source() {
    for error in ProxyError::catalogue() {
        let code = error.code();
        let response = error.into_response_for(None);
        assert!(response.status().is_client_error() || response.status().is_server_error());
        assert!(response.headers().contains_key(ERROR_SOURCE), "{code}");
        let body: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(body["error"]["code"], code);
        assert!(body["error"]["type"].is_string() && body["error"]["message"].is_string());
    }
}

/// The one event that an error is, with its name, if the API's events have names.
fn read_event(event: &str) -> (Option<String>, Value) {
    let event = event.strip_suffix("\n\n").unwrap();
    let (name, data) = match event.strip_prefix("event: ") {
        Some(rest) => rest.split_once('\n').map(|(name, data)| (Some(name.to_owned()), data)).unwrap(),
        None => (None, event),
    };
    assert!(!data.contains('\n'), "{event}");
    (name, serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap())
}

#[test]
fn every_error_has_the_shape_of_the_api_that_was_asked() {
    const ANTHROPIC: [&str; 10] = [
        "invalid_request_error",
        "authentication_error",
        "permission_error",
        "not_found_error",
        "request_too_large",
        "rate_limit_error",
        "timeout_error",
        "api_error",
        "overloaded_error",
        "billing_error",
    ];
    for error in ProxyError::catalogue() {
        let (status, code, message) = (error.status(), error.code(), error.to_string());
        for api in [Api::Completions, Api::Chat, Api::Generate] {
            let (name, openai) = read_event(&error.event(api));
            assert_eq!(name, None);
            assert_eq!(openai, serde_json::from_str::<Value>(&error.body_for(Some(api))).unwrap());
            assert_eq!((&openai["error"]["code"], &openai["error"]["message"]), (&json!(code), &json!(message)));
        }

        let (name, anthropic) = read_event(&error.event(Api::Messages));
        assert_eq!((name.as_deref(), &anthropic["type"]), (Some("error"), &json!("error")));
        assert_eq!(anthropic, serde_json::from_str::<Value>(&error.body_for(Some(Api::Messages))).unwrap());
        let kind = anthropic["error"]["type"].as_str().unwrap();
        assert!(ANTHROPIC.contains(&kind), "{code}: {kind}");
        let ours = matches!(kind, "api_error" | "overloaded_error" | "timeout_error");
        assert_eq!(ours, status.is_server_error(), "{code}: {kind}");
        assert_eq!((&anthropic["error"]["code"], &anthropic["error"]["message"]), (&json!(code), &json!(message)));

        let (name, event) = read_event(&error.event(Api::Responses));
        assert_eq!((name.as_deref(), &event["type"]), (Some("error"), &json!("error")));
        for object in [&event, &event["error"]] {
            assert_eq!((&object["code"], &object["message"]), (&json!(code), &json!(message)));
            assert_eq!(object["param"], Value::Null);
        }
        let whole = serde_json::from_str::<Value>(&error.body_for(Some(Api::Responses))).unwrap();
        assert_eq!(whole, serde_json::from_str::<Value>(&error.body()).unwrap(), "whole answers are OpenAI's");

        let response = error.into_response_for(Some(Api::Messages));
        assert_eq!(response.status(), status);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
        assert_eq!(serde_json::from_slice::<Value>(response.body()).unwrap(), anthropic);
    }
}

#[test]
fn engines_errors_reach_anthropic_s_clients_in_their_shape() {
    let check = |status: u16, body: &'static str, kind: &str, message: &str| {
        let status = StatusCode::from_u16(status).unwrap();
        let bytes = Bytes::from_static(body.as_bytes());
        let answer = Box::new(EngineAnswer { status, headers: HeaderMap::new(), body: bytes });
        let response = ProxyError::Engine { role: Role::Prefill, answer }.into_response_for(Some(Api::Messages));
        assert_eq!(response.status(), status);
        assert_eq!(response.headers()[ERROR_SOURCE], "prefill");
        let read: Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!((&read["type"], &read["error"]["type"]), (&json!("error"), &json!(kind)), "{body}");
        assert_eq!(read["error"]["message"], message, "{body}");
    };
    let openai = r#"{"error":{"message":"too long","type":"BadRequestError","param":null,"code":400}}"#;
    check(400, openai, "invalid_request_error", "too long");
    check(401, r#"{"error":"Unauthorized"}"#, "authentication_error", "Unauthorized");
    check(404, r#"{"detail":"Not Found"}"#, "not_found_error", "Not Found");
    check(429, "slow down", "rate_limit_error", "prefill engine answered 429 Too Many Requests");
    check(503, r#"{"error":"scaling"}"#, "overloaded_error", "scaling");
    // What is in the shape already keeps its bytes, whatever its type is called.
    let own = r#"{"type":"error","error":{"type":"BadRequestError","message":"mine"}}"#;
    check(400, own, "BadRequestError", "mine");
}

#[test]
fn an_engines_answer_passes_as_it_is() {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    let answer = EngineAnswer { status: StatusCode::IM_A_TEAPOT, headers, body: Bytes::from_static(b"no") };
    let response = ProxyError::Engine { role: Role::Decode, answer: Box::new(answer) }.into_response_for(None);
    assert_eq!(response.status(), StatusCode::IM_A_TEAPOT);
    assert_eq!(response.headers()[header::CONTENT_TYPE], "text/plain");
    assert_eq!(response.headers()[ERROR_SOURCE], "decode");
    assert_eq!(response.body(), "no");
}
