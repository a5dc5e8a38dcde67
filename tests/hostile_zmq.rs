//! Peers at the registration port that are no engines, or more engines than there are, while real ones do their work.

mod descriptors;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use moriio_proxy::registration::socket::guard::gate::GREETING;
use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Engine, Mode, Role, expected_text};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::fuzz::mutate::Random;
use crate::support::{Answer, PATIENCE, Plan, Proxy, World, client, completion, generate, until};

const READY: &[u8] = b"\x04\x29\x05READY\x0bSocket-Type\0\0\0\x06DEALER\x08Identity\0\0\0\0";

/// What a DEALER says before its first message.
fn hello() -> Vec<u8> {
    [&GREETING[..], READY].concat()
}

/// One message of one frame.
fn frame(payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).expect("a short message");
    [&[0, length][..], payload].concat()
}

fn registration(role: &str, host: &str, port: u16) -> Vec<u8> {
    let says = json!({"type": role, "http_address": format!("{host}:{port}"), "dp_size": 1, "tp_size": 1,
        "zmq_address": format!("host:{host},handshake:6301,notify:61005"), "transfer_mode": "READ"});
    frame(&rmp_serde::to_vec_named(&says).unwrap())
}

/// The `number`-th of many addresses of this machine.
fn host(number: usize) -> String {
    format!("127.7.{}.{}", number / 250, 1 + number % 250)
}

async fn dial(address: SocketAddr) -> TcpStream {
    timeout(PATIENCE, TcpStream::connect(address)).await.unwrap().unwrap()
}

/// A peer with its handshake behind it.
async fn dealer(address: SocketAddr) -> TcpStream {
    let mut stream = dial(address).await;
    stream.write_all(&hello()).await.unwrap();
    stream
}

/// Sends until all is sent or the proxy has had enough.
async fn throw(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = dial(address).await;
    let _ = timeout(PATIENCE, stream.write_all(bytes)).await.expect("the proxy reads or closes");
    stream
}

/// Waits until the proxy has closed.
async fn closed(stream: &mut TcpStream) {
    let mut said = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut said)).await.expect("the proxy closes");
}

async fn registrations(proxy: &Proxy, result: &str) -> f64 {
    proxy.metric(&format!("moriio_registrations_total{{result=\"{result}\"")).await
}

/// A stream that runs while something else happens; its text is checked at the end.
struct Undisturbed(JoinHandle<()>);

impl Undisturbed {
    const TOKENS: usize = 300;

    async fn start(world: &World) -> Undisturbed {
        let body = completion("undisturbed", Self::TOKENS, true).to_string();
        let request = client().post(world.proxy.url("/v1/completions")).body(body);
        let running = tokio::spawn(async move {
            let answer = Answer::of(request.send().await.unwrap()).await;
            assert_eq!((answer.status, answer.whole), (200, true), "{}", answer.body);
            assert_eq!(answer.text(), expected_text(&json!("undisturbed"), Self::TOKENS));
        });
        until("a stream that has begun", || async {
            match world.total(|c| c.tokens) {
                3.. => Ok(()),
                tokens => Err(format!("{tokens} tokens")),
            }
        })
        .await;
        Undisturbed(running)
    }

    async fn end(self) {
        timeout(PATIENCE, self.0).await.expect("the stream ends").expect("the stream is whole");
    }
}

fn slow() -> Plan {
    let adjust = |settings: &mut moriio_proxy::sim::Settings| settings.token_delay = Duration::from_millis(5);
    Plan { adjust, ..Plan::new(Mode::Read) }
}

