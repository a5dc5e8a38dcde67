//! One request: sent, followed through both legs, streamed to its end, and compared with what one undivided engine would say.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::paper::{Paper, shortened};
use super::stage::{DemoError, PATIENCE, Stage};
use crate::sim::{Engine, ReceivedLeg, Role, expected_text};

/// Where a chunk or an answer has its text, for both APIs, streamed or not.
const TEXT_AT: [&str; 3] = ["/choices/0/delta/content", "/choices/0/message/content", "/choices/0/text"];

/// A request to be shown.
pub(super) struct Scene {
    path: &'static str,
    prompt: Value,
    body: Value,
    tokens: usize,
    stream: bool,
}

impl Scene {
    /// The scenes of one mode.
    pub(super) fn all() -> [Scene; 2] {
        let messages = json!([
            {"role": "system", "content": "You answer in words of three letters."},
            {"role": "user", "content": "What does a prefill engine hand to a decode engine, and who carries it?"},
        ]);
        let prompt = json!(
            "A router knows where every engine keeps its KV, but never touches a block of it: the blocks move by RDMA, \
             and what the router moves is the knowledge of where they are."
        );
        [
            Scene {
                path: "/v1/chat/completions",
                body: json!({"model": "sim-model", "messages": messages, "max_tokens": 25, "stream": true}),
                prompt: messages,
                tokens: 25,
                stream: true,
            },
            Scene {
                path: "/v1/completions",
                body: json!({"model": "sim-model", "prompt": prompt, "max_tokens": 13, "stream": false}),
                prompt,
                tokens: 13,
                stream: false,
            },
        ]
    }

    /// Plays the scene; says how many checks failed.
    pub(super) async fn play(&self, paper: &Paper, stage: &Stage) -> Result<usize, DemoError> {
        let streamed = if self.stream { "streamed" } else { "in one piece" };
        paper.line("");
        paper.fact(
            "client",
            &format!("{} max_tokens {}, {streamed}", paper.bold(&format!("POST {}", self.path)), self.tokens),
        );
        let before: Vec<u64> = stage.engines.iter().map(|engine| engine.counters().legs).collect();
        let began = Instant::now();
        let request = stage.client.post(stage.url(self.path)).header("content-type", "application/json");
        let mut response = request.body(self.body.to_string()).send().await?;
        let status = response.status();
        let legs = received(stage, &before, status.is_success()).await?;
        for (engine, leg) in &legs {
            describe(paper, engine, leg);
        }
        paper.bit(&format!("  {} ", paper.dim("text     ")));
        let mut answer = Answer::new(self.stream);
        while let Some(part) = response.chunk().await? {
            for piece in answer.take(&part) {
                paper.bit(&paper.voice(&piece));
            }
        }
        paper.bit(&paper.voice(&answer.finish()));
        paper.line("");
        Ok(self.check(paper, status.as_u16(), &answer, &legs, began.elapsed()))
    }

    fn check(
        &self,
        paper: &Paper,
        status: u16,
        answer: &Answer,
        legs: &[(&Engine, ReceivedLeg)],
        took: Duration,
    ) -> usize {
        // Decode is given the client's limit less one: the default, which those who come from other proxies compare with.
        let expected = expected_text(&self.prompt, self.tokens - 1);
        let problem = match (status, answer.text == expected) {
            (200, true) if self.stream && !answer.done => Some("the stream had no [DONE]".into()),
            (200, true) => None,
            (200, false) => Some(format!("{expected:?} was expected")),
            _ => Some(format!("status {status}: {}", String::from_utf8_lossy(&answer.rest))),
        };
        let what = format!(
            "{status} in {} ms, {} tokens (the limit less one), the text of one undivided engine",
            took.as_millis(),
            answer.text.split_whitespace().count()
        );
        let wrong = paper.check(&what, problem);
        wrong + paper.check("both legs carry one transfer id, one request id and one rank", disagreement(legs))
    }
}

