//! Addresses of engines as text and as values.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// Where an engine serves HTTP.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HttpAddress {
    /// Name or address, IPv6 without brackets.
    pub host: String,
    /// 1 to 65535.
    pub port: u16,
}

impl HttpAddress {
    /// The URL of `path` (which begins with a slash) on this engine.
    pub fn url(&self, path: &str) -> String {
        format!("http://{self}{path}")
    }
}

impl fmt::Display for HttpAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Why a text is no `host:port`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a host and a port between 1 and 65535")]
pub struct BadAddress;

impl FromStr for HttpAddress {
    type Err = BadAddress;

    /// Splits at the last colon, since dialect B does not bracket IPv6 (protocol R3); brackets are accepted as well.
    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let (host, port) = text.trim().rsplit_once(':').ok_or(BadAddress)?;
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        Ok(HttpAddress {
            host: plausible_host(host).ok_or(BadAddress)?.to_owned(),
            port: port_number(port).ok_or(BadAddress)?,
        })
    }
}

/// A port as decimal digits, 1 to 65535; no sign and no white space inside.
pub(crate) fn port_number(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.len() <= 5 && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten().filter(|port| *port != 0)
}

/// A host name, IPv4 or bare IPv6 address. Whatever could change a URL's meaning is refused: `user@`, slashes, spaces.
pub(crate) fn plausible_host(text: &str) -> Option<&str> {
    if text.contains(':') {
        return text.parse::<std::net::Ipv6Addr>().is_ok().then_some(text);
    }
    let name = !text.is_empty()
        && text.len() <= 253
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    name.then_some(text)
}

/// Whether two texts are one host: the same address, or the same name.
pub(crate) fn is_same_host(one: &str, other: &str) -> bool {
    match (one.parse::<IpAddr>(), other.parse::<IpAddr>()) {
        (Ok(one), Ok(other)) => one == other,
        _ => one.eq_ignore_ascii_case(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_split_at_the_last_colon() {
        let check = |text: &str, want: Option<(&str, u16, &str)>| {
            let got = text.parse::<HttpAddress>().ok();
            let got = got.as_ref().map(|a| (a.host.as_str(), a.port, a.to_string()));
            assert_eq!(got, want.map(|(host, port, shown)| (host, port, shown.to_owned())), "{text}");
        };
        check("10.0.0.1:20005", Some(("10.0.0.1", 20005, "10.0.0.1:20005")));
        check("fd00::1:8000", Some(("fd00::1", 8000, "[fd00::1]:8000")));
        check("[fd00::1]:8000", Some(("fd00::1", 8000, "[fd00::1]:8000")));
        check("node-3:2584", Some(("node-3", 2584, "node-3:2584")));
        for bad in [
            "",
            "node",
            "node:",
            ":80",
            "node:0",
            "node:70000",
            "node:+80",
            "a@b:80",
            "a/b:80",
            "a b:80",
            "x:1:80",
            "node:8 0",
        ] {
            check(bad, None);
        }
    }
}
