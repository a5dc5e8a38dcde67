//! What an answer says of the prompt tokens that were cached (`--report-cached-tokens`). Decode counts what it loads from prefill as
//! cached, so that every prompt looks like one that was computed before; what prefill had of it is the truth.

use bytes::Bytes;
use memchr::memmem;

use crate::api::Api;
use crate::json::{Body, Edit, Json, Segments};

/// Whether an answer or an event may have a usage. Most events have none, and a look is cheaper than a parse.
pub fn may_have(text: &[u8]) -> bool {
    memmem::find(text, b"\"usage\"").is_some()
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
    // Events of these have it one level deeper.
    let outer = match api {
        Api::Messages => "message",
        Api::Responses => "response",
        Api::Completions | Api::Chat | Api::Generate => "usage",
    };
    let path = if body.get_some(outer).is_some() && outer != "usage" { &[outer, "usage"][..] } else { &["usage"] };
    within(&body, path, &edits).map(|text| text.to_vec().into())
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
    let number = |name: &str| usage.get_some(name).and_then(|text| serde_json::from_slice::<u64>(text).ok());
    let (Some(input), before) = (number("input_tokens"), number("cache_read_input_tokens")) else { return Vec::new() };
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
