//! Pairs that have not answered yet: their engines may be building kernels (protocol P6).

use std::time::Duration;

use futures::future::join_all;
use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Fault, FaultKind, Mode, Role};

use crate::support::{Answer, Plan, World, completion, generate, post, strike, until, until_true};

async fn world(mode: Mode, cold: &'static str) -> World {
    let plan = Plan::new(mode).with(Key::ColdTimeout, cold).with(Key::ConnectTimeout, "500ms");
    let plan = plan.with(Key::PrefillTimeout, "1s").with(Key::FirstByteTimeout, "1s").with(Key::AnswerTimeout, "1s");
    let mut plan = plan.with(Key::UnparkTimeout, "1s").with(Key::BreakerFailures, "1").with(Key::Retries, "0");
    plan.adjust = |settings| settings.defer_timeout = Duration::from_secs(5);
    plan.start().await
}

/// Whether the circuits of all engines are closed, in order.
async fn closed(world: &World) -> Vec<bool> {
    let (_, ready) = world.proxy.ready().await;
    ready["engines"].as_array().unwrap().iter().map(|engine| engine["circuit"] == "closed").collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pairs_first_answer_may_take_longer() {
    let all = [Mode::Read, Mode::Write]
        .into_iter()
        .flat_map(|mode| [0, 1].map(|slow| [true, false].map(|s| (mode, slow, s))));
    join_all(all.flatten().map(|(mode, slow, stream)| async move {
        let world = world(mode, "60s").await;
        let engine = if slow == 0 { &world.prefill[0] } else { &world.decode[0] };
        let body = completion("words that take a few blocks of tokens, so that there is something to move", 3, stream);
        let late = || Fault::times(FaultKind::Delay { milliseconds: 2500 }, 1);
        strike(engine, late()).await;
        let answer = post(&world.proxy, "/v1/completions", &body).await;
        assert_eq!((answer.status, answer.whole), (200, true), "{mode:?} {slow} {stream}: {}", answer.body);
        assert_eq!(answer.record["ended"], "complete");
        // They know each other now.
        strike(engine, late()).await;
        let answer = post(&world.proxy, "/v1/completions", &body).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (504, "engine_timeout"),
            "{mode:?} {slow}: {}",
            answer.body
        );
        assert!(!answer.body.contains("--cold-timeout"), "{}", answer.body);
        world.settle().await;
        assert!(closed(&world).await.contains(&false), "an engine that is late is ailing");
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_cold_start_is_no_verdict() {
    let faults = [(0, FaultKind::Hang), (1, FaultKind::Hang), (1, FaultKind::HangAfterTokens { tokens: 0 })];
    let all =
        [Mode::Read, Mode::Write].into_iter().flat_map(|mode| faults.clone().map(|(slow, fault)| (mode, slow, fault)));
    join_all(all.map(|(mode, slow, fault)| async move {
        let world = world(mode, "2s").await;
        let what = format!("{mode:?} {slow} {fault:?}");
        let (engine, leg, role) = match slow {
            0 => (&world.prefill[0], "prefill_leg", "prefill"),
            _ => (&world.decode[0], "decode_leg", "decode"),
        };
        // After prefill's answer WRITE passes decode's head on.
        let is_committed = mode == Mode::Write && fault != FaultKind::Hang;
        strike(engine, Fault::times(fault, 1)).await;
        let answer = post(&world.proxy, "/v1/completions", &completion("words", 3, true)).await;
        is_late(&answer, "--cold-timeout");
        let (status, ended) = if is_committed { (200, "cut") } else { (504, "error") };
        assert_eq!((answer.status, answer.record["ended"].as_str()), (status, Some(ended)), "{what}: {}", answer.body);
        let told = [leg, "error", "source"].map(|key| answer.record[key].as_str().unwrap());
        assert_eq!(told, ["timeout", "engine_timeout", role], "{what}: {:?}", answer.record);
        engine.clear_faults();
        nothing_counts(&world, &what).await;
        let name = engine.http_address();
        let late = format!("moriio_legs_total{{role=\"{role}\",engine=\"{name}\",status=\"timeout\"");
        let late = world.proxy.metric(&late).await;
        assert_eq!(late, 1.0, "{what}");
    }))
    .await;
}

/// A client that does not want to wait for kernels leaves no mark on engines either.
#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_a_cold_start_says_nothing_of_the_engines() {
    let all = [Mode::Read, Mode::Write].into_iter().flat_map(|mode| [(mode, 0), (mode, 1)]);
    join_all(all.map(|(mode, slow)| async move {
        let world = world(mode, "60s").await;
        let engine = if slow == 0 { &world.prefill[0] } else { &world.decode[0] };
        strike(engine, Fault::times(FaultKind::Delay { milliseconds: 5000 }, 1)).await;
        let body = completion("words", 3, true);
        let waiting = post(&world.proxy, "/v1/completions", &body);
        // Longer than the limits of a pair that has answered.
        assert!(tokio::time::timeout(Duration::from_millis(1800), waiting).await.is_err(), "{mode:?} {slow}");
        let gone = async || world.proxy.metric("moriio_exchanges_total{ended=\"client_gone\"").await;
        until("the account of who left", || async { (gone().await == 1.0).then_some(()).ok_or(String::new()) }).await;
        nothing_counts(&world, &format!("{mode:?} {slow}")).await;
        assert_eq!(world.proxy.metric("moriio_errors_total").await, 0.0);
        let answer = post(&world.proxy, "/v1/completions", &body).await;
        assert_eq!((answer.status, answer.whole), (200, true), "{}", answer.body);
        world.settle().await;
    }))
    .await;
}

/// One failure would open a circuit in these worlds: none has by the end of all legs, orphans included.
async fn nothing_counts(world: &World, what: &str) {
    until("all legs to be counted", || async {
        let open = world.proxy.metric("moriio_legs_in_flight").await;
        (open == 0.0).then_some(()).ok_or_else(|| open.to_string())
    })
    .await;
    assert_eq!(closed(world).await, [true, true], "{what}");
    assert_eq!(world.proxy.metric("moriio_engine_circuit").await, 0.0, "{what}");
}

/// Asks, and does not wait for a limit of cold starts.
async fn soon(world: &World) -> Answer {
    let body = completion("words that come late", 3, true);
    let answer = post(&world.proxy, "/v1/completions", &body);
    tokio::time::timeout(Duration::from_secs(30), answer).await.expect("the limit of a pair that has answered")
}

fn is_late(answer: &Answer, limit: &str) {
    assert!(answer.body.contains("engine_timeout") && answer.body.contains(limit), "{}", answer.body);
}

/// Whose attempt began before its pair had answered waits no longer for output than anybody, once it has.
#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_from_before_the_first_answer_learns_of_it() {
    join_all([Mode::Read, Mode::Write].map(|mode| async move {
        let world = world(mode, "60s").await;
        world.prefill[0].set_fault(Fault::times(FaultKind::Delay { milliseconds: 3000 }, 1));
        let hang = || world.decode[0].set_fault(Fault::times(FaultKind::HangAfterTokens { tokens: 0 }, 1));
        if mode == Mode::Write {
            hang();
        }
        let (late, ()) = tokio::join!(soon(&world), async {
            until_true("the first request at its engines", || {
                let begun = |legs: u64| legs == 1;
                begun(world.prefill[0].counters().legs)
                    && (mode == Mode::Read || begun(world.decode[0].counters().legs))
            })
            .await;
            generate(&world.proxy, "others", 3, true).await;
            if mode == Mode::Read {
                hang();
            }
        });
        is_late(&late, "--first-byte-timeout");
        assert_eq!(late.record["decode_leg"], "timeout", "{:?}", late.record);
        world.decode[0].clear_faults();
        world.settle().await;
        assert_eq!(closed(&world).await, [true, false], "{mode:?}");
    }))
    .await;
}

/// READ: the limits are those of the pair that has the hand-over.
#[tokio::test(flavor = "multi_thread")]
async fn another_decode_engine_brings_its_own_limits() {
    join_all([true, false].map(|is_known| async move {
        let mut world = world(Mode::Read, "60s").await;
        let settings = Plan::new(Mode::Read).settings(Role::Decode, world.proxy.registration);
        // One decode engine has answered, the other not; whose turn it is refuses.
        for _ in 0..if is_known { 1 } else { 2 } {
            generate(&world.proxy, "words", 3, true).await;
        }
        world.join(settings).await;
        world.until_ready(3).await;
        let (refuses, other) = if is_known { (1, 0) } else { (0, 1) };
        strike(&world.decode[refuses], Fault::always(FaultKind::RefuseConnections)).await;
        let fault = if is_known { FaultKind::Hang } else { FaultKind::Delay { milliseconds: 2500 } };
        world.decode[other].set_fault(Fault::times(fault, 1));
        let answer = soon(&world).await;
        assert_eq!(world.proxy.metric("moriio_attempts_total{cause=\"hand_over\"").await, 1.0);
        if is_known {
            is_late(&answer, "--first-byte-timeout");
        } else {
            assert_eq!((answer.status, answer.whole), (200, true), "{}", answer.body);
        }
        world.decode[other].clear_faults();
        world.settle().await;
        let known = other + 1;
        assert_eq!(closed(&world).await[known], !is_known, "an engine that is late is ailing, one that is cold is not");
    }))
    .await;
}

/// Whoever comes while a pair's first exchange goes alone waits as long as for room on an engine, and is told what it waited for.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_behind_a_first_contact_is_told_so() {
    let all = [Mode::Read, Mode::Write].into_iter().flat_map(|mode| [(mode, false), (mode, true)]);
    join_all(all.map(|(mode, is_full)| async move {
        let mut plan = Plan::new(mode).with(Key::QueueTimeout, "1s");
        // Later ones need not meet alone.
        plan.release = if is_full { "0.32.0" } else { "0.30.0" };
        let world = if is_full { plan.with(Key::EngineInFlight, "1") } else { plan }.start().await;
        world.decode[0].set_fault(Fault::times(FaultKind::Delay { milliseconds: 6000 }, 1));
        let body = completion("words", 3, true);
        let (first, behind) = tokio::join!(post(&world.proxy, "/v1/completions", &body), async {
            until_true("the first at decode", || world.decode[0].counters().legs == 1).await;
            post(&world.proxy, "/v1/completions", &body).await
        });
        assert_eq!((first.status, first.whole), (200, true), "{}", first.body);
        let (status, code) = if is_full { (429, "pool_busy") } else { (503, "first_contact") };
        assert_eq!((behind.status, behind.code().as_str()), (status, code), "{mode:?}: {}", behind.body);
        assert_eq!((behind.header("retry-after"), behind.source()), ("1", "proxy"));
        assert_eq!(behind.body.contains("kernels"), !is_full, "{}", behind.body);
        assert!(!behind.body.contains("127.0.0.1"), "{}", behind.body);
        assert_eq!((&behind.record["attempts"], &behind.record["error"]), (&0.into(), &code.into()));
        assert_eq!(world.proxy.metric(&format!("moriio_errors_total{{code=\"{code}\"")).await, 1.0);
        world.settle().await;
        // They have met.
        generate(&world.proxy, "more words", 3, true).await;
    }))
    .await;
}
