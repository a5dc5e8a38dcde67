//! What a prompt is made of: everything in a body that reaches an engine's renderer. Two legs of one exchange must agree on it.

use serde_json::{Map, Value, json};

use super::surface::Surface;
use super::text::{Block, Prompt, TOKEN_BYTES, Voice, digest, mix};

/// How a block of `system` begins that changes with every request of one client, and that engines take out.
const BILLING: &str = "x-anthropic-billing-header";

/// What an engine renders besides the prompt itself, by API.
fn keys(surface: Surface) -> &'static [&'static str] {
    match surface {
        Surface::Completions => {
            &["prompt_embeds", "suffix", "add_special_tokens", "truncate_prompt_tokens", "truncation_side"]
        }
        Surface::Chat => &[
            "tools",
            "tool_choice",
            "response_format",
            "reasoning_effort",
            "chat_template",
            "chat_template_kwargs",
            "documents",
            "add_generation_prompt",
            "continue_final_message",
            "add_special_tokens",
            "truncate_prompt_tokens",
            "truncation_side",
            "mm_processor_kwargs",
            "media_io_kwargs",
        ],
        Surface::Responses => &[
            "instructions",
            "tools",
            "tool_choice",
            "text",
            "reasoning",
            "previous_input_messages",
            "prompt",
            "chat_template_kwargs",
            "truncation",
        ],
        Surface::Messages => &["system", "tools", "tool_choice", "thinking", "output_config", "chat_template_kwargs"],
        Surface::Generate => &["features"],
    }
}

/// The text that one undivided engine would produce for a body sent to `path`. `None` where nothing is generated there.
pub fn rendered_text(path: &str, body: &Value, tokens: usize) -> Option<String> {
    Some(whole(path, body)?.text(tokens))
}

/// The token numbers that one undivided engine would produce.
pub fn rendered_tokens(path: &str, body: &Value, tokens: usize) -> Option<Vec<usize>> {
    let voice = whole(path, body)?;
    Some((0..tokens).map(|position| voice.token(position)).collect())
}

fn whole(path: &str, body: &Value) -> Option<Voice> {
    let prompt = render(Surface::of(path)?, body.as_object()?, u32::MAX, None);
    let blocks: Vec<Block> = (0..prompt.blocks()).map(|index| prompt.block(index)).collect();
    Some(prompt.voice(blocks.iter()))
}

/// Renders a request. `limit` is the one it names, if it names one.
pub(crate) fn render(surface: Surface, body: &Map<String, Value>, minor: u32, limit: Option<usize>) -> Prompt {
    let prompt = Prompt::of(body.get(surface.prompt_key()).unwrap_or(&Value::Null));
    let more = more(surface, body, minor, limit);
    if more.is_empty() {
        return prompt;
    }
    let text = json!(more).to_string();
    let tokens = prompt.tokens + text.len().div_ceil(TOKEN_BYTES);
    Prompt { digest: mix(prompt.digest ^ digest(text.as_bytes())), tokens }
}

/// What is rendered besides the prompt itself.
pub(crate) fn more(
    surface: Surface,
    body: &Map<String, Value>,
    minor: u32,
    limit: Option<usize>,
) -> Vec<(&'static str, Value)> {
    let mut more = Vec::new();
    for key in keys(surface) {
        let value = match body.get(*key) {
            None | Some(Value::Null) => continue,
            // The template learns that a tool must be called, not which one.
            Some(choice) if (surface, *key) == (Surface::Messages, "tool_choice") => match &choice["type"] {
                Value::String(kind) if kind == "tool" || kind == "any" => json!("required"),
                _ => choice.clone(),
            },
            Some(system) if (surface, *key) == (Surface::Messages, "system") => read_of_system(system),
            Some(value) if is_cut(key, value) => json!(cut(surface, minor, limit)),
            Some(value) => value.clone(),
        };
        more.push((*key, value));
    }
    more
}

/// What an engine reads of `system`.
fn read_of_system(system: &Value) -> Value {
    let bills = |block: &Value| block["text"].as_str().is_some_and(|text| text.starts_with(BILLING));
    match system {
        Value::Array(blocks) => blocks.iter().filter(|block| !bills(block)).cloned().collect(),
        other => other.clone(),
    }
}

/// Whether a field cuts the prompt by the leg's own limit.
fn is_cut(key: &str, value: &Value) -> bool {
    match key {
        "truncate_prompt_tokens" => value.as_f64().is_some_and(|number| number < 0.0) || value == "-1",
        "truncation" => value == "auto",
        _ => false,
    }
}

/// To how many tokens: up to 0.31 what the limit leaves.
fn cut(surface: Surface, minor: u32, limit: Option<usize>) -> String {
    match (minor, limit) {
        (..=31, Some(limit)) => format!("the context less {limit}"),
        (..=31, None) if surface == Surface::Completions => "the context less 16".into(),
        (..=31, None) => "the context".into(),
        (32, None) if surface != Surface::Completions => "the context".into(),
        _ => "the context less 1".into(),
    }
}
