//! Requests as Claude Code sends them, byte for byte: what both legs get of them, and the answer.

use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Mode, ReceivedLeg, rendered_text};
use serde_json::{Value, json};

use crate::support::{Answer, PATIENCE, Plan, World, client, record};

const TOKENS: usize = 40;
const BETAS: &str = "claude-code-20250219,interleaved-thinking-2025-05-14,fine-grained-tool-streaming-2025-05-14";

fn tools() -> Vec<Value> {
    let names = ["Bash", "Glob", "Grep", "Read", "Edit", "Write", "WebFetch", "TodoWrite", "Task", "NotebookEdit"];
    let tool = |name: &str| {
        json!({"name": name, "description": format!("{name} does what it says, \u{2014} with \"quotes\"."),
            "input_schema": {"$schema": "http://json-schema.org/draft-07/schema#", "type": "object",
                "properties": {"path": {"type": "string", "description": "a path"}}, "required": ["path"],
                "additionalProperties": false}})
    };
    names.into_iter().map(tool).collect()
}

/// One turn of a longer talk. `bill` is what changes with each request.
fn turn(bill: &str) -> Value {
    let cached = json!({"type": "ephemeral"});
    json!({
        "model": "sim-model",
        "messages": [
            {"role": "user", "content": [
                {"type": "text", "text": "<system-reminder>\nAs you answer, mind the date.\n</system-reminder>"},
                {"type": "text", "text": "list the files, please"},
            ]},
            {"role": "assistant", "content": [
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "toolu_01", "name": "Bash", "input": {"path": "ls"}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "toolu_01", "content": "a.rs\nb.rs", "is_error": false,
                    "cache_control": cached},
            ]},
        ],
        "system": [
            {"type": "text", "text": format!("x-anthropic-billing-header: cc_version=2.1.77; cch={bill};")},
            {"type": "text", "text": "You are Claude Code.", "cache_control": cached},
            {"type": "text", "text": "Be concise. Mind the house rules.", "cache_control": cached},
        ],
        "tools": tools(),
        "metadata": {"user_id": "user_0123_account__session_4567"},
        "max_tokens": TOKENS,
        "thinking": {"type": "enabled", "budget_tokens": TOKENS - 1},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "stream": true,
    })
}

async fn send(world: &World, path: &str, body: &Value, credential: (&str, &str)) -> Answer {
    let id = record::fresh_id();
    let request = client().post(world.proxy.url(path)).header(credential.0, credential.1);
    let request = request
        .header("accept", "application/json")
        .header("content-type", "application/json")
        .header("user-agent", "claude-cli/2.1.77 (external, cli)")
        .header("x-app", "cli")
        .header("anthropic-version", "2023-06-01")
        .header("anthropic-beta", BETAS)
        .header("anthropic-dangerous-direct-browser-access", "true")
        .header("x-stainless-retry-count", "0")
        .header("x-request-id", &id);
    let sent = request.body(body.to_string()).send();
    let response = tokio::time::timeout(PATIENCE, sent).await.expect("an answer in time").expect("an answer");
    let mut answer = tokio::time::timeout(PATIENCE, Answer::of(response)).await.expect("an end in time");
    if !path.contains("count_tokens") {
        answer.record = record::record(&world.proxy, &id).await;
        record::check(&answer, &answer.record);
    }
    answer
}

fn header<'a>(leg: &'a ReceivedLeg, name: &str) -> Option<&'a str> {
    leg.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
}

