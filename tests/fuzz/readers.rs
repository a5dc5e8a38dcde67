//! Registrations and requests: whatever comes, the answer is a value within its limits or an error.

use bytes::Bytes;
use moriio_proxy::api::Api;
use moriio_proxy::api::legs::{Ids, Pair, PrefillParams, decode_leg_read, decode_leg_write, prefill_leg};
use moriio_proxy::api::request::Request;
use moriio_proxy::engine::Registration;
use moriio_proxy::registration::decode::{self, Message};
use moriio_proxy::settings::TokenBudget;
use serde_json::{Value, json};

use super::fuzz;
use super::mutate::Random;

/// Engines' own messages, in either wording.
pub fn registrations() -> Vec<Vec<u8>> {
    let a = json!({"type": "register", "role": "P", "index": "7", "request_address": "http://10.0.0.1:8000/v1/completions",
        "handshake_port": 6301, "notify_port": 61005, "dp_size": 8, "tp_size": 1, "transfer_mode": "READ"});
    let b = json!({"type": "D", "http_address": "10.0.0.2:8000", "dp_size": 1, "tp_size": 8, "transfer_mode": "WRITE",
        "zmq_address": "host:10.0.0.2,handshake:6301,notify:61005"});
    [a, b].iter().map(|value| rmp_serde::to_vec_named(value).unwrap()).collect()
}

pub fn registration() -> Registration {
    match decode::decode(&registrations()[0]) {
        Ok(Message::Register(registration, _)) => registration,
        other => panic!("{other:?}"),
    }
}

#[test]
fn registrations_are_decoded_or_refused() {
    let words: [&[u8]; 14] = [
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xc0",
        b"\xca\x7f\xc0\0\0",
        b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\xd9\x01",
        b"\xa4type",
        b"\xa1P",
        b"\xa5HELLO",
        b"\xff",
        b"\x80",
        b"\xce\0\0\x04\0",
    ];
    let corpus = registrations();
    fuzz("decode::decode", |random| {
        let mut bytes = corpus[random.below(corpus.len())].clone();
        random.mutate(&mut bytes, &words);
        match decode::decode(&bytes) {
            Ok(Message::Register(says, unknown)) => {
                assert!((1..=1024).contains(&says.dp_size) && (1..=1024).contains(&says.tp_size));
                assert!(says.http.port != 0 && says.kv.handshake != 0 && says.kv.notify != 0);
                let last = says.dp_size * says.tp_size - 1;
                assert!(u32::from(says.kv.handshake.max(says.kv.notify)) + last <= 65535);
                assert!(unknown.len() <= 64 && unknown.iter().all(|key| key.len() <= 64 && key.is_ascii()));
                assert!(!says.kv.text.contains("___") && says.kv.text.bytes().all(|b| (b' '..=b'~').contains(&b)));
                let url = says.http.url("/health");
                let parsed = reqwest::Url::parse(&url).unwrap_or_else(|error| panic!("{url}: {error}"));
                assert_eq!(parsed.port_or_known_default(), Some(says.http.port), "{url}");
                assert_eq!((parsed.username(), parsed.path()), ("", "/health"), "{url}");
            }
            Ok(Message::Hello) => {}
            Err(rejection) => assert!(rejection.to_string().len() < 1024 && rejection.to_string().is_ascii()),
        }
    });
}

/// The words of requests and answers.
pub const JSON_WORDS: [&[u8]; 30] = [
    b"\"max_tokens\":",
    b"\"min_tokens\":",
    b"\"n\":2",
    b"\"stream\":true,",
    b"\"stream_options\":{},",
    b"\"sampling_params\":{\"max_tokens\":2}",
    b"\"kv_transfer_params\":",
    b"\"request_id\":1,",
    b"\\u006e",
    b"\\",
    b"\"",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"null",
    b"1e999",
    b"-0",
    b"18446744073709551616",
    b"0.70",
    b" ",
    b"\n",
    b"\xff",
    b"\xc3\xa9",
    b"\0",
    b"\"\":",
    b"\"\\ud800\"",
    b"true",
];

/// Requests of every API.
pub fn requests() -> [(Api, Value); 5] {
    let prompt = "one two \"three\" \\ four \u{e9}";
    [
        (
            Api::Completions,
            json!({"model": "m", "prompt": prompt, "max_tokens": 7, "min_tokens": 7, "stream": true, "temperature": 0.7}),
        ),
        (
            Api::Chat,
            json!({"model": "m", "messages": [{"role": "user", "content": prompt}], "max_completion_tokens": 9, "stream_options": {"include_usage": true}}),
        ),
        (
            Api::Responses,
            json!({"model": "m", "input": prompt, "max_output_tokens": 3, "kv_transfer_params": {"remote_host": "10.9.9.9"}}),
        ),
        (
            Api::Messages,
            json!({"model": "m", "messages": [{"role": "user", "content": prompt}], "max_tokens": 5, "stream": true}),
        ),
        (
            Api::Generate,
            json!({"token_ids": [1, 2, 3], "sampling_params": {"max_tokens": 5, "min_tokens": 2, "extra_args": {}}}),
        ),
    ]
}

