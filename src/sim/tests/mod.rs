//! The simulator, driven by a hand that plays the proxy.

use std::future::Future;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::zmtp::Connection;
use super::{Counters, Engine, Mode, Role, Settings};

mod cache;
mod cli;
mod failure;
mod faults;
mod fields;
mod hosts;
mod mistakes;
mod pairs;
mod registration;
mod timing;
mod turns;

/// A prefill and a decode engine that registered nowhere.
struct Pair {
    prefill: Engine,
    decode: Engine,
    mode: Mode,
    client: reqwest::Client,
}

/// The two legs of an exchange, to be spoilt by tests.
struct Legs {
    id: String,
    transfer: String,
    prefill: Value,
    decode: Value,
    rank: Option<u32>,
}

const PROMPT: &str =
    "The quick brown fox jumps over the lazy dog, again and again, until it has filled more than one block.";

impl Pair {
    async fn start(mode: Mode, release: &str) -> Self {
        Self::with(mode, release, |_| {}).await
    }

    async fn with(mode: Mode, release: &str, change: impl Fn(&mut Settings)) -> Self {
        let engine = async |role| {
            let mut settings = Settings { release: release.into(), ..Settings::new(role, mode, "") };
            change(&mut settings);
            Engine::start(settings).await.unwrap()
        };
        let client = reqwest::Client::new();
        Self { prefill: engine(Role::Prefill).await, decode: engine(Role::Decode).await, mode, client }
    }

    fn address(engine: &Engine) -> String {
        format!("host:127.0.0.1,handshake:{},notify:{}", engine.handshake_port(), engine.notify_port())
    }

    /// The legs a correct proxy would build, but for READ's answer.
    fn legs(&self, tokens: usize) -> Legs {
        let hex = uuid::Uuid::new_v4().simple().to_string();
        let id = format!(
            "___prefill_addr_{}___decode_addr_{}_{hex}",
            Self::address(&self.prefill),
            Self::address(&self.decode)
        );
        let transfer = format!("tx-{}", uuid::Uuid::new_v4().simple());
        let params = |to_prefill: bool, peer: &Engine| {
            json!({
                "do_remote_decode": to_prefill, "do_remote_prefill": !to_prefill, "transfer_id": transfer,
                "remote_engine_id": null, "remote_block_ids": null, "remote_host": "127.0.0.1",
                "remote_port": peer.handshake_port(), "remote_handshake_port": peer.handshake_port(),
                "remote_notify_port": peer.notify_port(), "remote_dp_size": peer.settings().dp,
                "remote_tp_size": peer.settings().tp, "tp_size": peer.settings().tp,
            })
        };
        let body =
            |limit: usize| json!({"model": "sim-model", "prompt": PROMPT, "max_tokens": limit, "request_id": id});
        let (mut prefill, mut decode) = (body(1), body(tokens));
        prefill["min_tokens"] = json!(1);
        prefill["kv_transfer_params"] = params(true, &self.decode);
        decode["kv_transfer_params"] = params(false, &self.prefill);
        Legs { id, transfer, prefill, decode, rank: None }
    }

    fn post(&self, engine: &Engine, legs: &Legs, body: &Value, rank: Option<u32>) -> reqwest::RequestBuilder {
        self.post_to("/v1/completions", engine, legs, body, rank)
    }

    fn post_to(
        &self,
        path: &str,
        engine: &Engine,
        legs: &Legs,
        body: &Value,
        rank: Option<u32>,
    ) -> reqwest::RequestBuilder {
        let mut request = self
            .client
            .post(format!("http://{}{path}", engine.http_address()))
            .header("X-Request-Id", &legs.id)
            .body(body.to_string());
        if let Some(rank) = rank {
            request = request.header("X-data-parallel-rank", rank.to_string());
        }
        request
    }

    async fn send_prefill(&self, legs: &Legs) -> reqwest::Result<Value> {
        let answer = self.post(&self.prefill, legs, &legs.prefill, legs.rank).send().await?;
        Ok(serde_json::from_slice(&answer.bytes().await?).unwrap())
    }

    /// Adds to READ's decode leg what prefill told.
    fn hand_over(legs: &mut Legs, answer: &Value) {
        let told = answer["kv_transfer_params"].as_object().cloned().unwrap_or_default();
        let mut params: Map<String, Value> = told;
        for (key, value) in legs.decode["kv_transfer_params"].as_object().unwrap() {
            params.entry(key.clone()).or_insert_with(|| value.clone());
        }
        legs.decode["kv_transfer_params"] = Value::Object(params);
    }

    fn decode_request(&self, legs: &Legs) -> reqwest::RequestBuilder {
        self.post(&self.decode, legs, &legs.decode, None)
    }

    /// Runs a whole exchange and gives decode's status and text.
    async fn exchange(&self, mut legs: Legs) -> (u16, String) {
        let decode = if self.mode == Mode::Read {
            let answer = self.send_prefill(&legs).await.unwrap();
            Self::hand_over(&mut legs, &answer);
            self.decode_request(&legs).send().await.unwrap()
        } else {
            let (prefill, decode) = tokio::join!(self.send_prefill(&legs), self.decode_request(&legs).send());
            prefill.unwrap();
            decode.unwrap()
        };
        let status = decode.status().as_u16();
        let body: Value = serde_json::from_slice(&decode.bytes().await.unwrap()).unwrap();
        (status, body["choices"][0]["text"].as_str().unwrap_or_default().to_string())
    }

    /// Everything is given back and nothing was done wrong.
    async fn clean(&self) {
        for engine in [&self.prefill, &self.decode] {
            until(engine, "idle", |counters| counters.held + counters.running + counters.used_blocks == 0).await;
            assert_eq!(engine.violations(), Vec::<String>::new());
            let counters = engine.counters();
            let faults = (counters.leaked_blocks, counters.deaf, counters.died, counters.kv_mismatch, counters.reaped);
            assert_eq!(faults, (0, 0, 0, 0, 0), "{counters:?}");
        }
    }
}

fn text(tokens: usize) -> String {
    super::expected_text(&json!(PROMPT), tokens)
}

/// Waits for an engine's counters to become so.
async fn until(engine: &Engine, what: &str, reached: impl Fn(&Counters) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !reached(&engine.counters()) {
        assert!(Instant::now() < deadline, "never {what}: {:?} {:?}", engine.counters(), engine.violations());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Bounds a wait that must end.
async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work).await.expect("took a minute")
}

/// Sends one message to a KV port.
async fn tell(port: u16, frames: &[&[u8]]) {
    let mut connection = Connection::dial("127.0.0.1", port).await.unwrap();
    let frames: Vec<bytes::Bytes> = frames.iter().map(|frame| bytes::Bytes::copy_from_slice(frame)).collect();
    connection.send(&frames).await.unwrap();
}

fn pack(message: &Value) -> Vec<u8> {
    rmp_serde::to_vec_named(message).unwrap()
}
