//! Why an engine cannot be used, in `/ready`, in the log and in a metric (protocol R11).

use std::net::TcpListener;

use futures::future::join_all;
use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Fault, FaultKind, Mode, Role};
use serde_json::{Value, json};

use super::{Pinger, engine, is_ready, until_engine};
use crate::support::binary::free_ports;
use crate::support::fake::{Fake, answer};
use crate::support::{Plan, Proxy, completion, generate, post, until};

/// A gauge line of this engine; the whole family where `reason` is empty.
async fn gauge(proxy: &Proxy, role: &str, address: &str, reason: &str) -> f64 {
    let labels = format!("role=\"{role}\",engine=\"{address}\",reason=\"{reason}");
    proxy.metric(&format!("moriio_engine_unusable{{{labels}")).await
}

/// Waits until all three say why.
async fn until_told(proxy: &Proxy, role: &str, address: &str, word: &str, text: &str) {
    until_engine(proxy, address, text, |engine| engine["reason"] == text).await;
    until(text, || async {
        let seen = [gauge(proxy, role, address, word).await, gauge(proxy, role, address, "").await];
        if seen == [1.0, 1.0] { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
    until(text, || async {
        let mut lines = proxy.lines("engine cannot be used");
        lines.extend(proxy.lines("engine is not up yet"));
        lines.retain(|line| line["engine"] == address && line["reason"] == text);
        let once = lines.len() == 1 && lines[0]["level"] == "WARN" && lines[0]["role"] == role;
        if once { Ok(()) } else { Err(format!("{lines:?}")) }
    })
    .await;
}

/// What nobody told to be anything else says of itself.
fn says(address: &str, kv: &str) -> Value {
    json!({
        "type": "P", "http_address": address, "zmq_address": kv, "dp_size": 1, "tp_size": 1, "transfer_mode": "READ",
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_probe_finds_is_told() {
    let proxy = Proxy::apart(&[]);
    let fake = Fake::start((Role::Decode, Mode::Read, "0.32.0"), proxy.registration, |_| answer(&json!({}))).await;
    until_engine(&proxy, &fake.http.to_string(), "ready", is_ready).await;
    let open = format!("host:127.0.0.1,handshake:{},notify:{}", fake.handshake, fake.notify);
    let [closed] = free_ports();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let refused = format!("127.0.0.1:{closed}");
    let mute = silent.local_addr().unwrap().to_string();
    let other_mode = format!("localhost:{}", fake.http.port());
    let mut other = says(&other_mode, &open);
    other["transfer_mode"] = json!("WRITE");
    let lost =
        says(&format!("[::ffff:127.0.0.1]:{}", fake.http.port()), "host:nobody.invalid,handshake:6301,notify:7301");
    let cases = [
        (says("nobody.invalid:8000", &open), "name_unresolved", "its host name does not resolve"),
        (says(&refused, &open), "connection_refused", "connection refused"),
        (says("255.255.255.255:8000", &open), "no_route", "no route to its host"),
        (says(&mute, &open), "no_answer", "no answer to GET /health"),
        (lost, "kv_name_unresolved", "the host name of its KV ports does not resolve"),
        (other, "other_mode", "another mode than the pool's"),
    ];
    let tell = cases.map(|(says, word, text)| {
        let proxy = &proxy;
        async move {
            let pinger = Pinger::start(&says, proxy.registration);
            let address = says["http_address"].as_str().unwrap().to_owned();
            until_told(proxy, "prefill", &address, word, text).await;
            assert_ne!(engine(proxy, &address).await["state"], "ready");
            pinger
        }
    });
    let pingers = join_all(tell).await;
    assert!(proxy.lines("engine is not up yet").iter().all(|line| line["engine"] == refused.as_str()));
    assert_eq!(engine(&proxy, &fake.http.to_string()).await["reason"], Value::Null);
    assert_eq!(gauge(&proxy, "decode", &fake.http.to_string(), "").await, 0.0);
    drop(pingers);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reason_changes_and_ends_with_the_fault() {
    let mut plan = Plan::new(Mode::Read).engines(1, 1).with(Key::EngineTtl, "1s");
    plan.apart = true;
    let world = plan.start().await;
    let sick = &world.prefill[0];
    let address = sick.http_address().to_string();
    sick.set_fault(Fault::always(FaultKind::CloseNotifyPort));
    let port = format!("KV port {} refuses connections", sick.notify_port());
    until_told(&world.proxy, "prefill", &address, "kv_port_refused", &port).await;
    sick.clear_faults();
    sick.set_fault(Fault::always(FaultKind::Unhealthy));
    until_told(&world.proxy, "prefill", &address, "health_status", "GET /health answered 503").await;
    sick.clear_faults();
    until_engine(&world.proxy, &address, "well again", |engine| is_ready(engine) && engine["reason"].is_null()).await;
    until("no gauge", || async {
        let seen = gauge(&world.proxy, "prefill", &address, "").await;
        if seen == 0.0 { Ok(()) } else { Err(seen.to_string()) }
    })
    .await;

    // An engine that leaves takes its gauge along.
    let decode = world.decode[0].http_address().to_string();
    world.decode[0].set_fault(Fault::always(FaultKind::CloseHandshakePort));
    let port = format!("KV port {} refuses connections", world.decode[0].handshake_port());
    until_told(&world.proxy, "decode", &decode, "kv_port_refused", &port).await;
    world.decode[0].crash().await;
    until_engine(&world.proxy, &decode, "gone", Value::is_null).await;
    until("no gauge", || async {
        let seen = gauge(&world.proxy, "decode", &decode, "").await;
        if seen == 0.0 { Ok(()) } else { Err(seen.to_string()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_circuit_is_a_reason() {
    let options = [(Key::BreakerFailures, "1"), (Key::BreakerOpen, "3s"), (Key::Retries, "0")];
    let mut plan = Plan::new(Mode::Read);
    plan.options.extend(options);
    plan.apart = true;
    let world = plan.start().await;
    let address = world.prefill[0].http_address().to_string();
    let broken = FaultKind::Status { status: 500, body: "{}".into() };
    world.prefill[0].set_fault(Fault::times(broken, 1));
    assert_eq!(post(&world.proxy, "/v1/completions", &completion("a", 3, false)).await.status, 500);
    let told = engine(&world.proxy, &address).await;
    assert_eq!((&told["reason"], &told["state"]), (&json!("circuit open"), &json!("ready")));
    until_told(&world.proxy, "prefill", &address, "circuit_open", "circuit open").await;
    // A trial is let through, and decides.
    until_engine(&world.proxy, &address, "a trial", |engine| engine["reason"].is_null()).await;
    generate(&world.proxy, "a", 3, false).await;
    until("the end told", || async {
        let lines = world.proxy.lines("engine can be used again");
        let told = lines.len() == 1 && lines[0]["engine"] == address.as_str();
        if told && gauge(&world.proxy, "prefill", &address, "").await == 0.0 {
            Ok(())
        } else {
            Err(format!("{lines:?}"))
        }
    })
    .await;
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn engines_without_a_fresh_pair_say_so() {
    let mut plan = Plan::new(Mode::Write).with(Key::EngineTtl, "1s");
    plan.apart = true;
    let world = plan.start().await;
    generate(&world.proxy, "before", 3, true).await;
    world.settle().await;
    let (prefill, decode) = (&world.prefill[0], &world.decode[0]);
    let names = [prefill, decode].map(|engine| engine.http_address().to_string());
    decode.crash().await;
    until_engine(&world.proxy, &names[1], "found dead", |e| e.is_null() || e["state"] == "unhealthy").await;
    decode.restart(true).await.unwrap();
    for (name, role) in names.iter().zip(["prefill", "decode"]) {
        until_told(&world.proxy, role, name, "stale_pairs", "every pair is stale").await;
    }
    prefill.crash().await;
    until_engine(&world.proxy, &names[0], "found dead", |e| e.is_null() || e["state"] == "unhealthy").await;
    prefill.restart(true).await.unwrap();
    for name in &names {
        until_engine(&world.proxy, name, "a fresh pair", |e| is_ready(e) && e["reason"].is_null()).await;
    }
    generate(&world.proxy, "after", 3, true).await;
}
