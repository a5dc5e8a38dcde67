//! Bodies: too large by announcement or in fact, in crumbs, broken off, compressed.

use std::time::Duration;

use moriio_proxy::settings::options::Key;

use super::wire::{Reply, Wire};
use super::{body, chunked, completions, framed, legs, plan, still_good, world};
use crate::support::until;

/// A body of exactly `length` bytes.
fn sized(length: usize) -> Vec<u8> {
    let empty = body("").len();
    body(&"x".repeat(length - empty))
}

fn is_too_large(reply: &Reply) {
    assert_eq!((reply.status, reply.code().as_str()), (413, "body_too_large"));
    assert!(reply.has("connection: close"), "{}", reply.head);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_on_bodies_is_exact() {
    let world = world(plan().with(Key::MaxBodyBytes, "2000")).await;
    for (name, length, fits) in [("at the limit", 2000, true), ("above it", 2001, false)] {
        let whole = sized(length);
        let crumbs: Vec<&[u8]> = whole.chunks(700).collect();
        let in_chunks = completions("transfer-encoding: chunked\r\n", &chunked(&crumbs));
        for bytes in [framed(&whole), in_chunks] {
            let since = legs(&world);
            let mut wire = Wire::open(world.proxy.http).await;
            wire.send(&bytes).await;
            let reply = wire.answer().await.expect("an answer");
            match fits {
                true => assert_eq!(reply.status, 200, "{name}"),
                false => is_too_large(&reply),
            }
            still_good(&world, name, &since, u64::from(fits)).await;
        }
    }
    // An announcement suffices: nobody waits for a body that will not be taken.
    let since = legs(&world);
    for announced in ["2001", "18446744073709551615", "9223372036854775807"] {
        let mut wire = Wire::open(world.proxy.http).await;
        wire.send(&completions(&format!("content-length: {announced}\r\n"), b"{")).await;
        match wire.answer().await {
            // No number of bytes at all: refused with the head.
            Some(reply) if matches!(reply.status, 400 | 431) => {}
            reply => is_too_large(&reply.expect("an answer")),
        }
        wire.closed().await;
    }
    still_good(&world, "announcements", &since, 0).await;
    // Chunks without end are cut at the limit.
    let mut wire = Wire::open(world.proxy.http).await;
    wire.send(&completions("transfer-encoding: chunked\r\n", b"")).await;
    for _ in 0..300 {
        wire.send(b"8\r\n        \r\n").await;
    }
    is_too_large(&wire.answer().await.expect("an answer"));
    still_good(&world, "endless chunks", &since, 1).await;
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_in_crumbs_are_one_request() {
    let world = world(plan()).await;
    let since = legs(&world);
    let whole = body(&"in crumbs ".repeat(40));
    let crumbs: Vec<&[u8]> = whole.chunks(1).collect();
    let mut wire = Wire::open(world.proxy.http).await;
    wire.send(&completions("transfer-encoding: chunked\r\n", &chunked(&crumbs))).await;
    assert_eq!(wire.answer().await.expect("an answer").status, 200);
    // Head and body byte by byte, on the same connection.
    wire.drip(&framed(&body("x")), Duration::ZERO).await;
    assert_eq!(wire.answer().await.expect("an answer").status, 200);
    still_good(&world, "crumbs", &since, 2).await;
    let sent = world.prefill[0].legs();
    let prompt = sent[sent.len() - 3].json()["prompt"].clone();
    assert_eq!(prompt, "in crumbs ".repeat(40));
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_uploads_reach_no_engine() {
    let world = world(plan()).await;
    let since = legs(&world);
    let whole = body(&"y".repeat(100_000));
    let half = &whole[..whole.len() / 2];
    let announced = completions(&format!("content-length: {}\r\n", whole.len()), half);
    let in_chunks = completions("transfer-encoding: chunked\r\n", &chunked(&[half])[..half.len()]);
    for (reset, bytes) in [(true, &announced), (false, &announced), (true, &in_chunks), (false, &in_chunks)] {
        let mut wire = Wire::open(world.proxy.http).await;
        wire.send(bytes).await;
        match reset {
            true => wire.reset(),
            false => drop(wire),
        }
    }
    for (name, chunks) in [
        ("a size that is none", &b"zz\r\n{}\r\n0\r\n\r\n"[..]),
        ("a size beyond any number", b"ffffffffffffffffff\r\n{}\r\n0\r\n\r\n"),
        ("a negative size", b"-2\r\n{}\r\n0\r\n\r\n"),
        ("no end of line after a chunk", b"2\r\n{}0\r\n\r\n"),
        ("line feeds alone", b"2\n{}\n0\n\n"),
    ] {
        let mut wire = Wire::open(world.proxy.http).await;
        wire.send(&completions("transfer-encoding: chunked\r\n", chunks)).await;
        let status = wire.answer().await.map_or(0, |reply| reply.status);
        assert!(matches!(status, 0 | 400), "{name}: {status}");
    }
    until("no request in flight", || async {
        match world.proxy.metric("moriio_requests_in_flight").await {
            0.0 => Ok(()),
            count => Err(format!("{count} in flight")),
        }
    })
    .await;
    still_good(&world, "broken uploads", &since, 0).await;
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_no_plain_json_are_refused() {
    let world = world(plan()).await;
    let since = legs(&world);
    let good = body("x");
    let deep = format!(r#"{{"prompt":{}1{}}}"#, "[".repeat(100_000), "]".repeat(99_999)).into_bytes();
    let mut wire = Wire::open(world.proxy.http).await;
    for coding in ["gzip", "deflate", "br", "zstd", "gzip, identity", "x-unknown"] {
        let headers = format!("content-encoding: {coding}\r\ncontent-length: {}\r\n", good.len());
        wire.send(&completions(&headers, &good)).await;
        let reply = wire.answer().await.expect("an answer");
        assert_eq!((reply.status, reply.json()["error"]["param"].as_str()), (400, Some("content-encoding")));
    }
    for bytes in [&b""[..], b"[]", b"null", b"{", b"{}{}", b"\xff\xfe", b"\x1f\x8b\x08\0\0\0\0\0", &deep] {
        let mut wire = Wire::open(world.proxy.http).await;
        wire.send(&framed(bytes)).await;
        let reply = wire.answer().await.expect("an answer");
        assert_eq!((reply.status, reply.code().as_str()), (400, "invalid_request"));
    }
    still_good(&world, "bodies that are no JSON", &since, 0).await;
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_wanted_bodies_are_asked_for() {
    let world = world(plan().with(Key::MaxBodyBytes, "2000")).await;
    let since = legs(&world);
    let good = body("x");
    let length = format!("expect: 100-continue\r\ncontent-length: {}\r\n", good.len());
    let mut wire = Wire::open(world.proxy.http).await;
    wire.send(&completions(&length, b"")).await;
    assert_eq!(wire.answer().await.expect("an interim answer").status, 100);
    wire.send(&good).await;
    assert_eq!(wire.answer().await.expect("an answer").status, 200);
    for (headers, status) in [
        ("expect: 100-continue\r\ncontent-length: 2001\r\n", 413),
        ("expect: 100-continue\r\ncontent-encoding: gzip\r\ncontent-length: 20\r\n", 400),
    ] {
        let mut wire = Wire::open(world.proxy.http).await;
        wire.send(&completions(headers, b"")).await;
        assert_eq!(wire.answer().await.expect("an answer").status, status, "{headers}");
    }
    still_good(&world, "expectations", &since, 1).await;
    world.settle().await;
}
