//! Where to listen: addresses, and names that the system's resolver knows. The origins of browsers' pages.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use http::{HeaderValue, Uri};

use super::values::{Parsed, Refusal, number, plain};

/// The longest name of the domain name system, and the longest part between its dots.
const NAME_MAX: usize = 253;
const LABEL_MAX: usize = 63;

/// A host to listen on, as it was named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// An address.
    Address(IpAddr),
    /// A name, resolved at the start.
    Name(String),
}

impl Host {
    /// Every interface.
    pub(super) const ANY: Host = Host::Address(IpAddr::V4(Ipv4Addr::UNSPECIFIED));

    pub(super) fn is_unspecified(&self) -> bool {
        matches!(self, Host::Address(address) if address.is_unspecified())
    }
}

impl fmt::Display for Host {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Address(address) => address.fmt(formatter),
            Host::Name(name) => formatter.write_str(name),
        }
    }
}

/// A host and a port to listen on; port 0 takes a free one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The host.
    pub host: Host,
    /// The port.
    pub port: u16,
    /// The option that named the host, for a message.
    pub named: String,
}

impl Endpoint {
    /// Every address it stands for, in the resolver's order; at least one. Blocks until the resolver has answered.
    ///
    /// # Errors
    /// The name does not resolve.
    pub fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        let name = match &self.host {
            Host::Address(address) => return Ok(vec![SocketAddr::new(*address, self.port)]),
            Host::Name(name) => name.as_str(),
        };
        let addresses: Vec<SocketAddr> = (name, self.port).to_socket_addrs()?.collect();
        if addresses.is_empty() { Err(io::Error::other("the name has no address")) } else { Ok(addresses) }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Address(address) => SocketAddr::new(*address, self.port).fmt(formatter),
            Host::Name(name) => write!(formatter, "{name}:{}", self.port),
        }
    }
}

pub(super) fn host(text: &str) -> Parsed<Host> {
    let address = match text {
        "*" => return Ok(plain(Host::ANY)),
        "localhost" => return Ok(plain(Host::Address(IpAddr::V4(Ipv4Addr::LOCALHOST)))),
        _ => match text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
            Some(bracketed) => Ipv6Addr::from_str(bracketed).map(IpAddr::V6),
            None => IpAddr::from_str(text),
        },
    };
    match address {
        Ok(address) => Ok(plain(Host::Address(address))),
        Err(_) if is_name(text) => Ok(plain(Host::Name(text.to_owned()))),
        Err(_) => Err(Refusal::Host),
    }
}

/// Whether a text can be a host's name. One that ends in a number is a mistyped address (RFC 3696, 2).
fn is_name(text: &str) -> bool {
    let mut labels = text.strip_suffix('.').unwrap_or(text).split('.');
    let good = |label: &str| {
        let fits = (1..=LABEL_MAX).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-');
        fits && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let numeric = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    text.len() <= NAME_MAX && labels.clone().all(good) && !labels.next_back().is_none_or(numeric)
}

/// A host with a port.
pub(super) fn address(text: &str) -> Parsed<(Host, u16)> {
    // A bare `::1:80` would be read as an address without a port, so only the bracketed form has colons.
    let (name, port) = text.rsplit_once(':').ok_or(Refusal::Address)?;
    if name.contains(':') && !name.starts_with('[') {
        return Err(Refusal::Address);
    }
    let (host, _) = host(name).map_err(|_| Refusal::Address)?;
    let (port, _) = number(0, u16::MAX)(port).map_err(|_| Refusal::Address)?;
    let shown = Endpoint { host: host.clone(), port, named: String::new() }.to_string();
    Ok(((host, port), shown))
}

/// Origins whose pages may call from a browser.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Origins {
    /// None: nothing is said to browsers.
    #[default]
    None,
    /// Any.
    Any,
    /// These, each as a browser writes it.
    Listed(Vec<HeaderValue>),
}

