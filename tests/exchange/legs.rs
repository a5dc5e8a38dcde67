//! What the engines receive: headers and bodies of both legs, case by case.

use futures::future::join_all;
use moriio_proxy::api::Api;
use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Engine, Mode, ReceivedLeg, Role};
use serde_json::{Value, json};

use crate::support::client::Ask;
use crate::support::{Plan, client, completion, post};

/// The last leg of an engine.
fn last(engine: &Engine) -> ReceivedLeg {
    engine.legs().pop().expect("a leg")
}

fn without(mut value: Value, keys: &[&str]) -> Value {
    let map = value.as_object_mut().unwrap();
    for key in keys {
        map.shift_remove(*key);
    }
    value
}

fn is_hex(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn transfer_id(leg: &ReceivedLeg) -> String {
    let id = leg.transfer_params["transfer_id"].as_str().unwrap().to_owned();
    assert!(is_hex(id.strip_prefix("tx-").unwrap()), "{id}");
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn case_24_write_bodies() {
    let world = Plan::new(Mode::Write).start().await;
    let sent = json!({"model": "sim-model", "prompt": "some words", "max_tokens": 100, "stream": true,
        "stream_options": {"include_usage": true}, "temperature": 0.70, "unknown": [1, {"a": null}]});
    let answer = post(&world.proxy, "/v1/completions", &sent).await;
    assert_eq!(answer.status, 200);
    let (p, d) = (last(&world.prefill[0]), last(&world.decode[0]));
    let set = ["kv_transfer_params", "request_id"];
    let mut expected = without(sent.clone(), &["stream_options"]);
    expected["stream"] = json!(false);
    expected["max_tokens"] = json!(1);
    expected["min_tokens"] = json!(1);
    assert_eq!(without(p.json(), &set), expected);
    assert_eq!(without(d.json(), &set), sent);
    let transfer = transfer_id(&p);
    let params = |engine: &Engine, prefill: bool| {
        let (host, port, notify) = ("127.0.0.1", engine.handshake_port(), engine.notify_port());
        let (name, blocks) = match prefill {
            true => (Value::Null, Value::Null),
            false => (json!(format!("{host}:{port}")), json!([])),
        };
        json!({"do_remote_decode": prefill, "do_remote_prefill": !prefill, "transfer_id": transfer,
            "remote_engine_id": name, "remote_block_ids": blocks, "remote_host": host, "remote_port": port,
            "remote_handshake_port": port, "remote_notify_port": notify, "remote_dp_size": 1, "remote_tp_size": 1,
            "tp_size": 1})
    };
    assert_eq!(p.transfer_params, params(&world.decode[0], true));
    assert_eq!(d.transfer_params, params(&world.prefill[0], false));
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_30_dialect_a_gets_numbers() {
    let plan = Plan::new(Mode::Write);
    let world = Plan { release: "0.18.1", ..plan };
    let world = world.start().await;
    Ask::new(Api::Completions, 1, 5, false).check(&world.proxy).await;
    for leg in [last(&world.prefill[0]), last(&world.decode[0])] {
        for key in ["remote_port", "remote_handshake_port", "remote_notify_port", "remote_dp_size", "tp_size"] {
            assert!(leg.transfer_params[key].is_u64(), "{key}: {}", leg.transfer_params);
        }
    }
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_25_ids_embed_both_addresses_and_are_never_used_twice() {
    join_all([Mode::Read, Mode::Write].map(|mode| async move {
        let plan = Plan::new(mode);
        let world = Plan { release: "0.23.0", ..plan };
        let world = world.start().await;
        let mut seen = std::collections::HashSet::new();
        for seed in 0..5 {
            Ask::new(Api::Completions, seed, 3, seed % 2 == 0).check(&world.proxy).await;
            let (p, d) = (last(&world.prefill[0]), last(&world.decode[0]));
            let address =
                |e: &Engine| format!("host:127.0.0.1,handshake:{},notify:{}", e.handshake_port(), e.notify_port());
            let (prefill, decode) = (address(&world.prefill[0]), address(&world.decode[0]));
            let id = p.header("x-request-id").unwrap().to_owned();
            let begin = format!("___prefill_addr_{prefill}___decode_addr_{decode}_");
            assert!(is_hex(id.strip_prefix(&begin).unwrap()), "{id}");
            assert_eq!(d.header("x-request-id"), Some(id.as_str()));
            assert_eq!([&p.json()["request_id"], &d.json()["request_id"]], [&json!(id); 2]);
            assert_eq!(transfer_id(&p), transfer_id(&d));
            assert!(seen.insert(id) && seen.insert(transfer_id(&p)));
        }
        world.settle().await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn newer_engines_get_an_id_without_addresses() {
    let world = Plan::new(Mode::Write).start().await;
    Ask::new(Api::Chat, 1, 3, true).check(&world.proxy).await;
    for leg in [last(&world.prefill[0]), last(&world.decode[0])] {
        assert!(is_hex(leg.header("x-request-id").unwrap()), "{:?}", leg.headers);
    }
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_31_legs_go_to_the_path_that_was_asked_for() {
    let plan = Plan::new(Mode::Write);
    let world = Plan { release: "0.24.0", ..plan };
    let world = world.start().await;
    for api in Api::ALL {
        Ask::new(api, 3, 3, false).check(&world.proxy).await;
        assert_eq!(last(&world.prefill[0]).path, api.path());
        assert_eq!(last(&world.decode[0]).path, api.path());
    }
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_32_and_33_ranks() {
    join_all([Mode::Write, Mode::Read].map(|mode| async move {
        let mut plan = Plan::new(mode);
        plan.adjust = |settings| settings.dp = if settings.role == Role::Prefill { 4 } else { 2 };
        let world = plan.start().await;
        for seed in 0..8 {
            Ask::new(Api::Completions, seed, 3, true).check(&world.proxy).await;
            let (p, d) = (last(&world.prefill[0]), last(&world.decode[0]));
            let rank = seed % 4;
            assert_eq!(p.header("x-data-parallel-rank"), Some(rank.to_string().as_str()));
            assert_eq!(d.header("x-data-parallel-rank"), None);
            assert_eq!(p.transfer_params["remote_dp_size"], 2);
            assert_eq!(p.transfer_params.get("remote_dp_rank"), None);
            assert_eq!(d.transfer_params["remote_dp_rank"], rank);
            assert_eq!(d.transfer_params["remote_dp_size"], 4);
            if mode == Mode::Write {
                assert_eq!(d.transfer_params.get("remote_dp_rank_override"), None);
            }
        }
        world.settle().await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_35_slots_go_round() {
    let mut plan = Plan::new(Mode::Write).engines(2, 1);
    plan.adjust = |settings| {
        if settings.role == Role::Prefill {
            settings.dp = 2;
        }
    };
    let world = plan.start().await;
    let order = || {
        let legs = world.prefill.iter().enumerate().flat_map(|(index, engine)| {
            let rank = |leg: &ReceivedLeg| leg.header("x-data-parallel-rank").unwrap().parse::<u32>().unwrap();
            let legs: Vec<_> = engine.legs().iter().map(|leg| (index, rank(leg))).collect();
            legs
        });
        legs.collect::<Vec<_>>()
    };
    for (seed, slot) in [(0, 0), (1, 0), (0, 1), (1, 1)].into_iter().enumerate() {
        let before = order();
        Ask::new(Api::Completions, seed, 3, false).check(&world.proxy).await;
        let mut after = order();
        for old in before {
            let at = after.iter().position(|slot| *slot == old).unwrap();
            after.remove(at);
        }
        assert_eq!(after.len(), 1);
        // Which of the two registered first is not fixed, but from engine to engine the turn goes before the ranks.
        assert_eq!(after[0].1, slot.1, "turn {seed}");
    }
    let mut all = order();
    all.sort_unstable();
    assert_eq!(all, [(0, 0), (0, 1), (1, 0), (1, 1)]);
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_38_what_a_client_may_not_choose() {
    join_all([Mode::Read, Mode::Write].map(|mode| async move {
        let world = Plan::new(mode).start().await;
        let mut body = completion("some words", 4, false);
        body["kv_transfer_params"] = json!({"remote_host": "10.9.9.9", "transfer_id": "mine", "evil": 1});
        body["request_id"] = json!("mine-body");
        let sent = client()
            .post(world.proxy.url("/v1/completions"))
            .header("x-request-id", "mine-header")
            .header("x-data-parallel-rank", "7")
            .header("x-prefiller-host-port", "10.9.9.9:1")
            .header("x-encoder-hosts-ports", "10.9.9.9:1")
            .header("x-data-parallel-host-port", "10.9.9.9:1")
            .header("x-kv-cache-source-host-port", "10.9.9.9:1")
            .header("authorization", "Bearer of-the-client")
            .header("x-trace", "kept")
            .body(body.to_string());
        let response = sent.send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["x-request-id"], "mine-header");
        let text = response.text().await.unwrap();
        assert!(!text.contains("mine"), "{text}");
        for leg in [last(&world.prefill[0]), last(&world.decode[0])] {
            let all = format!("{:?} {}", leg.headers, leg.body);
            for foreign in ["mine", "10.9.9.9", "evil", "x-data-parallel-rank", "host-port", "hosts-ports"] {
                assert!(!all.contains(foreign), "{foreign} in {all}");
            }
            assert_eq!(leg.header("authorization"), Some("Bearer of-the-client"));
            assert_eq!(leg.header("x-trace"), Some("kept"));
            assert_eq!(leg.header("content-type"), Some("application/json"));
            assert_eq!(leg.headers.iter().filter(|(name, _)| name == "x-request-id").count(), 1);
        }
        world.settle().await;
    }))
    .await;
}

/// What the client sends, what prefill gets and what decode gets, by budget.
type Limits = (Value, Value, Value, Value);

#[tokio::test(flavor = "multi_thread")]
async fn case_39_and_41_token_limits() {
    let rows: [Limits; 7] = [
        (json!({"max_tokens": 1}), json!({"max_tokens": 1}), json!({"max_tokens": 1}), json!({"max_tokens": 1})),
        (json!({"max_tokens": 10}), json!({"max_tokens": 1}), json!({"max_tokens": 9}), json!({"max_tokens": 10})),
        (
            json!({"max_completion_tokens": 50}),
            json!({"max_tokens": 1, "max_completion_tokens": 1}),
            json!({"max_completion_tokens": 49}),
            json!({"max_completion_tokens": 50}),
        ),
        (
            json!({"max_tokens": 30, "min_tokens": 20}),
            json!({"max_tokens": 1}),
            json!({"max_tokens": 29, "min_tokens": 20}),
            json!({"max_tokens": 30, "min_tokens": 20}),
        ),
        (
            json!({"max_tokens": 20, "min_tokens": 20}),
            json!({"max_tokens": 1}),
            json!({"max_tokens": 19, "min_tokens": 19}),
            json!({"max_tokens": 20, "min_tokens": 20}),
        ),
        (json!({}), json!({"max_tokens": 1}), json!({}), json!({})),
        (
            json!({"max_tokens": null}),
            json!({"max_tokens": 1}),
            json!({"max_tokens": null}),
            json!({"max_tokens": null}),
        ),
    ];
    for budget in ["minus-one", "exact"] {
        for mode in [Mode::Read, Mode::Write] {
            let mut plan = Plan::new(mode);
            plan.options = vec![(Key::DecodeTokenBudget, budget)];
            let world = plan.start().await;
            for (client, prefill, minus_one, exact) in &rows {
                let mut body = json!({"model": "sim-model", "messages": [{"role": "user", "content": "hello there"}]});
                body.as_object_mut().unwrap().extend(client.as_object().unwrap().clone());
                let answer = post(&world.proxy, "/v1/chat/completions", &body).await;
                assert_eq!(answer.status, 200, "{}", answer.body);
                let limits = |leg: &ReceivedLeg| {
                    let mut limits = leg.json();
                    let of = ["max_tokens", "max_completion_tokens", "min_tokens"];
                    limits.as_object_mut().unwrap().retain(|key, _| of.contains(&key.as_str()));
                    limits
                };
                let mut prefill = prefill.clone();
                prefill["min_tokens"] = json!(1);
                assert_eq!(limits(&last(&world.prefill[0])), prefill);
                let decode = if budget == "exact" { exact } else { minus_one };
                assert_eq!(&limits(&last(&world.decode[0])), decode, "{budget}");
            }
            world.settle().await;
        }
    }
}
