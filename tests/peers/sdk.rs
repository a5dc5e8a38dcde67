//! The official OpenAI SDK as the client.

use std::sync::LazyLock;

use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Fault, FaultKind, Mode, expected_text};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::agent::Agent;
use crate::support::{Plan, Proxy, World};

/// The SDK, started once: to load it costs more processor time than all that a test has it do.
static SDK: LazyLock<Mutex<Agent>> = LazyLock::new(|| Mutex::new(Agent::start("sdk.py", &[])));

/// The proxy that the SDK talks to.
struct Client {
    url: String,
    key: &'static str,
}

impl Client {
    /// Comes before the proxy, since the environment may have to be made for it.
    fn start() -> Client {
        LazyLock::force(&SDK);
        Client { url: String::new(), key: "none" }
    }

    fn talks_to(&mut self, proxy: &Proxy) {
        self.url = proxy.url("");
    }

    async fn ask(&mut self, operation: &str, mut command: Value) -> Value {
        command["do"] = operation.into();
        command["url"] = self.url.as_str().into();
        command["key"] = self.key.into();
        SDK.lock().await.ask(command).await
    }

    async fn generate(&mut self, body: Value) -> Value {
        self.ask("generate", json!({"body": body})).await
    }

    /// The SDK must raise this class with this status and code.
    async fn raises(&mut self, body: Value, class: &str, status: u16, code: Value) -> Value {
        let raised = self.generate(body).await;
        is_raised(&raised, class, status, code);
        raised
    }
}

fn is_raised(raised: &Value, class: &str, status: u16, code: Value) {
    assert_eq!(raised["raised"][0], class, "{raised}");
    assert_eq!(raised["status"], status, "{raised}");
    assert_eq!(raised["code"], code, "{raised}");
    assert!(raised["message"].as_str().is_some_and(|text| !text.is_empty()));
}

fn prompt(number: usize) -> String {
    format!("prompt {number}: {}", "words that fill a few blocks ".repeat(1 + number % 7))
}

async fn world(mode: Mode) -> World {
    Plan::new(mode).engines(2, 2).start().await
}

