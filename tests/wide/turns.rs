//! Whose turn it is: every rank of every host is reached, and as often as the others.

use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::Mode;

use super::{Layout, Side, by_rank, requests, side};
use crate::support::World;

/// As many legs on each prefill rank as on the others since `before`, and some on each decode rank.
fn all_reached(world: &World, before: &[Vec<u64>], rounds: u64, name: &str) {
    for (ranks, before) in by_rank(&world.prefill).into_iter().zip(before) {
        let since: Vec<u64> = ranks.iter().zip(before).map(|(now, before)| now - before).collect();
        assert_eq!(since, vec![rounds; ranks.len()], "{name}: prefill");
    }
    let decode = by_rank(&world.decode);
    assert!(decode.iter().flatten().all(|legs| *legs > 0), "{name}: decode {decode:?}");
    let legs: u64 = decode.iter().flatten().sum();
    assert_eq!(legs, world.prefill.iter().map(|engine| engine.counters().legs).sum::<u64>(), "{name}");
}

async fn check(layout: Layout, rounds: u64, name: &str) {
    let world = layout.start().await;
    // A turn passes, too, while a pair's first contact is waited for.
    for _ in 0..2 * layout.prefill.engines * layout.decode.engines {
        requests(&world, 1).await;
    }
    let (before, slots) = (by_rank(&world.prefill), u64::from(layout.prefill.engines * layout.prefill.ranks()));
    requests(&world, (slots * rounds) as usize).await;
    all_reached(&world, &before, rounds, name);
    world.settle().await;
    assert_eq!(world.total(|counters| counters.reaped), 0, "{name}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hosts_a_side_of_eight_ranks() {
    for mode in [Mode::Write, Mode::Read] {
        check(Layout::new(mode, side(2, 8), side(2, 8)), 2, "headless").await;
        check(Layout::new(mode, side(2, 8), side(2, 8)).serving(), 2, "children serve").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn four_hosts_a_side_of_eight_ranks() {
    for mode in [Mode::Write, Mode::Read] {
        check(Layout::new(mode, side(4, 8), side(4, 8)), 2, "32 and 32").await;
        check(Layout::new(mode, side(4, 8), side(2, 8)), 1, "32 and 16").await;
        check(Layout::new(mode, side(2, 8), side(4, 8)), 4, "16 and 32").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_host_against_two() {
    for mode in [Mode::Write, Mode::Read] {
        check(Layout::new(mode, side(1, 1), side(2, 2)), 8, "1 against 2 x 2").await;
        check(Layout::new(mode, side(2, 2), side(1, 1)), 2, "2 x 2 against 1").await;
        check(Layout::new(mode, side(1, 4), side(2, 1)).serving(), 2, "4 against a server for each rank").await;
        check(Layout::new(mode, side(2, 1), side(1, 2)).serving(), 4, "a server for each rank against 2").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_engines_of_several_hosts_each() {
    let two = Side { engines: 2, ..side(2, 2) };
    for mode in [Mode::Write, Mode::Read] {
        for release in ["0.28.0", "0.30.0", "0.31.0", "0.33.0"] {
            let mut layout = Layout::new(mode, two, two);
            layout.release = release;
            check(layout.clone(), 2, release).await;
            check(layout.serving(), 2, release).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pinned_decode_ranks_are_prefills() {
    for (prefill, decode, name) in [
        (side(2, 4), side(2, 4), "8 and 8"),
        (side(2, 4), side(1, 4), "8 and 4"),
        (side(2, 2), side(4, 2), "4 and 8"),
        (Side { engines: 2, ..side(2, 2) }, Side { engines: 2, ..side(2, 2) }, "twice 4 and 4"),
    ] {
        for serve in [false, true] {
            let layout = Layout::new(Mode::Write, prefill, decode).with(Key::WriteContract, "same-rank");
            let layout = if serve { layout.serving() } else { layout };
            let world = layout.start().await;
            // Ranks that both sides have take turns, the others have none.
            let ranks = prefill.ranks().min(decode.ranks()) as usize;
            requests(&world, 2 * ranks * prefill.engines as usize).await;
            for (engines, side) in [(&world.prefill, prefill), (&world.decode, decode)] {
                let mut wanted = vec![2; ranks];
                wanted.resize(side.ranks() as usize, 0);
                assert_eq!(by_rank(engines), vec![wanted; side.engines as usize], "{name}, serving {serve}");
            }
            world.settle().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_first_ranks_have_turns_where_that_is_asked_for() {
    let layout = Layout::new(Mode::Write, side(2, 2), side(2, 2)).with(Key::RouteRanks, "3");
    let world = layout.start().await;
    requests(&world, 6).await;
    assert_eq!(by_rank(&world.prefill), [[2, 2, 2, 0]]);
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_api_servers_are_one_engine() {
    let mut layout = Layout::new(Mode::Write, side(2, 8), side(2, 8));
    layout.adjust = |settings| settings.api_servers = 8;
    let world = layout.start().await;
    let before = by_rank(&world.prefill);
    requests(&world, 16).await;
    all_reached(&world, &before, 1, "8 API servers");
    let (_, body) = world.proxy.ready().await;
    assert_eq!(body["engines"].as_array().unwrap().len(), 2, "{body}");
    let listed = |engine: &moriio_proxy::sim::Engine| {
        engine.settings().hosts.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(body["engines"][0]["hosts"], serde_json::json!(listed(&world.prefill[0])));
    let restarts = world.proxy.metric("moriio_registrations_total{result=\"restarted\"").await;
    assert_eq!(restarts, 0.0);
    world.settle().await;
}
