//! The threads that serve clients, and which of them takes a connection.
//!
//! Each has a runtime of its own, and a connection stays on its thread to its end. One busy thread is cheaper than two that are
//! half busy, since its streams share their wake-ups: so the first is filled before the next is used.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::worker;

/// The share of time that a thread may be busy before the next gets new connections.
const FULL: f64 = 0.7;
/// What a connection is taken to need as long as it is too young to show in its thread's busy time: a crowd that comes at once must
/// not end on one thread, since none of it can be moved later.
const YOUNG: f64 = 1.0 / 64.0;
/// How long threads may take to end.
const LIMIT: Duration = Duration::from_secs(1);
/// The least time between two readings of how busy the threads were.
const APART: Duration = Duration::from_millis(250);

/// The threads. The first is the caller's, or whichever its runtime has; the others end with this value.
pub(crate) struct Threads {
    threads: Vec<Thread>,
    read: Instant,
    ending: DropGuard,
}

/// One of them.
struct Thread {
    runtime: Handle,
    ended: CancellationToken,
    load: Load,
}

/// What is known of a thread's load.
#[derive(Debug, Default)]
struct Load {
    /// The busy time at the last reading.
    busy: Duration,
    /// The share of the time before it that was busy.
    share: f64,
    /// Connections that are open.
    open: Arc<AtomicUsize>,
    /// Those of them that show in the share. At each reading half of the others join them.
    grown: usize,
}

/// A connection's part in the count of its thread.
pub(super) struct Counted(Arc<AtomicUsize>);

impl Threads {
    /// The first thread, and `count` less one more that are started. Called in the first one's runtime.
    ///
    /// # Errors
    /// A thread or its runtime cannot be made.
    pub(crate) fn start(count: usize) -> io::Result<Threads> {
        let ending = CancellationToken::new();
        let mut threads = vec![Thread::new(Handle::current(), CancellationToken::new())];
        for index in 1..count {
            let (handle, ended) = worker::start(&format!("worker-{index}"), index, ending.clone())?;
            threads.push(Thread::new(handle, ended));
        }
        Ok(Threads { threads, read: Instant::now(), ending: ending.drop_guard() })
    }

    /// Resolves when one that was started has ended, which none may.
    pub(crate) fn ended(&self) -> impl Future<Output = &'static str> + Send + use<> {
        let ends: Vec<_> =
            self.threads[1..].iter().map(|thread| Box::pin(thread.ended.clone().cancelled_owned())).collect();
        async move {
            match ends.is_empty() {
                true => std::future::pending().await,
                false => futures::future::select_all(ends).await,
            };
            "a thread has ended"
        }
    }

    /// Ends those that were started, with all that runs on them.
    pub(crate) async fn end(self) {
        drop(self.ending);
        let ends = self.threads[1..].iter().map(|thread| thread.ended.cancelled());
        if tokio::time::timeout(LIMIT, futures::future::join_all(ends)).await.is_err() {
            tracing::warn!("a thread that serves clients did not stop in time");
        }
    }

    /// Where the next connection is to be served: `None` is here, on the first thread.
    pub(super) fn next(&mut self, now: Instant) -> (Option<&Handle>, Counted) {
        let index = if self.threads.len() == 1 { 0 } else { self.choose(now) };
        let thread = &self.threads[index];
        ((index > 0).then_some(&thread.runtime), thread.load.count())
    }

    fn choose(&mut self, now: Instant) -> usize {
        let passed = now.saturating_duration_since(self.read);
        if passed >= APART {
            self.read = now;
            for thread in &mut self.threads {
                thread.load.read(busy(&thread.runtime), passed);
            }
        }
        choose(self.threads.iter().map(|thread| thread.load.estimate()))
    }
}

impl Thread {
    fn new(runtime: Handle, ended: CancellationToken) -> Thread {
        Thread { runtime, ended, load: Load::default() }
    }
}

impl Load {
    fn count(&self) -> Counted {
        self.open.fetch_add(1, Ordering::Relaxed);
        Counted(self.open.clone())
    }

