//! Two processes that announce one HTTP address, and one process that announces it over several sockets.

use std::net::TcpListener;

use moriio_proxy::sim::{Mode, Role};
use serde_json::{Value, json};

use super::{Pinger, engine, is_ready, until_engine};
use crate::support::fake::{Fake, answer};
use crate::support::{Proxy, until};

const RESULTS: &str = "moriio_registrations_total{result=";

async fn until_counted(proxy: &Proxy, result: &str, count: f64) {
    until(result, || async {
        let seen = proxy.metric(&format!("{RESULTS}\"{result}\"}}")).await;
        if seen >= count { Ok(()) } else { Err(seen.to_string()) }
    })
    .await;
}

/// What an engine at this address says, with these KV ports.
fn says(address: &str, [handshake, notify]: [u16; 2]) -> Value {
    json!({
        "type": "P", "http_address": address, "dp_size": 1, "tp_size": 1, "transfer_mode": "READ",
        "zmq_address": format!("host:127.0.0.1,handshake:{handshake},notify:{notify}"),
    })
}

async fn first(proxy: &Proxy) -> (Fake, String, Value) {
    let about = (Role::Prefill, Mode::Read, "0.32.0");
    let fake = Fake::start(about, proxy.registration, |_| answer(&json!({}))).await;
    let address = fake.http.to_string();
    let ready = until_engine(proxy, &address, "ready", is_ready).await;
    (fake, address, ready["incarnation"].clone())
}

/// The lines with a message once there are any: what a proxy does may be seen by HTTP before its log is read.
async fn until_line(proxy: &Proxy, message: &str) -> Vec<Value> {
    until(message, || async {
        let lines = proxy.lines(message);
        if lines.is_empty() { Err("no line".into()) } else { Ok(lines) }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_on_one_address_are_told_as_that() {
    let proxy = Proxy::apart(&[]);
    let (fake, address, life) = first(&proxy).await;
    let kv = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let ports = [0, 1].map(|at: usize| kv[at].local_addr().unwrap().port());
    let second = says(&address, ports);
    let pinger = Pinger::start(&second, proxy.registration);
    let told = until_engine(&proxy, &address, "a claim", |engine| engine["claimed_by"] != json!([])).await;
    assert_eq!(told["claimed_by"][0]["kv"], second["zmq_address"]);
    until_counted(&proxy, "claimed", 30.0).await;
    let still = engine(&proxy, &address).await;
    assert!(is_ready(&still) && still["incarnation"] == life, "{still}");
    assert_eq!(proxy.metric(&format!("{RESULTS}\"restarted\"}}")).await, 0.0);
    assert_eq!(proxy.ready().await.1["stale_pairs"], json!([]));

    let lines = until_line(&proxy, "two engines claim this address").await;
    assert_eq!(lines.len(), 1, "{lines:?}");
    let first_kv = format!("host:127.0.0.1,handshake:{},notify:{}", fake.handshake, fake.notify);
    assert_eq!((&lines[0]["level"], &lines[0]["engine"]), (&json!("WARN"), &json!(address)));
    assert_eq!((&lines[0]["stays_kv"], &lines[0]["refused_kv"]), (&json!(first_kv), &second["zmq_address"]));
    assert_eq!(lines[0]["refused"], told["claimed_by"][0]["peer"]);
    assert!(lines[0]["stays"] != lines[0]["refused"] && lines[0]["stays"].as_str().unwrap().starts_with("127.0.0.1:"));
    assert_eq!(proxy.lines("engine restarted or changed its registration").len(), 0);

    // The first one ends: its pings stop and its ports refuse. That is what a restart looks like.
    drop(fake);
    let next = until_engine(&proxy, &address, "a new life", |engine| engine["incarnation"] != life).await;
    assert_eq!(next["claimed_by"], json!([]));
    let lines = until_line(&proxy, "engine restarted or changed its registration").await;
    assert_eq!((lines.len(), &lines[0]["handshake"]), (1, &json!(ports[0])));
    drop(pinger);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_comes_back_on_other_ports_is_a_restart() {
    let proxy = Proxy::apart(&[]);
    let (fake, address, life) = first(&proxy).await;
    drop(fake);
    // It pings before any of its ports is open.
    let began = std::time::Instant::now();
    let _pinger = Pinger::start(&says(&address, [6301, 7301]), proxy.registration);
    until_engine(&proxy, &address, "a new life", |engine| engine["incarnation"] != life).await;
    assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
    assert_eq!(proxy.lines("two engines claim this address").len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_pings_from_eight_sockets_are_one_engine() {
    let proxy = Proxy::apart(&[]);
    let (fake, address, life) = first(&proxy).await;
    let same = says(&address, [fake.handshake, fake.notify]);
    let _pingers = [(); 7].map(|()| Pinger::start(&same, proxy.registration));
    until_counted(&proxy, "refreshed", 100.0).await;
    let still = engine(&proxy, &address).await;
    assert!(is_ready(&still) && still["incarnation"] == life && still["claimed_by"] == json!([]), "{still}");
    for result in ["restarted", "claimed"] {
        assert_eq!(proxy.metric(&format!("{RESULTS}\"{result}\"}}")).await, 0.0, "{result}");
    }
    assert_eq!(proxy.metric(&format!("{RESULTS}\"added\"}}")).await, 1.0);
    assert_eq!(proxy.lines("two engines claim this address").len(), 0);
}
