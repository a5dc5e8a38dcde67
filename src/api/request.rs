//! A client's request as far as the proxy must understand it: what the table of fields refuses before any engine is asked,
//! whether it streams, its token limits, and what it needs of engines.

use bytes::Bytes;

use crate::api::Api;
use crate::api::fields;
use crate::api::fields::hidden::stripped;
use crate::api::fields::row::{Gets, Need, PromptSide, SAMPLING};
use crate::api::fields::values::{flag, whole_number};
use crate::api::siblings::{self, Shape, Sibling};
use crate::engine::Mode;
use crate::engine::versions::Traits;
use crate::error::ProxyError;
use crate::json::{Body, BodyError};
use crate::settings::TokenBudget;

/// The client's token limits; `null` is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// `max_tokens` (completions, chat; generate: inside `sampling_params`).
    pub max_tokens: Option<u64>,
    /// `max_completion_tokens` (chat).
    pub max_completion_tokens: Option<u64>,
    /// `max_output_tokens` (responses).
    pub max_output_tokens: Option<u64>,
    /// `min_tokens`, beside `max_tokens`.
    pub min_tokens: Option<u64>,
}

impl Limits {
    /// The client's limits, as the table names them.
    fn read(api: Api, body: &Body, sampling: Option<&Body>) -> Limits {
        let mut limits = Limits::default();
        for field in fields::of(api).filter(|field| field.decode == Gets::Less) {
            let text = field.home(body, sampling).and_then(|home| home.get_some(field.name));
            let number = text.and_then(whole_number);
            match field.name {
                "max_tokens" => limits.max_tokens = number,
                "max_completion_tokens" => limits.max_completion_tokens = number,
                "max_output_tokens" => limits.max_output_tokens = number,
                _ => limits.min_tokens = number,
            }
        }
        limits
    }

    /// The limit of that name.
    pub fn get(&self, name: &str) -> Option<u64> {
        match name {
            "max_tokens" => self.max_tokens,
            "max_completion_tokens" => self.max_completion_tokens,
            "max_output_tokens" => self.max_output_tokens,
            _ => self.min_tokens,
        }
    }

    /// The limit that engines go by: they read `max_tokens` only where no newer name is used.
    pub fn effective(&self) -> Option<u64> {
        self.max_output_tokens.or(self.max_completion_tokens).or(self.max_tokens)
    }

    /// What decode is told. Only numbers change: what is absent stays absent.
    pub(crate) fn for_decode(&self, budget: TokenBudget) -> Limits {
        if budget == TokenBudget::Exact {
            return *self;
        }
        let less = |limit: Option<u64>| limit.map(|limit| limit.saturating_sub(1).max(1));
        let mut limits = Limits {
            max_tokens: less(self.max_tokens),
            max_completion_tokens: less(self.max_completion_tokens),
            max_output_tokens: less(self.max_output_tokens),
            min_tokens: self.min_tokens,
        };
        // Engines refuse a minimum above the maximum, so it follows.
        if let (Some(min), Some(max)) = (self.min_tokens, limits.effective()) {
            limits.min_tokens = Some(min.min(max));
        }
        limits
    }
}

/// A request that may be sent to a pair.
#[derive(Clone, Debug)]
pub struct Request {
    /// The route.
    pub api: Api,
    /// The client's body, without transfer params wherever they stood.
    pub body: Body,
    /// Generate: its `sampling_params`, where the client sent an object.
    pub sampling: Option<Body>,
    /// Whether the client asked for a stream.
    pub stream: bool,
    /// The client's limits.
    pub limits: Limits,
    /// What decode is told of them.
    pub budget: TokenBudget,
    /// Set where prefill's own answer is all that is asked for and decode must not be asked: output of the prompt's side with
    /// one token or none.
    pub alone: Option<PromptSide>,
    /// What only some releases can do.
    pub needs: Vec<Need>,
    /// Which of several answers it is, where the client asked for several.
    pub sibling: Option<Sibling>,
}

/// What a client's body asks for.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The request, as it is where it asks for one answer.
    pub request: Request,
    /// The answers that it asks for, if they are several.
    pub several: Option<(Shape, Vec<Sibling>)>,
}

