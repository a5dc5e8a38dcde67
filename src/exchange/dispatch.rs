//! One attempt: sends the legs of a picked pair as its mode demands, under time limits, and ties their fates together. What
//! comes back is decode's answer ready for the client, or one failure.

mod alone;
mod complete;
mod read;
mod write;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};
use tokio_util::sync::CancellationToken;

use crate::api::Api;
use crate::api::legs::{Ids, Pair};
use crate::api::request::Request;
use crate::engine::versions;
use crate::engine::{Mode, Role};
use crate::error::ProxyError;
use crate::exchange::opening::{Opening, Step};
use crate::exchange::parked::{DecodeLeg, Keeper, PrefillFuture, abandon};
use crate::exchange::record::Exchange;
use crate::exchange::relay::{Open, Relay, RelayLimits};
use crate::json::Segments;
use crate::metrics::LegStatus;
use crate::notify::held::Held;
use crate::pool::{Pool, Seat};
use crate::routing::{Picked, Selector};
use crate::upstream::Verdict;
use crate::upstream::answer::whole;
use crate::upstream::{LegFailure, RANK, REQUEST_ID, Retry, Sent, Upstream, relayed};

/// Limits on the phases of an attempt.
#[derive(Clone, Copy, Debug)]
pub struct AttemptLimits {
    /// Prefill's whole answer (`--prefill-timeout`).
    pub prefill: Duration,
    /// A streamed answer's first output, from the moment that prefill was done (`--first-byte-timeout`).
    pub first_byte: Duration,
    /// An answer in one piece, from the same moment (`--answer-timeout`).
    pub answer: Duration,
    /// Between bytes of a stream (`--stream-idle-timeout`).
    pub idle: Duration,
    /// READ: from prefill's answer to decode's acceptance (`--hand-over-limit`).
    pub hand_over: Duration,
}

/// Everything an attempt needs that outlives it.
pub struct Dispatcher {
    /// The HTTP client.
    pub upstream: Upstream,
    /// Takes another decode engine for a hand-over.
    pub selector: Arc<Selector>,
    /// The pool at this moment.
    pub pool: tokio::sync::watch::Receiver<Arc<Pool>>,
    /// Drains parked legs and sends releases.
    pub keeper: Keeper,
    /// Time limits.
    pub limits: AttemptLimits,
    /// WRITE: whether decode waits for prefill's answer (`--write-dispatch serial`).
    pub serial_write: bool,
    /// Fires when the drain is over and what is left is cut.
    pub cut: CancellationToken,
}

/// Why an attempt gave no answer.
pub struct Failure {
    /// What the client is told, if this was the last attempt.
    pub error: ProxyError,
    /// Whether another attempt is safe.
    pub retry: Retry,
}

impl From<LegFailure> for Failure {
    fn from(failure: LegFailure) -> Self {
        Failure { error: failure.error, retry: failure.retry }
    }
}

/// What every leg of one attempt has in common.
struct Attempt<'a> {
    dispatcher: &'a Dispatcher,
    request: &'a Request,
    headers: &'a HeaderMap,
    ids: Ids,
}

/// A leg that is ready to be sent.
struct Leg {
    upstream: Upstream,
    api: Api,
    headers: HeaderMap,
    body: Segments,
    seat: Seat,
    sent: Arc<Sent>,
}

impl Attempt<'_> {
    fn leg(&self, mut seat: Seat, rank: Option<u32>, body: Segments) -> Leg {
        seat.dispatch();
        let mut headers = self.headers.clone();
        if let Ok(id) = HeaderValue::from_str(&self.ids.request_id) {
            headers.insert(REQUEST_ID, id);
        }
        if let Some(rank) = rank {
            headers.insert(RANK, HeaderValue::from(rank));
        }
        let (upstream, api) = (self.dispatcher.upstream.clone(), self.request.api);
        Leg { upstream, api, headers, body, seat, sent: Arc::default() }
    }

    /// Decode's limits once prefill is done.
    fn relay_limits(&self) -> RelayLimits {
        let limits = &self.dispatcher.limits;
        let first_byte = match self.request.stream {
            true => (limits.first_byte, "first output", "--first-byte-timeout"),
            false => (limits.answer, "answer", "--answer-timeout"),
        };
        RelayLimits { first_byte, idle: limits.idle, from: Instant::now() }
    }
}

/// Prefill's leg as long as decode knows nothing of it. Given up before its end, it leaves no block behind.
struct Prefilling<'a> {
    keeper: &'a Keeper,
    leg: Option<PrefillFuture>,
    sent: Arc<Sent>,
    held: Held,
}

/// Waits for a leg and empties its slot, so that whoever holds the slot knows that it ended. May be dropped and asked again;
/// an empty slot never answers.
async fn ended<F: Future + Unpin>(slot: &mut Option<F>) -> F::Output {
    match slot {
        Some(leg) => {
            let result = leg.await;
            *slot = None;
            result
        }
        None => std::future::pending().await,
    }
}

