//! What decode serves alone (`--decode-alone-below`, `--decode-alone-missing`): the same answers, without prefill, counted and never unsaid.

use moriio_proxy::api::Api;
use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Engine, Fault, FaultKind, Mode, Role, Settings, expected_text};
use serde_json::json;

use crate::support::client::Ask;
use crate::support::{Plan, Stream, World, completion, post, strike, until};

const COMPLETIONS: &str = "/v1/completions";

/// Engines that serve requests without a transfer.
fn newest(mode: Mode) -> Plan {
    let mut plan = Plan { release: "0.33.0", ..Plan::new(mode) };
    plan.adjust = |settings| settings.serves_alone = true;
    plan
}

/// Requests that decode has answered alone, for being short and for what it had, and those that pairs have.
async fn counts(world: &World) -> [f64; 3] {
    let alone = |reason| format!("moriio_decode_alone_total{{reason=\"{reason}\"}}");
    let of = async |name: &str| world.proxy.metric(name).await;
    [of(&alone("short")).await, of(&alone("warm")).await, of("moriio_disaggregated_total").await]
}

fn plain(engines: &[Engine]) -> u64 {
    engines.iter().map(|engine| engine.counters().plain).sum()
}

/// A prompt of so many bytes at least.
fn words(bytes: usize) -> String {
    "one word after another of a long text, and so on. ".repeat(bytes / 50 + 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn short_requests_go_to_decode_alone_and_long_ones_to_a_pair() {
    for mode in [Mode::Write, Mode::Read] {
        let world = newest(mode).engines(2, 2).with(Key::DecodeAloneBelow, "1000").start().await;
        let (mut alone, mut pairs) = (0, 0);
        for stream in [false, true] {
            for api in Api::ALL {
                let answer = Ask::new(api, 1, 7, stream).check(&world.proxy).await;
                assert_eq!(answer.record["mode"], "decode alone", "{:?}", answer.record);
                let absent = ["prefill", "prefill_leg", "prefill_ms", "transfer_id", "rank"];
                assert!(absent.iter().all(|key| !answer.record.contains_key(*key)), "{:?}", answer.record);
                alone += 1;
            }
            let answer = post(&world.proxy, COMPLETIONS, &completion(&words(1000), 7, stream)).await;
            answer.is_complete();
            assert_eq!(answer.text(), expected_text(&json!(words(1000)), 7));
            assert_eq!(answer.record["mode"], if mode == Mode::Write { "WRITE" } else { "READ" });
            pairs += 1;
        }
        assert_eq!(counts(&world).await, [alone as f64, 0.0, pairs as f64]);
        assert_eq!(world.total(|counters| counters.prefill_legs), pairs);
        assert_eq!((plain(&world.prefill), plain(&world.decode)), (0, alone));
        assert!(world.decode.iter().all(|engine| engine.counters().plain >= 4), "they have their turns");
        for leg in
            world.decode.iter().flat_map(Engine::legs).filter(|leg| leg.json().get("kv_transfer_params").is_none())
        {
            // Its id is fresh, and says no address.
            let id = leg.header("x-request-id").unwrap().to_owned();
            assert_eq!((id.len(), leg.header("x-data-parallel-rank")), (32, None));
        }
        // What is prefill's to say it says alone, however short.
        let mut body = completion("words whose likelihood is asked for", 1, false);
        (body["echo"], body["logprobs"]) = (json!(true), json!(1));
        assert_eq!(post(&world.proxy, COMPLETIONS, &body).await.record["mode"], "prefill alone");
        let (_, ready) = world.proxy.ready().await;
        assert_eq!(ready["decode_alone"], json!({"below": 1000, "missing": 0}));
        world.settle().await;
    }
}

/// The client's limit becomes the same number on either way.
#[tokio::test(flavor = "multi_thread")]
async fn the_token_budget_is_the_same_as_a_pairs() {
    let plan = newest(Mode::Write).with(Key::DecodeTokenBudget, "minus-one");
    let world = plan.with(Key::DecodeAloneBelow, "1000").start().await;
    for prompt in ["short".to_owned(), words(1000)] {
        let answer = post(&world.proxy, COMPLETIONS, &completion(&prompt, 7, true)).await;
        assert_eq!(answer.text(), expected_text(&json!(prompt), 6));
    }
    assert_eq!(counts(&world).await, [1.0, 0.0, 1.0]);
    world.settle().await;
}

/// Unless it is asked for, and on engines that cannot, all goes to pairs. Those that cannot are named.
#[tokio::test(flavor = "multi_thread")]
async fn never_unasked_and_never_where_it_would_harm() {
    let world = newest(Mode::Write).start().await;
    Ask::new(Api::Chat, 1, 5, false).check(&world.proxy).await;
    assert_eq!((counts(&world).await, plain(&world.decode)), ([0.0, 0.0, 1.0], 0));
    world.settle().await;
    let plan = newest(Mode::Write).engines(1, 1).with(Key::DecodeAloneBelow, "1000");
    let mut old: Settings = plan.settings(Role::Decode, "127.0.0.1:1".parse().unwrap());
    let mut world = Plan { apart: true, ..plan }.start().await;
    old.release = "0.32.0".into();
    old.registration = world.proxy.registration.to_string();
    world.join(old).await;
    world.until_ready(3).await;
    for seed in 0..6 {
        Ask::new(Api::Completions, seed, 5, seed % 2 == 0).check(&world.proxy).await;
    }
    assert_eq!(counts(&world).await, [6.0, 0.0, 0.0]);
    assert_eq!((plain(&world.decode[..1]), plain(&world.decode[1..])), (6, 0));
    let old = world.decode[1].http_address().to_string();
    let log = world.proxy.log().expect("of a process");
    assert_eq!(log.matches("serves no request alone").count(), 1, "{log}");
    assert!(log.lines().any(|line| line.contains("serves no request alone") && line.contains(&old)), "{log}");
    // The one that can leaves: the rest goes to pairs.
    world.decode[0].crash().await;
    until("a pair's answer", || async {
        let answer = Ask::new(Api::Completions, 9, 5, false).check(&world.proxy).await;
        (answer.record["mode"] == "WRITE").then_some(()).ok_or_else(|| format!("{:?}", answer.record))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_is_told_and_tried_elsewhere_as_ever() {
    let world = newest(Mode::Write).engines(1, 2).with(Key::DecodeAloneBelow, "1000").start().await;
    // Nobody took it: another decode engine does.
    strike(&world.decode[0], Fault::times(FaultKind::RefuseConnections, 1)).await;
    for seed in 0..2 {
        let answer = Ask::new(Api::Chat, seed, 5, true).check(&world.proxy).await;
        assert_eq!(answer.record["mode"], "decode alone");
    }
    world.decode[0].clear_faults();
    world.until_ready_under(|| async { drop(Ask::new(Api::Chat, 3, 5, false).check(&world.proxy).await) }).await;
    // Its word is the client's.
    for engine in &world.decode {
        strike(engine, Fault::times(FaultKind::Status { status: 400, body: "{\"error\":{}}".into() }, 1)).await;
    }
    let answer = post(&world.proxy, COMPLETIONS, &completion("short", 5, false)).await;
    assert_eq!((answer.status, answer.source()), (400, "decode"), "{}", answer.body);
    assert_eq!(
        (answer.record["decode_leg"].as_str(), answer.record["mode"].as_str()),
        (Some("4xx"), Some("decode alone"))
    );
    for engine in &world.decode {
        engine.clear_faults();
    }
    // Without prefill there is no service, for short ones either.
    world.prefill[0].crash().await;
    until("no service", || async {
        let answer = post(&world.proxy, COMPLETIONS, &completion("short", 5, false)).await;
        (answer.status == 503).then_some(()).ok_or(answer.body)
    })
    .await;
    assert_eq!(world.total(|counters| counters.prefill_legs), 0);
}

/// A client that leaves ends its leg at once: nobody waits for KV.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_is_no_orphan() {
    let mut plan = newest(Mode::Write).with(Key::DecodeAloneBelow, "1000");
    plan.adjust = |settings| {
        settings.serves_alone = true;
        settings.token_delay = std::time::Duration::from_millis(20);
    };
    let world = plan.start().await;
    let mut stream = Stream::open(&world.proxy, COMPLETIONS, &completion("short", 10_000, true)).await;
    stream.read_until("tokens", |seen| seen.matches("data:").count() > 3).await;
    drop(stream);
    world.settle().await;
    let metrics = world.proxy.metrics().await;
    assert!(metrics.contains("moriio_exchanges_total{ended=\"client_gone\"} 1"), "{metrics}");
    assert!(!metrics.contains("moriio_drained_legs_total{"), "{metrics}");
    assert!(world.total(|counters| counters.tokens) < 2000);
}

/// A cap on prefill holds nobody who needs none, as long as nobody is in line.
#[tokio::test(flavor = "multi_thread")]
async fn short_requests_do_not_wait_for_prefill() {
    let plan = newest(Mode::Write).with(Key::DecodeAloneBelow, "1000").with(Key::PrefillInFlight, "1");
    let world = plan.start().await;
    strike(&world.prefill[0], Fault::times(FaultKind::Hang, 1)).await;
    let long = tokio::spawn({
        let (url, body) = (world.proxy.url(COMPLETIONS), completion(&words(2000), 5, false).to_string());
        async move { crate::support::client().post(url).body(body).send().await }
    });
    until("prefill at work", || async {
        let busy = world.proxy.metric("moriio_legs_in_flight{role=\"prefill\"").await;
        (busy == 1.0).then_some(()).ok_or_else(|| busy.to_string())
    })
    .await;
    let answer = Ask::new(Api::Completions, 1, 5, false).check(&world.proxy).await;
    assert_eq!(answer.record["mode"], "decode alone");
    long.abort();
}

/// Of a long prompt that decode has seen, it computes what is new; when it turns out to have lost it, prefill is asked again.
#[tokio::test(flavor = "multi_thread")]
async fn what_decode_has_needs_no_prefill() {
    for mode in [Mode::Write, Mode::Read] {
        for keeps in [true, false] {
            let mut plan = newest(mode).engines(2, 2).with(Key::DecodeAloneMissing, "8KiB");
            plan.adjust = match keeps {
                true => |settings| {
                    (settings.serves_alone, settings.prompt_tokens_details, settings.cache_tokens) =
                        (true, true, 100_000);
                },
                // Its cache is far too small.
                false => |settings| {
                    (settings.serves_alone, settings.prompt_tokens_details, settings.cache_tokens) = (true, true, 160);
                },
            };
            let world = plan.start().await;
            let mut prompt = words(40_000);
            let ask = async |prompt: &str| {
                let answer = post(&world.proxy, COMPLETIONS, &completion(prompt, 5, false)).await;
                answer.is_complete();
                assert_eq!(answer.text(), expected_text(&json!(prompt), 5));
                let text = |key: &str| answer.record[key].as_str().unwrap().to_owned();
                (text("mode") == "decode alone", text("decode"))
            };
            let (alone, home) = ask(&prompt).await;
            assert!(!alone);
            let again = ask(&prompt).await;
            assert_eq!(again, (true, home.clone()), "{mode:?}");
            prompt += &words(4000);
            let next = ask(&prompt).await;
            // What it said at the answer before.
            assert_eq!(next.0, keeps, "{mode:?}");
            let tokens: u64 = world.decode.iter().map(|engine| engine.counters().cached_tokens).sum();
            if keeps {
                assert_eq!(next.1, home);
                assert!(tokens > 7000, "{tokens}");
                prompt += &words(20_000);
                assert!(!ask(&prompt).await.0, "too much of it is new");
                assert_eq!(counts(&world).await, [0.0, 2.0, 2.0]);
            }
            world.settle().await;
        }
    }
}
