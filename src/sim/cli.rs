//! The command line of the simulator.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use clap::Args;

use super::control::Control;
use super::engine::Engine;
use super::settings::{Mode, Role, Settings};

/// Simulated engines to start.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Prefill engines
    #[arg(long, default_value_t = 1)]
    pub prefill: u16,
    /// Decode engines
    #[arg(long, default_value_t = 1)]
    pub decode: u16,
    /// Who moves the KV
    #[arg(long, value_enum, default_value = "write")]
    pub mode: Mode,
    /// The vLLM release to behave like
    #[arg(long, default_value = "0.32.0")]
    pub release: String,
    /// Where to register
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:36367")]
    pub registration: String,
    /// The address to bind and to advertise
    #[arg(long, default_value = "127.0.0.1")]
    pub host: IpAddr,
    /// The addresses of all hosts of each engine, the master's first, in place of --host
    #[arg(long, value_name = "HOST,...", value_delimiter = ',')]
    pub hosts: Vec<IpAddr>,
    /// Each host serves HTTP for its own ranks, not the master for all
    #[arg(long)]
    pub children_serve: bool,
    /// Data-parallel ranks of each engine, on all its hosts together
    #[arg(long, default_value_t = 1)]
    pub dp: u32,
    /// Tensor-parallel ranks of each engine
    #[arg(long, default_value_t = 1)]
    pub tp: u32,
    /// The first engine's HTTP port, the others follow; 0 takes free ones
    #[arg(long, value_name = "BASE", default_value_t = 0)]
    pub http_port: u16,
    /// Where to serve counters and take faults; 0 takes a free port
    #[arg(long)]
    pub control_port: Option<u16>,
    /// Time between two pings
    #[arg(long, value_parser = duration, default_value = "3s")]
    pub ping_interval: Duration,
    /// Time per output token
    #[arg(long, value_parser = duration, default_value = "20ms")]
    pub token_delay: Duration,
    /// Time a prefill takes
    #[arg(long, value_parser = duration, default_value = "50ms")]
    pub prefill_delay: Duration,
    /// Tokens of prompts that a prefill rank computes in a second besides, one prompt at a time; 0 is no limit
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub prefill_rate: u32,
    /// Tokens that the prefix cache of each prefill rank keeps; 0 is no cache
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub cache_tokens: u32,
    /// Tell in usage how much of a prompt was cached
    #[arg(long)]
    pub prompt_tokens_details: bool,
    /// Time from the first ping to the open HTTP port
    #[arg(long, value_parser = duration, default_value = "0s")]
    pub boot_delay: Duration,
    /// Time between two SSE comments while a stream has nothing to say; 0 is none
    #[arg(long, value_parser = duration, default_value = "0s")]
    pub sse_keep_alive_interval: Duration,
    /// Decode of 0.33.0 or newer: requests that nobody paired are meant so (--decode-alone-below of the proxy)
    #[arg(long)]
    pub serves_alone: bool,
    /// Answer requests that nobody paired, without any KV: a target for measuring plain relays
    #[arg(long)]
    pub plain: bool,
    /// The served model's name
    #[arg(long, default_value = "sim-model")]
    pub model: String,
}

/// Why the simulator could not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// An engine did not start.
    #[error("cannot start {role:?} engine {number}: {source}")]
    Engine {
        /// Its role.
        role: Role,
        /// Its number among all engines, from 0.
        number: u16,
        /// Why.
        source: io::Error,
    },
    /// The control port could not be opened.
    #[error("cannot open control port {port}: {source}")]
    Control {
        /// The port asked for.
        port: u16,
        /// Why.
        source: io::Error,
    },
    /// The HTTP ports of the engines do not fit below 65536.
    #[error("HTTP port of engine {number} would lie above 65535")]
    PortRange {
        /// The first engine that does not fit.
        number: u16,
    },
}

/// A line on stdout; nobody has to read it.
fn say(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Starts the engines, prints a line for each, and serves until `stop`.
pub async fn run(options: Options, stop: impl Future<Output = ()>) -> Result<(), RunError> {
    let mut engines = Vec::new();
    let roles = (0..options.prefill).map(|_| Role::Prefill).chain((0..options.decode).map(|_| Role::Decode));
    for (role, number) in roles.zip(0..) {
        let http_port = match options.http_port {
            0 => 0,
            base => base.checked_add(number).ok_or(RunError::PortRange { number })?,
        };
        let settings = Settings {
            release: options.release.clone(),
            host: options.host,
            hosts: options.hosts.clone(),
            children_serve: options.children_serve,
            http_port,
            dp: options.dp,
            tp: options.tp,
            ping_interval: options.ping_interval,
            token_delay: options.token_delay,
            prefill_delay: options.prefill_delay,
            prefill_rate: options.prefill_rate.into(),
            cache_tokens: options.cache_tokens as usize,
            prompt_tokens_details: options.prompt_tokens_details,
            boot_delay: options.boot_delay,
            keep_alive: options.sse_keep_alive_interval,
            plain: options.plain,
            serves_alone: options.serves_alone,
            model: options.model.clone(),
            ..Settings::new(role, options.mode, options.registration.clone())
        };
        let engine = Engine::start(settings).await.map_err(|source| RunError::Engine { role, number, source })?;
        say(&describe(&engine));
        engines.push(engine);
    }
    let control = match options.control_port {
        None => None,
        Some(port) => {
            let address = SocketAddr::new(options.host, port);
            let control =
                Control::start(address, &engines).await.map_err(|source| RunError::Control { port, source })?;
            say(&format!("control http://{}", control.address()));
            Some(control)
        }
    };
    stop.await;
    drop(control);
    for engine in engines {
        engine.stop().await;
    }
    Ok(())
}

fn describe(engine: &Engine) -> String {
    let settings = engine.settings();
    let role = match settings.role {
        Role::Prefill => "prefill",
        Role::Decode => "decode",
    };
    let mut line = format!(
        "{role} http://{} handshake {} notify {} mode {} release {}",
        engine.http_address(),
        engine.handshake_port(),
        engine.notify_port(),
        settings.mode.name(),
        settings.release
    );
    if let [_, children @ ..] = settings.hosts.as_slice()
        && !children.is_empty()
    {
        let children: Vec<String> = children.iter().map(IpAddr::to_string).collect();
        line += &format!(" children {}", children.join(","));
    }
    for address in engine.http_addresses().iter().skip(1) {
        line += &format!(" http://{address}");
    }
    line
}

/// Reads `30s`, `500ms` or bare seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.strip_suffix("ms") {
        Some(number) => (number, 0.001),
        None => (text.strip_suffix('s').unwrap_or(text), 1.0),
    };
    let number: f64 = number.trim().parse().map_err(|_| format!("{text:?} is no duration such as 30s, 500ms or 2"))?;
    Duration::try_from_secs_f64(number * unit).map_err(|error| error.to_string())
}
