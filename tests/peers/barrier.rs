//! The probes of job scripts against the real binary, from its start to its end.

use std::time::Duration;

use moriio_proxy::sim::{Engine, Fault, FaultKind, Mode, Role, Settings};
use serde_json::Value;

use super::agent::Agent;
use super::environment::python;
use crate::support::binary::Served;
use crate::support::{Answer, client, completion, until, until_true};

/// Lets the script probe a few rounds more.
async fn rounds(script: &mut Agent, more: u64) {
    let mut wanted = None;
    loop {
        let line = script.line().await;
        let seen = line["rounds"].as_u64().unwrap_or_else(|| panic!("{line}"));
        assert_eq!(line["healthy"], true, "{line}");
        if seen >= *wanted.get_or_insert(seen + more) {
            return;
        }
    }
}

async fn until_served(proxy: &Served, what: &str, holds: impl Fn(&Value) -> bool) {
    until(what, || async {
        let answer = client().get(proxy.url("/ready")).send().await;
        let body: Value = answer.expect("an answer").json().await.expect("JSON");
        if holds(&body) { Ok(()) } else { Err(body.to_string()) }
    })
    .await;
}

async fn engine(role: Role, proxy: &Served) -> Engine {
    let mut settings = Settings::new(role, Mode::Write, proxy.registration.to_string());
    settings.ping_interval = Duration::from_millis(200);
    Engine::start(settings).await.expect("free ports")
}

#[tokio::test(flavor = "multi_thread")]
async fn barriers_see_no_step_back_until_the_port_closes() {
    python();
    let proxy = Served::start(&["--engine-ttl", "1s"]);
    let (host, port) = (proxy.http.ip().to_string(), proxy.http.port().to_string());
    let mut scripts: Vec<Agent> = (0..3).map(|_| Agent::start("barrier.py", &[host.clone(), port.clone()])).collect();
    for script in &mut scripts {
        rounds(script, 1).await;
    }
    let prefill = engine(Role::Prefill, &proxy).await;
    let decode = engine(Role::Decode, &proxy).await;
    until_served(&proxy, "a pair", |body| body["status"] == "ready").await;
    rounds(&mut scripts[0], 2).await;
    decode.crash().await;
    until_served(&proxy, "one engine", |body| body["decode_instances"] == 0).await;
    rounds(&mut scripts[0], 2).await;
    drop(prefill);
    until_served(&proxy, "no engine", |body| body["prefill_instances"] == 0).await;
    rounds(&mut scripts[0], 2).await;
    decode.restart(false).await.expect("free ports");
    until_served(&proxy, "one again", |body| body["decode_instances"] == 1).await;
    rounds(&mut scripts[0], 2).await;

    until("the probes' connections gone", || async {
        let answer = client().get(proxy.url("/metrics")).send().await.expect("an answer");
        let text = answer.text().await.expect("text");
        let line = text.lines().find(|line| line.starts_with("moriio_connections "));
        let open: u32 = line.and_then(|line| line.split(' ').nth(1)?.parse().ok()).expect("a gauge");
        // The one that asks, and what the scripts have open at this moment.
        if open <= 4 { Ok(()) } else { Err(open.to_string()) }
    })
    .await;

    proxy.process.signal("TERM");
    until_closed(scripts).await;
    let log = ended(proxy).await;
    quiet_about_connections(&log);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_health_opens_once_and_the_port_closes_before_the_last_stream_ends() {
    python();
    let proxy = Served::start(&["--health-waits-for-pair", "--engine-ttl", "1s", "--drain-timeout", "600s"]);
    let arguments = [proxy.http.ip().to_string(), proxy.http.port().to_string()];
    let mut script = Agent::start("barrier.py", &arguments);
    for _ in 0..3 {
        let line = script.line().await;
        assert_eq!(line["healthy"], false, "nobody is there yet: {line}");
    }
    let prefill = engine(Role::Prefill, &proxy).await;
    let decode = engine(Role::Decode, &proxy).await;
    until_served(&proxy, "a pair", |body| body["status"] == "ready").await;
    loop {
        let line = script.line().await;
        if line["healthy"] == true {
            break;
        }
    }
    decode.set_fault(Fault::always(FaultKind::HangAfterTokens { tokens: 3 }));
    let body = completion("a stream that does not end", 9, true).to_string();
    let sent = client().post(proxy.url("/v1/completions")).body(body).send();
    let stream = tokio::spawn(async move { Answer::of(sent.await.expect("an answer")).await });
    until_true("the stream to run", || decode.counters().tokens >= 3).await;
    // The pair is gone, what was healthy stays so.
    prefill.crash().await;
    until_served(&proxy, "no prefill", |body| body["prefill_instances"] == 0).await;
    rounds(&mut script, 2).await;

    proxy.process.signal("TERM");
    until_closed(vec![script]).await;
    assert!(!stream.is_finished(), "the port closed first");
    decode.crash().await;
    let answer = stream.await.expect("no panic");
    assert!(answer.body.contains("engine_connection_broken"), "{}", answer.body);
    assert!(answer.whole);
    ended(proxy).await;
}

/// Each script must find the port closed, and be content.
async fn until_closed(scripts: Vec<Agent>) {
    for mut script in scripts {
        let last = loop {
            let line = script.line().await;
            if line.get("healthy").is_none() {
                break line;
            }
        };
        assert_eq!(last["closed"], true, "{last}");
        assert_eq!(script.finish().await, Some(0));
    }
}

/// Waits for the proxy's end, which must be a good one, and gives its log.
async fn ended(mut proxy: Served) -> String {
    let ended = tokio::task::spawn_blocking(move || proxy.finish()).await;
    let (code, log) = ended.expect("no panic");
    assert_eq!(code, Some(0), "{log}");
    log
}

/// Engines may come and go with a warning; whoever only connects and leaves is not worth a line.
fn quiet_about_connections(log: &str) {
    // Before it serves it may warn of the surroundings, such as a low limit on open files.
    let serving = log.lines().skip_while(|line| !line.contains("moriio-proxy serves"));
    for line in serving {
        let entry: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let loud = entry["level"] == "WARN" || entry["level"] == "ERROR";
        assert!(!loud || entry.get("engine").is_some(), "{line}");
        assert!(!line.contains("/health"), "{line}");
    }
}
