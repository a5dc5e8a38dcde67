//! Which leg goes when, and that streams pass as they come.

use std::time::Duration;

use futures::future::join_all;
use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Fault, FaultKind, Mode};

use crate::support::{Plan, Stream, completion, generate, post, until_true};

/// Holds prefill up and looks whether decode has been asked meanwhile.
async fn decode_waits(mode: Mode, options: &[(Key, &'static str)]) {
    let mut plan = Plan::new(mode);
    plan.options.extend(options);
    let world = plan.start().await;
    let delay = FaultKind::Delay { milliseconds: 500 };
    world.prefill[0].set_fault(Fault::times(delay, 1));
    let early = async {
        until_true("prefill's leg", || world.prefill[0].counters().legs == 1).await;
        // Prefill answers half a second after it got its leg; until then decode must not hear of it.
        let answered = || world.prefill[0].counters().completed == 1;
        let mut early = 0;
        while !answered() {
            let legs = world.decode[0].counters().legs;
            if !answered() {
                early = early.max(legs);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        early
    };
    let (early, ()) = tokio::join!(early, generate(&world.proxy, "some words", 3, true));
    assert_eq!(early, 0);
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_26_read_asks_decode_after_prefill() {
    decode_waits(Mode::Read, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn serial_write_asks_decode_after_prefill() {
    decode_waits(Mode::Write, &[(Key::WriteDispatch, "serial")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_24_write_asks_both_at_once() {
    let world = Plan::new(Mode::Write).start().await;
    let body = "{}".into();
    world.prefill[0].set_fault(Fault::times(FaultKind::Delay { milliseconds: 500 }, 1));
    world.prefill[0].set_fault(Fault::times(FaultKind::Status { status: 500, body }, 1));
    let body = completion("some words", 3, true);
    assert_eq!(post(&world.proxy, "/v1/completions", &body).await.status, 500);
    world.settle().await;
    // Prefill failed, so a leg that waits for its answer would never have been sent.
    assert_eq!(world.decode[0].counters().legs, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn case_48_chunks_pass_as_they_come() {
    join_all([Mode::Read, Mode::Write].map(|mode| async move {
        let world = Plan::new(mode).start().await;
        let hang = FaultKind::HangAfterTokens { tokens: 3 };
        world.decode[0].set_fault(Fault::times(hang, 1));
        let body = completion("some words", 100, true);
        let mut stream = Stream::open(&world.proxy, "/v1/completions", &body).await;
        // Three events arrive although the rest never comes, each as its own.
        stream.read_until("three events", |seen| seen.matches("\n\n").count() == 3).await;
        drop(stream);
        world.settle().await;
        assert_eq!(world.decode[0].counters().aborted, 1);
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_52_the_first_exchange_of_a_pair_goes_alone() {
    join_all([Mode::Read, Mode::Write].map(|mode| async move {
        let mut plan = Plan::new(mode);
        plan.release = "0.30.0";
        let world = plan.start().await;
        let delay = FaultKind::Delay { milliseconds: 300 };
        world.prefill[0].set_fault(Fault::times(delay, 1));
        let prompts: Vec<String> = (0..8).map(|n| format!("prompt {n}")).collect();
        let all = prompts.iter().map(|prompt| generate(&world.proxy, prompt, 5, true));
        let alone = async {
            until_true("the first leg", || world.prefill[0].counters().legs >= 1).await;
            let mut most = 0;
            while world.decode[0].counters().tokens == 0 {
                let legs = world.prefill[0].counters().legs;
                if world.decode[0].counters().tokens == 0 {
                    most = most.max(legs);
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            most
        };
        let (_, most) = tokio::join!(futures::future::join_all(all), alone);
        assert_eq!(most, 1, "no second leg before the first byte");
        assert_eq!(world.total(|c| c.first_contact_overlaps), 0);
        world.settle().await;
    }))
    .await;
}
