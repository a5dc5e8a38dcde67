//! What the benches work on.

use std::sync::Arc;
use std::time::Duration;

use moriio_proxy::engine::versions::EngineVersion;
use moriio_proxy::engine::{Mode, Registration};
use moriio_proxy::metrics::Metrics;
use moriio_proxy::pool::{Engine, Pool, State, Vitals};
use moriio_proxy::registration::decode::{Message, decode};
use moriio_proxy::settings::BreakerLimits;
use serde_json::json;

/// From a chat's few sentences to an agent's history.
pub const SIZES: [usize; 4] = [2 << 10, 64 << 10, 512 << 10, 4 << 20];

/// A chat's body of about so many bytes, as agents write them: code with quotes and ends of lines, of which every 25th byte is
/// escaped, and some text that is not English.
pub fn chat(bytes: usize) -> Vec<u8> {
    let code =
        "    if (name == \"value\") {\n        return compute(first, second + 1);\n    }\n// Größe und Länge, 大小\n";
    of_text(&code.repeat(bytes / code.len()))
}

/// The same size of plain English.
pub fn plain(bytes: usize) -> Vec<u8> {
    let text = "The quick brown fox jumps over the lazy dog, and so do all of its friends. ";
    of_text(&text.repeat(bytes / text.len()))
}

/// The same size of text in which hardly any byte is ASCII.
pub fn wide(bytes: usize) -> Vec<u8> {
    let text = "敏捷的棕色狐狸跳过了那只懒惰的狗，它的朋友们也都如此。";
    of_text(&text.repeat(bytes / text.len()))
}

fn of_text(text: &str) -> Vec<u8> {
    let message = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]);
    let body = json!({"model": "m", "messages": message, "stream": true, "max_tokens": 256, "temperature": 0.7,
        "stream_options": {"include_usage": true}});
    body.to_string().into_bytes()
}

/// An engine's own message.
pub fn registration(number: u16, role: &str, ranks: u32) -> Vec<u8> {
    let (http, port) = (20_000 + number, 6_000 + number);
    let message = json!({"type": role, "http_address": format!("10.0.0.1:{http}"), "dp_size": ranks, "tp_size": 8,
        "zmq_address": format!("host:10.0.0.1,handshake:{port},notify:61005"), "transfer_mode": "WRITE"});
    rmp_serde::to_vec(&message).expect("a message")
}

pub fn registered(number: u16, role: &str, ranks: u32) -> Registration {
    match decode(&registration(number, role, ranks)) {
        Ok(Message::Register(registration, _)) => registration,
        other => panic!("{other:?}"),
    }
}

/// Ready engines, half of them prefill's, with that many slots of prefill and of decode together.
pub fn pool(slots: u16) -> Pool {
    let limits = BreakerLimits { failures: 5, open: Duration::from_secs(5), open_max: Duration::from_secs(30) };
    let metrics = Metrics::new();
    let engine = |number: u16| {
        let registration = registered(number, if number.is_multiple_of(2) { "P" } else { "D" }, 1);
        let vitals = Vitals::new(limits, metrics.engine(registration.role, &registration.http.to_string()));
        let version = Some(EngineVersion::new(0, 32, 0));
        Arc::new(Engine::new(registration, version, State::Ready, number.into(), vitals).expect("an engine"))
    };
    Pool::new((0..slots).map(engine), Some(Mode::Write))
}
