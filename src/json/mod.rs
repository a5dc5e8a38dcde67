//! A shallow look at a JSON object, and edits that leave every other byte as it came.
//!
//! One pass validates the whole text and remembers where each top-level member stands. An edited body is a list of slices
//! of the original with small inserts between them, so a prompt is never copied. What a key means is known elsewhere.

pub mod keys;
mod scan;

use std::fmt;

use bytes::{Bytes, BytesMut};
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use scan::{Member, inner, members};

/// More top-level members than any API has; the search for a key is linear in them.
pub(crate) const MAX_MEMBERS: usize = 256;

/// More edits than any leg needs; a test of the table of fields holds it to that.
pub(crate) const MAX_EDITS: usize = 32;

/// A kept piece shorter than this is copied into the insert beside it: that is cheaper than one more segment to send.
const SMALL_PIECE: usize = 512;

/// Why a text cannot be edited.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// Not JSON; where and why.
    #[error("body is not valid JSON: {0}")]
    NotJson(String),
    /// JSON, but no object.
    #[error("body must be a JSON object")]
    NotAnObject,
    /// More than [`MAX_MEMBERS`] top-level members.
    #[error("body has more than {MAX_MEMBERS} top-level keys")]
    TooManyMembers,
}

/// A JSON object, its text kept as it came.
#[derive(Clone, Debug)]
pub struct Body {
    text: Bytes,
    members: Vec<Member>,
    /// Which keys the members can have, by [`trait_of`]: most of the keys that are asked for are not there.
    keys: u64,
    /// Position of the closing brace.
    close: usize,
}

/// The value of an [`Edit::Set`], as JSON text.
#[derive(Clone, Debug)]
pub enum Json {
    /// A constant.
    Fixed(&'static str),
    /// A text made for this edit.
    Text(String),
    /// Another body, edited or not.
    Parts(Segments),
}

/// One change to a top-level member. Duplicates of the key are changed alike.
#[derive(Clone, Debug)]
pub enum Edit {
    /// Replaces the value where the key stands, or adds the member at the end.
    Set(&'static str, Json),
    /// Removes the member and one comma.
    Remove(&'static str),
}

impl Edit {
    /// The member that it changes.
    pub fn key(&self) -> &'static str {
        match self {
            Edit::Set(key, _) | Edit::Remove(key) => key,
        }
    }
}

/// A body as a list of slices with an exact length.
#[derive(Clone, Debug, Default)]
pub struct Segments {
    parts: Vec<Bytes>,
    len: u64,
}

impl Segments {
    /// The length of the whole, for `content-length`.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is no byte at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The slices in order; none is empty.
    pub fn parts(&self) -> &[Bytes] {
        &self.parts
    }

    /// The whole in one piece. It copies: for tests and for small bodies.
    pub fn to_vec(&self) -> Vec<u8> {
        self.parts.concat()
    }

    fn push(&mut self, part: Bytes) {
        if !part.is_empty() {
            self.len += part.len() as u64;
            self.parts.push(part);
        }
    }
}

impl From<Bytes> for Segments {
    fn from(text: Bytes) -> Self {
        let mut segments = Segments::default();
        segments.push(text);
        segments
    }
}

impl IntoIterator for Segments {
    type Item = Bytes;
    type IntoIter = std::vec::IntoIter<Bytes>;

    fn into_iter(self) -> Self::IntoIter {
        self.parts.into_iter()
    }
}

impl Body {
    /// Validates the whole of `text` and finds its top-level members. Nesting costs no stack.
    pub fn parse(text: Bytes) -> Result<Body, BodyError> {
        match members(&text, MAX_MEMBERS) {
            Some((members, close)) => Ok(Body::of(text, members, close)),
            // What is wrong, if anything, serde_json says.
            None => Body::parse_by_serde(text),
        }
    }

    /// The object at a key of the object that `text` is, in one pass over both; of duplicates the last counts. None where there is
    /// none, or something else.
    pub(crate) fn inner(text: Bytes, key: &str) -> Result<Option<Body>, BodyError> {
        match inner(&text, key.as_bytes(), MAX_MEMBERS) {
            Some(found) => Ok(found.map(|(start, (mut members, close))| {
                for range in members.iter_mut().flat_map(|member| [&mut member.key, &mut member.value]) {
                    *range = range.start - start..range.end - start;
                }
                Body::of(text.slice(start..=close), members, close - start)
            })),
            None => Ok(Body::parse(text)?.nested(key).and_then(Result::ok)),
        }
    }

