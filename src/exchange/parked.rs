//! Decode legs that must not be closed yet, WRITE's above all. Until its engine reports, such a leg waits for KV that prefill
//! pushes; an engine whose waiting leg is closed loses the leg's blocks for good (protocol K8). So when its client has left,
//! or its prefill has failed, the leg is drained unseen: prefill's push wakes it, or, when none can come, a message of ours
//! does. That is sent once and only to a leg that waits, since an engine that is told twice ends (seen on 0.32.0).

mod prefill;
mod reading;

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::Either;
use tokio_util::task::TaskTracker;

use crate::engine::Role;
use crate::exchange::opening::{Opening, Step};
use crate::metrics::{LegStatus, Metrics};
use crate::notify::Notifier;
use crate::notify::held::Held;
use crate::pool::Engine;
use crate::pool::pairs::Contact;
use crate::upstream::LegFailure;
use crate::upstream::Verdict;
use crate::upstream::gauges;
use crate::upstream::gauges::Queue;

pub use prefill::{PrefillFuture, PrefillLeg, abandon, judge};
pub use reading::Reading;

/// How often a leg that may have been woken is looked after.
const LOOK: Duration = Duration::from_millis(250);
/// The same once it has taken this long, so that an engine that is never idle is not asked all the time.
const LATER: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(1));
/// How long a leg is looked after at least: on an engine that is never idle a moment to tell may be long in coming.
const IN_DOUBT: Duration = Duration::from_secs(600);
/// What a byte that has been sent may need to arrive; the least time between two looks, with that for asking.
const ARRIVING: Duration = Duration::from_millis(100);
/// How long a prefill that has heard that it shall stop, but may have been writing, is left to end that: what is written into
/// a leg's blocks after the leg gave them back lands in another request's.
const STILL_WRITING: Duration = Duration::from_secs(2);
/// The same for a prefill that must not or could not be told: its own timer, by which it drops what decode did not ask for, and
/// a little.
const LEFT_ALONE: Duration = Duration::from_secs(63);

/// What a decode engine may need until its scheduler knows of a request that was written.
const TAKEN_UP: Duration = Duration::from_secs(1);
/// The same where a mistake would lose blocks: a leg that is closed between its parking and its push.
const SURELY_TAKEN_UP: Duration = Duration::from_secs(5);

/// Decode's leg to its head.
pub type DecodeFuture = Pin<Box<dyn Future<Output = Result<Box<Opening>, LegFailure>> + Send>>;

/// How far decode is.
pub enum DecodeLeg {
    /// It has not answered.
    Sending(DecodeFuture),
    /// Its head has come, and nothing that proves that it no longer waits.
    Open(Box<Opening>),
}

/// What drains parked legs.
#[derive(Clone, Debug)]
pub struct Keeper {
    /// Wakes and releases.
    pub notifier: Notifier,
    /// Asks engines for their gauges.
    pub client: reqwest::Client,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// The stop waits for these.
    pub tasks: TaskTracker,
    /// Decode's time after prefill's success, once nobody waits for its answer (`--first-byte-timeout`).
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
    /// What decode has for its first output at most (`--first-byte-timeout`, or `--answer-timeout` for an answer in one piece).
    pub patience: Duration,
    /// Whether the first output comes with the first token; otherwise it comes with the last.
    pub streams: bool,
}

/// What is owed to a decode leg as long as it has given no output.
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
            parked.prefill = PrefillLeg::Unclear;
        }
    }

    /// Decode told an error before any output: it took nothing, and nobody but us tells prefill (protocol O10).
    pub fn refused(self) {
        match self {
            Unread::Parked(mut parked) => parked.held.release(),
            Unread::Reading(reading) => reading.refused(),
        }
    }

    /// The client left after the head: decode's leg goes on as long as it must.
    pub fn outlive(self, opening: Box<Opening>, contact: Option<Contact>) {
        match self {
            Unread::Parked(parked) => parked.drain(DecodeLeg::Open(opening), contact),
            Unread::Reading(reading) => reading.keep(DecodeLeg::Open(opening)),
        }
    }
}

/// What an engine's gauges tell of one of its legs.
#[derive(Clone, Copy, PartialEq)]
enum Seen {
    /// No leg is parked: this one is at work, or was never taken up. It may be closed.
    AtWork,
    /// Nothing that is at work can be this one.
    Parked,
    /// It may be either.
    Nothing,
}

type FirstByte = Pin<Box<dyn Future<Output = Woken> + Send>>;

/// How the wait for a sign of waking ended.
enum Woken {
    /// The engine has reported: the leg no longer waits.
    Byte,
    /// Decode answered an error: it has taken nothing.
    Refused,
    /// It ended without a sign.
    Broken,
}

