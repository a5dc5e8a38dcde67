//! A generation request, read and validated as vLLM does.

use http::HeaderMap;
use serde_json::{Map, Value};

use super::render::render;
use super::surface::Surface;
use super::text::Prompt;

/// A request that passed validation.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) surface: Surface,
    /// The request id given, from the header or else the body; of responses from the body alone.
    pub(crate) request_id: Option<String>,
    /// The data-parallel rank asked for, as the host that was asked counts them.
    pub(crate) rank: Option<usize>,
    pub(crate) prompt: Prompt,
    pub(crate) limit: usize,
    /// The limit that was named, if any was.
    pub(crate) named: Option<usize>,
    /// No token was asked for: one is generated and not shown.
    pub(crate) hides_its_token: bool,
    /// Whether this release takes transfer params from this API.
    has_params: bool,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    pub(crate) body: Map<String, Value>,
    pub(crate) headers: HeaderMap,
}

impl Ask {
    /// Reads a request; an error is a 400.
    pub(crate) fn parse(
        surface: Surface,
        headers: &HeaderMap,
        body: &[u8],
        ranks: u32,
        minor: u32,
    ) -> Result<Self, Refusal> {
        let body: Map<String, Value> =
            serde_json::from_slice(body).map_err(|error| format!("JSON decode error: {error}"))?;
        has_prompt(surface, &body)?;
        let limits = match (surface, body.get("sampling_params")) {
            (Surface::Generate, Some(Value::Object(limits))) => limits,
            (Surface::Generate, _) => return Err("field required: sampling_params".to_owned().into()),
            _ => &body,
        };
        let none = surface == Surface::Completions
            && body.get("echo") == Some(&Value::Bool(true))
            && body.get("max_tokens").and_then(Value::as_u64) == Some(0);
        let (limit, named) = if none { (1, Some(1)) } else { limit(surface, limits)? };
        if surface == Surface::Messages && minor >= 31 {
            thinks_within(&body, limit)?;
        }
        let prompt = render(surface, &body, minor, named);
        let stream = body.get("stream").and_then(Value::as_bool).unwrap_or(false);
        // Of messages it is an unknown field.
        let options = body.get("stream_options").filter(|value| !value.is_null() && surface != Surface::Messages);
        if options.is_some() && !stream {
            return Err("Stream options can only be defined when `stream=True`.".to_owned().into());
        }
        unnamed_logprobs(surface, &body)?;
        if let Some(temperature) = limits.get("temperature").and_then(Value::as_f64).filter(|value| *value < 0.0) {
            return Err(Refusal::Later(format!("temperature must be non-negative, got {temperature}.")));
        }
        let include_usage =
            options.and_then(|options| options.get("include_usage")).and_then(Value::as_bool).unwrap_or(false);
        let request_id = request_id(surface, headers, &body);
        // A rank that is no number is ignored, one that does not exist is not.
        let rank = headers
            .get("x-data-parallel-rank")
            .filter(|_| surface != Surface::Responses || minor >= 33)
            .and_then(|value| value.to_str().ok())
            .and_then(|rank| rank.trim().parse::<i64>().ok());
        let rank = match rank.map(usize::try_from) {
            None => None,
            Some(Ok(rank)) if rank < ranks as usize => Some(rank),
            Some(_) => return Err(Refusal::Rank(format!("data_parallel_rank is out of range [0, {ranks})"))),
        };
        Ok(Self {
            surface,
            request_id,
            rank,
            prompt,
            limit,
            named,
            hides_its_token: none,
            has_params: surface.has_params(minor),
            stream,
            include_usage,
            headers: headers.clone(),
            body,
        })
    }

    /// The transfer params, if the request has any.
    pub(crate) fn params(&self) -> Option<&Map<String, Value>> {
        let body = match self.surface {
            Surface::Generate => self
                .body
                .get("kv_transfer_params")
                .or_else(|| self.body.get("sampling_params")?.get("extra_args")?.get("kv_transfer_params")),
            _ => self.body.get("kv_transfer_params"),
        };
        body.and_then(Value::as_object).filter(|_| self.has_params)
    }

    /// The engine's own name for the request, which only old releases let out.
    pub(crate) fn internal_id(&self) -> String {
        let id = self.request_id.as_deref().unwrap_or_default();
        match self.surface {
            Surface::Chat | Surface::Messages => format!("chatcmpl-{id}"),
            Surface::Responses => format!("{id}_0"),
            _ => format!("cmpl-{id}-0"),
        }
    }

    /// Where an engine looks for addresses: responses have something behind the id that was given.
    pub(crate) fn engine_id(&self) -> String {
        let id = self.request_id.clone().unwrap_or_default();
        if self.surface == Surface::Responses { id + "_0" } else { id }
    }

