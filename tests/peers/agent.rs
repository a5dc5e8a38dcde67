//! A Python process that does as it is told, one line of JSON after the other.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;

use super::environment::python;
use crate::support::PATIENCE;

/// Longer than anything that a script waits for by itself, so that its own account of a failure is seen.
const LIMIT: Duration = PATIENCE.saturating_mul(2);

/// A running script, of use on every runtime. Killed on drop; one that is never dropped ends with its input.
pub struct Agent {
    child: Child,
    input: Option<ChildStdin>,
    lines: UnboundedReceiver<String>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Agent {
    /// Starts one of `tests/python`.
    pub fn start(script: &str, arguments: &[String]) -> Agent {
        let scripts = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python");
        let mut command = Command::new(python());
        // No byte code beside the sources.
        command.arg("-B").arg(format!("{scripts}/{script}")).args(arguments);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy().to_ascii_lowercase();
            let known = ["openai_", "anthropic_", "python"];
            if text.ends_with("_proxy") || known.iter().any(|begin| text.starts_with(begin)) {
                command.env_remove(name);
            }
        }
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = spawned.expect("the interpreter starts");
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let (told, lines) = unbounded_channel();
        thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| told.send(line)));
        Agent { child, input, lines }
    }

    /// The next line that it writes.
    pub async fn line(&mut self) -> Value {
        let line = timeout(LIMIT, self.lines.recv())
            .await
            .expect("the script writes in time")
            .expect("the script still runs; its last words are above");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    /// Has a command done and gives its result.
    pub async fn ask(&mut self, command: Value) -> Value {
        let input = self.input.as_mut().expect("open until the end");
        input.write_all(format!("{command}\n").as_bytes()).expect("the script listens");
        let mut answer = self.line().await;
        if let Some(why) = answer.get("failed") {
            panic!("{command} failed: {why}");
        }
        answer["result"].take()
    }

    /// Waits for the end of a script that ends by itself.
    pub async fn finish(mut self) -> Option<i32> {
        self.input = None;
        let last = async { while self.lines.recv().await.is_some() {} };
        timeout(LIMIT, last).await.expect("the script ends");
        self.child.wait().expect("it can be waited for").code()
    }
}

/// The agent that has libzmq's sockets.
pub struct Sockets(pub Agent);

impl Sockets {
    pub fn start() -> Sockets {
        Sockets(Agent::start("sockets.py", &[]))
    }

    pub async fn open(&mut self, name: &str, kind: &str, address: impl ToString) {
        let address = address.to_string();
        self.0.ask(json!({"do": "open", "name": name, "kind": kind, "address": address})).await;
    }

    /// Sends a map as an engine does: one frame of msgpack.
    pub async fn ping(&mut self, name: &str, map: &Value) {
        self.frames(name, json!([{"pack": map}])).await;
    }

    pub async fn frames(&mut self, name: &str, frames: Value) {
        self.0.ask(json!({"do": "send", "name": name, "frames": frames})).await;
    }

    pub async fn repeat(&mut self, name: &str, map: &Value, seconds: f64) {
        self.0.ask(json!({"do": "repeat", "name": name, "frames": [{"pack": map}], "seconds": seconds})).await;
    }

    pub async fn quiet(&mut self, name: &str) {
        self.0.ask(json!({"do": "quiet", "name": name})).await;
    }

    /// Waits until an event of the connection has been seen so many times since it was opened.
    pub async fn until(&mut self, name: &str, event: &str, count: u32) {
        self.0.ask(json!({"do": "until", "name": name, "event": event, "count": count})).await;
    }

    /// Waits until a dead proxy's connections have ended, and gives how many there ever were.
    pub async fn until_down(&mut self, name: &str) -> u32 {
        let ended = self.0.ask(json!({"do": "until_down", "name": name})).await;
        ended.as_u64().and_then(|count| count.try_into().ok()).expect("a number")
    }

    /// Whether anything was sent back.
    pub async fn heard_anything(&mut self, name: &str) -> bool {
        self.0.ask(json!({"do": "received", "name": name})).await == true
    }
}
