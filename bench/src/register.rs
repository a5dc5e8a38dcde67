//! Registration: a ZMTP 3.0 DEALER that pings one proxy and hears nothing from it.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::sleep;

use crate::wire::broken;

const AGAIN: Duration = Duration::from_millis(100);
const COMMAND: u8 = 4;
/// The end of a message, in more than 255 bytes.
const LONG: u8 = 2;

/// What an engine says of itself, in the words of vLLM since 0.20.
#[derive(Clone, Serialize)]
pub(crate) struct Registration {
    #[serde(rename = "type")]
    pub(crate) role: &'static str,
    pub(crate) http_address: String,
    pub(crate) zmq_address: String,
    pub(crate) dp_size: u32,
    pub(crate) tp_size: u32,
    pub(crate) transfer_mode: String,
}

/// Pings for ever; a proxy that is not there yet, or gone, is dialed again.
pub(crate) async fn ping(to: SocketAddr, from: Ipv4Addr, registration: Registration, interval: Duration) {
    let payload = rmp_serde::to_vec_named(&registration).unwrap_or_default();
    let mut frame = vec![LONG];
    frame.extend_from_slice(&(payload.len() as u64).to_be_bytes());
    frame.extend_from_slice(&payload);
    loop {
        if let Ok(mut stream) = dial(to, from).await {
            while stream.write_all(&frame).await.is_ok() {
                sleep(interval).await;
            }
        }
        sleep(AGAIN).await;
    }
}

async fn dial(to: SocketAddr, from: Ipv4Addr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    let mut stream = socket.connect(to).await?;
    // Dialing a free port of one's own host can by chance end at oneself.
    if stream.local_addr()? == stream.peer_addr()? {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    stream.set_nodelay(true)?;
    let mut greeting = [0u8; 64];
    (greeting[0], greeting[9], greeting[10]) = (0xff, 0x7f, 3);
    greeting[12..16].copy_from_slice(b"NULL");
    stream.write_all(&greeting).await?;
    let ready = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00\x00";
    stream.write_all(&[&[COMMAND, ready.len() as u8][..], ready].concat()).await?;
    stream.read_exact(&mut greeting).await?;
    let mut head = [0u8; 2];
    stream.read_exact(&mut head).await?;
    if head[0] & COMMAND == 0 || head[0] & LONG != 0 {
        return Err(broken("READY expected"));
    }
    stream.read_exact(&mut vec![0; usize::from(head[1])]).await?;
    Ok(stream)
}
