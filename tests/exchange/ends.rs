//! An end is an end, whatever its framing: the exchange is complete, both legs count as 2xx, and what the breakers know of the
//! engines follows from that.

use std::io::{Read, Write};

use axum::body::Body;
use axum::response::Response;
use moriio_proxy::api::Api;
use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Fault, FaultKind, Mode, Role};
use serde_json::json;

use crate::support::client::Ask;
use crate::support::fake::{Fake, answer_as};
use crate::support::record::{fresh_id, record};
use crate::support::{Plan, World, completion, generate, post, strike, until};

fn refuse(status: u16) -> FaultKind {
    FaultKind::Status { status, body: json!({"error": {"message": "scripted"}}).to_string() }
}

async fn legs(world: &World, role: &str) -> f64 {
    world.proxy.metric(&format!("moriio_legs_total{{role=\"{role}\"")).await
}

async fn good_legs(world: &World) -> [f64; 2] {
    let text = world.proxy.metrics().await;
    ["prefill", "decode"].map(|role| {
        let begins = format!("moriio_legs_total{{role=\"{role}\"");
        let lines = text.lines().filter(|line| line.starts_with(&begins) && line.contains("status=\"2xx\""));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn whole_and_streamed_answers_leave_the_same_record() {
    for mode in [Mode::Read, Mode::Write] {
        let world = Plan::new(mode).start().await;
        for number in 0..6 {
            generate(&world.proxy, &format!("prompt {number}"), 5, number % 2 == 0).await;
        }
        world.settle().await;
        assert_eq!(good_legs(&world).await, [6.0, 6.0]);
        assert_eq!([legs(&world, "prefill").await, legs(&world, "decode").await], [6.0, 6.0]);
        assert_eq!(world.proxy.metric("moriio_exchanges_total{ended=\"complete\"}").await, 6.0);
    }
}

/// Failures that never come two in a row are no reason to leave an engine alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_success_in_one_piece_resets_the_failures() {
    for (mode, role) in [(Mode::Read, Role::Prefill), (Mode::Read, Role::Decode), (Mode::Write, Role::Decode)] {
        let world = Plan::new(mode).with(Key::Retries, "0").with(Key::BreakerFailures, "2").start().await;
        let engine = if role == Role::Prefill { &world.prefill[0] } else { &world.decode[0] };
        for number in 0..6 {
            strike(engine, Fault::times(refuse(500), 1)).await;
            let answer = post(&world.proxy, "/v1/completions", &completion("words", 3, false)).await;
            assert_eq!(answer.status, 500, "{mode:?} {role:?} {number}: {}", answer.body);
            generate(&world.proxy, "words", 3, false).await;
        }
        world.settle().await;
    }
}

/// The trial of an open circuit is an exchange like any other.
#[tokio::test(flavor = "multi_thread")]
async fn a_trial_in_one_piece_closes_the_circuit() {
    for mode in [Mode::Read, Mode::Write] {
        let options = [(Key::Retries, "0"), (Key::BreakerOpen, "300ms"), (Key::BreakerOpenMax, "300ms")];
        let world = options.into_iter().fold(Plan::new(mode), |plan, (key, value)| plan.with(key, value)).start().await;
        for engine in world.engines() {
            strike(engine, Fault::always(FaultKind::RefuseConnections)).await;
            let answer = post(&world.proxy, "/v1/completions", &completion("words", 3, false)).await;
            assert_eq!(answer.status, 503, "{}", answer.body);
            engine.clear_faults();
            world
                .until_ready_under(|| async {
                    let _ = post(&world.proxy, "/v1/completions", &completion("words", 3, false)).await;
                })
                .await;
            // More than one at a time, and none refused.
            let prompts: Vec<String> = (0..8).map(|number| format!("prompt {number}")).collect();
            futures::future::join_all(prompts.iter().map(|prompt| generate(&world.proxy, prompt, 3, false))).await;
        }
        world.settle().await;
    }
}

/// A READ world whose decode engine answers what the test says.
async fn with_decode(reply: impl Fn() -> Response + Send + Sync + 'static) -> (World, Fake) {
    let mut plan = Plan::new(Mode::Read).engines(1, 0);
    plan.adjust = |settings| settings.defer_timeout = std::time::Duration::from_millis(200);
    let world = plan.start().await;
    let about = (Role::Decode, Mode::Read, "0.32.0");
    let fake = Fake::start(about, world.proxy.registration, move |_| reply()).await;
    world.until_ready(2).await;
    (world, fake)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_framing_of_a_whole_answer_ends_well() {
    let text = "{\"choices\":[{\"text\":\"x\"}]}";
    let parts = |text: &'static str| {
        let parts = text.as_bytes().chunks(5).map(|part| Ok::<_, std::io::Error>(part.to_vec()));
        Body::from_stream(futures::stream::iter(parts.collect::<Vec<_>>()))
    };
    let known = move || answer_as("application/json", Body::from(text));
    let chunked = move || answer_as("application/json", parts(text));
    let long = || answer_as("application/json", Body::from("x".repeat(300_000)));
    let empty = || answer_as("application/json", Body::empty());
    let nothing = || {
        let mut response = answer_as("application/json", Body::empty());
        *response.status_mut() = http::StatusCode::NO_CONTENT;
        response
    };
    let replies: [Box<dyn Fn() -> Response + Send + Sync>; 5] =
        [Box::new(known), Box::new(chunked), Box::new(long), Box::new(empty), Box::new(nothing)];
    for (number, reply) in replies.into_iter().enumerate() {
        let (world, _decode) = with_decode(reply).await;
        for _ in 0..2 {
            let answer = post(&world.proxy, "/v1/completions", &completion("words", 3, false)).await;
            assert!(answer.whole, "{number}: {answer:?}");
            assert_eq!(answer.record["ended"], "complete", "{number}: {:?}", answer.record);
            assert_eq!(answer.record["decode_leg"], "2xx", "{number}: {:?}", answer.record);
        }
        world.settle().await;
        assert_eq!(good_legs(&world).await, [2.0, 2.0], "{number}");
    }
}

/// A client of the older protocol gets its answer without chunks, and ends as well.
#[tokio::test(flavor = "multi_thread")]
async fn clients_of_http_1_0_end_well() {
    for mode in [Mode::Read, Mode::Write] {
        let world = Plan::new(mode).start().await;
        for stream in [false, true] {
            let (id, address) = (fresh_id(), world.proxy.http);
            let body = completion("some words", 5, stream).to_string();
            let head = format!("POST /v1/completions HTTP/1.0\r\nx-request-id: {id}\r\ncontent-length: {}", body.len());
            let text = tokio::task::spawn_blocking(move || {
                let mut client = std::net::TcpStream::connect(address).unwrap();
                client.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).unwrap();
                let mut text = String::new();
                client.read_to_string(&mut text).unwrap();
                text
            });
            let text = text.await.unwrap();
            assert!(text.starts_with("HTTP/1.0 200"), "{text}");
            let record = record(&world.proxy, &id).await;
            assert_eq!((&record["ended"], &record["decode_leg"]), (&json!("complete"), &json!("2xx")), "{record:?}");
        }
        world.settle().await;
    }
}

/// Many clients hang up with the last event they understand.
#[tokio::test(flavor = "multi_thread")]
async fn leaving_after_the_end_marker_is_no_leaving() {
    let (world, _decode) = with_decode(|| {
        let parts = ["data: {\"choices\":[]}\n\n", "data: [DONE]\n\n"].map(Ok::<_, std::io::Error>);
        let open = futures::StreamExt::chain(futures::stream::iter(parts), futures::stream::pending());
        answer_as("text/event-stream", Body::from_stream(open))
    })
    .await;
    let mut stream = crate::support::Stream::open(&world.proxy, "/v1/completions", &completion("words", 3, true)).await;
    stream.read_until("the marker", |seen| seen.contains("[DONE]")).await;
    drop(stream);
    until("the exchange's end", || async {
        let ended = world.proxy.metric("moriio_exchanges_total{ended=\"complete\"}").await;
        (ended == 1.0).then_some(()).ok_or(ended.to_string())
    })
    .await;
    world.settle().await;
    assert_eq!(good_legs(&world).await, [1.0, 1.0]);
}

/// Errors pass whole and are recorded as errors; routes that need no pair leave no exchange.
#[tokio::test(flavor = "multi_thread")]
async fn passed_errors_and_passed_routes_end_well() {
    let world = Plan::new(Mode::Write).with(Key::Retries, "0").start().await;
    for status in [400, 404, 429, 500] {
        strike(&world.decode[0], Fault::times(refuse(status), 1)).await;
        for stream in [false, true] {
            let answer = post(&world.proxy, "/v1/completions", &completion("words", 3, stream)).await;
            let wanted = if stream { 200 } else { status };
            assert_eq!((answer.status, answer.whole), (wanted, true), "{}", answer.body);
        }
    }
    let answer = post(&world.proxy, "/tokenize", &json!({"prompt": "some words"})).await;
    assert_eq!((answer.status, answer.whole), (200, true), "{}", answer.body);
    world.settle().await;
    assert_eq!(world.proxy.metric("moriio_requests_total{route=\"neutral\",status=\"200\"}").await, 1.0);
    assert_eq!(world.proxy.metric("moriio_exchanges_total{ended=\"error\"}").await, 4.0);
    assert_eq!(world.proxy.metric("moriio_exchanges_total{ended=\"complete\"}").await, 4.0);
}

/// Nothing in Anthropic's API keeps the first token from ending the text: then prefill's answer is all of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_ends_at_once_is_prefills_own() {
    for mode in [Mode::Read, Mode::Write] {
        let world = Plan::new(mode).start().await;
        for stream in [false, true] {
            let ask = Ask::new(Api::Messages, 1, 9, stream);
            strike(&world.prefill[0], Fault::times(FaultKind::EndsAtOnce, 1)).await;
            let answer = post(&world.proxy, "/v1/messages", &ask.body).await;
            answer.is_complete();
            assert_eq!((answer.status, answer.record["mode"].as_str()), (200, Some("prefill alone")));
            let named = |key: &str| answer.record.contains_key(key);
            assert_eq!(named("decode"), named("decode_leg"), "{:?}", answer.record);
            if stream {
                let names: Vec<&str> = answer.body.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
                assert_eq!(names, ["message_start", "message_delta", "message_stop"]);
                assert_eq!(answer.events()[1]["delta"]["stop_reason"], "end_turn");
            } else {
                let message = answer.json();
                assert_eq!((&message["stop_reason"], &message["content"]), (&json!("end_turn"), &json!([])));
                assert_eq!(message.get("kv_transfer_params"), None);
            }
            // A decode leg that was asked waits in vain, and is woken.
            world.settle().await;
            Ask::new(Api::Messages, 2, 9, stream).check(&world.proxy).await;
        }
        world.settle().await;
        assert_eq!(world.proxy.metric("moriio_prefill_alone_total").await, 2.0);
    }
}

