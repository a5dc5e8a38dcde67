//! Threads with a runtime of their own, and which of those that serve clients this one is.

use std::cell::Cell;
use std::time::Duration;
use std::{io, thread};

use tokio::runtime::{Builder, Handle, Runtime};
use tokio_util::sync::CancellationToken;

/// Threads of each runtime for what would block it: name lookups, large bodies.
const BLOCKING: usize = 64;
/// They stay for good: as long as there is one, work for them waits its turn where the system has no thread left. Where there is
/// none that is a panic.
const STAY: Duration = Duration::from_secs(u32::MAX as u64);

/// So many tasks are polled before sockets are looked at. One that reads a large body takes up to 32 KB at each poll and wakes
/// itself for more.
const TASKS: u32 = 16;

thread_local! {
    static INDEX: Cell<usize> = const { Cell::new(0) };
}

/// The number of this thread among those that serve clients: 0 for the first, and for every other thread. What each of them has
/// of its own is found by it.
#[must_use]
pub fn index() -> usize {
    INDEX.get()
}

/// A runtime with one thread for what blocks.
///
/// # Errors
/// The system has no descriptors or no thread for it.
pub fn runtime(builder: &mut Builder) -> io::Result<Runtime> {
    builder.enable_all().max_blocking_threads(BLOCKING).thread_keep_alive(STAY).event_interval(TASKS);
    let runtime = builder.build()?;
    // The same is asked for in a way that has an error.
    thread::Builder::new().spawn(|| ())?;
    runtime.spawn_blocking(|| ());
    Ok(runtime)
}

/// Starts a thread of this name and number, with a runtime that runs what is spawned on it until `stop`. Gives the runtime, and
/// what is cancelled when the thread has ended, also by a panic.
pub(crate) fn start(name: &str, index: usize, stop: CancellationToken) -> io::Result<(Handle, CancellationToken)> {
    let runtime = runtime(&mut Builder::new_current_thread())?;
    let (handle, ended) = (runtime.handle().clone(), CancellationToken::new());
    let alive = ended.clone().drop_guard();
    thread::Builder::new().name(name.into()).spawn(move || {
        // Dropped last.
        let _alive = alive;
        INDEX.set(index);
        runtime.block_on(stop.cancelled());
        runtime.shutdown_background();
    })?;
    Ok((handle, ended))
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    #[tokio::test]
    async fn a_thread_has_its_number_and_ends_when_it_is_told() {
        let stop = CancellationToken::new();
        let (runtime, ended) = super::start("third", 3, stop.clone()).unwrap();
        let told = async { (super::index(), std::thread::current().name().map(str::to_owned)) };
        assert_eq!(runtime.spawn(told).await.unwrap(), (3, Some("third".into())));
        assert_eq!(super::index(), 0);
        let endless = runtime.spawn(std::future::pending::<()>());
        stop.cancel();
        ended.cancelled().await;
        assert!(endless.await.unwrap_err().is_cancelled());
    }
}
