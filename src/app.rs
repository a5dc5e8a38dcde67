//! Wiring: binds all sockets, builds the parts in order, serves until told to stop, drains.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::exchange::drive::{AttemptLimits, Means};
use crate::http::accept::{Routers, accept, drain};
use crate::http::descriptors::{fit, raise_descriptors};
use crate::http::port::bind;
use crate::http::server::Server;
use crate::http::{browsers, routes};
use crate::metrics::Metrics;
use crate::notify::Notifier;
use crate::pool::registry::Registry;
use crate::registration::membership::Discovery;
use crate::registration::socket::listener::{self, Incident, Listener, ListenerSettings};
use crate::routing::Selector;
use crate::settings::{Config, DoorLimits, Endpoint, Parts, Times};
use crate::upstream::Upstream;

/// Registration messages between the listener's thread and the membership task.
const HEARD: usize = 4096;

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
    door: DoorLimits,
    listener: Listener,
    heard: mpsc::Receiver<listener::Heard>,
    clients: TcpListener,
    address: SocketAddr,
    routers: Routers,
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
    pub fn bind(config: Config) -> Result<Self, StartError> {
        let Parts { listen, mut door, server, origins, allowed, registry, picking, times, serial_write, kv_release } =
            config.parts;
        let metrics = Arc::new(Metrics::new());
        let clients = first(&addresses(&listen.http)?, bind, |address, error| StartError::Http { address, error })?;
        let wanted = door.max_connections;
        let (max_peers, max_connections) = fit(registry.max_engines, wanted, server.max_in_flight, raise_descriptors());
        if max_connections < wanted {
            tracing::warn!(
                max_connections,
                max_peers,
                "the limit on open files leaves room for fewer connections than configured"
            );
            door.max_connections = max_connections;
        }
        let (sink, heard) = mpsc::channel(HEARD);
        let hear = |address| {
            let counted = metrics.clone();
            let settings = ListenerSettings { max_peers, ..ListenerSettings::new(address) };
            listener::start(settings, sink.clone(), move |incident| count(&counted, incident))
        };
        let failed = |address, error| StartError::Discovery { address, error };
        let listener = first(&addresses(&listen.discovery)?, hear, failed)?;
        let parts = |error: &dyn std::fmt::Display| StartError::Parts(error.to_string());
        let address = clients.local_addr().map_err(|error| parts(&error))?;

        let selector = Selector::new(picking);
        let registry = Registry::new(registry, metrics.clone());
        let pool = registry.subscribe();
        let upstream = Upstream::new(times.connect).map_err(|error| parts(&error))?;
        let notifier = Notifier::start(kv_release, metrics.clone()).map_err(|error| parts(&error))?;
        let (tasks, cut) = (TaskTracker::new(), CancellationToken::new());
        let means = Arc::new(Means {
            upstream: upstream.clone(),
            selector: selector.clone(),
            pool,
            notifier,
            metrics: metrics.clone(),
            background: tasks.clone(),
            limits: attempt_limits(&times),
            serial_write,
            cut: cut.clone(),
        });
        let discovery =
            Discovery::new(registry, selector.pairs.clone(), metrics.clone(), upstream.client().clone(), allowed);
        let server = Server::new(server, means, metrics.clone());
        let routers = Routers {
            serving: browsers::allow(routes::router(server.clone()), &origins),
            refusing: browsers::allow(routes::refusing(server), &origins),
        };
        Ok(App { door, listener, heard, clients, address, routers, discovery, metrics, tasks, cut })
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
        let App { door, listener, heard, clients, routers, discovery, metrics, tasks, cut, .. } = self;
        let ended = CancellationToken::new();
        let discovery = tokio::spawn(discovery.run(heard, ended.clone()));
        let connections = tokio::select! {
            served = accept(&door, clients, routers, &metrics, stop) => served,
            _ = listener.ended() => {
                tracing::error!("the registration listener has ended");
                return Finish::Failed;
            }
        };
        // The ports are closed from here on: other nodes take that for the end of the job (protocol E3).
        listener.stop().await;
        let cut = drain(door.drain, connections, &metrics, &tasks, &cut).await;
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

fn attempt_limits(times: &Times) -> AttemptLimits {
    AttemptLimits {
        prefill: times.prefill,
        first_byte: times.first_byte,
        answer: times.answer,
        idle: times.idle,
        hand_over: times.hand_over,
        unpark: times.unpark,
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
