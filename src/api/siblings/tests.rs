//! What siblings are asked for, and what becomes of their answers.

use serde_json::json;

use super::*;
use crate::api::legs::{Ids, alone_leg};
use crate::api::request::{Asked, Request};
use crate::settings::TokenBudget;

fn read(api: Api, body: &Value, most: u32) -> Result<Option<(Shape, Vec<Request>)>, ProxyError> {
    let Asked { request, several } = Asked::parse(api, Bytes::from(body.to_string()), TokenBudget::Exact, most)?;
    Ok(several.map(|(shape, siblings)| (shape, siblings.into_iter().map(|one| request.of_sibling(one)).collect())))
}

/// What each sibling asks an engine for.
fn asked(body: &Value) -> Vec<Value> {
    let ids = Ids { transfer_id: "tx-1".into(), request_id: "id".into() };
    let requests = read(Api::Completions, body, 16).unwrap().expect("several").1;
    requests.iter().map(|request| serde_json::from_slice(&alone_leg(request, &ids).to_vec()).unwrap()).collect()
}

#[test]
fn each_prompt_and_each_choice_is_one() {
    let legs = asked(&json!({"prompt": ["a", [1, 2], "c, \"d\""], "n": 2, "seed": 7, "max_tokens": 3}));
    let wanted = [("a", 7), ("a", 8), ("", 7), ("", 8), ("c, \"d\"", 7), ("c, \"d\"", 8)];
    for (leg, (prompt, seed)) in legs.iter().zip(wanted) {
        let prompt = if prompt.is_empty() { json!([1, 2]) } else { json!(prompt) };
        assert_eq!(*leg, json!({"prompt": prompt, "seed": seed, "max_tokens": 3, "request_id": "id"}));
    }
    assert_eq!(legs.len(), wanted.len());
    // One choice of each has the client's own seed, and what is no number is an engine's to refuse.
    assert!(asked(&json!({"prompt": ["a", "b"], "seed": 7})).iter().all(|leg| leg["seed"] == 7));
    assert!(asked(&json!({"prompt": "a", "n": 2, "seed": "x"})).iter().all(|leg| leg["seed"] == "x"));
    assert!(asked(&json!({"prompt": "a", "n": 2})).iter().all(|leg| leg.get("seed").is_none()));
}

#[test]
fn one_answer_is_no_sibling() {
    for body in [
        json!({"prompt": "a", "n": 1}),
        json!({"prompt": ["a"]}),
        json!({"prompt": [1, 2, 3], "n": null}),
        json!({"prompt": [[1, 2, 3]]}),
    ] {
        assert!(read(Api::Completions, &body, 16).unwrap().is_none(), "{body}");
    }
    let param = |api, body: Value, most| match read(api, &body, most) {
        Err(ProxyError::BadRequest { param, .. }) => param.unwrap(),
        other => panic!("{body}: {other:?}"),
    };
    assert_eq!(param(Api::Chat, json!({"n": 17}), 16), "n");
    assert_eq!(param(Api::Chat, json!({"n": 2}), 1), "n");
    assert_eq!(param(Api::Chat, json!({"n": 1e15}), 256), "n");
    assert_eq!(param(Api::Completions, json!({"prompt": vec!["a"; 17]}), 16), "prompt");
    assert_eq!(param(Api::Completions, json!({"prompt": ["a", "b"], "n": 9}), 16), "n");
    for n in [json!(0), json!(-1), json!("2"), json!(1.5), json!(true)] {
        assert_eq!(param(Api::Completions, json!({"prompt": "a", "n": n}), 16), "n");
    }
    // Other APIs know no siblings.
    assert_eq!(param(Api::Responses, json!({"n": 2}), 16), "n");
    assert_eq!(param(Api::Generate, json!({"sampling_params": {"n": 2}}), 16), "sampling_params.n");
}

fn answer(text: &str, usage: Value) -> Bytes {
    // The numbers' own texts must pass.
    let usage = usage.to_string();
    Bytes::from(format!(
        r#"{{"id":"cmpl-{text}","choices":[{{"index":0,"text":"{text}","logprobs":{{"v":[-1.50e-01]}}}}],"usage":{usage},"created":1}}"#
    ))
}

#[test]
fn whole_answers_are_numbered_and_summed() {
    let usage = |prompt: u64, made: u64| {
        json!({"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made,
            "prompt_tokens_details": {"cached_tokens": prompt / 2}, "completion_tokens_details": {"reasoning_tokens": 1}})
    };
    let answers = [("a", 10, 3), ("b", 10, 4), ("c", 20, 5), ("d", 20, 6)];
    let answers = answers.map(|(text, prompt, made)| answer(text, usage(prompt, made)));
    let one = merged(&answers, Shape { count: 4, choices: 2 }).unwrap();
    let text = std::str::from_utf8(&one).unwrap();
    assert_eq!(text.matches("-1.50e-01").count(), 4, "{text}");
    let one: Value = serde_json::from_slice(&one).unwrap();
    for (choice, (index, text)) in one["choices"].as_array().unwrap().iter().zip((0..).zip(["a", "b", "c", "d"])) {
        assert_eq!((&choice["index"], &choice["text"]), (&json!(index), &json!(text)));
    }
    let wanted = json!({"prompt_tokens": 30, "completion_tokens": 18, "total_tokens": 48,
        "prompt_tokens_details": {"cached_tokens": 15}, "completion_tokens_details": {"reasoning_tokens": 4}});
    assert_eq!((&one["id"], &one["usage"]), (&json!("cmpl-a"), &wanted));
    for bad in ["[]", "{}", r#"{"choices":[]}"#, r#"{"choices":[1]}"#, r#"{"choices":[{},{}]}"#] {
        assert_eq!(merged(&[Bytes::from(bad)], Shape { count: 1, choices: 1 }), Err(Unlike), "{bad}");
    }
}

#[test]
fn events_of_all_are_one_stream() {
    let mut streams = Streams::new(Shape { count: 2, choices: 2 });
    let mut event = |index, data: &str| match streams.event(index, &Bytes::from(data.to_owned())).unwrap() {
        Becomes::Data(data) => String::from_utf8(data.to_vec()).unwrap(),
        other => format!("{other:?}"),
    };
    let text = r#"{"id":"x-1","created":1,"choices":[{"index":0,"text":"a","p":-1.0e-2}]}"#;
    assert_eq!(event(1, text), text.replace("\"index\":0", "\"index\":1"));
    let other = r#"{"id":"x-2","created":2,"choices":[{"index":0,"text":"b"}]}"#;
    assert_eq!(event(0, other), r#"{"id":"x-1","created":1,"choices":[{"index":0,"text":"b"}]}"#);
    let usage = |made: u64| json!({"prompt_tokens": 9, "completion_tokens": made, "total_tokens": 9 + made});
    for (index, made) in [(1, 2), (0, 3)] {
        let data = json!({"id": format!("x-{index}"), "created": 5, "choices": [], "usage": usage(made)}).to_string();
        assert_eq!((event(index, &data), event(index, " [DONE] ")), ("Kept".into(), "Done".into()));
    }
    assert_eq!(event(0, r#"{"error":{"message":"no"}}"#), "Error");
    assert_eq!(streams.event(0, &Bytes::from_static(b"{}")), Err(Unlike));
    let totals: Value = serde_json::from_slice(&streams.totals().unwrap()).unwrap();
    assert_eq!(totals, json!({"id": "x-1", "created": 1, "choices": [], "usage": usage(5)}));
    assert!(streams.totals().is_none());
}