impl Asked {
    /// Reads a client's body, or says which field is at fault. At most so many `siblings`.
    pub fn parse(api: Api, text: Bytes, budget: TokenBudget, siblings: u32) -> Result<Asked, ProxyError> {
        let request = Request::read(api, text, budget)?;
        let several = siblings::of(api, &request.body, siblings)?;
        Ok(Asked { request, several })
    }
}

impl Request {
    /// Reads a client's body that asks for one answer, or says which field is at fault.
    pub fn parse(api: Api, text: Bytes, budget: TokenBudget) -> Result<Request, ProxyError> {
        Asked::parse(api, text, budget, 1).map(|asked| asked.request)
    }

    /// The request for one of several answers.
    pub fn of_sibling(&self, sibling: Sibling) -> Request {
        Request { sibling: Some(sibling), ..self.clone() }
    }

    fn read(api: Api, text: Bytes, budget: TokenBudget) -> Result<Request, ProxyError> {
        let body =
            Body::parse(text).map_err(|error| ProxyError::BadRequest { message: error.to_string(), param: None })?;
        let body = stripped(body)?;
        let sampling = match api {
            Api::Generate => nested(&body, SAMPLING)?,
            _ => None,
        };
        let findings = fields::check(api, &body, sampling.as_ref())?;
        let stream = flag(&body, "stream", "stream")?;
        let limits = Limits::read(api, &body, sampling.as_ref());
        let request =
            Request { api, body, sampling, stream, limits, budget, alone: None, needs: findings.needs, sibling: None };
        match findings.side {
            Some(side) if request.limit().is_some_and(|limit| limit <= 1) => {
                Ok(Request { alone: Some(side), ..request })
            }
            Some(side) => Err(side.refusal()),
            None => Ok(request),
        }
    }

    /// The client's limits as decode shall see them.
    pub(crate) fn decode_limits(&self) -> Limits {
        let mut limits = self.limits.for_decode(self.budget);
        // Engines refuse a limit that thinking alone may use up, so that it must not become one here.
        let thinking = if self.api == Api::Messages { self.body.nested("thinking") } else { None };
        let budget = thinking.and_then(Result::ok).and_then(|thinking| whole_number(thinking.get("budget_tokens")?));
        if budget.is_some() && budget == limits.max_tokens {
            limits.max_tokens = self.limits.max_tokens;
        }
        limits
    }

    /// Completions: the prompt, its own where the request is for one of several.
    pub(crate) fn prompt(&self) -> Option<&[u8]> {
        let own = self.sibling.as_ref().and_then(|sibling| sibling.prompt());
        own.or_else(|| self.body.get_some("prompt"))
    }

    /// The limit that engines of this API go by. Completions know one name only.
    fn limit(&self) -> Option<u64> {
        match self.api {
            Api::Completions => self.limits.max_tokens,
            _ => self.limits.effective(),
        }
    }

    /// Whether a pair of engines can serve this request.
    ///
    /// # Errors
    /// A 400 that names the field and the release that it needs, or what the engines are too old for.
    pub fn fits(&self, prefill: &Traits, decode: &Traits, mode: Mode, prefill_ranks: u32) -> Result<(), ProxyError> {
        if let Some(side) = &self.alone {
            return match prefill.alone {
                true => Ok(()),
                false => Err(side.refusal()),
            };
        }
        fields::fits(self.api, prefill, decode, mode, prefill_ranks)?;
        // Completions have a limit even where the client names none.
        let limited = self.api == Api::Completions || self.limit().is_some();
        for need in &self.needs {
            let since = if limited { need.since } else { need.unlimited };
            if !(prefill.is_since(since) && decode.is_since(since)) {
                let param = &need.param;
                let message = format!("this value of {param} needs vLLM {since} or newer on both engines");
                return Err(ProxyError::field(param, message));
            }
        }
        Ok(())
    }
}

/// An object; absent and `null` are none.
fn nested(body: &Body, key: &str) -> Result<Option<Body>, ProxyError> {
    if body.get_some(key).is_none() {
        return Ok(None);
    }
    body.nested(key).transpose().map_err(|error| {
        let message = match error {
            BodyError::NotAnObject => format!("{key} must be an object"),
            other => format!("{key}: {other}"),
        };
        ProxyError::field(key, message)
    })
}

#[cfg(test)]
mod tests;