/// What the legs contradict each other in, if anything.
fn disagreement(legs: &[(&Engine, ReceivedLeg)]) -> Option<String> {
    let [(_, prefill), (_, decode)] = legs else {
        return Some(format!("there were {} legs", legs.len()));
    };
    let transfer = |leg: &ReceivedLeg| leg.transfer_params["transfer_id"].as_str().map(str::to_owned);
    let rank = prefill.header("x-data-parallel-rank").and_then(|rank| rank.parse::<u64>().ok());
    let request_id = prefill.header("x-request-id");
    if transfer(prefill).is_none() || transfer(prefill) != transfer(decode) {
        Some("the transfer ids differ".into())
    } else if request_id.is_none() || request_id != decode.header("x-request-id") {
        Some("the request ids differ".into())
    } else if rank.is_none() || rank != decode.transfer_params["remote_dp_rank"].as_u64() {
        Some("the ranks differ".into())
    } else {
        None
    }
}

/// The legs that arrived since `before`, prefill first. In WRITE mode decode's may still be on its way.
async fn received<'a>(
    stage: &'a Stage,
    before: &[u64],
    both: bool,
) -> Result<Vec<(&'a Engine, ReceivedLeg)>, DemoError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut legs = Vec::new();
        for (engine, before) in stage.engines.iter().zip(before) {
            let new = engine.legs().into_iter().filter(|leg| leg.sequence > *before);
            legs.extend(new.map(|leg| (engine, leg)));
        }
        if legs.len() >= 2 || !both {
            return Ok(legs);
        }
        if Instant::now() > deadline {
            return Err(DemoError::Late(String::from("the second leg")));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn describe(paper: &Paper, engine: &Engine, leg: &ReceivedLeg) {
    let role = match engine.settings().role {
        Role::Prefill => "prefill",
        Role::Decode => "decode",
    };
    let rank = leg.header("x-data-parallel-rank").map_or(String::new(), |rank| format!(", rank {rank}"));
    paper.fact(
        role,
        &format!(
            "{} received {}, x-request-id {}{rank}",
            engine.http_address(),
            leg.path,
            shortened(leg.header("x-request-id").unwrap_or("missing"))
        ),
    );
    let body = leg.json();
    let fields = ["stream", "max_tokens", "min_tokens"].iter().filter_map(|key| {
        let value = body.get(*key)?;
        Some(format!("{key} {value}"))
    });
    paper.line(&format!("      {}", fields.collect::<Vec<_>>().join(", ")));
    match leg.transfer_params.as_object() {
        Some(params) => paper.object(params),
        None => paper.line("      no kv_transfer_params"),
    }
}

/// An answer as far as it has come.
struct Answer {
    stream: bool,
    rest: Vec<u8>,
    text: String,
    done: bool,
}

impl Answer {
    fn new(stream: bool) -> Self {
        let (rest, text, done) = (Vec::new(), String::new(), false);
        Answer { stream, rest, text, done }
    }

    /// Takes a part of the body and gives the texts that it completes.
    fn take(&mut self, part: &[u8]) -> Vec<String> {
        self.rest.extend_from_slice(part);
        let mut pieces = Vec::new();
        while self.stream {
            let Some(end) = self.rest.windows(2).position(|two| two == b"\n\n") else {
                break;
            };
            let event: Vec<u8> = self.rest.drain(..end + 2).collect();
            let data = event.trim_ascii().strip_prefix(b"data: ").unwrap_or_default();
            self.done |= data == b"[DONE]";
            if let Some(piece) = text_of(data) {
                self.text.push_str(&piece);
                pieces.push(piece);
            }
        }
        pieces
    }

    /// The text of an answer in one piece; what has been streamed is not given again.
    fn finish(&mut self) -> String {
        if self.stream {
            return String::new();
        }
        self.text = text_of(&self.rest).unwrap_or_default();
        self.text.clone()
    }
}

fn text_of(json: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(json).ok()?;
    TEXT_AT.iter().find_map(|at| value.pointer(at)?.as_str().map(str::to_owned))
}