/// What a leg got, but for what is the attempt's own.
fn sent(leg: &ReceivedLeg) -> Value {
    assert_eq!(leg.path, "/v1/messages");
    let mut body: Value = serde_json::from_str(&leg.body).unwrap();
    for own in ["kv_transfer_params", "request_id"] {
        assert!(body.as_object_mut().unwrap().shift_remove(own).is_some(), "{own} in {body}");
    }
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn claude_code_s_own_requests_are_served() {
    for (mode, release) in
        [(Mode::Read, "0.24.0"), (Mode::Write, "0.24.0"), (Mode::Read, "0.33.0"), (Mode::Write, "0.33.0")]
    {
        let world = Plan { release, ..Plan::new(mode) }.start().await;
        let mut texts = Vec::new();
        for (bill, credential) in [("00001", ("x-api-key", "mine")), ("fffff", ("authorization", "Bearer mine"))] {
            let body = turn(bill);
            let answer = send(&world, "/v1/messages?beta=true", &body, credential).await;
            assert_eq!(answer.status, 200, "{}", answer.body);
            answer.is_complete();
            assert!(
                answer.body.ends_with("event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"),
                "{}",
                answer.body
            );
            assert_eq!(Some(answer.text()), rendered_text("/v1/messages", &body, TOKENS));
            texts.push(answer.text());

            let (prefill, decode) = (world.prefill[0].legs().pop().unwrap(), world.decode[0].legs().pop().unwrap());
            for leg in [&prefill, &decode] {
                assert_eq!(header(leg, "anthropic-version"), Some("2023-06-01"));
                assert_eq!(header(leg, "anthropic-beta"), Some(BETAS));
                assert_eq!(header(leg, "x-app"), Some("cli"));
                assert_eq!((header(leg, "x-api-key"), header(leg, "authorization")), (None, Some("Bearer mine")));
            }
            assert_eq!(sent(&decode), body, "decode's leg is the client's");
            let mut first = body;
            (first["max_tokens"], first["stream"]) = (json!(1), json!(false));
            assert_eq!(sent(&prefill), first, "prefill's leg differs by the table alone");
        }
        assert_eq!(texts[0], texts[1], "what changes with each request is no part of the prompt");
        world.settle().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn counting_for_claude_code_is_one_engine_s_work() {
    let world = Plan::new(Mode::Read).with(Key::ApiKey, "correct").start().await;
    let mut body = turn("00001");
    for generating in ["max_tokens", "stream", "metadata"] {
        body.as_object_mut().unwrap().shift_remove(generating);
    }
    let path = "/v1/messages/count_tokens?beta=true";
    let answer = send(&world, path, &body, ("x-api-key", "correct")).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let counted = answer.json()["input_tokens"].clone();
    let whole = send(&world, "/v1/messages?beta=true", &turn("00002"), ("x-api-key", "correct")).await;
    assert_eq!(whole.events()[0]["message"]["usage"]["input_tokens"], counted, "{}", whole.body);

    let wrong = send(&world, path, &body, ("x-api-key", "wrong")).await;
    let told = wrong.json();
    assert_eq!((wrong.status, wrong.source()), (401, "client"));
    assert_eq!((&told["type"], &told["error"]["type"]), (&json!("error"), &json!("authentication_error")));
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_just_above_the_budget_for_thinking_stays_above_it() {
    for mode in [Mode::Read, Mode::Write] {
        // As users compare: decode is told one token less, unless an engine would refuse that.
        let world = Plan { release: "0.33.0", options: Vec::new(), ..Plan::new(mode) }.start().await;
        for (budget, told) in [(TOKENS - 1, TOKENS), (TOKENS - 2, TOKENS - 1)] {
            let mut body = turn("00001");
            body["thinking"]["budget_tokens"] = json!(budget);
            let answer = send(&world, "/v1/messages", &body, ("x-api-key", "mine")).await;
            assert_eq!(answer.status, 200, "{}", answer.body);
            let decode = world.decode[0].legs().pop().unwrap();
            assert_eq!(sent(&decode)["max_tokens"], told);
            assert_eq!(Some(answer.text()), rendered_text("/v1/messages", &body, told));
        }
        // What a client gets wrong itself is the engine's to refuse.
        let mut body = turn("00001");
        body["thinking"]["budget_tokens"] = json!(TOKENS);
        let answer = send(&world, "/v1/messages", &body, ("x-api-key", "mine")).await;
        let told = answer.json();
        assert_eq!(
            (answer.status, &told["type"], &told["error"]["type"]),
            (400, &json!("error"), &json!("invalid_request_error"))
        );
        assert!(told["error"]["message"].as_str().unwrap().contains("budget_tokens"), "{told}");
        world.settle().await;
    }
}
