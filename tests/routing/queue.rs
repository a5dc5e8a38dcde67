//! The line of requests: whose turn it is, what it waits for, and what an engine that turns work away costs.

use std::time::Duration;

use futures::future::join_all;
use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Fault, FaultKind, Mode, Role};
use serde_json::{Value, json};

use super::{COMPLETIONS, PROMPT};
use crate::support::{Plan, Stream, World, completion, generate, post, post_as, until};

/// A stream that holds a place until its client leaves.
async fn holder(world: &World) -> Stream {
    world.decode[0].set_fault(Fault::always(FaultKind::HangAfterTokens { tokens: 2 }));
    let mut stream = Stream::open(&world.proxy, COMPLETIONS, &completion("long", 9, true)).await;
    stream.read_until("the first tokens", |seen| seen.contains("data: ")).await;
    world.decode[0].clear_faults();
    stream
}

pub async fn queued(world: &World, count: usize) {
    until("so many in the line", || async {
        let queued = world.proxy.metric("moriio_requests_queued").await;
        (queued == count as f64).then_some(()).ok_or_else(|| queued.to_string())
    })
    .await;
}

/// A prompt, headers and more of the body.
type Asked = (&'static str, &'static [(&'static str, &'static str)], Value);

/// Requests that join the line one after the other behind a stream that then ends; in which order the engine got them.
async fn served(requests: Vec<Asked>) -> Vec<String> {
    let world = Plan::new(Mode::Write).with(Key::MaxInFlight, "1").start().await;
    let stream = holder(&world).await;
    let count = requests.len();
    let ask = |(at, (name, headers, more)): (usize, Asked)| {
        let mut body = completion(name, 3, false);
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let world = &world;
        async move {
            queued(world, at).await;
            assert_eq!(post_as(&world.proxy, COMPLETIONS, headers, &body).await.status, 200);
        }
    };
    let end = async {
        queued(&world, count).await;
        drop(stream);
    };
    tokio::join!(join_all(requests.into_iter().enumerate().map(ask)), end);
    let prompts =
        world.decode[0].legs().into_iter().skip(1).map(|leg| leg.json()["prompt"].as_str().unwrap().to_owned());
    let order = prompts.collect();
    world.settle().await;
    order
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_starves_nobody() {
    let agent: &'static [(&'static str, &'static str)] = &[("x-session-id", "agent")];
    let other: &'static [(&'static str, &'static str)] = &[("x-session-id", "other")];
    let none = json!({});
    let order = served(vec![
        ("agent 1", agent, none.clone()),
        ("agent 2", agent, none.clone()),
        ("agent 3", agent, none.clone()),
        ("agent 4", agent, none.clone()),
        ("other 1", other, none.clone()),
        ("nobody 1", &[], none.clone()),
        ("nobody 2", &[], none.clone()),
        ("other 2", other, none),
    ])
    .await;
    let wanted = ["agent 1", "other 1", "nobody 1", "nobody 2", "agent 2", "other 2", "agent 3", "agent 4"];
    assert_eq!(order, wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_presses_goes_first() {
    let session: &'static [(&'static str, &'static str)] = &[("x-session-id", "s")];
    let order = served(vec![
        ("usual", &[], json!({})),
        ("late", &[], json!({"priority": 5})),
        ("early", session, json!({"priority": -1})),
        ("early too", session, json!({"priority": -1})),
        ("by header", &[("X-Vllm-Priority", "-2")], json!({"priority": 9})),
        ("no number", &[("X-Vllm-Priority", "soon")], json!({"priority": 1})),
    ])
    .await;
    assert_eq!(order, ["by header", "early", "early too", "usual", "no number", "late"]);
}

/// No engine ever has more than its cap, and whoever waits for that is served in the end.
#[tokio::test(flavor = "multi_thread")]
async fn engines_have_no_more_than_their_caps() {
    for mode in [Mode::Write, Mode::Read] {
        let mut plan = Plan::new(mode).engines(2, 1).with(Key::PrefillInFlight, "2").with(Key::DecodeInFlight, "3");
        plan.adjust = |settings| {
            settings.prefill_delay = Duration::from_millis(20);
            settings.token_delay = Duration::from_millis(5);
        };
        let world = plan.start().await;
        let all = join_all((0..40).map(|number| {
            let world = &world;
            async move { generate(&world.proxy, &format!("{number} {PROMPT}"), 4, number % 2 == 0).await }
        }));
        let watch = async {
            loop {
                let (_, body) = world.proxy.ready().await;
                for engine in body["engines"].as_array().unwrap() {
                    let cap = if engine["role"] == "prefill" { 2 } else { 3 };
                    assert!(engine["in_flight"].as_u64().unwrap() <= cap, "{mode:?}: {engine}");
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            _ = all => {}
            () = watch => {}
        }
        assert!(world.proxy.metric("moriio_queue_seconds_count").await > 20.0, "most of them waited");
        assert_eq!(world.proxy.metric("moriio_requests_queued").await, 0.0);
        world.settle().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_joins_takes_work_at_once() {
    let plan = Plan::new(Mode::Write).with(Key::DecodeInFlight, "1");
    let settings = |world: &World| {
        let mut settings = Plan::new(Mode::Write).settings(Role::Decode, world.proxy.registration);
        settings.ping_interval = Duration::from_millis(100);
        settings
    };
    let mut world = plan.start().await;
    let stream = holder(&world).await;
    let proxy = world.proxy.http;
    let waiting: Vec<_> = (0..3)
        .map(|number| {
            let body = completion(&format!("{number} {PROMPT}"), 3, false).to_string();
            tokio::spawn(crate::support::client().post(format!("http://{proxy}{COMPLETIONS}")).body(body).send())
        })
        .collect();
    queued(&world, 3).await;
    let more = settings(&world);
    world.join(more).await;
    for answer in join_all(waiting).await {
        assert_eq!(answer.unwrap().unwrap().status(), 200);
    }
    assert_eq!(world.decode[1].counters().legs, 3, "the other engine is still taken");
    drop(stream);
    world.settle().await;
}

pub fn full() -> FaultKind {
    FaultKind::Status { status: 503, body: json!({"error": {"message": "queue is full", "code": 503}}).to_string() }
}

/// An engine's own 503 is no end where requests wait in line: the request goes back, with new ids, once the rest of its attempt is over.
#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_turns_work_away_is_waited_for() {
    join_all([Mode::Write, Mode::Read].into_iter().flat_map(|mode| [(mode, Role::Prefill), (mode, Role::Decode)]).map(
        |(mode, role)| async move {
            // No retry is allowed, and none is needed.
            let plan =
                Plan::new(mode).with(Key::MaxInFlight, "100").with(Key::Retries, "0").with(Key::RetryBudget, "0");
            let world = plan.start().await;
            let engine = if role == Role::Prefill { &world.prefill[0] } else { &world.decode[0] };
            engine.set_fault(Fault::times(full(), 3));
            let answer = post(&world.proxy, COMPLETIONS, &completion(PROMPT, 4, true)).await;
            let what = format!("{mode:?}, {role:?}: {}", answer.body);
            assert_eq!((answer.status, &answer.record["attempts"]), (200, &json!(4)), "{what}");
            assert_eq!(world.proxy.metric("moriio_attempts_total{cause=\"back_pressure\"}").await, 3.0, "{what}");
            let legs: Vec<_> = engine.legs().iter().map(|leg| leg.header("x-request-id").map(str::to_owned)).collect();
            let ids: std::collections::BTreeSet<_> = legs.iter().collect();
            assert_eq!((legs.len(), ids.len()), (4, 4), "{what}");
            let (_, body) = world.proxy.ready().await;
            assert!(body["engines"].as_array().unwrap().iter().all(|engine| engine["circuit"] == "closed"), "{body}");
            world.settle().await;
            let decode = world.decode[0].counters();
            assert_eq!((decode.died, world.total(|counters| counters.reaped)), (0, 0), "{what}");
        },
    ))
    .await;
}

/// Nothing but the line's own limits ends it, and a client that leaves meanwhile leaves nothing behind.
#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_stays_full_ends_in_429() {
    for mode in [Mode::Write, Mode::Read] {
        let plan = Plan::new(mode).with(Key::MaxInFlight, "100").with(Key::QueueTimeout, "1500ms");
        let world = plan.start().await;
        world.prefill[0].set_fault(Fault::always(full()));
        let answer = post(&world.proxy, COMPLETIONS, &completion(PROMPT, 4, true)).await;
        assert_eq!((answer.status, answer.code().as_str()), (429, "pool_busy"), "{}", answer.body);
        assert!(answer.record["attempts"].as_u64().unwrap() > 2, "{:?}", answer.record);
        let left = tokio::time::timeout(Duration::from_millis(300), generate(&world.proxy, PROMPT, 4, true)).await;
        assert!(left.is_err());
        world.prefill[0].clear_faults();
        queued(&world, 0).await;
        generate(&world.proxy, PROMPT, 4, true).await;
        world.settle().await;
        assert_eq!(world.total(|counters| counters.reaped + counters.died), 0);
    }
}

/// Without a line an engine's 503 is told as it was.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_line_a_503_is_told() {
    let world = Plan::new(Mode::Read).with(Key::Retries, "0").start().await;
    world.prefill[0].set_fault(Fault::times(full(), 1));
    let answer = post(&world.proxy, COMPLETIONS, &completion(PROMPT, 4, true)).await;
    assert_eq!((answer.status, answer.source()), (503, "prefill"), "{}", answer.body);
    world.settle().await;
}

/// Whoever finds the line full is told when there may be room, by the rate at which others are served.
#[tokio::test(flavor = "multi_thread")]
async fn retry_after_is_measured() {
    let mut plan = Plan::new(Mode::Write).with(Key::MaxInFlight, "1").with(Key::QueueSize, "8");
    plan.adjust = |settings| settings.token_delay = Duration::from_millis(100);
    let world = plan.start().await;
    let ask = |number: usize| {
        let world = &world;
        async move { generate(&world.proxy, &format!("{number} {PROMPT}"), 5, false).await }
    };
    let refused = async {
        // Three have been served from the line, half a second apart, and it is full again.
        until("some that were served", || async {
            let served = world.proxy.metric("moriio_queue_seconds_count").await;
            (served >= 3.0).then_some(()).ok_or_else(|| served.to_string())
        })
        .await;
        let more = join_all((20..28).map(ask));
        let beyond = async {
            queued(&world, 8).await;
            let answer = post(&world.proxy, COMPLETIONS, &completion("beyond", 3, false)).await;
            assert_eq!((answer.status, answer.code().as_str()), (429, "too_many_requests"));
            let seconds: u64 = answer.header("retry-after").parse().unwrap();
            assert!((2..=60).contains(&seconds), "{seconds}");
        };
        let _ = tokio::join!(tokio::time::timeout(Duration::from_secs(20), more), beyond);
    };
    tokio::join!(join_all((0..4).map(ask)), refused);
    world.settle().await;
}
