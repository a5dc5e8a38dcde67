//! No KV block stays pinned that a message could free, and no pair is used that cannot work.

use std::time::Duration;

use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Engine, Fault, FaultKind, Mode, Role};
use serde_json::json;

use crate::support::{Plan, World, client, completion, generate, post, strike, until, until_true};

const PROMPT: &str =
    "the quick brown fox jumps over the lazy dog again and again until there are several blocks of it all";

fn refuse(status: u16) -> FaultKind {
    FaultKind::Status { status, body: json!({"error": {"message": "scripted", "code": status}}).to_string() }
}

async fn ask(world: &World) -> crate::support::Answer {
    post(&world.proxy, "/v1/completions", &completion(PROMPT, 8, true)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn read_blocks_are_released_when_no_decode_engine_takes_them() {
    for (fault, status) in [(FaultKind::RefuseConnections, 503), (refuse(400), 400), (refuse(500), 500)] {
        let world = Plan::new(Mode::Read).with(Key::Retries, "0").start().await;
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
        let world = Plan::new(Mode::Write).with(Key::Retries, "0").start().await;
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
    for release in ["0.32.0", "0.33.0"] {
        let mut plan = Plan::new(Mode::Write).with(Key::PrefillTimeout, "6s").with(Key::Retries, "0");
        plan.release = release;
        let world = plan.start().await;
        generate(&world.proxy, PROMPT, 8, true).await;
        for (fault, status) in [
            (refuse(500), 500),
            (refuse(400), 400),
            (FaultKind::CutBeforeAnswer { reset: true }, 502),
            (FaultKind::Hang, 504),
        ] {
            // The failure comes late enough for decode to be parked by then.
            let slow = Fault::times(FaultKind::Delay { milliseconds: 1500 }, 1);
            if fault != FaultKind::Hang {
                world.prefill[0].set_fault(slow);
            }
            world.prefill[0].set_fault(Fault::times(fault.clone(), 1));
            let answer = ask(&world).await;
            assert_eq!((answer.status, answer.source()), (status, "prefill"), "{release} {fault:?} {}", answer.body);
            world.settle().await;
            world.prefill[0].clear_faults();
        }
        until("every parked leg to be counted", || async {
            let woken = world.proxy.metric("moriio_drained_legs_total{outcome=\"unparked\"}").await;
            let all = world.proxy.metrics().await;
            let lines: Vec<_> = all.lines().filter(|l| l.contains("drained") || l.contains("kv_mess")).collect();
            (woken == 4.0).then_some(()).ok_or(format!("{lines:#?}"))
        })
        .await;
        generate(&world.proxy, PROMPT, 8, true).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_503_of_decode_costs_one_prefill() {
    for mode in [Mode::Read, Mode::Write] {
        let world = Plan::new(mode).engines(2, 2).start().await;
        world.decode.iter().for_each(|decode| decode.set_fault(Fault::always(refuse(503))));
        let answer = ask(&world).await;
        assert_eq!((answer.status, answer.source()), (503, "decode"), "{mode:?} {}", answer.body);
        // In WRITE prefill's leg may be closed before its engine has counted it.
        let prefills: u64 = world.prefill.iter().map(|prefill| prefill.counters().legs).sum();
        assert!(prefills <= 1 && (mode == Mode::Write || prefills == 1), "{mode:?} {prefills}");
        assert_eq!(world.proxy.metric("moriio_attempts_total{cause=\"retry\"}").await, 0.0, "{mode:?}");
        world.decode.iter().for_each(Engine::clear_faults);
        world.settle().await;
    }
}

/// Decode's head came, its first byte did not: the legs are ended when the limit passes, not one limit later.
#[tokio::test(flavor = "multi_thread")]
async fn a_parked_leg_that_is_overdue_is_ended_at_once() {
    let limit = Duration::from_secs(10);
    let world = Plan::new(Mode::Write).with(Key::FirstByteTimeout, "10s").start().await;
    generate(&world.proxy, PROMPT, 8, true).await;
    let before = world.prefill[0].counters().releases;
    world.decode[0].set_fault(Fault::times(FaultKind::HangAfterTokens { tokens: 0 }, 1));
    let answer = ask(&world).await;
    assert_eq!(
        (answer.status, answer.events().last().unwrap()["error"]["code"].as_str()),
        (200, Some("engine_timeout"))
    );
    let told = std::time::Instant::now();
    until_true("a release", || world.prefill[0].counters().releases > before).await;
    assert!(told.elapsed() < limit - Duration::from_secs(2), "{:?} after the client was told", told.elapsed());
    world.decode[0].clear_faults();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_where_it_would_not_be_understood_or_is_switched_off() {
    // 0.22 goes deaf on a release that it does not know.
    for (release, option) in [("0.22.0", "auto"), ("0.32.0", "off")] {
        let mut plan = Plan::new(Mode::Read).with(Key::KvRelease, option).with(Key::Retries, "0");
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
    let mut plan = Plan::new(mode).engines(2, 2);
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
        let mut plan = Plan::new(mode).engines(2, 2);
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

/// The dialled side comes back on its old ports: real engines never get over that, until the dialling side restarts too.
#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_engine_is_not_paired_with_one_that_knew_it() {
    for mode in [Mode::Read, Mode::Write] {
        let world = Plan::new(mode).with(Key::EngineTtl, "1s").with(Key::BreakerOpen, "100ms").start().await;
        generate(&world.proxy, PROMPT, 4, true).await;
        world.settle().await;
        let (dialed, dialer): (&Engine, &Engine) = match mode {
            Mode::Read => (&world.prefill[0], &world.decode[0]),
            Mode::Write => (&world.decode[0], &world.prefill[0]),
        };
        gone_and_back(&world, dialed).await;
        until("the stale pair", || async {
            let stale = stale_pairs(&world).await;
            (stale == 1).then_some(()).ok_or(format!("{stale} stale pairs"))
        })
        .await;
        let (status, body) = world.proxy.ready().await;
        assert_eq!((status, &body["stale_pairs"][0]["restart"]), (503, &json!(dialer.http_address().to_string())));
        let answer = ask(&world).await;
        assert_eq!((answer.status, answer.code().as_str()), (503, "no_pair"), "{}", answer.body);

        gone_and_back(&world, dialer).await;
        until("the pair to be open again", || async {
            let answer = ask(&world).await;
            (answer.status == 200).then_some(()).ok_or(answer.body)
        })
        .await;
        world.settle().await;
    }
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
    let world = Plan::new(Mode::Write).with(Key::EngineTtl, "1s").with(Key::AllowStalePairs, "true");
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
        let plan =
            Plan::new(Mode::Read).engines(2, 2).with(Key::BreakerOpen, "500ms").with(Key::BreakerOpenMax, "500ms");
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
        let world = Plan::new(mode).engines(3, 1).start().await;
        strike(&world.prefill[0], Fault::always(FaultKind::RefuseConnections)).await;
        world.prefill[1].set_fault(Fault::times(refuse(503), 2));
        for i in 0..6 {
            generate(&world.proxy, &format!("{PROMPT} {i}"), 4, i % 2 == 0).await;
        }
        assert!(world.proxy.metric("moriio_attempts_total{cause=\"retry\"}").await >= 1.0);
        world.settle().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn off_means_off_and_the_budget_holds() {
    let world = Plan::new(Mode::Read).with(Key::Retries, "0").with(Key::BreakerFailures, "0").start().await;
    world.prefill[0].set_fault(Fault::always(refuse(503)));
    for _ in 0..8 {
        assert_eq!(ask(&world).await.status, 503);
    }
    assert_eq!(world.prefill[0].counters().faulted, 8, "one attempt each, and no circuit");

    // Ten retries are free, then one for every ten requests.
    let world = Plan::new(Mode::Read).with(Key::BreakerFailures, "0").start().await;
    world.prefill[0].set_fault(Fault::always(refuse(503)));
    for _ in 0..40 {
        assert_eq!(ask(&world).await.status, 503);
    }
    let retries = world.proxy.metric("moriio_attempts_total{cause=\"retry\"}").await;
    assert!((10.0..=15.0).contains(&retries), "{retries} retries for 40 requests");
}
