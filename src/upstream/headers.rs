//! Which headers pass between a client and an engine.

use http::{HeaderMap, HeaderName, HeaderValue, header};

/// The request id that both legs share.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The data-parallel rank that prefill is asked to use.
pub(crate) const RANK: HeaderName = HeaderName::from_static("x-data-parallel-rank");

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

/// Headers of an engine's answer that belong to its connection with the proxy.
const HOP_BY_HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// The client's headers as both legs may have them, with `credential` as the only one.
pub(crate) fn forwarded(client: &HeaderMap, credential: Option<HeaderValue>) -> HeaderMap {
    let named: Vec<&str> = client
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(str::trim))
        .collect();
    let mut headers = HeaderMap::with_capacity(client.len() + 3);
    for (name, value) in client {
        let dropped = STRIPPED.contains(&name.as_str()) || named.iter().any(|n| n.eq_ignore_ascii_case(name.as_str()));
        if !dropped {
            headers.append(name, value.clone());
        }
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(credential) = credential {
        headers.insert(header::AUTHORIZATION, credential);
    }
    headers
}

/// An engine's headers as the client may have them.
pub(crate) fn relayed(mut headers: HeaderMap) -> HeaderMap {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').filter_map(|name| name.trim().parse().ok()))
        .collect();
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    // An engine may echo its request id, in which both engines' addresses stand, and name its own address.
    headers.remove(REQUEST_ID);
    headers.remove(header::LOCATION);
    for name in named {
        headers.remove(name);
    }
    headers
}
