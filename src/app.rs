//! Wiring: binds all sockets, builds the parts in order, serves until told to stop, drains.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use http::HeaderValue;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Config, DecodeTokenBudget, Endpoint, WriteDispatch};
use crate::descriptors::{fit, raise_descriptors};
use crate::discovery::Discovery;
use crate::dispatch::{AttemptLimits, Dispatcher};
use crate::health::BreakerLimits;
use crate::listener::{self, Incident, Listener, ListenerSettings};
use crate::metrics::Metrics;
use crate::parked::Keeper;
use crate::policy::{PickRules, Selector};
use crate::registry::{Registry, RegistryLimits};
use crate::release::Notifier;
use crate::request::TokenBudget;
use crate::server::{Server, ServerSettings};
use crate::upstream::Upstream;

mod port;

use port::bind;

/// Registration messages between the listener's thread and the membership task.
const HEARD: usize = 4096;
/// How long connections may take to notice that they were cut.
const AFTER_CUT: Duration = Duration::from_secs(1);

/// Why the proxy could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A name to listen on is not known.
    #[error("cannot find the address of {name} ({option}): {error}")]
    Name {
        /// The name.
        name: String,
        /// The option that it came by.
        option: String,
        /// What the resolver says.
        error: io::Error,
    },
    /// The data port is taken or not ours.
    #[error("cannot listen for clients on {address} (--host, --port): {error}")]
    Http {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        error: io::Error,
    },
    /// The registration port is taken or not ours.
    #[error("cannot listen for engines on {address} (--ping-host, --ping-port): {error}")]
    Discovery {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        error: io::Error,
    },
    /// Threads or the HTTP client could not be made.
    #[error("cannot start: {0}")]
    Parts(String),
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// Everything that was in flight came to its end.
    Drained,
    /// The drain's limit passed; this many exchanges were cut.
    Cut(usize),
    /// A part that must never end has ended.
    Failed,
}

/// A proxy whose sockets are bound.
pub struct App {
    config: Config,
    listener: Listener,
    heard: mpsc::Receiver<listener::Heard>,
    clients: TcpListener,
    address: SocketAddr,
    router: Router,
    discovery: Discovery,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
    cut: CancellationToken,
}

impl App {
    /// Binds and builds everything; nothing is served yet.
    ///
    /// # Errors
    /// A port that cannot be bound, or a part that cannot be made.
    pub fn bind(mut config: Config) -> Result<Self, StartError> {
        let metrics = Arc::new(Metrics::new());
        let clients =
            first(&addresses(&config.listen.http)?, bind, |address, error| StartError::Http { address, error })?;
        let (max_peers, max_connections) = fit(
            config.discovery.max_engines,
            config.http.max_connections,
            config.http.max_in_flight,
            raise_descriptors(),
        );
        if max_connections < config.http.max_connections {
            tracing::warn!(
                max_connections,
                max_peers,
                "the limit on open files leaves room for fewer connections than configured"
            );
            config.http.max_connections = max_connections;
        }
        let (sink, heard) = mpsc::channel(HEARD);
        let listen = |address| {
            let counted = metrics.clone();
            let settings = ListenerSettings { max_peers, ..ListenerSettings::new(address) };
            listener::start(settings, sink.clone(), move |incident| count(&counted, incident))
        };
        let failed = |address, error| StartError::Discovery { address, error };
        let listener = first(&addresses(&config.listen.discovery)?, listen, failed)?;
        let parts = |error: &dyn std::fmt::Display| StartError::Parts(error.to_string());
        let address = clients.local_addr().map_err(|error| parts(&error))?;

        let selector = Selector::new(PickRules {
            engine_in_flight: config.discovery.engine_in_flight.unwrap_or(0),
            first_contact: config.exchange.first_contact,
            allow_stale: config.exchange.allow_stale_pairs,
        });
        let limits = RegistryLimits {
            ttl: config.discovery.engine_ttl,
            max_engines: config.discovery.max_engines,
            breaker: BreakerLimits {
                failures: config.breaker.failures.unwrap_or(0),
                open: config.breaker.open,
                open_max: config.breaker.open_max,
            },
        };
        let registry = Registry::new(limits, metrics.clone());
        let pool = registry.subscribe();
        let upstream = Upstream::new(config.upstream.connect).map_err(|error| parts(&error))?;
        let notifier = Notifier::start(config.exchange.kv_release, metrics.clone()).map_err(|error| parts(&error))?;
        let (tasks, cut) = (TaskTracker::new(), CancellationToken::new());
        let dispatcher = Dispatcher {
            upstream: upstream.clone(),
            selector: selector.clone(),
            pool,
            keeper: keeper(&config, notifier, &upstream, &metrics, &tasks),
            limits: attempt_limits(&config),
            serial_write: config.exchange.write_dispatch == WriteDispatch::Serial,
            cut: cut.clone(),
        };
        let allowed = config.discovery.engine_allow.clone();
        let discovery = Discovery::new(registry, selector, metrics.clone(), upstream.client().clone(), allowed);
        let server = Server::new(server_settings(&config), dispatcher, metrics.clone());
        let router = server.router();
        Ok(App { config, listener, heard, clients, address, router, discovery, metrics, tasks, cut })
    }

