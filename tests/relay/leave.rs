//! Clients that leave, at every point of an exchange: the legs end, and no engine loses a block.

use std::time::Duration;

use futures::future::join_all;
use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Fault, FaultKind, Mode};

use crate::support::fake::{Fake, FakeLeg, Health};
use crate::support::{Plan, Stream, World, client, completion, generate, until, until_true};

/// Sends a request in the background; aborting it is leaving.
fn sent(world: &World, stream: bool) -> tokio::task::JoinHandle<()> {
    let body = completion("some words", 9, stream).to_string();
    let request = client().post(world.proxy.url("/v1/completions")).body(body);
    tokio::spawn(async move {
        let _ = request.send().await;
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn case_49_before_prefill_has_answered() {
    // Prefill's own limit is ten minutes: its leg ends because its client left.
    let world = Plan::new(Mode::Read).start().await;
    world.prefill[0].set_fault(Fault::times(FaultKind::Hang, 1));
    let client = sent(&world, true);
    until_true("prefill's leg", || world.prefill[0].counters().legs == 1).await;
    client.abort();
    world.settle().await;
    assert_eq!(world.decode[0].counters().legs, 0);
    until("the connection closed", || async {
        let closed = world.proxy.metric("moriio_requests_total{route=\"completions\",status=\"499\"}").await;
        (closed == 1.0).then_some(()).ok_or_else(|| closed.to_string())
    })
    .await;
    generate(&world.proxy, "words after that", 3, true).await;
    world.settle().await;
}

/// Prefill's push wakes the leg; when prefill fails, the proxy does.
#[tokio::test(flavor = "multi_thread")]
async fn case_49_a_parked_leg_outlives_its_client() {
    let stories = [(false, false), (true, false), (false, true), (true, true)];
    join_all(stories.map(|(stream, fails)| async move {
        let world = Plan::new(Mode::Write).start().await;
        world.prefill[0].set_fault(Fault::times(FaultKind::Delay { milliseconds: 3000 }, 1));
        if fails {
            let body = "{}".into();
            world.prefill[0].set_fault(Fault::times(FaultKind::Status { status: 500, body }, 1));
        }
        let client = sent(&world, stream);
        until_true("decode's leg", || world.decode[0].counters().decode_legs == 1).await;
        client.abort();
        world.settle().await;
        let counters = world.decode[0].counters();
        assert_eq!((counters.decode_legs, counters.woken_empty), (1, u64::from(fails)));
        let outcome = if fails { "unparked" } else { "written" };
        let outcome = format!("moriio_drained_legs_total{{outcome=\"{outcome}\"}}");
        assert_eq!(world.proxy.metric(&outcome).await, 1.0);
        generate(&world.proxy, "words after that", 3, true).await;
        world.settle().await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_49_after_the_first_chunk() {
    join_all([Mode::Read, Mode::Write].map(|mode| async move {
        let mut plan = Plan::new(mode);
        plan.adjust = |settings| settings.token_delay = Duration::from_millis(10);
        let world = plan.start().await;
        let body = completion("some words", 10_000, true);
        let mut streams = Vec::new();
        for _ in 0..5 {
            let mut stream = Stream::open(&world.proxy, "/v1/completions", &body).await;
            stream.read_until("a chunk", |seen| seen.contains("data: ")).await;
            streams.push(stream);
        }
        drop(streams);
        world.settle().await;
        assert_eq!(world.decode[0].counters().aborted, 5);
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_decode_computes_an_answer_in_one_piece() {
    for mode in [Mode::Read, Mode::Write] {
        let world = Plan::new(mode).start().await;
        world.decode[0].set_fault(Fault::times(FaultKind::HangAfterTokens { tokens: 2 }, 1));
        let client = sent(&world, false);
        until_true("decode at work", || world.decode[0].counters().running == 1).await;
        if mode == Mode::Write {
            // The leg is no longer parked, but the proxy cannot know: no byte has come. It is patient.
            until_true("prefill's end", || world.prefill[0].counters().held == 0).await;
        }
        client.abort();
        if mode == Mode::Read {
            world.settle().await;
            continue;
        }
        until("the leg kept", || async {
            let parked = world.proxy.metric("moriio_parked_legs_in_flight").await;
            (parked == 1.0).then_some(()).ok_or_else(|| parked.to_string())
        })
        .await;
        assert_eq!(world.decode[0].counters().running, 1);
        world.unharmed();
    }
}

/// A decode engine whose port accepts nobody: its queue is full, so connecting hangs.
struct Clogged {
    _fake: Fake,
    _queue: Vec<socket2::Socket>,
    _listener: std::net::TcpListener,
}

impl Clogged {
    async fn start(world: &World) -> Clogged {
        let about = (moriio_proxy::sim::Role::Decode, Mode::Read, "0.32.0");
        // Its own address may be heard of before the other is said: unwell, it is never asked.
        let nothing = |_: &FakeLeg| unreachable!("nothing arrives here");
        let fake = Fake::start_as(Health::Refuses, about, world.proxy.registration, nothing).await;
        // A port of the test's own answers the first probe, then is clogged.
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
        socket.listen(0).unwrap();
        let listener: std::net::TcpListener = socket.into();
        let address = listener.local_addr().unwrap();
        fake.says("http_address", serde_json::json!(address.to_string()));
        let probed = listener.try_clone().unwrap();
        let answering = tokio::task::spawn_blocking(move || {
            for _ in 0..2 {
                answer_once(&probed);
            }
        });
        answering.await.unwrap();
        let ready = || async {
            let (_, body) = world.proxy.ready().await;
            let engines = body["engines"].as_array().unwrap().iter();
            let mut here = engines.filter(|e| e["address"] == address.to_string() && e["state"] == "ready");
            here.next().map(|_| ()).ok_or_else(|| body.to_string())
        };
        until("the engine ready", ready).await;
        let mut queue = Vec::new();
        loop {
            let filler = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            let connected = filler.connect_timeout(&address.into(), Duration::from_millis(300));
            queue.push(filler);
            if connected.is_err() {
                break;
            }
        }
        Clogged { _fake: fake, _queue: queue, _listener: listener }
    }
}

fn answer_once(listener: &std::net::TcpListener) {
    use std::io::{Read, Write};
    loop {
        let (mut client, _) = listener.accept().unwrap();
        let mut head = [0; 4096];
        let count = client.read(&mut head).unwrap_or(0);
        if count == 0 {
            continue;
        }
        let body = r#"{"version":"0.32.0"}"#;
        let length = body.len();
        let answer = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
        client.write_all(answer.as_bytes()).unwrap();
        return;
    }
}

/// A world whose only usable decode engine is clogged.
async fn clogged(options: &[(Key, &'static str)]) -> (World, Clogged) {
    let mut plan = Plan::new(Mode::Read).engines(1, 0);
    plan.options.extend(options);
    let world = plan.start().await;
    let decode = Clogged::start(&world).await;
    (world, decode)
}

#[tokio::test(flavor = "multi_thread")]
async fn case_49_between_the_legs_prefills_blocks_are_released() {
    let (world, _decode) = clogged(&[]).await;
    let client = sent(&world, true);
    until_true("prefill's end", || world.prefill[0].counters().completed == 1).await;
    assert_eq!(world.prefill[0].counters().held, 1);
    client.abort();
    world.settle().await;
    let counters = world.prefill[0].counters();
    assert_eq!((counters.released, counters.reaped), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn case_51_a_late_hand_over_is_not_made() {
    let options = [(Key::HandOverLimit, "1s"), (Key::ConnectTimeout, "10s")];
    let (world, _decode) = clogged(&options).await;
    let answer = crate::support::post(&world.proxy, "/v1/completions", &completion("words", 3, true)).await;
    assert_eq!((answer.status, answer.code().as_str()), (504, "hand_over_too_late"), "{}", answer.body);
    assert_eq!(answer.source(), "proxy");
    world.settle().await;
    assert_eq!(world.prefill[0].counters().released, 1);
}
