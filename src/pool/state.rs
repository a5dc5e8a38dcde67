//! Where an engine stands.

use crate::engine::Misfit;
use crate::pool::reason::Failure;

/// Where an engine stands between its first ping and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Registered; its first probe has not answered yet.
    Probing,
    /// Alive and usable.
    Ready,
    /// Registered, but its HTTP server or a KV port does not answer as it should.
    Unhealthy(Failure),
    /// Registered with another mode than the pool's: kept, unused.
    OtherMode,
    /// Registered something else than was listed of its hosts, or of a version that cannot span them: kept, unused.
    Misfit(Misfit),
}

impl State {
    /// The words of all states, for gauges that must fall back to zero.
    pub const WORDS: [&str; 5] = ["probing", "ready", "unhealthy", "other_mode", "misfit"];

    /// The word for metrics and status pages.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Probing => "probing",
            State::Ready => "ready",
            State::Unhealthy(_) => "unhealthy",
            State::OtherMode => "other_mode",
            State::Misfit(_) => "misfit",
        }
    }
}
