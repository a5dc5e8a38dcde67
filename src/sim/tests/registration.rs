//! What a proxy's ROUTER gets to see.

use std::time::Duration;

use serde_json::Value;
use tokio::net::TcpListener;

use crate::sim::zmtp::Connection;
use crate::sim::{Engine, Fault, FaultKind, Mode, Role, Settings};

use super::{soon, until};

async fn pings(release: &str, count: usize) -> (Engine, Vec<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let registration = listener.local_addr().unwrap().to_string();
    let settings = Settings {
        release: release.into(),
        ping_interval: Duration::from_millis(50),
        ..Settings::new(Role::Prefill, Mode::Read, registration)
    };
    let engine = Engine::start(settings).await.unwrap();
    let (stream, _) = soon(listener.accept()).await.unwrap();
    let mut connection = Connection::greet(stream, "ROUTER").await.unwrap();
    let mut pings = Vec::new();
    for _ in 0..count {
        let message = soon(connection.receive()).await.unwrap();
        assert_eq!(message.len(), 1);
        pings.push(rmp_serde::from_slice(&message[0]).unwrap());
    }
    (engine, pings)
}

#[tokio::test]
async fn dialect_b() {
    let (engine, pings) = pings("0.32.0", 2).await;
    let expected = serde_json::json!({
        "type": "P", "http_address": engine.http_address().to_string(),
        "zmq_address": format!("host:127.0.0.1,handshake:{},notify:{}", engine.handshake_port(), engine.notify_port()),
        "dp_size": 1, "tp_size": 1, "transfer_mode": "READ",
    });
    assert_eq!(pings, [expected.clone(), expected]);
}

#[tokio::test]
async fn dialect_a() {
    let (engine, pings) = pings("0.19.1", 2).await;
    let expected = |index: &str| {
        serde_json::json!({
            "type": "register", "role": "P", "index": index,
            "request_address": format!("http://{}/v1/completions", engine.http_address()),
            "handshake_port": engine.handshake_port(), "notify_port": engine.notify_port(),
            "dp_size": 1, "tp_size": 1, "transfer_mode": "READ",
        })
    };
    assert_eq!(pings, [expected("1"), expected("2")]);
}

/// The proxy's own library accepts what the hand-written DEALER says, also after the proxy was away.
#[test]
fn a_real_router_hears_queued_pings() {
    use zeromq::{Socket, SocketRecv};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let reserved = crate::sim::ports::Reserved::new([127, 0, 0, 1].into(), 0).unwrap();
        let registration = format!("127.0.0.1:{}", reserved.port());
        let settings = Settings {
            ping_interval: Duration::from_millis(20),
            ..Settings::new(Role::Decode, Mode::Write, registration.clone())
        };
        let engine = Engine::start(settings).await.unwrap();
        until(&engine, "pinging", |counters| counters.pings >= 3).await;
        let mut router = zeromq::RouterSocket::new();
        drop(reserved);
        router.bind(&format!("tcp://{registration}")).await.unwrap();
        for _ in 0..3 {
            let message = soon(router.recv()).await.unwrap();
            assert_eq!(message.len(), 2);
        }
    });
}

#[tokio::test]
async fn silence_and_boot_delay() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let settings = Settings {
        ping_interval: Duration::from_millis(10),
        boot_delay: Duration::from_secs(3600),
        ..Settings::new(Role::Decode, Mode::Write, listener.local_addr().unwrap().to_string())
    };
    let engine = Engine::start(settings).await.unwrap();
    until(&engine, "pinging", |counters| counters.pings >= 2).await;
    assert!(tokio::net::TcpStream::connect(engine.http_address()).await.is_err());
    engine.set_fault(Fault::always(FaultKind::StopPings));
    let quiet = async {
        loop {
            let before = engine.counters().pings;
            tokio::time::sleep(Duration::from_millis(200)).await;
            if engine.counters().pings == before {
                return before;
            }
        }
    };
    let before = soon(quiet).await;
    engine.clear_faults();
    until(&engine, "pinging again", |counters| counters.pings > before).await;
}

/// What the proxy's own library sends to a notify port is understood.
#[test]
fn a_real_dealer_is_understood() {
    use zeromq::{Socket, SocketSend};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let engine = Engine::start(Settings::new(Role::Prefill, Mode::Read, "")).await.unwrap();
        let mut dealer = zeromq::DealerSocket::new();
        dealer.connect(&format!("tcp://127.0.0.1:{}", engine.notify_port())).await.unwrap();
        for length in [1, 300] {
            let message = serde_json::json!({"type": "release", "transfer_id": "x".repeat(length)});
            let message = bytes::Bytes::from(rmp_serde::to_vec_named(&message).unwrap());
            dealer.send(message.into()).await.unwrap();
        }
        until(&engine, "told", |counters| counters.releases == 2).await;
        assert_eq!(engine.counters().deaf, 0);
    });
}
