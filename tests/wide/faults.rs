//! What fails between engines over several hosts: legs, and hosts.

use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Engine, Fault, FaultKind, Mode};
use serde_json::{Value, json};

use super::{Layout, PROMPT, requests, side};
use crate::support::{World, client, completion, post, strike, until, until_true};

fn refuse(status: u16) -> FaultKind {
    FaultKind::Status { status, body: json!({"error": {"message": "scripted", "code": status}}).to_string() }
}

/// Each of a prefill engine's ranks once.
async fn all_fail(world: &World, ranks: usize, status: u16) {
    for number in 0..ranks {
        let body = completion(&format!("{number} {PROMPT}"), 4, true);
        let answer = post(&world.proxy, "/v1/completions", &body).await;
        assert_eq!(answer.status, status, "{}", answer.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_of_every_rank_are_released_where_they_are() {
    for mode in [Mode::Write, Mode::Read] {
        for serve in [false, true] {
            let layout =
                Layout::new(mode, side(2, 2), side(2, 2)).with(Key::Retries, "0").with(Key::BreakerFailures, "0");
            let layout = if serve { layout.serving() } else { layout };
            let world = layout.start().await;
            requests(&world, 4).await;
            let before = world.prefill[0].counters();
            strike(&world.decode[0], Fault::always(refuse(500))).await;
            all_fail(&world, 4, 500).await;
            until_true("all releases", || world.prefill[0].counters().releases >= before.releases + 4).await;
            world.decode[0].clear_faults();
            world.settle().await;
            let after = world.prefill[0].counters();
            let gone = [after.reaped, after.misplaced_releases, after.stray_releases];
            assert_eq!(gone, [0; 3], "{mode:?}, serving {serve}: reaped, misplaced, stray");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_legs_of_every_rank_are_woken_where_they_are() {
    for contract in ["leader", "same-rank"] {
        for serve in [false, true] {
            let layout = Layout::new(Mode::Write, side(2, 2), side(2, 2));
            let layout =
                layout.with(Key::Retries, "0").with(Key::BreakerFailures, "0").with(Key::WriteContract, contract);
            let layout = if serve { layout.serving() } else { layout };
            let world = layout.start().await;
            requests(&world, 8).await;
            // Late enough for every decode leg to wait: one that is not yet written would be revoked instead.
            strike(&world.prefill[0], Fault::always(FaultKind::Delay { milliseconds: 300 })).await;
            strike(&world.prefill[0], Fault::always(refuse(500))).await;
            all_fail(&world, 4, 500).await;
            world.prefill[0].clear_faults();
            world.settle().await;
            let sent = world.proxy.metric("moriio_kv_messages_total{kind=\"unpark\",outcome=\"sent\"}").await;
            // A pinned leg's rank alone is told, else all that may have it.
            let each = match (contract, serve) {
                ("same-rank", _) => 1.0,
                (_, true) => 2.0,
                (_, false) => 4.0,
            };
            assert_eq!(sent, 4.0 * each, "{contract}, serving {serve}");
            assert_eq!(world.total(|counters| counters.woken_empty), 4, "{contract}, serving {serve}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_leave_cost_no_blocks_on_any_host() {
    for mode in [Mode::Write, Mode::Read] {
        let mut layout = Layout::new(mode, side(2, 2), side(2, 2));
        layout.adjust = |settings| settings.token_delay = std::time::Duration::from_millis(20);
        let world = layout.start().await;
        let asked = (0..16).map(|number| {
            let request = client().post(world.proxy.url("/v1/completions"));
            let request = request.json(&completion(&format!("{number} {PROMPT}"), 64, true));
            tokio::time::timeout(std::time::Duration::from_millis(10 * number), request.send())
        });
        futures::future::join_all(asked).await;
        world.settle().await;
        assert_eq!(world.total(|counters| counters.reaped), 0, "{mode:?}");
    }
}

/// An engine as `/ready` has it; null when it has left.
async fn status(world: &World, engine: &Engine) -> Value {
    let (_, body) = world.proxy.ready().await;
    let address = engine.http_address().to_string();
    let found = body["engines"].as_array().unwrap().iter().find(|told| told["address"] == address.as_str());
    found.cloned().unwrap_or_default()
}

/// Loses a host, and waits until the proxy says so.
async fn lose(world: &World, engine: &Engine) -> u64 {
    let life = status(world, engine).await["incarnation"].as_u64().unwrap();
    engine.lose_host(1).await.unwrap();
    let host = engine.settings().hosts[1];
    until("a lost host", || async {
        // Whoever is refused has it asked at once; else it is looked at every 10 s.
        let told = status(world, engine).await;
        let reason = told["reason"].as_str().unwrap_or_default().to_owned();
        let is_named = told["state"] == "unhealthy" && reason.starts_with(&format!("host {host}: "));
        if is_named && reason.ends_with("refuses connections") { Ok(()) } else { Err(told.to_string()) }
    })
    .await;
    life
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_lost_a_host_comes_back_as_another() {
    for (mode, serve) in [(Mode::Write, false), (Mode::Write, true), (Mode::Read, false), (Mode::Read, true)] {
        let layout = Layout::new(mode, side(2, 2), side(2, 2)).with(Key::EngineTtl, "1s");
        let layout = if serve { layout.serving() } else { layout };
        let world = layout.start().await;
        requests(&world, 8).await;
        world.settle().await;
        // Who dials remembers; so it is the one that may come back alone.
        let (dialer, dialed) = match mode {
            Mode::Write => (&world.prefill[0], &world.decode[0]),
            Mode::Read => (&world.decode[0], &world.prefill[0]),
        };
        let life = lose(&world, dialer).await;
        let answer = post(&world.proxy, "/v1/completions", &completion(PROMPT, 4, false)).await;
        assert_eq!((answer.status, answer.code().as_str()), (503, "no_pair"), "{}", answer.body);
        assert_eq!(world.proxy.metric("moriio_engine_unusable{").await, 1.0);
        assert!(world.proxy.metrics().await.contains("reason=\"host_lost\""));
        dialer.restore_host(1).await.unwrap();
        world.until_ready(2).await;
        assert!(status(&world, dialer).await["incarnation"].as_u64().unwrap() > life);
        requests(&world, 8).await;
        world.settle().await;
        // The other side: those that have met it must be started again.
        lose(&world, dialed).await;
        dialed.restore_host(1).await.unwrap();
        world.until_ready(2).await;
        let stale = status(&world, dialer).await["reason"].clone();
        assert_eq!(stale, "every pair is stale", "{mode:?}, serving {serve}");
        let answer = post(&world.proxy, "/v1/completions", &completion(PROMPT, 4, false)).await;
        assert_eq!(answer.status, 503, "{}", answer.body);
        let life = status(&world, dialer).await["incarnation"].as_u64().unwrap();
        dialer.crash().await;
        until("a missed engine", || async {
            let told = status(&world, dialer).await;
            if told.is_null() || told["state"] == "unhealthy" { Ok(()) } else { Err(told.to_string()) }
        })
        .await;
        dialer.restart(true).await.unwrap();
        until("a new life", || async {
            let told = status(&world, dialer).await;
            let is_new = told["incarnation"].as_u64().is_some_and(|now| now > life) && told["state"] == "ready";
            if is_new { Ok(()) } else { Err(told.to_string()) }
        })
        .await;
        requests(&world, 8).await;
        world.settle().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn legs_that_a_lost_host_held_are_answered_and_counted() {
    for mode in [Mode::Write, Mode::Read] {
        for hang in [false, true] {
            let mut layout = Layout::new(mode, side(2, 2), side(2, 2)).with(Key::EngineTtl, "1s");
            layout = layout.with(Key::Retries, "0").with(Key::PrefillTimeout, "6s").with(Key::FirstByteTimeout, "6s");
            layout = layout.with(Key::BreakerFailures, "0");
            layout.adjust = match hang {
                true => |settings| {
                    settings.lost_ranks_hang = true;
                    settings.prefill_delay = std::time::Duration::from_millis(300);
                },
                false => |settings| settings.prefill_delay = std::time::Duration::from_millis(300),
            };
            let world = layout.start().await;
            requests(&world, 4).await;
            let asked = (0..8).map(|number| {
                let body = completion(&format!("{number} {PROMPT}"), 4, number % 2 == 0);
                let proxy = &world.proxy;
                async move { post(proxy, "/v1/completions", &body).await }
            });
            let (answers, ()) = tokio::join!(futures::future::join_all(asked), async {
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                world.prefill[0].lose_host(1).await.unwrap();
            });
            let failed = answers.iter().filter(|answer| answer.status != 200).count();
            assert!(failed >= 2, "{mode:?}, hanging {hang}: {answers:?}");
            for answer in answers.iter().filter(|answer| answer.status != 200) {
                assert!(answer.status >= 500, "{}", answer.body);
            }
            until("a lost host", || async {
                let told = status(&world, &world.prefill[0]).await;
                if told["state"] == "unhealthy" { Ok(()) } else { Err(told.to_string()) }
            })
            .await;
            world.settle().await;
        }
    }
}
