//! Ports that stay an engine's own, also while nothing listens on them.

use std::io;
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

use super::roster::{Entry, Listing};
use super::settings::Settings;

const PROBES: usize = 1000;
/// Ports that kernels do not give to outgoing connections: those come and go, and linger when they have gone.
const QUIET_PORTS: std::ops::Range<u16> = 10_240..32_000;

/// A port that is bound but not listening: connections are refused, and nobody else is given it.
pub(crate) struct Reserved {
    address: SocketAddr,
    _socket: Socket,
}

impl Reserved {
    /// Takes `port`, or a free one for 0.
    pub(crate) fn new(host: IpAddr, port: u16) -> io::Result<Self> {
        let address = SocketAddr::new(host, port);
        // A port that somebody chose may have connections of an earlier run lingering on it.
        if port == 0 { Self::exclusive(address) } else { Self::of(bound(address, true)?) }
    }

    /// Takes a port that nobody at all has bound.
    fn exclusive(address: SocketAddr) -> io::Result<Self> {
        let socket = bound(address, false)?;
        // From now on, not before: it was to be refused if another engine had merely reserved this port.
        socket.set_reuse_address(true)?;
        Self::of(socket)
    }

    fn of(socket: Socket) -> io::Result<Self> {
        let address = socket.local_addr()?.as_socket();
        let address = address.ok_or_else(|| io::Error::other("bound socket has no internet address"))?;
        Ok(Self { address, _socket: socket })
    }

    /// Takes `count` consecutive ports that are free on all hosts.
    pub(crate) fn ranges(hosts: &[IpAddr], count: u16) -> io::Result<Vec<Vec<Self>>> {
        if let ([host], 1) = (hosts, count) {
            return Ok(vec![vec![Self::new(*host, 0)?]]);
        }
        for _ in 0..PROBES {
            let place = uuid::Uuid::new_v4().as_u128() % QUIET_PORTS.len() as u128;
            let base = QUIET_PORTS.start + place as u16;
            let range = |host: &IpAddr| -> io::Result<Vec<Self>> {
                (base..base + count).map(|port| Self::exclusive(SocketAddr::new(*host, port))).collect()
            };
            if let Ok(ranges) = hosts.iter().map(range).collect() {
                return Ok(ranges);
            }
        }
        Err(io::Error::new(io::ErrorKind::AddrInUse, "no free range of ports"))
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Opens the port. Two bound sockets may share it as long as only one listens.
    pub(crate) fn listen(&self) -> io::Result<TcpListener> {
        let socket = bound(self.address, true)?;
        socket.listen(1024)?;
        socket.set_nonblocking(true)?;
        TcpListener::from_std(socket.into())
    }
}

fn bound(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(shared)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// The ports of one host for the engines' own talk.
pub(crate) struct KvPorts {
    pub(crate) data: Reserved,
    pub(crate) handshake: Vec<Reserved>,
    pub(crate) notify: Vec<Reserved>,
}

/// All ports of one engine.
pub(crate) struct Ports {
    /// One for each host that serves, the master's first.
    pub(crate) http: Vec<Reserved>,
    /// One for each host.
    pub(crate) hosts: Vec<KvPorts>,
    _listing: Listing,
}

impl Ports {
    /// Takes the ports of settled settings. Each host gets as many as there are ranks on all, so that nobody answers who
    /// dials a rank where it does not live.
    pub(crate) fn reserve(settings: &Settings) -> io::Result<Self> {
        let (hosts, count) = (&settings.hosts, settings.dp.max(settings.tp) as u16);
        let serving = if settings.children_serve { hosts.len() } else { 1 };
        let http =
            hosts[..serving].iter().map(|host| Reserved::new(*host, settings.http_port)).collect::<io::Result<_>>()?;
        let (handshake, notify) = (Reserved::ranges(hosts, count)?, Reserved::ranges(hosts, count)?);
        let entry = Entry {
            hosts: hosts.clone(),
            dp: settings.dp,
            local_dp: settings.local_dp(),
            handshake: handshake[0][0].port(),
            notify: notify[0][0].port(),
        };
        let kv = hosts
            .iter()
            .zip(handshake)
            .zip(notify)
            .map(|((host, handshake), notify)| Ok(KvPorts { data: Reserved::new(*host, 0)?, handshake, notify }));
        Ok(Self { http, hosts: kv.collect::<io::Result<_>>()?, _listing: Listing::enter(entry) })
    }

    pub(crate) fn http_address(&self) -> SocketAddr {
        self.http[0].address()
    }

    pub(crate) fn handshake_base(&self) -> u16 {
        self.hosts[0].handshake[0].port()
    }

    pub(crate) fn notify_base(&self) -> u16 {
        self.hosts[0].notify[0].port()
    }
}
