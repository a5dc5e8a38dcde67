//! Streams and answers in one piece, and what the client is told when they do not come to their end.

use std::sync::Arc;

use axum::body::Body;
use futures::future::join_all;
use moriio_proxy::sim::{Fault, FaultKind, Mode, expected_text};
use serde_json::json;
use tokio::sync::Notify;

use super::{error_event, with_fake_decode};
use crate::support::fake::answer_as;
use crate::support::{Answer, Plan, client, completion, generate, post};

/// The text before the error event.
fn text_of(answer: &Answer) -> String {
    let pieces = answer.events();
    let text = pieces.iter().filter_map(|event| event["choices"][0]["text"].as_str());
    text.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn case_48_a_stream_is_passed_byte_for_byte() {
    let sent = ": a comment\n\ndata: {\"choices\":[{\"text\":\"a\"}]}\r\n\r\ndata:  [DONE] no\n\ndata: [DONE]\n\n";
    let reply = |_: &_| {
        let parts = sent.as_bytes().chunks(7).map(|part| Ok::<_, std::io::Error>(part.to_vec()));
        let body = Body::from_stream(futures::stream::iter(parts.collect::<Vec<_>>()));
        answer_as("text/event-stream; charset=utf-8", body)
    };
    let (world, _decode) = with_fake_decode(reply).await;
    let answer = post(&world.proxy, "/v1/completions", &completion("words", 3, true)).await;
    assert_eq!((answer.body.as_str(), answer.whole), (sent, true));
    assert_eq!(answer.header("content-type"), "text/event-stream; charset=utf-8");
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_stream_ends_with_an_error_event() {
    join_all([Mode::Read, Mode::Write].map(|mode| async move {
        join_all([false, true].map(|reset| async move {
            let world = Plan::new(mode).start().await;
            let cut = FaultKind::CutAfterTokens { tokens: 3, reset };
            world.decode[0].set_fault(Fault::times(cut, 1));
            let answer = post(&world.proxy, "/v1/completions", &completion("some words", 9, true)).await;
            let error = error_event(&answer);
            assert_eq!(error["code"], "engine_connection_broken");
            assert!(error["message"].as_str().unwrap().contains("decode"));
            assert!(expected_text(&json!("some words"), 9).starts_with(&text_of(&answer)));
            generate(&world.proxy, "words after that", 3, true).await;
            world.settle().await;
        }))
        .await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_answer_in_one_piece_is_broken_for_the_client() {
    // It breaks once the client has its head.
    let has_head = Arc::new(Notify::new());
    let told = has_head.clone();
    let reply = move |_: &_| {
        let begin = futures::stream::iter([Ok("{\"choices\":".to_owned())]);
        let told = told.clone();
        let broken = futures::stream::once(async move {
            told.notified().await;
            Err(std::io::Error::other("cut"))
        });
        answer_as("application/json", Body::from_stream(futures::StreamExt::chain(begin, broken)))
    };
    let (world, _decode) = with_fake_decode(reply).await;
    let body = completion("words", 3, false).to_string();
    let response = client().post(world.proxy.url("/v1/completions")).body(body).send().await.unwrap();
    has_head.notify_one();
    let answer = Answer::of(response).await;
    assert_eq!((answer.status, answer.whole), (200, false), "{}", answer.body);
    assert!("{\"choices\":".starts_with(&answer.body));
    world.settle().await;
}