impl Woken {
    /// The word for metrics; `well` where a byte came.
    fn outcome(self, well: &'static str) -> &'static str {
        match self {
            Woken::Byte => well,
            Woken::Refused => "refused",
            Woken::Broken => "broken",
        }
    }
}

/// How a leg that nobody waits for came to its end.
enum End {
    Came(Woken),
    /// It is at work, and may be closed.
    AtWork,
    /// Its time is over.
    Never,
}

impl Parked {
    /// Drains a leg in the background, bounded in time and counted.
    pub fn drain(self, decode: DecodeLeg, contact: Option<Contact>) {
        let keeper = self.keeper.clone();
        keeper.metrics.parked_in_flight.inc();
        keeper.tasks.clone().spawn(async move {
            let outcome = self.run(decode, contact).await;
            keeper.metrics.parked(outcome);
            keeper.metrics.parked_in_flight.dec();
        });
    }

    async fn run(mut self, decode: DecodeLeg, mut contact: Option<Contact>) -> &'static str {
        let mut first: FirstByte = Box::pin(first_byte(decode));
        match std::mem::replace(&mut self.prefill, PrefillLeg::Failed) {
            PrefillLeg::Running(prefill) => match futures::future::select(prefill, &mut first).await {
                Either::Left((Ok(_), _)) => self.held.finished(),
                Either::Left((Err(failure), _)) => {
                    drop(contact);
                    let prefill = judge(&failure, &mut self.held);
                    return self.without_prefill(prefill, first).await;
                }
                Either::Right((Woken::Byte, prefill)) => {
                    prove(&mut contact);
                    let _ = prefill.await;
                    return "written";
                }
                Either::Right((Woken::Refused, prefill)) => {
                    abandon(&self.keeper, Some(prefill), self.held);
                    return "refused";
                }
                // Prefill may be writing into what decode still holds.
                Either::Right((Woken::Broken, prefill)) => {
                    let _ = prefill.await;
                    return "broken";
                }
            },
            PrefillLeg::Answered => {}
            // Others of this pair must not wait for what comes of this leg.
            prefill => {
                drop(contact);
                return self.without_prefill(prefill, first).await;
            }
        }
        match self.end(&mut first, |_, _| false, (SURELY_TAKEN_UP, self.keeper.first_byte)).await {
            End::Came(Woken::Byte) => {
                prove(&mut contact);
                "written"
            }
            End::AtWork => "closed",
            End::Came(Woken::Refused) => {
                self.held.release();
                "refused"
            }
            End::Came(Woken::Broken) => "broken",
            End::Never => {
                drop(contact);
                self.without_prefill(PrefillLeg::Unclear, first).await
            }
        }
    }

