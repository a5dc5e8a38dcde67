//! One leg over HTTP: which headers go along, how the body is sent, what a failure means for the engine and for a retry.

pub mod answer;
pub mod gauges;

use std::cell::Cell;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use tokio::sync::Notify;
use tower::util::MapRequestLayer;

use self::answer::{Unread, whole};
use crate::engine::Role;
use crate::error::{EngineAnswer, ProxyError};
use crate::json::Segments;
use crate::metrics::LegStatus;

mod headers;

pub use headers::{RANK, REQUEST_ID, forwarded, relayed};

/// A reused connection that breaks this soon after the request was written died of its idle time, unread.
const UNREAD: Duration = Duration::from_millis(50);

/// Whether another attempt is safe after a leg has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The engine may have taken the work.
    Never,
    /// A reused connection broke at once: in all likelihood it had died of its idle time, unread. Believed once in an
    /// exchange, since a request that ends engines would look the same.
    Once,
    /// The engine certainly did not take the work.
    Safe,
}

/// What a leg's end says about its engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It works.
    Healthy,
    /// Transport error, time limit, or a 5xx other than 503.
    Ailing,
    /// Nobody listens at its address.
    Refusing,
    /// Nothing can be concluded.
    None,
}

tokio::task_local! {
    /// Whether a connection was opened for the leg that this task is sending.
    static FRESH: Cell<bool>;
}

/// Why a leg gave no usable answer.
#[derive(Clone, Debug)]
pub struct LegFailure {
    /// What the client is told.
    pub error: ProxyError,
    /// How the leg is counted.
    pub status: LegStatus,
    /// What it says of the engine.
    pub verdict: Verdict,
    /// Whether another attempt, with new ids, is safe.
    pub retry: Retry,
}

impl LegFailure {
    /// A limit on time passed.
    pub fn timeout(role: Role, what: &'static str, limit: Duration, option: &'static str) -> Self {
        let error = ProxyError::Timeout { role, what, limit, option };
        LegFailure { error, status: LegStatus::Timeout, verdict: Verdict::Ailing, retry: Retry::Never }
    }

    /// The connection broke.
    pub fn broken(role: Role) -> Self {
        let error = ProxyError::Broken { role };
        LegFailure { error, status: LegStatus::Broken, verdict: Verdict::Ailing, retry: Retry::Never }
    }

    /// An answer could not be read as a whole.
    pub fn unread(role: Role, why: Unread) -> Self {
        match why {
            Unread::Broken => LegFailure::broken(role),
            Unread::TooLarge => LegFailure {
                error: why.error(role),
                status: LegStatus::Cancelled,
                verdict: Verdict::None,
                retry: Retry::Never,
            },
        }
    }

    /// Whether the engine may still be at work: nobody has heard it refuse.
    pub fn may_run_on(&self) -> bool {
        matches!(self.status, LegStatus::Timeout | LegStatus::Broken)
    }

    /// Whether the engine may have done the work, or be at it. A 5xx is no proof of the contrary: an answer that cannot be
    /// worded, or an engine that ends, comes after prefill's computing (seen on 0.32.0). Only a 503 turns work away.
    pub fn may_have_run(&self) -> bool {
        match &self.error {
            ProxyError::Engine { answer, .. } => {
                answer.status.is_server_error() && answer.status != StatusCode::SERVICE_UNAVAILABLE
            }
            // It did the work and told more of it than the proxy reads.
            ProxyError::AnswerTooLarge { .. } => true,
            _ => self.may_run_on(),
        }
    }

    /// Whether the engine may have written to its peer. Besides [`LegFailure::may_have_run`] that is a 400: 0.26.0 and newer answer
    /// so to any value that they cannot word, also after the work. Such an engine holds nothing that it must be told of.
    pub fn may_have_written(&self) -> bool {
        let malformed = match &self.error {
            ProxyError::Engine { answer, .. } => answer.status == StatusCode::BAD_REQUEST,
            _ => false,
        };
        malformed || self.may_have_run()
    }

    /// The engine answered with something else than a success, or told an error in its place.
    pub fn refused(role: Role, answer: EngineAnswer) -> Self {
        let (status, verdict) = match answer.status {
            StatusCode::SERVICE_UNAVAILABLE => (LegStatus::Failed, Verdict::None),
            status if status.is_server_error() => (LegStatus::Failed, Verdict::Ailing),
            _ => (LegStatus::Refused, Verdict::Healthy),
        };
        let retry = if answer.status == StatusCode::SERVICE_UNAVAILABLE { Retry::Safe } else { Retry::Never };
        LegFailure { error: ProxyError::Engine { role, answer: Box::new(answer) }, status, verdict, retry }
    }
}

/// How far a leg's request is on its way: its body is asked for only once it has a connection. Shared with the connection's
/// task, which may be writing while the leg is given up, so giving up is a matter of who comes first.
#[derive(Debug, Default)]
pub struct Sent {
    began: OnceLock<Instant>,
    ended: OnceLock<Instant>,
    notify: Notify,
    fate: AtomicU8,
}

/// The request is not yet written to its end.
const OPEN: u8 = 0;
/// The whole request was handed to the connection: the engine may have it.
const WRITTEN: u8 = 1;
/// The request was given up before: the engine never has the whole of it.
const REVOKED: u8 = 2;

impl Sent {
    /// Resolves when the request is being written to an open connection.
    pub async fn started(&self) {
        let notified = self.notify.notified();
        if !self.is_started() {
            notified.await;
        }
    }

