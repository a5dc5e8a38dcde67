//! Cases have numbers, so that one that fails can be named.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::rejection::{MAX_KEYS, MAX_MESSAGE_BYTES};
use super::*;
use crate::engine::hosts::Host;

fn pack(value: &Value) -> Vec<u8> {
    rmp_serde::to_vec(value).unwrap()
}

fn read(value: &Value) -> Result<Message, Rejection> {
    decode(&pack(value))
}

fn registered(value: &Value) -> Registration {
    match read(value) {
        Ok(Message::Register(registration, unknown)) => {
            assert_eq!(unknown, Vec::<String>::new());
            registration
        }
        other => panic!("{value}: {other:?}"),
    }
}

fn a() -> Value {
    json!({"type": "register", "role": "P", "index": "17", "request_address": "http://10.0.0.1:2584/v1/completions",
        "handshake_port": 6301, "notify_port": 61005, "dp_size": 1, "tp_size": 8, "transfer_mode": "READ"})
}

fn b() -> Value {
    json!({"type": "P", "http_address": "10.0.0.1:20005", "zmq_address": "host:10.0.0.1,handshake:6301,notify:61005",
        "dp_size": 1, "tp_size": 8, "transfer_mode": "READ"})
}

fn with(mut value: Value, key: &str, to: Value) -> Value {
    value[key] = to;
    value
}

fn without(mut value: Value, key: &str) -> Value {
    value.as_object_mut().unwrap().remove(key);
    value
}

fn endpoint(registration: &Registration) -> (&str, u16, u16, &str) {
    let kv = &registration.kv;
    (&kv.host, kv.handshake, kv.notify, &kv.text)
}

#[test]
fn both_wordings_become_one_value() {
    // 1 and 2.
    let p = registered(&b());
    let text = "host:10.0.0.1,handshake:6301,notify:61005";
    assert_eq!((p.role, p.mode, p.dialect), (Role::Prefill, Mode::Read, Dialect::B));
    assert_eq!((p.http.to_string().as_str(), p.dp_size, p.tp_size), ("10.0.0.1:20005", 1, 8));
    assert_eq!(endpoint(&p), ("10.0.0.1", 6301, 61005, text));
    assert_eq!(registered(&with(b(), "type", json!("D"))).role, Role::Decode);
    // 3 and 4.
    let old = registered(&a());
    assert_eq!((old.role, old.mode, old.dialect), (Role::Prefill, Mode::Read, Dialect::A));
    assert_eq!((old.http.to_string().as_str(), old.index), ("10.0.0.1:2584", Some(17)));
    assert_eq!(endpoint(&old), ("10.0.0.1", 6301, 61005, text));
    assert!(registered(&with(a(), "index", json!("18"))).same_engine(&old));
    assert_eq!(registered(&without(a(), "index")).index, None);
    assert_eq!(registered(&with(a(), "index", json!({}))).index, None);
    // 5.
    let texts = with(with(a(), "handshake_port", json!("6301")), "tp_size", json!("8"));
    assert_eq!(registered(&texts), old);
    // 6.
    assert_eq!(read(&json!({"type": "HELLO"})), Ok(Message::Hello));
    // 10.
    assert_eq!(registered(&with(b(), "transfer_mode", json!("read"))).mode, Mode::Read);
    assert_eq!(registered(&with(b(), "transfer_mode", json!("Write"))).mode, Mode::Write);
    // 15 and 16.
    let spaced = with(b(), "zmq_address", json!(" host : fd00::1 , handshake : 6301 , notify : 61005 "));
    let trimmed = "host : fd00::1 , handshake : 6301 , notify : 61005";
    assert_eq!(endpoint(&registered(&spaced)), ("fd00::1", 6301, 61005, trimmed));
    let six = registered(&with(b(), "http_address", json!("fd00::1:8000")));
    assert_eq!((six.http.host.as_str(), six.http.url("/x").as_str()), ("fd00::1", "http://[fd00::1]:8000/x"));
    // 19.
    for text in ["http://node-3:2584/v1/completions", "HTTP://node-3:2584", "node-3:2584/x?y#z"] {
        let named = registered(&with(a(), "request_address", json!(text)));
        assert_eq!((named.http.host.as_str(), named.http.port, named.kv.host.as_str()), ("node-3", 2584, "node-3"));
    }
    // Loopback is for the caller to judge.
    registered(&with(b(), "http_address", json!("127.0.0.1:1")));
}

