//! Every option of vllm-router with what must become of it, written down by hand.

use std::collections::{BTreeMap, BTreeSet};

use super::{program, resolve_as};
use crate::settings::faces::Program;

/// What must become of an option.
#[derive(Clone, Copy)]
pub(super) enum Must {
    /// These options of ours have these values, and nothing is said.
    Set(&'static [(&'static str, &'static str)]),
    /// The same, and this is said.
    SetAndSay(&'static [(&'static str, &'static str)], &'static str),
    /// Nothing changes, and nothing is said.
    Hush,
    /// Nothing changes, and this is said.
    Say(&'static str),
    /// It is a mistake, told in one line that names it.
    Refuse,
}

use Must::{Hush, Refuse, Say, Set, SetAndSay};

const NONE: &str = "taken, has no effect";
const UNGIVEN: &str = "not available, as if it were not given";

/// A part of a command line, the option that it is about first.
const CASES: &[(&str, Must)] = &[
    ("--host 10.1.2.3", Set(&[("host", "10.1.2.3"), ("ping-host", "10.1.2.3")])),
    ("--port 8000", Set(&[("port", "8000")])),
    (
        "--vllm-discovery-address 0.0.0.0:4000",
        Set(&[("ping-host", "0.0.0.0"), ("ping-port", "4000"), ("vllm-discovery-address", "0.0.0.0:4000")]),
    ),
    ("--vllm-pd-disaggregation", Set(&[("vllm-pd-disaggregation", "true")])),
    ("--kv-connector moriio", Hush),
    ("--kv-connector nixl", Refuse),
    ("--kv-connector mooncake", Refuse),
    ("--kv-connector other", Refuse),
    (
        "--policy round_robin",
        Set(&[("policy", "round_robin"), ("prefill-policy", "round_robin"), ("decode-policy", "round_robin")]),
    ),
    ("--policy random", Set(&[("policy", "random"), ("prefill-policy", "random"), ("decode-policy", "random")])),
    ("--policy cache_aware", Hush),
    ("--policy kv_aware", Say(UNGIVEN)),
    (
        "--policy power_of_two",
        Set(&[("policy", "power_of_two"), ("prefill-policy", "power_of_two"), ("decode-policy", "power_of_two")]),
    ),
    (
        "--policy consistent_hash",
        Set(&[
            ("policy", "consistent_hash"),
            ("prefill-policy", "consistent_hash"),
            ("decode-policy", "consistent_hash"),
        ]),
    ),
    (
        "--policy sticky_least_loaded",
        Set(&[("policy", "least_loaded"), ("prefill-policy", "least_loaded"), ("decode-policy", "least_loaded")]),
    ),
    (
        "--policy rendezvous_hash",
        Set(&[
            ("policy", "consistent_hash"),
            ("prefill-policy", "consistent_hash"),
            ("decode-policy", "consistent_hash"),
        ]),
    ),
    ("--policy fastest", Refuse),
    ("--prefill-policy round_robin", Set(&[("prefill-policy", "round_robin")])),
    ("--prefill-policy consistent_hash", Set(&[("prefill-policy", "consistent_hash")])),
    ("--prefill-policy fastest", Refuse),
    ("--decode-policy round_robin", Set(&[("decode-policy", "round_robin")])),
    ("--decode-policy kv_aware", Say(UNGIVEN)),
    ("--decode-policy fastest", Refuse),
    ("--log-level debug", Set(&[("log-level", "debug")])),
    ("--log-level info", Hush),
    ("--log-level warning", Set(&[("log-level", "warn")])),
    ("--log-level error", Set(&[("log-level", "error")])),
    ("--log-level critical", Set(&[("log-level", "error")])),
    ("--log-level loud", Refuse),
    ("--prometheus-port 29000", Set(&[("metrics-port", "29000")])),
    ("--prometheus-port x", Refuse),
    ("--prometheus-port 70000", Refuse),
    ("--prometheus-host 0.0.0.0", Set(&[("metrics-host", "0.0.0.0")])),
    ("--prometheus-host 0.0.0.0 --prometheus-port 1", Set(&[("metrics-host", "0.0.0.0"), ("metrics-port", "1")])),
    ("--request-id-headers x-request-id x-trace-id", Set(&[("request-id-headers", "x-request-id,x-trace-id")])),
    ("--request-id-headers authorization", Refuse),
    (
        "--request-timeout-secs 3600",
        Set(&[
            ("prefill-timeout", "3600s"),
            ("first-byte-timeout", "3600s"),
            ("stream-idle-timeout", "3600s"),
            ("answer-timeout", "3600s"),
            ("cold-timeout", "3600s"),
        ]),
    ),
    (
        "--request-timeout-secs 4",
        Set(&[
            ("prefill-timeout", "4s"),
            ("first-byte-timeout", "4s"),
            ("stream-idle-timeout", "4s"),
            ("answer-timeout", "4s"),
            ("cold-timeout", "4s"),
            ("connect-timeout", "2s"),
        ]),
    ),
    ("--request-timeout-secs 1800", Hush),
    ("--request-timeout-secs 30m", Refuse),
    ("--max-payload-size 1048576", Set(&[("max-body-bytes", "1MiB")])),
    ("--max-payload-size 1MiB", Refuse),
    ("--max-concurrent-requests 1024", Set(&[("max-in-flight", "1024")])),
    ("--max-concurrent-requests 0", Refuse),
    ("--queue-size 100", Hush),
    ("--queue-size 0", Set(&[("queue-size", "0")])),
    ("--queue-size -1", Refuse),
    ("--queue-timeout-secs 7", Set(&[("queue-timeout", "7s")])),
    ("--queue-timeout-secs soon", Refuse),
    ("--retry-max-retries 1", Set(&[("retries", "0")])),
    ("--retry-max-retries 3", Set(&[("retries", "2")])),
    ("--retry-max-retries 5", Hush),
    ("--retry-max-retries 1000", Set(&[("retries", "10")])),
    ("--retry-max-retries 0", Refuse),
    ("--disable-retries", Set(&[("retries", "0")])),
    ("--disable-retries --retry-max-retries 3", Set(&[("retries", "0")])),
    ("--cb-failure-threshold 3", Set(&[("breaker-failures", "3")])),
    ("--cb-failure-threshold few", Refuse),
    ("--cb-timeout-duration-secs 7", Set(&[("breaker-open", "7s"), ("breaker-open-max", "7s")])),
    ("--disable-circuit-breaker", Set(&[("breaker-failures", "0")])),
    ("--disable-circuit-breaker --cb-failure-threshold 3", Set(&[("breaker-failures", "0")])),
    (
        "--api-key k",
        SetAndSay(
            &[("OPENAI_API_KEY", "***")],
            "sent to engines; clients are not asked for one (PROXY_API_KEY does that)",
        ),
    ),
    ("--intra-node-data-parallel-size 8", Hush),
    ("--intra-node-data-parallel-size eight", Refuse),
    ("--moriio-dp-size 16", Hush),
    ("--moriio-dp-size 1.5", Refuse),
    ("--prefill http://p:20005 --ping-port 36367", Hush),
    ("--prefill http://p:20005 none --ping-port 36367", Hush),
    ("--prefill http://p:20005 8998 --ping-port 36367", Hush),
    ("--prefill http://p:20005 port --ping-port 36367", Refuse),
    ("--prefill http://p:20005", Refuse),
    ("--prefill p:20005 --ping-port 36367", Refuse),
    ("--decode d:20005 --ping-port 36367", Refuse),
    ("--decode http://d:20005 --decode http://e:20005 --ping-port 36367", Hush),
    ("--decode http://d:20005", Refuse),
    ("--worker-startup-timeout-secs 1800", Hush),
    ("--worker-startup-timeout-secs long", Refuse),
    ("--worker-startup-check-interval 1", Hush),
    ("--health-failure-threshold 3", Hush),
    ("--health-success-threshold 2", Hush),
    ("--health-check-timeout-secs 5", Hush),
    ("--health-check-interval-secs 60", Hush),
    ("--health-check-endpoint /health", Hush),
    ("--health-check-endpoint /ping", Say(NONE)),
    ("--cb-success-threshold 3", Hush),
    ("--cb-window-duration-secs 120", Hush),
    ("--retry-initial-backoff-ms 50", Hush),
    ("--retry-max-backoff-ms 30000", Hush),
    ("--retry-backoff-multiplier 1.5", Hush),
    ("--retry-jitter-factor 0.2", Hush),
    ("--retry-jitter-factor much", Refuse),
    ("--cache-threshold 0.3", Hush),
    ("--cache-threshold 0.5", Set(&[("cache-threshold", "0.5")])),
    ("--balance-abs-threshold 64", Hush),
    ("--balance-abs-threshold 8", Set(&[("balance-abs-threshold", "8")])),
    ("--balance-rel-threshold 1.5", Hush),
    ("--balance-rel-threshold 1.1", Set(&[("balance-rel-threshold", "1.1")])),
    ("--eviction-interval-secs 120", Hush),
    ("--eviction-interval 120", Hush),
    ("--max-tree-size 67108864", Set(&[("prefix-memory", "64MiB")])),
    ("--worker-urls", Hush),
    ("--worker-urls ''", Hush),
    ("--worker-urls http://a:1 http://b:2", Refuse),
    ("--cors-allowed-origins", Hush),
    ("--cors-allowed-origins https://chat.example *", Say(NONE)),
    ("--backend vllm", Hush),
    ("--backend sglang", Refuse),
    ("--history-backend memory", Hush),
    ("--log-dir /tmp/logs", Say(NONE)),
    ("--router-temperature 0.0", Say(NONE)),
    ("--router-temperature warm", Refuse),
    ("--kv-penalty-host 0.8", Say(NONE)),
    ("--kv-penalty-external 0.6", Say(NONE)),
    ("--kv-penalty-disk 0.3", Say(NONE)),
    ("--kv-aware-session-affinity-ttl-secs 600", Say(NONE)),
    ("--rate-limit-tokens-per-second 100", Say(NONE)),
    ("--enable-trace", Say(NONE)),
    ("--otlp-traces-endpoint localhost:4317", Say(NONE)),
    ("--otel-sampling-ratio 1.0", Say(NONE)),
    ("--otel-excluded-paths /health /metrics", Say(NONE)),
    ("--profile", Say(NONE)),
    ("--mini-lb", Refuse),
    ("--enable-igw", Refuse),
    ("--service-discovery", Refuse),
    ("--selector app=a tier=b", Hush),
    ("--prefill-selector app=p", Hush),
    ("--decode-selector app=d", Hush),
    ("--service-discovery-port 80", Hush),
    ("--service-discovery-port http", Refuse),
    ("--service-discovery-namespace default", Hush),
    ("--enable-program-scheduling", Refuse),
    ("--program-scheduling-config-json {}", Refuse),
    ("--wasm-middleware a.wasm", Refuse),
    ("--wasm-middleware-sha256 00", Refuse),
    ("--wasm-middleware-route /v1/chat/completions", Refuse),
    ("--kv-event-source http://w:1=tcp://w:2", Refuse),
    ("--pd-kv-events http://w:1=tcp://w:2", Refuse),
    ("--kv-event-replay-source http://w:1=tcp://w:2", Hush),
    ("--kv-event-block-size 16", Hush),
    ("--kv-event-model m", Hush),
    ("--api-key-validation-urls http://a", Refuse),
];

/// What is given to a program, the option or variable that it is about first.
#[track_caller]
pub(super) fn check(program: &'static Program, line: &str, variables: &[(&str, &str)], must: Must) {
    let named = variables.first().map_or_else(|| line.split_whitespace().next().unwrap(), |(name, _)| name);
    let resolve = |line: &str, variables: &[(&str, &str)]| resolve_as(program, line, variables);
    let changed = |line: &str| {
        let effective = |line: &str, variables: &[(&str, &str)]| resolve(line, variables).unwrap().0.describe();
        let plain: BTreeMap<String, String> = effective("", &[]).into_iter().collect();
        let changed = effective(line, variables).into_iter().filter(|(name, value)| plain[name] != *value);
        changed.collect::<BTreeSet<(String, String)>>()
    };
    let (wanted, said) = match must {
        Set(wanted) => (wanted, None),
        SetAndSay(wanted, said) => (wanted, Some(said)),
        Hush => (&[] as &[(&str, &str)], None),
        Say(said) => (&[] as &[(&str, &str)], Some(said)),
        Refuse => {
            let text = resolve(line, variables).expect_err(line);
            assert!(text.starts_with(&format!("moriio-proxy: {named}: ")), "{line}: {text}");
            assert_eq!(text.lines().count(), 1, "{line}: {text}");
            return;
        }
    };
    let (_, warnings) = resolve(line, variables).unwrap_or_else(|text| panic!("{line}: {text}"));
    assert_eq!(warnings, said.map(|said| format!("{named}: {said}")).into_iter().collect::<Vec<_>>(), "{line}");
    let wanted = wanted.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    assert_eq!(changed(line), wanted, "{line}");
}

#[test]
fn each_option_becomes_what_it_must() {
    for (line, must) in CASES {
        check(program(), line, &[], *must);
    }
}

#[test]
fn no_option_is_left_out() {
    let tried: BTreeSet<&str> =
        CASES.iter().map(|(line, _)| line.split_whitespace().next().unwrap().trim_start_matches('-')).collect();
    let known: BTreeSet<&str> = program().rows.iter().flat_map(|row| row.flags).copied().collect();
    assert_eq!(tried, known);
    assert_eq!(tried.len(), 81);
}

/// Options that mean nothing alone are refused beside what gives them a meaning.
#[test]
fn inert_options_go_with_their_master() {
    for (line, named) in [
        ("--service-discovery --selector a=b", ["--service-discovery", "--selector"]),
        ("--service-discovery --service-discovery-port 80", ["--service-discovery", "--service-discovery-port"]),
        ("--kv-event-source a=b --kv-event-model m", ["--kv-event-source", "--kv-event-model"]),
        ("--pd-kv-events a=b --kv-event-block-size 16", ["--pd-kv-events", "--kv-event-block-size"]),
    ] {
        let text = resolve_as(program(), line, &[]).unwrap_err();
        let places: Vec<&str> = text.lines().map(|line| line.split(": ").nth(1).unwrap()).collect();
        assert_eq!(places, named, "{text}");
    }
}

/// One line for each reason names all options that it holds for.
#[test]
fn notes_are_gathered() {
    let line = "--policy kv_aware --decode-policy kv_aware --log-dir d --profile";
    let (_, warnings) = resolve_as(program(), line, &[]).unwrap();
    let wanted = [
        "--policy, --decode-policy: not available, as if it were not given",
        "--log-dir, --profile: taken, has no effect",
    ];
    assert_eq!(warnings, wanted);
}
