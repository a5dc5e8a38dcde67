//! Cases have numbers, so that one that fails can be named. Its decode limits are those of the exact budget.

mod wide;

use serde_json::{Value, json};

use super::*;
use crate::engine::{Dialect, HttpAddress, KvEndpoint, Mode, Role};
use crate::settings::TokenBudget;

fn engine(role: Role, host: &str, ports: [u16; 3]) -> Registration {
    let [http, handshake, notify] = ports;
    Registration {
        role,
        http: HttpAddress { host: host.to_owned(), port: http },
        kv: KvEndpoint {
            host: host.to_owned(),
            handshake,
            notify,
            text: format!("host:{host},handshake:{handshake},notify:{notify}"),
        },
        dp_size: 1,
        tp_size: 8,
        mode: Mode::Write,
        dialect: Dialect::B,
        index: None,
        hosts: None,
    }
}

fn p1() -> Registration {
    engine(Role::Prefill, "10.0.0.1", [20005, 6301, 61005])
}

fn d1() -> Registration {
    engine(Role::Decode, "10.0.0.2", [40005, 7301, 7501])
}

fn pair<'a>(prefill: &'a Registration, decode: &'a Registration, rank: Option<u32>) -> Pair<'a> {
    Pair { prefill, decode, rank, decode_rank: None }
}

fn request(api: Api, text: &str) -> Request {
    Request::parse(api, Bytes::copy_from_slice(text.as_bytes()), TokenBudget::Exact).unwrap()
}

fn value(segments: &Segments) -> Value {
    let whole = segments.to_vec();
    assert_eq!(segments.len(), whole.len() as u64);
    serde_json::from_slice(&whole).unwrap()
}

/// Both legs of a WRITE exchange.
fn legs(request: &Request, pair: &Pair<'_>, ids: &Ids) -> (Value, Value) {
    (value(&prefill_leg(request, pair, ids)), value(&decode_leg_write(request, pair, ids)))
}

fn to_decode(ids: &Ids) -> Value {
    json!({"do_remote_decode": true, "do_remote_prefill": false, "transfer_id": ids.transfer_id,
        "remote_engine_id": null, "remote_block_ids": null, "remote_host": "10.0.0.2", "remote_port": 7301,
        "remote_handshake_port": 7301, "remote_notify_port": 7501, "remote_dp_size": 1, "remote_tp_size": 8, "tp_size": 8})
}

fn to_prefill(ids: &Ids) -> Value {
    json!({"do_remote_decode": false, "do_remote_prefill": true, "transfer_id": ids.transfer_id,
        "remote_engine_id": "10.0.0.1:6301", "remote_block_ids": [], "remote_host": "10.0.0.1", "remote_port": 6301,
        "remote_handshake_port": 6301, "remote_notify_port": 61005, "remote_dp_size": 1, "remote_tp_size": 8, "tp_size": 8})
}

fn params_of(answer: &str) -> Result<PrefillParams, ParamsError> {
    PrefillParams::from_answer(Bytes::copy_from_slice(answer.as_bytes()))
}

