//! The binary as the Python proxies: by the files in `deploy/`, as launchers run them.

mod errors;
mod profile;

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use moriio_proxy::sim::{Mode, expected_text};
use serde_json::{Value, json};

use super::{ask, pair, text};
use crate::support::binary::{BINARY, Served, command_at, free_ports};
use crate::support::{Answer, client, completion, until_true};

const TOY: &str = "moriio_proxy.py";
const MAD: &str = "moriio_pd_proxy.py";

fn deploy(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file)
}

/// `python3 FILE ARGUMENTS`, with a log that tests can read, on loopback.
fn python(file: &Path, line: &str) -> Command {
    let file = file.to_str().unwrap();
    let arguments: Vec<&str> = [file].into_iter().chain(line.split_whitespace()).collect();
    let mut command = command_at("python3".as_ref(), &arguments);
    command.env("MORIIO_PROXY_BINARY", BINARY).env("PROXY_LOG_FORMAT", "json").env("PROXY_HOST", "127.0.0.1");
    command
}

/// One of the two on free ports, with more options.
fn started(file: &str, line: &str) -> Served {
    let ports = if file == TOY { "--port 0 --ping-port 0" } else { "--port 0 --discovery-port 0" };
    Served::launch(python(&deploy(file), &format!("{ports} {line}")))
}

fn lines(log: &str) -> Vec<Value> {
    // The last line may not be whole yet.
    let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| serde_json::from_str::<Value>(line).expect(line)).collect()
}

fn messages(log: &str, level: &str) -> Vec<String> {
    let of_level = lines(log).into_iter().filter(|line| line["level"] == level);
    of_level.filter_map(|line| line["message"].as_str().map(str::to_owned)).collect()
}

/// What the process is: its file, and the words that it was started by.
fn process(pid: u32) -> (PathBuf, String) {
    let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    (std::fs::read_link(format!("/proc/{pid}/exe")).unwrap(), line.replace('\0', " "))
}

fn stop(proxy: &mut Served) -> String {
    proxy.process.signal("TERM");
    let (code, log) = proxy.finish();
    assert_eq!(code, Some(0), "{log}");
    log
}

/// As MAD starts its own proxy and waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn mads_launcher_finds_what_it_waits_for() {
    let [port, discovery] = free_ports();
    let mut launched = python(
        &deploy(MAD),
        &format!(
            "--port {port} --discovery-port {discovery} --use-discovery --dp-size-local 8 --expect-prefill 1 --expect-decode 1 \
             --log-level DEBUG --max-concurrency 512 --prefill http://10.0.0.1:20005 --decode http://10.0.0.2:20005"
        ),
    );
    launched.envs([("PROXY_TYPE", "moriio_toy"), ("PROXY_LOG_LEVEL", "DEBUG"), ("PROXY_MAX_CONCURRENCY", "512")]);
    let mut proxy = Served::launch(launched);
    until_true("the line of the gate", || proxy.printed().contains("ZMQ discovery listening")).await;
    assert_eq!((proxy.http.port(), proxy.registration.port()), (port, discovery));
    let (file, line) = process(proxy.process.child.id());
    assert_eq!(file, Path::new(BINARY).canonicalize().unwrap());
    assert!(line.starts_with(deploy(MAD).to_str().unwrap()), "{line}");
    let status = async |path: &str| client().get(proxy.url(path)).send().await.unwrap().status().as_u16();
    assert_eq!((status("/health").await, status("/ready").await), (200, 503));
    let engines = pair(&proxy, Mode::Write, |_| {}).await;
    assert_eq!(status("/ready").await, 200);
    for line in ["Registered Prefill", "Registered Decode"] {
        until_true(line, || proxy.printed().matches(line).count() == 1).await;
    }
    // Its first request names no model.
    let mut body = json!({"prompt": "a prompt", "temperature": 0, "max_tokens": 10, "top_k": 1});
    let answer = Answer::of(ask(&proxy, &body).await).await;
    assert_eq!((answer.status, answer.text()), (200, expected_text(&json!("a prompt"), 9)));
    body["stream"] = json!(true);
    let answer = Answer::of(ask(&proxy, &body).await).await;
    assert_eq!((answer.status, answer.text()), (200, expected_text(&json!("a prompt"), 9)));
    let log = stop(&mut proxy);
    assert!(!log.contains("a prompt"), "{log}");
    let warned = messages(&log, "WARN");
    assert!(warned.iter().all(|line| !line.contains("unknown")), "{warned:?}");
    // Its engines are at other addresses than the command line has.
    let said: BTreeSet<String> =
        lines(&log).iter().filter_map(|line| line["said"].as_str().map(str::to_owned)).collect();
    let wanted = ["--prefill", "--decode"].map(|option| format!("{option} of another address"));
    assert_eq!(said, BTreeSet::from(wanted), "{log}");
    assert_eq!(messages(&log, "INFO").iter().filter(|line| line.starts_with("the expected engines")).count(), 1);
    drop(engines);
}

/// What is over the limit waits for its turn.
#[tokio::test(flavor = "multi_thread")]
async fn requests_over_mads_limit_are_not_refused() {
    let mut proxy = started(MAD, "--max-concurrency 1");
    let engines = pair(&proxy, Mode::Write, |_| {}).await;
    let asked = (0..8).map(|_| async { ask(&proxy, &completion("a prompt", 5, true)).await.status().as_u16() });
    assert_eq!(futures::future::join_all(asked).await, [200; 8]);
    stop(&mut proxy);
    drop(engines);
}

