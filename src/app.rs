//! Wiring: binds all sockets, builds the parts in order, serves until told to stop, drains.

mod background;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::background::Background;
use crate::exchange::drive::Means;
use crate::http::accept::{Routers, accept, drain};
use crate::http::descriptors::{fit, raise_descriptors};
use crate::http::port::bind;
use crate::http::server::Server;
use crate::http::threads::Threads;
use crate::http::{browsers, routes};
use crate::metrics::Metrics;
use crate::notify::Notifier;
use crate::pool::registry::Registry;
use crate::pool::rounds::Rounds;
use crate::registration::announce::Announcer;
use crate::registration::membership::Discovery;
use crate::registration::socket::listener::{self, Heard, Incident, Listener, ListenerSettings};
use crate::registration::tell::Teller;
use crate::routing::Selector;
use crate::settings::{Config, DoorLimits, Endpoint, Parts};
use crate::upstream::Upstream;

/// Limits at the port for `/metrics`, which a few scrapers know.
const SCRAPERS: DoorLimits = DoorLimits {
    head_time: Duration::from_secs(10),
    keep_alive: Duration::from_secs(120),
    max_connections: 16,
    drain: Duration::ZERO,
};
/// Descriptors of a thread that serves clients, beyond the first: its runtime's.
const PER_THREAD: u64 = 4;
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
    /// The port for `/metrics` is taken or not ours.
    #[error("cannot serve metrics on {address} (--metrics-host, --metrics-port): {error}")]
    Metrics {
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

impl Finish {
    /// The exit code of a process whose run ended so.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Finish::Drained => 0,
            Finish::Failed => 1,
            Finish::Cut(_) => 3,
        }
    }
}

/// A proxy whose sockets are bound.
pub struct App {
    door: DoorLimits,
    listener: Arc<Listener>,
    announcer: Announcer,
    ports: Ports,
    threads: Threads,
    routers: Routers,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
    cut: CancellationToken,
    background: Background,
}

/// Where HTTP is served.
struct Ports {
    clients: TcpListener,
    address: SocketAddr,
    metrics_address: Option<SocketAddr>,
    /// Closes the port for `/metrics`.
    closing: CancellationToken,
}

impl App {
    /// Binds and builds everything; nothing is served yet. The runtime that this is called in is the first of those that serve
    /// clients, and [`App::run`] belongs into it too.
    ///
    /// # Errors
    /// A port that cannot be bound, or a part that cannot be made.
    pub fn bind(config: Config) -> Result<Self, StartError> {
        let mut parts = config.parts;
        let metrics = Arc::new(Metrics::new());
        let failed = |address, error| StartError::Http { address, error };
        let clients = first(&addresses(&parts.listen.http)?, bind, failed)?;
        let wanted = parts.door.max_connections;
        let descriptors = raise_descriptors().saturating_sub(PER_THREAD * (config.workers as u64 - 1));
        let (max_peers, max_connections) =
            fit(parts.registry.max_engines, wanted, parts.server.admission.in_flight, descriptors);
        if max_connections < wanted {
            tracing::warn!(
                max_connections,
                max_peers,
                "the limit on open files leaves room for fewer connections than configured"
            );
            parts.door.max_connections = max_connections;
        }
        let (sink, heard) = mpsc::channel(HEARD);
        let news = Arc::<Notify>::default();
        let hear = |address| {
            let counted = metrics.clone();
            let settings = ListenerSettings { max_peers, news: news.clone(), ..ListenerSettings::new(address) };
            listener::start(settings, sink.clone(), move |incident| count(&counted, incident))
        };
        let failed = |address, error| StartError::Discovery { address, error };
        let listener = first(&addresses(&parts.listen.discovery)?, hear, failed)?;
        let may_lack = parts.server.conduct.may_lack_metrics_port;
        let scraped = parts.listen.metrics.as_ref().map(|endpoint| scraped(endpoint, may_lack)).transpose()?.flatten();
        let mut app = App::build(parts, clients, scraped, (listener, heard, news), (config.workers, metrics))
            .map_err(StartError::Parts)?;
        if config.workers > 1 {
            app.threads = Threads::start(config.workers).map_err(|error| StartError::Parts(error.to_string()))?;
            app.background.start("worker", app.threads.ended());
        }
        Ok(app)
    }

