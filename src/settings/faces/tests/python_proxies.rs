//! Every option and variable of the Python proxies with what must become of it, and what starts them.

use std::collections::{BTreeMap, BTreeSet};

use super::rows::Must::{self, Hush, Refuse, Set};
use super::rows::check;
use super::{Face, Program, arguments, resolve_as};
use crate::settings::options::TABLE;
use crate::settings::{Conduct, Config, TokenBudget};

fn toy() -> &'static Program {
    Face::Toy.program().unwrap()
}

fn mad() -> &'static Program {
    Face::Mad.program().unwrap()
}

/// What is typed, or a variable and what is in it.
type Case = (&'static str, &'static str, Must);

const TOY: &[Case] = &[
    ("--port", "8000", Set(&[("port", "8000")])),
    ("--port", "http", Refuse),
    ("PROXY_LISTEN_BACKLOG", "8192", Hush),
    ("PROXY_LISTEN_BACKLOG", "long", Refuse),
    ("PROXY_TYPE", "moriio_toy", Hush),
    ("PROXY_IP", "10.0.0.1", Hush),
    ("PROXY_PORT", "10001", Hush),
    ("PROXY_SCRIPT", "/x/moriio_toy_proxy_server.py", Hush),
    ("PROXY_HANDSHAKE_PER_POD", "1", Hush),
    ("PROXY_STALL_INTERVAL_S", "5", Hush),
    ("PROXY_CONNECT_TIMEOUT_S", "30", Hush),
    ("PROXY_SOCK_READ_TIMEOUT_S", "360000", Hush),
    ("PROXY_HTTP_LIMIT", "2048", Hush),
    ("PROXY_HTTP_LIMIT_PER_HOST", "1024", Hush),
    ("PROXY_NIAH_RANK", "0", Hush),
    ("PROXY_LOG_FILE", "/x/log", Hush),
    ("PROXY_ZMQ_HEARTBEAT_LOG", "all", Hush),
    ("PROXY_ZMQ_HEARTBEAT_LOG_S", "60", Hush),
    ("PROXY_USE_DISCOVERY", "1", Hush),
    ("PROXY_MAX_CONCURRENCY", "64", Hush),
    ("PROXY_ROUTE_DP", "8", Hush),
    ("PROXY_DEBUG", "1", Hush),
];

