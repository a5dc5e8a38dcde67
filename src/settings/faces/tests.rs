use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;

use clap::error::ErrorKind;

use super::row::Program;
use super::{Asked, CommandLine, Face};
use crate::settings::options::{Key, ServeOptions, TABLE};
use crate::settings::{Config, TokenBudget};

mod launchers;
mod python_proxies;
mod rows;

const DISAGGREGATED: &str = "--vllm-pd-disaggregation";

fn program() -> &'static Program {
    Face::VllmRouter.program().unwrap()
}

fn arguments(line: &str) -> Vec<OsString> {
    line.split_whitespace().map(|word| OsString::from(word.replace("''", ""))).collect()
}

fn parse(line: &str) -> Result<(Asked, CommandLine), clap::Error> {
    program().parse(arguments(&format!("vllm-router {line}")))
}

/// What a command line of vllm-router comes to: every option, and the warnings; or the mistakes.
fn resolve(line: &str, variables: &[(&str, &str)]) -> Result<(Config, Vec<String>), String> {
    resolve_as(program(), line, variables)
}

/// The same for another program's.
fn resolve_as(
    program: &'static Program,
    line: &str,
    variables: &[(&str, &str)],
) -> Result<(Config, Vec<String>), String> {
    let called = arguments(&format!("{} {line}", program.name));
    let (_, line) = program.parse(called).map_err(|error| error.to_string())?;
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::resolve_line(&line, variables).map_err(|mistakes| mistakes.to_string())
}

fn effective(line: &str, variables: &[(&str, &str)]) -> BTreeMap<String, String> {
    resolve(line, variables).unwrap().0.describe().into_iter().collect()
}

#[test]
fn the_name_or_one_option_makes_the_face() {
    let flag = DISAGGREGATED;
    for (line, face) in [
        ("vllm-router", Face::VllmRouter),
        ("/usr/local/bin/vllm-router --port 1", Face::VllmRouter),
        ("vllm-router check", Face::VllmRouter),
        (&format!("moriio-proxy {flag}"), Face::VllmRouter),
        (&format!("moriio-proxy --port 1 {flag}"), Face::VllmRouter),
        (&format!("moriio-proxy serve {flag}"), Face::VllmRouter),
        (&format!("moriio-proxy check {flag}"), Face::VllmRouter),
        (&format!("moriio-proxy sim {flag}"), Face::Native),
        (&format!("moriio-proxy {flag}=false"), Face::Native),
        ("moriio-proxy", Face::Native),
        ("moriio-proxy --kv-connector moriio", Face::Native),
        ("/opt/vllm-router/moriio-proxy", Face::Native),
        ("vllm-router.sh", Face::Native),
        ("moriio_proxy.py", Face::Toy),
        ("/opt/moriio_proxy.py --port 1", Face::Toy),
        ("examples/moriio_toy_proxy_server.py", Face::Toy),
        (&format!("moriio_proxy.py {flag}"), Face::Toy),
        ("proxy/moriio_pd_proxy.py --port 1", Face::Mad),
        ("moriio_proxy", Face::Native),
        ("/opt/moriio_proxy.py/moriio-proxy", Face::Native),
        ("", Face::Native),
    ] {
        assert_eq!(Face::of(&arguments(line)), face, "{line}");
    }
    assert!(Face::Native.program().is_none());
    assert_eq!(parse("check --port 1").unwrap().0, Asked::Check);
    assert_eq!(parse("serve --port 1").unwrap().0, Asked::Serve);
    assert_eq!(parse("--port 1").unwrap().0, Asked::Serve);
}

