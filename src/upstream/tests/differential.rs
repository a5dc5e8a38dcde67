//! The same answer, whole, in pieces and damaged, to a leg and to hyper's client: what a leg takes for an answer hyper takes for
//! the same one. The other way round a leg may refuse what hyper is lenient with.

use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use proptest::prelude::*;

use super::*;

/// Answers that both take.
const ANSWERS: [&str; 9] = [
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;a=b\r\n world\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Trailer: t\r\n\r\n",
    "HTTP/1.1 201 Made\r\n\r\nuntil the connection closes",
    "HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nold",
    "HTTP/1.1 204 No\r\nX-A: b\r\n\r\n",
    "HTTP/1.1 103 Hints\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.1 429 Busy\r\nRetry-After: 1\r\nContent-Length: 4\r\n\r\nbusy",
    "HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n!\r\n0\r\n\r\n",
];

/// The engine reads a request, says so, in these pieces, and closes.
fn says(mut engine: DuplexStream, pieces: Vec<Vec<u8>>) {
    tokio::spawn(async move {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(engine.read_u8().await.unwrap());
        }
        for piece in pieces {
            let _ = engine.write_all(&piece).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
}

async fn ours(pieces: Vec<Vec<u8>>) -> Outcome {
    let (leg, engine) = leg(&home(1), &["POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n"], 1 << 20);
    says(engine, pieces);
    match outcome(leg).await {
        // Which of the two it is hangs on the clock.
        Outcome::Failed(Kind::Stale) => Outcome::Failed(Kind::Broken),
        outcome => outcome,
    }
}

async fn hypers(pieces: Vec<Vec<u8>>) -> Outcome {
    let (ours, engine) = duplex(1 << 20);
    says(engine, pieces);
    let broken = Outcome::Failed(Kind::Broken);
    let Ok((mut sender, connection)) = hyper::client::conn::http1::handshake(TokioIo::new(ours)).await else {
        return broken;
    };
    tokio::spawn(connection);
    let request = http::Request::post("/").body(Full::new(Bytes::new())).unwrap();
    let Ok(response) = sender.send_request(request).await else { return broken };
    let (head, mut incoming) = response.into_parts();
    let (mut bytes, mut is_whole) = (Vec::new(), true);
    while let Some(frame) = incoming.frame().await {
        match frame.map(|frame| frame.into_data()) {
            Ok(Ok(data)) => bytes.extend_from_slice(&data),
            Ok(Err(_)) => {}
            Err(_) => is_whole = false,
        }
        if !is_whole {
            break;
        }
    }
    match head.status {
        status if status.is_success() => {
            let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
            let headers = crate::upstream::relayed(head.headers);
            let mut headers: Vec<_> = headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
            headers.sort();
            Outcome::Success(status.as_u16(), headers, bytes, is_whole)
        }
        status if status.is_redirection() => Outcome::Failed(Kind::Redirected),
        status if is_whole => Outcome::Refusal(status.as_u16(), bytes),
        _ => broken,
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_the_same_however_it_is_cut() {
    for answer in ANSWERS {
        let answer = answer.as_bytes();
        let whole = ours(vec![answer.to_vec()]).await;
        assert_eq!(whole, hypers(vec![answer.to_vec()]).await);
        assert_ne!(whole, Outcome::Failed(Kind::Broken));
        for cut in 1..answer.len() {
            let (first, second) = answer.split_at(cut);
            let text = String::from_utf8_lossy(answer);
            assert_eq!(ours(vec![first.to_vec(), second.to_vec()]).await, whole, "{cut} of {text:?}");
            // What ends there.
            let (short, wanted) = (ours(vec![first.to_vec()]).await, hypers(vec![first.to_vec()]).await);
            assert_eq!(short, wanted, "the first {cut} of {text:?}");
        }
        let bytes = answer.iter().map(|byte| vec![*byte]).collect();
        assert_eq!(ours(bytes).await, whole);
    }
}

/// What one mutation does.
fn mutate(answer: &mut Vec<u8>, (at, what, byte): (usize, u8, u8)) {
    const WORDS: [&[u8]; 8] = [
        b"\r\n",
        b"Content-Length: 3\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"\n",
        b"0\r\n\r\n",
        b"Connection: close\r\n",
        b" ",
        b"HTTP/1.1 ",
    ];
    let at = at % (answer.len() + 1);
    match what % 4 {
        0 if at < answer.len() => answer[at] = byte,
        1 if at < answer.len() => drop(answer.remove(at)),
        2 => answer.truncate(at),
        _ => drop(answer.splice(at..at, WORDS[usize::from(byte) % WORDS.len()].iter().copied())),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn what_is_taken_for_an_answer_is_one_to_hyper(
        which in 0..ANSWERS.len(),
        mutations in proptest::collection::vec((any::<usize>(), any::<u8>(), any::<u8>()), 0..4),
        cut in any::<usize>(),
    ) {
        let mut answer = ANSWERS[which].as_bytes().to_vec();
        mutations.into_iter().for_each(|mutation| mutate(&mut answer, mutation));
        let (first, second) = answer.split_at(cut % (answer.len() + 1));
        let pieces = vec![first.to_vec(), second.to_vec()];
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let (got, wanted) = runtime.block_on(async { (ours(pieces).await, hypers(vec![answer.clone()]).await) });
        let text = String::from_utf8_lossy(&answer);
        match (&got, &wanted) {
            (Outcome::Failed(Kind::Broken), _) => {}
            // Broken off, a leg has no more than hyper.
            (Outcome::Success(status, headers, bytes, false), Outcome::Success(other, others, more, _)) => {
                prop_assert_eq!((status, headers), (other, others), "{:?}", text);
                prop_assert!(more.starts_with(bytes), "{:?}: {:?} {:?}", text, got, wanted);
            }
            _ => prop_assert_eq!(&got, &wanted, "{:?}", text),
        }
    }
}
