//! Limits on time and requests in flight.

use std::time::Duration;

use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Fault, FaultKind};

use super::wire::Wire;
use super::{body, completions, framed, legs, plan, still_good, world};
use crate::support::{PATIENCE, until};

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_nothing_or_crumbs_loses_the_connection() {
    let world = world(plan().with(Key::HeaderTimeout, "200ms").with(Key::KeepAliveTimeout, "400ms")).await;
    let since = legs(&world);
    let mut silent = Vec::new();
    for begun in [&b""[..], b"P", b"POST /v1/completions HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nhost: a\r\nx: "] {
        for _ in 0..10 {
            let mut wire = Wire::open(world.proxy.http).await;
            wire.send(begun).await;
            silent.push(wire);
        }
    }
    // A head that never ends, at ten bytes a second or so.
    let mut dripping = Wire::open(world.proxy.http).await;
    let drip = async {
        let head = completions(&format!("x-long: {}\r\n", "y".repeat(1 << 16)), b"");
        dripping.drip(&head, Duration::from_millis(50)).await;
    };
    tokio::time::timeout(PATIENCE, drip).await.expect("the proxy closes on a dripping head");
    for mut wire in silent {
        let said = wire.closed().await;
        assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 408"), "{said:?}");
    }
    // One that has been served and then says nothing more.
    let mut idle = Wire::open(world.proxy.http).await;
    idle.send(&framed(&body("idle"))).await;
    assert_eq!(idle.answer().await.expect("an answer").status, 200);
    idle.closed().await;
    still_good(&world, "silence", &since, 1).await;
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_bodies_are_told_so() {
    let world = world(plan().with(Key::BodyTimeout, "300ms")).await;
    let since = legs(&world);
    let whole = body(&"z".repeat(50_000));
    let length = format!("content-length: {}\r\n", whole.len());
    for (headers, begun) in
        [(length.as_str(), &b""[..]), (&length, b"{"), ("transfer-encoding: chunked\r\n", b"1\r\n{\r\n")]
    {
        let mut wire = Wire::open(world.proxy.http).await;
        wire.send(&completions(headers, begun)).await;
        let reply = wire.answer().await.expect("an answer");
        assert_eq!((reply.status, reply.code().as_str()), (408, "body_timeout"));
        assert!(reply.has("connection: close"));
        wire.closed().await;
    }
    let mut dripping = Wire::open(world.proxy.http).await;
    let slow = framed(&whole);
    let drip = dripping.drip(&slow, Duration::from_millis(20));
    tokio::time::timeout(PATIENCE, drip).await.expect("the proxy closes on a dripping body");
    assert_eq!(dripping.answer().await.expect("an answer").status, 408);
    still_good(&world, "slow bodies", &since, 0).await;
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_beyond_those_in_flight_are_refused_at_once() {
    let world = world(plan().with(Key::MaxInFlight, "2").with(Key::QueueSize, "0")).await;
    // Answers that have begun and do not end: a stream is in flight to its last byte.
    world.decode[0].set_fault(Fault::always(FaultKind::HangAfterTokens { tokens: 2 }));
    let mut streams = Vec::new();
    for _ in 0..2 {
        let mut wire = Wire::open(world.proxy.http).await;
        let body = br#"{"model":"sim-model","prompt":"long","max_tokens":9,"temperature":0,"stream":true}"#;
        wire.send(&framed(body)).await;
        streams.push(wire);
    }
    until("two streams that have begun", || async {
        match world.total(|c| c.tokens) {
            tokens if tokens >= 6 => Ok(()),
            tokens => Err(format!("{tokens} tokens")),
        }
    })
    .await;
    let since = legs(&world);
    let mut third = Wire::open(world.proxy.http).await;
    for _ in 0..3 {
        third.send(&framed(&body("too many"))).await;
        let reply = third.answer().await.expect("an answer");
        assert_eq!((reply.status, reply.code().as_str()), (429, "too_many_requests"));
        assert!(reply.has("retry-after: 1") && reply.has("x-moriio-error-source: proxy"));
    }
    world.decode[0].clear_faults();
    drop(streams);
    until("room", || async {
        match world.proxy.metric("moriio_requests_in_flight").await {
            0.0 => Ok(()),
            count => Err(format!("{count} in flight")),
        }
    })
    .await;
    still_good(&world, "the cap on requests", &since, 0).await;
    world.settle().await;
}
