//! Fields that decide a prompt or end an engine, over sockets: what passes gives one engine's text, the rest is refused by name,
//! and no engine has anything to complain of.

use bytes::Bytes;
use futures::future::join_all;
use moriio_proxy::api::Api;
use moriio_proxy::api::request::Asked;
use moriio_proxy::engine;
use moriio_proxy::settings::TokenBudget;
use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Mode, Role, rendered_text, rendered_tokens};
use serde_json::{Value, json};

use crate::fuzz::fields::row;
use crate::fuzz::mutate::Random;
use crate::support::fake::{Fake, answer_as};
use crate::support::{Plan, World, completion, generate, post, until};

/// Fields with values that engines take.
fn choices(api: Api) -> Vec<(&'static str, Vec<Value>)> {
    let flags = || vec![json!(true), json!(false), Value::Null];
    let hidden = json!({"a": 1, "kv_transfer_params": {"remote_host": "10.9.9.9"}});
    let tool = json!([{"type": "function", "name": "f"}]);
    let mut all = vec![
        ("vllm_xargs", vec![hidden.clone(), json!({"a": 1})]),
        ("kv_transfer_params", vec![hidden.clone()]),
        ("n", vec![json!(1), json!(2)]),
        ("request_id", vec![json!("mine")]),
    ];
    all.extend(match api {
        Api::Completions => vec![
            ("echo", flags()),
            ("logprobs", vec![json!(0), Value::Null]),
            ("logprob_token_ids", vec![json!([5, 6])]),
            ("prompt_logprobs", vec![json!(0), Value::Null]),
            ("truncate_prompt_tokens", vec![json!(-1), json!(7)]),
            ("add_special_tokens", flags()),
            ("suffix", vec![json!("the end")]),
            ("structured_outputs", vec![json!({"choice": ["a"]})]),
            ("use_beam_search", flags()),
        ],
        Api::Chat => vec![
            ("echo", flags()),
            ("logprobs", flags()),
            ("top_logprobs", vec![json!(2)]),
            ("logprob_token_ids", vec![json!([5, 6])]),
            ("prompt_logprobs", vec![json!(1), Value::Null]),
            ("truncate_prompt_tokens", vec![json!(-1), json!(7)]),
            ("tools", vec![tool]),
            ("tool_choice", vec![json!("auto"), json!("required"), json!("none")]),
            ("response_format", vec![json!({"type": "json_object"})]),
            ("chat_template_kwargs", vec![json!({"enable_thinking": false})]),
            ("max_completion_tokens", vec![json!(3), Value::Null]),
        ],
        Api::Responses => vec![
            ("instructions", vec![json!("be brief")]),
            ("tools", vec![tool, json!([{"type": "mcp"}])]),
            ("truncation", vec![json!("auto"), json!("disabled")]),
            ("store", flags()),
            ("stop_token_ids", vec![json!([1])]),
            ("ignore_eos", flags()),
            ("previous_response_id", vec![json!("resp_1"), Value::Null]),
            ("background", flags()),
        ],
        Api::Messages => vec![
            ("system", vec![json!("be brief")]),
            ("tools", vec![tool]),
            (
                "tool_choice",
                vec![json!({"type": "tool", "name": "f"}), json!({"type": "any"}), json!({"type": "none"})],
            ),
            ("thinking", vec![json!({"type": "enabled", "budget_tokens": 1}), json!({"type": "disabled"})]),
        ],
        Api::Generate => vec![("features", vec![json!({"x": 1})]), ("extra_args", vec![hidden])],
    });
    all
}

/// A random body of an API and the number of tokens it asks for.
fn draw(random: &mut Random, api: Api) -> (Value, usize) {
    let words = format!("some words that fill blocks, more than one of them, and a number: {}", random.next());
    let tokens = 1 + random.below(5);
    let mut body = match api {
        Api::Completions => json!({"prompt": words, "max_tokens": tokens}),
        Api::Chat | Api::Messages => json!({"messages": [{"role": "user", "content": words}], "max_tokens": tokens}),
        Api::Responses => json!({"input": words, "max_output_tokens": tokens}),
        Api::Generate => {
            let mut sampling = json!({"max_tokens": tokens});
            if random.one_in(3) {
                sampling["extra_args"] = json!({"kv_transfer_params": {"remote_host": "10.9.9.9"}});
            }
            if random.one_in(4) {
                sampling["skip_reading_prefix_cache"] = json!(true);
            }
            if random.one_in(5) {
                sampling["prompt_logprobs"] = json!(0);
            }
            json!({"token_ids": (0..40 + random.below(20)).collect::<Vec<_>>(), "sampling_params": sampling})
        }
    };
    body["stream"] = json!(random.one_in(2));
    for (key, values) in choices(api) {
        if random.one_in(4) {
            body[key] = values[random.below(values.len())].clone();
        }
    }
    // Engines want these together, on either leg.
    if body.get("logprob_token_ids").or(body.get("top_logprobs")).is_some() {
        body["logprobs"] = if api == Api::Chat { json!(true) } else { json!(1) };
    }
    if tokens == 1 && body.get("thinking").is_some() {
        // No budget is below that.
        body["thinking"] = Value::Null;
    }
    let newer = body["max_completion_tokens"].as_u64().filter(|_| api == Api::Chat);
    (body, newer.map_or(tokens, |tokens| tokens as usize))
}

