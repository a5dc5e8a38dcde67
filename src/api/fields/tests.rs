use bytes::Bytes;

use super::row::{Gets, Refuse};
use super::*;
use crate::engine::Role;
use crate::json::MAX_EDITS;

#[test]
fn rows_of_one_api_differ_and_fit_into_one_edit() {
    for api in Api::ALL {
        let mut names: Vec<String> = of(api).map(Field::param).collect();
        let count = names.len();
        assert!(count > 5, "{api:?}");
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count, "{api:?} has two rows for one field");
        for role in [Role::Prefill, Role::Decode] {
            let edits = of(api).filter(|field| !matches!(field.gets(role), Gets::Sent | Gets::Never)).count();
            assert!(edits < MAX_EDITS, "{api:?} {role:?}: {edits} edits");
        }
    }
}

#[test]
fn what_asks_for_the_prompts_side_never_has_a_leg() {
    for field in Api::ALL.into_iter().flat_map(of) {
        let side = matches!(field.refuse, Refuse::PromptSide | Refuse::PromptSideEcho(None));
        assert_eq!(side, field.decode == Gets::Never, "{}", field.param());
    }
}

fn strip(text: &str) -> String {
    let body = Body::parse(Bytes::copy_from_slice(text.as_bytes())).unwrap();
    String::from_utf8(hidden::stripped(body).unwrap().text().to_vec()).unwrap()
}

#[test]
fn hidden_params_are_taken_out_and_nothing_else() {
    let check = |from: &str, to: &str| assert_eq!(strip(from), to, "{from}");
    check(r#"{ "a":1.50, "vllm_xargs" : {"x": 1 } }"#, r#"{ "a":1.50, "vllm_xargs" : {"x": 1 } }"#);
    check(r#"{"a":1.50,"kv_transfer_params":{}, "b" :2}"#, r#"{"a":1.50, "b" :2}"#);
    check(r#"{"vllm_xargs":{"kv_transfer_params":"{}","x":1}}"#, r#"{"vllm_xargs":{"x":1}}"#);
    check(r#"{"vllm_xargs":{"kv_\u0074ransfer_params":1}}"#, r#"{"vllm_xargs":{}}"#);
    check(r#"{"extra_args":{"y":0,"kv_transfer_params":null,"kv_transfer_params":1}}"#, r#"{"extra_args":{"y":0}}"#);
    let deep = r#"{"sampling_params":{"extra_args":{"kv_transfer_params":{"a":[1]}},"seed":5,"kv_transfer_params":1}}"#;
    check(deep, r#"{"sampling_params":{"extra_args":{},"seed":5}}"#);
    // The last one counts, and then stands in every place, so that it does not matter which one an engine reads.
    let twice = r#"{"vllm_xargs":{"kv_transfer_params":1},"b":1,"vllm_xargs":{"c":1}}"#;
    check(twice, r#"{"vllm_xargs":{"c":1},"b":1,"vllm_xargs":{"c":1}}"#);
    // What is no object is the engine's to refuse.
    for text in [r#"{"vllm_xargs":[1]}"#, r#"{"vllm_xargs":"kv_transfer_params"}"#, r#"{"sampling_params":null}"#] {
        check(text, text);
    }
}

#[test]
fn arguments_that_cannot_be_searched_are_refused() {
    let many: Vec<String> = (0..300).map(|n| format!("\"k{n}\":0")).collect();
    let text = format!(r#"{{"vllm_xargs":{{{},"kv_transfer_params":1}}}}"#, many.join(","));
    let refused = hidden::stripped(Body::parse(Bytes::from(text)).unwrap()).unwrap_err();
    assert!(matches!(refused, ProxyError::BadRequest { param: Some(param), .. } if param == "vllm_xargs"));
}
