//! Pairs that work.

use serde_json::{Value, json};

use super::{Mode, PROMPT, Pair, soon, text};

async fn works(mode: Mode, release: &str, dp: u32, tp: u32) {
    let pair = Pair::with(mode, release, |settings| (settings.dp, settings.tp) = (dp, tp)).await;
    for round in 0..2 * dp {
        let mut legs = pair.legs(7);
        if dp > 1 {
            legs.rank = Some(round % dp);
            legs.decode["kv_transfer_params"]["remote_dp_rank"] = json!(round % dp);
        }
        let (status, answer) = soon(pair.exchange(legs)).await;
        assert_eq!((status, answer), (200, text(7)), "{release} {mode:?}");
    }
    pair.clean().await;
}

#[tokio::test]
async fn write_pairs_of_every_kind_of_release() {
    for release in ["0.17.1", "0.19.1", "0.23.0", "0.24.0", "0.26.0", "0.30.0", "0.32.0", "0.33.0"] {
        works(Mode::Write, release, 1, 1).await;
    }
}

#[tokio::test]
async fn read_pairs_of_every_kind_of_release() {
    for release in ["0.23.0", "0.24.0", "0.26.0", "0.27.0", "0.30.0", "0.32.0", "0.33.0"] {
        works(Mode::Read, release, 1, 1).await;
    }
}

#[tokio::test]
async fn ranks() {
    works(Mode::Write, "0.32.0", 8, 1).await;
    works(Mode::Read, "0.32.0", 8, 1).await;
    works(Mode::Write, "0.19.0", 4, 1).await;
    works(Mode::Write, "0.32.0", 1, 8).await;
    works(Mode::Read, "0.30.0", 1, 4).await;
}

