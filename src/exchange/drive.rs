//! Carries out what the state machine of an attempt says, and tells it what happens. All that an attempt holds is in one value.
//! To drop that unfinished is how a client leaves: the attempt goes on in the background until the machine says that nothing is
//! owed to anybody. No other destructor does anything but count.

mod actions;
mod begin;
mod clock;
mod events;
mod patience;
mod terms;

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use scopeguard::ScopeGuard;
use serde_json::Value;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::Api;
use crate::api::legs::{Ids, PrefillParams};
use crate::api::request::Request;
use crate::engine::Role;
use crate::error::ProxyError;
use crate::exchange::leg::{AnswerLeg, PrefillLeg};
use crate::exchange::opening::Opening;
use crate::exchange::record::Exchange;
use crate::exchange::transfer::{Acknowledged, Action, Event, Notice, Orphan, Plan, Transfer};
use crate::metrics::Metrics;
use crate::notify::Notifier;
use crate::pool::pairs::Meeting;
use crate::pool::{Engine, InFlight, LegEnd, Pool};
use crate::routing::{DecodePlace, Demand, Forecast, Selector, Short};
use crate::settings::Times;
use crate::upstream::failure::Kind;
use crate::upstream::gauges::Queue;
use crate::upstream::{Limit, Repeat, Upstream};
use clock::Clock;
use patience::Patience;

/// What all attempts have in common.
pub struct Means {
    /// The HTTP client.
    pub upstream: Upstream,
    /// Takes another decode engine for a hand-over.
    pub selector: Arc<Selector>,
    /// The pool at this moment.
    pub pool: tokio::sync::watch::Receiver<Arc<Pool>>,
    /// Releases and wakes.
    pub notifier: Notifier,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// The background set: attempts whose clients have left, and legs that are seen out. The stop waits for these.
    pub background: TaskTracker,
    /// Time limits.
    pub limits: Times,
    /// WRITE: whether decode waits for prefill's answer (`--write-dispatch serial`).
    pub serial_write: bool,
    /// Whether clients are told what prefill had of their prompts (`--report-cached-tokens`).
    pub tells_cached: bool,
    /// Whether requests wait in line for engines that turn work away.
    pub waits_for_room: bool,
    /// Fires when the drain is over and what is left is cut.
    pub cut: CancellationToken,
}

/// What a client asked for, as long as it waits.
pub struct Asked {
    /// The request.
    pub request: Request,
    /// The headers that go to engines, encoded.
    pub headers: Bytes,
    /// What its pair is picked by, but for what follows.
    pub demand: Demand<'static>,
    /// What its prompt begins with.
    pub prefix: Arc<[u64]>,
}

impl Asked {
    /// What its pair is picked by.
    pub fn demand(&self) -> Demand<'_> {
        Demand { prefix: &self.prefix, ..self.demand }
    }
}

/// Why an attempt gave no answer.
pub struct Failed {
    /// What the client is told, if this was the last attempt.
    pub error: ProxyError,
    /// Whether another attempt is safe.
    pub repeat: Repeat,
    /// The engines it failed of, by incarnation.
    pub refused: Vec<u64>,
    /// An engine had no room for it, for which requests wait in line.
    pub turned_away: bool,
}

/// Limits on the time between two parts of an answer.
#[derive(Clone, Copy, Debug)]
pub struct RelayLimits {
    /// On the first output.
    pub first_byte: Limit,
    /// When prefill was done, from which the limit on the first output counts.
    pub from: tokio::time::Instant,
    /// Between bytes (`--stream-idle-timeout`).
    pub idle: Duration,
}

/// What an attempt gave its client.
pub enum Outcome {
    /// An engine's answer, to be relayed under these limits.
    Relayed(Drive, Head, RelayLimits),
    /// Prefill's message as the whole answer (protocol O15).
    Message(Value, RelayLimits),
}

/// The head of an engine's answer.
pub struct Head {
    /// Whose answer it is.
    pub role: Role,
    /// Its status.
    pub status: StatusCode,
    /// Its headers, as a client may have them.
    pub headers: HeaderMap,
    /// Whether it is a stream of events.
    pub is_events: bool,
}

/// What the machine has said of the client.
enum Verdict {
    Commit(Head),
    CommitMessage(Value),
    Fail(Failed),
}

type Acknowledgement = Pin<Box<dyn Future<Output = (Notice, Acknowledged)> + Send>>;
type Look = Pin<Box<dyn Future<Output = Option<Queue>> + Send>>;

/// All that an attempt holds.
struct Attempt {
    means: Arc<Means>,
    transfer: Transfer,
    /// What the client asked for; nothing once it has its answer or waits for none.
    asked: Option<Arc<Asked>>,
    api: Api,
    plan: Plan,
    ids: Ids,
    prefill_engine: Arc<Engine>,
    decode_engine: Arc<Engine>,
    /// The rank that prefill is asked for.
    rank: Option<u32>,
    /// Where decode's leg goes.
    place: DecodePlace,
    /// The rank that has the blocks.
    holding_rank: u32,
    /// Places on engines, as long as their legs are not sent.
    prefill_guard: Option<InFlight>,
    answer_guard: Option<InFlight>,
    answer_end: LegEnd,
    prefill: Option<PrefillLeg>,
    answer: Option<AnswerLeg>,
    /// When the requests of legs that have got further had been handed over whole.
    prefill_written: Option<Instant>,
    answer_written: Option<Instant>,
    meeting: Option<Meeting>,
    /// Why decode serves it alone, if it does.
    short: Option<Short>,
    /// What its prompt begins with, where it is kept count of what decode has.
    prefix: Option<Arc<[u64]>>,
    /// What prefill is expected to have of the prompt, or decode alone.
    forecast: Option<Forecast>,
    /// What it had of it, once that is known, where clients are told.
    cached: Option<oneshot::Receiver<u64>>,
    /// Whether the first output comes with the first token.
    streams: bool,
    /// Its limits, as its pair stood when the last one of them was begun.
    patience: Patience,
    /// READ: prefill's params for decode.
    params: Option<PrefillParams>,
    /// Prefill's message, where it is the whole answer.
    message: Option<Value>,
    /// What a leg failed of.
    failure: Option<ProxyError>,
    /// Its kind.
    failed_by: Option<Kind>,
    /// Engines of which a leg failed, by incarnation.
    refused: Vec<u64>,
    acknowledgement: Option<Acknowledgement>,
    clock: Clock,
    look: Option<Look>,
    /// When decode's clock began: at prefill's answer, until then with the attempt.
    from: Instant,
    actions: Vec<Action>,
    verdict: Option<Verdict>,
    orphan: Option<Orphan>,
}

