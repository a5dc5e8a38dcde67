//! The built binary as a child process.

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use super::PATIENCE;

pub const BINARY: &str = env!("CARGO_BIN_EXE_moriio-proxy");

/// A command that sees no `PROXY_` variable of the surroundings.
pub fn command(arguments: &[&str]) -> Command {
    command_at(BINARY.as_ref(), arguments)
}

/// The same for the binary under another name.
pub fn command_at(program: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PROXY_") || name == "OPENAI_API_KEY" {
            command.env_remove(name);
        }
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Ports for what must be told its ports before it starts. They lie below the range from which the system takes ports for
/// connections and for port 0, so that nothing else comes by one between the look and the use; no two calls give the same.
pub fn free_ports<const COUNT: usize>() -> [u16; COUNT] {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 20_000 + (std::process::id() % 100) as u16 * 120;
    std::array::from_fn(|_| {
        loop {
            let port = first + NEXT.fetch_add(1, Ordering::Relaxed) % 120;
            if TcpListener::bind(("0.0.0.0", port)).is_ok() {
                return port;
            }
        }
    })
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
        let sent = Command::new("kill").args([format!("-{name}"), self.child.id().to_string()]).status().unwrap();
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
    /// What it has printed on stdout.
    printed: tempfile::NamedTempFile,
}

/// Free ports on loopback, and a log that can be read.
const BASE: [&str; 10] =
    ["--host", "127.0.0.1", "--port", "0", "--ping-host", "127.0.0.1", "--ping-port", "0", "--log-format", "json"];

impl Served {
    pub fn start(arguments: &[&str]) -> Served {
        Served::launch(command(&[&BASE[..], arguments].concat()))
    }

    /// The same, which hears SIGHUP even where the tests were started by nohup: who starts them passes on that it is ignored.
    pub fn hearing_hangups(arguments: &[&str]) -> Served {
        let mut command = Command::new("env");
        command.args(["--default-signal=HUP", BINARY]).args(BASE).args(arguments);
        Served::launch(command)
    }

    /// A proxy from a command that makes it log JSON.
    pub fn launch(command: Command) -> Served {
        let printed = tempfile::NamedTempFile::new().unwrap();
        let output = printed.reopen().unwrap().into();
        Served::launch_into(command, output, printed)
    }

    /// The same whose output goes elsewhere.
    pub fn launch_into(mut command: Command, output: Stdio, printed: tempfile::NamedTempFile) -> Served {
        let mut child = command.stderr(Stdio::piped()).stdout(output).spawn().unwrap();
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
                copy.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        });
        Served { process: Running { child }, http, registration, log, reader: Some(reader), printed }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.http)
    }

    /// The log so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// What it has printed on stdout so far.
    pub fn printed(&self) -> String {
        std::fs::read_to_string(self.printed.path()).unwrap()
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
