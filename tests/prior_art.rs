//! One test for each fault that was measured in other proxies for split engines and that could come back here unseen.
//!
//! | Fault of others | Held down by |
//! |---|---|
//! | Listener dies of one bad datagram | `hostile_zmq`, `fuzz::readers` |
//! | Stale twin after a restart with other ports | `registry` (unit), `model` |
//! | Chat posted to the completions path | `every_request_keeps_its_own_path` |
//! | Instance and rank from one counter alias | `every_slot_gets_its_share` |
//! | The first instance's rank count used for all | `ranks_lie_within_each_engines_own_range` |
//! | Turn read again after an await | `simultaneous_requests_take_different_pairs` |
//! | 200 before decode's status is known; error inside a stream | `a_decode_error_is_a_status` |
//! | WRITE prefill that nobody awaits | `a_failed_write_prefill_is_told` |
//! | Limits: absent, null, 0, 1 | `limits_that_broke_others` |
//! | `max_completion_tokens` alone | `max_completion_tokens_alone_is_enough` |
//! | `Bearer None` | `no_credential_is_made_up` |
//! | Ids added to the client's | `an_id_is_set_and_not_added` |
//! | Connections not kept, or two an engine | `connections_are_kept` |
//! | Finished streams that hang | `fuzz::streams` |
//! | Phantom load after retries and aborts | `load_is_exact_after_aborts_and_retries`, `model` |
//! | Decode's 429 repeats prefill | `a_decode_429_repeats_no_prefill` |
//! | A retry keeps the transfer id | `a_retry_has_ids_of_its_own` |
//! | Idle prefill unnoticed | `an_idle_prefill_shows` |
//! | `user@host` registered | `fuzz::readers` |
//! | Typed bodies lose fields | `fuzz::bodies` |

mod ids;
mod turns;

use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Fault, FaultKind, Mode};
use serde_json::{Value, json};

use crate::support::{Plan, World, completion, generate, post, until};

