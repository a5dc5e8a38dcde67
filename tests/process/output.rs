//! What the binary prints, and what it does when nobody reads it.

use std::io::{self, BufRead, BufReader, Lines, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{ChildStderr, Stdio};
use std::time::Duration;

use moriio_proxy::sim::{Engine, Mode, Role};
use serde_json::Value;

use super::{run, text};
use crate::support::binary::{BINARY, Running, command};
use crate::support::client::sum;
use crate::support::{Plan, Proxy, client, completion, generate, until};

/// Ticks of processor time that a process has used.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// A proxy whose log is read no further than to the line that names its addresses.
struct Unread {
    process: Running,
    log: Lines<BufReader<ChildStderr>>,
    http: SocketAddr,
    registration: SocketAddr,
}

fn unread() -> Unread {
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
    Unread { process: Running { child }, log, http, registration }
}

/// Has `count` requests refused on one connection, so that each leaves a line with its number.
fn refused(http: SocketAddr, count: usize) {
    let mut connection = TcpStream::connect(http).unwrap();
    let mut answers = BufReader::new(connection.try_clone().unwrap());
    let reader = std::thread::spawn(move || {
        let mut statuses = 0;
        let mut line = String::new();
        while statuses < count && answers.read_line(&mut line).unwrap() > 0 {
            // A body ends without an end of line, so the next head stands behind it.
            statuses += usize::from(line.contains("HTTP/1.1 400 "));
            line.clear();
        }
        statuses
    });
    for number in 0..count {
        let id = format!("{number:0>120}");
        let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 2";
        connection.write_all(format!("{head}\r\nx-request-id: {id}\r\n\r\n[]").as_bytes()).unwrap();
    }
    assert_eq!(reader.join().unwrap(), count);
}

/// The numbers of refused requests, to the line that says how many lines are lost, or to the end.
fn numbers(log: impl Iterator<Item = io::Result<String>>) -> (Vec<u64>, u64) {
    let mut numbers = Vec::new();
    for line in log {
        let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
        numbers.extend(line["client_id"].as_str().map(|id| id.parse::<u64>().unwrap()));
        if let Some(lost) = line["lost"].as_u64() {
            return (numbers, lost);
        }
    }
    (numbers, 0)
}

#[test]
fn a_log_that_waits_is_written_whole_at_a_stop() {
    let Unread { mut process, log, http, .. } = unread();
    refused(http, 4000);
    process.signal("TERM");
    assert_eq!(numbers(log), ((0..4000).collect(), 0));
    assert_eq!(process.wait().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nobody_reads_delays_nobody_and_its_loss_is_told() {
    let Unread { mut process, log, http, registration } = unread();
    let lost = || async move {
        let metrics = client().get(format!("http://{http}/metrics")).send().await.unwrap().text().await.unwrap();
        sum(&metrics, "moriio_lines_lost_total") as u64
    };
    let mut sent = 0_u64;
    while lost().await < 100 {
        assert!(sent < 40_000, "nothing is lost");
        tokio::task::spawn_blocking(move || refused(http, 1000)).await.unwrap();
        sent += 1000;
    }
    let plan = Plan::new(Mode::Write);
    let prefill = Engine::start(plan.settings(Role::Prefill, registration)).await.unwrap();
    let decode = Engine::start(plan.settings(Role::Decode, registration)).await.unwrap();
    answered(http, "an answer beside a full pipe").await;
    assert_eq!(client().get(format!("http://{http}/health")).send().await.unwrap().status(), 200);
    let counted = lost().await;
    let (kept, said) = tokio::task::spawn_blocking(move || numbers(log)).await.unwrap();
    // A few lines beside those of refused requests are lost too.
    let all = kept.len() as u64 + said;
    assert!(said >= counted && (sent..sent + 20).contains(&all), "{} of {sent}, {counted}, {said}", kept.len());
    // What is kept are the first of them.
    assert!(kept.into_iter().zip(0..).all(|(number, place)| number == place % 1000), "lines in order");
    process.signal("TERM");
    process.wait();
    drop([prefill, decode]);
}

/// Waits until the proxy answers.
async fn answered(http: SocketAddr, prompt: &str) {
    until("an answer without a log", || async {
        let request = client().post(format!("http://{http}/v1/completions"));
        let sent = request.body(completion(prompt, 4, false).to_string()).send().await;
        match sent.map_err(|error| error.to_string())?.status().as_u16() {
            200 => Ok(()),
            status => Err(status.to_string()),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_stdout_and_stderr_are_survived() {
    let Unread { mut process, log, http, registration } = unread();
    // From here on every log line meets a broken pipe.
    drop(log);
    let plan = Plan::new(Mode::Write);
    let prefill = Engine::start(plan.settings(Role::Prefill, registration)).await.unwrap();
    let decode = Engine::start(plan.settings(Role::Decode, registration)).await.unwrap();
    for number in 0..3 {
        answered(http, &format!("prompt {number}")).await;
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
