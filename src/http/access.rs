//! Who may call, and as whom engines are called: a credential has one audience (protocol E4).

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};

use crate::error::ProxyError;
use crate::settings::{Keys, Preferred};
use crate::upstream;

/// Where Anthropic's clients put their key. Engines do not read it.
const X_API_KEY: &str = "x-api-key";

/// Whether the client has presented the key, in either of its places, if one is asked for.
pub(super) fn check(keys: &Keys, client: &HeaderMap) -> Result<(), ProxyError> {
    let Some(key) = &keys.api_key else { return Ok(()) };
    let bearers = client.get_all(header::AUTHORIZATION).iter().filter_map(|value| bearer(value.as_bytes()));
    let plain = client.get_all(X_API_KEY).iter().map(HeaderValue::as_bytes);
    // Every one is compared, so that the time does not tell which of several was right.
    let matching = bearers.chain(plain).filter(|sent| key.matches(sent)).count();
    if matching > 0 { Ok(()) } else { Err(ProxyError::Unauthorized) }
}

/// The client's headers as engines may have them.
pub(super) fn forwarded(keys: &Keys, client: &HeaderMap) -> HeaderMap {
    upstream::forwarded(client, for_engines(keys, client))
}

/// The same as legs write them, with the name of the client's session.
pub(super) fn encoded(keys: &Keys, client: &HeaderMap, session: Option<&[u8]>) -> Bytes {
    upstream::encoded(client, for_engines(keys, client).as_ref(), session)
}

/// As whom engines are called. With `--api-key` the client's credential was for the proxy and ends here, and so it does where the
/// engines' key is preferred.
fn for_engines(keys: &Keys, client: &HeaderMap) -> Option<HeaderValue> {
    let replaced = keys.preferred == Preferred::EngineKey && keys.engine_key.is_some();
    let own = if keys.api_key.is_some() || replaced { None } else { credential(client) };
    own.or_else(|| keys.engine_key.clone())
}

/// The client's own credential as engines read it: `Authorization` in the form that they all know, else its API key.
fn credential(client: &HeaderMap) -> Option<HeaderValue> {
    let sent = client.get(header::AUTHORIZATION).filter(|value| !value.is_empty());
    let mut credential = match (sent, client.get(X_API_KEY).filter(|value| !value.is_empty())) {
        (Some(sent), _) => match bearer(sent.as_bytes()) {
            Some(token) => as_bearer(token)?,
            None => sent.clone(),
        },
        (None, Some(key)) => as_bearer(key.as_bytes())?,
        (None, None) => return None,
    };
    credential.set_sensitive(true);
    Some(credential)
}

fn as_bearer(token: &[u8]) -> Option<HeaderValue> {
    HeaderValue::from_bytes(&[b"Bearer ", token].concat()).ok()
}

/// The token of a bearer credential: the scheme in any case, then spaces (RFC 9110, 11.4).
fn bearer(credential: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = credential.split_at_checked(b"Bearer".len())?;
    let parted = token.first().is_some_and(|byte| matches!(byte, b' ' | b'\t'));
    let token = token.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"Bearer") && parted && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::bearer;

    #[test]
    fn a_bearer_token_is_read_as_rfc_9110_has_it() {
        for good in ["Bearer k-1", "bearer k-1", "BEARER   k-1", "BeArEr \tk-1 "] {
            assert_eq!(bearer(good.as_bytes()), Some(&b"k-1"[..]), "{good:?}");
        }
        for bad in ["", "Bearer", "Bearer ", "Bearerk-1", "Basic k-1", "k-1", "Bear er k-1"] {
            assert_eq!(bearer(bad.as_bytes()), None, "{bad:?}");
        }
    }
}
