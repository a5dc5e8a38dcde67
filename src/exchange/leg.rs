//! The two legs of an attempt as its driver holds them: each sent, waited for, and given up by dropping it.

use std::future::poll_fn;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout_at;

use crate::api::Api;
use crate::engine::Role;
use crate::exchange::opening::{Opening, Step};
use crate::exchange::prefilled::Prefilled;
use crate::metrics::{LegStatus, Metrics};
use crate::pool::InFlight;
use crate::routing::{Forecast, Selector};
use crate::turns::LARGE;
use crate::upstream::answer::Whole;
use crate::upstream::sending::{Progress, Sending};
use crate::upstream::{LegFailure, Limit, Verdict};

/// Who hears what prefill had of a prompt, whether or not its answer is still waited for.
pub struct Hearers {
    /// Counts it.
    pub metrics: Arc<Metrics>,
    /// Learns of it.
    pub selector: Arc<Selector>,
    /// What it expected.
    pub forecast: Option<Forecast>,
    /// Tells the client.
    pub client: Option<oneshot::Sender<u64>>,
}

impl Hearers {
    /// Whether somebody wants more than a count.
    fn want_usage(&self) -> bool {
        self.forecast.is_some() || self.client.is_some()
    }

    fn hear(&mut self, answer: &Prefilled) {
        if let (Some(client), Some(cached)) = (self.client.take(), answer.told_cached) {
            // A client that has left does not hear it.
            let _ = client.send(cached);
        }
        let Some(cached) = answer.cached_tokens else { return };
        self.metrics.cached_tokens.inc_by(cached);
        if let (Some(forecast), Some(tokens)) = (self.forecast.take(), answer.prompt_tokens) {
            self.selector.learn(&forecast, cached, tokens);
        }
    }
}

/// Prefill's leg on its way to the end of its answer.
pub struct PrefillLeg {
    way: PrefillWay,
    api: Api,
    /// READ: the params are wanted.
    is_read: bool,
    hearers: Hearers,
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
    pub fn new(sending: Sending, guard: InFlight, limit: Limit, (api, is_read): (Api, bool), hearers: Hearers) -> Self {
        let way = PrefillWay::Sending(Box::new(sending));
        PrefillLeg { way, api, is_read, hearers, guard, began: Instant::now(), limit, written: None }
    }

    /// When the whole request had been handed over, if it has been.
    pub fn written(&self) -> Option<Instant> {
        match &self.way {
            PrefillWay::Sending(sending) => sending.written(),
            PrefillWay::Reading(_) | PrefillWay::Parsing(_) => self.written,
        }
    }

    /// When its limit passes. An answer that has come is in time, however long it takes to read.
    pub fn due(&self) -> Option<Instant> {
        (!matches!(self.way, PrefillWay::Parsing(_))).then(|| self.began + self.limit.time)
    }

    fn is_overdue(&self, now: Instant) -> bool {
        self.due().is_some_and(|due| due <= now)
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
            PrefillTold::Ended(Ok(answer)) => {
                self.hearers.hear(answer);
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
                    let (api, is_read, hears) = (self.api, self.is_read, self.hearers.want_usage());
                    match ready!(whole.poll(cx)).map_err(|why| LegFailure::unread(Role::Prefill, why)) {
                        Ok(answer) if answer.len() >= LARGE => {
                            let parsing = spawn_blocking(move || Prefilled::of(answer, api, is_read, hears));
                            self.way = PrefillWay::Parsing(parsing);
                        }
                        result => {
                            let result = result.map(|answer| Prefilled::of(answer, api, is_read, hears));
                            return Poll::Ready(PrefillTold::Ended(result));
                        }
                    }
                }
                PrefillWay::Parsing(parsing) => {
                    let parsed = match ready!(Pin::new(parsing).poll(cx)) {
                        Ok(parsed) => parsed,
                        // A defect ends this exchange as it would have here, and says nothing of the engine.
                        Err(cut) if cut.is_panic() => resume_unwind(cut.into_panic()),
                        // The runtime ends.
                        Err(_) => return Poll::Pending,
                    };
                    return Poll::Ready(PrefillTold::Ended(Ok(parsed)));
                }
            }
        }
    }

    /// Runs to its end, of which nobody waits to hear.
    pub async fn see_out(mut self) {
        loop {
            let told = match self.due() {
                Some(due) => timeout_at(due.into(), self.next()).await.ok(),
                None => Some(self.next().await),
            };
            match told {
                Some(PrefillTold::Started) => {}
                Some(PrefillTold::Ended(_)) => return,
                None if self.is_overdue(Instant::now()) => {
                    self.overdue();
                    return;
                }
                // Its answer has come meanwhile.
                None => {}
            }
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
    let leg = slot.take_if(|leg| leg.is_overdue(now))?;
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use bytes::Bytes;
    use futures::FutureExt;

    use super::*;
    use crate::pool::tests::engine_of;
    use crate::settings::PickRules;

    /// A leg that is behind its limit already, and whose answer is being read.
    fn parsing(parse: impl FnOnce() -> Prefilled + Send + 'static) -> PrefillLeg {
        let mut guard = engine_of(1, Role::Prefill, 1, 1).admit(Instant::now()).unwrap();
        guard.dispatch();
        let way = PrefillWay::Parsing(spawn_blocking(parse));
        let limit = Limit::new(Duration::ZERO, "answer", "--prefill-timeout");
        let hearers = Hearers {
            metrics: Arc::default(),
            selector: Selector::new(PickRules::default()),
            forecast: None,
            client: None,
        };
        PrefillLeg { way, api: Api::Chat, is_read: true, hearers, guard, began: Instant::now(), limit, written: None }
    }

    #[tokio::test]
    async fn an_answer_that_is_being_read_is_in_time() {
        let (go, wait) = mpsc::channel();
        let leg = parsing(move || {
            wait.recv().unwrap();
            Prefilled::of(Bytes::from_static(b"{}"), Api::Chat, false, false)
        });
        let end = leg.guard.leg_end();
        let mut slot = Some(leg);
        assert!(overdue(&mut slot, Instant::now()).is_none());
        let mut seen_out = Box::pin(slot.unwrap().see_out());
        assert!((&mut seen_out).now_or_never().is_none());
        assert_eq!(end.word(), Some("running"));
        go.send(()).unwrap();
        seen_out.await;
        assert_eq!(end.word(), Some("2xx"));
    }

    #[tokio::test]
    async fn a_defect_in_reading_an_answer_is_not_its_engines_fault() {
        let leg = parsing(|| panic!("a defect"));
        let end = leg.guard.leg_end();
        assert!(tokio::spawn(leg.see_out()).await.unwrap_err().is_panic());
        assert_eq!(end.word(), Some("cancelled"));
    }
}