/// A random request's text, damaged or not.
pub fn request(random: &mut Random) -> (Api, Vec<u8>) {
    let corpus = requests();
    let (api, value) = &corpus[random.below(corpus.len())];
    let mut text = value.to_string().into_bytes();
    random.mutate(&mut text, &JSON_WORDS);
    (*api, text)
}

#[test]
fn requests_become_two_legs_or_an_error() {
    let (prefill, decode) = (registration(), registration());
    let params = json!({"kv_transfer_params": {"remote_block_ids": [1], "remote_dp_rank": 3}}).to_string();
    let params = PrefillParams::from_answer(Bytes::from(params)).unwrap();
    fuzz("Request::parse", |random| {
        let (api, text) = request(random);
        let Ok(request) = Request::parse(api, Bytes::from(text.clone()), TokenBudget::MinusOne) else {
            return;
        };
        let pair = Pair { prefill: &prefill, decode: &decode, rank: Some(3), decode_rank: None };
        let ids = Ids::fresh(&pair, random.one_in(2));
        let first = prefill_leg(&request, &pair, &ids);
        assert_eq!(first.len(), first.to_vec().len() as u64);
        for (leg, saves) in [
            (first, true),
            (decode_leg_write(&request, &pair, &ids), false),
            (decode_leg_read(&request, &pair, &ids, &params), false),
        ] {
            let text = leg.to_vec();
            let Ok(leg) = serde_json::from_slice::<Value>(&text) else {
                // Numbers and escapes that no reader takes pass as they came; the engine refuses them.
                assert!(serde_json::from_slice::<&serde_json::value::RawValue>(&text).is_ok());
                continue;
            };
            let hex = ids.request_id.rsplit('_').next().unwrap();
            let id = if api == Api::Responses { format!("resp_{hex}") } else { ids.request_id.clone() };
            assert_eq!(leg["request_id"], id);
            assert_eq!(leg["kv_transfer_params"]["transfer_id"], ids.transfer_id.as_str());
            assert_eq!(leg["kv_transfer_params"]["do_remote_decode"], saves);
            assert_ne!(leg["kv_transfer_params"]["remote_host"], "10.9.9.9");
            let limit = |key: &str| {
                if api == Api::Generate { &leg["sampling_params"][key] } else { &leg[key] }
            };
            for key in ["max_tokens", "max_completion_tokens", "max_output_tokens"] {
                let clamped = limit(key).is_null() || limit(key).as_f64().is_some_and(|number| number >= 1.0);
                let known = api != Api::Responses || key == "max_output_tokens";
                assert!(clamped || !known || key == "max_output_tokens" || api == Api::Generate, "{key}: {leg}");
            }
            if saves {
                assert_eq!(leg["stream"], false);
                assert_eq!(leg.get("stream_options"), None);
                match api {
                    Api::Responses => assert!(leg["ignore_eos"] == true && leg["store"] == false, "{leg}"),
                    Api::Messages => {}
                    _ => assert!(limit("min_tokens") == 1, "{leg}"),
                }
            }
        }
    });
}

#[test]
fn prefills_answer_gives_params_with_blocks_or_an_error() {
    let answer = json!({"id": "x", "choices": [{"text": "a"}], "usage": {"prompt_tokens_details": {"cached_tokens": 4}},
        "kv_transfer_params": {"remote_block_ids": [[1, 2], [3]], "remote_host": "10.0.0.1", "remote_dp_rank": 2, "tp_size": null}});
    let words: [&[u8]; 6] =
        [b"\"remote_block_ids\":", b"\"remote_dp_rank\":", b"null", b"[]", b"\"kv_transfer_params\":{", b"}"];
    let words: Vec<&[u8]> = JSON_WORDS.iter().copied().chain(words).collect();
    fuzz("PrefillParams::from_answer", |random| {
        let mut text = answer.to_string().into_bytes();
        random.mutate(&mut text, &words);
        let text = Bytes::from(text);
        for api in Api::ALL {
            let _ = moriio_proxy::api::usage::Prompt::of(api, &text, true);
        }
        let Ok(params) = PrefillParams::from_answer(text.clone()) else { return };
        assert!(params.named_rank(8).is_none_or(|rank| rank < 8));
        if let (Ok(whole), Ok(own)) =
            (serde_json::from_slice::<Value>(&text), serde_json::from_slice::<Value>(params.text()))
        {
            assert_eq!(whole["kv_transfer_params"], own);
            assert!(own["remote_block_ids"].is_array());
        }
    });
}
