//! Heads: framing that could be read in two ways, broken lines, sizes, versions, targets.

use super::wire::Wire;
use super::{body, chunked, completions, framed, legs, plan, still_good, world};

/// What a table's line expects: the answer's status (0: closed without one) and how many exchanges it was worth.
struct Case {
    name: &'static str,
    bytes: Vec<u8>,
    status: &'static [u16],
    accepted: u64,
}

fn case(name: &'static str, bytes: Vec<u8>, status: &'static [u16], accepted: u64) -> Case {
    Case { name, bytes, status, accepted }
}

/// Sends each on a connection of its own, reads one answer, and looks whether the connection says more than it should.
async fn check(cases: Vec<Case>) {
    let world = world(plan()).await;
    for Case { name, bytes, status, accepted } in cases {
        let since = legs(&world);
        let mut wire = Wire::open(world.proxy.http).await;
        wire.send(&bytes).await;
        let got = wire.answer().await.map_or(0, |reply| reply.status);
        assert!(status.contains(&got), "{name}: {got} is none of {status:?}");
        drop(wire);
        still_good(&world, name, &since, accepted).await;
    }
    world.settle().await;
}

/// A second request that a proxy with another idea of the first one's length would see.
fn hidden() -> Vec<u8> {
    framed(&body("smuggled"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_two_lengths_is_never_two() {
    let good = body("one");
    let length = good.len();
    let with = |headers: String, tail: &[u8]| completions(&headers, &[&good, tail].concat());
    let both = |first: &str, second: &str| completions(&format!("{first}\r\n{second}\r\n"), &chunked(&[&good]));
    let announced = format!("content-length: {length}");
    let chunks = "transfer-encoding: chunked";
    check(vec![
        case(
            "two different lengths",
            with(format!("content-length: {length}\r\ncontent-length: 3\r\n"), b""),
            &[400],
            0,
        ),
        case("a list of lengths", with(format!("content-length: {length}, 3\r\n"), b""), &[400], 0),
        case(
            "the same length twice",
            with(format!("content-length: {length}\r\ncontent-length: {length}\r\n"), b""),
            &[200, 400],
            1,
        ),
        case("a signed length", with(format!("content-length: +{length}\r\n"), b""), &[400], 0),
        case("a negative length", with("content-length: -1\r\n".into(), b""), &[400], 0),
        case("a length beyond any number", with("content-length: 99999999999999999999999\r\n".into(), b""), &[400], 0),
        case("a length with a blank inside", with(format!("content-length: {length} 1\r\n"), b""), &[400], 0),
        case("length, then chunks", both(&announced, chunks), &[200, 400], 1),
        case("chunks, then length", both(chunks, &announced), &[200, 400], 1),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn framing_that_is_none_is_refused() {
    let good = body("one");
    let length = good.len();
    check(vec![
        case(
            "a name with a blank before the colon",
            completions(&format!("content-length : {length}\r\n"), &good),
            &[400],
            0,
        ),
        case(
            "chunks of an unknown kind",
            completions("transfer-encoding: xchunked\r\n", &chunked(&[&good])),
            &[400],
            0,
        ),
        case(
            "chunks that are not the last coding",
            completions("transfer-encoding: chunked, identity\r\n", &chunked(&[&good])),
            &[400],
            0,
        ),
        case(
            "a coding with a form feed",
            completions("transfer-encoding: \x0bchunked\r\n", &chunked(&[&good])),
            &[400],
            0,
        ),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_hides_behind_a_chunked_body_is_not_run() {
    let world = world(plan()).await;
    let good = body("one");
    for (name, first, second) in [
        ("length first", "content-length: 4", "transfer-encoding: chunked"),
        ("chunks first", "transfer-encoding: chunked", "content-length: 4"),
        ("an equal length", "content-length: 13", "transfer-encoding: chunked"),
    ] {
        let since = legs(&world);
        let mut wire = Wire::open(world.proxy.http).await;
        let parts = [&good[..13], &good[13..]];
        let mut bytes = completions(&format!("{first}\r\n{second}\r\n"), &chunked(&parts));
        bytes.extend_from_slice(&hidden());
        wire.send(&bytes).await;
        let reply = wire.answer().await;
        let accepted = u64::from(reply.as_ref().is_some_and(|reply| reply.status == 200));
        let status = reply.map_or(0, |reply| reply.status);
        assert!(matches!(status, 200 | 400), "{name}: {status}");
        // Whoever sent such a head gets no second word.
        assert_eq!(wire.closed().await, b"", "{name}");
        still_good(&world, name, &since, accepted).await;
    }
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_lines_are_refused_or_read_in_one_way() {
    let good = body("one");
    let length = format!("content-length: {}\r\n", good.len());
    let head = |host: &str| {
        let head = format!("POST /v1/completions HTTP/1.1\r\n{host}{length}\r\n");
        [head.as_bytes(), &good].concat()
    };
    let bare = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().replace("\r\n", "\n").into_bytes();
    check(vec![
        case("no host", head(""), &[400], 0),
        case("two hosts", head("host: proxy\r\nhost: other\r\n"), &[400], 0),
        case("a folded line", head("host: proxy\r\nx-note: a\r\n b\r\n"), &[400], 0),
        case("a folded first line", head(" x: y\r\nhost: proxy\r\n"), &[400], 0),
        case("a NUL in a value", head("host: proxy\r\nx-note: a\0b\r\n"), &[400], 0),
        case("a carriage return in a value", head("host: proxy\r\nx-note: a\rb\r\n"), &[400], 0),
        case("a NUL in a name", head("host: proxy\r\nx\0y: a\r\n"), &[400], 0),
        case("no colon", head("host: proxy\r\nnonsense\r\n"), &[400], 0),
        case("an empty name", head("host: proxy\r\n: a\r\n"), &[400], 0),
        // Line feeds alone end lines for some readers; either way it is one request.
        case("line feeds alone", bare(head("host: proxy\r\n")), &[200], 1),
        case("garbage", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec(), &[400], 0),
        case("a bad method", b"P\0ST / HTTP/1.1\r\nhost: p\r\n\r\n".to_vec(), &[400], 0),
        case("a bad version", b"POST / HTTP/1.9\r\nhost: p\r\n\r\n".to_vec(), &[400], 0),
        case("no version", b"GET /health\r\n\r\n".to_vec(), &[400], 0),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_have_limits() {
    let good = body("one");
    let length = format!("content-length: {}\r\n", good.len());
    let many = |count: usize| (0..count).map(|i| format!("x-{i}: y\r\n")).collect::<String>();
    let line = |size: usize| format!("x-long: {}\r\n", "y".repeat(size));
    let with = |more: String| completions(&format!("{length}{more}"), &good);
    let target = |size: usize| format!("GET /{} HTTP/1.1\r\nhost: p\r\n\r\n", "y".repeat(size)).into_bytes();
    check(vec![
        case("a line of 16 KiB", with(line(16 * 1024)), &[200], 1),
        case("a line of 128 KiB", with(line(128 * 1024)), &[431], 0),
        case("50 lines", with(many(50)), &[200], 1),
        case("3000 lines", with(many(3000)), &[400, 431], 0),
        case("a target of 70 KB", target(70_000), &[414, 431], 0),
        case("a head without end", format!("GET / HTTP/1.1\r\n{}", line(1 << 20)).into_bytes(), &[431], 0),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_and_targets() {
    let good = body("one");
    let as_first_line = |line: &str| {
        let head = format!("{line}\r\nhost: proxy\r\ncontent-length: {}\r\n\r\n", good.len());
        [head.as_bytes(), &good].concat()
    };
    let old = format!("POST /v1/completions HTTP/1.0\r\ncontent-length: {}\r\n\r\n", good.len());
    check(vec![
        case("HTTP/1.0 without a host", [old.as_bytes(), &good].concat(), &[200], 1),
        case(
            "HTTP/1.0 in chunks",
            [&b"POST /v1/completions HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n"[..], &chunked(&[&good])].concat(),
            &[400],
            0,
        ),
        case("HTTP/2 by preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec(), &[0, 400], 0),
        case(
            "a target with another host",
            as_first_line("POST http://203.0.113.9:9/v1/completions HTTP/1.1"),
            &[200],
            1,
        ),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_are_taken_by_the_letter() {
    let good = body("one");
    let as_first_line = |line: &str| {
        let head = format!("{line}\r\nhost: proxy\r\ncontent-length: {}\r\n\r\n", good.len());
        [head.as_bytes(), &good].concat()
    };
    check(vec![
        case("a tunnel", b"CONNECT 203.0.113.9:22 HTTP/1.1\r\nhost: p\r\n\r\n".to_vec(), &[404, 405], 0),
        case("a way up", as_first_line("POST /v1/../v1/completions HTTP/1.1"), &[404], 0),
        case("an escaped path", as_first_line("POST /v1%2fcompletions HTTP/1.1"), &[404], 0),
        case("two slashes", as_first_line("POST //v1/completions HTTP/1.1"), &[404], 0),
        case("another method", as_first_line("PUT /v1/completions HTTP/1.1"), &[405], 0),
        case("an engine's control route", as_first_line("POST /reset_prefix_cache HTTP/1.1"), &[404], 0),
        case(
            "an upgrade",
            completions(&format!("connection: upgrade\r\nupgrade: h2c\r\ncontent-length: {}\r\n", good.len()), &good),
            &[200],
            1,
        ),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_are_answered_in_order() {
    let world = world(plan()).await;
    let since = legs(&world);
    let mut wire = Wire::open(world.proxy.http).await;
    let mut bytes = Vec::new();
    for tokens in 1..=6 {
        let body = format!(r#"{{"model":"sim-model","prompt":"in order","max_tokens":{tokens},"temperature":0}}"#);
        bytes.extend_from_slice(&framed(body.as_bytes()));
        bytes.extend_from_slice(b"GET /version HTTP/1.1\r\nhost: proxy\r\n\r\n");
    }
    wire.send(&bytes).await;
    for tokens in 1..=6 {
        let reply = wire.answer().await.expect("an answer");
        assert_eq!(reply.status, 200);
        assert_eq!(reply.json()["usage"]["completion_tokens"], tokens);
        let reply = wire.answer().await.expect("an answer");
        assert!(reply.json()["version"].is_string());
    }
    still_good(&world, "pipelining", &since, 6).await;
    world.settle().await;
}
