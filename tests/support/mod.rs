//! A world for tests: a proxy on free ports, simulated engines that register with it, and the checks that must hold at the end
//! of every story.

pub mod binary;
pub mod client;
pub mod fake;
pub mod record;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use moriio_proxy::app::{App, Finish};
use moriio_proxy::settings::Config;
use moriio_proxy::settings::options::{Key, ServeOptions};
use moriio_proxy::sim::{Counters, Engine, Fault, FaultKind, Mode, Role, Settings};
use serde_json::Value;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub use client::{Answer, Stream, client, completion, generate, post, post_as};

/// The longest that anything is waited for. It only ever passes in full when a test fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks at what is waited for.
const LOOK: Duration = Duration::from_millis(10);

/// A proxy in this process.
pub struct Proxy {
    pub http: SocketAddr,
    pub registration: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<Finish>>,
    /// A proxy that runs apart has a process.
    process: Option<binary::Served>,
}

impl Proxy {
    /// A proxy on free loopback ports with these options on top of the defaults.
    pub fn start(options: &[(Key, &str)]) -> Proxy {
        record::collect();
        let app = App::bind(config(options)).expect("ports are free");
        let (stop, stopped) = oneshot::channel::<()>();
        Proxy {
            http: app.http_address(),
            registration: app.discovery_address(),
            stop: Some(stop),
            task: Some(tokio::spawn(app.run(async {
                let _ = stopped.await;
            }))),
            process: None,
        }
    }

    /// The same as a process of its own, whose memory can be watched.
    pub fn apart(options: &[(Key, &str)]) -> Proxy {
        let flags: Vec<String> = options.iter().map(|(key, value)| format!("--{}={value}", key.row().flag)).collect();
        let process = binary::Served::start(&flags.iter().map(String::as_str).collect::<Vec<_>>());
        Proxy { http: process.http, registration: process.registration, stop: None, task: None, process: Some(process) }
    }

    /// The log so far of a proxy that runs apart.
    pub fn log(&self) -> Option<String> {
        self.process.as_ref().map(binary::Served::log)
    }

    /// Resident memory of a proxy that runs apart, in bytes.
    pub fn resident(&self) -> u64 {
        let process = self.process.as_ref().expect("a proxy that runs apart");
        let text = std::fs::read_to_string(format!("/proc/{}/statm", process.process.child.id())).unwrap();
        text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    }

    /// Lines of a proxy that runs apart, so far, that have this message.
    pub fn lines(&self, message: &str) -> Vec<Value> {
        let log = self.process.as_ref().expect("a proxy that runs apart").log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["message"] == message).collect()
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.http)
    }

    /// Begins the stop; [`Proxy::finish`] waits for its end.
    pub fn begin_stop(&mut self) {
        drop(self.stop.take());
    }

    pub async fn finish(mut self) -> Finish {
        self.begin_stop();
        let task = self.task.take().expect("finished once");
        tokio::time::timeout(PATIENCE, task).await.expect("the proxy stops").expect("the proxy does not panic")
    }

    /// The value of a metric line, such as `moriio_legs_total{role="prefill"`: all lines that begin so, summed.
    pub async fn metric(&self, begins: &str) -> f64 {
        client::sum(&self.metrics().await, begins)
    }

    /// The whole of `/metrics`.
    pub async fn metrics(&self) -> String {
        client::passing().get(self.url("/metrics")).send().await.unwrap().text().await.unwrap()
    }

    pub async fn ready(&self) -> (u16, Value) {
        let answer = client::passing().get(self.url("/ready")).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }
}

pub fn config(options: &[(Key, &str)]) -> Config {
    let base = [(Key::Host, "127.0.0.1"), (Key::Port, "0"), (Key::PingHost, "127.0.0.1"), (Key::PingPort, "0")];
    let all = base.iter().chain(options);
    let typed = all.fold(ServeOptions::default(), |typed, (key, value)| typed.with(*key, *value));
    Config::resolve(&typed, std::iter::empty()).expect("options of tests are right").0
}

