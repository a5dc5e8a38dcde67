//! Launchers that start a router, replayed: their command line word by word (only hosts and ports are put in), what they poll and
//! as often, what they look for in its output, their first requests, the way they stop it. What needs large tools is in
//! `tests/launchers/real`.

mod python;
mod routers;

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use moriio_proxy::sim::{Engine, Mode, Role, expected_text};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::support::binary::{BINARY, Running, command_at, free_ports};
use crate::support::client::passing;
use crate::support::{Answer, PATIENCE, Plan, engine, until, until_true};

/// Waiting times of launchers as part of the real ones, so that a replay takes seconds; `MORIIO_LAUNCHER_PACE=1` takes them in full.
fn paced(seconds: f64) -> Duration {
    let pace = std::env::var("MORIIO_LAUNCHER_PACE").ok().map_or(0.05, |text| text.parse().expect("a number"));
    Duration::from_secs_f64(seconds * pace)
}

/// A router as a launcher has started it, in a process group of its own, as it would have a container of its own.
struct Router {
    process: Running,
    port: u16,
    folder: tempfile::TempDir,
}

/// A folder with a link of the router's name, which an image has in `/usr/local/bin`.
fn on_path() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(BINARY, folder.path().join("vllm-router")).unwrap();
    folder
}

impl Router {
    /// Runs `script` as `bash FLAG SCRIPT`; `$LOG` in it is the path of a log file.
    fn start(flag: &str, script: &str, port: u16) -> Router {
        let folder = on_path();
        // A login shell sets PATH anew.
        let script = format!("export PATH={0}:$PATH LOG={0}/log; {script}", folder.path().display());
        let output = File::create(folder.path().join("output")).unwrap();
        let mut bash = command_at("bash".as_ref(), &[flag, &script]);
        bash.process_group(0).stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        Router { process: Running { child: bash.spawn().unwrap() }, port, folder }
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// All that it has written, wherever to.
    fn output(&self) -> String {
        let read = |name| std::fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
        read("output") + &read("log")
    }

    /// Signals the whole group.
    fn signal(&self, name: &str) {
        let group = format!("-{}", self.process.child.id());
        assert!(Command::new("kill").args([&format!("-{name}"), "--", &group]).status().unwrap().success());
    }

    /// As `docker rm -f` ends it.
    async fn remove(mut self) {
        self.is_running();
        self.signal("KILL");
        self.process.wait();
        self.is_closed().await;
    }

    /// Other nodes take a closed port for the end of the job.
    async fn is_closed(&self) {
        until("the port closed", async || if self.accepts().await { Err(String::from("it is open")) } else { Ok(()) })
            .await;
    }

    /// Launchers give it minutes while engines start.
    async fn is_up(&mut self) {
        self.poll(1.0, 60.0, "port", async |router| router.accepts().await).await;
    }

    /// As `kill` or Slurm ends it: it has to be over before it would be killed.
    async fn terminate(self, within: Duration) {
        let group = format!("-{}", self.process.child.id());
        self.ends_by(&["kill", "-TERM", "--", &group], within).await;
    }

    async fn ends_by(mut self, command: &[&str], within: Duration) {
        self.is_running();
        assert!(Command::new(command[0]).args(&command[1..]).status().unwrap().success());
        let deadline = Instant::now() + within;
        while self.process.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "it would be killed: {}", self.output());
            sleep(Duration::from_millis(10)).await;
        }
        self.is_closed().await;
    }

    fn is_running(&mut self) {
        assert!(self.process.child.try_wait().unwrap().is_none(), "it has ended: {}", self.output());
    }

    async fn accepts(&self) -> bool {
        tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.is_ok()
    }

    /// The status of a GET within a launcher's limit; none without an answer.
    async fn get(&self, path: &str, limit: f64) -> Option<u16> {
        let sent = passing().get(self.url(path)).timeout(Duration::from_secs_f64(limit)).send().await;
        sent.ok().map(|answer| answer.status().as_u16())
    }

    async fn post(&self, path: &str, body: &Value) -> Answer {
        let sent = passing().post(self.url(path)).header("content-type", "application/json").body(body.to_string());
        let response = tokio::time::timeout(PATIENCE, sent.send()).await.expect("an answer in time").unwrap();
        tokio::time::timeout(PATIENCE, Answer::of(response)).await.expect("an end in time")
    }

    /// Asks `look` every so many seconds up to a limit, as a launcher does.
    async fn poll(&mut self, every: f64, limit: f64, what: &str, mut look: impl AsyncFnMut(&Router) -> bool) {
        let deadline = Instant::now() + Duration::from_secs_f64(limit);
        while !look(self).await {
            assert!(Instant::now() < deadline, "no {what} within {limit}s: {}", self.output());
            self.is_running();
            sleep(paced(every)).await;
        }
    }

    /// A completion as launchers try one, with the tokens that were asked for.
    async fn completes(&self, tokens: usize) {
        let body = json!({"prompt": "San Francisco is a", "temperature": 0, "max_tokens": tokens, "top_k": 1});
        let answer = self.post("/v1/completions", &body).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(answer.text(), expected_text(&json!("San Francisco is a"), tokens));
        assert!(answer.body.contains("text_completion"), "{}", answer.body);
    }

    /// A benchmark's requests, so many at once: every one is answered with exactly its tokens.
    async fn load(&self, count: usize, at_once: usize, body: impl Fn(usize) -> (Value, Value, usize)) {
        use futures::StreamExt;
        let ask = |index: usize| {
            let (body, prompt, tokens) = body(index);
            async move {
                let answer = self.post("/v1/completions", &body).await;
                assert_eq!(answer.status, 200, "{}", answer.body);
                assert_eq!(answer.text(), expected_text(&prompt, tokens), "{}", answer.body);
            }
        };
        futures::stream::iter(0..count).map(ask).buffer_unordered(at_once).collect::<Vec<()>>().await;
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        if matches!(self.process.child.try_wait(), Ok(None)) {
            self.signal("KILL");
        }
    }
}