    fn read(&mut self, busy: Duration, passed: Duration) {
        self.share = busy.saturating_sub(self.busy).as_secs_f64() / passed.as_secs_f64();
        self.busy = busy;
        let open = self.open.load(Ordering::Relaxed);
        self.grown = self.grown.min(open);
        self.grown += (open - self.grown).div_ceil(2);
    }

    /// The share of its time that the thread will need for all that is open.
    fn estimate(&self) -> f64 {
        let young = self.open.load(Ordering::Relaxed).saturating_sub(self.grown);
        self.share + young as f64 * YOUNG
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The first that is not full, or else the one with the least to do.
fn choose(estimates: impl Iterator<Item = f64> + Clone) -> usize {
    let mut all = estimates.enumerate();
    let least = |all: &mut dyn Iterator<Item = (usize, f64)>| all.min_by(|(_, one), (_, other)| one.total_cmp(other));
    let free = all.clone().find(|(_, estimate)| *estimate < FULL);
    free.or_else(|| least(&mut all)).map_or(0, |(index, _)| index)
}

/// How long a runtime's threads were busy, on the average.
fn busy(runtime: &Handle) -> Duration {
    let metrics = runtime.metrics();
    let count = metrics.num_workers();
    let busy: Duration = (0..count).map(|worker| metrics.worker_total_busy_duration(worker)).sum();
    busy / u32::try_from(count).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Loads after connections that come one after the other, of which none shows in the busy time yet.
    fn spread(mut loads: Vec<Load>, connections: usize) -> (Vec<Load>, Vec<usize>, Vec<Counted>) {
        let counted =
            (0..connections).map(|_| loads[choose(loads.iter().map(Load::estimate))].count()).collect::<Vec<_>>();
        for load in &mut loads {
            load.busy = Duration::ZERO;
        }
        let open = loads.iter().map(|load| load.open.load(Ordering::Relaxed)).collect();
        (loads, open, counted)
    }

    fn idle(count: usize) -> Vec<Load> {
        (0..count).map(|_| Load::default()).collect()
    }

    #[test]
    fn the_first_thread_that_is_not_full_takes_the_next() {
        let check =
            |estimates: &[f64], chosen: usize| assert_eq!(choose(estimates.iter().copied()), chosen, "{estimates:?}");
        check(&[0.0, 0.0], 0);
        check(&[0.69, 0.0], 0);
        check(&[0.7, 0.0], 1);
        check(&[0.7, 0.71, 0.2], 2);
        check(&[1.0, 0.9, 0.95], 1);
        check(&[3.0], 0);
    }

    #[test]
    fn a_crowd_is_spread_and_a_few_are_not() {
        assert_eq!(spread(idle(2), 40).1, [40, 0]);
        assert_eq!(spread(idle(2), 512).1, [256, 256]);
        assert_eq!(spread(idle(4), 100).1, [45, 45, 10, 0]);
    }

    #[test]
    fn what_has_grown_counts_by_the_time_that_it_takes() {
        let (mut loads, open, counted) = spread(idle(2), 64);
        assert_eq!(open, [45, 19]);
        let mut busy = [Duration::ZERO; 2];
        for _ in 0..8 {
            for (load, busy) in loads.iter_mut().zip(&mut busy) {
                *busy += Duration::from_millis(10);
                load.read(*busy, Duration::from_millis(100));
            }
        }
        // Each is busy for a tenth of the time, and all that is open shows in that.
        assert_eq!(loads.iter().map(|load| (load.share * 10.0).round() as usize).collect::<Vec<_>>(), [1, 1]);
        assert_eq!(choose(loads.iter().map(Load::estimate)), 0);
        let (loads, open, _more) = spread(loads, 39);
        assert_eq!(open, [45 + 39, 19]);
        assert_eq!(choose(loads.iter().map(Load::estimate)), 1);
        drop(counted);
        assert_eq!(choose(loads.iter().map(Load::estimate)), 0);
    }

    #[test]
    fn connections_that_come_and_go_leave_nothing() {
        let (_, open, counted) = spread(idle(2), 1);
        drop(counted);
        let mut loads = idle(2);
        for _ in 0..1000 {
            let (next, now, gone) = spread(loads, 1);
            assert_eq!(now, open);
            drop(gone);
            loads = next;
        }
    }
}
