//! What the binary prints, and what it does when nobody reads it.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use moriio_proxy::sim::{Engine, Mode, Role};
use serde_json::Value;

use super::{run, text};
use crate::support::binary::{BINARY, Running, command};
use crate::support::{Plan, Proxy, client, completion, generate, until};

/// Ticks of processor time that a process has used.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_stdout_and_stderr_are_survived() {
    let arguments = ["--host", "127.0.0.1", "--port", "0", "--ping-port", "0", "--log-format", "json"];
    let mut child = command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    drop(child.stdout.take());
    let said: Value = loop {
        let line: Value = serde_json::from_str(&log.next().unwrap().unwrap()).unwrap();
        if line["message"] == "moriio-proxy serves" {
            break line;
        }
    };
    let address = |key: &str| said[key].as_str().unwrap().parse::<SocketAddr>().unwrap();
    let (http, registration) = (address("http"), address("registration"));
    // From here on every log line meets a broken pipe.
    drop(log);
    let mut process = Running { child };
    let plan = Plan::new(Mode::Write);
    let prefill = Engine::start(plan.settings(Role::Prefill, registration)).await.unwrap();
    let decode = Engine::start(plan.settings(Role::Decode, registration)).await.unwrap();
    for number in 0..3 {
        until("an answer without a log", || async {
            let request = client().post(format!("http://{http}/v1/completions"));
            let sent = request.body(completion(&format!("prompt {number}"), 4, false).to_string()).send().await;
            match sent.map_err(|error| error.to_string())?.status().as_u16() {
                200 => Ok(()),
                status => Err(status.to_string()),
            }
        })
        .await;
    }
    // A measure of work, not of time: a process that spins on its broken pipe uses hundreds of ticks.
    let before = ticks(process.child.id());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let used = ticks(process.child.id()) - before;
    assert!(used < 100, "{used} ticks while idle");
    process.signal("TERM");
    assert_eq!(process.wait().code(), Some(0));
    drop([prefill, decode]);
}

#[test]
fn closed_output_harms_no_command() {
    for arguments in ["check", "demo --no-wait", "--help", "--version"] {
        let line = format!("exec \"$0\" {arguments} >&- 2>&-");
        let ended = std::process::Command::new("sh").args(["-c", &line, BINARY]).status().unwrap();
        assert_eq!(ended.code(), Some(0), "{arguments}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sim_prints_where_its_engines_are() {
    let proxy = Proxy::start(&[(moriio_proxy::settings::options::Key::DecodeTokenBudget, "exact")]);
    let registration = proxy.registration.to_string();
    let arguments = ["sim", "--prefill", "1", "--decode", "1", "--mode", "read", "--ping-interval", "1s"];
    let mut command = command(&arguments);
    command.args(["--registration", registration.as_str(), "--token-delay", "0"]).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut process = Running { child };
    for role in ["prefill", "decode"] {
        let line = lines.next().unwrap().unwrap();
        let url = line.split(' ').find(|word| word.starts_with("http://")).expect(&line);
        assert!(line.starts_with(role), "{line}");
        assert_eq!(client().get(format!("{url}/health")).send().await.unwrap().status(), 200);
    }
    until("a usable pair", || async {
        let (status, body) = proxy.ready().await;
        (status == 200).then_some(()).ok_or_else(|| body.to_string())
    })
    .await;
    generate(&proxy, "engines in another process", 7, true).await;
    process.signal("TERM");
    assert_eq!(process.wait().code(), Some(0));
    proxy.finish().await;
}

#[test]
fn the_demo_ends_well_and_without_colour() {
    let demo = run(&["demo", "--no-wait"], &[]);
    let shown = text(&demo.stdout);
    assert_eq!(demo.status.code(), Some(0), "{shown}{}", text(&demo.stderr));
    for word in ["READ", "WRITE", "transfer_id", "x-request-id", "rank 0", "every block is free again"] {
        assert!(shown.contains(word), "{word}: {shown}");
    }
    assert!(!shown.contains("WRONG") && !shown.contains('\x1b'), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_serves_until_it_is_stopped() {
    let mut command = command(&["demo", "--port", "0"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut process = Running { child };
    let mut shown = String::new();
    while !shown.contains("Serving until Ctrl-C") {
        assert!(lines.read_line(&mut shown).unwrap() > 0, "ended early: {shown}");
    }
    let line = shown.lines().find(|line| line.trim_start().starts_with("curl -N ")).expect("a line to try");
    let url = line.split_whitespace().nth(2).unwrap();
    let request = client().post(url).body(completion("Once upon a time", 4, false).to_string());
    assert_eq!(request.send().await.unwrap().status(), 200);
    process.signal("INT");
    let _ = lines.read_to_string(&mut shown);
    assert_eq!(process.wait().code(), Some(0));
}
