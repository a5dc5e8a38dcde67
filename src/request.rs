//! A client's request as far as the proxy must understand it: what is refused before any engine is asked, whether it
//! streams, and its token limits.

use bytes::Bytes;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::api::Api;
use crate::body::{Body, BodyError};
use crate::error::ProxyError;

/// What decode is told of the client's token limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenBudget {
    /// One less, never below one: what the proxies do that users compare with.
    MinusOne,
    /// The client's number: decode samples the first token itself, so as many come back as were asked for.
    Exact,
}

/// The client's token limits; `null` is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// `max_tokens` (completions, chat; generate: inside `sampling_params`).
    pub max_tokens: Option<u64>,
    /// `max_completion_tokens` (chat).
    pub max_completion_tokens: Option<u64>,
    /// `max_output_tokens` (responses).
    pub max_output_tokens: Option<u64>,
    /// `min_tokens`, beside `max_tokens`.
    pub min_tokens: Option<u64>,
}

impl Limits {
    /// The limit that engines go by: they read `max_tokens` only where no newer name is used.
    pub fn effective(&self) -> Option<u64> {
        self.max_output_tokens.or(self.max_completion_tokens).or(self.max_tokens)
    }

    /// What decode is told. Only numbers change: what is absent stays absent.
    pub fn for_decode(&self, budget: TokenBudget) -> Limits {
        if budget == TokenBudget::Exact {
            return *self;
        }
        let less = |limit: Option<u64>| limit.map(|limit| limit.saturating_sub(1).max(1));
        let mut limits = Limits {
            max_tokens: less(self.max_tokens),
            max_completion_tokens: less(self.max_completion_tokens),
            max_output_tokens: less(self.max_output_tokens),
            min_tokens: self.min_tokens,
        };
        // Engines refuse a minimum above the maximum, so it follows.
        if let (Some(min), Some(max)) = (self.min_tokens, limits.effective()) {
            limits.min_tokens = Some(min.min(max));
        }
        limits
    }
}

/// A request that may be sent to a pair.
#[derive(Clone, Debug)]
pub struct Request {
    /// The route.
    pub api: Api,
    /// The client's body.
    pub body: Body,
    /// Generate: its `sampling_params`, where the client sent an object.
    pub sampling: Option<Body>,
    /// Whether the client asked for a stream.
    pub stream: bool,
    /// The client's limits.
    pub limits: Limits,
    /// What decode is told of them.
    pub budget: TokenBudget,
}

impl Request {
    /// Reads a client's body, or says which field is at fault.
    pub fn parse(api: Api, text: Bytes, budget: TokenBudget) -> Result<Request, ProxyError> {
        let body =
            Body::parse(text).map_err(|error| ProxyError::BadRequest { message: error.to_string(), param: None })?;
        let stream = flag(&body, "stream", "stream")?;
        let sampling = match api {
            Api::Generate => nested(&body, "sampling_params")?,
            _ => None,
        };
        let limits = match (api, &sampling) {
            (Api::Generate, None) => Limits::default(),
            (Api::Generate, Some(sampling)) => Limits {
                max_tokens: limit(sampling, "max_tokens", "sampling_params.max_tokens", 1)?,
                min_tokens: limit(sampling, "min_tokens", "sampling_params.min_tokens", 0)?,
                ..Limits::default()
            },
            (Api::Responses, _) => Limits {
                max_output_tokens: limit(&body, "max_output_tokens", "max_output_tokens", 1)?,
                ..Limits::default()
            },
            (Api::Messages, _) => {
                Limits { max_tokens: limit(&body, "max_tokens", "max_tokens", 1)?, ..Limits::default() }
            }
            (Api::Completions | Api::Chat, _) => Limits {
                max_tokens: limit(&body, "max_tokens", "max_tokens", 1)?,
                max_completion_tokens: limit(&body, "max_completion_tokens", "max_completion_tokens", 1)?,
                max_output_tokens: None,
                min_tokens: limit(&body, "min_tokens", "min_tokens", 0)?,
            },
        };
        refuse_siblings(api, &body, sampling.as_ref())?;
        refuse_hidden_params(&body, sampling.as_ref())?;
        if api == Api::Responses && flag(&body, "background", "background")? {
            let message = "background is not supported: an answer is relayed while its client waits";
            return Err(ProxyError::field("background", message));
        }
        Ok(Request { api, body, sampling, stream, limits, budget })
    }

    /// The client's limits as decode shall see them.
    pub fn decode_limits(&self) -> Limits {
        self.limits.for_decode(self.budget)
    }
}

