//! Ports that stay an engine's own, also while nothing listens on them.

use std::io;
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

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

    /// Takes `count` consecutive free ports.
    pub(crate) fn range(host: IpAddr, count: u16) -> io::Result<Vec<Self>> {
        if count == 1 {
            return Ok(vec![Self::new(host, 0)?]);
        }
        for _ in 0..PROBES {
            let place = uuid::Uuid::new_v4().as_u128() % QUIET_PORTS.len() as u128;
            let base = QUIET_PORTS.start + place as u16;
            let range: io::Result<Vec<Self>> =
                (base..base + count).map(|port| Self::exclusive(SocketAddr::new(host, port))).collect();
            if let Ok(range) = range {
                return Ok(range);
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

/// All ports of one engine.
pub(crate) struct Ports {
    pub(crate) http: Reserved,
    pub(crate) data: Reserved,
    pub(crate) handshake: Vec<Reserved>,
    pub(crate) notify: Vec<Reserved>,
}

impl Ports {
    pub(crate) fn reserve(host: IpAddr, http: u16, ranks: u16) -> io::Result<Self> {
        Ok(Self {
            http: Reserved::new(host, http)?,
            data: Reserved::new(host, 0)?,
            handshake: Reserved::range(host, ranks)?,
            notify: Reserved::range(host, ranks)?,
        })
    }

    pub(crate) fn handshake_base(&self) -> u16 {
        self.handshake[0].port()
    }

    pub(crate) fn notify_base(&self) -> u16 {
        self.notify[0].port()
    }
}
