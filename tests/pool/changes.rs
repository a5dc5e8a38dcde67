//! Engines that are restarted, move, change their ports, their role or their mode.

use futures::future::join_all;
use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Mode, Role};
use serde_json::json;

use super::{engine, is_ready, until_engine};
use crate::support::fake::{Fake, answer};
use crate::support::{Plan, World, completion, generate, post, until};

#[tokio::test(flavor = "multi_thread")]
async fn case_7_and_8_an_address_that_says_something_new_is_a_new_engine() {
    let world = Plan::new(Mode::Read).engines(0, 0).start().await;
    let about = (Role::Prefill, Mode::Read, "0.32.0");
    let fake = Fake::start(about, world.proxy.registration, |_| answer(&json!({}))).await;
    let address = fake.http.to_string();
    let first = until_engine(&world.proxy, &address, "ready", is_ready).await;
    // The same again and again is the same.
    until("more pings", || async {
        let heard = world.proxy.metric("moriio_registrations_total{result=\"refreshed\"}").await;
        (heard >= 3.0).then_some(()).ok_or_else(|| heard.to_string())
    })
    .await;
    assert_eq!(engine(&world.proxy, &address).await["incarnation"], first["incarnation"]);

    let swapped = format!("host:127.0.0.1,handshake:{},notify:{}", fake.notify, fake.handshake);
    fake.says("zmq_address", json!(swapped));
    let moved =
        until_engine(&world.proxy, &address, "a new life", |e| is_ready(e) && e["incarnation"] != first["incarnation"])
            .await;
    assert_eq!(world.proxy.metric("moriio_registrations_total{result=\"restarted\"}").await, 1.0);

    fake.says("type", json!("D"));
    let changed = until_engine(&world.proxy, &address, "its new role", |e| is_ready(e) && e["role"] == "decode").await;
    assert_ne!(changed["incarnation"], moved["incarnation"]);
    let (_, body) = world.proxy.ready().await;
    assert_eq!((&body["prefill_instances"], &body["decode_instances"]), (&json!(0), &json!(1)));
    assert_eq!(body["engines"].as_array().unwrap().len(), 1);
}

/// An engine is ended and the proxy knows it.
async fn ended(world: &World, engine: &moriio_proxy::sim::Engine) {
    let address = engine.http_address().to_string();
    engine.crash().await;
    until_engine(&world.proxy, &address, "found dead", |e| e.is_null() || e["state"] == "unhealthy").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pair_whose_dialling_side_knew_an_earlier_life_is_barred() {
    join_all([Mode::Read, Mode::Write].map(|mode| async move {
        let world = Plan::new(mode).with(Key::EngineTtl, "1s").start().await;
        generate(&world.proxy, "before", 3, true).await;
        // An engine that dies with a release unsent leaves its peer with blocks.
        world.settle().await;
        // READ: decode dials prefill. WRITE: prefill dials decode.
        let (dialled, dialler) = match mode {
            Mode::Read => (&world.prefill[0], &world.decode[0]),
            Mode::Write => (&world.decode[0], &world.prefill[0]),
        };
        ended(&world, dialled).await;
        dialled.restart(true).await.unwrap();
        let restart = dialler.http_address().to_string();
        until("a barred pair", || async {
            let (status, body) = world.proxy.ready().await;
            let stale = body["stale_pairs"].as_array().unwrap();
            let barred = stale.len() == 1 && stale[0]["restart"] == restart.as_str();
            (status == 503 && barred).then_some(()).ok_or_else(|| body.to_string())
        })
        .await;
        let answer = post(&world.proxy, "/v1/completions", &completion("a", 3, false)).await;
        assert_eq!((answer.status, answer.code().as_str()), (503, "no_pair"));

        ended(&world, dialler).await;
        dialler.restart(true).await.unwrap();
        world.until_ready(2).await;
        generate(&world.proxy, "after both are new", 3, true).await;
        world.settle().await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pair_whose_dialling_side_is_new_goes_on() {
    join_all([Mode::Read, Mode::Write].map(|mode| async move {
        let world = Plan::new(mode).with(Key::EngineTtl, "1s").start().await;
        generate(&world.proxy, "before", 3, true).await;
        world.settle().await;
        let dialler = match mode {
            Mode::Read => &world.decode[0],
            Mode::Write => &world.prefill[0],
        };
        ended(&world, dialler).await;
        dialler.restart(true).await.unwrap();
        world.until_ready(2).await;
        generate(&world.proxy, "after", 3, true).await;
        world.settle().await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_7_an_engine_that_comes_back_on_new_ports_is_used() {
    join_all([Mode::Read, Mode::Write].map(|mode| async move {
        let world = Plan::new(mode).with(Key::EngineTtl, "1s").start().await;
        generate(&world.proxy, "before", 3, true).await;
        world.settle().await;
        for engine in world.engines() {
            let old = engine.http_address().to_string();
            engine.restart(false).await.unwrap();
            until_engine(&world.proxy, &old, "the old address gone", serde_json::Value::is_null).await;
            world.until_ready(2).await;
            generate(&world.proxy, "after", 3, true).await;
            // An engine that dies with a release unsent leaves its peer with blocks.
            world.settle().await;
        }
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_9_and_22_one_mode_at_a_time() {
    let mut world = Plan::new(Mode::Read).with(Key::EngineTtl, "1s").start().await;
    generate(&world.proxy, "before", 3, true).await;
    world.settle().await;
    let plan = Plan::new(Mode::Write);
    for role in [Role::Prefill, Role::Decode] {
        world.join(plan.settings(role, world.proxy.registration)).await;
    }
    let writers = [world.prefill[1].http_address().to_string(), world.decode[1].http_address().to_string()];
    for address in &writers {
        until_engine(&world.proxy, address, "kept aside", |e| e["state"] == "other_mode").await;
    }
    for n in 0..4 {
        generate(&world.proxy, &format!("prompt {n}"), 3, true).await;
    }
    assert_eq!((world.prefill[1].counters().legs, world.decode[1].counters().legs), (0, 0));
    assert_eq!(world.proxy.ready().await.1["mode"], "READ");
    world.settle().await;

    // When the last engine of the old mode has left, the new one may begin.
    world.prefill[0].crash().await;
    world.decode[0].crash().await;
    for address in &writers {
        until_engine(&world.proxy, address, "in use", is_ready).await;
    }
    until("the pool's new mode", || async {
        let (status, body) = world.proxy.ready().await;
        (status == 200 && body["mode"] == "WRITE").then_some(()).ok_or_else(|| body.to_string())
    })
    .await;
    generate(&world.proxy, "after", 3, true).await;
    assert_eq!((world.prefill[1].counters().legs, world.decode[1].counters().legs), (1, 1));
    world.settle().await;
}