const MAD: &[Case] = &[
    ("--port", "8000", Set(&[("port", "8000")])),
    ("--port", "http", Refuse),
    ("MORI_PROXY_PORT", "8000", Set(&[("port", "8000")])),
    ("MORI_PROXY_PORT", "http", Refuse),
    ("--discovery-port", "36382", Set(&[("ping-port", "36382")])),
    ("--discovery-port", "70000", Refuse),
    ("MORI_PROXY_PING_PORT", "36382", Set(&[("ping-port", "36382")])),
    ("MORI_PROXY_PING_PORT", "-1", Refuse),
    ("--expect-prefill", "2", Set(&[("expect-prefill", "2")])),
    ("--expect-prefill", "0", Hush),
    ("--expect-prefill", "two", Refuse),
    ("--expect-decode", "4", Set(&[("expect-decode", "4")])),
    ("--expect-decode", "-1", Refuse),
    ("--max-concurrency", "512", Hush),
    ("--max-concurrency", "64", Set(&[("max-in-flight", "64")])),
    ("--max-concurrency", "0", Set(&[("max-in-flight", "1000000")])),
    ("--max-concurrency", "many", Refuse),
    ("PROXY_MAX_CONCURRENCY", "64", Set(&[("max-in-flight", "64")])),
    ("PROXY_MAX_CONCURRENCY", "many", Refuse),
    ("--dp-size-local", "8", Hush),
    ("--dp-size-local", "4", Set(&[("ranks-per-host", "4")])),
    ("--dp-size-local", "x", Refuse),
    ("DP_PARALLEL_SIZE_LOCAL", "4", Set(&[("ranks-per-host", "4")])),
    ("DP_PARALLEL_SIZE_LOCAL", "x", Refuse),
    ("--log-level", "DEBUG", Hush),
    ("--log-level", "INFO", Set(&[("log-level", "info")])),
    ("--log-level", "CRITICAL", Set(&[("log-level", "error")])),
    ("--log-level", "loud", Refuse),
    ("PROXY_LOG_LEVEL", "WARNING", Set(&[("log-level", "warn")])),
    ("PROXY_LOG_LEVEL", "critical", Set(&[("log-level", "error")])),
    ("PROXY_LOG_LEVEL", "loud", Refuse),
    ("--debug", "", Hush),
    ("--debug", "--log-level ERROR", Hush),
    ("PROXY_DEBUG", "1", Hush),
    ("PROXY_DEBUG", "no", Hush),
    ("--prefill", "http://10.0.0.1:20005 --prefill http://10.0.0.2:20005", Hush),
    ("--decode", "http://10.0.0.3:20005", Hush),
    ("--moriio-dp-size", "16", Hush),
    ("--moriio-dp-size", "x", Refuse),
    ("PREFILL_DP_SIZE", "16", Hush),
    ("PREFILL_DP_SIZE", "x", Refuse),
    ("--decode-dp-size", "16", Hush),
    ("DECODE_DP_SIZE", "16", Hush),
    ("--route-dp-size", "8", Set(&[("route-ranks", "8")])),
    ("PROXY_ROUTE_DP", "8", Set(&[("route-ranks", "8")])),
    ("--use-discovery", "", Hush),
    ("PROXY_USE_DISCOVERY", "0", Hush),
    ("--no-use-discovery", "", Refuse),
    ("PROXY_LISTEN_BACKLOG", "8192", Hush),
    ("PROXY_TYPE", "moriio_toy", Hush),
    ("PROXY_IP", "10.0.0.1", Hush),
    ("PROXY_PORT", "10001", Hush),
    ("PROXY_SCRIPT", "/x/moriio_pd_proxy.py", Hush),
    ("PROXY_HANDSHAKE_PER_POD", "1", Hush),
    ("PROXY_STALL_INTERVAL_S", "5", Hush),
    ("PROXY_CONNECT_TIMEOUT_S", "30", Hush),
    ("PROXY_SOCK_READ_TIMEOUT_S", "360000", Hush),
    ("PROXY_HTTP_LIMIT", "2048", Hush),
    ("PROXY_HTTP_LIMIT_PER_HOST", "1024", Hush),
    ("PROXY_NIAH_RANK", "0", Hush),
    ("PROXY_LOG_FILE", "/x/log", Hush),
    ("PROXY_ZMQ_HEARTBEAT_LOG", "all", Hush),
    ("PROXY_ZMQ_HEARTBEAT_LOG_S", "60", Hush),
];

#[test]
fn each_option_and_variable_becomes_what_it_must() {
    for (program, cases) in [(toy(), TOY), (mad(), MAD)] {
        for (name, value, must) in cases {
            match name.starts_with('-') {
                true => check(program, &format!("{name} {value}"), &[], *must),
                false => check(program, "", &[(name, value)], *must),
            }
        }
        let tried: BTreeSet<&str> = cases.iter().map(|(name, ..)| name.trim_start_matches('-')).collect();
        let flags = program.rows.iter().flat_map(|row| row.flags).copied();
        let variables = program.rows.iter().map(|row| row.variable).filter(|name| !name.is_empty());
        assert_eq!(tried, flags.chain(variables).collect(), "{}", program.name);
    }
}

