//! Registrations as engines and strangers send them, by libzmq, in both wordings. What became of each is read off
//! the proxy's counters and its list of engines.

use moriio_proxy::settings::options::Key;
use serde_json::{Value, json};

use super::agent::Sockets;
use super::wording::{Dialect, Said, but, engines, results, until_engines, until_results};
use crate::support::{Proxy, until};

/// One engine and the proxy it talks to.
struct Bench {
    proxy: Proxy,
    sockets: Sockets,
    dialect: Dialect,
}

impl Bench {
    async fn start(dialect: Dialect) -> Bench {
        let mut sockets = Sockets::start();
        // Nobody may expire while the cases are tried.
        let proxy = Proxy::start(&[(Key::EngineTtl, "600s")]);
        sockets.open("engine", "DEALER", proxy.registration).await;
        Bench { proxy, sockets, dialect }
    }

    /// Sends frames and waits until the counter of this result, and no other, has gone up by one.
    async fn frames(&mut self, frames: Value, result: &str) {
        let before = results(&self.proxy, result).await;
        let total = self.proxy.metric("moriio_registrations_total").await;
        self.sockets.frames("engine", frames).await;
        until_results(&self.proxy, result, before + 1.0).await;
        assert_eq!(self.proxy.metric("moriio_registrations_total").await, total + 1.0);
    }

    async fn says(&mut self, map: &Value, result: &str) {
        self.frames(json!([{"pack": map}]), result).await;
    }

    /// Says something that must change nothing.
    async fn in_vain(&mut self, map: &Value, result: &str) {
        let before = engines(&self.proxy).await;
        self.says(map, result).await;
        assert_eq!(engines(&self.proxy).await, before, "{map}");
    }

