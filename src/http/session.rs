//! To whom a request belongs: its session, or what `consistent_hash` goes by where it names none.

use std::borrow::Cow;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;

use crate::json::Body;
use crate::routing::Demand;
use crate::settings::{KeyPlace, SessionKeys};

/// The longest name of a session that is passed on, in bytes, and the longest text of a body that is taken for one.
const PASSED_MOST: usize = 256;
const TEXT_MOST: usize = 4096;

/// Where a request came from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(IpAddr);

impl Peer {
    /// Notes it, before anything of the request is changed.
    pub(super) fn mark<B>(request: &mut http::Request<B>, peer: SocketAddr) {
        request.extensions_mut().insert(Peer(peer.ip().to_canonical()));
    }
}

/// What a request is picked for, and its session's name as engines get it (protocol I6).
pub(super) fn demand(
    keys: &SessionKeys,
    head: &http::request::Parts,
    body: &Body,
) -> (Demand<'static>, Option<Vec<u8>>) {
    let name = first(&keys.sessions, &head.headers, body);
    let session = name.as_deref().map(hash);
    let key = session.unwrap_or_else(|| match first(&keys.others, &head.headers, body) {
        Some(other) => hash(&other),
        None => head.extensions.get::<Peer>().map_or(0, |Peer(address)| hash(address)),
    });
    let passes = |name: &Cow<'_, [u8]>| {
        (1..=PASSED_MOST).contains(&name.len()) && name.iter().all(|byte| (b' '..=b'~').contains(byte))
    };
    let stamp = name.filter(passes).map(Cow::into_owned);
    (Demand { session, key, bytes: body.text().len() as u64, ..Demand::default() }, stamp)
}

/// How much it presses, as engines read it: lower goes first (protocol F13).
pub(super) fn priority(headers: &HeaderMap, body: &Body) -> i64 {
    let header = headers.get("x-vllm-priority").and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let field = || std::str::from_utf8(body.get_some("priority")?).ok()?.parse().ok();
    header.or_else(field).unwrap_or(0)
}

/// Not random: another proxy beside this one has the same.
fn hash<T: Hash + ?Sized>(name: &T) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}

/// The first text in these places that is not empty.
fn first<'a>(places: &[KeyPlace], headers: &'a HeaderMap, body: &'a Body) -> Option<Cow<'a, [u8]>> {
    places.iter().find_map(|place| match place {
        KeyPlace::Header(wanted) => {
            let named = headers.iter().filter(|(name, _)| is_same(name.as_str(), wanted));
            let mut values = named.map(|(_, value)| value.as_bytes().trim_ascii());
            values.find(|value| !value.is_empty()).map(Cow::Borrowed)
        }
        KeyPlace::Body(name) => {
            let text = body.get_some(name).filter(|text| text.len() <= TEXT_MOST && text.starts_with(b"\""))?;
            let name: String = serde_json::from_slice(text).ok()?;
            let name = name.trim();
            (!name.is_empty()).then(|| Cow::Owned(name.as_bytes().to_vec()))
        }
    })
}

/// Names are in lower case; what lies between rewrites `-` and `_` into each other.
fn is_same(name: &str, wanted: &str) -> bool {
    let alike = |(one, other): (u8, u8)| one == other || (one == b'_' && other == b'-');
    name.len() == wanted.len() && name.bytes().zip(wanted.bytes()).all(alike)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn places(names: &[&str]) -> Vec<KeyPlace> {
        let place = |name: &&str| match name.strip_prefix("body.") {
            Some(name) => KeyPlace::Body(name.into()),
            None => KeyPlace::Header((*name).into()),
        };
        names.iter().map(place).collect()
    }

    /// The demand of a request with these headers and this body, and what engines get.
    fn of(headers: &[(&str, &str)], body: &'static str) -> (Demand<'static>, Option<String>) {
        let keys = SessionKeys {
            sessions: places(&["x-session-id", "x-correlation-id", "body.session_id"]),
            others: places(&["x-user-id", "authorization"]),
        };
        let mut request = http::Request::new(());
        for (name, value) in headers {
            request.headers_mut().append(http::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        Peer::mark(&mut request, "10.0.0.7:4000".parse().unwrap());
        let body = Body::parse(Bytes::from_static(body.as_bytes())).unwrap();
        let (demand, stamp) = demand(&keys, &request.into_parts().0, &body);
        (demand, stamp.map(|stamp| String::from_utf8(stamp).unwrap()))
    }

    #[test]
    fn the_first_that_is_present_counts() {
        let named = |name: &str| (Some(hash(name.as_bytes())), Some(name.to_owned()));
        let session = |headers: &[(&str, &str)], body| {
            let (demand, stamp) = of(headers, body);
            assert_eq!(demand.session.unwrap_or(demand.key), demand.key);
            (demand.session, stamp)
        };
        assert_eq!(session(&[("X-Session-Id", "a"), ("X-Correlation-ID", "b")], "{}"), named("a"));
        // Without case, `_` for `-`; empty is absent.
        assert_eq!(session(&[("x_session_id", "a"), ("X-Correlation-ID", "b")], "{}"), named("a"));
        assert_eq!(
            session(&[("x-session-id", ""), ("x-session-id", "  "), ("x_correlation-id", "b")], "{}"),
            named("b")
        );
        assert_eq!(session(&[("x-user-id", "u")], r#"{"session_id": "\u0061b"}"#), named("ab"));
        for none in [r#"{"session_id": ""}"#, r#"{"session_id": 7}"#, r#"{"session_id": null}"#, "{}"] {
            assert_eq!(session(&[("x-user-id", "u")], none), (None, None));
        }
        // One that no header can carry is a session all the same.
        let (demand, stamp) = of(&[], r#"{"session_id": "a\nb"}"#);
        assert!(demand.session.is_some() && stamp.is_none());
    }

    #[test]
    fn who_has_no_session_is_known_by_its_user_or_its_address() {
        let key = |headers: &[(&str, &str)]| of(headers, "{}").0.key;
        assert_eq!(key(&[("x-user-id", "u"), ("authorization", "Bearer k")]), hash(b"u".as_slice()));
        assert_eq!(key(&[("authorization", "Bearer k")]), hash(b"Bearer k".as_slice()));
        assert_eq!(key(&[]), hash(&IpAddr::from([10, 0, 0, 7])));
    }
}
