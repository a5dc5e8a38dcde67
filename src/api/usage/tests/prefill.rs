//! What is read from prefill's answer by a look at its text is what a parse of it says.

use serde_json::{Value, json};

use super::*;

/// What a parse says.
fn parsed(api: Api, answer: &Value) -> Prompt {
    let side = if matches!(api, Api::Messages | Api::Responses) { "input" } else { "prompt" };
    let details = &answer["usage"][format!("{side}_tokens_details")];
    let told = &answer["kv_transfer_params"]["remote_prefill_cached_tokens"];
    Prompt {
        cached: told.as_u64().or(details["cached_tokens"].as_u64()),
        has_no_details: details.is_null() && answer["usage"].as_object().is_some_and(|usage| usage.len() > 1),
        tokens: answer["usage"][format!("{side}_tokens")].as_u64(),
    }
}

#[test]
fn a_look_says_what_a_parse_does() {
    let texts =
        ["plain", "\"usage\":{\"prompt_tokens\":1}", "\\\"cached_tokens\\\":5,\"remote_prefill_cached_tokens\":6}"];
    for (api, text) in Api::ALL.into_iter().flat_map(|api| texts.map(|text| (api, text))) {
        let side = if matches!(api, Api::Messages | Api::Responses) { "input" } else { "prompt" };
        let details = [
            json!(null),
            json!({}),
            json!({"cached_tokens": 0}),
            json!({"cached_tokens": 4, "x": 9}),
            json!({"cached_tokens": null}),
        ];
        let params = [
            json!(null),
            json!({"remote_block_ids": [1, 2]}),
            json!({"remote_prefill_cached_tokens": 16, "remote_block_ids": [[3]]}),
            json!({"remote_prefill_cached_tokens": "16"}),
            json!({"remote_prefill_cached_tokens": -16}),
        ];
        for (details, params) in details.iter().flat_map(|details| params.iter().map(move |params| (details, params))) {
            let usage =
                json!({format!("{side}_tokens"): 64, format!("{side}_tokens_details"): details, "total_tokens": 65});
            for usage in [usage, json!(null), json!({})] {
                let answer = json!({"choices": [{"text": text}], "usage": usage, "kv_transfer_params": params});
                for written in [answer.to_string(), serde_json::to_string_pretty(&answer).unwrap()] {
                    let (look, parse) =
                        (Prompt::of(api, &Bytes::copy_from_slice(written.as_bytes()), true), parsed(api, &answer));
                    assert_eq!(look, parse, "{api:?} {written}");
                    let count = Prompt::of(api, &Bytes::copy_from_slice(written.as_bytes()), false);
                    assert_eq!(count.cached, parse.cached, "{api:?} {written}");
                    let is_told = params["remote_prefill_cached_tokens"].is_u64() && side == "prompt";
                    assert_eq!(
                        count,
                        if is_told { Prompt { cached: parse.cached, ..Prompt::default() } } else { parse }
                    );
                }
            }
        }
    }
}

#[test]
fn only_the_params_may_tell() {
    for text in [r#"{"a":{"remote_prefill_cached_tokens":16}}"#, r#"{"usage":7,"cached_tokens":16}"#, "", "null"] {
        assert_eq!(Prompt::of(Api::Chat, &Bytes::from_static(text.as_bytes()), true), Prompt::default(), "{text}");
    }
}

/// Responses repeat what clients wrote, as objects, before the engine's own and behind it; a message may have a tool's input.
#[test]
fn what_a_client_wrote_is_no_engines_word() {
    let usage = json!({"input_tokens": 1000, "input_tokens_details": {"cached_tokens": 900}});
    let wrong = json!({"kv_transfer_params": {"remote_prefill_cached_tokens": u64::MAX}, "remote_prefill_cached_tokens": 7,
        "usage": {"input_tokens": 5, "input_tokens_details": {"cached_tokens": 3}}, "input_tokens_details": null});
    let told = Prompt { cached: Some(900), has_no_details: false, tokens: Some(1000) };
    for api in [Api::Responses, Api::Messages] {
        for params in [json!(null), json!({}), json!({"remote_block_ids": [1]})] {
            for (usage, told) in [(&usage, told), (&json!(null), Prompt::default())] {
                let answer = json!({"tools": [{"parameters": wrong}], "content": [{"input": wrong}], "kv_transfer_params": params,
                    "usage": usage, "input_messages": [wrong]});
                assert_eq!(Prompt::of(api, &Bytes::from(answer.to_string()), true), told, "{answer}");
            }
        }
        let not = format!("oops \"usage\":{usage}");
        assert_eq!(Prompt::of(api, &Bytes::from(not), true), Prompt::default());
    }
}