async fn try_one(world: &World, minor: u16, random: &mut Random) -> bool {
    let api = Api::ALL[random.below(Api::ALL.len())];
    let (body, tokens) = draw(random, api);
    let mode = if world.mode == Mode::Read { engine::Mode::Read } else { engine::Mode::Write };
    let asked = Asked::parse(api, Bytes::from(body.to_string()), TokenBudget::Exact, 16);
    let fits = asked.and_then(|Asked { request, several }| {
        request.fits(row(minor), row(minor), mode, 1).map(|()| several.map_or(1, |(shape, _)| shape.count as usize))
    });
    let answer = post(&world.proxy, api.path(), &body).await;
    let what = format!("{api:?} {body} on 0.{minor}: {}", answer.body);
    let count = match fits {
        Ok(count) => count,
        Err(error) => {
            assert_eq!((answer.status, answer.code().as_str()), (error.status().as_u16(), error.code()), "{what}");
            return false;
        }
    };
    assert_eq!(answer.status, 200, "{what}");
    if api == Api::Generate {
        assert_eq!(Some(answer.tokens()), rendered_tokens(api.path(), &body, tokens), "{what}");
    } else if count == 1 {
        assert_eq!(Some(answer.text()), rendered_text(api.path(), &body, tokens), "{what}");
    } else {
        let mut one = body.clone();
        one.as_object_mut().unwrap().remove("n");
        let text = rendered_text(api.path(), &one, tokens);
        assert!(answer.texts(count).into_iter().all(|choice| Some(choice) == text), "{what}");
    }
    true
}

async fn draws(mode: Mode, release: &'static str, minor: u16) {
    let world = Plan { release, ..Plan::new(mode) }.start().await;
    let seed = Random::of_the_moment().next();
    eprintln!("{mode:?} {release}: seed {seed}");
    let mut random = Random::new(seed);
    let mut passed = 0;
    for _ in 0..40 {
        passed += usize::from(try_one(&world, minor, &mut random).await);
    }
    assert!(passed > 5, "only {passed} of 40 passed");
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn random_bodies_give_one_engines_text_or_a_refusal() {
    let releases = [("0.24.0", 24), ("0.30.0", 30), ("0.31.0", 31), ("0.32.0", 32), ("0.33.0", 33)];
    let all = releases.into_iter().flat_map(|(release, minor)| {
        [Mode::Read, Mode::Write].into_iter().map(move |mode| draws(mode, release, minor))
    });
    join_all(all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn prompt_logprobs_cost_nobody_a_pair() {
    join_all([Mode::Read, Mode::Write].map(|mode| async move {
        let world = Plan::new(mode).start().await;
        let chat = json!({"messages": [{"role": "user", "content": "words"}], "max_tokens": 5, "echo": true});
        let mut plain = completion("some words", 5, false);
        plain["prompt_logprobs"] = json!(1);
        for (path, body, param) in
            [("/v1/completions", plain, "prompt_logprobs"), ("/v1/chat/completions", chat, "echo")]
        {
            let answer = post(&world.proxy, path, &body).await;
            assert_eq!((answer.status, answer.source()), (400, "client"), "{}", answer.body);
            assert_eq!(answer.json()["error"]["param"], param);
        }
        assert_eq!(world.total(|counters| counters.legs), 0);
        generate(&world.proxy, "the pair is there", 5, true).await;
        world.settle().await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_beyond_our_own_limit_is_our_own_error() {
    let plan = Plan::new(Mode::Read).engines(0, 1).with(Key::BreakerFailures, "1");
    let world = plan.start().await;
    let large = Bytes::from(vec![b' '; 65 * 1024 * 1024]);
    let reply = move |_: &_| answer_as("application/json", axum::body::Body::from(large.clone()));
    let _prefill = Fake::start((Role::Prefill, Mode::Read, "0.32.0"), world.proxy.registration, reply).await;
    until("a pair", || async {
        let (status, body) = world.proxy.ready().await;
        (status == 200).then_some(()).ok_or_else(|| body.to_string())
    })
    .await;
    for _ in 0..2 {
        let answer = post(&world.proxy, "/v1/completions", &completion("words", 5, false)).await;
        let told = (answer.status, answer.code(), answer.source().to_owned());
        assert_eq!(told, (502, "answer_too_large".to_owned(), "proxy".to_owned()), "{}", answer.body);
    }
    // One failure would have opened the circuit.
    let (status, body) = world.proxy.ready().await;
    assert_eq!(status, 200, "{body}");
    // Its blocks have no reader.
    until("two releases", || async {
        let told = world.proxy.metric("moriio_kv_messages_total{kind=\"release\"").await;
        (told == 2.0).then_some(()).ok_or_else(|| told.to_string())
    })
    .await;
}