async fn chat(world: &World, more: Value) -> crate::support::Answer {
    let mut body =
        json!({"model": "sim-model", "temperature": 0, "messages": [{"role": "user", "content": "a question"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    post(&world.proxy, "/v1/chat/completions", &body).await
}

fn refusal(status: u16) -> FaultKind {
    FaultKind::Status { status, body: r#"{"error":{"message":"no","code":"fault"}}"#.into() }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_keeps_its_own_path() {
    for release in ["0.19.0", "0.32.0"] {
        // READ of the old release never frees its blocks.
        let world = Plan { release, ..Plan::new(Mode::Write) }.start().await;
        assert_eq!(chat(&world, json!({"max_tokens": 3})).await.status, 200, "{release}");
        // The old release never answers a prompt of one token.
        generate(&world.proxy, "a text of a few tokens", 3, false).await;
        for engine in world.engines() {
            let paths: Vec<String> = engine.legs().into_iter().map(|leg| leg.path).collect();
            assert_eq!(paths, ["/v1/chat/completions", "/v1/completions"], "{release}");
        }
        world.unharmed();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn max_completion_tokens_alone_is_enough() {
    for mode in [Mode::Read, Mode::Write] {
        let world = Plan::new(mode).start().await;
        let answer = chat(&world, json!({"max_completion_tokens": 6})).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(answer.json()["usage"]["completion_tokens"], 6);
        let (first, second) = (world.prefill[0].legs()[0].json(), world.decode[0].legs()[0].json());
        assert_eq!((&first["max_completion_tokens"], &first["max_tokens"]), (&json!(1), &json!(1)));
        assert_eq!((&second["max_completion_tokens"], second.get("max_tokens")), (&json!(6), None));
        world.settle().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_that_broke_others() {
    let world = Plan::new(Mode::Read).with(Key::DecodeTokenBudget, "minus-one").start().await;
    let of_decode = |key: &str| world.decode[0].legs().last().unwrap().json()[key].clone();
    for (limits, sent) in [
        (json!({"max_tokens": 1}), json!(1)),
        (json!({"max_tokens": 2}), json!(1)),
        (json!({"max_tokens": 9, "min_tokens": 9}), json!(8)),
        (json!({"max_tokens": null}), Value::Null),
        (json!({}), Value::Null),
    ] {
        let answer = chat(&world, limits.clone()).await;
        assert_eq!(answer.status, 200, "{limits}: {}", answer.body);
        assert_eq!(of_decode("max_tokens"), sent, "{limits}");
    }
    let before = world.total(|c| c.legs);
    for limit in [json!(0), json!(-1), json!("5"), json!(1.5), json!(true), json!([1])] {
        for key in ["max_tokens", "max_completion_tokens"] {
            let answer = chat(&world, json!({key: limit})).await;
            assert_eq!((answer.status, answer.source()), (400, "client"), "{key} {limit}");
            assert_eq!(answer.json()["error"]["param"], key);
        }
    }
    assert_eq!(world.total(|c| c.legs), before, "no engine is asked");
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decode_error_is_a_status() {
    for (mode, stream) in [(Mode::Read, true), (Mode::Read, false), (Mode::Write, true)] {
        let world = Plan::new(mode).start().await;
        world.decode[0].set_fault(Fault::times(refusal(400), 1));
        let answer = post(&world.proxy, "/v1/completions", &completion("x", 5, stream)).await;
        assert_eq!((answer.status, answer.source(), answer.code().as_str()), (400, "decode", "fault"));
        assert!(answer.header("content-type").starts_with("application/json"));
        generate(&world.proxy, "afterwards", 5, stream).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_write_prefill_is_told() {
    let world = Plan::new(Mode::Write).start().await;
    generate(&world.proxy, "first", 3, true).await;
    world.prefill[0].set_fault(Fault::times(refusal(422), 1));
    let answer = post(&world.proxy, "/v1/completions", &completion("x", 5, true)).await;
    assert_eq!((answer.status, answer.source()), (422, "prefill"), "{}", answer.body);
    generate(&world.proxy, "afterwards", 5, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decode_429_repeats_no_prefill() {
    for mode in [Mode::Read, Mode::Write] {
        let world = Plan::new(mode).engines(2, 2).start().await;
        for decode in &world.decode {
            // Late enough for prefill to have its request in WRITE, too: otherwise that may be taken back.
            decode.set_fault(Fault::times(FaultKind::Delay { milliseconds: 300 }, 1));
            decode.set_fault(Fault::times(refusal(429), 1));
        }
        for asked in 1..=2 {
            let answer = post(&world.proxy, "/v1/completions", &completion("x", 5, true)).await;
            assert_eq!((answer.status, answer.source()), (429, "decode"), "{}", answer.body);
            let prefills: u64 = world.prefill.iter().map(|engine| engine.counters().legs).sum();
            assert_eq!(prefills, asked, "{mode:?}: one prefill for each request");
        }
        generate(&world.proxy, "afterwards", 5, true).await;
        world.settle().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_prefill_shows() {
    let world = Plan::new(Mode::Read).engines(2, 1).start().await;
    let text = world.proxy.metrics().await;
    for engine in &world.prefill {
        let name = format!("engine=\"{}\",status=\"2xx\"}} 0", engine.http_address());
        assert!(text.contains(&name), "{name}: every engine is listed from its first moment:\n{text}");
    }
    for _ in 0..4 {
        generate(&world.proxy, "both legs", 3, false).await;
    }
    world.settle().await;
    for role in ["prefill", "decode"] {
        assert_eq!(world.proxy.metric(&format!("moriio_legs_total{{role=\"{role}\"")).await, 4.0, "{role}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn load_is_exact_after_aborts_and_retries() {
    for mode in [Mode::Read, Mode::Write] {
        let world = Plan::new(mode).engines(2, 2).start().await;
        for round in 0..6 {
            world.prefill[round % 2].set_fault(Fault::times(refusal(503), 1));
            let sent = crate::support::client().post(world.proxy.url("/v1/completions"));
            let response = sent.body(completion("to be left", 2000, true).to_string()).send().await.unwrap();
            drop(response);
            world.decode[round % 2].set_fault(Fault::times(FaultKind::CutAfterTokens { tokens: 2, reset: true }, 1));
            post(&world.proxy, "/v1/completions", &completion("to be cut", 9, true)).await;
        }
        for engine in world.engines() {
            engine.clear_faults();
        }
        until("every load at zero", || async {
            let (_, body) = world.proxy.ready().await;
            let loads = body["engines"]
                .as_array()
                .unwrap()
                .iter()
                .map(|engine| engine["in_flight"].as_i64().max(engine["load"].as_i64()));
            if loads.into_iter().all(|load| load == Some(0)) { Ok(()) } else { Err(body.to_string()) }
        })
        .await;
        world.settle().await;
    }
}
