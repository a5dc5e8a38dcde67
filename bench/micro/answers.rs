//! What is read of prefill's answer, which names this many blocks.

use bytes::Bytes;
use divan::{Bencher, black_box};
use moriio_proxy::api::Api;
use moriio_proxy::api::legs::{Ids, Pair, ParamsError, PrefillParams, decode_leg_read};
use moriio_proxy::api::request::Request;
use moriio_proxy::api::usage::Prompt;
use moriio_proxy::json::Segments;
use moriio_proxy::settings::TokenBudget;

use serde_json::json;

use super::support::{chat, registered};

const BLOCKS: [u64; 3] = [64, 1024, 8192];

fn answer(blocks: u64, details: serde_json::Value) -> Bytes {
    let params = json!({"remote_block_ids": [(0..blocks).collect::<Vec<_>>()], "remote_host": "10.0.0.1", "remote_dp_rank": 0,
        "remote_engine_id": "10.0.0.1:6000", "remote_port": 6000, "tp_size": 8});
    let usage = json!({"prompt_tokens": 16 * blocks, "completion_tokens": 1, "prompt_tokens_details": details});
    let answer = json!({"id": "x", "choices": [{"text": "a"}], "usage": usage, "kv_transfer_params": params});
    Bytes::from(answer.to_string())
}

/// An answer that says nothing of cached tokens, as without `--enable-prompt-tokens-details`.
#[divan::bench(args = BLOCKS)]
fn no_cached_tokens(bencher: Bencher, blocks: u64) {
    let answer = answer(blocks, json!(null));
    bencher.bench(|| Prompt::of(Api::Chat, black_box(&answer), true));
}

/// One that does.
#[divan::bench(args = BLOCKS)]
fn cached_tokens_told(bencher: Bencher, blocks: u64) {
    let answer = answer(blocks, json!({"cached_tokens": 16}));
    bencher.bench(|| Prompt::of(Api::Chat, black_box(&answer), true));
}

/// READ: from prefill's answer to decode's body.
#[divan::bench(args = BLOCKS)]
fn decode_leg_from_answer(bencher: Bencher, blocks: u64) {
    let answer = answer(blocks, json!(null));
    let request = Request::parse(Api::Chat, Bytes::from(chat(2048)), TokenBudget::Exact).expect("a request");
    let (prefill, decode) = (registered(0, "P", 1), registered(1, "D", 1));
    let pair = Pair { prefill: &prefill, decode: &decode, rank: None, decode_rank: None };
    let ids = Ids::fresh(&pair, false);
    bencher.bench(|| -> Result<Segments, ParamsError> {
        let params = PrefillParams::from_answer(black_box(&answer).clone())?;
        Ok(decode_leg_read(&request, &pair, &ids, &params))
    });
}
