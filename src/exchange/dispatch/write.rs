//! WRITE: both legs at once, prefill pushes into decode. Nothing of decode's answer reaches the client before the commit: the
//! first of prefill's success and decode's first output.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use tokio::time::timeout;

use super::{Attempt, Dispatcher, Failure, Prefilling, complete, ended};
use crate::api::Api;
use crate::api::legs::{self, Pair};
use crate::engine::Role;
use crate::error::ProxyError;
use crate::exchange::opening::{Opening, Step};
use crate::exchange::parked::{DecodeFuture, DecodeLeg, Keeper, Parked, PrefillLeg, Unread, abandon, judge};
use crate::exchange::record::Exchange;
use crate::exchange::relay::{Open, Relay, RelayLimits};
use crate::metrics::LegStatus;
use crate::notify::held::Held;
use crate::pool::pairs::Contact;
use crate::pool::{Engine, LegEnd};
use crate::routing::Picked;
use crate::upstream::{LegFailure, Retry, Sent};

/// Both legs from the moment that decode's was sent. Dropping this, for whatever reason, lets a parked leg outlive it.
struct Legs<'a> {
    dispatcher: &'a Dispatcher,
    prefill: Option<PrefillLeg>,
    decode: Option<Decode>,
    /// What the background needs; taken when there is nothing left to park.
    rest: Option<Rest>,
}

/// How far decode is.
enum Decode {
    Sending(DecodeFuture),
    Open(Box<Opening>),
}

struct Rest {
    held: Held,
    contact: Contact,
    engine: Arc<Engine>,
    transfer_id: String,
    /// How far decode's request is on its way.
    sent: Arc<Sent>,
    end: LegEnd,
    patience: Duration,
    streams: bool,
}

impl Rest {
    fn parked(self, keeper: Keeper, prefill: PrefillLeg) -> (Parked, Contact) {
        let Rest { held, contact, engine, transfer_id, patience, streams, .. } = self;
        (Parked { keeper, prefill, held, decode: engine, transfer_id, patience, streams }, contact)
    }
}

/// What happened first.
enum Event {
    Prefill(Result<Bytes, LegFailure>),
    Head(Result<Box<Opening>, LegFailure>),
    /// A part of decode's answer.
    Step(Step),
}

