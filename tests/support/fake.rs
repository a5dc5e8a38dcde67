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
    pub headers: http::HeaderMap,
    pub body: Value,
}

type Reply = Box<dyn Fn(&FakeLeg) -> Response + Send + Sync>;

/// A made-up engine. Dropping it ends it.
pub struct Fake {
    pub http: SocketAddr,
    pub handshake: u16,
    pub notify: u16,
    says: watch::Sender<Value>,
    legs: Arc<Mutex<Vec<FakeLeg>>>,
    healthy: watch::Sender<bool>,
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
        let healthy = watch::Sender::new(true);
        let legs: Arc<Mutex<Vec<FakeLeg>>> = Arc::default();
        let router = router(release.to_owned(), healthy.subscribe(), legs.clone(), Box::new(reply));
        let serve = async move { axum::serve(listener, router).await.unwrap() };
        let tasks = vec![tokio::spawn(serve), tokio::spawn(ping(says.subscribe(), registration))];
        Fake { http, handshake, notify, says, legs, healthy, tasks, _kv: kv }
    }

    /// Every leg so far.
    pub fn legs(&self) -> Vec<FakeLeg> {
        self.legs.lock().unwrap().clone()
    }

    /// While false, health checks are left without an answer.
    pub fn answer_health(&self, answers: bool) {
        self.healthy.send_replace(answers);
    }

    /// From now on it registers with this field changed.
    pub fn says(&self, key: &str, value: Value) {
        self.says.send_modify(|says| says[key] = value);
    }
}

fn router(release: String, healthy: watch::Receiver<bool>, legs: Arc<Mutex<Vec<FakeLeg>>>, reply: Reply) -> Router {
    let reply = Arc::new(reply);
    Router::new().fallback(move |request: Request| {
        let (release, legs, reply, mut healthy) = (release.clone(), legs.clone(), reply.clone(), healthy.clone());
        async move {
            let (head, body) = request.into_parts();
            match head.uri.path() {
                "/health" => {
                    let _ = healthy.wait_for(|healthy| *healthy).await;
                    Response::new(Body::empty())
                }
                "/version" => Response::new(Body::from(json!({"version": release}).to_string())),
                _ => {
                    let body: Bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
                    let leg =
                        FakeLeg { headers: head.headers, body: serde_json::from_slice(&body).unwrap_or_default() };
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
