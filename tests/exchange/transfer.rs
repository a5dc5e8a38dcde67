//! READ: what decode gets of what prefill answered, with prefill's answers as each release words them.

use moriio_proxy::sim::{Mode, Role};
use serde_json::{Value, json};

use crate::support::fake::{Fake, answer};
use crate::support::{Plan, World, completion, post};

/// Sends one request through made-up engines of `release` of which prefill answers `params`; gives the params that the legs
/// got, and the two engines.
async fn hand_over(release: &str, dp: u32, params: Value) -> (Value, Value, Fake, Fake) {
    let world: World = Plan::new(Mode::Read).engines(0, 0).start().await;
    let registration = world.proxy.registration;
    let reply = move |leg: &crate::support::fake::FakeLeg| {
        let mut params = params.clone();
        if params["transfer_id"] == "T" {
            params["transfer_id"] = leg.body["kv_transfer_params"]["transfer_id"].clone();
        }
        answer(&json!({"id": "x", "choices": [], "kv_transfer_params": params}))
    };
    let prefill = Fake::start((Role::Prefill, Mode::Read, release), registration, reply).await;
    prefill.says("dp_size", json!(dp));
    prefill.says("tp_size", json!(8));
    let decode = Fake::start((Role::Decode, Mode::Read, release), registration, |_| {
        answer(&json!({"choices": [{"text": "of decode"}]}))
    });
    let decode = decode.await;
    crate::support::until("the engines as they are", || async {
        let (status, body) = world.proxy.ready().await;
        let sizes = body["engines"].as_array().unwrap().iter().any(|e| e["tp_size"] == 8 && e["dp_size"] == dp);
        (status == 200 && sizes).then_some(()).ok_or_else(|| body.to_string())
    })
    .await;
    let given = post(&world.proxy, "/v1/completions", &completion("words", 5, false)).await;
    assert_eq!(given.text(), "of decode", "{}", given.body);
    let of = |fake: &Fake| fake.legs().pop().unwrap().body["kv_transfer_params"].clone();
    (of(&prefill), of(&decode), prefill, decode)
}

#[tokio::test(flavor = "multi_thread")]
async fn case_27_a_full_answer_is_passed_as_it_is() {
    let params = json!({"do_remote_prefill": true, "do_remote_decode": false, "remote_block_ids": [[4, 5, 6]],
        "remote_engine_id": "10.0.0.1:6301", "remote_host": "10.0.0.1", "remote_handshake_port": "6301",
        "remote_notify_port": "61005", "remote_dp_rank": 0, "remote_dp_rank_override": true, "remote_dp_size": 1,
        "remote_dp_size_local": 1, "tp_size": 8, "transfer_id": "T", "remote_prefill_cached_tokens": 16,
        "not_known_yet": {"a": [1.50]}});
    let (p, d, prefill, _decode) = hand_over("0.33.0", 1, params.clone()).await;
    let mut expected = params;
    expected["transfer_id"] = p["transfer_id"].clone();
    expected["remote_port"] = json!(prefill.handshake);
    expected["remote_tp_size"] = json!(8);
    assert_eq!(d, expected);
}

/// So much is parsed on another thread than a short answer.
#[tokio::test(flavor = "multi_thread")]
async fn case_27_a_million_tokens_blocks_are_passed_as_they_are() {
    let blocks: Vec<u32> = (0..200_000).map(|block| 1_000_000 + block).collect();
    let params = json!({"do_remote_prefill": true, "do_remote_decode": false, "remote_block_ids": [blocks],
        "remote_engine_id": "10.0.0.1:6301", "tp_size": 8, "remote_dp_rank": 3, "transfer_id": "T"});
    let (p, d, ..) = hand_over("0.33.0", 4, params).await;
    assert_eq!(d["remote_block_ids"], json!([blocks]));
    assert_eq!((&d["transfer_id"], &d["remote_dp_rank"]), (&p["transfer_id"], &json!(3)));
}

#[tokio::test(flavor = "multi_thread")]
async fn case_28_what_0_23_leaves_out_is_added() {
    let params = json!({"do_remote_prefill": true, "do_remote_decode": false, "remote_block_ids": [4, 5, 6],
        "remote_engine_id": "10.0.0.1:6301", "tp_size": 8, "transfer_id": "T"});
    let (p, d, prefill, _decode) = hand_over("0.23.0", 1, params.clone()).await;
    let mut expected = params;
    expected["transfer_id"] = p["transfer_id"].clone();
    expected["remote_host"] = json!("127.0.0.1");
    expected["remote_port"] = json!(prefill.handshake);
    expected["remote_handshake_port"] = json!(prefill.handshake);
    expected["remote_notify_port"] = json!(prefill.notify);
    expected["remote_dp_size"] = json!(1);
    expected["remote_tp_size"] = json!(8);
    assert_eq!(d, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn case_29_what_0_18_leaves_out_is_added() {
    let params = json!({"do_remote_prefill": true, "do_remote_decode": false, "remote_block_ids": [4, 5, 6],
        "remote_engine_id": "10.0.0.1:6301", "remote_host": "10.0.0.1", "remote_port": "6301", "tp_size": 8});
    let (p, d, prefill, _decode) = hand_over("0.18.1", 1, params.clone()).await;
    let mut expected = params;
    expected["transfer_id"] = p["transfer_id"].clone();
    expected["remote_handshake_port"] = json!(prefill.handshake);
    expected["remote_notify_port"] = json!(prefill.notify);
    expected["remote_dp_size"] = json!(1);
    expected["remote_tp_size"] = json!(8);
    assert_eq!(d, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn case_34_the_rank_that_prefill_names_counts() {
    let params = json!({"do_remote_prefill": true, "do_remote_decode": false, "remote_block_ids": [[4]],
        "remote_engine_id": "x", "tp_size": 8, "transfer_id": "T", "remote_dp_rank": 3});
    // The first turn pins rank 0.
    let (_, d, prefill, decode) = hand_over("0.33.0", 4, params).await;
    let rank = |fake: &Fake| fake.legs()[0].headers.get("x-data-parallel-rank").cloned();
    assert_eq!((rank(&prefill).unwrap().to_str().unwrap(), rank(&decode)), ("0", None));
    assert_eq!((&d["remote_dp_rank"], &d["remote_dp_size"]), (&json!(3), &json!(4)));
}
