//! Exchanges while hosts die and come back: every client gets its text or a typed error, and nothing is left behind.
//! `MORIIO_WIDE_CHAOS_EXCHANGES` (400) sets the length of each run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;
use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Mode, expected_text};
use serde_json::json;

use super::{Layout, PROMPT, Side, requests, side};
use crate::chaos::setting;
use crate::support::{World, completion, post, until};

const CLIENTS: usize = 24;

/// Hosts of engines of the dialing side die, one after the other, and come back when the proxy has noticed.
async fn trouble(world: &World, done: &AtomicBool) -> usize {
    let dialing = if world.mode == Mode::Write { &world.prefill } else { &world.decode };
    let mut lost = 0;
    while !done.load(Ordering::Relaxed) {
        let engine = &dialing[lost % dialing.len()];
        engine.lose_host(1).await.unwrap();
        lost += 1;
        let is = |state: &'static str| {
            let address = json!(engine.http_address().to_string());
            until("the proxy to notice", move || {
                let address = address.clone();
                async move {
                    let (_, body) = world.proxy.ready().await;
                    let told = body["engines"].as_array().unwrap().iter().find(|told| told["address"] == address);
                    let is = told.is_some_and(|told| told["state"] == state);
                    if is { Ok(()) } else { Err(body.to_string()) }
                }
            })
        };
        is("unhealthy").await;
        engine.restore_host(1).await.unwrap();
        is("ready").await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    lost
}

async fn run(mode: Mode, serve: bool) {
    let two = Side { engines: 2, ..side(2, 2) };
    let mut layout = Layout::new(mode, two, two);
    for (key, value) in [
        (Key::EngineTtl, "1s"),
        (Key::ConnectTimeout, "500ms"),
        (Key::PrefillTimeout, "2s"),
        (Key::FirstByteTimeout, "2s"),
        (Key::AnswerTimeout, "2s"),
        (Key::UnparkTimeout, "3s"),
        (Key::HandOverLimit, "3s"),
        (Key::BreakerOpen, "100ms"),
        (Key::BreakerOpenMax, "200ms"),
    ] {
        layout = layout.with(key, value);
    }
    layout.adjust = |settings| {
        settings.defer_timeout = Duration::from_secs(9);
        settings.prefill_delay = Duration::from_millis(20);
        settings.token_delay = Duration::from_millis(5);
    };
    let layout = if serve { layout.serving() } else { layout };
    let world = Arc::new(layout.start().await);
    requests(&world, 8).await;
    let (next, complete, done) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    let exchanges = setting("MORIIO_WIDE_CHAOS_EXCHANGES", 400) as usize;
    let client = || async {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= exchanges {
                break;
            }
            let prompt = format!("{number} {PROMPT}");
            let answer = post(&world.proxy, "/v1/completions", &completion(&prompt, 6, number % 3 == 0)).await;
            let is_cut = answer.header("content-type").starts_with("text/event-stream")
                && answer.events().iter().any(|event| event["error"].is_object());
            match answer.status {
                200 if is_cut || !answer.whole => {}
                200 => {
                    assert_eq!(answer.text(), expected_text(&json!(prompt), 6), "{}", answer.body);
                    complete.fetch_add(1, Ordering::Relaxed);
                }
                429 | 500..=504 => assert!(!answer.source().is_empty(), "{}", answer.body),
                other => panic!("{other}: {}", answer.body),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let (_, lost) = tokio::join!(
        async {
            join_all((0..CLIENTS).map(|_| client())).await;
            done.store(true, Ordering::Relaxed);
        },
        trouble(&world, &done)
    );
    let complete = complete.load(Ordering::Relaxed);
    println!("{mode:?}, serving {serve}: {lost} hosts lost, {complete} of {exchanges} complete");
    assert!(complete > exchanges / 4 && lost > 0, "{complete} complete, {lost} lost");
    world.settle_within(Duration::from_secs(120)).await;
    requests(&world, 8).await;
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_die_and_nothing_is_left_behind_in_write() {
    run(Mode::Write, false).await;
    run(Mode::Write, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_die_and_nothing_is_left_behind_in_read() {
    run(Mode::Read, false).await;
    run(Mode::Read, true).await;
}