impl Attempt<'_> {
    /// One WRITE attempt.
    pub(super) async fn write(
        &self,
        picked: Picked,
        exchange: &mut Option<Exchange>,
    ) -> Result<Response<Relay>, Failure> {
        let dispatcher = self.dispatcher;
        let Picked { prefill: prefill_seat, decode: decode_seat, rank, contact, .. } = picked;
        let (prefill, decode) = (prefill_seat.engine.clone(), decode_seat.engine.clone());
        let pair = Pair { prefill: &prefill.registration, decode: &decode.registration, rank };
        let (prefill_body, decode_body) =
            (legs::prefill_leg(self.request, &pair, &self.ids), legs::decode_leg_write(self.request, &pair, &self.ids));
        let held = Held::new(&dispatcher.keeper.notifier, &prefill, rank, &self.ids.transfer_id);

        // Decode is asked once prefill's connection is up, so that a refused prefill harms nobody.
        let leg = self.leg(prefill_seat, rank, prefill_body);
        let sent = leg.sent.clone();
        let running = Some(leg.prefill(dispatcher.limits.prefill));
        let mut prefilling = Prefilling { keeper: &dispatcher.keeper, leg: running, sent: sent.clone(), held };
        let early = match dispatcher.serial_write {
            true => Some(ended(&mut prefilling.leg).await),
            false => tokio::select! {
                biased;
                () = sent.started() => None,
                result = ended(&mut prefilling.leg) => Some(result),
            },
        };
        match early {
            None => {}
            Some(Ok(answer)) => {
                self.prefill_done(&answer, exchange);
                if let Some(message) = complete::message(self.request.api, &answer) {
                    prefilling.held.let_go();
                    return self.complete(&message, exchange);
                }
                prefilling.held.finished();
            }
            Some(Err(failure)) => {
                if !failure.may_have_run() {
                    prefilling.held.let_go();
                }
                return Err(failure.into());
            }
        }
        let prefill_leg = prefilling.leg.take().map_or(PrefillLeg::Answered, PrefillLeg::Running);
        let mut held = prefilling.held.take();
        let leg = self.leg(decode_seat, None, decode_body);
        let (sent, end) = (leg.sent.clone(), leg.seat.leg_end());
        let sending: DecodeFuture = Box::pin(leg.open());
        // From here on decode may accept: what happens to prefill's blocks depends on its answer.
        held.let_go();
        let transfer_id = self.ids.transfer_id.clone();
        let (patience, streams) = (self.relay_limits().first_byte.0, self.request.stream);
        let rest = Rest { held, contact, engine: decode, transfer_id, sent, end, patience, streams };
        let legs =
            Legs { dispatcher, prefill: Some(prefill_leg), decode: Some(Decode::Sending(sending)), rest: Some(rest) };
        self.commit(legs, exchange).await
    }

    fn prefill_done(&self, answer: &Bytes, exchange: &mut Option<Exchange>) {
        self.dispatcher.note_cached(answer);
        if let Some(exchange) = exchange {
            exchange.prefill_done();
        }
    }

    /// Waits until decode's head may go to the client, or until either leg fails.
    async fn commit(&self, mut legs: Legs<'_>, exchange: &mut Option<Exchange>) -> Result<Response<Relay>, Failure> {
        let mut limits = self.relay_limits();
        loop {
            if let (Some(PrefillLeg::Answered), Some(Decode::Open(_))) = (&legs.prefill, &legs.decode) {
                return legs.open(self.request.api, exchange, limits);
            }
            let left = match legs.prefill {
                Some(PrefillLeg::Running(_)) => Duration::MAX,
                _ => (limits.from + limits.first_byte.0).saturating_duration_since(std::time::Instant::now()),
            };
            let event = match left {
                Duration::MAX => legs.next().await,
                left => match timeout(left, legs.next()).await {
                    Ok(event) => event,
                    Err(_) => {
                        let (limit, what, option) = limits.first_byte;
                        let failure = LegFailure::timeout(Role::Decode, what, limit, option);
                        legs.overdue(&failure);
                        return Err(failure.into());
                    }
                },
            };
            match event {
                Event::Prefill(Ok(answer)) => {
                    self.prefill_done(&answer, exchange);
                    if let Some(message) = complete::message(self.request.api, &answer) {
                        // Nobody knows whether it has pushed before it ended; decode is seen to its end in the background.
                        legs.prefill = Some(PrefillLeg::Unclear);
                        return self.complete(&message, exchange);
                    }
                    legs.prefill = Some(PrefillLeg::Answered);
                    if let Some(rest) = &mut legs.rest {
                        rest.held.finished();
                    }
                    limits = self.relay_limits();
                }
                // The client hears of it now; dropping the legs sees to decode in the background.
                Event::Prefill(Err(failure)) => {
                    if let Some(rest) = &mut legs.rest {
                        legs.prefill = Some(judge(&failure, &mut rest.held));
                    }
                    return Err(failure.into());
                }
                Event::Head(Ok(opening)) => legs.decode = Some(Decode::Open(opening)),
                Event::Head(Err(failure)) => return Err(legs.decode_failed(failure).into()),
                Event::Step(Step::Ready) => return legs.open(self.request.api, exchange, limits),
                // Before prefill's success neither a comment nor a preamble proves anything.
                Event::Step(Step::Comment | Step::Waiting) => {}
                Event::Step(Step::Failed(failure)) => return Err(legs.decode_failed(failure).into()),
            }
        }
    }
}