#[test]
fn their_defaults_hold_where_nothing_is_given() {
    let said = |program| {
        let (config, warnings) = resolve_as(program, "", &[]).unwrap();
        assert_eq!(warnings, Vec::<String>::new());
        assert_eq!(config.parts.server.budget, TokenBudget::MinusOne);
        assert_eq!(config.parts.listen.http.to_string(), "0.0.0.0:10001");
        assert_eq!(config.parts.listen.discovery.to_string(), "0.0.0.0:36367");
        (config.parts.server.conduct, config.face.unwrap())
    };
    let (conduct, (name, defaults)) = said(toy());
    assert_eq!((name, &*defaults), ("moriio_proxy.py", "port=10001 queue-size=4096 queue-timeout=3600s"));
    assert!(conduct.profiles && !conduct.names_side && !conduct.engine_key_first);
    let (conduct, (name, defaults)) = said(mad());
    let changed = "port=10001 max-in-flight=512 queue-size=4096 queue-timeout=3600s ranks-per-host=8 log-level=debug";
    assert_eq!((name, &*defaults), ("moriio_pd_proxy.py", changed));
    assert!(conduct.names_side && !conduct.profiles && !conduct.engine_key_first);
    let native = Config::resolve(&Default::default(), std::iter::empty()).unwrap().0;
    assert_eq!(native.parts.server.conduct, Conduct::NATIVE);
}

/// Our flags, the program's, our variables, the program's, its defaults: the first of them that is given counts.
#[test]
fn variables_are_weaker_than_flags_and_theirs_than_ours() {
    let ports = |line: &str, variables: &[(&str, &str)]| {
        let parts = resolve_as(mad(), line, variables).unwrap().0.parts;
        (parts.listen.http.port, parts.listen.discovery.port)
    };
    let theirs = ("MORI_PROXY_PORT", "2");
    assert_eq!(ports("", &[theirs]), (2, 36367));
    assert_eq!(ports("", &[theirs, ("PROXY_HTTP_PORT", "3")]), (3, 36367));
    assert_eq!(ports("--port 4", &[theirs, ("PROXY_HTTP_PORT", "3")]), (4, 36367));
    assert_eq!(ports("--discovery-port 5", &[("PROXY_PING_PORT", "6")]), (10001, 5));
    assert_eq!(ports("--ping-port 7 --discovery-port 5", &[("MORI_PROXY_PING_PORT", "6")]), (10001, 7));
    assert_eq!(ports("", &[("MORI_PROXY_PORT", " ")]), (10001, 36367));
    let level = |line: &str, name, value| {
        let config = resolve_as(mad(), line, &[(name, value)]).unwrap().0;
        config.log.level.to_string()
    };
    assert_eq!(level("--log-level info", "PROXY_LOG_LEVEL", "error"), "INFO");
    assert_eq!(level("--log-level error", "PROXY_DEBUG", "1"), "ERROR");
    // What is theirs alone is nobody's elsewhere, and a mistake has the name that it was given by.
    let text = resolve_as(mad(), "", &[("PROXY_LOG_LEVEL", "loud"), ("MORI_PROXY_PORT", "0x1")]).unwrap_err();
    assert!(text.contains("PROXY_LOG_LEVEL: ") && text.contains("MORI_PROXY_PORT: "), "{text}");
    let both = resolve_as(toy(), "", &[("MORI_PROXY_PORT", "2"), ("PROXY_NEW", "1")]).unwrap();
    assert_eq!(
        (both.0.parts.listen.http.port, both.1),
        (10001, vec![String::from("PROXY_NEW: unknown, without effect")])
    );
    let text = resolve_as(mad(), "--port 5", &[("MORI_PROXY_PING_PORT", "5")]).unwrap_err();
    assert!(text.contains("--port and MORI_PROXY_PING_PORT: "), "{text}");
}

fn started(line: &str, variables: &[(&str, &str)]) -> (BTreeMap<String, String>, Vec<String>) {
    let called = arguments(line);
    let program = Face::of(&called).program().expect(line);
    let rest = line.split_once(' ').map_or("", |(_, rest)| rest);
    let (config, warnings) = resolve_as(program, rest, variables).unwrap_or_else(|text| panic!("{line}: {text}"));
    (config.describe().into_iter().collect(), warnings)
}

