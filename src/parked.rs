//! Decode legs that must not be closed yet, WRITE's above all. Until its first byte such a leg waits for KV that prefill pushes; an engine
//! whose waiting leg is closed loses the leg's blocks for good (protocol 13.1). So when its client has left, or its prefill
//! has failed, the leg is drained unseen: prefill's push wakes it, or, when none can come, a message of ours does.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::Either;
use http::Response;
use http_body_util::BodyExt;
use tokio_util::task::TaskTracker;

use crate::engine::Role;
use crate::metrics::{LegStatus, Metrics};
use crate::policy::Contact;
use crate::pool::{Engine, Seat, Verdict};
use crate::release::{Held, Notifier};
use crate::upstream::LegFailure;

/// How often the waking message is repeated: one that arrives before the leg is parked is lost.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a prefill that was told to stop, but may have been writing, is left to end that before decode is woken: a woken
/// leg gives its blocks back, and what is written into them later lands in another request's.
const STILL_WRITING: Duration = Duration::from_secs(3);

/// How long a READ decode leg is kept after its request was written, whatever its client does. An engine that loses its client
/// before the request has reached its scheduler forgets it and leaves prefill holding the blocks; after that it releases them.
const TAKEN_UP: Duration = Duration::from_secs(1);

/// Prefill's leg to its end; its seat is inside.
pub type PrefillFuture = Pin<Box<dyn Future<Output = Result<bytes::Bytes, LegFailure>> + Send>>;
/// Decode's leg to its head.
pub type DecodeFuture = Pin<Box<dyn Future<Output = Result<(Response<reqwest::Body>, Seat), LegFailure>> + Send>>;

/// How far prefill is.
pub enum PrefillLeg {
    /// It may still write, or fail.
    Running(PrefillFuture),
    /// It answered with a success: it writes as soon as decode has announced its blocks.
    Answered,
    /// It failed or was never dispatched: nothing will be written.
    Failed,
    /// Nobody heard how it ended. It was told to stop, and may be writing at this moment.
    Stopped,
}

/// How far decode is.
pub enum DecodeLeg {
    /// It has not answered.
    Sending(DecodeFuture),
    /// Its head has come, no byte of its body.
    Open(reqwest::Body, Seat),
}

/// What drains parked legs.
#[derive(Clone, Debug)]
pub struct Keeper {
    /// Wakes and releases.
    pub notifier: Notifier,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// The stop waits for these.
    pub tasks: TaskTracker,
    /// Decode's time after prefill's success (`--first-byte-timeout`).
    pub first_byte: Duration,
    /// Decode's time after it was woken (`--unpark-timeout`).
    pub unpark: Duration,
}

/// What it takes to let a parked leg outlive its client.
pub struct Parked {
    /// Who drains it.
    pub keeper: Keeper,
    /// How far prefill is.
    pub prefill: PrefillLeg,
    /// Prefill's blocks, not armed while decode may take them.
    pub held: Held,
    /// Decode.
    pub decode: Arc<Engine>,
    /// The transfer's id.
    pub transfer_id: String,
}

/// A READ decode leg that must not be closed at once.
pub struct Reading {
    tasks: TaskTracker,
    until: Instant,
}

/// What is owed to a decode leg as long as it has sent no byte of its answer.
pub enum Unread {
    /// WRITE.
    Parked(Box<Parked>),
    /// READ.
    Reading(Reading),
}

impl Unread {
    /// Decode has let its time pass: nothing more is to be hoped for from a push, so prefill is told to stop.
    pub fn overdue(&mut self) {
        if let Unread::Parked(parked) = self {
            parked.held.release();
            parked.prefill = PrefillLeg::Stopped;
        }
    }

    /// The client left after the head: decode's leg goes on as long as it must.
    pub fn outlive(self, body: reqwest::Body, seat: Seat, contact: Contact) {
        match self {
            Unread::Parked(parked) => parked.drain(DecodeLeg::Open(body, seat), contact),
            Unread::Reading(reading) => reading.keep(DecodeLeg::Open(body, seat)),
        }
    }
}

impl Reading {
    /// For a leg whose request was written at `since`.
    pub fn new(keeper: &Keeper, since: Instant) -> Self {
        Reading { tasks: keeper.tasks.clone(), until: since + TAKEN_UP }
    }

