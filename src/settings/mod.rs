//! The resolved configuration: flags over variables over defaults, every unit and limit, all mistakes reported together.
//!
//! Pure: `main` hands over what was typed and the environment. Defaults stand in [`crate::settings::options::TABLE`].

use std::time::Duration;

use ipnet::IpNet;
use tracing::Level;

use crate::settings::options::{Key, ServeOptions};

mod hosts;
pub mod options;
mod parts;
mod reader;
mod sections;
mod values;

pub use hosts::{Endpoint, Host, Origins};
pub use parts::{BreakerLimits, Keys, PickRules, RegistryLimits, ServerSettings, TokenBudget};
pub use reader::{Mistake, Mistakes};
pub use values::Secret;

use reader::Reader;

/// Options with their effective values as text.
type Effective = Vec<(Key, String)>;

/// Everything the proxy was told, typed and checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Addresses to listen on.
    pub listen: Listen,
    /// What clients may take of the proxy.
    pub http: HttpLimits,
    /// Who may call, and as whom engines are called.
    pub access: Access,
    /// Which engines are known, and for how long.
    pub discovery: Discovery,
    /// How legs are made and paired.
    pub exchange: Exchange,
    /// How long engines may take.
    pub upstream: Timeouts,
    /// When another attempt is made.
    pub retry: Retry,
    /// When an engine is left alone.
    pub breaker: Breaker,
    /// How engines are chosen.
    pub policy: Policies,
    /// What is logged and how.
    pub log: Log,
    /// Threads and stopping.
    pub process: Process,
    /// Every option with its effective value, in the table's order, secrets masked.
    effective: Effective,
}

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Where clients are served.
    pub http: Endpoint,
    /// Where engines register.
    pub discovery: Endpoint,
}

/// What clients may take of the proxy. All durations are above zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpLimits {
    /// Time for the head of a request.
    pub header_timeout: Duration,
    /// Time for the body of a request.
    pub body_timeout: Duration,
    /// Life of an idle connection.
    pub keep_alive_timeout: Duration,
    /// Largest body in bytes, inclusive.
    pub max_body_bytes: usize,
    /// Connections open at once, at least 1.
    pub max_connections: usize,
    /// Generation requests in flight at once, at least 1.
    pub max_in_flight: usize,
    /// `/health` answers 503 until the first pair.
    pub health_waits_for_pair: bool,
}

/// Who may call, and as whom engines are called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Key every client must present; `None` asks for none.
    pub api_key: Option<Secret>,
    /// Key given to engines when the client's is for the proxy, or it sent none.
    pub engine_key: Option<Secret>,
    /// Origins whose pages may call.
    pub origins: Origins,
}

/// Which engines are known, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovery {
    /// Silence after which an engine is suspect; at least a second.
    pub engine_ttl: Duration,
    /// Networks engines may advertise addresses in; empty allows any.
    pub engine_allow: Vec<IpNet>,
    /// Engines known at once, at least 2.
    pub max_engines: usize,
    /// Requests one engine may have in flight; `None` sets no limit.
    pub engine_in_flight: Option<usize>,
}

/// The token limit decode is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DecodeTokenBudget {
    /// The client's limit less one, never below one.
    #[default]
    MinusOne,
    /// The client's limit.
    Exact,
}

/// When decode's leg is sent in WRITE mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WriteDispatch {
    /// As soon as prefill's connection is up.
    #[default]
    Concurrent,
    /// After prefill's success.
    Serial,
}

/// How legs are made and paired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// The token limit decode is given.
    pub decode_token_budget: DecodeTokenBudget,
    /// When decode's leg is sent in WRITE mode.
    pub write_dispatch: WriteDispatch,
    /// Release blocks nobody will read, where the engine understands it; `false` never does.
    pub kv_release: bool,
    /// Send a pair's first exchange alone, where the engines need it; `false` never does.
    pub first_contact: bool,
    /// Use pairs of which one engine has met an earlier incarnation of the other.
    pub allow_stale_pairs: bool,
}

