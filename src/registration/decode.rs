//! A registration's bytes to a [`Registration`], whichever of the two wordings an engine uses, or what is wrong with them.
//!
//! Nothing here trusts the sender: size, depth, count and range are limited, and a [`Rejection`] repeats little of its text.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use crate::engine::hosts::Hosts;
use crate::engine::{Dialect, HttpAddress, KvEndpoint, Mode, Registration, Role, plausible_host, port_number};

mod fields;
pub(crate) mod rejection;

use fields::{Fields, Scalar};
use rejection::{Echo, NO_PORT, Rejection, invalid};

/// The longest address text that may go into request ids.
const MAX_KV_TEXT: usize = 512;
/// What a message said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// An engine's account of itself, and the keys in it that nobody knows.
    Register(Registration, Vec<String>),
    /// A greeting without content, which proxies ignore (protocol R2).
    Hello,
}

/// Decodes one message of an engine on one host.
pub fn decode(payload: &[u8]) -> Result<Message, Rejection> {
    decode_of(payload, |_| None)
}

/// Decodes one message of an engine whose hosts `listed` knows, if it is on several.
pub(super) fn decode_of(
    payload: &[u8],
    listed: impl Fn(&Registration) -> Option<Arc<Hosts>>,
) -> Result<Message, Rejection> {
    let fields = Fields::read(payload)?;
    let (mut message, used): (_, &[&str]) = match fields.text("type")? {
        "HELLO" => return Ok(Message::Hello),
        "register" => (dialect_a(&fields)?, &KEYS_A),
        "P" => (dialect_b(&fields, Role::Prefill)?, &KEYS_B),
        "D" => (dialect_b(&fields, Role::Decode)?, &KEYS_B),
        other => return Err(Rejection::UnknownType(Echo::new(other))),
    };
    message.hosts = listed(&message);
    ranges_fit(&message)?;
    let unknown = fields.0.iter().filter(|(key, _)| !used.contains(&key.as_str()));
    Ok(Message::Register(message, unknown.map(|(key, _)| Echo::new(key).0).collect()))
}

const KEYS_A: [&str; 9] = [
    "type",
    "role",
    "index",
    "request_address",
    "handshake_port",
    "notify_port",
    "dp_size",
    "tp_size",
    "transfer_mode",
];
const KEYS_B: [&str; 6] = ["type", "http_address", "zmq_address", "dp_size", "tp_size", "transfer_mode"];

/// The wording of 0.14.0 to 0.19.1 (protocol R2).
fn dialect_a(fields: &Fields) -> Result<Registration, Rejection> {
    let role = match fields.text("role")? {
        "P" => Role::Prefill,
        "D" => Role::Decode,
        other => return Err(invalid("role", "not P or D", other)),
    };
    let http = request_address(fields.text("request_address")?)?;
    let handshake = fields.port("handshake_port")?;
    let notify = fields.port("notify_port")?;
    let kv = KvEndpoint {
        // There is no other host: the connector listens where HTTP is served.
        host: http.host.clone(),
        handshake,
        notify,
        text: format!("host:{},handshake:{handshake},notify:{notify}", http.host),
    };
    // Only a hint at restarts, so a strange one is no reason to refuse the engine.
    let index = match fields.get("index") {
        Some(Scalar::Text(text)) => text.parse().ok(),
        Some(Scalar::Number(number)) => Some(*number),
        _ => None,
    };
    register(fields, role, http, kv, Dialect::A, index)
}

/// The wording since 0.20.0 (protocol R3).
fn dialect_b(fields: &Fields, role: Role) -> Result<Registration, Rejection> {
    let field = "http_address";
    let text = fields.text(field)?;
    let http =
        text.parse::<HttpAddress>().map_err(|_| invalid(field, "not a host and a port between 1 and 65535", text))?;
    host_named(field, &http.host)?;
    let kv = zmq_address(fields.text("zmq_address")?)?;
    register(fields, role, http, kv, Dialect::B, None)
}

/// What both wordings share.
fn register(
    fields: &Fields,
    role: Role,
    http: HttpAddress,
    kv: KvEndpoint,
    dialect: Dialect,
    index: Option<u64>,
) -> Result<Registration, Rejection> {
    Ok(Registration {
        hosts: None,
        role,
        http,
        kv,
        dp_size: fields.size("dp_size")?,
        tp_size: fields.size("tp_size")?,
        mode: mode(fields.text("transfer_mode")?)?,
        dialect,
        index,
    })
}

fn mode(text: &str) -> Result<Mode, Rejection> {
    let known = [Mode::Read, Mode::Write];
    let mode = known.into_iter().find(|mode| text.trim().eq_ignore_ascii_case(mode.as_str()));
    mode.ok_or_else(|| invalid("transfer_mode", "not READ or WRITE", text))
}

