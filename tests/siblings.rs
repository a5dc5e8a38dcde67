//! Requests for several answers: a pair for each, one answer to the client.

use std::collections::BTreeSet;

use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Fault, FaultKind, Mode, expected_text};
use serde_json::{Value, json};

use crate::support::{Answer, Plan, Stream, World, client, post, until};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

fn prompts() -> Vec<Value> {
    let text =
        |name: &str| json!(format!("{name} prompt of several, long enough for more than one block of tokens or two"));
    vec![text("first"), json!((5..60).collect::<Vec<_>>()), text("third")]
}

fn completions(choices: usize, stream: bool) -> Value {
    json!({"model": "sim-model", "prompt": prompts(), "n": choices, "max_tokens": 5, "stream": stream, "temperature": 0})
}

fn chat(choices: usize, stream: bool) -> Value {
    json!({"model": "sim-model", "messages": [{"role": "user", "content": "a question to several"}], "n": choices,
        "max_tokens": 5, "stream": stream, "temperature": 0})
}

/// As one client request it is counted, with a record; nothing is left behind.
async fn counted(world: &World, answer: &Answer, siblings: usize) {
    answer.is_complete();
    assert_eq!(answer.record["siblings"], siblings);
    assert_eq!(world.proxy.metric("moriio_requests_total").await, 1.0);
    assert_eq!(world.proxy.metric("moriio_exchanges_total{ended=\"complete\"}").await, 1.0);
    assert_eq!(world.total(|counters| counters.prefill_legs), siblings as u64);
    let legs: Vec<_> = world.engines().flat_map(|engine| engine.legs()).collect();
    let ids: BTreeSet<_> = legs.iter().map(|leg| leg.header("x-request-id").unwrap().to_owned()).collect();
    assert_eq!((legs.len(), ids.len()), (2 * siblings, siblings), "each has ids of its own");
    assert!(legs.iter().all(|leg| leg.json().get("n").is_none()));
    world.settle().await;
    assert_eq!(world.proxy.metric("moriio_requests_in_flight ").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn prompts_and_choices_are_one_answer() {
    for mode in [Mode::Write, Mode::Read] {
        for stream in [false, true] {
            let world = Plan::new(mode).engines(2, 2).start().await;
            let mut body = completions(2, stream);
            body["seed"] = json!(40);
            if stream {
                body["stream_options"] = json!({"include_usage": true});
            }
            let answer = post(&world.proxy, COMPLETIONS, &body).await;
            let wanted: Vec<String> =
                prompts().iter().flat_map(|prompt| [expected_text(prompt, 5), expected_text(prompt, 5)]).collect();
            assert_eq!(answer.texts(6), wanted, "{}", answer.body);
            let told = if stream { answer.events().last().unwrap().clone() } else { answer.json() };
            let usage = &told["usage"];
            let prompt: u64 = world.prefill.iter().flat_map(|engine| engine.legs()).count() as u64;
            assert_eq!((prompt, &usage["completion_tokens"]), (6, &json!(30)), "{usage}");
            let sum = usage["prompt_tokens"].as_u64().unwrap() + 30;
            assert_eq!(usage["total_tokens"], sum);
            if stream {
                assert_eq!(answer.body.matches("[DONE]").count(), 1);
                assert!(answer.body.ends_with("data: [DONE]\n\n"));
                let events = answer.events();
                let ids: BTreeSet<String> = events.iter().map(|event| event["id"].to_string()).collect();
                assert_eq!(ids.len(), 1, "{ids:?}");
                assert_eq!(events.iter().filter(|event| event["usage"].is_object()).count(), 1);
            }
            let seeds: BTreeSet<u64> = world
                .decode
                .iter()
                .flat_map(|engine| engine.legs())
                .map(|leg| leg.json()["seed"].as_u64().unwrap())
                .collect();
            assert_eq!(seeds, BTreeSet::from([40, 41]));
            counted(&world, &answer, 6).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_has_choices() {
    for stream in [false, true] {
        let world = Plan::new(Mode::Write).start().await;
        let answer = post(&world.proxy, CHAT, &chat(3, stream)).await;
        let wanted = expected_text(&chat(1, false)["messages"], 5);
        assert_eq!(answer.texts(3), vec![wanted; 3], "{}", answer.body);
        counted(&world, &answer, 3).await;
    }
}

/// More siblings than any engine has room for at once: those that wait do not keep others from their ends.
#[tokio::test(flavor = "multi_thread")]
async fn siblings_that_wait_hold_nobody_up() {
    for stream in [false, true] {
        let world = Plan::new(Mode::Write).with(Key::DecodeInFlight, "1").start().await;
        let answer = post(&world.proxy, CHAT, &chat(5, stream)).await;
        assert!(answer.texts(5).iter().all(|text| *text == expected_text(&chat(1, false)["messages"], 5)));
        counted(&world, &answer, 5).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_fails_fails_the_request() {
    for stream in [false, true] {
        let world = Plan::new(Mode::Write).with(Key::Retries, "0").start().await;
        let refusal = FaultKind::Status { status: 422, body: json!({"error": {"message": "no"}}).to_string() };
        world.prefill[0].set_fault(Fault::times(refusal, 1));
        let answer = post(&world.proxy, COMPLETIONS, &completions(1, stream)).await;
        if answer.status == 200 {
            // One of the others had begun before it failed.
            assert!(stream && answer.body.contains("\"error\"") && !answer.body.contains("[DONE]"), "{}", answer.body);
        } else {
            assert_eq!((answer.status, answer.source()), (422, "prefill"), "{}", answer.body);
        }
        world.settle().await;
        assert_eq!(world.total(|counters| counters.reaped), 0);
        assert_eq!(world.proxy.metric("moriio_errors_total").await, 1.0);
        assert_eq!(post(&world.proxy, COMPLETIONS, &completions(1, stream)).await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_breaks_off_ends_the_stream() {
    let world = Plan::new(Mode::Read).with(Key::Retries, "0").start().await;
    world.decode[0].set_fault(Fault::times(FaultKind::CutAfterTokens { tokens: 2, reset: true }, 1));
    let answer = post(&world.proxy, CHAT, &chat(3, true)).await;
    assert!(answer.status == 200 && answer.whole && !answer.body.contains("[DONE]"), "{}", answer.body);
    let last = answer.events().pop().unwrap();
    assert!(last["error"].is_object(), "{last}");
    assert_eq!((&answer.record["ended"], &answer.record["error"]), (&json!("cut"), &json!("sibling_failed")));
    world.settle().await;
    // In one piece there is no answer to break off.
    world.decode[0].set_fault(Fault::times(FaultKind::CutAfterTokens { tokens: 2, reset: true }, 1));
    let answer = post(&world.proxy, CHAT, &chat(3, false)).await;
    assert_eq!(answer.status, 502, "{}", answer.body);
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_leaves_nothing() {
    for mode in [Mode::Write, Mode::Read] {
        let mut plan = Plan::new(mode);
        plan.adjust = |settings| settings.token_delay = std::time::Duration::from_millis(20);
        let world = plan.start().await;
        let mut body = chat(4, true);
        body["max_tokens"] = json!(200);
        let mut stream = Stream::open(&world.proxy, CHAT, &body).await;
        stream.read_until("tokens", |seen| seen.matches("data: ").count() > 12).await;
        drop(stream);
        body["stream"] = json!(false);
        let asked = client().post(world.proxy.url(CHAT)).body(body.to_string()).send();
        assert!(tokio::time::timeout(std::time::Duration::from_millis(150), asked).await.is_err());
        until("both have their account", || async {
            let gone = world.proxy.metric("moriio_exchanges_total{ended=\"client_gone\"}").await;
            (gone == 2.0).then_some(()).ok_or_else(|| gone.to_string())
        })
        .await;
        world.settle().await;
        assert_eq!(world.total(|counters| counters.reaped), 0, "{mode:?}");
    }
}

/// Output of the prompt's side in a batch, as lm-eval asks for it.
#[tokio::test(flavor = "multi_thread")]
async fn prefill_alone_answers_a_batch() {
    let world = Plan::new(Mode::Write).start().await;
    let body = json!({"model": "sim-model", "prompt": [[1, 2, 3], [4, 5, 6, 7]], "max_tokens": 1, "logprobs": 1, "echo": true,
        "temperature": 0, "seed": 1234});
    let answer = post(&world.proxy, COMPLETIONS, &body).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let choices = answer.json()["choices"].clone();
    assert_eq!(choices.as_array().map(Vec::len), Some(2), "{choices}");
    assert_eq!([&choices[0]["index"], &choices[1]["index"]], [&json!(0), &json!(1)]);
    assert!(choices[0]["logprobs"].is_object() || choices[0]["logprobs"].is_null());
    assert_eq!(world.decode[0].counters().legs, 0);
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_may_be_are_refused() {
    let world = Plan::new(Mode::Write).with(Key::MaxSiblings, "4").start().await;
    for (path, body, param) in [
        (CHAT, chat(5, false), "n"),
        (COMPLETIONS, completions(2, true), "n"),
        (COMPLETIONS, json!({"prompt": ["a", "b", "c", "d", "e"]}), "prompt"),
    ] {
        let answer = post(&world.proxy, path, &body).await;
        assert_eq!((answer.status, answer.source()), (400, "client"), "{}", answer.body);
        assert_eq!(answer.json()["error"]["param"], param, "{}", answer.body);
    }
    assert_eq!(world.total(|counters| counters.legs), 0);
}
