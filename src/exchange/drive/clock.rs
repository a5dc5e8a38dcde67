//! When the next limit of an attempt passes.

use std::pin::Pin;
use std::time::Instant;

use tokio::time::Sleep;

/// The one timer of an attempt. It is moved when something is due earlier than it would fire, and else when it fires: what is
/// put off costs nothing.
#[derive(Debug, Default)]
pub(super) struct Clock(Option<Pin<Box<Sleep>>>);

impl Clock {
    /// Resolves at this moment. May be dropped and asked again.
    pub(super) async fn at(&mut self, due: Option<Instant>) {
        let Some(due) = due.map(tokio::time::Instant::from) else { return std::future::pending().await };
        let timer = self.0.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        if timer.deadline() > due {
            timer.as_mut().reset(due);
        }
        loop {
            timer.as_mut().await;
            if tokio::time::Instant::now() >= due {
                return;
            }
            timer.as_mut().reset(due);
        }
    }
}
