//! What a prompt begins with, as `cache_aware` has it: at most twice one hash of the whole.

use bytes::Bytes;
use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use moriio_proxy::api::request::Request;
use moriio_proxy::api::{Api, prefix};
use moriio_proxy::settings::TokenBudget;
use serde_json::json;
use xxhash_rust::xxh3::xxh3_64;

use super::support::{SIZES, chat};

fn hashes(bencher: Bencher, api: Api, text: Vec<u8>) {
    let text = Bytes::from(text);
    let request = Request::parse(api, text.clone(), TokenBudget::Exact).expect("a request");
    bencher.counter(BytesCount::new(text.len())).bench(|| prefix::hashes(black_box(&request)));
}

/// The hashes of a chat's blocks.
#[divan::bench(args = SIZES)]
fn hashes_of_a_chat(bencher: Bencher, size: usize) {
    hashes(bencher, Api::Chat, chat(size));
}

/// The same of a message, in which marks of what is to be cached are left out.
#[divan::bench(args = SIZES)]
fn hashes_of_a_message(bencher: Bencher, size: usize) {
    let words = "some words of a long text, one after another, and then some more. ".repeat(size / 66 + 1);
    let message = json!({"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": &words[..size]}]});
    hashes(bencher, Api::Messages, message.to_string().into_bytes());
}

/// One hash of the whole.
#[divan::bench(args = SIZES)]
fn one_hash(bencher: Bencher, size: usize) {
    let text = chat(size);
    bencher.counter(BytesCount::new(text.len())).bench(|| xxh3_64(black_box(&text)));
}
