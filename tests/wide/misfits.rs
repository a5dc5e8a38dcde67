//! Engines that are not as they were listed, or too old to span hosts.

use std::net::IpAddr;

use moriio_proxy::sim::Mode;
use serde_json::Value;

use super::{Layout, entries, side};
use crate::support::{World, completion, post, until};

/// What `/ready` says of an engine once its first probe is over.
async fn told(world: &World, number: usize) -> Value {
    until("a first probe", || async {
        let (_, body) = world.proxy.ready().await;
        let engine = body["engines"].get(number).cloned().unwrap_or_default();
        // It pings before it serves.
        let is_told = engine["state"].as_str().is_some_and(|state| state != "probing" && state != "unhealthy");
        if is_told { Ok(engine) } else { Err(body.to_string()) }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_not_as_it_was_listed_is_not_used() {
    for (from, to, reason) in [
        ("@2", "@4", "it registered 4 ranks, --engine-hosts says 2 hosts of 4"),
        ("=127.", "=10.1.1.1,127.", "it registered 4 ranks, --engine-hosts says 3 hosts of 2"),
    ] {
        let layout = Layout::new(Mode::Write, side(2, 2), side(1, 1));
        let settings = layout.settings();
        let listed = entries(&settings).replacen(from, to, 1);
        let world = layout.open(&listed, settings).await;
        let engine = told(&world, 0).await;
        assert_eq!((engine["state"].as_str(), engine["reason"].as_str()), (Some("misfit"), Some(reason)));
        let answer = post(&world.proxy, "/v1/completions", &completion("a", 2, false)).await;
        assert_eq!((answer.status, answer.code().as_str()), (503, "no_pair"), "{}", answer.body);
        let gauge = world.proxy.metric("moriio_engine_unusable{").await;
        assert_eq!(gauge, 1.0);
        let metrics = world.proxy.metrics().await;
        assert!(metrics.contains("reason=\"misfit\"") && metrics.contains("state=\"misfit\"} 1"), "{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_host_is_the_one_that_registers() {
    let layout = Layout::new(Mode::Write, side(2, 2), side(1, 1));
    let settings = layout.settings();
    let [first, second] = [0, 1].map(|host| settings[0].hosts[host].to_string());
    let listed = format!("{first}:8000={second},{first}@2");
    let world = layout.open(&listed, settings).await;
    let reason = told(&world, 0).await["reason"].clone();
    assert_eq!(reason, "the first host of --engine-hosts is not the KV host that it registered");
}

#[tokio::test(flavor = "multi_thread")]
async fn old_versions_are_refused_by_name() {
    for mode in [Mode::Write, Mode::Read] {
        // There is none that spans hosts: the other host is the same by an older spelling of its address.
        let mut layout = Layout::new(mode, side(1, 4), side(1, 1));
        layout.release = "0.27.1";
        let settings = layout.settings();
        let IpAddr::V4(first) = settings[0].hosts[0] else { panic!("an address of four numbers") };
        let [a, b, c, d] = first.octets();
        let again = format!("{a}.{b}.{}", u16::from_be_bytes([c, d]));
        let world = layout.open(&format!("{first}:8000={first},{again}@2"), settings).await;
        let engine = told(&world, 0).await;
        let reason = "its vLLM version cannot span hosts: 0.28.0 or newer does";
        assert_eq!((engine["release"].as_str(), engine["reason"].as_str()), (Some("0.27.1"), Some(reason)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_too_old_to_be_told_of_hosts_is_named() {
    let layout = Layout::new(Mode::Write, side(2, 2), side(1, 1));
    let mut settings = layout.settings();
    settings[1].release = "0.27.1".into();
    let world = layout.open(&entries(&settings), settings).await;
    for number in [0, 1] {
        until("a reason", || async {
            let engine = told(&world, number).await;
            let is_it = engine["reason"] == "it and its peers cannot tell each other of several hosts";
            if is_it { Ok(()) } else { Err(engine.to_string()) }
        })
        .await;
    }
    let answer = post(&world.proxy, "/v1/completions", &completion("a", 2, false)).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "no_pair"), "{}", answer.body);
}

/// Whoever starts such engines is told what nobody has seen at work on real ones.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_run_on_real_engines_is_said() {
    for (release, local, told) in [("0.32.0", 1, 0), ("0.32.0", 2, 1), ("0.31.0", 1, 1)] {
        // The other side is on one host, of which nothing has to be said.
        let mut layout = Layout::new(Mode::Write, side(2, local), side(1, 1));
        (layout.release, layout.apart) = (release, true);
        let world = layout.start().await;
        let said = "not run on real engines: over several hosts those were of release 0.32.0 and had one rank on each";
        // An engine is ready before that is told.
        let lines = until("the line", || async {
            let lines = world.proxy.lines(said);
            if lines.len() >= told { Ok(lines) } else { Err(format!("{release}, {local} ranks a host")) }
        })
        .await;
        assert_eq!(lines.len(), told, "{release}, {local} ranks a host");
        if let Some(line) = lines.first() {
            assert_eq!(
                (line["release"].as_str(), line["ranks_of_a_host"].as_u64()),
                (Some(release), Some(u64::from(local)))
            );
        }
    }
}

/// A list with another port than the engine's would leave it on one host without a word.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_misses_an_engine_by_its_port_is_told_of() {
    let mut layout = Layout::new(Mode::Write, side(2, 1), side(1, 1));
    layout.apart = true;
    let settings = layout.settings();
    let first = settings[0].hosts[0];
    let listed = entries(&settings).replacen(":8000=", ":8001=", 1);
    let world = layout.open(&listed, settings).await;
    let told = format!("registration: engine {first}:8000: --engine-hosts has its KV host for {first}:8001 only");
    until("the line", || async {
        let lines = world.proxy.lines(&told).len();
        if lines == 1 { Ok(()) } else { Err(world.proxy.log().unwrap_or_default()) }
    })
    .await;
}
