//! What goes wrong between engines, and the two ways out that a proxy has.

use std::time::Duration;

use serde_json::json;

use super::{Engine, Mode, Pair, pack, soon, tell, text, until};

async fn park(pair: &Pair, legs: &super::Legs) -> tokio::task::JoinHandle<(u16, serde_json::Value)> {
    let before = pair.decode.counters().parked;
    let request = pair.decode_request(legs);
    let task = tokio::spawn(async move {
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        (status, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap())
    });
    until(&pair.decode, "parked", |counters| counters.parked == before + 1).await;
    task
}

#[tokio::test]
async fn a_parked_request_whose_client_hangs_up_leaks_for_good() {
    let pair = Pair::start(Mode::Write, "0.32.0").await;
    let legs = pair.legs(8);
    park(&pair, &legs).await.abort();
    until(&pair.decode, "leaked", |counters| counters.leaked_requests == 1 && counters.parked == 0).await;
    let leaked = pair.decode.counters().leaked_blocks;
    assert!(leaked > 0);
    let message = pack(&json!({"type": "write_done", "transfer_id": legs.transfer}));
    tell(pair.decode.notify_port(), &[&message]).await;
    until(&pair.decode, "told", |counters| counters.write_done == 1).await;
    let counters = pair.decode.counters();
    assert_eq!((counters.leaked, counters.used_blocks), (leaked, leaked));
}

#[tokio::test]
async fn un_parking_ends_with_worthless_text_and_free_blocks() {
    for (release, dp) in [("0.23.0", 1), ("0.32.0", 1), ("0.33.0", 8)] {
        let pair = Pair::with(Mode::Write, release, |settings| settings.dp = dp).await;
        let legs = pair.legs(8);
        let parked = park(&pair, &legs).await;
        let message = pack(&json!({"type": "write_done", "transfer_id": legs.transfer}));
        let message = if release == "0.23.0" { legs.transfer.clone().into_bytes() } else { message };
        for rank in 0..dp {
            tell(pair.decode.notify_port() + rank as u16, &[&message]).await;
        }
        let (status, body) = soon(parked).await.unwrap();
        assert_eq!(status, 200);
        assert_ne!(body["choices"][0]["text"], json!(text(8)));
        until(&pair.decode, "free", |counters| counters.used_blocks + counters.parked == 0).await;
        let counters = pair.decode.counters();
        assert_eq!((counters.woken_empty, counters.leaked_blocks, counters.deaf), (1, 0, 0));
    }
}

#[tokio::test]
async fn write_failed_ends_a_parked_request_from_0_33_on() {
    let pair = Pair::start(Mode::Write, "0.33.0").await;
    let legs = pair.legs(8);
    let parked = park(&pair, &legs).await;
    let message = pack(&json!({"type": "write_failed", "transfer_id": legs.transfer}));
    tell(pair.decode.notify_port(), &[&message]).await;
    assert_eq!(soon(parked).await.unwrap().0, 500);
    until(&pair.decode, "free", |counters| counters.used_blocks == 0).await;

    let old = Pair::start(Mode::Write, "0.32.0").await;
    tell(old.decode.notify_port(), &[&message]).await;
    until(&old.decode, "deaf", |counters| counters.deaf == 1).await;
}