#[test]
fn its_defaults_hold_where_nothing_is_given() {
    let (config, warnings) = resolve("", &[]).unwrap();
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!(config.parts.listen.http.to_string(), "127.0.0.1:30000");
    assert_eq!(config.parts.server.budget, TokenBudget::Exact);
    let own: BTreeMap<_, _> =
        Config::resolve(&ServeOptions::default(), std::iter::empty()).unwrap().0.describe().into_iter().collect();
    let other: BTreeMap<_, _> = config.describe().into_iter().collect();
    let changed: Vec<String> = other
        .iter()
        .filter(|(name, value)| own[name.as_str()] != **value)
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    assert_eq!(
        changed,
        [
            "breaker-failures=10",
            "breaker-open=60s",
            "breaker-open-max=60s",
            "decode-policy=cache_aware",
            "decode-token-budget=exact",
            "first-byte-timeout=1800s",
            "health-waits-for-pair=true",
            "host=127.0.0.1",
            "max-body-bytes=512MiB",
            "max-in-flight=32768",
            "metrics-host=127.0.0.1",
            "ping-host=127.0.0.1",
            "policy=cache_aware",
            "prefill-policy=cache_aware",
            "prefill-timeout=1800s",
            "prefix-memory=32MiB",
            "queue-size=100",
            "retries=4",
            "stream-idle-timeout=1800s",
        ]
    );
    let (face, said) = config.face.unwrap();
    assert_eq!(face, "vllm-router");
    assert_eq!(
        said,
        "host=127.0.0.1 metrics-host=127.0.0.1 policy=cache_aware prefix-memory=32MiB decode-token-budget=exact prefill-timeout=1800s first-byte-timeout=1800s \
         stream-idle-timeout=1800s max-body-bytes=512MiB max-in-flight=32768 queue-size=100 retries=4 \
         breaker-failures=10 breaker-open=60s breaker-open-max=60s health-waits-for-pair=true"
    );
    assert!(Config::resolve(&ServeOptions::default(), std::iter::empty()).unwrap().0.face.is_none());
}

/// Our flags over the other program's, those over variables, those over its defaults.
#[test]
fn what_is_given_beside_it_still_counts() {
    let value = |line: &str, variables: &[(&str, &str)], name: &str| effective(line, variables)[name].clone();
    assert_eq!(value("--decode-token-budget minus-one", &[], "decode-token-budget"), "minus-one");
    assert_eq!(value("", &[("PROXY_DECODE_TOKEN_BUDGET", "minus-one")], "decode-token-budget"), "minus-one");
    assert_eq!(value("--health-waits-for-pair=false", &[], "health-waits-for-pair"), "false");
    assert_eq!(value("", &[("PROXY_HOST", "10.0.0.1")], "host"), "10.0.0.1");
    assert_eq!(value("--host ::1", &[("PROXY_HOST", "10.0.0.1")], "host"), "::1");
    assert_eq!(value("", &[("PROXY_PREFILL_TIMEOUT", "60")], "prefill-timeout"), "60s");
    assert_eq!(value("--request-timeout-secs 90", &[("PROXY_PREFILL_TIMEOUT", "60")], "prefill-timeout"), "90s");
    assert_eq!(value("--request-timeout-secs 90 --prefill-timeout 70", &[], "prefill-timeout"), "70s");
    assert_eq!(value("--request-timeout-secs 90 --prefill-timeout 70", &[], "answer-timeout"), "90s");
    assert_eq!(value("--ping-port 4000 --ping-port 4001", &[], "ping-port"), "4001");
    let said = resolve("--host 127.0.0.1 --retries 4", &[("PROXY_BREAKER_FAILURES", "10")]).unwrap().0.face.unwrap().1;
    assert!(!said.starts_with("host=") && !said.contains("retries") && !said.contains("breaker-failures"), "{said}");
}

#[test]
fn of_repeated_values_the_last_counts() {
    let twice =
        effective("--port 1 --port 2 --host ::1 --host 127.0.0.1 --retry-max-retries 9 --retry-max-retries 1", &[]);
    assert_eq!((&*twice["port"], &*twice["host"], &*twice["retries"]), ("2", "127.0.0.1", "0"));
    let twice = effective(&format!("{DISAGGREGATED} --disable-retries {DISAGGREGATED} --disable-retries"), &[]);
    assert_eq!(twice["retries"], "0");
    let (_, warnings) = resolve("--policy random --policy round_robin", &[]).unwrap();
    assert_eq!(warnings, Vec::<String>::new());
}

