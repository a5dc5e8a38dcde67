//! Bodies that strain: large, deep, spelled in unusual ways.

use futures::future::join_all;
use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Mode, expected_text};
use serde_json::json;

use crate::support::{Answer, Plan, World, client, completion, generate, post};

async fn post_text(world: &World, path: &str, body: String) -> Answer {
    let sent = client().post(world.proxy.url(path)).body(body).send();
    Answer::of(sent.await.unwrap()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_megabytes_pass_in_both_modes() {
    // Not all of it is prompt: the simulated engines' arithmetic on blocks would cost more than what is tested here.
    let prompt = "sixteen letters ".repeat(8 * 1024);
    let pad = "padding of bytes".repeat(512 * 1024);
    for mode in [Mode::Read, Mode::Write] {
        let world = Plan::new(mode).start().await;
        let mut body = completion(&prompt, 4, true);
        body["user"] = json!(pad);
        let answer = post(&world.proxy, "/v1/completions", &body).await;
        assert_eq!(answer.text(), expected_text(&json!(prompt), 4), "{}", answer.body);
        for engine in world.engines() {
            assert!(engine.legs()[0].body_length > 8 * 1024 * 1024);
        }
        world.settle().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deep_nesting_harms_nobody() {
    let world = Plan::new(Mode::Write).start().await;
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    let body = format!(r#"{{"model":"m","prompt":"words","max_tokens":3,"deep":{deep}}}"#);
    let answer = post_text(&world, "/v1/completions", body).await;
    // Engines parse it more strictly than the proxy does: whoever refuses, it is a 400.
    assert_eq!(answer.status, 400, "{}", answer.body);
    assert!(["client", "prefill", "decode"].contains(&answer.source()));
    let open = format!(r#"{{"model":"m","prompt":"words","deep":{}"#, "{\"a\":".repeat(100_000));
    let answer = post_text(&world, "/v1/completions", open).await;
    assert_eq!((answer.status, answer.source()), (400, "client"));
    generate(&world.proxy, "words after that", 3, false).await;
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn untouched_bytes_stay_untouched() {
    join_all([Mode::Read, Mode::Write].map(|mode| async move {
        let world = Plan::new(mode).start().await;
        let tail = r#""b" : 1e-07, "a":"\u00e9\ud83d\ude00 \/", "seed":12345678901234567890, "x":[ 1 ,2.50 ]"#;
        let body = format!(r#"{{ "prompt":"plain words", "max_tokens":4, {tail} }}"#);
        let answer = post_text(&world, "/v1/completions", body).await;
        assert_eq!(answer.text(), expected_text(&json!("plain words"), 4));
        for engine in world.engines() {
            let leg = engine.legs().pop().unwrap();
            assert!(leg.body.contains(tail), "{}", leg.body);
        }
        world.settle().await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_of_two_equal_keys_counts() {
    let world = Plan::new(Mode::Read).start().await;
    let body = r#"{"prompt":"first","max_tokens":9,"stream":true,"prompt":"second","max_tokens":3,"stream":false}"#;
    let answer = post_text(&world, "/v1/completions", body.to_owned()).await;
    assert_eq!(answer.text(), expected_text(&json!("second"), 3), "{}", answer.body);
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_at_its_limit_passes_and_one_byte_more_does_not() {
    let world = Plan::new(Mode::Read).with(Key::MaxBodyBytes, "100KiB").start().await;
    let fit = |length: usize| {
        let empty = completion("", 3, false).to_string().len();
        completion(&"x".repeat(length - empty), 3, false).to_string()
    };
    let answer = post_text(&world, "/v1/completions", fit(100 * 1024)).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let legs = world.total(|c| c.legs);
    let answer = post_text(&world, "/v1/completions", fit(100 * 1024 + 1)).await;
    assert_eq!((answer.status, answer.code().as_str()), (413, "body_too_large"));
    // Without a length that is announced.
    let parts = (0..200).map(|_| Ok::<_, std::io::Error>(bytes::Bytes::from(vec![b' '; 1024])));
    let body = reqwest::Body::wrap_stream(futures::stream::iter(parts));
    let sent = client().post(world.proxy.url("/v1/completions")).body(body).send();
    // The proxy answers before it has read everything; the client may learn of either.
    if let Ok(response) = sent.await {
        assert_eq!(response.status(), 413);
    }
    assert_eq!(world.total(|c| c.legs), legs);
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_42_one_prompt_in_a_list_is_one_prompt() {
    join_all([Mode::Read, Mode::Write].map(|mode| async move {
        let world = Plan::new(mode).start().await;
        for prompt in [json!(["one text"]), json!([5, 6, 7]), json!([[5, 6, 7]])] {
            let body = json!({"prompt": prompt, "max_tokens": 4, "n": 1, "best_of": 1});
            let answer = post(&world.proxy, "/v1/completions", &body).await;
            assert_eq!(answer.text(), expected_text(&prompt, 4), "{}", answer.body);
        }
        world.settle().await;
    }))
    .await;
}