    fn parse_by_serde(text: Bytes) -> Result<Body, BodyError> {
        let raw = match serde_json::from_slice::<TopLevel>(&text) {
            Ok(TopLevel::Members(members)) => members,
            Ok(TopLevel::TooMany) => return Err(BodyError::TooManyMembers),
            Err(error) => {
                return Err(match serde_json::from_slice::<&RawValue>(&text) {
                    Ok(_) => BodyError::NotAnObject,
                    Err(_) => BodyError::NotJson(error.to_string()),
                });
            }
        };
        // A raw value points into the text, so its address tells its position.
        let base = text.as_ptr() as usize;
        let range = |value: &RawValue| {
            let start = value.get().as_ptr() as usize - base;
            start..start + value.get().len()
        };
        let member = |(key, value): (&RawValue, &RawValue)| Member {
            key: range(key),
            value: range(value),
            escaped: key.get().contains('\\'),
        };
        let members = raw.into_iter().map(member).collect();
        let close = text.iter().rposition(|byte| *byte == b'}').ok_or(BodyError::NotAnObject)?;
        Ok(Body::of(text, members, close))
    }

    fn of(text: Bytes, members: Vec<Member>, close: usize) -> Body {
        let mut body = Body { text, members, keys: 0, close };
        body.keys = body.members.iter().fold(0, |keys, member| keys | body.trait_of_member(member));
        body
    }

    /// Which keys a member can have, by [`trait_of`].
    fn trait_of_member(&self, member: &Member) -> u64 {
        if member.escaped { u64::MAX } else { trait_of(&self.text[member.key.start + 1..member.key.end - 1]) }
    }

    /// An object without members.
    pub fn empty() -> Body {
        Body::of(Bytes::from_static(b"{}"), Vec::new(), 1)
    }

    /// The whole text.
    pub fn text(&self) -> &Bytes {
        &self.text
    }

    /// The raw JSON text of a member's value; of duplicates the last counts.
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        self.find(key).map(|member| &self.text[member.value.clone()])
    }

    /// How often a key stands in the object.
    pub fn count(&self, key: &str) -> usize {
        self.members.iter().filter(|member| self.is_key(member, key)).count()
    }

    /// As [`Body::get`], but `null` counts as absent.
    pub(crate) fn get_some(&self, key: &str) -> Option<&[u8]> {
        self.get(key).filter(|value| *value != b"null")
    }

    /// A member's value as a body of its own, if it is an object.
    pub(crate) fn nested(&self, key: &str) -> Option<Result<Body, BodyError>> {
        self.find(key).map(|member| Body::parse(self.text.slice(member.value.clone())))
    }

    fn find(&self, key: &str) -> Option<&Member> {
        if self.keys & trait_of(key.as_bytes()) == 0 {
            return None;
        }
        self.members.iter().rev().find(|member| self.is_key(member, key))
    }

    /// Sees through escapes, since an engine does: `"\u006e"` is `n`.
    fn is_key(&self, member: &Member, key: &str) -> bool {
        let quoted = &self.text[member.key.clone()];
        let inner = &quoted[1..quoted.len() - 1];
        // An escape takes six bytes at most, so a long key is never read again for each question about it.
        if !member.escaped || inner.len() <= key.len() || inner.len() > 6 * key.len() {
            return inner == key.as_bytes();
        }
        serde_json::from_slice::<String>(quoted).is_ok_and(|unescaped| unescaped == key)
    }

