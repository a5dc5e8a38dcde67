use std::collections::BTreeSet;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

use super::{Form, Key, ServeOptions, TABLE, reference_table};

/// The command line as `main` uses the options: flattened beside subcommands that take them too.
#[derive(Debug, Parser)]
#[command(name = "moriio-proxy")]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ServeOptions,
}

#[derive(Debug, Subcommand)]
enum Command {
    Check(ServeOptions),
}

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("moriio-proxy").chain(line.split_whitespace()))
}

#[test]
fn every_row_is_complete_and_named_once() {
    let mut names = BTreeSet::new();
    for (index, row) in TABLE.iter().enumerate() {
        assert_eq!(row.key as usize, index, "{row:?}");
        assert_eq!(row.key.row().variable, row.variable);
        assert!(row.flag.is_empty() || names.insert(row.flag), "{row:?}");
        assert!(names.insert(row.variable), "{row:?}");
        assert!(!row.meaning.contains('|') && !row.meaning.ends_with('.') && !row.meaning.is_empty(), "{row:?}");
        assert!(!row.default.contains('|'), "{row:?}");
        let expected = format!("PROXY_{}", row.flag.replace('-', "_").to_uppercase());
        match row.key {
            Key::Port => assert_eq!(row.variable, "PROXY_HTTP_PORT"),
            Key::OpenaiApiKey => assert_eq!(row.variable, "OPENAI_API_KEY"),
            _ => assert_eq!(row.variable, expected),
        }
        assert!(row.kind != Form::Switch || row.default == "false", "{row:?}");
    }
}

#[test]
fn flags_are_read_at_the_top_and_in_a_subcommand() {
    let cli =
        parse("--port 8000 --engine-allow 10.0.0.0/8 --engine-allow=10.1.1.1,10.1.1.2 --allow-stale-pairs").unwrap();
    assert_eq!(cli.serve.typed(Key::Port), Some("8000"));
    assert_eq!(cli.serve.typed(Key::EngineAllow), Some("10.0.0.0/8,10.1.1.1,10.1.1.2"));
    assert_eq!(cli.serve.typed(Key::AllowStalePairs), Some("true"));
    assert_eq!(cli.serve.typed(Key::Host), None);
    assert!(cli.command.is_none());

    let cli = parse("check --retries -1 --health-waits-for-pair=no").unwrap();
    let Some(Command::Check(options)) = cli.command else { panic!("no subcommand") };
    assert_eq!(options.typed(Key::Retries), Some("-1"), "left to the configuration to refuse");
    assert_eq!(options.typed(Key::HealthWaitsForPair), Some("no"));
    assert_eq!(cli.serve, ServeOptions::default());
}

#[test]
fn a_switch_does_not_swallow_what_follows() {
    let cli = parse("--vllm-pd-disaggregation --kv-connector moriio").unwrap();
    assert_eq!(cli.serve.typed(Key::VllmPdDisaggregation), Some("true"));
    assert_eq!(cli.serve.typed(Key::KvConnector), Some("moriio"));
    let cli = parse("--allow-stale-pairs check").unwrap();
    assert!(cli.command.is_some());
}

#[test]
fn unknown_flags_and_missing_values_are_refused() {
    for (line, kind, named) in [
        ("--prot 1", ErrorKind::UnknownArgument, "--prot"),
        ("--port", ErrorKind::InvalidValue, "--port"),
        ("--port --host ::", ErrorKind::InvalidValue, "--port"),
        ("--port 1 --port 2", ErrorKind::ArgumentConflict, "--port"),
        ("check --prot 1", ErrorKind::UnknownArgument, "--prot"),
    ] {
        let error = parse(line).unwrap_err();
        assert_eq!(error.kind(), kind, "{line}");
        assert_eq!(error.exit_code(), 2, "{line}");
        assert!(error.to_string().contains(named), "{line}: {error}");
    }
}

#[test]
fn help_names_every_flag_variable_and_default() {
    let error = parse("--help").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DisplayHelp);
    let help = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    for row in TABLE.iter().filter(|row| !row.flag.is_empty()) {
        assert!(help.contains(&row.name()), "{row:?}");
        assert!(help.contains(&format!("[env: {}]", row.variable)), "{row:?}");
        let shows_default = !row.default.is_empty() && row.kind != Form::Switch;
        assert!(!shows_default || help.contains(&format!("[default: {}]", row.default)), "{row:?}");
    }
}

#[test]
fn readme_has_a_line_for_every_option() {
    let table = reference_table();
    assert_eq!(table.lines().count(), TABLE.len() + 2);
    assert!(table.lines().all(|line| line.starts_with('|') && line.ends_with('|') && line.matches('|').count() == 5));
    assert!(table.contains("| `--port` | `PROXY_HTTP_PORT` | `30000` | Port on which"), "{table}");
    assert!(table.contains("| none | `OPENAI_API_KEY` | none | Key engines"), "{table}");
}

#[test]
fn a_secret_is_never_printed() {
    let options = ServeOptions::default().with(Key::ApiKey, "hush").with(Key::Port, "1");
    let shown = format!("{options:?} {options:#?} {:?}", parse("--api-key hush check --api-key=hush").unwrap());
    assert!(shown.contains("***") && !shown.contains("hush"), "{shown}");
}