#[test]
fn unknown_keys_are_told_and_not_held_against_the_engine() {
    // 18.
    let long = "k".repeat(300);
    let more = with(with(b(), "node_hosts", json!(["a", {"b": [1.5, null, true, -1]}])), &long, json!(1));
    match read(&more) {
        Ok(Message::Register(registration, unknown)) => {
            assert_eq!(registration, registered(&b()));
            assert_eq!(unknown, ["node_hosts".to_owned(), "k".repeat(64)]);
        }
        other => panic!("{other:?}"),
    }
    // A key that is no text, and values that are binary or extensions.
    let mut bytes = pack(&b());
    bytes[0] += 2;
    bytes.extend([0x05, 0x01, 0xa1, b'x', 0xd4, 0x01, 0x00]);
    assert!(matches!(decode(&bytes), Ok(Message::Register(..))), "{:?}", decode(&bytes));
    let binary: Vec<u8> = [&[0x81, 0xa4][..], b"type", &[0xc4, 5], b"HELLO"].concat();
    assert_eq!(decode(&binary), Ok(Message::Hello));
    let invalid = [&[0x82, 0xa4][..], b"type", &[0xa5], b"HELLO", &[0xa1, b'x', 0xa1, 0xff]].concat();
    assert_eq!(decode(&invalid), Ok(Message::Hello));
}

#[test]
fn what_is_wrong_is_named() {
    let check = |value: Value, label: &str, field: &str| {
        let rejection = read(&value).unwrap_err();
        assert_eq!(rejection.as_str(), label, "{value}: {rejection}");
        assert!(rejection.to_string().starts_with(field), "{value}: {rejection}");
    };
    // 10.
    check(with(b(), "transfer_mode", json!("PUSH")), "invalid_field", "transfer_mode is");
    // 11.
    check(with(b(), "type", json!("X")), "unknown_type", "type is \"X\"");
    check(with(b(), "type", json!(7)), "invalid_field", "type is");
    // 14 and 17.
    let zmq = |text: &str| with(b(), "zmq_address", json!(text));
    check(zmq("host:10.0.0.1,handshake:6301"), "missing_field", "zmq_address.notify");
    check(zmq("handshake:6301,notify:1"), "missing_field", "zmq_address.host");
    for port in ["70000", "0", "", "+5", "6 1", "x"] {
        let text = format!("host:h,handshake:6301,notify:{port}");
        check(zmq(&text), "invalid_field", "zmq_address.notify is");
    }
    for host in ["", "None", "none", "0.0.0.0", "::", "a b", "u@h", "0", "127.1", "0x7f000001", "[::]", "224.0.0.1"] {
        let text = format!("host:{host},handshake:6301,notify:61005");
        check(zmq(&text), "invalid_field", "zmq_address.host is");
    }
    let tail = "host:h,handshake:1,notify:2";
    for text in ["", "x", &format!("{tail},"), &format!("{tail},notify:3"), &format!("{tail},x:\r\nEvil: 1")] {
        check(zmq(text), "invalid_field", "zmq_address is");
    }
    for text in [format!("{tail},x:___decode_addr_y"), format!("{tail},x:é"), format!("{tail},x:{}", "y".repeat(500))]
    {
        check(zmq(&text), "invalid_field", "zmq_address is");
    }
    for key in ["http_address", "zmq_address", "dp_size", "tp_size", "transfer_mode", "type"] {
        check(without(b(), key), "missing_field", key);
        check(with(b(), key, json!([1])), "invalid_field", key);
        check(with(b(), key, json!(null)), "invalid_field", key);
    }
    for key in ["role", "request_address", "handshake_port", "notify_port", "dp_size", "tp_size", "transfer_mode"] {
        check(without(a(), key), "missing_field", key);
    }
    for size in [json!(0), json!(1025), json!(-1), json!(1.0), json!("8x"), json!(""), json!(u64::MAX)] {
        check(with(b(), "dp_size", size.clone()), "invalid_field", "dp_size is");
        check(with(a(), "tp_size", size), "invalid_field", "tp_size is");
    }
    for port in [json!(0), json!(65536), json!(-1), json!("70000")] {
        check(with(a(), "handshake_port", port), "invalid_field", "handshake_port is");
    }
    check(with(a(), "role", json!("X")), "invalid_field", "role is");
    // 19.
    for address in [
        "http://node-3/v1/completions",
        "http://:80/",
        "http://a@b:80",
        "http://node:0",
        "http://None:80",
        "http://a___decode_addr_b:80",
        "",
    ] {
        check(with(a(), "request_address", json!(address)), "invalid_field", "request_address is");
    }
    let tls = read(&with(a(), "request_address", json!("https://node-3:2584/v1/completions"))).unwrap_err();
    assert!(tls.to_string().contains("TLS to engines is not supported"), "{tls}");
    for address in ["10.0.0.1", "http://10.0.0.1:80", "0.0.0.0:80", ":::80", "None:80", "a/b:80"] {
        check(with(b(), "http_address", json!(address)), "invalid_field", "http_address is");
    }
    // The last listener of 8 x 1024 would be at 69196.
    check(with(b(), "dp_size", json!(1024)), "invalid_field", "zmq_address.notify is");
    check(with(a(), "dp_size", json!(1024)), "invalid_field", "notify_port is");
}

