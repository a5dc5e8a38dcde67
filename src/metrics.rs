//! Every metric family, its help text and label set, and their rendering. When to count is decided elsewhere.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabel, LabelEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::engine::Role;
use crate::lines;

mod engine;

pub use engine::{EngineMetrics, LegStatus};

/// Label pairs; every value is from a closed list or an engine's address, never a client's text.
pub type Labels = Vec<(&'static str, String)>;

/// Labels of which every value is a word of ours: they are looked up for each request, and cost no allocation.
type Words<const N: usize> = [Word; N];

/// A label's name and its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Word(&'static str, &'static str);

impl Hash for Word {
    /// Names are the same in all of a family, and hardly two values of one have the same length and beginning: to hash every letter
    /// would be most of what a count costs.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let mut word = [0; 8];
        word.iter_mut().zip(self.1.bytes()).for_each(|(to, byte)| *to = byte);
        state.write_u64(u64::from_le_bytes(word).wrapping_add(self.1.len() as u64));
    }
}

impl EncodeLabel for Word {
    fn encode(&self, encoder: LabelEncoder<'_>) -> fmt::Result {
        (self.0, self.1).encode(encoder)
    }
}

/// An HTTP status among them.
type Status = [(&'static str, u32); 1];

/// Every metric of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<(Words<1>, Status), Counter>,
    ended: Family<Words<1>, Counter>,
    errors: Family<Words<2>, Counter>,
    legs: Family<Labels, Counter>,
    answers: Family<Labels, Histogram>,
    legs_in_flight: Family<Labels, Gauge>,
    circuits: Family<Labels, Gauge>,
    unusable: Family<Labels, Gauge>,
    engines: Family<Words<2>, Gauge>,
    registrations: Family<Words<1>, Counter>,
    guard_rejects: Family<Words<1>, Counter>,
    kv_messages: Family<Words<2>, Counter>,
    orphans: Family<Words<1>, Counter>,
    attempts: Family<Words<1>, Counter>,
    decisions: Family<Words<3>, Counter>,
    places_missing: Family<Words<1>, Counter>,
    /// Client requests being served, from accept to account.
    pub in_flight: Gauge,
    /// Those of them that wait for a place among the requests in flight.
    pub queued: Gauge,
    /// Time that requests waited for such a place, whether they got it or not; those that got one at once are not in it.
    pub queue_time: Histogram,
    /// Decode legs that outlived their client because closing them would lose KV blocks.
    pub orphans_in_flight: Gauge,
    /// Client connections that are open.
    pub connections: Gauge,
    /// Places that client connections hold, at most `--max-connections`.
    pub places_in_use: Gauge,
    /// 1 from the moment that a connection finds no place until there has been room for some seconds, else 0.
    pub places_full: Gauge,
    /// Time from the request's arrival to the answer's first output.
    pub first_byte: Histogram,
    /// Bytes of decode's answers passed to clients.
    pub relayed_bytes: Counter,
    /// Prefix tokens that prefill engines reported as cached.
    pub cached_tokens: Counter,
    /// Requests that prefill answered alone: for output of the prompt's side, or ended by their first token.
    pub prefill_alone: Counter,
    decode_alone: Family<Words<1>, Counter>,
    /// Requests that a pair answered.
    pub disaggregated: Counter,
    /// Exchanges cut at the end of the drain.
    pub drain_cut: Counter,
    /// Registration sockets rebuilt by the watchdog.
    pub listener_rebuilds: Counter,
    /// Breaches of the accounting's invariants; anything but 0 is a defect of the proxy.
    pub invariant_breaches: Counter,
    exchanges_open: AtomicUsize,
}

fn buckets() -> Histogram {
    Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0])
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

impl Metrics {
    /// All families, registered and at zero.
    pub fn new() -> Self {
        let mut metrics = Metrics {
            registry: Registry::with_prefix("moriio"),
            requests: Family::default(),
            ended: Family::default(),
            errors: Family::default(),
            legs: Family::default(),
            answers: Family::new_with_constructor(buckets),
            legs_in_flight: Family::default(),
            circuits: Family::default(),
            unusable: Family::default(),
            engines: Family::default(),
            registrations: Family::default(),
            guard_rejects: Family::default(),
            kv_messages: Family::default(),
            orphans: Family::default(),
            attempts: Family::default(),
            decisions: Family::default(),
            places_missing: Family::default(),
            in_flight: Gauge::default(),
            queued: Gauge::default(),
            queue_time: buckets(),
            orphans_in_flight: Gauge::default(),
            connections: Gauge::default(),
            places_in_use: Gauge::default(),
            places_full: Gauge::default(),
            first_byte: buckets(),
            relayed_bytes: Counter::default(),
            cached_tokens: Counter::default(),
            prefill_alone: Counter::default(),
            decode_alone: Family::default(),
            disaggregated: Counter::default(),
            drain_cut: Counter::default(),
            listener_rebuilds: Counter::default(),
            invariant_breaches: Counter::default(),
            exchanges_open: AtomicUsize::new(0),
        };
        metrics.register();
        // A rate of what has never been before begins with its first, which a scrape between would miss.
        for how in ["complete", "error", "cut", "client_gone"] {
            drop(metrics.ended.get_or_create(&[Word("ended", how)]));
        }
        metrics
    }

