//! What a prompt begins with, as hashes: one for each 2 KB of its text, each with all before it in it. Two prompts whose hashes agree up
//! to one place agree up to there, so that whoever has computed the one has that much of the other. No tokenizer, and nothing of the
//! prompt is kept.
//!
//! The parts stand in the order in which engines render them. What is hashed is the client's own JSON text: clients that write a history
//! again write it the same.

use std::borrow::Cow;
use std::sync::LazyLock;

use memchr::memchr;
use memchr::memmem::{self, Finder};
use serde_json::value::RawValue;
use xxhash_rust::xxh3::xxh3_64;

use crate::api::Api;
use crate::api::request::Request;

/// Bytes of a block: some 500 tokens, which are many of an engine's own blocks.
pub const BLOCK: usize = 2048;
/// What Claude Code writes in front of its system prompt, other in each request; engines take it out (protocol F14).
const BILLING: &[u8] = b"x-anthropic-billing-header";

/// The hashes of a request's whole blocks, from the first.
pub fn hashes(request: &Request) -> Vec<u64> {
    let mut chain = Chain::new(request.body.text().len());
    for (name, text) in parts(request) {
        // Names stand between, so that no part passes for the end of another.
        chain.add(name.as_bytes());
        if request.api == Api::Messages {
            chain.add_unmarked(&text);
        } else {
            chain.add(&text);
        }
    }
    chain.hashes
}

/// What clients want cached is marked with this key.
const MARK: &[u8] = b"\"cache_control\"";
static FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(MARK));
/// How much is searched for marks before it is hashed: it is still near the processor then.
const STRETCH: usize = 2 * BLOCK;

/// The parts of a prompt.
fn parts(request: &Request) -> Vec<(&'static str, Cow<'_, [u8]>)> {
    let names: &[&'static str] = match request.api {
        Api::Completions => &["model", "cache_salt"],
        Api::Chat => {
            &["model", "cache_salt", "chat_template", "chat_template_kwargs", "documents", "tools", "messages"]
        }
        Api::Responses => &["model", "cache_salt", "tools", "instructions", "input"],
        Api::Messages => &["model", "cache_salt", "tools", "system", "messages"],
        Api::Generate => &["model", "cache_salt", "token_ids"],
    };
    let text = |name: &&'static str| {
        let text = request.body.get_some(name)?;
        let text = if *name == "system" { without_billing(text) } else { Cow::Borrowed(text) };
        Some((*name, open(text)))
    };
    let mut parts: Vec<_> = names.iter().filter_map(text).collect();
    if request.api == Api::Completions
        && let Some(prompt) = request.prompt()
    {
        parts.push(("prompt", open(Cow::Borrowed(prompt))));
    }
    parts
}

/// A list or a text without its end: the next turn goes on there.
fn open(text: Cow<'_, [u8]>) -> Cow<'_, [u8]> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.strip_suffix(b"]").or(text.strip_suffix(b"\"")).unwrap_or(text)),
        Cow::Owned(text) => Cow::Owned(text),
    }
}

/// A system prompt's blocks without the one that changes with each request.
fn without_billing(text: &[u8]) -> Cow<'_, [u8]> {
    if memmem::find(text, BILLING).is_none() {
        return Cow::Borrowed(text);
    }
    let Ok(blocks) = serde_json::from_slice::<Vec<&RawValue>>(text) else { return Cow::Borrowed(text) };
    let is_billing = |block: &&&RawValue| {
        #[derive(serde::Deserialize)]
        struct Block<'a> {
            #[serde(borrow)]
            text: Option<Cow<'a, str>>,
        }
        let text = serde_json::from_str::<Block<'_>>(block.get()).ok().and_then(|block| block.text);
        text.is_some_and(|text| text.as_bytes().starts_with(BILLING))
    };
    Cow::Owned(blocks.iter().filter(|block| !is_billing(block)).flat_map(|block| block.get().bytes()).collect())
}

/// Hashes of blocks, wherever the text is cut.
struct Chain {
    hashes: Vec<u64>,
    last: u64,
    /// What has come of the next block.
    rest: Vec<u8>,
}

impl Chain {
    fn new(length: usize) -> Chain {
        Chain { hashes: Vec::with_capacity(length / BLOCK + 1), last: 0, rest: Vec::with_capacity(BLOCK) }
    }

