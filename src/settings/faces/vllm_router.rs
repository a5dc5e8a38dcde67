//! The options of vllm-router, of its Python command line and of the Rust one in its image.

use super::row::{Change, Otherwise, Program, Row, Says, Takes, Verdict};
use crate::engine::Role;
use crate::settings::conduct::{Announces, Conduct};
use crate::settings::options::Key;
use crate::settings::presumed::Ranks;

use Change::{Always, HalfOfFew, OneLess, Renamed, Same, Seconds};
use Key::{
    AnswerTimeout, BalanceAbsThreshold, BalanceRelThreshold, BreakerFailures, BreakerOpen, BreakerOpenMax,
    CacheThreshold, ColdTimeout, ConnectTimeout, FirstByteTimeout, MaxBodyBytes, MaxInFlight, MetricsHost, MetricsPort,
    PingHost, PingPort, PrefillTimeout, PrefixMemory, QueueSize, QueueTimeout, RequestIdHeaders, Retries,
    StreamIdleTimeout, VllmDiscoveryAddress,
};
use Takes::{List, Nothing, Number, OneOf, Secret, Text, Url, UrlAndPort, Whole, Within};
use Verdict::{
    Honoured, HonouredAs, HonouredIf, HonouredWhereGiven, Inert, Mapped, Noted, Refused, Registration, Silent, SilentIf,
};

/// The program with all its options.
pub(super) const VLLM_ROUTER: Program = Program {
    name: "vllm-router",
    about: "moriio-proxy as vllm-router: the options and defaults of that program, for engines with the moriio connector",
    rows: ROWS,
    // Its answers have as many tokens as were asked for, and its launchers wait for a pair by /health.
    habits: &[(Key::DecodeTokenBudget, "exact"), (Key::HealthWaitsForPair, "true")],
    conduct: Conduct {
        engine_key_first: true,
        announces: Announces::AsVllmRouter,
        lists_engines: true,
        may_lack_metrics_port: true,
        ..Conduct::NATIVE
    },
};

const POLICIES: &[&str] = &[
    "random",
    "round_robin",
    "cache_aware",
    "kv_aware",
    "power_of_two",
    "consistent_hash",
    "sticky_least_loaded",
    "rendezvous_hash",
];

/// Those of them that we have, with our names. Sessions stick to their engines under every policy of ours.
const AVAILABLE: &[(&str, &str)] = &[
    ("random", "random"),
    ("round_robin", "round_robin"),
    ("power_of_two", "power_of_two"),
    ("consistent_hash", "consistent_hash"),
    ("rendezvous_hash", "consistent_hash"),
    ("sticky_least_loaded", "least_loaded"),
    ("cache_aware", "cache_aware"),
];

/// Native names of levels do too.
const LEVELS: &[&str] = &["debug", "info", "warning", "error", "critical", "warn", "trace"];

const NO_EFFECT: &str = "taken, has no effect";
const POLICY: Otherwise = Otherwise::Note("not available, as if it were not given");

/// Longest time in seconds and largest body in bytes that we can be told.
const LONGEST: u64 = 30 * 24 * 60 * 60;
const LARGEST: u64 = 1 << 36;

/// What makes engines register with us; addresses alone would not.
const DISCOVERY: &[Key] = &[VllmDiscoveryAddress, PingHost, PingPort];

/// Makes the rows of one list, two lines each.
macro_rules! rows {
    ($($flag:literal $(or $other:literal)*: $takes:expr, $default:literal, $verdict:expr => $meaning:literal;)*) => {
        &[$(Row { flags: &[$flag $(, $other)*], variable: "", takes: $takes, default: $default, verdict: $verdict, meaning: $meaning },)*]
    };
}

