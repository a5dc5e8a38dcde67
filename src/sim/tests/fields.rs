//! Fields that decide the prompt, that decode must not get, or that differ by API.

use serde_json::{Value, json};

use super::{Engine, Legs, Mode, PROMPT, Pair, soon, text, until};

/// How a leg is spoilt, and what the engine says of it.
type Spoilt = (fn(&mut Legs), &'static str);
const BOTH: [Mode; 2] = [Mode::Read, Mode::Write];

fn said(engine: &Engine, what: &str) -> bool {
    engine.violations().iter().any(|text| text.contains(what))
}

/// Sends both legs to a path and gives the answers of prefill and of decode.
async fn both(pair: &Pair, path: &str, mut legs: Legs) -> [(u16, Value); 2] {
    let read = async |sent: reqwest::RequestBuilder| {
        let answer = soon(sent.send()).await.unwrap();
        let status = answer.status().as_u16();
        (status, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap())
    };
    if pair.mode == Mode::Read {
        let prefill = read(pair.post_to(path, &pair.prefill, &legs, &legs.prefill, None)).await;
        Pair::hand_over(&mut legs, &prefill.1);
        return [prefill, read(pair.post_to(path, &pair.decode, &legs, &legs.decode, None)).await];
    }
    let prefill = read(pair.post_to(path, &pair.prefill, &legs, &legs.prefill, None));
    let decode = read(pair.post_to(path, &pair.decode, &legs, &legs.decode, None));
    tokio::join!(prefill, decode).into()
}

/// The legs as a correct proxy words them for another API.
fn worded(mut legs: Legs, prompt: &str, limit: &str, more: Value) -> Legs {
    let id = format!("resp_{}", &legs.id[legs.id.len() - 32..]);
    for body in [&mut legs.prefill, &mut legs.decode] {
        let fields = body.as_object_mut().unwrap();
        let tokens = fields.shift_remove("max_tokens").unwrap();
        fields.shift_remove("prompt");
        fields.shift_remove("min_tokens");
        body[limit] = tokens;
        body[prompt] = if prompt == "input" { json!(PROMPT) } else { json!([{"role": "user", "content": PROMPT}]) };
        if prompt == "input" {
            body["request_id"] = json!(id);
        }
    }
    for (key, value) in more.as_object().unwrap() {
        legs.prefill[key] = value.clone();
    }
    legs
}

fn responses(legs: Legs) -> Legs {
    worded(legs, "input", "max_output_tokens", json!({"ignore_eos": true, "stop_token_ids": [], "store": false}))
}

fn messages(legs: Legs) -> Legs {
    worded(legs, "messages", "max_tokens", json!({}))
}

#[tokio::test]
async fn prompt_logprobs_on_decode_do_what_they_do_to_real_engines() {
    for (mode, release) in [(Mode::Write, "0.31.0"), (Mode::Write, "0.32.0")] {
        let pair = Pair::start(mode, release).await;
        let mut legs = pair.legs(3);
        legs.decode["prompt_logprobs"] = json!(0);
        let [_, decode] = both(&pair, "/v1/completions", legs).await;
        assert_eq!((decode.0, &decode.1["choices"][0]["text"]), (200, &json!(text(3))), "{release}");
        until(&pair.prefill, "deaf", |counters| counters.deaf == 1).await;
        assert!(said(&pair.decode, "prompt's side"));
    }
    for (mode, release) in [(Mode::Read, "0.31.0"), (Mode::Read, "0.33.0"), (Mode::Write, "0.33.0")] {
        let pair = Pair::start(mode, release).await;
        let mut legs = pair.legs(3);
        legs.decode["echo"] = json!(true);
        legs.decode["logprobs"] = json!(1);
        let [_, decode] = both(&pair, "/v1/completions", legs).await;
        assert_eq!((decode.0, &decode.1["choices"][0]["text"]), (200, &json!(text(3))), "{release}");
        until(&pair.prefill, "released", |counters| counters.held == 0).await;
        assert_eq!(pair.prefill.counters().deaf, 0);
        assert!(said(&pair.decode, "prompt's side"));
    }
    for mode in BOTH {
        let pair = Pair::start(mode, "0.30.0").await;
        let mut legs = pair.legs(3);
        legs.decode["prompt_logprobs"] = json!(false);
        let [_, decode] = both(&pair, "/v1/completions", legs).await;
        assert_ne!(decode.1["choices"][0]["text"], text(3), "it has no logits of what it loaded");
        assert!(said(&pair.decode, "prompt's side"));
    }
}

#[tokio::test]
async fn prefill_alone_answers_for_its_prompt() {
    let body = |more: Value| {
        let mut body = json!({"model": "sim-model", "prompt": PROMPT, "max_tokens": 1});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    for (mode, release) in
        [(Mode::Read, "0.23.0"), (Mode::Write, "0.23.0"), (Mode::Read, "0.32.0"), (Mode::Write, "0.33.0")]
    {
        let pair = Pair::start(mode, release).await;
        for more in [json!({"prompt_logprobs": 0}), json!({"echo": true, "logprobs": 1, "max_tokens": 0})] {
            let legs = pair.legs(1);
            let answer = soon(pair.post(&pair.prefill, &legs, &body(more.clone()), None).send()).await.unwrap();
            assert_eq!(answer.status(), 200, "{more}");
            let answer: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
            let choice = &answer["choices"][0];
            assert!(choice["prompt_logprobs"].as_array().unwrap().len() > 16, "{answer}");
            assert_eq!(choice["text"], if more["max_tokens"] == 0 { String::new() } else { text(1) });
            assert_eq!(answer["kv_transfer_params"], Value::Null);
        }
        pair.clean().await;
    }
    // Not with more tokens, not without asking for it, not of older ones.
    for (release, more) in [
        ("0.32.0", json!({"prompt_logprobs": 0, "max_tokens": 2})),
        ("0.32.0", json!({})),
        ("0.22.0", json!({"prompt_logprobs": 0})),
    ] {
        let pair = Pair::start(Mode::Read, release).await;
        soon(pair.post(&pair.prefill, &pair.legs(1), &body(more), None).send()).await.unwrap();
        assert!(said(&pair.prefill, "unpaired"), "{release}");
    }
}

#[tokio::test]
async fn legs_that_render_different_prompts_are_a_violation() {
    let changes: [fn(&mut Legs); 4] = [
        |legs| legs.decode["add_special_tokens"] = json!(false),
        |legs| legs.prefill["truncate_prompt_tokens"] = json!(5),
        |legs| legs.prefill["suffix"] = json!("x".repeat(200)),
        |legs| legs.decode["prompt"] = json!(PROMPT.replace("quick", "quiet")),
    ];
    for mode in BOTH {
        for change in changes {
            let pair = Pair::start(mode, "0.32.0").await;
            let mut legs = pair.legs(3);
            change(&mut legs);
            let sent = legs.decode.to_string();
            let both = tokio::spawn(async move {
                both(&pair, "/v1/completions", legs).await;
                pair
            });
            let pair = soon(both).await.unwrap();
            let seen = [&pair.prefill, &pair.decode].map(|engine| said(engine, "different prompts"));
            assert!(seen.contains(&true), "{mode:?} {sent}");
        }
    }
}

#[tokio::test]
async fn cuts_by_the_legs_own_limit_differ_until_0_33() {
    for (release, limit, same) in [
        ("0.31.0", true, false),
        ("0.32.0", true, true),
        ("0.33.0", true, true),
        ("0.32.0", false, false),
        ("0.33.0", false, true),
    ] {
        let pair = Pair::start(Mode::Read, release).await;
        let mut legs = worded(pair.legs(3), "messages", "max_tokens", json!({"min_tokens": 1}));
        for body in [&mut legs.prefill, &mut legs.decode] {
            body["truncate_prompt_tokens"] = json!(-1);
        }
        if !limit {
            legs.decode.as_object_mut().unwrap().shift_remove("max_tokens");
        }
        both(&pair, "/v1/chat/completions", legs).await;
        assert_eq!(!said(&pair.prefill, "different prompts"), same, "{release} {limit}");
    }
}

#[tokio::test]
async fn responses_take_their_id_from_the_body_and_have_no_min_tokens() {
    for mode in BOTH {
        let pair = Pair::start(mode, "0.33.0").await;
        let legs = responses(pair.legs(3));
        let id = legs.prefill["request_id"].clone();
        let [_, decode] = both(&pair, "/v1/responses", legs).await;
        assert_eq!((decode.0, &decode.1["id"]), (200, &id));
        assert_eq!(decode.1["output"][0]["content"][0]["text"], text(3));
        pair.clean().await;
    }
    let changes: [Spoilt; 7] = [
        (|legs| legs.prefill["ignore_eos"] = json!(false), "stop token"),
        (|legs| legs.prefill["stop_token_ids"] = json!([7]), "stop token"),
        (|legs| _ = legs.prefill.as_object_mut().unwrap().shift_remove("store"), "stored"),
        (|legs| legs.prefill["request_id"] = json!(legs.id), "is not resp_"),
        (|legs| legs.prefill["previous_response_id"] = json!("r"), "previous_response_id"),
        (|legs| legs.prefill["conversation"] = json!("c"), "conversation"),
        (|legs| legs.prefill["tools"] = json!([{"type": "mcp"}]), "inside the server"),
    ];
    for (change, expected) in changes {
        let pair = Pair::start(Mode::Read, "0.33.0").await;
        let mut legs = responses(pair.legs(3));
        change(&mut legs);
        soon(pair.post_to("/v1/responses", &pair.prefill, &legs, &legs.prefill, None).send()).await.unwrap();
        assert!(said(&pair.prefill, expected), "{expected}: {:?}", pair.prefill.violations());
    }
    // The address of decode is not found in an id with something behind it.
    let pair = Pair::start(Mode::Write, "0.33.0").await;
    let mut legs = responses(pair.legs(3));
    legs.prefill["request_id"] = json!(legs.id);
    for key in ["remote_host", "remote_handshake_port", "remote_notify_port"] {
        legs.prefill["kv_transfer_params"].as_object_mut().unwrap().shift_remove(key);
    }
    let request = pair.post_to("/v1/responses", &pair.prefill, &legs, &legs.prefill, None);
    let _ = soon(request.send()).await;
    until(&pair.prefill, "dead", |counters| counters.died == 1).await;
}

#[tokio::test]
async fn older_releases_do_not_know_params_or_ranks_of_responses() {
    let pair = Pair::start(Mode::Read, "0.23.0").await;
    for (path, legs) in [("/v1/responses", responses(pair.legs(3))), ("/v1/messages", messages(pair.legs(3)))] {
        let answer = soon(pair.post_to(path, &pair.prefill, &legs, &legs.prefill, None).send()).await.unwrap();
        let answer: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        assert_eq!(answer["kv_transfer_params"], Value::Null);
    }
    assert_eq!(pair.prefill.counters().plain, 2);
    for (release, rank) in [("0.32.0", 0), ("0.33.0", 3)] {
        let pair = Pair::with(Mode::Read, release, |settings| settings.dp = 4).await;
        let legs = responses(pair.legs(3));
        let sent = pair.post_to("/v1/responses", &pair.prefill, &legs, &legs.prefill, Some(3)).send();
        let answer: Value = serde_json::from_slice(&soon(sent).await.unwrap().bytes().await.unwrap()).unwrap();
        assert_eq!(answer["kv_transfer_params"]["remote_dp_rank"], rank, "{release}");
    }
}

#[tokio::test]
async fn one_tool_forced_on_prefill_fails_after_the_work() {
    for (release, status) in [("0.26.0", 500), ("0.32.0", 400)] {
        let pair = Pair::start(Mode::Read, release).await;
        let mut legs = messages(pair.legs(3));
        legs.prefill["tool_choice"] = json!({"type": "tool", "name": "f"});
        let sent = pair.post_to("/v1/messages", &pair.prefill, &legs, &legs.prefill, None).send();
        assert_eq!(soon(sent).await.unwrap().status(), status);
        assert_eq!(pair.prefill.counters().held, 1);
        assert!(said(&pair.prefill, "one tool forced"));
    }
    // Any tool is the same prompt as that one.
    let pair = Pair::start(Mode::Read, "0.32.0").await;
    let mut legs = messages(pair.legs(3));
    legs.prefill["tool_choice"] = json!({"type": "any"});
    legs.decode["tool_choice"] = json!({"type": "tool", "name": "f"});
    let [_, decode] = both(&pair, "/v1/messages", legs).await;
    assert_eq!((decode.0, &decode.1["stop_reason"]), (200, &json!("tool_use")));
    let prompt = json!({"messages": [{"role": "user", "content": PROMPT}], "tool_choice": {"type": "any"}});
    let words = crate::sim::rendered_text("/v1/messages", &prompt, 3).unwrap();
    let block = &decode.1["content"][0];
    assert_eq!((&block["name"], &block["input"]), (&json!("f"), &json!({"words": words})), "{block}");
    pair.clean().await;
}

#[tokio::test]
async fn messages_are_read_and_refused_as_engines_do() {
    for (release, kind) in [("0.32.0", "BadRequestError"), ("0.33.0", "invalid_request_error")] {
        let pair = Pair::start(Mode::Read, release).await;
        let ask = async |path: &str, body: Value| {
            let mut legs = pair.legs(3);
            legs.decode = body;
            let answer = soon(pair.post_to(path, &pair.decode, &legs, &legs.decode, None).send()).await.unwrap();
            let status = answer.status().as_u16();
            (status, serde_json::from_slice::<Value>(&answer.bytes().await.unwrap()).unwrap())
        };
        let user = json!([{"role": "user", "content": "some words"}]);
        let with = |more: Value| {
            let mut body = json!({"messages": user, "max_tokens": 3});
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            body
        };
        // What is no valid body is told as OpenAI tells it.
        for body in [
            json!({"messages": user}),
            with(json!({"max_tokens": 0})),
            with(json!({"messages": "text"})),
            with(json!({"thinking": {"type": "enabled", "budget_tokens": 3}})),
        ] {
            let (status, told) = ask("/v1/messages", body).await;
            assert_eq!((status, &told["error"]["code"], &told["type"]), (400, &json!(400), &Value::Null), "{told}");
        }
        for more in [json!({"temperature": -1}), json!({"max_tokens": 100_000_000})] {
            let (status, told) = ask("/v1/messages", with(more)).await;
            assert_eq!((status, &told["type"], &told["error"]["type"]), (400, &json!("error"), &json!(kind)), "{told}");
        }
        // What is billed is not rendered, and to count is to render.
        let bill =
            |bill: &str| json!({"system": [{"type": "text", "text": format!("x-anthropic-billing-header: {bill}")}]});
        let count = "/v1/messages/count_tokens";
        let (_, short) = ask(count, with(bill("a"))).await;
        assert_eq!(short, ask(count, with(bill("a longer one"))).await.1);
        let (_, long) = ask(count, with(json!({"system": "Be brief, and kind to everybody."}))).await;
        assert!(short["input_tokens"].as_u64() < long["input_tokens"].as_u64(), "{short} {long}");
        assert_eq!(pair.decode.counters().decode_legs, 0);
    }
}

#[tokio::test]
async fn beams_and_hidden_params_are_violations() {
    let pair = Pair::start(Mode::Read, "0.33.0").await;
    let mut legs = pair.legs(3);
    legs.prefill["use_beam_search"] = json!(true);
    soon(pair.send_prefill(&legs)).await.unwrap();
    assert!(said(&pair.prefill, "beams") && pair.prefill.counters().plain == 1);
    let hiding = [
        (json!({"vllm_xargs": {"kv_transfer_params": "{}"}}), "hidden vllm_xargs"),
        (json!({"extra_args": {"kv_transfer_params": {}}}), "hidden extra_args"),
        (json!({"sampling_params": {"extra_args": {"kv_transfer_params": {}}}}), "hidden sampling_params.extra_args"),
        (json!({"kv_transfer_params": {}}), "hidden kv_transfer_params"),
    ];
    for (more, expected) in hiding {
        for path in ["/v1/completions", "/tokenize", "/v1/messages/count_tokens"] {
            let pair = Pair::start(Mode::Read, "0.33.0").await;
            let mut legs = pair.legs(3);
            for (key, value) in more.as_object().unwrap() {
                if path != "/v1/completions" || key != "kv_transfer_params" {
                    legs.prefill[key] = value.clone();
                }
            }
            soon(pair.post_to(path, &pair.prefill, &legs, &legs.prefill, None).send()).await.unwrap();
            let own = path == "/v1/completions" && expected == "hidden kv_transfer_params";
            assert_eq!(said(&pair.prefill, expected), !own, "{path} {expected}");
        }
    }
}
