//! Engines over several hosts: the legs that `docs/wide-ep.md` and protocol section H show, to the last key.

use std::sync::Arc;

use super::*;
use crate::engine::hosts::{Host, Hosts};

/// An engine of hosts 10.0.`net`.1 and on, 8 ranks each.
fn wide(role: Role, net: u8, hosts: u8) -> Registration {
    let address = |number: u8| format!("10.0.{net}.{number}");
    let all = (1..=hosts).map(|number| Host { address: address(number), http: None }).collect();
    let mut engine = engine(role, &address(1), [8000, 6301, 61005]);
    (engine.dp_size, engine.tp_size) = (8 * u32::from(hosts), 1);
    engine.hosts = Hosts::new(all, 8).map(Arc::new);
    engine
}

fn ids() -> Ids {
    Ids { transfer_id: "tx-1".into(), request_id: "1".into() }
}

fn params(leg: &Value) -> &Value {
    &leg["kv_transfer_params"]
}

#[test]
fn each_side_is_told_the_others_hosts_and_sizes() {
    let (prefill, decode) = (wide(Role::Prefill, 1, 2), wide(Role::Decode, 2, 2));
    let request = request(Api::Completions, r#"{"prompt":"a","max_tokens":4}"#);
    let pair = pair(&prefill, &decode, Some(11));
    let (first, second) = legs(&request, &pair, &ids());
    let to_prefill = json!({"do_remote_decode": true, "do_remote_prefill": false, "transfer_id": "tx-1",
        "remote_engine_id": null, "remote_block_ids": null, "remote_host": "10.0.2.1", "remote_port": 6301,
        "remote_handshake_port": 6301, "remote_notify_port": 61005, "remote_hosts": ["10.0.2.1", "10.0.2.2"],
        "remote_dp_size": 16, "remote_dp_size_local": 8, "remote_tp_size": 1, "tp_size": 1});
    let mut to_decode = json!({"do_remote_decode": false, "do_remote_prefill": true, "transfer_id": "tx-1",
        "remote_engine_id": "10.0.1.1:6301", "remote_block_ids": [], "remote_host": "10.0.1.1", "remote_port": 6301,
        "remote_handshake_port": 6301, "remote_notify_port": 61005, "remote_hosts": ["10.0.1.1", "10.0.1.2"],
        "remote_dp_size": 16, "remote_dp_size_local": 8, "remote_dp_rank": 11, "remote_tp_size": 1, "tp_size": 1,
        "is_request_leader": true});
    assert_eq!((params(&first), params(&second)), (&to_prefill, &to_decode));
    // The same-rank contract.
    let pinned = Pair { decode_rank: Some(11), ..pair };
    let (first, second) = legs(&request, &pinned, &ids());
    to_decode["remote_dp_rank_override"] = json!(true);
    to_decode.as_object_mut().unwrap().remove("is_request_leader");
    assert_eq!((params(&first), params(&second)), (&to_prefill, &to_decode));
}

#[test]
fn sizes_are_those_of_the_other_side() {
    let (prefill, decode) = (wide(Role::Prefill, 1, 4), wide(Role::Decode, 2, 2));
    let request = request(Api::Completions, r#"{"prompt":"a","max_tokens":4}"#);
    let (first, second) = legs(&request, &pair(&prefill, &decode, Some(27)), &ids());
    let of = |leg: &Value| {
        let hosts = params(leg)["remote_hosts"].as_array().map(Vec::len);
        (hosts, params(leg)["remote_dp_size"].clone(), params(leg)["remote_dp_size_local"].clone())
    };
    assert_eq!((of(&first), of(&second)), ((Some(2), json!(16), json!(8)), (Some(4), json!(32), json!(8))));
    assert_eq!(params(&second)["remote_dp_rank"], 27);
    // One host on a side is a list of one, and one rank has no number.
    let mut one = d1();
    one.tp_size = 1;
    let (first, second) = legs(&request, &pair(&prefill, &one, Some(27)), &ids());
    assert_eq!(of(&first), (Some(1), json!(1), json!(1)));
    assert_eq!((of(&second), &params(&second)["is_request_leader"]), ((Some(4), json!(32), json!(8)), &json!(true)));
    let mut one = p1();
    one.tp_size = 1;
    let (_, second) = legs(&request, &pair(&one, &decode, None), &ids());
    assert_eq!((of(&second), params(&second).get("remote_dp_rank")), ((Some(1), json!(1), json!(1)), None));
    // And engines of one host each hear of no hosts, whatever was listed of them.
    let (first, second) = legs(&request, &pair(&wide(Role::Prefill, 1, 1), &wide(Role::Decode, 2, 1), Some(3)), &ids());
    for key in ["remote_hosts", "remote_dp_size_local", "is_request_leader", "remote_dp_rank_override"] {
        assert_eq!((params(&first).get(key), params(&second).get(key)), (None, None), "{key}");
    }
}

#[test]
fn one_hosts_address_may_stand_for_all() {
    let [mut prefill, mut decode] = [wide(Role::Prefill, 1, 2), wide(Role::Decode, 2, 2)];
    for engine in [&mut prefill, &mut decode] {
        let first = Host { address: engine.kv.host.clone(), http: None };
        engine.hosts = Hosts::new(vec![first; 2], 8).map(Arc::new);
    }
    let request = request(Api::Completions, r#"{"prompt":"a","max_tokens":4}"#);
    let pair = Pair { decode_rank: Some(3), ..pair(&prefill, &decode, Some(3)) };
    let (first, second) = legs(&request, &pair, &ids());
    assert_eq!(params(&first)["remote_hosts"], json!(["10.0.2.1", "10.0.2.1"]));
    let told = ["remote_hosts", "remote_dp_rank", "remote_dp_rank_override", "is_request_leader"];
    let told = told.map(|key| params(&second)[key].clone());
    assert_eq!(told, [json!(["10.0.1.1", "10.0.1.1"]), json!(3), json!(true), Value::Null]);
}

#[test]
fn in_read_the_rank_that_has_the_blocks_is_an_engine_of_one() {
    let (prefill, decode) = (wide(Role::Prefill, 1, 2), wide(Role::Decode, 2, 2));
    let pair = pair(&prefill, &decode, Some(3));
    let mut said = json!({"do_remote_prefill": true, "do_remote_decode": false, "transfer_id": "tx-1",
        "remote_engine_id": "e", "remote_block_ids": [7, 8], "remote_host": "10.0.1.2", "remote_port": 6301,
        "remote_handshake_port": 6301, "remote_notify_port": 61005, "remote_dp_rank": 11, "remote_dp_size": 16,
        "remote_dp_size_local": 8, "remote_tp_size": 1, "tp_size": 1});
    let mut want = said.clone();
    (want["remote_handshake_port"], want["remote_notify_port"]) = (json!(6304), json!(61008));
    (want["remote_dp_rank"], want["remote_dp_size"]) = (json!(0), json!(1));
    want.as_object_mut().unwrap().remove("remote_dp_size_local");
    let read = |said: &Value| read_params(said, &pair, &ids());
    // The rank that it says, not the one that it was asked for; its host by the list, since all may have one `host_ip`.
    said["remote_host"] = json!("10.0.1.1");
    assert_eq!(read(&said), want);
    // What it leaves out is filled by the list: the rank that it was asked for is on the first host.
    let leg = read(&json!({"remote_block_ids": [7, 8], "remote_hosts": ["a"]}));
    for (key, filled) in [
        ("remote_host", json!("10.0.1.1")),
        ("remote_handshake_port", json!(6304)),
        ("remote_notify_port", json!(61008)),
        ("remote_dp_rank", json!(0)),
        ("remote_dp_size", json!(1)),
        ("remote_hosts", Value::Null),
    ] {
        assert_eq!(leg[key], filled, "{key}");
    }
}
