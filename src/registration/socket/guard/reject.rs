//! Why a peer is turned away.

/// Why the guard ended a connection, or could not take one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Reject {
    /// Not a ZMTP 3 greeting with mechanism NULL.
    #[error("not a zmtp 3 greeting with mechanism NULL")]
    Greeting,
    /// The first frame was no well-formed READY command.
    #[error("malformed handshake")]
    Handshake,
    /// A socket type that no ROUTER talks to.
    #[error("socket type cannot talk to a router")]
    SocketType,
    /// The handshake or a message that had begun was not completed in time.
    #[error("too slow")]
    Timeout,
    /// A message or command larger than the limit.
    #[error("message too big")]
    TooBig,
    /// A message of too many frames.
    #[error("too many frames")]
    Frames,
    /// Reserved flag bits, or a command that claims to be continued.
    #[error("invalid frame flags")]
    Flags,
    /// A command other than a heartbeat after the handshake.
    #[error("unexpected command")]
    Command,
    /// Too many connections from one address.
    #[error("too many connections from one address")]
    Source,
    /// The ROUTER could not be reached or did not answer.
    #[error("router does not answer")]
    Unanswered,
    /// A connection could not be accepted, most likely for want of descriptors.
    #[error("accept failed")]
    Accept,
}

impl Reject {
    /// Every reason, for registering metrics.
    pub const ALL: [Self; 11] = [
        Self::Greeting,
        Self::Handshake,
        Self::SocketType,
        Self::Timeout,
        Self::TooBig,
        Self::Frames,
        Self::Flags,
        Self::Command,
        Self::Source,
        Self::Unanswered,
        Self::Accept,
    ];

    /// The value of the `reason` label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Greeting => "greeting",
            Self::Handshake => "handshake",
            Self::SocketType => "socket_type",
            Self::Timeout => "timeout",
            Self::TooBig => "too_big",
            Self::Frames => "frames",
            Self::Flags => "flags",
            Self::Command => "command",
            Self::Source => "source",
            Self::Unanswered => "unanswered",
            Self::Accept => "accept",
        }
    }
}
