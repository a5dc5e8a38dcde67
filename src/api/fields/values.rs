//! What a client's value says, read as an engine would read it: engines turn `"1"`, `1.0` and `true` into numbers.

use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::engine::versions::EngineVersion;
use crate::error::ProxyError;
use crate::json::Body;

use super::row::{Field, Findings, Need, PromptSide, Refuse};

/// From here on a cut of the prompt does not depend on the leg's limit.
const ONE_CUT: EngineVersion = EngineVersion::new(0, 33, 0);
/// From here on it does so only where a leg has no limit.
const ONE_CUT_BESIDE_A_LIMIT: EngineVersion = EngineVersion::new(0, 32, 0);
/// Tools that run inside the server: several generations a request, each with the same transfer params.
const SERVER_TOOLS: [&str; 4] = ["web_search", "code_interpreter", "container", "mcp"];

/// Applies one row to the object that the field stands in. What is absent or `null` passes every rule.
pub(super) fn judge(field: &Field, home: &Body, findings: &mut Findings) -> Result<(), ProxyError> {
    let Some(text) = home.get_some(field.name).filter(|_| field.refuse != Refuse::Nothing) else {
        return Ok(());
    };
    let param = field.param();
    match field.refuse {
        Refuse::NoBoolean => drop(flag(home, field.name, &param)?),
        Refuse::True(message) if flag(home, field.name, &param)? => return Err(refused(&param, message)),
        Refuse::Any(message) => return Err(refused(&param, message)),
        Refuse::NotOne if whole_number(text) != Some(1) => {
            return Err(refused(&param, "must be 1: a pair of engines makes one choice a request"));
        }
        Refuse::Below(least) => at_least(text, &param, least)?,
        Refuse::LimitBesideEcho => {
            let none = whole_number(text) == Some(0) && flag(home, "echo", "echo")?;
            at_least(text, &param, u64::from(!none))?;
            if none {
                findings.side.get_or_insert(PromptSide { param });
            }
        }
        Refuse::BesidePrompt if has_several(text) => {
            return Err(refused(&param, "must be a single prompt: send one request a prompt"));
        }
        Refuse::BesidePrompt if home.get_some("prompt").is_some() => {
            return Err(refused(&param, "beside prompt makes two prompts: send one request a prompt"));
        }
        Refuse::ServerTools => server_tools(text, &param)?,
        // Zero asks for the logprobs of the tokens themselves, and engines take `false` for it.
        Refuse::PromptSide => findings.side = Some(PromptSide { param }),
        Refuse::PromptSideEcho(other) => {
            let asked = other.is_none_or(|other| home.get_some(other).is_some());
            if flag(home, field.name, &param)? && asked {
                findings.side = Some(PromptSide { param });
            }
        }
        Refuse::CutBelowZero => match whole_number(text.strip_prefix(b"-").unwrap_or(text)) {
            None => return Err(refused(&param, "must be an integer")),
            Some(number) if number > 0 && text.starts_with(b"-") => findings.needs.push(cut(param)),
            Some(_) => {}
        },
        Refuse::CutUnless(word) if !is_word(text, word) => findings.needs.push(cut(param)),
        Refuse::ForcedTool(since) if text.starts_with(b"{") || is_word(text, "required") => {
            findings.needs.push(Need { param, since, unlimited: since });
        }
        _ => {}
    }
    Ok(())
}

fn cut(param: String) -> Need {
    Need { param, since: ONE_CUT_BESIDE_A_LIMIT, unlimited: ONE_CUT }
}

fn refused(param: &str, message: &str) -> ProxyError {
    ProxyError::field(param, format!("{param} {message}"))
}

/// A boolean; absent and `null` are false. Engines would take `1` and `"yes"` too: here they are errors, never `false`.
///
/// # Errors
/// When it is anything else.
pub fn flag(body: &Body, key: &str, param: &str) -> Result<bool, ProxyError> {
    match body.get(key) {
        None | Some(b"null") | Some(b"false") => Ok(false),
        Some(b"true") => Ok(true),
        Some(_) => Err(refused(param, "must be a boolean")),
    }
}

fn at_least(text: &[u8], param: &str, least: u64) -> Result<(), ProxyError> {
    let fits = whole_number(text).is_some_and(|number| number >= least);
    match (fits, least) {
        (true, _) => Ok(()),
        (false, 0) => Err(refused(param, "must be a non-negative integer")),
        (false, _) => Err(refused(param, "must be a positive integer")),
    }
}

/// A JSON number without a fraction. `16.0` counts, because engines take it.
pub(crate) fn whole_number(text: &[u8]) -> Option<u64> {
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

fn is_word(text: &[u8], word: &str) -> bool {
    serde_json::from_slice::<String>(text).is_ok_and(|text| text == word)
}

/// Whether a messages request forces one tool by name.
pub(crate) fn forces_one_tool(text: &[u8]) -> bool {
    serde_json::from_slice::<Value>(text).is_ok_and(|choice| choice["type"] == "tool")
}

fn server_tools(text: &[u8], param: &str) -> Result<(), ProxyError> {
    let tools: Vec<Value> = serde_json::from_slice(text).map_err(|_| refused(param, "must be a list of objects"))?;
    let kinds: Vec<&str> = tools.iter().filter_map(|tool| tool["type"].as_str()).collect();
    match SERVER_TOOLS.iter().find(|name| kinds.iter().any(|kind| kind.starts_with(**name))) {
        None => Ok(()),
        Some(name) => {
            let message = format!("of type {name} are not supported: they run several generations on one transfer");
            Err(refused(param, &message))
        }
    }
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
