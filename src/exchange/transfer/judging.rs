//! What decode's own gauges say of an orphaned WRITE leg: whether it waits for KV or is at work. To close a leg that waits
//! loses its blocks (protocol K8), to wake one at work ends its engine (protocol K11).

use std::time::{Duration, Instant};

use crate::upstream::gauges::Queue;

/// What a byte that has been sent may need to arrive: the least time between a look and what follows from it.
const ARRIVING: Duration = Duration::from_millis(100);
/// The same once a leg has been judged for this long, so that an engine that is never idle is not asked all the time.
const LATER: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(1));
/// How long a leg is judged at least: on an engine that is never idle a moment to tell may be long in coming (protocol K21).
const IN_DOUBT: Duration = Duration::from_secs(600);
/// How often a leg that should report is looked after.
const LOOK: Duration = Duration::from_millis(250);
/// What a decode engine may need until its scheduler knows of a request that was written.
pub(super) const TAKEN_UP: Duration = Duration::from_secs(1);
/// The same where a mistake would lose blocks: a leg that is closed between its allocation and its push.
const SURELY_TAKEN_UP: Duration = Duration::from_secs(5);

/// What an engine's gauges tell of one of its legs.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Seen {
    /// No leg waits: this one is at work, or was never taken up.
    AtWork,
    /// Nothing that is at work can be this one.
    Waits,
    /// It may be either.
    Nothing,
}

/// What is to become of a leg that is being judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is at work, or was never taken up.
    Close,
    /// It waits, and nobody writes for it any more.
    Wake,
    /// Another look.
    Again,
    /// Its time is over.
    Lost,
}

/// A leg of which nobody knows whether prefill has written for it (protocol K18).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Judging {
    begun: Instant,
    until: Instant,
    /// Whether prefill has heard that it shall stop.
    stopped: bool,
    /// How long prefill may still write (protocol K14, K15).
    writes: Duration,
    streams: bool,
    before: Option<Queue>,
    seen: Seen,
    /// Since when a prefill that was not stopped can have nothing left to write.
    calm: Option<Instant>,
    /// When decode was last asked: what it says may be as old as that, however long its answer takes.
    asked: Instant,
    /// When it was asked before that.
    earlier: Option<Instant>,
    /// When what was seen may be acted on; nothing while decode is being asked.
    next: Option<Instant>,
}

impl Judging {
    /// From now on; the leg has `patience` for its first output.
    pub(super) fn new(now: Instant, stopped: bool, writes: Duration, (streams, patience): (bool, Duration)) -> Self {
        let until = now + writes + patience.max(IN_DOUBT);
        Judging {
            begun: now,
            until,
            stopped,
            writes,
            streams,
            before: None,
            seen: Seen::Nothing,
            calm: None,
            asked: now,
            earlier: None,
            next: None,
        }
    }

    /// When to ask for the verdict.
    pub(super) fn due(&self) -> Option<Instant> {
        self.next
    }

    /// Decode has said how its queue stands.
    pub(super) fn look(&mut self, queue: Option<Queue>, now: Instant) {
        self.seen = self.before.zip(queue).map_or(Seen::Nothing, |(before, now)| self.compare(before, now));
        self.before = queue;
        // A leg that decode has no room for asks for its KV only when it gets room: then a prefill that was not stopped writes.
        let is_calm = self.stopped || queue.is_some_and(|queue| queue.waiting == 0.0);
        self.calm = is_calm.then(|| self.calm.unwrap_or(now));
        self.next = Some(now + if now.duration_since(self.begun) < LATER.0 { ARRIVING } else { LATER.1 });
    }

    /// What two looks in a row say (protocol K20).
    fn compare(&self, before: Queue, now: Queue) -> Seen {
        if now.none_waits() {
            return Seen::AtWork;
        }
        // Others get their tokens; were this one at work, it would have got its first byte with them (ranks step together). One
        // whose KV is there counts as waiting until it is admitted, so that must be ruled out too, which only newer engines tell.
        let left_out =
            self.streams && now.tokens > before.tokens && before.arrived.zip(now.arrived) == Some((0.0, 0.0));
        let is_idle = |queue: Queue| queue.running == 0.0 && queue.arrived.is_none_or(|arrived| arrived == 0.0);
        let idle = is_idle(before) && is_idle(now);
        match before.waiting == 0.0 && now.waiting == 0.0 && (idle || left_out) {
            true => Seen::Waits,
            false => Seen::Nothing,
        }
    }

    /// What is to be done, once no byte has come since the last look.
    pub(super) fn verdict(&mut self, now: Instant) -> Verdict {
        let asked = std::mem::replace(&mut self.asked, now);
        let earlier = self.earlier.replace(asked);
        self.next = None;
        // A leg that went to work between the looks may not be through its first step, which can be a long one: what was made
        // between them is the others'. From here on no push can have sent it there.
        let calm = self.calm.zip(earlier).is_some_and(|(since, earlier)| earlier >= since + self.writes);
        match self.seen {
            Seen::AtWork if asked >= self.begun + SURELY_TAKEN_UP => Verdict::Close,
            Seen::Waits if calm => Verdict::Wake,
            _ if now >= self.until => Verdict::Lost,
            _ => Verdict::Again,
        }
    }
}

/// A leg that should report soon. Where its first output comes with its last token nobody wants to wait for that: it is looked
/// at, and closed once it surely no longer waits (protocol K23).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Expected {
    until: Instant,
    /// When to look; nothing while decode is being asked. Legs that stream are not looked at.
    next: Option<Instant>,
    looks: bool,
    before: Option<Queue>,
    /// Whether an acknowledged wake lets new tokens tell that it is at work, and whether decode was known to have room for it.
    woken: Option<bool>,
}

impl Expected {
    /// A leg that prefill's push wakes.
    pub(super) fn push(now: Instant, limit: Duration, streams: bool) -> Self {
        let looks = !streams;
        Expected { until: now + limit, next: looks.then(|| now + SURELY_TAKEN_UP), looks, before: None, woken: None }
    }

    /// A leg that was woken; `acknowledged`: with whether decode was known to have room for it.
    pub(super) fn wake(now: Instant, limit: Duration, streams: bool, acknowledged: Option<bool>) -> Self {
        let looks = !streams;
        let next = looks.then(|| now + TAKEN_UP);
        Expected { until: now + limit, next, looks, before: None, woken: acknowledged }
    }

    /// When to go on.
    pub(super) fn due(&self) -> Option<Instant> {
        if self.looks { self.next.map(|next| next.min(self.until)) } else { Some(self.until) }
    }

    /// Whether its time is over.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        now >= self.until
    }

    /// Decode is being asked.
    pub(super) fn ask(&mut self) {
        self.next = None;
    }

    /// Decode has said how its queue stands: whether the leg surely no longer waits.
    pub(super) fn look(&mut self, queue: Option<Queue>, now: Instant) -> bool {
        self.next = Some(now + LOOK);
        let before = std::mem::replace(&mut self.before, queue);
        // The step after the message takes an admitted leg up, and tokens tell of steps.
        let taken_up = before.zip(queue).zip(self.woken).is_some_and(|((before, now), admitted)| {
            now.tokens > before.tokens && (admitted || (before.waiting == 0.0 && now.waiting == 0.0))
        });
        taken_up || queue.is_some_and(|queue| queue.none_waits())
    }
}
