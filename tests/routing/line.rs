//! The line when somebody in it, or before it, does not behave: others are served all the same.

use std::time::Duration;

use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Fault, FaultKind, Mode};
use serde_json::json;

use super::COMPLETIONS;
use super::queue::{full, queued};
use crate::support::{Plan, Stream, World, completion, post, until};

/// The prompts that an engine was asked for, in that order.
fn asked(world: &World) -> Vec<String> {
    let legs = world.prefill[0].legs();
    legs.iter().map(|leg| leg.json()["prompt"].as_str().unwrap().to_owned()).collect()
}

fn slow(plan: Plan) -> Plan {
    Plan { adjust: |settings| settings.prefill_delay = Duration::from_millis(300), ..plan }
}

/// One of three answers is still in line when its client stops to read the first: whoever stands behind it is served.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stops_reading_stops_no_line() {
    let world = slow(Plan::new(Mode::Write).with(Key::PrefillInFlight, "1")).start().await;
    // More than the buffers on its way hold.
    let mut body = completion("many words", 60_000, true);
    body["n"] = json!(3);
    let stream = Stream::open(&world.proxy, COMPLETIONS, &body).await;
    queued(&world, 1).await;
    let answer = post(&world.proxy, COMPLETIONS, &completion("behind it", 3, false)).await;
    answer.is_complete();
    assert!(answer.record["queued_ms"].as_f64().unwrap() > 100.0, "{:?}", answer.record);
    assert_eq!(asked(&world), ["many words", "many words", "many words", "behind it"]);
    drop(stream);
    world.settle().await;
    assert_eq!(world.proxy.metric("moriio_requests_queued").await, 0.0);
}

/// A request that an engine turns away goes back to its turn, before one that has joined the line meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_turned_away_is_called_again() {
    for mode in [Mode::Write, Mode::Read] {
        let world = slow(Plan::new(mode).with(Key::MaxInFlight, "1")).start().await;
        world.prefill[0].set_fault(Fault::times(full(), 1));
        let first = async {
            let answer = post(&world.proxy, COMPLETIONS, &completion("first", 3, false)).await;
            answer.is_complete();
            assert_eq!(answer.record["attempts"], 2, "{:?}", answer.record);
        };
        let second = async {
            until("the first on its way", || async {
                (!asked(&world).is_empty()).then_some(()).ok_or_else(|| "not yet".to_owned())
            })
            .await;
            post(&world.proxy, COMPLETIONS, &completion("second", 3, false)).await.is_complete();
        };
        tokio::join!(first, second);
        assert_eq!(world.proxy.metric("moriio_attempts_total{cause=\"back_pressure\"}").await, 1.0, "{mode:?}");
        let mut prompts = asked(&world);
        prompts.sort();
        assert_eq!(prompts, ["first", "first", "second"], "{mode:?}");
        world.settle().await;
    }
}

/// One that presses goes before one that has its place already and waits for an engine with room.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_presses_goes_before_one_that_waits_for_room() {
    let plan = Plan::new(Mode::Write).with(Key::PrefillInFlight, "1").with(Key::MaxInFlight, "3");
    let world = slow(plan).start().await;
    world.prefill[0].set_fault(Fault::times(FaultKind::Delay { milliseconds: 500 }, 1));
    let ask = async |name: &str, priority: i64, line: usize| {
        let mut body = completion(name, 3, false);
        body["priority"] = json!(priority);
        queued(&world, line).await;
        post(&world.proxy, COMPLETIONS, &body).await
    };
    let holder = async { ask("holds", 0, 0).await.is_complete() };
    let waits = async {
        until("the engine taken", || async {
            (!asked(&world).is_empty()).then_some(()).ok_or_else(|| "not yet".to_owned())
        })
        .await;
        ask("waits", 0, 0).await.is_complete();
    };
    let presses = async { ask("presses", -1, 1).await.is_complete() };
    tokio::join!(holder, waits, presses);
    assert_eq!(asked(&world), ["holds", "presses", "waits"]);
    world.settle().await;
    assert_eq!(world.proxy.metric("moriio_requests_in_flight ").await, 0.0);
}
