//! The words on stdout that launchers look for. Written by a thread of its own: whoever started the proxy may have stopped reading
//! them, and nothing may wait for that.

use std::io::Write;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};

use crate::engine::Role;
use crate::settings::Announces;

/// Lines that wait to be written; more are dropped.
const QUEUE: usize = 1024;

/// Tells launchers what they wait for, as the program does that the proxy stands in for.
#[derive(Clone, Debug)]
pub struct Announcer {
    how: Announces,
    /// None where nothing is ever said.
    lines: Option<SyncSender<String>>,
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
        let (lines, told) = sync_channel::<String>(QUEUE);
        std::thread::Builder::new().name("announcer".into()).spawn(move || {
            for line in told {
                // An output that is closed is no reason to fail.
                let _ = writeln!(std::io::stdout(), "{line}");
            }
        })?;
        Ok(Announcer { how, lines: Some(lines) })
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
        if let Err(TrySendError::Full(line)) = lines.try_send(line) {
            tracing::warn!(line, "nobody reads what is printed for launchers: a line is dropped");
        }
    }
}
