//! An engine's answer that is played on paused time, for the tests of files below.

use std::time::Duration;

use http::Response;
use tokio::io::AsyncWriteExt;

use crate::upstream::answer::Incoming;
use crate::upstream::connection::Connection;

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
pub(crate) fn played(content_type: &str, acts: &[(u64, Act)]) -> Response<Incoming> {
    let (mut engine, ours) = tokio::io::duplex(1 << 20);
    let (began, acts) = (tokio::time::Instant::now(), acts.to_vec());
    tokio::spawn(async move {
        for (at, act) in acts {
            tokio::time::sleep_until(began + Duration::from_millis(at)).await;
            let text = match act {
                Act::Says(text) => format!("{:x}\r\n{text}\r\n", text.len()),
                Act::Breaks => return,
                Act::Ends => String::from("0\r\n\r\n"),
            };
            // Nobody may read any more.
            let _ = engine.write_all(text.as_bytes()).await;
        }
        std::future::pending::<()>().await;
    });
    let body = Incoming::chunked(Connection::over(ours));
    Response::builder().header("content-type", content_type).body(body).unwrap()
}
