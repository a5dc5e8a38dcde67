//! Requests that never reach an engine's scheduler: the proxy's own errors, its own routes, and those it merely passes on.

use futures::future::join_all;
use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Fault, FaultKind, Mode};
use serde_json::json;

use crate::support::{Answer, Plan, Stream, client, completion, generate, post};

#[tokio::test(flavor = "multi_thread")]
async fn case_23_no_pair_is_503_and_asks_nobody() {
    join_all([(0, 0), (1, 0), (0, 1)].map(|(prefill, decode)| async move {
        let world = Plan::new(Mode::Read).engines(prefill, decode).start().await;
        let answer = post(&world.proxy, "/v1/completions", &completion("a", 3, false)).await;
        assert_eq!((answer.status, answer.code().as_str(), answer.source()), (503, "no_pair", "proxy"));
        assert_eq!(answer.header("content-type"), "application/json");
        assert_eq!(world.total(|c| c.legs), 0);
        world.settle().await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_40_and_42_bad_requests_name_the_field() {
    let world = Plan::new(Mode::Write).start().await;
    let chat = "/v1/chat/completions";
    let rows = [
        ("/v1/completions", json!({"prompt": "a", "max_tokens": 0}), "max_tokens"),
        ("/v1/completions", json!({"prompt": "a", "max_tokens": -1}), "max_tokens"),
        ("/v1/completions", json!({"prompt": "a", "max_tokens": 1.5}), "max_tokens"),
        ("/v1/completions", json!({"prompt": "a", "max_tokens": "7"}), "max_tokens"),
        ("/v1/completions", json!({"prompt": "a", "min_tokens": -2}), "min_tokens"),
        ("/v1/completions", json!({"prompt": "a", "stream": "yes"}), "stream"),
        ("/v1/completions", json!({"prompt": "a", "n": 17}), "n"),
        ("/v1/completions", json!({"prompt": "a", "best_of": 3}), "best_of"),
        ("/v1/completions", json!({"prompt": vec!["a"; 17]}), "prompt"),
        ("/v1/completions", json!({"prompt": vec![[1]; 17]}), "prompt"),
        (chat, json!({"messages": [], "max_completion_tokens": 0}), "max_completion_tokens"),
        (chat, json!({"messages": [], "n": 0}), "n"),
        ("/v1/responses", json!({"input": "a", "max_output_tokens": 0}), "max_output_tokens"),
        ("/v1/responses", json!({"input": "a", "background": true}), "background"),
        ("/v1/responses", json!({"input": "a", "previous_response_id": "resp_1"}), "previous_response_id"),
        ("/v1/responses", json!({"input": "a", "conversation": "conv_1"}), "conversation"),
        ("/v1/responses", json!({"input": "a", "tools": [{"type": "mcp"}]}), "tools"),
        ("/v1/completions", json!({"prompt": "a", "use_beam_search": true}), "use_beam_search"),
        ("/v1/completions", json!({"prompt": "a", "prompt_logprobs": 1}), "prompt_logprobs"),
        ("/v1/completions", json!({"prompt": "a", "echo": true, "logprobs": 0}), "echo"),
        (chat, json!({"messages": [], "echo": true}), "echo"),
        (
            "/inference/v1/generate",
            json!({"token_ids": [1], "sampling_params": {"max_tokens": 0}}),
            "sampling_params.max_tokens",
        ),
        ("/inference/v1/generate", json!({"token_ids": [1], "sampling_params": {"n": 2}}), "sampling_params.n"),
    ];
    for (path, body, param) in rows {
        let answer = post(&world.proxy, path, &body).await;
        assert_eq!((answer.status, answer.source()), (400, "client"), "{body} {}", answer.body);
        assert_eq!(answer.json()["error"]["param"], param, "{}", answer.body);
        assert_eq!(answer.json()["error"]["type"], "invalid_request_error");
    }
    for text in ["", "{", "[]", "null", "{\"prompt\": \"a\"} x", "{\"prompt\": \"\u{1}\"", "not json"] {
        let sent = client().post(world.proxy.url("/v1/completions")).body(text).send();
        let answer = Answer::of(sent.await.unwrap()).await;
        assert_eq!((answer.status, answer.code().as_str()), (400, "invalid_request"), "{text}");
    }
    assert_eq!(world.total(|c| c.legs), 0);
    generate(&world.proxy, "after all that", 3, false).await;
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_that_do_not_exist_never_reach_an_engine() {
    let world = Plan::new(Mode::Read).start().await;
    let routes = [
        "/",
        "/v1",
        "/v1/embeddings",
        "/reset_prefix_cache",
        "/sleep",
        "/shutdown",
        "/v1/completions/",
        "//v1/completions",
    ];
    for path in routes {
        for method in [reqwest::Method::GET, reqwest::Method::POST] {
            let sent = client().request(method, world.proxy.url(path)).body("{}").send();
            let answer = Answer::of(sent.await.unwrap()).await;
            assert_eq!((answer.status, answer.code().as_str()), (404, "not_found"), "{path}");
            assert_eq!(answer.source(), "client");
        }
    }
    for (method, path) in
        [("GET", "/v1/completions"), ("PUT", "/v1/chat/completions"), ("POST", "/health"), ("DELETE", "/v1/models")]
    {
        let sent = client().request(method.parse().unwrap(), world.proxy.url(path)).send();
        let answer = Answer::of(sent.await.unwrap()).await;
        assert_eq!((answer.status, answer.code().as_str()), (405, "method_not_allowed"), "{method} {path}");
    }
    assert_eq!(world.total(|c| c.legs), 0);
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn neutral_routes_are_passed_to_one_engine() {
    let world = Plan::new(Mode::Write).start().await;
    let get = async |path: &str| Answer::of(reqwest::get(world.proxy.url(path)).await.unwrap()).await;
    for _ in 0..4 {
        assert_eq!(get("/v1/models").await.json()["data"][0]["id"], "sim-model");
        let one = get("/v1/models/sim-model").await;
        assert_eq!(one.json(), get("/v1/models").await.json()["data"][0]);
        assert_eq!((one.status, one.header("content-type")), (200, "application/json"));
        let none = get("/v1/models/other").await;
        assert_eq!((none.status, none.code().as_str(), none.source()), (404, "model_not_found", "client"));
        let tokens = post(&world.proxy, "/tokenize", &json!({"prompt": "sixteen letters "})).await;
        assert_eq!(tokens.json()["count"], 4);
        let text = post(&world.proxy, "/detokenize", &json!({"tokens": [1, 2]})).await;
        assert_eq!(text.json()["prompt"], "1 2");
        let hiding = json!({"messages": [{"role": "user", "content": "a"}], "kv_transfer_params": {},
            "vllm_xargs": {"kv_transfer_params": "{}"}});
        let count = post(&world.proxy, "/v1/messages/count_tokens", &hiding).await;
        assert!(count.json()["input_tokens"].as_u64().unwrap() > 0, "{}", count.body);
        assert_eq!(post(&world.proxy, "/tokenize", &json!([1])).await.status, 400);
        assert_eq!(post(&world.proxy, "/tokenize", &json!({})).await.status, 400);
    }
    assert_eq!(world.total(|c| c.legs), 0);
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_model_is_found_by_its_id_in_any_spelling() {
    let adjust = |settings: &mut moriio_proxy::sim::Settings| settings.model = "org/a model".into();
    let world = Plan { adjust, ..Plan::new(Mode::Read) }.start().await;
    let get = async |path: &str| Answer::of(reqwest::get(world.proxy.url(path)).await.unwrap()).await;
    for path in ["/v1/models/org/a%20model", "/v1/models/org%2Fa%20model?x=y"] {
        let one = get(path).await;
        assert_eq!((one.status, &one.json()["id"]), (200, &json!("org/a model")), "{path}");
        assert_eq!(one.json()["object"], "model");
    }
    for path in
        ["/v1/models/org", "/v1/models/org/a", "/v1/models/a%20model", "/v1/models/%ff", "/v1/models/ORG/a%20model"]
    {
        let none = get(path).await;
        assert_eq!((none.status, none.code().as_str()), (404, "model_not_found"), "{path}");
    }
    assert_eq!(get("/v1/models/").await.code(), "not_found");
    assert_eq!(world.proxy.metric("moriio_errors_total{code=\"model_not_found\"").await, 5.0);
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_54_health_and_ready() {
    let mut world = Plan::new(Mode::Read).engines(0, 0).start().await;
    let health =
        async |proxy: &crate::support::Proxy| Answer::of(reqwest::get(proxy.url("/health")).await.unwrap()).await;
    let before = health(&world.proxy).await;
    assert_eq!(before.status, 200);
    assert_eq!(before.json(), json!({"status": "healthy", "prefill_instances": 0, "decode_instances": 0}));
    assert_eq!(world.proxy.ready().await.0, 503);
    let plan = Plan::new(Mode::Read);
    for role in [moriio_proxy::sim::Role::Prefill, moriio_proxy::sim::Role::Decode] {
        assert_eq!(world.proxy.ready().await.0, 503);
        world.join(plan.settings(role, world.proxy.registration)).await;
    }
    world.until_ready(2).await;
    assert_eq!(world.proxy.ready().await.0, 200);
    let after = health(&world.proxy).await.json();
    assert_eq!((&after["prefill_instances"], &after["decode_instances"]), (&json!(1), &json!(1)));
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_requests_than_allowed_at_once() {
    let world = Plan::new(Mode::Read).with(Key::MaxInFlight, "1").with(Key::QueueSize, "0").start().await;
    world.decode[0].set_fault(Fault::times(FaultKind::HangAfterTokens { tokens: 1 }, 1));
    let body = completion("some words", 9, true);
    let mut first = Stream::open(&world.proxy, "/v1/completions", &body).await;
    first.read_until("a chunk", |seen| seen.contains("data: ")).await;
    let answer = post(&world.proxy, "/v1/completions", &body).await;
    assert_eq!((answer.status, answer.code().as_str(), answer.source()), (429, "too_many_requests", "proxy"));
    assert_eq!(answer.header("retry-after"), "1");
    drop(first);
    // The stream's end makes room.
    world.settle().await;
    generate(&world.proxy, "words after that", 3, true).await;
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compressed_body_is_refused() {
    let world = Plan::new(Mode::Read).start().await;
    let sent = client().post(world.proxy.url("/v1/completions")).header("content-encoding", "gzip").body("x");
    let answer = Answer::of(sent.send().await.unwrap()).await;
    assert_eq!((answer.status, answer.source()), (400, "client"));
    assert_eq!(answer.json()["error"]["param"], "content-encoding");
    assert_eq!(world.total(|c| c.legs), 0);
}
