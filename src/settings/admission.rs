//! How many requests are at the engines, and how many wait.

use std::time::Duration;

use super::options::Key;
use super::reader::Reader;
use super::values::{number, time};

/// The most that any count can be set to.
const MANY: usize = 1_000_000;
/// Requests that wait where a cap is set and the line has no length of its own.
const LINE: usize = 100;

/// The places in flight, and the line of those that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Requests served at once, at least 1 (`--max-in-flight`).
    pub in_flight: usize,
    /// Requests that wait beyond these (`--queue-size`).
    pub line: usize,
    /// How long each of them waits at most, for a place, for room on engines or a pair's first contact (`--queue-timeout`).
    pub time: Duration,
    /// Whether there is a line: then requests wait in it for engines, too, and for those that turn work away.
    pub is_capped: bool,
}

impl Admission {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        let in_flight: usize = reader.get(Key::MaxInFlight, number(1, MANY));
        let caps = Caps::read(reader);
        // Whoever writes the default down has set nothing.
        let is_set = in_flight.to_string() != Key::MaxInFlight.row().default || caps != Caps::default();
        let usual = if is_set { LINE } else { 0 };
        let line = reader.find(Key::QueueSize, number(0, MANY)).unwrap_or(usual);
        reader.show(Key::QueueSize, line.to_string());
        Admission { in_flight, line, time: reader.get(Key::QueueTimeout, time), is_capped: line > 0 }
    }
}

/// Legs that one engine may have in flight; 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caps {
    /// A prefill engine (`--prefill-in-flight`, else `--engine-in-flight`).
    pub prefill: usize,
    /// A decode engine (`--decode-in-flight`, else `--engine-in-flight`).
    pub decode: usize,
}

impl Caps {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        let any: usize = reader.get(Key::EngineInFlight, number(0, MANY));
        let mut of = |key| {
            let cap = reader.find(key, number(0, MANY)).unwrap_or(any);
            reader.show(key, cap.to_string());
            cap
        };
        Caps { prefill: of(Key::PrefillInFlight), decode: of(Key::DecodeInFlight) }
    }
}
