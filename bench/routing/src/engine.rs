//! A prefill engine as far as routing sees it: one prompt at a time at so many tokens a second, and a prefix cache.

use std::collections::{HashMap, VecDeque};

/// Tokens of a cached block, as vLLM has it.
pub const BLOCK: usize = 16;
/// Tokens that an engine computes in a second.
pub const RATE: f64 = 10_000.0;
/// What each prompt takes besides, in seconds.
const FIXED: f64 = 0.02;

/// An engine.
pub struct Engine {
    /// Blocks that fit.
    capacity: usize,
    /// By block, when it was used last.
    cached: HashMap<u64, u64>,
    /// Uses in their order; those that a later one has overtaken count for nothing.
    uses: VecDeque<(u64, u64)>,
    clock: u64,
    /// Prompts that wait, the first of them at work, by their numbers.
    pub queue: VecDeque<usize>,
    /// Tokens that it has computed.
    pub computed: f64,
}

impl Engine {
    /// An idle engine whose cache holds so many tokens.
    pub fn new(tokens: usize) -> Engine {
        let (cached, uses) = (HashMap::new(), VecDeque::new());
        Engine { capacity: tokens / BLOCK, cached, uses, clock: 0, queue: VecDeque::new(), computed: 0.0 }
    }

    /// Computes a prompt: the tokens that it had, and the seconds that it took.
    pub fn compute(&mut self, prompt: &[u64]) -> (usize, f64) {
        let known = prompt.iter().take_while(|block| self.cached.contains_key(block)).count();
        // The last token is always computed.
        let had = known.min(prompt.len().saturating_sub(1));
        // The end of a prompt is the first to go.
        for block in prompt.iter().rev() {
            self.clock += 1;
            self.cached.insert(*block, self.clock);
            self.uses.push_back((self.clock, *block));
        }
        while self.cached.len() > self.capacity {
            let Some((at, block)) = self.uses.pop_front() else { break };
            if self.cached.get(&block) == Some(&at) {
                self.cached.remove(&block);
            }
        }
        let new = ((prompt.len() - had) * BLOCK) as f64;
        self.computed += new;
        (had * BLOCK, FIXED + new / RATE)
    }
}
