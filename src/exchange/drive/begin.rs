//! Attempts before anything is sent.

use std::sync::Arc;
use std::time::Instant;

use super::clock::Clock;
use super::patience::Patience;
use super::{Asked, Attempt, Drive, Means};
use crate::api::legs::{Ids, Pair};
use crate::engine::{Mode, versions};
use crate::exchange::leg::AnswerLeg;
use crate::exchange::opening::Opening;
use crate::exchange::record::Exchange;
use crate::exchange::transfer::{Plan, Terms, Transfer};
use crate::pool::{Engine, InFlight};
use crate::routing::{Alone, DecodePlace, Picked};

impl Drive {
    /// An attempt with a pair; nothing is sent yet.
    pub fn new(means: &Arc<Means>, asked: &Arc<Asked>, picked: Picked, record: &mut Exchange) -> Self {
        let (prefill, decode) = (&picked.prefill.engine, &picked.decode.engine);
        let (rank, decode_rank) = (picked.rank, picked.place.rank);
        let pair = Pair { prefill: &prefill.registration, decode: &decode.registration, rank, decode_rank };
        // The address of the rank that will have the blocks is not known yet, and another in the id would win (protocol I3, H5).
        let is_aliased = picked.mode == Mode::Read && prefill.registration.spans();
        let ids = Ids::fresh(&pair, is_aliased || versions::plain_id(prefill.traits, decode.traits));
        record.attempt(&picked, &ids.transfer_id);
        // Nothing of a pair is learned from prefill alone.
        let is_cold = asked.request.alone.is_none() && picked.meeting.is_cold();
        let patience = Patience::of(&means.limits, asked.request.stream, is_cold);
        let terms = means.terms(&picked, &asked.request, &patience);
        let prefill_engine = prefill.clone();
        // Alone, decode's place is given back at once: one on trial or a first contact must not wait for this answer.
        let (prefill_guard, answer_guard, meeting) = match terms.plan {
            Plan::Alone => {
                record.alone();
                (None, picked.prefill, None)
            }
            Plan::Write { .. } | Plan::Read => (Some(picked.prefill), picked.decode, Some(picked.meeting)),
        };
        let (place, forecast) = (picked.place, picked.forecast);
        let mut attempt = Attempt::fresh(means, asked, (terms, patience, ids), prefill_engine, answer_guard);
        (attempt.rank, attempt.place, attempt.holding_rank) = (rank, place, rank.unwrap_or(0));
        (attempt.prefill_guard, attempt.meeting, attempt.forecast) = (prefill_guard, meeting, forecast);
        if asked.request.alone.is_none() {
            attempt.keep_prefix(asked);
        }
        Drive::of(attempt)
    }

    /// An attempt that decode serves alone; nothing is sent yet.
    pub fn alone(means: &Arc<Means>, asked: &Arc<Asked>, alone: Alone, record: &mut Exchange) -> Self {
        let engine = alone.decode.engine.clone();
        let says = &engine.registration;
        let ids = Ids::fresh(&Pair { prefill: says, decode: says, rank: None, decode_rank: None }, true);
        record.attempt_alone(&alone.decode);
        // Pairs never ask it to compute a prompt, so that it may have built no kernels for that (protocol P6).
        let is_cold = means.selector.is_cold_alone(&engine);
        let patience = Patience::of(&means.limits, asked.request.stream, is_cold);
        let terms = means.terms_alone(&asked.request, &patience);
        let mut attempt = Attempt::fresh(means, asked, (terms, patience, ids), engine, alone.decode);
        (attempt.place, attempt.short, attempt.forecast) = (alone.place, Some(alone.short), alone.forecast);
        attempt.keep_prefix(asked);
        Drive::of(attempt)
    }

    fn of(attempt: Box<Attempt>) -> Self {
        Drive(scopeguard::guard(attempt, |attempt| attempt.leave_client()))
    }

    /// An attempt whose answer has come to its head by other means, for tests of what passes it on.
    pub fn relaying(
        means: &Arc<Means>,
        asked: &Arc<Asked>,
        picked: Picked,
        answer: impl FnOnce(InFlight) -> Opening,
    ) -> Self {
        let mut record = Exchange::open(means.metrics.clone(), "test", None);
        let mut drive = Drive::new(means, asked, picked, &mut record);
        drive.0.answer = drive.0.answer_guard.take().map(|guard| AnswerLeg::Open(Box::new(answer(guard))));
        drive
    }
}

impl Attempt {
    /// Decode will have the prompt, which is to be known then.
    fn keep_prefix(&mut self, asked: &Asked) {
        let is_kept = !asked.prefix.is_empty() && self.means.selector.keeps_decode();
        self.prefix = is_kept.then(|| asked.prefix.clone());
    }

    /// One of which nothing is sent yet. `answers` is the place of the engine whose answer the client gets.
    fn fresh(
        means: &Arc<Means>,
        asked: &Arc<Asked>,
        (terms, patience, ids): (Terms, Patience, Ids),
        prefill_engine: Arc<Engine>,
        answers: InFlight,
    ) -> Box<Attempt> {
        Box::new(Attempt {
            means: means.clone(),
            transfer: Transfer::new(terms),
            asked: Some(asked.clone()),
            api: asked.request.api,
            plan: terms.plan,
            ids,
            prefill_engine,
            decode_engine: answers.engine.clone(),
            rank: None,
            place: DecodePlace::default(),
            holding_rank: 0,
            prefill_guard: None,
            answer_end: answers.leg_end(),
            answer_guard: Some(answers),
            prefill: None,
            answer: None,
            prefill_written: None,
            answer_written: None,
            meeting: None,
            short: None,
            prefix: None,
            forecast: None,
            cached: None,
            streams: asked.request.stream,
            patience,
            params: None,
            message: None,
            failure: None,
            failed_by: None,
            refused: Vec::new(),
            acknowledgement: None,
            clock: Clock::default(),
            look: None,
            from: Instant::now(),
            actions: Vec::new(),
            verdict: None,
            orphan: None,
        })
    }
}
