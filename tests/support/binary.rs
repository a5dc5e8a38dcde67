//! The built binary as a child process.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::PATIENCE;

pub const BINARY: &str = env!("CARGO_BIN_EXE_moriio-proxy");

/// A command that sees no `PROXY_` variable of the surroundings.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PROXY_") || name == "OPENAI_API_KEY" {
            command.env_remove(name);
        }
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

/// A running child that is killed when the test ends.
pub struct Running {
    pub child: Child,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .args([format!("-{name}"), self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(sent.success());
    }

    /// Waits for the end.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the process does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A proxy process on free ports; its log is read in the background.
pub struct Served {
    pub process: Running,
    pub http: SocketAddr,
    pub registration: SocketAddr,
    log: std::sync::Arc<std::sync::Mutex<String>>,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Served {
    pub fn start(arguments: &[&str]) -> Served {
        let base = [
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "--ping-host",
            "127.0.0.1",
            "--ping-port",
            "0",
            "--log-format",
            "json",
        ];
        let arguments: Vec<&str> = base.iter().chain(arguments).copied().collect();
        let mut child = command(&arguments)
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let mut text = String::new();
        let (http, registration) = loop {
            let mut line = String::new();
            assert!(lines.read_line(&mut line).unwrap() > 0, "ended early: {text}");
            text.push_str(&line);
            let Ok(line) = serde_json::from_str::<serde_json::Value>(&line) else {
                continue;
            };
            if line["message"] == "moriio-proxy serves" {
                let address = |key: &str| line[key].as_str().unwrap().parse().unwrap();
                break (address("http"), address("registration"));
            }
        };
        let log = std::sync::Arc::new(std::sync::Mutex::new(text));
        let copy = log.clone();
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = lines.read(&mut buffer) {
                copy.lock()
                    .unwrap()
                    .push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        });
        Served {
            process: Running { child },
            http,
            registration,
            log,
            reader: Some(reader),
        }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.http)
    }

    /// Waits for the end and gives the exit code and the whole log.
    pub fn finish(&mut self) -> (Option<i32>, String) {
        let status = self.process.wait();
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        (status.code(), self.log.lock().unwrap().clone())
    }
}
