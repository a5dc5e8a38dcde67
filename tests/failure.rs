//! Exchanges that go wrong: who is told what, by whose fault, and that no engine keeps anything of them.

mod decode;
mod events;
mod prefill;
mod race;
mod retry;

use crate::support::Answer;

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
