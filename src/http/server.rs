//! The data port: limits, and the attempt loop of an exchange.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version, header};
use tokio::sync::{Semaphore, watch};
use tokio_util::task::AbortOnDropHandle;

use super::access;
use super::body::collect;
use super::health::Health;
use super::probes::Probes;
use super::respond::{respond, respond_together, respond_whole};
use super::retries::RetryBudget;
use super::session;
use super::siblings;
use crate::api::Api;
use crate::api::siblings::{Shape, Sibling};
use crate::api::side;
use crate::api::{prefix, request};
use crate::error::ProxyError;
use crate::exchange::drive::{Asked, Means, Outcome};
use crate::exchange::record::Exchange;
use crate::metrics::Metrics;
use crate::pool::Pool;
use crate::pool::rounds::Rounds;
use crate::queue::Queue;
use crate::routing::Selector;
use crate::settings::ServerSettings;
use crate::turns::LARGE;
use crate::upstream::{RANK, REQUEST_ID};

/// The most bodies that are parsed at once apart from the threads that serve connections, which need processors too.
const PARSED_AT_ONCE: usize = 8;

/// What a request has come to.
enum Served {
    /// An answer, which may be a stream.
    One(Outcome, bool),
    /// Several, as one.
    Whole(HeaderMap, Bytes),
    /// The streams of several, of which one has begun.
    Streams(HeaderMap, Vec<siblings::Part>, Shape),
}

/// What a body asks for, and what prompts begin with, where that is wanted.
struct Parsed {
    request: request::Request,
    prefix: Vec<u64>,
    /// Several answers.
    several: Option<(Shape, Vec<OfOne>)>,
}

/// Which of several answers it is, and what its prompt begins with.
type OfOne = (Sibling, Vec<u64>);

/// What every request handler shares.
pub struct Server {
    pub(super) settings: ServerSettings,
    pub(super) means: Arc<Means>,
    pub(super) selector: Arc<Selector>,
    pub(super) pool: watch::Receiver<Arc<Pool>>,
    rounds: Arc<Rounds>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) queue: Arc<Queue>,
    pub(super) retry_budget: RetryBudget,
    /// Turns of large bodies that are parsed.
    parsing: Arc<Semaphore>,
    /// Whose turn it is on routes that any engine answers alike.
    pub(super) pass_through_turn: AtomicUsize,
    pub(super) health: Health,
    /// Whether a client's choice of a rank was noted.
    rank_noted: AtomicBool,
}

impl Server {
    /// A server over a pool.
    pub fn new(settings: ServerSettings, means: Arc<Means>, rounds: Arc<Rounds>, metrics: Arc<Metrics>) -> Arc<Self> {
        let (selector, pool) = (means.selector.clone(), means.pool.clone());
        let queue = Queue::new(settings.admission, metrics.clone());
        let health = Health::new(settings.health_waits);
        let retry_budget = RetryBudget::new(settings.retry_percent);
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Arc::new(Server {
            settings,
            means,
            selector,
            pool,
            rounds,
            metrics,
            queue,
            retry_budget,
            parsing: Arc::new(Semaphore::new((processors / 2).clamp(1, PARSED_AT_ONCE))),
            pass_through_turn: AtomicUsize::new(0),
            health,
            rank_noted: AtomicBool::new(false),
        })
    }

    pub(super) fn pool(&self) -> Arc<Pool> {
        self.pool.borrow().clone()
    }

    /// The pool now and later.
    pub(super) fn pools(&self) -> watch::Receiver<Arc<Pool>> {
        self.pool.clone()
    }

