//! The prefix cache, against a small model of its own and through every API.

use serde_json::{Value, json};

use super::{Legs, Mode, Pair, soon, text};
use crate::sim::cache::Cache;
use crate::sim::state::{Pool, State};

const BLOCK: usize = 16;

/// What a cache should have: whole beginnings of prompts, the one to be forgotten next in front.
struct Model {
    limit: usize,
    kept: Vec<(u64, Vec<u64>)>,
}

impl Model {
    /// Serves a prompt under a salt; says how much of it was there.
    fn serve(&mut self, salt: u64, prompt: &[u64]) -> usize {
        let begin = |blocks: usize| (salt, prompt[..blocks * BLOCK].to_vec());
        let mut hit = 0;
        while (hit + 1) * BLOCK < prompt.len() && self.kept.contains(&begin(hit + 1)) {
            hit += 1;
        }
        for blocks in (1..=prompt.len() / BLOCK).rev() {
            self.kept.retain(|kept| *kept != begin(blocks));
            self.kept.push(begin(blocks));
        }
        let over = self.kept.len().saturating_sub(self.limit);
        self.kept.drain(..over);
        hit * BLOCK
    }
}

/// A READ pair, whose prefill answers by itself, with so large a cache.
async fn pair(release: &str, tokens: usize, dp: u32) -> Pair {
    Pair::with(Mode::Read, release, |settings| {
        (settings.cache_tokens, settings.dp, settings.prompt_tokens_details) = (tokens, dp, true);
    })
    .await
}

/// Sends a prefill leg of these fields to a path; gives the whole answer.
async fn ask(pair: &Pair, path: &str, rank: u32, fields: &Value) -> Value {
    let mut legs: Legs = pair.legs(1);
    let params = legs.prefill["kv_transfer_params"].take();
    legs.prefill = json!({"model": "sim-model", "request_id": legs.id, "kv_transfer_params": params});
    legs.prefill.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let answer = soon(pair.post_to(path, &pair.prefill, &legs, &legs.prefill, Some(rank)).send()).await.unwrap();
    assert_eq!(answer.status(), 200, "{path}");
    serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap()
}

fn told(answer: &Value) -> usize {
    answer["kv_transfer_params"]["remote_prefill_cached_tokens"].as_u64().unwrap() as usize
}

/// The hit of a prompt of completions.
async fn hit(pair: &Pair, prompt: impl Into<Value>) -> usize {
    let prompt: Value = prompt.into();
    told(&ask(pair, "/v1/completions", 0, &json!({"prompt": prompt, "max_tokens": 1})).await)
}

/// So many tokens that begin with `first`.
fn ids(first: u64, count: usize) -> Vec<u64> {
    (first..).take(count).collect()
}

/// Sessions that grow by turns, two of them from one system prompt, over two ranks, with salts and restarts between.
#[tokio::test]
async fn hits_are_those_of_a_small_model() {
    let pair = pair("0.32.0", 40 * BLOCK + 5, 2).await;
    let model = || Model { limit: 40, kept: Vec::new() };
    let mut models = [model(), model()];
    let mut sessions: Vec<Vec<u64>> = [0, 0, 5000].map(|system| ids(system, 100)).into();
    let (mut random, mut hits, mut misses) = (fastrand::Rng::with_seed(7), 0, 0);
    let (mut prompts, mut cached) = (0, 0);
    for step in 0..240 {
        let (session, rank, salt) = (random.usize(..sessions.len()), random.usize(..2), random.u64(..2));
        let prompt = &mut sessions[session];
        if prompt.len() > 500 {
            prompt.truncate(100);
        }
        let more = random.usize(..60);
        prompt.extend((0..more).map(|_| random.u64(..1000)));
        let mut fields = json!({"prompt": prompt, "max_tokens": 1});
        if salt > 0 {
            fields["cache_salt"] = json!("salt");
        }
        let answer = ask(&pair, "/v1/completions", rank as u32, &fields).await;
        let expected = models[rank].serve(salt, prompt);
        assert_eq!(told(&answer), expected, "step {step}");
        (hits, misses) = (hits + usize::from(expected > 0), misses + usize::from(expected == 0));
        (prompts, cached) = (prompts + prompt.len() as u64, cached + expected as u64);
        if step % 60 == 59 {
            if step == 59 {
                pair.prefill.crash().await;
            }
            pair.prefill.restart(true).await.unwrap();
            models = [model(), model()];
        }
    }
    assert!(hits > 50 && misses > 10, "{hits} hits, {misses} misses");
    let counters = pair.prefill.counters();
    assert_eq!((counters.prompt_tokens, counters.cached_tokens), (prompts, cached));
}

