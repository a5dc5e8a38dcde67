//! What the proxy tells engines comes once, not too early, and never to an engine that would end of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use moriio_proxy::engine::versions::{self, EngineVersion};
use moriio_proxy::engine::{self, Dialect, HttpAddress, KvEndpoint, Registration};
use moriio_proxy::metrics::Metrics;
use moriio_proxy::notify::{Acknowledged, Notifier};
use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Engine, Fault, FaultKind, Mode};
use serde_json::json;

use crate::support::{Answer, Plan, World, client, completion, generate, post, strike, until, until_true};

const PROMPT: &str =
    "the quick brown fox jumps over the lazy dog again and again until there are several blocks of it all";

fn refuse(status: u16) -> FaultKind {
    FaultKind::Status { status, body: json!({"error": {"message": "scripted", "code": status}}).to_string() }
}

async fn ask(world: &World) -> Answer {
    post(&world.proxy, "/v1/completions", &completion(PROMPT, 8, true)).await
}

/// Decode ends when it is told twice that its KV is there. An answer in one piece takes longer than any repetition.
#[tokio::test(flavor = "multi_thread")]
async fn a_decode_that_was_woken_is_not_woken_again() {
    let mut plan = Plan::new(Mode::Write).with(Key::Retries, "0");
    plan.adjust = |settings| settings.token_delay = Duration::from_millis(300);
    let world = plan.start().await;
    for status in [400, 503, 500] {
        strike(&world.prefill[0], Fault::times(refuse(status), 1)).await;
        let answer = post(&world.proxy, "/v1/completions", &completion(PROMPT, 12, false)).await;
        assert_eq!((answer.status, answer.source()), (status, "prefill"), "{}", answer.body);
        world.settle().await;
        assert_eq!(world.decode[0].counters().died, 0, "{:?}", world.decode[0].counters().died_of);
    }
    // A refusal can come before decode was asked.
    assert!(world.decode[0].counters().woken_empty > 0);
}

/// An error of prefill after its work is no proof that nothing was written: decode may be at work, and is left alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_decode_that_is_at_work_is_not_woken() {
    join_all([(500, true), (500, false), (400, true), (400, false)].map(|(status, stream)| async move {
        let mut plan = Plan::new(Mode::Write).with(Key::Retries, "0");
        plan.adjust = |settings| settings.token_delay = Duration::from_millis(400);
        let world = plan.start().await;
        world.prefill[0].set_fault(Fault::times(FaultKind::StatusAfterWork { status }, 1));
        let answer = post(&world.proxy, "/v1/completions", &completion(PROMPT, 14, stream)).await;
        assert!(answer.status == status || stream, "{}", answer.body);
        world.settle().await;
        let decode = world.decode[0].counters();
        assert_eq!((decode.died, decode.woken_empty), (0, 0), "{:?}", decode.died_of);
        assert_eq!(world.proxy.metric("moriio_kv_messages_total{kind=\"unpark\"").await, 0.0);
    }))
    .await;
}

/// In READ the blocks of such a prefill are held for nobody.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_failing_prefill_may_hold_is_released() {
    let world = Plan::new(Mode::Read).with(Key::Retries, "0").start().await;
    world.prefill[0].set_fault(Fault::times(FaultKind::StatusAfterWork { status: 500 }, 1));
    assert_eq!(ask(&world).await.status, 500);
    until_true("freed", || world.prefill[0].counters().released == 1).await;
    world.settle().await;
}

/// Nobody hears decode's refusal, and prefill's blocks would wait for a timer.
#[tokio::test(flavor = "multi_thread")]
async fn what_decode_refuses_when_the_client_has_left_is_released() {
    let world = Plan::new(Mode::Read).start().await;
    assert_eq!(ask(&world).await.status, 200);
    let late = Fault::times(FaultKind::Delay { milliseconds: 500 }, 1);
    strike(&world.decode[0], late).await;
    strike(&world.decode[0], Fault::times(refuse(400), 1)).await;
    let _ = tokio::time::timeout(Duration::from_millis(250), ask(&world)).await;
    world.settle().await;
    let prefill = world.prefill[0].counters();
    assert_eq!((prefill.released, prefill.reaped, prefill.stray_releases), (2, 0, 0));
}

