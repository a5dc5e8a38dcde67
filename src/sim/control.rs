//! The control port: counters, legs and violations to read, faults and restarts to order.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use http::{StatusCode, header};
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::engine::{Engine, Inner};
use super::fault::Fault;

type Engines = Arc<Vec<Arc<Inner>>>;

/// An HTTP port that controls engines. Dropping it closes the port.
pub struct Control {
    address: SocketAddr,
    token: CancellationToken,
}

impl Control {
    /// Serves the engines, numbered from 0 in the order given.
    ///
    /// `GET /engines`, `/counters`, `/violations` and `/legs` answer for all; `GET /engines/{number}/counters` and so on
    /// for one. `POST /engines/{number}/faults` arms a fault, `DELETE` there clears all,
    /// `POST /engines/{number}/crash`, `/restart` and `/restart-elsewhere` do what they say.
    pub async fn start<'a>(address: SocketAddr, engines: impl IntoIterator<Item = &'a Engine>) -> io::Result<Self> {
        let engines: Engines = Arc::new(engines.into_iter().map(Engine::inner).collect());
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let token = CancellationToken::new();
        let router = Router::new()
            .route("/engines", get(list))
            .route("/{page}", get(all))
            .route("/engines/{number}/{page}", get(one))
            .route("/engines/{number}/faults", post(arm).delete(clear))
            .route("/engines/{number}/crash", post(crash))
            .route("/engines/{number}/restart", post(restart))
            .route("/engines/{number}/restart-elsewhere", post(restart_elsewhere))
            .with_state(engines);
        let stop = token.clone();
        tokio::spawn(async move {
            let serving = axum::serve(listener, router);
            tokio::select! {
                _ = serving => {}
                () = stop.cancelled() => {}
            }
        });
        Ok(Self { address, token })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.token.cancel();
    }
}

fn answer(value: &impl Serialize) -> Response {
    match serde_json::to_string(value) {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

fn missing() -> Response {
    (StatusCode::NOT_FOUND, "no such engine or page").into_response()
}

fn page(engine: &Inner, page: &str) -> Option<Value> {
    match page {
        "counters" => serde_json::to_value(engine.counters()).ok(),
        "violations" => serde_json::to_value(engine.books().violations()).ok(),
        "legs" => serde_json::to_value(engine.books().legs()).ok(),
        _ => None,
    }
}

async fn list(State(engines): State<Engines>) -> Response {
    let list: Vec<Value> = engines
        .iter()
        .enumerate()
        .map(|(number, engine)| {
            let (settings, ports) = (engine.settings(), engine.ports());
            json!({
                "number": number, "role": settings.role, "mode": settings.mode, "release": settings.release,
                "http_address": ports.http_address(), "hosts": settings.hosts, "handshake_port": ports.handshake_base(),
                "notify_port": ports.notify_base(), "dp": settings.dp, "tp": settings.tp, "alive": engine.alive(),
            })
        })
        .collect();
    answer(&list)
}

async fn all(State(engines): State<Engines>, Path(name): Path<String>) -> Response {
    let mut whole = Map::new();
    for (number, engine) in engines.iter().enumerate() {
        let Some(value) = page(engine, &name) else {
            return missing();
        };
        whole.insert(number.to_string(), value);
    }
    answer(&whole)
}

async fn one(State(engines): State<Engines>, Path((number, name)): Path<(usize, String)>) -> Response {
    match engines.get(number).and_then(|engine| page(engine, &name)) {
        Some(value) => answer(&value),
        None => missing(),
    }
}

async fn arm(State(engines): State<Engines>, Path(number): Path<usize>, body: Bytes) -> Response {
    let Some(engine) = engines.get(number) else {
        return missing();
    };
    match serde_json::from_slice::<Fault>(&body) {
        Ok(fault) => {
            engine.books().arm(fault);
            StatusCode::NO_CONTENT.into_response()
        }
        Err(error) => (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
    }
}

async fn clear(State(engines): State<Engines>, Path(number): Path<usize>) -> Response {
    let Some(engine) = engines.get(number) else {
        return missing();
    };
    engine.books().clear_faults();
    StatusCode::NO_CONTENT.into_response()
}

async fn crash(State(engines): State<Engines>, Path(number): Path<usize>) -> Response {
    let Some(engine) = engines.get(number) else {
        return missing();
    };
    engine.crash().await;
    StatusCode::NO_CONTENT.into_response()
}

async fn restart(State(engines): State<Engines>, Path(number): Path<usize>) -> Response {
    start_again(engines, number, true).await
}

async fn restart_elsewhere(State(engines): State<Engines>, Path(number): Path<usize>) -> Response {
    start_again(engines, number, false).await
}

async fn start_again(engines: Engines, number: usize, same_ports: bool) -> Response {
    let Some(engine) = engines.get(number) else {
        return missing();
    };
    match engine.restart(same_ports).await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
