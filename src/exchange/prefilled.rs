//! What is in prefill's answer. A long prompt's has megabytes of block ids, so it may be read on any thread.

use bytes::Bytes;
use serde_json::Value;

use crate::api::Api;
use crate::api::legs::{ParamsError, PrefillParams, cached_tokens, may_say_cached_tokens, says_none_cached};
use crate::api::message;
use crate::json::Body;

/// What an exchange has to know of it.
#[derive(Debug)]
pub struct Prefilled {
    /// Prompt tokens whose KV cache prefill had.
    pub cached_tokens: Option<u64>,
    /// The same for clients: none at all where its usage has no details.
    pub told_cached: Option<u64>,
    /// Tokens of the prompt, where the others are told.
    pub prompt_tokens: Option<u64>,
    /// The answer as a whole message, where nothing is left for decode (protocol O15).
    pub message: Option<Value>,
    /// READ: what decode loads the blocks by.
    pub params: Option<Result<PrefillParams, ParamsError>>,
}

impl Prefilled {
    /// Reads an answer; in READ with its params.
    pub fn of(answer: Bytes, api: Api, is_read: bool) -> Prefilled {
        let message = message::complete(api, &answer);
        let is_asked = is_read || may_say_cached_tokens(&answer);
        let is_none = says_none_cached(&answer);
        let object = is_asked.then(|| Body::parse(answer).map_err(ParamsError::from));
        let usage = object.as_ref().and_then(|object| object.as_ref().ok());
        let (cached_tokens, prompt_tokens) = usage.map(cached_tokens).unwrap_or_default();
        let params = object.filter(|_| is_read && message.is_none());
        let params = params.map(|object| object.and_then(|object| PrefillParams::from_answer(&object)));
        let told_cached = cached_tokens.or(is_none.then_some(0));
        Prefilled { cached_tokens, told_cached, prompt_tokens, message, params }
    }
}
