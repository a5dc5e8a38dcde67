//! Whose fault an error is, as MAD's harness reads it: in the answer and in the log.

use moriio_proxy::sim::{Fault, FaultKind, Mode};
use serde_json::{Value, json};

use super::{MAD, TOY, ask, client, completion, lines, messages, pair, started, stop};
use crate::support::binary::Served;
use crate::support::{Answer, until_true};

/// The error inside an answer, and what the log says of its exchange, the `count`th.
async fn check(proxy: &Served, count: usize, answer: &Answer, side: &str, has_transfer: bool) {
    let is_exchange = |line: &Value| line["target"] == "exchange";
    until_true("the exchange's line", || lines(&proxy.log()).iter().filter(|line| is_exchange(line)).count() == count)
        .await;
    let log = proxy.log();
    let data = answer.body.lines().find_map(|line| line.strip_prefix("data: ").filter(|data| data.contains("error")));
    let body: Value = serde_json::from_str(data.unwrap_or(&answer.body)).expect(&answer.body);
    let error = if body["error"].is_object() { &body["error"] } else { &body };
    assert_eq!(error["fail_side"], side, "{}", answer.body);
    let told = messages(&log, "ERROR").into_iter().rfind(|line| line.starts_with("FAIL_SOURCE=")).expect(&log);
    let exchange = lines(&log).into_iter().rfind(is_exchange).unwrap();
    let id = exchange["transfer_id"].as_str();
    assert_eq!(id.is_some(), has_transfer, "{exchange}");
    assert_eq!(error["transfer_id"].as_str(), id, "{}", answer.body);
    let wanted = format!("FAIL_SOURCE={side} tx={} ", id.unwrap_or("-"));
    assert!(told.starts_with(&wanted), "{told}");
}

async fn failed(proxy: &Served, body: &Value) -> Answer {
    Answer::of(ask(proxy, body).await).await
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_name_the_side_at_fault() {
    let mut proxy = started(MAD, "--retries 0");
    let good = completion("a prompt", 5, false);
    let answer = failed(&proxy, &good).await;
    assert_eq!(answer.status, 503);
    check(&proxy, 1, &answer, "proxy", false).await;
    let engines = pair(&proxy, Mode::Write, |_| {}).await;
    let answer = failed(&proxy, &json!({"prompt": "a prompt", "max_tokens": "many"})).await;
    assert_eq!(answer.status, 400);
    check(&proxy, 2, &answer, "proxy", false).await;
    for (at, side) in [(0, "prefill"), (1, "decode")] {
        let body = json!({"object": "error", "message": "no", "code": 400}).to_string();
        engines[at].set_fault(Fault::times(FaultKind::Status { status: 400, body }, 1));
        let answer = failed(&proxy, &good).await;
        assert_eq!(answer.status, 400, "{}", answer.body);
        check(&proxy, 3 + at, &answer, side, true).await;
    }
    // After the beginning of an answer it is in the event that ends it.
    engines[1].set_fault(Fault::times(FaultKind::CutAfterTokens { tokens: 2, reset: false }, 1));
    let answer = failed(&proxy, &completion("a prompt", 5, true)).await;
    assert_eq!(answer.status, 200);
    check(&proxy, 5, &answer, "decode", true).await;
    // Outside of exchanges there is no transfer.
    let unknown = client().get(proxy.url("/v1/nothing")).send().await.unwrap();
    let unknown: Value = serde_json::from_str(&unknown.text().await.unwrap()).unwrap();
    assert_eq!((&unknown["error"]["fail_side"], &unknown["error"]["code"]), (&json!("proxy"), &json!("not_found")));
    assert_eq!(failed(&proxy, &good).await.status, 200);
    let log = stop(&mut proxy);
    let told = messages(&log, "ERROR").into_iter().filter(|line| line.contains("FAIL_SOURCE=")).count();
    assert_eq!(told, 5, "{log}");
    drop(engines);
}

/// Only MAD's proxy has these words.
#[tokio::test(flavor = "multi_thread")]
async fn the_toys_errors_are_ours() {
    let mut proxy = started(TOY, "");
    let answer = failed(&proxy, &completion("a prompt", 5, false)).await;
    assert_eq!(answer.status, 503);
    assert!(!answer.body.contains("fail_side"), "{}", answer.body);
    let log = stop(&mut proxy);
    assert!(!log.contains("FAIL_SOURCE"), "{log}");
}
