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
                    let (look, parse) = (Prompt::of(api, written.as_bytes(), true), parsed(api, &answer));
                    assert_eq!(look, parse, "{api:?} {written}");
                    let count = Prompt::of(api, written.as_bytes(), false);
                    assert_eq!(count.cached, parse.cached, "{api:?} {written}");
                    let is_told = params["remote_prefill_cached_tokens"].is_u64();
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
        assert_eq!(Prompt::of(Api::Chat, text.as_bytes(), true), Prompt::default(), "{text}");
    }
}
