//! Pairs that have not answered yet: their engines may be building kernels (protocol P6).

use std::time::Duration;

use futures::future::join_all;
use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Fault, FaultKind, Mode};

use crate::support::{Plan, World, completion, post, strike, until};

async fn world(mode: Mode, cold: &'static str) -> World {
    let plan = Plan::new(mode).with(Key::ColdTimeout, cold).with(Key::ConnectTimeout, "500ms");
    let plan = plan.with(Key::PrefillTimeout, "1s").with(Key::FirstByteTimeout, "1s").with(Key::AnswerTimeout, "1s");
    let mut plan = plan.with(Key::UnparkTimeout, "1s").with(Key::BreakerFailures, "1").with(Key::Retries, "0");
    plan.adjust = |settings| settings.defer_timeout = Duration::from_secs(5);
    plan.start().await
}

/// Whether the circuits of all engines are closed, in order.
async fn closed(world: &World) -> Vec<bool> {
    let (_, ready) = world.proxy.ready().await;
    ready["engines"].as_array().unwrap().iter().map(|engine| engine["circuit"] == "closed").collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pairs_first_answer_may_take_longer() {
    let all = [Mode::Read, Mode::Write]
        .into_iter()
        .flat_map(|mode| [0, 1].map(|slow| [true, false].map(|s| (mode, slow, s))));
    join_all(all.flatten().map(|(mode, slow, stream)| async move {
        let world = world(mode, "60s").await;
        let engine = if slow == 0 { &world.prefill[0] } else { &world.decode[0] };
        let body = completion("words that take a few blocks of tokens, so that there is something to move", 3, stream);
        let late = || Fault::times(FaultKind::Delay { milliseconds: 2500 }, 1);
        strike(engine, late()).await;
        let answer = post(&world.proxy, "/v1/completions", &body).await;
        assert_eq!((answer.status, answer.whole), (200, true), "{mode:?} {slow} {stream}: {}", answer.body);
        assert_eq!(answer.record["ended"], "complete");
        // They know each other now.
        strike(engine, late()).await;
        let answer = post(&world.proxy, "/v1/completions", &body).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (504, "engine_timeout"),
            "{mode:?} {slow}: {}",
            answer.body
        );
        assert!(!answer.body.contains("--cold-timeout"), "{}", answer.body);
        world.settle().await;
        assert!(closed(&world).await.contains(&false), "an engine that is late is ailing");
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_cold_start_is_no_verdict() {
    let all = [Mode::Read, Mode::Write].into_iter().flat_map(|mode| [(mode, 0), (mode, 1)]);
    join_all(all.map(|(mode, slow)| async move {
        let world = world(mode, "2s").await;
        let (engine, leg) = match slow {
            0 => (&world.prefill[0], "prefill_leg"),
            _ => (&world.decode[0], "decode_leg"),
        };
        strike(engine, Fault::times(FaultKind::Hang, 1)).await;
        let answer = post(&world.proxy, "/v1/completions", &completion("words", 3, true)).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (504, "engine_timeout"),
            "{mode:?} {slow}: {}",
            answer.body
        );
        assert!(answer.body.contains("--cold-timeout"), "{}", answer.body);
        engine.clear_faults();
        until("both legs to be counted", || async {
            let open = world.proxy.metric("moriio_legs_in_flight").await;
            (open == 0.0).then_some(()).ok_or_else(|| open.to_string())
        })
        .await;
        assert_eq!(answer.record[leg], "timeout", "{:?}", answer.record);
        assert_eq!(closed(&world).await, [true, true], "{mode:?} {slow}");
    }))
    .await;
}
