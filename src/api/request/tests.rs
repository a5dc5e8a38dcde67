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
    // Limits of every wrong kind.
    for value in ["0", "-1", "1.5", "\"5\"", "true", "[1]", "{}", "1e400", "99999999999999999999999", "0.0"] {
        check(Completions, &format!(r#"{{"max_tokens":{value}}}"#), "max_tokens");
        check(Chat, &format!(r#"{{"max_completion_tokens":{value}}}"#), "max_completion_tokens");
        check(Responses, &format!(r#"{{"max_output_tokens":{value}}}"#), "max_output_tokens");
        let text = format!(r#"{{"sampling_params":{{"max_tokens":{value}}}}}"#);
        check(Generate, &text, "sampling_params.max_tokens");
    }
    check(Completions, r#"{"max_tokens":0,"echo":false}"#, "max_tokens");
    check(Chat, r#"{"max_tokens":0,"echo":true}"#, "max_tokens");
    check(Completions, r#"{"max_tokens":5,"max_\u0074okens":0}"#, "max_tokens");
    check(Completions, r#"{"max_tokens":null,"min_tokens":null,"n":null,"stream":null}"#, "ok");
    check(Completions, r#"{"max_tokens":16.0,"min_tokens":0}"#, "ok");
    check(Completions, r#"{"min_tokens":-1}"#, "min_tokens");
    check(Responses, r#"{"max_tokens":0}"#, "ok");
    check(Completions, r#"{"stream":"yes"}"#, "stream");
    check(Completions, r#"{"stream":1}"#, "stream");
    // One prompt and one choice (protocol F6).
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
    check(Responses, r#"{"background":false,"input":["a","b"],"previous_response_id":null,"store":true}"#, "ok");
    check(Responses, r#"{"previous_response_id":"r"}"#, "previous_response_id");
    check(Responses, r#"{"conversation":{"id":"c"}}"#, "conversation");
    for kind in ["web_search_preview", "web_search", "code_interpreter", "container", "mcp"] {
        let text = format!(r#"{{"tools":[{{"type":"function"}},{{"type":"function","type":"{kind}"}}]}}"#);
        check(Responses, &text, "tools");
        check(Chat, &text, "ok");
    }
    check(Responses, r#"{"tools":[{"type":"function","name":"f"}]}"#, "ok");
    check(Responses, r#"{"tools":{"type":"mcp"}}"#, "tools");
    check(Responses, r#"{"prompt":{"id":"x"},"input":[{},{}]}"#, "ok");
    check(Generate, r#"{"sampling_params":null}"#, "ok");
    check(Generate, r#"{"sampling_params":[1]}"#, "sampling_params");
    check(Chat, r#"{"vllm_xargs":{"kv_transfer_params":{}}}"#, "ok");
    check(Generate, r#"{"sampling_params":{"use_beam_search":true}}"#, "sampling_params.use_beam_search");
    for value in ["1.5", "\"-1\"", "true", "[]", "1e400"] {
        check(Chat, &format!(r#"{{"truncate_prompt_tokens":{value}}}"#), "truncate_prompt_tokens");
    }
}

#[test]
fn output_of_the_prompts_side_is_for_prefill_alone_or_for_nobody() {
    use Api::{Chat, Completions, Generate, Messages, Responses};
    // What it is told to whom: "pair", the field of a refusal, or the field that prefill alone serves.
    let check = |api: Api, text: &str, want: &str| {
        let got = match parse(api, text) {
            Ok(request) => request.alone.map_or("pair".to_owned(), |side| format!("alone: {}", side.param)),
            Err(ProxyError::BadRequest { param, .. }) => param.unwrap(),
            Err(other) => panic!("{other}"),
        };
        assert_eq!(got, want, "{} {text}", api.as_str());
    };
    // Engines make numbers of all of these but null.
    for value in ["0", "1", "-1", "false", "true", "\"1\"", "1.0", "{}"] {
        for api in [Completions, Chat] {
            check(api, &format!(r#"{{"max_tokens":2,"prompt_logprobs":{value}}}"#), "prompt_logprobs");
            check(api, &format!(r#"{{"max_tokens":1,"prompt_logprobs":{value}}}"#), "alone: prompt_logprobs");
        }
        let inside =
            |limit: u64| format!(r#"{{"sampling_params":{{"max_tokens":{limit},"prompt_logprobs":{value}}}}}"#);
        check(Generate, &inside(2), "sampling_params.prompt_logprobs");
        check(Generate, &inside(1), "alone: sampling_params.prompt_logprobs");
        check(Completions, &format!(r#"{{"max_tokens":2,"echo":true,"logprobs":{value}}}"#), "echo");
        check(Completions, &format!(r#"{{"max_tokens":1,"echo":true,"logprobs":{value}}}"#), "alone: echo");
    }
    check(Completions, r#"{"prompt_logprobs":null}"#, "pair");
    check(Completions, r#"{"prompt_logprobs":1}"#, "prompt_logprobs");
    check(Completions, r#"{"max_tokens":2,"prompt_\u006cogprobs":1}"#, "prompt_logprobs");
    // Completions do not know the newer name.
    check(Completions, r#"{"max_completion_tokens":1,"prompt_logprobs":1}"#, "prompt_logprobs");
    check(Chat, r#"{"max_completion_tokens":1,"max_tokens":5,"prompt_logprobs":1}"#, "alone: prompt_logprobs");
    check(Chat, r#"{"max_completion_tokens":5,"max_tokens":1,"prompt_logprobs":1}"#, "prompt_logprobs");
    // Echo's text is the front end's work; its logprobs are not, and chat's always has them.
    check(Completions, r#"{"max_tokens":2,"echo":true,"logprobs":null}"#, "pair");
    check(Completions, r#"{"max_tokens":1,"echo":true}"#, "pair");
    check(Completions, r#"{"max_tokens":0,"echo":true}"#, "alone: max_tokens");
    check(Completions, r#"{"max_tokens":0,"echo":true,"logprobs":1}"#, "alone: echo");
    check(Completions, r#"{"max_tokens":5,"echo":1}"#, "echo");
    check(Chat, r#"{"max_tokens":5,"echo":true}"#, "echo");
    check(Chat, r#"{"max_tokens":1,"echo":true}"#, "alone: echo");
    check(Chat, r#"{"max_tokens":5,"echo":false,"logprobs":true}"#, "pair");
    // Not fields of these.
    check(Responses, r#"{"prompt_logprobs":1}"#, "pair");
    check(Messages, r#"{"prompt_logprobs":1}"#, "pair");
    check(Generate, r#"{"prompt_logprobs":1,"sampling_params":{}}"#, "pair");
}

#[test]
fn what_a_pair_must_be_new_enough_for() {
    use crate::engine::Dialect;
    use crate::engine::versions::{EngineVersion, traits};
    let check = |api: Api, text: &str, ranks: u32, read: Option<(u16, &str)>, write: Option<(u16, &str)>| {
        let request = parse(api, text).unwrap();
        for (mode, since) in [(Mode::Read, read), (Mode::Write, write)] {
            for minor in [19, 22, 23, 24, 27, 28, 30, 31, 32, 33, 40] {
                let dialect = if minor < 20 { Dialect::A } else { Dialect::B };
                let row = traits(Some(EngineVersion::new(0, minor, 0)), dialect);
                let got = match request.fits(row, row, mode, ranks) {
                    Ok(()) => None,
                    Err(ProxyError::BadRequest { param, .. }) => param,
                    Err(error) => Some(error.code().to_owned()),
                };
                let want = since.filter(|(since, _)| minor < *since).map(|(_, word)| word.to_owned());
                assert_eq!(got, want, "{} {text} {mode} 0.{minor} with {ranks} ranks", api.as_str());
            }
            let unknown = traits(None, Dialect::B);
            assert_eq!(request.fits(unknown, unknown, mode, ranks).is_err(), since.is_some(), "{text}");
        }
    };
    let same = |api: Api, text: &str, since: Option<(u16, &str)>| check(api, text, 4, since, since);
    use Api::{Chat, Completions, Generate, Messages, Responses};
    same(Completions, r#"{"max_tokens":5}"#, None);
    same(Generate, "{}", None);
    same(Messages, r#"{"max_tokens":5}"#, Some((24, "engine_too_old")));
    let old = Some((24, "engine_too_old"));
    check(Responses, "{}", 1, old, old);
    check(Responses, "{}", 2, Some((28, "engine_too_old")), Some((33, "engine_too_old")));
    let cut = "truncate_prompt_tokens";
    for value in ["-1", "-1.0", "-1e0"] {
        same(Completions, &format!(r#"{{"{cut}":{value}}}"#), Some((32, cut)));
        same(Chat, &format!(r#"{{"{cut}":{value},"max_tokens":4}}"#), Some((32, cut)));
        same(Chat, &format!(r#"{{"{cut}":{value}}}"#), Some((33, cut)));
    }
    same(Chat, &format!(r#"{{"{cut}":0,"max_tokens":4}}"#), None);
    same(Chat, &format!(r#"{{"{cut}":500}}"#), None);
    let responses = |text: &str| parse(Responses, text).unwrap();
    let row = |minor| traits(Some(EngineVersion::new(0, minor, 0)), Dialect::B);
    for (text, minor, fits) in [
        (r#"{"truncation":"disabled"}"#, 24, true),
        (r#"{"truncation":null}"#, 24, true),
        (r#"{"truncation":"auto","max_output_tokens":5}"#, 31, false),
        (r#"{"truncation":"\u0061uto","max_output_tokens":5}"#, 31, false),
        (r#"{"truncation":"auto","max_output_tokens":5}"#, 32, true),
        (r#"{"truncation":"auto"}"#, 32, false),
        (r#"{"truncation":"auto"}"#, 33, true),
    ] {
        assert_eq!(responses(text).fits(row(minor), row(minor), Mode::Read, 1).is_ok(), fits, "{text} 0.{minor}");
    }
    // The older engine of a pair decides.
    assert!(responses("{}").fits(row(33), row(23), Mode::Write, 1).is_err());
    assert!(responses("{}").fits(row(23), row(33), Mode::Write, 1).is_err());
    for choice in [r#""required""#, r#"{"type":"function","function":{"name":"f"}}"#] {
        same(Chat, &format!(r#"{{"tool_choice":{choice}}}"#), Some((24, "tool_choice")));
    }
    same(Chat, r#"{"tool_choice":"auto"}"#, None);
    // Prefill alone.
    same(Completions, r#"{"max_tokens":1,"prompt_logprobs":1}"#, Some((23, "prompt_logprobs")));
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