/// An attempt; dropped unfinished it goes on in the background.
pub struct Drive(ScopeGuard<Box<Attempt>, fn(Box<Attempt>)>);

impl Drive {
    /// Carries the attempt out until its client gets something.
    ///
    /// # Errors
    /// The failure that came first; what is owed to engines is seen to in the background.
    pub async fn run(mut self, record: &mut Exchange) -> Result<Outcome, Failed> {
        self.0.tell(Event::Start);
        let verdict = loop {
            if let Some(verdict) = self.0.verdict.take() {
                break verdict;
            }
            let decode = self.0.decode_engine.incarnation;
            if let Some(Event::Answered(_)) = self.0.step().await {
                record.prefill_done();
            }
            if self.0.decode_engine.incarnation != decode {
                record.another_decode(&self.0.decode_engine.name, self.0.answer_end.clone());
            }
        };
        let limits = self.0.relay_limits();
        // An answer may take long: what was asked for is not kept meanwhile.
        (self.0.asked, self.0.params) = (None, None);
        match verdict {
            Verdict::Commit(head) => Ok(Outcome::Relayed(self, head, limits)),
            Verdict::CommitMessage(message) => Ok(Outcome::Message(message, limits)),
            Verdict::Fail(failure) => {
                if failure.turned_away {
                    self.0.finish().await;
                }
                Err(failure)
            }
        }
    }

    /// What prefill had of the prompt, to be asked for once; none where nobody is told.
    pub(crate) fn take_cached(&mut self) -> Option<oneshot::Receiver<u64>> {
        self.0.cached.take()
    }

    /// Who learns what decode alone had of the prompt, where something was expected; to be asked for once.
    pub(crate) fn take_expected(&mut self) -> Option<impl FnOnce(Option<(u64, u64)>) + Send + use<>> {
        self.0.short?;
        let forecast = self.0.forecast.take()?;
        let selector = self.0.means.selector.clone();
        Some(move |told| selector.learn_decode(&forecast, told))
    }

    /// The answer that is being relayed, as long as there is one.
    pub fn opening(&mut self) -> Option<&mut Opening> {
        self.0.opening()
    }

    /// The same, to look at.
    pub(crate) fn peek(&self) -> Option<&Opening> {
        match &self.0.answer {
            Some(AnswerLeg::Open(opening)) => Some(opening),
            _ => None,
        }
    }

    /// What the answer has shown while it is relayed.
    pub fn tell(&mut self, event: Event) {
        self.0.tell(event);
    }
}

impl Attempt {
    /// The client has left, or has its answer. What is owed to engines is done in the background, bounded in time by the machine
    /// and counted.
    fn leave_client(mut self: Box<Self>) {
        (self.asked, self.prefill_guard, self.answer_guard) = (None, None, None);
        self.look_at_pair();
        self.tell(Event::ClientGone);
        if !self.transfer.is_over() {
            let background = self.means.background.clone();
            background.spawn(self.see_to_its_end());
        }
    }

    /// Sees to what is owed to engines before the request is tried again: their queues are not to be filled by what is left of tries
    /// before it. Dropped meanwhile, it goes on in the background.
    async fn finish(&mut self) {
        (self.prefill_guard, self.answer_guard) = (None, None);
        while !self.transfer.is_over() {
            self.step().await;
        }
    }

    async fn see_to_its_end(mut self: Box<Self>) {
        let (metrics, is_orphaned) = (self.means.metrics.clone(), self.transfer.is_orphaned());
        if is_orphaned {
            metrics.orphans_in_flight.inc();
        }
        while !self.transfer.is_over() {
            self.look_at_pair();
            self.step().await;
        }
        if is_orphaned {
            metrics.orphans_in_flight.dec();
        }
        if let Some(orphan) = self.orphan {
            metrics.orphan_ended(orphan.as_str());
        }
    }

    /// Limits that are begun from now on are those of the pair as it stands now: another exchange may have proved it meanwhile, or
    /// READ have taken another decode engine. Asked where a clock begins, so that what a client is told of a limit is
    /// the one that has passed. A clock that runs is not stopped for it. Of a pair whose meeting is over nothing more is
    /// learned.
    fn look_at_pair(&mut self) {
        if let Some(meeting) = &self.meeting {
            self.patience = Patience::of(&self.means.limits, self.streams, meeting.is_cold());
            self.transfer.set_limits(self.patience.first_output.time, self.patience.orphan.time);
        }
    }

    /// Decode's limits once prefill is done.
    fn relay_limits(&self) -> RelayLimits {
        let first_byte = self.patience.first_output;
        RelayLimits { first_byte, idle: self.means.limits.idle, from: self.from.into() }
    }

    fn opening(&mut self) -> Option<&mut Opening> {
        match &mut self.answer {
            Some(AnswerLeg::Open(opening)) => Some(opening),
            _ => None,
        }
    }
}
