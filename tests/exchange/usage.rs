//! What clients are told of the prompt tokens that were cached (`--report-cached-tokens`): what prefill had, not what decode loaded.

use moriio_proxy::api::Api;
use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::Mode;
use serde_json::{Value, json};

use crate::support::client::Ask;
use crate::support::{Answer, Plan, World, post};

/// The usage of an answer, of its last event that has one.
fn usage(answer: &Answer, stream: bool) -> Value {
    let inner = |told: Value| [&told["usage"], &told["response"]["usage"], &told["message"]["usage"]].map(Value::clone);
    let all = if stream { answer.events() } else { vec![answer.json()] };
    let found = all.into_iter().rev().flat_map(inner).find(Value::is_object);
    found.unwrap_or_else(|| panic!("no usage in {}", answer.body))
}

/// What it says was cached.
fn cached(api: Api, usage: &Value) -> Option<u64> {
    match api {
        Api::Messages => usage["cache_read_input_tokens"].as_u64(),
        Api::Responses => usage["input_tokens_details"]["cached_tokens"].as_u64(),
        _ => usage["prompt_tokens_details"]["cached_tokens"].as_u64(),
    }
}

fn plan(mode: Mode, release: &'static str, reports: &'static str) -> Plan {
    let mut plan = Plan::new(mode).with(Key::ReportCachedTokens, reports);
    plan.release = release;
    plan.adjust = |settings| (settings.cache_tokens, settings.prompt_tokens_details) = (20_000, true);
    plan
}

fn had(world: &World) -> u64 {
    world.prefill.iter().map(|engine| engine.counters().cached_tokens).sum()
}

/// The same request twice, as the usage of each tells it and as prefill had it.
async fn twice(world: &World, api: Api, stream: bool) -> [(Option<u64>, u64); 2] {
    let mut ask = Ask::new(api, 1, 5, stream);
    if stream && matches!(api, Api::Completions | Api::Chat) {
        ask.body["stream_options"] = json!({"include_usage": true});
    }
    let mut all = [(None, 0); 2];
    for told in &mut all {
        let before = had(world);
        let answer = ask.check(&world.proxy).await;
        *told = (cached(api, &usage(&answer, stream)), had(world) - before);
    }
    assert!(all[0].1 == 0 && all[1].1 > 0, "{all:?}");
    world.settle().await;
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_told_what_prefill_had() {
    for mode in [Mode::Write, Mode::Read] {
        // Prefill says it in its usage, and since 0.31.0 in its params.
        for release in ["0.30.0", "0.32.0"] {
            // The simulator's generate tells no usage.
            for api in [Api::Completions, Api::Chat, Api::Responses, Api::Messages] {
                for stream in [false, true] {
                    let world = plan(mode, release, "true").start().await;
                    let all = twice(&world, api, stream).await;
                    // Prefill's messages say it in their params only; no details at all mean that there was nothing.
                    let tells = release == "0.32.0" || api != Api::Messages;
                    for (turn, (told, had)) in all.into_iter().enumerate() {
                        let wanted = tells.then_some(had);
                        assert_eq!(told, wanted, "{mode:?} {release} {api:?} {stream} {turn}");
                    }
                }
            }
        }
    }
}

/// Otherwise decode tells that it had all of it, but where prefill's word is passed on to it.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_option_decode_tells_what_it_knows() {
    for (mode, release, knows) in
        [(Mode::Write, "0.32.0", false), (Mode::Read, "0.30.0", false), (Mode::Read, "0.32.0", true)]
    {
        let world = plan(mode, release, "false").start().await;
        for (told, had) in twice(&world, Api::Completions, true).await {
            assert_eq!(told.unwrap_or(0) == had, knows, "{mode:?} {release}");
        }
    }
}

/// Each of several answers has a prefill of its own, whose prompt counts once.
#[tokio::test(flavor = "multi_thread")]
async fn several_answers_tell_it_as_one() {
    for stream in [false, true] {
        let world = plan(Mode::Write, "0.32.0", "true").start().await;
        let prompts = ["one", "two"].map(|name| {
            format!(
                "{name} prompt of several, with words enough for one block of tokens and for a good part of another"
            )
        });
        let mut body = json!({"model": "sim-model", "prompt": prompts, "max_tokens": 3, "stream": stream});
        if stream {
            body["stream_options"] = json!({"include_usage": true});
        }
        for turn in 0..2 {
            let before = had(&world);
            let answer = post(&world.proxy, "/v1/completions", &body).await;
            answer.is_complete();
            let told = cached(Api::Completions, &usage(&answer, stream));
            assert_eq!(told, Some(had(&world) - before), "{stream} {turn}: {}", answer.body);
            assert_eq!(told > Some(0), turn == 1);
        }
        world.settle().await;
    }
}