    /// Ends the waiting of a leg that prefill will not wake.
    async fn without_prefill(mut self, prefill: PrefillLeg, mut first: FirstByte) -> &'static str {
        match prefill {
            PrefillLeg::Failed => self.wake(first, false).await,
            PrefillLeg::Rejected => self.doubt(first, false, TAKEN_UP).await,
            PrefillLeg::Unclear | PrefillLeg::Answered | PrefillLeg::Running(_) => {
                let heard = tokio::select! {
                    biased;
                    woken = &mut first => return woken.outcome("written"),
                    heard = self.held.released() => heard,
                };
                self.doubt(first, heard, if heard { STILL_WRITING } else { LEFT_ALONE }).await
            }
        }
    }

    /// Nobody knows whether prefill has written: the leg may wait for ever, or be at work. It is ended only after the time in
    /// which prefill still `writes`, and once decode's own gauges say which: an engine ends when a leg at work is woken, and
    /// loses the blocks of a parked leg that is closed.
    async fn doubt(self, mut first: FirstByte, stopped: bool, writes: Duration) -> &'static str {
        let begun = Instant::now();
        let deadline = begun + writes + self.patience.max(IN_DOUBT);
        let (mut before, mut calm) = (None::<Queue>, None::<Instant>);
        while Instant::now() < deadline {
            let queue = queue(&self.keeper, &self.decode).await;
            let seen = before.zip(queue).map_or(Seen::Nothing, |(before, now)| self.seen(before, now));
            before = queue;
            // A leg that decode has no room for asks for its KV only when it gets room: then a prefill that was not stopped writes.
            let is_calm = stopped || queue.is_some_and(|queue| queue.waiting == 0.0);
            calm = is_calm.then(|| calm.unwrap_or_else(Instant::now));
            let pause = if begun.elapsed() < LATER.0 { ARRIVING } else { LATER.1 };
            match (tokio::time::timeout(pause, &mut first).await, seen) {
                (Ok(woken), _) => return woken.outcome("written"),
                (Err(_), Seen::AtWork) if begun.elapsed() >= SURELY_TAKEN_UP => return "ended",
                (Err(_), Seen::Parked) if calm.is_some_and(|since| since.elapsed() >= writes) => {
                    return self.wake(first, true).await;
                }
                (Err(_), _) => {}
            }
        }
        self.lost()
    }

    /// What two looks at decode's gauges say of this leg.
    fn seen(&self, before: Queue, now: Queue) -> Seen {
        if now.none_parked() {
            return Seen::AtWork;
        }
        // Others get their tokens; were this one at work, it would have got its first byte with them (ranks step together). One
        // whose KV is there counts as parked until it is admitted, so that must be ruled out too, which only newer engines tell.
        let left_out =
            self.streams && now.tokens > before.tokens && before.arrived.zip(now.arrived) == Some((0.0, 0.0));
        let idle = before.running == 0.0 && now.running == 0.0 && now.arrived.is_none_or(|arrived| arrived == 0.0);
        match before.waiting == 0.0 && now.waiting == 0.0 && (idle || left_out) {
            true => Seen::Parked,
            false => Seen::Nothing,
        }
    }

    /// Ends the waiting of a leg into which nobody has written or will write; `admitted` if decode is known to have room for it.
    async fn wake(mut self, mut first: FirstByte, admitted: bool) -> &'static str {
        let told = self.keeper.notifier.unpark(&self.decode.registration, self.decode.traits, &self.transfer_id);
        let told = tokio::select! {
            biased;
            _ = &mut first => return "unparked",
            told = told => told,
        };
        // Without a message what is left is patience: closing a parked leg would lose its blocks, another end may still come.
        // The step after the message takes an admitted leg up, and tokens tell of steps.
        let at_work = move |before: Queue, now: Queue| {
            told && now.tokens > before.tokens && (admitted || (before.waiting == 0.0 && now.waiting == 0.0))
        };
        match self.end(&mut first, at_work, (TAKEN_UP, self.keeper.unpark)).await {
            End::Never => self.lost(),
            _ if told => "unparked",
            End::Came(woken) => woken.outcome("written"),
            End::AtWork => "ended",
        }
    }

    /// Waits for the first byte, up to a limit. Where that comes with the last token nobody wants the text: `after` a while the
    /// leg is closed as soon as nothing is parked, or two looks at decode's gauges say that this one is `at_work`.
    async fn end(
        &mut self,
        first: &mut FirstByte,
        at_work: impl Fn(Queue, Queue) -> bool,
        (after, limit): (Duration, Duration),
    ) -> End {
        let deadline = Instant::now() + limit;
        let mut next = if self.streams { limit } else { after };
        let mut before: Option<Queue> = None;
        while Instant::now() < deadline {
            if let Ok(woken) = tokio::time::timeout(next, &mut *first).await {
                return End::Came(woken);
            }
            if !self.streams {
                let now = queue(&self.keeper, &self.decode).await;
                let taken_up = before.zip(now).is_some_and(|(before, now)| at_work(before, now));
                if taken_up || now.is_some_and(|now| now.none_parked()) {
                    return End::AtWork;
                }
                before = now;
            }
            next = LOOK;
        }
        End::Never
    }

    fn lost(&self) -> &'static str {
        tracing::warn!(
            role = %Role::Decode, engine = %self.decode.name, transfer_id = %self.transfer_id,
            "parked leg could not be woken: its KV blocks may be lost"
        );
        "expired"
    }
}

async fn queue(keeper: &Keeper, decode: &Engine) -> Option<Queue> {
    gauges::queue(&keeper.client, &decode.base, &decode.vitals.queue, Instant::now()).await
}

fn prove(contact: &mut Option<Contact>) {
    if let Some(contact) = contact {
        contact.prove();
    }
}

/// Waits until a leg no longer waits for KV, and closes it. Comments and preambles are no sign of that.
async fn first_byte(decode: DecodeLeg) -> Woken {
    let mut opening = match decode {
        DecodeLeg::Open(opening) => opening,
        DecodeLeg::Sending(head) => match head.await {
            Ok(opening) => opening,
            Err(failure) if failure.error.is_refusal() => return Woken::Refused,
            Err(_) => return Woken::Broken,
        },
    };
    loop {
        let step = opening.step().await;
        opening.forget();
        match step {
            Step::Failed(failure) => {
                opening.seat.end(failure.status, failure.verdict);
                return if failure.may_run_on() { Woken::Broken } else { Woken::Refused };
            }
            Step::Comment | Step::Waiting if !opening.is_begun() => {}
            _ => {
                opening.seat.end(LegStatus::Cancelled, Verdict::None);
                return Woken::Byte;
            }
        }
    }
}
