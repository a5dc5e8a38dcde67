//! What barrier scripts, balancers and scrapers ask. No engine is asked for any of it.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
use serde_json::json;

use super::server::{Server, json as answer};
use crate::engine::{Mode, reach};
use crate::pool::history::PairState;
use crate::pool::{Claim, Engine, Pool};

fn counts(pool: &Pool) -> (usize, usize) {
    (pool.prefill.len(), pool.decode.len())
}

pub(super) async fn health(State(server): State<Arc<Server>>) -> Response {
    let pool = server.pool();
    let (prefill, decode) = counts(&pool);
    let (status, word) = match server.health.is_up(&pool) {
        true => (StatusCode::OK, "healthy"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "waiting for the first pair"),
    };
    answer(status, &json!({"status": word, "prefill_instances": prefill, "decode_instances": decode}))
}

pub(super) async fn liveness() -> Response {
    answer(StatusCode::OK, &json!({"status": "alive"}))
}

pub(super) async fn version() -> Response {
    answer(StatusCode::OK, &json!({"version": env!("CARGO_PKG_VERSION")}))
}

/// 200 while a usable pair exists, and as many engines as are expected; the body names every engine and every pair that is
/// barred.
pub(super) async fn ready(State(server): State<Arc<Server>>) -> Response {
    let (pool, now) = (server.pool(), Instant::now());
    let (prefill, decode) = counts(&pool);
    let mut usable = false;
    let mut stale = Vec::new();
    // Looked at once each: a crowd of engines that cannot be used must not cost its square.
    let at_work = |engines: &[Arc<Engine>]| -> Vec<Arc<Engine>> {
        let usable = engines.iter().filter(|engine| engine.is_usable(now));
        usable.cloned().collect()
    };
    let (prefills, decodes) = (at_work(&pool.prefill), at_work(&pool.decode));
    for (p, d) in prefills.iter().flat_map(|p| decodes.iter().map(move |d| (p, d))) {
        let Some(mode) = pool.mode else { break };
        let barred = server.selector.pairs.state(p, d, mode) == PairState::Stale;
        usable |= !barred && reach::hosts_agree(p.spoken(), d.spoken(), mode);
        // With hundreds of engines the list could be long; the operator needs the first few.
        if barred && stale.len() < 64 {
            let restart = if mode == Mode::Write { &p.name } else { &d.name };
            stale.push(json!({"prefill": p.name, "decode": d.name, "restart": restart}));
        }
    }
    let (expected, pair) = (&server.settings.expected, usable);
    let count = |engines: &[Arc<Engine>]| engines.iter().map(|e| expected.count(e.registration.dp_size)).sum();
    usable &= expected.are_there(count(&prefills), count(&decodes));
    let engines: Vec<_> = pool.engines().map(|engine| describe(&server, &pool, engine, now)).collect();
    let bound = server.selector.pairs.bound(&pool);
    let bound: Vec<_> = bound.iter().map(|(p, d)| json!({"prefill": p.name, "decode": d.name})).collect();
    let status = if usable { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let word = match (usable, pair) {
        (true, _) => "ready",
        (false, true) => "waiting for the expected engines",
        (false, false) => "no usable pair",
    };
    let policies = server.selector.policies();
    let mut body = json!({
        "status": word,
        "prefill_instances": prefill,
        "decode_instances": decode,
        "mode": pool.mode.map(|mode| mode.as_str()),
        "policies": {"prefill": policies.prefill.as_str(), "decode": policies.decode.as_str()},
        "engines": engines,
        "stale_pairs": stale,
        "bound_pairs": bound,
    });
    let alone = server.selector.decode_alone();
    if alone.is_on() {
        body["decode_alone"] = json!({"below": alone.below, "missing": alone.missing});
    }
    if expected.prefill + expected.decode > 0 {
        body["expected"] = json!({"prefill": expected.prefill, "decode": expected.decode});
    }
    answer(status, &body)
}

fn describe(server: &Server, pool: &Pool, engine: &Engine, now: Instant) -> serde_json::Value {
    let says = &engine.registration;
    let claim = |claim: &Claim| json!({"peer": claim.peer.to_string(), "kv": claim.kv.text});
    json!({
        "role": says.role.as_str(),
        "address": engine.name,
        "state": engine.state.as_str(),
        "reason": server.selector.pairs.reason(pool, engine, now).map(|reason| engine.explain(reason)),
        "mode": says.mode.as_str(),
        "release": engine.version.map(|release| release.to_string()),
        "dp_size": says.dp_size,
        "hosts": says.hosts.as_ref().map(|_| says.host_addresses().collect::<Vec<_>>()),
        "tp_size": says.tp_size,
        "circuit": engine.vitals.circuit(now).as_str(),
        "in_flight": engine.vitals.in_flight(),
        "load": server.selector.loads.work(says.role, engine.incarnation).weight,
        "incarnation": engine.incarnation,
        "claimed_by": engine.claimed_by.iter().map(claim).collect::<Vec<_>>(),
    })
}

pub(super) async fn metrics(State(server): State<Arc<Server>>) -> Response {
    // The gauges of circuits follow time; a scrape brings them up to date.
    server.pool().open_circuits(Instant::now());
    let mut response = Response::new(Body::from(server.metrics.render()));
    let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
