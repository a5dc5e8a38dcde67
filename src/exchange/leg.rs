//! The two legs of an attempt as its driver holds them: each sent, waited for, and given up by dropping it.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::HeaderMap;

use crate::api::Api;
use crate::engine::Role;
use crate::exchange::opening::{Opening, Step};
use crate::json::Segments;
use crate::metrics::LegStatus;
use crate::pool::InFlight;
use crate::upstream::answer::whole;
use crate::upstream::{LegFailure, Limit, Sent, Upstream, Verdict};

/// A leg that is ready to be sent.
pub struct Leg {
    /// The HTTP client.
    pub upstream: Upstream,
    /// Whose path it goes to.
    pub api: Api,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Segments,
    /// Its place on the engine.
    pub guard: InFlight,
    /// How far its request is on its way.
    pub sent: Arc<Sent>,
}

/// Prefill's leg to its end; its guard is inside.
pub type PrefillFuture = Pin<Box<dyn Future<Output = Result<Bytes, LegFailure>> + Send>>;

/// An answering leg to its head.
pub type HeadFuture = Pin<Box<dyn Future<Output = Result<Box<Opening>, LegFailure>> + Send>>;

impl Leg {
    /// Prefill's leg to the end of its answer.
    pub fn prefill(self, limit: Limit) -> PrefillFuture {
        Box::pin(async move {
            let began = Instant::now();
            let exchange = async {
                let engine = self.guard.engine.clone();
                let response = self
                    .upstream
                    .send(&engine.base, engine.role(), self.api.path(), self.headers, self.body, self.sent)
                    .await?;
                whole(response.into_body()).await.map_err(|why| LegFailure::unread(Role::Prefill, why))
            };
            let result = match tokio::time::timeout(limit.time, exchange).await {
                Ok(result) => result,
                Err(_) => Err(LegFailure::timeout(Role::Prefill, limit)),
            };
            match &result {
                Ok(_) => {
                    self.guard.engine.vitals.metrics.answered(began.elapsed());
                    self.guard.end(LegStatus::Success, Verdict::Healthy);
                }
                Err(failure) => self.guard.end(failure.kind.status(), failure.kind.verdict()),
            }
            result
        })
    }

    /// A leg whose answer is relayed, to the head of that.
    pub fn head(self) -> HeadFuture {
        Box::pin(async move {
            let engine = self.guard.engine.clone();
            let sending =
                self.upstream.send(&engine.base, engine.role(), self.api.path(), self.headers, self.body, self.sent);
            match sending.await {
                Ok(response) => Ok(Box::new(Opening::new(response, self.guard, self.api))),
                Err(failure) => {
                    self.guard.end(failure.kind.status(), failure.kind.verdict());
                    Err(failure)
                }
            }
        })
    }
}

/// Prefill's leg on its way.
pub struct PrefillLeg {
    /// To its end.
    pub future: PrefillFuture,
    /// How far its request is.
    pub sent: Arc<Sent>,
    /// Whether its start was told.
    pub started: bool,
}

/// The leg whose answer is relayed: decode's, or prefill's where that serves alone.
pub enum AnswerLeg {
    /// It has not answered.
    Sending {
        /// To its head.
        future: HeadFuture,
        /// How far its request is.
        sent: Arc<Sent>,
        /// Whether its start was told.
        started: bool,
    },
    /// Its head has come.
    Open(Box<Opening>),
}

/// What a leg has to tell.
pub enum Told {
    /// Its request is being written to an open connection.
    Started(Role),
    /// Prefill's end.
    Prefill(Result<Bytes, LegFailure>),
    /// The other's head has come.
    Head,
    /// One more part of its answer.
    Part(Step),
    /// It ended without a head.
    Failed(LegFailure),
}

/// The next thing that prefill's leg has to tell; an empty slot never does. May be dropped and asked again.
pub async fn prefill(slot: &mut Option<PrefillLeg>) -> Told {
    let Some(leg) = slot else { return std::future::pending().await };
    if !leg.started {
        let result = tokio::select! {
            biased;
            () = leg.sent.started() => None,
            result = &mut leg.future => Some(result),
        };
        leg.started = true;
        let Some(result) = result else { return Told::Started(Role::Prefill) };
        *slot = None;
        return Told::Prefill(result);
    }
    let result = (&mut leg.future).await;
    *slot = None;
    Told::Prefill(result)
}

/// The next thing that the answering leg has to tell; an empty slot never does, nor one of which as much is kept as may be. May be
/// dropped and asked again.
pub async fn answer(slot: &mut Option<AnswerLeg>) -> Told {
    let result = match slot {
        None => return std::future::pending().await,
        Some(AnswerLeg::Open(opening)) if opening.is_full() => return std::future::pending().await,
        Some(AnswerLeg::Open(opening)) => return Told::Part(opening.step().await),
        Some(AnswerLeg::Sending { future, started: true, .. }) => future.await,
        Some(AnswerLeg::Sending { future, sent, started }) => {
            let result = tokio::select! {
                biased;
                // A head can only come before the start is told if both came at once.
                result = &mut *future => Some(result),
                () = sent.started() => None,
            };
            *started = true;
            let Some(result) = result else { return Told::Started(Role::Decode) };
            result
        }
    };
    match result {
        Ok(opening) => {
            *slot = Some(AnswerLeg::Open(opening));
            Told::Head
        }
        Err(failure) => {
            *slot = None;
            Told::Failed(failure)
        }
    }
}
