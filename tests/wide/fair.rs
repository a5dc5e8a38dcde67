//! Who gets how much, and what is said of who gets nothing.

use std::time::Duration;

use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Fault, FaultKind, Mode};
use serde_json::Value;

use super::{Layout, PROMPT, Side, by_rank, entries, requests, side};
use crate::support::{Proxy, completion, engine, generate, post, strike, until};

/// Same ranks, one prefill engine and two decode engines of as many: no rank is beyond the smaller side.
#[tokio::test(flavor = "multi_thread")]
async fn same_rank_uses_every_rank_of_every_decode_engine() {
    let layout = Layout::new(Mode::Write, side(2, 2), Side { engines: 2, ..side(2, 2) });
    let world = layout.with(Key::WriteContract, "same-rank").start().await;
    requests(&world, 64).await;
    let legs = by_rank(&world.decode);
    assert!(legs.iter().flatten().all(|legs| *legs > 0), "{legs:?}");
    world.settle().await;
}

/// Same ranks, one decode engine with fewer than the other is out: turns stay even over what is left.
#[tokio::test(flavor = "multi_thread")]
async fn decode_engines_of_as_many_ranks_have_as_many_legs() {
    // One is served by its first host, the other by each of its own.
    let layout = Layout::new(Mode::Write, side(1, 4), Side { engines: 2, ..side(4, 1) });
    let mut settings = layout.settings();
    settings[2].children_serve = true;
    let world = layout.open(&entries(&settings), settings).await;
    world.until_ready(3).await;
    requests(&world, 40).await;
    let legs: Vec<u64> = by_rank(&world.decode).iter().map(|ranks| ranks.iter().sum()).collect();
    assert!(legs[0].abs_diff(legs[1]) <= 4, "{legs:?}");
    world.settle().await;
}

/// `/ready` is 503 without a usable pair.
#[tokio::test(flavor = "multi_thread")]
async fn ready_does_not_lie_of_a_pair_that_cannot_be_told_of_hosts() {
    let layout = Layout::new(Mode::Write, side(2, 2), side(1, 1));
    let mut settings = layout.settings();
    settings[1].release = "0.27.1".into();
    let world = layout.open(&entries(&settings), settings).await;
    until("a reason", || async {
        let (_, body) = world.proxy.ready().await;
        let told = body["engines"].as_array().unwrap();
        let is_it = |told: &Value| told["reason"] == "it and its peers cannot tell each other of several hosts";
        if told.len() == 2 && told.iter().all(is_it) { Ok(()) } else { Err(body.to_string()) }
    })
    .await;
    let answer = post(&world.proxy, "/v1/completions", &completion("a", 2, false)).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "no_pair"), "{}", answer.body);
    let (status, body) = world.proxy.ready().await;
    assert_eq!(status, 503, "{body}");
}

/// A mix of peers that cannot be told and peers that are stale: nobody can be used, and somebody must be told why.
#[tokio::test(flavor = "multi_thread")]
async fn an_engine_without_a_usable_peer_has_a_reason() {
    // Prefill over two hosts; one decode is too old, the other is met and then restarted: stale.
    let layout = Layout::new(Mode::Write, side(2, 2), Side { engines: 2, ..side(1, 1) }).with(Key::EngineTtl, "1s");
    let mut settings = layout.settings();
    settings[1].release = "0.27.1".into();
    let world = layout.open(&entries(&settings), settings).await;
    world.until_ready(3).await;
    requests(&world, 4).await;
    world.settle().await;
    world.decode[1].crash().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    world.decode[1].restart(true).await.unwrap();
    until("a stale pair", || async {
        let (_, body) = world.proxy.ready().await;
        let told = body["engines"].as_array().unwrap();
        if told.iter().any(|told| told["reason"] == "every pair is stale") { Ok(()) } else { Err(body.to_string()) }
    })
    .await;
    let answer = post(&world.proxy, "/v1/completions", &completion("a", 2, false)).await;
    assert_eq!(answer.status, 503, "{}", answer.body);
    let (status, body) = world.proxy.ready().await;
    let prefill = body["engines"].as_array().unwrap().iter().find(|told| told["role"] == "prefill").unwrap();
    assert!(prefill["reason"].is_string(), "/ready {status}: {prefill}");
}

