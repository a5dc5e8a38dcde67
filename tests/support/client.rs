//! The client's side: requests, what came back, and streams that are read piece by piece.

use std::sync::LazyLock;
use std::time::Instant;

use moriio_proxy::api::Api;
use moriio_proxy::sim::{expected_text, expected_tokens};
use serde_json::{Value, json};

use super::{PATIENCE, Proxy, record};

/// What came back for one request.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: http::HeaderMap,
    pub body: String,
    /// Whether the body came to its end; false when the connection broke.
    pub whole: bool,
    /// The proxy's record of the exchange, where [`post`] made the request.
    pub record: serde_json::Map<String, Value>,
}

impl Answer {
    pub async fn of(response: reqwest::Response) -> Answer {
        let mut answer = Answer {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: String::new(),
            whole: false,
            record: serde_json::Map::new(),
        };
        let mut response = response;
        loop {
            match response.chunk().await {
                Ok(Some(part)) => answer.body.push_str(&String::from_utf8_lossy(&part)),
                Ok(None) => {
                    answer.whole = true;
                    return answer;
                }
                Err(_) => return answer,
            }
        }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The events of a stream, without the end marker.
    pub fn events(&self) -> Vec<Value> {
        let data = self.body.lines().filter_map(|line| line.strip_prefix("data: "));
        data.filter(|data| *data != "[DONE]")
            .map(|data| serde_json::from_str(data).unwrap_or_else(|error| panic!("{error}: {data}")))
            .collect()
    }

    /// A good answer that was recorded as one.
    pub fn is_complete(&self) {
        assert!(self.whole && self.record["ended"] == "complete", "{:?}", self.record);
    }

    fn is_stream(&self) -> bool {
        self.header("content-type").starts_with("text/event-stream")
    }

    /// The generated text, streamed or not, of completions, chat, responses or messages; of a tool's call its words.
    pub fn text(&self) -> String {
        let piece = |value: &Value| {
            let choice = &value["choices"][0];
            let text = [
                &choice["text"],
                &choice["delta"]["content"],
                &choice["message"]["content"],
                &value["delta"],
                &value["delta"]["text"],
                &value["content"][0]["text"],
                &value["content"][0]["input"]["words"],
                &value["output"][0]["content"][0]["text"],
            ];
            text.iter().find_map(|t| t.as_str()).unwrap_or_default().to_owned()
        };
        if !self.is_stream() {
            return piece(&self.json());
        }
        let events = self.events();
        let input: String = events.iter().filter_map(|event| event["delta"]["partial_json"].as_str()).collect();
        if input.is_empty() {
            return events.iter().map(piece).collect();
        }
        let input: Value = serde_json::from_str(&input).unwrap_or_else(|error| panic!("{error}: {input}"));
        input["words"].as_str().unwrap_or_default().to_owned()
    }

    /// The text of each of several choices, streamed or not, of completions or chat.
    pub fn texts(&self, count: usize) -> Vec<String> {
        assert_eq!(self.status, 200, "{}", self.body);
        let parts = if self.is_stream() { self.events() } else { vec![self.json()] };
        let mut texts = vec![String::new(); count];
        for choice in parts.iter().filter_map(|part| part["choices"].as_array()).flatten() {
            let text = [&choice["text"], &choice["message"]["content"], &choice["delta"]["content"]];
            let text = text.iter().find_map(|text| text.as_str()).unwrap_or_default();
            texts[choice["index"].as_u64().unwrap() as usize].push_str(text);
        }
        texts
    }

    /// The generated token numbers, of generate.
    pub fn tokens(&self) -> Vec<usize> {
        let events = if self.is_stream() { self.events() } else { vec![self.json()] };
        let lists = events.iter().filter_map(|event| event["choices"][0]["token_ids"].as_array());
        lists.flatten().map(|token| usize::try_from(token.as_u64().unwrap()).unwrap()).collect()
    }

    pub fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }

    pub fn source(&self) -> &str {
        self.header("x-moriio-error-source")
    }
}

/// A client that keeps its connections.
pub fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

/// A client that opens a connection for each request and keeps none, so that all tests can share it: a kept one belongs to the
/// runtime of the test that opened it. Making a client costs more than most requests.
pub fn passing() -> &'static reqwest::Client {
    static CLIENT: LazyLock<reqwest::Client> =
        LazyLock::new(|| reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap());
    &CLIENT
}