#[tokio::test(flavor = "multi_thread")]
async fn completions_and_chat_come_back_whole() {
    let mut client = Client::start();
    for mode in [Mode::Read, Mode::Write] {
        let world = world(mode).await;
        client.talks_to(&world.proxy);
        let tokens = 9;
        let text = prompt(3);
        let messages = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]);
        for (body, said) in [
            (json!({"prompt": text, "max_tokens": tokens}), expected_text(&json!(text), tokens)),
            (json!({"messages": messages, "max_tokens": tokens}), expected_text(&messages, tokens)),
            (json!({"messages": messages, "max_completion_tokens": tokens}), expected_text(&messages, tokens)),
        ] {
            let whole = client.generate(body.clone()).await;
            assert_eq!(whole["text"], said, "{whole}");
            assert_eq!(whole["finish"], "length");
            assert_eq!(whole["usage"]["completion_tokens"], tokens);

            let mut streamed = body.clone();
            streamed["stream"] = true.into();
            let plain = client.generate(streamed.clone()).await;
            assert_eq!(plain["text"], said, "{plain}");
            assert_eq!(plain["usage"], Value::Null, "nobody asked for it");
            assert!(plain["chunks"].as_u64().is_some_and(|chunks| chunks >= tokens as u64));

            streamed["stream_options"] = json!({"include_usage": true});
            let counted = client.generate(streamed).await;
            assert_eq!(counted["text"], said);
            assert_eq!(counted["usage"]["completion_tokens"], tokens);
            assert_eq!(counted["usage"]["prompt_tokens"], whole["usage"]["prompt_tokens"]);
        }
        let models = client.ask("models", json!({})).await;
        assert_eq!(models, json!(["sim-model", "sim-model"]));
        world.settle().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_streams_at_once() {
    let mut client = Client::start();
    for mode in [Mode::Read, Mode::Write] {
        let world = world(mode).await;
        client.talks_to(&world.proxy);
        let body = |n: usize| json!({"prompt": prompt(n), "max_tokens": 8 + n % 5, "stream": true});
        let bodies: Vec<Value> = (0..64).map(body).collect();
        let answers = client.ask("many", json!({"bodies": bodies})).await;
        let answers = answers.as_array().unwrap_or_else(|| panic!("{answers}"));
        assert_eq!(answers.len(), 64);
        for (n, answer) in answers.iter().enumerate() {
            assert_eq!(answer["text"], expected_text(&json!(prompt(n)), 8 + n % 5), "{n}: {answer}");
            assert_eq!(answer["finish"], "length");
        }
        world.settle().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_the_sdk_s_own_classes() {
    let mut client = Client::start();
    let world = Plan::new(Mode::Read).with(Key::Retries, "0").start().await;
    client.talks_to(&world.proxy);
    let good = json!({"prompt": "p", "max_tokens": 3});
    for stream in [false, true] {
        let mut two = json!({"prompt": "p", "max_tokens": 3, "n": 99});
        two["stream"] = stream.into();
        let raised = client.raises(two, "BadRequestError", 400, json!("invalid_request")).await;
        assert_eq!(raised["param"], "n");
        assert_eq!(raised["type"], "invalid_request_error");
    }
    let raised = client.ask("embeddings", json!({})).await;
    is_raised(&raised, "NotFoundError", 404, json!("not_found"));

    // An engine's own answer is the client's. The SDK makes text of every code.
    let refusal = json!({"error": {"message": "slow down", "type": "RateLimitError", "param": null, "code": 429}});
    let fault = |status: u16, body: &Value| {
        let body = body.to_string();
        Fault::times(FaultKind::Status { status, body }, 1)
    };
    for engine in [&world.prefill[0], &world.decode[0]] {
        engine.set_fault(fault(429, &refusal));
        let raised = client.raises(good.clone(), "RateLimitError", 429, json!("429")).await;
        assert!(raised["message"].as_str().is_some_and(|text| text.contains("slow down")), "{raised}");
    }
    world.prefill[0].set_fault(fault(500, &refusal));
    client.raises(good.clone(), "InternalServerError", 500, json!("429")).await;
    world.prefill[0].set_fault(Fault::times(FaultKind::NullTransferParams, 1));
    client.raises(good.clone(), "InternalServerError", 502, json!("prefill_without_blocks")).await;
    let whole = client.generate(good).await;
    assert_eq!(whole["text"], expected_text(&json!("p"), 3));
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_engines_a_slow_engine_and_a_wrong_key_have_their_classes() {
    let good = json!({"prompt": "p", "max_tokens": 3});
    let mut client = Client::start();
    let proxy = Proxy::start(&[(Key::ApiKey, "correct")]);
    client.talks_to(&proxy);
    client.raises(good.clone(), "AuthenticationError", 401, json!("invalid_api_key")).await;
    client.key = "correct";
    client.raises(good.clone(), "InternalServerError", 503, json!("no_pair")).await;

    let plan = Plan::new(Mode::Read).with(Key::PrefillTimeout, "6s");
    let world = plan.with(Key::Retries, "0").start().await;
    client.talks_to(&world.proxy);
    world.prefill[0].set_fault(Fault::times(FaultKind::Hang, 1));
    client.raises(good.clone(), "InternalServerError", 504, json!("engine_timeout")).await;
    let whole = client.generate(good).await;
    assert_eq!(whole["text"], expected_text(&json!("p"), 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_stream_is_an_error_and_no_silent_end() {
    let mut client = Client::start();
    for mode in [Mode::Read, Mode::Write] {
        let world = Plan::new(mode).start().await;
        client.talks_to(&world.proxy);
        for reset in [false, true] {
            for body in [
                json!({"prompt": "break", "max_tokens": 20, "stream": true}),
                json!({"messages": [{"role": "user", "content": "break"}], "max_tokens": 20, "stream": true}),
            ] {
                world.decode[0].set_fault(Fault::times(FaultKind::CutAfterTokens { tokens: 5, reset }, 1));
                let raised = client.generate(body.clone()).await;
                let classes = raised["raised"].as_array().unwrap_or_else(|| panic!("{raised}"));
                assert!(classes.contains(&json!("APIError")), "{raised}");
                assert_eq!(raised["code"], "engine_connection_broken", "{raised}");
                let mut whole = body;
                whole["stream"] = false.into();
                assert_eq!(client.generate(whole).await["finish"], "length");
            }
        }
        world.settle().await;
    }
}