    /// What can be told of a request that did not pass validation.
    pub(crate) fn rejected(surface: Surface, headers: &HeaderMap, body: &[u8], minor: u32) -> Option<Self> {
        Some(Self {
            surface,
            request_id: request_id(surface, headers, &Map::new()),
            rank: None,
            prompt: Prompt { digest: 0, tokens: 1 },
            limit: 1,
            named: None,
            hides_its_token: false,
            has_params: surface.has_params(minor),
            stream: false,
            include_usage: false,
            headers: headers.clone(),
            body: serde_json::from_slice(body).ok()?,
        })
    }

    /// The object that holds the limits.
    pub(crate) fn limits(&self) -> &Map<String, Value> {
        match (self.surface, self.body.get("sampling_params")) {
            (Surface::Generate, Some(Value::Object(limits))) => limits,
            _ => &self.body,
        }
    }

    /// Blocks for the prompt and all that may follow it.
    pub(crate) fn blocks(&self) -> usize {
        (self.prompt.tokens + self.limit).div_ceil(super::text::BLOCK_TOKENS)
    }
}

/// Why a request is a 400.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The body is none of the API's.
    Body(String),
    /// The body is valid, and what it asks for is not.
    Later(String),
    /// The same of the rank asked for.
    Rank(String),
}

impl From<String> for Refusal {
    fn from(message: String) -> Self {
        Self::Body(message)
    }
}

/// Whether there is a prompt. Messages are always a list.
pub(crate) fn has_prompt(surface: Surface, body: &Map<String, Value>) -> Result<(), String> {
    let key = surface.prompt_key();
    match body.get(key) {
        None | Some(Value::Null) => Err(format!("field required: {key}")),
        Some(Value::Array(items)) if items.is_empty() => Err(format!("{key} is empty")),
        Some(Value::String(_)) if surface != Surface::Messages => Ok(()),
        Some(Value::Array(_)) => Ok(()),
        Some(_) => Err(format!("{key} has the wrong type")),
    }
}

/// What is said of logprobs needs them to be asked for, on either leg.
fn unnamed_logprobs(surface: Surface, body: &Map<String, Value>) -> Result<(), String> {
    let asked = !matches!(body.get("logprobs"), None | Some(Value::Null | Value::Bool(false)));
    let top = body.get("top_logprobs").and_then(Value::as_i64).is_some_and(|top| top != 0);
    let listed = body.get("logprob_token_ids").is_some_and(|value| !value.is_null());
    for (key, there) in [("top_logprobs", top && surface == Surface::Chat), ("logprob_token_ids", listed)] {
        if there && !asked && matches!(surface, Surface::Completions | Surface::Chat) {
            return Err(format!("when using `{key}`, `logprobs` must be set. (parameter={key})"));
        }
    }
    Ok(())
}

/// The header wins over the body. Messages do not read the body's, and responses not the header's.
fn request_id(surface: Surface, headers: &HeaderMap, body: &Map<String, Value>) -> Option<String> {
    let header = headers.get("x-request-id").and_then(|value| value.to_str().ok());
    let header = header.filter(|_| surface != Surface::Responses);
    let field = body.get("request_id").filter(|_| surface != Surface::Messages);
    header.or_else(|| field?.as_str()).map(str::to_string)
}

/// The limit that holds, and the one that was named.
fn limit(surface: Surface, limits: &Map<String, Value>) -> Result<(usize, Option<usize>), String> {
    let mut named = None;
    for key in surface.limit_keys() {
        let Some(value) = limits.get(*key).filter(|value| !value.is_null()) else {
            continue;
        };
        let number = value.as_i64().ok_or_else(|| format!("{key} must be an integer"))?;
        let number = usize::try_from(number).ok().filter(|number| *number > 0);
        let number = number.ok_or_else(|| format!("{key} must be at least 1, got {value}."))?;
        named.get_or_insert(number);
    }
    let limit = match (named, surface) {
        (Some(limit), _) => limit,
        (None, Surface::Messages) => return Err("field required: max_tokens".into()),
        (None, Surface::Completions | Surface::Generate) => 16,
        (None, Surface::Chat | Surface::Responses) => 32,
    };
    let min = match limits.get("min_tokens").filter(|_| surface.has_min_tokens()) {
        None | Some(Value::Null) => 0,
        Some(value) => value.as_u64().ok_or("min_tokens must be an integer of 0 or more")?,
    };
    if min > limit as u64 {
        return Err(format!("min_tokens must be less than or equal to max_tokens={limit}, got {min}."));
    }
    Ok((limit, named))
}

/// A budget for thinking must leave room for the answer, but not on a leg that only prefills.
fn thinks_within(body: &Map<String, Value>, limit: usize) -> Result<(), String> {
    let prefills = body.get("kv_transfer_params").is_some_and(|params| params["do_remote_decode"] == true);
    let budget = body.get("thinking").and_then(|thinking| thinking["budget_tokens"].as_u64());
    match budget {
        Some(budget) if budget >= limit as u64 && !prefills => {
            Err(format!("thinking.budget_tokens ({budget}) must be less than max_tokens ({limit})"))
        }
        _ => Ok(()),
    }
}
