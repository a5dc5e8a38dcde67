//! The moment at which an engine wrote a chunk, in the chunk: who reads it knows how long it was under way, however late or
//! early the engine was.

use memchr::memmem;

use crate::clock;

const KEY: &str = "\"written_ns\":\"";
const DIGITS: usize = 20;
const LENGTH: usize = KEY.len() + DIGITS;

/// A field of a JSON object, always of the same length.
pub(crate) fn stamp() -> String {
    let now = clock::now();
    format!("{KEY}{now:0DIGITS$}\"")
}

/// Looks for stamps in content that comes in pieces.
#[derive(Default)]
pub(crate) struct Stamps {
    held: Vec<u8>,
}

impl Stamps {
    /// Shows the moment of each stamp that is whole with these bytes.
    pub(crate) fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(u64)) {
        self.held.extend_from_slice(bytes);
        let mut at = 0;
        while let Some(found) = memmem::find(&self.held[at..], KEY.as_bytes()).map(|found| at + found) {
            let Some(digits) = self.held.get(found + KEY.len()..found + LENGTH) else { break };
            each(digits.iter().fold(0, |moment, digit| moment * 10 + u64::from(digit.wrapping_sub(b'0'))));
            at = found + LENGTH;
        }
        // A stamp may have begun in what is left.
        let begun = self.held.len().saturating_sub(LENGTH - 1);
        self.held.drain(..at.max(begun));
    }
}

#[cfg(test)]
mod tests {
    use super::{Stamps, stamp};
    use crate::clock;

    #[test]
    fn stamps_are_found_however_they_are_cut() {
        let before = clock::now();
        let text = format!("data: {{{},\"a\":1}}\n\ndata: {{{}}}\n\ndata: [DONE]\n\n", stamp(), stamp());
        let after = clock::now();
        for piece in 1..=text.len() {
            let (mut stamps, mut seen) = (Stamps::default(), Vec::new());
            text.as_bytes().chunks(piece).for_each(|bytes| stamps.feed(bytes, |moment| seen.push(moment)));
            assert_eq!(seen.len(), 2, "pieces of {piece}");
            assert!(before <= seen[0] && seen[0] <= seen[1] && seen[1] <= after);
        }
    }
}
