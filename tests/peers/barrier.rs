//! The probes of job scripts against the real binary, from its start to its end.

use std::time::Duration;

use moriio_proxy::sim::{Engine, Mode, Role, Settings};
use serde_json::Value;

use super::agent::Agent;
use super::environment::python;
use crate::support::binary::Served;
use crate::support::{client, until};

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
    let mut proxy = Served::start(&["--engine-ttl", "1s"]);
    let (host, port) = (proxy.http.ip().to_string(), proxy.http.port().to_string());
    let mut scripts: Vec<Agent> = (0..3)
        .map(|_| Agent::start("barrier.py", &[host.clone(), port.clone()]))
        .collect();
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

    proxy.process.signal("TERM");
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
    let (code, log) = tokio::task::spawn_blocking(move || proxy.finish())
        .await
        .expect("no panic");
    assert_eq!(code, Some(0), "{log}");
    quiet_about_connections(&log);
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
