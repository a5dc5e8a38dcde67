//! Which engines and pairs can be used where ranks live on several hosts.

use crate::engine::versions::Traits;
use crate::engine::{Misfit, Mode, Registration};

/// What is wrong with an engine whose ranks live on several hosts: the list of them, or its release (protocol H1, H3).
pub(crate) fn misfit(engine: &Registration, traits: &Traits) -> Option<Misfit> {
    let is_old = engine.spans() && !(traits.over_hosts || is_fork(engine));
    engine.misfit().or(is_old.then_some(Misfit::Version))
}

/// Whether the releases of a pair can tell each other of hosts (protocol H3): in WRITE both must, in READ nobody has to know of
/// decode's.
pub(crate) fn hosts_agree(prefill: (&Registration, &Traits), decode: (&Registration, &Traits), mode: Mode) -> bool {
    let concerned = prefill.0.spans() || (mode == Mode::Write && decode.0.spans());
    let is_fork = is_fork(prefill.0) || is_fork(decode.0);
    !concerned || is_fork || (prefill.1.over_hosts && decode.1.over_hosts)
}

/// Whether its hosts are as another program's options have them: these are for images whose release says nothing (protocol H7).
fn is_fork(engine: &Registration) -> bool {
    engine.hosts.as_ref().is_some_and(|hosts| hosts.is_repeated())
}
