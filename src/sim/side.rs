//! Output of the prompt's side: which requests ask for it or need one engine alone, and what it adds to an answer.

use serde_json::{Value, json};

use super::ask::Ask;
use super::surface::Surface;

impl Ask {
    /// Whether logprobs of the prompt are asked for: 0 of them counts, and so does `false`, which engines take for 0.
    pub(crate) fn has_prompt_side(&self) -> bool {
        let some = |key: &str| self.limits().get(key).is_some_and(|value| !value.is_null());
        let echo = self.body.get("echo") == Some(&Value::Bool(true));
        match self.surface {
            Surface::Completions => some("prompt_logprobs") || (echo && some("logprobs")),
            Surface::Chat => some("prompt_logprobs") || echo,
            Surface::Generate => some("prompt_logprobs") || some("prompt_logprob_token_ids"),
            Surface::Responses | Surface::Messages => false,
        }
    }

    /// Whether the first token cannot end the text.
    pub(crate) fn guards_its_token(&self) -> bool {
        let least = self.limits().get("min_tokens").and_then(Value::as_u64).unwrap_or(0);
        match self.surface {
            Surface::Responses => self.body.get("ignore_eos") == Some(&Value::Bool(true)),
            Surface::Messages => false,
            _ => least > 0,
        }
    }

    /// Whether decode computes the whole prompt itself, and loads nothing.
    pub(crate) fn recomputes(&self) -> bool {
        let skips = self.limits().get("skip_reading_prefix_cache") == Some(&Value::Bool(true));
        self.has_prompt_side() || (self.surface == Surface::Generate && skips)
    }

    /// Whether prefill may be asked this without a pair: its own answer is all of the answer.
    pub(crate) fn is_for_one(&self) -> bool {
        self.limit == 1 && (self.has_prompt_side() || self.hides_its_token)
    }

    /// Whether beams are asked for, which are requests of the engine's own, without transfer params.
    pub(crate) fn has_beams(&self) -> bool {
        self.limits().get("use_beam_search") == Some(&Value::Bool(true))
    }

    /// Whether a messages request forces one tool by name.
    pub(crate) fn forces_one_tool(&self) -> bool {
        self.surface == Surface::Messages && self.body.get("tool_choice").is_some_and(|choice| choice["type"] == "tool")
    }

    /// Adds to a whole answer what was asked of the prompt's side.
    pub(crate) fn with_prompt_side(&self, mut answer: Value) -> Value {
        if self.hides_its_token {
            answer["choices"][0]["text"] = json!("");
            answer["usage"]["completion_tokens"] = json!(0);
        }
        if !self.has_prompt_side() {
            return answer;
        }
        let each = json!({"1": {"logprob": -1.0, "rank": 1, "decoded_token": "x"}});
        let tokens: Vec<&Value> = std::iter::once(&Value::Null)
            .chain(std::iter::repeat_n(&each, self.prompt.tokens.saturating_sub(1)))
            .collect();
        let logprobs = json!(tokens);
        match self.surface {
            Surface::Completions => answer["choices"][0]["prompt_logprobs"] = logprobs,
            _ => answer["prompt_logprobs"] = logprobs,
        }
        answer
    }
}
