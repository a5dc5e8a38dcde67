//! The prefix cache of one data-parallel rank: which blocks it has computed and not forgotten.

use std::collections::{BTreeMap, HashMap};

use super::text::BLOCK_TOKENS;

/// Blocks by their hashes, the least recently used of which goes first.
#[derive(Default)]
pub(crate) struct Cache {
    limit: usize,
    clock: u64,
    /// When each block was used last.
    used: HashMap<u64, u64>,
    /// The same, by time.
    order: BTreeMap<u64, u64>,
}

impl Cache {
    /// An empty cache; what is left of `tokens` besides full blocks counts for nothing.
    pub(crate) fn new(tokens: usize) -> Self {
        Self { limit: tokens / BLOCK_TOKENS, ..Self::default() }
    }

    /// Whether anything is ever kept.
    pub(crate) fn is_on(&self) -> bool {
        self.limit > 0
    }

    /// How many of a prompt's tokens need not be computed. The last one always is: its logits are kept nowhere.
    pub(crate) fn hit(&mut self, hashes: &[u64], tokens: usize) -> usize {
        let most = tokens.saturating_sub(1) / BLOCK_TOKENS;
        let blocks = hashes.iter().take(most).take_while(|hash| self.used.contains_key(hash)).count();
        self.touch(&hashes[..blocks]);
        blocks * BLOCK_TOKENS
    }

    /// Keeps the blocks of a prompt that was computed.
    pub(crate) fn keep(&mut self, hashes: &[u64]) {
        self.touch(hashes);
        while self.used.len() > self.limit
            && let Some((_, hash)) = self.order.pop_first()
        {
            self.used.remove(&hash);
        }
    }

    pub(crate) fn clear(&mut self) {
        self.used.clear();
        self.order.clear();
    }

    /// A prompt's last block counts as used before its first, so that what prompts have in common stays longest.
    fn touch(&mut self, hashes: &[u64]) {
        for hash in hashes.iter().rev() {
            self.clock += 1;
            if let Some(before) = self.used.insert(*hash, self.clock) {
                self.order.remove(&before);
            }
            self.order.insert(self.clock, *hash);
        }
    }
}
