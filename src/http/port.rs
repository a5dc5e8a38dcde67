//! The data port's socket.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::net::TcpListener;

/// A peer that takes no data for so long is gone.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

/// A listening socket whose connections notice a vanished peer. Restarts find the port free (`SO_REUSEADDR`).
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(15)).with_interval(Duration::from_secs(5));
    socket.set_tcp_keepalive(&keepalive.with_retries(3))?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    // The system has its own limit (`net.core.somaxconn`), which is to be the only one.
    socket.listen(i32::from(u16::MAX))?;
    TcpListener::from_std(socket.into())
}
