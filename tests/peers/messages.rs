//! The official Anthropic SDK as the client.

use std::sync::LazyLock;

use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Fault, FaultKind, Mode, rendered_text};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::agent::Agent;
use crate::support::{Plan, Proxy, World};

const PATH: &str = "/v1/messages";
const TOKENS: usize = 9;

/// The SDK, started once: to load it costs more processor time than all that a test has it do.
static SDK: LazyLock<Mutex<Agent>> = LazyLock::new(|| Mutex::new(Agent::start("messages.py", &[])));

/// The proxy that the SDK talks to.
struct Client {
    url: String,
    key: &'static str,
    /// Where the key stands.
    header: &'static str,
}

impl Client {
    /// Comes before the proxy, since the environment may have to be made for it.
    fn start() -> Client {
        LazyLock::force(&SDK);
        Client { url: String::new(), key: "none", header: "" }
    }

    fn talks_to(&mut self, proxy: &Proxy) {
        self.url = proxy.url("");
    }

    async fn ask(&mut self, operation: &str, body: &Value) -> Value {
        let (url, key, header) = (&self.url, self.key, self.header);
        SDK.lock().await.ask(json!({"do": operation, "url": url, "key": key, "header": header, "body": body})).await
    }

    /// The SDK must raise this class, and find this status, type and code in it, whichever way it is asked.
    async fn raises(&mut self, operation: &str, body: &Value, expected: (&str, u16, &str, Value)) -> Value {
        let raised = self.ask(operation, body).await;
        let (class, status, kind, code) = expected;
        let found = (&raised["raised"][0], &raised["status"], &raised["type"], &raised["code"]);
        assert_eq!(found, (&json!(class), &json!(status), &json!(kind), &code), "{operation} {raised}");
        assert!(raised["message"].as_str().is_some_and(|text| !text.is_empty()), "{raised}");
        raised
    }
}

fn body(words: &str, more: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": words}], "max_tokens": TOKENS});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn tools() -> Value {
    let schema = json!({"type": "object", "properties": {"words": {"type": "string"}}, "required": ["words"]});
    let tool = |name: &str| json!({"name": name, "description": "says words", "input_schema": schema});
    json!([tool("say"), tool("write"), tool("sing")])
}

fn good() -> Value {
    body("some words that fill more than one block of tokens, so that there is something to move", json!({}))
}

async fn world(mode: Mode) -> World {
    Plan::new(mode).engines(2, 2).start().await
}

