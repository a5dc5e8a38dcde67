//! The APIs that generate, by path, and what differs between them.

/// Which API was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Surface {
    Completions,
    Chat,
    Responses,
    Messages,
    Generate,
}

impl Surface {
    pub(crate) fn of(path: &str) -> Option<Self> {
        Some(match path {
            "/v1/completions" => Self::Completions,
            "/v1/chat/completions" => Self::Chat,
            "/v1/responses" => Self::Responses,
            "/v1/messages" => Self::Messages,
            "/inference/v1/generate" => Self::Generate,
            _ => return None,
        })
    }

    pub(crate) fn prompt_key(self) -> &'static str {
        match self {
            Self::Completions => "prompt",
            Self::Chat | Self::Messages => "messages",
            Self::Responses => "input",
            Self::Generate => "token_ids",
        }
    }

    /// Whether the API takes transfer params at all.
    pub(crate) fn has_params(self, minor: u32) -> bool {
        minor >= 24 || !matches!(self, Self::Responses | Self::Messages)
    }

    /// Whether the API reads `min_tokens`; the others drop it unseen.
    pub(crate) fn has_min_tokens(self) -> bool {
        !matches!(self, Self::Responses | Self::Messages)
    }

    /// The fields that limit the output, the strongest first.
    pub(crate) fn limit_keys(self) -> &'static [&'static str] {
        match self {
            Self::Chat => &["max_completion_tokens", "max_tokens"],
            Self::Responses => &["max_output_tokens"],
            Self::Completions | Self::Messages | Self::Generate => &["max_tokens"],
        }
    }
}
