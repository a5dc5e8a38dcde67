//! WRITE: which leg is first decides, and is told at once.

use std::time::Duration;

use moriio_proxy::options::Key;
use moriio_proxy::sim::{Fault, FaultKind, Mode};

use super::{expected, told};
use crate::support::{Answer, Plan, World, completion, generate, post, until_true};

async fn ask(world: &World) -> Answer {
    post(&world.proxy, "/v1/completions", &completion("some words", 5, true)).await
}

fn failing(status: u16) -> FaultKind {
    FaultKind::Status {
        status,
        body: format!(r#"{{"error":"{status}"}}"#),
    }
}

async fn world(options: &[(Key, &'static str)]) -> World {
    let mut plan = Plan::new(Mode::Write).with(Key::UnparkTimeout, "5s");
    plan.options.extend(options);
    plan.adjust = |settings| settings.defer_timeout = Duration::from_secs(1);
    plan.start().await
}

#[tokio::test(flavor = "multi_thread")]
async fn prefills_failure_is_told_while_decode_hangs() {
    let world = world(&[]).await;
    world.decode[0].set_fault(Fault::times(FaultKind::Hang, 1));
    world.prefill[0].set_fault(Fault::times(failing(500), 1));
    // Decode's own limit is minutes away.
    let answer = ask(&world).await;
    assert_eq!((answer.status, answer.source()), (500, "prefill"));
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn decodes_failure_is_told_while_prefill_hangs() {
    let world = world(&[]).await;
    world.prefill[0].set_fault(Fault::times(FaultKind::Hang, 1));
    world.decode[0].set_fault(Fault::times(failing(500), 1));
    let answer = ask(&world).await;
    assert_eq!((answer.status, answer.source()), (500, "decode"));
    // Its peer refused, so prefill's leg is closed, whatever its own limit says.
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn decodes_broken_connection_is_told_while_prefill_works() {
    let world = world(&[(Key::ConnectTimeout, "1s"), (Key::PrefillTimeout, "2s")]).await;
    world.prefill[0].set_fault(Fault::times(FaultKind::Hang, 1));
    world.decode[0].set_fault(Fault::always(FaultKind::CutBeforeAnswer { reset: true }));
    let answer = ask(&world).await;
    assert_eq!(told(&answer), expected(502, "engine_connection_broken", "decode"));
    world.decode[0].clear_faults();
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decode_that_is_first_commits() {
    // Prefill has pushed its KV and never answers over HTTP.
    let times = [(Key::ConnectTimeout, "1s"), (Key::PrefillTimeout, "2s")];
    let world = world(&[&times[..], &[(Key::BreakerFailures, "0")]].concat()).await;
    let kinds = [
        FaultKind::HangAfterTokens { tokens: 0 },
        FaultKind::CutAfterTokens {
            tokens: 0,
            reset: false,
        },
        FaultKind::CutAfterTokens { tokens: 0, reset: true },
    ];
    world.prefill[0].set_fault(Fault::times(kinds[0].clone(), 1));
    generate(&world.proxy, "some words", 5, true).await;
    world.settle().await;
    // When its connection breaks in that moment, either may be first; nothing is left behind. The delay makes sure that
    // nobody takes it for a kept connection that died before the leg was read.
    for kind in &kinds[1..] {
        for _ in 0..5 {
            world.prefill[0].set_fault(Fault::times(FaultKind::Delay { milliseconds: 200 }, 1));
            world.prefill[0].set_fault(Fault::times(kind.clone(), 1));
            let answer = ask(&world).await;
            if answer.status != 200 {
                assert_eq!(told(&answer), expected(502, "engine_connection_broken", "prefill"));
            }
        }
    }
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_fail_and_one_of_them_is_told() {
    let world = world(&[(Key::ConnectTimeout, "1s"), (Key::PrefillTimeout, "2s")]).await;
    let cut = FaultKind::CutBeforeAnswer { reset: true };
    let kinds = [failing(500), failing(400), cut, FaultKind::Hang];
    for prefill in &kinds {
        for decode in &kinds {
            if (prefill, decode) == (&FaultKind::Hang, &FaultKind::Hang) {
                continue;
            }
            world.prefill[0].set_fault(Fault::always(prefill.clone()));
            world.decode[0].set_fault(Fault::always(decode.clone()));
            let answer = ask(&world).await;
            assert!([400, 500, 502, 504].contains(&answer.status), "{}", answer.body);
            let sources: &[&str] = match (prefill, decode) {
                (FaultKind::Hang, _) => &["decode"],
                (_, FaultKind::Hang) => &["prefill"],
                _ => &["prefill", "decode"],
            };
            assert!(
                sources.contains(&answer.source()),
                "{prefill:?} {decode:?}: {}",
                answer.body
            );
            world.prefill[0].clear_faults();
            world.decode[0].clear_faults();
            // Failures in a row open the breaker; a success in between keeps it closed.
            world.until_ready(2).await;
            generate(&world.proxy, "words in between", 3, false).await;
        }
    }
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_prefill_failure_after_the_commit_changes_nothing() {
    let plan = Plan::new(Mode::Write).with(Key::ConnectTimeout, "1s");
    let mut plan = plan.with(Key::PrefillTimeout, "1500ms");
    plan.adjust = |settings| settings.token_delay = Duration::from_millis(20);
    let world = plan.start().await;
    world.prefill[0].set_fault(Fault::times(FaultKind::HangAfterTokens { tokens: 0 }, 1));
    // Two seconds of stream, in which prefill's limit passes.
    let long = generate(&world.proxy, "some words", 150, true);
    let failed = until_true("prefill's leg given up", || world.prefill[0].counters().aborted == 1);
    tokio::join!(long, failed);
    world.settle().await;
}