/// A boolean; absent and `null` are false.
fn flag(body: &Body, key: &str, param: &str) -> Result<bool, ProxyError> {
    match body.get(key) {
        None | Some(b"null") | Some(b"false") => Ok(false),
        Some(b"true") => Ok(true),
        Some(_) => Err(ProxyError::field(param, format!("{param} must be a boolean"))),
    }
}

/// An object; absent and `null` are none.
fn nested(body: &Body, key: &str) -> Result<Option<Body>, ProxyError> {
    if body.get_some(key).is_none() {
        return Ok(None);
    }
    body.nested(key).transpose().map_err(|error| {
        let message = match error {
            BodyError::NotAnObject => format!("{key} must be an object"),
            other => format!("{key}: {other}"),
        };
        ProxyError::field(key, message)
    })
}

/// A whole number of at least `least`; absent and `null` are none.
fn limit(body: &Body, key: &str, param: &str, least: u64) -> Result<Option<u64>, ProxyError> {
    let Some(text) = body.get_some(key) else {
        return Ok(None);
    };
    match whole_number(text).filter(|number| *number >= least) {
        Some(number) => Ok(Some(number)),
        None if least == 0 => Err(ProxyError::field(param, format!("{param} must be a non-negative integer"))),
        None => Err(ProxyError::field(param, format!("{param} must be a positive integer"))),
    }
}

/// A JSON number without a fraction. `16.0` counts, because engines take it.
fn whole_number(text: &[u8]) -> Option<u64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if !matches!(text.first(), Some(b'-' | b'0'..=b'9')) {
        return None;
    }
    if let Ok(number) = serde_json::from_slice::<u64>(text) {
        return Some(number);
    }
    let number = serde_json::from_slice::<f64>(text).ok()?;
    // The range makes the conversion exact.
    ((0.0..=EXACT).contains(&number) && number.fract() == 0.0).then_some(number as u64)
}

/// Choices or prompts beyond the first would share one transfer: the first release frees what others still read.
fn refuse_siblings(api: Api, body: &Body, sampling: Option<&Body>) -> Result<(), ProxyError> {
    let places = [(Some(body), ""), (sampling, "sampling_params.")];
    for (place, prefix) in places {
        let Some(place) = place else { continue };
        for key in ["n", "best_of"] {
            let one = place.get_some(key).is_none_or(|text| whole_number(text) == Some(1));
            if !one {
                let param = format!("{prefix}{key}");
                let message = format!("{param} must be 1: a pair of engines makes one choice a request");
                return Err(ProxyError::field(&param, message));
            }
        }
        let param = format!("{prefix}use_beam_search");
        if flag(place, "use_beam_search", &param)? {
            return Err(ProxyError::field(&param, format!("{param} is not supported with a pair of engines")));
        }
    }
    if api != Api::Completions {
        return Ok(());
    }
    for key in ["prompt", "prompt_embeds"] {
        if body.get(key).is_some_and(has_several) {
            return Err(ProxyError::field(key, format!("{key} must be a single prompt: send one request a prompt")));
        }
    }
    if body.get_some("prompt").is_some() && body.get_some("prompt_embeds").is_some() {
        let message = "prompt_embeds beside prompt makes two prompts: send one request a prompt";
        return Err(ProxyError::field("prompt_embeds", message));
    }
    Ok(())
}

/// Whether a prompt is a list of at least two texts or token lists. A list of numbers is one prompt, and is not scanned.
fn has_several(text: &[u8]) -> bool {
    struct Count;

    impl<'de> Visitor<'de> for Count {
        type Value = bool;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a list")
        }

        fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> Result<bool, S::Error> {
            let first = seq.next_element::<&RawValue>()?;
            let several = first.is_some() && seq.next_element::<IgnoredAny>()?.is_some();
            while several && seq.next_element::<IgnoredAny>()?.is_some() {}
            Ok(several)
        }
    }

    let inside = text.strip_prefix(b"[").map(<[u8]>::trim_ascii_start);
    if !matches!(inside.and_then(<[u8]>::first), Some(b'"' | b'[' | b'{')) {
        return false;
    }
    serde_json::Deserializer::from_slice(text).deserialize_seq(Count).unwrap_or(false)
}

/// Engines also look for transfer params among the free arguments of a request, and those name hosts to dial.
fn refuse_hidden_params(body: &Body, sampling: Option<&Body>) -> Result<(), ProxyError> {
    let places = [(Some(body), "vllm_xargs", ""), (sampling, "extra_args", "sampling_params.")];
    for (place, key, prefix) in places {
        let Some(Ok(arguments)) = place.and_then(|place| place.nested(key)) else {
            continue;
        };
        if arguments.get("kv_transfer_params").is_some() {
            let param = format!("{prefix}{key}.kv_transfer_params");
            return Err(ProxyError::field(&param, format!("{param} is set by the proxy alone")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
