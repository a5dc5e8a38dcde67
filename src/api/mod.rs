//! The APIs that take a pair of engines.

mod error_form;
pub mod fields;
pub mod legs;
pub(crate) mod message;
pub mod output;
pub mod prefix;
pub mod request;
pub mod siblings;
pub(crate) mod side;
pub mod usage;

/// A route that takes a pair of engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Api {
    /// `/v1/completions`
    Completions,
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/responses`
    Responses,
    /// `/v1/messages`: Anthropic's.
    Messages,
    /// `/inference/v1/generate`: token ids in, limits inside `sampling_params`.
    Generate,
}

impl Api {
    /// All of them.
    pub const ALL: [Api; 5] = [Api::Completions, Api::Chat, Api::Responses, Api::Messages, Api::Generate];

    /// The path at the proxy and at the engines.
    pub fn path(self) -> &'static str {
        match self {
            Api::Completions => "/v1/completions",
            Api::Chat => "/v1/chat/completions",
            Api::Responses => "/v1/responses",
            Api::Messages => "/v1/messages",
            Api::Generate => "/inference/v1/generate",
        }
    }

    /// The route behind a path.
    pub fn from_path(path: &str) -> Option<Api> {
        Api::ALL.into_iter().find(|api| api.path() == path)
    }

    /// The word for logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Api::Completions => "completions",
            Api::Chat => "chat",
            Api::Responses => "responses",
            Api::Messages => "messages",
            Api::Generate => "generate",
        }
    }
}
