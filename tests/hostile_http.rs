//! Clients that mean harm, or are merely broken, over raw sockets. After each of them a good request must find the proxy as it
//! was, and no engine may have seen more than the one leg that an accepted request is.

mod bodies;
mod crowds;
mod heads;
mod limits;
mod places;
mod queue;
mod wire;

use moriio_proxy::sim::Mode;

use crate::support::{Plan, World, generate};

/// One engine of each role behind a proxy with small limits.
async fn world(plan: Plan) -> World {
    plan.start().await
}

fn plan() -> Plan {
    Plan::new(Mode::Read)
}

/// A completions request over HTTP/1.1 with these further header lines (each with its line end) and this body.
fn completions(headers: &str, body: &[u8]) -> Vec<u8> {
    let head =
        format!("POST /v1/completions HTTP/1.1\r\nhost: proxy\r\ncontent-type: application/json\r\n{headers}\r\n");
    [head.as_bytes(), body].concat()
}

/// The same with a correct `content-length`.
fn framed(body: &[u8]) -> Vec<u8> {
    completions(&format!("content-length: {}\r\n", body.len()), body)
}

fn body(prompt: &str) -> Vec<u8> {
    format!(r#"{{"model":"sim-model","prompt":"{prompt}","max_tokens":3,"temperature":0}}"#).into_bytes()
}

fn chunked(parts: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    for part in parts {
        out.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
        out.extend_from_slice(part);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"0\r\n\r\n");
    out
}

/// Legs that each engine has seen since it started.
fn legs(world: &World) -> Vec<u64> {
    world.engines().map(|engine| engine.counters().legs).collect()
}

/// A good request, after which every engine has seen `since` plus `accepted` legs, this one's included.
async fn still_good(world: &World, name: &str, since: &[u64], accepted: u64) {
    generate(&world.proxy, "a good request", 4, false).await;
    let want: Vec<u64> = since.iter().map(|legs| legs + accepted + 1).collect();
    assert_eq!(legs(world), want, "legs by engine after {name}");
}