    async fn incarnation(&self, address: &str) -> Value {
        let (_, body) = self.proxy.ready().await;
        let engines = body["engines"].as_array().expect("a list").clone();
        let found = engines.into_iter().find(|engine| engine["address"] == address);
        found.expect("a known engine")["incarnation"].take()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn engines_register_refresh_change_and_move() {
    for dialect in [Dialect::A, Dialect::B] {
        let mut bench = Bench::start(dialect).await;
        let prefill = Said::absent("P", "127.0.1.1", 20005);
        let decode = Said::absent("D", "127.0.1.2", 20006);
        // Both are new; a second ping is no second engine.
        bench.says(&prefill.map(dialect), "added").await;
        bench.says(&decode.map(dialect), "added").await;
        let both = ["prefill 127.0.1.1:20005", "decode 127.0.1.2:20006"];
        until_engines(&bench.proxy, &both).await;
        let (status, body) = bench.proxy.ready().await;
        assert_eq!(status, 503, "nobody is at home there");
        assert_eq!(body["mode"], "READ");
        assert_eq!(body["engines"][0]["tp_size"], 8);
        assert_eq!(body["engines"][0]["dp_size"], 1);
        bench.says(&prefill.map(dialect), "refreshed").await;
        // Numbers as text.
        let spelled = match dialect {
            Dialect::A => but(&prefill.map(dialect), "handshake_port", json!("6301")),
            Dialect::B => but(&prefill.map(dialect), "tp_size", json!("8")),
        };
        bench.says(&spelled, "refreshed").await;
        // A greeting says nothing (protocol R2).
        bench.in_vain(&json!({"type": "HELLO"}), "hello").await;
        // Another port is another life of the same engine (protocol R9).
        let before = bench.incarnation("127.0.1.1:20005").await;
        let mut moved = prefill.clone();
        moved.handshake = 6401;
        bench.says(&moved.map(dialect), "restarted").await;
        until("a new incarnation", || async {
            let now = bench.incarnation("127.0.1.1:20005").await;
            if now == before { Err(now.to_string()) } else { Ok(()) }
        })
        .await;
        until_engines(&bench.proxy, &both).await;
        // The other role takes the entry with it, and back.
        moved.role = "D";
        bench.says(&moved.map(dialect), "restarted").await;
        until_engines(&bench.proxy, &["decode 127.0.1.2:20006", "decode 127.0.1.1:20005"]).await;
        bench.says(&prefill.map(dialect), "restarted").await;
        until_engines(&bench.proxy, &both).await;
        // The other wording of the same engine is no other engine, but another release of it.
        let other = if dialect == Dialect::A { Dialect::B } else { Dialect::A };
        bench.says(&decode.map(other), "restarted").await;
        bench.says(&Said::absent("D", "127.0.1.3", 20007).map(other), "added").await;
        until_engines(&bench.proxy, &[both[0], both[1], "decode 127.0.1.3:20007"]).await;
        assert!(!bench.sockets.heard_anything("engine").await, "engines never read this socket");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_dropped_by_name_and_harms_nobody() {
    for dialect in [Dialect::A, Dialect::B] {
        let mut bench = Bench::start(dialect).await;
        let good = Said::absent("P", "127.0.1.1", 20005).map(dialect);
        bench.says(&good, "added").await;
        until_engines(&bench.proxy, &["prefill 127.0.1.1:20005"]).await;
        // What both wordings share.
        let twisted = [
            ("transfer_mode", json!("PUSH"), "invalid_field"),
            ("transfer_mode", Value::Null, "missing_field"),
            ("transfer_mode", json!(1), "invalid_field"),
            ("dp_size", json!(0), "invalid_field"),
            ("dp_size", json!(-1), "invalid_field"),
            ("dp_size", json!(100_000), "invalid_field"),
            ("dp_size", Value::Null, "missing_field"),
            ("tp_size", json!(0), "invalid_field"),
            ("tp_size", json!([8]), "invalid_field"),
            ("type", json!("X"), "unknown_type"),
            ("type", Value::Null, "missing_field"),
        ];
        for (key, value, result) in twisted {
            bench.in_vain(&but(&good, key, value), result).await;
        }
        for (key, value, result) in own_twists(dialect) {
            bench.in_vain(&but(&good, key, value), result).await;
        }
        // What is no whole map.
        for value in [json!([1, 2]), json!(7), json!("P"), Value::Null, json!([[[[[]]]]])] {
            bench.in_vain(&value, "malformed").await;
        }
        bench.frames(json!([{"pack": good, "short_by": 3}]), "malformed").await;
        bench.frames(json!([{"hex": "c1c1c1"}]), "malformed").await;
        bench.frames(json!([{"zeros": 0}]), "malformed").await;
        // One empty delimiter is usual elsewhere, other frames are not.
        bench.frames(json!([{"zeros": 0}, {"pack": good}]), "refreshed").await;
        bench.frames(json!([{"pack": good}, {"pack": good}]), "malformed").await;
        bench.frames(json!([{"zeros": 0}, {"zeros": 0}, {"pack": good}]), "malformed").await;
        // Case does not matter, nor do unknown keys; then all is as it was.
        bench.says(&but(&good, "transfer_mode", json!("read")), "refreshed").await;
        bench.says(&but(&good, "colour", json!({"deep": [1, 2]})), "refreshed").await;
        bench.says(&good, "refreshed").await;
        assert_eq!(engines(&bench.proxy).await, ["prefill 127.0.1.1:20005"]);
        assert!(!bench.sockets.heard_anything("engine").await);
        assert_eq!(bench.proxy.metric("moriio_guard_rejects_total").await, 0.0, "a wrong payload costs no connection");
    }
}

/// What is wrong in each wording's own keys.
fn own_twists(dialect: Dialect) -> Vec<(&'static str, Value, &'static str)> {
    let invalid = "invalid_field";
    match dialect {
        Dialect::A => vec![
            ("role", json!("X"), invalid),
            ("role", Value::Null, "missing_field"),
            ("handshake_port", json!(0), invalid),
            ("notify_port", json!(70_000), invalid),
            ("notify_port", json!("seven"), invalid),
            ("notify_port", Value::Null, "missing_field"),
            ("request_address", json!("https://127.0.1.1:20005/v1/completions"), invalid),
            ("request_address", json!("http://127.0.1.1/v1/completions"), invalid),
            ("request_address", json!("http://:20005/v1/completions"), invalid),
            ("request_address", Value::Null, "missing_field"),
        ],
        Dialect::B => vec![
            ("zmq_address", json!("host:127.0.1.1,handshake:6301"), "missing_field"),
            ("zmq_address", json!("host:127.0.1.1,handshake:6301,notify:70000"), invalid),
            ("zmq_address", json!("host:127.0.1.1,handshake:0,notify:7501"), invalid),
            ("zmq_address", json!("127.0.1.1"), invalid),
            ("zmq_address", Value::Null, "missing_field"),
            ("http_address", json!("127.0.1.1"), invalid),
            ("http_address", json!("127.0.1.1:0"), invalid),
            ("http_address", json!(20005), invalid),
            ("http_address", Value::Null, "missing_field"),
        ],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_ipv6_addresses_are_understood() {
    for dialect in [Dialect::A, Dialect::B] {
        let mut bench = Bench::start(dialect).await;
        let dialect = bench.dialect;
        // Names and IPv6. A URL has brackets, the newer wording has none.
        let host = if dialect == Dialect::A { "[fd00::1]" } else { "fd00::1" };
        let mut map = Said::absent("P", host, 8000).map(dialect);
        if dialect == Dialect::B {
            let loose = " host : fd00::1 , handshake : 6301 , notify : 7501 ";
            map = but(&map, "zmq_address", json!(loose));
        }
        bench.says(&map, "added").await;
        bench.says(&Said::absent("D", "localhost", 2584).map(dialect), "added").await;
        until_engines(&bench.proxy, &["prefill [fd00::1]:8000", "decode localhost:2584"]).await;
        bench.says(&map, "refreshed").await;
        assert!(!bench.sockets.heard_anything("engine").await);
    }
}