    /// When the last of the request was handed to the connection.
    pub fn written_at(&self) -> Option<Instant> {
        self.ended.get().copied()
    }

    fn is_started(&self) -> bool {
        self.began.get().is_some()
    }

    /// Gives the request up, if it is not yet written. Says whether the engine certainly never gets the whole of it.
    pub fn revoke(&self) -> bool {
        self.fate.compare_exchange(OPEN, REVOKED, Ordering::AcqRel, Ordering::Acquire) != Err(WRITTEN)
    }

    fn written(&self) -> bool {
        let _ = self.ended.set(Instant::now());
        self.fate.compare_exchange(OPEN, WRITTEN, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// The leg was given up while its request was being written.
#[derive(Debug, thiserror::Error)]
#[error("the leg was given up")]
struct Revoked;

struct LegBody {
    parts: std::vec::IntoIter<Bytes>,
    left: u64,
    sent: Arc<Sent>,
}

impl Body for LegBody {
    type Data = Bytes;
    type Error = Revoked;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.sent.began.set(Instant::now()).is_ok() {
            self.sent.notify.notify_waiters();
        }
        let Some(part) = self.parts.next() else {
            return Poll::Ready(None);
        };
        self.left -= part.len() as u64;
        if self.left == 0 && !self.sent.written() {
            return Poll::Ready(Some(Err(Revoked)));
        }
        Poll::Ready(Some(Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// The HTTP client that all legs share.
#[derive(Clone, Debug)]
pub struct Upstream {
    client: reqwest::Client,
}

impl Upstream {
    /// A client without a total time limit: every phase has its own.
    ///
    /// # Errors
    /// When the TLS-free client cannot be built, which only a defect can cause.
    pub fn new(connect_timeout: Duration) -> Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder()
            .connect_timeout(connect_timeout)
            .pool_max_idle_per_host(4096)
            // The engines' server closes idle connections after 5 s; below that a request cannot meet the closing.
            .pool_idle_timeout(Duration::from_secs(4))
            .tcp_nodelay(true)
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .connector_layer(MapRequestLayer::new(note_fresh))
            .no_proxy()
            .build()?;
        Ok(Upstream { client })
    }

    /// The client itself, for requests that are no legs.
    pub fn client(&self) -> &reqwest::Client {
        &self.client
    }

    /// Sends one leg to the engine at `base` and waits for the head of a success.
    ///
    /// # Errors
    /// No connection, a broken one, or any answer but a success.
    pub async fn send(
        &self,
        base: &reqwest::Url,
        role: Role,
        path: &str,
        headers: HeaderMap,
        segments: Segments,
        sent: Arc<Sent>,
    ) -> Result<Response<reqwest::Body>, LegFailure> {
        let mut url = base.clone();
        url.set_path(path);
        let body = LegBody { left: segments.len(), parts: segments.into_iter(), sent: sent.clone() };
        let mut request = reqwest::Request::new(http::Method::POST, url);
        *request.headers_mut() = headers;
        *request.body_mut() = Some(reqwest::Body::wrap(body));
        let exchange = async { (self.client.execute(request).await, FRESH.with(Cell::get)) };
        match FRESH.scope(Cell::new(false), exchange).await {
            (Ok(response), _) if response.status().is_success() => Ok(response.into()),
            (Ok(response), _) => Err(refusal(role, response.into()).await),
            (Err(error), _) if error.is_connect() => Err(no_connection(role, &error)),
            (Err(_), fresh) => {
                let unread = !fresh && sent.began.get().is_some_and(|began| began.elapsed() < UNREAD);
                let retry = if unread { Retry::Once } else { Retry::Never };
                Err(LegFailure { retry, ..LegFailure::broken(role) })
            }
        }
    }
}

/// Called for every connection that is opened, in the task of the leg that asked for it.
fn note_fresh<T>(target: T) -> T {
    // Requests that are no legs have nothing to note.
    let _ = FRESH.try_with(|fresh| fresh.set(true));
    target
}

/// Whether nobody listens at the engine's address.
pub fn is_refused(error: &reqwest::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let mut refused = false;
    while let Some(error) = cause {
        let io = error.downcast_ref::<std::io::Error>();
        refused |= io.is_some_and(|io| io.kind() == std::io::ErrorKind::ConnectionRefused);
        cause = error.source();
    }
    refused
}

fn no_connection(role: Role, error: &reqwest::Error) -> LegFailure {
    let verdict = if is_refused(error) { Verdict::Refusing } else { Verdict::Ailing };
    LegFailure { error: ProxyError::Connect { role }, status: LegStatus::Connect, verdict, retry: Retry::Safe }
}

async fn refusal(role: Role, response: Response<reqwest::Body>) -> LegFailure {
    let (head, body) = response.into_parts();
    if head.status.is_redirection() {
        // Whatever stands at the engine's address took no work, and will take none.
        let error = ProxyError::Redirected { role };
        return LegFailure { error, status: LegStatus::Failed, verdict: Verdict::Ailing, retry: Retry::Never };
    }
    match whole(body).await {
        Ok(body) => {
            let mut headers = relayed(head.headers);
            headers.remove(header::CONTENT_LENGTH);
            LegFailure::refused(role, EngineAnswer { status: head.status, headers, body })
        }
        Err(why) => LegFailure::unread(role, why),
    }
}
