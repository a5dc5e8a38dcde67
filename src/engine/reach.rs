//! Which engines and pairs can be used where ranks live on several hosts.

use crate::engine::versions::Traits;
use crate::engine::{Misfit, Mode, Registration};

/// What is wrong with an engine whose ranks live on several hosts: the list of them, or its release (protocol H1, H3).
pub(crate) fn misfit(engine: &Registration, traits: &Traits) -> Option<Misfit> {
    let is_old = engine.spans() && !(traits.over_hosts || engine.repeats());
    let why = if traits.since.is_some() { Misfit::Version } else { Misfit::UnknownVersion };
    engine.misfit().or(is_old.then_some(why))
}

/// Whether the releases of a pair can tell each other of hosts (protocol H3): in WRITE both must, in READ nobody has to know of
/// decode's.
pub(crate) fn hosts_agree(prefill: (&Registration, &Traits), decode: (&Registration, &Traits), mode: Mode) -> bool {
    let concerned = prefill.0.spans() || (mode == Mode::Write && decode.0.spans());
    // Where another program's options say that hosts are there, they are for images whose release says nothing (protocol H7).
    let is_said = prefill.0.repeats() || decode.0.repeats();
    !concerned || is_said || (prefill.1.over_hosts && decode.1.over_hosts)
}
