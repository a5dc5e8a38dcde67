//! By what a prefix cache knows a prompt's blocks: a hash for each full block, which has those of all blocks before it in it.

use serde_json::{Value, json};

use super::ask::Ask;
use super::render::more;
use super::text::{BLOCK_TOKENS, Prompt, TOKEN_BYTES, digest, mix};

/// What is rendered right before the prompt, in this order. How to render, such as a template, changes all and goes before it.
const BEFORE: [&str; 6] = ["tools", "system", "instructions", "prompt", "documents", "previous_input_messages"];
/// What bears on the answer or on the prompt's end, and leaves all before that as it is.
const BEHIND: [&str; 6] =
    ["tool_choice", "response_format", "text", "suffix", "add_generation_prompt", "continue_final_message"];
/// A client's mark of how far its prompt may be cached. It moves with each turn, and engines do not render it.
const MARK: &str = "cache_control";

/// The hashes of a request's full blocks, the first one's first. `served` is the model of a request that names none.
pub(crate) fn hashes(ask: &Ask, minor: u32, served: &str) -> Vec<u64> {
    let body = &ask.body;
    let model = body.get("model").and_then(Value::as_str).unwrap_or(served);
    let salt = body.get("cache_salt").unwrap_or(&Value::Null);
    let mut chain = Chain::new(digest(json!([model, salt]).to_string().as_bytes()));
    let (behind, mut before): (Vec<_>, Vec<_>) =
        more(ask.surface, body, minor, ask.named).into_iter().partition(|(key, _)| BEHIND.contains(key));
    before.sort_by_key(|(key, _)| BEFORE.iter().position(|other| other == key).map(|place| place + 1));
    if !before.is_empty() {
        chain.text(&rendered(&json!(before)));
    }
    match Prompt::sole(body.get(ask.surface.prompt_key()).unwrap_or(&Value::Null)) {
        Value::String(text) => chain.text(text),
        Value::Array(ids) if ids.iter().all(Value::is_number) => ids.iter().for_each(|id| chain.id(id)),
        other => chain.text(&rendered(other)),
    }
    chain.end(digest(json!(behind).to_string().as_bytes()), ask.prompt.tokens)
}

fn rendered(value: &Value) -> String {
    let text = value.to_string();
    if text.contains(MARK) { unmarked(value.clone()).to_string() } else { text }
}

fn unmarked(value: Value) -> Value {
    match value {
        Value::Array(items) => items.into_iter().map(unmarked).collect(),
        Value::Object(fields) => {
            let fields = fields.into_iter().filter(|(key, _)| key != MARK);
            Value::Object(fields.map(|(key, value)| (key, unmarked(value))).collect())
        }
        other => other,
    }
}

/// Hashes of the tokens so far.
struct Chain {
    running: u64,
    tokens: usize,
    hashes: Vec<u64>,
}

impl Chain {
    fn new(seed: u64) -> Self {
        Self { running: seed, tokens: 0, hashes: Vec::new() }
    }

    fn token(&mut self, token: u64) {
        self.running = mix(self.running ^ token);
        self.tokens += 1;
        if self.tokens.is_multiple_of(BLOCK_TOKENS) {
            self.hashes.push(self.running);
        }
    }

    fn text(&mut self, text: &str) {
        for bytes in text.as_bytes().chunks(TOKEN_BYTES) {
            self.token(digest(bytes));
        }
    }

    fn id(&mut self, id: &Value) {
        self.token(id.as_u64().unwrap_or_else(|| digest(id.to_string().as_bytes())));
    }

    /// Adds the rest of a prompt of so many tokens, which `seed` stands for.
    fn end(mut self, seed: u64, tokens: usize) -> Vec<u64> {
        while self.tokens < tokens {
            self.token(mix(seed ^ self.tokens as u64));
        }
        self.hashes.truncate(tokens / BLOCK_TOKENS);
        self.hashes
    }
}