/// `http://host:port/…`; the path is ignored, since it is always that of completions.
fn request_address(text: &str) -> Result<HttpAddress, Rejection> {
    let field = "request_address";
    let trimmed = text.trim();
    if trimmed.get(..8).is_some_and(|start| start.eq_ignore_ascii_case("https://")) {
        return Err(invalid(field, "but engines must serve plain http: TLS to engines is not supported", text));
    }
    let rest = match trimmed.get(..7) {
        Some(start) if start.eq_ignore_ascii_case("http://") => &trimmed[7..],
        _ => trimmed,
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    let address = authority
        .parse::<HttpAddress>()
        .map_err(|_| invalid(field, "not http://host:port with a port between 1 and 65535", text))?;
    host_named(field, &address.host)?;
    Ok(address)
}

/// `host:…,handshake:…,notify:…`, each part split at its first colon and trimmed.
fn zmq_address(text: &str) -> Result<KvEndpoint, Rejection> {
    let field = "zmq_address";
    // Engines trim what they read out of a request id, so outer white space means nothing to them.
    let text = text.trim();
    let odd = |byte: u8| !(b' '..=b'~').contains(&byte) || matches!(byte, b'"' | b'\\');
    if text.len() > MAX_KV_TEXT || text.bytes().any(odd) || text.contains("___") {
        // It becomes part of a header and of the pattern that engines search in a request id.
        return Err(invalid(field, "not at most 512 plain ASCII letters fit for a request id", text));
    }
    let (mut host, mut handshake, mut notify) = (None, None, None);
    for part in text.split(',') {
        let (key, value) = part.split_once(':').ok_or_else(|| invalid(field, "not a list of key:value", text))?;
        let slot = match key.trim() {
            "host" => &mut host,
            "handshake" => &mut handshake,
            "notify" => &mut notify,
            _ => continue,
        };
        if slot.replace(value.trim()).is_some() {
            return Err(invalid(field, "and names a key twice", text));
        }
    }
    let host = host.ok_or(Rejection::Missing("zmq_address.host"))?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host_named("zmq_address.host", host)?;
    let port = |field, value: Option<&str>| {
        let value = value.ok_or(Rejection::Missing(field))?;
        port_number(value).ok_or_else(|| invalid(field, NO_PORT, value))
    };
    Ok(KvEndpoint {
        host: host.to_owned(),
        handshake: port("zmq_address.handshake", handshake)?,
        notify: port("zmq_address.notify", notify)?,
        text: text.to_owned(),
    })
}

/// A host that a peer can dial. Loopback is for the caller to judge, who knows where the message came from.
fn host_named(field: &'static str, host: &str) -> Result<(), Rejection> {
    plausible_host(host).ok_or_else(|| invalid(field, "not a host name or address", host))?;
    let unset = ["none", "null"].iter().any(|word| host.eq_ignore_ascii_case(word));
    let address = host.parse::<IpAddr>();
    let unspecified = address.is_ok_and(|ip| ip.to_canonical().is_unspecified() || ip.is_multicast());
    // Three underscores in a name would split the request id in another place.
    if host.contains("___") {
        return Err(invalid(field, "not fit for a request id", host));
    }
    if unset || unspecified {
        return Err(invalid(field, "which names no machine", host));
    }
    // `0`, `127.1` or `0x7f000001` are addresses to a resolver, but not to an allow-list.
    let last = host.trim_end_matches('.').rsplit('.').next().unwrap_or(host);
    let numeric = !host.contains(':')
        && (last.bytes().all(|b| b.is_ascii_digit()) || last.starts_with("0x") || last.starts_with("0X"));
    if numeric && host.parse::<Ipv4Addr>().is_err() {
        return Err(invalid(field, "not an address in its usual form", host));
    }
    Ok(())
}

/// Engines listen and dial at base + dp·tp_size + tp (protocol A3), where each host begins anew (protocol H6), so the last of those
/// must still be a port.
fn ranges_fit(registration: &Registration) -> Result<(), Rejection> {
    let last_offset = registration.local_ranks() * registration.tp_size - 1;
    let (handshake, notify) = match registration.dialect {
        Dialect::A => ("handshake_port", "notify_port"),
        Dialect::B => ("zmq_address.handshake", "zmq_address.notify"),
    };
    for (field, base) in [(handshake, registration.kv.handshake), (notify, registration.kv.notify)] {
        if u32::from(base) + last_offset > u32::from(u16::MAX) {
            let want = "too high: with dp_size times tp_size listeners the last port exceeds 65535";
            return Err(invalid(field, want, &base.to_string()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