impl Legs<'_> {
    /// The next thing that happens on either leg. Safe to drop: both stay where they are.
    async fn next(&mut self) -> Event {
        let decode = async {
            match &mut self.decode {
                Some(Decode::Sending(sending)) => Event::Head(sending.await),
                // More than enough of a preamble: prefill's answer is waited for first.
                Some(Decode::Open(opening)) if opening.is_full() => std::future::pending().await,
                Some(Decode::Open(opening)) => Event::Step(opening.step().await),
                None => std::future::pending().await,
            }
        };
        let prefill = async {
            match &mut self.prefill {
                Some(PrefillLeg::Running(running)) => Pin::new(running).await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            result = prefill => Event::Prefill(result),
            event = decode => event,
        }
    }

    /// Decode has let its time pass. Prefill is told to stop; what becomes of decode is seen in the background.
    fn overdue(&mut self, failure: &LegFailure) {
        if let Some(rest) = &mut self.rest {
            rest.end.set(failure.status, failure.verdict);
            rest.held.release();
        }
        self.prefill = Some(PrefillLeg::Unclear);
    }

    /// Decode ended without a success. Prefill's blocks have no writer to come when decode refused the work: prefill is closed
    /// and told. When decode's connection broke, prefill may be writing: it runs on to its own end.
    fn decode_failed(&mut self, mut failure: LegFailure) -> LegFailure {
        if let Some(Decode::Open(opening)) = self.decode.take() {
            opening.seat.end(failure.status, failure.verdict);
        }
        let (Some(mut rest), prefill) = (self.rest.take(), self.prefill.take()) else {
            return failure;
        };
        let running = match prefill {
            Some(PrefillLeg::Running(running)) => Some(running),
            _ => None,
        };
        match (failure.may_run_on(), running) {
            (true, Some(running)) => drop(self.dispatcher.keeper.tasks.spawn(running)),
            (true, None) => {}
            (false, running) => abandon(&self.dispatcher.keeper, running, rest.held.take()),
        }
        // WRITE repeats both legs or none, and prefill has taken its leg: only a refused connection is worth that price, and
        // only because prefill's blocks are released.
        if failure.status == LegStatus::Failed {
            failure.retry = Retry::Never;
        }
        failure
    }

    /// The commit: decode's head goes to the client.
    fn open(
        mut self,
        api: Api,
        exchange: &mut Option<Exchange>,
        limits: RelayLimits,
    ) -> Result<Response<Relay>, Failure> {
        let (Some(Decode::Open(mut opening)), Some(rest), Some(prefill)) =
            (self.decode.take(), self.rest.take(), self.prefill.take())
        else {
            self.dispatcher.keeper.metrics.invariant_breaches.inc();
            return Err(Failure { error: ProxyError::Internal, retry: Retry::Never });
        };
        opening.drop_comments();
        let prefill = match prefill {
            // Decode was first: prefill finishes unseen, and its outcome is counted.
            PrefillLeg::Running(running) => {
                self.dispatcher.keeper.tasks.spawn(running);
                PrefillLeg::Answered
            }
            prefill => prefill,
        };
        let (parked, contact) = rest.parked(self.dispatcher.keeper.clone(), prefill);
        let unread = Some(Unread::Parked(Box::new(parked)));
        self.dispatcher.answer(Open { opening, contact: Some(contact), unread }, api, exchange, limits)
    }
}

impl Drop for Legs<'_> {
    fn drop(&mut self) {
        let (Some(mut rest), Some(decode)) = (self.rest.take(), self.decode.take()) else {
            return;
        };
        if rest.sent.revoke() {
            // Decode was never asked, so nobody will write: what prefill holds is nobody's, unless it has failed.
            match self.prefill.take() {
                Some(PrefillLeg::Failed) => {}
                Some(PrefillLeg::Running(running)) => {
                    abandon(&self.dispatcher.keeper, Some(running), rest.held.take());
                }
                _ => rest.held.reclaim(),
            }
            return;
        }
        let keeper = self.dispatcher.keeper.clone();
        let prefill = self.prefill.take().unwrap_or(PrefillLeg::Failed);
        let decode = match decode {
            Decode::Sending(sending) => DecodeLeg::Sending(sending),
            Decode::Open(opening) => DecodeLeg::Open(opening),
        };
        let (parked, contact) = rest.parked(keeper, prefill);
        parked.drain(decode, Some(contact));
    }
}
