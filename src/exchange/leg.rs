//! The two legs of an attempt as its driver holds them: each sent, waited for, and given up by dropping it.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::task::{JoinHandle, spawn_blocking};

use crate::api::Api;
use crate::engine::Role;
use crate::exchange::opening::{Opening, Step};
use crate::exchange::prefilled::Prefilled;
use crate::metrics::LegStatus;
use crate::pool::InFlight;
use crate::turns::LARGE;
use crate::upstream::answer::Whole;
use crate::upstream::sending::{Progress, Sending};
use crate::upstream::{LegFailure, Limit, Verdict};

/// Prefill's leg on its way to the end of its answer.
pub struct PrefillLeg {
    way: PrefillWay,
    api: Api,
    /// READ: the params are wanted.
    is_read: bool,
    /// Its place on the engine.
    guard: InFlight,
    began: Instant,
    limit: Limit,
    written: Option<Instant>,
}

enum PrefillWay {
    Sending(Box<Sending>),
    Reading(Whole),
    /// A long answer, on a thread for what takes long.
    Parsing(JoinHandle<Prefilled>),
}

/// What prefill's leg has to tell.
enum PrefillTold {
    /// Its request is being written to an open connection.
    Started,
    /// Its end.
    Ended(Result<Prefilled, LegFailure>),
}

impl PrefillLeg {
    /// A leg whose limit begins now.
    pub fn new(sending: Sending, guard: InFlight, limit: Limit, api: Api, is_read: bool) -> Self {
        let way = PrefillWay::Sending(Box::new(sending));
        PrefillLeg { way, api, is_read, guard, began: Instant::now(), limit, written: None }
    }

    /// When the whole request had been handed over, if it has been.
    pub fn written(&self) -> Option<Instant> {
        match &self.way {
            PrefillWay::Sending(sending) => sending.written(),
            PrefillWay::Reading(_) | PrefillWay::Parsing(_) => self.written,
        }
    }

    /// When its limit passes.
    pub fn due(&self) -> Instant {
        self.began + self.limit.time
    }

    /// Its limit has passed.
    fn overdue(&self) -> LegFailure {
        let failure = LegFailure::timeout(Role::Prefill, self.limit);
        self.guard.end(failure.kind.status(), failure.kind.verdict());
        failure
    }

    /// The next thing that it has to tell, whatever its limit is. May be dropped and asked again; not to be asked after its end.
    async fn next(&mut self) -> PrefillTold {
        let told = poll_fn(|cx| self.poll(cx)).await;
        match &told {
            PrefillTold::Started => {}
            PrefillTold::Ended(Ok(_)) => {
                self.guard.engine.vitals.metrics.answered(self.began.elapsed());
                self.guard.end(LegStatus::Success, Verdict::Healthy);
            }
            PrefillTold::Ended(Err(failure)) => self.guard.end(failure.kind.status(), failure.kind.verdict()),
        }
        told
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<PrefillTold> {
        loop {
            match &mut self.way {
                PrefillWay::Sending(sending) => match ready!(sending.poll(cx)) {
                    Progress::Started => return Poll::Ready(PrefillTold::Started),
                    Progress::Failed(failure) => return Poll::Ready(PrefillTold::Ended(Err(failure))),
                    Progress::Answered(response) => {
                        self.written = sending.written();
                        self.way = PrefillWay::Reading(Whole::new(response.into_body()));
                    }
                },
                PrefillWay::Reading(whole) => {
                    let (api, is_read) = (self.api, self.is_read);
                    match ready!(whole.poll(cx)).map_err(|why| LegFailure::unread(Role::Prefill, why)) {
                        Ok(answer) if answer.len() >= LARGE => {
                            let parsing = spawn_blocking(move || Prefilled::of(answer, api, is_read));
                            self.way = PrefillWay::Parsing(parsing);
                        }
                        result => {
                            let result = result.map(|answer| Prefilled::of(answer, api, is_read));
                            return Poll::Ready(PrefillTold::Ended(result));
                        }
                    }
                }
                PrefillWay::Parsing(parsing) => {
                    // Cut off by the end of the runtime, or a defect: nothing is known of the answer.
                    let parsed = ready!(Pin::new(parsing).poll(cx)).map_err(|_| LegFailure::broken(Role::Prefill));
                    return Poll::Ready(PrefillTold::Ended(parsed));
                }
            }
        }
    }

    /// Runs to its end, of which nobody waits to hear.
    pub async fn see_out(mut self) {
        let due = self.due().into();
        let end = async { while let PrefillTold::Started = self.next().await {} };
        if tokio::time::timeout_at(due, end).await.is_err() {
            self.overdue();
        }
    }
}

/// The leg whose answer is relayed: decode's, or prefill's where that serves alone.
pub enum AnswerLeg {
    /// It has not answered.
    Sending {
        /// On its way.
        sending: Box<Sending>,
        /// Its place on the engine.
        guard: InFlight,
        /// Whose answer it is.
        api: Api,
    },
    /// Its head has come.
    Open(Box<Opening>),
}

/// What a leg has to tell. Its end comes with the moment at which its whole request had been handed over, if it had been.
pub enum Told {
    /// Its request is being written to an open connection.
    Started(Role),
    /// Prefill's end.
    Prefill(Result<Prefilled, LegFailure>, Option<Instant>),
    /// The other's head has come.
    Head(Instant),
    /// One more part of its answer.
    Part(Step),
    /// It ended without a head.
    Failed(LegFailure, Option<Instant>),
}

/// The next thing that prefill's leg has to tell; an empty slot never does. May be dropped and asked again.
pub async fn prefill(slot: &mut Option<PrefillLeg>) -> Told {
    let Some(leg) = slot else { return std::future::pending().await };
    match leg.next().await {
        PrefillTold::Started => Told::Started(Role::Prefill),
        PrefillTold::Ended(result) => {
            let written = leg.written();
            *slot = None;
            Told::Prefill(result, written)
        }
    }
}

/// What there is to tell of prefill's leg if its limit has passed by now.
pub fn overdue(slot: &mut Option<PrefillLeg>, now: Instant) -> Option<Told> {
    let leg = slot.take_if(|leg| leg.due() <= now)?;
    Some(Told::Prefill(Err(leg.overdue()), leg.written()))
}

/// The next thing that the answering leg has to tell; an empty slot never does, nor one of which as much is kept as may be. May be
/// dropped and asked again.
pub async fn answer(slot: &mut Option<AnswerLeg>) -> Told {
    let progress = match slot {
        None => return std::future::pending().await,
        Some(AnswerLeg::Open(opening)) if opening.is_full() => return std::future::pending().await,
        Some(AnswerLeg::Open(opening)) => return Told::Part(opening.step().await),
        Some(AnswerLeg::Sending { sending, .. }) => poll_fn(|cx| sending.poll(cx)).await,
    };
    if matches!(progress, Progress::Started) {
        return Told::Started(Role::Decode);
    }
    let Some(AnswerLeg::Sending { sending, guard, api }) = slot.take() else { return std::future::pending().await };
    let failure = match (progress, sending.written()) {
        (Progress::Answered(response), Some(written)) => {
            *slot = Some(AnswerLeg::Open(Box::new(Opening::new(response, guard, api))));
            return Told::Head(written);
        }
        (Progress::Failed(failure), _) => failure,
        // No success is told before the request is written.
        (Progress::Answered(_) | Progress::Started, _) => LegFailure::broken(guard.engine.role()),
    };
    guard.end(failure.kind.status(), failure.kind.verdict());
    Told::Failed(failure, sending.written())
}