/// The values of all lines of `/metrics` that begin so, summed.
pub fn sum(metrics: &str, begins: &str) -> f64 {
    let lines = metrics.lines().filter(|line| line.starts_with(begins));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// A completions body.
pub fn completion(prompt: &str, tokens: usize, stream: bool) -> Value {
    json!({"model": "sim-model", "prompt": prompt, "max_tokens": tokens, "stream": stream, "temperature": 0})
}

/// Sends a request and waits for all of its answer. The record of an exchange must fit what came back.
pub async fn post(proxy: &Proxy, path: &str, body: &Value) -> Answer {
    post_as(proxy, path, &[], body).await
}

/// The same with more headers.
pub async fn post_as(proxy: &Proxy, path: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
    let id = record::fresh_id();
    let request =
        passing().post(proxy.url(path)).header("content-type", "application/json").header("x-request-id", &id);
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let sent = request.body(body.to_string()).send();
    let response = tokio::time::timeout(PATIENCE, sent).await.expect("an answer in time").expect("an answer");
    let mut answer = tokio::time::timeout(PATIENCE, Answer::of(response)).await.expect("an end in time");
    if Api::from_path(path).is_some() {
        assert_eq!(answer.headers.remove("x-request-id").expect("an echo"), id.as_str());
        answer.record = record::record(proxy, &id).await;
        record::check(&answer, &answer.record);
    }
    answer
}

/// Sends a completion and compares its text with one engine's.
pub async fn generate(proxy: &Proxy, prompt: &str, tokens: usize, stream: bool) {
    let answer = post(proxy, "/v1/completions", &completion(prompt, tokens, stream)).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.text(), expected_text(&json!(prompt), tokens), "{}", answer.body);
    answer.is_complete();
}

/// A request to any of the APIs, and the check of its answer.
pub struct Ask {
    pub api: Api,
    pub body: Value,
    prompt: Value,
    tokens: usize,
}

impl Ask {
    /// Asks for so many tokens. `seed` makes prompts differ.
    pub fn new(api: Api, seed: usize, tokens: usize, stream: bool) -> Ask {
        let words =
            format!("prompt number {seed}: a few words more, so that it fills several blocks of tokens, not one");
        let (key, prompt) = match api {
            Api::Completions => ("prompt", json!(words)),
            Api::Chat | Api::Messages => ("messages", json!([{"role": "user", "content": words}])),
            Api::Responses => ("input", json!(words)),
            Api::Generate => ("token_ids", json!((seed..seed + 50).collect::<Vec<_>>())),
        };
        let mut body = json!({"model": "sim-model", "stream": stream});
        body[key] = prompt.clone();
        match api {
            Api::Completions | Api::Chat | Api::Messages => body["max_tokens"] = json!(tokens),
            Api::Responses => body["max_output_tokens"] = json!(tokens),
            Api::Generate => body["sampling_params"] = json!({"max_tokens": tokens}),
        }
        Ask { api, body, prompt, tokens }
    }

    /// Sends it and compares what comes back with one undivided engine's answer.
    pub async fn check(&self, proxy: &Proxy) -> Answer {
        let answer = post(proxy, self.api.path(), &self.body).await;
        let what = format!("{:?} {}", self.api, answer.body);
        assert_eq!(answer.status, 200, "{what}");
        answer.is_complete();
        if self.api == Api::Generate {
            assert_eq!(answer.tokens(), expected_tokens(&self.prompt, self.tokens), "{what}");
        } else {
            assert_eq!(answer.text(), expected_text(&self.prompt, self.tokens), "{what}");
        }
        if self.body["stream"] == true && !matches!(self.api, Api::Responses | Api::Messages) {
            assert!(answer.body.ends_with("data: [DONE]\n\n"), "{what}");
        }
        answer
    }
}

/// A stream whose client reads as it likes; dropping it is leaving.
pub struct Stream {
    response: reqwest::Response,
    pub seen: String,
}

impl Stream {
    pub async fn open(proxy: &Proxy, path: &str, body: &Value) -> Stream {
        let sent = passing().post(proxy.url(path)).body(body.to_string()).send();
        let response = tokio::time::timeout(PATIENCE, sent).await.expect("a head in time").expect("a head");
        assert_eq!(response.status(), 200);
        Stream { response, seen: String::new() }
    }

    /// Reads until `enough` is content with what has come.
    pub async fn read_until(&mut self, what: &str, enough: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !enough(&self.seen) {
            let left = deadline.saturating_duration_since(Instant::now());
            let part = tokio::time::timeout(left, self.response.chunk()).await;
            let part = part.unwrap_or_else(|_| panic!("no {what} in {}", self.seen));
            let part = part.expect("an unbroken stream").expect("more to come");
            self.seen.push_str(&String::from_utf8_lossy(&part));
        }
    }

    /// Reads to the end.
    pub async fn finish(self) -> Answer {
        let mut answer = tokio::time::timeout(PATIENCE, Answer::of(self.response)).await.expect("an end in time");
        answer.body.insert_str(0, &self.seen);
        answer
    }
}
