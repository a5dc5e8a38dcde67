//! Fields that a correct proxy never lets through to the leg where they stand.

use serde_json::{Map, Value};

use super::ask::Ask;
use super::params::Facts;
use super::surface::Surface;

/// The key of transfer params.
const PARAMS: &str = "kv_transfer_params";

/// Notes every field that has no business on this leg.
pub(crate) fn fields(ask: &Ask, facts: Facts, note: &dyn Fn(String)) {
    hidden(&ask.body, true, note);
    for (place, prefix) in [(&ask.body, ""), (ask.limits(), "sampling_params.")] {
        if is_true(place, "use_beam_search") {
            note(format!("{prefix}use_beam_search: beams are plain requests"));
        }
        if ask.surface != Surface::Generate {
            break;
        }
    }
    if !facts.prefill && ask.recomputes() {
        note("output of the prompt's side asked of decode".into());
    }
    if ask.surface == Surface::Responses {
        responses(ask, facts, note);
    }
    if facts.prefill && ask.forces_one_tool() {
        note("one tool forced on a one-token prefill leg".into());
    }
}

fn responses(ask: &Ask, facts: Facts, note: &dyn Fn(String)) {
    for key in ["previous_response_id", "conversation"] {
        if ask.body.get(key).is_some_and(|value| !value.is_null()) {
            note(format!("{key}: kept in one process only"));
        }
    }
    if is_true(&ask.body, "background") {
        note("background: kept in one process only".into());
    }
    if let Some(Value::Array(tools)) = ask.body.get("tools") {
        let kinds = tools.iter().filter_map(|tool| tool["type"].as_str());
        for kind in kinds.filter(|kind| ["web_search_preview", "code_interpreter", "container", "mcp"].contains(kind)) {
            note(format!("{kind}: a tool that runs inside the server"));
        }
    }
    if !facts.prefill || ask.params().is_none() {
        return;
    }
    if !is_true(&ask.body, "ignore_eos") || ask.body.get("stop_token_ids") != Some(&Value::Array(Vec::new())) {
        note("prefill leg whose first token may be a stop token".into());
    }
    if ask.body.get("store").and_then(Value::as_bool) != Some(false) {
        note("prefill leg whose answer would be stored".into());
    }
}

fn is_true(place: &Map<String, Value>, key: &str) -> bool {
    match place.get(key) {
        Some(Value::Bool(flag)) => *flag,
        Some(Value::Number(number)) => number.as_f64() == Some(1.0),
        Some(Value::String(text)) => ["1", "true", "t", "yes", "y", "on"].contains(&text.to_lowercase().as_str()),
        _ => false,
    }
}

/// Notes transfer params where engines take them from and nobody looks.
pub(crate) fn hidden(body: &Map<String, Value>, is_leg: bool, note: &dyn Fn(String)) {
    let mut places = vec![("".to_string(), Some(body))];
    let object = |place: &'_ Map<String, Value>, key: &str| place.get(key).and_then(Value::as_object).cloned();
    let inner = [object(body, "vllm_xargs"), object(body, "extra_args"), object(body, "sampling_params")];
    for (name, place) in ["vllm_xargs.", "extra_args.", "sampling_params."].into_iter().zip(&inner) {
        places.push((name.into(), place.as_ref()));
    }
    let deeper = inner[2].as_ref().map(|place| [object(place, "vllm_xargs"), object(place, "extra_args")]);
    for (name, place) in ["vllm_xargs.", "extra_args."].into_iter().zip(deeper.iter().flatten()) {
        places.push((format!("sampling_params.{name}"), place.as_ref()));
    }
    for (name, place) in places {
        let own = name.is_empty() && is_leg;
        if !own && place.is_some_and(|place| place.contains_key(PARAMS)) {
            note(format!("hidden {name}{PARAMS}"));
        }
    }
}
