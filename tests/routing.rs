//! Where requests go: sessions, policies, and what is told of both. The orders themselves are tested beside the code, and
//! `model` picks by all of them at random.

mod alone;
mod line;
mod queue;

use std::collections::{BTreeMap, BTreeSet};

use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Engine, Mode};
use serde_json::{Value, json};

use crate::support::{Plan, World, client, completion, post, post_as, until};

const COMPLETIONS: &str = "/v1/completions";
const PROMPT: &str = "a turn of an agent whose prefix lives on one engine, which is where the next turn had better go";

/// Who served a request, by its record.
fn served(answer: &crate::support::Answer) -> (String, String) {
    let of = |role: &str| answer.record[role].as_str().unwrap_or_default().to_owned();
    assert_eq!(answer.status, 200, "{}", answer.body);
    (of("prefill"), of("decode"))
}

/// The value of each of these headers on the legs of an engine.
fn headers(engine: &Engine, name: &str) -> BTreeSet<Option<String>> {
    engine.legs().iter().map(|leg| leg.header(name).map(str::to_owned)).collect()
}

/// Agents of several turns each, all at once, each turn once the one before has ended: how many went to another prefill engine than
/// the turn before, and which there were.
async fn agents(world: &World, agents: usize, turns: usize) -> (usize, BTreeSet<String>) {
    let agent = |number: usize| async move {
        let (name, mut moves, mut before) = (format!("agent-{number}"), 0, None);
        let mut there = BTreeSet::new();
        for turn in 0..turns {
            let prompt = format!("{number} {}", PROMPT.repeat(turn + 1));
            let body = completion(&prompt, 4, turn % 2 == 0);
            let answer = post_as(&world.proxy, COMPLETIONS, &[("X-Session-ID", &name)], &body).await;
            let (prefill, _) = served(&answer);
            moves += usize::from(before.as_ref().is_some_and(|before| *before != prefill));
            there.insert(prefill.clone());
            before = Some(prefill);
        }
        (moves, there)
    };
    let ends = futures::future::join_all((0..agents).map(agent)).await;
    ends.into_iter().fold((0, BTreeSet::new()), |(moves, mut all), (more, there)| {
        all.extend(there);
        (moves + more, all)
    })
}

