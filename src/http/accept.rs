//! The clients' door: connections come in, are served, give way, and are drained at the stop.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use http::{HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::places::{Admission, Hold, Places};
use super::profile;
use super::session::Peer;
use super::stream::{Answer, Serving, Stream, Visit};
use super::threads::Threads;
use crate::http::descriptors::{Spares, is_exhausted};
use crate::http::routes::PROBES;
use crate::metrics::Metrics;
use crate::settings::DoorLimits;

/// How long connections may take to notice that they were cut, or that the proxy stops.
const AFTER_CUT: Duration = Duration::from_secs(1);
/// A pause where accepting has failed and nothing can be done about it.
const FAILED: Duration = Duration::from_millis(50);
/// How often a shortage is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// What a connection on a reserved place gets to send its request.
const RESERVED_HEAD: Duration = Duration::from_secs(2);
/// What it gets in all.
const RESERVED_LIFE: Duration = Duration::from_secs(5);

/// Connections that are still served after the stop.
pub(crate) struct Connections {
    tasks: JoinSet<()>,
}

/// Who answers.
pub(crate) struct Routers {
    /// What there is a place for.
    pub(crate) serving: Router,
    /// What there is none for.
    pub(crate) refusing: Router,
}

/// What every connection is served with.
#[derive(Clone)]
struct Door {
    builder: http1::Builder,
    serving: TowerToHyperService<Router>,
    refusing: TowerToHyperService<Router>,
    metrics: Arc<Metrics>,
    head_time: Duration,
    stopping: CancellationToken,
}