/// How long engines may take. All are above zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Connecting to an engine.
    pub connect: Duration,
    /// Prefill's answer, from dispatch; longer than `connect`.
    pub prefill: Duration,
    /// Decode's first output of a streamed answer, once prefill is done; longer than `connect`.
    pub first_byte: Duration,
    /// Silence between bytes of decode's stream.
    pub stream_idle: Duration,
    /// An answer that is not streamed, as a whole; longer than `connect`.
    pub answer: Duration,
    /// READ: from prefill's answer to decode's dispatch; under the 60 s after which engines drop the blocks.
    pub hand_over: Duration,
    /// WRITE: waiting for the first byte of a decode leg whose prefill failed.
    pub unpark: Duration,
}

/// When another attempt is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Attempts after the first, 0 to 10; 0 is off.
    pub retries: u32,
    /// Retries as a share of the traffic, 0 to 100 percent.
    pub budget_percent: u32,
}

/// When an engine is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breaker {
    /// Failures in a row that open it; `None` is off.
    pub failures: Option<u32>,
    /// How long it stays open the first time; above zero.
    pub open: Duration,
    /// How long it stays open at most; not under `open`.
    pub open_max: Duration,
}

/// A way to choose engines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PolicyName {
    /// One after the other.
    #[default]
    RoundRobin,
}

/// How engines are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policies {
    /// For the prefill leg.
    pub prefill: PolicyName,
    /// For the decode leg.
    pub decode: PolicyName,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What is logged and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// The least important level that is written.
    pub level: Level,
    /// The form of a line.
    pub format: LogFormat,
}

/// Threads and stopping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Threads that serve clients, at least 1.
    pub workers: usize,
    /// What running answers get to end after a stop signal; zero cuts them at once.
    pub drain_timeout: Duration,
}

impl Config {
    /// Reads every option: flags over variables (an empty one counts as unset) over defaults.
    ///
    /// Returns the configuration and warnings for the user.
    ///
    /// # Errors
    /// All mistakes at once, each naming the flag or variable it was found in.
    pub fn resolve(
        options: &ServeOptions,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<(Self, Vec<String>), Mistakes> {
        let mut reader = Reader::new(options, environment);
        let mut config = Self {
            listen: Listen::read(&mut reader),
            http: HttpLimits::read(&mut reader),
            access: Access {
                api_key: reader.secret(Key::ApiKey),
                engine_key: reader.secret(Key::OpenaiApiKey),
                origins: reader.origins(Key::CorsAllowOrigin),
            },
            discovery: Discovery::read(&mut reader),
            exchange: Exchange::read(&mut reader),
            upstream: Timeouts::read(&mut reader),
            retry: Retry {
                retries: reader.number(Key::Retries, 0..=10),
                budget_percent: reader.number(Key::RetryBudget, 0..=100),
            },
            breaker: Breaker::read(&mut reader),
            policy: Policies::read(&mut reader),
            log: Log::read(&mut reader),
            process: Process::read(&mut reader),
            effective: Vec::new(),
        };
        reader.switch(Key::VllmPdDisaggregation);
        reader.choice(Key::KvConnector, &[("moriio", ())]);
        let (effective, warnings) = reader.finish()?;
        config.effective = effective;
        Ok((config, warnings))
    }

    /// Every option by its name with its effective value, secrets masked: what `check` and the start-up log print.
    #[must_use]
    pub fn describe(&self) -> Vec<(String, String)> {
        let name = |key: Key| key.row().name().trim_start_matches('-').to_owned();
        self.effective.iter().map(|(key, value)| (name(*key), value.clone())).collect()
    }

    /// A short name for this configuration: equal for equal effective values in every build; secrets have no part.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        // FNV-1a: the standard library's hasher promises no stable result.
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        for (key, value) in self.effective.iter().filter(|(key, _)| !key.row().is_secret()) {
            for byte in format!("{}={value}\n", key.row().name()).bytes() {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
        }
        format!("{hash:016x}")
    }
}

#[cfg(test)]
mod tests;
