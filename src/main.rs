//! Arguments, logging, signals, exit codes.

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::OnceLock;

use clap::{Parser, Subcommand};
use moriio_proxy::app::{App, Finish};
use moriio_proxy::lines::{Lines, Plain};
use moriio_proxy::settings::faces::{Asked, CommandLine, Face};
use moriio_proxy::settings::options::ServeOptions;
use moriio_proxy::settings::{Config, LogFormat};
use moriio_proxy::{demo, sim, worker};
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::Level;

/// Router for vLLM engines that split prefill and decode over AMD's MoRI-IO connector.
#[derive(Debug, Parser)]
#[command(name = "moriio-proxy", version, about, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ServeOptions,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve clients and engines (the default).
    Serve(ServeOptions),
    /// Validate the configuration, print what it comes to, and exit.
    Check(ServeOptions),
    /// Run simulated engines that register with a proxy.
    Sim(sim::Options),
    /// Show a proxy at work on simulated engines, then keep serving.
    Demo(demo::Options),
}

/// Exit code of a usage or start-up error; [`Finish::exit_code`] has those of a run.
const USAGE: u8 = 2;

/// The log's way to stderr, once there is a log.
static LOG: OnceLock<Lines> = OnceLock::new();

fn main() -> ExitCode {
    let code = run();
    flush();
    code
}

fn run() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    if let Some(program) = Face::of(&arguments).program() {
        return match program.parse(arguments) {
            Ok((Asked::Serve, line)) => serve(&line),
            Ok((Asked::Check, line)) => check(&line),
            Err(error) => refuse(&error),
        };
    }
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    match cli.command {
        None => serve(&cli.serve.into()),
        Some(Command::Serve(options)) => serve(&options.into()),
        Some(Command::Check(options)) => check(&options.into()),
        Some(Command::Sim(options)) => block_on(Builder::new_multi_thread().worker_threads(2), async move {
            match sim::run(options, stop_signal()).await {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => fatal(&error),
            }
        }),
        Some(Command::Demo(options)) => block_on(Builder::new_multi_thread().worker_threads(2), async move {
            let log = || {
                if let Err(error) = start_logging(Level::INFO, LogFormat::Text) {
                    complain(&format!("moriio-proxy: no log: {error}"));
                }
            };
            match demo::run(options, stop_signal(), log).await {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => fatal(&error),
            }
        }),
    }
}

/// Help and version as they are; a mistake as one line, since job logs are searched by line.
fn refuse(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let text = error.render().to_string();
    let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    let facts: Vec<&str> = lines.filter(|line| !line.is_empty() && !line.starts_with("For more")).collect();
    let facts = facts.join(", ");
    complain(&format!("moriio-proxy: {} (see --help)", facts.strip_prefix("error: ").unwrap_or(&facts)));
    ExitCode::from(USAGE)
}

/// One clear line on stderr. A closed stderr is no reason to fail in another way.
fn fatal(error: &dyn std::fmt::Display) -> ExitCode {
    complain(&format!("moriio-proxy: {error}"));
    ExitCode::FAILURE
}

/// Has what was logged so far written; false if stderr takes nothing.
fn flush() -> bool {
    LOG.get().is_none_or(Lines::flush)
}

fn complain(text: &str) {
    use std::io::Write;
    if !flush() {
        return;
    }
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn print(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// The variables that are valid text; others cannot be meant for us.
fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

fn resolve(line: &CommandLine) -> Result<(Config, Vec<String>), ExitCode> {
    Config::resolve_line(line, environment()).map_err(|mistakes| {
        complain(&mistakes.to_string());
        ExitCode::from(USAGE)
    })
}

fn check(line: &CommandLine) -> ExitCode {
    let (config, warnings) = match resolve(line) {
        Ok(resolved) => resolved,
        Err(code) => return code,
    };
    for warning in warnings {
        complain(&format!("moriio-proxy: warning: {warning}"));
    }
    for (name, value) in config.describe() {
        print(&format!("{name:<28} {value}"));
    }
    print(&format!("{:<28} {}", "fingerprint", config.fingerprint()));
    ExitCode::SUCCESS
}

fn serve(line: &CommandLine) -> ExitCode {
    let (config, warnings) = match resolve(line) {
        Ok(resolved) => resolved,
        Err(code) => return code,
    };
    if let Err(error) = start_logging(config.log.level, config.log.format) {
        return fatal(&error);
    }
    if let Some((face, defaults)) = &config.face {
        tracing::info!(face, defaults, "options and defaults of another program");
    }
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    // The app starts whatever threads there are beside this one.
    block_on(&mut Builder::new_current_thread(), async move {
        let effective: Vec<String> =
            config.describe().into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        let fingerprint = config.fingerprint();
        let app = match App::bind(config) {
            Ok(app) => app,
            Err(error) => {
                complain(&format!("moriio-proxy: {error}"));
                return ExitCode::from(USAGE);
            }
        };
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"), http = %app.http_address(), registration = %app.discovery_address(),
            metrics = app.metrics_address().map(tracing::field::display),
            fingerprint, config = effective.join(" "), "moriio-proxy serves"
        );
        ExitCode::from(app.run(stop_signal()).await.exit_code())
    })
}

fn block_on(builder: &mut Builder, work: impl Future<Output = ExitCode>) -> ExitCode {
    match worker::runtime(builder) {
        Ok(runtime) => {
            let code = runtime.block_on(work);
            runtime.shutdown_background();
            code
        }
        Err(error) => fatal(&error),
    }
}

/// Resolves at the first SIGTERM, SIGINT or SIGHUP; the second of them ends the process at once.
async fn stop_signal() {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    // Under nohup the end of the terminal is to be ignored, and stays so.
    let mut hangup = if ignores_hangup() { None } else { signal(SignalKind::hangup()).ok() };
    stop_asked(&mut terminate, &mut interrupt, &mut hangup).await;
    tokio::spawn(async move {
        stop_asked(&mut terminate, &mut interrupt, &mut hangup).await;
        flush();
        std::process::exit(i32::from(Finish::Cut(0).exit_code()));
    });
}

async fn stop_asked(terminate: &mut Signal, interrupt: &mut Signal, hangup: &mut Option<Signal>) {
    let hung_up = async {
        match hangup {
            Some(hangup) => hangup.recv().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        _ = hung_up => {}
    }
}

/// Whether whoever started the process has it ignore SIGHUP, as nohup does.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let signals = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    signals & (1 << (SignalKind::hangup().as_raw_value() - 1)) != 0
}

/// Lines go to stderr by a thread of their own; one that cannot be written is lost and harms nobody.
fn start_logging(level: Level, format: LogFormat) -> std::io::Result<()> {
    let told = |lost| tracing::error!(lost, "nobody read the log in time: lines are lost");
    let lines = Lines::start("log", std::io::stderr(), told)?;
    let lines = LOG.get_or_init(|| lines);
    let builder = tracing_subscriber::fmt().with_max_level(level).with_writer(move || lines).log_internal_errors(false);
    match format {
        LogFormat::Json => builder.json().flatten_event(true).init(),
        LogFormat::Text => {
            builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).event_format(Plain).init();
        }
    }
    Ok(())
}
