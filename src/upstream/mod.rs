//! One leg over HTTP: which headers go along, how the body is sent, what a failure means for the engine and for a retry.

pub(crate) mod answer;
pub mod failure;
pub mod gauges;

use std::cell::Cell;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Response, header};
use http_body::{Body, Frame, SizeHint};
use tokio::sync::Notify;
use tower::util::MapRequestLayer;

use self::answer::whole;
use self::failure::Kind;
use crate::engine::Role;
use crate::error::{EngineAnswer, ProxyError};
use crate::json::Segments;

mod headers;

pub use failure::{LegFailure, Limit, Repeat, Verdict};
pub(crate) use headers::{RANK, REQUEST_ID, forwarded, relayed};

/// A reused connection that breaks this soon after the request was written died of its idle time, unread.
const UNREAD: Duration = Duration::from_millis(50);

tokio::task_local! {
    /// Whether a connection was opened for the leg that this task is sending.
    static FRESH: Cell<bool>;
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
    pub(crate) fn written_at(&self) -> Option<Instant> {
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
                let kind = if unread { Kind::Stale } else { Kind::Broken };
                Err(LegFailure { kind, ..LegFailure::broken(role) })
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
pub(crate) fn is_refused(error: &reqwest::Error) -> bool {
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
    let kind = if is_refused(error) { Kind::ConnectionRefused } else { Kind::NoConnection };
    LegFailure { kind, error: ProxyError::Connect { role } }
}

async fn refusal(role: Role, response: Response<reqwest::Body>) -> LegFailure {
    let (head, body) = response.into_parts();
    if head.status.is_redirection() {
        return LegFailure::redirected(role);
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
