//! A proxy and its four engines: set up, watched, audited, ended.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::paper::Paper;
use crate::app::{App, Finish, StartError};
use crate::settings::Config;
use crate::settings::options::{Key, ServeOptions};
use crate::sim::{Engine, Mode, Role, Settings};

/// The release that the engines behave like.
const RELEASE: &str = "0.32.0";
/// Ranks of each engine; more than one, so that there is a rank to see.
const RANKS: u32 = 2;
/// How often something is looked at again.
const LOOK: Duration = Duration::from_millis(10);

/// The longest that the show waits for anything; on a healthy machine nothing takes a tenth of it.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Why the demonstration failed.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// A proxy did not start.
    #[error(transparent)]
    Proxy(#[from] StartError),
    /// The configuration of a proxy was refused.
    #[error("{0}")]
    Config(String),
    /// A simulated engine did not start.
    #[error("cannot start a simulated engine: {0}")]
    Engine(std::io::Error),
    /// The HTTP client could not be made, or got no answer.
    #[error("no answer from the proxy: {0}")]
    Client(#[from] reqwest::Error),
    /// Something did not happen in time.
    #[error("waited in vain for {0}")]
    Late(String),
    /// The show went on, but not everything shown was right.
    #[error("{0} of the checks failed")]
    Wrong(usize),
}

/// One mode's proxy and engines.
pub(super) struct Stage {
    pub(super) client: reqwest::Client,
    /// Prefill engines before decode engines.
    pub(super) engines: Vec<Engine>,
    http: SocketAddr,
    mode: Mode,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Finish>,
}

impl Stage {
    /// Starts the proxy, then the engines, and shows how the pool forms.
    pub(super) async fn set(paper: &Paper, mode: Mode, port: u16) -> Result<Self, DemoError> {
        let typed = ServeOptions::default()
            .with(Key::Host, "127.0.0.1")
            .with(Key::Port, port.to_string())
            .with(Key::PingPort, "0")
            .with(Key::DrainTimeout, "2s");
        let (config, _) =
            Config::resolve(&typed, std::iter::empty()).map_err(|mistakes| DemoError::Config(mistakes.to_string()))?;
        let app = App::bind(config)?;
        let (http, registration) = (app.http_address(), app.discovery_address());
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(app.run(async {
            let _ = stopped.await;
        }));
        paper.fact("proxy", &format!("clients at {http}, engines register at {registration}"));
        let began = Instant::now();
        let mut engines = Vec::new();
        for role in [Role::Prefill, Role::Prefill, Role::Decode, Role::Decode] {
            let settings = Settings {
                release: RELEASE.into(),
                dp: RANKS,
                ping_interval: Duration::from_secs(1),
                token_delay: Duration::from_millis(50),
                prefill_delay: Duration::from_millis(150),
                ..Settings::new(role, mode, registration.to_string())
            };
            engines.push(Engine::start(settings).await.map_err(DemoError::Engine)?);
        }
        let stage = Stage { client: reqwest::Client::builder().no_proxy().build()?, engines, http, mode, stop, task };
        stage.watch_pool(paper, began).await?;
        Ok(stage)
    }

    /// Prints each engine as it becomes ready, until all are.
    async fn watch_pool(&self, paper: &Paper, began: Instant) -> Result<(), DemoError> {
        let mut seen = BTreeSet::new();
        while seen.len() < self.engines.len() {
            let text = self.client.get(self.url("/ready")).send().await?.text().await?;
            let answer: Value = serde_json::from_str(&text).unwrap_or_default();
            for engine in answer["engines"].as_array().into_iter().flatten() {
                let word = |key: &str| engine[key].as_str().unwrap_or("?").to_owned();
                if word("state") == "ready" && seen.insert(word("address")) {
                    let (address, release, ranks) = (word("address"), word("release"), &engine["dp_size"]);
                    let after = began.elapsed().as_millis();
                    paper.fact(
                        &word("role"),
                        &format!("{address} ready after {after} ms: vLLM {release} (simulated), {ranks} ranks"),
                    );
                }
            }
            if began.elapsed() > PATIENCE {
                return Err(DemoError::Late(format!("four ready engines; {} were ready", seen.len())));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    pub(super) fn mode_name(&self) -> &'static str {
        match self.mode {
            Mode::Read => "READ",
            Mode::Write => "WRITE",
        }
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.http)
    }

    /// Waits until every engine is at rest, then asks each what it has to complain of. Says how many checks failed.
    pub(super) async fn audit(&self, paper: &Paper) -> usize {
        let deadline = Instant::now() + PATIENCE;
        while !self.at_rest() && Instant::now() < deadline {
            tokio::time::sleep(LOOK).await;
        }
        paper.line("");
        let legs: u64 = self.engines.iter().map(|engine| engine.counters().legs).sum();
        let moved: u64 = self.engines.iter().map(|engine| engine.counters().blocks_moved).sum();
        let held = (!self.at_rest()).then(|| String::from("an engine still holds blocks or requests"));
        let what = format!("{legs} legs, {moved} KV blocks moved; every block is free again");
        let mut wrong = paper.check(&what, held);
        let complaints: Vec<String> = self.engines.iter().flat_map(complaints).collect();
        let problem = (!complaints.is_empty()).then(|| complaints.join("; "));
        wrong += paper.check("no engine saw a violation, a leak or a wrong block", problem);
        wrong
    }

    fn at_rest(&self) -> bool {
        self.engines.iter().all(|engine| {
            let c = engine.counters();
            c.held + c.parked + c.running + c.waiting + c.used_blocks + c.frozen == 0
        })
    }

    /// Stops engines and proxy.
    pub(super) async fn end(self) {
        drop(self.stop);
        let _ = self.task.await;
        for engine in self.engines {
            engine.stop().await;
        }
    }
}

fn complaints(engine: &Engine) -> Vec<String> {
    let c = engine.counters();
    let mut found = engine.violations();
    for (count, what) in [
        (c.leaked_blocks, "leaked blocks"),
        (c.leaked_requests, "leaked requests"),
        (c.kv_mismatch, "mismatched KV blocks"),
        (c.woken_empty, "requests woken without KV"),
        (c.reaped, "transfers that nobody fetched"),
        (c.deaf, "dead KV listeners"),
        (c.died, "deaths"),
    ] {
        if count > 0 {
            found.push(format!("{}: {count} {what}", engine.http_address()));
        }
    }
    found
}
