use http::{HeaderValue, header};

use super::*;

#[test]
fn every_error_is_an_openai_object_with_a_source() {
    for error in ProxyError::catalogue() {
        let code = error.code();
        let response = error.into_response();
        assert!(response.status().is_client_error() || response.status().is_server_error());
        assert!(response.headers().contains_key(ERROR_SOURCE), "{code}");
        let body: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(body["error"]["code"], code);
        assert!(body["error"]["type"].is_string() && body["error"]["message"].is_string());
    }
}

#[test]
fn an_engines_answer_passes_as_it_is() {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    let answer = EngineAnswer { status: StatusCode::IM_A_TEAPOT, headers, body: Bytes::from_static(b"no") };
    let response = ProxyError::Engine { role: Role::Decode, answer: Box::new(answer) }.into_response();
    assert_eq!(response.status(), StatusCode::IM_A_TEAPOT);
    assert_eq!(response.headers()[header::CONTENT_TYPE], "text/plain");
    assert_eq!(response.headers()[ERROR_SOURCE], "decode");
    assert_eq!(response.body(), "no");
}
