//! How long an answer's body is (RFC 9112, 6), and its bytes without their framing.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

/// A chunk's size has at most so many digits: more than any body can have.
const SIZE_DIGITS: u8 = 15;
/// What may stand in a size's line beside it, and in all trailers together. Nobody reads either.
const UNREAD: u32 = 16 * 1024;

/// The body breaks the rules of its framing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the body's framing is broken")]
pub(super) struct Malformed;

/// What is still to come of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunked(Chunked),
    /// Whatever comes until the connection is closed.
    UntilClose,
    /// Nothing.
    Over,
}

/// Where a chunked body stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chunked {
    /// In a chunk's size.
    Size {
        /// As read so far.
        size: u64,
        /// How many digits that were.
        digits: u8,
    },
    /// Behind it, up to the line's end.
    Extension {
        /// The chunk's size.
        size: u64,
        /// What may still be skipped.
        left: u32,
    },
    /// At the line feed that ends the size's line.
    SizeEnd(u64),
    /// In a chunk's bytes.
    Data(u64),
    /// At the line end after those.
    DataEnd,
    /// At its line feed.
    DataFeed,
    /// In the trailers.
    Trailers {
        /// Where in a line.
        line: Line,
        /// What may still be skipped.
        left: u32,
    },
}

/// Where in a trailer's line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// At its beginning.
    Begin,
    /// In its name.
    Name,
    /// Behind the colon.
    Value,
    /// At its line feed.
    Feed,
    /// At the line feed of the empty line that ends the body.
    Last,
}

impl Framing {
    /// A chunked body at its beginning.
    pub(super) const CHUNKED: Framing = Framing::Chunked(Chunked::Size { size: 0, digits: 0 });

    /// A body of known length.
    pub(super) fn length(bytes: u64) -> Framing {
        if bytes == 0 { Framing::Over } else { Framing::Length(bytes) }
    }

    /// Takes what belongs to the body from the front of `input`: its content in one piece, and how many bytes were taken. Where
    /// the rules are broken, the content up to there counts.
    pub(super) fn take(&mut self, input: &[u8]) -> (Bytes, Result<usize, Malformed>) {
        let mut content = Content::default();
        let mut at = 0;
        while at < input.len() {
            let taken = match self {
                Framing::Over => break,
                Framing::UntilClose => content.add(input, at..input.len()),
                Framing::Length(left) => {
                    let taken = content.add(input, at..input.len().min(at + in_memory(*left)));
                    *self = Framing::length(*left - taken as u64);
                    taken
                }
                Framing::Chunked(Chunked::Data(left)) => {
                    let taken = content.add(input, at..input.len().min(at + in_memory(*left)));
                    *left -= taken as u64;
                    if *left == 0 {
                        *self = Framing::Chunked(Chunked::DataEnd);
                    }
                    taken
                }
                Framing::Chunked(chunked) => match chunked.after(input[at]) {
                    Ok(next) => {
                        *self = next;
                        1
                    }
                    Err(malformed) => return (content.finish(input), Err(malformed)),
                },
            };
            at += taken;
        }
        (content.finish(input), Ok(at))
    }
}

/// A length as far as memory goes.
fn in_memory(length: u64) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX / 2).min(usize::MAX / 2)
}

impl Chunked {
    /// What follows a byte that is no content.
    fn after(self, byte: u8) -> Result<Framing, Malformed> {
        let next = match (self, byte) {
            (Chunked::Size { size, digits }, byte) => match (byte as char).to_digit(16) {
                Some(digit) if digits < SIZE_DIGITS => {
                    Chunked::Size { size: size * 16 + u64::from(digit), digits: digits + 1 }
                }
                Some(_) => return Err(Malformed),
                None if digits == 0 => return Err(Malformed),
                None if byte == b'\r' => Chunked::SizeEnd(size),
                None if matches!(byte, b';' | b' ' | b'\t') => Chunked::Extension { size, left: UNREAD },
                None => return Err(Malformed),
            },
            (Chunked::Extension { size, .. }, b'\r') => Chunked::SizeEnd(size),
            (Chunked::Extension { left: 0, .. }, _) | (Chunked::Extension { .. }, b'\n') => return Err(Malformed),
            (Chunked::Extension { size, left }, _) => Chunked::Extension { size, left: left - 1 },
            (Chunked::SizeEnd(0), b'\n') => Chunked::Trailers { line: Line::Begin, left: UNREAD },
            (Chunked::SizeEnd(size), b'\n') => Chunked::Data(size),
            (Chunked::DataEnd, b'\r') => Chunked::DataFeed,
            (Chunked::DataFeed, b'\n') => Chunked::Size { size: 0, digits: 0 },
            (Chunked::Trailers { line: Line::Last, .. }, b'\n') => return Ok(Framing::Over),
            (Chunked::Trailers { left: 0, .. }, _) => return Err(Malformed),
            (Chunked::Trailers { line, left }, byte) => {
                Chunked::Trailers { line: line.after(byte).ok_or(Malformed)?, left: left - 1 }
            }
            (Chunked::SizeEnd(_) | Chunked::Data(_) | Chunked::DataEnd | Chunked::DataFeed, _) => {
                return Err(Malformed);
            }
        };
        Ok(Framing::Chunked(next))
    }
}

impl Line {
    /// What follows a byte, if that may stand there.
    fn after(self, byte: u8) -> Option<Line> {
        let is_token = byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        match (self, byte) {
            (Line::Begin, b'\r') => Some(Line::Last),
            (Line::Begin | Line::Name, _) if is_token => Some(Line::Name),
            (Line::Name, b':') => Some(Line::Value),
            (Line::Value, b'\r') => Some(Line::Feed),
            (Line::Value, byte) if byte == b'\t' || !byte.is_ascii_control() => Some(Line::Value),
            (Line::Feed, b'\n') => Some(Line::Begin),
            _ => None,
        }
    }
}

