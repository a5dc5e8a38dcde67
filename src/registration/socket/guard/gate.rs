//! The pure half of the guard: reads what a ZMTP peer sends and decides, byte by byte, what may pass to the ROUTER.
//!
//! The gate completes the ZMTP handshake itself, so a peer that never finishes it costs the ROUTER nothing. What it
//! hands to the ROUTER is a handshake of its own making, with an identity that names the peer's address, followed by
//! the peer's message frames as they came. Commands end here: a ROUTER drops a peer for any command it does not know.

#[cfg(test)]
mod tests;

use crate::registration::socket::guard::identity::Identity;
use crate::registration::socket::guard::reject::Reject;

/// Most bytes of one message, summed over its frames.
pub(crate) const MAX_MESSAGE_BYTES: u64 = 64 * 1024;
/// Most frames of one message.
pub(crate) const MAX_FRAMES: usize = 8;
/// Most bytes of one command.
pub(crate) const MAX_COMMAND_BYTES: u64 = 4 * 1024;

/// The greeting we send: version 3.0, which is what the ROUTER speaks, mechanism NULL.
pub const GREETING: [u8; GREETING_BYTES] = {
    let mut greeting = [0; GREETING_BYTES];
    greeting[0] = 0xff;
    greeting[9] = 0x7f;
    greeting[10] = 3;
    let name = *b"NULL";
    let mut at = 0;
    while at < name.len() {
        greeting[12 + at] = name[at];
        at += 1;
    }
    greeting
};
/// The READY command we send in the ROUTER's name.
pub(crate) const ROUTER_READY: &[u8] = b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06ROUTER";

const GREETING_BYTES: usize = 64;
/// From here on a greeting is known to be ZMTP, and a peer may be waiting for ours before it goes on.
const SIGNATURE_BYTES: usize = 10;
const MECHANISM: std::ops::Range<usize> = 12..32;
const AS_SERVER: usize = 32;
const LONGEST_HEADER: usize = 9;
/// ZMTP 3.1: the part of a PING that its PONG repeats.
const MAX_PING_CONTEXT: usize = 16;

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;
const RESERVED: u8 = !(MORE | LONG | COMMAND);

/// What the gate has decided to send on, appended to by [`Gate::feed`].
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// Bytes for the ROUTER.
    pub forward: Vec<u8>,
    /// Bytes for the peer.
    pub reply: Vec<u8>,
}

/// The state of one peer's stream. Holds at most one command (4 KiB), never a message body.
#[derive(Debug)]
pub struct Gate {
    state: State,
    held: Vec<u8>,
    identity: Identity,
    ready: bool,
    frames: usize,
    bytes: u64,
    completed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Greeting,
    Header,
    Body { left: u64, last: bool },
    Command { length: usize },
}

impl Gate {
    /// A gate that will introduce its peer to the ROUTER as `identity`.
    pub fn new(identity: Identity) -> Self {
        Self { state: State::Greeting, held: Vec::new(), identity, ready: false, frames: 0, bytes: 0, completed: 0 }
    }

    /// Takes the next bytes of the peer. What was accepted before a rejection is in `output` all the same, so the
    /// result does not depend on how the network cut the stream. After a rejection the gate must not be fed again.
    pub fn feed(&mut self, input: &[u8], output: &mut Output) -> Result<(), Reject> {
        let mut rest = input;
        while !rest.is_empty() {
            rest = match self.state {
                State::Greeting => self.greeting(rest, output)?,
                State::Header => self.header(rest, output)?,
                State::Body { left, last } => self.body(rest, left, last, output),
                State::Command { length } => self.command(rest, length, output)?,
            };
        }
        Ok(())
    }

    /// Whether the peer's handshake is complete; from then on `forward` carries bytes for the ROUTER.
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// Whether nothing is half received: the peer may now be silent for as long as it likes.
    pub fn is_resting(&self) -> bool {
        self.ready && self.state == State::Header && self.held.is_empty() && self.frames == 0
    }

    /// Messages and commands received whole; tells a peer that makes progress from one that drips.
    pub fn completed(&self) -> u64 {
        self.completed
    }