    /// Closes a leg that nobody reads any more, when its time has come.
    pub fn keep(self, decode: DecodeLeg) {
        if Instant::now() < self.until {
            self.tasks.spawn(tokio::time::timeout_at(self.until.into(), first_byte(decode)));
        }
    }
}

/// How the wait for a first byte ended.
enum Woken {
    Byte,
    Over,
}

impl Parked {
    /// Drains a leg in the background, bounded in time and counted.
    pub fn drain(self, decode: DecodeLeg, mut contact: Contact) {
        let keeper = self.keeper.clone();
        keeper.metrics.parked_in_flight.inc();
        keeper.tasks.clone().spawn(async move {
            let outcome = self.run(decode, &mut contact).await;
            keeper.metrics.parked(outcome);
            keeper.metrics.parked_in_flight.dec();
        });
    }

    async fn run(self, decode: DecodeLeg, contact: &mut Contact) -> &'static str {
        let Parked { keeper, prefill, mut held, decode: engine, transfer_id } = self;
        let mut first = Box::pin(first_byte(decode));
        // How long prefill may still write, once it is told to stop if it has not ended by itself.
        let writes = match prefill {
            PrefillLeg::Running(prefill) => match futures::future::select(prefill, &mut first).await {
                Either::Left((Ok(_), _)) => {
                    held.finished();
                    keeper.first_byte
                }
                Either::Left((Err(failure), _)) if failure.may_run_on() => Duration::ZERO,
                Either::Left((Err(_), _)) => return wake(&keeper, &engine, &transfer_id, first).await,
                Either::Right((Woken::Byte, prefill)) => {
                    contact.prove();
                    let _ = prefill.await;
                    return "written";
                }
                Either::Right((Woken::Over, prefill)) => {
                    drop(prefill);
                    held.release();
                    return "refused";
                }
            },
            PrefillLeg::Answered => keeper.first_byte,
            PrefillLeg::Stopped => Duration::ZERO,
            PrefillLeg::Failed => return wake(&keeper, &engine, &transfer_id, first).await,
        };
        let mut woken = tokio::time::timeout(writes, &mut first).await;
        if woken.is_err() {
            // Before decode is woken it must be certain that prefill writes no more.
            held.release();
            woken = tokio::time::timeout(STILL_WRITING, &mut first).await;
        }
        match woken {
            Ok(Woken::Byte) => {
                contact.prove();
                "written"
            }
            Ok(Woken::Over) => {
                held.release();
                "refused"
            }
            Err(_) => wake(&keeper, &engine, &transfer_id, first).await,
        }
    }
}

/// Ends the waiting of a leg into which nobody writes any more.
async fn wake(
    keeper: &Keeper,
    engine: &Engine,
    transfer_id: &str,
    mut first: Pin<Box<impl Future<Output = Woken>>>,
) -> &'static str {
    let deadline = tokio::time::Instant::now() + keeper.unpark;
    while keeper.notifier.unpark(engine, transfer_id) {
        let again = (tokio::time::Instant::now() + AGAIN).min(deadline);
        match tokio::time::timeout_at(again, &mut first).await {
            Ok(_) => return "unparked",
            Err(_) if again == deadline => break,
            Err(_) => {}
        }
    }
    // What is left is patience: closing a parked leg would lose its blocks, another end may still come.
    match tokio::time::timeout_at(deadline, &mut first).await {
        Ok(_) => "ended",
        Err(_) => {
            tracing::warn!(role = %Role::Decode, engine = %engine.name, "parked leg could not be woken: its KV blocks may be lost");
            "expired"
        }
    }
}

/// Waits for the first byte of a leg and closes it.
async fn first_byte(decode: DecodeLeg) -> Woken {
    let (mut body, seat) = match decode {
        DecodeLeg::Open(body, seat) => (body, seat),
        DecodeLeg::Sending(head) => match head.await {
            Ok((response, seat)) => (response.into_body(), seat),
            Err(_) => return Woken::Over,
        },
    };
    while let Some(Ok(frame)) = body.frame().await {
        if frame.data_ref().is_some_and(|data| !data.is_empty()) {
            seat.end(LegStatus::Cancelled, Verdict::None);
            return Woken::Byte;
        }
    }
    Woken::Over
}
