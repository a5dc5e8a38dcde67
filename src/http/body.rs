//! A request's body on its way in.

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;

use crate::error::ProxyError;

/// Reads a body part by part. A known length is reserved once, so that no part is copied twice.
pub(super) async fn collect(mut body: Body, announced: Option<u64>, limit: u64) -> Result<Bytes, ProxyError> {
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|_| ProxyError::BadRequest { message: "request body broke off".into(), param: None })?;
        let Ok(data) = frame.into_data() else { continue };
        if whole.len() as u64 + data.len() as u64 > limit {
            return Err(ProxyError::BodyTooLarge { limit });
        }
        if whole.is_empty() {
            if announced == Some(data.len() as u64) {
                return Ok(data);
            }
            whole.reserve(announced.and_then(|length| usize::try_from(length).ok()).unwrap_or(0));
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}