    /// Where clients connect.
    pub fn http_address(&self) -> SocketAddr {
        self.address
    }

    /// Where engines register.
    pub fn discovery_address(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// Serves until `stop` resolves, then drains.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Finish {
        let App { config, listener, heard, clients, router, discovery, metrics, tasks, cut, .. } = self;
        let ended = CancellationToken::new();
        let discovery = tokio::spawn(discovery.run(heard, ended.clone()));
        let (connections, graceful) = tokio::select! {
            served = accept(&config, clients, router, &metrics, stop) => served,
            _ = listener.ended() => {
                tracing::error!("the registration listener has ended");
                return Finish::Failed;
            }
        };
        // The ports are closed from here on: other nodes take that for the end of the job (design C21).
        listener.stop().await;
        let cut = drain(&config, connections, graceful, &metrics, &tasks, &cut).await;
        ended.cancel();
        let _ = discovery.await;
        match cut {
            0 => Finish::Drained,
            count => Finish::Cut(count),
        }
    }
}

/// What an endpoint's host stands for.
fn addresses(endpoint: &Endpoint) -> Result<Vec<SocketAddr>, StartError> {
    let (name, option) = (endpoint.host.to_string(), endpoint.named.clone());
    endpoint.resolve().map_err(|error| StartError::Name { name, option, error })
}

/// Opens the first address that can be opened; the last one's failure speaks for all.
fn first<T>(
    addresses: &[SocketAddr],
    open: impl Fn(SocketAddr) -> io::Result<T>,
    failed: impl Fn(SocketAddr, io::Error) -> StartError,
) -> Result<T, StartError> {
    let mut last = StartError::Parts(String::from("no address to listen on"));
    for address in addresses {
        match open(*address) {
            Ok(opened) => return Ok(opened),
            Err(error) => last = failed(*address, error),
        }
    }
    Err(last)
}

fn keeper(
    config: &Config,
    notifier: Notifier,
    upstream: &Upstream,
    metrics: &Arc<Metrics>,
    tasks: &TaskTracker,
) -> Keeper {
    let (client, metrics, tasks) = (upstream.client().clone(), metrics.clone(), tasks.clone());
    let times = &config.upstream;
    Keeper { notifier, client, metrics, tasks, first_byte: times.first_byte, unpark: times.unpark }
}

fn attempt_limits(config: &Config) -> AttemptLimits {
    let times = &config.upstream;
    AttemptLimits {
        prefill: times.prefill,
        first_byte: times.first_byte,
        answer: times.answer,
        idle: times.stream_idle,
        hand_over: times.hand_over,
    }
}

fn server_settings(config: &Config) -> ServerSettings {
    let bearer = |key: &str| {
        let mut value = HeaderValue::from_str(&format!("Bearer {key}")).ok()?;
        value.set_sensitive(true);
        Some(value)
    };
    ServerSettings {
        budget: match config.exchange.decode_token_budget {
            DecodeTokenBudget::MinusOne => TokenBudget::MinusOne,
            DecodeTokenBudget::Exact => TokenBudget::Exact,
        },
        max_body: config.http.max_body_bytes as u64,
        body_time: config.http.body_timeout,
        max_in_flight: config.http.max_in_flight,
        retries: config.retry.retries,
        retry_percent: config.retry.budget_percent,
        api_key: config.access.api_key.clone(),
        engine_key: config.access.engine_key.as_ref().and_then(|key| bearer(key.expose())),
        health_waits: config.http.health_waits_for_pair,
    }
}

