//! What an answer says of the prompt tokens that were cached (`--report-cached-tokens`). Decode counts what it loads from prefill as
//! cached, so that every prompt looks like one that was computed before; what prefill had of it is the truth.

use bytes::Bytes;
use memchr::memmem::Finder;

use crate::api::Api;
use crate::api::fields::hidden::PARAMS;
use crate::json::keys::Key;
use crate::json::{Body, Edit, Json, Segments};

static USAGE: Key = Key::new(|| Finder::new("\"usage\""));
static TRANSFER: Key = Key::new(|| Finder::new("\"kv_transfer_params\""));
static TOLD: Key = Key::new(|| Finder::new("\"remote_prefill_cached_tokens\""));
static TOKENS: Key = Key::new(|| Finder::new("\"prompt_tokens\""));
static DETAILS: Key = Key::new(|| Finder::new("\"prompt_tokens_details\""));
static CACHED: Key = Key::new(|| Finder::new("\"cached_tokens\""));

/// Whether an answer or an event has a usage. Most events have none, or a `null`, and a look is cheaper than a parse.
pub fn is_in(text: &[u8]) -> bool {
    USAGE.object(text).is_some()
}

/// Where the usage stands: events of some APIs have it one level deeper.
fn path(api: Api, body: &Body) -> &'static [&'static str] {
    let outer = match api {
        Api::Messages => "message",
        Api::Responses => "response",
        Api::Completions | Api::Chat | Api::Generate => return &["usage"],
    };
    match (body.get_some(outer).is_some(), api) {
        (false, _) => &["usage"],
        (true, Api::Messages) => &["message", "usage"],
        (true, _) => &["response", "usage"],
    }
}

/// An answer, or the data of an event, with so many cached tokens as prefill had; with none told where that is not known. None where
/// there is nothing to be changed.
pub fn corrected(api: Api, text: &Bytes, cached: Option<u64>) -> Option<Bytes> {
    let body = Body::parse(text.clone()).ok()?;
    let edits = |usage: &Body| match api {
        Api::Messages => messages(usage, cached),
        Api::Responses => details(usage, "input_tokens_details", cached),
        Api::Completions | Api::Chat | Api::Generate => details(usage, "prompt_tokens_details", cached),
    };
    within(&body, path(api, &body), &edits).map(|text| text.to_vec().into())
}

/// The cached tokens that an answer or the data of an event tells, and all of the prompt's.
pub fn told(api: Api, text: &Bytes) -> Option<(u64, u64)> {
    let mut usage = Body::parse(text.clone()).ok()?;
    for name in path(api, &usage) {
        usage = usage.nested(name)?.ok()?;
    }
    let (input, all) = (number(&usage, "input_tokens"), number(&usage, "prompt_tokens"));
    if api == Api::Messages {
        let cached = number(&usage, "cache_read_input_tokens")?;
        return Some((cached, cached.saturating_add(input?)));
    }
    let details = if api == Api::Responses { "input_tokens_details" } else { "prompt_tokens_details" };
    let cached = number(&usage.nested(details)?.ok()?, "cached_tokens")?;
    Some((cached, all.or(input)?))
}

/// What prefill's answer says of the tokens of its prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    /// Those whose KV it had. Since 0.31.0 the params tell them, whatever the usage does (protocol E6).
    pub cached: Option<u64>,
    /// Whether its usage has `null` for details, which says that it had none.
    pub has_no_details: bool,
    /// All of them, if the usage was read.
    pub tokens: Option<u64>,
}

impl Prompt {
    /// Reads prefill's answer. Where the params tell what was cached, the usage may be left unread unless the rest of it `is_wanted`.
    pub fn of(api: Api, answer: &Bytes, is_wanted: bool) -> Prompt {
        match api {
            // Their answers have objects that clients or models wrote: only what is at the top is the engine's word.
            Api::Messages | Api::Responses => Prompt::parsed(answer),
            Api::Completions | Api::Chat | Api::Generate => Prompt::looked_up(answer, is_wanted),
        }
    }

    fn parsed(answer: &Bytes) -> Prompt {
        let object = |name| Body::inner(answer.clone(), name).ok().flatten();
        let told = object(PARAMS).and_then(|params| number(&params, "remote_prefill_cached_tokens"));
        let Some(usage) = object("usage") else { return Prompt { cached: told, ..Prompt::default() } };
        let details = usage.nested("input_tokens_details").and_then(Result::ok);
        let cached = || number(details.as_ref()?, "cached_tokens");
        Prompt {
            cached: told.or_else(cached),
            has_no_details: usage.get("input_tokens_details") == Some(b"null"),
            tokens: number(&usage, "input_tokens"),
        }
    }

    /// Without a parse: most of an answer can be megabytes of block ids.
    fn looked_up(answer: &[u8], is_wanted: bool) -> Prompt {
        let told = TRANSFER.object(answer).and_then(|params| TOLD.number(params));
        let usage = if is_wanted || told.is_none() { USAGE.object(answer) } else { None };
        let Some(usage) = usage else { return Prompt { cached: told, ..Prompt::default() } };
        let cached = || DETAILS.object(usage).and_then(|details| CACHED.number(details));
        Prompt { cached: told.or_else(cached), has_no_details: DETAILS.is_null(usage), tokens: TOKENS.number(usage) }
    }
}

fn number(object: &Body, name: &str) -> Option<u64> {
    serde_json::from_slice(object.get_some(name)?).ok()
}

/// The body with what the object at this path becomes by these edits.
fn within(body: &Body, path: &[&'static str], edits: &dyn Fn(&Body) -> Vec<Edit>) -> Option<Segments> {
    let [name, deeper @ ..] = path else {
        let edits = edits(body);
        return (!edits.is_empty()).then(|| body.edit(&edits));
    };
    let inner = within(&body.nested(name)?.ok()?, deeper, edits)?;
    Some(body.edit(&[Edit::Set(name, Json::Parts(inner))]))
}

/// OpenAI's form: beside other details.
fn details(usage: &Body, name: &'static str, cached: Option<u64>) -> Vec<Edit> {
    let details = usage.nested(name).and_then(Result::ok);
    let edit = match cached {
        Some(tokens) => Edit::Set("cached_tokens", Json::Text(tokens.to_string())),
        // Responses' clients need a number.
        None if name.starts_with("input") => Edit::Set("cached_tokens", Json::Fixed("0")),
        None if details.as_ref().is_some_and(|details| details.get("cached_tokens").is_some()) => {
            Edit::Remove("cached_tokens")
        }
        None => return Vec::new(),
    };
    let details = details.unwrap_or_else(Body::empty).edit(&[edit]);
    vec![Edit::Set(name, Json::Parts(details))]
}

/// Anthropic's form: what was cached is no input (protocol E7).
fn messages(usage: &Body, cached: Option<u64>) -> Vec<Edit> {
    let before = number(usage, "cache_read_input_tokens");
    let Some(input) = number(usage, "input_tokens") else { return Vec::new() };
    let all = input.saturating_add(before.unwrap_or(0));
    let rest = Edit::Set("input_tokens", Json::Text(all.saturating_sub(cached.unwrap_or(0)).to_string()));
    match (cached, before) {
        (Some(tokens), _) => vec![rest, Edit::Set("cache_read_input_tokens", Json::Text(tokens.min(all).to_string()))],
        (None, Some(_)) => vec![rest, Edit::Remove("cache_read_input_tokens")],
        (None, None) => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
