//! READ: prefill first, then decode with prefill's transfer params.

use std::sync::Arc;

use bytes::Bytes;
use http::Response;
use tokio::time::{Instant, timeout, timeout_at};

use super::{Attempt, Failure, Prefilling, committed, complete, ended};
use crate::api::legs::{self, Pair, ParamsError, PrefillParams};
use crate::engine::Role;
use crate::error::ProxyError;
use crate::exchange::opening::Opening;
use crate::exchange::parked::{DecodeLeg, Keeper, Reading, Unread};
use crate::exchange::record::Exchange;
use crate::exchange::relay::{Open, Relay, RelayLimits};
use crate::json::Segments;
use crate::metrics::LegStatus;
use crate::notify::held::Held;
use crate::pool::Seat;
use crate::routing::Picked;
use crate::upstream::Verdict;
use crate::upstream::{LegFailure, Retry, Sent};

impl Attempt<'_> {
    /// One READ attempt. Until decode has taken the hand-over, prefill's blocks are this function's to release; `held` does
    /// so on every way out.
    pub(super) async fn read(
        &self,
        picked: Picked,
        exchange: &mut Option<Exchange>,
    ) -> Result<Response<Relay>, Failure> {
        let dispatcher = self.dispatcher;
        let Picked { prefill: prefill_seat, decode: mut seat, rank, mut contact, .. } = picked;
        let prefill = prefill_seat.engine.clone();
        let held = Held::new(&dispatcher.keeper.notifier, &prefill, rank, &self.ids.transfer_id);

        let pair = Pair { prefill: &prefill.registration, decode: &seat.engine.registration, rank };
        let body = legs::prefill_leg(self.request, &pair, &self.ids);
        let leg = self.leg(prefill_seat, rank, body);
        let (keeper, sent) = (&dispatcher.keeper, leg.sent.clone());
        let mut prefilling = Prefilling { keeper, leg: Some(leg.prefill(dispatcher.limits.prefill)), sent, held };
        let answer = match ended(&mut prefilling.leg).await {
            Ok(answer) => answer,
            Err(failure) => {
                if !failure.may_have_run() {
                    prefilling.held.let_go();
                }
                return Err(failure.into());
            }
        };
        let mut held = prefilling.held.take();
        if let Some(exchange) = exchange {
            exchange.prefill_done();
        }
        if let Some(message) = complete::message(self.request.api, &answer) {
            held.let_go();
            return self.complete(&message, exchange);
        }
        // Without params it most likely holds nothing; an engine that must not be told of that is not.
        let params = self.params(&answer, &prefill.name)?;
        held.finished();
        drop(answer);
        if let Some(named) = params.named_rank(prefill.registration.dp_size) {
            if rank.is_some_and(|asked| asked != named) {
                tracing::warn!(engine = %prefill.name, asked = rank, named, "prefill served on another rank than it was asked to");
            }
            held.rank(named);
        }

        let limits = self.relay_limits();
        let deadline = Instant::now() + dispatcher.limits.hand_over;
        let mut refused = Vec::new();
        loop {
            let decode = seat.engine.clone();
            let pair = Pair { prefill: &prefill.registration, decode: &decode.registration, rank };
            let body = legs::decode_leg_read(self.request, &pair, &self.ids, &params);
            match self.hand_over(seat, body, &mut held, deadline, &limits).await {
                Ok((opening, reading)) => {
                    let unread = Some(Unread::Reading(reading));
                    let open = Open { opening, contact: Some(contact), unread };
                    return dispatcher.answer(open, self.request.api, exchange, limits);
                }
                Err(failure) if failure.status == LegStatus::Connect => {
                    refused.push(decode.incarnation);
                    let pool = dispatcher.pool.borrow().clone();
                    let now = std::time::Instant::now();
                    let Some(next) = dispatcher.selector.another_decode(&pool, &prefill, &refused, now) else {
                        return Err(failure.into());
                    };
                    (seat, contact) = next;
                    dispatcher.keeper.metrics.attempt("decode_refused");
                    tracing::warn!(from = %decode.name, to = %seat.engine.name, "decode refused the connection: hand-over to another");
                    if let Some(exchange) = exchange {
                        exchange.another_decode(&seat);
                    }
                }
                Err(failure) => return Err(failure.into()),
            }
        }
    }

    /// Prefill's transfer params, without which decode would take unwritten memory for the prompt (protocol D3).
    fn params(&self, answer: &Bytes, engine: &str) -> Result<PrefillParams, Failure> {
        self.dispatcher.note_cached(answer);
        PrefillParams::from_answer(answer).map_err(|error| {
            tracing::warn!(engine, transfer_id = %self.ids.transfer_id, %error, "prefill answered without usable transfer params");
            let error = match error {
                ParamsError::Unreadable => ProxyError::PrefillUnreadable,
                ParamsError::Missing => ProxyError::PrefillWithoutBlocks,
            };
            Failure { error, retry: Retry::Never }
        })
    }

    /// Sends decode's leg and waits for the commit: its first output, or a comment, since whoever turned those on wants signs of
    /// life. From the moment that the request is being written decode may read the blocks and releases them itself; if it
    /// answers an error they are nobody's again.
    async fn hand_over(
        &self,
        seat: Seat,
        body: Segments,
        held: &mut Held,
        deadline: Instant,
        limits: &RelayLimits,
    ) -> Result<(Box<Opening>, Reading), LegFailure> {
        let leg = self.leg(seat, None, body);
        let (sent, end) = (leg.sent.clone(), leg.seat.leg_end());
        held.lend(sent.clone());
        let keeper = &self.dispatcher.keeper;
        let decode = Some(DecodeLeg::Sending(Box::pin(leg.open())));
        let mut reader = Reader { decode, sent: sent.clone(), held, keeper };
        let connect = async {
            tokio::select! {
                biased;
                result = committed(&mut reader.decode) => Some(result),
                () = sent.started() => None,
            }
        };
        let late = || {
            let error = ProxyError::HandOverTooLate { limit: self.dispatcher.limits.hand_over };
            end.set(LegStatus::Timeout, Verdict::Ailing);
            LegFailure { error, status: LegStatus::Timeout, verdict: Verdict::Ailing, retry: Retry::Never }
        };
        let result = match timeout_at(deadline, connect).await.map_err(|_| late())? {
            Some(result) => result,
            None => {
                let (limit, what, option) = limits.first_byte;
                let due = limits.from + limit;
                let left = due.saturating_duration_since(std::time::Instant::now());
                timeout(left, committed(&mut reader.decode)).await.unwrap_or_else(|_| {
                    let failure = LegFailure::timeout(Role::Decode, what, limit, option);
                    end.set(failure.status, failure.verdict);
                    Err(failure)
                })
            }
        };
        let result = match result {
            Err(failure) if failure.error.is_refusal() => {
                reader.held.reclaim();
                // Decode answered: another prefill for another answer is the client's decision.
                Err(LegFailure { retry: Retry::Never, ..failure })
            }
            Ok(answer) => Ok(answer),
            // Not written: still ours, or the next engine's. Written and broken: decode may be reading.
            Err(failure) => Err(failure),
        };
        let opening = result?;
        let since = sent.written_at().unwrap_or_else(std::time::Instant::now);
        Ok((opening, Reading::new(keeper, since, reader.held.take())))
    }
}

/// Decode's leg up to the commit. Dropping this closes the leg as soon as that leaves nothing behind.
struct Reader<'a> {
    decode: Option<DecodeLeg>,
    sent: Arc<Sent>,
    held: &'a mut Held,
    keeper: &'a Keeper,
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        if let (Some(decode), false) = (self.decode.take(), self.sent.revoke()) {
            let since = self.sent.written_at().unwrap_or_else(std::time::Instant::now);
            Reading::new(self.keeper, since, self.held.take()).keep(decode);
        }
    }
}
