//! Many exchanges at once: none fails, every text is right, nothing is left.

use std::sync::Arc;

use moriio_proxy::sim::{Mode, expected_text};
use serde_json::json;

use crate::support::{Answer, Plan, client, completion};

const STREAMS: usize = 512;
const TOKENS: usize = 8;

async fn all_at_once(mode: Mode) {
    let mut plan = Plan::new(mode).engines(2, 2);
    plan.adjust = |settings| settings.token_delay = std::time::Duration::from_millis(5);
    let world = plan.start().await;
    let (client, url) = (client(), world.proxy.url("/v1/completions"));
    // Nobody reads on before everybody has begun: all of them are open at once.
    let begun = Arc::new(tokio::sync::Barrier::new(STREAMS));
    let streams = (0..STREAMS).map(|n| {
        let prompt = format!("prompt number {n}, long enough to take more than a single block of tokens in the cache");
        let sent = client.post(&url).body(completion(&prompt, TOKENS, n % 2 == 0).to_string());
        let begun = begun.clone();
        tokio::spawn(async move {
            let response = sent.send().await.unwrap();
            begun.wait().await;
            let answer = Answer::of(response).await;
            assert_eq!((answer.status, answer.whole), (200, true), "{}", answer.body);
            assert_eq!(answer.text(), expected_text(&json!(prompt), TOKENS));
            assert!(n % 2 == 1 || answer.body.ends_with("data: [DONE]\n\n"));
        })
    });
    for stream in streams.collect::<Vec<_>>() {
        stream.await.unwrap();
    }
    world.settle().await;
    for engine in world.engines() {
        assert_eq!(engine.counters().completed, STREAMS as u64 / 2);
    }
    let done = world.proxy.metric("moriio_requests_total{route=\"completions\",status=\"200\"}").await;
    assert_eq!(done, STREAMS as f64);
    assert_eq!(world.proxy.metric("moriio_exchanges_total{ended=\"complete\"}").await, STREAMS as f64);
    for role in ["prefill", "decode"] {
        let legs = |status: &str| format!("moriio_legs_total{{role=\"{role}\"{status}");
        let good = world.engines().map(|e| format!(",engine=\"{}\",status=\"2xx\"", e.http_address()));
        let mut sum = 0.0;
        for engine in good {
            sum += world.proxy.metric(&legs(&engine)).await;
        }
        assert_eq!((sum, world.proxy.metric(&legs("")).await), (STREAMS as f64, STREAMS as f64), "{role}");
    }
    assert_eq!(world.proxy.metric("moriio_errors_total").await, 0.0);
    assert_eq!(world.proxy.metric("moriio_invariant_breaches_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_and_twelve_streams_read() {
    all_at_once(Mode::Read).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_and_twelve_streams_write() {
    all_at_once(Mode::Write).await;
}
