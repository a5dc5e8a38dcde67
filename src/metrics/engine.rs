//! The metrics of one engine.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

/// How a leg ended, as its counter says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LegStatus {
    /// 2xx, read to its end.
    Success,
    /// 4xx.
    Refused,
    /// 5xx, or a redirect.
    Failed,
    /// No connection could be made.
    Connect,
    /// The connection broke.
    Broken,
    /// A limit on time passed.
    Timeout,
    /// Closed by the proxy: the client left, or the other leg failed.
    Cancelled,
}

impl LegStatus {
    pub(super) const ALL: [LegStatus; 7] = [
        LegStatus::Success,
        LegStatus::Refused,
        LegStatus::Failed,
        LegStatus::Connect,
        LegStatus::Broken,
        LegStatus::Timeout,
        LegStatus::Cancelled,
    ];

    /// The value of the label `status`.
    pub fn as_str(self) -> &'static str {
        match self {
            LegStatus::Success => "2xx",
            LegStatus::Refused => "4xx",
            LegStatus::Failed => "5xx",
            LegStatus::Connect => "connect",
            LegStatus::Broken => "broken",
            LegStatus::Timeout => "timeout",
            LegStatus::Cancelled => "cancelled",
        }
    }
}

/// The handles of one engine, cached in its record so that a leg costs no look-up.
#[derive(Debug)]
pub struct EngineMetrics {
    pub(super) legs: Vec<Counter>,
    pub(super) answer: Histogram,
    /// Legs in flight.
    pub in_flight: Gauge,
    /// 0 closed, 1 probation, 2 open.
    pub circuit: Gauge,
}

impl EngineMetrics {
    /// Counts one ended leg.
    pub fn leg(&self, status: LegStatus) {
        self.legs[status as usize].inc();
    }

    /// Notes how long the engine took to answer: prefill's whole answer, decode's first output.
    pub fn answered(&self, after: Duration) {
        self.answer.observe(after.as_secs_f64());
    }
}