#[tokio::test(flavor = "multi_thread")]
async fn attacks_on_the_guard_disturb_nobody() {
    let world = slow().start().await;
    let stream = Undisturbed::start(&world).await;
    let address = world.proxy.registration;
    let endless = [hello(), [1u8, 0].repeat(200_000)].concat();
    let fat = [hello(), [&[1, 255][..], &[0; 255]].concat().repeat(4000)].concat();
    let giant = |length: u64| [&hello()[..], &[2], &length.to_be_bytes(), b"x"].concat();
    let attacks = [
        endless,
        fat,
        giant(8 << 30),
        giant(1 << 40),
        giant(u64::MAX),
        giant(i64::MAX as u64 - 8),
        [&GREETING[..], &[6], &u64::MAX.to_be_bytes()].concat(),
        b"GET /health HTTP/1.1\r\nhost: proxy\r\n\r\n".to_vec(),
        vec![0; 100_000],
        [&hello()[..], b"\x04\x05\x04STOP"].concat(),
    ];
    for attack in &attacks {
        closed(&mut throw(address, attack).await).await;
    }
    let mut random = Random::of_the_moment();
    for _ in 0..300 {
        let mut bytes = [hello(), registration("P", "127.0.0.1", 9), vec![4, 5], b"\x04PING".to_vec()].concat();
        random.mutate(&mut bytes, &[b"\xff", b"\x02\0\0\0\xff\0\0\0\0", b"\x01\0", b"\x7f", b"\x05READY"]);
        drop(throw(address, &bytes).await);
    }
    // More half greetings than one address may have open; they are turned away or time out.
    let mut half = Vec::new();
    for _ in 0..300 {
        half.push(throw(address, &GREETING[..20]).await);
    }
    stream.end().await;
    for stream in &mut half {
        closed(stream).await;
    }
    let late = Engine::start(slow().settings(Role::Decode, address)).await.unwrap();
    until("an engine that comes later", || async {
        let (_, body) = world.proxy.ready().await;
        let name = late.http_address().to_string();
        let state = body["engines"].as_array().unwrap().iter().find(|e| e["address"] == name.as_str());
        state.is_some_and(|engine| engine["state"] == "ready").then_some(()).ok_or_else(|| body.to_string())
    })
    .await;
    assert!(world.proxy.metric("moriio_guard_rejects_total{reason=\"too_big\"").await >= 5.0);
    generate(&world.proxy, "afterwards", 5, false).await;
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_fakes_fill_the_pool_and_no_more() {
    const ROOM: usize = 300;
    let world =
        Plan { options: vec![(Key::MaxEngines, "300"), (Key::DecodeTokenBudget, "exact")], ..slow() }.start().await;
    let stream = Undisturbed::start(&world).await;
    let mut peers = Vec::new();
    for _ in 0..4 {
        peers.push(dealer(world.proxy.registration).await);
    }
    for number in 0..10_000 {
        let role = if number % 2 == 0 { "P" } else { "D" };
        peers[number % 4].write_all(&registration(role, &host(number), 1)).await.unwrap();
    }
    until("all to be heard", || async {
        let mut heard = 0.0;
        for result in ["added", "full", "dropped"] {
            heard += registrations(&world.proxy, result).await;
        }
        if heard >= 10_002.0 { Ok(()) } else { Err(format!("{heard} heard")) }
    })
    .await;
    let (status, body) = world.proxy.ready().await;
    assert_eq!((status, body["engines"].as_array().unwrap().len()), (200, ROOM));
    assert_eq!(registrations(&world.proxy, "added").await, ROOM as f64);
    stream.end().await;
    for _ in 0..4 {
        generate(&world.proxy, "among fakes", 5, false).await;
    }
    drop(peers);
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_fakes_hold_up_no_real_engine() {
    const FAKES: usize = 400;
    // It takes connections and never answers.
    let silent = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let world = Plan::new(Mode::Read).engines(0, 0).start().await;
    let mut peer = dealer(world.proxy.registration).await;
    for number in 0..FAKES {
        peer.write_all(&registration("P", &host(number), port)).await.unwrap();
    }
    until("the fakes", || async {
        match registrations(&world.proxy, "added").await {
            count if count == FAKES as f64 => Ok(()),
            count => Err(format!("{count} added")),
        }
    })
    .await;
    let real = Plan::new(Mode::Read);
    let engines = [
        Engine::start(real.settings(Role::Prefill, world.proxy.registration)).await.unwrap(),
        Engine::start(real.settings(Role::Decode, world.proxy.registration)).await.unwrap(),
    ];
    until("a real pair", || async {
        match world.proxy.ready().await {
            (200, _) => Ok(()),
            (status, _) => Err(status.to_string()),
        }
    })
    .await;
    generate(&world.proxy, "among the silent", 5, false).await;
    drop((engines, silent));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_pings_disturbs_nobody() {
    const ENGINES: usize = 1000;
    let world = slow().start().await;
    let stream = Undisturbed::start(&world).await;
    let mut peers = Vec::new();
    for _ in 0..8 {
        peers.push(dealer(world.proxy.registration).await);
    }
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    for _ in 0..20 {
        tick.tick().await;
        for number in 0..ENGINES {
            let role = if number % 2 == 0 { "P" } else { "D" };
            peers[number % 8].write_all(&registration(role, &host(number), 1)).await.unwrap();
        }
    }
    stream.end().await;
    until("all pings to be heard", || async {
        let (again, lost) =
            (registrations(&world.proxy, "refreshed").await, registrations(&world.proxy, "dropped").await);
        if again + lost >= (ENGINES * 19) as f64 { Ok(()) } else { Err(format!("{again} again, {lost} lost")) }
    })
    .await;
    assert_eq!(registrations(&world.proxy, "added").await, (ENGINES + 2) as f64);
    assert_eq!(registrations(&world.proxy, "restarted").await, 0.0, "nobody has changed");
    generate(&world.proxy, "after the storm", 5, false).await;
    world.settle().await;
}

/// An address of this machine that is not its loopback, if it has one. No packet is sent.
fn elsewhere() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("203.0.113.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

#[tokio::test(flavor = "multi_thread")]
async fn loopback_hosts_are_for_this_machine_only() {
    let Some(here) = elsewhere() else {
        eprintln!("skipped: this machine has no address but loopback");
        return;
    };
    let proxy = Proxy::start(&[(Key::PingHost, "0.0.0.0")]);
    let port = proxy.registration.port();
    let mut remote = dealer(SocketAddr::new(here, port)).await;
    for host in ["127.0.0.1", "127.9.9.9", "localhost", "LocalHost"] {
        remote.write_all(&registration("P", host, 1)).await.unwrap();
    }
    let count = |result, least: f64| {
        let proxy = &proxy;
        until(result, move || async move {
            match registrations(proxy, result).await {
                count if count >= least => Ok(()),
                count => Err(format!("{count} {result}")),
            }
        })
    };
    count("not_allowed", 4.0).await;
    assert_eq!(registrations(&proxy, "added").await, 0.0);
    let mut local = dealer(SocketAddr::new([127, 0, 0, 1].into(), port)).await;
    local.write_all(&registration("P", "127.0.0.1", 1)).await.unwrap();
    remote.write_all(&registration("D", &here.to_string(), 1)).await.unwrap();
    count("added", 2.0).await;
    proxy.finish().await;
}
