//! Stopping: what other nodes, balancers and clients see of SIGTERM.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use futures::future::join_all;
use moriio_proxy::sim::{Fault, FaultKind, Mode, expected_text};
use serde_json::json;

use super::{ask, pair};
use crate::support::binary::{BINARY, Served, free_ports};
use crate::support::{Answer, PATIENCE, client, completion, until, until_true};

/// No test waits so long: what ends sooner did not wait for the drain.
const ENDLESS_DRAIN: [&str; 2] = ["--drain-timeout", "600s"];

/// Waits until a stream has brought this many events.
async fn events(response: &mut reqwest::Response, count: usize) -> String {
    let mut text = String::new();
    while text.matches("data: ").count() < count {
        let part = tokio::time::timeout(PATIENCE, response.chunk()).await.expect("an event in time");
        text.push_str(&String::from_utf8_lossy(&part.unwrap().expect("the stream goes on")));
    }
    text
}

/// The rest of an answer, after `begun`.
async fn rest(begun: String, response: reqwest::Response) -> Answer {
    let mut answer = tokio::time::timeout(PATIENCE, Answer::of(response)).await.expect("an end in time");
    answer.body.insert_str(0, &begun);
    answer
}

/// Waits until nobody listens on an address any more.
async fn until_closed(address: SocketAddr) {
    until("the port to close", || async move {
        match TcpStream::connect(address) {
            Ok(_) => Err(String::from("still open")),
            Err(_) => Ok(()),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_close_at_once_and_a_running_stream_goes_on_to_its_end() {
    join_all([Mode::Read, Mode::Write].map(|mode| async move {
        let mut proxy = Served::start(&ENDLESS_DRAIN);
        let engines = pair(&proxy, mode, |settings| settings.token_delay = Duration::from_millis(50)).await;
        let mut stream = ask(&proxy, &completion("a long story", 121, true)).await;
        let begun = events(&mut stream, 2).await;
        proxy.process.signal("TERM");
        until_closed(proxy.http).await;
        until_closed(proxy.registration).await;
        let answer = rest(begun, stream).await;
        assert!(answer.whole && answer.body.ends_with("data: [DONE]\n\n"), "{}", answer.body);
        assert_eq!(answer.text(), expected_text(&json!("a long story"), 120));
        let (code, log) = proxy.finish();
        assert_eq!(code, Some(0), "{log}");
        // The line is written after the ports were closed: the stream was still running then.
        let line = log.lines().find(|line| line.contains("\"draining\"")).expect("a line about the drain");
        assert!(line.contains("\"in_flight\":1"), "{line}");
        drop(engines);
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_drains_too_unless_it_is_to_be_ignored() {
    let mut proxy = Served::hearing_hangups(&ENDLESS_DRAIN);
    let engines = pair(&proxy, Mode::Read, |settings| settings.token_delay = Duration::from_millis(50)).await;
    let mut stream = ask(&proxy, &completion("a long story", 41, true)).await;
    let begun = events(&mut stream, 2).await;
    proxy.process.signal("HUP");
    until_closed(proxy.http).await;
    let answer = rest(begun, stream).await;
    assert!(answer.whole && answer.body.ends_with("data: [DONE]\n\n"), "{}", answer.body);
    let (code, log) = proxy.finish();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("\"draining\""), "{log}");
    drop(engines);
    // As nohup starts it.
    let mut nohup = std::process::Command::new("sh");
    nohup.args(["-c", "trap '' HUP; exec \"$0\" \"$@\"", BINARY, "--host", "127.0.0.1", "--port", "0"]);
    nohup.args(["--ping-port", "0", "--log-format", "json"]);
    let mut proxy = Served::launch(nohup);
    proxy.process.signal("HUP");
    for _ in 0..20 {
        assert_eq!(client().get(proxy.url("/health")).send().await.unwrap().status(), 200);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    proxy.process.signal("TERM");
    assert_eq!(proxy.finish().0, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_outlasts_the_drain_is_cut_and_told_so() {
    for mode in [Mode::Read, Mode::Write] {
        let mut proxy = Served::start(&["--drain-timeout", "1s", "--workers", "2"]);
        let engines = pair(&proxy, mode, |settings| settings.token_delay = Duration::from_millis(20)).await;
        // So many fill the first thread, so that the streams are on the second.
        let idle: Vec<_> = (0..64).map(|_| TcpStream::connect(proxy.http).unwrap()).collect();
        let mut flowing = ask(&proxy, &completion("a story without end", 100_000, true)).await;
        let flowing_begun = events(&mut flowing, 2).await;
        engines[1].set_fault(Fault::times(FaultKind::HangAfterTokens { tokens: 2 }, 1));
        let mut hung = ask(&proxy, &completion("a story that falters", 100, true)).await;
        let hung_begun = events(&mut hung, 2).await;
        proxy.process.signal("TERM");
        for answer in [rest(flowing_begun, flowing).await, rest(hung_begun, hung).await] {
            let last = answer.events().pop().unwrap();
            assert_eq!(last["error"]["code"], "stopping", "{}", answer.body);
            assert!(!answer.body.contains("[DONE]"), "{}", answer.body);
        }
        let (code, log) = proxy.finish();
        assert_eq!(code, Some(3), "{log}");
        assert!(log.lines().any(|line| line.contains("drain limit passed") && line.contains("\"cut\":2")), "{log}");
        drop((idle, engines));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pending_prefill_is_cut_after_the_drain() {
    for mode in [Mode::Read, Mode::Write] {
        let mut proxy = Served::start(&["--drain-timeout", "1s"]);
        let engines = pair(&proxy, mode, |_| {}).await;
        engines[0].set_fault(Fault::always(FaultKind::Hang));
        let (url, body) = (proxy.url("/v1/completions"), completion("never prefilled", 5, true).to_string());
        let pending = tokio::spawn(async move { client().post(url).body(body).send().await });
        until_true("prefill to have the leg", || engines[0].counters().legs == 1).await;
        proxy.process.signal("TERM");
        let (code, log) = proxy.finish();
        assert_eq!(code, Some(3), "{log}");
        let answer = tokio::time::timeout(PATIENCE, pending).await.expect("the client is let go").unwrap();
        assert!(answer.is_err() || !answer.unwrap().status().is_success());
        drop(engines);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_at_once() {
    for (first, second) in [("TERM", "TERM"), ("INT", "TERM"), ("TERM", "INT"), ("HUP", "TERM"), ("TERM", "HUP")] {
        let mut proxy = Served::hearing_hangups(&ENDLESS_DRAIN);
        let engines = pair(&proxy, Mode::Read, |_| {}).await;
        engines[1].set_fault(Fault::always(FaultKind::HangAfterTokens { tokens: 2 }));
        let mut hung = ask(&proxy, &completion("a story that falters", 100, true)).await;
        events(&mut hung, 2).await;
        proxy.process.signal(first);
        until_closed(proxy.http).await;
        proxy.process.signal(second);
        assert_eq!(proxy.finish().0, Some(3));
        drop(engines);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_proxy_waits_for_nobody() {
    let mut proxy = Served::start(&ENDLESS_DRAIN);
    let engines = pair(&proxy, Mode::Write, |_| {}).await;
    let kept = client();
    for _ in 0..2 {
        let answer = kept.get(proxy.url("/health")).send().await.unwrap();
        assert!(answer.text().await.unwrap().contains("healthy"));
    }
    let silent = TcpStream::connect(proxy.http).unwrap();
    let mut hesitant = TcpStream::connect(proxy.http).unwrap();
    hesitant.write_all(b"GET /health HTTP/1.1\r\nHost: ").unwrap();
    proxy.process.signal("TERM");
    let (code, log) = proxy.finish();
    assert_eq!(code, Some(0), "{log}");
    drop((kept, silent, hesitant, engines));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_takes_the_same_ports_at_once() {
    let [http, registration] = free_ports().map(|port: u16| port.to_string());
    // The later flags win over the free ports that `start` asks for.
    let variables = [("PROXY_HTTP_PORT", &http), ("PROXY_PING_PORT", &registration)];
    let mut engines = None;
    for round in 0..3 {
        let mut command = crate::support::binary::command(&["--host", "127.0.0.1", "--log-format", "json"]);
        command.envs(variables);
        let mut proxy = Served::launch(command);
        assert_eq!(proxy.http.port().to_string(), http);
        if engines.is_none() {
            engines = Some(pair(&proxy, Mode::Read, |_| {}).await);
        }
        // Engines that have met the predecessor come back by themselves.
        until("an answer", || async {
            let answer = ask(&proxy, &completion(&format!("round {round}"), 3, false)).await;
            (answer.status() == 200).then_some(()).ok_or_else(|| answer.status().to_string())
        })
        .await;
        proxy.process.signal("TERM");
        assert_eq!(proxy.finish().0, Some(0));
    }
}