#[test]
fn all_mistakes_come_together_on_a_line_each() {
    let line = "--port x --moriio-dp-size y --policy best --mini-lb --request-timeout-secs 0 --prefill http://p:1 z \
                --ping-port none --cache-threshold high --kv-connector nixl --cb-failure-threshold -1";
    let text = resolve(line, &[("PROXY_WORKERS", "0")]).unwrap_err();
    let mut named: Vec<&str> = text.lines().map(|line| line.split(": ").nth(1).unwrap()).collect();
    named.sort_unstable();
    let wanted = [
        "--cache-threshold",
        "--cb-failure-threshold",
        "--kv-connector",
        "--mini-lb",
        "--moriio-dp-size",
        "--ping-port",
        "--policy",
        "--port",
        "--prefill",
        "--request-timeout-secs",
        "PROXY_WORKERS",
    ];
    assert_eq!(named, wanted, "{text}");
    assert!(text.lines().all(|line| line.starts_with("moriio-proxy: ")), "{text}");
    // One option that goes to several of ours is one mistake, and none in what depends on them.
    let text = resolve("--cb-timeout-duration-secs 40 --breaker-open 2h --connect-timeout 2h", &[]).unwrap_err();
    assert!(text.contains("--breaker-open and --cb-timeout-duration-secs: 7200s and 40s"), "{text}");
    let text = resolve("--request-timeout-secs 60 --connect-timeout 2h", &[]).unwrap_err();
    assert_eq!(text.matches("--request-timeout-secs and --connect-timeout").count(), 1, "{text}");
}

#[test]
fn the_engines_key_is_never_shown() {
    let (_, line) = parse("--api-key hush").unwrap();
    assert!(!format!("{line:?}").contains("hush"));
    let text = resolve("--api-key hush\u{e4}", &[]).unwrap_err();
    assert!(text.contains("--api-key: must be") && !text.contains("hush"), "{text}");
    let keys = resolve("--api-key hush", &[("OPENAI_API_KEY", "weaker")]).unwrap().0.parts.server.keys;
    assert_eq!((keys.api_key, keys.engine_key.unwrap()), (None, "Bearer hush".parse().unwrap()));
    let keys = resolve("--api-key hush", &[("PROXY_API_KEY", "asked")]).unwrap().0.parts.server.keys;
    assert_eq!(keys.api_key.unwrap().expose(), "asked");
}

#[test]
fn help_lists_its_options_by_what_becomes_of_them() {
    for line in ["--help", "check --help", "-h"] {
        let error = parse(line).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DisplayHelp);
        let help = error.to_string();
        assert!(help.contains("Usage: vllm-router") && help.contains("moriio"), "{help}");
        let headings = ["Honoured:", "Mapped to", "Taken, but", "Taken in silence", "Taken with a note", "Refused:"];
        let places: Vec<usize> = headings.iter().map(|heading| help.find(heading).expect(heading)).collect();
        assert!(places.is_sorted(), "{places:?}");
        for flag in ["--moriio-dp-size", "--eviction-interval-secs", "--drain-timeout", "--mini-lb"] {
            assert!(help.contains(flag), "{flag}");
        }
    }
    let error = parse("--version").unwrap_err();
    assert_eq!(error.to_string(), format!("moriio-proxy {}\n", env!("CARGO_PKG_VERSION")));
    for line in ["--nonsense", "surplus", "demo", "sim", "--port", "--prefill a 1 2", "--mini-lb=yes"] {
        assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
    }
}

#[test]
fn every_row_is_complete_and_named_once() {
    let mut names = BTreeSet::new();
    for row in program().rows {
        assert!(!row.flags.is_empty() && row.flags.iter().all(|flag| names.insert(flag)), "{row:?}");
        assert!(!row.meaning.contains('|') && !row.meaning.ends_with('.'), "{row:?}");
        assert!(row.default.is_empty() || row.check(&[row.default.to_owned()]).is_ok(), "{row:?}");
    }
    // Whoever knows an option of ours may use it beside them.
    for row in TABLE.iter().filter(|row| !row.flag.is_empty() && row.key != Key::VllmPdDisaggregation) {
        assert!(parse(&format!("{} 1", row.name())).is_ok() || parse(&row.name()).is_ok(), "{row:?}");
    }
    let table = program().reference_table();
    assert_eq!(table.lines().count(), program().rows.len() + 2);
    assert!(table.lines().all(|line| line.matches('|').count() == 5), "{table}");
}
