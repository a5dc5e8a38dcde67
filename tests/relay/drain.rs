//! The stop: what runs comes to its end, parked legs included, and what does not is cut.

use std::time::Duration;

use moriio_proxy::app::Finish;
use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Fault, FaultKind, Mode, expected_text};
use serde_json::json;

use super::error_event;
use crate::support::{Plan, Stream, client, completion, until_true};

#[tokio::test(flavor = "multi_thread")]
async fn running_streams_end_and_the_ports_are_closed() {
    let mut plan = Plan::new(Mode::Write);
    plan.adjust = |settings| settings.token_delay = Duration::from_millis(20);
    let mut world = plan.start().await;
    let body = completion("some words", 60, true);
    let mut stream = Stream::open(&world.proxy, "/v1/completions", &body).await;
    stream.read_until("a chunk", |seen| seen.contains("data: ")).await;
    world.proxy.begin_stop();
    let (http, registration) = (world.proxy.http, world.proxy.registration);
    until_true("closed ports", || [http, registration].iter().all(|port| std::net::TcpStream::connect(port).is_err()))
        .await;
    let answer = stream.finish().await;
    assert_eq!((answer.text(), answer.whole), (expected_text(&json!("some words"), 60), true));
    assert_eq!(world.proxy.finish().await, Finish::Drained);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stop_waits_for_parked_legs() {
    let mut world = Plan::new(Mode::Write).start().await;
    world.prefill[0].set_fault(Fault::times(FaultKind::Delay { milliseconds: 1500 }, 1));
    let request = client().post(world.proxy.url("/v1/completions"));
    let request = request.body(completion("some words", 9, true).to_string());
    let leaving = tokio::spawn(request.send());
    until_true("a parked leg", || world.decode[0].counters().decode_legs == 1).await;
    leaving.abort();
    world.proxy.begin_stop();
    let (prefill, decode) = (world.prefill, world.decode);
    assert_eq!(world.proxy.finish().await, Finish::Drained);
    let counters = decode[0].counters();
    assert_eq!((counters.leaked_blocks, counters.parked), (0, 0));
    let idle = || {
        let (prefill, decode) = (prefill[0].counters(), decode[0].counters());
        prefill.held + decode.used_blocks + decode.running == 0
    };
    until_true("the engines at rest", idle).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_end_is_cut_and_counted() {
    let mut world = Plan::new(Mode::Read).with(Key::DrainTimeout, "1s").start().await;
    world.decode[0].set_fault(Fault::times(FaultKind::HangAfterTokens { tokens: 2 }, 1));
    let body = completion("some words", 9, true);
    let mut stream = Stream::open(&world.proxy, "/v1/completions", &body).await;
    stream.read_until("two chunks", |seen| seen.matches("\n\n").count() == 2).await;
    world.proxy.begin_stop();
    let answer = stream.finish().await;
    assert_eq!(error_event(&answer)["code"], "stopping");
    assert_eq!(world.proxy.finish().await, Finish::Cut(1));
    until_true("decode at rest", || world.decode[0].counters().running == 0).await;
}