    fn register(&mut self) {
        let r = &mut self.registry;
        r.register("requests", "Client requests by route and status", self.requests.clone());
        r.register("exchanges", "Exchanges by how they ended for the client", self.ended.clone());
        r.register("errors", "Errors told to clients, by code and source", self.errors.clone());
        r.register("legs", "Ended legs by role, engine and status", self.legs.clone());
        r.register(
            "leg_answer_seconds",
            "Prefill's whole answer, decode's first output, by role and engine",
            self.answers.clone(),
        );
        r.register("legs_in_flight", "Legs in flight by role and engine", self.legs_in_flight.clone());
        r.register("engine_circuit", "Breaker by engine: 0 closed, 1 probation, 2 open", self.circuits.clone());
        r.register(
            "engine_unusable",
            "1 while an engine cannot be used, by role, engine and reason",
            self.unusable.clone(),
        );
        r.register("engines", "Registered engines by role and state", self.engines.clone());
        r.register("registrations", "Registration messages by result", self.registrations.clone());
        r.register(
            "guard_rejects",
            "Connections refused at the registration port, by reason",
            self.guard_rejects.clone(),
        );
        r.register("kv_messages", "Messages to engines' notify ports by kind and outcome", self.kv_messages.clone());
        r.register("drained_legs", "Decode legs that outlived their client, by outcome", self.orphans.clone());
        r.register(
            "attempts",
            "Attempts beyond the first, by cause: retry, back_pressure of an engine, or in READ hand_over to another decode engine",
            self.attempts.clone(),
        );
        r.register(
            "policy_decisions",
            "Engines picked, by role, policy and reason: hit, spill or fallback",
            self.decisions.clone(),
        );
        r.register("requests_in_flight", "Client requests being served", self.in_flight.clone());
        r.register("requests_queued", "Client requests that wait in line", self.queued.clone());
        r.register("queue_seconds", "How long requests waited in line", self.queue_time.clone());
        r.register(
            "parked_legs_in_flight",
            "Decode legs that outlive their client at the moment",
            self.orphans_in_flight.clone(),
        );
        r.register("connections", "Open client connections", self.connections.clone());
        r.register("places_in_use", "Places that client connections hold", self.places_in_use.clone());
        r.register("places_full", "1 while client connections find no place, else 0", self.places_full.clone());
        r.register(
            "places_missing",
            "Connections that went for want of a place, by outcome",
            self.places_missing.clone(),
        );
        r.register("first_byte_seconds", "Request's arrival to the answer's first output", self.first_byte.clone());
        r.register("relayed_bytes", "Bytes of decode's answers passed to clients", self.relayed_bytes.clone());
        r.register("prefill_cached_tokens", "Tokens that prefill reported as cached", self.cached_tokens.clone());
        r.register(
            "prefill_alone",
            "Requests that prefill answered alone, without a transfer",
            self.prefill_alone.clone(),
        );
        let help = "Requests that decode answered alone, without prefill, by reason: short or warm";
        r.register("decode_alone", help, self.decode_alone.clone());
        r.register("disaggregated", "Requests that prefill and decode answered together", self.disaggregated.clone());
        r.register("drain_cut", "Exchanges cut at the end of the drain", self.drain_cut.clone());
        r.register("listener_rebuilds", "Registration sockets rebuilt by the watchdog", self.listener_rebuilds.clone());
        r.register("lines_lost", "Lines for stderr or stdout that nobody took", lines::LOST.clone());
        r.register("invariant_breaches", "Defects of the proxy's own accounting", self.invariant_breaches.clone());
    }

