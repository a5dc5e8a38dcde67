//! Streams and answers in one piece, and what the client is told when they do not come to their end.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use futures::future::join_all;
use moriio_proxy::settings::options::Key;
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
    let (world, _decode) = with_fake_decode(&[], reply).await;
    let answer = post(&world.proxy, "/v1/completions", &completion("words", 3, true)).await;
    assert_eq!((answer.body.as_str(), answer.whole), (sent, true));
    assert_eq!(answer.header("content-type"), "text/event-stream; charset=utf-8");
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_50_a_silent_stream_ends_with_an_error_event() {
    join_all([Mode::Read, Mode::Write].map(|mode| async move {
        let world = Plan::new(mode).with(Key::StreamIdleTimeout, "700ms").start().await;
        world.decode[0].set_fault(Fault::times(FaultKind::HangAfterTokens { tokens: 3 }, 1));
        let answer = post(&world.proxy, "/v1/completions", &completion("some words", 9, true)).await;
        let error = error_event(&answer);
        assert_eq!(error["code"], "engine_timeout", "{error}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("decode") && message.contains("--stream-idle-timeout"), "{message}");
        assert!(expected_text(&json!("some words"), 9).starts_with(&text_of(&answer)));
        world.settle().await;
        assert_eq!(world.decode[0].counters().aborted, 1, "the leg was closed");
    }))
    .await;
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
    let (world, _decode) = with_fake_decode(&[], reply).await;
    let body = completion("words", 3, false).to_string();
    let response = client().post(world.proxy.url("/v1/completions")).body(body).send().await.unwrap();
    has_head.notify_one();
    let answer = Answer::of(response).await;
    assert_eq!((answer.status, answer.whole), (200, false), "{}", answer.body);
    assert!("{\"choices\":".starts_with(&answer.body));
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_marker_ends_the_response() {
    // Decode keeps its connection open after the marker, which comes in two parts.
    let reply = |_: &_| {
        let parts = ["data: {}\n\ndata: [DO", "NE]\n\n"].map(Ok::<_, std::io::Error>);
        let open = futures::StreamExt::chain(futures::stream::iter(parts), futures::stream::pending());
        answer_as("text/event-stream", Body::from_stream(open))
    };
    let (world, _decode) = with_fake_decode(&[], reply).await;
    let answer = post(&world.proxy, "/v1/completions", &completion("words", 3, true)).await;
    assert_eq!((answer.body.as_str(), answer.whole), ("data: {}\n\ndata: [DONE]\n\n", true));
    world.settle().await;
}

/// Decode sends more than fits into all buffers on the way while the client reads nothing for longer than the idle limit.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_client_is_no_silence() {
    let part = format!("data: {{\"pad\":\"{}\"}}\n\n", "x".repeat(64 * 1024));
    let count = 256;
    let sent = part.clone();
    let reply = move |_: &_| {
        let part = bytes::Bytes::from(sent.clone());
        let parts = (0..count).map(move |_| Ok::<_, std::io::Error>(part.clone()));
        let end = std::iter::once(Ok(bytes::Bytes::from("data: [DONE]\n\n")));
        answer_as("text/event-stream", Body::from_stream(futures::stream::iter(parts.chain(end))))
    };
    let (world, _decode) = with_fake_decode(&[(Key::StreamIdleTimeout, "3s")], reply).await;
    let address = world.proxy.http;
    let reading = tokio::task::spawn_blocking(move || {
        let mut client = std::net::TcpStream::connect(address).unwrap();
        let body = completion("words", 3, true).to_string();
        let length = body.len();
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
        );
        client.write_all((head + &body).as_bytes()).unwrap();
        let mut first = vec![0; 100 * 1024];
        client.read_exact(&mut first).unwrap();
        std::thread::sleep(Duration::from_millis(4500));
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).unwrap();
        let all = [first, rest].concat();
        String::from_utf8(all).unwrap()
    });
    let all = reading.await.unwrap();
    assert_eq!(all.matches("data: {\"pad\"").count(), count);
    assert!(all.contains("data: [DONE]") && !all.contains("error"), "{}", &all[all.len() - 300..]);
    world.settle().await;
}
