//! Engines whose ranks are spread over hosts.

use std::net::{IpAddr, SocketAddr};

use serde_json::{Map, Value, json};
use tokio::task::JoinHandle;

use super::{Engine, Mode, PROMPT, Role, Settings, pack, soon, text, until};
use crate::sim::zmtp::Connection;

mod flows;
mod lost;
mod mistakes;

const RELEASES: [&str; 3] = ["0.28.0", "0.32.0", "0.33.0"];
const BOTH: [bool; 2] = [false, true];

/// How decode is told which of its ranks asks for the push.
#[derive(Clone, Copy)]
enum Contract {
    /// The rank that has the leg, wherever a header sends it.
    Leader(Option<u32>),
    /// The rank of prefill's number.
    SameRank,
}

/// A prefill and a decode engine on hosts of their own.
struct Wide {
    prefill: Engine,
    decode: Engine,
    client: reqwest::Client,
}

/// One of the two requests of an exchange.
#[derive(Clone)]
struct Leg {
    to: SocketAddr,
    rank: Option<u32>,
    body: Value,
}

fn hosts(network: u8, count: u8) -> Vec<IpAddr> {
    (1..=count).map(|host| IpAddr::from([127, 0, network, host])).collect()
}

fn settings(role: Role, mode: Mode, release: &str, count: u8) -> Settings {
    let network = if role == Role::Prefill { 7 } else { 8 };
    let (hosts, dp) = (hosts(network, count), 2 * u32::from(count));
    Settings { release: release.into(), hosts, dp, ..Settings::new(role, mode, "") }
}

/// Where a leg for a rank goes, and with which header.
fn door(engine: &Engine, rank: u32) -> (SocketAddr, Option<u32>) {
    match engine.settings().children_serve {
        true => (engine.http_addresses()[rank as usize / 2], Some(rank % 2)),
        false => (engine.http_address(), Some(rank)),
    }
}

fn params(peer: &Engine, load: bool, transfer: &str) -> Value {
    let (settings, handshake) = (peer.settings(), peer.handshake_port());
    json!({
        "do_remote_decode": !load, "do_remote_prefill": load, "transfer_id": transfer,
        "remote_engine_id": if load { json!(format!("{}:{handshake}", settings.host)) } else { Value::Null },
        "remote_block_ids": if load { json!([]) } else { Value::Null },
        "remote_host": settings.host, "remote_port": handshake, "remote_handshake_port": handshake,
        "remote_notify_port": peer.notify_port(), "remote_hosts": settings.hosts, "remote_dp_size": settings.dp,
        "remote_dp_size_local": settings.dp / settings.hosts.len() as u32, "remote_tp_size": 1, "tp_size": 1,
    })
}

fn object(body: &mut Value) -> &mut Map<String, Value> {
    body["kv_transfer_params"].as_object_mut().unwrap()
}

impl Wide {
    /// Two ranks on each host.
    async fn start(mode: Mode, release: &str, children_serve: bool, counts: (u8, u8)) -> Self {
        let engine = async |role, count| {
            let settings = Settings { children_serve, ..settings(role, mode, release, count) };
            Engine::start(settings).await.unwrap()
        };
        let (prefill, decode) = (engine(Role::Prefill, counts.0).await, engine(Role::Decode, counts.1).await);
        Self { prefill, decode, client: reqwest::Client::new() }
    }

    fn body(limit: u32) -> Value {
        json!({"model": "sim-model", "prompt": PROMPT, "max_tokens": limit})
    }

    /// The prefill leg that a correct proxy builds for a rank, in both modes.
    fn prefill_leg(&self, transfer: &str, rank: u32) -> Leg {
        let (to, header) = door(&self.prefill, rank);
        let mut body = Self::body(1);
        body["min_tokens"] = json!(1);
        body["kv_transfer_params"] = params(&self.decode, false, transfer);
        Leg { to, rank: header, body }
    }

