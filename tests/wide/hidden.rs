//! What one place of an engine says hides nothing of what another does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Fault, FaultKind, Mode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Layout, entries, requests, side};
use crate::support::{strike, until};

/// A server for `/health` that can be made to hang.
async fn health(address: String, hangs: Arc<AtomicBool>) {
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let hangs = hangs.clone();
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok(1..) = stream.read(&mut buffer).await {
                if hangs.load(Ordering::Relaxed) {
                    tokio::time::sleep(Duration::from_secs(600)).await;
                }
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            }
        });
    }
}

/// A host that answers late must not hide one that is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_host_hides_no_lost_one() {
    let layout = Layout::new(Mode::Write, side(3, 1), side(1, 1)).serving().with(Key::EngineTtl, "1s");
    let settings = layout.settings();
    let slow = format!("{}:8000", settings[0].hosts[1]);
    let stand_in = format!("{}:8001", settings[0].hosts[1]);
    let hangs = Arc::new(AtomicBool::new(false));
    tokio::spawn(health(stand_in.clone(), hangs.clone()));
    let listed = entries(&settings).replacen(&slow, &stand_in, 1);
    let world = layout.open(&listed, settings).await;
    world.until_ready(2).await;
    hangs.store(true, Ordering::Relaxed);
    world.prefill[0].lose_host(2).await.unwrap();
    until("a lost host", || async {
        let (_, body) = world.proxy.ready().await;
        if body["engines"][0]["state"] == "unhealthy" { Ok(()) } else { Err(body["engines"][0].to_string()) }
    })
    .await;
}

/// The first host answers `/health` with an error while another of its hosts ends and begins again: peers hold sessions with what
/// has ended.
#[tokio::test(flavor = "multi_thread")]
async fn an_ailing_first_host_hides_no_lost_one() {
    let layout = Layout::new(Mode::Write, side(1, 1), side(2, 2)).with(Key::EngineTtl, "1s");
    let world = layout.start().await;
    requests(&world, 4).await;
    world.settle().await;
    let life = |body: &serde_json::Value| body["engines"][1]["incarnation"].as_u64().unwrap();
    let before = life(&world.proxy.ready().await.1);
    strike(&world.decode[0], Fault::always(FaultKind::Unhealthy)).await;
    until("an ailing engine", || async {
        let (_, body) = world.proxy.ready().await;
        if body["engines"][1]["state"] == "unhealthy" { Ok(()) } else { Err(body.to_string()) }
    })
    .await;
    world.decode[0].lose_host(1).await.unwrap();
    // Several probes, each of which ends at the first host.
    tokio::time::sleep(Duration::from_secs(5)).await;
    world.decode[0].restore_host(1).await.unwrap();
    world.decode[0].clear_faults();
    until("both", || async {
        let (_, body) = world.proxy.ready().await;
        let told = &body["engines"][1];
        if told["state"] == "ready" { Ok(()) } else { Err(body.to_string()) }
    })
    .await;
    let after = life(&world.proxy.ready().await.1);
    assert_ne!(after, before);
}