/// What `vllm bench serve` sends: a streamed random prompt.
fn streamed(index: usize) -> (Value, Value, usize) {
    let (prompt, tokens) = (json!(format!("random prompt {index} of many words")), 1 + index % 24);
    let body = json!({"model": "sim-model", "prompt": prompt, "max_tokens": tokens, "stream": true, "ignore_eos": true,
        "temperature": 0, "stream_options": {"include_usage": true}});
    (body, prompt, tokens)
}

/// What lm_eval sends: a list of one prompt, with stop words and a seed.
fn evaluated(index: usize) -> (Value, Value, usize) {
    let (prompt, tokens) = (json!(format!("Question: {index} apples? Answer:")), 8);
    let body = json!({"model": "sim-model", "prompt": [prompt], "max_tokens": tokens, "temperature": 0, "seed": 1234,
        "stop": ["Question:", "</s>"]});
    (body, prompt, tokens)
}

/// A prefill and a decode engine, as a launcher's nodes start them.
async fn engines(mode: Mode, dp: u32, registration: u16) -> [Engine; 2] {
    let mut plan = Plan::new(mode);
    plan.dp = dp;
    started(&plan, registration).await
}

/// The same by a plan. Real engines ping for seconds before they serve, and so have these.
async fn started(plan: &Plan, registration: u16) -> [Engine; 2] {
    let registration = ([127, 0, 0, 1], registration).into();
    let pair = [
        engine(plan.settings(Role::Prefill, registration)).await,
        engine(plan.settings(Role::Decode, registration)).await,
    ];
    until_true("a few pings", || pair.iter().all(|engine| engine.counters().pings >= 3)).await;
    pair
}

/// Waits for each engine's own `/health`, as launchers do.
async fn engines_are_healthy(router: &mut Router, engines: &[Engine; 2], every: f64, limit: f64) {
    for engine in engines {
        let url = format!("http://{}/health", engine.http_address());
        let up = async |_: &Router| passing().get(&url).send().await.is_ok_and(|answer| answer.status() == 200);
        router.poll(every, limit, "engine", up).await;
    }
}

/// No engine has anything to complain of, and none holds a block.
async fn unharmed(engines: &[Engine; 2]) {
    for engine in engines {
        until("an engine at rest", || async {
            let c = engine.counters();
            let busy = c.held + c.parked + c.running + c.waiting + c.used_blocks;
            if busy == 0 { Ok(()) } else { Err(format!("{c:?}")) }
        })
        .await;
        assert_eq!(engine.violations(), Vec::<String>::new());
    }
}
