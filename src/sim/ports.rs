//! Ports that stay an engine's own, also while nothing listens on them.

use std::io;
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

const PROBES: usize = 200;

/// A port that is bound but not listening: connections are refused, and nobody else is given it.
pub(crate) struct Reserved {
    address: SocketAddr,
    _socket: Socket,
}

impl Reserved {
    /// Takes `port`, or a free one for 0.
    pub(crate) fn new(host: IpAddr, port: u16) -> io::Result<Self> {
        let socket = bound(SocketAddr::new(host, port))?;
        let address = socket
            .local_addr()?
            .as_socket()
            .ok_or_else(|| io::Error::other("bound socket has no internet address"))?;
        Ok(Self {
            address,
            _socket: socket,
        })
    }

    /// Takes `count` consecutive free ports.
    pub(crate) fn range(host: IpAddr, count: u32) -> io::Result<Vec<Self>> {
        for _ in 0..PROBES {
            let mut range = vec![Self::new(host, 0)?];
            let base = u32::from(range[0].port());
            for offset in 1..count {
                let Ok(port) = u16::try_from(base + offset) else { break };
                let Ok(reserved) = Self::new(host, port) else { break };
                range.push(reserved);
            }
            // Kernels hand out one parity to bind: a port beside it may be some connection's local port.
            if range.len() == count as usize {
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
        let socket = bound(self.address)?;
        socket.listen(1024)?;
        socket.set_nonblocking(true)?;
        TcpListener::from_std(socket.into())
    }
}

fn bound(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
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
    pub(crate) fn reserve(host: IpAddr, http: u16, ranks: u32) -> io::Result<Self> {
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
