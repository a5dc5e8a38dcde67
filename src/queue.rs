//! The line of requests that wait: for a place among those in flight, then for engines with room. By priority, and within one fair
//! between sessions: each session's next request stands behind the first ones of all others. Among equals it is order of arrival.
//!
//! Only the first of the line looks for a pair, and it is called when a place or an engine gets free; when it has one, or gives up, the
//! next is called. A request that finds nobody in the line passes at the price of one lock.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::error::ProxyError;
use crate::metrics::Metrics;
use crate::settings::Admission;

/// The part of a new interval in the mean time between two that leave the line for a pair.
const SMOOTHING: f64 = 0.2;
/// Sessions that are remembered beside those that wait.
const ROUNDS_KEPT: usize = 1024;

/// A request's place in the line: its priority, its session's round, its arrival.
type Turn = (i64, u64, u64);

/// Places in flight and the line.
#[derive(Debug)]
pub struct Queue {
    state: Mutex<State>,
    rules: Admission,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct State {
    in_flight: usize,
    waiting: BTreeMap<Turn, Arc<Notify>>,
    arrivals: u64,
    /// By priority: the round of whoever was served last, and the last round of each session that waited.
    served: HashMap<i64, u64>,
    rounds: HashMap<(i64, u64), u64>,
    /// Mean seconds between two that left the line for a pair, and when the last did.
    pace: Option<f64>,
    last: Option<Instant>,
}

impl State {
    /// Calls the first of the line.
    fn call(&self) {
        if let Some((_, first)) = self.waiting.first_key_value() {
            first.notify_one();
        }
    }

    /// The round of a priority: what others have does not move it on.
    fn round(&self, priority: i64) -> u64 {
        self.served.get(&priority).copied().unwrap_or(0)
    }

    /// The round in which a session's next request is served; one without a session is one of its own.
    fn next_round(&mut self, priority: i64, session: Option<u64>) -> u64 {
        let next = self.round(priority) + 1;
        let Some(session) = session else { return next };
        if self.rounds.len() > ROUNDS_KEPT + 2 * self.waiting.len() {
            let served = &self.served;
            self.rounds.retain(|(priority, _), last| *last > served.get(priority).copied().unwrap_or(0));
        }
        let last = self.rounds.entry((priority, session)).or_default();
        *last = next.max(*last + 1);
        *last
    }

    /// Somebody of a priority was served in this round. Clients may think of any number of priorities: of those of which nobody waits
    /// few are remembered.
    fn serve(&mut self, (priority, round, _): Turn) {
        if self.served.len() > ROUNDS_KEPT + 2 * self.waiting.len() {
            let State { served, waiting, rounds, .. } = self;
            let is_waited_for =
                |priority: i64| waiting.range((priority, 0, 0)..=(priority, u64::MAX, u64::MAX)).next().is_some();
            served.retain(|priority, _| is_waited_for(*priority));
            rounds.retain(|(priority, _), _| is_waited_for(*priority));
        }
        let last = self.served.entry(priority).or_default();
        *last = round.max(*last);
    }

    /// How long whoever comes now would wait, in whole seconds.
    fn retry_after(&self, limit: Duration) -> u64 {
        let seconds = self.pace.unwrap_or(0.0) * (self.waiting.len() + 1) as f64;
        (seconds.ceil() as u64).clamp(1, limit.as_secs().max(1))
    }
}

impl Queue {
    /// All places free, nobody waits.
    pub fn new(rules: Admission, metrics: Arc<Metrics>) -> Arc<Queue> {
        Arc::new(Queue { state: Mutex::default(), rules, metrics })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a request that comes now can have a place, or wait for one: nothing of one that cannot is read.
    ///
    /// # Errors
    /// 429: the line is full.
    pub fn admit(&self) -> Result<(), ProxyError> {
        let state = self.state();
        let has_room = state.in_flight < self.rules.in_flight || state.waiting.len() < self.rules.line;
        if has_room { Ok(()) } else { Err(self.full(&state)) }
    }

    fn full(&self, state: &State) -> ProxyError {
        ProxyError::Overloaded { retry_after: state.retry_after(self.rules.time) }
    }

    /// Whether requests wait for engines in the line, and for those that turn work away.
    pub fn is_on(&self) -> bool {
        self.rules.is_capped
    }

    /// A request that is not in the line yet and has no place.
    pub fn ticket(self: &Arc<Self>, priority: i64, session: Option<u64>) -> Ticket {
        let (called, until) = (Arc::default(), Instant::now() + self.rules.time);
        let queue = self.clone();
        Ticket {
            queue,
            priority,
            session,
            turn: None,
            since: None,
            called,
            until,
            place: None,
            has_place: false,
            waited: None,
        }
    }
}

/// A place among the requests in flight, until it is dropped.
#[derive(Debug)]
pub struct Place(Arc<Queue>);

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.in_flight = state.in_flight.saturating_sub(1);
        state.call();
    }
}