    /// The text of `/metrics`, OpenMetrics 1.0.0.
    pub fn render(&self) -> String {
        let mut text = String::with_capacity(16 * 1024);
        // Writing into a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    /// The handles of one engine; its label sets exist from now on.
    pub fn engine(&self, role: Role, engine: &str) -> EngineMetrics {
        let labels = engine_labels(role, engine);
        let legs = LegStatus::ALL
            .iter()
            .map(|status| {
                let mut labels = labels.clone();
                labels.push(("status", status.as_str().to_owned()));
                self.legs.get_or_create_owned(&labels)
            })
            .collect();
        EngineMetrics {
            legs,
            answer: self.answers.get_or_create_owned(&labels),
            in_flight: self.legs_in_flight.get_or_create_owned(&labels),
            circuit: self.circuits.get_or_create_owned(&labels),
        }
    }

    /// Forgets the label sets of an engine that left, so that a long-lived process does not grow with every address it saw.
    pub(crate) fn forget_engine(&self, role: Role, engine: &str) {
        let labels = engine_labels(role, engine);
        for status in LegStatus::ALL {
            let mut labels = labels.clone();
            labels.push(("status", status.as_str().to_owned()));
            self.legs.remove(&labels);
        }
        self.answers.remove(&labels);
        self.legs_in_flight.remove(&labels);
        self.circuits.remove(&labels);
    }

    /// One client request was answered.
    pub fn request(&self, route: &'static str, status: u16) {
        self.requests.get_or_create(&([Word("route", route)], [("status", u32::from(status))])).inc();
    }

    /// One exchange was closed.
    pub fn ended(&self, how: &'static str) {
        self.ended.get_or_create(&[Word("ended", how)]).inc();
    }

    /// One error was told to a client.
    pub fn error(&self, code: &'static str, source: &'static str) {
        self.errors.get_or_create(&[Word("code", code), Word("source", source)]).inc();
    }

    /// Sets the number of engines in a state.
    pub fn engines(&self, role: Role, state: &'static str, count: usize) {
        self.engines.get_or_create(&[Word("role", role.as_str()), Word("state", state)]).set(count as i64);
    }

    /// An engine cannot be used for this reason, or can again; the label set exists only while it lasts.
    pub fn unusable(&self, role: Role, engine: &str, reason: &'static str, holds: bool) {
        let mut labels = engine_labels(role, engine);
        labels.push(("reason", reason.to_owned()));
        if holds {
            self.unusable.get_or_create(&labels).set(1);
        } else {
            self.unusable.remove(&labels);
        }
    }

    /// One registration message was dealt with.
    pub fn registration(&self, result: &'static str) {
        self.registrations.get_or_create(&[Word("result", result)]).inc();
    }

    /// One connection was refused at the registration port.
    pub fn guard_reject(&self, reason: &'static str) {
        self.guard_rejects.get_or_create(&[Word("reason", reason)]).inc();
    }

    /// One message to an engine's notify ports.
    pub fn kv_message(&self, kind: &'static str, outcome: &'static str) {
        self.kv_messages.get_or_create(&[Word("kind", kind), Word("outcome", outcome)]).inc();
    }

    /// An orphaned WRITE decode leg ended.
    pub fn orphan_ended(&self, outcome: &'static str) {
        self.orphans.get_or_create(&[Word("outcome", outcome)]).inc();
    }

    /// An attempt beyond an exchange's first.
    pub fn attempt(&self, cause: &'static str) {
        self.attempts.get_or_create(&[Word("cause", cause)]).inc();
    }

    /// Decode has answered alone.
    pub fn decode_alone(&self, reason: &'static str) {
        self.decode_alone.get_or_create(&[Word("reason", reason)]).inc();
    }

    /// Requests that pairs have answered, and those that decode has alone.
    pub(crate) fn by_whom(&self) -> (u64, u64) {
        let alone = |reason| self.decode_alone.get_or_create(&[Word("reason", reason)]).get();
        (self.disaggregated.get(), alone("short") + alone("warm"))
    }

    /// An engine was picked.
    pub fn decision(&self, role: Role, policy: &'static str, reason: &'static str) {
        let labels = [Word("role", role.as_str()), Word("policy", policy), Word("reason", reason)];
        self.decisions.get_or_create(&labels).inc();
    }

    /// For want of a place an idle connection was closed, a silent one pushed out, or a request refused.
    pub fn place_missing(&self, outcome: &'static str) {
        self.places_missing.get_or_create(&[Word("outcome", outcome)]).inc();
    }

    /// An exchange opened.
    pub(crate) fn open_exchange(&self) {
        self.exchanges_open.fetch_add(1, Ordering::Relaxed);
        self.in_flight.inc();
    }

    /// An exchange closed.
    pub(crate) fn close_exchange(&self) {
        self.exchanges_open.fetch_sub(1, Ordering::Relaxed);
        self.in_flight.dec();
    }

    /// Exchanges that are open.
    pub fn exchanges_open(&self) -> usize {
        self.exchanges_open.load(Ordering::Relaxed)
    }
}

fn engine_labels(role: Role, engine: &str) -> Labels {
    vec![("role", role.as_str().to_owned()), ("engine", engine.to_owned())]
}
