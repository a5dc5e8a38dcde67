//! Streams that the network may cut anywhere: what the gate lets through and where the relay sees the end do not depend on it.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::BodyExt;
use moriio_proxy::api::Api;
use moriio_proxy::api::request::Request;
use moriio_proxy::engine::{Mode, Role};
use moriio_proxy::exchange::drive::{Asked, Drive, Head, Means, RelayLimits};
use moriio_proxy::exchange::opening::Opening;
use moriio_proxy::exchange::record::Exchange;
use moriio_proxy::exchange::relay::Relay;
use moriio_proxy::metrics::Metrics;
use moriio_proxy::notify::Notifier;
use moriio_proxy::pool::{Engine, Pool, State, Vitals};
use moriio_proxy::registration::decode::{self, Message};
use moriio_proxy::registration::socket::guard::gate::{GREETING, Gate, Output};
use moriio_proxy::registration::socket::guard::identity::Identity;
use moriio_proxy::routing::{Demand, Selector};
use moriio_proxy::settings::{BreakerLimits, PickRules, Times, TokenBudget};
use moriio_proxy::upstream::answer::Incoming;
use moriio_proxy::upstream::connection::Connection;
use moriio_proxy::upstream::{Limit, Upstream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::mutate::Random;
use super::readers::registrations;
use super::{fuzz, once, variable};

fn frame(flags: u8, body: &[u8]) -> Vec<u8> {
    [&[flags, body.len() as u8][..], body].concat()
}

/// A DEALER's whole life: greeting, READY, messages of one and two frames, a heartbeat.
fn stream(random: &mut Random) -> Vec<u8> {
    let mut ready = b"\x05READY".to_vec();
    for (name, value) in [("Socket-Type", "DEALER"), ("Identity", "")] {
        ready.push(name.len() as u8);
        ready.extend_from_slice(name.as_bytes());
        ready.extend_from_slice(&(value.len() as u32).to_be_bytes());
        ready.extend_from_slice(value.as_bytes());
    }
    let mut bytes = [GREETING.to_vec(), frame(4, &ready)].concat();
    for _ in 0..random.below(4) {
        let payload = &registrations()[random.below(2)];
        bytes.extend(match random.below(4) {
            0 => frame(0, payload),
            1 => [frame(1, b""), frame(0, payload)].concat(),
            2 => frame(4, b"\x04PING\0\x0acontext"),
            _ => [&[2][..], &(payload.len() as u64).to_be_bytes(), payload].concat(),
        });
    }
    bytes
}

#[test]
fn the_gate_does_not_care_how_a_stream_is_cut() {
    let words: [&[u8]; 10] = [
        b"\x02\x7f\xff\xff\xff\xff\xff\xff\xff",
        b"\x03\0\0\0\0\0\0\0\0",
        b"\x01\0\x01\0\x01\0",
        b"\x04\0",
        b"\x06\0\0\0\0\0\0\x10\x01",
        b"\xff",
        b"\x08\0",
        b"PLAIN",
        b"\x05ROUTER",
        b"\x02\0\0\0\0\0\x01\0\0",
    ];
    let identity = Identity::new(7, "10.0.0.1:6301".parse().unwrap());
    fuzz("Gate::feed", |random| {
        let mut bytes = stream(random);
        random.mutate(&mut bytes, &words);
        let (mut whole, mut in_whole) = (Gate::new(identity), Output::default());
        let want = whole.feed(&bytes, &mut in_whole);
        let (mut cut, mut in_pieces) = (Gate::new(identity), Output::default());
        let pieces = random.split(&bytes);
        let got = pieces.into_iter().try_for_each(|piece| cut.feed(piece, &mut in_pieces));
        assert_eq!((got, &in_pieces), (want, &in_whole), "{bytes:02x?}");
        assert_eq!((cut.is_ready(), cut.completed()), (whole.is_ready(), whole.completed()));
        if want.is_ok() {
            assert_eq!(cut.is_resting(), whole.is_resting());
        }
        assert!(in_whole.forward.len() <= bytes.len() + 256 && in_whole.reply.len() <= bytes.len() + 256);
    });
}

/// An engine's end of a connection: each piece is a chunk and a read of its own, then there is silence.
struct Pieces(VecDeque<Bytes>);

impl AsyncRead for Pieces {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(piece) = self.0.pop_front() else { return Poll::Pending };
        buffer.put_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        buffer.put_slice(&piece);
        buffer.put_slice(b"\r\n");
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pieces {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// An endless answer: the pieces, then silence.
fn relay(means: &Arc<Means>, asked: &Arc<Asked>, pieces: Vec<Bytes>) -> Relay {
    let picked = means.selector.pick(&means.pool.borrow(), Demand::default(), &[], Instant::now()).unwrap();
    let body = Incoming::chunked(Connection::over(Pieces(pieces.into())));
    let response = http::Response::builder().header("content-type", "text/event-stream").body(body).unwrap();
    let drive = Drive::relaying(means, asked, picked, |guard| Opening::new(response, guard, Api::Completions));
    let (status, headers) = (http::StatusCode::OK, http::HeaderMap::new());
    let head = Head { role: Role::Decode, status, headers, is_events: true };
    let limits = RelayLimits {
        first_byte: Limit::new(Duration::from_secs(2), "first byte", ""),
        from: Instant::now().into(),
        idle: Duration::from_millis(50),
    };
    let exchange = Exchange::open(means.metrics.clone(), "completions", None);
    Relay::new(drive, &head, exchange, limits, (Api::Completions, CancellationToken::new()))
}

/// What attempts of a pool need.
fn means(pool: Pool, metrics: &Arc<Metrics>) -> Arc<Means> {
    let limit = Duration::from_secs(2);
    let limits = Times {
        connect: limit,
        prefill: limit,
        first_byte: limit,
        answer: limit,
        idle: limit,
        hand_over: limit,
        cold: Duration::ZERO,
        wake: limit,
    };
    Arc::new(Means {
        upstream: Upstream::new(limit, 1).unwrap(),
        selector: Selector::new(PickRules { allow_stale: true, ..PickRules::default() }),
        pool: tokio::sync::watch::channel(Arc::new(pool)).1,
        notifier: Notifier::start(false, metrics.clone()).unwrap(),
        metrics: metrics.clone(),
        background: TaskTracker::new(),
        limits,
        serial_write: false,
        tells_cached: false,
        waits_for_room: false,
        cut: CancellationToken::new(),
    })
}

fn pool(metrics: &Metrics) -> Pool {
    let engines = registrations().into_iter().zip(1..).map(|(bytes, incarnation)| {
        let Ok(Message::Register(registration, _)) = decode::decode(&bytes) else {
            panic!("an engine's own message");
        };
        let limits = BreakerLimits { failures: 0, open: Duration::ZERO, open_max: Duration::ZERO };
        let vitals = Vitals::new(limits, metrics.engine(registration.role, "x"));
        Arc::new(Engine::new(registration, None, State::Ready, incarnation, vitals).unwrap())
    });
    Pool::new(engines.collect::<Vec<_>>(), Some(Mode::Read))
}

/// Streams that do not end after their end marker are ended without a word; others get an error event. The clock stands still but
/// for the limits that are waited for: the second that the relay gives an engine costs nothing.
#[test]
fn the_end_marker_is_seen_however_it_is_cut() {
    let metrics = Arc::new(Metrics::new());
    let means = means(pool(&metrics), &metrics);
    let text = Bytes::from_static(b"{\"prompt\":\"x\",\"stream\":true}");
    let request = Request::parse(Api::Completions, text, TokenBudget::MinusOne).unwrap();
    let asked = Arc::new(Asked { request, headers: Bytes::new(), demand: Demand::default(), prefix: [].into() });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let words: [&str; 6] = [
        "data: {\"text\":\"a\"}\n\n",
        "data: {\"text\":\"data: [DONE]\"}\n\n",
        ": comment\n\n",
        "data: [DONE\n\n",
        "[DONE]\n\n",
        "x",
    ];
    let ends: [&str; 6] =
        ["data: [DONE]\n\n", "data: [DONE]\r\n\r\n", "data: [DONE]\n", "data: [DONE]", "data: [DONE]x\n", ""];
    let is_end = |line: &str| line == "data: [DONE]\n" || line == "data: [DONE]\r\n";
    let seed = variable("MORIIO_FUZZ_SEED").unwrap_or_else(|| Random::of_the_moment().next());
    let _inside = runtime.enter();
    once("Relay", seed, |random| {
        let cases = (0..400).map(|_| {
            let mut text: String = (0..random.below(5)).map(|_| random.of(&words)).collect();
            text.push_str(random.of(&ends));
            if text.is_empty() {
                text.push('x');
            }
            let pieces = random.split(text.as_bytes()).into_iter().filter(|piece| !piece.is_empty());
            let pieces = pieces.map(Bytes::copy_from_slice).collect();
            (text, relay(&means, &asked, pieces))
        });
        let cases: Vec<_> = cases.collect();
        runtime.block_on(async {
            let ends = cases.into_iter().map(|(text, relay)| async move {
                let done = text.split_inclusive('\n').any(is_end);
                let out = relay.collect().await.expect("a stream of events ends well").to_bytes();
                let rest = out.strip_prefix(text.as_bytes()).expect("every byte passes");
                match done {
                    true => assert!(rest.is_empty(), "{text:?}"),
                    false => assert!(rest.trim_ascii_start().starts_with(b"data: {\"error\":"), "{text:?}"),
                }
            });
            futures::future::join_all(ends).await;
        });
    });
    assert_eq!(means.pool.borrow().engines().map(|engine| engine.vitals.in_flight()).sum::<usize>(), 0);
    assert_eq!(metrics.exchanges_open(), 0);
}
