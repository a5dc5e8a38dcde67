//! What an exchange and a chunk of a stream cost the proxy, in what can be counted: allocations and system calls. Time is for
//! `bench/run`.
//!
//! A program of its own, since its allocator counts. The limits lie a little above what was counted last; whoever makes the
//! proxy cheaper lowers them.

#[path = "../support/binary.rs"]
#[allow(dead_code, reason = "the rest is for other tests")]
mod binary;
mod calls;
mod memory;
mod picks;
mod stage;

use std::alloc::System;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, Once, OnceLock, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use moriio_proxy::app::App;
use moriio_proxy::engine::Mode;
use moriio_proxy::lines::Lines;
use moriio_proxy::settings::Config;
use moriio_proxy::settings::options::{Key, ServeOptions};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tokio::sync::oneshot;

use self::binary::Served;
use self::calls::Calls;
use self::stage::Stage;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The longest that anything is waited for. It only ever passes in full when a test fails.
const PATIENCE: Duration = Duration::from_secs(60);
/// What is done before anything is counted: connections are made, and what grows has grown.
const WARM_UP: usize = 10;
/// Of several rounds the cheapest counts: whatever else happens now and then only adds.
const ROUNDS: usize = 10;
/// Exchanges of a round, or chunks.
const ROUND: usize = 5;

/// Of an exchange whose answer comes whole, and of a chunk of a stream.
#[derive(Debug)]
struct Costs {
    exchange: f64,
    chunk: f64,
}

impl Costs {
    /// What `count` grows by.
    fn of(mut stage: Stage, count: impl Fn() -> usize) -> Costs {
        let exchange = cheapest(&count, || stage.exchange());
        stage.begin_stream();
        let chunk = cheapest(&count, || stage.chunk());
        stage.end_stream();
        Costs { exchange, chunk }
    }

    /// Neither above the limits, nor so far below that these, or the counting, are of no use.
    fn are_at_most(&self, limits: &Costs) {
        println!("{self:?}");
        let all = [("an exchange", self.exchange, limits.exchange), ("a chunk", self.chunk, limits.chunk)];
        for (what, cost, limit) in all {
            assert!(cost <= limit, "{what} costs {cost}, more than {limit}");
            assert!(cost > limit / 2.0, "{what} costs {cost}, so a limit of {limit} is too high");
        }
    }
}

fn cheapest(count: impl Fn() -> usize, mut act: impl FnMut()) -> f64 {
    (0..WARM_UP).for_each(|_| act());
    let round = |_| {
        let before = count();
        (0..ROUND).for_each(|_| act());
        count() - before
    };
    (0..ROUNDS).map(round).min().unwrap_or_default() as f64 / ROUND as f64
}

/// One test at a time: what is counted is the whole process's.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Nobody is asked again whether he lives while something is counted.
const OPTIONS: [(Key, &str); 6] = [
    (Key::Host, "127.0.0.1"),
    (Key::Port, "0"),
    (Key::PingHost, "127.0.0.1"),
    (Key::PingPort, "0"),
    (Key::EngineTtl, "600s"),
    (Key::LogFormat, "json"),
];

/// A proxy in this process, on a thread of its own, as the program starts it.
struct Proxy {
    http: SocketAddr,
    registration: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    fn start() -> Proxy {
        log();
        let typed = OPTIONS.iter().fold(ServeOptions::default(), |typed, (key, value)| typed.with(*key, *value));
        let config = Config::resolve(&typed, std::iter::empty()).expect("options of tests are right").0;
        let (stop, stopped) = oneshot::channel::<()>();
        let (begins, begun) = mpsc::channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let app = App::bind(config).expect("ports are free");
                begins.send((app.http_address(), app.discovery_address())).unwrap();
                app.run(async { drop(stopped.await) }).await;
            });
        });
        let (http, registration) = begun.recv().unwrap();
        Proxy { http, registration, stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().is_none_or(|thread| thread.join().is_ok());
        assert!(ended || thread::panicking(), "the proxy does not panic");
    }
}

/// Lines are made and given to their writer, as in the program; nobody reads them.
fn log() {
    static ONCE: Once = Once::new();
    static LINES: OnceLock<Lines> = OnceLock::new();
    ONCE.call_once(|| {
        let lines = LINES.get_or_init(|| Lines::start("log", std::io::sink(), |_| {}).unwrap());
        tracing_subscriber::fmt().with_writer(move || lines).json().flatten_event(true).init();
    });
}

/// Of all threads, lines of the log included; neither engines nor client allocate. Growing in place counts, too.
fn allocations(mode: Mode) -> Costs {
    let _alone = alone();
    let proxy = Proxy::start();
    Costs::of(Stage::new(mode, proxy.http, proxy.registration), || {
        let stats = ALLOCATOR.stats();
        stats.allocations + stats.reallocations
    })
}

fn system_calls(mode: Mode) -> Costs {
    let _alone = alone();
    let proxy = Served::start(&["--engine-ttl", "600s"]);
    let stage = Stage::new(mode, proxy.http, proxy.registration);
    let calls = Calls::of_first_thread(proxy.process.child.id());
    Costs::of(stage, || calls.so_far())
}

#[test]
fn allocations_write() {
    allocations(Mode::Write).are_at_most(&Costs { exchange: 90.0, chunk: 1.5 });
}

#[test]
fn allocations_read() {
    allocations(Mode::Read).are_at_most(&Costs { exchange: 96.0, chunk: 1.5 });
}

/// Three waits, and what each of them was for: the request read and two legs written, prefill's answer read, decode's answer read
/// and written. Then the log's thread is woken.
#[test]
fn system_calls_write() {
    system_calls(Mode::Write).are_at_most(&Costs { exchange: 10.5, chunk: 3.5 });
}

/// Three waits, and behind each of them something read and something written. Then the log's thread is woken.
#[test]
fn system_calls_read() {
    system_calls(Mode::Read).are_at_most(&Costs { exchange: 10.5, chunk: 3.5 });
}
