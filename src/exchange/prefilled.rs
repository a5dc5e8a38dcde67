//! What is in prefill's answer. A long prompt's has megabytes of block ids, so it may be read on any thread.

use bytes::Bytes;
use serde_json::Value;

use crate::api::Api;
use crate::api::legs::{ParamsError, PrefillParams};
use crate::api::{message, usage};

/// What an exchange has to know of it.
#[derive(Debug)]
pub struct Prefilled {
    /// Prompt tokens whose KV cache prefill had.
    pub cached_tokens: Option<u64>,
    /// The same for clients: none at all where its usage has no details.
    pub told_cached: Option<u64>,
    /// Tokens of the prompt, where somebody is to hear of its usage.
    pub prompt_tokens: Option<u64>,
    /// The answer as a whole message, where nothing is left for decode (protocol O15).
    pub message: Option<Value>,
    /// READ: what decode loads the blocks by.
    pub params: Option<Result<PrefillParams, ParamsError>>,
}

impl Prefilled {
    /// Reads an answer; in READ with its params, and its usage where somebody `hears` of it.
    pub fn of(answer: Bytes, api: Api, is_read: bool, hears: bool) -> Prefilled {
        let message = message::complete(api, &answer);
        let prompt = usage::Prompt::of(api, &answer, hears);
        let wants_params = is_read && message.is_none();
        let params = wants_params.then(|| PrefillParams::from_answer(answer));
        let (cached_tokens, told_cached) = (prompt.cached, prompt.cached.or(prompt.has_no_details.then_some(0)));
        Prefilled { cached_tokens, told_cached, prompt_tokens: prompt.tokens, message, params }
    }
}
