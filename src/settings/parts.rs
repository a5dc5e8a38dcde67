//! What each part is told, as it takes it.

use std::time::Duration;

use http::HeaderValue;

use super::values::Secret;

/// Settings of the data port.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// Decode's token limit (`--decode-token-budget`).
    pub budget: TokenBudget,
    /// The largest request body, inclusive (`--max-body-bytes`).
    pub max_body: u64,
    /// Time for the whole request body (`--body-timeout`).
    pub body_time: Duration,
    /// Requests served at once (`--max-in-flight`).
    pub max_in_flight: usize,
    /// Attempts beyond the first (`--retries`).
    pub retries: u32,
    /// Retries as a share of requests, in percent (`--retry-budget`).
    pub retry_percent: u32,
    /// Whose credential goes where.
    pub keys: Keys,
    /// `/health` is 503 until the first pair (`--health-waits-for-pair`).
    pub health_waits: bool,
}

/// Whose credential goes where.
#[derive(Clone, Debug)]
pub struct Keys {
    /// What clients must send (`--api-key`).
    pub api_key: Option<Secret>,
    /// Sent to engines when the client's credential is for the proxy, or there is none (`OPENAI_API_KEY`).
    pub engine_key: Option<HeaderValue>,
}

/// What decode is told of the client's token limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenBudget {
    /// One less, never below one: what the proxies do that users compare with.
    MinusOne,
    /// The client's number: decode samples the first token itself, so as many come back as were asked for.
    Exact,
}

/// What a pick must respect beyond the state of the engines.
#[derive(Clone, Copy, Debug)]
pub struct PickRules {
    /// Legs that an engine may have in flight; 0 is no limit (`--engine-in-flight`).
    pub engine_in_flight: usize,
    /// Whether a pair's first exchange goes alone (`--first-contact`).
    pub first_contact: bool,
    /// Whether pairs that should fail for ever are used all the same (`--allow-stale-pairs`).
    pub allow_stale: bool,
}

/// Settings of the registry.
#[derive(Clone, Copy, Debug)]
pub struct RegistryLimits {
    /// Silence after which an engine is suspect (`--engine-ttl`).
    pub ttl: Duration,
    /// Engines that are kept (`--max-engines`).
    pub max_engines: usize,
    /// For the breakers of new engines.
    pub breaker: BreakerLimits,
}

/// Limits of a breaker.
#[derive(Clone, Copy, Debug)]
pub struct BreakerLimits {
    /// Consecutive failures that open it; 0 switches the breaker off.
    pub failures: u32,
    /// How long it stays open the first time.
    pub open: Duration,
    /// The longest that it stays open; every failed trial doubles the time up to this.
    pub open_max: Duration,
}
