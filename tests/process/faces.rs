//! The binary as another program: by a link of its name, or by an option that only it has.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output};

use moriio_proxy::sim::{Fault, FaultKind, Mode, Settings, expected_text};
use serde_json::{Value, json};

use super::{ask, pair, text};
use crate::support::binary::{BINARY, Served, command, command_at};
use crate::support::{Answer, client, completion, until};

const PORTS: [&str; 4] = ["--port", "0", "--vllm-discovery-address", "127.0.0.1:0"];
const MORIIO: [&str; 3] = ["--vllm-pd-disaggregation", "--kv-connector", "moriio"];

/// The binary under the name of vllm-router, as a launcher's image would have it on PATH.
struct Link {
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Link {
    fn new() -> Link {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vllm-router");
        std::os::unix::fs::symlink(BINARY, &path).unwrap();
        Link { path, _folder: folder }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        command_at(&self.path, arguments)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }
}

/// The lines of a log that are not about the start in general.
fn messages(log: &str, level: &str) -> Vec<Value> {
    // The last line may not be whole yet.
    let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let lines = whole.lines().map(|line| serde_json::from_str::<Value>(line).expect(line));
    lines.filter(|line| line["level"] == level).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_named_vllm_router_serves_as_that_program() {
    let link = Link::new();
    let base = [
        &PORTS[..],
        &MORIIO,
        &["--log-format", "json", "--policy", "consistent_hash", "--decode-policy", "kv_aware", "--log-dir", "/x"],
    ]
    .concat();
    let mut proxy = Served::launch(link.command(&base));
    assert!(proxy.http.ip().is_loopback(), "{}", proxy.http);
    let health = || async { client().get(proxy.url("/health")).send().await.unwrap().status().as_u16() };
    assert_eq!(health().await, 503);
    let engines = pair(&proxy, Mode::Write, |_| {}).await;
    assert_eq!(health().await, 200);
    for (count, stream) in [(1, false), (6, false), (6, true), (40, true)] {
        let answer = Answer::of(ask(&proxy, &completion("a prompt", count, stream)).await).await;
        assert_eq!((answer.status, answer.text()), (200, expected_text(&json!("a prompt"), count)));
    }
    drop(engines);
    assert_eq!(health().await, 200, "it never falls back");
    proxy.process.signal("TERM");
    let (code, log) = proxy.finish();
    assert_eq!(code, Some(0), "{log}");
    let told = messages(&log, "INFO").into_iter().filter(|line| line["face"] == "vllm-router").collect::<Vec<_>>();
    assert_eq!(told.len(), 1, "{log}");
    let defaults = told[0]["defaults"].as_str().unwrap();
    assert!(
        defaults.starts_with("host=127.0.0.1 metrics-host=127.0.0.1 prefix-memory=32MiB decode-token-budget=exact"),
        "{defaults}"
    );
    let warned: Vec<Value> = messages(&log, "WARN").into_iter().map(|line| line["message"].clone()).collect();
    for said in ["--decode-policy: not available, as if it were not given", "--log-dir: taken, has no effect"] {
        assert!(warned.contains(&json!(said)), "{said}: {warned:?}");
    }
}

/// As there, engines get the router's key, and what clients put into their header goes nowhere.
#[tokio::test(flavor = "multi_thread")]
async fn engines_get_the_routers_key_whatever_a_client_sends() {
    let keyed = |settings: &mut Settings| settings.api_key = Some(String::from("engines-own"));
    let send = async |proxy: &Served| {
        let request = client().post(proxy.url("/v1/completions")).bearer_auth("EMPTY");
        let body = completion("a prompt", 3, false).to_string();
        request.header("content-type", "application/json").body(body).send().await.unwrap().status().as_u16()
    };
    let link = Link::new();
    let base = [&PORTS[..], &MORIIO, &["--log-format", "json", "--api-key", "engines-own"]].concat();
    let proxy = Served::launch(link.command(&base));
    let engines = pair(&proxy, Mode::Read, keyed).await;
    assert_eq!(ask(&proxy, &completion("a prompt", 3, false)).await.status(), 200);
    assert_eq!(send(&proxy).await, 200);
    drop(engines);
    // Under its own name the client's credential is its own affair.
    let mut native = command(&["--host", "127.0.0.1", "--port", "0", "--ping-port", "0", "--log-format", "json"]);
    native.env("OPENAI_API_KEY", "engines-own");
    let proxy = Served::launch(native);
    let engines = pair(&proxy, Mode::Read, keyed).await;
    assert_eq!(ask(&proxy, &completion("a prompt", 3, false)).await.status(), 200);
    assert_eq!(send(&proxy).await, 401);
    drop(engines);
}

#[test]
fn the_link_checks_helps_and_refuses() {
    let link = Link::new();
    let check = link.run(&["check", "--request-timeout-secs", "90", "--api-key", "hush", "--profile"]);
    let (printed, told) = (text(&check.stdout), text(&check.stderr));
    assert!(check.status.success(), "{told}");
    let shown: Vec<Vec<&str>> = printed.lines().map(|line| line.split_whitespace().collect()).collect();
    let values = [("host", "127.0.0.1"), ("prefill-timeout", "90s"), ("OPENAI_API_KEY", "***"), ("api-key", "none")];
    for (name, value) in values {
        assert!(shown.contains(&vec![name, value]), "{name}: {printed}");
    }
    assert!(told.contains("warning: --profile: taken, has no effect"), "{told}");
    assert!(!printed.contains("hush") && !told.contains("hush"));
    let help = link.run(&["--help"]);
    assert!(help.status.success());
    // A launcher looks for these two words before it starts anything.
    for word in ["moriio", "--moriio-dp-size"] {
        assert!(text(&help.stdout).contains(word), "{word}");
    }
    assert!(text(&link.run(&["--version"]).stdout).starts_with("moriio-proxy "));
    let refused = link.run(&["--mini-lb", "--port", "x", "--worker-urls", "http://a:1"]);
    let told = text(&refused.stderr);
    assert_eq!((refused.status.code(), told.lines().count()), (Some(2), 3), "{told}");
    assert_eq!(link.run(&["--nonsense"]).status.code(), Some(2));
    assert_eq!(link.run(&["demo"]).status.code(), Some(2), "it has no demonstration under that name");
    let native = command(&["check", "--profile"]).output().unwrap();
    assert_eq!(native.status.code(), Some(2), "an option without effect is refused under its own name");
}

/// As AMD's job script starts vllm-router, with free ports.
#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_of_vllm_router_is_accepted() {
    let mut launched = command(&[
        "--vllm-pd-disaggregation",
        "--kv-connector",
        "moriio",
        "--vllm-discovery-address",
        "127.0.0.1:0",
        "--port",
        "0",
        "--host",
        "127.0.0.1",
        "--policy",
        "round_robin",
        "--prefill-policy",
        "random",
        "--decode-policy",
        "power_of_two",
        "--log-level",
        "info",
    ]);
    launched.env("PROXY_LOG_FORMAT", "json");
    let mut proxy = Served::launch(launched);
    let engines = pair(&proxy, Mode::Write, |_| {}).await;
    let answer = Answer::of(ask(&proxy, &completion("a prompt", 6, false)).await).await;
    assert_eq!(answer.text(), expected_text(&json!("a prompt"), 6));
    proxy.process.signal("TERM");
    assert_eq!(proxy.finish().0, Some(0));
    drop(engines);
}

/// A port of its own for metrics, only where it is asked for, and the headers that a client's id is looked for in.
#[tokio::test(flavor = "multi_thread")]
async fn metrics_have_a_port_where_one_is_given_and_ids_a_header() {
    let link = Link::new();
    let base = [&PORTS[..], &MORIIO, &["--log-format", "json"]].concat();
    let line = [&base[..], &["--prometheus-port", "0", "--request-id-headers", "X-Trace-Id", "x-request-id"]].concat();
    let mut proxy = Served::launch(link.command(&line));
    let serves =
        messages(&proxy.log(), "INFO").into_iter().find(|line| line["message"] == "moriio-proxy serves").unwrap();
    let scraped: std::net::SocketAddr = serves["metrics"].as_str().unwrap().parse().unwrap();
    assert!(scraped.ip().is_loopback() && scraped != proxy.http, "{scraped}");
    let engines = pair(&proxy, Mode::Write, |_| {}).await;
    for (headers, id) in
        [(["x-trace-id", "other"], "one"), (["x-request-id", "x-trace-id"], "two"), (["x-request-id", "other"], "one")]
    {
        let request = client().post(proxy.url("/v1/completions")).header(headers[0], "one").header(headers[1], "two");
        let answer = request.body(completion("a prompt", 3, false).to_string()).send().await.unwrap();
        assert_eq!(
            (answer.status().as_u16(), answer.headers()["x-request-id"].to_str().unwrap()),
            (200, id),
            "{headers:?}"
        );
    }
    let get = async |url: String| {
        let answer = client().get(url).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let (status, text) = get(format!("http://{scraped}/metrics")).await;
    assert_eq!((status, crate::support::client::sum(&text, "moriio_exchanges_total")), (200, 3.0), "{text}");
    assert!(text.contains("moriio_connections "), "{text}");
    assert_eq!(get(format!("http://{scraped}/ready")).await.0, 404, "metrics and nothing else");
    assert_eq!(get(proxy.url("/metrics")).await.0, 200);
    // A second proxy that wants the same port serves without.
    let port = scraped.port().to_string();
    let mut second = Served::launch(link.command(&[&base[..], &["--prometheus-port", &port]].concat()));
    assert_eq!(get(second.url("/metrics")).await.0, 200);
    let warned = messages(&second.log(), "WARN");
    let told =
        warned.iter().filter(|line| line["message"].as_str().is_some_and(|said| said.contains("cannot serve metrics")));
    assert_eq!(told.count(), 1, "{warned:?}");
    // The port closes with the others, so that a successor finds it free while a stream runs to its end.
    engines[1].set_fault(Fault::always(FaultKind::HangAfterTokens { tokens: 2 }));
    let mut stream = ask(&proxy, &completion("a prompt", 9, true)).await;
    assert!(stream.chunk().await.unwrap().is_some());
    proxy.process.signal("TERM");
    until("the port closed", || async {
        tokio::net::TcpStream::connect(scraped).await.map_or(Ok(()), |_| Err(String::from("it is open")))
    })
    .await;
    assert!(proxy.process.child.try_wait().unwrap().is_none(), "the stream is cut");
    drop((stream, engines));
    second.process.signal("TERM");
    for proxy in [&mut proxy, &mut second] {
        let (code, log) = proxy.finish();
        assert_eq!(code, Some(0), "{log}");
    }
}

/// What launchers look for in vllm-router's output and ask it of its engines.
#[tokio::test(flavor = "multi_thread")]
async fn engines_are_announced_and_listed_as_there() {
    let link = Link::new();
    let base = [&PORTS[..], &MORIIO, &["--log-format", "json"]].concat();
    let said = ["--engine-ttl", "1s", "--intra-node-data-parallel-size", "8", "--decode", "http://10.0.0.9:8000"];
    let mut proxy = Served::launch(link.command(&[&base[..], &said].concat()));
    let get = async |path: &str| {
        let answer = client().get(proxy.url(path)).send().await.unwrap();
        (answer.status().as_u16(), serde_json::from_str::<Value>(&answer.text().await.unwrap()).unwrap())
    };
    let counts =
        |prefill: usize, decode: usize| json!({"prefill_count": prefill, "decode_count": decode, "regular_count": 0});
    assert_eq!(get("/workers").await, (200, json!({"total": 0, "workers": [], "stats": counts(0, 0)})));
    assert_eq!(get("/list_workers").await, (200, json!({"urls": []})));
    assert_eq!(get("/get_loads").await, (200, json!({"loads": {}, "errors": []})));
    let [prefill, decode] = pair(&proxy, Mode::Write, |_| {}).await;
    let urls = [&prefill, &decode].map(|engine| format!("http://{}", engine.http_address()));
    decode.set_fault(Fault::always(FaultKind::HangAfterTokens { tokens: 2 }));
    let mut stream = ask(&proxy, &completion("a prompt", 9, true)).await;
    assert!(stream.chunk().await.unwrap().is_some());
    let worker = |url: &str, kind: &str, load: usize| {
        json!({"url": url, "model_id": "unknown", "worker_type": kind, "is_healthy": true, "load": load,
               "connection_mode": "Http", "priority": 50, "cost": 1.0})
    };
    let workers = [worker(&urls[0], "prefill", 0), worker(&urls[1], "decode", 1)];
    until("prefill is done", || async {
        let found = get("/workers").await;
        let wanted = (200, json!({"total": 2, "workers": workers, "stats": counts(1, 1)}));
        (found == wanted).then_some(()).ok_or_else(|| format!("{found:?}"))
    })
    .await;
    assert_eq!(get("/list_workers").await, (200, json!({"urls": urls})));
    let loads = json!({format!("prefill_{}", urls[0]): 0, format!("decode_{}", urls[1]): 1});
    assert_eq!(get("/get_loads").await, (200, json!({"loads": loads, "errors": []})));
    drop(stream);
    let lines = |proxy: &Served, what: &str| {
        let printed = proxy.printed();
        printed.lines().filter(|line| line.contains(what)).map(str::to_owned).collect::<Vec<_>>()
    };
    for (role, engine) in [("Prefill", &prefill), ("Decode", &decode)] {
        let told = lines(&proxy, &format!("Add {role} [HTTP:"));
        let wanted = format!("🔵Add {role} [HTTP:{}, ZMQ:host:127.0.0.1,handshake:", engine.http_address());
        assert!(told.len() == 1 && told[0].starts_with(&wanted) && told[0].ends_with(']'), "{told:?}");
    }
    let gone = decode.http_address();
    drop(decode);
    until("the line of the one that left", || async {
        let told = lines(&proxy, "Remove ");
        let wanted = format!("🔴Remove Decode [HTTP:{gone}, ZMQ:");
        let found = told.len() == 1 && told[0].starts_with(&wanted);
        found.then_some(()).ok_or_else(|| format!("{told:?}"))
    })
    .await;
    assert_eq!(get("/workers").await.1["stats"], counts(1, 0));
    drop(prefill);
    proxy.process.signal("TERM");
    let (code, log) = proxy.finish();
    assert_eq!(code, Some(0), "{log}");
    let mut told: Vec<Value> = messages(&log, "WARN").into_iter().filter(|line| !line["said"].is_null()).collect();
    told.iter_mut().for_each(|line| *line = json!([line["role"], line["dp_size"], line["said"]]));
    let wanted = ["prefill", "decode"].map(|role| json!([role, 1, "--intra-node-data-parallel-size 8"]));
    assert!(wanted.iter().all(|line| told.contains(line)), "{told:?}");
    assert!(told.contains(&json!(["decode", 1, "--decode of another address"])) && told.len() == 3, "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn under_its_own_name_it_prints_nothing_and_lists_no_workers() {
    let mut proxy = Served::start(&[]);
    let engines = pair(&proxy, Mode::Read, |_| {}).await;
    for path in ["/workers", "/list_workers", "/get_loads"] {
        assert_eq!(client().get(proxy.url(path)).send().await.unwrap().status(), 404, "{path}");
    }
    drop(engines);
    proxy.process.signal("TERM");
    assert_eq!((proxy.finish().0, proxy.printed().as_str()), (Some(0), ""));
}

/// Whoever started it may have stopped reading what it prints.
#[tokio::test(flavor = "multi_thread")]
async fn an_output_that_nobody_reads_holds_nothing_up() {
    let (unread, mut output) = std::io::pipe().unwrap();
    // As much as fits.
    output.write_all(&[b'x'; 1 << 16]).unwrap();
    let base = [&PORTS[..], &MORIIO, &["--log-format", "json", "--engine-ttl", "1s"]].concat();
    let link = Link::new();
    let mut proxy = Served::launch_into(link.command(&base), output.into(), tempfile::NamedTempFile::new().unwrap());
    let [prefill, decode] = pair(&proxy, Mode::Write, |_| {}).await;
    assert_eq!(ask(&proxy, &completion("a prompt", 3, false)).await.status(), 200);
    drop((prefill, decode));
    until("both gone", || async {
        let workers = client().get(proxy.url("/list_workers")).send().await.unwrap().text().await.unwrap();
        if workers == r#"{"urls":[]}"# { Ok(()) } else { Err(workers) }
    })
    .await;
    proxy.process.signal("TERM");
    let (code, log) = proxy.finish();
    assert_eq!(code, Some(0), "{log}");
    drop(unread);
}

/// Under its own name a port that was asked for is a port that must be had.
#[test]
fn a_port_for_metrics_that_is_taken_is_a_mistake() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let base = ["--host", "127.0.0.1", "--port", "0", "--ping-port", "0", "--metrics-port"];
    let ended = command(&[&base[..], &[&port]].concat()).output().unwrap();
    let told = text(&ended.stderr);
    assert_eq!(ended.status.code(), Some(2), "{told}");
    assert!(told.contains("--metrics-host, --metrics-port"), "{told}");
}