#[test]
fn mads_own_launcher() {
    let line = "proxy/moriio_pd_proxy.py --port 10001 --discovery-port 36367 --use-discovery --dp-size-local 8 \
                --expect-prefill 2 --expect-decode 2 --log-level DEBUG --max-concurrency 512 --route-dp-size 8 \
                --prefill http://10.0.0.1:20005 --prefill http://10.0.0.2:20005 --decode http://10.0.0.3:20005 \
                --decode http://10.0.0.4:20005";
    let variables = [
        ("PROXY_TYPE", "moriio_toy"),
        ("PROXY_PORT", "10001"),
        ("PROXY_PING_PORT", "36367"),
        ("PROXY_MAX_CONCURRENCY", "512"),
        ("PROXY_LOG_LEVEL", "DEBUG"),
        ("DP_PARALLEL_SIZE_LOCAL", "8"),
        ("PROXY_ROUTE_DP", "8"),
    ];
    let (effective, warnings) = started(line, &variables);
    assert_eq!(warnings, Vec::<String>::new());
    let wanted = [("port", "10001"), ("ping-port", "36367"), ("max-in-flight", "512"), ("log-level", "debug")];
    for (name, value) in wanted {
        assert_eq!(effective[name], value, "{name}");
    }
}

#[test]
fn vllms_pipeline_with_the_toy() {
    let variables = [
        ("PROXY_IP", "10.0.0.1"),
        ("PROXY_PORT", "10001"),
        ("PROXY_PING_PORT", "36367"),
        ("PROXY_SCRIPT", "/vllm/examples/disaggregated/disaggregated_serving/moriio_toy_proxy_server.py"),
    ];
    let (effective, warnings) = started("moriio_toy_proxy_server.py --port 10001", &variables);
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!((&*effective["port"], &*effective["ping-port"]), ("10001", "36367"));
}

#[test]
fn inference_x_before_it_had_a_router() {
    let variables = [("PROXY_HTTP_PORT", "30000"), ("PROXY_PING_PORT", "36367"), ("PROXY_STREAM_IDLE_TIMEOUT", "300")];
    let (effective, warnings) = started("/opt/moriio_proxy.py", &variables);
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!((&*effective["port"], &*effective["stream-idle-timeout"]), ("30000", "300s"));
    assert_eq!(effective["health-waits-for-pair"], "false");
}

#[test]
fn every_row_is_complete_and_named_once() {
    for program in [toy(), mad()] {
        let mut names = BTreeSet::new();
        for row in program.rows {
            let variable = Some(row.variable).filter(|name| !name.is_empty());
            assert!(row.flags.iter().copied().chain(variable).all(|name| names.insert(name)), "{row:?}");
            assert!(!row.flags.is_empty() || variable.is_some(), "{row:?}");
            assert!(!row.meaning.contains('|') && !row.meaning.ends_with('.'), "{row:?}");
            assert!(row.default.is_empty() || row.check(&[row.default.to_owned()]).is_ok(), "{row:?}");
        }
        for row in TABLE.iter().filter(|row| !row.flag.is_empty()) {
            let takes = |line: String| program.parse(arguments(&format!("{} {line}", program.name))).is_ok();
            assert!(takes(format!("{} 1", row.name())) || takes(row.name()), "{row:?}");
        }
        let table = program.reference_table();
        assert_eq!(table.lines().count(), program.rows.len() + 2);
        assert!(table.lines().all(|line| line.matches('|').count() == 6), "{table}");
        let help = program.parse(arguments(&format!("{} --help", program.name))).unwrap_err().to_string();
        assert!(help.contains("Usage: moriio_") && help.contains("--drain-timeout"), "{help}");
    }
    let help = mad().parse(arguments("x --help")).unwrap_err().to_string();
    assert!(help.contains("[default: 10001] [env: MORI_PROXY_PORT]"), "{help}");
}
