//! Mistakes in the legs themselves.

use serde_json::{Value, json};

use super::{Legs, Mode, Pair, soon, text, until};

/// Spoils a leg and sends it; `prefill` says which.
async fn spoil(mode: Mode, release: &str, prefill: bool, change: impl FnOnce(&mut Legs)) -> Pair {
    let pair = Pair::start(mode, release).await;
    let mut legs = pair.legs(3);
    if !prefill && mode == Mode::Read {
        let answer = soon(pair.send_prefill(&legs)).await.unwrap();
        Pair::hand_over(&mut legs, &answer);
    }
    change(&mut legs);
    let request = if prefill {
        pair.post(&pair.prefill, &legs, &legs.prefill, legs.rank)
    } else {
        pair.post(&pair.decode, &legs, &legs.decode, legs.rank)
    };
    let engine = if prefill { &pair.prefill } else { &pair.decode };
    let before = engine.counters().legs;
    // Whether an answer comes, and which, depends on the mistake; what counts stands in the engine's books.
    let sent = tokio::spawn(async move {
        let _ = request.send().await;
    });
    until(engine, "asked", |counters| counters.legs == before + 1 || counters.died == 1).await;
    drop(sent);
    pair
}

fn params(legs: &mut Legs, prefill: bool) -> &mut serde_json::Map<String, Value> {
    let body = if prefill { &mut legs.prefill } else { &mut legs.decode };
    body["kv_transfer_params"].as_object_mut().unwrap()
}

#[tokio::test]
async fn missing_or_mistyped_params_end_the_process() {
    type Case = (Mode, &'static str, bool, &'static str, Option<Value>);
    let cases: [Case; 17] = [
        (Mode::Write, "0.32.0", true, "remote_engine_id", None),
        (Mode::Write, "0.32.0", true, "remote_block_ids", None),
        (Mode::Read, "0.30.0", true, "remote_engine_id", None),
        (Mode::Write, "0.23.0", false, "remote_engine_id", None),
        (Mode::Write, "0.19.1", true, "remote_port", None),
        (Mode::Write, "0.19.1", true, "remote_host", None),
        (Mode::Write, "0.19.1", false, "remote_notify_port", Some(json!("61005"))),
        (Mode::Write, "0.26.0", false, "transfer_id", None),
        (Mode::Write, "0.32.0", true, "remote_dp_size", Some(Value::Null)),
        (Mode::Write, "0.32.0", true, "remote_dp_size", Some(json!("1"))),
        (Mode::Write, "0.32.0", true, "remote_tp_size", Some(json!("1"))),
        (Mode::Read, "0.32.0", false, "remote_dp_size_local", Some(Value::Null)),
        (Mode::Read, "0.32.0", false, "remote_block_ids", Some(json!([1, 2, 3]))),
        (Mode::Read, "0.26.0", false, "remote_block_ids", Some(json!([[1, 2, 3]]))),
        (Mode::Read, "0.32.0", false, "remote_dp_rank", Some(json!("0"))),
        (Mode::Write, "0.32.0", false, "remote_dp_rank", Some(json!(null))),
        (Mode::Write, "0.33.0", false, "transfer_id", Some(json!(7))),
    ];
    for (mode, release, prefill, key, value) in cases {
        let pair = spoil(mode, release, prefill, |legs| {
            let params = params(legs, prefill);
            match value.clone() {
                Some(value) => params.insert(key.into(), value),
                None => params.shift_remove(key),
            };
        })
        .await;
        let engine = if prefill { &pair.prefill } else { &pair.decode };
        until(engine, "dead", |counters| counters.died == 1).await;
        assert!(engine.counters().died_of.is_some_and(|reason| reason.contains(key) || key == "remote_host"), "{key}");
        assert!(pair.client.get(format!("http://{}/health", engine.http_address())).send().await.is_err());
    }
}

