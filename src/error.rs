//! The one error type of an exchange: what happened, whose fault it is, whether a retry is safe, and the status of the
//! answer that the client gets. No other file chooses a status code.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, StatusCode};

use crate::engine::Role;
use crate::engine::versions::EngineVersion;

/// Names whose fault an answer is; present on every answer that is not a success.
pub(crate) const ERROR_SOURCE: HeaderName = HeaderName::from_static("x-moriio-error-source");

/// Whose fault a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// The request is at fault: sending it again will not help.
    Client,
    /// The proxy or the state of its pool.
    Proxy,
    /// The prefill engine or the way to it.
    Prefill,
    /// The decode engine or the way to it.
    Decode,
}

impl Source {
    /// The word for the header, the log and the metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Source::Client => "client",
            Source::Proxy => "proxy",
            Source::Prefill => "prefill",
            Source::Decode => "decode",
        }
    }
}

impl From<Role> for Source {
    fn from(role: Role) -> Self {
        match role {
            Role::Prefill => Source::Prefill,
            Role::Decode => Source::Decode,
        }
    }
}

/// An engine's own answer that is passed to the client as it is.
#[derive(Clone, Debug)]
pub struct EngineAnswer {
    /// The engine's status.
    pub status: StatusCode,
    /// Its headers, hop-by-hop ones removed.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

/// Why an exchange could not be carried out.
///
/// The reference's table of errors is made from [`ProxyError::catalogue`].
#[derive(Clone, Debug, thiserror::Error)]
pub enum ProxyError {
    /// The request cannot be sent to any engine as it stands.
    #[error("{message}")]
    BadRequest {
        /// What is wrong, for the client.
        message: String,
        /// The field at fault.
        param: Option<String>,
    },
    /// The engines of this pool are too old for what the request needs.
    #[error("{what} needs vLLM {since} or newer on both engines")]
    EngineTooOld {
        /// What the request needs.
        what: &'static str,
        /// The first release that has it.
        since: EngineVersion,
    },
    /// `--api-key` is set and the client did not send it.
    #[error("missing or wrong API key")]
    Unauthorized,
    /// No such route.
    #[error("no such route")]
    NotFound,
    /// Answers of siblings that cannot be made one: not what the API has them be.
    #[error("the answers of several engines cannot be made one")]
    Unlike,
    /// The route exists for other methods.
    #[error("method not allowed on this route")]
    MethodNotAllowed,
    /// The body exceeds `--max-body-bytes`.
    #[error("request body exceeds {limit} bytes")]
    BodyTooLarge {
        /// The limit, in bytes.
        limit: u64,
    },
    /// The body did not arrive within `--body-timeout`.
    #[error("request body did not arrive within {}s", .limit.as_secs_f64())]
    BodyTimeout {
        /// The limit.
        limit: Duration,
    },
    /// The proxy serves as many requests as `--max-in-flight` allows, and as many wait as `--queue-size` does.
    #[error("too many requests in flight")]
    Overloaded {
        /// When another try may have more luck, in seconds.
        retry_after: u64,
    },
    /// The request has waited as long as `--queue-timeout` allows.
    #[error("no place among the requests in flight within {}s (--queue-timeout)", .limit.as_secs_f64())]
    QueueTimeout {
        /// The limit.
        limit: Duration,
        /// When another try may have more luck, in seconds.
        retry_after: u64,
    },
    /// Every place that `--max-connections` allows is taken by a connection with a request.
    #[error("no place for another connection (--max-connections)")]
    NoPlace,
    /// No usable pair of a prefill and a decode engine exists.
    #[error(
        "no usable pair of engines: {usable_prefill} of {prefill} prefill and {usable_decode} of {decode} decode engines can be used, {open_circuits} circuits are open"
    )]
    NoPair {
        /// Registered prefill engines.
        prefill: usize,
        /// Prefill engines that could take work.
        usable_prefill: usize,
        /// Registered decode engines.
        decode: usize,
        /// Decode engines that could take work.
        usable_decode: usize,
        /// Engines whose breaker is open.
        open_circuits: usize,
    },
    /// Engines exist, but some are at their cap (`--prefill-in-flight`, `--decode-in-flight`), turn work away or are bound to another,
    /// and nothing else is free.
    #[error("every engine is busy")]
    PoolBusy {
        /// When another try may have more luck, in seconds.
        retry_after: u64,
    },
    /// All that is in the way is a pair's first exchange, which goes alone and has not answered (protocol P4).
    #[error(
        "the first exchange of these engines goes alone and has not answered within {}s (--queue-timeout): they may be building kernels",
        .limit.as_secs_f64()
    )]
    FirstContact {
        /// How long the request has waited.
        limit: Duration,
    },
    /// Every attempt failed before an engine took the work.
    #[error(
        "no engine took the request: {attempts} attempts, pool of {pool} engines, {open_circuits} open circuits; the last: {last}"
    )]
    Exhausted {
        /// Attempts made.
        attempts: u32,
        /// Engines in the pool.
        pool: usize,
        /// Engines whose breaker is open.
        open_circuits: usize,
        /// Why the last attempt failed.
        last: Box<ProxyError>,
    },
    /// No connection to the engine could be made.
    #[error("{role} engine could not be reached")]
    Connect {
        /// The leg.
        role: Role,
    },
    /// The proxy has no file descriptor or memory left for a connection to an engine.
    #[error("the proxy has no file descriptor left for a connection to the {role} engine")]
    Shortage {
        /// The leg.
        role: Role,
    },
    /// The connection broke before the answer was complete.
    #[error("connection to {role} engine broke")]
    Broken {
        /// The leg.
        role: Role,
    },
    /// An engine's whole answer is larger than the proxy keeps in memory. The limit is ours: it says nothing of the engine.
    #[error("{role} engine's answer exceeds {limit} bytes")]
    AnswerTooLarge {
        /// The leg.
        role: Role,
        /// The limit, in bytes.
        limit: usize,
    },
    /// A limit on time passed.
    #[error("{role} engine: no {what} within {}s ({option})", .limit.as_secs_f64())]
    Timeout {
        /// The leg.
        role: Role,
        /// What was waited for.
        what: &'static str,
        /// The limit.
        limit: Duration,
        /// The option that sets it.
        option: &'static str,
    },
    /// Prefill answered 200 with a body that is no JSON object.
    #[error("prefill engine's answer is not a JSON object")]
    PrefillUnreadable,
    /// READ: prefill answered 200 without transfer params or without block ids.
    #[error("prefill engine returned no KV blocks")]
    PrefillWithoutBlocks,
    /// READ: too much time passed between prefill's answer and decode's acceptance.
    #[error("hand-over from prefill to decode took longer than {}s (--hand-over-limit)", .limit.as_secs_f64())]
    HandOverTooLate {
        /// The limit.
        limit: Duration,
    },
    /// An engine refused the request; its answer passes as it is.
    #[error("{role} engine answered {}", .answer.status)]
    Engine {
        /// The leg.
        role: Role,
        /// What it answered.
        answer: Box<EngineAnswer>,
    },
    /// An engine pointed elsewhere. That is not followed, and its address is not passed on.
    #[error("{role} engine answered with a redirect")]
    Redirected {
        /// The leg.
        role: Role,
    },
    /// The model named in the path is none of the engines'.
    #[error("the model does not exist")]
    ModelNotFound,
    /// The process is stopping.
    #[error("the proxy is stopping")]
    Stopping,
    /// A defect of the proxy.
    #[error("internal error")]
    Internal,
}

