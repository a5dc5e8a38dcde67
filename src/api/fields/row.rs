//! What a row of the table can say, and what it finds in a request.

use crate::api::Api;
use crate::engine::versions::EngineVersion;
use crate::engine::{Mode, Role};
use crate::error::ProxyError;
use crate::json::Body;

/// The object that holds a generate request's limits.
pub const SAMPLING: &str = "sampling_params";

/// Where a field stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At the top level of the body.
    Top,
    /// Inside [`SAMPLING`].
    Sampling,
}

/// What a leg gets in place of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gets {
    /// The client's bytes.
    Sent,
    /// This JSON text, whether or not the client sent the field.
    Always(&'static str),
    /// This JSON text where the client sent the field and no `null`.
    Instead(&'static str),
    /// The client's number less the token budget; absent stays absent.
    Less,
    /// Nothing.
    Nothing,
    /// The attempt's request id, in the API's own form.
    Id,
    /// The attempt's transfer params.
    Params,
    /// `{"type":"any"}` where the client forces one tool: the same prompt, and an answer that one token can give.
    AnyTool,
    /// What is a sibling's own, where a request asks for several answers.
    Sibling,
    /// The field never comes so far: such a request is refused, or prefill alone answers it.
    Never,
}

/// What a client's value may not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refuse {
    /// Anything may pass.
    Nothing,
    /// What is no boolean.
    NoBoolean,
    /// `true`, and what is no boolean.
    True(&'static str),
    /// Whatever is not `null`.
    Any(&'static str),
    /// Whatever is not 1.
    NotOne,
    /// What is no whole number, or is below this one.
    Below(u64),
    /// As [`Refuse::Below`] 1, but 0 is a limit beside `echo`, and then asks for prompt-side output.
    LimitBesideEcho,
    /// More answers than `--max-siblings`; judged by `api/siblings.rs`, which knows how many that are.
    TooMany,
    /// Several prompts, or any beside `prompt`.
    BesidePrompt,
    /// Tools that run inside the server.
    ServerTools,
    /// Prompt-side output, unless prefill alone can give all of the answer: whatever is not `null`.
    PromptSide,
    /// The same: `true` where this other field, if one is named, is sent too.
    PromptSideEcho(Option<&'static str>),
    /// A cut of the prompt by the leg's own limit: below zero. Until 0.32.0, and there without a limit.
    CutBelowZero,
    /// The same as a word: whatever is neither `null` nor this one.
    CutUnless(&'static str),
    /// A forced tool, before this release.
    ForcedTool(EngineVersion),
}

/// One row: what becomes of a field.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// The APIs that it is a field of.
    pub apis: &'static [Api],
    /// Where it stands.
    pub place: Place,
    /// Its key.
    pub name: &'static str,
    /// What prefill's leg gets.
    pub prefill: Gets,
    /// What decode's leg gets.
    pub decode: Gets,
    /// What is refused before any engine is asked.
    pub refuse: Refuse,
    /// Why, with the rule of `docs/protocol.md` that says so.
    pub why: &'static str,
}

/// A request that asks for output of the prompt's side. Decode must not compute it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptSide {
    /// The field that asks for it.
    pub param: String,
}

impl PromptSide {
    /// The answer where prefill alone cannot serve it.
    pub fn refusal(&self) -> ProxyError {
        let param = &self.param;
        let message = format!("{param} is not supported: decode cannot compute output of the prompt's side");
        ProxyError::field(param, message)
    }
}

/// What a request has asked for that only some releases can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// The field that asks for it.
    pub param: String,
    /// The first release that can; it begins a row of the table of releases.
    pub since: EngineVersion,
    /// The same for a request without a token limit.
    pub unlimited: EngineVersion,
}

/// What the table says of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// It asks for output of the prompt's side.
    pub side: Option<PromptSide>,
    /// It needs engines of these releases.
    pub needs: Vec<Need>,
}

impl Field {
    /// The field's name for a client.
    pub fn param(&self) -> String {
        match self.place {
            Place::Top => self.name.to_owned(),
            Place::Sampling => format!("{SAMPLING}.{}", self.name),
        }
    }

    /// What a leg gets.
    pub fn gets(&self, role: Role) -> Gets {
        match role {
            Role::Prefill => self.prefill,
            Role::Decode => self.decode,
        }
    }

    /// The object that the field stands in.
    pub fn home<'a>(&self, body: &'a Body, sampling: Option<&'a Body>) -> Option<&'a Body> {
        match self.place {
            Place::Top => Some(body),
            Place::Sampling => sampling,
        }
    }
}

/// What a whole API needs of both engines.
#[derive(Clone, Copy, Debug)]
pub struct ApiNeed {
    /// The API.
    pub api: Api,
    /// Only where prefill has several data-parallel ranks and the pair works in this mode.
    pub ranks: Option<Mode>,
    /// The first release that can; it begins a row of the table of releases.
    pub since: EngineVersion,
    /// What is needed, for the client.
    pub what: &'static str,
}

impl Gets {
    pub(super) fn words(self) -> String {
        match self {
            Gets::Sent => "as sent".into(),
            Gets::Always(text) => format!("`{text}`"),
            Gets::Instead(text) => format!("`{text}` where sent"),
            Gets::Less => "less the budget".into(),
            Gets::Nothing => "removed".into(),
            Gets::Id => "our request id".into(),
            Gets::Params => "ours".into(),
            Gets::AnyTool => "`any` for one tool".into(),
            Gets::Sibling => "the sibling's own".into(),
            Gets::Never => "never".into(),
        }
    }
}

impl Refuse {
    pub(super) fn words(self) -> String {
        match self {
            Refuse::Nothing => String::new(),
            Refuse::NoBoolean => "no boolean".into(),
            Refuse::True(_) => "`true`".into(),
            Refuse::Any(_) => "any".into(),
            Refuse::NotOne => "all but 1".into(),
            Refuse::Below(least) => format!("below {least}"),
            Refuse::LimitBesideEcho => "below 1; 0 beside `echo`: prefill alone".into(),
            Refuse::TooMany => "more answers than `--max-siblings`".into(),
            Refuse::BesidePrompt => "several, or beside `prompt`".into(),
            Refuse::ServerTools => "tools that run in the server".into(),
            Refuse::PromptSide => "any; with one token: prefill alone".into(),
            Refuse::PromptSideEcho(None) => "`true`; with one token: prefill alone".into(),
            Refuse::PromptSideEcho(Some(other)) => format!("`true` with `{other}`; with one token: prefill alone"),
            Refuse::CutBelowZero => "below 0 before 0.33.0; on 0.32.0 only without a limit".into(),
            Refuse::CutUnless(word) => format!("all but `{word}`, as above"),
            Refuse::ForcedTool(since) => format!("a forced tool before {since}"),
        }
    }
}
