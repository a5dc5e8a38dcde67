//! The background tasks: one set, and none of them may end before the stop.

use std::fmt::Display;
use std::io;

use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::worker;

/// Every background task by its name. A part on a thread of its own is here as the task that waits for its end.
#[derive(Debug, Default)]
pub(super) struct Background {
    tasks: JoinSet<String>,
    names: Vec<(&'static str, AbortHandle)>,
    threads: Vec<DropGuard>,
}

impl Background {
    /// Starts a task; what it returns is the reason that is logged.
    pub(super) fn start<T: Display>(&mut self, name: &'static str, task: impl Future<Output = T> + Send + 'static) {
        self.names.push((name, self.tasks.spawn(async move { task.await.to_string() })));
    }

    /// The same on a thread of its own, whatever the task spawns included: work on many engines must not keep streams waiting.
    ///
    /// # Errors
    /// The thread or its runtime cannot be made.
    pub(super) fn start_apart<T: Display>(
        &mut self,
        name: &'static str,
        task: impl Future<Output = T> + Send + 'static,
    ) -> io::Result<()> {
        let stop = CancellationToken::new();
        let (runtime, _) = worker::start(name, 0, stop.clone())?;
        self.threads.push(stop.drop_guard());
        self.names.push((name, self.tasks.spawn_on(async move { task.await.to_string() }, &runtime)));
        Ok(())
    }

    /// Resolves when one has ended, by itself or by a panic: its name and the reason.
    pub(super) async fn ended(&mut self) -> (&'static str, String) {
        let (id, reason) = match self.tasks.join_next_with_id().await {
            Some(Ok(ended)) => ended,
            Some(Err(error)) => (error.id(), error.to_string()),
            None => return std::future::pending().await,
        };
        (self.names.iter().find(|(_, task)| task.id() == id).map_or("unknown", |(name, _)| name), reason)
    }

    /// Ends all: the stop has come.
    pub(super) async fn end(mut self) {
        self.tasks.shutdown().await;
    }
}

#[cfg(test)]
impl Background {
    /// Ends a task as a defect of it would; what comes back does so.
    pub(super) fn ender(&self, name: &str) -> AbortHandle {
        let (_, task) = self.names.iter().find(|(other, _)| *other == name).expect("a task of this name");
        task.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::Background;

    #[tokio::test]
    async fn whoever_ends_is_named_with_the_reason() {
        let mut background = Background::default();
        background.start("one", pending::<&str>());
        background.start("returning", ready("it returned"));
        assert_eq!(background.ended().await, ("returning", "it returned".into()));
        background.start::<&str>("panicking", async { panic!("a defect") });
        let (name, reason) = background.ended().await;
        assert!(name == "panicking" && reason.contains("panicked") && reason.contains("a defect"), "{name}: {reason}");
        background.ender("one").abort();
        assert_eq!(background.ended().await.0, "one");
        assert!(futures::poll!(Box::pin(background.ended())).is_pending(), "nothing is left to end");
    }
}