    /// What is between marks of what a client wants cached: they move from turn to turn and are not rendered. A quote inside a text is
    /// escaped, so that this one is a key.
    fn add_unmarked(&mut self, mut text: &[u8]) {
        let mut stretch = STRETCH;
        while stretch + BLOCK < text.len() {
            // It ends where a block does.
            let end = stretch + BLOCK - self.rest.len();
            // A mark that begins in it may end in the next.
            if let Some(at) = FINDER.find(&text[..text.len().min(end + MARK.len() - 1)]) {
                text = self.add_around(text, at);
                continue;
            }
            // A comma before a mark goes with it.
            let kept = text[..end].trim_ascii_end();
            let kept = kept.strip_suffix(b",").unwrap_or(kept);
            self.add(kept);
            text = &text[kept.len()..];
            stretch = if kept.is_empty() { 2 * stretch } else { STRETCH };
        }
        while let Some(at) = FINDER.find(text) {
            text = self.add_around(text, at);
        }
        self.add(text);
    }

    /// Adds what is before the mark at this place, and says what is behind it.
    fn add_around<'a>(&mut self, text: &'a [u8], at: usize) -> &'a [u8] {
        let value = text[at + MARK.len()..].trim_ascii_start();
        if !value.strip_prefix(b":").is_some_and(|value| value.trim_ascii_start().starts_with(b"{")) {
            // No mark: nobody knows where it ends.
            let (kept, after) = text.split_at(at + MARK.len());
            self.add(kept);
            return after;
        }
        let before = text[..at].trim_ascii_end();
        let end = memchr(b'}', &text[at..]).map_or(text.len(), |end| at + end + 1);
        if let Some(kept) = before.strip_suffix(b",") {
            self.add(kept);
            return &text[end..];
        }
        // It is the first member: the comma behind it goes.
        self.add(before);
        let after = text[end..].trim_ascii_start();
        after.strip_prefix(b",").map_or(after, <[u8]>::trim_ascii_start)
    }

    fn add(&mut self, mut text: &[u8]) {
        if !self.rest.is_empty() {
            let (head, tail) = text.split_at(text.len().min(BLOCK - self.rest.len()));
            self.rest.extend_from_slice(head);
            text = tail;
            if self.rest.len() == BLOCK {
                let hash = xxh3_64(&self.rest);
                self.link(hash);
                self.rest.clear();
            }
        }
        let mut blocks = text.chunks_exact(BLOCK);
        for block in &mut blocks {
            self.link(xxh3_64(block));
        }
        self.rest.extend_from_slice(blocks.remainder());
    }

    /// One more block, with all before it.
    fn link(&mut self, hash: u64) {
        let mut text = [0; 16];
        text[..8].copy_from_slice(&self.last.to_le_bytes());
        text[8..].copy_from_slice(&hash.to_le_bytes());
        self.last = xxh3_64(&text);
        self.hashes.push(self.last);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::{Value, json};

    use super::*;
    use crate::settings::TokenBudget;

    fn of(api: Api, body: &Value) -> Vec<u64> {
        let text = Bytes::from(body.to_string());
        hashes(&Request::parse(api, text, TokenBudget::Exact).unwrap())
    }

    /// How many hashes two have in common from the first.
    fn common(one: &[u64], other: &[u64]) -> usize {
        one.iter().zip(other).take_while(|(one, other)| one == other).count()
    }

    fn words(seed: usize, bytes: usize) -> String {
        (0..)
            .map(|number| format!("{} ", seed * 7919 + number))
            .flat_map(String::into_bytes)
            .take(bytes)
            .map(char::from)
            .collect()
    }

    #[test]
    fn a_turn_has_what_the_turn_before_had() {
        for (api, list) in [(Api::Chat, "messages"), (Api::Messages, "messages"), (Api::Responses, "input")] {
            let mut body = json!({"model": "m", "tools": [{"type": "function", "name": words(9, 3000)}],
                list: [{"role": "user", "content": words(1, 5000)}], "max_tokens": 5, "stream": false});
            let before = of(api, &body);
            assert_eq!(before.len(), 3, "8 KB of it, whole blocks");
            for turn in 2..5 {
                let before = of(api, &body);
                let turns = body[list].as_array_mut().unwrap();
                turns.push(json!({"role": "assistant", "content": words(turn, 700)}));
                turns.push(json!({"role": "user", "content": words(turn + 50, 2500)}));
                // What is no part of the prompt changes nothing.
                body["stream"] = json!(turn % 2 == 0);
                body["temperature"] = json!(turn);
                let after = of(api, &body);
                assert!(after.len() > before.len() && common(&before, &after) == before.len(), "{api:?}");
            }
            // Another tool, another salt or another model is another prompt from the start.
            for (name, value) in [("tools", json!([])), ("cache_salt", json!("s")), ("model", json!("n"))] {
                let mut other = body.clone();
                other[name] = value;
                assert_eq!(common(&of(api, &body), &of(api, &other)), 0, "{api:?} {name}");
            }
        }
    }

    #[test]
    fn prompts_and_tokens_have_prefixes() {
        let text = words(3, 9000);
        let body = |prompt: &str| json!({"model": "m", "prompt": prompt});
        let (all, some) = (of(Api::Completions, &body(&text)), of(Api::Completions, &body(&text[..5000])));
        assert_eq!((all.len(), some.len(), common(&all, &some)), (4, 2, 2));
        let tokens: Vec<usize> = (1000..3000).collect();
        let body = |count: usize| json!({"token_ids": &tokens[..count], "sampling_params": {}});
        let (all, some) = (of(Api::Generate, &body(2000)), of(Api::Generate, &body(1000)));
        assert_eq!((all.len(), some.len(), common(&all, &some)), (4, 2, 2));
        assert!(of(Api::Chat, &json!({"messages": [{"role": "user", "content": "short"}]})).is_empty());
    }

    /// Engines take the block out that Claude Code changes each time.
    #[test]
    fn what_changes_with_each_request_is_skipped() {
        let body = |number: usize, first: &str| {
            json!({"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": words(8, 4000)}],
                "system": [{"type": "text", "text": format!("{first}{number}")}, {"type": "text", "text": words(2, 3000)}]})
        };
        let billing = "x-anthropic-billing-header: cc_version=2.1; cch=";
        let of = |number, first| of(Api::Messages, &body(number, first));
        assert_eq!(common(&of(1, billing), &of(2, billing)), 3);
        assert_eq!(common(&of(1, "You are "), &of(2, "You are ")), 0);
    }

    /// Marks move to the last messages, of which the turn before had others.
    #[test]
    fn marks_of_what_to_cache_are_no_text() {
        let body = |marked: bool| {
            let mark = if marked { r#","cache_control":{"type":"ephemeral","ttl":"1h"}"# } else { "" };
            let first =
                if marked { r#"{"cache_control": {"type": "ephemeral"}, "type":"text""# } else { r#"{"type":"text""# };
            let text = words(4, 3300);
            format!(
                r#"{{"model":"m","max_tokens":5,"messages":[{{"role":"user","content":[{first},"text":"{text}"{mark}}}]}},{{"role":"user","content":"say \"cache_control\":{{}} {text}"}}]}}"#
            )
        };
        let of =
            |marked| hashes(&Request::parse(Api::Messages, Bytes::from(body(marked)), TokenBudget::Exact).unwrap());
        assert_eq!(of(true).len(), 3);
        assert_eq!(of(true), of(false));
    }

    /// Wherever the stretches end that are searched one by one: what is left is what a text without marks is.
    #[test]
    fn a_mark_is_found_wherever_it_stands() {
        let check = |marked: &str, plain: &str, before: usize| {
            let (mut one, mut other) = (Chain::new(0), Chain::new(0));
            for chain in [&mut one, &mut other] {
                chain.add(&vec![b'm'; before]);
            }
            one.add_unmarked(marked.as_bytes());
            other.add(plain.as_bytes());
            assert!(one.hashes == other.hashes && one.rest == other.rest, "{marked}");
        };
        let (mark, words) = ("\"cache_control\" : {\"type\":\"ephemeral\"}", words(6, 4 * STRETCH));
        let ends = [0, STRETCH, STRETCH + BLOCK, 2 * STRETCH].map(|end| end.saturating_sub(70)..end + 70);
        for (place, before) in ends.into_iter().flatten().flat_map(|place| [(place, 0), (place, 50)]) {
            let (head, tail) = words.split_at(place);
            for blanks in ["", "\n  "] {
                let [last, first] = [format!("{blanks},{blanks}{mark}"), format!("{mark}{blanks},{blanks}")];
                check(&format!("{head}1{last}}}{tail}"), &format!("{head}1{blanks}}}{tail}"), before);
                check(&format!("{head}{{{first}\"a\":1{tail}"), &format!("{head}{{\"a\":1{tail}"), before);
            }
            let none = format!("{head}\\\"cache_control\\\":{{}}, \"cache_control\", {tail}");
            check(&none, &none, before);
        }
        let blanks = " ".repeat(5 * STRETCH);
        check(&format!("a,{blanks}{mark}}}b"), "a}b", 7);
        check(&format!("{blanks}{mark},{blanks}b"), "b", 0);
        check(&format!("{blanks},{blanks}"), &format!("{blanks},{blanks}"), 0);
    }

    #[test]
    fn a_chain_does_not_care_how_its_text_is_cut() {
        let text = words(5, 20_000);
        let chain = |size: usize| {
            let mut chain = Chain::new(0);
            text.as_bytes().chunks(size).for_each(|part| chain.add(part));
            chain.hashes
        };
        let whole = chain(20_000);
        assert_eq!(whole.len(), 9);
        for size in [1, 7, 2047, 2048, 2049, 5000] {
            assert_eq!(chain(size), whole, "{size}");
        }
    }
}