#[tokio::test]
async fn the_last_token_is_always_computed() {
    let pair = pair("0.32.0", 10_000, 1).await;
    for (count, again) in [(15, 0), (16, 0), (17, 16), (32, 16), (33, 32), (160, 144), (1, 0)] {
        let prompt = ids(count as u64 * 1000, count);
        assert_eq!(hit(&pair, prompt.clone()).await, 0, "{count}");
        assert_eq!(hit(&pair, prompt).await, again, "{count}");
    }
}

#[tokio::test]
async fn the_ends_of_the_prompts_used_longest_ago_go_first() {
    let pair = pair("0.32.0", 6 * BLOCK, 1).await;
    let [old, new, more] = [0, 1000, 2000].map(|first| ids(first, 4 * BLOCK + 1));
    assert_eq!(hit(&pair, old.clone()).await, 0);
    assert_eq!(hit(&pair, new.clone()).await, 0);
    // The new one's four are there, and of the old one's the first two, which stay when it is used again.
    assert_eq!(hit(&pair, old.clone()).await, 2 * BLOCK);
    assert_eq!(hit(&pair, new).await, 2 * BLOCK);
    // A prompt that is longer than the cache leaves its beginning there.
    let long = ids(7000, 20 * BLOCK);
    assert_eq!(hit(&pair, long.clone()).await, 0);
    assert_eq!(hit(&pair, long).await, 6 * BLOCK);
    assert_eq!(hit(&pair, more).await, 0);
}

#[tokio::test]
async fn a_salt_and_a_model_have_blocks_of_their_own_and_so_has_each_rank() {
    let pair = pair("0.32.0", 10_000, 2).await;
    let fields = |more: Value| {
        let mut fields = json!({"prompt": ids(0, 33), "max_tokens": 1});
        fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        fields
    };
    for more in [json!({}), json!({"cache_salt": "a"}), json!({"cache_salt": "b"}), json!({"model": "an-adapter"})] {
        for expected in [0, 32] {
            let answer = ask(&pair, "/v1/completions", 0, &fields(more.clone())).await;
            assert_eq!(told(&answer), expected, "{more}");
        }
    }
    assert_eq!(told(&ask(&pair, "/v1/completions", 1, &fields(json!({}))).await), 0);
    // Who wants logprobs of the prompt has all of it computed.
    let whole = fields(json!({"prompt_logprobs": 0}));
    assert_eq!(told(&ask(&pair, "/v1/completions", 0, &whole).await), 0);
}

/// A body for each API with this system prompt, these turns and these tools.
fn bodies(system: &str, turns: &[&str], tool: &str) -> Vec<(&'static str, Value)> {
    let message = |(turn, text): (usize, &&str)| {
        let role = if turn % 2 == 0 { "user" } else { "assistant" };
        json!({"role": role, "content": [{"type": "text", "text": text}]})
    };
    let messages: Vec<Value> = turns.iter().enumerate().map(message).collect();
    let mut marked = messages.clone();
    marked[turns.len() - 1]["content"][0]["cache_control"] = json!({"type": "ephemeral"});
    let mut chat = messages.clone();
    chat.insert(0, json!({"role": "system", "content": system}));
    let tools = json!([{"type": "function", "function": {"name": tool, "description": "tells much ".repeat(20)}}]);
    let token = |text: &str| text.bytes().map(u64::from).collect::<Vec<_>>();
    let whole = [&[tool, system], turns].concat().concat();
    vec![
        ("/v1/completions", json!({"prompt": whole, "max_tokens": 1})),
        ("/v1/completions", json!({"prompt": token(&whole), "max_tokens": 1})),
        ("/v1/chat/completions", json!({"messages": chat, "tools": tools, "max_tokens": 1})),
        ("/v1/messages", json!({"messages": marked, "system": system, "tools": tools, "max_tokens": 1})),
        (
            "/v1/responses",
            json!({"input": messages, "instructions": system, "tools": tools, "max_output_tokens": 1, "store": false}),
        ),
        ("/inference/v1/generate", json!({"token_ids": token(&whole), "sampling_params": {"max_tokens": 1}})),
    ]
}