    /// The body with all of `edits` made. The keys of `edits` must differ.
    pub fn edit(&self, edits: &[Edit]) -> Segments {
        let mut out = Writer::new(&self.text);
        let mut found = [false; MAX_EDITS];
        debug_assert!(edits.len() <= found.len());
        let mut kept = 0usize;
        let mut previous_end = None;
        let wanted = edits.iter().fold(0, |keys, edit| keys | trait_of(edit.key().as_bytes()));
        for (position, member) in self.members.iter().enumerate() {
            let may_hit = wanted & self.trait_of_member(member) != 0;
            let hit = if may_hit { edits.iter().position(|edit| self.is_key(member, edit.key())) } else { None };
            match hit.map(|index| (index, &edits[index])) {
                Some((index, Edit::Set(_, value))) => {
                    if let Some(found) = found.get_mut(index) {
                        *found = true;
                    }
                    out.keep_until(member.value.start);
                    out.insert(value);
                    out.skip_to(member.value.end);
                    kept += 1;
                }
                Some((_, Edit::Remove(_))) if kept == 0 => {
                    // Nothing stands before it, so the comma to remove is the one behind it.
                    out.keep_until(member.key.start);
                    let next = self.members.get(position + 1);
                    out.skip_to(next.map_or(member.value.end, |next| next.key.start));
                }
                Some((_, Edit::Remove(_))) => {
                    out.keep_until(previous_end.unwrap_or(member.key.start));
                    out.skip_to(member.value.end);
                }
                None => kept += 1,
            }
            previous_end = Some(member.value.end);
        }
        out.keep_until(self.close);
        for (edit, found) in edits.iter().zip(found) {
            if let (Edit::Set(key, value), false) = (edit, found) {
                let comma = if kept == 0 { "" } else { "," };
                kept += 1;
                for text in [comma, "\"", key, "\":"] {
                    out.text(text.as_bytes());
                }
                out.insert(value);
            }
        }
        out.keep_until(self.text.len());
        out.finish()
    }
}

/// One bit by a key's length and first byte, in which many keys differ.
fn trait_of(key: &[u8]) -> u64 {
    let first = key.first().copied().unwrap_or(0);
    1 << ((key.len() ^ (usize::from(first) * 5)) % 64)
}

/// Collects kept slices and inserts, joining what is small.
struct Writer<'a> {
    source: &'a Bytes,
    /// Up to here the source is written or skipped.
    at: usize,
    pending: BytesMut,
    out: Segments,
}

impl<'a> Writer<'a> {
    fn new(source: &'a Bytes) -> Self {
        Writer {
            source,
            at: 0,
            pending: BytesMut::with_capacity(2 * SMALL_PIECE),
            out: Segments { parts: Vec::with_capacity(6), len: 0 },
        }
    }

    fn keep_until(&mut self, end: usize) {
        if end > self.at {
            let kept = self.source.slice(self.at..end);
            self.at = end;
            self.slice(&kept);
        }
    }

    fn skip_to(&mut self, end: usize) {
        self.at = self.at.max(end);
    }

    fn insert(&mut self, value: &Json) {
        match value {
            Json::Fixed(text) => self.text(text.as_bytes()),
            Json::Text(text) => self.text(text.as_bytes()),
            Json::Parts(segments) => segments.parts.iter().for_each(|part| self.slice(part)),
        }
    }

    fn slice(&mut self, part: &Bytes) {
        if part.len() < SMALL_PIECE {
            self.text(part);
        } else {
            self.flush();
            self.out.push(part.clone());
        }
    }

    fn text(&mut self, text: &[u8]) {
        self.pending.extend_from_slice(text);
    }

    fn flush(&mut self) {
        let pending = self.pending.split().freeze();
        self.out.push(pending);
    }

    fn finish(mut self) -> Segments {
        self.flush();
        self.out
    }
}

/// The members of an object, as raw texts.
enum TopLevel<'de> {
    Members(Vec<(&'de RawValue, &'de RawValue)>),
    TooMany,
}

impl<'de> Deserialize<'de> for TopLevel<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Shallow;

        impl<'de> Visitor<'de> for Shallow {
            type Value = TopLevel<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut members = Vec::with_capacity(16);
                while let Some(member) = map.next_entry::<&RawValue, &RawValue>()? {
                    if members.len() == MAX_MEMBERS {
                        // The rest is still read: a body that is not JSON shall be called so.
                        while map.next_entry::<&RawValue, de::IgnoredAny>()?.is_some() {}
                        return Ok(TopLevel::TooMany);
                    }
                    members.push(member);
                }
                Ok(TopLevel::Members(members))
            }
        }

        deserializer.deserialize_map(Shallow)
    }
}

#[cfg(test)]
mod tests;