/// The loglikelihoods of evaluation harnesses: prefill alone has them, and decode is not asked.
#[tokio::test(flavor = "multi_thread")]
async fn prefill_alone_answers_for_the_prompts_side() {
    for mode in [Mode::Read, Mode::Write] {
        let world = Plan::new(mode).start().await;
        for (number, (stream, limit)) in [(false, 1), (true, 1), (false, 0)].into_iter().enumerate() {
            let mut body = completion("words whose likelihood is asked for", limit, stream);
            body["echo"] = json!(true);
            body["logprobs"] = json!(1);
            let answer = post(&world.proxy, "/v1/completions", &body).await;
            answer.is_complete();
            assert_eq!(answer.record["mode"], "prefill alone", "{:?}", answer.record);
            assert_eq!(answer.record.get("decode"), None);
            assert_eq!((world.prefill[0].counters().plain, world.decode[0].counters().legs), (number as u64 + 1, 0));
        }
        // While prefill answers, nothing is taken of decode.
        strike(&world.prefill[0], Fault::times(FaultKind::Delay { milliseconds: 1500 }, 1)).await;
        let mut slow = completion("words", 1, false);
        slow["prompt_logprobs"] = json!(0);
        let free = async {
            let legs = |role: &str| format!("moriio_legs_in_flight{{role=\"{role}\"");
            until("prefill at work alone", || async {
                let [prefill, decode] = [legs("prefill"), legs("decode")];
                let seen = (world.proxy.metric(&prefill).await, world.proxy.metric(&decode).await);
                (seen == (1.0, 0.0)).then_some(()).ok_or(format!("{seen:?}"))
            })
            .await;
        };
        let (answer, ()) = tokio::join!(post(&world.proxy, "/v1/completions", &slow), free);
        answer.is_complete();
        // What fails there is prefill's, and is counted so.
        strike(&world.prefill[0], Fault::times(refuse(500), 1)).await;
        let mut body = completion("words", 1, false);
        body["prompt_logprobs"] = json!(0);
        let answer = post(&world.proxy, "/v1/completions", &body).await;
        assert_eq!((answer.status, answer.source()), (500, "prefill"), "{}", answer.body);
        assert_eq!(answer.record["prefill_leg"], "5xx");
        assert_eq!(world.proxy.metric("moriio_prefill_alone_total").await, 4.0, "answered, not tried");
        generate(&world.proxy, "words after that", 3, false).await;
        world.settle().await;
    }
    // Versions that were not read for it are not asked.
    let world = Plan { release: "0.22.0", ..Plan::new(Mode::Write) }.start().await;
    let mut body = completion("words", 1, false);
    body["prompt_logprobs"] = json!(1);
    let answer = post(&world.proxy, "/v1/completions", &body).await;
    assert_eq!((answer.status, answer.json()["error"]["param"].as_str()), (400, Some("prompt_logprobs")));
    world.settle().await;
}
