//! The listener's message to itself: over its own port, through guard and ROUTER, back to the receive loop.
//!
//! A wedged ROUTER looks healthy from outside, and engines ping without expecting an answer; only a message that
//! should have come back and did not tells.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tracing::debug;
use uuid::Uuid;

use crate::registration::socket::guard::gate::{GREETING, ROUTER_READY};

/// Messages sent and not heard in a row that mean a deaf ROUTER.
const MISSES: u32 = 3;
/// A byte msgpack never uses, so no engine's message can be taken for ours.
const MARK: u8 = 0xc1;
const DEALER_READY: &[u8] = b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06DEALER";

/// Sends the marker at intervals and notes when it comes back.
#[derive(Debug)]
pub struct Watchdog {
    address: SocketAddr,
    interval: Duration,
    marker: Bytes,
    heard: AtomicU64,
    pulse: Arc<AtomicU64>,
}

impl Watchdog {
    /// A watchdog for the port bound at `address`; `pulse` goes up while it runs.
    pub fn new(address: SocketAddr, interval: Duration, pulse: Arc<AtomicU64>) -> Self {
        let marker = [&[MARK], Uuid::new_v4().as_bytes().as_slice()].concat();
        Self { address: reachable(address), interval, marker: marker.into(), heard: AtomicU64::new(0), pulse }
    }

    /// Whether `payload` is the marker; notes that it was heard.
    pub(crate) fn recognises(&self, payload: &Bytes) -> bool {
        let own = *payload == self.marker;
        if own {
            self.heard.fetch_add(1, Ordering::Relaxed);
        }
        own
    }

    /// Resolves when the marker was sent three times in a row and not heard once.
    ///
    /// Time without a connection is not counted: when every place is taken by engines, nothing is wrong inside.
    pub async fn unheard(&self) {
        let mut connection = None;
        let mut misses = 0;
        while misses < MISSES {
            self.pulse.fetch_add(1, Ordering::Relaxed);
            let before = self.heard.load(Ordering::Relaxed);
            connection = match timeout(self.interval, self.send(connection)).await {
                Ok(Ok(connection)) => Some(connection),
                Ok(Err(error)) => {
                    debug!(%error, "discovery watchdog cannot reach its own port");
                    None
                }
                Err(_) => None,
            };
            sleep(self.interval).await;
            if self.heard.load(Ordering::Relaxed) != before {
                misses = 0;
            } else if connection.is_some() {
                misses += 1;
            }
        }
    }

    async fn send(&self, connection: Option<TcpStream>) -> io::Result<TcpStream> {
        let mut stream = match connection {
            Some(stream) => stream,
            None => connect(self.address).await?,
        };
        let mut frame = vec![0, u8::try_from(self.marker.len()).unwrap_or(u8::MAX)];
        frame.extend_from_slice(&self.marker);
        stream.write_all(&frame).await?;
        Ok(stream)
    }
}

/// Connects as a DEALER; done when the guard has completed the handshake.
async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    stream.write_all(&GREETING).await?;
    stream.write_all(DEALER_READY).await?;
    let mut answer = vec![0; GREETING.len() + ROUTER_READY.len()];
    stream.read_exact(&mut answer).await?;
    Ok(stream)
}

/// An address to connect to: a port bound on every interface is reached over loopback.
fn reachable(mut bound: SocketAddr) -> SocketAddr {
    match bound.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => bound.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => bound.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    bound
}
