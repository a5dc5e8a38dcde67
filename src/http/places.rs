//! Places of client connections: who holds one, who is idle and gives way, and the few that are kept for probes (protocol E2).
//!
//! Bookkeeping only: no socket, no clock. A connection that finds every place taken waits on a reserved one for its request. A
//! probe is answered there; anything else takes the place of the connection that has been idle longest, or is refused.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::metrics::Metrics;

/// Connections beyond the limit, so that a probe is heard when every place is taken.
pub(super) const RESERVED: usize = 16;
/// Who has sent nothing for so long after connecting is idle; whoever has just come is about to send.
const SILENT: Duration = Duration::from_secs(1);
/// What a connection on a reserved place gets to send its request before it must yield to the next one.
const PATIENCE: Duration = Duration::from_millis(20);
/// How long nobody may have missed a place before the log says that there is room again.
const QUIET: Duration = Duration::from_secs(3);
/// A look at least so often where a change may have gone unnoticed.
const LOOK: Duration = Duration::from_secs(1);

/// What a connection holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// A place of its own.
    Place,
    /// A reserved one, for one probe.
    Reserved,
    /// None any more: it gives way.
    Nothing,
}

const HOLDS: [Hold; 3] = [Hold::Place, Hold::Reserved, Hold::Nothing];

/// What may be done with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It is served, and so are those that follow it.
    Serve,
    /// A probe on a reserved place: it is served, and the connection ends.
    Once,
    /// There is no place for it.
    Refuse,
}

/// A connection as the places know it. Its fields change under their lock.
#[derive(Debug)]
pub(super) struct Caller {
    hold: AtomicU8,
    /// Where it stands in the list that it is on.
    turn: AtomicU64,
    /// Whether it is on a list of those that may have to give way. Read without the lock, before each look at the list.
    idle: AtomicBool,
    /// Called when it should go.
    pub(super) leave: Notify,
}

impl Caller {
    pub(super) fn hold(&self) -> Hold {
        HOLDS[usize::from(self.hold.load(Ordering::Relaxed)) % HOLDS.len()]
    }

    fn holds(&self, hold: Hold) {
        self.hold.store(hold as u8, Ordering::Relaxed);
    }
}

/// Callers in the order in which they came to a list, with that moment.
type Line = BTreeMap<u64, (Instant, Arc<Caller>)>;

#[derive(Debug, Default)]
struct Books {
    /// Connections that are open, whatever they hold.
    open: usize,
    /// Places that are held.
    taken: usize,
    next_turn: u64,
    /// Answered before, and silent since.
    idle: Line,
    /// Connected and silent since.
    silent: Line,
    /// On reserved places, without a request yet.
    waiting: Line,
    /// When somebody last missed a place; `None` while there is room.
    missed: Option<Instant>,
    /// No file descriptor is left for another place.
    pressed: bool,
}

impl Books {
    fn stand(line: &mut Line, next_turn: &mut u64, caller: &Arc<Caller>, now: Instant) {
        *next_turn += 1;
        caller.turn.store(*next_turn, Ordering::Relaxed);
        line.insert(*next_turn, (now, caller.clone()));
    }

    fn leave_lines(&mut self, caller: &Caller) {
        let turn = caller.turn.load(Ordering::Relaxed);
        caller.idle.store(false, Ordering::Relaxed);
        for line in [&mut self.idle, &mut self.silent, &mut self.waiting] {
            line.remove(&turn);
        }
    }

    /// Takes the place of whoever has been idle longest, if anybody is.
    fn oust(&mut self, now: Instant) -> bool {
        let silent_long = |(_, (since, _)): &(&u64, &(Instant, _))| now.duration_since(*since) >= SILENT;
        let ousted = match self.idle.pop_first() {
            Some(ousted) => Some(ousted),
            None if self.silent.first_key_value().as_ref().is_some_and(silent_long) => self.silent.pop_first(),
            None => None,
        };
        let Some((_, (_, caller))) = ousted else { return false };
        caller.idle.store(false, Ordering::Relaxed);
        caller.holds(Hold::Nothing);
        caller.leave.notify_one();
        true
    }
}

/// All places.
#[derive(Debug)]
pub(super) struct Places {
    limit: usize,
    books: Mutex<Books>,
    /// Called when a connection has ended.
    freed: Notify,
    metrics: Arc<Metrics>,
}

