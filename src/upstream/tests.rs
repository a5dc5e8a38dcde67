//! A leg on connections in memory: what is known at each byte, what hyper's client makes of the same answer, and what rests.

mod differential;
mod resting;

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::answer::{Broken, Incoming};
use super::connection::Connection;
use super::failure::Kind;
use super::idle::{Home, Idle};
use super::sending::{Progress, Sending};
use crate::engine::{HttpAddress, Role};
use crate::error::ProxyError;
use crate::turns::TURN;

/// How a leg came out.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// A success, its headers and its body; whether that was whole.
    Success(u16, Vec<(String, String)>, Vec<u8>, bool),
    /// A refusal with its body.
    Refusal(u16, Vec<u8>),
    Failed(Kind),
}

/// Where a life's connections rest; none does.
fn home(incarnation: u64) -> Home {
    Home { idle: Arc::new(Idle::new(1)), place: (incarnation, 0) }
}

/// A leg on a new connection whose engine holds at most so many bytes unread.
fn leg(home: &Home, parts: &[&'static str], unread: usize) -> (Sending, DuplexStream) {
    let (ours, engine) = duplex(unread);
    home.rest(Connection::over(ours));
    let parts = parts.iter().map(|part| Bytes::from_static(part.as_bytes())).collect();
    let nowhere = HttpAddress { host: "127.0.0.1".into(), port: 1 };
    (Sending::new(home.clone(), &nowhere, Role::Decode, Duration::from_secs(1), parts), engine)
}

async fn next(leg: &mut Sending) -> Progress {
    poll_fn(|cx| leg.poll(cx)).await
}

/// A body's bytes, and whether it came to its end.
async fn body(mut body: Incoming) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    while let Some(part) = poll_fn(|cx| body.poll_part(cx)).await {
        let Ok(part) = part.map_err(|Broken| ()) else { return (bytes, false) };
        assert!(!part.is_empty());
        bytes.extend_from_slice(&part);
    }
    assert!(body.is_over());
    (bytes, true)
}

async fn outcome(mut leg: Sending) -> Outcome {
    loop {
        match next(&mut leg).await {
            Progress::Started => {}
            Progress::Answered(response) => {
                let (head, incoming) = response.into_parts();
                let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
                let mut headers: Vec<_> =
                    head.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
                headers.sort();
                let (bytes, is_whole) = body(incoming).await;
                return Outcome::Success(head.status.as_u16(), headers, bytes, is_whole);
            }
            Progress::Failed(failure) => match failure.error {
                ProxyError::Engine { answer, .. } => {
                    return Outcome::Refusal(answer.status.as_u16(), answer.body.to_vec());
                }
                _ => return Outcome::Failed(failure.kind),
            },
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_is_written_once_its_last_byte_was_taken() {
    let (mut leg, mut engine) = leg(&home(1), &["POST / HTTP/1.1\r\n\r\n", "0123456789", "abc"], 8);
    assert!(matches!(next(&mut leg).await, Progress::Started));
    let mut read = [0; 1];
    for _ in 0..24 {
        assert!(futures::poll!(Box::pin(next(&mut leg))).is_pending());
        assert!(leg.written().is_none(), "the engine cannot have the last byte");
        engine.read_exact(&mut read).await.unwrap();
    }
    assert!(futures::poll!(Box::pin(next(&mut leg))).is_pending());
    assert!(leg.written().is_some(), "the engine can have all of it");
    let mut rest = [0; 8];
    engine.read_exact(&mut rest).await.unwrap();
    assert_eq!(&rest, b"56789abc");
    // Given up, it is closed at once.
    drop(leg);
    assert_eq!(engine.read(&mut rest).await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn others_have_their_turn_while_a_large_request_is_written() {
    let (home, large) = (home(1), 4 * TURN);
    let (ours, mut engine) = duplex(large);
    home.rest(Connection::over(ours));
    let parts = vec![Bytes::from_static(b"POST / HTTP/1.1\r\n\r\n"), vec![b'x'; large - 19].into()];
    let nowhere = HttpAddress { host: "127.0.0.1".into(), port: 1 };
    let mut leg = Sending::new(home, &nowhere, Role::Decode, Duration::from_secs(1), parts);
    assert!(matches!(next(&mut leg).await, Progress::Started));
    for turn in 1..4 {
        // However often it is polled, it waits until the others have had their turn.
        for _ in 0..9 {
            assert!(futures::poll!(Box::pin(next(&mut leg))).is_pending(), "{turn}");
            assert!(leg.written().is_none(), "{turn}");
        }
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        assert!(futures::poll!(Box::pin(next(&mut leg))).is_pending(), "{turn}");
    }
    assert!(leg.written().is_some());
    let mut read = vec![0; large];
    engine.read_exact(&mut read).await.unwrap();
    assert!(read.ends_with(b"xxx"));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_comes_before_the_request_is_written_is_read() {
    for (answer, wanted) in [
        ("HTTP/1.1 413 Large\r\nContent-Length: 2\r\n\r\nno", Outcome::Refusal(413, b"no".to_vec())),
        // No engine has success with half of a request.
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", Outcome::Failed(Kind::Broken)),
    ] {
        for closes in [false, true] {
            let home = home(1);
            let (leg, mut engine) = leg(&home, &["POST / HTTP/1.1\r\n\r\n", "more than the engine takes"], 24);
            tokio::spawn(async move {
                engine.read_exact(&mut [0; 8]).await.unwrap();
                engine.write_all(answer.as_bytes()).await.unwrap();
                if !closes {
                    std::future::pending::<()>().await;
                }
            });
            assert_eq!(outcome(leg).await, wanted, "{closes}");
            assert_eq!(home.idle.count(), 0, "half of a request is in the way of another");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_breaks_says_how_far_it_came() {
    for (answer, wait, kind) in [
        ("", 0, Kind::Stale),
        ("", 49, Kind::Stale),
        ("", 50, Kind::Broken),
        ("HTTP/1.1 2", 0, Kind::Broken),
        ("nonsense", 0, Kind::Broken),
        ("HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", 0, Kind::Redirected),
        ("HTTP/1.1 503 Busy\r\nContent-Length: 9\r\n\r\nno", 0, Kind::Broken),
    ] {
        let (mut leg, mut engine) = leg(&home(1), &["POST / HTTP/1.1\r\n\r\n"], 1024);
        assert!(matches!(next(&mut leg).await, Progress::Started));
        engine.write_all(answer.as_bytes()).await.unwrap();
        tokio::time::advance(Duration::from_millis(wait)).await;
        drop(engine);
        assert_eq!(outcome(leg).await, Outcome::Failed(kind), "{answer:?} after {wait} ms");
    }
}

/// Over TCP a server that closes with unread bytes resets the connection, behind its refusal.
#[tokio::test]
async fn a_refusal_before_a_reset_is_read() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        socket.read_exact(&mut [0; 100]).await.unwrap();
        socket.write_all(b"HTTP/1.1 413 Large\r\nContent-Length: 2\r\n\r\nno").await.unwrap();
    });
    let address = HttpAddress { host: "localhost".into(), port };
    let parts = vec![Bytes::from_static(b"POST / HTTP/1.1\r\n\r\n"), vec![b'x'; 64 << 20].into()];
    let leg = Sending::new(home(1), &address, Role::Decode, Duration::from_secs(5), parts);
    assert_eq!(outcome(leg).await, Outcome::Refusal(413, b"no".to_vec()));
}
