//! The words on stdout that launchers look for.

use std::sync::Arc;

use crate::engine::Role;
use crate::lines::Lines;
use crate::settings::Announces;

/// Tells launchers what they wait for, as the program does that the proxy stands in for.
#[derive(Clone, Debug)]
pub struct Announcer {
    how: Announces,
    /// None where nothing is ever said.
    lines: Option<Arc<Lines>>,
}

impl Announcer {
    /// Starts the writing thread where there is something to say. It ends with the last handle.
    ///
    /// # Errors
    /// The thread cannot be made.
    pub fn start(how: Announces) -> std::io::Result<Announcer> {
        if how == Announces::Nothing {
            return Ok(Announcer { how, lines: None });
        }
        // Each loss is told where it happens.
        let lines = Lines::start("announcer", std::io::stdout(), |_| ())?;
        Ok(Announcer { how, lines: Some(Arc::new(lines)) })
    }

    /// Engines can register at this address.
    pub(crate) fn listens(&self, address: std::net::SocketAddr) {
        if self.how == Announces::AsPythonProxies {
            self.say(format!("ZMQ discovery listening on tcp://{address}"));
        }
    }

    /// An engine can be used for the first time, or has left.
    pub(super) fn engine(&self, comes: bool, role: Role, addresses: &str) {
        let role = if role == Role::Prefill { "Prefill" } else { "Decode" };
        match (self.how, comes) {
            (Announces::AsVllmRouter, true) => self.say(format!("🔵Add {role} [{addresses}]")),
            (Announces::AsVllmRouter, false) => self.say(format!("🔴Remove {role} [{addresses}]")),
            (Announces::AsPythonProxies, true) => self.say(format!("Registered {role} instance: {addresses}")),
            // They never let an engine go.
            (Announces::AsPythonProxies, false) | (Announces::Nothing, _) => {}
        }
    }

    fn say(&self, line: String) {
        let Some(lines) = &self.lines else { return };
        if !lines.put(format!("{line}\n").as_bytes()) {
            tracing::warn!(line, "nobody reads what is printed for launchers: a line is dropped");
        }
    }
}
