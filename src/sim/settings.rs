//! What a simulated engine is told before it starts.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use serde::Serialize;

/// Which half of the work an engine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Computes the prompt's KV and gives it away.
    Prefill,
    /// Receives KV and generates.
    Decode,
}

impl Role {
    /// The letter that both registration dialects use.
    pub(crate) fn letter(self) -> &'static str {
        match self {
            Role::Prefill => "P",
            Role::Decode => "D",
        }
    }
}

/// Who moves the KV.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "UPPERCASE")]
pub enum Mode {
    /// Decode pulls.
    Read,
    /// Prefill pushes.
    Write,
}

impl Mode {
    /// The name as registered.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Mode::Read => "READ",
            Mode::Write => "WRITE",
        }
    }
}

/// Everything a simulated engine needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Prefill or decode.
    pub role: Role,
    /// READ or WRITE.
    pub mode: Mode,
    /// The vLLM release to behave like, such as `0.32.0`; it decides the registration dialect too.
    pub release: String,
    /// Where to register: `host:port` of the proxy's ROUTER. Empty means never to register.
    pub registration: String,
    /// The address to bind and to advertise.
    pub host: IpAddr,
    /// The HTTP port; 0 takes a free one.
    pub http_port: u16,
    /// Data-parallel ranks.
    pub dp: u32,
    /// Tensor-parallel ranks: a power of two up to 32.
    pub tp: u32,
    /// KV blocks per data-parallel rank.
    pub blocks: u32,
    /// Time between two pings.
    pub ping_interval: Duration,
    /// Time per output token.
    pub token_delay: Duration,
    /// Time a prefill takes.
    pub prefill_delay: Duration,
    /// Time between the first ping and the opening of every port.
    pub boot_delay: Duration,
    /// How long prefill holds blocks that nobody fetches or asks for.
    pub defer_timeout: Duration,
    /// How long a WRITE prefill stalls on a handshake before it gives the transfer up.
    pub transfer_timeout: Duration,
    /// Time between two SSE comments while a stream has nothing to say (`--sse-keep-alive-interval`); zero is off.
    pub keep_alive: Duration,
    /// Whether unpaired requests are answered without any KV, prefill's in one token: a target for measuring plain relays.
    pub plain: bool,
    /// The served model's name.
    pub model: String,
    /// The key that callers of the API must send (`VLLM_API_KEY`).
    pub api_key: Option<String>,
}

impl Settings {
    /// A single-rank engine of release 0.32.0 on loopback that pings every 3 s and computes in no time.
    pub fn new(role: Role, mode: Mode, registration: impl Into<String>) -> Self {
        Self {
            role,
            mode,
            release: "0.32.0".into(),
            registration: registration.into(),
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            http_port: 0,
            dp: 1,
            tp: 1,
            blocks: 100_000,
            ping_interval: Duration::from_secs(3),
            token_delay: Duration::ZERO,
            prefill_delay: Duration::ZERO,
            boot_delay: Duration::ZERO,
            defer_timeout: Duration::from_secs(60),
            transfer_timeout: Duration::from_secs(30),
            keep_alive: Duration::ZERO,
            plain: false,
            model: "sim-model".into(),
            api_key: None,
        }
    }

    /// The minor number of a `0.x` release, which is where every difference between releases lies.
    pub(crate) fn minor(&self) -> io::Result<u32> {
        let mut numbers = self.release.split('.').map(str::parse::<u32>);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(0)), Some(Ok(minor))) => Ok(minor),
            (Some(Ok(_)), Some(Ok(_))) => Ok(u32::MAX),
            _ => Err(invalid(format!("release {:?} is not a version such as 0.32.0", self.release))),
        }
    }

    /// Refuses what the real engines cannot be.
    pub(crate) fn check(&self) -> io::Result<()> {
        let minor = self.minor()?;
        if minor < 17 {
            return Err(invalid(format!("release {} never worked with MoRI-IO", self.release)));
        }
        if !(1..=16).contains(&self.dp) {
            return Err(invalid("dp must lie between 1 and 16"));
        }
        if !self.tp.is_power_of_two() || self.tp > 32 {
            return Err(invalid("tp must be a power of two up to 32"));
        }
        if self.dp > 1 && self.tp > 1 {
            return Err(invalid("dp and tp above 1 on one host collide on the KV ports"));
        }
        if self.blocks == 0 {
            return Err(invalid("blocks must be positive"));
        }
        Ok(())
    }
}

fn invalid(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text.into())
}