impl fmt::Display for Origins {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origins::None => formatter.write_str("none"),
            Origins::Any => formatter.write_str("*"),
            Origins::Listed(origins) => {
                let texts: Vec<&str> = origins.iter().filter_map(|origin| origin.to_str().ok()).collect();
                formatter.write_str(&texts.join(","))
            }
        }
    }
}

pub(super) fn origins(text: &str) -> Parsed<Origins> {
    let parts: Vec<&str> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    if parts.contains(&"*") {
        return if parts.len() == 1 { Ok(plain(Origins::Any)) } else { Err(Refusal::Origins) };
    }
    let origins = parts.into_iter().map(|part| origin(part).ok_or(Refusal::Origins)).collect::<Result<Vec<_>, _>>()?;
    if origins.is_empty() { Err(Refusal::Origins) } else { Ok(plain(Origins::Listed(origins))) }
}

/// An origin as browsers write it: small letters, no path, no port that its scheme implies.
fn origin(text: &str) -> Option<HeaderValue> {
    let (scheme, rest) = text.split_once("://")?;
    let uri = Uri::from_str(text).ok()?;
    let authority = uri.authority()?;
    let host = authority.host();
    if authority.as_str() != rest || rest.contains('@') || host.is_empty() || host.contains('*') {
        return None;
    }
    let scheme = scheme.to_ascii_lowercase();
    let implied = match scheme.as_str() {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    };
    // What is no number is no port, and an empty one is not how a browser writes it.
    let port = match authority.as_str().strip_prefix(host)?.strip_prefix(':') {
        Some(port) => Some(number(1, u16::MAX)(port).ok()?.0),
        None => None,
    };
    let port = port.filter(|port| Some(*port) != implied).map(|port| format!(":{port}")).unwrap_or_default();
    HeaderValue::from_str(&format!("{scheme}://{}{port}", host.to_ascii_lowercase())).ok()
}

#[cfg(test)]
mod tests {
    use super::{Host, address, host, origins};

    #[test]
    fn hosts_are_addresses_or_names() {
        for (text, shown) in [
            ("10.0.0.1", "10.0.0.1"),
            ("::1", "::1"),
            ("[::1]", "::1"),
            ("*", "0.0.0.0"),
            ("localhost", "127.0.0.1"),
            ("node-0", "node-0"),
            ("rank_0.job.example.", "rank_0.job.example."),
            ("0a", "0a"),
        ] {
            assert_eq!(host(text).map(|(_, shown)| shown), Ok(shown.to_owned()), "{text}");
        }
        assert!(matches!(host("node-0"), Ok((Host::Name(_), _))));
        for text in
            ["", "10.0.0.300", "1.2.3", "7", "a b", "-a", "a-", "a..b", "a:1", "[a]", "[::1", "ä", &"a".repeat(64)]
        {
            assert!(host(text).is_err(), "{text}");
        }
        for text in ["node-0:36367", "[::1]:0", "127.0.0.1:65535"] {
            assert_eq!(address(text).map(|(_, shown)| shown), Ok(text.to_owned()));
        }
    }

    #[test]
    fn origins_are_written_as_browsers_write_them() {
        for (text, shown) in [
            ("*", "*"),
            ("https://Chat.Example", "https://chat.example"),
            ("http://localhost:3000, HTTPS://a.example:443", "http://localhost:3000,https://a.example"),
            ("http://[::1]:8080", "http://[::1]:8080"),
        ] {
            assert_eq!(origins(text).map(|(_, shown)| shown), Ok(shown.to_owned()), "{text}");
        }
        for text in [
            ",",
            "chat.example",
            "https://",
            "https://a/",
            "https://a/b",
            "https://a?b",
            "https://u@a",
            "https://*.a",
            "*,https://a",
            "https://a:x",
            "https://a:",
            "null",
            "https://a b",
        ] {
            assert!(origins(text).is_err(), "{text}");
        }
    }
}
