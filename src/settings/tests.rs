use std::collections::BTreeSet;
use std::time::Duration;

use clap::Parser;
use proptest::prelude::{any, proptest};

use super::{Conduct, Config, LogFormat, Mistakes, Origins, Parts, Presumed, Spans, TokenBudget};
use crate::engine::hosts::Contract;
use crate::settings::options::{Form, Key, ServeOptions, TABLE};

type Resolved = Result<(Config, Vec<String>), Mistakes>;

fn resolve(typed: &[(Key, &str)], variables: &[(&str, &str)]) -> Resolved {
    let options = typed.iter().fold(ServeOptions::default(), |options, (key, value)| options.with(*key, *value));
    Config::resolve(&options, variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
}

fn good(typed: &[(Key, &str)], variables: &[(&str, &str)]) -> Config {
    let (config, warnings) = resolve(typed, variables).unwrap();
    assert_eq!(warnings, Vec::<String>::new());
    config
}

fn mistakes(typed: &[(Key, &str)], variables: &[(&str, &str)]) -> String {
    resolve(typed, variables).unwrap_err().to_string()
}

/// One mistake, on one line, that names the culprit and says what is wrong.
#[track_caller]
fn refused(typed: &[(Key, &str)], variables: &[(&str, &str)], named: &str, why: &str) {
    let text = mistakes(typed, variables);
    assert!(text.starts_with(&format!("moriio-proxy: {named}: ")), "{text}");
    assert!(text.contains(why), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
}

#[test]
fn defaults_are_those_promised() {
    let config = good(&[], &[]);
    let Parts { listen, door, server, origins, allowed, spans, presumed, registry, picking, .. } = config.parts.clone();
    let Parts { times, serial_write, kv_release, .. } = config.parts;
    assert_eq!((spans, presumed, server.conduct), (Spans::default(), Presumed::default(), Conduct::default()));
    let seconds = Duration::from_secs;
    assert_eq!(listen.http.to_string(), "0.0.0.0:30000");
    assert_eq!(listen.discovery.to_string(), "0.0.0.0:36367");
    assert_eq!((door.max_connections, door.head_time, door.keep_alive), (16384, seconds(30), seconds(65)));
    assert_eq!(door.drain, seconds(25));
    assert_eq!((server.max_body, server.body_time, server.admission.in_flight), (268_435_456, seconds(120), 8192));
    assert_eq!((server.retries, server.retry_percent, server.health_waits), (2, 10, false));
    assert_eq!(server.budget, TokenBudget::MinusOne);
    assert_eq!((server.keys.api_key, server.keys.engine_key, origins), (None, None, Origins::None));
    assert_eq!((registry.ttl, registry.max_engines, allowed), (seconds(15), 4096, Vec::new()));
    let breaker = registry.breaker;
    assert_eq!((breaker.failures, breaker.open, breaker.open_max), (5, seconds(5), seconds(30)));
    assert_eq!((picking.caps, picking.first_contact, picking.allow_stale), (super::Caps::default(), true, false));
    assert_eq!((picking.route_ranks, picking.contract), (0, Contract::Auto));
    assert_eq!((times.connect, times.prefill), (seconds(5), seconds(600)));
    assert_eq!((times.first_byte, times.idle), (seconds(300), seconds(300)));
    assert_eq!((times.answer, times.hand_over, times.wake), (seconds(1800), seconds(20), seconds(30)));
    assert_eq!((serial_write, kv_release), (false, true));
    assert_eq!((config.log.level, config.log.format), (tracing::Level::INFO, LogFormat::Text));
    assert_eq!(config.workers, 1);
}

#[test]
fn a_flag_wins_over_a_variable_and_an_empty_variable_is_unset() {
    assert_eq!(good(&[], &[("PROXY_HTTP_PORT", "8001")]).parts.listen.http.port, 8001);
    assert_eq!(good(&[(Key::Port, "0")], &[("PROXY_HTTP_PORT", "8001")]).parts.listen.http.port, 0);
    assert_eq!(good(&[(Key::Port, "8000")], &[("PROXY_HTTP_PORT", "rubbish")]).parts.listen.http.port, 8000);
    let empty: Vec<(&str, &str)> = TABLE.iter().map(|row| (row.variable, " ")).collect();
    assert_eq!(good(&[], &empty).describe(), good(&[], &[]).describe());
    let explicit = TABLE.iter().filter(|row| !row.default.is_empty()).map(|row| (row.variable, row.default));
    assert_eq!(good(&[], &explicit.collect::<Vec<_>>()).describe(), good(&[], &[]).describe());
}

#[test]
fn every_variable_is_read() {
    for row in TABLE {
        refused(&[], &[(row.variable, "no such value")], row.variable, " ");
    }
}

#[test]
fn the_command_line_of_vllm_router_is_accepted_as_it_stands() {
    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        serve: ServeOptions,
    }
    let line = "vllm-router --vllm-pd-disaggregation --kv-connector moriio --vllm-discovery-address 10.2.3.4:36367 \
        --port 30000 --host 0.0.0.0 --policy random --prefill-policy round_robin --decode-policy cache_aware \
        --log-level info";
    let options = Cli::try_parse_from(line.split_whitespace()).unwrap().serve;
    let (config, warnings) = Config::resolve(&options, std::iter::empty()).unwrap();
    assert_eq!(config.parts.listen.discovery.to_string(), "10.2.3.4:36367");
    assert_eq!(config.parts.listen.http.to_string(), "0.0.0.0:30000");
    let policies = config.parts.picking.policies;
    assert_eq!([policies.prefill.as_str(), policies.decode.as_str()], ["round_robin", "cache_aware"]);
    assert_eq!(warnings, Vec::<String>::new());
}

#[test]
fn the_old_discovery_address_must_agree_with_the_new_options() {
    let old = (Key::VllmDiscoveryAddress, "127.0.0.1:4000");
    assert_eq!(good(&[old], &[("PROXY_PING_PORT", "4000")]).parts.listen.discovery.to_string(), "127.0.0.1:4000");
    let both = "--vllm-discovery-address and --ping-port";
    refused(&[old, (Key::PingPort, "36367")], &[], both, "127.0.0.1:4000 and 36367 name different ports");
    let variable = ("PROXY_VLLM_DISCOVERY_ADDRESS", "127.0.0.1:4000");
    let both = "PROXY_VLLM_DISCOVERY_ADDRESS and PROXY_PING_PORT";
    refused(&[], &[variable, ("PROXY_PING_PORT", "36367")], both, "127.0.0.1:4000 and 36367 name different ports");
    // A flag wins over a variable, whichever of the two it is.
    let discovery =
        |typed: &[(Key, &str)], variables: &[(&str, &str)]| good(typed, variables).parts.listen.discovery.to_string();
    let others = [("PROXY_PING_PORT", "36367"), ("PROXY_PING_HOST", "::")];
    assert_eq!(discovery(&[old], &others), "127.0.0.1:4000");
    assert_eq!(discovery(&[(Key::PingPort, "36367")], &[variable]), "127.0.0.1:36367");
    assert_eq!(discovery(&[(Key::PingHost, "::1")], &[variable]), "[::1]:4000");
    let both = "--vllm-discovery-address and --ping-host";
    refused(&[old, (Key::PingHost, "::")], &[], both, "different addresses");
    assert_eq!(good(&[(Key::Host, "[::1]")], &[]).parts.listen.discovery.to_string(), "[::1]:36367");
    assert_eq!(good(&[(Key::Host, "::1")], &[]).parts.listen.http.to_string(), "[::1]:30000");
    let named = good(&[(Key::VllmDiscoveryAddress, "node-0:4000")], &[("PROXY_HOST", "rank0.example")]).parts.listen;
    assert_eq!((named.http.to_string(), named.http.named), ("rank0.example:30000".into(), "PROXY_HOST".into()));
    assert_eq!(
        (named.discovery.to_string(), named.discovery.named.as_str()),
        ("node-0:4000".into(), "--vllm-discovery-address")
    );
    for wrong in ["36367", "::1:36367", "node 0:36367", "1.2.3.4:", "1.2.3.4:99999"] {
        refused(
            &[(Key::VllmDiscoveryAddress, wrong)],
            &[],
            "--vllm-discovery-address",
            "is not an IP address or a host name, and a port",
        );
    }
}

#[test]
fn a_bad_value_is_named_with_what_would_do() {
    for (key, value, why) in [
        (Key::Port, "65536", r#""65536" is not a number from 0 to 65535"#),
        (Key::Port, "+80", "is not a number"),
        (Key::Retries, "-1", "is not a number from 0 to 10"),
        (Key::Host, "10.0.0.300", "is not an IP address or a host name"),
        (Key::CorsAllowOrigin, "chat.example", "is not `*` or a list of origins"),
        (Key::EngineTtl, "500ms", "500ms must be at least 1s"),
        (Key::EngineTtl, "soon\n", "is not a duration such as 30s"),
        (Key::StreamIdleTimeout, "0", "must be more than zero"),
        (Key::StreamIdleTimeout, "721h", "is longer than 30 days"),
        (Key::MaxBodyBytes, "1TB", "is not a number of bytes"),
        (Key::MaxEngines, "1", "is not a number from 2 to 65536"),
        (Key::EngineAllow, ",", "is not a list of networks"),
        (Key::EngineAllow, "10.0.0.0/33", "is not a list of networks"),
        (Key::AllowStalePairs, "maybe", "is not one of true, false, yes"),
        (Key::DecodeTokenBudget, "all", "is not one of minus-one, exact"),
        (Key::DecodePolicy, "fastest", "round_robin, random, power_of_two, least_loaded, consistent_hash, cache_aware"),
        (Key::KvConnector, "nixl", r#""nixl" is not one of moriio"#),
        (Key::LogLevel, "loud", "trace, debug, info, warn, error"),
        (Key::HandOverLimit, "60", "must be under 60s"),
        (Key::Port, "", r#""" is not a number"#),
    ] {
        refused(&[(key, value)], &[], &key.row().name(), why);
    }
    refused(&[], &[("PROXY_HTTP_PORT", "tcp://10.0.0.1:80")], "PROXY_HTTP_PORT", "enableServiceLinks: false");
    assert!(mistakes(&[(Key::Host, &"x".repeat(5000))], &[]).len() < 200);
}

#[test]
fn options_that_contradict_each_other_are_named_together() {
    let (open, max) = ((Key::BreakerOpen, "40s"), (Key::BreakerOpenMax, "20s"));
    refused(&[open, max], &[], "--breaker-open and --breaker-open-max", "40s and 20s");
    refused(&[open], &[("PROXY_BREAKER_OPEN_MAX", "20")], "--breaker-open and PROXY_BREAKER_OPEN_MAX", "longer");
    refused(&[(Key::PrefillTimeout, "5")], &[], "--prefill-timeout and --connect-timeout", "5s and 5s");
    refused(&[(Key::AnswerTimeout, "1")], &[], "--answer-timeout and --connect-timeout", "longer");
    refused(&[(Key::Port, "36367")], &[], "--port and --ping-port", "different ports");
    good(&[(Key::Port, "0"), (Key::PingPort, "0")], &[]);
    good(&[(Key::Host, "127.0.0.1"), (Key::PingHost, "127.0.0.2"), (Key::PingPort, "30000")], &[]);
    refused(&[(Key::BreakerOpen, "40q"), max], &[], "--breaker-open", "is not a duration");
}

#[test]
fn all_mistakes_come_together() {
    let typed = [(Key::Port, "x"), (Key::EngineTtl, "-1s"), (Key::HandOverLimit, "90s")];
    let text = mistakes(&typed, &[("PROXY_WORKERS", "0"), ("PROXY_NEW", "1")]);
    let names: BTreeSet<&str> = text.lines().map(|line| line.split(": ").nth(1).unwrap()).collect();
    assert_eq!(names, BTreeSet::from(["--port", "--engine-ttl", "--hand-over-limit", "PROXY_WORKERS"]), "{text}");
}

#[test]
fn unknown_variables_of_our_prefix_are_one_warning() {
    let (_, warnings) =
        resolve(&[], &[("PROXY_ZED", "1"), ("PROXY_TYPE", "x"), ("PROXY_EMPTY", ""), ("HTTP_PROXY", "y")]).unwrap();
    assert_eq!(warnings, ["PROXY_TYPE, PROXY_ZED: unknown, without effect"]);
}

#[test]
fn off_means_off() {
    let off = [(Key::Retries, "0"), (Key::BreakerFailures, "0"), (Key::KvRelease, "off"), (Key::FirstContact, "OFF")];
    let config = good(&off, &[("PROXY_DRAIN_TIMEOUT", "0")]);
    let Parts { server, registry, kv_release, picking, door, .. } = config.parts;
    assert_eq!((server.retries, registry.breaker.failures), (0, 0));
    assert!(!kv_release && !picking.first_contact);
    assert_eq!(door.drain, Duration::ZERO);
    assert_eq!(good(&[], &[("PROXY_LOG_LEVEL", "warning")]).log.level, tracing::Level::WARN);
    assert_eq!(good(&[], &[("PROXY_ENGINE_IN_FLIGHT", "7")]).parts.picking.caps, super::Caps { prefill: 7, decode: 7 });
}

#[test]
fn the_description_covers_every_option_and_no_secret() {
    let secrets = [("PROXY_API_KEY", "hush"), ("OPENAI_API_KEY", "hush-too\n")];
    let config = good(&[(Key::VllmDiscoveryAddress, "[::1]:9")], &secrets);
    let described = config.describe();
    assert_eq!(described.len(), TABLE.len());
    let value = |wanted: &str| described.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
    assert_eq!(value("api-key"), Some("***"));
    assert_eq!(value("OPENAI_API_KEY"), Some("***"));
    assert_eq!((value("ping-host"), value("ping-port")), (Some("::1"), Some("9")));
    assert_eq!((value("max-body-bytes"), value("engine-ttl")), (Some("256MiB"), Some("15s")));
    assert!(!format!("{config:?} {described:?}").contains("hush"));
    let key = config.parts.server.keys.api_key.unwrap();
    assert_eq!((key.expose(), key.to_string()), ("hush", "***".to_owned()));
    assert_eq!(config.parts.server.keys.engine_key.unwrap(), "Bearer hush-too");
    assert!(key.matches(b"hush") && !key.matches(b"hus") && !key.matches(b"hush!") && !key.matches(b"husH"));
    let text = mistakes(&[(Key::ApiKey, "two words")], &[("OPENAI_API_KEY", "b\u{e4}d")]);
    assert!(text.contains("--api-key: must be") && text.contains("OPENAI_API_KEY: must be"), "{text}");
    assert!(!text.contains("words") && !text.contains("b\u{e4}d"), "{text}");
}

#[test]
fn the_fingerprint_follows_every_effective_value_but_secrets() {
    let plain = good(&[(Key::Workers, "2")], &[]).fingerprint();
    assert_eq!(plain.len(), 16);
    assert_eq!(plain, good(&[], &[("PROXY_WORKERS", "2"), ("PROXY_API_KEY", "hush")]).fingerprint());
    assert_eq!(plain, good(&[(Key::Workers, "2"), (Key::EngineTtl, "15000ms")], &[]).fingerprint());
    assert_ne!(plain, good(&[(Key::Workers, "2"), (Key::EngineTtl, "16s")], &[]).fingerprint());
}

proptest! {
    #[test]
    fn no_value_harms(index in 0..TABLE.len(), text in any::<String>()) {
        let row = &TABLE[index];
        for result in [resolve(&[(row.key, &text)], &[]), resolve(&[], &[(row.variable, &text)])] {
            if let Err(mistakes) = result {
                assert!(mistakes.to_string().lines().all(|line| line.starts_with("moriio-proxy: ")));
                assert!(matches!(row.kind, Form::Secret(_)) || mistakes.to_string().lines().count() == 1);
            }
        }
    }
}
