//! The built binary as scripts and operators meet it: what it prints, refuses, logs and survives.

mod faces;
mod output;
mod python_proxies;
mod stop;

use std::net::TcpListener;
use std::process::Output;

use moriio_proxy::sim::{Engine, Mode, Role, Settings, expected_text};
use serde_json::{Value, json};

use crate::support::binary::{Served, command};
use crate::support::{Answer, Plan, client, completion, until};

fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = command(arguments);
    command.envs(variables.iter().copied());
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A prefill and a decode engine of this process, registered with a proxy process and ready.
async fn pair(proxy: &Served, mode: Mode, adjust: fn(&mut Settings)) -> [Engine; 2] {
    let mut plan = Plan::new(mode);
    plan.adjust = adjust;
    let prefill = Engine::start(plan.settings(Role::Prefill, proxy.registration)).await.unwrap();
    let decode = Engine::start(plan.settings(Role::Decode, proxy.registration)).await.unwrap();
    until("both engines ready", || async {
        let answer = client().get(proxy.url("/ready")).send().await.map_err(|e| e.to_string())?;
        (answer.status() == 200).then_some(()).ok_or_else(|| answer.status().to_string())
    })
    .await;
    [prefill, decode]
}

async fn ask(proxy: &Served, body: &Value) -> reqwest::Response {
    let request = client().post(proxy.url("/v1/completions")).header("content-type", "application/json");
    request.body(body.to_string()).send().await.unwrap()
}

/// Where a system has no thread left, those for large bodies and lookups must be there already.
#[tokio::test(flavor = "multi_thread")]
async fn threads_for_what_blocks_are_there_for_good() {
    let served = tokio::task::spawn_blocking(|| Served::start(&[])).await.unwrap();
    // A thread without work would otherwise end after ten seconds.
    tokio::time::sleep(std::time::Duration::from_secs(12)).await;
    let tasks = std::fs::read_dir(format!("/proc/{}/task", served.process.child.id())).unwrap();
    let names = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap());
    let waiting = names.filter(|name| name.trim() == "tokio-rt-worker").count();
    assert_eq!(waiting, 3, "one for clients, one for membership, one for notices");
}

