//! Prefill fails.

use futures::future::join_all;
use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Fault, FaultKind, Mode};

use super::{expected, message, told, until_told};
use crate::support::{Answer, Plan, World, completion, generate, post, strike};

async fn ask(world: &World) -> Answer {
    post(&world.proxy, "/v1/completions", &completion("some words", 5, true)).await
}

/// Afterwards everything works and nothing is left.
async fn afterwards(world: &World) {
    for engine in world.engines() {
        engine.clear_faults();
    }
    world.until_ready(world.engines().count()).await;
    generate(&world.proxy, "words after that", 5, true).await;
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_43_read_without_params_is_502_and_decode_is_not_asked() {
    join_all([FaultKind::NullTransferParams, FaultKind::NoBlockIds].map(|kind| async move {
        let world = Plan::new(Mode::Read).start().await;
        world.prefill[0].set_fault(Fault::times(kind, 1));
        let answer = ask(&world).await;
        assert_eq!(told(&answer), expected(502, "prefill_without_blocks", "prefill"));
        assert!(message(&answer).contains("prefill"));
        assert_eq!(world.decode[0].counters().legs, 0);
        world.settle().await;
        // The blocks that nobody will fetch were given back at once, not after the engine's own minute.
        let counters = world.prefill[0].counters();
        assert_eq!((counters.released, counters.reaped), (1, 0));
        afterwards(&world).await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_43_an_answer_that_is_no_json() {
    let world = Plan::new(Mode::Read).start().await;
    world.prefill[0].set_fault(Fault::times(FaultKind::UnparsableBody, 1));
    let answer = ask(&world).await;
    assert_eq!(told(&answer), expected(502, "prefill_unreadable", "prefill"));
    assert_eq!(world.decode[0].counters().legs, 0);
    afterwards(&world).await;

    // WRITE needs nothing of the answer.
    let world = Plan::new(Mode::Write).start().await;
    world.prefill[0].set_fault(Fault::times(FaultKind::UnparsableBody, 1));
    assert_eq!(ask(&world).await.status, 200);
    afterwards(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_44_read_prefills_refusal_passes_as_it_is() {
    let world = Plan::new(Mode::Read).start().await;
    let body = r#"{"error": {"message":  "too long", "odd": 1.0}}"#;
    for status in [400, 404, 422, 429, 500] {
        let kind = FaultKind::Status { status, body: body.into() };
        world.prefill[0].set_fault(Fault::times(kind, 1));
        let answer = ask(&world).await;
        assert_eq!((answer.status, answer.body.as_str(), answer.source()), (status, body, "prefill"));
        assert_eq!(answer.header("content-type"), "application/json");
    }
    assert_eq!(world.decode[0].counters().legs, 0);
    assert_eq!(world.prefill[0].counters().legs, 5, "none of these is repeated");
    afterwards(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_46_write_prefills_failure_is_told_while_decode_is_parked() {
    join_all(["0.32.0", "0.33.0"].map(|release| async move {
        let plan = Plan::new(Mode::Write);
        let world = Plan { release, ..plan }.start().await;
        for status in [500, 400] {
            let body = r#"{"error": "no"}"#;
            let kind = FaultKind::Status { status, body: body.into() };
            world.prefill[0].set_fault(Fault::times(FaultKind::Delay { milliseconds: 1000 }, 1));
            world.prefill[0].set_fault(Fault::times(kind, 1));
            let answer = ask(&world).await;
            assert_eq!((answer.status, answer.body.as_str(), answer.source()), (status, body, "prefill"));
        }
        // The decode legs were woken, not closed: no block is lost.
        world.settle().await;
        assert!(world.decode[0].counters().decode_legs >= 1, "a second has time enough for one of two");
        afterwards(&world).await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_prefill_harms_nobody() {
    join_all([Mode::Read, Mode::Write].map(|mode| async move {
        let (world, answer) = until_told("engine_unreachable", || async {
            let world = Plan::new(mode).start().await;
            strike(&world.prefill[0], Fault::always(FaultKind::RefuseConnections)).await;
            let answer = ask(&world).await;
            (world, answer)
        })
        .await;
        assert_eq!(told(&answer), expected(503, "engine_unreachable", "prefill"));
        assert!(message(&answer).contains("prefill"));
        assert_eq!(answer.header("retry-after"), "1");
        assert_eq!(world.decode[0].counters().legs, 0);
        world.settle().await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefill_that_never_answers_is_504() {
    join_all([Mode::Read, Mode::Write].map(|mode| async move {
        let plan = Plan::new(mode).with(Key::ConnectTimeout, "1s");
        let world = plan.with(Key::PrefillTimeout, "1500ms").start().await;
        world.prefill[0].set_fault(Fault::times(FaultKind::Hang, 1));
        let answer = ask(&world).await;
        assert_eq!(told(&answer), expected(504, "engine_timeout", "prefill"));
        assert!(message(&answer).contains("prefill") && message(&answer).contains("--prefill-timeout"));
        afterwards(&world).await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefill_that_hangs_up_is_502() {
    join_all([Mode::Read, Mode::Write].map(|mode| async move {
        join_all([false, true].map(|reset| async move {
            let world = Plan::new(mode).start().await;
            world.prefill[0].set_fault(Fault::always(FaultKind::CutBeforeAnswer { reset }));
            let answer = ask(&world).await;
            assert_eq!(told(&answer), expected(502, "engine_connection_broken", "prefill"));
            assert!(message(&answer).contains("prefill"));
            afterwards(&world).await;
        }))
        .await;
    }))
    .await;
}
