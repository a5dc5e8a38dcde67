//! Why an engine cannot be used: a closed list, told alike by `/ready`, the log and a metric (protocol R11). A reason is made
//! where it is learned and handed on as a value; nobody reads it back out of a text.

use std::fmt;
use std::io;

use crate::engine::Misfit;

/// What a probe found wrong with an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// The host name of its HTTP address does not resolve.
    Unresolved,
    /// Nobody listens at its HTTP address.
    Refused,
    /// Its host or network cannot be reached.
    NoRoute,
    /// No answer in time, or an answer that is no HTTP.
    NoAnswer,
    /// `GET /health` answered with this status, 500 or above.
    Status(u16),
    /// Nobody listens at this KV port.
    KvRefused(u16),
    /// The host name of its KV ports does not resolve.
    KvUnresolved,
    /// One of its hosts beyond the first, by its place in the list, cannot be used.
    Host(usize, Lost),
}

/// What is wrong with one of an engine's hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lost {
    /// Its name does not resolve.
    Unresolved,
    /// Nobody listens at this KV port.
    KvRefused(u16),
    /// This KV port cannot be reached: no route, or no answer in time. A host without HTTP has no other sign of life.
    KvUnreachable(u16),
    /// Nobody listens at this HTTP port.
    Refused(u16),
    /// `GET /health` has no answer in time.
    NoAnswer,
    /// `GET /health` answered with this status, 500 or above.
    Status(u16),
}

impl Failure {
    /// What a connection that could not be made says; none where that proves nothing.
    pub(crate) fn of_connection(kind: io::ErrorKind) -> Option<Failure> {
        match kind {
            io::ErrorKind::ConnectionRefused => Some(Failure::Refused),
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable | io::ErrorKind::NetworkDown => {
                Some(Failure::NoRoute)
            }
            _ => None,
        }
    }

    /// Whether nobody answered at the HTTP address: together with silence it is death.
    pub(crate) fn is_absence(self) -> bool {
        matches!(self, Failure::Unresolved | Failure::Refused | Failure::NoRoute | Failure::NoAnswer)
    }

    /// Whether it says little of an engine that was ready: a busy one answers late, and a name server may have its own
    /// troubles. Its pings and its legs speak for it.
    pub(crate) fn is_doubtful(self) -> bool {
        matches!(
            self,
            Failure::Unresolved
                | Failure::NoAnswer
                | Failure::KvUnresolved
                | Failure::Host(_, Lost::Unresolved | Lost::NoAnswer)
        )
    }

    /// The word for the metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            Failure::Unresolved => "name_unresolved",
            Failure::Refused => "connection_refused",
            Failure::NoRoute => "no_route",
            Failure::NoAnswer => "no_answer",
            Failure::Status(_) => "health_status",
            Failure::KvRefused(_) => "kv_port_refused",
            Failure::KvUnresolved => "kv_name_unresolved",
            Failure::Host(..) => "host_lost",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Unresolved => f.write_str("its host name does not resolve"),
            Failure::Refused => f.write_str("connection refused"),
            Failure::NoRoute => f.write_str("no route to its host"),
            Failure::NoAnswer => f.write_str("no answer to GET /health"),
            Failure::Status(status) => write!(f, "GET /health answered {status}"),
            Failure::KvRefused(port) => write!(f, "KV port {port} refuses connections"),
            Failure::KvUnresolved => f.write_str("the host name of its KV ports does not resolve"),
            Failure::Host(host, lost) => write!(f, "host {host} of its list, counted from 0: {lost}"),
        }
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lost::Unresolved => f.write_str("its name does not resolve"),
            Lost::KvRefused(port) => write!(f, "KV port {port} refuses connections"),
            Lost::KvUnreachable(port) => write!(f, "KV port {port} cannot be reached"),
            Lost::Refused(port) => write!(f, "HTTP port {port} refuses connections"),
            Lost::NoAnswer => f.write_str("no answer to GET /health"),
            Lost::Status(status) => write!(f, "GET /health answered {status}"),
        }
    }
}

/// Why no work is sent to an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Its first probe has not come back.
    FirstProbe,
    /// Its last probe failed.
    Failed(Failure),
    /// It has another mode than the pool.
    OtherMode,
    /// What was listed of its hosts does not fit it.
    Misfit(Misfit),
    /// Its ranks or its peers' live on several hosts, of which one of them is too old to be told (protocol H3).
    HostsUntold,
    /// Its breaker is open.
    CircuitOpen,
    /// Every pair it could be part of is stale (protocol P3).
    StalePairs,
    /// A decode engine that no prefill engine is bound to, though each has to be bound to one (protocol P5).
    Unbound,
}

impl Reason {
    /// The word for the metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::FirstProbe => "first_probe",
            Reason::Failed(failure) => failure.as_str(),
            Reason::OtherMode => "other_mode",
            Reason::Misfit(_) => "misfit",
            Reason::HostsUntold => "hosts_untold",
            Reason::CircuitOpen => "circuit_open",
            Reason::StalePairs => "stale_pairs",
            Reason::Unbound => "unbound",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::FirstProbe => f.write_str("first probe pending"),
            Reason::Failed(failure) => failure.fmt(f),
            Reason::OtherMode => f.write_str("another mode than the pool's"),
            Reason::Misfit(misfit) => misfit.fmt(f),
            Reason::HostsUntold => f.write_str("it and its peers cannot tell each other of several hosts"),
            Reason::CircuitOpen => f.write_str("circuit open"),
            Reason::StalePairs => f.write_str("every pair is stale"),
            Reason::Unbound => f.write_str("every prefill engine is bound to another decode engine"),
        }
    }
}
