//! What a program that we stand in for does by itself, where no option of ours says it.

/// The ways of a program; the proxy under its own name has none of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conduct {
    /// Engines get its own key, where it has one, whatever a client sends.
    pub engine_key_first: bool,
    /// It prints a line once engines can register, which launchers wait for.
    pub tells_discovery: bool,
    /// Its errors name the side at fault, in the answer and in the log.
    pub names_side: bool,
    /// Its users may expect that a client chooses a rank: here that is ignored, which is noted once.
    pub notes_rank: bool,
    /// It has routes that start and stop the engines' profilers.
    pub profiles: bool,
    /// It prints lines on stdout when engines come and go, which launchers look for.
    pub announces_engines: bool,
    /// It has routes that list its engines.
    pub lists_engines: bool,
}

impl Conduct {
    /// None of these ways.
    pub const NATIVE: Conduct = Conduct {
        engine_key_first: false,
        tells_discovery: false,
        names_side: false,
        notes_rank: false,
        profiles: false,
        announces_engines: false,
        lists_engines: false,
    };
}