/// The decode leg's params after prefill gave this answer.
fn read_params(answer: &Value, pair: &Pair<'_>, ids: &Ids) -> Value {
    let answer = json!({"id": "x", "choices": [], "kv_transfer_params": answer});
    let params = params_of(&answer.to_string()).unwrap();
    let request = request(Api::Chat, r#"{"messages":[],"kv_transfer_params":{"remote_host":"evil"}}"#);
    let leg = value(&decode_leg_read(&request, pair, ids, &params));
    assert_eq!(leg["request_id"], ids.request_id);
    leg["kv_transfer_params"].clone()
}

#[test]
fn write_legs() {
    // 24, 30.
    let (p, d) = (p1(), d1());
    let pair = pair(&p, &d, None);
    let ids = Ids::fresh(&pair, false);
    let text =
        r#"{"model":"m","prompt":"p","max_tokens":100,"stream":true,"stream_options":{"include_usage":true},"x":0.70}"#;
    let request = request(Api::Completions, text);
    let (prefill, decode) = legs(&request, &pair, &ids);
    let want = json!({"model": "m", "prompt": "p", "max_tokens": 1, "stream": false, "x": 0.70, "min_tokens": 1,
        "request_id": ids.request_id, "kv_transfer_params": to_decode(&ids)});
    assert_eq!(prefill, want);
    assert!(request.stream);
    let params = to_prefill(&ids);
    let mut want: Value = serde_json::from_str(text).unwrap();
    want["request_id"] = json!(ids.request_id);
    want["kv_transfer_params"] = params;
    assert_eq!(decode, want);
    // The client's bytes stay as they were, and what is ours follows them.
    let whole = String::from_utf8(decode_leg_write(&request, &pair, &ids).to_vec()).unwrap();
    assert!(whole.starts_with(&text[..text.len() - 1]), "{whole}");
}

#[test]
fn ids_have_the_form_that_engines_search() {
    // 25.
    let (p, d) = (p1(), d1());
    let pair = pair(&p, &d, None);
    let hex = |text: &str| text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let ids = Ids::fresh(&pair, false);
    let start = "___prefill_addr_host:10.0.0.1,handshake:6301,notify:61005___decode_addr_host:10.0.0.2,handshake:7301,notify:7501_";
    assert!(ids.request_id.strip_prefix(start).is_some_and(hex), "{}", ids.request_id);
    assert!(ids.transfer_id.strip_prefix("tx-").is_some_and(hex), "{}", ids.transfer_id);
    let other = Ids::fresh(&pair, true);
    assert!(hex(&other.request_id) && other.transfer_id != ids.transfer_id);
    assert!(!ids.transfer_id.ends_with(&ids.request_id[start.len()..]));
}

#[test]
fn read_keeps_prefills_answer_and_adds_what_is_absent() {
    let (p, d) = (p1(), d1());
    let pair = pair(&p, &d, None);
    let ids = Ids::fresh(&pair, false);
    // 27.
    let mut answer = json!({"do_remote_prefill": true, "do_remote_decode": false, "remote_block_ids": [[4, 5, 6]],
        "remote_engine_id": "10.0.0.1:6301", "remote_host": "10.0.0.1", "remote_handshake_port": "6301",
        "remote_notify_port": "61005", "remote_dp_rank": 0, "remote_dp_rank_override": true, "remote_dp_size": 1,
        "remote_dp_size_local": 1, "tp_size": 8, "transfer_id": ids.transfer_id, "remote_prefill_cached_tokens": 16});
    let got = read_params(&answer, &pair, &ids);
    answer["remote_port"] = json!(6301);
    answer["remote_tp_size"] = json!(8);
    assert_eq!(got, answer);
    // 28.
    let mut answer = json!({"do_remote_prefill": true, "do_remote_decode": false, "remote_block_ids": [4, 5, 6],
        "remote_engine_id": "e", "tp_size": 8, "transfer_id": ids.transfer_id});
    let got = read_params(&answer, &pair, &ids);
    let added = [
        ("remote_host", json!("10.0.0.1")),
        ("remote_port", json!(6301)),
        ("remote_handshake_port", json!(6301)),
        ("remote_notify_port", json!(61005)),
        ("remote_dp_size", json!(1)),
        ("remote_tp_size", json!(8)),
    ];
    for (key, value) in added {
        answer[key] = value;
    }
    assert_eq!(got, answer);
    // 29.
    let mut answer = json!({"do_remote_prefill": true, "do_remote_decode": false, "remote_block_ids": [4, 5, 6],
        "remote_engine_id": "e", "tp_size": 8, "remote_host": "10.0.0.1", "remote_port": "6301"});
    let got = read_params(&answer, &pair, &ids);
    for (key, value) in [("transfer_id", json!(ids.transfer_id)), ("remote_handshake_port", json!(6301))] {
        answer[key] = value;
    }
    answer["remote_notify_port"] = json!(61005);
    answer["remote_dp_size"] = json!(1);
    answer["remote_tp_size"] = json!(8);
    assert_eq!(got, answer);
}

#[test]
fn read_repairs_what_would_end_an_engine() {
    let (p, d) = (p1(), d1());
    let pair = pair(&p, &d, None);
    let ids = Ids::fresh(&pair, false);
    let answer = json!({"do_remote_prefill": false, "remote_block_ids": [1], "remote_engine_id": null, "remote_host": null,
        "remote_dp_size": null, "remote_dp_rank": "0", "remote_dp_size_local": null, "new": [null, {"a": 1.50}]});
    let got = read_params(&answer, &pair, &ids);
    let mut want = to_prefill(&ids);
    want["remote_block_ids"] = json!([1]);
    want["remote_dp_rank"] = json!(0);
    want["new"] = json!([null, {"a": 1.50}]);
    assert_eq!(got, want);
}

#[test]
fn ranks_agree_on_both_legs() {
    // 32.
    let (mut p, mut d) = (p1(), d1());
    p.dp_size = 4;
    let plain = request(Api::Completions, "{}");
    let pinned = pair(&p, &d, Some(2));
    let ids = Ids::fresh(&pinned, true);
    let (prefill, decode) = legs(&plain, &pinned, &ids);
    assert_eq!(prefill_rank(&pinned), Some(2));
    assert_eq!(decode["kv_transfer_params"]["remote_dp_rank"], 2);
    assert_eq!(decode["kv_transfer_params"]["remote_dp_size"], 4);
    assert_eq!(decode["kv_transfer_params"].get("remote_dp_rank_override"), None);
    assert_eq!(prefill["kv_transfer_params"].get("remote_dp_rank"), None);
    // 34, and ranks that are none.
    let answer = |rank: Value| json!({"remote_block_ids": [1], "remote_dp_rank": rank});
    let rank_of = |answer: &Value| read_params(answer, &pinned, &ids)["remote_dp_rank"].clone();
    assert_eq!(rank_of(&answer(json!(3))), 3);
    for bad in [json!(4), json!(-1), json!(1.5), json!("1"), json!(null), json!(true), json!([1])] {
        assert_eq!(rank_of(&answer(bad.clone())), 2, "{bad}");
    }
    assert_eq!(rank_of(&json!({"remote_block_ids": [1]})), 2);
    let params = |rank: Value| {
        let text = json!({"kv_transfer_params": answer(rank)}).to_string();
        params_of(&text).unwrap()
    };
    assert_eq!(params(json!(3)).named_rank(4), Some(3));
    assert_eq!(params(json!(4)).named_rank(4), None);
    // 33.
    d.dp_size = 2;
    let p = p1();
    let unpinned = pair(&p, &d, Some(0));
    let (prefill, decode) = legs(&plain, &unpinned, &ids);
    assert_eq!(prefill["kv_transfer_params"]["remote_dp_size"], 2);
    assert_eq!(decode["kv_transfer_params"].get("remote_dp_rank"), None);
    assert_eq!(prefill_rank(&unpinned), None);
    // 36.
    d.tp_size = 4;
    let (prefill, decode) = legs(&plain, &pair(&p, &d, None), &ids);
    for (leg, size) in [(prefill, 4), (decode, 8)] {
        assert_eq!(leg["kv_transfer_params"]["remote_tp_size"], size);
        assert_eq!(leg["kv_transfer_params"]["tp_size"], size);
    }
}

#[test]
fn a_clients_own_ids_and_params_never_pass() {
    // 38.
    let (p, d) = (p1(), d1());
    let pair = pair(&p, &d, None);
    let ids = Ids::fresh(&pair, false);
    let text = r#"{"kv_transfer_params":{"remote_host":"evil"},"request_id":"evil","\u006bv_transfer_params":"evil","request_id":"evil"}"#;
    let request = request(Api::Chat, text);
    for leg in [prefill_leg(&request, &pair, &ids), decode_leg_write(&request, &pair, &ids)] {
        assert!(!String::from_utf8(leg.to_vec()).unwrap().contains("evil"));
        assert_eq!(value(&leg)["request_id"], ids.request_id);
    }
}

#[test]
fn limits_on_both_legs() {
    let (p, d) = (p1(), d1());
    let pair = pair(&p, &d, None);
    let ids = Ids::fresh(&pair, true);
    let check = |api: Api, text: &str, prefill: Value, exact: Value, less: Value| {
        let strip = |leg: Segments, ours: &[&str]| {
            let mut leg = value(&leg);
            for key in ours {
                assert!(leg.as_object_mut().unwrap().remove(*key).is_some(), "{key}");
            }
            leg
        };
        let mut request = request(api, text);
        let got = strip(prefill_leg(&request, &pair, &ids), &["stream", "request_id", PARAMS]);
        assert_eq!(got, prefill, "{text}");
        let ours = ["request_id", PARAMS];
        assert_eq!(strip(decode_leg_write(&request, &pair, &ids), &ours), exact, "{text}");
        request.budget = TokenBudget::MinusOne;
        assert_eq!(strip(decode_leg_write(&request, &pair, &ids), &ours), less, "{text}");
    };
    // 39.
    let one = json!({"max_tokens": 1, "min_tokens": 1});
    let same = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    check(Api::Completions, r#"{"max_tokens":1}"#, one.clone(), json!({"max_tokens": 1}), json!({"max_tokens": 1}));
    check(
        Api::Chat,
        r#"{"max_completion_tokens":50}"#,
        json!({"max_completion_tokens": 1, "max_tokens": 1, "min_tokens": 1}),
        json!({"max_completion_tokens": 50}),
        json!({"max_completion_tokens": 49}),
    );
    check(Api::Completions, "{}", one.clone(), json!({}), json!({}));
    let null = r#"{"max_tokens":null}"#;
    check(Api::Completions, null, one.clone(), same(null), same(null));
    // 41.
    let text = r#"{"max_tokens":20,"min_tokens":20}"#;
    check(Api::Chat, text, one, same(text), json!({"max_tokens": 19, "min_tokens": 19}));
    check(
        Api::Responses,
        r#"{"input":"x","max_output_tokens":7}"#,
        json!({"input": "x", "max_output_tokens": 1, "ignore_eos": true, "stop_token_ids": [], "store": false}),
        json!({"input": "x", "max_output_tokens": 7}),
        json!({"input": "x", "max_output_tokens": 6}),
    );
    check(
        Api::Generate,
        r#"{"token_ids":[1],"sampling_params":{"seed":5,"max_tokens":7}}"#,
        json!({"token_ids": [1], "sampling_params": {"seed": 5, "max_tokens": 1, "min_tokens": 1}}),
        json!({"token_ids": [1], "sampling_params": {"seed": 5, "max_tokens": 7}}),
        json!({"token_ids": [1], "sampling_params": {"seed": 5, "max_tokens": 6}}),
    );
    let clamped = json!({"sampling_params": {"max_tokens": 1, "min_tokens": 1}});
    for text in ["{}", r#"{"sampling_params":null}"#, r#"{"sampling_params":{}}"#] {
        check(Api::Generate, text, clamped.clone(), same(text), same(text));
    }
}

/// Both legs of an exchange and the leg of prefill alone, without what is ours.
fn bare(api: Api, text: &str) -> [Value; 3] {
    let (p, d) = (p1(), d1());
    let pair = pair(&p, &d, None);
    let ids = Ids::fresh(&pair, true);
    let request = request(api, text);
    let legs = [prefill_leg(&request, &pair, &ids), decode_leg_write(&request, &pair, &ids), alone_leg(&request, &ids)];
    legs.map(|leg| {
        let mut leg = value(&leg);
        let (id, ours) = (leg["request_id"].clone(), leg.as_object_mut().unwrap());
        let want = if api == Api::Responses { format!("resp_{}", ids.request_id) } else { ids.request_id.clone() };
        assert_eq!(id, want);
        for key in ["request_id", PARAMS, "stream", "max_tokens", "min_tokens"] {
            ours.shift_remove(key);
        }
        leg
    })
}

#[test]
fn what_only_grows_prefills_answer_goes_to_decode_alone() {
    let text = r#"{"prompt":"p","logprobs":2,"echo":true,"return_token_ids":true,"return_prompt_text":true,
        "return_tokens_as_token_ids":true,"structured_outputs":{"choice":["a"]},"seed":1,"max_tokens":1}"#;
    let text = text.replace(r#""logprobs":2,"#, "");
    let [prefill, decode, _] = bare(Api::Completions, &text);
    assert_eq!(prefill, json!({"prompt": "p", "seed": 1}));
    assert_eq!(decode["echo"], true);
    assert_eq!(decode["structured_outputs"], json!({"choice": ["a"]}));
    let text =
        r#"{"messages":[],"logprobs":true,"top_logprobs":3,"response_format":{"type":"json_object"},"tools":[{}]}"#;
    let [prefill, decode, _] = bare(Api::Chat, text);
    assert_eq!(prefill, json!({"messages": [], "response_format": {"type": "json_object"}, "tools": [{}]}));
    assert_eq!(decode, serde_json::from_str::<Value>(text).unwrap());
    let text = r#"{"token_ids":[1],"sampling_params":{"logprobs":1,"structured_outputs":{},"seed":3}}"#;
    let [prefill, decode, _] = bare(Api::Generate, text);
    assert_eq!(prefill["sampling_params"], json!({"seed": 3, "max_tokens": 1, "min_tokens": 1}));
    assert_eq!(decode, serde_json::from_str::<Value>(text).unwrap());
}

#[test]
fn a_tool_by_name_is_any_tool_for_prefill() {
    let leg =
        |choice: &str| bare(Api::Messages, &format!(r#"{{"messages":[],"max_tokens":9,"tool_choice":{choice}}}"#));
    for choice in [r#"{"type":"tool","name":"f"}"#, r#"{"name":"f","type":"t\u006fol"}"#] {
        let [prefill, decode, _] = leg(choice);
        assert_eq!(prefill["tool_choice"], json!({"type": "any"}));
        assert_eq!(decode["tool_choice"]["name"], "f");
    }
    for choice in [r#"{"type":"any"}"#, r#"{"type":"none"}"#, "null", "7"] {
        let [prefill, decode, _] = leg(choice);
        assert_eq!(prefill, decode, "{choice}");
    }
}

#[test]
fn prefill_alone_gets_the_clients_own_request() {
    let text = r#"{"prompt":"p","max_tokens":1,"echo":true,"logprobs":0,"stream":true,"stream_options":{"include_usage":true}}"#;
    let (p, d) = (p1(), d1());
    let ids = Ids::fresh(&pair(&p, &d, None), true);
    let mut request = request(Api::Completions, text);
    request.budget = TokenBudget::MinusOne;
    let whole = String::from_utf8(alone_leg(&request, &ids).to_vec()).unwrap();
    assert_eq!(whole, format!(r#"{},"request_id":"{}"}}"#, &text[..text.len() - 1], ids.request_id));
    let hiding = r#"{"prompt":"p","max_tokens":1,"prompt_logprobs":1,"kv_transfer_params":{"remote_host":"evil"}}"#;
    let [_, _, alone] = bare(Api::Completions, hiding);
    assert_eq!(alone, json!({"prompt": "p", "prompt_logprobs": 1}));
}

#[test]
fn an_answer_without_blocks_is_an_error() {
    let check = |text: &str, want: ParamsError| assert_eq!(params_of(text).unwrap_err(), want, "{text}");
    for text in ["", "[]", "<html>", "{\"a\":1"] {
        check(text, ParamsError::Unreadable);
    }
    check("{}", ParamsError::Missing);
    for params in ["null", "[]", "1", "\"x\"", "{}"] {
        check(&format!(r#"{{"kv_transfer_params":{params}}}"#), ParamsError::Missing);
    }
    for ids in ["null", "[]", "[[]]", "[[],[ ]]", "{\"0\":1}", "5", "\"[1]\"", "[null]"] {
        let text = format!(r#"{{"kv_transfer_params":{{"remote_block_ids":{ids}}}}}"#);
        check(&text, ParamsError::Missing);
    }
    let text = "{\"kv_transfer_params\" : { \"remote_block_ids\":[[],[0]] , \"x\":1.50}}";
    let params = params_of(text).unwrap();
    assert_eq!(params.text(), &b"{ \"remote_block_ids\":[[],[0]] , \"x\":1.50}"[..]);
}

#[test]
fn a_long_prompt_is_shared_by_both_legs() {
    let (p, d) = (p1(), d1());
    let pair = pair(&p, &d, None);
    let ids = Ids::fresh(&pair, false);
    let text = format!(r#"{{"model":"m","prompt":"{}","max_tokens":9,"stream":true}}"#, "x".repeat(100_000));
    let request = request(Api::Completions, &text);
    for leg in [prefill_leg(&request, &pair, &ids), decode_leg_write(&request, &pair, &ids)] {
        let inside = request.body.text().as_ptr_range();
        let shared = leg.parts().iter().filter(|part| inside.contains(&part.as_ptr()));
        assert!(shared.map(Bytes::len).sum::<usize>() >= 100_000);
        assert!(leg.parts().len() <= 3);
    }
}
