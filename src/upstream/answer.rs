//! An engine's answer that is read to its end: prefill's, and any engine's refusal.

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;

use crate::engine::Role;
use crate::error::ProxyError;

/// The largest answer that is read whole.
pub(crate) const WHOLE_ANSWER: usize = 64 * 1024 * 1024;

/// Why an answer was not read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unread {
    /// The connection broke.
    Broken,
    /// It is larger than any sane answer. The limit is the proxy's own.
    TooLarge,
}

impl Unread {
    /// What the client is told.
    pub fn error(self, role: Role) -> ProxyError {
        match self {
            Unread::Broken => ProxyError::Broken { role },
            Unread::TooLarge => ProxyError::AnswerTooLarge { role, limit: WHOLE_ANSWER },
        }
    }
}

/// Reads an answer to its end.
///
/// # Errors
/// When it breaks, or is larger than the proxy keeps in memory.
pub async fn whole(mut body: reqwest::Body) -> Result<Bytes, Unread> {
    let mut first: Option<Bytes> = None;
    let mut rest = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Unread::Broken)?.into_data() else { continue };
        match &first {
            None => first = Some(data),
            Some(begin) => {
                if rest.is_empty() {
                    rest.extend_from_slice(begin);
                }
                rest.extend_from_slice(&data);
            }
        }
        if rest.len() > WHOLE_ANSWER {
            return Err(Unread::TooLarge);
        }
    }
    Ok(if rest.is_empty() { first.unwrap_or_default() } else { rest.freeze() })
}
