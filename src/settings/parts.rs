//! What each part is told, as the part takes it, and which option each of it is read from.

use std::cmp::Ordering;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use ipnet::IpNet;
use tracing::Level;

use super::admission::{Admission, Caps};
use super::conduct::Conduct;
use super::hosts::{self, Endpoint, Host, Origins};
use super::options::Key;
use super::policies::{Affinity, Cache, DecodeAlone, Policies, SessionKeys};
use super::presumed::Presumed;
use super::reader::Reader;
use super::spans::{self, Spans};
use super::values::{
    Secret, bearer, choice, headers, networks, number, secret, size, some, switch, time, time_or_zero,
};
use crate::engine::hosts::Contract;

/// The most that any count can be set to.
const MANY: usize = 1_000_000;

/// Declares the settings of each part. A field is read from an option, by the parser after the option's name, or it is a
/// struct of settings itself.
macro_rules! parts {
    ($($(#[$about:meta])* $part:ident { $($(#[$doc:meta])* $field:ident: $type:ty $(= $key:ident $parse:expr)?;)* })*) => {$(
        $(#[$about])*
        #[derive(Clone, Debug)]
        pub struct $part { $($(#[$doc])* pub $field: $type,)* }

        impl $part {
            pub(super) fn read(reader: &mut Reader<'_>) -> Self {
                Self { $($field: parts!(@ reader $type $(, $key $parse)?),)* }
            }
        }
    )*};
    (@ $reader:ident $type:ty) => { <$type>::read($reader) };
    (@ $reader:ident $type:ty, $key:ident $parse:expr) => { $reader.get(Key::$key, $parse) };
}

parts! {
    /// Everything that the proxy's parts are told.
    Parts {
        /// Addresses to listen on.
        listen: Listen;
        /// The clients' connections.
        door: DoorLimits;
        /// The data port.
        server: ServerSettings;
        /// Origins whose pages may call (`--cors-allow-origin`).
        origins: Origins = CorsAllowOrigin hosts::origins;
        /// Networks engines may advertise addresses in; empty allows any (`--engine-allow`).
        allowed: Vec<IpNet> = EngineAllow networks;
        /// Engines over several hosts (`--engine-hosts`).
        spans: Spans = EngineHosts spans::listed;
        /// What a command line says of engines.
        presumed: Presumed;
        /// The registry of engines.
        registry: RegistryLimits;
        /// How engines are chosen.
        picking: PickRules;
        /// How long engines may take.
        times: Times;
        /// WRITE: whether decode waits for prefill's answer (`--write-dispatch serial`).
        serial_write: bool = WriteDispatch choice(&[("concurrent", false), ("serial", true)]);
        /// Whether clients are told what prefill had of their prompts (`--report-cached-tokens`).
        tells_cached: bool = ReportCachedTokens switch;
        /// Whether blocks nobody will read are released where the engine understands it (`--kv-release`).
        kv_release: bool = KvRelease choice(&[("auto", true), ("off", false)]);
    }

    /// Limits on the clients' connections.
    #[derive(Copy)]
    DoorLimits {
        /// Time for the head of a connection's first request (`--header-timeout`).
        head_time: Duration = HeaderTimeout time;
        /// Life of an idle connection (`--keep-alive-timeout`).
        keep_alive: Duration = KeepAliveTimeout time;
        /// Connections open at once, at least 1 (`--max-connections`).
        max_connections: usize = MaxConnections number(1, MANY);
        /// What running answers get to end after a stop; zero cuts them at once (`--drain-timeout`).
        drain: Duration = DrainTimeout time_or_zero;
    }

    /// Settings of the data port.
    ServerSettings {
        /// Decode's token limit (`--decode-token-budget`).
        budget: TokenBudget = DecodeTokenBudget choice(&BUDGETS);
        /// Answers that a request may ask for (`--max-siblings`).
        siblings: u32 = MaxSiblings number(1, 256);
        /// Where requests name their sessions.
        session_keys: SessionKeys;
        /// The largest request body, inclusive (`--max-body-bytes`).
        max_body: u64 = MaxBodyBytes size;
        /// Time for the whole request body (`--body-timeout`).
        body_time: Duration = BodyTimeout time;
        /// How many requests are served at once, and what the others wait for.
        admission: Admission;
        /// Attempts beyond the first (`--retries`).
        retries: u32 = Retries number(0, 10);
        /// Retries as a share of requests, in percent (`--retry-budget`).
        retry_percent: u32 = RetryBudget number(0, 100);
        /// Whose credential goes where.
        keys: Keys;
        /// Where a client's own request id is looked for (`--request-id-headers`).
        id_headers: Vec<HeaderName> = RequestIdHeaders headers;
        /// `/health` is 503 until the first pair (`--health-waits-for-pair`).
        health_waits: bool = HealthWaitsForPair switch;
        /// What must be there before `/ready` says yes.
        expected: Expected;
        /// The ways of the program that the proxy stands in for.
        conduct: Conduct;
    }

    /// What must be there before `/ready` says yes.
    #[derive(Copy)]
    Expected {
        /// Prefill engines, by the hosts that they fill (`--expect-prefill`).
        prefill: usize = ExpectPrefill number(0, MANY);
        /// Decode engines, likewise (`--expect-decode`).
        decode: usize = ExpectDecode number(0, MANY);
        /// Ranks of an engine on one host; 0 counts each engine once (`--ranks-per-host`).
        ranks_per_host: u32 = RanksPerHost number(0, 1024);
    }

    /// Whose credential goes where.
    Keys {
        /// What clients must send (`--api-key`).
        api_key: Option<Secret> = ApiKey some(secret);
        /// Sent to engines when the client's credential is for the proxy, or there is none (`OPENAI_API_KEY`).
        engine_key: Option<HeaderValue> = OpenaiApiKey some(bearer);
        /// Whose goes to engines where a client sent one and there is the engines' key.
        preferred: Preferred;
    }

    /// Settings of the registry.
    #[derive(Copy)]
    RegistryLimits {
        /// Silence after which an engine is suspect; at least a second (`--engine-ttl`).
        ttl: Duration = EngineTtl time;
        /// Engines that are kept, at least 2 (`--max-engines`).
        max_engines: usize = MaxEngines number(2, 65_536);
        /// For the breakers of new engines.
        breaker: BreakerLimits;
    }

    /// Limits of a breaker.
    #[derive(Copy)]
    BreakerLimits {
        /// Consecutive failures that open it; 0 switches the breaker off (`--breaker-failures`).
        failures: u32 = BreakerFailures number(0, 100_000);
        /// How long it stays open the first time (`--breaker-open`).
        open: Duration = BreakerOpen time;
        /// The longest that it stays open; every failed trial doubles the time up to this (`--breaker-open-max`).
        open_max: Duration = BreakerOpenMax time;
    }

    /// What a pick must respect beyond the state of the engines. By default nothing but that.
    #[derive(Copy, Default)]
    PickRules {
        /// Legs that an engine may have in flight.
        caps: Caps;
        /// Whether a pair's first exchange goes alone where the engines need it (`--first-contact`).
        first_contact: bool = FirstContact choice(&[("auto", true), ("off", false)]);
        /// Whether pairs that should fail for ever are used all the same (`--allow-stale-pairs`).
        allow_stale: bool = AllowStalePairs switch;
        /// Ranks of a prefill engine that have their turns; 0 is all (`--route-ranks`).
        route_ranks: u32 = RouteRanks number(0, 1024);
        /// Who of decode's ranks tells prefill in WRITE, where engines span hosts (`--write-contract`).
        contract: Contract = WriteContract choice(&CONTRACTS);
        /// In which order slots are looked at.
        policies: Policies;
        /// Whether sessions stay where they are.
        affinity: Affinity;
        /// What `cache_aware` knows.
        cache: Cache;
        /// Which requests decode serves alone.
        decode_alone: DecodeAlone;
    }

    /// How long engines may take. All are above zero.
    #[derive(Copy)]
    Times {
        /// Connecting to an engine (`--connect-timeout`).
        connect: Duration = ConnectTimeout time;
        /// Prefill's whole answer, from dispatch; longer than `connect` (`--prefill-timeout`).
        prefill: Duration = PrefillTimeout time;
        /// A streamed answer's first output, once prefill is done; longer than `connect` (`--first-byte-timeout`).
        first_byte: Duration = FirstByteTimeout time;
        /// Silence between bytes of decode's stream (`--stream-idle-timeout`).
        idle: Duration = StreamIdleTimeout time;
        /// An answer in one piece, from the same moment; longer than `connect` (`--answer-timeout`).
        answer: Duration = AnswerTimeout time;
        /// In place of `prefill`, `first_byte` and `answer` until a pair has once answered, where it is longer; zero is never
        /// (`--cold-timeout`).
        cold: Duration = ColdTimeout time_or_zero;
        /// READ: from prefill's answer to decode's dispatch; shorter than engines keep the blocks (`--hand-over-limit`).
        hand_over: Duration = HandOverLimit time;
        /// WRITE: waiting for the first byte of a decode leg whose prefill failed (`--unpark-timeout`).
        wake: Duration = UnparkTimeout time;
    }
}

/// Whose credential engines get where there are two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preferred {
    /// The client's.
    Client,
    /// The engines' key that we were given: vllm-router passes no client's credential on, whatever clients send.
    EngineKey,
}

impl Preferred {
    fn read(reader: &mut Reader<'_>) -> Self {
        if reader.conduct().engine_key_first { Preferred::EngineKey } else { Preferred::Client }
    }
}

impl Expected {
    /// For how many an engine counts: of one over several hosts only the first registers.
    pub fn count(&self, ranks: u32) -> usize {
        if self.ranks_per_host == 0 { 1 } else { ranks.div_ceil(self.ranks_per_host) as usize }
    }

    /// Whether so many are enough, as they count.
    pub fn are_there(&self, prefill: usize, decode: usize) -> bool {
        prefill >= self.prefill && decode >= self.decode
    }
}

impl Conduct {
    fn read(reader: &mut Reader<'_>) -> Self {
        reader.conduct()
    }
}

impl Presumed {
    fn read(reader: &mut Reader<'_>) -> Self {
        reader.presumed().clone()
    }
}

/// What decode is told of the client's token limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TokenBudget {
    /// One less, never below one: what the proxies do that users compare with.
    #[default]
    MinusOne,
    /// The client's number: decode samples the first token itself, so as many come back as were asked for.
    Exact,
}

const CONTRACTS: [(&str, Contract); 3] =
    [("auto", Contract::Auto), ("leader", Contract::Leader), ("same-rank", Contract::SameRank)];

const BUDGETS: [(&str, TokenBudget); 2] = [("minus-one", TokenBudget::MinusOne), ("exact", TokenBudget::Exact)];

/// What is logged and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// The least important level that is written (`--log-level`).
    pub level: Level,
    /// The form of a line (`--log-format`).
    pub format: LogFormat,
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

impl Log {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        let levels = [
            ("trace", Level::TRACE),
            ("debug", Level::DEBUG),
            ("info", Level::INFO),
            ("warn", Level::WARN),
            ("error", Level::ERROR),
            ("warning", Level::WARN),
            ("critical", Level::ERROR),
        ];
        let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
        let level = reader.find(Key::LogLevel, choice(&levels)).unwrap_or(Level::INFO);
        Self { level, format: reader.get(Key::LogFormat, choice(&formats)) }
    }
}

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Where clients are served.
    pub http: Endpoint,
    /// Where engines register.
    pub discovery: Endpoint,
    /// Where `/metrics` is served besides.
    pub metrics: Option<Endpoint>,
}

impl Listen {
    fn read(reader: &mut Reader<'_>) -> Self {
        let (host, named) = (reader.find(Key::Host, hosts::host).unwrap_or(Host::ANY), reader.named(Key::Host));
        let http = Endpoint { host, port: reader.get(Key::Port, number(0, u16::MAX)), named };
        let ping_host = reader.find(Key::PingHost, hosts::host);
        let ping_port = reader.get(Key::PingPort, number(0, u16::MAX));
        let both = reader.find(Key::VllmDiscoveryAddress, hosts::address);
        let (key, host, port) = match (both, ping_host) {
            (Some((host, port)), ping_host) => {
                // A flag wins over a variable; two of a kind must agree.
                let by_flag = reader.by_flag(Key::VllmDiscoveryAddress);
                let rank = |key| reader.is_given(key).then(|| reader.by_flag(key).cmp(&by_flag));
                let (host_rank, port_rank) = (rank(Key::PingHost), rank(Key::PingPort));
                let agree = host_rank != Some(Ordering::Equal) || ping_host.as_ref() == Some(&host);
                reader.require(agree, &[Key::VllmDiscoveryAddress, Key::PingHost], "name different addresses");
                let agree = port_rank != Some(Ordering::Equal) || ping_port == port;
                reader.require(agree, &[Key::VllmDiscoveryAddress, Key::PingPort], "name different ports");
                let port = if port_rank == Some(Ordering::Greater) { ping_port } else { port };
                match ping_host.filter(|_| host_rank == Some(Ordering::Greater)) {
                    Some(ping) => (Key::PingHost, ping, port),
                    None => (Key::VllmDiscoveryAddress, host, port),
                }
            }
            (None, Some(host)) => (Key::PingHost, host, ping_port),
            (None, None) => (Key::Host, http.host.clone(), ping_port),
        };
        reader.show(Key::PingHost, host.to_string());
        reader.show(Key::PingPort, port.to_string());
        let discovery = Endpoint { host, port, named: reader.named(key) };
        let overlap = http.host == discovery.host || http.host.is_unspecified() || discovery.host.is_unspecified();
        let ping = if key == Key::VllmDiscoveryAddress { key } else { Key::PingPort };
        let apart = !overlap || http.port != port || port == 0;
        reader.require(apart, &[Key::Port, ping], "must be different ports");
        let metrics_host = reader.find(Key::MetricsHost, hosts::host);
        let named = reader.named(if metrics_host.is_some() { Key::MetricsHost } else { Key::Host });
        let host = metrics_host.unwrap_or_else(|| http.host.clone());
        reader.show(Key::MetricsHost, host.to_string());
        let metrics = reader.find(Key::MetricsPort, number(0, u16::MAX)).map(|port| Endpoint { host, port, named });
        Self { http, discovery, metrics }
    }
}
