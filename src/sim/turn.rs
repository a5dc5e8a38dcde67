//! Who computes on a rank that computes one prompt at a time: who came first.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::{Instant, sleep_until};

/// The place at which a rank computes, with the time at which it became free.
pub(crate) struct Desk(Arc<Mutex<Instant>>);

impl Desk {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    /// A turn, if nobody has or waits for one.
    pub(crate) fn free(&self) -> Option<Turn> {
        let free = self.0.clone().try_lock_owned().ok()?;
        Some(Turn { free, until: Instant::now() })
    }

    /// Waits for a turn. Who stops waiting is not waited for.
    pub(crate) async fn turn(&self) -> Turn {
        let asked = Instant::now();
        let free = self.0.clone().lock_owned().await;
        // From the end of the turn before, or the time that timers are late would add up.
        let until = asked.max(*free);
        Turn { free, until }
    }
}

/// The right to compute; dropping it leaves it to the next.
pub(crate) struct Turn {
    free: OwnedMutexGuard<Instant>,
    /// For how long there was something to do.
    until: Instant,
}

impl Turn {
    /// Lets time pass; what passed since `idle` without work is added to it.
    pub(crate) async fn work(&mut self, idle: Instant, time: Duration) {
        let time = time.saturating_add(idle.elapsed());
        match self.until.checked_add(time) {
            Some(until) => self.until = until,
            None => return pending().await,
        }
        sleep_until(self.until).await;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *self.free = self.until.min(Instant::now());
    }
}
