//! What proves that decode computes: not its status line, not a comment, not a preamble. Errors after a 200, streams that never
//! begin or never end, in each API's form.

use std::time::Duration;

use futures::StreamExt as _;
use futures::future::join_all;
use moriio_proxy::api::Api;
use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Fault, FaultKind, Mode, Settings};
use serde_json::json;

use crate::support::client::Ask;
use crate::support::fake::{Fake, answer_as};
use crate::support::{Answer, Plan, Stream, World, client, completion, post, strike, until, until_true};

const KEEP_ALIVE: Duration = Duration::from_millis(50);

fn quick(settings: &mut Settings) {
    settings.keep_alive = KEEP_ALIVE;
    settings.defer_timeout = Duration::from_secs(2);
}

async fn world(mode: Mode, release: &'static str, options: &[(Key, &'static str)]) -> World {
    let mut plan = Plan::new(mode).with(Key::Retries, "0");
    plan.options.extend(options);
    plan.adjust = quick;
    Plan { release, ..plan }.start().await
}

/// Engines that send no comments: one of those would be the first thing that READ's client gets.
async fn quiet_world(mode: Mode, release: &'static str, options: &[(Key, &'static str)]) -> World {
    let mut plan = Plan::new(mode).with(Key::Retries, "0");
    plan.options.extend(options);
    plan.adjust = |settings| settings.defer_timeout = Duration::from_secs(2);
    Plan { release, ..plan }.start().await
}

async fn ask(world: &World, api: Api, tokens: usize) -> Answer {
    let ask = Ask::new(api, 1, tokens, true);
    post(&world.proxy, api.path(), &ask.body).await
}

fn circuits_are_closed(ready: &serde_json::Value) {
    let engines = ready["engines"].as_array().unwrap();
    assert!(engines.iter().all(|engine| engine["circuit"] == "closed"), "{ready}");
}

/// The APIs whose engines tell errors in a stream; Responses' close the connection instead.
const TELLING: [Api; 4] = [Api::Completions, Api::Chat, Api::Messages, Api::Generate];

