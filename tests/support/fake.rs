//! An engine that is nothing but a registration and an answer of the test's own: for what no simulated engine would say.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::response::Response;
use moriio_proxy::sim::{Mode, Role};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use zeromq::{Socket, SocketSend};

/// A leg as it came.
#[derive(Clone, Debug)]
pub struct FakeLeg {
    pub path: String,
    pub headers: http::HeaderMap,
    pub body: Value,
}

/// How it answers health checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    Good,
    /// With 503, as one that is still starting.
    Refuses,
    /// Not at all.
    Hangs,
}

type Reply = Box<dyn Fn(&FakeLeg) -> Response + Send + Sync>;

/// A made-up engine. Dropping it ends it.
pub struct Fake {
    pub http: SocketAddr,
    pub handshake: u16,
    pub notify: u16,
    says: watch::Sender<Value>,
    legs: Arc<Mutex<Vec<FakeLeg>>>,
    health: watch::Sender<Health>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    _kv: [std::net::TcpListener; 2],
}

impl Drop for Fake {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Fake {
    /// Starts an engine that registers in dialect B, is healthy, says that it is of `release`, and gives `reply` to every leg.
    pub async fn start(
        about: (Role, Mode, &str),
        registration: SocketAddr,
        reply: impl Fn(&FakeLeg) -> Response + Send + Sync + 'static,
    ) -> Fake {
        Fake::start_as(Health::Good, about, registration, reply).await
    }

    /// The same, with its health from the first moment.
    pub async fn start_as(
        health: Health,
        (role, mode, release): (Role, Mode, &str),
        registration: SocketAddr,
        reply: impl Fn(&FakeLeg) -> Response + Send + Sync + 'static,
    ) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let http = listener.local_addr().unwrap();
        let kv = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let [handshake, notify] = [0, 1].map(|n: usize| kv[n].local_addr().unwrap().port());
        let letter = if role == Role::Prefill { "P" } else { "D" };
        let mode = if mode == Mode::Read { "READ" } else { "WRITE" };
        let says = watch::Sender::new(json!({
            "type": letter, "http_address": http.to_string(), "dp_size": 1, "tp_size": 1, "transfer_mode": mode,
            "zmq_address": format!("host:127.0.0.1,handshake:{handshake},notify:{notify}"),
        }));
        let health = watch::Sender::new(health);
        let legs: Arc<Mutex<Vec<FakeLeg>>> = Arc::default();
        let router = router(release.to_owned(), health.subscribe(), legs.clone(), Box::new(reply));
        let serve = async move { axum::serve(listener, router).await.unwrap() };
        let tasks = vec![tokio::spawn(serve), tokio::spawn(ping(says.subscribe(), registration))];
        Fake { http, handshake, notify, says, legs, health, tasks, _kv: kv }
    }

    /// Every leg so far.
    pub fn legs(&self) -> Vec<FakeLeg> {
        self.legs.lock().unwrap().clone()
    }

    /// From now on it answers health checks so.
    pub fn health(&self, health: Health) {
        self.health.send_replace(health);
    }

    /// From now on it registers with this field changed.
    pub fn says(&self, key: &str, value: Value) {
        self.says.send_modify(|says| says[key] = value);
    }
}

fn router(release: String, health: watch::Receiver<Health>, legs: Arc<Mutex<Vec<FakeLeg>>>, reply: Reply) -> Router {
    let reply = Arc::new(reply);
    Router::new().fallback(move |request: Request| {
        let (release, legs, reply, mut health) = (release.clone(), legs.clone(), reply.clone(), health.clone());
        async move {
            let (head, body) = request.into_parts();
            match head.uri.path() {
                "/health" => {
                    let says = health.wait_for(|health| *health != Health::Hangs).await;
                    let mut response = Response::new(Body::empty());
                    if !says.is_ok_and(|health| *health == Health::Good) {
                        *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
                    }
                    response
                }
                "/version" => Response::new(Body::from(json!({"version": release}).to_string())),
                _ => {
                    let body: Bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
                    let body = serde_json::from_slice(&body).unwrap_or_default();
                    let leg = FakeLeg { path: head.uri.path().to_owned(), headers: head.headers, body };
                    let response = reply(&leg);
                    legs.lock().unwrap().push(leg);
                    response
                }
            }
        }
    })
}

/// Pings from a socket of its own for as long as it runs.
pub async fn ping(says: watch::Receiver<Value>, registration: SocketAddr) {
    let mut socket = zeromq::DealerSocket::new();
    socket.connect(&format!("tcp://{registration}")).await.unwrap();
    loop {
        let payload = rmp_serde::to_vec_named(&*says.borrow()).unwrap();
        if socket.send(Bytes::from(payload).into()).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A JSON answer.
pub fn answer(value: &Value) -> Response {
    answer_as("application/json", Body::from(value.to_string()))
}

/// A 200 with this body.
pub fn answer_as(content_type: &'static str, body: Body) -> Response {
    let mut response = Response::new(body);
    let kind = http::HeaderValue::from_static(content_type);
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}
