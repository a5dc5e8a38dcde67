//! Engines over several hosts (protocol section H): loopback addresses stand for hosts, and simulated engines bind the ports of each
//! host's ranks there and nowhere else.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::future::join_all;
use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Engine, Mode, Role, Settings};

use crate::support::{Proxy, World, engine, generate};

mod chaos;
mod fair;
mod faults;
mod hidden;
mod misfits;
mod page;
mod turns;

/// Every engine's HTTP port: each has addresses of its own.
const PORT: u16 = 8000;
const PROMPT: &str =
    "several blocks of a prompt that lives on one host and is read on another, one two three four five six";

/// The engines of one side.
#[derive(Clone, Copy)]
struct Side {
    engines: u32,
    hosts: u32,
    /// Ranks of each host.
    local: u32,
    /// Whether children have HTTP.
    serve: bool,
}

/// One engine a side.
fn side(hosts: u32, local: u32) -> Side {
    Side { engines: 1, hosts, local, serve: false }
}

impl Side {
    fn ranks(self) -> u32 {
        self.hosts * self.local
    }
}

/// What a world of such engines is made of.
#[derive(Clone)]
struct Layout {
    mode: Mode,
    prefill: Side,
    decode: Side,
    release: &'static str,
    options: Vec<(Key, &'static str)>,
    adjust: fn(&mut Settings),
    /// Whether the proxy is a process of its own, whose log is there to be read.
    apart: bool,
}

impl Layout {
    fn new(mode: Mode, prefill: Side, decode: Side) -> Layout {
        let options = vec![(Key::DecodeTokenBudget, "exact"), (Key::ColdTimeout, "0")];
        Layout { mode, prefill, decode, release: "0.32.0", options, adjust: |_| {}, apart: false }
    }

    fn with(mut self, key: Key, value: &'static str) -> Layout {
        self.options.push((key, value));
        self
    }

    fn serving(mut self) -> Layout {
        (self.prefill.serve, self.decode.serve) = (true, true);
        self
    }

    /// Engines that have not begun: an engine's entry is written before it registers.
    fn settings(&self) -> Vec<Settings> {
        let net = net();
        let sides = [(Role::Prefill, self.prefill), (Role::Decode, self.decode)];
        let of = |(role, side): (Role, Side)| (0..side.engines).map(move |number| (role, side, number));
        let settings = |(role, side, number): (Role, Side, u32)| {
            let first = 1 + 64 * u32::from(role == Role::Decode) + 16 * number;
            let address = |host: u32| IpAddr::V4(Ipv4Addr::from(net + first + host));
            let mut settings = Settings::new(role, self.mode, "");
            settings.hosts = (0..side.hosts).map(address).collect();
            settings.host = settings.hosts[0];
            (settings.http_port, settings.dp, settings.children_serve) = (PORT, side.ranks(), side.serve);
            settings.release = self.release.into();
            settings.ping_interval = Duration::from_millis(200);
            (self.adjust)(&mut settings);
            settings
        };
        sides.into_iter().flat_map(of).map(settings).collect()
    }

    /// Starts everything and waits until every engine is ready.
    async fn start(&self) -> World {
        let settings = self.settings();
        let world = self.open(&entries(&settings), settings).await;
        world.until_ready((self.prefill.engines + self.decode.engines) as usize).await;
        world
    }

    /// The same with these entries, without waiting.
    async fn open(&self, entries: &str, settings: Vec<Settings>) -> World {
        let mut options: Vec<(Key, &str)> = self.options.clone();
        options.push((Key::EngineHosts, entries));
        let proxy = if self.apart { Proxy::apart(&options) } else { Proxy::start(&options) };
        let mut world = World { proxy, prefill: Vec::new(), decode: Vec::new(), mode: self.mode };
        for mut settings in settings {
            settings.registration = world.proxy.registration.to_string();
            let (role, engine) = (settings.role, engine(settings).await);
            match role {
                Role::Prefill => world.prefill.push(engine),
                Role::Decode => world.decode.push(engine),
            }
        }
        world
    }
}

/// A network of 128 loopback addresses that no other test has.
fn net() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    // Two runs on one machine begin elsewhere.
    let block = (std::process::id().wrapping_mul(97) + number) % 0x8000;
    u32::from(Ipv4Addr::new(127, 64, 0, 0)) + (block << 7)
}

/// What `--engine-hosts` is to say of engines.
fn entries(settings: &[Settings]) -> String {
    let entry = |settings: &Settings| {
        let host = |(at, host): (usize, &IpAddr)| match settings.children_serve && at > 0 {
            true => format!("{host}:{PORT}"),
            false => host.to_string(),
        };
        let hosts: Vec<String> = settings.hosts.iter().enumerate().map(host).collect();
        let local = settings.dp as usize / settings.hosts.len();
        format!("{}:{PORT}={}@{local}", settings.hosts[0], hosts.join(","))
    };
    settings.iter().map(entry).collect::<Vec<_>>().join(",")
}

/// So many requests, a few at a time, each answered with the text that one engine alone gives.
async fn requests(world: &World, count: usize) {
    for first in (0..count).step_by(8) {
        let some = (first..count.min(first + 8)).map(|number| async move {
            generate(&world.proxy, &format!("{number} {PROMPT}"), 4, number % 2 == 0).await;
        });
        join_all(some).await;
    }
}

/// Legs by rank, of all engines of a role.
fn by_rank(engines: &[Engine]) -> Vec<Vec<u64>> {
    engines.iter().map(|engine| engine.counters().legs_by_rank).collect()
}
