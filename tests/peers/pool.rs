//! Engines that libzmq announces: what a pool of them generates is what one engine would, while they come and go.

use std::time::Duration;

use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Engine, Fault, FaultKind, Mode, Role, Settings, expected_text};
use serde_json::json;

use super::agent::Sockets;
use super::wording::{Dialect, Said, engines, results, until_results, until_state};
use crate::support::{Proxy, World, completion, generate, post, strike, until};

const PROMPT: &str = "libzmq says who I am and where my keys and values lie, block after block after block";

/// An engine that never registers by itself.
async fn engine(role: Role, mode: Mode, release: &str, adjust: impl FnOnce(&mut Settings)) -> Engine {
    let mut settings = Settings::new(role, mode, "");
    settings.release = release.into();
    adjust(&mut settings);
    Engine::start(settings).await.expect("free ports")
}

async fn announce(sockets: &mut Sockets, proxy: &Proxy, engine: &Engine, dialect: Dialect) -> String {
    let name = engine.http_address().to_string();
    sockets.open(&name, "DEALER", proxy.registration).await;
    sockets.repeat(&name, &Said::of(engine).map(dialect), 0.2).await;
    name
}

async fn generates(proxy: &Proxy, tokens: usize) {
    for stream in [false, true] {
        generate(proxy, PROMPT, tokens, stream).await;
    }
    let messages = json!([{"role": "user", "content": PROMPT}]);
    let body = json!({"model": "sim-model", "messages": messages, "max_tokens": tokens, "temperature": 0});
    let answer = post(proxy, "/v1/chat/completions", &body).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.text(), expected_text(&messages, tokens));
}

#[tokio::test(flavor = "multi_thread")]
async fn announced_pools_generate_what_one_engine_would() {
    let mut sockets = Sockets::start();
    // One is the pool whose two sides speak different dialects.
    let pools = [
        (Mode::Write, "0.19.1", Dialect::A, Dialect::A, 1, 1),
        (Mode::Read, "0.23.0", Dialect::B, Dialect::B, 1, 1),
        (Mode::Write, "0.30.0", Dialect::B, Dialect::B, 2, 1),
        (Mode::Write, "0.32.0", Dialect::A, Dialect::B, 1, 2),
        (Mode::Read, "0.33.0", Dialect::B, Dialect::A, 2, 1),
    ];
    for (mode, release, prefill_says, decode_says, dp, tp) in pools {
        let proxy = Proxy::start(&[(Key::DecodeTokenBudget, "exact")]);
        let (mut prefill, mut decode) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            for (side, role, dialect) in
                [(&mut prefill, Role::Prefill, prefill_says), (&mut decode, Role::Decode, decode_says)]
            {
                let one = engine(role, mode, release, |settings| (settings.dp, settings.tp) = (dp, tp)).await;
                announce(&mut sockets, &proxy, &one, dialect).await;
                side.push(one);
            }
        }
        let world = World { proxy, prefill, decode, mode };
        world.until_ready(4).await;
        for tokens in [1, 3, 12] {
            generates(&world.proxy, tokens).await;
        }
        world.settle().await;
        for one in world.engines() {
            assert!(!one.legs().is_empty(), "{:?} {release}: everyone had work", world.mode);
            let name = one.http_address().to_string();
            assert!(!sockets.heard_anything(&name).await, "{mode:?} {release}");
            sockets.0.ask(json!({"do": "close", "name": name})).await;
        }
    }
}

