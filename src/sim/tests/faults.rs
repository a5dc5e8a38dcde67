//! Misbehaviour on script, and the control port.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Mode, Pair, soon, text, until};
use crate::sim::{Control, Fault, FaultKind};

async fn pair() -> Pair {
    Pair::start(Mode::Read, "0.32.0").await
}

#[tokio::test]
async fn a_status_lasts_as_many_legs_as_it_was_told() {
    let pair = pair().await;
    pair.prefill.set_fault(Fault::times(FaultKind::Status { status: 429, body: "{\"busy\":true}".into() }, 2));
    for expected in [429, 429, 200] {
        let legs = pair.legs(2);
        let answer = soon(pair.post(&pair.prefill, &legs, &legs.prefill, None).send()).await.unwrap();
        assert_eq!(answer.status(), expected);
    }
    assert_eq!(pair.prefill.counters().faulted, 2);
    assert_eq!(pair.prefill.legs().len(), 3);
}

#[tokio::test]
async fn refused_connections_come_back() {
    let pair = pair().await;
    let health = format!("http://{}/health", pair.prefill.http_address());
    let asked = || async { pair.client.get(&health).send().await.map(|answer| answer.status().as_u16()) };
    assert_eq!(asked().await.unwrap(), 200);
    pair.prefill.set_fault(Fault::always(FaultKind::RefuseConnections));
    until(&pair.prefill, "closed", |counters| counters.connections == 0).await;
    soon(async {
        while asked().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    pair.prefill.clear_faults();
    soon(async {
        while asked().await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn answers_can_be_cut_and_hung() {
    let pair = pair().await;
    for reset in [false, true] {
        pair.prefill.set_fault(Fault::times(FaultKind::CutBeforeAnswer { reset }, 1));
        assert!(soon(pair.send_prefill(&pair.legs(2))).await.is_err());
        pair.decode.set_fault(Fault::times(FaultKind::CutAfterTokens { tokens: 2, reset }, 1));
        let (body, expected) = streamed(&pair).await;
        assert!(body.is_err());
        assert!(expected <= 2);
    }
    pair.decode.set_fault(Fault::times(FaultKind::HangAfterTokens { tokens: 3 }, 1));
    let mut legs = pair.legs(9);
    legs.decode["stream"] = json!(true);
    let answer = soon(pair.send_prefill(&legs)).await.unwrap();
    Pair::hand_over(&mut legs, &answer);
    let mut answer = soon(pair.decode_request(&legs).send()).await.unwrap();
    let mut seen = String::new();
    while seen.matches("data:").count() < 3 {
        seen += std::str::from_utf8(&soon(answer.chunk()).await.unwrap().unwrap()).unwrap();
    }
    assert_eq!(pair.decode.counters().running, 1);
    drop(answer);
    until(&pair.decode, "aborted", |counters| counters.running == 0 && counters.used_blocks == 0).await;
}

#[tokio::test]
async fn a_stream_can_stay_open_after_its_end() {
    let pair = pair().await;
    pair.decode.set_fault(Fault::times(FaultKind::HangAfterDone, 1));
    let mut legs = pair.legs(3);
    legs.decode["stream"] = json!(true);
    let answer = soon(pair.send_prefill(&legs)).await.unwrap();
    Pair::hand_over(&mut legs, &answer);
    let mut answer = soon(pair.decode_request(&legs).send()).await.unwrap();
    let mut seen = String::new();
    while !seen.contains("[DONE]") {
        seen += std::str::from_utf8(&soon(answer.chunk()).await.unwrap().unwrap()).unwrap();
    }
    assert!(tokio::time::timeout(Duration::from_millis(100), answer.chunk()).await.is_err());
    assert_eq!(pair.decode.counters().used_blocks, 0);
}

/// Streams nine tokens; gives the end and how many came.
async fn streamed(pair: &Pair) -> (reqwest::Result<()>, usize) {
    let mut legs = pair.legs(9);
    legs.decode["stream"] = json!(true);
    let answer = soon(pair.send_prefill(&legs)).await.unwrap();
    Pair::hand_over(&mut legs, &answer);
    let mut answer = match soon(pair.decode_request(&legs).send()).await {
        Ok(answer) => answer,
        Err(error) => return (Err(error), 0),
    };
    let mut seen = String::new();
    loop {
        match soon(answer.chunk()).await {
            Ok(Some(chunk)) => seen += std::str::from_utf8(&chunk).unwrap(),
            Ok(None) => return (Ok(()), seen.matches("data:").count()),
            Err(error) => return (Err(error), seen.matches("data:").count()),
        }
    }
}

#[tokio::test]
async fn prefill_can_withhold_what_decode_needs() {
    let pair = pair().await;
    pair.prefill.set_fault(Fault::times(FaultKind::NullTransferParams, 1));
    assert_eq!(soon(pair.send_prefill(&pair.legs(2))).await.unwrap()["kv_transfer_params"], Value::Null);
    pair.prefill.set_fault(Fault::times(FaultKind::NoBlockIds, 1));
    let answer = soon(pair.send_prefill(&pair.legs(2))).await.unwrap();
    assert_eq!(answer["kv_transfer_params"]["remote_block_ids"], Value::Null);
    pair.prefill.set_fault(Fault::times(FaultKind::UnparsableBody, 1));
    let legs = pair.legs(2);
    let body = soon(pair.post(&pair.prefill, &legs, &legs.prefill, None).send()).await.unwrap().text().await.unwrap();
    assert!(serde_json::from_str::<Value>(&body).is_err());
}

#[tokio::test]
async fn a_kept_alive_connection_can_die_unread() {
    let pair = pair().await;
    soon(pair.send_prefill(&pair.legs(2))).await.unwrap();
    pair.prefill.set_fault(Fault::times(FaultKind::DieUnread, 1));
    // The client may try again on a fresh connection by itself; the fault shows in the counters either way.
    let _ = soon(pair.send_prefill(&pair.legs(2))).await;
    assert_eq!(pair.prefill.counters().faulted, 1);
    assert_eq!(pair.prefill.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn closed_kv_ports_refuse_and_reopen() {
    let pair = pair().await;
    for (kind, port) in [
        (FaultKind::CloseHandshakePort, pair.prefill.handshake_port()),
        (FaultKind::CloseNotifyPort, pair.prefill.notify_port()),
    ] {
        pair.prefill.set_fault(Fault::always(kind));
        let open = || async { tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() };
        soon(async {
            while open().await {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        pair.prefill.clear_faults();
        soon(async {
            while !open().await {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }
    assert_eq!(soon(pair.exchange(pair.legs(4))).await, (200, text(4)));
    pair.clean().await;
}

#[tokio::test]
async fn blocks_are_waited_for() {
    let pair = Pair::with(Mode::Read, "0.32.0", |settings| settings.blocks = 4).await;
    let exchanges = (0..8).map(|_| pair.exchange(pair.legs(8)));
    for (status, answer) in soon(futures::future::join_all(exchanges)).await {
        assert_eq!((status, answer), (200, text(8)));
    }
    pair.clean().await;
}

#[tokio::test]
async fn the_control_port_shows_and_arms() {
    let pair = pair().await;
    let control = Control::start("127.0.0.1:0".parse().unwrap(), [&pair.prefill, &pair.decode]).await.unwrap();
    let url = |path: &str| format!("http://{}{path}", control.address());
    let get = async |path: &str| -> Value {
        serde_json::from_slice(&pair.client.get(url(path)).send().await.unwrap().bytes().await.unwrap()).unwrap()
    };
    assert_eq!(soon(pair.exchange(pair.legs(4))).await, (200, text(4)));
    assert_eq!(get("/engines").await[1]["http_address"], json!(pair.decode.http_address()));
    assert_eq!(get("/counters").await["0"]["prefill_legs"], 1);
    assert_eq!(get("/engines/1/counters").await["decode_legs"], 1);
    assert_eq!(get("/violations").await, json!({"0": [], "1": []}));
    assert_eq!(get("/engines/0/legs").await[0]["path"], "/v1/completions");
    let armed = pair.client.post(url("/engines/0/faults")).body("{\"kind\":\"unhealthy\",\"count\":1}").send();
    assert_eq!(armed.await.unwrap().status(), 204);
    for expected in [503, 200] {
        let health = pair.client.get(format!("http://{}/health", pair.prefill.http_address())).send().await.unwrap();
        assert_eq!(health.status(), expected);
    }
    pair.client.post(url("/engines/1/crash")).send().await.unwrap();
    assert!(!pair.decode.alive());
    pair.client.post(url("/engines/1/restart")).send().await.unwrap();
    assert!(pair.decode.alive());
    assert_eq!(pair.decode.counters().incarnation, 2);
}