#[tokio::test]
async fn the_peer_is_taken_from_where_the_release_looks() {
    let plain = |legs: &mut Legs| legs.id = "plain".into();
    let bare = |legs: &mut Legs| params(legs, false).shift_remove("remote_handshake_port");
    // Only the id counts in 0.23: without an address in it the process ends.
    let pair = spoil(Mode::Write, "0.23.0", false, plain).await;
    until(&pair.decode, "dead", |counters| counters.died == 1).await;
    // With a plain id 0.32 needs the params, and reads nothing without a handshake port.
    let pair = spoil(Mode::Read, "0.32.0", false, |legs| {
        plain(legs);
        bare(legs);
    })
    .await;
    until(&pair.decode, "dead", |counters| counters.died == 1).await;
    // Either alone is enough for 0.24 and newer.
    for release in ["0.24.0", "0.27.0", "0.32.0"] {
        for by_id in [true, false] {
            let pair = Pair::start(Mode::Write, release).await;
            let mut legs = pair.legs(3);
            if by_id {
                for body in [&mut legs.prefill, &mut legs.decode] {
                    let params = body["kv_transfer_params"].as_object_mut().unwrap();
                    for key in ["remote_host", "remote_handshake_port", "remote_notify_port"] {
                        params.shift_remove(key);
                    }
                }
            } else {
                legs.id = uuid::Uuid::new_v4().simple().to_string();
                legs.prefill["request_id"] = json!(legs.id);
                legs.decode["request_id"] = json!(legs.id);
            }
            assert_eq!(soon(pair.exchange(legs)).await, (200, text(3)), "{release} {by_id}");
            pair.clean().await;
        }
    }
}

