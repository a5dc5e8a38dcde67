//! Mistakes of a proxy that drives engines over several hosts: each is noted, and each does what it does to real engines.

use serde_json::{Value, json};

use super::{Contract, Engine, Mode, Role, Wide, hosts, noted, object, params, post, settings, tell, transfer};
use crate::sim::Settings;
use crate::sim::tests::{soon, text, until};

/// What a mistake leaves alone.
struct Spoilt<'a> {
    first: &'a mut Value,
    second: &'a mut Value,
}

/// How the params of both legs are spoilt, which engine sees it, and what it says.
type Mistake = (fn(Spoilt), Role, &'static str);

fn remove(params: &mut Value, key: &str) {
    params.as_object_mut().unwrap().shift_remove(key);
}

/// Prefill has three hosts, decode two, with two ranks each; prefill's rank is 3 and decode's is 2.
const MISTAKES: [Mistake; 18] = [
    (|legs| remove(legs.first, "remote_hosts"), Role::Prefill, "remote_hosts is absent"),
    (|legs| remove(legs.first, "remote_dp_size_local"), Role::Prefill, "remote_dp_size_local is absent"),
    (|legs| legs.first["remote_dp_size_local"] = json!(4), Role::Prefill, "remote_dp_size_local is 4"),
    (|legs| legs.first["remote_dp_size_local"] = json!(-1), Role::Prefill, "remote_dp_size_local is -1"),
    (|legs| legs.first["remote_dp_size_local"] = json!("2"), Role::Prefill, ""),
    (|legs| legs.first["remote_dp_size"] = json!(6), Role::Prefill, "remote_dp_size is 6"),
    (|legs| legs.first["remote_hosts"] = json!(["127.0.8.2", "127.0.8.1"]), Role::Prefill, "remote_hosts is"),
    (|legs| legs.first["remote_hosts"] = json!(["127.0.8.1", "127.0.8.1"]), Role::Prefill, "remote_hosts is"),
    (|legs| legs.first["remote_hosts"] = legs.second["remote_hosts"].clone(), Role::Prefill, "remote_hosts is"),
    (|legs| legs.first["remote_host"] = json!("127.0.8.2"), Role::Prefill, "is not the peer's master"),
    (|legs| remove(legs.second, "remote_hosts"), Role::Decode, "remote_hosts is absent"),
    (|legs| remove(legs.second, "remote_dp_size_local"), Role::Decode, "remote_dp_size_local is absent"),
    (|legs| legs.second["remote_dp_size"] = json!(4), Role::Decode, "remote_dp_size is 4"),
    (|legs| legs.second["remote_hosts"] = legs.first["remote_hosts"].clone(), Role::Decode, "remote_hosts is"),
    (|legs| legs.second["remote_dp_rank"] = json!(6), Role::Decode, "remote_dp_rank is 6"),
    (|legs| legs.second["is_request_leader"] = json!(false), Role::Decode, "is_request_leader is false"),
    (|legs| remove(legs.second, "is_request_leader"), Role::Decode, "neither is_request_leader nor"),
    (
        |legs| {
            remove(legs.second, "is_request_leader");
            legs.second["remote_dp_rank_override"] = json!(true);
        },
        Role::Decode,
        "remote_dp_rank_override on rank 2, remote_dp_rank is 3",
    ),
];

#[tokio::test]
async fn what_legs_say_of_hosts_and_ranks_is_judged() {
    for (change, role, expected) in MISTAKES {
        let wide = Wide::start(Mode::Write, "0.33.0", false, (3, 2)).await;
        let id = transfer();
        let (mut first, mut second) = (wide.prefill_leg(&id, 3), wide.decode_leg(&id, 3, Contract::Leader(Some(2))));
        let spoilt =
            Spoilt { first: &mut first.body["kv_transfer_params"], second: &mut second.body["kv_transfer_params"] };
        change(spoilt);
        let engine = if role == Role::Prefill { &wide.prefill } else { &wide.decode };
        let sent = [wide.spawn(&first), wide.spawn(&second)];
        if expected.is_empty() {
            until(engine, "dead", |counters| counters.died == 1).await;
        } else {
            until(engine, expected, |counters| counters.violations > 0).await;
            assert!(noted(engine, expected), "{expected}: {:?}", engine.violations());
        }
        sent.iter().for_each(|leg| leg.abort());
    }
}

/// Prefill dials all ranks on decode's first host, where half of them are not.
#[tokio::test]
async fn an_unfolded_handshake_blocks() {
    let wide = Wide::start(Mode::Write, "0.32.0", false, (2, 2)).await;
    let id = transfer();
    let (mut first, second) = (wide.prefill_leg(&id, 0), wide.decode_leg(&id, 0, Contract::Leader(Some(2))));
    for key in ["remote_hosts", "remote_dp_size_local"] {
        object(&mut first.body).shift_remove(key);
    }
    let sent = [wide.spawn(&first), wide.spawn(&second)];
    until(&wide.prefill, "half met", |counters| counters.handshakes == 2 && counters.frozen == 1).await;
    until(&wide.decode, "parked", |counters| counters.parked == 1).await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert_eq!((wide.prefill.counters().handshakes, wide.prefill.counters().frozen), (2, 1));
    assert!(noted(&wide.prefill, "remote_hosts is absent"));
    sent.iter().for_each(|leg| leg.abort());
}

#[tokio::test]
async fn a_rank_off_the_first_host_does_not_ask_for_itself() {
    let wide = Wide::start(Mode::Write, "0.32.0", true, (2, 2)).await;
    for (pin, asks) in [(1, true), (2, false)] {
        let id = transfer();
        let (first, mut second) = (wide.prefill_leg(&id, 0), wide.decode_leg(&id, 0, Contract::Leader(Some(pin))));
        object(&mut second.body).shift_remove("is_request_leader");
        let decode = wide.spawn(&second);
        assert_eq!(wide.send(&first).await.0, 200);
        if asks {
            assert_eq!(super::said(&soon(decode).await.unwrap().1), text(5));
            continue;
        }
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        assert_eq!((wide.decode.counters().parked, wide.prefill.counters().remote_blocks), (1, 1));
        decode.abort();
    }
    assert!(noted(&wide.decode, "neither is_request_leader nor"));
}

/// Decode of READ dials every rank that it is told of where prefill's answer came from.
#[tokio::test]
async fn read_without_an_alias_freezes_decode() {
    for keys in [&["remote_hosts"][..], &["remote_hosts", "remote_dp_size_local"]] {
        let wide = Wide::start(Mode::Read, "0.33.0", false, (2, 2)).await;
        let answer = wide.send(&wide.prefill_leg(&transfer(), 3)).await.1;
        let mut leg = wide.aliased(&answer, 3, None);
        leg.body["kv_transfer_params"] = answer["kv_transfer_params"].clone();
        keys.iter().for_each(|key| _ = object(&mut leg.body).shift_remove(*key));
        let sent = wide.spawn(&leg);
        until(&wide.decode, "frozen", |counters| counters.handshakes == 2 && counters.frozen == 1).await;
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        assert_eq!((wide.decode.counters().frozen, wide.prefill.counters().held), (1, 1));
        assert!(noted(&wide.decode, "dials 4 ranks on one of them"), "{:?}", wide.decode.violations());
        sent.abort();
    }
}

#[tokio::test]
async fn wrong_aliases() {
    type Case = (fn(&mut serde_json::Map<String, Value>), bool, &'static str);
    let other = |params: &mut serde_json::Map<String, Value>, key: &str, by: i64| {
        let port = params[key].as_i64().unwrap() + by;
        params.insert(key.into(), json!(port));
    };
    let cases: [Case; 5] = [
        (|params| _ = params.insert("remote_dp_size_local".into(), json!(2)), false, "beside a single rank"),
        (|params| _ = params.insert("remote_hosts".into(), json!(["127.0.7.2"])), false, "beside a single rank"),
        (|params| _ = params.insert("remote_dp_rank".into(), json!(3)), false, "dials 1 ranks"),
        // Another rank of the same host: its memory is read, and it is told.
        (|_| {}, true, "it is on 3"),
        (|_| {}, false, "of different ranks"),
    ];
    for (change, both, expected) in cases {
        let wide = Wide::start(Mode::Read, "0.32.0", false, (2, 2)).await;
        let answer = wide.send(&wide.prefill_leg(&transfer(), 3)).await.1;
        let mut leg = wide.aliased(&answer, 3, None);
        let params = object(&mut leg.body);
        change(params);
        if expected == "it is on 3" || expected == "of different ranks" {
            other(params, "remote_handshake_port", -1);
        }
        if both {
            other(params, "remote_notify_port", -1);
        }
        let sent = wide.spawn(&leg);
        let engine = if both { &wide.prefill } else { &wide.decode };
        until(engine, expected, |counters| counters.violations > 0).await;
        assert!(noted(engine, expected), "{expected}: {:?}", engine.violations());
        if both {
            until(&wide.prefill, "told wrongly", |counters| counters.misplaced_releases == 1).await;
            assert_eq!(wide.prefill.counters().held, 1);
        }
        sent.abort();
    }
}

#[tokio::test]
async fn a_write_prefill_must_be_pinned() {
    for (serve, mode) in [(false, Mode::Write), (true, Mode::Write), (false, Mode::Read)] {
        let wide = Wide::start(mode, "0.32.0", serve, (2, 2)).await;
        let mut leg = wide.prefill_leg(&transfer(), 0);
        leg.rank = None;
        assert_eq!(wide.send(&leg).await.0, 200);
        assert_eq!(noted(&wide.prefill, "without a rank"), mode == Mode::Write, "{:?}", wide.prefill.violations());
    }
}

#[tokio::test]
async fn a_child_that_serves_counts_its_own_ranks() {
    let wide = Wide::start(Mode::Write, "0.32.0", true, (2, 2)).await;
    let mut leg = wide.prefill_leg(&transfer(), 3);
    leg.rank = Some(3);
    assert_eq!(wide.send(&leg).await.0, 400);
    assert!(noted(&wide.prefill, "out of range [0, 2)"), "{:?}", wide.prefill.violations());
    // A wrong rank within the range shows when decode asks another one for the push.
    let wide = Wide::start(Mode::Write, "0.32.0", true, (2, 2)).await;
    let id = transfer();
    let mut first = wide.prefill_leg(&id, 3);
    first.rank = Some(0);
    let sent = wide.spawn(&wide.decode_leg(&id, 3, Contract::Leader(None)));
    assert_eq!(wide.send(&first).await.0, 200);
    until(&wide.prefill, "asked", |counters| counters.violations > 0).await;
    assert!(noted(&wide.prefill, "asked of rank 3, it is on 2"));
    sent.abort();
}

#[tokio::test]
async fn a_release_frees_on_its_own_rank_alone() {
    for mode in [Mode::Read, Mode::Write] {
        let wide = Wide::start(mode, "0.32.0", false, (2, 2)).await;
        let id = transfer();
        assert_eq!(wide.send(&wide.prefill_leg(&id, 3)).await.0, 200);
        let release = json!({"type": "release", "transfer_id": id, "consumer_tp_size": 1});
        // The same place on the other host, and the other place on the same host.
        for (wrong, (host, local)) in [(0, 1), (1, 0)].into_iter().enumerate() {
            tell(&wide.prefill, host, local, &release).await;
            until(&wide.prefill, "told", |counters| counters.misplaced_releases == wrong as u64 + 1).await;
            assert_eq!(wide.prefill.counters().held, 1);
        }
        assert!(noted(&wide.prefill, "came to rank 1, it is on 3"), "{:?}", wide.prefill.violations());
        tell(&wide.prefill, 1, 1, &release).await;
        until(&wide.prefill, "freed", |counters| counters.held + counters.used_blocks == 0).await;
    }
}

/// One that comes before the prefill's end waits for its own rank's transfer.
#[tokio::test]
async fn an_early_release_is_its_ranks_own() {
    let mut own = settings(Role::Prefill, Mode::Read, "0.32.0", 2);
    own.prefill_delay = std::time::Duration::from_millis(300);
    let decode = Engine::start(settings(Role::Decode, Mode::Read, "0.32.0", 2)).await.unwrap();
    let wide = Wide { prefill: Engine::start(own).await.unwrap(), decode, client: reqwest::Client::new() };
    for (host, held) in [(0, 1), (1, 1)] {
        let id = transfer();
        let sent = wide.spawn(&wide.prefill_leg(&id, 3));
        until(&wide.prefill, "computing", |counters| counters.running == 1).await;
        tell(&wide.prefill, host, 1, &json!({"type": "release", "transfer_id": id})).await;
        assert_eq!(soon(sent).await.unwrap().0, 200);
        // The right one frees at once, the wrong one of the first round never does.
        until(&wide.prefill, "told", |counters| counters.misplaced_releases == 1 && counters.held == held).await;
    }
    assert_eq!(wide.prefill.counters().released, 1);
}

#[tokio::test]
async fn a_wake_reaches_its_own_rank_alone() {
    for kind in ["write_done", "write_failed"] {
        let wide = Wide::start(Mode::Write, "0.33.0", true, (2, 2)).await;
        let id = transfer();
        let leg = wide.spawn(&wide.decode_leg(&id, 0, Contract::Leader(Some(3))));
        until(&wide.decode, "parked", |counters| counters.parked == 1).await;
        let wake = json!({"type": kind, "transfer_id": id});
        tell(&wide.decode, 0, 1, &wake).await;
        tell(&wide.decode, 1, 0, &wake).await;
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        assert_eq!(wide.decode.counters().parked, 1);
        tell(&wide.decode, 1, 1, &wake).await;
        assert_eq!(soon(leg).await.unwrap().0, if kind == "write_done" { 200 } else { 500 });
    }
}

/// Two decode engines at a time, each over the hosts of its own: the first one's completion goes to the other's.
#[tokio::test]
async fn completions_of_two_decode_engines_mix_up_to_0_30() {
    for (release, mixes) in [("0.28.0", true), ("0.30.0", true), ("0.31.0", false), ("0.33.0", false)] {
        let wide = Wide::start(Mode::Write, release, false, (2, 2)).await;
        let other = settings(Role::Decode, Mode::Write, release, 2);
        let other = Engine::start(Settings { hosts: hosts(9, 2), ..other }).await.unwrap();
        let (one, two) = (transfer(), transfer());
        assert_eq!(wide.send(&wide.prefill_leg(&one, 1)).await.0, 200);
        let mut leg = wide.prefill_leg(&two, 1);
        leg.body["kv_transfer_params"] = params(&other, false, &two);
        assert_eq!(wide.send(&leg).await.0, 200);
        let decode = wide.spawn(&wide.decode_leg(&one, 1, Contract::Leader(Some(2))));
        if mixes {
            until(&wide.prefill, "pushed", |counters| counters.transfers == 1 && counters.violations > 0).await;
            assert!(noted(&wide.prefill, "two decode engines at a time"), "{:?}", wide.prefill.violations());
            assert_eq!((wide.decode.counters().parked, wide.decode.counters().write_done), (1, 0));
            decode.abort();
            continue;
        }
        assert_eq!(super::said(&soon(decode).await.unwrap().1), text(5), "{release}");
        let mut leg = wide.decode_leg(&two, 1, Contract::Leader(Some(3)));
        leg.to = other.http_address();
        assert_eq!(super::said(&post(wide.client.clone(), leg).await.1), text(5), "{release}");
        wide.clean().await;
    }
}

/// One after the other they are served rightly by every release; so they are at once from two ranks.
#[tokio::test]
async fn one_decode_engine_at_a_time_is_right() {
    let wide = Wide::start(Mode::Write, "0.30.0", false, (2, 2)).await;
    let other = settings(Role::Decode, Mode::Write, "0.30.0", 2);
    let other = Engine::start(Settings { hosts: hosts(9, 2), ..other }).await.unwrap();
    let legs = |decode: &Engine, rank: u32, pin: u32| {
        let id = transfer();
        let (mut first, mut second) =
            (wide.prefill_leg(&id, rank), wide.decode_leg(&id, rank, Contract::Leader(Some(pin))));
        first.body["kv_transfer_params"] = params(decode, false, &id);
        second.to = decode.http_address();
        (first, second)
    };
    for decode in [&wide.decode, &other, &wide.decode] {
        let (first, second) = legs(decode, 1, 3);
        let (_, second) = tokio::join!(wide.send(&first), wide.send(&second));
        assert_eq!(super::said(&second.1), text(5));
    }
    let (one, two) = (legs(&wide.decode, 0, 3), legs(&other, 2, 3));
    assert_eq!((wide.send(&one.0).await.0, wide.send(&two.0).await.0), (200, 200));
    for leg in [&one.1, &two.1] {
        assert_eq!(super::said(&wide.send(leg).await.1), text(5));
    }
    wide.clean().await;
}