/// Engines of another mode are kept aside; they have their turn when the others are gone.
#[tokio::test(flavor = "multi_thread")]
async fn the_mode_changes_when_its_last_engine_has_left() {
    let mut sockets = Sockets::start();
    let proxy = Proxy::start(&[(Key::DecodeTokenBudget, "exact"), (Key::EngineTtl, "1s")]);
    let mut readers = Vec::new();
    for role in [Role::Prefill, Role::Decode] {
        let one = engine(role, Mode::Read, "0.32.0", |_| ()).await;
        let name = announce(&mut sockets, &proxy, &one, Dialect::B).await;
        until_state(&proxy, &name, "ready").await;
        readers.push((one, name));
    }
    let mut writers = Vec::new();
    for role in [Role::Prefill, Role::Decode] {
        let one = engine(role, Mode::Write, "0.32.0", |_| ()).await;
        let name = announce(&mut sockets, &proxy, &one, Dialect::B).await;
        until_state(&proxy, &name, "other_mode").await;
        writers.push((one, name));
    }
    generates(&proxy, 5).await;
    assert!(writers.iter().all(|(one, _)| one.legs().is_empty()));
    for (one, name) in &readers {
        one.crash().await;
        sockets.quiet(name).await;
    }
    for (_, name) in &writers {
        until_state(&proxy, name, "ready").await;
    }
    let (_, body) = proxy.ready().await;
    assert_eq!(body["mode"], "WRITE");
    assert_eq!(engines(&proxy).await.len(), 2);
    generates(&proxy, 5).await;
    // The first to come back finds the pool taken.
    let (one, name) = &readers[0];
    one.restart(true).await.expect("its ports are free");
    sockets.repeat(name, &Said::of(one).map(Dialect::B), 0.2).await;
    until_state(&proxy, name, "other_mode").await;
    generates(&proxy, 5).await;
    for (one, _) in writers.iter().chain(&readers) {
        assert_eq!(one.violations(), Vec::<String>::new());
    }
}

/// Engines that neither ping nor answer leave, their streams go on, and one ping brings them back.
#[tokio::test(flavor = "multi_thread")]
async fn an_expired_engine_ends_its_streams_and_comes_back_with_a_ping() {
    let mut sockets = Sockets::start();
    let proxy = Proxy::start(&[(Key::DecodeTokenBudget, "exact"), (Key::EngineTtl, "1s")]);
    let slow = |settings: &mut Settings| settings.token_delay = Duration::from_millis(60);
    let prefill = engine(Role::Prefill, Mode::Read, "0.32.0", |_| ()).await;
    let decode = engine(Role::Decode, Mode::Read, "0.32.0", slow).await;
    let mut names = Vec::new();
    for one in [&prefill, &decode] {
        let name = announce(&mut sockets, &proxy, one, Dialect::B).await;
        until_state(&proxy, &name, "ready").await;
        names.push(name);
    }
    let tokens = 60;
    let stream = {
        let body = completion(PROMPT, tokens, true);
        let url = proxy.url("/v1/completions");
        tokio::spawn(async move {
            let sent = crate::support::client().post(url).body(body.to_string()).send();
            crate::support::Answer::of(sent.await.expect("an answer")).await
        })
    };
    until("the stream to run", || async {
        let seen = decode.counters().tokens;
        if seen > 0 { Ok(()) } else { Err(seen.to_string()) }
    })
    .await;
    for (one, name) in [&prefill, &decode].into_iter().zip(&names) {
        sockets.quiet(name).await;
        strike(one, Fault::always(FaultKind::RefuseConnections)).await;
    }
    until("an empty pool", || async {
        let seen = engines(&proxy).await;
        if seen.is_empty() { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
    let none = post(&proxy, "/v1/completions", &completion(PROMPT, 1, false)).await;
    assert_eq!((none.status, none.code().as_str()), (503, "no_pair"));

    let answer = stream.await.expect("no panic");
    assert_eq!(answer.text(), expected_text(&json!(PROMPT), tokens));
    assert!(answer.whole && answer.body.ends_with("data: [DONE]\n\n"));
    let added = results(&proxy, "added").await;
    for (count, (one, name)) in [&prefill, &decode].into_iter().zip(&names).enumerate() {
        one.clear_faults();
        sockets.ping(name, &Said::of(one).map(Dialect::B)).await;
        until_results(&proxy, "added", added + 1.0 + count as f64).await;
    }
    for (one, name) in [&prefill, &decode].into_iter().zip(&names) {
        sockets.repeat(name, &Said::of(one).map(Dialect::B), 0.2).await;
        until_state(&proxy, name, "ready").await;
    }
    generate(&proxy, PROMPT, 3, true).await;
    for one in [&prefill, &decode] {
        assert_eq!(one.violations(), Vec::<String>::new());
    }
}
