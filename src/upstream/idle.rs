//! Connections that rest between two legs, of each worker apart.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::connection::Connection;
use crate::worker;

/// The engines' server closes idle connections after 5 s; below that a request cannot meet the closing (protocol L2).
pub(super) const REST: Duration = Duration::from_secs(4);
/// The most that rest for one engine and worker.
const MOST: usize = 4096;

/// An engine's life and one of its hosts.
type Place = (u64, usize);

/// Those of one place, the one that has rested longest first.
type Resting = VecDeque<(Instant, Connection)>;

/// Where a connection rests: with those of its engine's life and host.
#[derive(Clone, Debug)]
pub(super) struct Home {
    /// All that rest.
    pub(super) idle: Arc<Idle>,
    /// The engine's life, and its host.
    pub(super) place: Place,
}

impl Home {
    /// The connection that has rested shortest, if one is as it should be.
    pub(super) fn take(&self) -> Option<Connection> {
        self.idle.take(self.place, Instant::now())
    }

    /// Keeps a connection whose answer is over.
    pub(super) fn rest(&self, connection: Connection) {
        self.idle.rest(self.place, connection, Instant::now());
    }
}

/// Resting connections by worker and by the incarnation of their engine, and its host: none outlives that.
#[derive(Debug)]
pub(super) struct Idle {
    workers: Box<[Mutex<BTreeMap<Place, Resting>>]>,
    /// Called when one rests where none did.
    first: Notify,
}

impl Idle {
    /// None yet.
    pub(super) fn new(workers: usize) -> Self {
        Idle { workers: (0..workers.max(1)).map(|_| Mutex::default()).collect(), first: Notify::new() }
    }

    fn own(&self) -> MutexGuard<'_, BTreeMap<Place, Resting>> {
        self.workers[worker::index() % self.workers.len()].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, place: Place, now: Instant) -> Option<Connection> {
        let mut own = self.own();
        let resting = own.get_mut(&place)?;
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

    fn rest(&self, place: Place, connection: Connection, now: Instant) {
        let mut own = self.own();
        let is_first = own.is_empty();
        let resting = own.entry(place).or_default();
        if resting.len() == MOST {
            resting.pop_front();
        }
        resting.push_back((now, connection));
        drop(own);
        if is_first {
            self.first.notify_one();
        }
    }

    /// Resolves when one rests that nobody has swept for.
    pub(super) async fn rests(&self) {
        self.first.notified().await;
    }

    /// Closes what has rested long enough. Says whether any rest.
    pub(super) fn sweep(&self, now: Instant) -> bool {
        let mut any = false;
        for worker in &self.workers {
            let mut resting = worker.lock().unwrap_or_else(PoisonError::into_inner);
            resting.retain(|_, resting| {
                while resting.front().is_some_and(|(since, _)| now.duration_since(*since) >= REST) {
                    resting.pop_front();
                }
                !resting.is_empty()
            });
            any |= !resting.is_empty();
        }
        any
    }

    /// Closes all, for the sake of a leg that finds no descriptor. Says whether there were any.
    pub(super) fn give_up(&self) -> bool {
        let mut any = false;
        for worker in &self.workers {
            any |= !std::mem::take(&mut *worker.lock().unwrap_or_else(PoisonError::into_inner)).is_empty();
        }
        any
    }

    /// How many rest.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.workers.iter().map(|worker| worker.lock().unwrap().values().map(VecDeque::len).sum::<usize>()).sum()
    }
}
