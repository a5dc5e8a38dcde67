//! Which headers pass between a client and an engine.

use std::io::Write;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::engine::HttpAddress;

/// The request id that both legs share.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The session that a request belongs to (protocol I6).
const SESSION_ID: HeaderName = HeaderName::from_static("x-session-id");
/// The data-parallel rank that prefill is asked to use.
pub(crate) const RANK: HeaderName = HeaderName::from_static("x-data-parallel-rank");

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Headers of a client that never reach an engine: they belong to one connection, describe a body that is rewritten, or would
/// choose hosts, ranks or ids (protocol I2, T4, E4).
const STRIPPED: [&str; 22] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "host",
    "content-length",
    "content-type",
    "expect",
    "accept-encoding",
    "x-request-id",
    "x-data-parallel-rank",
    "x-prefiller-host-port",
    "x-encoder-hosts-ports",
    "x-data-parallel-host-port",
    "x-kv-cache-source-host-port",
    "authorization",
    "x-api-key",
];

/// Headers of an engine's answer that belong to its connection with the proxy, and two that tell addresses: an engine may echo
/// its request id, in which both engines' addresses stand, and name its own address.
const OWN: [&str; 10] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-request-id",
    "location",
];

/// Whether a header of an answer never reaches a client.
pub(super) fn is_own(name: &str) -> bool {
    OWN.iter().any(|own| own.eq_ignore_ascii_case(name))
}

/// The client's headers as both legs may have them, but for what they get in place of its own.
fn passing(client: &HeaderMap) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
    let named: Vec<&str> = client
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(str::trim))
        .collect();
    client.iter().filter(move |(name, _)| {
        !STRIPPED.contains(&name.as_str()) && !named.iter().any(|n| n.eq_ignore_ascii_case(name.as_str()))
    })
}

/// The client's headers as an engine may have them, with `credential` as the only one.
pub(crate) fn forwarded(client: &HeaderMap, credential: Option<HeaderValue>) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(client.len() + 3);
    for (name, value) in passing(client) {
        headers.append(name, value.clone());
    }
    headers.insert(header::CONTENT_TYPE, JSON);
    if let Some(credential) = credential {
        headers.insert(header::AUTHORIZATION, credential);
    }
    headers
}

/// The same as they are written, to be shared by the legs of all attempts, with the name of the client's `session`.
pub(crate) fn encoded(client: &HeaderMap, credential: Option<&HeaderValue>, session: Option<&[u8]>) -> Bytes {
    let mut text = Vec::with_capacity(512);
    for (name, value) in passing(client).filter(|(name, _)| session.is_none() || *name != SESSION_ID) {
        line(&mut text, name.as_str(), value.as_bytes());
    }
    if let Some(session) = session {
        line(&mut text, SESSION_ID.as_str(), session);
    }
    line(&mut text, header::CONTENT_TYPE.as_str(), JSON.as_bytes());
    if let Some(credential) = credential {
        line(&mut text, header::AUTHORIZATION.as_str(), credential.as_bytes());
    }
    text.into()
}

/// An engine's headers as the client may have them.
pub(crate) fn relayed(mut headers: HeaderMap) -> HeaderMap {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').filter_map(|name| name.trim().parse().ok()))
        .collect();
    for name in OWN {
        headers.remove(name);
    }
    for name in named {
        headers.remove(name);
    }
    headers
}

/// The head of a leg's request, up to the headers that all legs share; those end it.
pub(super) fn head(to: &HttpAddress, path: &str, id: &str, rank: Option<u32>, length: u64) -> Bytes {
    let mut text = Vec::with_capacity(192 + path.len() + to.host.len() + id.len());
    for part in [b"POST ", path.as_bytes(), b" HTTP/1.1\r\nhost: "] {
        text.extend_from_slice(part);
    }
    // Writing into memory does not fail.
    let _ = write!(text, "{to}\r\n");
    line(&mut text, header::CONTENT_LENGTH.as_str(), itoa::Buffer::new().format(length).as_bytes());
    line(&mut text, REQUEST_ID.as_str(), id.as_bytes());
    if let Some(rank) = rank {
        line(&mut text, RANK.as_str(), itoa::Buffer::new().format(rank).as_bytes());
    }
    text.into()
}

fn line(text: &mut Vec<u8>, name: &str, value: &[u8]) {
    for part in [name.as_bytes(), b": ", value, b"\r\n"] {
        text.extend_from_slice(part);
    }
}
