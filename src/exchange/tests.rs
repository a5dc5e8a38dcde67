//! An engine's answer that is played on paused time, for the tests of files below.

use std::io::Error;
use std::time::Duration;

use http::Response;

/// What an engine does next.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Act {
    /// It sends a part.
    Says(&'static str),
    /// Its connection breaks.
    Breaks,
    /// Its answer ends as it should.
    Ends,
}

/// An answer whose head is here. Its engine does each thing so many milliseconds after its head, and nothing after the last.
pub(crate) fn played(content_type: &str, acts: &[(u64, Act)]) -> Response<reqwest::Body> {
    let (engine, parts) = futures::channel::mpsc::unbounded();
    let (began, acts) = (tokio::time::Instant::now(), acts.to_vec());
    tokio::spawn(async move {
        for (at, act) in acts {
            tokio::time::sleep_until(began + Duration::from_millis(at)).await;
            // Nobody may read any more.
            let _ = match act {
                Act::Says(text) => engine.unbounded_send(Ok(text)),
                Act::Breaks => engine.unbounded_send(Err(Error::other("cut"))),
                Act::Ends => return,
            };
        }
        std::future::pending::<()>().await;
    });
    Response::builder().header("content-type", content_type).body(reqwest::Body::wrap_stream(parts)).unwrap()
}