/// A request on its way to a pair. Dropped, it has left the line.
#[derive(Debug)]
pub struct Ticket {
    queue: Arc<Queue>,
    priority: i64,
    session: Option<u64>,
    turn: Option<Turn>,
    /// Since when it is in the line, if it is.
    since: Option<Instant>,
    called: Arc<Notify>,
    until: Instant,
    place: Option<Place>,
    has_place: bool,
    /// How long it was in the line before that, if it was.
    waited: Option<Duration>,
}

impl Ticket {
    /// How long it was in the line; none if it was not.
    pub fn waited(&self) -> Option<Duration> {
        let now = self.since.map(|since| since.elapsed());
        self.waited.or(now.map(|_| Duration::ZERO)).map(|waited| waited + now.unwrap_or_default())
    }

    /// Until when it waits.
    pub fn until(&self) -> Instant {
        self.until
    }

    /// Whether it may look for a pair now: nobody is before it, and it has a place or gets one.
    pub fn may_look(&mut self) -> bool {
        let mut state = self.queue.state();
        let first = state.waiting.first_key_value().map(|(turn, _)| *turn);
        let is_next = first.is_none_or(|first| self.turn.is_some_and(|turn| turn <= first));
        if !is_next {
            drop(state);
            // Whoever is first may lack it.
            if self.place.take().is_some() {
                self.has_place = false;
            }
            return false;
        }
        if !self.has_place && state.in_flight < self.queue.rules.in_flight {
            state.in_flight += 1;
            // Should it come back, it is before all that have come since.
            if self.turn.is_none() {
                state.arrivals += 1;
                self.turn = Some((self.priority, state.round(self.priority), state.arrivals));
            }
            drop(state);
            self.place = Some(Place(self.queue.clone()));
            self.has_place = true;
        }
        self.has_place
    }

    /// It looks for another pair, and its place was given back.
    pub fn comes_back(&mut self) {
        self.has_place = false;
    }

    /// Goes into the line, or back to where it was in it.
    ///
    /// # Errors
    /// 429: the line is full.
    pub fn join(&mut self) -> Result<(), ProxyError> {
        if self.since.is_some() {
            return Ok(());
        }
        let mut state = self.queue.state();
        if state.waiting.len() >= self.queue.rules.line && self.turn.is_none() {
            return Err(self.queue.full(&state));
        }
        let turn = match self.turn {
            Some(turn) => turn,
            None => {
                state.arrivals += 1;
                (self.priority, state.next_round(self.priority, self.session), state.arrivals)
            }
        };
        state.waiting.insert(turn, self.called.clone());
        // Whoever was first may have left since this one looked, or have waited for something else than a place.
        state.call();
        drop(state);
        (self.turn, self.since) = (Some(turn), Some(Instant::now()));
        self.queue.metrics.queued.inc();
        Ok(())
    }

    /// Waits until it is called, which it is when it has become the first of the line or a place got free for the first.
    pub async fn called(&self) {
        self.called.notified().await;
    }

    /// It waits for something else than the others.
    pub fn step_aside(&mut self) {
        self.leave(false);
    }

    /// It has a pair; its place, the first time.
    pub fn served(&mut self) -> Option<Place> {
        self.leave(true);
        self.place.take()
    }

    /// When another try may have more luck, in seconds.
    pub fn retry_after(&self) -> u64 {
        self.queue.state().retry_after(self.queue.rules.time)
    }

    /// It has waited for too long.
    pub fn late(&self) -> ProxyError {
        ProxyError::QueueTimeout { limit: self.queue.rules.time, retry_after: self.retry_after() }
    }

    fn leave(&mut self, served: bool) {
        let (Some(turn), Some(since)) = (self.turn, self.since.take()) else { return };
        let now = Instant::now();
        let mut state = self.queue.state();
        state.waiting.remove(&turn);
        if served {
            state.serve(turn);
            if let Some(last) = state.last.replace(now) {
                let interval = now.duration_since(last).as_secs_f64();
                state.pace = Some(state.pace.map_or(interval, |pace| pace + SMOOTHING * (interval - pace)));
            }
        }
        if state.waiting.is_empty() {
            // What comes then has another pace.
            state.rounds.clear();
            state.served.clear();
            state.last = None;
        }
        state.call();
        drop(state);
        self.queue.metrics.queued.dec();
        let waited = now.duration_since(since);
        self.queue.metrics.queue_time.observe(waited.as_secs_f64());
        self.waited = Some(self.waited.unwrap_or_default() + waited);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let (Some(_), Some(session)) = (self.since, self.session) {
            // It was not served: the session's next one need not stand behind it.
            let mut state = self.queue.state();
            let (round, key) = (state.round(self.priority), (self.priority, session));
            if let Some(last) = state.rounds.get_mut(&key) {
                *last = last.saturating_sub(1);
                if *last <= round {
                    state.rounds.remove(&key);
                }
            }
        }
        self.leave(false);
    }
}

#[cfg(test)]
mod tests;