#[test]
fn help_and_version_go_to_stdout() {
    let help = run(&["--help"], &[]);
    assert!(help.status.success());
    for word in ["serve", "check", "sim", "demo", "--drain-timeout", "PROXY_HTTP_PORT", "[default: 30000]"] {
        assert!(text(&help.stdout).contains(word), "{word}: {}", text(&help.stdout));
    }
    let version = run(&["--version"], &[]);
    assert!(version.status.success());
    assert_eq!(text(&version.stdout), format!("moriio-proxy {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn check_prints_what_holds_and_opens_nothing() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let variables = [("PROXY_HTTP_PORT", port.as_str()), ("PROXY_API_KEY", "the-secret")];
    let check = run(&["check", "--stream-idle-timeout", "12"], &variables);
    let printed = text(&check.stdout);
    assert!(check.status.success(), "{}", text(&check.stderr));
    let value = |name: &str| {
        let line = printed.lines().find(|line| line.split(' ').next() == Some(name));
        line.and_then(|line| line.split_whitespace().nth(1)).unwrap_or("absent").to_owned()
    };
    assert_eq!(value("port"), port);
    assert_eq!(value("stream-idle-timeout"), "12s");
    assert_eq!(value("fingerprint").len(), 16);
    assert!(!printed.contains("the-secret") && value("api-key") == "***", "{printed}");
}

#[test]
fn every_mistake_is_one_line_that_names_its_place() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let port = port.as_str();
    type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a str);
    let cases: [Case; 18] = [
        (&["--bogus"], &[], "--bogus"),
        (&["--prot", "1"], &[], "--port"),
        (&["serve", "--port"], &[], "--port"),
        (&["surplus"], &[], "surplus"),
        (&["--port", "http"], &[], "--port"),
        (&["serve", "--port", "65536"], &[], "--port"),
        (&["--host", "nowhere.invalid"], &[], "--host"),
        (&["--host", "127.0.0.1", "--port", "0"], &[("PROXY_PING_HOST", "nowhere.invalid")], "PROXY_PING_HOST"),
        (&["--port", "0", "--vllm-discovery-address", "nowhere.invalid:1"], &[], "--vllm-discovery-address"),
        (&["--host", "10.0.0.300"], &[], "--host"),
        (&["--cors-allow-origin", "https://a.example/"], &[], "--cors-allow-origin"),
        (&["check", "--policy", "best"], &[], "--policy"),
        (&["--engine-allow", "10.0.0.0/99"], &[], "--engine-allow"),
        (&[], &[("PROXY_HTTP_PORT", "eighty")], "PROXY_HTTP_PORT"),
        (&["check"], &[("PROXY_STREAM_IDLE_TIMEOUT", "long")], "PROXY_STREAM_IDLE_TIMEOUT"),
        (&["--hand-over-limit", "61s"], &[], "--hand-over-limit"),
        (&["--host", "127.0.0.1", "--port", port, "--ping-port", "0"], &[], "--port"),
        (&["--host", "127.0.0.1", "--port", "0", "--ping-port", port], &[], "--ping-port"),
    ];
    for (arguments, variables, place) in cases {
        let refused = run(arguments, variables);
        let told = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{arguments:?} {variables:?}: {told}");
        // A small limit on open files may have been warned of before.
        let lines: Vec<&str> = told.lines().filter(|line| !line.contains(" WARN ")).collect();
        assert_eq!(lines.len(), 1, "{arguments:?} {variables:?}: {told}");
        assert!(lines[0].starts_with("moriio-proxy: ") && lines[0].contains(place), "{place}: {told}");
        assert_eq!(text(&refused.stdout), "");
    }
    let taken_port = run(&["--host", "127.0.0.1", "--port", port, "--ping-port", "0"], &[]);
    assert!(text(&taken_port.stderr).contains(port), "{}", text(&taken_port.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_may_be_names() {
    // In capitals it is a name like any other, and known everywhere.
    let arguments =
        ["--host", "LOCALHOST", "--port", "0", "--vllm-discovery-address", "LOCALHOST:0", "--log-format", "json"];
    let mut proxy = Served::launch(command(&arguments));
    assert!(
        proxy.http.ip().is_loopback() && proxy.registration.ip().is_loopback(),
        "{} {}",
        proxy.http,
        proxy.registration
    );
    let engines = pair(&proxy, Mode::Read, |_| {}).await;
    assert_eq!(ask(&proxy, &completion("by name", 3, false)).await.status(), 200);
    proxy.process.signal("TERM");
    let (code, log) = proxy.finish();
    assert_eq!(code, Some(0), "{log}");
    drop(engines);
    let check = run(&["check", "--host", "nowhere.invalid", "--ping-host", "[::1]"], &[]);
    let printed = text(&check.stdout);
    assert!(check.status.success(), "{}", text(&check.stderr));
    let shown: Vec<Vec<&str>> = printed.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(shown.contains(&vec!["host", "nowhere.invalid"]) && shown.contains(&vec!["ping-host", "::1"]), "{printed}");
}

#[test]
fn several_mistakes_are_told_together() {
    let refused = run(&["check", "--port", "x", "--retries", "-1"], &[("PROXY_LOG_LEVEL", "loud")]);
    let told = text(&refused.stderr);
    let places: Vec<bool> =
        ["--port", "--retries", "PROXY_LOG_LEVEL"].iter().map(|place| told.contains(place)).collect();
    assert_eq!(places, [true; 3], "{told}");
    assert_eq!(told.lines().count(), 3, "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_variables_are_one_warning() {
    let mut launched = command(&["--host", "127.0.0.1", "--port", "0", "--ping-port", "0", "--log-format", "json"]);
    launched.env("PROXY_ANOTHER_TOOL", "1").env("PROXY_YET_ANOTHER", "2");
    let mut proxy = Served::launch(launched);
    assert_eq!(client().get(proxy.url("/liveness")).send().await.unwrap().status(), 200);
    proxy.process.signal("TERM");
    let (code, log) = proxy.finish();
    assert_eq!(code, Some(0));
    let warnings: Vec<&str> = log.lines().filter(|line| line.contains("unknown")).collect();
    assert_eq!(warnings.len(), 1, "{log}");
    assert!(warnings[0].contains("PROXY_ANOTHER_TOOL") && warnings[0].contains("PROXY_YET_ANOTHER"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_log_line_an_exchange_and_no_secret_in_any() {
    let base =
        ["--host", "127.0.0.1", "--port", "0", "--ping-port", "0", "--log-format", "json", "--log-level", "trace"];
    let mut launched = command(&base);
    launched.env("PROXY_API_KEY", "key-of-the-clients").env("OPENAI_API_KEY", "key-of-the-engines");
    let mut proxy = Served::launch(launched);
    let engines = pair(&proxy, Mode::Read, |_| {}).await;
    let send = |body: Value| {
        let request = client().post(proxy.url("/v1/completions")).bearer_auth("key-of-the-clients");
        let request = request.header("content-type", "application/json").header("x-request-id", "mine-7");
        let request = request.body(body.to_string());
        async { Answer::of(request.send().await.unwrap()).await }
    };
    let prompt = "whisper this to nobody";
    let good = send(completion(prompt, 9, true)).await;
    assert_eq!(good.status, 200, "{}", good.body);
    let mut siblings = completion(prompt, 9, false);
    siblings["n"] = json!(99);
    assert_eq!(send(siblings).await.status, 400);
    let unauthorized = Answer::of(ask(&proxy, &completion(prompt, 9, false)).await).await;
    assert_eq!(unauthorized.status, 401);
    for (key, status) in [("key-of-the-clients", 200), ("key-of-somebody", 401)] {
        let models = client().get(proxy.url("/v1/models")).header("x-api-key", key).send().await.unwrap();
        assert_eq!(models.status(), status);
    }
    for path in ["/health", "/ready", "/metrics"] {
        let said = client().get(proxy.url(path)).send().await.unwrap().text().await.unwrap();
        assert!(!said.contains("key-of"), "{said}");
    }
    proxy.process.signal("TERM");
    let (code, log) = proxy.finish();
    assert_eq!(code, Some(0));
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let exchanges: Vec<&Value> = lines.iter().filter(|line| line["target"] == "exchange").collect();
    let statuses: Vec<&Value> = exchanges.iter().map(|line| &line["status"]).collect();
    assert_eq!(statuses, [&json!(200), &json!(400), &json!(401)], "{log}");
    assert_eq!((&exchanges[0]["ended"], &exchanges[0]["client_id"]), (&json!("complete"), &json!("mine-7")));
    let voice = expected_text(&json!(prompt), 8);
    assert_eq!(good.text(), voice);
    for secret in ["whisper", "key-of", voice.as_str()] {
        assert!(!log.contains(secret), "{secret}: {log}");
    }
    drop(engines);
}