#[tokio::test]
async fn every_api_finds_the_turns_before() {
    let (system, other) = ("Be brief. ".repeat(40), "Be nice. ".repeat(40));
    let first = [&*"What is a fox? ".repeat(20)];
    let second = [first[0], "An animal.", &*"And a dog? ".repeat(20)];
    for (number, (path, body)) in bodies(&system, &first, "look_up").into_iter().enumerate() {
        let pair = pair("0.32.0", 100_000, 1).await;
        let variant = |system: &str, turns: &[&str], tool: &str| bodies(system, turns, tool).swap_remove(number).1;
        let hit = async |body: &Value| told(&ask(&pair, path, 0, body).await);
        assert_eq!(hit(&body).await, 0, "{path}");
        let tokens = pair.prefill.counters().prompt_tokens as usize;
        let same = hit(&body).await;
        assert_eq!(same, (tokens - 1) / BLOCK * BLOCK, "{path}");
        // All but what closes the shorter prompt, or stands in place of a mark that engines do not read.
        let grown = hit(&variant(&system, &second, "look_up")).await;
        assert!((tokens - 3 * BLOCK..=tokens).contains(&grown), "{path}: {grown} of {tokens}");
        // Tools come first, then the system prompt.
        assert_eq!(hit(&variant(&system, &first, "see_also")).await, 0, "{path}");
        let tools = hit(&variant(&other, &first, "look_up")).await;
        assert!(tools < 120, "{path}: {tools}");
        assert_eq!(tools > 0, body.get("tools").is_some(), "{path}: {tools}");
        let mut choice = body.clone();
        choice["tool_choice"] = json!("auto");
        if path == "/v1/chat/completions" {
            assert!(hit(&choice).await >= tokens - BLOCK - 1);
        }
    }
}

#[tokio::test]
async fn usage_tells_the_hit_only_if_asked_to() {
    let body =
        |path: &str| bodies("Be brief.", &[&*"Why? ".repeat(40)], "look_up").into_iter().find(|row| row.0 == path);
    for details in [true, false] {
        for path in ["/v1/completions", "/v1/chat/completions", "/v1/responses"] {
            let pair = Pair::with(Mode::Read, "0.32.0", |settings| {
                (settings.cache_tokens, settings.prompt_tokens_details) = (10_000, details);
            })
            .await;
            let body = body(path).unwrap().1;
            let miss = ask(&pair, path, 0, &body).await;
            let hit = ask(&pair, path, 0, &body).await;
            let told = told(&hit);
            assert!(told > 0);
            if path == "/v1/responses" {
                assert_eq!(miss["usage"]["input_tokens_details"]["cached_tokens"], 0);
                assert_eq!(hit["usage"]["input_tokens_details"]["cached_tokens"], told);
                continue;
            }
            for (answer, cached) in [(miss, 0), (hit, told)] {
                let expected = if details { json!({"cached_tokens": cached}) } else { Value::Null };
                assert_eq!(answer["usage"]["prompt_tokens_details"], expected, "{path}");
            }
        }
    }
}

#[tokio::test]
async fn decode_tells_what_prefill_told_it() {
    let pair = pair("0.32.0", 10_000, 1).await;
    for (expected, turn) in [(json!({"cached_tokens": 0}), 0), (json!({"cached_tokens": 16}), 1)] {
        let mut legs = pair.legs(3);
        let answer = pair.send_prefill(&legs).await.unwrap();
        Pair::hand_over(&mut legs, &answer);
        let answer = soon(pair.decode_request(&legs).send()).await.unwrap();
        let answer: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        assert_eq!(answer["choices"][0]["text"], text(3));
        assert_eq!(answer["usage"]["prompt_tokens_details"], expected, "{turn}");
    }
    pair.clean().await;
}

#[tokio::test]
async fn without_a_cache_and_before_0_31_nothing_is_told() {
    let none = pair("0.32.0", 0, 1).await;
    assert_eq!((hit(&none, ids(0, 40)).await, hit(&none, ids(0, 40)).await), (0, 0));
    let counters = none.prefill.counters();
    assert_eq!((counters.prompt_tokens, counters.cached_tokens), (80, 0));
    let old = pair("0.30.0", 10_000, 1).await;
    let fields = json!({"prompt": ids(0, 40), "max_tokens": 1});
    for _ in 0..2 {
        let answer = ask(&old, "/v1/completions", 0, &fields).await;
        assert_eq!(answer["kv_transfer_params"].get("remote_prefill_cached_tokens"), None);
    }
    assert_eq!(old.prefill.counters().cached_tokens, 32);
}

#[test]
fn a_lost_host_takes_the_caches_of_its_ranks_with_it() {
    let pools = (0..4).map(|_| Pool::new(10, 0, Cache::new(160))).collect();
    let mut state = State::new(pools, 2);
    for pool in &mut state.pools {
        pool.cache.keep(&[1, 2]);
    }
    state.lose(1, 2..4);
    let hits: Vec<usize> = state.pools.iter_mut().map(|pool| pool.cache.hit(&[1, 2], 40)).collect();
    assert_eq!(hits, [32, 32, 0, 0]);
}
