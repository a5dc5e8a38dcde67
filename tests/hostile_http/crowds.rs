//! Clients that are there and do nothing: thousands of idle ones, one that never reads, one that has said its last word.

use std::time::{Duration, Instant};

use moriio_proxy::sim::{Engine, Mode, Role, Settings};

use super::wire::Wire;
use super::{body, framed, legs, plan, still_good, world};
use crate::support::binary::Served;
use crate::support::{Plan, client, completion, until, until_true};

/// A proxy process of its own, so that its memory is its own, and one engine of each role.
pub(super) async fn apart(options: &'static [&str]) -> (Served, [Engine; 2]) {
    let served = tokio::task::spawn_blocking(|| Served::start(options)).await.unwrap();
    let registration = served.registration.to_string();
    let engine = |role| {
        let mut settings = Settings::new(role, Mode::Read, registration.clone());
        settings.ping_interval = Duration::from_millis(200);
        Engine::start(settings)
    };
    let engines = [engine(Role::Prefill).await.unwrap(), engine(Role::Decode).await.unwrap()];
    until("a pair", || async {
        match client().get(served.url("/ready")).send().await.unwrap().status().as_u16() {
            200 => Ok(()),
            status => Err(status.to_string()),
        }
    })
    .await;
    (served, engines)
}

/// Resident memory of a process in KiB.
fn resident(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

async fn completes(served: &Served) {
    let sent = client().post(served.url("/v1/completions")).body(completion("a good request", 4, false).to_string());
    assert_eq!(sent.send().await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_idle_connections_cost_little() {
    // Ten thousand by hand, where the limit on open files leaves room: MORIIO_CROWD=10000.
    let crowd_size: usize = std::env::var("MORIIO_CROWD").map_or(2000, |text| text.parse().expect("a number"));
    let (served, engines) = apart(&["--max-in-flight=1000"]).await;
    let process = served.process.child.id();
    completes(&served).await;
    let before = resident(process);
    let mut crowd = Vec::new();
    for _ in 0..crowd_size {
        let mut wire = Wire::open(served.http).await;
        wire.send(b"GET /health HTTP/1.1\r\nhost: proxy\r\n\r\n").await;
        assert_eq!(wire.answer().await.expect("an answer").status, 200);
        crowd.push(wire);
    }
    let grown = resident(process).saturating_sub(before);
    assert!(grown < 32 * crowd_size as u64, "{grown} KiB for {crowd_size} idle connections");
    println!("{grown} KiB for {crowd_size} idle connections");
    completes(&served).await;
    // They are kept: the first and the last of them are still served.
    for wire in [0, crowd_size - 1] {
        crowd[wire].send(&framed(&body("after a while"))).await;
        assert_eq!(crowd[wire].answer().await.expect("an answer").status, 200);
    }
    // Thousands of ports that linger would be missed by other tests.
    crowd.into_iter().for_each(Wire::reset);
    drop(engines);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_reads_holds_its_own_stream_back() {
    const TOKENS: usize = 600_000;
    let (served, engines) = apart(&[]).await;
    let process = served.process.child.id();
    completes(&served).await;
    let before = resident(process);
    let mut wire = Wire::open(served.http).await;
    wire.send(&framed(completion("endless", TOKENS, true).to_string().as_bytes())).await;
    let decode = &engines[1];
    let mut last = 0;
    let mut since = Instant::now();
    // It stands still once the buffers on the way are full: two seconds without a token.
    until_true("decode to be held back", || {
        let tokens = decode.counters().tokens;
        if tokens != last || tokens <= 100 {
            (last, since) = (tokens, Instant::now());
        }
        since.elapsed() > Duration::from_secs(2)
    })
    .await;
    assert!(last < TOKENS as u64 / 2, "decode ran on to {last} of {TOKENS} tokens");
    let grown = resident(process).saturating_sub(before);
    assert!(grown < 32 * 1024, "{grown} KiB for one client that does not read");
    completes(&served).await;
    drop(wire);
    until("decode let go", || async {
        match decode.counters().running {
            0 => Ok(()),
            running => Err(format!("{running} running")),
        }
    })
    .await;
    assert!(decode.counters().tokens < TOKENS as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_said_its_last_word_has_left() {
    // Decode may have taken a hand-over and lost its client before it read the blocks: only the engine's own limit frees those.
    let adjust = |settings: &mut Settings| settings.defer_timeout = Duration::from_secs(3);
    let world = world(Plan { adjust, ..plan() }).await;
    let since = legs(&world);
    for _ in 0..5 {
        // Half a request, and no more to come.
        let mut wire = Wire::open(world.proxy.http).await;
        wire.send(&framed(&body("half"))[..90]).await;
        wire.finish_sending().await;
        let said = wire.closed().await;
        assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&said));
    }
    still_good(&world, "half a request", &since, 0).await;
    for stream in [false, true] {
        // A whole one: whether it is still answered or taken for gone, nothing is left behind.
        let mut wire = Wire::open(world.proxy.http).await;
        wire.send(&framed(completion("last words", 50, stream).to_string().as_bytes())).await;
        wire.finish_sending().await;
        wire.closed().await;
    }
    world.settle().await;
    assert!(legs(&world).iter().zip(&since).all(|(now, before)| now - before <= 3));
}
