//! What happens to an attempt, in the machine's words.

use std::time::Instant;

use super::Attempt;
use crate::api::legs::ParamsError;
use crate::engine::Role;
use crate::error::ProxyError;
use crate::exchange::leg::{self, PrefillLeg, Told};
use crate::exchange::opening::Step;
use crate::exchange::prefilled::Prefilled;
use crate::exchange::transfer::{Answer, Event};
use crate::upstream::LegFailure;

/// What happens.
enum Happened {
    Leg(Told),
    /// An event as it is.
    Event(Event),
}

/// Waits for what is in a slot, and empties it. An empty slot never answers; may be dropped and asked again.
async fn filled<F: Future + Unpin>(slot: &mut Option<F>) -> F::Output {
    match slot {
        Some(future) => {
            let result = future.await;
            *slot = None;
            result
        }
        None => std::future::pending().await,
    }
}

impl Attempt {
    /// Waits for the next thing to happen, and does what follows from it.
    pub(super) async fn step(&mut self) -> Option<Event> {
        let happened = self.next().await;
        let event = match happened {
            Happened::Event(event) => Some(event),
            Happened::Leg(told) => self.told(told),
        };
        if let Some(event) = event {
            self.tell(event);
        }
        event
    }

    async fn next(&mut self) -> Happened {
        let limit = self.prefill.as_ref().and_then(PrefillLeg::due);
        let due = self.transfer.due().into_iter().chain(limit).min();
        tokio::select! {
            biased;
            told = leg::answer(&mut self.answer) => Happened::Leg(told),
            told = leg::prefill(&mut self.prefill) => Happened::Leg(told),
            (message, acknowledged) = filled(&mut self.acknowledgement) => {
                Happened::Event(Event::Acknowledged(message, acknowledged))
            }
            queue = filled(&mut self.look) => Happened::Event(Event::Seen(queue)),
            () = self.clock.at(due) => match leg::overdue(&mut self.prefill, Instant::now()) {
                Some(told) => Happened::Leg(told),
                None => Happened::Event(Event::Due),
            },
        }
    }

    fn told(&mut self, told: Told) -> Option<Event> {
        match told {
            Told::Started(role) => {
                if role == Role::Decode {
                    // No other engine will be given them.
                    self.params = None;
                }
                Some(Event::Started(role))
            }
            Told::Prefill(Ok(answer), written) => {
                self.prefill_written = written;
                self.from = Instant::now();
                if let Some(meeting) = &self.meeting {
                    meeting.prefill_answered();
                }
                self.look_at_pair();
                Some(Event::Answered(self.prefilled(answer)))
            }
            Told::Prefill(Err(failure), written) => {
                self.prefill_written = written;
                Some(self.failed(Role::Prefill, failure))
            }
            Told::Head(written) => {
                self.answer_written = Some(written);
                Some(Event::Head)
            }
            Told::Failed(failure, written) => {
                self.answer_written = written;
                Some(self.failed(Role::Decode, failure))
            }
            Told::Part(step) => self.part(step),
        }
    }

    fn failed(&mut self, role: Role, failure: LegFailure) -> Event {
        (self.failure, self.failed_by) = (Some(failure.error), Some(failure.kind));
        let engine = if role == Role::Prefill { &self.prefill_engine } else { &self.decode_engine };
        self.refused.push(engine.incarnation);
        Event::Failed(role, failure.kind)
    }

    /// What follows from prefill's answer.
    fn prefilled(&mut self, answer: Prefilled) -> Answer {
        if answer.message.is_some() {
            self.message = answer.message;
            return Answer::Message;
        }
        let engine = &self.prefill_engine;
        match answer.params {
            None => Answer::Params,
            Some(Ok(params)) => {
                if let Some(named) = params.named_rank(engine.registration.dp_size) {
                    if self.rank.is_some_and(|asked| asked != named) {
                        tracing::warn!(engine = %engine.name, asked = self.rank, named, "prefill served on another rank than it was asked to");
                    }
                    self.holding_rank = named;
                }
                self.params = Some(params);
                Answer::Params
            }
            Some(Err(error)) => {
                tracing::warn!(engine = %engine.name, transfer_id = %self.ids.transfer_id, %error, "prefill answered without usable transfer params");
                self.failure = Some(match error {
                    ParamsError::Unreadable => ProxyError::PrefillUnreadable,
                    ParamsError::Missing => ProxyError::PrefillWithoutBlocks,
                });
                Answer::Nothing
            }
        }
    }

    /// One more part of an answer that is not yet relayed.
    fn part(&mut self, step: Step) -> Option<Event> {
        let nobody_reads = self.asked.is_none();
        let opening = self.opening()?;
        if nobody_reads {
            opening.forget();
        }
        match step {
            Step::Failed(failure) => {
                opening.guard.end(failure.kind.status(), failure.kind.verdict());
                self.answer = None;
                Some(self.failed(Role::Decode, failure))
            }
            Step::Ready => Some(Event::Output),
            Step::Comment | Step::Waiting if opening.is_newly_begun() => Some(Event::Report),
            Step::Comment => Some(Event::Comment),
            Step::Waiting => opening.is_full().then_some(Event::Full),
        }
    }
}