    /// One exchange: accept, parse, then attempts until one succeeds or none may follow.
    pub(super) async fn exchange(self: Arc<Self>, api: Api, request: Request) -> Response {
        let (head, body) = request.into_parts();
        let client_id = client_id(&self.settings.id_headers, &head.headers);
        let mut record = Exchange::open(self.metrics.clone(), api.as_str(), client_id.clone())
            .naming_side(self.settings.conduct.names_side);
        self.note_rank(&head.headers);
        // What is cut at the end of the drain has not left by itself.
        let cut = self.means.cut.clone();
        let result = tokio::select! {
            biased;
            () = cut.cancelled() => Err(ProxyError::Stopping),
            result = self.serve(api, &head, body, &mut record) => result,
        };
        let mut response = match result {
            Ok(Served::One(outcome, streams)) => respond(outcome, (api, streams), record, cut).await,
            Ok(Served::Whole(headers, answer)) => respond_whole(headers, answer, record),
            Ok(Served::Streams(headers, parts, shape)) => respond_together(headers, parts, (api, shape), record),
            Err(error) => {
                record.failed(&error);
                tracing::debug!(code = error.code(), source = error.source().as_str(), %error, "exchange failed");
                record.answer(error, api).map(Body::from)
            }
        };
        if let Some(id) = client_id.and_then(|id| HeaderValue::from_str(&id).ok()) {
            response.headers_mut().insert(REQUEST_ID, id);
        }
        response
    }

    /// Says once that no client chooses ranks, where its users may expect that.
    fn note_rank(&self, headers: &HeaderMap) {
        let asked = self.settings.conduct.notes_rank && headers.contains_key(RANK);
        if asked && !self.rank_noted.swap(true, Ordering::Relaxed) {
            tracing::warn!("a client's X-data-parallel-rank is ignored, here and from now on: ranks have their turns");
        }
    }

    async fn serve(
        self: &Arc<Self>,
        api: Api,
        head: &http::request::Parts,
        body: Body,
        record: &mut Exchange,
    ) -> Result<Served, ProxyError> {
        self.admit(head)?;
        // One that sends slowly holds no place, and of one that sends and leaves while it waits that is noticed.
        self.queue.admit()?;
        let body = self.read(&head.headers, body).await?;
        let Parsed { request, prefix, several } = self.parse(api, body).await?;
        let streams = request.stream;
        let Some((shape, siblings)) = several else {
            let (asked, priority) = self.asked(head, request, prefix);
            return Ok(Served::One(self.attempts(&Arc::new(asked), priority, record).await?, streams));
        };
        record.several(shape.count);
        let asking = siblings.into_iter().map(|(sibling, prefix)| {
            let account = record.sibling(sibling.index);
            self.clone().sibling(self.asked(head, request.of_sibling(sibling), prefix), account)
        });
        let asking = asking.collect();
        if streams {
            let (headers, parts) = siblings::begun(asking).await?;
            return Ok(Served::Streams(headers, parts, shape));
        }
        let (headers, answer) = siblings::whole(asking, shape).await?;
        Ok(Served::Whole(headers, answer))
    }

    /// What a request asks of engines, and how much it presses.
    fn asked(&self, head: &http::request::Parts, request: request::Request, prefix: Vec<u64>) -> (Asked, i64) {
        let (mut demand, session) = session::demand(&self.settings.session_keys, head, &request.body);
        if let Some(prompt) = request.sibling.as_ref().and_then(|sibling| sibling.prompt()) {
            demand.bytes = prompt.len() as u64;
        }
        demand.may_skip_prefill = request.alone.is_none();
        let priority = session::priority(&head.headers, &request.body);
        let headers = access::encoded(&self.settings.keys, &head.headers, session.as_deref());
        (Asked { request, headers, demand, prefix: prefix.into() }, priority)
    }

    /// One of several answers, as it would be if it were the only one. It goes on by itself, however slowly its client reads the others.
    fn sibling(self: Arc<Self>, (asked, priority): (Asked, i64), mut record: Exchange) -> siblings::Asking {
        AbortOnDropHandle::new(tokio::spawn(async move {
            let (api, streams) = (asked.request.api, asked.request.stream);
            let (asked, cut) = (Arc::new(asked), self.means.cut.clone());
            let result = tokio::select! {
                biased;
                () = cut.cancelled() => Err(ProxyError::Stopping),
                result = self.attempts(&asked, priority, &mut record) => result,
            };
            match result {
                Ok(outcome) => Ok(respond(outcome, (api, streams), record, cut).await),
                Err(error) => {
                    record.failed(&error);
                    Err(error)
                }
            }
        }))
    }

