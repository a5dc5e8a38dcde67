//! Messages between engines that come too early, too late or twice.

use std::time::Duration;

use serde_json::json;

use super::{Engine, Mode, Pair, pack, soon, tell, text, until};

fn write_done(transfer: &str) -> Vec<u8> {
    pack(&json!({"type": "write_done", "transfer_id": transfer}))
}

fn release(transfer: &str) -> Vec<u8> {
    pack(&json!({"type": "release", "transfer_id": transfer, "consumer_tp_size": 1}))
}

#[tokio::test]
async fn a_second_completion_ends_a_decode_that_is_at_work() {
    let slow = |settings: &mut crate::sim::Settings| settings.token_delay = Duration::from_millis(50);
    let pair = Pair::with(Mode::Write, "0.32.0", slow).await;
    let legs = pair.legs(200);
    let request = pair.decode_request(&legs);
    tokio::spawn(request.send());
    until(&pair.decode, "parked", |counters| counters.parked == 1).await;
    tell(pair.decode.notify_port(), &[&write_done(&legs.transfer)]).await;
    until(&pair.decode, "at work", |counters| counters.running == 1).await;
    tell(pair.decode.notify_port(), &[&write_done(&legs.transfer)]).await;
    until(&pair.decode, "dead", |counters| counters.died == 1).await;
    assert!(pair.decode.counters().died_of.unwrap().contains("no longer waits"));
}

#[tokio::test]
async fn a_completion_that_comes_early_is_kept_and_one_that_comes_late_is_not_missed() {
    let pair = Pair::start(Mode::Write, "0.32.0").await;
    let legs = pair.legs(3);
    tell(pair.decode.notify_port(), &[&write_done(&legs.transfer)]).await;
    until(&pair.decode, "told", |counters| counters.write_done == 1).await;
    assert_eq!(soon(pair.decode_request(&legs).send()).await.unwrap().status(), 200);
    assert_eq!(pair.decode.counters().woken_empty, 1);
    // Its request has ended: another one does no harm.
    tell(pair.decode.notify_port(), &[&write_done(&legs.transfer)]).await;
    until(&pair.decode, "told again", |counters| counters.write_done == 2).await;
    assert_eq!(soon(pair.exchange(pair.legs(3))).await, (200, text(3)));
    assert_eq!(pair.decode.counters().died, 0);
}

async fn begun(release: &str) -> (Pair, super::Legs, tokio::task::JoinHandle<()>) {
    let slow = |settings: &mut crate::sim::Settings| settings.prefill_delay = Duration::from_millis(700);
    let pair = Pair::with(Mode::Read, release, slow).await;
    let legs = pair.legs(3);
    let request = pair.post(&pair.prefill, &legs, &legs.prefill, None);
    let prefill = tokio::spawn(async move {
        let _ = request.send().await;
    });
    until(&pair.prefill, "at work", |counters| counters.running == 1).await;
    (pair, legs, prefill)
}

#[tokio::test]
async fn an_early_release_waits_for_its_prefill_from_0_28_on_and_ends_older_engines() {
    for minor in [24, 26, 27] {
        let (pair, legs, prefill) = begun(&format!("0.{minor}.0")).await;
        tell(pair.prefill.notify_port(), &[&release(&legs.transfer)]).await;
        until(&pair.prefill, "dead", |counters| counters.died == 1).await;
        prefill.abort();
    }
    let (pair, legs, prefill) = begun("0.28.0").await;
    tell(pair.prefill.notify_port(), &[&release(&legs.transfer)]).await;
    soon(prefill).await.unwrap();
    until(&pair.prefill, "free", |counters| counters.released == 1 && counters.used_blocks == 0).await;
}

#[tokio::test]
async fn an_older_engine_dies_of_the_release_of_a_prefill_that_was_left() {
    for (release_of, dies) in [("0.27.0", true), ("0.28.0", false)] {
        let (pair, legs, prefill) = begun(release_of).await;
        prefill.abort();
        until(&pair.prefill, "left", |counters| counters.running + counters.used_blocks == 0).await;
        tell(pair.prefill.notify_port(), &[&release(&legs.transfer)]).await;
        until(&pair.prefill, "told", |counters| counters.releases == 1).await;
        let told = |engine: &Engine| engine.counters().died == u64::from(dies);
        soon(async {
            while !told(&pair.prefill) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_release_before_its_prefill_is_lost_kept_or_deadly() {
    for (minor, died, released) in [(24, 0, 0), (27, 1, 0), (28, 0, 1)] {
        let pair = Pair::start(Mode::Read, &format!("0.{minor}.0")).await;
        let legs = pair.legs(3);
        tell(pair.prefill.notify_port(), &[&release(&legs.transfer)]).await;
        until(&pair.prefill, "told", |counters| counters.releases == 1).await;
        let request = pair.post(&pair.prefill, &legs, &legs.prefill, None);
        let prefill = tokio::spawn(request.send());
        // What a dying engine still does is of no account.
        let outcome = |c: &crate::sim::Counters| c.died == died && (died > 0 || c.released == released);
        until(&pair.prefill, "done", |counters| outcome(counters) && counters.died + counters.completed > 0).await;
        prefill.abort();
    }
}

#[tokio::test]
async fn a_prompt_of_one_token_is_never_answered_by_an_older_write_decode() {
    for (release, answers) in [("0.31.0", false), ("0.32.0", true)] {
        let pair = Pair::start(Mode::Write, release).await;
        let mut legs = pair.legs(3);
        for body in [&mut legs.prefill, &mut legs.decode] {
            body["prompt"] = json!([7]);
        }
        let answer = tokio::time::timeout(Duration::from_secs(1), pair.exchange(legs)).await;
        assert_eq!(answer.is_ok_and(|answer| answer.0 == 200), answers, "{release}");
    }
}

/// A prefill engine ends with the decode engine into which it pushes; one that has met it and is asked later does, too.
#[tokio::test]
async fn a_prefill_ends_with_the_decode_it_pushes_into() {
    let pair = Pair::start(Mode::Write, "0.32.0").await;
    assert_eq!(soon(pair.exchange(pair.legs(3))).await, (200, text(3)));
    let legs = pair.legs(3);
    let request = pair.decode_request(&legs);
    let parked = tokio::spawn(request.send());
    until(&pair.decode, "parked", |counters| counters.parked == 1).await;
    until(&pair.prefill, "asked", |counters| counters.remote_blocks == 2).await;
    pair.decode.crash().await;
    let request = pair.post(&pair.prefill, &legs, &legs.prefill, None);
    let prefill = tokio::spawn(request.send());
    until(&pair.prefill, "ended", |counters| counters.ended_with_peer == 1 && counters.died == 0).await;
    assert!(!pair.prefill.alive());
    parked.abort();
    prefill.abort();
}
