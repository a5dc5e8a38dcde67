//! Who may be picked: engines that answer, whose ports are open, and that are trusted.

use std::time::Duration;

use futures::future::join_all;
use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Fault, FaultKind, Mode, Role};
use serde_json::json;

use super::{is_ready, until_engine};
use crate::support::fake::{Fake, Health, answer};
use crate::support::{Plan, completion, generate, post, until};

#[tokio::test(flavor = "multi_thread")]
async fn case_53_an_engine_that_is_unwell_is_not_picked() {
    let kinds = [FaultKind::Unhealthy, FaultKind::CloseHandshakePort, FaultKind::CloseNotifyPort];
    join_all(kinds.map(|kind| async move {
        let plan = Plan::new(Mode::Read).engines(2, 1).with(Key::EngineTtl, "1s");
        let world = plan.start().await;
        let address = world.prefill[0].http_address().to_string();
        world.prefill[0].set_fault(Fault::always(kind));
        until_engine(&world.proxy, &address, "found unwell", |e| e["state"] == "unhealthy").await;
        for n in 0..4 {
            generate(&world.proxy, &format!("prompt {n}"), 3, true).await;
        }
        assert_eq!(world.prefill[0].counters().legs, 0);
        world.prefill[0].clear_faults();
        world.until_ready(3).await;
        for n in 0..4 {
            generate(&world.proxy, &format!("prompt {n}"), 3, true).await;
        }
        assert_eq!(world.prefill[0].counters().legs, 2);
        world.settle().await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_20_a_dead_engine_leaves_and_comes_back() {
    let plan = Plan::new(Mode::Read).engines(2, 2).with(Key::EngineTtl, "1s");
    let world = plan.start().await;
    for n in 0..4 {
        generate(&world.proxy, &format!("prompt {n}"), 3, true).await;
    }
    // An engine that dies with a release unsent leaves its peer with blocks.
    world.settle().await;
    let address = world.decode[0].http_address().to_string();
    world.decode[0].crash().await;
    // From the first moment on, requests go to the engine that lives.
    for n in 0..6 {
        generate(&world.proxy, &format!("prompt {n}"), 3, n % 2 == 0).await;
    }
    until_engine(&world.proxy, &address, "gone", serde_json::Value::is_null).await;
    generate(&world.proxy, "with one decode", 3, true).await;
    world.decode[0].restart(true).await.unwrap();
    world.until_ready(4).await;
    let legs = world.decode[0].counters().legs;
    for n in 0..4 {
        generate(&world.proxy, &format!("prompt {n}"), 3, true).await;
    }
    assert_eq!(world.decode[0].counters().legs, legs + 2, "READ: the side that dials is new, so its pairs are");
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_heartbeat_is_no_restart() {
    let world = Plan::new(Mode::Read).with(Key::EngineTtl, "1s").start().await;
    let address = world.prefill[0].http_address().to_string();
    let before = until_engine(&world.proxy, &address, "ready", is_ready).await;
    generate(&world.proxy, "before", 3, true).await;
    let pings = world.prefill[0].counters().pings;
    world.prefill[0].set_fault(Fault::times(FaultKind::LateHeartbeat { milliseconds: 1500 }, 1));
    until("pings after the late one", || async {
        let now = world.prefill[0].counters();
        (now.faulted >= 1 && now.pings >= pings + 3).then_some(()).ok_or_else(|| now.pings.to_string())
    })
    .await;
    let after = until_engine(&world.proxy, &address, "ready", is_ready).await;
    assert_eq!(after["incarnation"], before["incarnation"]);
    generate(&world.proxy, "after", 3, true).await;
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_allowed_hosts_are_dialled() {
    let plan = Plan::new(Mode::Read).engines(0, 0).with(Key::EngineAllow, "10.0.0.0/8,127.0.0.2");
    let mut world = plan.start().await;
    let plan = Plan::new(Mode::Read);
    world.join(plan.settings(Role::Prefill, world.proxy.registration)).await;
    until("registrations refused", || async {
        let refused = world.proxy.metric("moriio_registrations_total{result=\"not_allowed\"}").await;
        (refused >= 2.0).then_some(()).ok_or_else(|| refused.to_string())
    })
    .await;
    assert_eq!(world.proxy.ready().await.1["engines"], json!([]));
    assert_eq!(world.prefill[0].counters().connections, 0, "not even a probe");
}

/// A request that finds engines whose first probe is under way waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_waits_for_first_probes() {
    // The wait has an end, which a stalled machine may reach; then the story begins anew.
    let mut statuses = Vec::new();
    while statuses.len() < 10 {
        let world = Plan::new(Mode::Write).engines(0, 0).start().await;
        let start = async |role| {
            let reply = |_: &_| answer(&json!({"choices": [{"text": "at last"}]}));
            Fake::start_as(Health::Hangs, (role, Mode::Write, "0.32.0"), world.proxy.registration, reply).await
        };
        let engines = [start(Role::Prefill).await, start(Role::Decode).await];
        until("two engines that are probed", || async {
            let (_, body) = world.proxy.ready().await;
            let states = body["engines"].as_array().unwrap().iter();
            let count = states.filter(|e| e["state"] == "probing").count();
            (count == 2).then_some(()).ok_or_else(|| body.to_string())
        })
        .await;
        let body = completion("words", 3, false);
        let opening = async {
            until("the request in the proxy", || async {
                let open = world.proxy.metric("moriio_requests_in_flight").await;
                (open == 1.0).then_some(()).ok_or_else(|| open.to_string())
            })
            .await;
            for engine in &engines {
                engine.health(Health::Good);
            }
        };
        let request = post(&world.proxy, "/v1/completions", &body);
        let (answer, ()) = tokio::join!(request, async {
            tokio::time::timeout(Duration::from_secs(5), opening).await.unwrap_or_default();
        });
        if answer.status == 200 {
            assert_eq!(answer.text(), "at last");
            return;
        }
        assert_eq!(answer.code(), "no_pair", "{}", answer.body);
        statuses.push(answer.status);
    }
    panic!("no request waited for the probes: {statuses:?}");
}

/// An engine whose own `/health` is 200 serves the next request, however long ago it was found not to be.
#[tokio::test(flavor = "multi_thread")]
async fn an_engine_serves_from_the_moment_it_is_healthy() {
    join_all([Mode::Read, Mode::Write].map(|mode| async move {
        let world = Plan::new(mode).engines(0, 0).with(Key::EngineTtl, "1s").start().await;
        let mut engines = Vec::new();
        for role in [Role::Prefill, Role::Decode] {
            let reply = |_: &_| {
                let params = json!({"remote_block_ids": [1], "remote_engine_id": "e"});
                answer(&json!({"choices": [{"text": "at last"}], "kv_transfer_params": params}))
            };
            let about = (role, mode, "0.32.0");
            engines.push(Fake::start_as(Health::Refuses, about, world.proxy.registration, reply).await);
        }
        // One that never answers keeps the others from nothing.
        let about = (Role::Prefill, mode, "0.32.0");
        let _hung = Fake::start_as(Health::Hangs, about, world.proxy.registration, |_| answer(&json!({}))).await;
        let states = async |wanted: &str| {
            for engine in &engines {
                until_engine(&world.proxy, &engine.http.to_string(), wanted, |e| e["state"] == wanted).await;
            }
        };
        for turn in 0..3 {
            states("unhealthy").await;
            // Long enough that the next probe by itself is some time away.
            tokio::time::sleep(Duration::from_millis(1600)).await;
            let body = completion("words", 3, false);
            let answer = post(&world.proxy, "/v1/completions", &body).await;
            assert_eq!((answer.status, answer.code().as_str()), (503, "no_pair"), "{}", answer.body);
            engines.iter().for_each(|engine| engine.health(Health::Good));
            // Any route that needs an engine, in turn the first to be asked.
            let models = async || post(&world.proxy, "/tokenize", &json!({"prompt": "words"})).await;
            if turn == 1 {
                assert_eq!(models().await.status, 200);
            }
            let answer = post(&world.proxy, "/v1/completions", &body).await;
            assert_eq!((answer.status, answer.whole), (200, true), "{mode:?}, turn {turn}: {}", answer.body);
            engines.iter().for_each(|engine| engine.health(Health::Refuses));
        }
    }))
    .await;
}