#[test]
fn a_taken_port_is_told_in_the_words_that_are_looked_for() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    for line in [format!("--port 0 --discovery-port {port}"), format!("--port {port} --discovery-port 0")] {
        let ended = python(&deploy(MAD), &line).output().unwrap();
        let told = text(&ended.stderr);
        assert_eq!(ended.status.code(), Some(2), "{told}");
        assert!(told.contains("Address already in use"), "{told}");
        assert!(!text(&ended.stdout).contains("ZMQ discovery listening"), "{}", text(&ended.stdout));
    }
}

#[test]
fn what_cannot_start_says_why_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let alone = folder.path().join(TOY);
    std::fs::copy(deploy(TOY), &alone).unwrap();
    let run = |file: &Path, binary: &str, line: &str| {
        let mut command = python(file, line);
        let path = "/usr/local/bin:/usr/bin:/bin";
        let ended = command.env("MORIIO_PROXY_BINARY", binary).env("PATH", path).output().unwrap();
        (ended.status.code(), text(&ended.stderr), text(&ended.stdout))
    };
    for (binary, why) in [("", "MORIIO_PROXY_BINARY"), ("/nowhere/binary", "/nowhere/binary: No such file")] {
        let (code, told, _) = run(&alone, binary, "");
        assert_eq!((code, told.lines().count()), (Some(2), 1), "{told}");
        assert!(told.starts_with("moriio-proxy: ") && told.contains(why), "{told}");
    }
    for (line, why) in [("--no-use-discovery", "--no-use-discovery: refused: "), ("--port x", "--port: ")] {
        let (code, told, _) = run(&deploy(MAD), BINARY, line);
        assert_eq!((code, told.lines().count()), (Some(2), 1), "{told}");
        assert!(told.starts_with("moriio-proxy: ") && told.contains(why), "{told}");
    }
    // Beside the file it is found without being named, and a link of the toy's name is the toy.
    std::os::unix::fs::symlink(BINARY, folder.path().join("moriio-proxy")).unwrap();
    let link = folder.path().join("moriio_toy_proxy_server.py");
    std::os::unix::fs::symlink(&alone, &link).unwrap();
    let (code, told, printed) = run(&link, "", "check");
    assert_eq!(code, Some(0), "{told}");
    assert!(printed.lines().any(|line| line.split_whitespace().eq(["port", "10001"])), "{printed}");
}

/// As vLLM's pipeline starts the toy, and as InferenceX started its own before it took vllm-router.
#[tokio::test(flavor = "multi_thread")]
async fn the_toys_launchers_change_nothing() {
    let [port, discovery, old_port, old_discovery] = free_ports().map(|port: u16| port.to_string());
    let mut pipeline = python(&deploy(TOY), &format!("--port {port}"));
    let script = deploy(TOY).to_str().unwrap().to_owned();
    let variables = [("PROXY_IP", "127.0.0.1"), ("PROXY_PORT", &*port), ("PROXY_PING_PORT", &*discovery)];
    pipeline.envs(variables).env("PROXY_SCRIPT", script);
    let mut history = python(&deploy(TOY), "");
    let variables = [("PROXY_HTTP_PORT", &*old_port), ("PROXY_PING_PORT", &*old_discovery)];
    history.envs(variables).env("PROXY_STREAM_IDLE_TIMEOUT", "300");
    for (launched, http, registration) in [(pipeline, port, discovery), (history, old_port, old_discovery)] {
        let mut proxy = Served::launch(launched);
        let bound = [proxy.http, proxy.registration].map(|address| address.port().to_string());
        assert_eq!(bound, [http, registration]);
        let health = client().get(proxy.url("/health")).send().await.unwrap();
        assert_eq!(health.status(), 200, "from the start");
        let (_, line) = process(proxy.process.child.id());
        assert!(line.contains("moriio_proxy"), "pkill -f finds it: {line}");
        let engines = pair(&proxy, Mode::Read, |_| {}).await;
        let answer = Answer::of(ask(&proxy, &completion("a prompt", 8, true)).await).await;
        assert_eq!((answer.status, answer.text()), (200, expected_text(&json!("a prompt"), 7)));
        let log = stop(&mut proxy);
        assert!(messages(&log, "WARN").iter().all(|line| !line.contains("unknown")), "{log}");
        drop(engines);
    }
}

/// What a client says of ranks is ignored, with one note however often it says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_clients_rank_is_ignored_with_one_note() {
    for file in [TOY, MAD] {
        let mut proxy = started(file, "");
        let engines = pair(&proxy, Mode::Write, |settings| settings.dp = 2).await;
        let note = "X-data-parallel-rank is ignored";
        let send = async |rank: Option<&str>| {
            let mut request = client().post(proxy.url("/v1/completions")).header("content-type", "application/json");
            request = request.header("x-request-id", "niah-1");
            if let Some(rank) = rank {
                request = request.header("X-data-parallel-rank", rank);
            }
            request.body(completion("a prompt", 3, false).to_string()).send().await.unwrap().status().as_u16()
        };
        assert_eq!(send(None).await, 200);
        assert!(!proxy.log().contains(note));
        for rank in ["0", "0", "77", "none"] {
            assert_eq!(send(Some(rank)).await, 200);
        }
        let log = stop(&mut proxy);
        assert_eq!(log.matches(note).count(), 1, "{log}");
        let ranks: Vec<u64> = lines(&log).iter().filter_map(|line| line["rank"].as_u64()).collect();
        assert_eq!(ranks, [0, 1, 0, 1, 0], "{log}");
        drop(engines);
    }
}
