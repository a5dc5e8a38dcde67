//! Decode fails before its first byte.

use std::time::Duration;

use futures::future::join_all;
use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Fault, FaultKind, Mode};

use super::{expected, message, told, until_told};
use crate::support::{Answer, Plan, World, completion, generate, post, strike};

async fn ask(world: &World, stream: bool) -> Answer {
    post(&world.proxy, "/v1/completions", &completion("some words", 5, stream)).await
}

async fn afterwards(world: &World) {
    for engine in world.engines() {
        engine.clear_faults();
    }
    world.until_ready(world.engines().count()).await;
    generate(&world.proxy, "words after that", 5, true).await;
    world.settle().await;
}

fn transfers(engine: &moriio_proxy::sim::Engine) -> Vec<String> {
    let id = |leg: &moriio_proxy::sim::ReceivedLeg| leg.transfer_params["transfer_id"].to_string();
    engine.legs().iter().map(id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn case_45_read_hands_over_to_another_decode() {
    let world = Plan::new(Mode::Read).engines(1, 2).start().await;
    strike(&world.decode[0], Fault::always(FaultKind::RefuseConnections)).await;
    for n in 0..4 {
        generate(&world.proxy, &format!("prompt {n}"), 5, n % 2 == 0).await;
    }
    assert_eq!(world.decode[0].counters().legs, 0);
    // One prefill each: the transfers went to the other engine as they were.
    assert_eq!(transfers(&world.prefill[0]), transfers(&world.decode[1]));
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_45_read_without_another_decode_releases_and_tells() {
    let (world, answer) = until_told("engine_unreachable", || async {
        let world = Plan::new(Mode::Read).start().await;
        strike(&world.decode[0], Fault::always(FaultKind::RefuseConnections)).await;
        let answer = ask(&world, true).await;
        (world, answer)
    })
    .await;
    assert_eq!(told(&answer), expected(503, "engine_unreachable", "decode"));
    assert!(message(&answer).contains("decode"));
    world.settle().await;
    let counters = world.prefill[0].counters();
    assert_eq!((counters.held, counters.reaped), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn case_45_write_starts_both_legs_anew() {
    let world = Plan::new(Mode::Write).engines(1, 2).start().await;
    strike(&world.decode[0], Fault::always(FaultKind::RefuseConnections)).await;
    for n in 0..4 {
        generate(&world.proxy, &format!("prompt {n}"), 5, n % 2 == 0).await;
    }
    assert_eq!(world.decode[0].counters().legs, 0);
    let (prefill, decode) = (transfers(&world.prefill[0]), transfers(&world.decode[1]));
    assert_eq!(decode.len(), 4, "no decode leg is sent twice");
    assert!(decode.iter().all(|id| prefill.contains(id)));
    let mut fresh = prefill.clone();
    fresh.sort();
    fresh.dedup();
    assert_eq!(fresh.len(), prefill.len());
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_45_write_without_another_decode_releases_and_tells() {
    let world = Plan::new(Mode::Write).start().await;
    strike(&world.decode[0], Fault::always(FaultKind::RefuseConnections)).await;
    let answer = ask(&world, false).await;
    assert_eq!(answer.status, 503, "{}", answer.body);
    world.settle().await;
    assert_eq!(world.prefill[0].counters().reaped, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn case_47_decodes_refusal_passes_as_it_is() {
    join_all([Mode::Read, Mode::Write].map(|mode| async move {
        let world = Plan::new(mode).start().await;
        let body = r#"{"error":{"message":"slow down","code":7}}"#;
        for status in [429, 400, 500] {
            let kind = FaultKind::Status { status, body: body.into() };
            world.decode[0].set_fault(Fault::times(kind, 1));
            let answer = ask(&world, true).await;
            assert_eq!((answer.status, answer.body.as_str(), answer.source()), (status, body, "decode"));
            assert_eq!(answer.header("content-type"), "application/json");
            assert_eq!(answer.header("x-request-id"), "");
        }
        world.settle().await;
        let counters = world.prefill[0].counters();
        assert_eq!(counters.reaped, 0, "nobody will fetch these blocks: they are released");
        afterwards(&world).await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decode_that_never_answers_is_504() {
    join_all([Mode::Read, Mode::Write].map(|mode| async move {
        join_all([(true, "--first-byte-timeout"), (false, "--answer-timeout")].map(|(stream, option)| async move {
            let plan = Plan::new(mode).with(Key::FirstByteTimeout, "2s").with(Key::ConnectTimeout, "1s");
            let mut plan = plan.with(Key::AnswerTimeout, "2s").with(Key::UnparkTimeout, "2s");
            plan.adjust = |settings| settings.defer_timeout = Duration::from_secs(1);
            let world = plan.start().await;
            world.decode[0].set_fault(Fault::times(FaultKind::Hang, 1));
            let answer = ask(&world, stream).await;
            assert_eq!(told(&answer), expected(504, "engine_timeout", "decode"));
            let message = message(&answer);
            assert!(message.contains("decode") && message.contains(option), "{message}");
            afterwards(&world).await;
        }))
        .await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decode_that_hangs_up_is_502() {
    join_all([Mode::Read, Mode::Write].map(|mode| async move {
        join_all([false, true].map(|reset| async move {
            let mut plan = Plan::new(mode);
            // Decode may have begun to use the blocks, so they are left to the engine's own limit.
            plan.adjust = |settings| settings.defer_timeout = Duration::from_secs(1);
            let world = plan.start().await;
            world.decode[0].set_fault(Fault::always(FaultKind::CutBeforeAnswer { reset }));
            let answer = ask(&world, true).await;
            assert_eq!(told(&answer), expected(502, "engine_connection_broken", "decode"));
            assert!(message(&answer).contains("decode"));
            afterwards(&world).await;
        }))
        .await;
    }))
    .await;
}