const ROWS: &[Row] = rows! {
    "host": Text, "127.0.0.1", Honoured(Key::Host)
        => "where clients are served";
    "port": Whole, "30000", Honoured(Key::Port)
        => "where clients are served";
    "vllm-discovery-address": Text, "", Honoured(VllmDiscoveryAddress)
        => "where engines register";
    "vllm-pd-disaggregation": Nothing, "", Honoured(Key::VllmPdDisaggregation)
        => "makes moriio-proxy stand in for vllm-router, which does nothing else here";
    "kv-connector": OneOf(&["nixl", "mooncake", "moriio"]), "nixl", HonouredIf("moriio", Key::KvConnector, Otherwise::Refuse)
        => "only `moriio`, which is meant when it is absent; others are refused";
    "policy": OneOf(POLICIES), "cache_aware", HonouredAs(AVAILABLE, Key::Policy, POLICY)
        => "`rendezvous_hash` is `consistent_hash`, `sticky_least_loaded` is `least_loaded`; `kv_aware` is taken with a note, as if it were not given";
    "prefill-policy": OneOf(POLICIES), "", HonouredAs(AVAILABLE, Key::PrefillPolicy, POLICY)
        => "as `--policy`";
    "decode-policy": OneOf(POLICIES), "", HonouredAs(AVAILABLE, Key::DecodePolicy, POLICY)
        => "as `--policy`";
    "prometheus-port": Whole, "29000", HonouredWhereGiven(MetricsPort)
        => "where `/metrics` is served besides, only where it is given; a port that is taken is told of";
    "prometheus-host": Text, "127.0.0.1", Honoured(MetricsHost)
        => "as `--prometheus-port`";
    "request-id-headers": List, "", Honoured(RequestIdHeaders)
        => "where a client's request id is looked for; `x-request-id` when it is absent";

    "log-level": OneOf(LEVELS), "info", Mapped(&[(Key::LogLevel, Renamed("critical", "error"))], None)
        => "`--log-level`; `critical` is `error`";
    "request-timeout-secs": Within(1, LONGEST), "1800", Mapped(&[
        (PrefillTimeout, Seconds), (FirstByteTimeout, Seconds), (StreamIdleTimeout, Seconds), (AnswerTimeout, Seconds),
        (ColdTimeout, Seconds), (ConnectTimeout, HalfOfFew)], None)
        => "`--prefill-timeout`, `--first-byte-timeout`, `--stream-idle-timeout`, `--answer-timeout`, `--cold-timeout`";
    "max-payload-size": Within(1, LARGEST), "536870912", Mapped(&[(MaxBodyBytes, Same)], None)
        => "`--max-body-bytes`";
    "max-concurrent-requests": Within(1, 1_000_000), "32768", Mapped(&[(MaxInFlight, Same)], None)
        => "`--max-in-flight`; requests beyond wait as `--queue-size` says, or are answered with 429, not 408";
    "queue-size": Within(0, 1_000_000), "100", Mapped(&[(QueueSize, Same)], None)
        => "`--queue-size`";
    "queue-timeout-secs": Within(1, LONGEST), "60", Mapped(&[(QueueTimeout, Seconds)], None)
        => "`--queue-timeout`; 429 after it, not 408";
    "retry-max-retries": Within(1, 4_294_967_295), "5", Mapped(&[(Retries, OneLess(10))], None)
        => "`--retries`, one less since it counts the first attempt, 10 at most";
    "disable-retries": Nothing, "", Mapped(&[(Retries, Always("0"))], None)
        => "`--retries 0`";
    "cb-failure-threshold": Within(1, 100_000), "10", Mapped(&[(BreakerFailures, Same)], None)
        => "`--breaker-failures`";
    "cb-timeout-duration-secs": Within(1, LONGEST), "60", Mapped(&[(BreakerOpen, Seconds), (BreakerOpenMax, Seconds)], None)
        => "`--breaker-open` and `--breaker-open-max`";
    "cache-threshold": Number, "0.3", Mapped(&[(CacheThreshold, Same)], None)
        => "`--cache-threshold`";
    "max-tree-size": Within(1, LARGEST), "33554432", Mapped(&[(PrefixMemory, Same)], None)
        => "`--prefix-memory`: bytes of memory, 64 for each 2 KB of prompts; not letters for each engine";
    "balance-abs-threshold": Within(0, 1_000_000), "64", Mapped(&[(BalanceAbsThreshold, Same)], None)
        => "`--balance-abs-threshold`: beyond the mean of the others, not the least";
    "balance-rel-threshold": Number, "1.5", Mapped(&[(BalanceRelThreshold, Same)], None)
        => "`--balance-rel-threshold`: times that mean";
    "disable-circuit-breaker": Nothing, "", Mapped(&[(BreakerFailures, Always("0"))], None)
        => "`--breaker-failures 0`";
    "api-key": Secret, "", Mapped(&[(Key::OpenaiApiKey, Same)],
        Some("sent to engines; clients are not asked for one (PROXY_API_KEY does that)"))
        => "`OPENAI_API_KEY`: engines get it whatever a client sends, clients are not asked for one; noted";

    "intra-node-data-parallel-size": Whole, "1", Registration(Says::Ranks(Ranks::OnEachHost), &[])
        => "engines say how many ranks they have, one that says otherwise is noted; where `--moriio-dp-size` is more, an engine of that many is on several hosts, for which its first stands";
    "moriio-dp-size": Whole, "0", Registration(Says::Ranks(Ranks::InAll(None)), &[])
        => "engines say how many ranks they have; one that says otherwise is noted";
    "prefill": UrlAndPort, "", Registration(Says::Engine(Role::Prefill), DISCOVERY)
        => "engines register, others than those listed are noted; refused without a place where they can";
    "decode": Url, "", Registration(Says::Engine(Role::Decode), DISCOVERY)
        => "engines register, others than those listed are noted; refused without a place where they can";

    "worker-startup-timeout-secs": Whole, "600", Silent => "engines may come at any time";
    "worker-startup-check-interval": Whole, "30", Silent => "engines are probed when they register";
    "health-failure-threshold": Whole, "3", Silent => "";
    "health-success-threshold": Whole, "2", Silent => "";
    "health-check-timeout-secs": Whole, "5", Silent => "";
    "health-check-interval-secs": Whole, "60", Silent => "";
    "health-check-endpoint": Text, "/health", SilentIf("/health", Otherwise::Note(NO_EFFECT))
        => "another path is noted: engines are asked for `/health`";
    "cb-success-threshold": Whole, "3", Silent => "one success closes a breaker";
    "cb-window-duration-secs": Whole, "120", Silent => "failures in a row open a breaker, whatever the time";
    "retry-initial-backoff-ms": Whole, "50", Silent => "";
    "retry-max-backoff-ms": Whole, "30000", Silent => "";
    "retry-backoff-multiplier": Number, "1.5", Silent => "";
    "retry-jitter-factor": Number, "0.2", Silent => "";
    "eviction-interval-secs" or "eviction-interval": Whole, "120", Silent => "what is beyond `--max-tree-size` goes at once";
    "cors-allowed-origins": List, "", SilentIf("", Otherwise::Note(NO_EFFECT))
        => "origins are noted: `--cors-allow-origin` allows them";
    "backend": Text, "vllm", SilentIf("vllm", Otherwise::Refuse)
        => "only `vllm` is taken, in silence";
    "history-backend": Text, "", Silent => "";

    "log-dir": Text, "", Noted(NO_EFFECT) => "the log goes to stderr";
    "router-temperature": Number, "0.0", Noted(NO_EFFECT) => "";
    "kv-penalty-host": Number, "0.8", Noted(NO_EFFECT) => "";
    "kv-penalty-external": Number, "0.6", Noted(NO_EFFECT) => "";
    "kv-penalty-disk": Number, "0.3", Noted(NO_EFFECT) => "";
    "kv-aware-session-affinity-ttl-secs": Whole, "", Noted(NO_EFFECT) => "";
    "rate-limit-tokens-per-second": Whole, "", Noted(NO_EFFECT) => "";
    "enable-trace": Nothing, "", Noted(NO_EFFECT) => "";
    "otlp-traces-endpoint": Text, "", Noted(NO_EFFECT) => "";
    "otel-sampling-ratio": Number, "1.0", Noted(NO_EFFECT) => "";
    "otel-excluded-paths": List, "", Noted(NO_EFFECT) => "";
    "profile": Nothing, "", Noted(NO_EFFECT) => "";

    "worker-urls": List, "", SilentIf("", Otherwise::Refuse)
        => "engines register with `--vllm-discovery-address`; taken in silence without URLs";
    "mini-lb": Nothing, "", Refused => "there is no other balancer in here";
    "enable-igw": Nothing, "", Refused => "one model is served";
    "service-discovery": Nothing, "", Refused => "engines register with `--vllm-discovery-address`";
    "selector": List, "", Inert(&["service-discovery"]) => "refused beside `--service-discovery`";
    "prefill-selector": List, "", Inert(&["service-discovery"]) => "refused beside `--service-discovery`";
    "decode-selector": List, "", Inert(&["service-discovery"]) => "refused beside `--service-discovery`";
    "service-discovery-port": Whole, "80", Inert(&["service-discovery"]) => "refused beside `--service-discovery`";
    "service-discovery-namespace": Text, "", Inert(&["service-discovery"]) => "refused beside `--service-discovery`";
    "enable-program-scheduling": Nothing, "", Refused => "not available";
    "program-scheduling-config-json": Text, "", Refused => "not available";
    "wasm-middleware": Text, "", Refused => "requests would pass that it should have judged";
    "wasm-middleware-sha256": Text, "", Refused => "as `--wasm-middleware`";
    "wasm-middleware-route": Text, "", Refused => "as `--wasm-middleware`";
    "kv-event-source": Text, "", Refused => "not available";
    "pd-kv-events": Text, "", Refused => "not available";
    "kv-event-replay-source": Text, "", Inert(&["kv-event-source", "pd-kv-events"])
        => "refused beside `--kv-event-source` or `--pd-kv-events`";
    "kv-event-block-size": Whole, "16", Inert(&["kv-event-source", "pd-kv-events"])
        => "refused beside `--kv-event-source` or `--pd-kv-events`";
    "kv-event-model": Text, "", Inert(&["kv-event-source", "pd-kv-events"])
        => "refused beside `--kv-event-source` or `--pd-kv-events`";
    "api-key-validation-urls": List, "", Refused => "clients would not be asked for the keys that it should check";
};
