//! Every fault of an engine, on either leg, in either mode: what the client sees, how the two legs are counted, and what the
//! breaker makes of it. After each, no block is held or lost and nothing is in flight.
//!
//! The table that this makes stands in docs/operations.md; `cargo test --test all matrix -- --nocapture` prints it.

use std::time::{Duration, Instant};

use futures::StreamExt;
use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Fault, FaultKind, Mode, Role};
use serde_json::json;

use crate::support::client::sum;
use crate::support::{Answer, Plan, World, completion, generate, post, strike, until};

const PROMPT: &str =
    "a prompt with blocks enough to be moved from one engine to the other, one two three four five six";

fn status(status: u16) -> FaultKind {
    FaultKind::Status { status, body: json!({"error": {"message": "scripted"}}).to_string() }
}

/// The faults that strike a leg, with their names in the table.
fn faults(mode: Mode, role: Role) -> Vec<(&'static str, FaultKind)> {
    let mut faults = vec![
        ("refuses connections", FaultKind::RefuseConnections),
        ("answers 400", status(400)),
        ("answers 429", status(429)),
        ("answers 500", status(500)),
        ("answers 503", status(503)),
        ("never answers", FaultKind::Hang),
        ("cuts before answering", FaultKind::CutBeforeAnswer { reset: true }),
    ];
    match (role, mode) {
        (Role::Prefill, Mode::Read) => faults.extend([
            ("answers without params", FaultKind::NullTransferParams),
            ("answers without block ids", FaultKind::NoBlockIds),
            ("answers 200 and no JSON", FaultKind::UnparsableBody),
        ]),
        (Role::Prefill, Mode::Write) => {}
        (Role::Decode, _) => faults.extend([
            ("hangs after 3 tokens", FaultKind::HangAfterTokens { tokens: 3 }),
            ("cuts after 3 tokens", FaultKind::CutAfterTokens { tokens: 3, reset: false }),
            ("tells a 503 after its 200", FaultKind::ErrorEvent { status: 503, tokens: 0 }),
            ("tells a 400 after its 200", FaultKind::ErrorEvent { status: 400, tokens: 0 }),
            ("tells a 500 after 3 tokens", FaultKind::ErrorEvent { status: 500, tokens: 3 }),
            ("fails to load the KV", FaultKind::LoadFails),
        ]),
    }
    faults
}

fn seen(answer: &Answer) -> String {
    if answer.status != 200 {
        let code = match answer.json()["error"]["code"].as_str() {
            Some(code) => code.to_owned(),
            None => "its own body".to_owned(),
        };
        return format!("{} {}: {code}", answer.status, answer.source());
    }
    if !answer.header("content-type").starts_with("text/event-stream") {
        return if answer.whole { "200, complete".into() } else { "200, then broken off".into() };
    }
    let error = answer.events().into_iter().find_map(|event| event.get("error").cloned());
    match (error, answer.body.contains("[DONE]")) {
        (None, true) => "200, complete".into(),
        (Some(error), false) => format!("200, then event {}", error["code"].as_str().unwrap()),
        (Some(error), true) => format!("200, then decode's own event {}", error["code"]),
        other => panic!("{other:?}: {}", answer.body),
    }
}

/// The statuses under which the legs of a role were counted, beyond the one good leg of the warm-up.
async fn counted(world: &World, role: &str) -> String {
    let text = world.proxy.metrics().await;
    let begin = format!("moriio_legs_total{{role=\"{role}\"");
    let mut found = Vec::new();
    for line in text.lines().filter(|line| line.starts_with(&begin)) {
        let status = line.split("status=\"").nth(1).unwrap().split('"').next().unwrap();
        let count: u64 = line.rsplit(' ').next().unwrap().parse().unwrap();
        found.extend(vec![status.to_owned(); (count - u64::from(status == "2xx")) as usize]);
    }
    if found.is_empty() { "not sent".into() } else { found.join(", ") }
}

/// What a fault comes to.
struct Outcome {
    client: String,
    rest: [String; 4],
}

/// Both forms of an answer in one row; where the rest differs it says so.
async fn row(mode: Mode, role: Role, name: &'static str, fault: FaultKind) -> String {
    let (streamed, whole) = tokio::join!(outcome(mode, role, fault.clone(), true), outcome(mode, role, fault, false));
    let mode = if mode == Mode::Read { "READ" } else { "WRITE" };
    let role = if role == Role::Prefill { "prefill" } else { "decode" };
    let rest = streamed.rest.into_iter().zip(whole.rest).map(|(streamed, whole)| match streamed == whole {
        true => streamed,
        false => format!("{streamed}; whole: {whole}"),
    });
    let rest: Vec<String> = rest.collect();
    format!("| {mode} | {role} {name} | {} | {} | {} |", streamed.client, whole.client, rest.join(" | "))
}

