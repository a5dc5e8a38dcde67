//! Proxies that go and come back on their port, which engines do not notice beyond libzmq's reconnect.
//!
//! These proxies have a loopback address of their own, so that no other test can take the port in between, nor be spoken to.

use moriio_proxy::settings::options::Key;
use serde_json::json;

use super::agent::Sockets;
use super::wording::{Dialect, Said, results, until_engines, until_results};
use crate::support::Proxy;

fn proxy(host: &'static str, port: u16) -> Proxy {
    Proxy::start(&[(Key::PingHost, host), (Key::PingPort, &port.to_string())])
}

#[tokio::test(flavor = "multi_thread")]
async fn one_ping_after_a_restart_brings_an_engine_back() {
    let mut sockets = Sockets::start();
    let mut current = proxy("127.0.1.21", 0);
    let at = current.registration;
    let prefill = Said::absent("P", "127.0.1.1", 20005).map(Dialect::A);
    let decode = Said::absent("D", "127.0.1.2", 20006).map(Dialect::B);
    for name in ["prefill", "decode"] {
        sockets.open(name, "DEALER", at).await;
    }
    let mut connections = [0; 2];
    for _ in 0..3 {
        for (name, earlier) in ["prefill", "decode"].into_iter().zip(connections) {
            sockets.until(name, "handshake", earlier + 1).await;
        }
        sockets.ping("prefill", &prefill).await;
        sockets.ping("decode", &decode).await;
        until_engines(&current, &["prefill 127.0.1.1:20005", "decode 127.0.1.2:20006"]).await;
        assert_eq!(current.metric("moriio_registrations_total").await, 2.0);
        current.finish().await;
        connections = [sockets.until_down("prefill").await, sockets.until_down("decode").await];
        // The port is free at once, whatever its old connections are in.
        current = proxy("127.0.1.21", at.port());
    }
    for name in ["prefill", "decode"] {
        assert!(!sockets.heard_anything(name).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_queued_pings_are_one_engine() {
    for (host, dialect) in [("127.0.1.22", Dialect::A), ("127.0.1.23", Dialect::B)] {
        let mut sockets = Sockets::start();
        let first = proxy(host, 0);
        let at = first.registration;
        sockets.open("engine", "DEALER", at).await;
        sockets.until("engine", "handshake", 1).await;
        first.finish().await;
        sockets.until_down("engine").await;
        // As many as libzmq keeps by default.
        let map = Said::absent("P", "127.0.1.1", 20005).map(dialect);
        sockets.0.ask(json!({"do": "send", "name": "engine", "frames": [{"pack": map}], "times": 1000})).await;
        let second = proxy(host, at.port());
        until_results(&second, "refreshed", 999.0).await;
        assert_eq!(results(&second, "added").await, 1.0);
        assert_eq!(second.metric("moriio_registrations_total").await, 1000.0);
        until_engines(&second, &["prefill 127.0.1.1:20005"]).await;
        second.finish().await;
    }
}