/// All hosts are well, and a prefill engine fails with many legs: every one of them is woken.
#[tokio::test(flavor = "multi_thread")]
async fn many_legs_at_once_are_woken() {
    let layout = Layout::new(Mode::Write, side(1, 1), side(2, 16));
    let layout = layout.with(Key::Retries, "0").with(Key::BreakerFailures, "0");
    let world = layout.start().await;
    requests(&world, 2).await;
    strike(&world.prefill[0], Fault::always(FaultKind::Delay { milliseconds: 3000 })).await;
    strike(&world.prefill[0], Fault::always(FaultKind::CutBeforeAnswer { reset: true })).await;
    let asked = (0..300).map(|number| {
        let body = completion(&format!("{number} {PROMPT}"), 4, true);
        let proxy = &world.proxy;
        async move { post(proxy, "/v1/completions", &body).await.status }
    });
    futures::future::join_all(asked).await;
    world.prefill[0].clear_faults();
    world.settle().await;
    let dropped = world.proxy.metric("moriio_kv_messages_total{kind=\"unpark\",outcome=\"dropped\"}").await;
    assert_eq!(dropped, 0.0);
}

/// A headless host of the waiting side dies with legs on it: how many lines that is.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_host_is_no_flood_of_lines() {
    let layout = Layout::new(Mode::Write, side(1, 1), side(2, 8));
    let mut settings = layout.settings();
    settings[1].ping_interval = Duration::from_millis(200);
    let listed = entries(&settings);
    let options: Vec<(Key, &str)> = vec![
        (Key::DecodeTokenBudget, "exact"),
        (Key::ColdTimeout, "0"),
        (Key::Retries, "0"),
        (Key::BreakerFailures, "0"),
        (Key::EngineHosts, &listed),
    ];
    let proxy = Proxy::apart(&options);
    let mut engines = Vec::new();
    for mut settings in settings {
        settings.registration = proxy.registration.to_string();
        engines.push(engine(settings).await);
    }
    until("both", || async {
        let (status, body) = proxy.ready().await;
        if status == 200 { Ok(()) } else { Err(body.to_string()) }
    })
    .await;
    generate(&proxy, PROMPT, 2, false).await;
    strike(&engines[0], Fault::always(FaultKind::Delay { milliseconds: 1500 })).await;
    strike(&engines[0], Fault::always(FaultKind::CutBeforeAnswer { reset: true })).await;
    let asked = (0..50).map(|number| {
        let body = completion(&format!("{number} {PROMPT}"), 4, true);
        let proxy = &proxy;
        async move { post(proxy, "/v1/completions", &body).await.status }
    });
    let (statuses, ()) = tokio::join!(futures::future::join_all(asked), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        engines[1].lose_host(1).await.unwrap();
    });
    assert!(statuses.iter().all(|status| *status >= 500), "{statuses:?}");
    // One wake for each leg, of which the dead host's ports fail.
    let told = || async { proxy.metric("moriio_kv_messages_total{kind=\"unpark\"").await };
    until("all wakes", || async {
        let told = told().await;
        let parked = engines[1].counters().parked;
        if told > 0.0 && parked == 0 && proxy.metric("moriio_parked_legs_in_flight").await == 0.0 {
            Ok(())
        } else {
            Err(format!("{told}, {parked} parked"))
        }
    })
    .await;
    let lines = proxy.lines("engine could not be notified").len();
    assert!((1..=50).contains(&lines), "{lines} lines for 50 legs");
}

/// READ before 0.31.0: a rank that is presented as an engine of its own is met alone, too.
#[tokio::test(flavor = "multi_thread")]
async fn each_aliased_rank_is_met_alone() {
    let mut layout = Layout::new(Mode::Read, side(2, 2), side(1, 1));
    layout.release = "0.30.0";
    let world = layout.start().await;
    // The pair's first exchange is over, and the pair known.
    generate(&world.proxy, PROMPT, 2, false).await;
    world.settle().await;
    // Handshakes take a moment.
    strike(&world.prefill[0], Fault::always(FaultKind::CloseHandshakePort)).await;
    let asked = async { requests(&world, 8).await };
    let opened = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        world.prefill[0].clear_faults();
    };
    tokio::join!(asked, opened);
    assert_eq!(world.decode[0].counters().first_contact_overlaps, 0);
    world.settle().await;
}
