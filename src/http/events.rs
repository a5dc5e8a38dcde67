//! A stream of events, cut where events end, wherever its parts were.

use bytes::{Buf, Bytes, BytesMut};
use memchr::memchr;

/// What has come of a stream and was not taken.
#[derive(Debug, Default)]
pub(super) struct Events {
    rest: BytesMut,
    /// No event ends before this.
    searched: usize,
}

impl Events {
    pub(super) fn push(&mut self, part: &[u8]) {
        self.rest.extend_from_slice(part);
    }

    /// The next whole event with its blank line.
    pub(super) fn next(&mut self) -> Option<Bytes> {
        if self.searched == 0 {
            // What ends an event that was cut may be more than its end.
            let blank = self.rest.iter().take_while(|byte| **byte == b'\n').count();
            self.rest.advance(blank);
        }
        while let Some(found) = memchr(b'\n', &self.rest[self.searched..]) {
            let at = self.searched + found;
            let end = match self.rest[at + 1..] {
                [b'\n', ..] => at + 2,
                [b'\r', b'\n', ..] => at + 3,
                // The next part tells.
                [] | [b'\r'] => {
                    self.searched = at;
                    return None;
                }
                _ => {
                    self.searched = at + 1;
                    continue;
                }
            };
            self.searched = 0;
            return Some(self.rest.split_to(end).freeze());
        }
        self.searched = self.rest.len();
        None
    }

    /// Bytes of an event whose end has not come.
    pub(super) fn held(&self) -> usize {
        self.rest.len()
    }

    /// The same bytes.
    pub(super) fn take(&mut self) -> Bytes {
        self.searched = 0;
        self.rest.split().freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_end_where_they_do_however_they_come() {
        let text = "data: a\n\n: comment\n\nevent: b\ndata: c\n\n\n\ndata: d\r\n\r\ndata: e\n";
        let wanted = ["data: a\n\n", ": comment\n\n", "event: b\ndata: c\n\n", "data: d\r\n\r\n"];
        for step in 1..=text.len() {
            let (mut events, mut found) = (Events::default(), Vec::new());
            for part in text.as_bytes().chunks(step) {
                events.push(part);
                found.extend(std::iter::from_fn(|| events.next()));
            }
            assert_eq!(found, wanted, "{step}");
            assert_eq!((events.held(), &events.take()[..], events.held()), (8, &b"data: e\n"[..], 0), "{step}");
        }
    }
}
