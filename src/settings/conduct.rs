//! What a program that we stand in for does by itself, where no option of ours says it.

/// The ways of a program; the proxy under its own name has none of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conduct {
    /// Engines get its own key, where it has one, whatever a client sends.
    pub engine_key_first: bool,
    /// Its errors name the side at fault, in the answer and in the log.
    pub names_side: bool,
    /// Its users may expect that a client chooses a rank: here that is ignored, which is noted once.
    pub notes_rank: bool,
    /// It has routes that start and stop the engines' profilers.
    pub profiles: bool,
    /// What it prints on stdout of engines.
    pub announces: Announces,
    /// It has routes that list its engines.
    pub lists_engines: bool,
    /// It serves without its port for metrics where that is taken.
    pub may_lack_metrics_port: bool,
}

/// The words on stdout for launchers, which look for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Announces {
    /// None.
    #[default]
    Nothing,
    /// vllm-router's, when engines come and go.
    AsVllmRouter,
    /// The Python proxies', when engines can register and when they have.
    AsPythonProxies,
}

impl Conduct {
    /// None of these ways.
    pub const NATIVE: Conduct = Conduct {
        engine_key_first: false,
        names_side: false,
        notes_rank: false,
        profiles: false,
        announces: Announces::Nothing,
        lists_engines: false,
        may_lack_metrics_port: false,
    };
}
