//! WRITE on 0.28.0 to 0.30.0: each prefill engine works with one decode engine (protocol P5).

use std::collections::{BTreeMap, BTreeSet};

use futures::future::join_all;
use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Engine, Mode};
use serde_json::{Value, json};

use super::until_engine;
use crate::support::{Plan, World, generate, until};

/// The decode engines, by handshake port, that a prefill engine was told to write to since the leg of this number.
fn partners(prefill: &Engine, since: usize) -> BTreeSet<u64> {
    let legs = prefill.legs();
    legs[since..].iter().map(|leg| leg.transfer_params["remote_handshake_port"].as_u64().unwrap()).collect()
}

async fn traffic(world: &World, requests: usize) {
    // Several at once, as the fault of these engines needs it.
    let send = |n: usize| {
        let proxy = &world.proxy;
        async move { generate(proxy, &format!("prompt number {n}"), 3, n.is_multiple_of(2)).await }
    };
    join_all((0..requests).map(send)).await;
}

/// What `/ready` says: decode engines by prefill engine.
async fn bound(world: &World) -> BTreeMap<String, String> {
    let (_, body) = world.proxy.ready().await;
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let pairs = body["bound_pairs"].as_array().unwrap().iter();
    pairs.map(|pair| (text(&pair["prefill"]), text(&pair["decode"]))).collect()
}

/// Waits until the prefill engines are bound to so many decode engines.
async fn until_bound(world: &World, decodes: usize) -> BTreeMap<String, String> {
    until("bonds", || async {
        let bound = bound(world).await;
        let used: BTreeSet<_> = bound.values().collect();
        let right = bound.len() == world.prefill.len() && used.len() == decodes;
        if right { Ok(bound) } else { Err(format!("{bound:?}")) }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_prefill_engine_writes_to_one_decode_engine_until_that_is_gone() {
    let mut plan = Plan::new(Mode::Write).engines(2, 2).with(Key::EngineTtl, "1s");
    plan.release = "0.29.0";
    let world = plan.start().await;
    let names = until_bound(&world, 2).await;
    // Turns of odd length, so that engines would meet across.
    for requests in [1, 1, 5, 7, 3] {
        traffic(&world, requests).await;
    }
    let mut used = BTreeSet::new();
    for prefill in &world.prefill {
        let partners = partners(prefill, 0);
        let name = &names[&prefill.http_address().to_string()];
        let decode = world.decode.iter().find(|decode| decode.http_address().to_string() == *name).unwrap();
        assert_eq!(partners, BTreeSet::from([u64::from(decode.handshake_port())]));
        used.extend(partners);
    }
    assert_eq!(used.len(), 2, "each decode engine has work");
    world.settle().await;

    // One decode engine ends: whoever was bound to it goes to the other.
    let gone = world.decode[0].http_address().to_string();
    world.decode[0].crash().await;
    until_engine(&world.proxy, &gone, "gone", Value::is_null).await;
    until_bound(&world, 1).await;
    let since: Vec<usize> = world.prefill.iter().map(|prefill| prefill.legs().len()).collect();
    traffic(&world, 8).await;
    for (prefill, since) in world.prefill.iter().zip(since) {
        assert_eq!(partners(prefill, since), BTreeSet::from([u64::from(world.decode[1].handshake_port())]));
    }
    world.settle().await;

    // Back on new ports it is a stranger to both, and gets its share.
    world.decode[0].restart(false).await.unwrap();
    world.until_ready(4).await;
    until_bound(&world, 2).await;
    let legs = world.decode[0].legs().len();
    traffic(&world, 8).await;
    assert!(world.decode[0].legs().len() > legs);
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn others_are_free() {
    join_all([(Mode::Write, "0.31.0"), (Mode::Read, "0.29.0")].map(|(mode, release)| async move {
        let mut plan = Plan::new(mode).engines(1, 2);
        plan.release = release;
        let world = plan.start().await;
        for _ in 0..4 {
            traffic(&world, 1).await;
        }
        assert_eq!(world.proxy.ready().await.1["bound_pairs"], json!([]), "{mode:?} {release}");
        assert!(world.decode.iter().all(|decode| !decode.legs().is_empty()), "{mode:?} {release}");
        world.settle().await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decode_engine_that_is_left_out_says_so() {
    let mut plan = Plan::new(Mode::Write).engines(1, 2);
    plan.release = "0.30.0";
    let world = plan.start().await;
    let names = until_bound(&world, 1).await;
    let busy = names.values().next().unwrap();
    for decode in &world.decode {
        let name = decode.http_address().to_string();
        let reason =
            if name == *busy { Value::Null } else { json!("every prefill engine is bound to another decode engine") };
        until_engine(&world.proxy, &name, "its reason", |engine| engine["reason"] == reason).await;
    }
    traffic(&world, 4).await;
    assert_eq!(world.decode.iter().filter(|decode| decode.legs().is_empty()).count(), 1);
    world.settle().await;
}
