//! How a leg failed, and what follows: what the client is told, what it says of the engine, whether a repeat is safe.

use std::io;
use std::time::Duration;

use http::StatusCode;
use rustix::io::Errno;

use super::answer::Unread;
use crate::engine::Role;
use crate::error::{EngineAnswer, ProxyError};
use crate::metrics::LegStatus;

/// What kind of failure it was: everything else follows from this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nobody listens at the engine's address.
    ConnectionRefused,
    /// No connection could be made for another reason.
    NoConnection,
    /// The proxy had no descriptor or memory left to make one with.
    Shortage,
    /// A reused connection broke at once: in all likelihood it had died of its idle time, unread (protocol L2).
    Stale,
    /// The connection broke.
    Broken,
    /// A limit on time passed.
    Timeout,
    /// The limit of a cold start passed, of which nobody knows how long it takes.
    ColdTimeout,
    /// The answer is larger than the proxy reads (protocol L7).
    TooLarge,
    /// 503: the engine turns work away (protocol L4).
    Unavailable,
    /// Another 5xx, which may come after the work (protocol L5).
    Error,
    /// 400, which may come after the work, too (protocol L6).
    BadRequest,
    /// Any other status that is no success.
    Refused,
    /// A redirect: something else stands at the engine's address (protocol L4).
    Redirected,
}

/// Whether a request may be repeated with another pair and new ids (protocol L9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// An engine may have taken the work.
    Never,
    /// Once in an exchange, since a request that ends engines looks the same (protocol L2).
    Once,
    /// No engine has taken it.
    Safe,
}

/// What a leg's end says about its engine (protocol L11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It works.
    Healthy,
    /// Transport error, time limit, or a 5xx other than 503.
    Ailing,
    /// Nobody listens at its address.
    Refusing,
    /// Nothing can be concluded.
    None,
}

impl Kind {
    /// The kind of an answer that is no success, by its status.
    pub fn of(status: StatusCode) -> Kind {
        match status {
            StatusCode::SERVICE_UNAVAILABLE => Kind::Unavailable,
            StatusCode::BAD_REQUEST => Kind::BadRequest,
            status if status.is_server_error() => Kind::Error,
            status if status.is_redirection() => Kind::Redirected,
            _ => Kind::Refused,
        }
    }

    /// Whether this leg's work may be done by another engine; the transfer may know better.
    pub fn repeat(self) -> Repeat {
        match self {
            Kind::ConnectionRefused | Kind::NoConnection | Kind::Shortage | Kind::Unavailable => Repeat::Safe,
            Kind::Stale => Repeat::Once,
            Kind::Broken | Kind::Timeout | Kind::ColdTimeout | Kind::TooLarge | Kind::Error => Repeat::Never,
            Kind::BadRequest | Kind::Refused | Kind::Redirected => Repeat::Never,
        }
    }

    /// What it says of the engine.
    pub fn verdict(self) -> Verdict {
        match self {
            Kind::ConnectionRefused => Verdict::Refusing,
            Kind::NoConnection | Kind::Stale | Kind::Broken | Kind::Timeout => Verdict::Ailing,
            Kind::Error | Kind::Redirected => Verdict::Ailing,
            Kind::Unavailable | Kind::TooLarge | Kind::ColdTimeout | Kind::Shortage => Verdict::None,
            Kind::BadRequest | Kind::Refused => Verdict::Healthy,
        }
    }

    /// How the leg is counted.
    pub fn status(self) -> LegStatus {
        match self {
            Kind::ConnectionRefused | Kind::NoConnection | Kind::Shortage => LegStatus::Connect,
            Kind::Stale | Kind::Broken => LegStatus::Broken,
            Kind::Timeout | Kind::ColdTimeout => LegStatus::Timeout,
            Kind::TooLarge => LegStatus::Cancelled,
            Kind::Unavailable | Kind::Error | Kind::Redirected => LegStatus::Failed,
            Kind::BadRequest | Kind::Refused => LegStatus::Refused,
        }
    }
}

