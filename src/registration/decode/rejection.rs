//! What is wrong with a message.

use std::fmt;

/// The largest message that is looked at.
pub(crate) const MAX_MESSAGE_BYTES: usize = 64 * 1024;
/// Engines send nine keys at most.
pub(super) const MAX_KEYS: usize = 64;
/// The most letters of the sender's text in a rejection.
const MAX_ECHO: usize = 64;

/// Why a message was dropped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// Longer than [`MAX_MESSAGE_BYTES`].
    #[error("message of {0} bytes, more than {MAX_MESSAGE_BYTES}")]
    TooLarge(usize),
    /// The bytes are no msgpack, or end too early, or nest too deep.
    #[error("message is not valid msgpack")]
    NotMsgpack,
    /// Msgpack, but no map.
    #[error("message is not a msgpack map")]
    NotAMap,
    /// Something follows the map.
    #[error("message has bytes after its map")]
    Trailing,
    /// More keys than any engine sends.
    #[error("message has more than {MAX_KEYS} keys")]
    TooManyKeys,
    /// A key stands twice.
    #[error("{0} is present twice")]
    Duplicate(Echo),
    /// A required key is absent.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A key's value cannot be used.
    #[error("{field} is {got}, {want}")]
    Invalid {
        /// The key.
        field: &'static str,
        /// What it should have been.
        want: &'static str,
        /// What it was.
        got: Echo,
    },
    /// `type` is none of `register`, `P`, `D` and `HELLO`.
    #[error("type is {0}, not register, P, D or HELLO")]
    UnknownType(Echo),
}

impl Rejection {
    /// The label for metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Rejection::TooLarge(_) => "too_large",
            Rejection::NotMsgpack | Rejection::NotAMap | Rejection::Trailing => "malformed",
            Rejection::TooManyKeys | Rejection::Duplicate(_) => "malformed",
            Rejection::Missing(_) => "missing_field",
            Rejection::Invalid { .. } => "invalid_field",
            Rejection::UnknownType(_) => "unknown_type",
        }
    }
}

/// A little of the sender's text, escaped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Echo(pub(super) String);

impl Echo {
    pub(super) fn new(text: &str) -> Echo {
        Echo(text.chars().flat_map(char::escape_default).take(MAX_ECHO).collect())
    }
}

impl fmt::Display for Echo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0)
    }
}

pub(super) const NO_PORT: &str = "not a port between 1 and 65535";

pub(super) fn invalid(field: &'static str, want: &'static str, got: &str) -> Rejection {
    Rejection::Invalid { field, want, got: Echo::new(got) }
}
