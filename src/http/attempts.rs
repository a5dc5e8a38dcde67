//! The attempts of one exchange: each waits for a pair, and what failed may be tried again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::probes::{Probes, no_pair};
use super::server::Server;
use crate::engine::Role;
use crate::error::ProxyError;
use crate::exchange::drive::{Asked, Drive, Failed, Outcome};
use crate::exchange::record::Exchange;
use crate::pool::Pool;
use crate::queue::Ticket;
use crate::routing::{Demand, Expected, NoPick, Pick};
use crate::upstream::Repeat;

/// How often a waiting request looks again, since a freed place has no signal of its own.
const BUSY_LOOK: Duration = Duration::from_millis(50);

impl Server {
    /// Attempts until one succeeds or none may follow.
    pub(super) async fn attempts(
        &self,
        asked: &Arc<Asked>,
        priority: i64,
        record: &mut Exchange,
    ) -> Result<Outcome, ProxyError> {
        let demand = asked.demand();
        let mut ticket = self.queue.ticket(priority, demand.session);
        self.retry_budget.request();
        let mut last: Option<ProxyError> = None;
        let mut refused = Vec::new();
        let (mut attempts, mut turned_away) = (0, 0);
        let mut probes = self.probes();
        loop {
            if attempts > 0 {
                record.vacate();
                ticket.comes_back();
            }
            let picked = self.pick(&mut ticket, &mut probes, demand, &refused).await;
            let place = if picked.is_ok() { ticket.served() } else { None };
            record.waited(ticket.waited());
            let picked = match picked {
                Ok(picked) => picked,
                Err(error) => return Err(self.exhausted(attempts - turned_away, last.unwrap_or(error))),
            };
            if let Some(place) = place {
                record.occupy(place);
            }
            if last.is_some() {
                self.metrics.attempt("retry");
            }
            attempts += 1;
            let (tries, retries) = (attempts - turned_away, self.settings.retries);
            let (drive, expected) = self.begin(picked, asked, record)?;
            let ended = drive.run(record).await;
            if let (Err(_), Some(expected)) = (&ended, expected) {
                self.selector.forget(&asked.prefix, expected);
            }
            match ended {
                Ok(outcome) => return Ok(outcome),
                // It waits for room again, which costs nobody anything.
                Err(Failed { turned_away: true, .. }) => {
                    self.metrics.attempt("back_pressure");
                    turned_away += 1;
                    if Instant::now() >= ticket.until() {
                        return Err(ProxyError::PoolBusy { retry_after: ticket.retry_after() });
                    }
                }
                Err(Failed { error, repeat, refused: by, .. })
                    if repeat == Repeat::Safe || (repeat == Repeat::Once && tries == 1) =>
                {
                    if tries > retries || !self.retry_budget.take() {
                        return Err(self.exhausted(attempts, error));
                    }
                    last = Some(error);
                    refused.extend(by);
                }
                Err(Failed { error, .. }) => return Err(error),
            }
        }
    }

    /// An attempt with what was picked, and what is expected of prefill.
    fn begin(
        &self,
        picked: Pick,
        asked: &Arc<Asked>,
        record: &mut Exchange,
    ) -> Result<(Drive, Option<Expected>), ProxyError> {
        let picked = match picked {
            Pick::Pair(picked) => picked,
            Pick::Alone(alone) => {
                self.metrics.decision(Role::Decode, alone.choice.by(), alone.choice.why.as_str());
                return Ok((Drive::alone(&self.means, asked, *alone, record), None));
            }
        };
        let (prefill, decode) = (&picked.prefill.engine, &picked.decode.engine);
        asked.request.fits(prefill.traits, decode.traits, picked.mode, prefill.registration.dp_size)?;
        for (role, choice) in [Role::Prefill, Role::Decode].into_iter().zip(picked.choices) {
            self.metrics.decision(role, choice.by(), choice.why.as_str());
        }
        let expected = picked.expected;
        Ok((Drive::new(&self.means, asked, *picked, record), expected))
    }

    /// An error that several attempts led to says so; a single attempt's error speaks for itself.
    fn exhausted(&self, attempts: u32, last: ProxyError) -> ProxyError {
        if attempts < 2 || last.is_refusal() {
            return last;
        }
        let pool = self.pool();
        let open_circuits = pool.open_circuits(Instant::now());
        ProxyError::Exhausted { attempts, pool: pool.engines().count(), open_circuits, last: Box::new(last) }
    }

    /// A pair, waiting where waiting can help: in line for a place and for room, for probes, for a first contact to end.
    async fn pick(
        &self,
        ticket: &mut Ticket,
        probes: &mut Probes<'_>,
        demand: Demand<'_>,
        refused: &[u64],
    ) -> Result<Pick, ProxyError> {
        let mut changes = self.pool.clone();
        let until = ticket.until();
        loop {
            // Watched from before the look, so that nothing that happens in between is missed.
            let (freed, room) = (self.selector.pairs.freed.notified(), self.selector.loads.freed.notified());
            let pool = changes.borrow_and_update().clone();
            let now = Instant::now();
            if !ticket.may_look() {
                ticket.join()?;
                if tokio::time::timeout_at(until.into(), ticket.called()).await.is_err() {
                    return Err(ticket.late());
                }
                continue;
            }
            match self.selector.pick_any(&pool, demand, refused, now) {
                Ok(picked) => return Ok(picked),
                Err(NoPick::Busy) if now < until => {
                    match self.queue.is_on() && refused.is_empty() {
                        true => ticket.join()?,
                        // Others may go where this one must not.
                        false => ticket.step_aside(),
                    }
                    tokio::select! {
                        () = freed => {}
                        () = room => {}
                        _ = tokio::time::timeout(BUSY_LOOK, changes.changed()) => {}
                    }
                }
                Err(NoPick::FirstContact) if now < until => {
                    ticket.step_aside();
                    tokio::select! {
                        () = freed => {}
                        _ = tokio::time::timeout(BUSY_LOOK, changes.changed()) => {}
                    }
                }
                Err(NoPick::Busy) => return Err(ProxyError::PoolBusy { retry_after: ticket.retry_after() }),
                Err(NoPick::FirstContact) => {
                    let limit = self.settings.admission.time;
                    return Err(ProxyError::FirstContact { limit });
                }
                Err(NoPick::Nobody) if self.may_help(ticket, probes, &pool, &mut changes).await => {}
                Err(NoPick::Nobody) => return Err(no_pair(&pool, now)),
            }
        }
    }

    /// Nobody waits behind one that waits for probes.
    async fn may_help(
        &self,
        ticket: &mut Ticket,
        probes: &mut Probes<'_>,
        pool: &Pool,
        changes: &mut watch::Receiver<Arc<Pool>>,
    ) -> bool {
        ticket.step_aside();
        probes.may_help(pool, changes).await
    }
}