/// A limit on a wait for an engine.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// How long.
    pub time: Duration,
    /// What is waited for.
    pub what: &'static str,
    /// The option that sets it.
    pub option: &'static str,
    /// Whether it is that of a cold start: then its end says nothing of the engines.
    pub is_cold: bool,
}

impl Limit {
    /// A limit on engines that know each other.
    pub fn new(time: Duration, what: &'static str, option: &'static str) -> Self {
        Limit { time, what, option, is_cold: false }
    }

    /// The same on a pair that has not answered yet: no shorter than `cold` (`--cold-timeout`); unchanged if that is zero.
    #[must_use]
    pub fn cold(self, cold: Duration) -> Self {
        let option = if cold > self.time { "--cold-timeout" } else { self.option };
        if cold.is_zero() { self } else { Limit { time: self.time.max(cold), option, is_cold: true, ..self } }
    }
}

/// Why a leg gave no usable answer.
#[derive(Clone, Debug)]
pub struct LegFailure {
    /// What kind of failure it is.
    pub kind: Kind,
    /// What the client is told.
    pub error: ProxyError,
}

impl LegFailure {
    /// A limit on time passed.
    pub fn timeout(role: Role, limit: Limit) -> Self {
        let Limit { time, what, option, is_cold } = limit;
        let kind = if is_cold { Kind::ColdTimeout } else { Kind::Timeout };
        LegFailure { kind, error: ProxyError::Timeout { role, what, limit: time, option } }
    }

    /// No connection could be made.
    pub(super) fn unconnected(role: Role, error: &io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::ConnectionRefused => Kind::ConnectionRefused,
            _ if is_shortage(error) => Kind::Shortage,
            _ => Kind::NoConnection,
        };
        let is_ours = kind == Kind::Shortage;
        LegFailure { kind, error: if is_ours { ProxyError::Shortage { role } } else { ProxyError::Connect { role } } }
    }

    /// The connection broke.
    pub fn broken(role: Role) -> Self {
        LegFailure { kind: Kind::Broken, error: ProxyError::Broken { role } }
    }

    /// An answer could not be read as a whole.
    pub fn unread(role: Role, why: Unread) -> Self {
        let kind = match why {
            Unread::Broken => Kind::Broken,
            Unread::TooLarge => Kind::TooLarge,
        };
        LegFailure { kind, error: why.error(role) }
    }

    /// The engine answered with something else than a success, or told an error in its place.
    pub fn refused(role: Role, answer: EngineAnswer) -> Self {
        LegFailure { kind: Kind::of(answer.status), error: ProxyError::Engine { role, answer: Box::new(answer) } }
    }

    /// Something else stands at the engine's address: it took no work, and will take none.
    pub fn redirected(role: Role) -> Self {
        LegFailure { kind: Kind::Redirected, error: ProxyError::Redirected { role } }
    }
}

/// Whether a connection failed for want of something that the proxy itself has too little of.
pub(super) fn is_shortage(error: &io::Error) -> bool {
    let codes = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cold_start_is_no_verdict_whichever_limit_is_longer() {
        let own = Limit::new(Duration::from_secs(10), "answer", "--answer-timeout");
        for (cold, time, option, verdict) in [
            (0, 10, "--answer-timeout", Verdict::Ailing),
            (5, 10, "--answer-timeout", Verdict::None),
            (10, 10, "--answer-timeout", Verdict::None),
            (20, 20, "--cold-timeout", Verdict::None),
        ] {
            let limit = own.cold(Duration::from_secs(cold));
            assert_eq!((limit.time.as_secs(), limit.option), (time, option), "{cold}");
            assert_eq!(LegFailure::timeout(Role::Decode, limit).kind.verdict(), verdict, "{cold}");
        }
    }
}
