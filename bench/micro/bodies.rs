//! A client's body on its way to both legs.

use bytes::Bytes;
use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use moriio_proxy::api::Api;
use moriio_proxy::api::legs::{Ids, Pair, decode_leg_write, prefill_leg};
use moriio_proxy::api::request::Request;
use moriio_proxy::json::Body;
use moriio_proxy::settings::TokenBudget;
use serde_json::Value;

use super::support::{SIZES, chat, plain, registered, wide};

/// What both legs cost, from the client's body to what is sent.
#[divan::bench(args = SIZES)]
fn both_legs(bencher: Bencher, size: usize) {
    let text = Bytes::from(chat(size));
    let (prefill, decode) = (registered(0, "P", 1), registered(1, "D", 1));
    let pair = Pair { prefill: &prefill, decode: &decode, rank: None, decode_rank: None };
    bencher.counter(BytesCount::new(text.len())).bench(|| {
        let request = Request::parse(Api::Chat, text.clone(), TokenBudget::Exact).expect("a request");
        let ids = Ids::fresh(&pair, false);
        (prefill_leg(&request, &pair, &ids), decode_leg_write(&request, &pair, &ids))
    });
}

/// The least that two bodies could cost if they were copied.
#[divan::bench(args = SIZES)]
fn both_legs_as_memcpy(bencher: Bencher, size: usize) {
    let text = chat(size);
    bencher.counter(BytesCount::new(text.len())).bench(|| (black_box(&text).clone(), black_box(&text).clone()));
}

/// What they would cost as trees.
#[divan::bench(args = SIZES)]
fn both_legs_by_full_parse(bencher: Bencher, size: usize) {
    let text = chat(size);
    bencher.counter(BytesCount::new(text.len())).bench(|| {
        let mut leg: Value = serde_json::from_slice(black_box(&text)).expect("JSON");
        leg["kv_transfer_params"] = Value::Null;
        leg["max_tokens"] = 1.into();
        (serde_json::to_vec(&leg), serde_json::to_vec(&leg))
    });
}

fn scan(bencher: Bencher, text: Vec<u8>) {
    let text = Bytes::from(text);
    bencher.counter(BytesCount::new(text.len())).bench(|| Body::parse(black_box(&text).clone()));
}

/// The scan alone, of code in a chat.
#[divan::bench(args = SIZES)]
fn scan_code(bencher: Bencher, size: usize) {
    scan(bencher, chat(size));
}

/// The scan alone, of English.
#[divan::bench(args = SIZES)]
fn scan_english(bencher: Bencher, size: usize) {
    scan(bencher, plain(size));
}

/// The scan alone, of Chinese.
#[divan::bench(args = SIZES)]
fn scan_chinese(bencher: Bencher, size: usize) {
    scan(bencher, wide(size));
}
