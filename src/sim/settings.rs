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
    /// The addresses of all hosts that the ranks are spread over, the master's first, which then is `host`. Empty: `host` alone.
    pub hosts: Vec<IpAddr>,
    /// Whether each host serves HTTP for its own ranks (hybrid load balancing), or the master for all (headless children).
    pub children_serve: bool,
    /// Whether legs for the ranks of a lost host are never answered, or with 500.
    pub lost_ranks_hang: bool,
    /// The HTTP port, on each host that serves; 0 takes a free one for each.
    pub http_port: u16,
    /// Data-parallel ranks, on all hosts together and on each as many.
    pub dp: u32,
    /// Tensor-parallel ranks: a power of two up to 32.
    pub tp: u32,
    /// KV blocks per data-parallel rank.
    pub blocks: u32,
    /// Time between two pings.
    pub ping_interval: Duration,
    /// How many sockets send each ping, as API servers of some images do.
    pub api_servers: u32,
    /// Time per output token.
    pub token_delay: Duration,
    /// Time a prefill takes.
    pub prefill_delay: Duration,
    /// How many tokens of prompts a prefill rank computes in a second besides, one prompt at a time; 0 is no limit.
    pub prefill_rate: u64,
    /// How many tokens the prefix cache of each rank keeps; 0 is no cache.
    pub cache_tokens: usize,
    /// Whether usage tells how much of a prompt was cached (`--enable-prompt-tokens-details`).
    pub prompt_tokens_details: bool,
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
    /// Whether decode takes requests without transfer params for meant, since 0.33.0; else they are violations everywhere.
    pub serves_alone: bool,
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
            hosts: Vec::new(),
            children_serve: false,
            lost_ranks_hang: false,
            http_port: 0,
            dp: 1,
            tp: 1,
            blocks: 100_000,
            ping_interval: Duration::from_secs(3),
            api_servers: 1,
            token_delay: Duration::ZERO,
            prefill_delay: Duration::ZERO,
            prefill_rate: 0,
            cache_tokens: 0,
            prompt_tokens_details: false,
            boot_delay: Duration::ZERO,
            defer_timeout: Duration::from_secs(60),
            transfer_timeout: Duration::from_secs(30),
            keep_alive: Duration::ZERO,
            plain: false,
            serves_alone: false,
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
        if !(1..=32).contains(&self.dp) {
            return Err(invalid("dp must lie between 1 and 32"));
        }
        self.check_hosts(minor)?;
        if !self.tp.is_power_of_two() || self.tp > 32 {
            return Err(invalid("tp must be a power of two up to 32"));
        }
        if self.local_dp() > 1 && self.tp > 1 {
            return Err(invalid("dp and tp above 1 on one host collide on the KV ports"));
        }
        if self.blocks == 0 {
            return Err(invalid("blocks must be positive"));
        }
        Ok(())
    }

    fn check_hosts(&self, minor: u32) -> io::Result<()> {
        let mut hosts = self.hosts.clone();
        hosts.sort_unstable();
        hosts.dedup();
        if hosts.len() < self.hosts.len() {
            return Err(invalid("an address stands twice among the hosts"));
        }
        if hosts.len() > 1 && minor < 28 {
            return Err(invalid(format!("release {} knows one host only", self.release)));
        }
        if hosts.len() > 1 && !self.dp.is_multiple_of(hosts.len() as u32) {
            return Err(invalid("each host must have as many ranks as the others"));
        }
        Ok(())
    }

    /// Lets `host` and `hosts` name the same master.
    pub(crate) fn settled(mut self) -> Self {
        match self.hosts.first() {
            Some(master) => self.host = *master,
            None => self.hosts.push(self.host),
        }
        self
    }

    /// Data-parallel ranks on each host.
    pub(crate) fn local_dp(&self) -> u32 {
        self.dp / self.hosts.len().max(1) as u32
    }

    /// How many ranks the header can name that says which one is to work: a child that serves counts its own.
    pub(crate) fn header_range(&self) -> u32 {
        if self.children_serve { self.local_dp() } else { self.dp }
    }
}

fn invalid(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text.into())
}