fn said(body: &Value) -> String {
    rendered_text(PATH, body, TOKENS).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_come_back_whole_streamed_and_counted() {
    let mut client = Client::start();
    for mode in [Mode::Read, Mode::Write] {
        let world = world(mode).await;
        client.talks_to(&world.proxy);
        let blocks = json!([{"type": "text", "text": "Be brief."}, {"type": "text", "text": "And kind."}]);
        for more in [
            json!({}),
            json!({"system": "Be brief."}),
            json!({"system": blocks, "temperature": 0.5, "stop_sequences": ["zzz"], "metadata": {"user_id": "u"}}),
            json!({"tools": tools()}),
            json!({"tools": tools(), "tool_choice": {"type": "auto"}}),
            json!({"tools": tools(), "tool_choice": {"type": "none"}}),
        ] {
            let body = body("some words that fill more than one block, and a question at their end?", more);
            let text = said(&body);
            let mut asked = body.as_object().unwrap().clone();
            asked.retain(|key, _| ["messages", "system", "tools", "tool_choice"].contains(&key.as_str()));
            let count = client.ask("count", &json!(asked)).await;
            assert!(count.as_u64().is_some_and(|count| count > 10), "{count}");
            let usage = json!({"input_tokens": count, "output_tokens": TOKENS});
            for operation in ["whole", "beta", "stream"] {
                let answer = client.ask(operation, &body).await;
                assert_eq!(answer["blocks"], json!([{"type": "text", "text": text}]), "{operation} {answer}");
                let rest = (&answer["stop_reason"], &answer["usage"], &answer["role"]);
                assert_eq!(rest, (&json!("max_tokens"), &usage, &json!("assistant")), "{operation} {answer}");
            }
            let answer = client.ask("events", &body).await;
            assert_eq!((&answer["text"], &answer["stop_reason"]), (&json!(text), &json!("max_tokens")), "{answer}");
            assert_eq!(answer["usage"], usage);
            let names = answer["events"].as_array().unwrap();
            assert_eq!((&names[0], names.last().unwrap()), (&json!("message_start"), &json!("message_stop")));
            let deltas = names.iter().filter(|name| **name == "content_block_delta").count();
            assert_eq!(deltas, TOKENS, "{answer}");
        }
        for engine in world.engines() {
            assert!(!engine.legs().is_empty(), "every engine had its turn");
        }
        world.settle().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_that_must_be_called_is_called() {
    let mut client = Client::start();
    for mode in [Mode::Read, Mode::Write] {
        let world = world(mode).await;
        client.talks_to(&world.proxy);
        let named = json!({"type": "tool", "name": "write"});
        for (choice, name) in [(named, "write"), (json!({"type": "any"}), "say")] {
            let body = body("call a tool", json!({"tools": tools(), "tool_choice": choice}));
            let words = json!({"words": said(&body)});
            for operation in ["whole", "stream"] {
                let answer = client.ask(operation, &body).await;
                let block = &answer["blocks"][0];
                assert_eq!((&block["type"], &block["name"]), (&json!("tool_use"), &json!(name)), "{answer}");
                assert_eq!(block["input"], words, "{answer}");
                assert!(block["id"].as_str().is_some_and(|id| id.starts_with("toolu_")), "{answer}");
                assert_eq!(answer["stop_reason"], "tool_use", "{answer}");
            }
            let answer = client.ask("events", &body).await;
            let arguments: Value = serde_json::from_str(answer["arguments"].as_str().unwrap()).unwrap();
            assert_eq!((&arguments, &answer["stop_reason"]), (&words, &json!("tool_use")), "{answer}");
            for leg in world.decode.iter().flat_map(|engine| engine.legs()).filter(|leg| leg.path == PATH) {
                let sent: Value = serde_json::from_str(&leg.body).unwrap();
                assert!(["tool", "any"].map(Value::from).contains(&sent["tool_choice"]["type"]), "{sent}");
            }
            for leg in world.prefill.iter().flat_map(|engine| engine.legs()) {
                let sent: Value = serde_json::from_str(&leg.body).unwrap();
                assert_eq!((&sent["tool_choice"], &sent["max_tokens"]), (&json!({"type": "any"}), &json!(1)), "{sent}");
                assert_eq!(sent["tools"], tools());
            }
        }
        world.settle().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_the_sdk_s_own_classes() {
    let mut client = Client::start();
    for release in ["0.32.0", "0.33.0"] {
        let plan = Plan { release, ..Plan::new(Mode::Read).with(Key::Retries, "0") };
        let world = plan.with(Key::BreakerFailures, "100").start().await;
        client.talks_to(&world.proxy);
        // What is the proxy's to refuse.
        for operation in ["whole", "stream", "events"] {
            let zero = body("p", json!({"max_tokens": 0}));
            let invalid = ("BadRequestError", 400, "invalid_request_error", json!("invalid_request"));
            let raised = client.raises(operation, &zero, invalid).await;
            assert!(raised["message"].as_str().is_some_and(|text| text.contains("max_tokens")), "{raised}");
        }
        assert_eq!(world.total(|counters| counters.legs), 0);

        // What is an engine's, in either of its shapes and in none.
        let openai = json!({"error": {"message": "slow down", "type": "X", "param": null, "code": 1}}).to_string();
        let string = json!({"error": "slow down"}).to_string();
        let own = json!({"type": "error", "error": {"type": "rate_limit_error", "message": "slow down"}}).to_string();
        let tell = |status: u16, body: &str| Fault::times(FaultKind::Status { status, body: body.into() }, 1);
        for engine in [&world.prefill[0], &world.decode[0]] {
            for (shape, code) in
                [(&openai, json!("engine_answer")), (&string, json!("engine_answer")), (&own, json!(null))]
            {
                for operation in ["whole", "stream"] {
                    engine.set_fault(tell(429, shape));
                    let expected = ("RateLimitError", 429, "rate_limit_error", code.clone());
                    let raised = client.raises(operation, &good(), expected).await;
                    assert_eq!(raised["message"], "slow down", "{raised}");
                }
            }
            for (status, class, kind) in [
                (401, "AuthenticationError", "authentication_error"),
                (404, "NotFoundError", "not_found_error"),
                (413, "ContentTooLargeError", "request_too_large"),
                (500, "InternalServerError", "api_error"),
                (503, "ServiceUnavailableError", "overloaded_error"),
                (529, "OverloadedError", "overloaded_error"),
            ] {
                engine.set_fault(tell(status, &string));
                client.raises("whole", &good(), (class, status, kind, json!("engine_answer"))).await;
            }
        }
        world.prefill[0].set_fault(Fault::times(FaultKind::NullTransferParams, 1));
        let missing = ("InternalServerError", 502, "api_error", json!("prefill_without_blocks"));
        client.raises("stream", &good(), missing).await;

        // What an engine finds once the body is valid, and what it finds wrong with a count.
        let cold = body("p", json!({"temperature": -1}));
        let kind = if release == "0.33.0" { "invalid_request_error" } else { "BadRequestError" };
        client.raises("whole", &cold, ("BadRequestError", 400, kind, Value::Null)).await;
        let nothing = ("BadRequestError", 400, "invalid_request_error", json!("engine_answer"));
        client.raises("count", &json!({"messages": []}), nothing).await;

        let whole = client.ask("whole", &good()).await;
        assert_eq!(whole["blocks"][0]["text"], said(&good()), "{whole}");
        world.settle().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_engines_and_old_engines_have_their_classes() {
    let mut client = Client::start();
    let proxy = Proxy::start(&[]);
    client.talks_to(&proxy);
    for operation in ["whole", "stream"] {
        let nobody = ("ServiceUnavailableError", 503, "overloaded_error", json!("no_pair"));
        client.raises(operation, &good(), nobody).await;
    }
    let counted = json!({"messages": good()["messages"]});
    client.raises("count", &counted, ("ServiceUnavailableError", 503, "overloaded_error", json!("no_pair"))).await;

    for mode in [Mode::Read, Mode::Write] {
        let world = Plan { release: "0.23.0", ..Plan::new(mode) }.start().await;
        client.talks_to(&world.proxy);
        for operation in ["whole", "stream"] {
            let old = ("HTTPNotImplementedError", 501, "api_error", json!("engine_too_old"));
            let raised = client.raises(operation, &good(), old).await;
            assert!(raised["message"].as_str().is_some_and(|text| text.contains("0.24.0")), "{raised}");
        }
        // To count needs no pair, and every release can.
        assert!(client.ask("count", &counted).await.is_u64());
        assert_eq!(world.total(|counters| counters.legs), 0);
        world.settle().await;
    }

    let plan = Plan::new(Mode::Read).with(Key::PrefillTimeout, "6s");
    let world = plan.with(Key::Retries, "0").start().await;
    client.talks_to(&world.proxy);
    world.prefill[0].set_fault(Fault::times(FaultKind::Hang, 1));
    let late = ("GatewayTimeoutError", 504, "timeout_error", json!("engine_timeout"));
    client.raises("whole", &good(), late).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_taken_where_the_sdk_puts_them_and_engines_get_theirs() {
    let mut client = Client::start();
    let plan = Plan { adjust: |settings| settings.api_key = Some("for-engines".into()), ..Plan::new(Mode::Read) };
    let world = plan.with(Key::ApiKey, "correct").with(Key::OpenaiApiKey, "for-engines").start().await;
    client.talks_to(&world.proxy);
    let counted = json!({"messages": good()["messages"]});
    for header in ["x-api-key", "token", ""] {
        client.header = header;
        client.key = "wrong";
        for (operation, body) in [("whole", &good()), ("stream", &good()), ("count", &counted)] {
            let wrong = ("AuthenticationError", 401, "authentication_error", json!("invalid_api_key"));
            client.raises(operation, body, wrong).await;
        }
        client.key = "correct";
        let answer = client.ask("stream", &good()).await;
        assert_eq!(answer["blocks"][0]["text"], said(&good()), "{header} {answer}");
        assert!(client.ask("count", &counted).await.is_u64());
    }
    for leg in world.engines().flat_map(|engine| engine.legs()) {
        let found = |name: &str| leg.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str());
        assert_eq!((found("authorization"), found("x-api-key")), (Some("Bearer for-engines"), None));
    }
    world.settle().await;

    // Without a key of the proxy's own the client's is the engines', who read it in one place only.
    let plan = Plan { adjust: |settings| settings.api_key = Some("shared".into()), ..Plan::new(Mode::Write) };
    let world = plan.with(Key::Retries, "0").start().await;
    client.talks_to(&world.proxy);
    for header in ["x-api-key", ""] {
        (client.header, client.key) = (header, "shared");
        let answer = client.ask("whole", &good()).await;
        assert_eq!(answer["blocks"][0]["text"], said(&good()), "{header} {answer}");
        client.key = "strange";
        for (operation, body) in [("whole", &good()), ("count", &counted)] {
            let refused = ("AuthenticationError", 401, "authentication_error", json!("engine_answer"));
            client.raises(operation, body, refused).await;
        }
    }
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_stream_is_an_error_and_no_silent_end() {
    let forced = json!({"tools": tools(), "tool_choice": {"type": "tool", "name": "say"}});
    let mut client = Client::start();
    for mode in [Mode::Read, Mode::Write] {
        // A leg that breaks at once on a used connection would be repeated, since an engine may have closed that unread.
        let plan = Plan::new(mode).with(Key::Retries, "0");
        let world = plan.with(Key::BreakerFailures, "100").start().await;
        client.talks_to(&world.proxy);
        for body in [good(), body("break", forced.clone())] {
            for operation in ["stream", "events"] {
                for reset in [false, true] {
                    let cut = FaultKind::CutAfterTokens { tokens: 5, reset };
                    world.decode[0].set_fault(Fault::times(cut, 1));
                    let broken = ("APIStatusError", 200, "api_error", json!("engine_connection_broken"));
                    client.raises(operation, &body, broken).await;
                }
            }
            // On a connection that is new, and on one that an answer has come on before.
            for used in [false, true] {
                if used {
                    client.ask("whole", &body).await;
                }
                let cut = FaultKind::CutAfterTokens { tokens: 5, reset: false };
                world.decode[0].set_fault(Fault::times(cut, 1));
                let broken = ("InternalServerError", 502, "api_error", json!("engine_connection_broken"));
                client.raises("whole", &body, broken).await;
            }
        }
        world.settle().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_that_an_engine_tells_after_its_head_is_raised() {
    let mut client = Client::start();
    for (release, late) in [("0.32.0", "internal_error"), ("0.33.0", "overloaded_error")] {
        for mode in [Mode::Read, Mode::Write] {
            let plan = Plan { release, ..Plan::new(mode).with(Key::Retries, "0") };
            let world = plan.with(Key::BreakerFailures, "100").start().await;
            client.talks_to(&world.proxy);
            for operation in ["stream", "events"] {
                // In the middle of an answer it is the stream's last event.
                world.decode[0].set_fault(Fault::times(FaultKind::ErrorEvent { status: 503, tokens: 4 }, 1));
                client.raises(operation, &good(), ("APIStatusError", 200, late, Value::Null)).await;
                // Before any output it is the answer's status, as far as its type tells one. In WRITE prefill's success may
                // have been passed on by then.
                world.decode[0].set_fault(Fault::times(FaultKind::ErrorEvent { status: 503, tokens: 0 }, 1));
                let status = if release == "0.32.0" { 500 } else { 503 };
                let raised = client.ask(operation, &good()).await;
                assert_eq!((&raised["type"], &raised["message"]), (&json!(late), &json!("scripted")), "{raised}");
                let committed = mode == Mode::Write && raised["status"] == 200;
                assert!(committed || raised["status"] == status, "{raised}");
            }
            let answer = client.ask("stream", &good()).await;
            assert_eq!(answer["blocks"][0]["text"], said(&good()), "{answer}");
            world.settle().await;
        }
    }
}