/// Waits for a leg's commit and empties its slot. May be dropped and asked again; an empty slot never answers.
async fn committed(slot: &mut Option<DecodeLeg>) -> Result<Box<Opening>, LegFailure> {
    loop {
        let result = match slot {
            Some(DecodeLeg::Sending(head)) => match head.await {
                Ok(opening) => {
                    *slot = Some(DecodeLeg::Open(opening));
                    continue;
                }
                Err(failure) => Err(failure),
            },
            Some(DecodeLeg::Open(opening)) => match opening.step().await {
                Step::Waiting if !opening.is_full() => continue,
                Step::Failed(failure) => {
                    opening.seat.end(failure.status, failure.verdict);
                    Err(failure)
                }
                Step::Ready | Step::Comment | Step::Waiting => Ok(()),
            },
            None => std::future::pending().await,
        };
        return match (result, slot.take()) {
            (Ok(()), Some(DecodeLeg::Open(opening))) => Ok(opening),
            (Err(failure), _) => Err(failure),
            (Ok(()), _) => std::future::pending().await,
        };
    }
}

impl Drop for Prefilling<'_> {
    fn drop(&mut self) {
        let mut held = self.held.take();
        match self.leg.take() {
            // The engine never gets to know of the transfer.
            Some(_) if self.sent.revoke() => held.let_go(),
            Some(leg) => abandon(self.keeper, Some(leg), held),
            None => {}
        }
    }
}

impl Leg {
    /// Prefill's leg to the end of its answer.
    fn prefill(self, limit: Duration) -> PrefillFuture {
        Box::pin(async move {
            let began = Instant::now();
            let exchange = async {
                let engine = self.seat.engine.clone();
                let response = self
                    .upstream
                    .send(&engine.base, engine.role(), self.api.path(), self.headers, self.body, self.sent)
                    .await?;
                whole(response.into_body()).await.map_err(|why| LegFailure::unread(Role::Prefill, why))
            };
            let result = match tokio::time::timeout(limit, exchange).await {
                Ok(result) => result,
                Err(_) => Err(LegFailure::timeout(Role::Prefill, "answer", limit, "--prefill-timeout")),
            };
            match &result {
                Ok(_) => {
                    self.seat.engine.vitals.metrics.answered(began.elapsed());
                    self.seat.end(LegStatus::Success, Verdict::Healthy);
                }
                Err(failure) => self.seat.end(failure.status, failure.verdict),
            }
            result
        })
    }

    /// A leg whose answer is relayed, to the head of that.
    async fn open(self) -> Result<Box<Opening>, LegFailure> {
        let engine = self.seat.engine.clone();
        match self.upstream.send(&engine.base, engine.role(), self.api.path(), self.headers, self.body, self.sent).await
        {
            Ok(response) => Ok(Box::new(Opening::new(response, self.seat, self.api))),
            Err(failure) => {
                self.seat.end(failure.status, failure.verdict);
                Err(failure)
            }
        }
    }
}

impl Dispatcher {
    /// Carries out one attempt.
    ///
    /// # Errors
    /// The failure that came first; the other leg is ended, and no block stays held that a message can free.
    pub async fn attempt(
        &self,
        request: &Request,
        headers: &HeaderMap,
        picked: Picked,
        exchange: &mut Option<Exchange>,
    ) -> Result<Response<Relay>, Failure> {
        let (prefill, decode) = (&picked.prefill.engine, &picked.decode.engine);
        let plain = versions::plain_id(prefill.traits, decode.traits);
        let pair = Pair { prefill: &prefill.registration, decode: &decode.registration, rank: picked.rank };
        let ids = Ids::fresh(&pair, plain);
        if let Some(exchange) = exchange {
            exchange.attempt(&picked, &ids.transfer_id);
        }
        let attempt = Attempt { dispatcher: self, request, headers, ids };
        match picked.mode {
            _ if request.alone.is_some() => attempt.alone(picked, exchange).await,
            Mode::Read => attempt.read(picked, exchange).await,
            Mode::Write => attempt.write(picked, exchange).await,
        }
    }

    /// The client's response: the engine's head without its connection's headers, and the relay.
    fn answer(
        &self,
        mut open: Open,
        api: Api,
        exchange: &mut Option<Exchange>,
        limits: RelayLimits,
    ) -> Result<Response<Relay>, Failure> {
        let Some(mut exchange) = exchange.take() else {
            self.keeper.metrics.invariant_breaches.inc();
            return Err(Failure { error: ProxyError::Internal, retry: Retry::Never });
        };
        let (status, headers) = open.opening.take_head();
        let mut headers = relayed(headers);
        if open.opening.scanner.is_events() {
            // A stream may lose comments or gain an error event.
            headers.remove(http::header::CONTENT_LENGTH);
        }
        exchange.committed(status.as_u16());
        let mut response = Response::new(Relay::new(open, exchange, limits, api, self.cut.clone()));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Ok(response)
    }

    /// Counts what prefill says of its prefix cache: evidence that KV moves (protocol E6).
    fn note_cached(&self, answer: &Bytes) {
        if let Some(tokens) = crate::api::legs::cached_tokens(answer) {
            self.keeper.metrics.cached_tokens.inc_by(tokens);
        }
    }
}