/// Engines before 0.28 end when they are told to release what they have not finished.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_prefill_finishes_before_it_is_told() {
    join_all([Mode::Read, Mode::Write].map(|mode| async move {
        let mut plan = Plan::new(mode);
        plan.release = "0.27.0";
        plan.adjust = |settings| settings.prefill_delay = Duration::from_millis(800);
        let world = plan.start().await;
        for number in 0..8 {
            let body = completion(&format!("{PROMPT} {number}"), 8, true);
            let request = client().post(world.proxy.url("/v1/completions")).body(body.to_string());
            let all = async { request.header("content-type", "application/json").send().await?.text().await };
            let _ = tokio::time::timeout(Duration::from_millis(5 + number * 40), all).await;
        }
        world.settle().await;
        let prefill = world.prefill[0].counters();
        assert_eq!((prefill.died, prefill.reaped, prefill.aborted), (0, 0, 0), "{mode:?} {:?}", prefill.died_of);
        assert!(prefill.legs > 0, "{mode:?}");
        generate(&world.proxy, PROMPT, 4, true).await;
    }))
    .await;
}

/// Which rank of decode holds a parked leg is its own secret: all are told.
#[tokio::test(flavor = "multi_thread")]
async fn a_leg_is_woken_on_whichever_rank_it_waits() {
    let mut plan = Plan::new(Mode::Write).with(Key::Retries, "0");
    plan.adjust = |settings| settings.dp = 4;
    let world = plan.start().await;
    for _ in 0..6 {
        // Late enough for decode to have been asked.
        world.prefill[0].set_fault(Fault::times(FaultKind::Delay { milliseconds: 200 }, 1));
        world.prefill[0].set_fault(Fault::times(refuse(400), 1));
        assert_eq!(ask(&world).await.status, 400);
    }
    world.settle().await;
    assert_eq!(world.decode[0].counters().woken_empty, 6);
}

/// Once nobody wants a long answer in one piece, its leg is closed as soon as decode says that nothing of it is parked.
#[tokio::test(flavor = "multi_thread")]
async fn a_text_that_nobody_wants_is_not_written_to_its_end() {
    let mut plan = Plan::new(Mode::Write);
    plan.adjust = |settings| settings.token_delay = Duration::from_millis(10);
    let world = plan.start().await;
    let body = completion(PROMPT, 100_000, false).to_string();
    let request = client().post(world.proxy.url("/v1/completions")).header("content-type", "application/json");
    let asked = tokio::spawn(request.body(body).send());
    until_true("decode at work", || world.decode[0].counters().running == 1).await;
    asked.abort();
    world.settle().await;
    assert_eq!((world.decode[0].counters().aborted, world.decode[0].counters().completed), (1, 0));
    assert_eq!(world.proxy.metric("moriio_drained_legs_total{outcome=\"closed\"}").await, 1.0);
}

/// The same for one that was woken, however many others are parked.
#[tokio::test(flavor = "multi_thread")]
async fn a_woken_text_that_nobody_wants_is_not_written_to_its_end() {
    let mut plan = Plan::new(Mode::Write).with(Key::Retries, "0").with(Key::PrefillTimeout, "9");
    plan.adjust = |settings| settings.token_delay = Duration::from_millis(10);
    let world = plan.start().await;
    let decode = &world.decode[0];
    generate(&world.proxy, PROMPT, 4, true).await;
    strike(&world.prefill[0], Fault::times(FaultKind::Hang, 1)).await;
    let ends = std::cell::Cell::new(false);
    let body = completion(PROMPT, 8, false);
    let parked = async {
        assert_eq!(post(&world.proxy, "/v1/completions", &body).await.status, 504);
        ends.set(true);
    };
    let woken = async {
        // Decode may have its leg before prefill has taken the fault that is meant for it.
        until_true("parked", || decode.counters().parked == 1 && world.prefill[0].counters().faulted == 1).await;
        world.prefill[0].set_fault(Fault::times(FaultKind::Delay { milliseconds: 200 }, 1));
        world.prefill[0].set_fault(Fault::times(FaultKind::CutBeforeAnswer { reset: true }, 1));
        let cut = post(&world.proxy, "/v1/completions", &completion(PROMPT, 100_000, false)).await;
        assert_eq!((cut.status, cut.source()), (502, "prefill"), "{}", cut.body);
        until_true("closed", || decode.counters().aborted == 1).await;
        assert!(!ends.get(), "the other one is parked all the time");
    };
    tokio::join!(parked, woken);
    assert_eq!(decode.counters().died, 0, "{:?}", decode.counters().died_of);
    world.settle().await;
}

