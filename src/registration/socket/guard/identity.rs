//! The ZMQ identity under which the guard introduces a peer to the ROUTER: it carries the peer's TCP address.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// ZMQ keeps identities that begin with zero for itself.
const MARK: u8 = 1;
const BYTES: usize = 1 + 8 + 16 + 2 + 4;

/// An identity unique to one connection. Being its own record, it needs no table that could go stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity([u8; BYTES]);

impl Identity {
    /// The identity of the `serial`-th connection, which came from `address`.
    pub fn new(serial: u64, address: SocketAddr) -> Self {
        let (ip, scope) = match address {
            SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), 0),
            SocketAddr::V6(v6) => (*v6.ip(), v6.scope_id()),
        };
        let mut bytes = [MARK; BYTES];
        bytes[1..9].copy_from_slice(&serial.to_be_bytes());
        bytes[9..25].copy_from_slice(&ip.octets());
        bytes[25..27].copy_from_slice(&address.port().to_be_bytes());
        bytes[27..31].copy_from_slice(&scope.to_be_bytes());
        Self(bytes)
    }

    /// The address inside an identity made by [`Identity::new`]; IPv4 in its own form, however the peer was accepted.
    pub fn address(bytes: &[u8]) -> Option<SocketAddr> {
        let rest = bytes.strip_prefix(&[MARK])?;
        let (_serial, rest) = rest.split_first_chunk::<8>()?;
        let (ip, rest) = rest.split_first_chunk::<16>()?;
        let (port, rest) = rest.split_first_chunk::<2>()?;
        let scope = u32::from_be_bytes(rest.try_into().ok()?);
        let port = u16::from_be_bytes(*port);
        Some(match Ipv6Addr::from(*ip).to_canonical() {
            IpAddr::V4(v4) => SocketAddr::new(v4.into(), port),
            IpAddr::V6(v6) => SocketAddrV6::new(v6, port, 0, scope).into(),
        })
    }
}

impl AsRef<[u8]> for Identity {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::Identity;

    #[test]
    fn address_survives_the_way_through_the_router() {
        for (given, seen) in [
            ("10.0.0.1:6301", "10.0.0.1:6301"),
            ("[::ffff:10.0.0.1]:6301", "10.0.0.1:6301"),
            ("[2001:db8::1]:65535", "[2001:db8::1]:65535"),
            ("[fe80::1%7]:1", "[fe80::1%7]:1"),
        ] {
            let identity = Identity::new(u64::MAX, given.parse().unwrap());
            assert_eq!(Identity::address(identity.as_ref()), Some(seen.parse().unwrap()), "{given}");
        }
    }

    #[test]
    fn foreign_identities_have_no_address() {
        let good = Identity::new(1, "10.0.0.1:1".parse().unwrap());
        let mut marked_otherwise = good.as_ref().to_vec();
        marked_otherwise[0] = 0;
        let longer = [good.as_ref(), b"x"].concat();
        for bytes in [&b""[..], b"engine-1", &[0; 16], &marked_otherwise, &longer, &good.as_ref()[..30]] {
            assert_eq!(Identity::address(bytes), None);
        }
    }
}