impl Places {
    /// So many places (`--max-connections`), and the reserved ones.
    pub(super) fn new(limit: usize, metrics: Arc<Metrics>) -> Self {
        Places { limit, books: Mutex::default(), freed: Notify::new(), metrics }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until one more connection may be open.
    pub(super) async fn room(&self) {
        loop {
            let freed = self.freed.notified();
            match self.make_room(Instant::now()) {
                None => return,
                Some(wait) => {
                    let _ = tokio::time::timeout(wait, freed).await;
                }
            }
        }
    }

    /// How long to wait before looking again, if there is no room. Whoever waits longest on a reserved place has to go.
    fn make_room(&self, now: Instant) -> Option<Duration> {
        let mut books = self.books();
        if books.open < self.limit + RESERVED {
            return None;
        }
        Some(self.push_out(&mut books, now))
    }

    /// Sends whoever waits longest on a reserved place away, unless it has just come. Says when to look again.
    fn push_out(&self, books: &mut Books, now: Instant) -> Duration {
        let oldest = books.waiting.first_key_value().map(|(_, (since, _))| now.duration_since(*since));
        if let Some(age) = oldest.filter(|age| *age < PATIENCE) {
            return PATIENCE - age;
        }
        if let Some((_, (_, caller))) = books.waiting.pop_first() {
            caller.leave.notify_one();
            self.metrics.place_missing("pushed_out");
        }
        LOOK
    }

    /// Waits a moment for a connection to end.
    pub(super) async fn freed(&self) {
        let _ = tokio::time::timeout(PATIENCE, self.freed.notified()).await;
    }

    /// A connection was accepted.
    pub(super) fn open(&self, now: Instant) -> Arc<Caller> {
        let caller = Arc::new(Caller {
            hold: AtomicU8::new(Hold::Reserved as u8),
            turn: AtomicU64::new(0),
            idle: AtomicBool::new(false),
            leave: Notify::new(),
        });
        let mut books = self.books();
        let books = &mut *books;
        books.open += 1;
        if books.taken < self.limit && !books.pressed {
            caller.holds(Hold::Place);
            caller.idle.store(true, Ordering::Relaxed);
            Books::stand(&mut books.silent, &mut books.next_turn, &caller, now);
            self.take(books, 1);
        } else {
            Books::stand(&mut books.waiting, &mut books.next_turn, &caller, now);
            // Where somebody is idle a place is to be had.
            if books.idle.is_empty() {
                self.missed(books, now);
            }
        }
        caller
    }

    /// The connection has sent something.
    pub(super) fn heard(&self, caller: &Caller) {
        if caller.idle.load(Ordering::Relaxed) {
            self.books().leave_lines(caller);
        }
    }

    /// A request has come, whole but for its body.
    pub(super) fn request(&self, caller: &Caller, is_probe: bool, now: Instant) -> Admission {
        let mut books = self.books();
        let books = &mut *books;
        books.leave_lines(caller);
        match caller.hold() {
            Hold::Place => Admission::Serve,
            Hold::Reserved | Hold::Nothing if is_probe => Admission::Once,
            Hold::Reserved | Hold::Nothing => {
                if books.taken < self.limit && !books.pressed {
                    self.take(books, 1);
                } else if books.oust(now) {
                    self.metrics.place_missing("idle_closed");
                } else {
                    self.missed(books, now);
                    self.metrics.place_missing("refused");
                    return Admission::Refuse;
                }
                caller.holds(Hold::Place);
                Admission::Serve
            }
        }
    }

    /// The answer to the connection's request is over.
    pub(super) fn answered(&self, caller: &Arc<Caller>, now: Instant) {
        let mut books = self.books();
        let books = &mut *books;
        if caller.hold() == Hold::Place {
            caller.idle.store(true, Ordering::Relaxed);
            Books::stand(&mut books.idle, &mut books.next_turn, caller, now);
        }
    }

    /// The connection has ended.
    pub(super) fn close(&self, caller: &Caller) {
        let mut books = self.books();
        books.leave_lines(caller);
        books.open -= 1;
        if caller.hold() == Hold::Place {
            self.take(&mut books, -1);
        }
        drop(books);
        self.freed.notify_one();
    }

    /// No descriptor is left, or there are some again. In the first case a connection gives its own back: the one that has been
    /// idle longest, or else the one that waits longest on a reserved place.
    pub(super) fn press(&self, pressed: bool, now: Instant) {
        let mut books = self.books();
        books.pressed = pressed;
        if pressed {
            self.missed(&mut books, now);
            if books.oust(now) {
                self.take(&mut books, -1);
                self.metrics.place_missing("idle_closed");
            } else {
                self.push_out(&mut books, now);
            }
        }
    }

    /// Whether somebody missed a place not long ago.
    pub(super) fn is_short(&self) -> bool {
        self.books().missed.is_some()
    }

    /// Says that there is room again, once there has been for a while.
    pub(super) fn settle(&self, now: Instant) {
        let mut books = self.books();
        let quiet = books.missed.is_some_and(|missed| now.duration_since(missed) >= QUIET);
        // What the idle hold is to be had.
        let busy = books.taken.saturating_sub(books.idle.len());
        let slack = (self.limit / 10).max(1);
        if quiet && !books.pressed && busy + slack <= self.limit {
            books.missed = None;
            self.metrics.places_full.set(0);
            tracing::info!(in_use = books.taken, limit = self.limit, "there are places for client connections again");
        }
    }

    fn missed(&self, books: &mut Books, now: Instant) {
        if books.missed.replace(now).is_none() {
            self.metrics.places_full.set(1);
            let (in_use, limit, descriptors) = (books.taken, self.limit, !books.pressed);
            tracing::warn!(
                in_use,
                limit,
                descriptors,
                "no place is left for client connections: requests on new ones get 503, probes are answered"
            );
        }
    }

    fn take(&self, books: &mut Books, change: isize) {
        books.taken = books.taken.saturating_add_signed(change);
        self.metrics.places_in_use.set(i64::try_from(books.taken).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests;
