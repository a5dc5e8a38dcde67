//! Whoever else finds the registration port.

use serde_json::json;

use super::agent::Sockets;
use super::wording::{Dialect, Said, until_engines, until_results};
use crate::support::{Proxy, until};

/// A ZMTP 3.0 greeting of mechanism NULL, from a client.
fn greeting() -> String {
    format!("ff00000000000000017f0300{}{}", hex(b"NULL"), "00".repeat(16 + 1 + 31))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn ready_as(kind: &[u8]) -> String {
    let body = [b"\x05READY\x0bSocket-Type\x00\x00\x00", &[kind.len() as u8][..], kind].concat();
    format!("04{:02x}{}", body.len(), hex(&body))
}

async fn until_rejects(proxy: &Proxy, reason: &str, count: f64) {
    until(&format!("{count} rejects for {reason}"), || async {
        let name = format!("moriio_guard_rejects_total{{reason=\"{reason}\"}}");
        let seen = proxy.metric(&name).await;
        if seen >= count { Ok(()) } else { Err(seen.to_string()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_harm_only_themselves() {
    let mut sockets = Sockets::start();
    let proxy = Proxy::start(&[]);
    let at = proxy.registration;
    let map = Said::absent("P", "127.0.1.1", 20005).map(Dialect::B);
    sockets.open("engine", "DEALER", at).await;
    sockets.ping("engine", &map).await;
    until_results(&proxy, "added", 1.0).await;

    // A REQ socket puts an empty frame first, and waits for a reply that never comes.
    sockets.open("req", "REQ", at).await;
    sockets.ping("req", &map).await;
    until_results(&proxy, "refreshed", 1.0).await;
    for (count, kind) in [(1.0, "PUB"), (2.0, "PUSH")] {
        sockets.open("stranger", kind, at).await;
        until_rejects(&proxy, "socket_type", count).await;
        sockets.0.ask(json!({"do": "close", "name": "stranger"})).await;
    }

    let answer = sockets.0.ask(json!({"do": "get", "address": at.to_string()})).await;
    assert!(answer.is_string(), "no HTTP answer: {answer}");
    for garbage in ["00".repeat(100), "16030100".repeat(50), "ff00000000000000017f0100".repeat(9)] {
        sockets.0.ask(json!({"do": "raw", "address": at.to_string(), "hex": garbage})).await;
    }
    until_rejects(&proxy, "greeting", 4.0).await;

    // The giant costs its sender the connection; libzmq comes back and is heard.
    sockets.open("giant", "DEALER", at).await;
    sockets.until("giant", "handshake", 1).await;
    sockets.frames("giant", json!([{"zeros": 16 << 20}])).await;
    sockets.until("giant", "disconnected", 1).await;
    until_rejects(&proxy, "too_big", 1.0).await;
    sockets.0.ask(json!({"do": "close", "name": "giant"})).await;
    sockets.open("giant", "DEALER", at).await;
    sockets.ping("giant", &map).await;
    until_results(&proxy, "refreshed", 2.0).await;

    // ZMTP's own PING is answered, or peers with heartbeats would give the proxy up.
    let ping = "040c0450494e4700006869206869"; // PING, no TTL, context "hi hi"
    let ping = format!("{}{}{ping}", greeting(), ready_as(b"DEALER"));
    let pong = hex(b"\x04PONGhi hi");
    let heard = sockets.0.ask(json!({"do": "raw", "address": at.to_string(), "hex": ping, "wanted": pong})).await;
    assert!(heard.as_str().is_some_and(|heard| heard.contains(&pong)), "{heard}");
    sockets
        .0
        .ask(json!({"do": "open", "name": "beating", "kind": "DEALER", "address": at.to_string(), "heartbeat": 50}))
        .await;
    for count in 3..20 {
        sockets.ping("beating", &map).await;
        until_results(&proxy, "refreshed", f64::from(count)).await;
    }

    sockets.ping("engine", &map).await;
    until_results(&proxy, "refreshed", 20.0).await;
    until_engines(&proxy, &["prefill 127.0.1.1:20005"]).await;
    for name in ["engine", "req", "beating", "giant"] {
        assert!(!sockets.heard_anything(name).await, "{name}");
    }
    assert_eq!(proxy.metric("moriio_listener_rebuilds_total").await, 0.0);
}
