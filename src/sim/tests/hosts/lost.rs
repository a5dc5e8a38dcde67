//! Child hosts that go and come back.

use std::time::Duration;

use serde_json::json;

use super::{Contract, Engine, Mode, Role, Wide, settings, transfer};
use crate::sim::tests::{soon, until};

#[tokio::test]
async fn the_master_goes_on_without_a_child() {
    for (hangs, serve) in [(false, false), (true, false), (false, true)] {
        let mut decode = settings(Role::Decode, Mode::Write, "0.32.0", 2);
        (decode.lost_ranks_hang, decode.children_serve) = (hangs, serve);
        decode.registration = "127.0.0.1:9".into();
        decode.ping_interval = Duration::from_millis(10);
        let prefill = Engine::start(settings(Role::Prefill, Mode::Write, "0.32.0", 2)).await.unwrap();
        let wide = Wide { prefill, decode: Engine::start(decode).await.unwrap(), client: reqwest::Client::new() };
        wide.write(0, Contract::Leader(Some(3))).await;
        let parked = wide.spawn(&wide.decode_leg(&transfer(), 0, Contract::Leader(Some(3))));
        until(&wide.decode, "parked", |counters| counters.parked == 1).await;

        let left = wide.spawn(&wide.decode_leg(&transfer(), 0, Contract::Leader(Some(2))));
        until(&wide.decode, "parked", |counters| counters.parked == 2).await;
        left.abort();
        until(&wide.decode, "leaked", |counters| counters.parked == 1 && counters.leaked > 0).await;
        let leaked = wide.decode.counters().leaked_blocks;

        wide.decode.lose_host(1).await.unwrap();
        let (pings, counters) = (wide.decode.counters().pings, wide.decode.counters());
        assert_eq!((counters.parked, counters.used_blocks, counters.leaked, counters.leaked_blocks), (0, 0, 0, leaked));
        until(&wide.decode, "pinging", |counters| counters.pings > pings).await;
        let leg = wide.decode_leg(&transfer(), 0, Contract::Leader(Some(3)));
        match (serve, hangs) {
            (true, _) => {
                assert!(soon(parked).await.is_err(), "its own connection is cut");
                assert!(wide.spawn(&leg).await.is_err(), "nobody listens");
            }
            (false, false) => assert_eq!((soon(parked).await.unwrap().0, wide.send(&leg).await.0), (500, 500)),
            (false, true) => {
                let sent = wide.spawn(&leg);
                tokio::time::sleep(Duration::from_millis(300)).await;
                assert!(!sent.is_finished() && !parked.is_finished());
                [sent, parked].iter().for_each(tokio::task::JoinHandle::abort);
            }
        }
        // Whom prefill has met it can still serve on the host that is left.
        wide.write(3, Contract::Leader(Some(1))).await;
        assert!(wide.decode.alive() && wide.prefill.alive());
    }
}

#[tokio::test]
async fn what_a_lost_host_held_is_lost() {
    let wide = Wide::start(Mode::Read, "0.32.0", false, (2, 2)).await;
    for rank in 0..4 {
        assert_eq!(wide.send(&wide.prefill_leg(&transfer(), rank)).await.0, 200);
    }
    assert_eq!(wide.prefill.counters().held, 4);
    let each = wide.prefill.counters().used_blocks / 4;
    wide.prefill.lose_host(1).await.unwrap();
    assert_eq!((wide.prefill.counters().held, wide.prefill.counters().used_blocks), (2, 2 * each));
    for host in [0, 2] {
        assert!(wide.prefill.lose_host(host).await.is_err());
    }
}

/// Its peers know the processes that are gone, and not those that took their place.
#[tokio::test]
async fn a_host_that_is_back_is_a_stranger_to_those_who_met_it() {
    for serve in [false, true] {
        let wide = Wide::start(Mode::Read, "0.32.0", serve, (2, 2)).await;
        wide.read(1, None).await;
        wide.read(3, None).await;
        wide.prefill.lose_host(1).await.unwrap();
        wide.prefill.restore_host(1).await.unwrap();
        wide.read(1, None).await;
        let answer = wide.send(&wide.prefill_leg(&transfer(), 3)).await;
        assert_eq!(answer.0, 200);
        assert_eq!(wide.send(&wide.aliased(&answer.1, 3, None)).await.0, 500);
        // Its other rank was never met.
        wide.read(2, None).await;
        wide.clean().await;
    }
}

#[tokio::test]
async fn streams_of_a_lost_rank_end() {
    let mut decode = settings(Role::Decode, Mode::Read, "0.32.0", 2);
    decode.token_delay = Duration::from_millis(20);
    let prefill = Engine::start(settings(Role::Prefill, Mode::Read, "0.32.0", 2)).await.unwrap();
    let wide = Wide { prefill, decode: Engine::start(decode).await.unwrap(), client: reqwest::Client::new() };
    let answer = wide.send(&wide.prefill_leg(&transfer(), 0)).await.1;
    let mut leg = wide.aliased(&answer, 0, Some(2));
    (leg.body["stream"], leg.body["max_tokens"]) = (json!(true), json!(10_000));
    let url = format!("http://{}/v1/completions", leg.to);
    let request = wide.client.post(url).header("X-data-parallel-rank", "2").header("X-Request-Id", "x");
    let mut stream = request.body(leg.body.to_string()).send().await.unwrap();
    assert!(stream.chunk().await.unwrap().is_some());
    wide.decode.lose_host(1).await.unwrap();
    while let Ok(Some(_)) = stream.chunk().await {}
    until(&wide.decode, "ended", |counters| counters.running == 0).await;
    wide.read(0, Some(0)).await;
    // An engine on one host has no child to lose.
    let one = Engine::start(settings(Role::Decode, Mode::Read, "0.32.0", 1)).await.unwrap();
    assert!(one.lose_host(0).await.is_err() && one.restore_host(1).await.is_err());
}