#[tokio::test]
async fn a_release_frees_what_nobody_will_fetch() {
    for (mode, release) in
        [(Mode::Read, "0.23.0"), (Mode::Read, "0.24.0"), (Mode::Read, "0.32.0"), (Mode::Write, "0.32.0")]
    {
        let pair = Pair::with(mode, release, |settings| settings.tp = 2).await;
        let legs = pair.legs(8);
        soon(pair.send_prefill(&legs)).await.unwrap();
        assert_eq!(pair.prefill.counters().held, 1);
        let map = pack(&json!({"type": "release", "transfer_id": legs.transfer, "consumer_tp_size": 1}));
        let message = if release == "0.23.0" { legs.transfer.as_bytes() } else { &map };
        tell(pair.prefill.notify_port(), &[message]).await;
        until(&pair.prefill, "half released", |counters| counters.releases == 1).await;
        assert_eq!(pair.prefill.counters().held, 1, "each rank must hear it");
        tell(pair.prefill.notify_port() + 1, &[message]).await;
        until(&pair.prefill, "free", |counters| counters.held + counters.used_blocks == 0).await;
        tell(pair.prefill.notify_port(), &[message]).await;
        until(&pair.prefill, "told again", |counters| counters.releases == 3).await;
        let counters = pair.prefill.counters();
        assert_eq!((counters.released, counters.reaped, counters.deaf), (1, 0, 0));
    }
}

#[tokio::test]
async fn what_nobody_fetches_is_reaped() {
    let pair = Pair::with(Mode::Read, "0.32.0", |settings| settings.defer_timeout = Duration::from_millis(100)).await;
    let mut legs = pair.legs(8);
    let answer = soon(pair.send_prefill(&legs)).await.unwrap();
    until(&pair.prefill, "reaped", |counters| counters.reaped == 1 && counters.used_blocks == 0).await;
    Pair::hand_over(&mut legs, &answer);
    let late = soon(pair.decode_request(&legs).send()).await.unwrap().text().await.unwrap();
    assert!(!late.contains(&text(8)), "freed blocks must not serve");
    assert!(pair.prefill.violations()[0].contains("stale"), "{:?}", pair.prefill.violations());
}

#[tokio::test]
async fn a_prefill_restarted_on_its_ports_fails_its_old_readers_for_ever() {
    let pair = Pair::start(Mode::Read, "0.32.0").await;
    assert_eq!(soon(pair.exchange(pair.legs(3))).await.0, 200);
    soon(pair.prefill.restart(true)).await.unwrap();
    for _ in 0..2 {
        assert_eq!(soon(pair.exchange(pair.legs(3))).await.0, 500);
    }
    assert!(pair.prefill.alive() && pair.decode.alive());
    soon(pair.decode.restart(true)).await.unwrap();
    assert_eq!(soon(pair.exchange(pair.legs(3))).await, (200, text(3)));
}

#[tokio::test]
async fn a_decode_restarted_on_its_ports_ends_its_old_writer() {
    let pair = Pair::start(Mode::Write, "0.32.0").await;
    assert_eq!(soon(pair.exchange(pair.legs(3))).await.0, 200);
    soon(pair.decode.restart(true)).await.unwrap();
    let legs = pair.legs(3);
    let parked = park(&pair, &legs).await;
    let _ = pair.send_prefill(&legs).await;
    until(&pair.prefill, "dead", |counters| counters.died == 1).await;
    assert!(!pair.prefill.alive());
    assert_eq!(pair.decode.counters().parked, 1);
    parked.abort();
    soon(pair.prefill.restart(true)).await.unwrap();
    assert_eq!(soon(pair.exchange(pair.legs(3))).await, (200, text(3)));
}

#[tokio::test]
async fn a_restart_elsewhere_harms_nobody() {
    for mode in [Mode::Read, Mode::Write] {
        let pair = Pair::start(mode, "0.32.0").await;
        assert_eq!(soon(pair.exchange(pair.legs(3))).await.0, 200);
        soon(pair.prefill.restart(false)).await.unwrap();
        soon(pair.decode.restart(false)).await.unwrap();
        assert_eq!(soon(pair.exchange(pair.legs(3))).await, (200, text(3)));
        pair.clean().await;
    }
}