/// Starts an engine. Ranges of free ports are rare while many closed connections are remembered, so this asks again.
pub async fn engine(settings: Settings) -> Engine {
    until("free ports", || async { Engine::start(settings.clone()).await.map_err(|error| error.to_string()) }).await
}

/// A proxy and its engines.
pub struct World {
    pub proxy: Proxy,
    pub prefill: Vec<Engine>,
    pub decode: Vec<Engine>,
    pub mode: Mode,
}

/// What a world is made of.
pub struct Plan {
    pub mode: Mode,
    pub prefill: usize,
    pub decode: usize,
    pub release: &'static str,
    pub dp: u32,
    pub tp: u32,
    pub options: Vec<(Key, &'static str)>,
    pub adjust: fn(&mut Settings),
    /// Whether the proxy is a process of its own.
    pub apart: bool,
}

impl Plan {
    pub fn new(mode: Mode) -> Plan {
        // The client's own number of tokens, so that texts can be compared with one engine's.
        // Limits that a test sets hold from the first exchange.
        let options = vec![(Key::DecodeTokenBudget, "exact"), (Key::ColdTimeout, "0")];
        Plan { mode, prefill: 1, decode: 1, release: "0.32.0", dp: 1, tp: 1, options, adjust: |_| {}, apart: false }
    }

    pub fn engines(self, prefill: usize, decode: usize) -> Plan {
        Plan { prefill, decode, ..self }
    }

    pub fn with(mut self, key: Key, value: &'static str) -> Plan {
        self.options.retain(|(other, _)| *other != key);
        self.options.push((key, value));
        self
    }

    pub fn settings(&self, role: Role, registration: SocketAddr) -> Settings {
        let mut settings = Settings::new(role, self.mode, registration.to_string());
        settings.release = self.release.into();
        settings.dp = self.dp;
        settings.tp = self.tp;
        settings.ping_interval = Duration::from_millis(200);
        (self.adjust)(&mut settings);
        settings
    }

    /// Starts everything and waits until every engine is ready.
    pub async fn start(self) -> World {
        let proxy = if self.apart { Proxy::apart(&self.options) } else { Proxy::start(&self.options) };
        let (mut prefill, mut decode) = (Vec::new(), Vec::new());
        for _ in 0..self.prefill {
            prefill.push(engine(self.settings(Role::Prefill, proxy.registration)).await);
        }
        for _ in 0..self.decode {
            decode.push(engine(self.settings(Role::Decode, proxy.registration)).await);
        }
        let world = World { proxy, prefill, decode, mode: self.mode };
        world.until_ready(self.prefill + self.decode).await;
        world
    }
}

impl World {
    /// Starts one more engine.
    pub async fn join(&mut self, settings: Settings) {
        let role = settings.role;
        let engine = engine(settings).await;
        match role {
            Role::Prefill => self.prefill.push(engine),
            Role::Decode => self.decode.push(engine),
        }
    }

    pub fn engines(&self) -> impl Iterator<Item = &Engine> {
        self.prefill.iter().chain(&self.decode)
    }

    /// Waits until so many engines are ready.
    pub async fn until_ready(&self, count: usize) {
        until("engines ready", || async {
            let (_, body) = self.proxy.ready().await;
            let ready = body["engines"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|e| e["state"] == "ready" && e["circuit"] == "closed")
                .count();
            (ready == count).then_some(()).ok_or_else(|| body.to_string())
        })
        .await
    }

    /// Waits until every engine is usable while `traffic` goes on, which trials need.
    pub async fn until_ready_under<F: Future<Output = ()>>(&self, mut traffic: impl FnMut() -> F) {
        until("closed circuits", || {
            let traffic = traffic();
            async move {
                traffic.await;
                let (_, body) = self.proxy.ready().await;
                let closed = body["engines"].as_array().unwrap().iter().all(|e| e["circuit"] == "closed");
                closed.then_some(()).ok_or_else(|| body.to_string())
            }
        })
        .await
    }

