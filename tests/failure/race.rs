//! WRITE: which leg is first decides, and is told at once.

use std::time::Duration;

use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Fault, FaultKind, Mode, expected_text};
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

#[tokio::test(flavor = "multi_thread")]
async fn prefill_breaks_off_while_decode_is_about_to_answer() {
    let world = world(&[(Key::BreakerFailures, "0")]).await;
    // Prefill has pushed its KV when its connection breaks: either leg may be first; nothing is left behind. The delay
    // makes sure that nobody takes it for a kept connection that died before the leg was read.
    for reset in [false, true] {
        for _ in 0..5 {
            let cut = FaultKind::CutAfterTokens { tokens: 0, reset };
            world.prefill[0].set_fault(Fault::times(FaultKind::Delay { milliseconds: 200 }, 1));
            world.prefill[0].set_fault(Fault::times(cut, 1));
            let answer = ask(&world).await;
            if answer.status != 200 {
                assert_eq!(told(&answer), expected(502, "engine_connection_broken", "prefill"));
            }
        }
    }
    world.settle().await;
}

/// Every limit is minutes away: the first failure is told whatever the other leg does, and a leg that hangs is ended.
#[tokio::test(flavor = "multi_thread")]
async fn case_46_both_fail_and_one_of_them_is_told() {
    let world = world(&[(Key::BreakerFailures, "0")]).await;
    let cut = FaultKind::CutBeforeAnswer { reset: true };
    let kinds = [failing(500), failing(400), cut.clone(), FaultKind::Hang];
    for prefill in &kinds {
        for decode in &kinds {
            // Two that hang are a matter of limits; a prefill that hangs is waited for when decode's fate is unknown.
            if prefill == &FaultKind::Hang && (decode == &FaultKind::Hang || decode == &cut) {
                continue;
            }
            world.prefill[0].set_fault(Fault::always(prefill.clone()));
            world.decode[0].set_fault(Fault::always(decode.clone()));
            let answer = ask(&world).await;
            assert!([400, 500, 502].contains(&answer.status), "{}", answer.body);
            let sources: &[&str] = match (prefill, decode) {
                (FaultKind::Hang, _) => &["decode"],
                (_, FaultKind::Hang) => &["prefill"],
                _ => &["prefill", "decode"],
            };
            assert!(sources.contains(&answer.source()), "{prefill:?} {decode:?}: {}", answer.body);
            world.prefill[0].clear_faults();
            world.decode[0].clear_faults();
            generate(&world.proxy, "words in between", 3, false).await;
        }
    }
    world.settle().await;
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
