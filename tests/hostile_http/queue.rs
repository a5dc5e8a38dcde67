//! The line of requests that wait for a place in flight.

use futures::future::join_all;
use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Fault, FaultKind};

use super::wire::Wire;
use super::{body, framed, legs, plan, still_good, world};
use crate::support::client::passing;
use crate::support::{Stream, World, completion, generate, post, until};

/// A stream that holds the only place until its client leaves.
async fn holder(world: &World) -> Stream {
    world.decode[0].set_fault(Fault::always(FaultKind::HangAfterTokens { tokens: 2 }));
    let mut stream = Stream::open(&world.proxy, "/v1/completions", &completion("long", 9, true)).await;
    stream.read_until("the first tokens", |seen| seen.contains("data: ")).await;
    world.decode[0].clear_faults();
    stream
}

async fn queued(world: &World, count: f64) {
    until("so many in the line", || async {
        let queued = world.proxy.metric("moriio_requests_queued").await;
        (queued == count).then_some(()).ok_or_else(|| queued.to_string())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_wait_in_order_of_arrival() {
    let world = world(plan().with(Key::MaxInFlight, "1").with(Key::QueueSize, "3")).await;
    let since = legs(&world);
    let stream = holder(&world).await;
    let world = &world;
    let wait = async |turn: usize| {
        // Each is in the line before the next one comes.
        queued(world, turn as f64).await;
        generate(&world.proxy, &format!("turn {turn}"), 3, turn.is_multiple_of(2)).await;
    };
    let beyond = async {
        queued(world, 3.0).await;
        for _ in 0..3 {
            let refused = post(&world.proxy, "/v1/completions", &completion("no place", 3, false)).await;
            assert_eq!((refused.status, refused.code().as_str()), (429, "too_many_requests"));
            assert_eq!((refused.header("retry-after"), refused.source()), ("1", "proxy"));
        }
        assert_eq!(world.decode[0].counters().waiting, 0, "nothing of those that wait is at an engine");
        drop(stream);
    };
    tokio::join!(join_all((0..3).map(wait)), beyond);
    // As the engine saw them: which client reads the end of its answer first says nothing of the line.
    let prompts = world.decode[0].legs().into_iter().map(|leg| leg.json()["prompt"].as_str().unwrap_or("").to_owned());
    let turns: Vec<String> = prompts.filter(|prompt| prompt.starts_with("turn")).collect();
    assert_eq!(turns, ["turn 0", "turn 1", "turn 2"]);
    assert_eq!(world.proxy.metric("moriio_queue_seconds_count").await, 3.0);
    still_good(world, "a line", &since, 4).await;
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_too_long_is_told_so() {
    let plan = plan().with(Key::MaxInFlight, "1").with(Key::QueueSize, "1").with(Key::QueueTimeout, "500ms");
    let world = world(plan).await;
    let since = legs(&world);
    let stream = holder(&world).await;
    let late = post(&world.proxy, "/v1/completions", &completion("patient", 3, false)).await;
    assert_eq!((late.status, late.code().as_str()), (429, "queue_timeout"), "{}", late.body);
    assert_eq!((late.header("retry-after"), late.source()), ("1", "proxy"));
    queued(&world, 0.0).await;
    drop(stream);
    still_good(&world, "a line that took too long", &since, 1).await;
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_the_line_frees_the_place() {
    let world = world(plan().with(Key::MaxInFlight, "1").with(Key::QueueSize, "1")).await;
    let since = legs(&world);
    let stream = holder(&world).await;
    let body = completion("patient", 3, false);
    for _ in 0..3 {
        let leaver = passing().post(world.proxy.url("/v1/completions")).body(body.to_string());
        tokio::select! {
            _ = leaver.send() => panic!("it was served"),
            () = queued(&world, 1.0) => {}
        }
        queued(&world, 0.0).await;
    }
    until("each that left has its account", || async {
        let gone = world.proxy.metric("moriio_exchanges_total{ended=\"client_gone\"}").await;
        (gone == 3.0).then_some(()).ok_or_else(|| gone.to_string())
    })
    .await;
    let after = async {
        queued(&world, 1.0).await;
        drop(stream);
    };
    tokio::join!(generate(&world.proxy, "in time", 3, true), after);
    assert_eq!(world.proxy.metric("moriio_queue_seconds_count").await, 4.0);
    still_good(&world, "a line that was left", &since, 2).await;
    world.settle().await;
}

/// A body that comes slowly holds neither the only place nor the only one in the line.
#[tokio::test(flavor = "multi_thread")]
async fn who_sends_slowly_holds_no_place() {
    let world = world(plan().with(Key::MaxInFlight, "1").with(Key::QueueSize, "1")).await;
    let since = legs(&world);
    let whole = framed(&body("slowly"));
    let mut slow = Vec::new();
    for _ in 0..4 {
        let mut wire = Wire::open(world.proxy.http).await;
        wire.send(&whole[..whole.len() - 5]).await;
        slow.push(wire);
    }
    generate(&world.proxy, "quickly", 3, false).await;
    for wire in &mut slow {
        wire.send(&whole[whole.len() - 5..]).await;
        assert_eq!(wire.answer().await.expect("an answer").status, 200);
    }
    still_good(&world, "slow bodies", &since, 5).await;
    world.settle().await;
}
