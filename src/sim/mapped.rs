//! Which transfers an engine's tables know, and what a message about one does to the engine when it comes too early or too
//! late. Read from the connectors of 0.23.0 to 0.32.0 and seen on 0.32.0: the scheduler asserts what a proxy must not break.

use std::sync::Arc;

use super::books::lock;
use super::core::Core;
use super::state::Stage;

/// A request's line in the table, until its end.
pub(crate) struct Mapped {
    core: Arc<Core>,
    transfer: String,
}

impl Mapped {
    /// Enters a request. An engine of 0.26 or 0.27 has kept a release that came before, and dies of it now.
    pub(crate) fn enter(core: &Arc<Core>, transfer: &str, stage: Stage) -> Self {
        let early = {
            let mut state = lock(&core.state);
            state.mapped.insert(transfer.to_string(), stage);
            state.early_releases.contains_key(transfer)
        };
        if early && (26..=27).contains(&core.minor) {
            perish(core, "release of a prefill that has just begun");
        }
        Self { core: core.clone(), transfer: transfer.to_string() }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let mut state = lock(&self.core.state);
        if let Some(Stage::Computing) = state.mapped.remove(&self.transfer) {
            state.mapped.insert(std::mem::take(&mut self.transfer), Stage::Aborted);
        }
    }
}

/// The engine process ends, told by a thread that cannot wait for it.
pub(crate) fn perish(core: &Arc<Core>, reason: &'static str) {
    let dying = core.clone();
    core.spawn(async move { match dying.die(reason).await {} });
}
