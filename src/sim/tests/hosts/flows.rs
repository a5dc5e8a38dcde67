//! Exchanges that work.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

use super::{BOTH, Contract, Mode, PROMPT, RELEASES, Role, Wide, door, hosts, params, post, settings, transfer};
use crate::sim::tests::{soon, text, until};
use crate::sim::zmtp::Connection;
use crate::sim::{Engine, Settings};

#[tokio::test]
async fn write_by_either_contract() {
    for (release, serve) in RELEASES.into_iter().flat_map(|release| BOTH.map(|serve| (release, serve))) {
        let wide = Wide::start(Mode::Write, release, serve, (2, 2)).await;
        for rank in 0..4 {
            wide.write(rank, Contract::SameRank).await;
            for pin in 0..4 {
                wide.write(rank, Contract::Leader(Some(pin))).await;
            }
        }
        assert_eq!(wide.prefill.counters().legs_by_rank, [5; 4]);
        assert_eq!(wide.decode.counters().legs_by_rank, [5; 4]);
        // Once for each rank of decode, on its host.
        assert_eq!(wide.prefill.counters().handshakes, 4);
        wide.clean().await;
    }
}

#[tokio::test]
async fn legs_without_a_rank_go_round() {
    for (serve, expected) in [(false, [2, 2, 2, 2]), (true, [4, 4, 0, 0])] {
        let wide = Wide::start(Mode::Write, "0.32.0", serve, (2, 2)).await;
        for turn in 0..8 {
            wide.write(turn % 4, Contract::Leader(None)).await;
        }
        assert_eq!(wide.decode.counters().legs_by_rank, expected);
        if serve {
            // Each host counts for itself.
            for turn in 0..4 {
                let id = transfer();
                let (first, mut second) =
                    (wide.prefill_leg(&id, turn), wide.decode_leg(&id, turn, Contract::Leader(None)));
                second.to = wide.decode.http_addresses()[turn as usize % 2];
                let (first, second) = tokio::join!(wide.send(&first), wide.send(&second));
                assert_eq!((first.0, second.0), (200, 200));
            }
            assert_eq!(wide.decode.counters().legs_by_rank, [5, 5, 1, 1]);
            let hosts: Vec<usize> = wide.decode.legs().iter().skip(8).map(|leg| leg.host).collect();
            assert_eq!(hosts, [0, 1, 0, 1]);
        }
        wide.clean().await;
    }
}

#[tokio::test]
async fn sizes_may_differ() {
    for counts in [(4, 2), (2, 4), (3, 1), (1, 2)] {
        let wide = Wide::start(Mode::Write, "0.32.0", false, counts).await;
        let (ranks, others) = (2 * u32::from(counts.0), 2 * u32::from(counts.1));
        for rank in 0..ranks {
            wide.write(rank, Contract::Leader(Some((rank + 1) % others))).await;
        }
        for rank in 0..ranks.min(others) {
            wide.write(rank, Contract::SameRank).await;
        }
        wide.clean().await;
    }
}

#[tokio::test]
async fn read_from_one_rank_at_a_time() {
    for (release, serve) in RELEASES.into_iter().flat_map(|release| BOTH.map(|serve| (release, serve))) {
        let wide = Wide::start(Mode::Read, release, serve, (2, 2)).await;
        for rank in 0..4 {
            wide.read(rank, None).await;
            for pin in 0..4 {
                wide.read(rank, Some(pin)).await;
            }
        }
        assert_eq!(wide.prefill.counters().legs_by_rank, [5; 4]);
        assert_eq!(wide.prefill.counters().released, 20);
        assert_eq!(wide.decode.counters().handshakes, 4);
        wide.clean().await;
    }
}

/// Up to 0.26 decode reads rank 0 alone, which every rank is by itself.
#[tokio::test]
async fn one_rank_at_a_time_is_readable_from_0_24_on() {
    for release in ["0.24.0", "0.26.0", "0.27.0"] {
        let wide = Wide::start(Mode::Read, release, false, (1, 1)).await;
        for rank in [0, 1, 1, 0] {
            wide.read(rank, None).await;
        }
        wide.clean().await;
    }
}

