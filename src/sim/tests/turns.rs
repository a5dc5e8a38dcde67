//! Prefill ranks that compute one prompt at a time.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::{Instant as Virtual, advance};

use super::{Mode, Pair, soon, until};
use crate::sim::turn::Desk;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn turns_are_taken_in_order_and_cost_no_more_than_the_work() {
    let (desk, start) = (Desk::new(), Virtual::now());
    let mut first = desk.free().unwrap();
    assert!(desk.free().is_none());
    let order = std::sync::Mutex::new(Vec::new());
    let wait = async |name: u32| {
        let mut turn = desk.turn().await;
        turn.work(Virtual::now(), SECOND).await;
        order.lock().unwrap().push((name, start.elapsed().as_secs()));
    };
    let leaves = async {
        assert!(tokio::time::timeout(SECOND / 2, desk.turn()).await.is_err());
    };
    let begins = async {
        first.work(Virtual::now(), SECOND).await;
        // It is late to go, which costs the others nothing.
        advance(SECOND / 4).await;
        drop(first);
    };
    tokio::join!(begins, wait(1), leaves, wait(2), wait(3));
    assert_eq!(*order.lock().unwrap(), [(1, 2), (2, 3), (3, 4)]);
    assert_eq!(start.elapsed(), 4 * SECOND);
    // Who leaves while computing leaves the rest of the time to the next.
    let mut turn = desk.free().unwrap();
    assert!(tokio::time::timeout(SECOND / 2, turn.work(Virtual::now(), 60 * SECOND)).await.is_err());
    drop(turn);
    let mut turn = desk.turn().await;
    turn.work(Virtual::now(), SECOND).await;
    assert_eq!(start.elapsed().as_millis(), 5500);
}

/// Sends a prompt of so many tokens, whose first is `first`, to a rank. Gives the time of its answer.
fn send(pair: &Pair, first: usize, tokens: usize, rank: u32) -> JoinHandle<Instant> {
    let mut legs = pair.legs(1);
    legs.prefill["prompt"] = json!((first..first + tokens).collect::<Vec<_>>());
    let sent = pair.post(&pair.prefill, &legs, &legs.prefill, Some(rank)).send();
    tokio::spawn(async move {
        assert_eq!(soon(sent).await.unwrap().status(), 200);
        Instant::now()
    })
}

async fn pair(cache: usize) -> Pair {
    Pair::with(Mode::Read, "0.32.0", |settings| {
        (settings.prefill_rate, settings.cache_tokens, settings.dp) = (1000, cache, 2);
    })
    .await
}

#[tokio::test]
async fn a_rank_computes_by_its_rate_in_the_order_of_arrival() {
    let pair = pair(0).await;
    let start = Instant::now();
    let mut sent = vec![send(&pair, 0, 3000, 0)];
    until(&pair.prefill, "at work", |counters| counters.prompt_tokens == 3000).await;
    for waiting in 1..=3 {
        sent.push(send(&pair, waiting * 10_000, 200, 0));
        until(&pair.prefill, "in line", |counters| counters.waiting == waiting as u64).await;
    }
    // The other rank has a line of its own.
    let other = send(&pair, 0, 300, 1);
    until(&pair.prefill, "both at work", |counters| counters.prompt_tokens == 3300).await;
    // Who leaves the line is not waited for.
    sent.remove(2).abort();
    until(&pair.prefill, "shorter", |counters| counters.waiting == 2).await;
    let mut ends = Vec::new();
    for sent in sent {
        ends.push((sent.await.unwrap() - start).as_millis());
    }
    assert!(ends.is_sorted(), "{ends:?}");
    let least = ends.iter().zip([3000, 3200, 3400]).all(|(end, least)| *end >= least);
    assert!(least, "{ends:?}");
    assert!((other.await.unwrap() - start).as_millis() >= 300);
    assert_eq!(pair.prefill.counters().prompt_tokens, 3700);
}

#[tokio::test]
async fn what_is_cached_takes_no_time_and_the_next_in_line_has_it() {
    let pair = pair(10_000).await;
    let start = Instant::now();
    let first = send(&pair, 0, 801, 0);
    until(&pair.prefill, "at work", |counters| counters.prompt_tokens == 801).await;
    let second = send(&pair, 0, 801, 0);
    first.await.unwrap();
    second.await.unwrap();
    assert!(start.elapsed().as_millis() >= 801);
    let counters = pair.prefill.counters();
    assert_eq!((counters.prompt_tokens, counters.cached_tokens), (1602, 800));
    // Who leaves while it is computed leaves nothing in the cache.
    let left = send(&pair, 50_000, 8000, 0);
    until(&pair.prefill, "at work", |counters| counters.prompt_tokens == 9602).await;
    left.abort();
    until(&pair.prefill, "free", |counters| counters.running == 0).await;
    send(&pair, 50_000, 100, 0).await.unwrap();
    assert_eq!(pair.prefill.counters().cached_tokens, 800);
}