    pub fn total(&self, count: impl Fn(&Counters) -> u64) -> u64 {
        self.engines().map(|engine| count(&engine.counters())).sum()
    }

    /// Waits until nothing is in flight and no engine holds a block; nothing may be wrong anywhere.
    pub async fn settle(&self) {
        self.settle_within(PATIENCE).await;
    }

    /// The same where something is allowed to take longer.
    pub async fn settle_within(&self, limit: Duration) {
        until_within(limit, "the world at rest", || async {
            let metrics = self.proxy.metrics().await;
            for gauge in ["moriio_requests_in_flight", "moriio_legs_in_flight", "moriio_parked_legs_in_flight"] {
                let value = client::sum(&metrics, gauge);
                if value != 0.0 {
                    let told = ["moriio_kv_", "moriio_parked", "moriio_legs_in_flight"];
                    let lines = metrics.lines().filter(|line| told.iter().any(|name| line.starts_with(name)));
                    return Err(format!("{gauge} is {value}\n{}", lines.collect::<Vec<_>>().join("\n")));
                }
            }
            for engine in self.engines() {
                let c = engine.counters();
                let busy = c.held + c.parked + c.running + c.waiting + c.used_blocks + c.frozen;
                if busy != c.leaked {
                    return Err(format!("{:?} {} is busy: {c:?}", engine.settings().role, engine.http_address()));
                }
            }
            Ok(())
        })
        .await;
        self.accounted().await;
        self.unharmed();
    }

    /// Every exchange was closed once, and nothing is wrong in the proxy's own books.
    async fn accounted(&self) {
        let metrics = self.proxy.metrics().await;
        assert_eq!(client::sum(&metrics, "moriio_invariant_breaches_total"), 0.0);
        let closed = client::sum(&metrics, "moriio_exchanges_total");
        let routes =
            moriio_proxy::api::Api::ALL.map(|api| format!("moriio_requests_total{{route=\"{}\"", api.as_str()));
        let answered: f64 = routes.iter().map(|route| client::sum(&metrics, route)).sum();
        assert_eq!(closed, answered, "exchanges and answers");
    }

    /// No engine has anything to complain of.
    pub fn unharmed(&self) {
        for engine in self.engines() {
            let c = engine.counters();
            let name = format!("{:?} {}", engine.settings().role, engine.http_address());
            assert_eq!(engine.violations(), Vec::<String>::new(), "{name}");
            let harm = [c.leaked_blocks, c.leaked_requests, c.kv_mismatch, c.deaf, c.died];
            assert_eq!(harm, [0; 5], "leaked blocks, leaked requests, kv mismatches, deaf, died: {name} {c:?}");
        }
    }
}

/// Arms a fault. Closed doors count once the kept connections are closed, too.
pub async fn strike(engine: &Engine, fault: Fault) {
    let refuses = fault.kind == FaultKind::RefuseConnections;
    engine.set_fault(fault);
    if refuses {
        until_true("closed connections", || engine.counters().connections == 0).await;
    }
}

/// Looks again and again until `look` is content, and says at the end what it last saw. What takes long is looked at less
/// often: most looks are a request, and those of many waiting tests would keep the machine from what they wait for.
pub async fn until<T, F>(what: &str, look: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, String>>,
{
    until_within(PATIENCE, what, look).await
}

async fn until_within<T, F>(limit: Duration, what: &str, mut look: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, String>>,
{
    let began = Instant::now();
    let deadline = began + limit;
    loop {
        match look().await {
            Ok(value) => return value,
            Err(seen) => assert!(Instant::now() < deadline, "waited in vain for {what}: {seen}"),
        }
        tokio::time::sleep((began.elapsed() / 16).clamp(LOOK, 10 * LOOK)).await;
    }
}

/// Waits for a condition that needs no await.
pub async fn until_true(what: &str, mut look: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !look() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(LOOK).await;
    }
}
