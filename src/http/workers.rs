//! What is asked of vllm-router about its engines, in that program's shapes, with what is true here.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use serde_json::{Map, json};

use super::server::{Server, json as answer};
use crate::pool::Engine;

fn url(engine: &Engine) -> String {
    engine.registration.http.url("")
}

/// Every engine, and how many of each role can be used.
pub(super) async fn workers(State(server): State<Arc<Server>>) -> Response {
    let (pool, now) = (server.pool(), Instant::now());
    let worker = |engine: &Arc<Engine>| {
        json!({
            "url": url(engine),
            // No engine was asked.
            "model_id": "unknown",
            "worker_type": engine.role().as_str(),
            "is_healthy": engine.is_usable(now),
            "load": engine.vitals.in_flight(),
            "connection_mode": "Http",
            "priority": 50,
            "cost": 1.0,
        })
    };
    let workers: Vec<_> = pool.engines().map(worker).collect();
    let count = |engines: &[Arc<Engine>]| engines.iter().filter(|engine| engine.is_usable(now)).count();
    let (prefill, decode) = (count(&pool.prefill), count(&pool.decode));
    let stats = json!({"prefill_count": prefill, "decode_count": decode, "regular_count": 0});
    answer(StatusCode::OK, &json!({"total": workers.len(), "workers": workers, "stats": stats}))
}

/// The URLs of all engines.
pub(super) async fn urls(State(server): State<Arc<Server>>) -> Response {
    let urls: Vec<String> = server.pool().engines().map(|engine| url(engine)).collect();
    answer(StatusCode::OK, &json!({"urls": urls}))
}

/// The legs that each engine has in flight.
pub(super) async fn loads(State(server): State<Arc<Server>>) -> Response {
    let load = |engine: &Arc<Engine>| (format!("{}_{}", engine.role(), url(engine)), json!(engine.vitals.in_flight()));
    let loads: Map<_, _> = server.pool().engines().map(load).collect();
    answer(StatusCode::OK, &json!({"loads": loads, "errors": []}))
}
