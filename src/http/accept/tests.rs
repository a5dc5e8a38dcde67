//! Connections on several threads, over real sockets.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::http::port::bind;
use crate::worker;

/// The longest that anything is waited for. It only ever passes in full when a test fails.
const PATIENCE: Duration = Duration::from_secs(60);
const LIMITS: DoorLimits =
    DoorLimits { head_time: PATIENCE, keep_alive: PATIENCE, max_connections: 1000, drain: PATIENCE };

async fn ask(connection: &mut TcpStream, path: &str) -> String {
    connection.write_all(format!("GET {path} HTTP/1.1\r\nhost: here\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\n\n") {
        let count = tokio::time::timeout(PATIENCE, connection.read_buf(&mut answer)).await.unwrap().unwrap();
        assert!(count > 0, "{}", String::from_utf8_lossy(&answer));
    }
    String::from_utf8(answer).unwrap().split("\r\n\r\n").nth(1).unwrap().trim().to_owned()
}

#[tokio::test]
async fn a_crowd_is_served_by_all_threads_and_each_keeps_its_connections_to_the_drain() {
    let port = bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = port.local_addr().unwrap();
    let mut threads = Threads::start(2).unwrap();
    let ended = threads.ended();
    let (arrived, mut arrivals) = mpsc::unbounded_channel::<()>();
    let answering = CancellationToken::new();
    let answer = answering.clone();
    let slow = async move || {
        arrived.send(()).unwrap();
        answer.cancelled().await;
        format!("{}\n\n", worker::index())
    };
    let router = Router::new().route("/", get(async || format!("{}\n\n", worker::index()))).route("/slow", get(slow));
    let routers = Routers { serving: router.clone(), refusing: router };
    let (stop, stopped) = oneshot::channel::<()>();
    let metrics = Arc::new(Metrics::new());
    let counted = metrics.clone();
    let serving = tokio::spawn(async move {
        let stop = async { stopped.await.unwrap_or_default() };
        let connections = accept(&LIMITS, port, &mut threads, routers, &metrics, stop).await;
        let cut = drain(PATIENCE, connections, &metrics, &TaskTracker::new(), &CancellationToken::new()).await;
        threads.end().await;
        cut
    });
    let mut connections = Vec::new();
    for _ in 0..128 {
        connections.push(TcpStream::connect(address).await.unwrap());
    }
    let mut served = BTreeMap::<String, usize>::new();
    for connection in &mut connections {
        let thread = ask(connection, "/").await;
        assert_eq!(ask(connection, "/").await, thread);
        *served.entry(thread).or_default() += 1;
    }
    // Which of them has how many depends on the machine's moment.
    assert!(served.len() == 2 && served.values().sum::<usize>() == 128, "{served:?}");
    assert_eq!(counted.connections.get(), 128);
    let last = tokio::spawn(async move {
        let asked = connections.iter_mut().map(|connection| ask(connection, "/slow"));
        futures::future::join_all(asked).await.len()
    });
    for _ in 0..128 {
        tokio::time::timeout(PATIENCE, arrivals.recv()).await.unwrap().unwrap();
    }
    stop.send(()).unwrap();
    // The port is closed at the stop, and what runs goes on.
    while TcpStream::connect(address).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    answering.cancel();
    assert_eq!(tokio::time::timeout(PATIENCE, serving).await.unwrap().unwrap(), 0);
    assert_eq!((last.await.unwrap(), counted.connections.get()), (128, 0));
    tokio::time::timeout(PATIENCE, ended).await.unwrap();
}
