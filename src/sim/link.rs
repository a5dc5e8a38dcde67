//! What a handler can do to the connection that its request came on.

use std::convert::Infallible;
use std::future::pending;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::Notify;

/// A handler's hold on its connection.
#[derive(Default)]
pub(crate) struct Link {
    /// To which of the engine's hosts it leads.
    pub(crate) host: usize,
    pub(crate) requests: AtomicU64,
    pub(crate) reset: AtomicBool,
    pub(crate) cut: Notify,
}

impl Link {
    /// Ends the connection, and with it the caller.
    pub(crate) async fn cut(&self, reset: bool) -> Infallible {
        self.reset.store(reset, Ordering::Relaxed);
        self.cut.notify_one();
        pending().await
    }
}
