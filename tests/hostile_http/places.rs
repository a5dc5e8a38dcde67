//! No place left, or no descriptor: probes are answered all the same, idle connections give way, nothing spins.

use std::process::Command;
use std::time::{Duration, Instant};

use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Engine, Fault, FaultKind};
use serde_json::json;

use super::crowds::apart;
use super::wire::Wire;
use super::{body, completions, framed, legs, plan, still_good, world};
use crate::support::binary::Served;
use crate::support::{client, completion, until};

/// What barrier scripts wait for an answer.
const BARRIER: Duration = Duration::from_secs(2);
const PROBES: [&str; 4] = ["/health", "/liveness", "/ready", "/metrics"];

/// Every probe is answered in a barrier's time, on a new connection each.
async fn probed(served: &Served) {
    for path in PROBES {
        let began = Instant::now();
        let sent = client().get(served.url(path)).timeout(BARRIER).send().await;
        let answer = sent.unwrap_or_else(|error| panic!("{path}: {error} after {:?}", began.elapsed()));
        assert_eq!(answer.status(), 200, "{path}");
        assert!(!answer.bytes().await.unwrap().is_empty());
    }
}

/// The sum of the lines that begin so.
async fn metric(served: &Served, line: &str) -> f64 {
    let text = client().get(served.url("/metrics")).send().await.unwrap().text().await.unwrap();
    let values = text.lines().filter(|found| found.starts_with(line)).filter_map(|found| found.rsplit(' ').next());
    values.map(|value| value.parse::<f64>().unwrap()).sum()
}

/// Hundredths of a second of processor time.
fn spent(served: &Served) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", served.process.child.id())).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// Streams that have begun and do not end.
async fn streams(served: &Served, engines: &[Engine; 2], count: usize) -> Vec<Wire> {
    engines[1].set_fault(Fault::always(FaultKind::HangAfterTokens { tokens: 2 }));
    let mut streams = Vec::new();
    for _ in 0..count {
        let mut wire = Wire::open(served.http).await;
        wire.send(&framed(completion("long", 9, true).to_string().as_bytes())).await;
        streams.push(wire);
    }
    until("all streams", || async {
        match engines[1].counters().tokens {
            tokens if tokens >= 2 * count as u64 => Ok(()),
            tokens => Err(format!("{tokens} tokens")),
        }
    })
    .await;
    streams
}

