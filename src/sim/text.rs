//! The simulated model: prompts become KV blocks, KV blocks become words.

use serde_json::Value;

/// Tokens in one KV block.
pub(crate) const BLOCK_TOKENS: usize = 16;
/// Bytes of text in one token.
pub(crate) const TOKEN_BYTES: usize = 4;
/// Bytes in one KV block, all tensor-parallel shards together.
pub(crate) const BLOCK_BYTES: usize = 32;

/// One block's content.
pub(crate) type Block = [u8; BLOCK_BYTES];

const WORDS: [&str; 64] = [
    "ash", "bay", "cat", "dew", "elm", "fog", "gem", "hut", "ice", "jar", "key", "log", "map", "net", "oak", "pen",
    "rye", "sky", "tea", "urn", "vat", "web", "yak", "zip", "arm", "bee", "cup", "dog", "ear", "fig", "gum", "hat",
    "ink", "jam", "kit", "leg", "mud", "nut", "oat", "pie", "rug", "sun", "toe", "use", "van", "wax", "yam", "zoo",
    "ant", "box", "cod", "den", "egg", "fan", "gas", "hen", "ivy", "jet", "kin", "lid", "mat", "nib", "owl", "pit",
];

/// What matters of a prompt: how long it is and a digest of what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Prompt {
    pub(crate) digest: u64,
    pub(crate) tokens: usize,
}

impl Prompt {
    /// Reads the value of `prompt`, `messages`, `input` or `token_ids`.
    pub(crate) fn of(value: &Value) -> Self {
        match Self::sole(value) {
            Value::String(text) => {
                Self { digest: digest(text.as_bytes()), tokens: text.len().div_ceil(TOKEN_BYTES).max(1) }
            }
            other => {
                let text = other.to_string();
                let tokens = match other {
                    Value::Array(items) if items.iter().all(Value::is_number) => items.len(),
                    _ => text.len().div_ceil(TOKEN_BYTES),
                };
                Self { digest: digest(text.as_bytes()), tokens: tokens.max(1) }
            }
        }
    }

    /// The prompt itself, where it is the only one of a list.
    pub(crate) fn sole(value: &Value) -> &Value {
        match value {
            Value::Array(items) if items.len() == 1 && (items[0].is_string() || items[0].is_array()) => &items[0],
            other => other,
        }
    }

    /// How many blocks the prompt fills.
    pub(crate) fn blocks(self) -> usize {
        self.tokens.div_ceil(BLOCK_TOKENS)
    }

    /// The KV of the prompt's block `index`.
    pub(crate) fn block(self, index: usize) -> Block {
        let mut block = [0; BLOCK_BYTES];
        for (lane, bytes) in block.chunks_exact_mut(8).enumerate() {
            let seed = self.digest ^ mix(((index as u64) << 8) | lane as u64);
            bytes.copy_from_slice(&mix(seed).to_le_bytes());
        }
        block
    }

    /// Chooses output tokens from the KV that is really there and from the engine's own copy of the prompt.
    pub(crate) fn voice<'a>(self, blocks: impl Iterator<Item = &'a Block>) -> Voice {
        let mut seed = self.digest;
        for block in blocks {
            for bytes in block.chunks_exact(8) {
                let mut lane = [0; 8];
                lane.copy_from_slice(bytes);
                seed = mix(seed ^ u64::from_le_bytes(lane));
            }
        }
        Voice(seed)
    }
}

/// A model that has seen a prompt and can now be asked for any of its output tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Voice(u64);

impl Voice {
    /// The number of output token `position`.
    pub(crate) fn token(self, position: usize) -> usize {
        (mix(self.0 ^ mix(position as u64 + 1)) % WORDS.len() as u64) as usize
    }

    /// The text of output token `position`: one word, after a space unless it is the first.
    pub(crate) fn piece(self, position: usize) -> String {
        let word = WORDS[self.token(position)];
        if position == 0 { word.to_string() } else { format!(" {word}") }
    }

    /// The first `tokens` output tokens.
    pub(crate) fn text(self, tokens: usize) -> String {
        (0..tokens).map(|position| self.piece(position)).collect()
    }
}

/// The text that one undivided engine would produce for the value of `prompt`, `messages`, `input` or `token_ids`.
pub fn expected_text(prompt: &Value, tokens: usize) -> String {
    let prompt = Prompt::of(prompt);
    let blocks: Vec<Block> = (0..prompt.blocks()).map(|index| prompt.block(index)).collect();
    prompt.voice(blocks.iter()).text(tokens)
}

/// The token numbers that one undivided engine would produce: what `/inference/v1/generate` answers.
pub fn expected_tokens(prompt: &Value, tokens: usize) -> Vec<usize> {
    let prompt = Prompt::of(prompt);
    let blocks: Vec<Block> = (0..prompt.blocks()).map(|index| prompt.block(index)).collect();
    let voice = prompt.voice(blocks.iter());
    (0..tokens).map(|position| voice.token(position)).collect()
}

/// A number that stands for `bytes`.
pub(crate) fn digest(bytes: &[u8]) -> u64 {
    let mut seed = mix(bytes.len() as u64);
    for chunk in bytes.chunks(8) {
        let mut lane = [0; 8];
        lane[..chunk.len()].copy_from_slice(chunk);
        seed = (seed.rotate_left(5) ^ u64::from_le_bytes(lane)).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
    mix(seed)
}

/// The finalizer of splitmix64: every input bit moves every output bit.
pub(crate) fn mix(value: u64) -> u64 {
    let mut value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
