//! The binary with hardly any file descriptors.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::net::TcpStream;

use super::dial;
use crate::support::binary::{BINARY, Running};
use crate::support::{client, until};

/// A proxy that may hold so many descriptors: the process, where clients and where engines connect.
fn start(descriptors: u32) -> (Running, SocketAddr, SocketAddr) {
    let limit = format!("ulimit -n {descriptors} && exec \"$0\" \"$@\"");
    let arguments =
        ["--host", "127.0.0.1", "--port", "0", "--ping-host", "127.0.0.1", "--ping-port", "0", "--log-format", "json"];
    let mut command = Command::new("sh");
    command.args(["-c", &limit, BINARY]).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    let process = Running { child };
    loop {
        let mut line = String::new();
        assert!(lines.read_line(&mut line).unwrap() > 0, "the proxy ended");
        let line: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
        if line["message"] == "moriio-proxy serves" {
            let address = |key: &str| line[key].as_str().unwrap().parse().unwrap();
            std::thread::spawn(move || lines.lines().for_each(drop));
            return (process, address("http"), address("registration"));
        }
    }
}

/// CPU time of a process in hundredths of a second.
fn spent(process: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

async fn healthy(http: SocketAddr) {
    until("an answer", || async {
        let sent = client().get(format!("http://{http}/health")).timeout(Duration::from_secs(5)).send().await;
        sent.map(drop).map_err(|error| error.to_string())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_descriptors_wait_quietly() {
    let (process, http, registration) = tokio::task::spawn_blocking(|| start(160)).await.unwrap();
    let id = process.child.id();
    healthy(http).await;
    let mut crowd: Vec<TcpStream> = Vec::new();
    for _ in 0..150 {
        crowd.push(dial(http).await);
        crowd.push(dial(registration).await);
    }
    let before = spent(id);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let spent = spent(id) - before;
    assert!(spent < 100, "{spent} hundredths of a second in two seconds of nothing to do");
    drop(crowd);
    healthy(http).await;
    let open = std::fs::read_dir(format!("/proc/{id}/fd")).unwrap().count();
    assert!(open < 160);
}
