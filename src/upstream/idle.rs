//! Connections that rest between two legs, of each worker apart.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::connection::Connection;
use crate::worker;

/// The engines' server closes idle connections after 5 s; below that a request cannot meet the closing (protocol L2).
pub(super) const REST: Duration = Duration::from_secs(4);
/// The most that rest for one engine and worker.
const MOST: usize = 4096;

/// Those of one engine's life, the one that has rested longest first.
type Resting = VecDeque<(Instant, Connection)>;

/// Where a connection rests: with those of its engine's life.
#[derive(Clone, Debug)]
pub(super) struct Home {
    /// All that rest.
    pub(super) idle: Arc<Idle>,
    /// The engine's life.
    pub(super) incarnation: u64,
}

impl Home {
    /// The connection that has rested shortest, if one is as it should be.
    pub(super) fn take(&self) -> Option<Connection> {
        self.idle.take(self.incarnation, Instant::now())
    }

    /// Keeps a connection whose answer is over.
    pub(super) fn rest(&self, connection: Connection) {
        self.idle.rest(self.incarnation, connection, Instant::now());
    }
}

/// Resting connections by worker and by the incarnation of their engine: none outlives that.
#[derive(Debug)]
pub(super) struct Idle(Box<[Mutex<BTreeMap<u64, Resting>>]>);

impl Idle {
    /// None yet.
    pub(super) fn new(workers: usize) -> Self {
        Idle((0..workers.max(1)).map(|_| Mutex::default()).collect())
    }

    fn own(&self) -> MutexGuard<'_, BTreeMap<u64, Resting>> {
        self.0[worker::index() % self.0.len()].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, incarnation: u64, now: Instant) -> Option<Connection> {
        let mut own = self.own();
        let resting = own.get_mut(&incarnation)?;
        while let Some((since, mut connection)) = resting.pop_back() {
            if now.duration_since(since) >= REST {
                // So have all others.
                resting.clear();
            } else if connection.is_quiet() {
                return Some(connection);
            }
        }
        None
    }

    fn rest(&self, incarnation: u64, connection: Connection, now: Instant) {
        let mut own = self.own();
        let resting = own.entry(incarnation).or_default();
        if resting.len() == MOST {
            resting.pop_front();
        }
        resting.push_back((now, connection));
    }

    /// Closes what has rested long enough.
    pub(super) fn sweep(&self, now: Instant) {
        for worker in &self.0 {
            let mut resting = worker.lock().unwrap_or_else(PoisonError::into_inner);
            resting.retain(|_, resting| {
                while resting.front().is_some_and(|(since, _)| now.duration_since(*since) >= REST) {
                    resting.pop_front();
                }
                !resting.is_empty()
            });
        }
    }

    /// How many rest.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.0.iter().map(|worker| worker.lock().unwrap().values().map(VecDeque::len).sum::<usize>()).sum()
    }
}
