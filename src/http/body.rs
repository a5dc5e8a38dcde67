//! A request's body on its way in, and out of memory. What is long about a large one is done so that streams on the same thread
//! do not wait for it.

use std::future::poll_fn;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;

use crate::error::ProxyError;
use crate::turns::{LARGE, Turns};

/// Bytes of a large body. Giving so many pages back takes milliseconds, so that another thread does it.
struct FreedApart<T: Send + 'static>(Option<T>);

impl<T: AsRef<[u8]> + Send + 'static> AsRef<[u8]> for FreedApart<T> {
    fn as_ref(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], T::as_ref)
    }
}

impl<T: Send + 'static> Drop for FreedApart<T> {
    fn drop(&mut self) {
        let bytes = self.0.take();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || drop(bytes));
        }
    }
}

/// Reads a body part by part. A known length is reserved once, so that no part is copied twice.
pub(super) async fn collect(mut body: Body, announced: Option<u64>, limit: u64) -> Result<Bytes, ProxyError> {
    let mut whole = BytesMut::new();
    let mut turns = Turns::default();
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
        turns.took(data.len());
        poll_fn(|cx| turns.poll(cx)).await;
    }
    let whole = whole.freeze();
    Ok(if whole.len() < LARGE { whole } else { Bytes::from_owner(FreedApart(Some(whole))) })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::convert::Infallible;
    use std::rc::Rc;
    use std::sync::mpsc;
    use std::thread::{self, ThreadId};
    use std::time::Duration;

    use super::*;
    use crate::turns::TURN;

    #[tokio::test]
    async fn others_have_their_turn_while_a_large_body_comes() {
        let (parts, size) = (40, 64 * 1024);
        let sent = futures::stream::iter((0..parts).map(move |_| Ok::<_, Infallible>(vec![b'x'; size])));
        let turns = Rc::new(Cell::new(0));
        let counted = turns.clone();
        let other = async {
            loop {
                counted.set(counted.get() + 1);
                tokio::task::yield_now().await;
            }
        };
        let length = (parts * size) as u64;
        let body = tokio::select! {
            biased;
            body = collect(Body::from_stream(sent), Some(length), length) => body.unwrap(),
            () = other => unreachable!("it has no end"),
        };
        assert_eq!(body.len(), parts * size);
        assert!(turns.get() >= parts * size / TURN, "{} turns", turns.get());
        assert!(body.iter().all(|byte| *byte == b'x'));
    }

    /// Says which thread frees it.
    struct Told(mpsc::Sender<ThreadId>);

    impl AsRef<[u8]> for Told {
        fn as_ref(&self) -> &[u8] {
            b"text"
        }
    }

    impl Drop for Told {
        fn drop(&mut self) {
            let _ = self.0.send(thread::current().id());
        }
    }

    #[tokio::test]
    async fn a_large_body_is_freed_by_another_thread() {
        let (tell, told) = mpsc::channel();
        let bytes = Bytes::from_owner(FreedApart(Some(Told(tell))));
        let part = bytes.slice(1..3);
        drop(bytes);
        assert_eq!((&part[..], told.try_recv().is_err()), (&b"ex"[..], true));
        drop(part);
        assert_ne!(told.recv_timeout(Duration::from_secs(60)).unwrap(), thread::current().id());
    }
}