    /// WRITE's decode leg.
    fn decode_leg(&self, transfer: &str, rank: u32, contract: Contract) -> Leg {
        let mut body = Self::body(5);
        body["kv_transfer_params"] = params(&self.prefill, true, transfer);
        body["kv_transfer_params"]["remote_dp_rank"] = json!(rank);
        let (key, pin) = match contract {
            Contract::Leader(pin) => ("is_request_leader", pin),
            Contract::SameRank => ("remote_dp_rank_override", Some(rank)),
        };
        body["kv_transfer_params"][key] = json!(true);
        self.decode_to(pin, body)
    }

    fn decode_to(&self, pin: Option<u32>, body: Value) -> Leg {
        let (to, rank) = pin.map_or((self.decode.http_address(), None), |rank| door(&self.decode, rank));
        Leg { to, rank, body }
    }

    /// READ's decode leg, with prefill's rank as an engine of its own.
    fn aliased(&self, answer: &Value, rank: u32, pin: Option<u32>) -> Leg {
        let mut body = Self::body(5);
        body["kv_transfer_params"] = answer["kv_transfer_params"].clone();
        let params = object(&mut body);
        for (key, base) in [("handshake", self.prefill.handshake_port()), ("notify", self.prefill.notify_port())] {
            params.insert(format!("remote_{key}_port"), json!(u32::from(base) + rank % 2));
        }
        params.insert("remote_dp_rank".into(), json!(0));
        params.insert("remote_dp_size".into(), json!(1));
        params.shift_remove("remote_dp_size_local");
        self.decode_to(pin, body)
    }

    async fn send(&self, leg: &Leg) -> (u16, Value) {
        soon(post(self.client.clone(), leg.clone())).await
    }

    /// Sends a leg that may never be answered.
    fn spawn(&self, leg: &Leg) -> JoinHandle<(u16, Value)> {
        tokio::spawn(post(self.client.clone(), leg.clone()))
    }

    async fn write(&self, rank: u32, contract: Contract) {
        let transfer = transfer();
        let (first, second) = (self.prefill_leg(&transfer, rank), self.decode_leg(&transfer, rank, contract));
        let (prefill, decode) = tokio::join!(self.send(&first), self.send(&second));
        assert_eq!((prefill.0, decode.0, said(&decode.1)), (200, 200, text(5)), "{prefill:?} {decode:?}");
    }

    async fn read(&self, rank: u32, pin: Option<u32>) {
        let prefill = self.send(&self.prefill_leg(&transfer(), rank)).await;
        let decode = self.send(&self.aliased(&prefill.1, rank, pin)).await;
        assert_eq!((decode.0, said(&decode.1)), (200, text(5)), "{decode:?}");
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

async fn post(client: reqwest::Client, leg: Leg) -> (u16, Value) {
    let url = format!("http://{}/v1/completions", leg.to);
    let id = uuid::Uuid::new_v4().simple().to_string();
    let mut request = client.post(url).header("X-Request-Id", id).body(leg.body.to_string());
    if let Some(rank) = leg.rank {
        request = request.header("X-data-parallel-rank", rank.to_string());
    }
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    (status, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or_default())
}

fn transfer() -> String {
    format!("tx-{}", uuid::Uuid::new_v4().simple())
}

fn said(answer: &Value) -> String {
    answer["choices"][0]["text"].as_str().unwrap_or_default().to_owned()
}

fn noted(engine: &Engine, what: &str) -> bool {
    engine.violations().iter().any(|text| text.contains(what))
}

/// Sends one message to the notify port of a rank that lives on a host.
async fn tell(engine: &Engine, host: usize, local: u16, message: &Value) {
    let host = engine.settings().hosts[host].to_string();
    let mut connection = Connection::dial(&host, engine.notify_port() + local).await.unwrap();
    connection.send(&[pack(message).into()]).await.unwrap();
}