    fn hold<'a>(&mut self, input: &'a [u8], until: usize) -> &'a [u8] {
        let missing = until.saturating_sub(self.held.len());
        let (taken, rest) = input.split_at(missing.min(input.len()));
        self.held.extend_from_slice(taken);
        rest
    }

    fn greeting<'a>(&mut self, input: &'a [u8], output: &mut Output) -> Result<&'a [u8], Reject> {
        if self.held.len() < SIGNATURE_BYTES {
            let rest = self.hold(input, SIGNATURE_BYTES);
            if self.held.first() != Some(&0xff) {
                return Err(Reject::Greeting);
            }
            if self.held.len() == SIGNATURE_BYTES {
                if self.held[SIGNATURE_BYTES - 1] != 0x7f {
                    return Err(Reject::Greeting);
                }
                output.reply.extend_from_slice(&GREETING);
            }
            return Ok(rest);
        }
        let rest = self.hold(input, GREETING_BYTES);
        if self.held[SIGNATURE_BYTES] < 3 {
            return Err(Reject::Greeting);
        }
        if self.held.len() == GREETING_BYTES {
            if self.held[MECHANISM] != GREETING[MECHANISM] || self.held[AS_SERVER] != 0 {
                return Err(Reject::Greeting);
            }
            output.reply.extend_from_slice(ROUTER_READY);
            self.held = Vec::new();
            self.state = State::Header;
        }
        Ok(rest)
    }

    fn header<'a>(&mut self, input: &'a [u8], output: &mut Output) -> Result<&'a [u8], Reject> {
        let flags = match self.held.first() {
            Some(&flags) => flags,
            None => input[0],
        };
        // ZMTP gives a command no continuation, so MORE on one is as wrong as a reserved bit.
        if flags & RESERVED != 0 || flags & (COMMAND | MORE) == COMMAND | MORE {
            return Err(Reject::Flags);
        }
        if !self.ready && flags & COMMAND == 0 {
            return Err(Reject::Handshake);
        }
        let size = if flags & LONG == 0 { 2 } else { LONGEST_HEADER };
        let rest = self.hold(input, size);
        if self.held.len() < size {
            return Ok(rest);
        }
        let length = self.held[1..].iter().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte));
        self.state = if flags & COMMAND != 0 {
            if length > MAX_COMMAND_BYTES {
                return Err(Reject::TooBig);
            }
            if length == 0 {
                return Err(Reject::Command);
            }
            State::Command { length: usize::try_from(length).map_err(|_| Reject::TooBig)? }
        } else {
            self.admit_frame(length)?;
            output.forward.extend_from_slice(&self.held);
            State::Body { left: length, last: flags & MORE == 0 }
        };
        self.held.clear();
        if let State::Body { left: 0, last } = self.state {
            self.end_frame(last);
        }
        Ok(rest)
    }

    fn admit_frame(&mut self, length: u64) -> Result<(), Reject> {
        self.frames += 1;
        self.bytes = self.bytes.saturating_add(length);
        if self.frames > MAX_FRAMES {
            return Err(Reject::Frames);
        }
        if self.bytes > MAX_MESSAGE_BYTES {
            return Err(Reject::TooBig);
        }
        Ok(())
    }

    fn end_frame(&mut self, last: bool) {
        self.state = State::Header;
        if last {
            self.frames = 0;
            self.bytes = 0;
            self.completed += 1;
        }
    }

    fn body<'a>(&mut self, input: &'a [u8], left: u64, last: bool, output: &mut Output) -> &'a [u8] {
        let taken = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
        let (passed, rest) = input.split_at(taken);
        output.forward.extend_from_slice(passed);
        let left = left.saturating_sub(passed.len() as u64);
        self.state = State::Body { left, last };
        if left == 0 {
            self.end_frame(last);
        }
        rest
    }

    fn command<'a>(&mut self, input: &'a [u8], length: usize, output: &mut Output) -> Result<&'a [u8], Reject> {
        let rest = self.hold(input, length);
        if self.held.len() == length {
            let command = std::mem::take(&mut self.held);
            if self.ready {
                answer_command(&command, output)?
            } else {
                self.introduce(&command, output)?
            }
            self.state = State::Header;
            self.completed += 1;
        }
        Ok(rest)
    }

    /// Reads the peer's READY and writes ours to the ROUTER. The peer's own identity is left out: two peers with one
    /// identity evict each other inside the ROUTER, and we need to know which connection a message came by.
    fn introduce(&mut self, command: &[u8], output: &mut Output) -> Result<(), Reject> {
        let properties = command.strip_prefix(b"\x05READY").ok_or(Reject::Handshake)?;
        let socket_type = socket_type(properties)?;
        // Those a ROUTER talks to. Others would be refused by the ROUTER, only later and without a word.
        if !matches!(socket_type, b"DEALER" | b"REQ" | b"ROUTER") {
            return Err(Reject::SocketType);
        }
        let mut body = b"\x05READY".to_vec();
        push_property(&mut body, b"Socket-Type", socket_type);
        push_property(&mut body, b"Identity", self.identity.as_ref());
        output.forward.extend_from_slice(&GREETING);
        push_command(&mut output.forward, &body);
        self.ready = true;
        Ok(())
    }
}

/// Heartbeats are answered here; the ROUTER would drop the peer for them.
fn answer_command(command: &[u8], output: &mut Output) -> Result<(), Reject> {
    if command.starts_with(b"\x04PONG") {
        return Ok(());
    }
    // A two-byte time to live comes first; then the context that the answer repeats.
    let context = command.strip_prefix(b"\x04PING").and_then(|ping| ping.get(2..)).ok_or(Reject::Command)?;
    if context.len() > MAX_PING_CONTEXT {
        return Err(Reject::Command);
    }
    let mut body = b"\x04PONG".to_vec();
    body.extend_from_slice(context);
    push_command(&mut output.reply, &body);
    Ok(())
}

fn socket_type(mut properties: &[u8]) -> Result<&[u8], Reject> {
    let mut found = None;
    while let Some((&name_length, rest)) = properties.split_first() {
        let (name, rest) = rest.split_at_checked(usize::from(name_length)).ok_or(Reject::Handshake)?;
        let (value_length, rest) = rest.split_first_chunk::<4>().ok_or(Reject::Handshake)?;
        let value_length = usize::try_from(u32::from_be_bytes(*value_length)).map_err(|_| Reject::Handshake)?;
        let (value, rest) = rest.split_at_checked(value_length).ok_or(Reject::Handshake)?;
        if name.eq_ignore_ascii_case(b"Socket-Type") {
            found = Some(value);
        }
        properties = rest;
    }
    found.ok_or(Reject::Handshake)
}

/// Callers pass names and values far below the field sizes of the wire.
fn push_property(body: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    body.push(name.len() as u8);
    body.extend_from_slice(name);
    body.extend_from_slice(&(value.len() as u32).to_be_bytes());
    body.extend_from_slice(value);
}

/// The commands we write are all below 256 bytes, so the short form does.
fn push_command(wire: &mut Vec<u8>, body: &[u8]) {
    debug_assert!(body.len() < 256);
    wire.extend_from_slice(&[COMMAND, body.len() as u8]);
    wire.extend_from_slice(body);
}