/// A leg is closed because the engine took a step after its waking only if the engine was told.
#[tokio::test(flavor = "multi_thread")]
async fn a_leg_whose_waking_was_not_heard_is_not_closed() {
    let mut plan = Plan::new(Mode::Write).with(Key::Retries, "0").with(Key::UnparkTimeout, "4s");
    plan.adjust = |settings| settings.token_delay = Duration::from_millis(50);
    let world = plan.start().await;
    let decode = &world.decode[0];
    let (others, whole) = (completion(PROMPT, 240, true), completion(PROMPT, 100_000, false));
    let others = post(&world.proxy, "/v1/completions", &others);
    let unheard = async {
        until_true("decode at work", || decode.counters().running == 1).await;
        world.prefill[0].set_fault(Fault::times(FaultKind::Delay { milliseconds: 1000 }, 1));
        world.prefill[0].set_fault(Fault::times(refuse(503), 1));
        let refused = async { post(&world.proxy, "/v1/completions", &whole).await.status };
        let deaf = async {
            until_true("parked", || decode.counters().parked == 1).await;
            decode.set_fault(Fault::always(FaultKind::CloseNotifyPort));
        };
        assert_eq!(tokio::join!(refused, deaf).0, 503);
        // Closed early it would be counted as "ended".
        until("given up", || async {
            let given_up = world.proxy.metric("moriio_drained_legs_total{outcome=\"expired\"}").await;
            (given_up == 1.0).then_some(()).ok_or(given_up.to_string())
        })
        .await;
    };
    assert_eq!(tokio::join!(others, unheard).0.status, 200);
}

/// Tells an engine what is meant for a prefill engine with these ports.
fn prefill_at(host: &str, handshake: u16, notify: u16) -> Registration {
    Registration {
        role: engine::Role::Prefill,
        http: HttpAddress { host: host.into(), port: 8000 },
        kv: KvEndpoint { host: host.into(), handshake, notify, text: String::new() },
        dp_size: 1,
        tp_size: 1,
        mode: engine::Mode::Read,
        dialect: Dialect::B,
        index: None,
        hosts: None,
    }
}

/// A host that answers nothing holds each message to it for seconds; those to others are not held up by any number of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_host_holds_no_others_messages_up() {
    let world = Plan::new(Mode::Read).start().await;
    let engine = &world.prefill[0];
    // Its queue of connections is full, so that it answers as little as a machine that is off.
    let dead = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    dead.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    dead.listen(1).unwrap();
    let port = dead.local_addr().unwrap().as_socket().unwrap().port();
    // Filled by another of its addresses.
    let filled: Vec<_> = (0..8).map(|_| tokio::spawn(tokio::net::TcpStream::connect(("127.0.0.1", port)))).collect();
    let notifier = Notifier::start(true, Arc::new(Metrics::new())).unwrap();
    let traits = versions::traits(Some(EngineVersion::new(0, 32, 0)), Dialect::B);
    let lost = prefill_at("127.0.0.1", port, port);
    let to_dead: Vec<_> = (0..600).map(|number| notifier.release(&lost, traits, 0, &format!("tx-{number}"))).collect();
    let mut to_dead: futures::stream::FuturesUnordered<_> = to_dead.into_iter().map(Box::pin).collect();
    let alive = prefill_at("localhost", engine.handshake_port(), engine.notify_port());
    tokio::select! {
        biased;
        told = notifier.release(&alive, traits, 0, "tx-alive") => assert_eq!(told, Acknowledged::Yes),
        // The first of them gives up after two seconds, of which a message needs none.
        told = futures::StreamExt::next(&mut to_dead) => panic!("a dead host's message came first: {told:?}"),
    }
    until_true("the release", || engine.counters().releases == 1).await;
    drop(filled);
}

/// A port at which nobody listens is seen at once: an engine that is back a moment later was gone, and gets nothing of before.
#[tokio::test(flavor = "multi_thread")]
async fn a_closed_notify_port_is_seen_at_once() {
    let world = Plan::new(Mode::Read).start().await;
    let engine = &world.prefill[0];
    let metrics = Arc::new(Metrics::new());
    let notifier = Notifier::start(true, metrics.clone()).unwrap();
    let registration = |engine: &Engine| prefill_at("127.0.0.1", engine.handshake_port(), engine.notify_port());
    let traits = versions::traits(Some(EngineVersion::new(0, 32, 0)), Dialect::B);
    let release = async |id: &str| notifier.release(&registration(engine), traits, 0, id).await;
    assert_eq!(release("tx-first").await, Acknowledged::Yes);
    until_true("the release", || engine.counters().releases == 1).await;

    engine.crash().await;
    let began = Instant::now();
    assert_eq!(release("tx-second").await, Acknowledged::Closed);
    // Well below the two seconds that a port gets to take a message.
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    engine.restart(true).await.unwrap();
    assert_eq!(release("tx-third").await, Acknowledged::Yes);
    until_true("the release", || engine.counters().releases >= 2).await;
    assert_eq!((engine.counters().releases, engine.counters().deaf), (2, 0), "each was sent once, or never");
    let sent = |outcome: &str| {
        let line = format!("moriio_kv_messages_total{{kind=\"release\",outcome=\"{outcome}\"}} ");
        metrics.render().lines().find_map(|l| l.strip_prefix(&line)?.parse::<u64>().ok()).unwrap_or(0)
    };
    assert_eq!((sent("sent"), sent("failed"), sent("timeout")), (2, 1, 0));
}
