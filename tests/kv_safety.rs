//! No KV block stays pinned that a message could free, and no pair is used that cannot work.

use std::time::Duration;

use futures::future::join_all;
use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Engine, Fault, FaultKind, Mode, Role};
use serde_json::json;

use crate::support::{Plan, World, client, completion, generate, post, strike, until, until_true};

const RETRIES: &str = "moriio_attempts_total{cause=\"retry\"}";
const PROMPT: &str =
    "the quick brown fox jumps over the lazy dog again and again until there are several blocks of it all";

fn refuse(status: u16) -> FaultKind {
    FaultKind::Status { status, body: json!({"error": {"message": "scripted", "code": status}}).to_string() }
}

/// Worlds as proxies are started: pairs that have not answered have long limits (protocol P6), those that have have the ordinary ones.
fn plan(mode: Mode) -> Plan {
    Plan::new(mode).with(Key::ColdTimeout, "1800s")
}

async fn ask(world: &World) -> crate::support::Answer {
    post(&world.proxy, "/v1/completions", &completion(PROMPT, 8, true)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn read_blocks_are_released_when_no_decode_engine_takes_them() {
    for (fault, status) in [(FaultKind::RefuseConnections, 503), (refuse(400), 400), (refuse(500), 500)] {
        let world = plan(Mode::Read).with(Key::Retries, "0").start().await;
        generate(&world.proxy, PROMPT, 8, true).await;
        let before = world.prefill[0].counters();
        strike(&world.decode[0], Fault::always(fault.clone())).await;
        let answer = ask(&world).await;
        assert_eq!((answer.status, answer.source()), (status, "decode"), "{fault:?} {}", answer.body);
        until_true("a release", || world.prefill[0].counters().releases > before.releases).await;
        world.decode[0].clear_faults();
        world.settle().await;
        assert_eq!(world.prefill[0].counters().reaped, 0);
        assert!(world.proxy.metric("moriio_kv_messages_total{kind=\"release\",outcome=\"sent\"}").await >= 1.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn write_blocks_are_released_when_decode_did_not_take_them() {
    for (fault, status) in
        [(FaultKind::RefuseConnections, 503), (refuse(400), 400), (refuse(503), 503), (refuse(500), 500)]
    {
        let world = plan(Mode::Write).with(Key::Retries, "0").start().await;
        generate(&world.proxy, PROMPT, 8, true).await;
        strike(&world.decode[0], Fault::always(fault.clone())).await;
        let answer = ask(&world).await;
        assert_eq!((answer.status, answer.source()), (status, "decode"), "{fault:?} {}", answer.body);
        world.decode[0].clear_faults();
        world.settle().await;
        assert_eq!(world.prefill[0].counters().reaped, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn write_decode_is_woken_when_its_prefill_failed() {
    let cut = FaultKind::CutBeforeAnswer { reset: true };
    let faults = [(refuse(500), 500), (refuse(400), 400), (cut, 502), (FaultKind::Hang, 504)];
    // On a pair that has answered, and on one that has not.
    let stories = [("0.32.0", true), ("0.33.0", true), ("0.33.0", false), ("0.32.0", false)];
    let stories = stories.into_iter().flat_map(|story| faults.clone().map(|fault| (story, fault)));
    join_all(stories.map(|((release, is_known), (fault, status))| async move {
        let (own, cold) = if is_known { ("6s", "1800s") } else { ("3s", "6s") };
        let mut plan = plan(Mode::Write).with(Key::PrefillTimeout, own).with(Key::Retries, "0");
        plan = plan.with(Key::ColdTimeout, cold).with(Key::ConnectTimeout, "1s");
        plan.release = release;
        let world = plan.start().await;
        if is_known {
            generate(&world.proxy, PROMPT, 8, true).await;
        }
        if fault != FaultKind::Hang {
            // The failure comes late enough for decode to be parked by then.
            world.prefill[0].set_fault(Fault::times(FaultKind::Delay { milliseconds: 1500 }, 1));
        }
        world.prefill[0].set_fault(Fault::times(fault.clone(), 1));
        let answer = ask(&world).await;
        assert_eq!((answer.status, answer.source()), (status, "prefill"), "{release} {fault:?} {}", answer.body);
        world.settle().await;
        world.prefill[0].clear_faults();
        until("the parked leg to be counted", || async {
            let all = world.proxy.metrics().await;
            let lines: Vec<_> = all.lines().filter(|l| l.contains("drained") || l.contains("kv_mess")).collect();
            let woken = lines.contains(&"moriio_drained_legs_total{outcome=\"unparked\"} 1");
            woken.then_some(()).ok_or(format!("{release} {fault:?} {lines:#?}"))
        })
        .await;
        generate(&world.proxy, PROMPT, 8, true).await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_503_of_decode_costs_one_prefill() {
    for mode in [Mode::Read, Mode::Write] {
        let world = plan(mode).engines(2, 2).start().await;
        world.decode.iter().for_each(|decode| decode.set_fault(Fault::always(refuse(503))));
        let answer = ask(&world).await;
        assert_eq!((answer.status, answer.source()), (503, "decode"), "{mode:?} {}", answer.body);
        // In WRITE prefill's leg may be closed before its engine has counted it.
        let prefills: u64 = world.prefill.iter().map(|prefill| prefill.counters().legs).sum();
        assert!(prefills <= 1 && (mode == Mode::Write || prefills == 1), "{mode:?} {prefills}");
        assert_eq!(world.proxy.metric(RETRIES).await, 0.0, "{mode:?}");
        world.decode.iter().for_each(Engine::clear_faults);
        world.settle().await;
    }
}

/// Decode's head came, its first byte did not: READ has told nothing yet, WRITE has committed with prefill's success. Its legs are
/// ended when the limit passes, not one limit later.
#[tokio::test(flavor = "multi_thread")]
async fn a_leg_without_a_first_byte_is_ended_at_once() {
    let limit = Duration::from_secs(4);
    let all = [Mode::Read, Mode::Write].into_iter().flat_map(|mode| [(mode, true), (mode, false)]);
    join_all(all.map(|(mode, is_known)| async move {
        let (own, cold) = if is_known { ("4s", "1800s") } else { ("2s", "4s") };
        let plan = plan(mode).with(Key::ConnectTimeout, "1s").with(Key::FirstByteTimeout, own);
        let world = plan.with(Key::ColdTimeout, cold).start().await;
        if is_known {
            generate(&world.proxy, PROMPT, 8, true).await;
        }
        let before = world.prefill[0].counters().releases;
        world.decode[0].set_fault(Fault::times(FaultKind::HangAfterTokens { tokens: 0 }, 1));
        let answer = ask(&world).await;
        let told = std::time::Instant::now();
        let error = match mode {
            Mode::Read => answer.json()["error"].clone(),
            Mode::Write => answer.events().last().unwrap()["error"].clone(),
        };
        let status = if mode == Mode::Read { 504 } else { 200 };
        assert_eq!((answer.status, &error["code"]), (status, &json!("engine_timeout")), "{mode:?} {}", answer.body);
        let limit_of = if is_known { "--first-byte-timeout" } else { "--cold-timeout" };
        assert!(error["message"].as_str().unwrap().contains(limit_of), "{error}");
        assert!(answer.whole && !answer.body.contains("[DONE]"), "{}", answer.body);
        if mode == Mode::Write {
            until_true("a release", || world.prefill[0].counters().releases > before).await;
            assert!(told.elapsed() < limit * 3 / 4, "{:?} after the client was told", told.elapsed());
        }
        world.decode[0].clear_faults();
        world.settle().await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_where_it_would_not_be_understood_or_is_switched_off() {
    // 0.22 goes deaf on a release that it does not know.
    for (release, option) in [("0.22.0", "auto"), ("0.32.0", "off")] {
        let mut plan = plan(Mode::Read).with(Key::KvRelease, option).with(Key::Retries, "0");
        plan.release = release;
        plan.adjust = |settings| settings.defer_timeout = Duration::from_secs(1);
        let world = plan.start().await;
        world.decode[0].set_fault(Fault::times(refuse(500), 1));
        assert_eq!(ask(&world).await.status, 500);
        assert_eq!(world.proxy.metric("moriio_kv_messages_total{kind=\"release\",outcome=\"sent\"}").await, 0.0);
        let prefill = world.prefill[0].counters();
        assert_eq!((prefill.releases, prefill.deaf), (0, 0), "{release}");
    }
}

/// Clients that hang up at every moment of an exchange; what is left behind is counted by the engines.
async fn leave_at_any_moment(mode: Mode) {
    let mut plan = plan(mode).engines(2, 2);
    plan.adjust = |settings| {
        settings.prefill_delay = Duration::from_millis(30);
        settings.token_delay = Duration::from_millis(5);
    };
    let world = plan.start().await;
    generate(&world.proxy, PROMPT, 4, true).await;
    let client = client();
    let leave = (0..120u64).map(|i| {
        let request = client.post(world.proxy.url("/v1/completions")).header("content-type", "application/json");
        let request = request.body(completion(&format!("{PROMPT} {i}"), 20, i % 2 == 0).to_string());
        tokio::spawn(async move {
            let all = async { request.send().await?.text().await };
            let _ = tokio::time::timeout(Duration::from_millis(i), all).await;
        })
    });
    for left in leave.collect::<Vec<_>>() {
        left.await.unwrap();
    }
    world.settle().await;
    assert_eq!(world.total(|c| c.reaped), 0);
    generate(&world.proxy, PROMPT, 4, true).await;
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_at_any_moment_leaves_nothing_behind_in_read() {
    leave_at_any_moment(Mode::Read).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_at_any_moment_leaves_nothing_behind_in_write() {
    leave_at_any_moment(Mode::Write).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_52_first_contact_goes_alone_before_0_31() {
    for mode in [Mode::Read, Mode::Write] {
        let mut plan = plan(mode).engines(2, 2);
        plan.release = "0.30.0";
        plan.adjust = |settings| settings.prefill_delay = Duration::from_millis(50);
        let world = plan.start().await;
        let clients = (0..24).map(|i| {
            let (url, prompt) = (world.proxy.url("/v1/completions"), format!("{PROMPT} {i}"));
            tokio::spawn(async move {
                let sent = client().post(url).body(completion(&prompt, 6, true).to_string()).send().await.unwrap();
                let answer = crate::support::Answer::of(sent).await;
                assert_eq!(answer.text(), moriio_proxy::sim::expected_text(&json!(prompt), 6), "{}", answer.body);
            })
        });
        for client in clients.collect::<Vec<_>>() {
            client.await.unwrap();
        }
        let overlaps: Vec<_> =
            world.engines().map(|e| (e.settings().role, e.counters().first_contact_overlaps)).collect();
        assert!(overlaps.iter().all(|(_, count)| *count == 0), "{mode:?} {overlaps:?}");
        world.settle().await;
    }
}

async fn stale_pairs(world: &World) -> usize {
    world.proxy.ready().await.1["stale_pairs"].as_array().unwrap().len()
}

/// Crashes an engine, waits until the proxy has noticed, and brings it back on the same ports.
async fn gone_and_back(world: &World, engine: &Engine) {
    let address = engine.http_address().to_string();
    engine.crash().await;
    let state = || async {
        let (_, body) = world.proxy.ready().await;
        let engines = body["engines"].as_array().unwrap();
        engines.iter().find(|e| e["address"] == address).map(|e| e["state"].as_str().unwrap().to_owned())
    };
    until("the engine to be missed", || async {
        let state = state().await;
        (state.as_deref() != Some("ready")).then_some(()).ok_or(format!("{state:?}"))
    })
    .await;
    engine.restart(true).await.unwrap();
    until("the engine to be back", || async {
        let state = state().await;
        (state.as_deref() == Some("ready")).then_some(()).ok_or(format!("{state:?}"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_pair_is_used_when_the_operator_says_so() {
    let world = plan(Mode::Write).with(Key::EngineTtl, "1s").with(Key::AllowStalePairs, "true");
    let world = world.with(Key::ConnectTimeout, "1s").with(Key::FirstByteTimeout, "2s").start().await;
    generate(&world.proxy, PROMPT, 4, true).await;
    // On real engines a restarted prefill is fine in WRITE; it is decode's restart that is not.
    gone_and_back(&world, &world.prefill[0]).await;
    assert_eq!(stale_pairs(&world).await, 0);
    generate(&world.proxy, PROMPT, 4, true).await;
    gone_and_back(&world, &world.decode[0]).await;
    assert_eq!(stale_pairs(&world).await, 1);
    assert_eq!(world.proxy.ready().await.0, 503, "ready speaks of pairs that work");
    let _ = ask(&world).await;
    until_true("the prefill engine's death", || world.prefill[0].counters().died == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_engine_is_left_alone_and_tried_again() {
    for role in [Role::Prefill, Role::Decode] {
        let plan = plan(Mode::Read).engines(2, 2).with(Key::BreakerOpen, "500ms").with(Key::BreakerOpenMax, "500ms");
        let world = plan.start().await;
        let engine = if role == Role::Prefill { &world.prefill[0] } else { &world.decode[0] };
        engine.set_fault(Fault::always(refuse(500)));
        let mut failed = 0;
        until("the circuit to open", || {
            let ask = ask(&world);
            let world = &world;
            async move {
                let _ = ask.await;
                let open =
                    world.proxy.ready().await.1["engines"].as_array().unwrap().iter().any(|e| e["circuit"] == "open");
                open.then_some(()).ok_or("closed".into())
            }
        })
        .await;
        // While it is open nothing fails; its trial may.
        for _ in 0..20 {
            failed += usize::from(ask(&world).await.status != 200);
        }
        assert!(failed <= 4, "{failed} of 20 failed");
        engine.clear_faults();
        world
            .until_ready_under(|| async {
                let _ = ask(&world).await;
            })
            .await;
        generate(&world.proxy, PROMPT, 4, true).await;
        world.settle().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_engine_took_is_tried_again_elsewhere() {
    for mode in [Mode::Read, Mode::Write] {
        let world = plan(mode).engines(3, 1).start().await;
        strike(&world.prefill[0], Fault::always(FaultKind::RefuseConnections)).await;
        world.prefill[1].set_fault(Fault::times(refuse(503), 2));
        for i in 0..6 {
            generate(&world.proxy, &format!("{PROMPT} {i}"), 4, i % 2 == 0).await;
        }
        assert!(world.proxy.metric(RETRIES).await >= 1.0);
        world.settle().await;
    }
}

/// Requests take turns from each other: where a retry lands must not be left to them.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_asks_none_that_has_just_refused() {
    for mode in [Mode::Read, Mode::Write] {
        // Turns may send nearly all to that one first, which is more than the budget allows otherwise.
        let plan = plan(mode).engines(2, 1).with(Key::BreakerFailures, "0").with(Key::RetryBudget, "100");
        let world = plan.start().await;
        world.prefill[0].set_fault(Fault::always(refuse(503)));
        join_all((0..20).map(async |i| {
            generate(&world.proxy, &format!("{PROMPT} {i}"), 4, i % 2 == 0).await;
        }))
        .await;
        let (refused, retries) = (world.prefill[0].counters().faulted, world.proxy.metric(RETRIES).await);
        assert!(refused >= 1 && retries == refused as f64, "{refused} refused, {retries} retries");
        world.settle().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn off_means_off_and_the_budget_holds() {
    let world = plan(Mode::Read).with(Key::Retries, "0").with(Key::BreakerFailures, "0").start().await;
    world.prefill[0].set_fault(Fault::always(refuse(503)));
    for _ in 0..8 {
        assert_eq!(ask(&world).await.status, 503);
    }
    assert_eq!(world.prefill[0].counters().faulted, 8, "one attempt each, and no circuit");

    // Ten retries are free, then one for every ten requests.
    let world = plan(Mode::Read).with(Key::BreakerFailures, "0").start().await;
    world.prefill[0].set_fault(Fault::always(refuse(503)));
    for _ in 0..40 {
        assert_eq!(ask(&world).await.status, 503);
    }
    let retries = world.proxy.metric(RETRIES).await;
    assert!((10.0..=15.0).contains(&retries), "{retries} retries for 40 requests");
}
