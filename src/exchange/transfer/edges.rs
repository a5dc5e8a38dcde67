//! The ways from state to state of the four machines, noted for the drawings of them.

use super::Transfer;
use super::states::{Attempt, Blocks, Decode, Prefill};
use super::words::Edge;

impl Transfer {
    /// The ways that it has gone since this was asked last, to be compared with the drawings. Builds without debug assertions do not
    /// note them.
    pub fn edges(&mut self) -> impl Iterator<Item = Edge> {
        self.edges.drain(..)
    }

    pub(super) fn set_attempt(&mut self, next: Attempt) {
        self.note(0, self.attempt.name(), next.name());
        self.attempt = next;
    }

    pub(super) fn set_prefill(&mut self, next: Prefill) {
        self.note(1, self.prefill.name(), next.name());
        self.prefill = next;
    }

    pub(super) fn set_decode(&mut self, next: Decode) {
        self.note(2, self.decode.name(), next.name());
        self.decode = next;
    }

    pub(super) fn set_blocks(&mut self, next: Blocks) {
        self.note(3, self.blocks.name(), next.name());
        self.blocks = next;
    }

    fn note(&mut self, machine: usize, from: &'static str, to: &'static str) {
        if cfg!(debug_assertions) && from != to {
            self.edges.push((machine, from, to));
        }
    }
}
