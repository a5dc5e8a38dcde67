//! Texts: what a pair answers is what one engine would have answered.

use futures::future::join_all;
use moriio_proxy::api::Api;
use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Mode, Role};

use crate::support::client::Ask;
use crate::support::{Plan, World, generate, post};

/// Every API, streamed and not.
async fn every_api(world: &World) {
    every_api_but(world, &[]).await;
}

/// The same, where engines are too old for some of them.
async fn every_api_but(world: &World, beyond: &[Api]) {
    for stream in [false, true] {
        for (seed, api) in Api::ALL.into_iter().enumerate() {
            let ask = Ask::new(api, seed, 12, stream);
            if !beyond.contains(&api) {
                ask.check(&world.proxy).await;
                continue;
            }
            let answer = post(&world.proxy, api.path(), &ask.body).await;
            assert_eq!((answer.status, answer.code().as_str(), answer.source()), (501, "engine_too_old", "proxy"));
        }
    }
}

/// Which APIs a release cannot serve: two of them take no transfer params before 0.24.0, and a rank cannot be asked for in
/// responses before 0.33.0, nor is it told before 0.28.0.
fn beyond(mode: Mode, release: &str, dp: u32) -> &'static [Api] {
    let minor: u32 = release.split('.').nth(1).unwrap().parse().unwrap();
    let ranked = if mode == Mode::Write { 33 } else { 28 };
    match minor {
        ..=23 => &[Api::Responses, Api::Messages],
        _ if dp > 1 && minor < ranked => &[Api::Responses],
        _ => &[],
    }
}

async fn sizes(mode: Mode, release: &'static str, sizes: &[(u32, u32)]) {
    join_all(sizes.iter().map(|(dp, tp)| async move {
        let plan = Plan::new(mode);
        let world = Plan { release, dp: *dp, tp: *tp, ..plan };
        let world = world.start().await;
        every_api_but(&world, beyond(mode, release, *dp)).await;
        world.settle().await;
    }))
    .await;
}

const ALL_SIZES: [(u32, u32); 3] = [(1, 1), (1, 2), (8, 1)];

#[tokio::test(flavor = "multi_thread")]
async fn dialect_a_0_19_writes() {
    sizes(Mode::Write, "0.19.0", &ALL_SIZES).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_48_0_23_reads_and_writes() {
    // Reads always go to rank 0 in this release.
    tokio::join!(sizes(Mode::Read, "0.23.0", &ALL_SIZES[..2]), sizes(Mode::Write, "0.23.0", &ALL_SIZES));
}

#[tokio::test(flavor = "multi_thread")]
async fn dialect_b_0_26_reads_and_writes() {
    tokio::join!(sizes(Mode::Read, "0.26.0", &ALL_SIZES[..2]), sizes(Mode::Write, "0.26.0", &ALL_SIZES));
}

#[tokio::test(flavor = "multi_thread")]
async fn dialect_b_0_30_reads_and_writes() {
    tokio::join!(sizes(Mode::Read, "0.30.0", &ALL_SIZES), sizes(Mode::Write, "0.30.0", &ALL_SIZES));
}

#[tokio::test(flavor = "multi_thread")]
async fn dialect_b_0_32_reads_and_writes() {
    tokio::join!(sizes(Mode::Read, "0.32.0", &ALL_SIZES), sizes(Mode::Write, "0.32.0", &ALL_SIZES));
}

#[tokio::test(flavor = "multi_thread")]
async fn dialect_b_0_33_reads_and_writes() {
    tokio::join!(sizes(Mode::Read, "0.33.0", &ALL_SIZES), sizes(Mode::Write, "0.33.0", &ALL_SIZES));
}

/// A world of engines of several releases.
async fn mixed(mode: Mode, engines: &[(Role, &str, u32)], options: &[(Key, &'static str)]) -> World {
    let mut plan = Plan::new(mode).engines(0, 0);
    plan.options.extend(options);
    let mut world = plan.start().await;
    for (role, release, tp) in engines {
        let plan = Plan::new(mode);
        let mut settings = plan.settings(*role, world.proxy.registration);
        settings.release = (*release).into();
        settings.tp = *tp;
        world.join(settings).await;
    }
    world.until_ready(engines.len()).await;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn case_21_both_dialects_in_one_pool() {
    // The peer's address is found in the params by the old release and in the request id by the new one.
    let engines = [
        (Role::Prefill, "0.19.0", 1),
        (Role::Decode, "0.19.0", 1),
        (Role::Prefill, "0.19.0", 1),
        (Role::Decode, "0.19.0", 1),
    ];
    let world = mixed(Mode::Write, &engines, &[]).await;
    every_api_but(&world, beyond(Mode::Write, "0.19.0", 1)).await;
    let used = world.engines().filter(|engine| engine.counters().completed > 0);
    assert_eq!(used.count(), 4);
    world.settle().await;

    let engines = [
        (Role::Prefill, "0.33.0", 1),
        (Role::Prefill, "0.30.0", 1),
        (Role::Decode, "0.32.0", 1),
        (Role::Decode, "0.31.0", 1),
    ];
    for mode in [Mode::Read, Mode::Write] {
        let world = mixed(mode, &engines, &[]).await;
        every_api(&world).await;
        let used = world.engines().filter(|engine| engine.counters().completed > 0);
        assert_eq!(used.count(), 4);
        world.settle().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn case_36_sizes_that_differ() {
    let larger = [(Role::Prefill, "0.33.0", 8), (Role::Decode, "0.33.0", 4)];
    let smaller = [(Role::Prefill, "0.33.0", 2), (Role::Decode, "0.33.0", 4)];
    join_all([larger, smaller].map(|engines| async move {
        for mode in [Mode::Read, Mode::Write] {
            let world = mixed(mode, &engines, &[]).await;
            every_api(&world).await;
            let (prefill, decode) = (world.prefill[0].legs(), world.decode[0].legs());
            let (p, d) = (&prefill[0].transfer_params, &decode[0].transfer_params);
            assert_eq!([&p["remote_tp_size"], &p["tp_size"]], [&serde_json::json!(engines[1].2); 2]);
            assert_eq!([&d["remote_tp_size"], &d["tp_size"]], [&serde_json::json!(engines[0].2); 2]);
            world.settle().await;
        }
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn serial_write_gives_the_same_texts() {
    join_all(["0.19.0", "0.32.0"].map(|release| async move {
        let plan = Plan::new(Mode::Write).with(Key::WriteDispatch, "serial");
        let world = Plan { release, ..plan }.start().await;
        every_api_but(&world, beyond(Mode::Write, release, 1)).await;
        world.settle().await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_token_and_the_shortest_prompt() {
    join_all([Mode::Read, Mode::Write].map(|mode| async move {
        let world = Plan::new(mode).start().await;
        generate(&world.proxy, "a", 1, false).await;
        generate(&world.proxy, "a", 1, true).await;
        world.settle().await;
    }))
    .await;
}