/// Which leg, how it is spoilt, and what the engine says of it.
type Violation = (bool, fn(&mut Legs), &'static str);
const VIOLATIONS: [Violation; 21] = [
    (true, |legs| legs.prefill["stream"] = json!(true), "streamed prefill"),
    (true, |legs| legs.prefill["stream_options"] = Value::Null, "stream_options"),
    (true, |legs| legs.prefill["max_tokens"] = json!(2), "max_tokens is not 1"),
    (true, |legs| legs.prefill["min_tokens"] = json!(0), "min_tokens is not 1"),
    (true, |legs| legs.prefill["max_completion_tokens"] = json!(5), "max_completion_tokens"),
    (true, |legs| legs.prefill["n"] = json!(2), "n is 2"),
    (true, |legs| legs.prefill["best_of"] = json!(2), "best_of is 2"),
    (true, |legs| legs.prefill["prompt"] = json!(["a", "b"]), "2 prompts"),
    (true, |legs| legs.prefill["request_id"] = json!("other"), "differs from X-Request-Id"),
    (true, |legs| _ = params(legs, true).insert("do_remote_decode".into(), json!(false)), "without do_remote_decode"),
    (true, |legs| _ = params(legs, true).insert("remote_port".into(), json!("7301")), "a number is due"),
    (true, |legs| _ = params(legs, true).insert("evil".into(), json!(1)), "foreign transfer param evil"),
    (true, |legs| _ = params(legs, true).insert("transfer_id".into(), json!("tx-UPPER")), "is not tx-"),
    (true, |legs| _ = params(legs, true).insert("tp_size".into(), json!(2)), "differ"),
    (true, |legs| legs.rank = Some(0), "rank header on an engine with one rank"),
    (true, |legs| _ = legs.prefill.as_object_mut().unwrap().shift_remove("kv_transfer_params"), "unpaired"),
    (false, |legs| _ = legs.decode.as_object_mut().unwrap().shift_remove("kv_transfer_params"), "unpaired"),
    (
        false,
        |legs| _ = params(legs, false).insert("do_remote_prefill".into(), json!(false)),
        "without do_remote_prefill",
    ),
    (false, |legs| legs.rank = Some(0), "rank header on a decode leg without"),
    (false, |legs| _ = params(legs, false).insert("remote_dp_rank_override".into(), json!(true)), "override"),
    (false, |legs| _ = params(legs, false).insert("remote_host".into(), json!("10.9.8.7")), "different peers"),
];

#[tokio::test]
async fn violations_are_named() {
    for (prefill, change, expected) in VIOLATIONS {
        let pair = spoil(Mode::Write, "0.33.0", prefill, change).await;
        let engine = if prefill { &pair.prefill } else { &pair.decode };
        until(engine, expected, |counters| counters.violations > 0).await;
        let violations = engine.violations();
        assert!(violations.iter().any(|text| text.contains(expected)), "{expected}: {violations:?}");
    }
}

#[tokio::test]
async fn sizes_are_compared_with_the_peers_own() {
    for (mode, prefill_leg) in [(Mode::Write, true), (Mode::Write, false), (Mode::Read, false)] {
        let pair = Pair::with(mode, "0.33.0", |settings| settings.tp = 2).await;
        let mut legs = pair.legs(3);
        let both = |params: &mut Value| {
            params["tp_size"] = json!(1);
            params["remote_tp_size"] = json!(1);
        };
        both(if prefill_leg {
            &mut legs.prefill["kv_transfer_params"]
        } else {
            &mut legs.decode["kv_transfer_params"]
        });
        if mode == Mode::Read {
            let answer = soon(pair.send_prefill(&legs)).await.unwrap();
            Pair::hand_over(&mut legs, &answer);
            both(&mut legs.decode["kv_transfer_params"]);
            let answer = soon(pair.decode_request(&legs).send()).await.unwrap().text().await.unwrap();
            assert!(!answer.contains(&text(3)), "half of the KV cannot give the right text");
        } else {
            let decode = tokio::spawn(pair.decode_request(&legs).send());
            soon(pair.send_prefill(&legs)).await.unwrap();
            // Either way prefill is the one that sees it: decode's claim comes with its allocation.
            until(&pair.prefill, "noted", |counters| counters.violations > 0).await;
            let violations = pair.prefill.violations();
            assert!(violations.iter().all(|text| text.contains("tp")), "{violations:?}");
            decode.abort();
            continue;
        }
        assert!(pair.decode.violations().iter().any(|text| text.contains("tp size")), "{:?}", pair.decode.violations());
    }
}

#[tokio::test]
async fn ids_used_twice_and_foreign_headers() {
    let pair = Pair::start(Mode::Read, "0.32.0").await;
    let legs = pair.legs(3);
    soon(pair.send_prefill(&legs)).await.unwrap();
    let request = pair
        .post(&pair.prefill, &legs, &legs.prefill, None)
        .header("X-Request-Id", "second")
        .header("x-prefiller-host-port", "10.0.0.1:80");
    soon(request.send()).await.unwrap();
    let violations = pair.prefill.violations().join("\n");
    for expected in ["2 X-Request-Id", "request id", "used twice", "transfer_id", "foreign header"] {
        assert!(violations.contains(expected), "{expected}: {violations}");
    }
}

#[tokio::test]
async fn validation_answers_as_vllm_does() {
    let pair = Pair::start(Mode::Write, "0.32.0").await;
    type Case = (fn(&mut Value), &'static str);
    let cases: [Case; 7] = [
        (|body| body["max_tokens"] = json!(0), "at least 1"),
        (|body| body["min_tokens"] = json!(50), "min_tokens"),
        (|body| body["stream_options"] = json!({}), "Stream options"),
        (|body| _ = body.as_object_mut().unwrap().shift_remove("prompt"), "prompt"),
        (|body| body["prompt"] = json!([]), "empty"),
        (|body| body["prompt"] = json!("long ").as_str().unwrap().repeat(2_000_000).into(), "maximum context"),
        (|body| *body = json!([1]), "decode error"),
    ];
    for (change, expected) in cases {
        let legs = pair.legs(3);
        let mut body = legs.decode.clone();
        change(&mut body);
        let answer = soon(pair.post(&pair.decode, &legs, &body, None).send()).await.unwrap();
        assert_eq!(answer.status(), 400);
        let body: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        assert!(body["error"]["message"].as_str().unwrap().contains(expected), "{body}");
    }
    let legs = pair.legs(3);
    let answer = soon(pair.post(&pair.decode, &legs, &legs.decode, Some(1)).send()).await.unwrap();
    assert_eq!(answer.status(), 400);
    assert_eq!(pair.decode.counters().parked, 0);
}
