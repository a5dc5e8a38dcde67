//! Threads with a runtime of their own, and which of those that serve clients this one is.

use std::cell::Cell;
use std::{io, thread};

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

/// Threads of each such runtime for what would block it: name lookups, large bodies.
pub const BLOCKING: usize = 64;

thread_local! {
    static INDEX: Cell<usize> = const { Cell::new(0) };
}

/// The number of this thread among those that serve clients: 0 for the first, and for every other thread. What each of them has
/// of its own is found by it.
#[must_use]
pub fn index() -> usize {
    INDEX.get()
}

/// Starts a thread of this name and number, with a runtime that runs what is spawned on it until `stop`. Gives the runtime, and
/// what is cancelled when the thread has ended, also by a panic.
pub(crate) fn start(name: &str, index: usize, stop: CancellationToken) -> io::Result<(Handle, CancellationToken)> {
    let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(BLOCKING).build()?;
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
