use super::*;

fn parse(api: Api, text: &str) -> Result<Request, ProxyError> {
    Request::parse(api, Bytes::copy_from_slice(text.as_bytes()), TokenBudget::MinusOne)
}

fn param_of(api: Api, text: &str) -> Option<String> {
    match parse(api, text) {
        Ok(_) => None,
        Err(ProxyError::BadRequest { param, .. }) => Some(param.unwrap_or_default()),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn fields_at_fault_are_named() {
    let check = |api: Api, text: &str, want: &str| {
        let want = if want == "ok" { None } else { Some(want.to_owned()) };
        assert_eq!(param_of(api, text), want, "{} {text}", api.as_str());
    };
    use Api::{Chat, Completions, Generate, Responses};
    check(Completions, "{}", "ok");
    check(Completions, "[]", "");
    check(Completions, "{", "");
    // Case 40, and limits of every wrong kind.
    for value in ["0", "-1", "1.5", "\"5\"", "true", "[1]", "{}", "1e400", "99999999999999999999999", "0.0"] {
        check(Completions, &format!(r#"{{"max_tokens":{value}}}"#), "max_tokens");
        check(Chat, &format!(r#"{{"max_completion_tokens":{value}}}"#), "max_completion_tokens");
        check(Responses, &format!(r#"{{"max_output_tokens":{value}}}"#), "max_output_tokens");
        let text = format!(r#"{{"sampling_params":{{"max_tokens":{value}}}}}"#);
        check(Generate, &text, "sampling_params.max_tokens");
    }
    check(Completions, r#"{"max_tokens":0,"echo":true}"#, "max_tokens");
    check(Completions, r#"{"max_tokens":5,"max_\u0074okens":0}"#, "max_tokens");
    check(Completions, r#"{"max_tokens":null,"min_tokens":null,"n":null,"stream":null}"#, "ok");
    check(Completions, r#"{"max_tokens":16.0,"min_tokens":0}"#, "ok");
    check(Completions, r#"{"min_tokens":-1}"#, "min_tokens");
    check(Responses, r#"{"max_tokens":0}"#, "ok");
    check(Completions, r#"{"stream":"yes"}"#, "stream");
    check(Completions, r#"{"stream":1}"#, "stream");
    // Case 42.
    check(Completions, r#"{"n":2}"#, "n");
    check(Completions, r#"{"n":1,"best_of":1}"#, "ok");
    check(Completions, r#"{"n":"1"}"#, "n");
    check(Completions, r#"{"n":0}"#, "n");
    check(Completions, r#"{"best_of":3}"#, "best_of");
    check(Completions, r#"{"use_beam_search":true}"#, "use_beam_search");
    check(Generate, r#"{"sampling_params":{"n":2}}"#, "sampling_params.n");
    check(Completions, r#"{"prompt":["a","b"]}"#, "prompt");
    check(Completions, r#"{"prompt":[ [1,2] , [3] ]}"#, "prompt");
    check(Completions, r#"{"prompt":["a"]}"#, "ok");
    check(Completions, r#"{"prompt":[1,2,3]}"#, "ok");
    check(Completions, r#"{"prompt":[[1,2,3]]}"#, "ok");
    check(Completions, r#"{"prompt":[]}"#, "ok");
    check(Completions, r#"{"prompt":"a\",\"b"}"#, "ok");
    check(Completions, r#"{"prompt_embeds":["a","b"]}"#, "prompt_embeds");
    check(Completions, r#"{"prompt":"a","prompt_embeds":"b"}"#, "prompt_embeds");
    check(Responses, r#"{"background":true}"#, "background");
    check(Responses, r#"{"background":false,"input":["a","b"],"previous_response_id":"r"}"#, "ok");
    check(Responses, r#"{"prompt":{"id":"x"},"input":[{},{}]}"#, "ok");
    check(Generate, r#"{"sampling_params":null}"#, "ok");
    check(Generate, r#"{"sampling_params":[1]}"#, "sampling_params");
    let hidden = r#"{"vllm_xargs":{"kv_transfer_params":{}}}"#;
    check(Chat, hidden, "vllm_xargs.kv_transfer_params");
    let hidden = r#"{"sampling_params":{"extra_args":{"kv_transfer_params":{}}}}"#;
    check(Generate, hidden, "sampling_params.extra_args.kv_transfer_params");
}

#[test]
fn decode_gets_one_less_but_never_none() {
    let limits = |max_tokens, max_completion_tokens, min_tokens| Limits {
        max_tokens,
        max_completion_tokens,
        max_output_tokens: None,
        min_tokens,
    };
    let check = |from: Limits, want: Limits| {
        assert_eq!(from.for_decode(TokenBudget::MinusOne), want);
        assert_eq!(from.for_decode(TokenBudget::Exact), from);
    };
    check(limits(Some(100), None, None), limits(Some(99), None, None));
    check(limits(Some(1), None, Some(1)), limits(Some(1), None, Some(1)));
    check(limits(None, Some(50), None), limits(None, Some(49), None));
    check(limits(Some(10), None, Some(10)), limits(Some(9), None, Some(9)));
    check(limits(Some(10), Some(100), Some(50)), limits(Some(9), Some(99), Some(50)));
    check(limits(None, None, Some(20)), limits(None, None, Some(20)));
}

#[test]
fn routes_have_one_path_each() {
    for api in Api::ALL {
        assert_eq!(Api::from_path(api.path()), Some(api));
    }
    assert_eq!(Api::from_path("/v1/embeddings"), None);
}