async fn every_place_taken(options: &'static [&'static str], count: usize) {
    let (mut served, engines) = apart(options).await;
    let streams = streams(&served, &engines, count).await;
    probed(&served).await;

    let began = Instant::now();
    let mut refused = Wire::open(served.http).await;
    refused.send(&framed(&body("no place"))).await;
    let reply = refused.answer().await.expect("an answer");
    assert_eq!((reply.status, reply.code().as_str()), (503, "no_place"));
    assert!(reply.has("retry-after: 1") && reply.has("connection: close") && reply.has("x-moriio-error-source: proxy"));
    refused.closed().await;
    assert!(began.elapsed() < BARRIER, "{:?}", began.elapsed());

    // Far more than there are reserved places, and none of them says anything.
    let mut crowd = Vec::new();
    for _ in 0..100 {
        crowd.push(Wire::open(served.http).await);
    }
    probed(&served).await;
    let before = spent(&served);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let spent = spent(&served) - before;
    assert!(spent < 50, "{spent} hundredths of a second in a second of nothing to do");
    for mut silent in crowd {
        assert_eq!(silent.closed().await, b"", "long before --header-timeout");
    }
    probed(&served).await;
    assert_eq!(metric(&served, "moriio_places_in_use ").await, count as f64);
    assert_eq!(metric(&served, "moriio_places_full ").await, 1.0);
    assert_eq!(metric(&served, "moriio_places_missing_total{outcome=\"refused\"} ").await, 1.0);
    assert_eq!(metric(&served, "moriio_errors_total{code=\"no_place\",source=\"proxy\"} ").await, 1.0);

    drop(streams);
    engines[1].clear_faults();
    until("room", || async {
        match metric(&served, "moriio_places_full ").await {
            0.0 => Ok(()),
            _ => Err(format!("{} in use", metric(&served, "moriio_places_in_use ").await)),
        }
    })
    .await;
    let sent = client().post(served.url("/v1/completions")).body(completion("after that", 4, false).to_string());
    assert_eq!(sent.send().await.unwrap().status(), 200);
    until("rest", || async {
        match metric(&served, "moriio_requests_in_flight ").await {
            0.0 => Ok(()),
            count => Err(count.to_string()),
        }
    })
    .await;
    served.process.signal("TERM");
    let (code, log) = tokio::task::spawn_blocking(move || served.finish()).await.unwrap();
    assert_eq!(code, Some(0), "{log}");
    let lines = |text: &str| log.lines().filter(|line| line.contains(text)).count();
    assert_eq!(lines("no place is left for client connections"), 1, "{log}");
    assert_eq!(lines("there are places for client connections again"), 1, "{log}");
    drop(engines);
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_are_answered_when_all_of_twenty_places_are_taken() {
    every_place_taken(&["--max-connections", "20"], 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_are_answered_when_the_only_place_is_taken() {
    every_place_taken(&["--max-connections", "1"], 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_are_answered_when_descriptors_are_exhausted() {
    let (served, engines) = apart(&[]).await;
    let process = served.process.child.id();
    let mut kept = Wire::open(served.http).await;
    kept.send(&framed(&body("kept"))).await;
    assert_eq!(kept.answer().await.expect("an answer").status, 200);
    let open = std::fs::read_dir(format!("/proc/{process}/fd")).unwrap().count();
    let limited = |limit: usize| {
        let limit = format!("--nofile={limit}:1024");
        let done = Command::new("prlimit").args(["--pid", &process.to_string(), &limit]).status().unwrap();
        assert!(done.success());
    };
    limited(open + 8);
    let mut crowd = Vec::new();
    for _ in 0..40 {
        crowd.push(Wire::open(served.http).await);
    }
    for _ in 0..3 {
        probed(&served).await;
    }
    assert_eq!(kept.closed().await, b"", "an idle connection gives its descriptor back");
    let before = spent(&served);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let spent = spent(&served) - before;
    assert!(spent < 50, "{spent} hundredths of a second in a second of nothing to do");
    probed(&served).await;
    drop(crowd);
    limited(1024);
    until("room", || async {
        match metric(&served, "moriio_places_full ").await {
            0.0 => Ok(()),
            _ => Err(String::from("still none")),
        }
    })
    .await;
    let sent = client().post(served.url("/v1/completions")).body(completion("after that", 4, false).to_string());
    assert_eq!(sent.send().await.unwrap().status(), 200);
    drop(engines);
}

/// Legs that find no descriptor wait for one; if none comes, that is no fault of their engines.
#[tokio::test(flavor = "multi_thread")]
async fn a_leg_without_a_descriptor_waits_and_blames_nobody() {
    let (mut served, engines) = apart(&["--connect-timeout=2s", "--breaker-failures=1", "--retries=0"]).await;
    let process = served.process.child.id();
    let mut wires = Vec::new();
    for _ in 0..8 {
        let mut wire = Wire::open(served.http).await;
        wire.send(&framed(&body("first"))).await;
        assert_eq!(wire.answer().await.expect("an answer").status, 200);
        wires.push(wire);
    }
    let limited = |limit: usize| {
        let limit = format!("--nofile={limit}:1024");
        let done = Command::new("prlimit").args(["--pid", &process.to_string(), &limit]).status().unwrap();
        assert!(done.success());
    };
    let open = || std::fs::read_dir(format!("/proc/{process}/fd")).unwrap().count();
    engines[0].set_fault(Fault::always(FaultKind::Delay { milliseconds: 300 }));
    limited(open() + 2);
    for wire in &mut wires {
        wire.send(&framed(&body("waits"))).await;
    }
    for wire in &mut wires {
        assert_eq!(wire.answer().await.expect("an answer").status, 200);
    }
    // So far below what is open that none of those that rest makes room.
    limited(open() - 16);
    engines[0].set_fault(Fault::always(FaultKind::Delay { milliseconds: 6000 }));
    for wire in &mut wires {
        wire.send(&framed(&body("has no chance"))).await;
    }
    let mut refused = 0;
    for wire in &mut wires {
        let answer = wire.answer().await.expect("an answer");
        refused += usize::from(answer.status == 503 && answer.code() == "proxy_shortage");
    }
    assert!(refused >= 4, "{refused} of 8 had no descriptor");
    limited(1024);
    engines[0].clear_faults();
    let ready = client().get(served.url("/ready")).send().await.unwrap();
    assert_eq!(ready.status(), 200);
    let engines_now = ready.text().await.unwrap();
    assert!(!engines_now.contains("\"open\""), "no circuit is open: {engines_now}");
    wires[0].send(&framed(&body("after that"))).await;
    assert_eq!(wires[0].answer().await.expect("an answer").status, 200);
    drop(wires);
    for gauge in ["moriio_requests_in_flight ", "moriio_legs_in_flight{", "moriio_parked_legs_in_flight "] {
        assert_eq!(metric(&served, gauge).await, 0.0, "{gauge}");
    }
    served.process.signal("TERM");
    let (_, log) = tokio::task::spawn_blocking(move || served.finish()).await.unwrap();
    let records = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let short: Vec<_> = records.filter(|record| record["error"] == "proxy_shortage").collect();
    assert_eq!(short.len(), refused, "{log}");
    for record in short {
        assert_eq!((&record["ended"], &record["source"]), (&json!("error"), &json!("proxy")), "{record}");
        let legs = (record["prefill_leg"].as_str(), record["decode_leg"].as_str());
        assert!(matches!(legs, (Some("connect"), None) | (Some("2xx"), Some("connect"))), "{record}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_give_way_and_the_oldest_first() {
    let world = world(plan().with(Key::MaxConnections, "3")).await;
    let since = legs(&world);
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut wire = Wire::open(world.proxy.http).await;
        wire.send(&framed(&body("held"))).await;
        assert_eq!(wire.answer().await.expect("an answer").status, 200);
        held.push(wire);
    }
    let mut fourth = Wire::open(world.proxy.http).await;
    fourth.send(&framed(&body("fourth"))).await;
    assert_eq!(fourth.answer().await.expect("an answer").status, 200);
    assert_eq!(held.remove(0).closed().await, b"");
    // The others are served as before.
    for wire in &mut held {
        wire.send(&framed(&body("held"))).await;
        assert_eq!(wire.answer().await.expect("an answer").status, 200);
    }
    assert_eq!(world.proxy.metric("moriio_places_missing_total{outcome=\"idle_closed\"").await, 1.0);
    assert_eq!(world.proxy.metric("moriio_places_missing_total{outcome=\"refused\"").await, 0.0);
    drop((held, fourth));
    still_good(&world, "the cap on connections", &since, 6).await;
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_on_its_way_is_not_lost() {
    let world = world(plan().with(Key::MaxConnections, "1")).await;
    let since = legs(&world);
    let whole = framed(&body("in two parts"));
    let mut slow = Wire::open(world.proxy.http).await;
    for cut in [20, whole.len() - 5, 1] {
        slow.send(&whole[..cut]).await;
        // Others that want the place. What was sent may be unread yet, so one of them may even get it for a while.
        for _ in 0..5 {
            let mut other = Wire::open(world.proxy.http).await;
            other.send(&completions("content-length: 0\r\n", b"")).await;
            let status = other.answer().await.expect("an answer").status;
            assert!([400, 503].contains(&status), "{status}");
        }
        // One that had it gives it back when its end is noticed. What is left is this one and the look itself.
        until("the others' ends", || async {
            let open = world.proxy.metric("moriio_connections").await;
            (open <= 2.0).then_some(()).ok_or_else(|| open.to_string())
        })
        .await;
        slow.send(&whole[cut..]).await;
        assert_eq!(slow.answer().await.expect("an answer").status, 200, "cut at {cut}");
    }
    drop(slow);
    still_good(&world, "requests in two parts", &since, 3).await;
    world.settle().await;
}
