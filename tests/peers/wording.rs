//! What an engine says of itself, in both dialects, and what the proxy made of it.

use moriio_proxy::sim::{Engine, Mode, Role};
use serde_json::{Value, json};

use crate::support::{Proxy, until};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// 0.14.0 to 0.19.1.
    A,
    /// Since 0.20.0.
    B,
}

/// One engine's account of itself.
#[derive(Clone, Debug)]
pub struct Said {
    pub role: &'static str,
    pub host: String,
    pub port: u16,
    pub handshake: u16,
    pub notify: u16,
    pub dp: u32,
    pub tp: u32,
    pub mode: &'static str,
}

impl Said {
    /// An engine that is only spoken of. Nobody is at home there.
    pub fn absent(role: &'static str, host: &str, port: u16) -> Said {
        Said { role, host: host.into(), port, handshake: 6301, notify: 7501, dp: 1, tp: 8, mode: "READ" }
    }

    /// What a simulated engine would say.
    pub fn of(engine: &Engine) -> Said {
        let settings = engine.settings();
        Said {
            role: match settings.role {
                Role::Prefill => "P",
                Role::Decode => "D",
            },
            host: engine.http_address().ip().to_string(),
            port: engine.http_address().port(),
            handshake: engine.handshake_port(),
            notify: engine.notify_port(),
            dp: settings.dp,
            tp: settings.tp,
            mode: match settings.mode {
                Mode::Read => "READ",
                Mode::Write => "WRITE",
            },
        }
    }

    pub fn map(&self, dialect: Dialect) -> Value {
        match dialect {
            // The sender counts `index` up.
            Dialect::A => json!({
                "type": "register", "role": self.role, "index": "1",
                "request_address": format!("http://{}:{}/v1/completions", self.host, self.port),
                "handshake_port": self.handshake, "notify_port": self.notify,
                "dp_size": self.dp, "tp_size": self.tp, "transfer_mode": self.mode,
            }),
            Dialect::B => json!({
                "type": self.role, "http_address": format!("{}:{}", self.host, self.port),
                "zmq_address": format!("host:{},handshake:{},notify:{}", self.host, self.handshake, self.notify),
                "dp_size": self.dp, "tp_size": self.tp, "transfer_mode": self.mode,
            }),
        }
    }
}

/// The same map with one key replaced, or removed by null.
pub fn but(map: &Value, key: &str, value: Value) -> Value {
    let mut map = map.clone();
    let fields = map.as_object_mut().expect("a map");
    match value {
        Value::Null => fields.shift_remove(key),
        value => fields.insert(key.into(), value),
    };
    map
}

/// Every known engine as `role address`, prefill first, each role in the order of registration.
pub async fn engines(proxy: &Proxy) -> Vec<String> {
    let (_, body) = proxy.ready().await;
    let engines = body["engines"].as_array().expect("a list");
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    engines.iter().map(|engine| format!("{} {}", text(&engine["role"]), text(&engine["address"]))).collect()
}

pub async fn until_engines(proxy: &Proxy, wanted: &[&str]) {
    until(&format!("engines {wanted:?}"), || async {
        let seen = engines(proxy).await;
        if seen == wanted { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
}

/// Waits until the engine at an address is in a state.
pub async fn until_state(proxy: &Proxy, address: &str, state: &str) {
    until(&format!("{address} {state}"), || async {
        let (_, body) = proxy.ready().await;
        let engines = body["engines"].as_array().expect("a list");
        let found = engines.iter().find(|engine| engine["address"] == address);
        match found {
            Some(engine) if engine["state"] == state => Ok(()),
            _ => Err(body.to_string()),
        }
    })
    .await;
}

/// How often registrations came to this result.
pub async fn results(proxy: &Proxy, result: &str) -> f64 {
    proxy.metric(&format!("moriio_registrations_total{{result=\"{result}\"}}")).await
}

pub async fn until_results(proxy: &Proxy, result: &str, count: f64) {
    until(&format!("{count} times {result}"), || async {
        let seen = results(proxy, result).await;
        if seen == count {
            Ok(())
        } else {
            Err(format!("{seen} of {} in all", proxy.metric("moriio_registrations_total").await))
        }
    })
    .await;
}
