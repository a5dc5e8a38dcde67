//! Prefill alone: a request for one token and output of the prompt's side. Decode must not compute that, and prefill's own
//! answer is all of it (protocol O14). It carries no transfer params, so prefill keeps nothing and nothing is owed.

use http::Response;
use tokio::time::timeout;

use super::{Attempt, Failure, committed};
use crate::api::legs;
use crate::engine::Role;
use crate::exchange::parked::DecodeLeg;
use crate::exchange::record::Exchange;
use crate::exchange::relay::{Open, Relay};
use crate::routing::Picked;
use crate::upstream::LegFailure;

impl Attempt<'_> {
    /// One attempt with the prefill engine of a pair; the decode engine's place is given back unused.
    pub(super) async fn alone(
        &self,
        picked: Picked,
        exchange: &mut Option<Exchange>,
    ) -> Result<Response<Relay>, Failure> {
        let dispatcher = self.dispatcher;
        if let Some(exchange) = exchange {
            exchange.alone();
        }
        let Picked { prefill: seat, decode, rank, contact, .. } = picked;
        // At once and not at the end: a decode on trial or a pair's first contact must not wait for this answer.
        drop((decode, contact));
        let leg = self.leg(seat, rank, legs::alone_leg(self.request, &self.ids));
        let (limits, end) = (self.relay_limits(), leg.seat.leg_end());
        let (limit, what, option) = limits.first_byte;
        let mut leg = Some(DecodeLeg::Sending(Box::pin(leg.open())));
        let opening = timeout(limit, committed(&mut leg)).await.unwrap_or_else(|_| {
            let failure = LegFailure::timeout(Role::Prefill, what, limit, option);
            end.set(failure.status, failure.verdict);
            Err(failure)
        })?;
        dispatcher.keeper.metrics.prefill_alone.inc();
        let open = Open { opening, contact: None, unread: None };
        dispatcher.answer(open, self.request.api, exchange, limits)
    }
}
