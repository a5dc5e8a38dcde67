//! Background tasks that end before the stop: each is named in the log, and what runs comes to its end first.

use std::io;
use std::sync::{Arc, Mutex, mpsc as blocking};
use std::time::Duration;

use axum::Router;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::subscriber::DefaultGuard;

use super::{App, Finish};
use crate::http::accept::Routers;
use crate::http::port::bind;
use crate::metrics::Metrics;
use crate::registration::socket::listener::{self, Incident, ListenerSettings};
use crate::settings::Config;
use crate::settings::options::{Key, ServeOptions};
use crate::sim::{Engine, Mode, Role, Settings};

/// The longest that anything is waited for. It only ever passes in full when a test fails.
const PATIENCE: Duration = Duration::from_secs(60);

fn config() -> Config {
    let options = ServeOptions::default().with(Key::Host, "127.0.0.1").with(Key::Port, "0").with(Key::PingPort, "0");
    Config::resolve(&options.with(Key::DrainTimeout, "600s"), std::iter::empty()).unwrap().0
}

/// What this thread logs: the tasks of a test are all on it. Lines that others log too cannot be relied on: one without a
/// subscriber may switch them off for all.
struct Log {
    written: Arc<Mutex<Vec<u8>>>,
    _collecting: DefaultGuard,
}

struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn collect() -> Self {
        let written = Arc::<Mutex<Vec<u8>>>::default();
        let lines = written.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || Lines(lines.clone()));
        Log { written, _collecting: tracing::subscriber::set_default(subscriber.finish()) }
    }

    /// The app ends as failed, and the log names the task and the reason.
    async fn blames(&self, running: JoinHandle<Finish>, task: &str, reason: &str) {
        let finish = timeout(PATIENCE, running).await.expect("an end in time").expect("no panic");
        let log = String::from_utf8(self.written.lock().unwrap().clone()).unwrap();
        assert_eq!((finish, finish.exit_code()), (Finish::Failed, 1), "{log}");
        let lines: Vec<&str> = log.lines().filter(|line| line.contains("background task has ended")).collect();
        assert_eq!(lines.len(), 1, "{log}");
        assert!(lines[0].contains(&format!("task=\"{task}\"")) && lines[0].contains(reason), "{}", lines[0]);
    }
}

fn run(app: App) -> JoinHandle<Finish> {
    tokio::spawn(app.run(std::future::pending()))
}

/// Waits for a condition, but not for ever.
async fn until(holds: impl AsyncFn() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, waiting).await.expect("it comes to hold");
}

/// Ends a task while a stream runs; the stream must come to its own end, and the app to an end that names the task.
async fn drained(app: App, end: impl Future<Output = ()>, task: &str, reason: &str) {
    let log = Log::collect();
    let (url, registration) = (format!("http://{}", app.http_address()), app.discovery_address().to_string());
    let running = run(app);
    let mut engines = Vec::new();
    for role in [Role::Prefill, Role::Decode] {
        let times = (Duration::from_millis(200), Duration::from_millis(20));
        let settings = Settings::new(role, Mode::Write, registration.clone());
        engines
            .push(Engine::start(Settings { ping_interval: times.0, token_delay: times.1, ..settings }).await.unwrap());
    }
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let is_ready = async || client.get(format!("{url}/ready")).send().await.unwrap().status() == 200;
    until(is_ready).await;
    let body = json!({"model": "sim-model", "prompt": "a story", "max_tokens": 41, "stream": true});
    let mut answer = client.post(format!("{url}/v1/completions")).json(&body).send().await.unwrap();
    let mut text = answer.chunk().await.unwrap().expect("a first event").to_vec();
    end.await;
    while let Some(part) = answer.chunk().await.expect("the stream goes on") {
        text.extend_from_slice(&part);
    }
    let text = String::from_utf8(text).unwrap();
    assert!(text.ends_with("data: [DONE]\n\n") && text.matches("data: ").count() >= 40, "{text}");
    log.blames(running, task, reason).await;
}

#[tokio::test]
async fn an_end_of_membership_drains_and_fails() {
    let app = App::bind(config()).unwrap();
    let task = app.background.ender("membership");
    drained(app, async { task.abort() }, "membership", "cancelled").await;
}

#[tokio::test]
async fn an_end_of_the_listener_drains_and_fails() {
    let app = App::bind(config()).unwrap();
    let listener = app.listener.clone();
    drained(app, async move { listener.stop().await }, "registration listener", "thread ended").await;
}

#[tokio::test]
async fn an_end_of_the_notifier_drains_and_fails() {
    let log = Log::collect();
    let mut app = App::bind(config()).unwrap();
    // The thread ends with its last handle, and the routes have them all.
    app.routers = Routers { serving: Router::new(), refusing: Router::new() };
    log.blames(run(app), "notifier", "it returned").await;
}

/// An app whose listener deals in its own way with what happens, on the listener's thread. The watchdog's first connection
/// makes the listener replace its ROUTER, so that something does happen.
fn with_listener(watchdog: Duration, report: impl Fn(Incident) + Send + Sync + 'static) -> App {
    let any = "127.0.0.1:0".parse().unwrap();
    let (sink, heard) = mpsc::channel(1);
    let settings = ListenerSettings { watchdog, renew_after: 1, ..ListenerSettings::new(any) };
    let listener = listener::start(settings, sink, report).unwrap();
    App::build(
        config().parts,
        bind(any).unwrap(),
        None,
        (listener, heard, Arc::default()),
        (1, Arc::new(Metrics::new())),
    )
    .unwrap()
}

#[tokio::test]
async fn the_watchdog_of_a_listener_that_does_nothing_drains_and_fails() {
    let log = Log::collect();
    let (release, released) = blocking::channel::<()>();
    let released = Mutex::new(released);
    let app = with_listener(Duration::from_millis(50), move |_| released.lock().unwrap().recv().unwrap_or_default());
    let http = app.http_address();
    let running = run(app);
    // Nothing is wrong before, and the thread is let go once the clients' port is closed.
    until(async || TcpStream::connect(http).await.is_err()).await;
    drop(release);
    log.blames(running, "registration listener", "does not respond").await;
}

#[tokio::test]
async fn a_panic_on_the_listeners_thread_drains_and_fails() {
    let log = Log::collect();
    let app = with_listener(PATIENCE, |incident| assert_ne!(incident, Incident::Rebuilt, "a defect"));
    log.blames(run(app), "registration listener", "thread ended").await;
}

#[tokio::test]
async fn a_stop_is_no_failure() {
    let app = App::bind(config()).unwrap();
    assert_eq!(timeout(PATIENCE, app.run(std::future::ready(()))).await.unwrap(), Finish::Drained);
}
