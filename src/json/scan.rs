//! One pass over an object's text that passes long strings in blocks. It takes what serde_json takes and says where the members
//! stand; of all else it only says that it is not for it.

use std::ops::Range;

/// Bytes of a string that are looked at together; the compiler makes vector instructions of it.
const BLOCK: usize = 32;

/// A string without a special byte for so long is passed by memchr, which knows the machine's widest vectors but costs more to begin.
const LONG: usize = 1024;

/// Bytes that memchr passes before they are looked at for what else a string may not have: no more than stay near.
const PIECE: usize = 4096;

/// A one in each byte of a word.
const ONES: u64 = u64::MAX / 0xff;

/// Each byte's top bit.
const TOPS: u64 = ONES << 7;

/// Where a member stands in its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// The key, with its quotes.
    pub key: Range<usize>,
    pub value: Range<usize>,
    /// Whether the key has an escape in it.
    pub escaped: bool,
}

/// An object's members, and the position of its closing brace.
pub(super) type Object = (Vec<Member>, usize);

/// The object that a text is, with at most `limit` members.
pub(super) fn members(text: &[u8], limit: usize) -> Option<Object> {
    let mut scan = Scan { text, at: 0, open: Vec::new(), seen: 0 };
    scan.blanks();
    let object = scan.object(limit, |scan, _| scan.value())?;
    scan.is_over().then_some(object)
}

/// The object that stands at a key of the object that a text is, and where; none where another value stands there or none. A key
/// with an escape is not for it.
pub(super) fn inner(text: &[u8], wanted: &[u8], limit: usize) -> Option<Option<(usize, Object)>> {
    let mut scan = Scan { text, at: 0, open: Vec::new(), seen: 0 };
    let mut inner = None;
    scan.blanks();
    let (members, _) = scan.object(limit, |scan, key| {
        if text[key.start + 1..key.end - 1] != *wanted {
            return scan.value();
        }
        // Of duplicates the last counts.
        inner = None;
        if scan.peek()? != b'{' {
            return scan.value();
        }
        inner = Some((scan.at, scan.object(limit, |scan, _| scan.value())?));
        Some(())
    })?;
    let is_sure = scan.is_over() && members.iter().all(|member| !member.escaped);
    is_sure.then_some(inner)
}

struct Scan<'a> {
    text: &'a [u8],
    at: usize,
    /// The brackets around the value that is read.
    open: Vec<u8>,
    /// All bytes of strings in one: a top bit tells that some are not ASCII. Elsewhere none can be.
    seen: u64,
}

