//! Which connections rest after a leg, and for how long.

use std::time::Instant;

use tokio_util::sync::CancellationToken;

use super::*;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Whether the connection rests after an engine has answered so.
async fn rests(answer: &'static str) -> bool {
    let home = home(1);
    let (leg, mut engine) = leg(&home, &["POST / HTTP/1.1\r\n\r\n"], 4096);
    assert_eq!(home.idle.count(), 0, "it is the leg's");
    tokio::spawn(async move {
        engine.write_all(answer.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
    });
    outcome(leg).await;
    home.idle.count() == 1
}

#[tokio::test(start_paused = true)]
async fn a_connection_rests_only_where_both_sides_know_its_end() {
    for answer in [
        OK,
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 204 No\r\n\r\n",
        "HTTP/1.1 400 No\r\nContent-Length: 2\r\n\r\nno",
        "HTTP/1.1 100 Go\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ] {
        assert!(rests(answer).await, "{answer:?}");
    }
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
        "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nx",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nokok\r\n",
        "HTTP/1.1 204 No\r\n\r\nx",
        "HTTP/1.1 302 No\r\nContent-Length: 0\r\n\r\nx",
        "nonsense",
    ] {
        assert!(!rests(answer).await, "{answer:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_given_up_closes_its_connection() {
    let home = home(1);
    let (mut leg, mut engine) = leg(&home, &["POST / HTTP/1.1\r\n\r\n"], 4096);
    engine.write_all(&OK.as_bytes()[..OK.len() - 1]).await.unwrap();
    assert!(matches!(next(&mut leg).await, Progress::Started));
    let Progress::Answered(response) = next(&mut leg).await else { panic!("no answer") };
    drop((leg, response));
    assert_eq!(home.idle.count(), 0);
    let mut rest = Vec::new();
    assert_eq!(engine.read_to_end(&mut rest).await.unwrap(), 19);
}

#[tokio::test(start_paused = true)]
async fn the_one_that_rested_shortest_is_taken_unless_it_spoke_or_closed() {
    let home = home(1);
    let mut engines = Vec::new();
    for _ in 0..4 {
        let (ours, engine) = duplex(64);
        home.rest(Connection::over(ours));
        engines.push(engine);
    }
    // The last has closed, the one before has said something that nobody asked for.
    drop(engines.pop());
    engines[2].write_all(b"x").await.unwrap();
    for (left, of) in [(1, 1), (0, 0)] {
        let mut taken = home.take().unwrap();
        assert_eq!(home.idle.count(), left);
        let part = [Bytes::from_static(b"a")];
        poll_fn(|cx| taken.poll_write(cx, &part, 0)).await.unwrap();
        let mut read = [0; 1];
        engines[of].read_exact(&mut read).await.unwrap();
    }
    assert!(home.take().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_used_within_one_life_and_host_and_for_four_seconds() {
    let home = home(1);
    let (next_life, other_host) = (Home { place: (2, 0), ..home.clone() }, Home { place: (1, 1), ..home.clone() });
    let (ours, _engine) = duplex(64);
    home.rest(Connection::over(ours));
    assert!(next_life.take().is_none() && other_host.take().is_none());
    home.idle.sweep(Instant::now() + Duration::from_millis(3_900));
    assert_eq!(home.idle.count(), 1);
    home.idle.sweep(Instant::now() + Duration::from_secs(4));
    assert_eq!(home.idle.count(), 0);
}

#[tokio::test]
async fn threads_that_serve_clients_have_their_own() {
    let home = Home { idle: Arc::new(Idle::new(2)), place: (1, 0) };
    let (ours, _engine) = duplex(64);
    home.rest(Connection::over(ours));
    let (other, stop) = (home.clone(), CancellationToken::new());
    let (second, _ended) = crate::worker::start("second", 1, stop.clone()).unwrap();
    assert!(!second.spawn(async move { other.take().is_some() }).await.unwrap());
    stop.cancel();
    assert!(home.take().is_some());
}