/// `(status, type, code)` of an error that the proxy itself words.
type Wording = (StatusCode, &'static str, &'static str);

impl ProxyError {
    /// A 400 that names the field at fault.
    pub fn field(param: &str, message: impl Into<String>) -> Self {
        ProxyError::BadRequest { message: message.into(), param: Some(param.to_owned()) }
    }

    /// Whether an engine has said that it does not do the work.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, ProxyError::Engine { .. } | ProxyError::Redirected { .. })
    }

    /// The seconds after which a client had better ask again, where it had.
    pub(crate) fn retry_after(&self) -> Option<u64> {
        use ProxyError as E;
        match self {
            E::Overloaded { retry_after } | E::QueueTimeout { retry_after, .. } | E::PoolBusy { retry_after } => {
                Some(*retry_after)
            }
            other => (other.status() == StatusCode::SERVICE_UNAVAILABLE).then_some(1),
        }
    }

    /// Whose fault it is.
    pub fn source(&self) -> Source {
        use ProxyError as E;
        match self {
            E::BadRequest { .. } | E::Unauthorized | E::NotFound | E::MethodNotAllowed => Source::Client,
            E::ModelNotFound => Source::Client,
            E::BodyTooLarge { .. } | E::BodyTimeout { .. } => Source::Client,
            E::QueueTimeout { .. } | E::FirstContact { .. } | E::Shortage { .. } => Source::Proxy,
            E::Overloaded { .. } | E::NoPlace | E::NoPair { .. } | E::PoolBusy { .. } | E::Stopping | E::Internal => {
                Source::Proxy
            }
            E::HandOverTooLate { .. } | E::EngineTooOld { .. } | E::AnswerTooLarge { .. } | E::Unlike => Source::Proxy,
            E::Exhausted { last, .. } => last.source(),
            E::Connect { role }
            | E::Broken { role }
            | E::Redirected { role }
            | E::Timeout { role, .. }
            | E::Engine { role, .. } => (*role).into(),
            E::PrefillUnreadable | E::PrefillWithoutBlocks => Source::Prefill,
        }
    }

    /// The HTTP status of the answer.
    pub fn status(&self) -> StatusCode {
        match self {
            ProxyError::Engine { answer, .. } => answer.status,
            ProxyError::Exhausted { last, .. } => last.status(),
            other => other.wording().0,
        }
    }

    /// The word for logs and metrics: the error's `code`, or `engine_answer` for an engine's own.
    pub fn code(&self) -> &'static str {
        self.wording().2
    }

    /// Status, type and code.
    pub(crate) fn wording(&self) -> Wording {
        use ProxyError as E;
        match self {
            E::BadRequest { .. } => (StatusCode::BAD_REQUEST, "invalid_request_error", "invalid_request"),
            E::Unauthorized => (StatusCode::UNAUTHORIZED, "authentication_error", "invalid_api_key"),
            E::NotFound => (StatusCode::NOT_FOUND, "invalid_request_error", "not_found"),
            E::ModelNotFound => (StatusCode::NOT_FOUND, "invalid_request_error", "model_not_found"),
            E::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", "method_not_allowed"),
            E::BodyTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", "body_too_large"),
            E::BodyTimeout { .. } => (StatusCode::REQUEST_TIMEOUT, "invalid_request_error", "body_timeout"),
            E::Overloaded { .. } => (StatusCode::TOO_MANY_REQUESTS, "overloaded_error", "too_many_requests"),
            E::QueueTimeout { .. } => (StatusCode::TOO_MANY_REQUESTS, "overloaded_error", "queue_timeout"),
            E::PoolBusy { .. } => (StatusCode::TOO_MANY_REQUESTS, "overloaded_error", "pool_busy"),
            E::FirstContact { .. } => (StatusCode::SERVICE_UNAVAILABLE, "unavailable_error", "first_contact"),
            E::NoPair { .. } => (StatusCode::SERVICE_UNAVAILABLE, "unavailable_error", "no_pair"),
            E::NoPlace => (StatusCode::SERVICE_UNAVAILABLE, "unavailable_error", "no_place"),
            E::Shortage { .. } => (StatusCode::SERVICE_UNAVAILABLE, "unavailable_error", "proxy_shortage"),
            E::Exhausted { .. } => (StatusCode::SERVICE_UNAVAILABLE, "unavailable_error", "pool_exhausted"),
            E::Connect { .. } => (StatusCode::SERVICE_UNAVAILABLE, "upstream_error", "engine_unreachable"),
            E::Broken { .. } => (StatusCode::BAD_GATEWAY, "upstream_error", "engine_connection_broken"),
            E::Timeout { .. } => (StatusCode::GATEWAY_TIMEOUT, "timeout_error", "engine_timeout"),
            E::AnswerTooLarge { .. } => (StatusCode::BAD_GATEWAY, "upstream_error", "answer_too_large"),
            E::Unlike => (StatusCode::BAD_GATEWAY, "upstream_error", "siblings_unlike"),
            E::EngineTooOld { .. } => (StatusCode::NOT_IMPLEMENTED, "unavailable_error", "engine_too_old"),
            E::Redirected { .. } => (StatusCode::BAD_GATEWAY, "upstream_error", "engine_redirected"),
            E::PrefillUnreadable => (StatusCode::BAD_GATEWAY, "upstream_error", "prefill_unreadable"),
            E::PrefillWithoutBlocks => (StatusCode::BAD_GATEWAY, "upstream_error", "prefill_without_blocks"),
            E::HandOverTooLate { .. } => (StatusCode::GATEWAY_TIMEOUT, "timeout_error", "hand_over_too_late"),
            E::Engine { .. } => (StatusCode::BAD_GATEWAY, "upstream_error", "engine_answer"),
            E::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "unavailable_error", "stopping"),
            E::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "internal_error"),
        }
    }

    /// One example of every error that the proxy words, for the reference's table and its test.
    pub fn catalogue() -> Vec<ProxyError> {
        use ProxyError as E;
        let limit = Duration::from_secs(1);
        vec![
            E::field("n", "n must be 1"),
            E::Unauthorized,
            E::NotFound,
            E::ModelNotFound,
            E::MethodNotAllowed,
            E::BodyTimeout { limit },
            E::BodyTooLarge { limit: 1 },
            E::Overloaded { retry_after: 1 },
            E::QueueTimeout { limit, retry_after: 1 },
            E::PoolBusy { retry_after: 1 },
            E::Internal,
            E::EngineTooOld { what: "the Responses API", since: EngineVersion::new(0, 24, 0) },
            E::AnswerTooLarge { role: Role::Prefill, limit: 1 },
            E::Broken { role: Role::Decode },
            E::Redirected { role: Role::Decode },
            E::Unlike,
            E::PrefillUnreadable,
            E::PrefillWithoutBlocks,
            E::NoPlace,
            E::Shortage { role: Role::Prefill },
            E::FirstContact { limit },
            E::NoPair { prefill: 0, usable_prefill: 0, decode: 0, usable_decode: 0, open_circuits: 0 },
            E::Exhausted { attempts: 3, pool: 2, open_circuits: 0, last: Box::new(E::Connect { role: Role::Prefill }) },
            E::Connect { role: Role::Decode },
            E::Stopping,
            E::Timeout { role: Role::Decode, what: "first output", limit, option: "--first-byte-timeout" },
            E::HandOverTooLate { limit },
        ]
    }
}