fn count(metrics: &Metrics, incident: Incident) {
    match incident {
        Incident::Rejected(reject) => metrics.guard_reject(reject.label()),
        Incident::Malformed => metrics.registration("malformed"),
        Incident::Dropped => metrics.registration("dropped"),
        Incident::Rebuilt => {
            metrics.listener_rebuilds.inc();
        }
    }
}

/// Serves connections until `stop`; then the port is closed and what is left is handed back.
async fn accept(
    config: &Config,
    clients: TcpListener,
    router: Router,
    metrics: &Arc<Metrics>,
    stop: impl Future<Output = ()>,
) -> (JoinSet<()>, GracefulShutdown) {
    let mut builder = auto::Builder::new(TokioExecutor::new()).http1_only();
    // One timer bounds the idle time between requests and the head of the next; the first head has its own limit.
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(config.http.keep_alive_timeout)
        .max_buf_size(64 * 1024);
    let room = Arc::new(Semaphore::new(config.http.max_connections));
    let head_time = config.http.header_timeout;
    let mut connections = JoinSet::new();
    let graceful = GracefulShutdown::new();
    let stopping = CancellationToken::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        while connections.try_join_next().is_some() {}
        let permit = tokio::select! {
            biased;
            () = &mut stop => break,
            permit = room.clone().acquire_owned() => permit,
        };
        let Ok(permit) = permit else { break };
        let stream = tokio::select! {
            biased;
            () = &mut stop => break,
            accepted = clients.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        // Tokens must not wait for an acknowledgement.
        let _ = stream.set_nodelay(true);
        let heard = Arc::new(AtomicBool::new(false));
        let (inner, hears) = (TowerToHyperService::new(router.clone()), heard.clone());
        let service = service_fn(move |request| {
            hears.store(true, Ordering::Relaxed);
            inner.call(request)
        });
        let stopping = stopping.clone();
        let (builder, watcher, metrics) = (builder.clone(), graceful.watcher(), metrics.clone());
        connections.spawn(async move {
            metrics.connections.inc();
            let connection = builder.serve_connection(TokioIo::new(stream), service);
            // A connection that ends in an error has told its exchange already.
            tokio::select! {
                _ = watcher.watch(connection.into_owned()) => {}
                () = hesitated(head_time, &stopping, &heard) => {}
            }
            metrics.connections.dec();
            drop(permit);
        });
    }
    stopping.cancel();
    (connections, graceful)
}

/// Resolves for a connection that has not sent a whole head in its time, or some time after the stop: no exchange can be cut
/// with it, and the drain must not wait for it.
async fn hesitated(head_time: Duration, stopping: &CancellationToken, heard: &AtomicBool) {
    let stopped = async {
        stopping.cancelled().await;
        tokio::time::sleep(AFTER_CUT).await;
    };
    let _ = tokio::time::timeout(head_time, stopped).await;
    if heard.load(Ordering::Relaxed) {
        std::future::pending().await
    }
}

/// Lets exchanges come to their end up to the drain's limit and cuts the rest. Says how many were cut.
async fn drain(
    config: &Config,
    mut connections: JoinSet<()>,
    graceful: GracefulShutdown,
    metrics: &Metrics,
    tasks: &TaskTracker,
    cut: &CancellationToken,
) -> usize {
    let limit = config.process.drain_timeout;
    tracing::info!(in_flight = metrics.exchanges_open(), parked = metrics.parked_in_flight.get(), "draining");
    tasks.close();
    let quiet = async {
        graceful.shutdown().await;
        tasks.wait().await;
    };
    if tokio::time::timeout(limit, quiet).await.is_ok() {
        return 0;
    }
    let left = metrics.exchanges_open() + tasks.len();
    metrics.drain_cut.inc_by(left as u64);
    tracing::warn!(cut = left, limit_s = limit.as_secs_f64(), "drain limit passed: cutting what is left");
    cut.cancel();
    let ends = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(AFTER_CUT, ends).await;
    connections.shutdown().await;
    left
}