/// Serves connections until `stop`; then the port is closed and what is left is handed back.
pub(crate) async fn accept(
    limits: &DoorLimits,
    clients: TcpListener,
    threads: &mut Threads,
    routers: Routers,
    metrics: &Arc<Metrics>,
    stop: impl Future<Output = ()>,
) -> Connections {
    let door = Door::new(limits, routers, metrics.clone());
    let places = Arc::new(Places::new(limits.max_connections, metrics.clone()));
    let mut spares = Spares::new();
    let mut tasks = JoinSet::new();
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut stop = std::pin::pin!(stop);
    loop {
        while let Some(ended) = tasks.try_join_next() {
            note_panic(ended);
        }
        tokio::select! {
            biased;
            () = &mut stop => break,
            () = places.room() => {}
        }
        let accepted = tokio::select! {
            biased;
            () = &mut stop => break,
            _ = look.tick(), if places.is_short() => {
                let now = Instant::now();
                if spares.refill() {
                    places.press(false, now);
                }
                places.settle(now);
                continue;
            }
            accepted = clients.accept() => accepted,
        };
        match accepted {
            Ok(accepted) => door.hand_over(accepted, Visit::new(places.clone()), threads, &mut tasks),
            Err(error) if is_exhausted(&error) => {
                // An idle connection gives its descriptor back; the one that waits is let in on a spare one.
                places.press(true, Instant::now());
                if !spares.give() {
                    places.freed().await;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(FAILED).await;
            }
        }
    }
    door.stopping.cancel();
    Connections { tasks }
}

impl Door {
    fn new(limits: &DoorLimits, routers: Routers, metrics: Arc<Metrics>) -> Self {
        let mut builder = http1::Builder::new();
        // One timer bounds the idle time between requests and the head of the next; the first head has its own limit.
        builder.timer(TokioTimer::new()).header_read_timeout(limits.keep_alive).max_buf_size(64 * 1024);
        let [serving, refusing] = [routers.serving, routers.refusing].map(TowerToHyperService::new);
        let head_time = limits.head_time;
        Door { builder, serving, refusing, metrics, head_time, stopping: CancellationToken::new() }
    }

    /// Has a thread serve a connection from now on. A socket belongs to the runtime that it was made in, so one that goes to
    /// another is made anew there.
    fn hand_over(
        &self,
        (socket, peer): (TcpStream, SocketAddr),
        visit: Arc<Visit>,
        threads: &mut Threads,
        tasks: &mut JoinSet<()>,
    ) {
        let door = self.clone();
        let (elsewhere, counted) = threads.next(Instant::now());
        let Some(runtime) = elsewhere else {
            tasks.spawn(async move {
                let _counted = counted;
                door.serve((socket, peer), visit).await;
            });
            return;
        };
        let socket = socket.into_std();
        let serving = async move {
            let _counted = counted;
            match socket.and_then(TcpStream::from_std) {
                Ok(socket) => door.serve((socket, peer), visit).await,
                Err(error) => tracing::warn!(%error, "cannot hand a connection over"),
            }
        };
        tasks.spawn_on(serving, runtime);
    }

    /// One connection from its first byte to its last.
    async fn serve(self, (socket, peer): (TcpStream, SocketAddr), visit: Arc<Visit>) {
        self.metrics.connections.inc();
        // Tokens must not wait for an acknowledgement.
        let _ = socket.set_nodelay(true);
        let stream = TokioIo::new(Stream::new(socket, visit.clone()));
        let service = service_fn(|mut request| {
            profile::mark(&mut request, peer);
            Peer::mark(&mut request, peer);
            self.answer(request, visit.clone())
        });
        let mut connection = std::pin::pin!(self.builder.serve_connection(stream, service));
        let mut overdue = std::pin::pin!(self.overdue(&visit));
        let mut told = false;
        loop {
            tokio::select! {
                biased;
                // A connection that ends in an error has told its exchange already.
                _ = connection.as_mut() => break,
                () = visit.caller.leave.notified() => match visit.caller.hold() {
                    Hold::Reserved if !visit.has_request() => break,
                    Hold::Nothing => {
                        // Once more, so that a request that is here already is read and not lost.
                        if futures::poll!(connection.as_mut()).is_ready() {
                            break;
                        }
                        if visit.caller.hold() == Hold::Nothing && !visit.is_arriving() {
                            connection.as_mut().graceful_shutdown();
                        }
                    }
                    Hold::Place | Hold::Reserved => {}
                },
                () = self.stopping.cancelled(), if !told => {
                    told = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = &mut overdue => break,
            }
        }
        self.metrics.connections.dec();
    }

    /// One request of a connection.
    fn answer(
        &self,
        request: Request<Incoming>,
        visit: Arc<Visit>,
    ) -> impl Future<Output = Result<Response<Answer>, Infallible>> + use<> {
        let admission = visit.request(PROBES.contains(&request.uri().path()));
        let router = if admission == Admission::Refuse { &self.refusing } else { &self.serving };
        let (answer, serving) = (router.call(request), Serving(visit));
        async move {
            let mut response = answer.await?;
            if admission != Admission::Serve {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(response.map(|body| Answer { body, _serving: serving }))
        }
    }

    /// Resolves for a connection that has not sent a whole head in its time, or some time after the stop: no exchange can be
    /// cut with it, and the drain must not wait for it. On a reserved place times are short.
    async fn overdue(&self, visit: &Visit) {
        if visit.caller.hold() == Hold::Reserved {
            tokio::time::sleep(RESERVED_HEAD).await;
            if !visit.has_request() {
                return;
            }
            tokio::time::sleep(RESERVED_LIFE - RESERVED_HEAD).await;
            if visit.caller.hold() == Hold::Reserved {
                return;
            }
        }
        let stopped = async {
            self.stopping.cancelled().await;
            tokio::time::sleep(AFTER_CUT).await;
        };
        let _ = tokio::time::timeout(self.head_time, stopped).await;
        if visit.has_request() {
            std::future::pending().await
        }
    }
}

/// A defect that costs one connection is for the log; the others are served on.
fn note_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "serving a connection has panicked");
    }
}

/// Lets exchanges come to their end up to the drain's limit and cuts the rest. Says how many were cut.
pub(crate) async fn drain(
    limit: Duration,
    mut connections: Connections,
    metrics: &Metrics,
    tasks: &TaskTracker,
    cut: &CancellationToken,
) -> usize {
    tracing::info!(in_flight = metrics.exchanges_open(), parked = metrics.orphans_in_flight.get(), "draining");
    tasks.close();
    let quiet = async {
        while let Some(ended) = connections.tasks.join_next().await {
            note_panic(ended);
        }
        tasks.wait().await;
    };
    if tokio::time::timeout(limit, quiet).await.is_ok() {
        return 0;
    }
    let left = metrics.exchanges_open() + tasks.len();
    metrics.drain_cut.inc_by(left as u64);
    tracing::warn!(cut = left, limit_s = limit.as_secs_f64(), "drain limit passed: cutting what is left");
    cut.cancel();
    let ends = async { while connections.tasks.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(AFTER_CUT, ends).await;
    connections.tasks.shutdown().await;
    left
}

#[cfg(test)]
mod tests;