#[tokio::test]
async fn a_read_from_a_dead_peer_freezes_decode_until_it_returns() {
    let pair = Pair::start(Mode::Read, "0.32.0").await;
    let mut legs = pair.legs(3);
    let answer = soon(pair.send_prefill(&legs)).await.unwrap();
    pair.prefill.crash().await;
    Pair::hand_over(&mut legs, &answer);
    let frozen = tokio::spawn(pair.decode_request(&legs).send());
    until(&pair.decode, "frozen", |counters| counters.frozen == 1).await;
    let other = tokio::spawn(pair.decode_request(&pair.legs(3)).send());
    until(&pair.decode, "asked again", |counters| counters.legs == 2).await;
    let health = pair.client.get(format!("http://{}/health", pair.decode.http_address())).send().await.unwrap();
    assert_eq!(health.status(), 200);
    assert!(!frozen.is_finished() && !other.is_finished());
    soon(pair.prefill.restart(true)).await.unwrap();
    until(&pair.decode, "thawed", |counters| counters.frozen == 0).await;
    soon(frozen).await.unwrap().unwrap();
    soon(other).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_decode_leg_for_another_engine_than_prefill_named_corrupts_that_one() {
    let pair = Pair::start(Mode::Write, "0.32.0").await;
    let settings = pair.decode.settings().clone();
    let other = Engine::start(settings).await.unwrap();
    let legs = pair.legs(3);
    let wrong = tokio::spawn(pair.post(&other, &legs, &legs.decode, None).send());
    until(&other, "parked", |counters| counters.parked == 1).await;
    soon(pair.send_prefill(&legs)).await.unwrap();
    until(&pair.decode, "corrupted", |counters| counters.kv_mismatch == 1).await;
    until(&pair.prefill, "aware", |counters| counters.kv_mismatch == 1).await;
    assert_eq!(other.counters().parked, 1);
    wrong.abort();
}

#[tokio::test]
async fn listeners_die_of_what_they_do_not_understand() {
    let cases: [(Mode, &str, bool, Vec<Vec<u8>>); 6] = [
        (Mode::Read, "0.32.0", true, vec![Vec::new(), pack(&json!({"type": "release", "transfer_id": "tx-1"}))]),
        (Mode::Read, "0.32.0", true, vec![pack(&json!({"type": "write_done", "transfer_id": "tx-1"}))]),
        (Mode::Write, "0.32.0", true, vec![pack(&json!({"type": "remote_blocks", "transfer_id": "tx-1"}))]),
        (Mode::Read, "0.22.1", true, vec![b"tx-unknown".to_vec()]),
        (Mode::Read, "0.23.0", true, vec![pack(&json!({"type": "release", "transfer_id": "tx-1"}))]),
        (Mode::Write, "0.32.0", false, vec![pack(&json!({"type": "release", "transfer_id": "tx-1"}))]),
    ];
    for (mode, release, to_prefill, frames) in cases {
        let pair = Pair::start(mode, release).await;
        let engine = if to_prefill { &pair.prefill } else { &pair.decode };
        let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
        tell(engine.notify_port(), &frames).await;
        until(engine, "deaf", |counters| counters.deaf == 1).await;
        tell(engine.handshake_port(), &[b"hello"]).await;
        until(engine, "deaf on both", |counters| counters.deaf == 2).await;
        assert!(engine.alive());
    }
}

#[tokio::test]
async fn a_read_leg_cut_early_or_refused_still_releases() {
    // Half of the pool is taken, so that the leg to be cut waits for blocks.
    let pair = Pair::with(Mode::Read, "0.32.0", |settings| settings.blocks = 8).await;
    let mut legs = pair.legs(60);
    legs.decode["stream"] = json!(true);
    let answer = soon(pair.send_prefill(&legs)).await.unwrap();
    Pair::hand_over(&mut legs, &answer);
    pair.decode.set_fault(crate::sim::Fault::times(crate::sim::FaultKind::HangAfterTokens { tokens: 1 }, 1));
    let first = soon(pair.decode_request(&legs).send()).await.unwrap();
    let mut legs = pair.legs(60);
    let answer = soon(pair.send_prefill(&legs)).await.unwrap();
    Pair::hand_over(&mut legs, &answer);
    let second = tokio::spawn(pair.decode_request(&legs).send());
    until(&pair.decode, "waiting", |counters| counters.waiting == 1).await;
    second.abort();
    until(&pair.prefill, "released", |counters| counters.released == 2).await;
    drop(first);
    let mut legs = pair.legs(0);
    let answer = soon(pair.send_prefill(&legs)).await.unwrap();
    Pair::hand_over(&mut legs, &answer);
    assert_eq!(soon(pair.decode_request(&legs).send()).await.unwrap().status(), 400);
    pair.clean().await;
}

#[tokio::test]
async fn several_first_contacts_at_once_are_noted_where_they_harm() {
    for (release, harmful) in [("0.30.0", true), ("0.32.0", false)] {
        let pair = Pair::start(Mode::Read, release).await;
        pair.prefill.set_fault(crate::sim::Fault::always(crate::sim::FaultKind::CloseHandshakePort));
        let mut sent = Vec::new();
        for _ in 0..2 {
            let mut legs = pair.legs(3);
            let answer = soon(pair.send_prefill(&legs)).await.unwrap();
            Pair::hand_over(&mut legs, &answer);
            sent.push(legs);
        }
        // Both are inside before the first handshake can end.
        pair.decode.set_fault(crate::sim::Fault::times(crate::sim::FaultKind::Delay { milliseconds: 1 }, 2));
        let both = futures::future::join_all(sent.iter().map(|legs| pair.decode_request(legs).send()));
        let opened = async {
            until(&pair.decode, "overlapped", |counters| counters.first_contact_overlaps == 1).await;
            pair.prefill.clear_faults();
        };
        let (answers, ()) = soon(async { tokio::join!(both, opened) }).await;
        assert!(answers.iter().all(Result::is_ok));
        assert_eq!(pair.decode.counters().violations > 0, harmful);
    }
}

#[tokio::test]
async fn a_dead_decode_stalls_prefill_for_the_transfer_timeout() {
    let short = |settings: &mut crate::sim::Settings| settings.transfer_timeout = Duration::from_millis(200);
    let pair = Pair::with(Mode::Write, "0.32.0", short).await;
    pair.decode.crash().await;
    let legs = pair.legs(3);
    assert!(soon(pair.send_prefill(&legs)).await.unwrap()["choices"].is_array());
    assert_eq!(pair.prefill.counters().held, 1);
    let message = pack(&json!({"type": "release", "transfer_id": legs.transfer, "consumer_tp_size": 1}));
    tell(pair.prefill.notify_port(), &[&message]).await;
    until(&pair.prefill, "free", |counters| counters.used_blocks == 0).await;
    // The handshake thread is still busy, and serves the peer as soon as it is back.
    soon(pair.decode.restart(true)).await.unwrap();
    assert_eq!(soon(pair.exchange(pair.legs(3))).await, (200, text(3)));
}

#[tokio::test]
async fn releases_that_never_worked_do_not_work_here() {
    // Decode's release carries a name that prefill's listener dies of.
    let pair = Pair::start(Mode::Read, "0.19.1").await;
    assert_eq!(soon(pair.exchange(pair.legs(3))).await, (200, text(3)));
    until(&pair.prefill, "deaf", |counters| counters.deaf == 1 && counters.held == 1).await;
    // Decode asks itself for the KV.
    let pair = Pair::start(Mode::Write, "0.22.0").await;
    let _parked = park(&pair, &pair.legs(3)).await;
    until(&pair.decode, "deaf", |counters| counters.deaf == 1).await;
    // A transfer id without tx ends decode's listener up to 0.23.
    let pair = Pair::start(Mode::Write, "0.19.1").await;
    let mut legs = pair.legs(3);
    for body in [&mut legs.prefill, &mut legs.decode] {
        body["kv_transfer_params"]["transfer_id"] = json!("5f0c");
    }
    let _parked = park(&pair, &legs).await;
    soon(pair.send_prefill(&legs)).await.unwrap();
    until(&pair.decode, "deaf", |counters| counters.deaf == 1 && counters.parked == 1).await;
}
