//! Exchanges that go wrong: who is told what, by whose fault, and that no engine keeps anything of them.

mod decode;
mod events;
mod prefill;
mod race;
mod retry;

use crate::support::{Answer, World, until};

/// Status, code and source of an error that the proxy worded.
fn told(answer: &Answer) -> (u16, String, String) {
    let error = &answer.json()["error"];
    assert!(error["message"].is_string() && error["type"].is_string(), "{}", answer.body);
    assert_eq!(answer.header("content-type"), "application/json");
    (answer.status, answer.code(), answer.source().to_owned())
}

fn expected(status: u16, code: &str, source: &str) -> (u16, String, String) {
    (status, code.to_owned(), source.to_owned())
}

fn message(answer: &Answer) -> String {
    answer.json()["error"]["message"].as_str().unwrap_or_default().to_owned()
}

/// Tells a story anew until it ends with this error: a probe that comes between a fault and the request finds the fault first.
async fn until_told<F: Future<Output = (World, Answer)>>(code: &str, story: impl Fn() -> F) -> (World, Answer) {
    until(code, || async {
        let (world, answer) = story().await;
        assert_eq!(answer.status, 503, "{}", answer.body);
        if answer.code() == code { Ok((world, answer)) } else { Err(answer.body) }
    })
    .await
}
