//! The record of an exchange: the line that the proxy logs of it, found by the client's request id, and what it must say for
//! the answer that the client got.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{LazyLock, Mutex, Once};

use serde_json::{Map, Value, json};
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use super::{Answer, Proxy, until};

/// Lines of proxies in this process, by client id.
static LINES: LazyLock<Mutex<HashMap<String, Map<String, Value>>>> = LazyLock::new(Mutex::default);

struct Collector;

#[derive(Default)]
struct Line(Map<String, Value>);

impl Visit for Line {
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().into(), json!(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().into(), json!(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.insert(field.name().into(), json!(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().into(), json!(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name().into(), json!(format!("{value:?}")));
    }
}

impl<S: tracing::Subscriber> Layer<S> for Collector {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut line = Line::default();
        event.record(&mut line);
        let id = line.0.get("client_id").and_then(Value::as_str).map(str::to_owned);
        // A sibling's is beside that of its request.
        let is_whole = !line.0.contains_key("sibling");
        if let (Some(id), true) = (id, is_whole && event.metadata().target() == "exchange") {
            LINES.lock().unwrap().insert(id, line.0);
        }
    }
}

/// Begins to collect; `MORIIO_TEST_LOG` shows every line besides.
pub fn collect() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let shown = std::env::var_os("MORIIO_TEST_LOG").map(|_| {
            let all = tracing_subscriber::filter::LevelFilter::INFO;
            tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_filter(all)
        });
        let exchanges = tracing_subscriber::filter::Targets::new().with_target("exchange", tracing::Level::INFO);
        let _ = tracing_subscriber::registry().with(Collector.with_filter(exchanges)).with(shown).try_init();
    });
}

/// A client id that no other request has.
pub fn fresh_id() -> String {
    format!("test-{}", uuid::Uuid::new_v4().simple())
}

/// Waits for the line of an exchange. It is written when the answer's body is dropped, which may be after its last byte.
pub async fn record(proxy: &Proxy, id: &str) -> Map<String, Value> {
    until("the exchange's line", || async {
        let line = match proxy.log() {
            Some(log) => in_log(&log, id),
            None => LINES.lock().unwrap().remove(id),
        };
        line.ok_or_else(|| format!("no line of {id}"))
    })
    .await
}

fn in_log(log: &str, id: &str) -> Option<Map<String, Value>> {
    let line = log.lines().rev().find(|line| line.contains(id) && !line.contains("\"sibling\""))?;
    serde_json::from_str(line).ok()
}

/// Whether a stream tells an error.
fn tells_an_error(answer: &Answer) -> bool {
    let data = answer.body.lines().filter_map(|line| line.strip_prefix("data: "));
    let mut values = data.filter_map(|data| serde_json::from_str::<Value>(data).ok());
    values.any(|value| value["type"] == "error" || value["error"].is_object())
}

/// The record must say what the client saw, and what became of both legs.
pub fn check(answer: &Answer, record: &Map<String, Value>) {
    let text = |key: &str| record.get(key).and_then(Value::as_str).unwrap_or("");
    let what = format!("{record:?}\n{}", answer.body);
    assert_eq!(record["status"], answer.status, "{what}");
    let streams = answer.header("content-type").starts_with("text/event-stream");
    let well = (200..300).contains(&answer.status);
    let good = well && answer.whole && !(streams && tells_an_error(answer));
    if good {
        let legs = (text("prefill_leg"), text("decode_leg"));
        assert_eq!((text("ended"), text("error")), ("complete", ""), "{what}");
        // Decode may be read to its end before prefill's answer is.
        let right = match text("mode") {
            "prefill alone" => legs.0 == "2xx" && legs.1 != "2xx",
            "decode alone" => legs == ("", "2xx"),
            // In WRITE its host may die after its push: decode's output is what counts.
            "WRITE" if legs.0 == "5xx" => legs.1 == "2xx",
            _ => matches!(legs, ("2xx" | "running" | "broken", "2xx")),
        };
        // Siblings have lines of their own.
        assert!(right || record.contains_key("siblings"), "{what}");
        assert!(record.contains_key("first_byte_ms") || answer.body.is_empty(), "{what}");
        assert_eq!(record["bytes"], answer.body.len(), "{what}");
    } else if well {
        assert_eq!(text("ended"), "cut", "{what}");
        assert_ne!((text("decode_leg"), text("error")), ("2xx", ""), "{what}");
    } else {
        assert_eq!(text("ended"), "error", "{what}");
        assert_eq!(text("source"), answer.source(), "{what}");
        assert!(!text("error").is_empty(), "{what}");
        assert_ne!(text("decode_leg"), "2xx", "{what}");
    }
}