#[test]
fn bytes_that_are_no_message_are_dropped() {
    let label = |bytes: &[u8]| decode(bytes).map_err(|rejection| rejection.as_str());
    // 12.
    let good = pack(&b());
    assert_eq!(decode(&pack(&json!([1, 2]))), Err(Rejection::NotAMap));
    assert_eq!(decode(&pack(&json!(5))), Err(Rejection::NotAMap));
    assert_eq!(decode(b""), Err(Rejection::NotMsgpack));
    for end in 1..good.len() {
        assert_eq!(decode(&good[..end]), Err(Rejection::NotMsgpack), "{end}");
    }
    assert_eq!(decode(&[&good[..], &[0xc0]].concat()), Err(Rejection::Trailing));
    assert_eq!(decode(&[&good[..], &good[..]].concat()), Err(Rejection::Trailing));
    let mut twice = good.clone();
    twice[0] += 1;
    twice.extend([0xa4]);
    twice.extend(b"type\xa1D");
    assert!(matches!(decode(&twice), Err(Rejection::Duplicate(_))));
    assert_eq!(decode(&vec![0x80; MAX_MESSAGE_BYTES + 1]).unwrap_err().as_str(), "too_large");
    // Depth bombs, as value and as key, and lengths that are not there.
    for filler in [0x91, 0x81] {
        let bomb = [&[0x81, 0xa1, b'x'][..], &vec![filler; 60_000]].concat();
        assert_eq!(label(&bomb), Err("malformed"));
        assert_eq!(label(&[&[0x81][..], &vec![filler; 60_000]].concat()), Err("malformed"));
    }
    for length in [&[0xdf, 0xff, 0xff, 0xff, 0xff][..], &[0x81, 0xdb, 0xff, 0xff, 0xff, 0xff, b'x']] {
        assert_eq!(label(length), Err("malformed"));
    }
    let mut many = json!({});
    for number in 0..=MAX_KEYS {
        many[format!("k{number}")] = json!(0);
    }
    assert_eq!(read(&many), Err(Rejection::TooManyKeys));
}

#[test]
fn little_of_the_senders_text_is_repeated() {
    let evil = "\u{1b}[31m\n".repeat(5000);
    for key in ["type", "http_address", "zmq_address", "transfer_mode", "dp_size"] {
        let shown = read(&with(b(), key, json!(evil))).unwrap_err().to_string();
        assert!(shown.len() < 200 && shown.chars().all(|c| (' '..='~').contains(&c)), "{shown}");
    }
}

/// A host counts its ranks' ports from the base anew.
#[test]
fn ports_are_counted_on_each_host() {
    let mut wire = b();
    (wire["dp_size"], wire["tp_size"]) = (json!(32), json!(1));
    wire["zmq_address"] = json!("host:10.0.0.5,handshake:6301,notify:65520");
    let host = |number: u8| Host { address: format!("10.0.0.{number}"), http: None };
    let on = |count: u8, local| {
        decode_of(&pack(&wire), |_| Hosts::new((5..5 + count).map(host).collect(), local).map(Arc::new))
    };
    assert_eq!(decode(&pack(&wire)).unwrap_err().as_str(), "invalid_field");
    assert_eq!(on(2, 17).unwrap_err().as_str(), "invalid_field");
    let Ok(Message::Register(says, _)) = on(2, 16) else { panic!("the last port is 65535") };
    assert_eq!((says.spans(), says.notify_ports(31).last()), (true, Some(("10.0.0.6", u16::MAX))));
}

proptest! {
    #[test]
    fn nothing_panics(start in prop::sample::select(vec![pack(&a()), pack(&b())]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6), cut in any::<prop::sample::Index>()) {
        let mut bytes = start;
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        let _ = decode(&bytes);
        bytes.truncate(cut.index(bytes.len()));
        let _ = decode(&bytes);
    }
}