#[tokio::test]
async fn different_tensor_parallel_sizes() {
    for (prefill, decode) in [(8, 4), (2, 8)] {
        for mode in [Mode::Read, Mode::Write] {
            let pair = Pair::with(mode, "0.33.0", |settings| {
                settings.tp = if settings.role == super::Role::Prefill { prefill } else { decode };
            })
            .await;
            assert_eq!(soon(pair.exchange(pair.legs(5))).await, (200, text(5)), "{mode:?} {prefill} {decode}");
            pair.clean().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once() {
    for mode in [Mode::Read, Mode::Write] {
        let pair = Pair::start(mode, "0.32.0").await;
        let exchanges = (0..96).map(|_| pair.exchange(pair.legs(16)));
        for (status, answer) in soon(futures::future::join_all(exchanges)).await {
            assert_eq!((status, answer), (200, text(16)));
        }
        pair.clean().await;
    }
}

#[tokio::test]
async fn streams_by_token_with_usage() {
    let pair = Pair::start(Mode::Read, "0.32.0").await;
    let mut legs = pair.legs(4);
    legs.decode["stream"] = json!(true);
    legs.decode["stream_options"] = json!({"include_usage": true});
    let answer = pair.send_prefill(&legs).await.unwrap();
    Pair::hand_over(&mut legs, &answer);
    let body = soon(pair.decode_request(&legs).send()).await.unwrap().text().await.unwrap();
    let events: Vec<&str> = body.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
    assert_eq!(events.len(), 6, "{body}");
    assert_eq!(events[5], "[DONE]");
    let events: Vec<Value> = events[..5].iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    let joined: String = events[..4].iter().map(|event| event["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(joined, text(4));
    assert_eq!(events[3]["choices"][0]["finish_reason"], "length");
    assert_eq!(events[4]["usage"]["completion_tokens"], 4);
    pair.clean().await;
}

#[tokio::test]
async fn streams_of_other_surfaces() {
    let pair = Pair::start(Mode::Read, "0.33.0").await;
    let messages = json!([{"role": "user", "content": "hello"}]);
    let cases = [
        ("/v1/chat/completions", "messages", "max_tokens", "/choices/0/delta/content", "[DONE]"),
        ("/v1/responses", "input", "max_output_tokens", "/delta", "response.incomplete"),
    ];
    for (path, key, limit, pointer, end) in cases {
        let body = json!({"model": "sim-model", key: messages, limit: 3, "stream": true});
        let url = format!("http://{}{path}", pair.prefill.http_address());
        let body = soon(pair.client.post(url).body(body.to_string()).send()).await.unwrap().text().await.unwrap();
        let events =
            body.split('\n').filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok());
        let joined: String = events.filter_map(|event| Some(event.pointer(pointer)?.as_str()?.to_string())).collect();
        assert_eq!(joined, crate::sim::expected_text(&messages, 3), "{body}");
        assert!(body.trim_end().lines().last().unwrap().contains(end), "{body}");
    }
    let violations = pair.prefill.violations();
    assert_eq!(violations, ["unpaired generation request"; 2]);
}

#[tokio::test]
async fn other_surfaces_answer_in_their_shapes() {
    let pair = Pair::start(Mode::Write, "0.32.0").await;
    let messages = json!([{"role": "user", "content": PROMPT}]);
    let cases = [
        ("/v1/chat/completions", "messages", messages.clone(), "/choices/0/message/content"),
        ("/v1/responses", "input", messages.clone(), "/output/0/content/0/text"),
        ("/inference/v1/generate", "token_ids", json!([1, 2, 3]), "/choices/0/token_ids"),
    ];
    for (path, key, prompt, pointer) in cases {
        let legs = pair.legs(3);
        let url = |engine: &super::Engine| format!("http://{}{path}", engine.http_address());
        let send = |engine, body: &Value, limit: usize| {
            let mut body = body.clone();
            let fields = body.as_object_mut().unwrap();
            fields.shift_remove("prompt");
            fields.shift_remove("max_tokens");
            fields.insert(key.into(), prompt.clone());
            match path {
                "/v1/responses" => {
                    fields.insert("request_id".into(), json!(format!("resp_{}", &legs.id[legs.id.len() - 32..])));
                    fields.insert("ignore_eos".into(), json!(true));
                    fields.insert("stop_token_ids".into(), json!([]));
                    fields.insert("store".into(), json!(false));
                    fields.insert("max_output_tokens".into(), json!(limit))
                }
                "/inference/v1/generate" => {
                    fields.insert("sampling_params".into(), json!({"max_tokens": limit, "min_tokens": 1}))
                }
                _ => fields.insert("max_tokens".into(), json!(limit)),
            };
            pair.client.post(url(engine)).header("X-Request-Id", &legs.id).body(body.to_string()).send()
        };
        let both = async { tokio::join!(send(&pair.prefill, &legs.prefill, 1), send(&pair.decode, &legs.decode, 3)) };
        let (_, decode) = soon(both).await;
        let body: Value = serde_json::from_slice(&decode.unwrap().bytes().await.unwrap()).unwrap();
        let expected = match path {
            "/inference/v1/generate" => json!(crate::sim::expected_tokens(&prompt, 3)),
            _ => json!(crate::sim::expected_text(&prompt, 3)),
        };
        assert_eq!(body.pointer(pointer), Some(&expected), "{path} {body}");
    }
    pair.clean().await;
}

#[tokio::test]
async fn decode_alone_is_no_mistake_where_it_is_meant() {
    for (release, meant, on_decode, is_right) in [
        ("0.33.0", true, true, true),
        ("0.33.0", false, true, false),
        ("0.32.0", true, true, false),
        ("0.33.0", true, false, false),
    ] {
        let pair = Pair::with(Mode::Read, release, |settings| settings.serves_alone = meant).await;
        let engine = if on_decode { &pair.decode } else { &pair.prefill };
        let body = json!({"model": "sim-model", "prompt": PROMPT, "max_tokens": 3, "temperature": 0});
        let url = format!("http://{}/v1/completions", engine.http_address());
        let answer = soon(pair.client.post(url).body(body.to_string()).send()).await.unwrap();
        let answer: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        assert_eq!(answer["choices"][0]["text"], crate::sim::expected_text(&json!(PROMPT), 3));
        assert_eq!(engine.violations().is_empty(), is_right, "{release} {meant} {on_decode}");
    }
}