/// The flags of AMD's script: five sessions of six turns went to another prefill engine each time.
#[tokio::test(flavor = "multi_thread")]
async fn turns_of_a_session_go_to_one_engine_under_every_policy() {
    for policy in ["round_robin", "random", "power_of_two", "least_loaded", "consistent_hash"] {
        for mode in [Mode::Write, Mode::Read] {
            let world = Plan::new(mode).engines(4, 2).with(Key::Policy, policy).start().await;
            let (moves, engines) = agents(&world, 5, 6).await;
            assert_eq!(moves, 0, "{policy} in {mode:?}");
            // By chance five may meet on one.
            let spreads = !matches!(policy, "random" | "power_of_two");
            assert!(engines.len() > 1 || !spreads, "{policy} in {mode:?}");
            world.settle().await;
            let hits =
                world.proxy.metric("moriio_policy_decisions_total{role=\"prefill\",policy=\"session\",reason=\"hit\"}");
            assert_eq!(hits.await, 25.0, "{policy} in {mode:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_moves_when_its_engine_leaves_and_stays_there() {
    let world = Plan::new(Mode::Write).engines(3, 1).with(Key::EngineTtl, "1s").start().await;
    let turn = || async {
        served(&post_as(&world.proxy, COMPLETIONS, &[("x-session-id", "s")], &completion(PROMPT, 3, false)).await).0
    };
    let home = turn().await;
    for _ in 0..4 {
        assert_eq!(turn().await, home);
    }
    let engine = world.prefill.iter().find(|engine| engine.http_address().to_string() == home).unwrap();
    engine.crash().await;
    let next = turn().await;
    assert_ne!(next, home);
    engine.restart(true).await.unwrap();
    // Its circuit closes with a trial, for which others have to come.
    until("its trial", || async {
        served(&post(&world.proxy, COMPLETIONS, &completion(PROMPT, 3, false)).await);
        let (_, body) = world.proxy.ready().await;
        let engines = body["engines"].as_array().unwrap();
        let well = engines.iter().filter(|engine| engine["state"] == "ready" && engine["circuit"] == "closed").count();
        if well == 4 { Ok(()) } else { Err(body.to_string()) }
    })
    .await;
    for _ in 0..4 {
        assert_eq!(turn().await, next, "it does not go back to an engine that has forgotten it");
    }
    world.settle().await;
}

/// Whatever names a session, both legs carry it where engines read it, and the client's own header is not there twice.
#[tokio::test(flavor = "multi_thread")]
async fn both_legs_carry_the_session() {
    for (headers_sent, more, name) in [
        (&[("X-Session-ID", "one")][..], json!({}), Some("one")),
        (&[("X_Correlation_ID", "two"), ("X-User-ID", "u")], json!({"session_id": "body"}), Some("two")),
        (&[("X-Session-ID", ""), ("x-smg-routing-key", "three")], json!({}), Some("three")),
        (&[("Authorization", "Bearer four")], json!({"session_id": "four"}), Some("four")),
        (&[("X-User-ID", "five")], json!({}), None),
    ] {
        let world = Plan::new(Mode::Write).start().await;
        let mut body = completion(PROMPT, 3, false);
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        served(&post_as(&world.proxy, COMPLETIONS, headers_sent, &body).await);
        for engine in world.engines() {
            assert_eq!(headers(engine, "x-session-id"), BTreeSet::from([name.map(str::to_owned)]), "{headers_sent:?}");
            let legs = engine.legs();
            let count = legs[0].headers.iter().filter(|(header, _)| header == "x-session-id").count();
            assert_eq!(count, usize::from(name.is_some()), "{headers_sent:?}");
        }
        world.settle().await;
    }
}

/// Without a session a client is known by its user, its key or its address, which bind it to nothing but its hash.
#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_session_hashes_by_user_or_address() {
    let world = Plan::new(Mode::Write).engines(4, 1).with(Key::Policy, "consistent_hash").start().await;
    let ask = |headers: Vec<(&'static str, String)>| {
        let world = &world;
        async move {
            let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            served(&post_as(&world.proxy, COMPLETIONS, &headers, &completion(PROMPT, 3, false)).await).0
        }
    };
    let mut homes: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for _ in 0..3 {
        for user in 0..8 {
            let named = ask(vec![("x-user-id", format!("user-{user}")), ("authorization", "Bearer k".into())]).await;
            homes.entry(format!("user {user}")).or_default().insert(named);
        }
        homes.entry("key".into()).or_default().insert(ask(vec![("authorization", "Bearer k".into())]).await);
        homes.entry("address".into()).or_default().insert(ask(vec![]).await);
    }
    assert!(homes.values().all(|engines| engines.len() == 1), "{homes:?}");
    assert!(homes.values().flatten().collect::<BTreeSet<_>>().len() > 1, "{homes:?}");
    assert_eq!(world.proxy.metric("moriio_policy_decisions_total{role=\"prefill\",policy=\"session\"").await, 0.0);
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn affinity_can_be_turned_off_and_keys_be_others() {
    let world = Plan::new(Mode::Write).engines(4, 1).with(Key::SessionAffinity, "off").start().await;
    // A pair's first exchange is one turn more.
    for _ in 0..4 {
        served(&post(&world.proxy, COMPLETIONS, &completion(PROMPT, 3, false)).await);
    }
    let (moves, _) = agents(&world, 1, 5).await;
    assert_eq!(moves, 4, "round robin");
    world.settle().await;
    let keys = "x-agent,body.user";
    let world = Plan::new(Mode::Write).engines(4, 1).with(Key::SessionKeys, keys).start().await;
    assert_ne!(agents(&world, 1, 5).await.0, 0, "x-session-id names nothing here");
    for (headers, more) in [(&[("X-Agent", "a")][..], json!({})), (&[], json!({"user": "b"}))] {
        let mut engines = BTreeSet::new();
        for _ in 0..4 {
            let mut body = completion(PROMPT, 3, false);
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            engines.insert(served(&post_as(&world.proxy, COMPLETIONS, headers, &body).await).0);
        }
        assert_eq!(engines.len(), 1, "{more}");
    }
    world.settle().await;
}

/// What is in force can be read, and what came of it.
#[tokio::test(flavor = "multi_thread")]
async fn policies_and_loads_are_shown() {
    let plan = Plan::new(Mode::Write).with(Key::Policy, "least_loaded").with(Key::DecodePolicy, "random");
    let mut plan = plan.engines(2, 2);
    plan.adjust = |settings| settings.prefill_delay = std::time::Duration::from_millis(500);
    let world = plan.start().await;
    let (_, body) = world.proxy.ready().await;
    assert_eq!(body["policies"], json!({"prefill": "least_loaded", "decode": "random"}));
    let sent = completion(PROMPT, 3, false).to_string();
    let asked = client().post(world.proxy.url(COMPLETIONS)).body(sent.clone()).send();
    let load =
        |body: &Value| -> u64 { body["engines"].as_array().unwrap().iter().filter_map(|e| e["load"].as_u64()).sum() };
    let seen = until("the load", || async {
        let (_, body) = world.proxy.ready().await;
        // The prompt's bytes, and one stream.
        if load(&body) == sent.len() as u64 + 1 { Ok(()) } else { Err(body.to_string()) }
    });
    let (answer, ()) = tokio::join!(asked, seen);
    assert_eq!(answer.unwrap().status(), 200);
    world.settle().await;
    let (_, body) = world.proxy.ready().await;
    assert_eq!(load(&body), 0);
    let metrics = world.proxy.metrics().await;
    for line in [
        "moriio_policy_decisions_total{role=\"prefill\",policy=\"least_loaded\",reason=\"hit\"} 1",
        "moriio_policy_decisions_total{role=\"decode\",policy=\"random\",reason=\"hit\"} 1",
    ] {
        assert!(metrics.lines().any(|other| other == line), "{line} in {metrics}");
    }
}

/// Without any session: growing prompts of agents go where their beginnings are, and a system prompt that all have keeps none of
/// them from an engine that has less to do.
#[tokio::test(flavor = "multi_thread")]
async fn prompts_go_where_their_beginnings_are() {
    for mode in [Mode::Write, Mode::Read] {
        let plan = Plan::new(mode).engines(4, 2).with(Key::PrefillPolicy, "cache_aware");
        let world = plan.with(Key::SessionAffinity, "off").start().await;
        let (world, system) = (&world, &"You are an agent, and so are others. ".repeat(100));
        let agent = |number: usize| async move {
            let own = format!("The task of agent {number} is its own. ").repeat(200);
            let mut messages =
                vec![json!({"role": "system", "content": system}), json!({"role": "user", "content": own})];
            let (mut there, mut moves) = (None, 0);
            for turn in 0..6 {
                let body =
                    json!({"model": "sim-model", "messages": messages, "max_tokens": 3, "stream": turn % 2 == 0});
                let (prefill, _) = served(&post(&world.proxy, "/v1/chat/completions", &body).await);
                moves += usize::from(there.replace(prefill.clone()).is_some_and(|before| before != prefill));
                messages.push(json!({"role": "assistant", "content": format!("Answer {turn}. ").repeat(50)}));
                messages.push(json!({"role": "user", "content": format!("And then {turn}? ").repeat(50)}));
            }
            (moves, there.unwrap())
        };
        // One after the other begins, so that each finds what the one before has left.
        let mut agents = Vec::new();
        for number in 0..5 {
            agents.push(agent(number).await);
        }
        assert!(agents.iter().all(|(moves, _)| *moves == 0), "{agents:?}");
        let hits = "moriio_policy_decisions_total{role=\"prefill\",policy=\"cache_aware\",reason=\"hit\"}";
        assert!(world.proxy.metric(hits).await >= 25.0, "{}", world.proxy.metrics().await);
        world.settle().await;
    }
}

/// Engines with prefix caches: what part of all prompt tokens they had, by their own count, and the proxy's count of it.
#[tokio::test(flavor = "multi_thread")]
async fn policies_differ_in_what_engines_have_cached() {
    let part = async |policy: &'static str, affinity: &'static str| {
        let mut plan = Plan::new(Mode::Write).engines(4, 1).with(Key::Policy, policy);
        plan.adjust = |settings| settings.cache_tokens = 20_000;
        let world = plan.with(Key::SessionAffinity, affinity).start().await;
        let world = &world;
        futures::future::join_all((0..5).map(|number| async move {
            let name = format!("agent-{number}");
            let mut prompt = format!("The task of agent {number} is its own. ").repeat(300);
            for turn in 0..8 {
                let body = completion(&prompt, 3, false);
                served(&post_as(&world.proxy, COMPLETIONS, &[("x-session-id", &name)], &body).await);
                prompt.push_str(&format!("And then came turn {turn}. ").repeat(40));
            }
        }))
        .await;
        let (all, cached) =
            (world.total(|counters| counters.prompt_tokens), world.total(|counters| counters.cached_tokens));
        assert_eq!(world.proxy.metric("moriio_prefill_cached_tokens_total").await, cached as f64, "{policy}");
        world.settle().await;
        cached as f64 / all as f64
    };
    let (robin, sessions, cache) =
        (part("round_robin", "off").await, part("round_robin", "on").await, part("cache_aware", "off").await);
    // Of eight turns the first has nothing.
    assert!(sessions > 0.8 && cache > 0.8, "{robin} {sessions} {cache}");
    assert!(robin < 0.7, "{robin}");
}