#[tokio::test]
async fn prefills_answer_names_the_host_and_the_global_rank() {
    let wide = Wide::start(Mode::Read, "0.32.0", false, (2, 2)).await;
    let answer = wide.send(&wide.prefill_leg(&transfer(), 3)).await.1;
    let said = &answer["kv_transfer_params"];
    let (handshake, notify) = (wide.prefill.handshake_port(), wide.prefill.notify_port());
    let expected = json!({
        "remote_host": "127.0.7.2", "remote_engine_id": format!("127.0.7.2:{handshake}"),
        "remote_handshake_port": handshake.to_string(), "remote_notify_port": notify.to_string(),
        "remote_dp_rank": 3, "remote_dp_size": 4, "remote_dp_size_local": 2,
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&said[key], value, "{key}");
    }
}

/// A single rank a host may have several tensor-parallel ones.
#[tokio::test]
async fn tensor_parallel_ranks_on_each_host() {
    let engine = async |role, network| {
        let engine = Settings { hosts: hosts(network, 2), dp: 2, tp: 4, ..Settings::new(role, Mode::Write, "") };
        Engine::start(engine).await.unwrap()
    };
    let wide = Wide {
        prefill: engine(Role::Prefill, 7).await,
        decode: engine(Role::Decode, 8).await,
        client: reqwest::Client::new(),
    };
    for (rank, pin) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let id = transfer();
        let (mut first, mut second) =
            (wide.prefill_leg(&id, rank), wide.decode_leg(&id, rank, Contract::Leader(Some(pin))));
        for leg in [&mut first, &mut second] {
            (leg.body["kv_transfer_params"]["tp_size"], leg.body["kv_transfer_params"]["remote_tp_size"]) =
                (json!(4), json!(4));
        }
        let (first, second) = tokio::join!(wide.send(&first), wide.send(&second));
        assert_eq!((first.0, super::said(&second.1)), (200, text(5)));
    }
    assert_eq!(wide.prefill.counters().handshakes, 8);
    wide.clean().await;
}