    /// Builds the parts and starts the background tasks.
    fn build(
        parts: Parts,
        clients: TcpListener,
        scraped: Option<TcpListener>,
        (listener, heard, news): (Listener, mpsc::Receiver<Heard>, Arc<Notify>),
        (workers, metrics): (usize, Arc<Metrics>),
    ) -> Result<Self, String> {
        let Parts { door, server, origins, allowed, spans, presumed, registry, .. } = parts;
        let Parts { picking, times, serial_write, tells_cached, kv_release, .. } = parts;
        let address = clients.local_addr().map_err(|error| error.to_string())?;
        let selector = Selector::new(picking);
        let registry = Registry::new(registry, metrics.clone());
        let pool = registry.subscribe();
        let upstream = Upstream::new(times.connect, workers).map_err(|error| error.to_string())?;
        let notifier = Notifier::start(kv_release, metrics.clone()).map_err(|error| error.to_string())?;
        let mut background = Background::default();
        background.start("notifier", ended(notifier.ended()));
        background.start("resting connections", ended(upstream.clone().sweep()));
        let (tasks, cut) = (TaskTracker::new(), CancellationToken::new());
        let means = Arc::new(Means {
            upstream: upstream.clone(),
            selector: selector.clone(),
            pool,
            notifier,
            metrics: metrics.clone(),
            background: tasks.clone(),
            limits: times,
            serial_write,
            tells_cached,
            waits_for_room: server.admission.is_capped,
            cut: cut.clone(),
        });
        let rounds = Arc::new(Rounds::default());
        let (client, pairs) = (upstream.client().clone(), selector.pairs.clone());
        let announcer = Announcer::start(server.conduct.announces).map_err(|error| error.to_string())?;
        let (expected, says_stall) = (server.expected, server.conduct.names_side);
        let teller = Teller::new(presumed, expected, announcer.clone(), says_stall, picking.decode_alone);
        let discovery =
            Discovery::new((registry, news), pairs, metrics.clone(), client, (allowed, spans), rounds.clone(), teller);
        background.start_apart("membership", ended(discovery.run(heard))).map_err(|error| error.to_string())?;
        let listener = Arc::new(listener);
        let listening = listener.clone();
        background.start("registration listener", async move { listening.ended().await });
        let server = Server::new(server, means, rounds, metrics.clone());
        let closing = CancellationToken::new();
        let metrics_address = scraped.as_ref().and_then(|port| port.local_addr().ok());
        if let Some(port) = scraped {
            let closing = closing.clone().cancelled_owned();
            let threads = Threads::start(1).map_err(|error| error.to_string())?;
            background.start("port for metrics", scrape(port, threads, routes::metrics(server.clone()), closing));
        }
        let routers = Routers {
            serving: browsers::allow(routes::router(server.clone()), &origins),
            refusing: browsers::allow(routes::refusing(server), &origins),
        };
        let ports = Ports { clients, address, metrics_address, closing };
        let threads = Threads::start(1).map_err(|error| error.to_string())?;
        Ok(App { door, listener, announcer, ports, threads, routers, metrics, tasks, cut, background })
    }

    /// Where clients connect.
    pub fn http_address(&self) -> SocketAddr {
        self.ports.address
    }

    /// Where engines register.
    pub fn discovery_address(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// Where `/metrics` is served besides, if it is.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.ports.metrics_address
    }

    /// Serves until `stop` resolves or a background task ends, then drains.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Finish {
        let App { door, listener, announcer, ports, routers, metrics, tasks, cut, mut background, mut threads } = self;
        announcer.listens(listener.local_addr());
        let mut failed = false;
        let stop = async {
            tokio::select! {
                () = stop => {}
                (task, reason) = background.ended() => {
                    tracing::error!(task, reason, "a background task has ended, so the proxy drains and ends");
                    failed = true;
                }
            }
        };
        let connections = accept(&door, ports.clients, &mut threads, routers, &metrics, stop).await;
        // The ports are closed from here on: other nodes take that for the end of the job (protocol E3).
        ports.closing.cancel();
        listener.stop().await;
        let cut = drain(door.drain, connections, &metrics, &tasks, &cut).await;
        background.end().await;
        threads.end().await;
        match cut {
            _ if failed => Finish::Failed,
            0 => Finish::Drained,
            count => Finish::Cut(count),
        }
    }
}

/// Runs a part that has no reason to end.
async fn ended(part: impl Future<Output = ()>) -> &'static str {
    part.await;
    "it returned"
}

/// The port for `/metrics`. Where the proxy stands in for a program that does without one that is taken, it does so too.
fn scraped(endpoint: &Endpoint, may_lack: bool) -> Result<Option<TcpListener>, StartError> {
    let failed = |address, error| StartError::Metrics { address, error };
    match addresses(endpoint).and_then(|addresses| first(&addresses, bind, failed)) {
        Ok(port) => Ok(Some(port)),
        Err(error) if may_lack => {
            tracing::warn!("{error}; they are served on the clients' port alone");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Serves the port for `/metrics`. Its few connections have accounts of their own, which nobody reads.
async fn scrape(
    port: TcpListener,
    mut threads: Threads,
    router: Router,
    closing: impl Future<Output = ()>,
) -> &'static str {
    let routers = Routers { serving: router.clone(), refusing: router };
    accept(&SCRAPERS, port, &mut threads, routers, &Arc::new(Metrics::new()), closing).await;
    "it returned"
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
