//! Further attempts: only where no engine took the work, with new ids, within the budget.

use std::collections::HashSet;

use futures::future::join_all;
use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Fault, FaultKind, Mode};

use super::{message, until_told};
use crate::support::{Plan, completion, generate, post, strike, until};

fn unavailable() -> FaultKind {
    FaultKind::Status { status: 503, body: r#"{"error":"loading"}"#.into() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_503_of_prefill_is_tried_again_with_new_ids() {
    join_all([Mode::Read, Mode::Write].map(|mode| async move {
        let world = Plan::new(mode).start().await;
        world.prefill[0].set_fault(Fault::times(unavailable(), 2));
        generate(&world.proxy, "some words", 5, true).await;
        let legs = world.prefill[0].legs();
        let ids = |name: &str| -> HashSet<String> {
            legs.iter()
                .map(|leg| match name {
                    "transfer" => leg.transfer_params["transfer_id"].to_string(),
                    name => leg.header(name).unwrap().to_owned(),
                })
                .collect()
        };
        assert_eq!((legs.len(), ids("transfer").len(), ids("x-request-id").len()), (3, 3, 3));
        assert_eq!(world.proxy.metric("moriio_attempts_total{cause=\"retry\"").await, 2.0);
        world.settle().await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_end_and_the_last_answer_passes() {
    join_all([("0", 1), ("1", 2), ("2", 3)].map(|(retries, attempts)| async move {
        let world = Plan::new(Mode::Read).with(Key::Retries, retries).start().await;
        world.prefill[0].set_fault(Fault::always(unavailable()));
        let answer = post(&world.proxy, "/v1/completions", &completion("a", 3, false)).await;
        assert_eq!((answer.status, answer.source()), (503, "prefill"));
        assert_eq!(answer.body, r#"{"error":"loading"}"#);
        assert_eq!(world.prefill[0].counters().legs, attempts);
        world.settle().await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_have_a_budget() {
    let world = Plan::new(Mode::Write).with(Key::RetryBudget, "0").start().await;
    world.prefill[0].set_fault(Fault::always(unavailable()));
    for _ in 0..20 {
        let answer = post(&world.proxy, "/v1/completions", &completion("a", 3, false)).await;
        assert_eq!(answer.status, 503);
    }
    // Twenty requests would like forty retries; ten are always allowed, a share of nothing adds none.
    assert_eq!(world.prefill[0].counters().legs, 30);
    world.prefill[0].clear_faults();
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_prefill_is_replaced_by_another() {
    join_all([Mode::Read, Mode::Write].map(|mode| async move {
        let world = Plan::new(mode).engines(2, 1).start().await;
        strike(&world.prefill[0], Fault::always(FaultKind::RefuseConnections)).await;
        for n in 0..6 {
            generate(&world.proxy, &format!("prompt {n}"), 5, n % 2 == 0).await;
        }
        assert_eq!(world.prefill[0].counters().legs, 0);
        world.settle().await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_that_all_failed_are_told_together() {
    let (world, answer) = until_told("pool_exhausted", || async {
        let world = Plan::new(Mode::Write).engines(2, 1).start().await;
        for engine in &world.prefill {
            strike(engine, Fault::always(FaultKind::RefuseConnections)).await;
        }
        let answer = post(&world.proxy, "/v1/completions", &completion("a", 3, false)).await;
        (world, answer)
    })
    .await;
    assert_eq!(answer.source(), "prefill");
    assert!(message(&answer).contains("2 attempts"), "{}", answer.body);
    assert_eq!(world.decode[0].counters().legs, 0);
    world.settle().await;
}

/// An engine that closes a kept connection just when the next leg comes has not read it.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_died_unread_is_replaced() {
    join_all([Mode::Read, Mode::Write].map(|mode| async move {
        join_all([true, false].map(|prefill| async move {
            let mut plan = Plan::new(mode);
            plan.adjust = |settings| settings.defer_timeout = std::time::Duration::from_secs(2);
            let world = plan.start().await;
            let engine = if prefill { &world.prefill[0] } else { &world.decode[0] };
            // Whether a kept connection is used, and whether its end is seen in time, depends on the machine's load.
            until("a connection replaced", || async {
                generate(&world.proxy, "to have a connection", 2, false).await;
                let before = engine.counters().faulted;
                engine.set_fault(Fault::times(FaultKind::DieUnread, 1));
                let body = completion("some words", 4, true);
                let answer = post(&world.proxy, "/v1/completions", &body).await;
                let struck = engine.counters().faulted > before;
                engine.clear_faults();
                assert!(answer.status == 200 || (struck && answer.status == 502), "{}", answer.body);
                (struck && answer.status == 200)
                    .then_some(())
                    .ok_or_else(|| format!("struck: {struck}, status {}", answer.status))
            })
            .await;
            world.unharmed();
        }))
        .await;
    }))
    .await;
}

/// A retry for which there is no pair any more was none.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_tried_again_is_not_counted() {
    join_all([Mode::Read, Mode::Write].map(|mode| async move {
        let world = Plan::new(mode).start().await;
        strike(&world.prefill[0], Fault::always(FaultKind::RefuseConnections)).await;
        let answer = post(&world.proxy, "/v1/completions", &completion("a", 3, false)).await;
        assert_eq!((answer.status, answer.code().as_str()), (503, "engine_unreachable"), "{}", answer.body);
        assert_eq!(answer.record["attempts"], 1, "{:?}", answer.record);
        assert_eq!(world.proxy.metric("moriio_attempts_total{cause=\"retry\"").await, 0.0, "{mode:?}");
        world.settle().await;
    }))
    .await;
}