#[tokio::test]
async fn only_a_hosts_own_ranks_listen_there() {
    for serve in BOTH {
        let engine = Settings { children_serve: serve, ..settings(Role::Prefill, Mode::Write, "0.32.0", 2) };
        let engine = Engine::start(engine).await.unwrap();
        assert_eq!(engine.http_addresses().len(), if serve { 2 } else { 1 });
        for host in &engine.settings().hosts {
            for base in [engine.handshake_port(), engine.notify_port()] {
                for offset in 0..4 {
                    let accepts = TcpStream::connect((*host, base + offset)).await.is_ok();
                    assert_eq!(accepts, offset < 2, "{host} {offset}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_host_that_serves_tells_of_its_own_ranks() {
    for (serve, expected) in [(false, ["1", "1"]), (true, ["1", "0"])] {
        let wide = Wide::start(Mode::Write, "0.32.0", serve, (1, 2)).await;
        let parked = wide.spawn(&wide.decode_leg(&transfer(), 0, Contract::Leader(Some(0))));
        until(&wide.decode, "parked", |counters| counters.parked == 1).await;
        for (host, expected) in wide.decode.http_addresses().iter().zip(expected) {
            let answer = wide.client.get(format!("http://{host}/metrics")).send().await.unwrap().text().await.unwrap();
            let line = format!("reason=\"deferred\"}} {expected}.0");
            assert!(answer.contains(&line), "{serve} {answer}");
        }
        parked.abort();
    }
}

/// A peer on one host may be listed like any other.
#[tokio::test]
async fn a_single_host_may_be_listed() {
    let wide = Wide::start(Mode::Write, "0.32.0", false, (1, 1)).await;
    wide.write(1, Contract::Leader(Some(0))).await;
    let id = transfer();
    let (first, mut second) = (wide.prefill_leg(&id, 1), wide.decode_leg(&id, 1, Contract::Leader(None)));
    for key in ["remote_hosts", "remote_dp_size_local", "is_request_leader"] {
        second.body["kv_transfer_params"].as_object_mut().unwrap().shift_remove(key);
    }
    let (first, second) = tokio::join!(wide.send(&first), wide.send(&second));
    assert_eq!((first.0, second.0), (200, 200));
    wide.clean().await;
}

#[tokio::test]
async fn api_servers_ping_alike() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let engine = Settings {
        registration: listener.local_addr().unwrap().to_string(),
        api_servers: 8,
        ping_interval: Duration::from_millis(50),
        children_serve: true,
        ..settings(Role::Decode, Mode::Write, "0.32.0", 2)
    };
    let engine = Engine::start(engine).await.unwrap();
    let (mut pings, mut open) = (Vec::new(), Vec::new());
    for _ in 0..8 {
        let (stream, _) = soon(listener.accept()).await.unwrap();
        let mut connection = Connection::greet(stream, "ROUTER").await.unwrap();
        let message = soon(connection.receive()).await.unwrap();
        pings.push(rmp_serde::from_slice::<Value>(&message[0]).unwrap());
        open.push(connection);
    }
    assert_eq!(pings[0]["http_address"], json!(engine.http_address().to_string()));
    assert_eq!((&pings[0]["dp_size"], &pings[0]["type"]), (&json!(4), &json!("D")));
    pings.dedup();
    assert_eq!(pings.len(), 1, "children never ping");
}

#[tokio::test]
async fn what_engines_cannot_be() {
    let base = settings(Role::Prefill, Mode::Write, "0.32.0", 2);
    let twice = vec![base.hosts[0]; 2];
    for wrong in [
        Settings { dp: 3, ..base.clone() },
        Settings { dp: 64, ..base.clone() },
        Settings { tp: 2, ..base.clone() },
        Settings { release: "0.27.1".into(), ..base.clone() },
        Settings { hosts: twice, ..base.clone() },
    ] {
        assert!(Engine::start(wrong).await.is_err());
    }
    let one = Engine::start(Settings { hosts: hosts(7, 1), ..base }).await.unwrap();
    assert_eq!((one.settings().host, one.http_addresses()), (hosts(7, 1)[0], vec![one.http_address()]));
}

/// Prefill and decode at 32 and 16 ranks, eight on each host.
#[tokio::test]
async fn as_wide_as_they_come() {
    let engine = async |role, network, count| {
        let (hosts, dp) = (hosts(network, count), 8 * u32::from(count));
        Engine::start(Settings { hosts, dp, ..Settings::new(role, Mode::Write, "") }).await.unwrap()
    };
    let (prefill, decode) = (engine(Role::Prefill, 7, 4).await, engine(Role::Decode, 8, 2).await);
    let client = reqwest::Client::new();
    for rank in [0, 7, 8, 27, 31] {
        let id = transfer();
        let body = |limit: u32| json!({"model": "sim-model", "prompt": PROMPT, "max_tokens": limit});
        let (mut first, mut second) = (body(1), body(5));
        first["min_tokens"] = json!(1);
        first["kv_transfer_params"] = params(&decode, false, &id);
        second["kv_transfer_params"] = params(&prefill, true, &id);
        second["kv_transfer_params"]["remote_dp_rank"] = json!(rank);
        second["kv_transfer_params"]["is_request_leader"] = json!(true);
        let (to, header) = door(&prefill, rank);
        let first = super::Leg { to, rank: header, body: first };
        let second = super::Leg { to: decode.http_address(), rank: Some(rank % 16), body: second };
        let (_, second) = soon(async { tokio::join!(post(client.clone(), first), post(client.clone(), second)) }).await;
        assert_eq!(super::said(&second.1), text(5), "{rank}");
    }
    assert_eq!(prefill.counters().handshakes, 16);
    for engine in [&prefill, &decode] {
        assert_eq!(engine.violations(), Vec::<String>::new());
        assert_eq!(engine.counters().legs_by_rank.iter().sum::<u64>(), 5);
    }
}