async fn outcome(mode: Mode, role: Role, fault: FaultKind, stream: bool) -> Outcome {
    let options = [
        (Key::Retries, "0"),
        (Key::ConnectTimeout, "500ms"),
        (Key::PrefillTimeout, "4s"),
        (Key::FirstByteTimeout, "2500ms"),
        (Key::AnswerTimeout, "2500ms"),
        (Key::StreamIdleTimeout, "1s"),
        (Key::UnparkTimeout, "2s"),
        (Key::BreakerOpen, "30s"),
    ];
    let mut plan = options.into_iter().fold(Plan::new(mode), |plan, (key, value)| plan.with(key, value));
    // What no message may free is freed by prefill's own timer, 60 s on real engines.
    // Prefill is slow enough to be at work when decode fails in WRITE.
    plan.adjust = |settings| {
        settings.defer_timeout = Duration::from_secs(6);
        settings.prefill_delay = Duration::from_millis(1000);
    };
    let world = plan.start().await;
    generate(&world.proxy, PROMPT, 6, stream).await;
    world.settle().await;
    let engine = if role == Role::Prefill { &world.prefill[0] } else { &world.decode[0] };
    if (mode, role) == (Mode::Write, Role::Prefill) {
        // The failure comes late enough for decode to be parked by then.
        engine.set_fault(Fault::always(FaultKind::Delay { milliseconds: 1000 }));
    }
    if (mode, &fault) == (Mode::Write, &FaultKind::LoadFails) {
        // Prefill has answered by then: otherwise the two race.
        engine.set_fault(Fault::always(FaultKind::Delay { milliseconds: 1600 }));
    }
    strike(engine, Fault::always(fault)).await;
    let answer = post(&world.proxy, "/v1/completions", &completion(PROMPT, 6, stream)).await;
    let client = seen(&answer);
    let (prefill, decode) = until("both legs to be counted", || async {
        // The gauge falls after a leg was counted, so it is read first.
        let busy = world.proxy.metric("moriio_legs_in_flight").await;
        let legs = (counted(&world, "prefill").await, counted(&world, "decode").await);
        (busy == 0.0 && legs.0 != "not sent").then_some(legs).ok_or(format!("{busy} in flight"))
    })
    .await;
    engine.clear_faults();
    world.settle().await;
    let address = engine.http_address().to_string();
    let (_, ready) = world.proxy.ready().await;
    let engines = ready["engines"].as_array().unwrap();
    let circuit = engines
        .iter()
        .find(|e| e["address"] == address)
        .map_or("closed", |e| e["circuit"].as_str().unwrap())
        .to_owned();
    let freed = freed_by(&world).await;
    Outcome { client, rest: [prefill, decode, circuit, freed] }
}

/// What freed the blocks that the fault had left behind. A message is counted once its engine has taken it, which may be after
/// all is at rest: the counts must stand for a while.
async fn freed_by(world: &World) -> String {
    let (mut stands, mut since) = (None, Instant::now());
    while stands.is_none() || since.elapsed() < Duration::from_millis(500) {
        let metrics = world.proxy.metrics().await;
        let sent = ["release", "unpark"].map(|kind| {
            let line = format!("moriio_kv_messages_total{{kind=\"{kind}\",outcome=\"sent\"");
            sum(&metrics, &line)
        });
        let seen = (sent, world.total(|c| c.reaped));
        if stands != Some(seen) {
            (stands, since) = (Some(seen), Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let ([release, unpark], reaped) = stands.expect("looked at least once");
    let by = [(release > 0.0, "release"), (unpark > 0.0, "un-park"), (reaped > 0, "prefill's timer")];
    let by: Vec<&str> = by.into_iter().filter_map(|(seen, word)| seen.then_some(word)).collect();
    if by.is_empty() { "nothing was left".into() } else { by.join(", ") }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_on_either_leg() {
    let mut rows = Vec::new();
    for mode in [Mode::Read, Mode::Write] {
        for role in [Role::Prefill, Role::Decode] {
            rows.extend(faults(mode, role).into_iter().map(|(name, fault)| row(mode, role, name, fault)));
        }
    }
    let rows: Vec<String> = futures::stream::iter(rows).buffered(10).collect().await;
    let head = "| Mode | Fault | Client sees, streamed | In one piece | Prefill leg | Decode leg | Circuit | Blocks freed by |\n|---|---|---|---|---|---|---|---|\n";
    let table = format!("{head}{}\n", rows.join("\n"));
    println!("{table}");
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md")).unwrap_or_default();
    let stands = page.split("<!-- faults -->\n").nth(1).and_then(|rest| rest.split("<!-- /faults -->").next());
    assert_eq!(stands, Some(table.as_str()), "the table of faults, between its markers, should read\n\n{table}");
}