    /// The checks that need no body.
    pub(super) fn admit(&self, head: &http::request::Parts) -> Result<(), ProxyError> {
        if head.version == Version::HTTP_11 && head.headers.get_all(header::HOST).iter().count() != 1 {
            return Err(ProxyError::field("host", "exactly one Host header is required"));
        }
        access::check(&self.settings.keys, &head.headers)?;
        let encoding = head.headers.get(header::CONTENT_ENCODING);
        if encoding.is_some_and(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity")) {
            return Err(ProxyError::field("content-encoding", "compressed request bodies are not supported"));
        }
        Ok(())
    }

    /// The body, within its limits on size and time.
    pub(super) async fn read(&self, headers: &HeaderMap, body: Body) -> Result<Bytes, ProxyError> {
        let limit = self.settings.max_body;
        let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|length| length > limit) {
            return Err(ProxyError::BodyTooLarge { limit });
        }
        let time = self.settings.body_time;
        match tokio::time::timeout(time, collect(body, announced, limit)).await {
            Ok(body) => body,
            Err(_) => Err(ProxyError::BodyTimeout { limit: time }),
        }
    }

    /// What a body asks for. A large one is looked at apart from the threads that serve.
    async fn parse(self: &Arc<Self>, api: Api, body: Bytes) -> Result<Parsed, ProxyError> {
        if body.len() < LARGE {
            return self.parsed(api, body);
        }
        // The semaphore is never closed. A turn lasts as long as the work, also when the client leaves.
        let turn = self.parsing.clone().acquire_owned().await.map_err(|_| ProxyError::Internal)?;
        let server = self.clone();
        let parsing = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            server.parsed(api, body)
        });
        parsing.await.unwrap_or(Err(ProxyError::Internal))
    }

    fn parsed(&self, api: Api, body: Bytes) -> Result<Parsed, ProxyError> {
        let request::Asked { request, several } =
            request::Asked::parse(api, body, self.settings.budget, self.settings.siblings)?;
        let prefix = |request: &request::Request| {
            if self.selector.wants_prefixes() { prefix::hashes(request) } else { Vec::new() }
        };
        let Some((shape, siblings)) = several else {
            return Ok(Parsed { prefix: prefix(&request), request, several: None });
        };
        let mut all: Vec<OfOne> = Vec::with_capacity(siblings.len());
        for sibling in siblings {
            // Several choices of one prompt have it in common.
            let prefix = match all.last() {
                Some((last, prefix)) if last.prompt() == sibling.prompt() => prefix.clone(),
                _ => prefix(&request.of_sibling(sibling.clone())),
            };
            all.push((sibling, prefix));
        }
        Ok(Parsed { prefix: Vec::new(), several: Some((shape, all)), request })
    }

    /// For a request that may have to wait for probes.
    pub(super) fn probes(&self) -> Probes<'_> {
        Probes::new(&self.rounds)
    }
}

/// The client's own request id, for the log and the echo: 1 to 128 letters, digits, dashes, dots or underscores, in the first of
/// the headers that has such a text.
fn client_id(names: &[HeaderName], headers: &HeaderMap) -> Option<String> {
    let is_id = |id: &&str| {
        (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    names.iter().find_map(|name| headers.get(name)?.to_str().ok().filter(is_id)).map(str::to_owned)
}

/// Answers a request that is no exchange with an error, counted, in the shape of `api`.
pub(super) fn refuse(server: &Server, route: &'static str, api: Option<Api>, error: ProxyError) -> Response {
    server.metrics.request(route, error.status().as_u16());
    server.metrics.error(error.code(), error.source().as_str());
    let source = error.source();
    let response = error.into_response_for(api);
    let response = if server.settings.conduct.names_side { side::told(response, source, None) } else { response };
    response.map(Body::from)
}

/// A JSON answer of the proxy's own.
pub(super) fn json(status: StatusCode, value: &serde_json::Value) -> Response {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() = status;
    let kind: (HeaderName, HeaderValue) = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(kind.0, kind.1);
    response
}