impl Scan<'_> {
    /// An object of which `value` passes the value of each key.
    fn object(
        &mut self,
        limit: usize,
        mut value: impl FnMut(&mut Self, &Range<usize>) -> Option<()>,
    ) -> Option<Object> {
        let mut members = Vec::with_capacity(16);
        self.take(b'{')?;
        self.blanks();
        if self.peek()? == b'}' {
            self.at += 1;
            return Some((members, self.at - 1));
        }
        loop {
            let start = self.at;
            let escaped = self.string()?;
            let key = start..self.at;
            self.colon()?;
            let start = self.at;
            value(self, &key)?;
            if members.len() == limit {
                return None;
            }
            members.push(Member { key, value: start..self.at, escaped });
            self.blanks();
            match self.next()? {
                b',' => self.blanks(),
                b'}' => return Some((members, self.at - 1)),
                _ => return None,
            }
        }
    }

    /// Whether nothing is behind what was read, and all of it is text.
    fn is_over(&mut self) -> bool {
        self.blanks();
        self.at == self.text.len() && (self.seen & TOPS == 0 || std::str::from_utf8(self.text).is_ok())
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn take(&mut self, wanted: u8) -> Option<()> {
        (self.next()? == wanted).then_some(())
    }

    fn blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\n' | b'\t' | b'\r')) {
            self.at += 1;
        }
    }

    fn colon(&mut self) -> Option<()> {
        self.blanks();
        self.take(b':')?;
        self.blanks();
        Some(())
    }

    fn key(&mut self) -> Option<()> {
        self.string()?;
        self.colon()
    }

    /// Any value. Depth costs a byte each and no stack.
    fn value(&mut self) -> Option<()> {
        loop {
            match self.peek()? {
                b'"' => _ = self.string()?,
                b'-' | b'0'..=b'9' => self.number()?,
                b't' => self.word(b"true")?,
                b'f' => self.word(b"false")?,
                b'n' => self.word(b"null")?,
                open @ (b'{' | b'[') => {
                    self.at += 1;
                    self.blanks();
                    // A bracket is followed by its closing one at a distance of two.
                    if self.peek()? == open + 2 {
                        self.at += 1;
                    } else {
                        self.open.push(open);
                        match open {
                            b'{' => self.key()?,
                            _ => self.whole_numbers(),
                        }
                        continue;
                    }
                }
                _ => return None,
            }
            if self.ended()? {
                return Some(());
            }
        }
    }

    /// What follows a value: true if that was the whole, false before the next one.
    fn ended(&mut self) -> Option<bool> {
        while let Some(open) = self.open.last().copied() {
            self.blanks();
            match self.next()? {
                b',' => {
                    self.blanks();
                    if open == b'{' {
                        self.key()?;
                    }
                    return Some(false);
                }
                close if close == open + 2 => _ = self.open.pop(),
                _ => return None,
            }
        }
        Some(true)
    }

    /// Passes whole numbers with the commas behind them, up to the last or to whatever else there is: block ids and token ids are
    /// thousands of them.
    fn whole_numbers(&mut self) {
        let text = self.text;
        let (mut at, mut begin) = (self.at, self.at);
        while let Some(first @ b'0'..=b'9') = text.get(at).copied() {
            at += 1;
            while text.get(at).is_some_and(u8::is_ascii_digit) {
                at += 1;
            }
            let is_number = first != b'0' || at == begin + 1;
            if !is_number || text.get(at) != Some(&b',') {
                break;
            }
            at += if text.get(at + 1) == Some(&b' ') { 2 } else { 1 };
            begin = at;
        }
        self.at = begin;
        self.blanks();
    }

    fn word(&mut self, word: &[u8]) -> Option<()> {
        let found = self.text[self.at..].starts_with(word);
        self.at += word.len();
        found.then_some(())
    }

    fn number(&mut self) -> Option<()> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        match self.next()? {
            b'0' => {}
            b'1'..=b'9' => self.digits(),
            _ => return None,
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.some_digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.some_digits()?;
        }
        Some(())
    }

    fn some_digits(&mut self) -> Option<()> {
        self.next()?.is_ascii_digit().then_some(())?;
        self.digits();
        Some(())
    }

    fn digits(&mut self) {
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
    }

    /// A string with its quotes, and whether it has an escape in it.
    fn string(&mut self) -> Option<bool> {
        self.take(b'"')?;
        let mut escaped = false;
        loop {
            self.plain();
            match self.next()? {
                b'"' => return Some(escaped),
                b'\\' => self.escape()?,
                _ => return None,
            }
            escaped = true;
        }
    }

    fn escape(&mut self) -> Option<()> {
        match self.next()? {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Some(()),
            b'u' => {
                let digits = self.text.get(self.at..self.at + 4)?;
                self.at += 4;
                digits.iter().all(u8::is_ascii_hexdigit).then_some(())
            }
            _ => None,
        }
    }

    /// Passes what stands for itself in a string.
    fn plain(&mut self) {
        let (mut at, mut seen) = (self.at, self.seen);
        loop {
            // Most strings are short and most stretches between escapes too.
            while let Some(word) = self.text[at..].first_chunk::<8>().copied().map(u64::from_le_bytes) {
                let special = special(word);
                // What stands before the first special byte is seen; what stands behind it will be.
                seen |= word & (special & special.wrapping_neg()).wrapping_sub(1);
                if special != 0 {
                    (self.at, self.seen) = (at + (special.trailing_zeros() / 8) as usize, seen);
                    return;
                }
                at += 8;
                if at - self.at >= BLOCK {
                    break;
                }
            }
            while let Some(block) = self.text[at..].first_chunk::<BLOCK>() {
                let (mut special, mut all) = (0, 0_u8);
                for byte in block {
                    special |= u8::from(*byte == b'"') | u8::from(*byte == b'\\') | u8::from(*byte < b' ');
                    all |= byte;
                }
                if special != 0 {
                    break;
                }
                seen |= u64::from(all);
                at += BLOCK;
                if at - self.at >= LONG {
                    at += plain_pieces(&self.text[at..], &mut seen);
                    break;
                }
            }
            if self.text.len() - at < 8 {
                break;
            }
            // A special byte is near: the words before it find it.
            self.at = at;
        }
        let is_plain = |byte: &&u8| !matches!(**byte, b'"' | b'\\' | 0..b' ');
        for byte in self.text[at..].iter().take_while(is_plain) {
            seen |= u64::from(*byte);
            at += 1;
        }
        (self.at, self.seen) = (at, seen);
    }
}

/// How much of `text` surely stands for itself in a string, with all of its bytes added to `seen`.
fn plain_pieces(text: &[u8], seen: &mut u64) -> usize {
    let mut passed = 0;
    for piece in text.chunks(PIECE) {
        let plain = &piece[..memchr::memchr2(b'"', b'\\', piece).unwrap_or(piece.len())];
        let (mut all, mut lowest) = (0, u8::MAX);
        for byte in plain {
            all |= byte;
            lowest = lowest.min(*byte);
        }
        if lowest < b' ' {
            break;
        }
        *seen |= u64::from(all);
        passed += plain.len();
        if plain.len() < PIECE {
            break;
        }
    }
    passed
}

/// The top bit of each byte that is a quote, a backslash or a control character; exact up to the first of them.
fn special(word: u64) -> u64 {
    let quote = word ^ (ONES * b'"' as u64);
    let backslash = word ^ (ONES * b'\\' as u64);
    let below = |word: u64, limit: u64| word.wrapping_sub(ONES * limit) & !word;
    (below(word, 0x20) | below(quote, 1) | below(backslash, 1)) & TOPS
}

#[cfg(test)]
mod tests;
