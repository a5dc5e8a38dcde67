//! The places for requests in flight, and the line of those that wait for one: in order of arrival, bounded in number and time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::ProxyError;
use crate::metrics::Metrics;
use crate::settings::ServerSettings;

/// Places in flight and in the line.
pub(super) struct Queue {
    /// Gives its permits in the order in which they were asked for.
    room: Arc<Semaphore>,
    line: Semaphore,
    limit: Duration,
    metrics: Arc<Metrics>,
}

/// One that waits. However the wait ends, by a client that leaves too, it is counted.
struct Waiting<'a> {
    since: Instant,
    metrics: &'a Metrics,
}

impl Queue {
    /// All places free, nobody waits.
    pub(super) fn new(settings: &ServerSettings, metrics: Arc<Metrics>) -> Queue {
        let room = Arc::new(Semaphore::new(settings.max_in_flight));
        Queue { room, line: Semaphore::new(settings.queue_size), limit: settings.queue_time, metrics }
    }

    /// Whether a request that comes now can have a place, or wait for one: nothing of one that cannot is read.
    ///
    /// # Errors
    /// 429: the line is full.
    pub(super) fn admit(&self) -> Result<(), ProxyError> {
        let has_room = self.room.available_permits() > 0 || self.line.available_permits() > 0;
        if has_room { Ok(()) } else { Err(ProxyError::Overloaded) }
    }

    /// A place among the requests in flight, waited for if there is a place in the line.
    ///
    /// # Errors
    /// 429: the line is full, or the wait took too long.
    pub(super) async fn place(&self) -> Result<OwnedSemaphorePermit, ProxyError> {
        // None is free as long as somebody waits: it goes to the first of the line at once.
        if let Ok(place) = self.room.clone().try_acquire_owned() {
            return Ok(place);
        }
        let _in_line = self.line.try_acquire().map_err(|_| ProxyError::Overloaded)?;
        let _waiting = Waiting::new(&self.metrics);
        match tokio::time::timeout(self.limit, self.room.clone().acquire_owned()).await {
            Ok(Ok(place)) => Ok(place),
            // The semaphore is never closed.
            Ok(Err(_)) => Err(ProxyError::Internal),
            Err(_) => Err(ProxyError::QueueTimeout { limit: self.limit }),
        }
    }
}

impl<'a> Waiting<'a> {
    fn new(metrics: &'a Metrics) -> Waiting<'a> {
        metrics.queued.inc();
        Waiting { since: Instant::now(), metrics }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.metrics.queued.dec();
        self.metrics.queue_time.observe(self.since.elapsed().as_secs_f64());
    }
}