/// The content in one input: one stretch of it is copied once and exactly, several are gathered.
#[derive(Default)]
struct Content {
    first: Range<usize>,
    gathered: BytesMut,
}

impl Content {
    /// Adds a stretch, and says how long it is.
    fn add(&mut self, input: &[u8], stretch: Range<usize>) -> usize {
        let length = stretch.len();
        if self.first.is_empty() {
            self.first = stretch;
        } else {
            if self.gathered.is_empty() {
                self.gathered.reserve(input.len() - self.first.start);
                self.gathered.extend_from_slice(&input[self.first.clone()]);
            }
            self.gathered.extend_from_slice(&input[stretch]);
        }
        length
    }

    fn finish(self, input: &[u8]) -> Bytes {
        if self.gathered.is_empty() { Bytes::copy_from_slice(&input[self.first]) } else { self.gathered.freeze() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of an input that arrives in two parts, cut at every place: the content, how much was taken, and what is left.
    fn every_split(framing: Framing, input: &[u8]) -> (Vec<u8>, Result<(usize, Framing), Malformed>) {
        let in_parts = |cut: usize| {
            let (mut framing, mut content) = (framing, Vec::new());
            let mut taken = 0;
            for part in [&input[..cut], &input[cut..]] {
                let (data, result) = framing.take(part);
                content.extend_from_slice(&data);
                match result {
                    Ok(length) => taken += length,
                    Err(malformed) => return (content, Err(malformed)),
                }
            }
            (content, Ok((taken, framing)))
        };
        let whole = in_parts(input.len());
        for cut in 0..input.len() {
            assert_eq!(in_parts(cut), whole, "{cut} of {:?}", String::from_utf8_lossy(input));
        }
        whole
    }

    fn chunked(input: &str) -> (String, Result<(usize, bool), Malformed>) {
        let (content, result) = every_split(Framing::CHUNKED, input.as_bytes());
        (String::from_utf8(content).unwrap(), result.map(|(taken, left)| (taken, left == Framing::Over)))
    }

    #[test]
    fn content_is_what_stands_in_chunks() {
        for (input, content, over) in [
            ("3\r\nabc\r\n0\r\n\r\n", "abc", true),
            ("3\r\nabc\r\n2\r\nde\r\n", "abcde", false),
            ("1\r\na\r\n1\r\nb\r\n1\r\nc\r\n0\r\n\r\n", "abc", true),
            ("0A\r\n0123456789\r\n0\r\n\r\n", "0123456789", true),
            ("a\r\n0123456789\r\n0;last\r\nX: y\r\nZ: \r\n\r\n", "0123456789", true),
            ("3 ;a=b\r\nabc\r\n0\r\n\r\n", "abc", true),
            ("2\r\n\r\n\r\n0\r\n\r\n", "\r\n", true),
            ("3\r\nab", "ab", false),
            ("0\r\n\r", "", false),
            ("", "", false),
        ] {
            assert_eq!(chunked(input), (content.into(), Ok((input.len(), over))), "{input:?}");
        }
    }

    #[test]
    fn nothing_is_taken_behind_the_end() {
        assert_eq!(chunked("1\r\na\r\n0\r\n\r\nHTTP/1.1"), ("a".into(), Ok((11, true))));
        assert_eq!(every_split(Framing::length(2), b"abcd"), (b"ab".to_vec(), Ok((2, Framing::Over))));
        assert_eq!(every_split(Framing::Over, b"abcd"), (Vec::new(), Ok((0, Framing::Over))));
        assert_eq!(every_split(Framing::UntilClose, b"abcd"), (b"abcd".to_vec(), Ok((4, Framing::UntilClose))));
        assert_eq!(every_split(Framing::length(5), b"abcd"), (b"abcd".to_vec(), Ok((4, Framing::Length(1)))));
        assert_eq!(Framing::length(0), Framing::Over);
    }

    #[test]
    fn what_breaks_the_rules_is_refused_and_what_came_before_is_not_lost() {
        for (input, content) in [
            ("\r\n", ""),
            ("g\r\n", ""),
            ("-1\r\n", ""),
            ("+1\r\n", ""),
            ("0x1\r\na", ""),
            (";\r\n", ""),
            (" 1\r\n", ""),
            ("1\na", ""),
            ("1\r\r", ""),
            ("1\r\nab", "a"),
            ("1\r\na\n", "a"),
            ("1\r\na\r\r", "a"),
            ("1\r\na\r\n1\r\nb\r\n\r\n", "ab"),
            ("1;a\nb", ""),
            ("0\r\nX: y\n", ""),
            ("0\r\nX\r\n", ""),
            ("0\r\n: y\r\n", ""),
            ("0\r\nX y: z\r\n", ""),
            ("0\r\nX: \x01\r\n", ""),
            ("0\r\nX: y\rz", ""),
            ("0\r\n\rx", ""),
            ("1111111111111111\r\n", ""),
        ] {
            assert_eq!(chunked(input), (content.into(), Err(Malformed)), "{input:?}");
        }
        let long = format!("1;{}\r\na\r\n", "x".repeat(UNREAD as usize + 1));
        let trailers = format!("0\r\nX:{}\r\n\r\n", "x".repeat(UNREAD as usize + 1));
        for input in [long, trailers] {
            let mut framing = Framing::CHUNKED;
            assert_eq!(framing.take(input.as_bytes()).1, Err(Malformed));
        }
    }
}
