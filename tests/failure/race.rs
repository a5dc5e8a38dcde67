//! WRITE: which leg is first decides, and is told at once.

use std::time::Duration;

use futures::future::join_all;
use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Fault, FaultKind, Mode, Role, expected_text};
use serde_json::json;

use super::{expected, told};
use crate::support::{Answer, Plan, Stream, World, completion, generate, post};

async fn ask(world: &World) -> Answer {
    post(&world.proxy, "/v1/completions", &completion("some words", 5, true)).await
}

fn failing(status: u16) -> FaultKind {
    FaultKind::Status { status, body: format!(r#"{{"error":"{status}"}}"#) }
}

async fn world(options: &[(Key, &'static str)]) -> World {
    let mut plan = Plan::new(Mode::Write).with(Key::UnparkTimeout, "3s");
    plan.options.extend(options);
    plan.adjust = |settings| settings.defer_timeout = Duration::from_secs(1);
    plan.start().await
}

#[tokio::test(flavor = "multi_thread")]
async fn decodes_broken_connection_is_told_while_prefill_works() {
    let world = world(&[(Key::Retries, "0")]).await;
    world.prefill[0].set_fault(Fault::times(FaultKind::Delay { milliseconds: 1000 }, 1));
    world.decode[0].set_fault(Fault::always(FaultKind::CutBeforeAnswer { reset: true }));
    let answer = ask(&world).await;
    assert_eq!(told(&answer), expected(502, "engine_connection_broken", "decode"));
    world.decode[0].clear_faults();
    // Prefill may have been about to write, so it was left to its own end.
    world.settle().await;
    assert_eq!(world.prefill[0].counters().completed, 1);
}

/// Prefill has pushed its KV when its connection breaks, and decode takes a while to its first output: the break is told.
/// Decode's first output before it is [`a_decode_that_is_first_commits_for_good`].
#[tokio::test(flavor = "multi_thread")]
async fn a_prefill_that_breaks_off_is_told_before_decode_answers() {
    join_all([false, true].map(|reset| async move {
        let mut plan = Plan::new(Mode::Write).with(Key::BreakerFailures, "0");
        plan.adjust = |settings| settings.token_delay = Duration::from_millis(800);
        let world = plan.start().await;
        for _ in 0..2 {
            // The delay makes sure that nobody takes it for a kept connection that died before the leg was read.
            world.prefill[0].set_fault(Fault::times(FaultKind::Delay { milliseconds: 200 }, 1));
            world.prefill[0].set_fault(Fault::times(FaultKind::CutAfterTokens { tokens: 0, reset }, 1));
            let answer = ask(&world).await;
            assert_eq!(told(&answer), expected(502, "engine_connection_broken", "prefill"));
        }
        world.settle().await;
    }))
    .await;
}

/// Every limit is minutes away: whichever leg fails first is told, whatever the other does later, and one that hangs is ended.
async fn both_fail(first: Role) {
    let cut = FaultKind::CutBeforeAnswer { reset: true };
    let kinds = [failing(500), failing(400), cut.clone(), FaultKind::Hang];
    join_all([failing(500), failing(400), cut].map(|of_first| async {
        let of_first = of_first;
        let world = world(&[(Key::BreakerFailures, "0")]).await;
        for of_second in kinds.clone() {
            let (prefill, decode) = (&world.prefill[0], &world.decode[0]);
            let (early, late) = if first == Role::Prefill { (prefill, decode) } else { (decode, prefill) };
            // A prefill that hangs is left to its own limit when decode broke off: it may be about to write.
            let breaks = matches!(of_first, FaultKind::CutBeforeAnswer { .. });
            if first == Role::Decode && breaks && of_second == FaultKind::Hang {
                continue;
            }
            // The first waits, too: one that breaks off at once is taken for a kept connection that died unread.
            early.set_fault(Fault::times(FaultKind::Delay { milliseconds: 200 }, 1));
            late.set_fault(Fault::times(FaultKind::Delay { milliseconds: 1000 }, 1));
            late.set_fault(Fault::always(of_second.clone()));
            early.set_fault(Fault::always(of_first.clone()));
            let answer = ask(&world).await;
            assert!([400, 500, 502].contains(&answer.status), "{}", answer.body);
            let source = if first == Role::Prefill { "prefill" } else { "decode" };
            assert_eq!(answer.source(), source, "{of_first:?}, then {of_second:?}: {}", answer.body);
            early.clear_faults();
            late.clear_faults();
            generate(&world.proxy, "words in between", 3, false).await;
        }
        world.settle().await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_46_both_fail_and_prefill_is_told_where_it_was_first() {
    both_fail(Role::Prefill).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_46_both_fail_and_decode_is_told_where_it_was_first() {
    both_fail(Role::Decode).await;
}

/// Decode's first byte commits; that prefill never answers over HTTP, having pushed its KV, and then ends altogether, changes
/// nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_decode_that_is_first_commits_for_good() {
    let mut plan = Plan::new(Mode::Write);
    plan.adjust = |settings| settings.token_delay = Duration::from_millis(10);
    let world = plan.start().await;
    world.prefill[0].set_fault(Fault::times(FaultKind::HangAfterTokens { tokens: 0 }, 1));
    let body = completion("some words", 100, true);
    let mut stream = Stream::open(&world.proxy, "/v1/completions", &body).await;
    stream.read_until("a chunk", |seen| seen.contains("data: ")).await;
    world.prefill[0].crash().await;
    let answer = stream.finish().await;
    assert_eq!((answer.text(), answer.whole), (expected_text(&json!("some words"), 100), true));
    world.settle().await;
    let broken = "moriio_legs_total{role=\"prefill\"";
    assert_eq!(world.proxy.metric(broken).await, 1.0);
}