#[tokio::test(flavor = "multi_thread")]
async fn an_error_event_in_place_of_output_is_a_proper_status() {
    for mode in [Mode::Read, Mode::Write] {
        let world = quiet_world(mode, "0.33.0", &[(Key::BreakerFailures, "2")]).await;
        // In WRITE prefill's success would commit first. Nobody waits for the rest of the delay.
        if mode == Mode::Write {
            world.prefill[0].set_fault(Fault::always(FaultKind::Delay { milliseconds: 5000 }));
        }
        for status in [503, 400, 503, 404, 503, 429, 503] {
            for api in TELLING {
                strike(&world.decode[0], Fault::times(FaultKind::ErrorEvent { status, tokens: 0 }, 1)).await;
                let answer = ask(&world, api, 5).await;
                assert_eq!((answer.status, answer.source()), (status, "decode"), "{api:?} {}", answer.body);
                assert_eq!(answer.header("content-type"), "application/json");
                let error = answer.json();
                assert_eq!(error["error"]["message"], "scripted", "{error}");
                assert_eq!(error["type"], if api == Api::Messages { json!("error") } else { json!(null) });
                let leg = if status < 500 { "4xx" } else { "5xx" };
                assert_eq!(answer.record["decode_leg"], leg, "{:?}", answer.record);
            }
        }
        world.settle().await;
        // Back-pressure and refusals feed no circuit; nobody but us tells prefill after a 200.
        circuits_are_closed(&world.proxy.ready().await.1);
        assert_eq!(world.prefill[0].counters().reaped, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_that_fails_after_the_first_report_is_no_output() {
    for api in TELLING {
        let world = quiet_world(Mode::Read, "0.33.0", &[]).await;
        strike(&world.decode[0], Fault::times(FaultKind::LoadFails, 1)).await;
        let answer = ask(&world, api, 5).await;
        // The role, or the start of a message, came before the error and proved nothing.
        assert_eq!((answer.status, answer.source()), (500, "decode"), "{api:?} {}", answer.body);
        assert_eq!(answer.record["decode_leg"], "5xx");
        Ask::new(api, 2, 5, true).check(&world.proxy).await;
        world.settle().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_event_after_the_commit_is_passed_and_recorded() {
    for (mode, tokens) in [(Mode::Read, 3), (Mode::Write, 3), (Mode::Write, 0)] {
        join_all(TELLING.map(|api| async move {
            let world = world(mode, "0.33.0", &[]).await;
            // Late enough for prefill's success to have committed; the other order is the first test of this file.
            world.decode[0].set_fault(Fault::times(FaultKind::Delay { milliseconds: 1000 }, 1));
            strike(&world.decode[0], Fault::times(FaultKind::ErrorEvent { status: 503, tokens }, 1)).await;
            let answer = ask(&world, api, 9).await;
            let record = &answer.record;
            assert_eq!((answer.status, record["ended"].as_str()), (200, Some("cut")), "{api:?} {}", answer.body);
            assert_eq!((record["error"].as_str(), record["source"].as_str()), (Some("engine_answer"), Some("decode")));
            assert_eq!(record["decode_leg"], "5xx");
            assert!(answer.body.contains("scripted"));
            world.settle().await;
            assert_eq!(world.prefill[0].counters().reaped, 0, "{mode:?} {api:?}");
        }))
        .await;
    }
}

/// WRITE: prefill fails while decode has said nothing but what servers say by themselves.
#[tokio::test(flavor = "multi_thread")]
async fn prefills_failure_is_told_after_a_preamble_or_comments() {
    join_all([Api::Responses, Api::Completions, Api::Chat].map(|api| async move {
        let world = world(Mode::Write, "0.32.0", &[]).await;
        for status in [400, 500, 503] {
            let body = json!({"error": {"message": "no", "code": status}}).to_string();
            world.prefill[0].set_fault(Fault::times(FaultKind::Delay { milliseconds: 600 }, 1));
            world.prefill[0].set_fault(Fault::times(FaultKind::Status { status, body }, 1));
            let answer = ask(&world, api, 5).await;
            assert_eq!((answer.status, answer.source()), (status, "prefill"), "{api:?} {}", answer.body);
            world.settle().await;
        }
        assert_eq!(world.decode[0].counters().woken_empty, 3, "each was woken");
        Ask::new(api, 2, 5, true).check(&world.proxy).await;
    }))
    .await;
}

/// The client leaves after the preamble: the leg still waits for its KV, and closing it would lose its blocks.
#[tokio::test(flavor = "multi_thread")]
async fn a_leg_that_has_only_a_preamble_outlives_its_client() {
    join_all([Api::Responses, Api::Completions].map(|api| async move {
        let mut world = world(Mode::Write, "0.32.0", &[]).await;
        // Prefill answers while decode's blocks are still awaited: the commit comes with a preamble or a comment.
        world.prefill[0].set_fault(Fault::times(FaultKind::Delay { milliseconds: 1200 }, 1));
        let body = Ask::new(api, 1, 9, true).body.to_string();
        let request = client().post(world.proxy.url(api.path())).body(body);
        let leaving = tokio::spawn(async move { request.send().await });
        until_true("a parked leg", || world.decode[0].counters().parked == 1).await;
        tokio::time::sleep(4 * KEEP_ALIVE).await;
        leaving.abort();
        world.settle().await;
        assert_eq!(world.proxy.metric("moriio_drained_legs_total{outcome=\"written\"}").await, 1.0);
        assert_eq!(world.proxy.metric("moriio_exchanges_total{ended=\"client_gone\"}").await, 1.0);
        world.prefill.clear();
    }))
    .await;
}

/// Comments are no bytes for the clocks, neither before the first output nor between two, and a preamble is none.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_stalls_behind_comments() {
    let options =
        [(Key::FirstByteTimeout, "1500ms"), (Key::StreamIdleTimeout, "700ms"), (Key::ConnectTimeout, "500ms")];
    let stalls = [
        (Api::Completions, 0, "--first-byte-timeout"),
        (Api::Responses, 0, "--first-byte-timeout"),
        (Api::Completions, 3, "--stream-idle-timeout"),
    ];
    let stories = [Mode::Read, Mode::Write].into_iter().flat_map(|mode| stalls.map(|stall| (mode, stall)));
    join_all(stories.map(|(mode, (api, tokens, option))| async move {
        let world = world(mode, "0.32.0", &options).await;
        strike(&world.decode[0], Fault::times(FaultKind::HangAfterTokens { tokens }, 1)).await;
        let answer = ask(&world, api, 9).await;
        assert!(answer.body.contains(option), "{mode:?} {}", answer.body);
        assert_eq!(answer.record["error"], "engine_timeout");
        assert_eq!(answer.record["decode_leg"], "timeout");
        if tokens > 0 {
            assert!(answer.body.contains(": keep-alive"), "later comments pass: {}", answer.body);
        }
        world.settle().await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_without_its_end_is_told_as_broken() {
    for api in [Api::Responses, Api::Messages, Api::Completions] {
        join_all([Mode::Read, Mode::Write].map(|mode| async move {
            let world = world(mode, "0.33.0", &[]).await;
            strike(&world.decode[0], Fault::times(FaultKind::CutAfterTokens { tokens: 3, reset: false }, 1)).await;
            let answer = ask(&world, api, 9).await;
            assert!(answer.body.contains("engine_connection_broken"), "{api:?} {}", answer.body);
            assert_eq!((&answer.record["ended"], &answer.record["decode_leg"]), (&json!("cut"), &json!("broken")));
            if api != Api::Completions {
                assert!(answer.body.contains("event: error\n"), "{}", answer.body);
            }
            world.settle().await;
        }))
        .await;
    }
    // The same where the connection ends as it should.
    let world = Plan::new(Mode::Read).engines(1, 0).start().await;
    let about = (moriio_proxy::sim::Role::Decode, Mode::Read, "0.32.0");
    let fake = Fake::start(about, world.proxy.registration, |_| {
        answer_as("text/event-stream", axum::body::Body::from("data: {\"choices\":[]}\n\n"))
    });
    let _fake = fake.await;
    world.until_ready(2).await;
    let answer = post(&world.proxy, "/v1/completions", &completion("words", 3, true)).await;
    assert_eq!(answer.record["ended"], "cut", "{}", answer.body);
    assert!(answer.body.contains("engine_connection_broken"), "{}", answer.body);
}

/// Where a limit cuts an answer, Responses end with another event since 0.33.0.
#[tokio::test(flavor = "multi_thread")]
async fn an_incomplete_response_is_complete() {
    for mode in [Mode::Read, Mode::Write] {
        let world = world(mode, "0.33.0", &[]).await;
        let answer = ask(&world, Api::Responses, 4).await;
        assert!(answer.body.contains("event: response.incomplete\n"), "{}", answer.body);
        answer.is_complete();
        world.settle().await;
    }
}

/// READ: whoever turned comments on wants signs of life.
#[tokio::test(flavor = "multi_thread")]
async fn a_comment_commits_in_read() {
    let mut plan = Plan::new(Mode::Read);
    plan.adjust = |settings| {
        quick(settings);
        settings.token_delay = Duration::from_millis(900);
    };
    let world = plan.start().await;
    let began = std::time::Instant::now();
    let mut stream = Stream::open(&world.proxy, "/v1/completions", &completion("words", 2, true)).await;
    let head = began.elapsed();
    stream.read_until("a comment", |seen| seen.contains(": keep-alive\n\n")).await;
    assert!(!stream.seen.contains("data:"), "the head came {head:?} after the request: {}", stream.seen);
    let answer = stream.finish().await;
    assert!(answer.body.ends_with("data: [DONE]\n\n"));
    world.settle().await;
}

/// An answer of prefill that is larger than the proxy reads is the proxy's limit, not the engine's fault.
#[tokio::test(flavor = "multi_thread")]
async fn answers_beyond_our_own_limit_are_no_verdict() {
    let world = Plan::new(Mode::Read).engines(0, 1).with(Key::BreakerFailures, "1").start().await;
    let about = (moriio_proxy::sim::Role::Prefill, Mode::Read, "0.32.0");
    let large = |_: &_| {
        let part = bytes::Bytes::from(vec![b' '; 1 << 20]);
        let parts = (0..80).map(move |_| Ok::<_, std::io::Error>(part.clone()));
        answer_as("application/json", axum::body::Body::from_stream(futures::stream::iter(parts)))
    };
    let _prefill = Fake::start(about, world.proxy.registration, large).await;
    world.until_ready(2).await;
    for _ in 0..2 {
        let answer = post(&world.proxy, "/v1/completions", &completion("words", 3, true)).await;
        assert_eq!((answer.status, answer.code().as_str(), answer.source()), (502, "answer_too_large", "proxy"));
    }
    until("closed circuits", || async {
        let (_, ready) = world.proxy.ready().await;
        let closed = ready["engines"].as_array().unwrap().iter().all(|engine| engine["circuit"] == "closed");
        closed.then_some(()).ok_or(ready.to_string())
    })
    .await;
}

/// Says that it lives, then that it took nothing, and ends the stream after another while.
fn took_nothing() -> axum::response::Response {
    let parts =
        [": keep-alive\n\n", "data: {\"error\": {\"message\": \"full\", \"code\": 503}}\n\n", "data: [DONE]\n\n"];
    let late = futures::stream::iter(parts).then(|part| async move {
        tokio::time::sleep(Duration::from_millis(200)).await;
        Ok::<_, std::io::Error>(part)
    });
    answer_as("text/event-stream", axum::body::Body::from_stream(late))
}

/// READ: a comment has committed when decode tells that it took nothing. Nobody but us tells prefill.
#[tokio::test(flavor = "multi_thread")]
async fn an_error_event_behind_a_comment_releases_prefills_blocks() {
    let world = Plan::new(Mode::Read).engines(1, 0).start().await;
    let about = (moriio_proxy::sim::Role::Decode, Mode::Read, "0.32.0");
    let _decode = Fake::start(about, world.proxy.registration, |_: &_| took_nothing()).await;
    world.until_ready(2).await;
    let answer = post(&world.proxy, "/v1/completions", &completion("words", 3, true)).await;
    assert!(answer.status == 200 && answer.body.contains("full"), "{answer:?}");
    assert!(answer.body.ends_with("data: [DONE]\n\n"), "{answer:?}");
    assert_eq!((&answer.record["ended"], &answer.record["decode_leg"]), (&json!("cut"), &json!("5xx")));
    world.settle().await;
    let prefill = world.prefill[0].counters();
    assert_eq!((prefill.released, prefill.reaped), (1, 0));
    circuits_are_closed(&world.proxy.ready().await.1);
}

/// The same of a prefill that serves alone: what follows its error event passes, too.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_follows_an_error_event_of_prefill_alone() {
    let world = Plan::new(Mode::Read).engines(0, 1).start().await;
    let about = (moriio_proxy::sim::Role::Prefill, Mode::Read, "0.32.0");
    let _prefill = Fake::start(about, world.proxy.registration, |_: &_| took_nothing()).await;
    world.until_ready(2).await;
    let mut body = completion("words", 1, true);
    body["prompt_logprobs"] = json!(0);
    let answer = post(&world.proxy, "/v1/completions", &body).await;
    assert!(answer.status == 200 && answer.body.contains("full"), "{answer:?}");
    assert!(answer.body.ends_with("data: [DONE]\n\n"), "{answer:?}");
    assert_eq!((&answer.record["ended"], &answer.record["prefill_leg"]), (&json!("cut"), &json!("5xx")));
    world.settle().await;
    circuits_are_closed(&world.proxy.ready().await.1);
}
