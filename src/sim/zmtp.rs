//! Just enough ZMTP 3.0 to be taken for libzmq: NULL mechanism, DEALER and ROUTER, whole messages.

use std::io;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

/// The frames of one message.
pub(crate) type Message = Vec<Bytes>;

/// libzmq's default high-water mark.
pub(crate) const HIGH_WATER_MARK: usize = 1000;
const RECONNECT_INTERVAL: Duration = Duration::from_millis(100);
const GREETING_LIMIT: Duration = Duration::from_secs(30);
const FRAME_LIMIT: usize = 64 << 20;
const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// One connection after its greeting.
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: BytesMut,
    partial: Message,
}

impl Connection {
    /// Dials and greets as a DEALER.
    pub(crate) async fn dial(host: &str, port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect((host, port)).await?;
        // Dialing a free port of one's own host can by chance end at oneself.
        if stream.local_addr()? == stream.peer_addr()? {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        Self::greet(stream, "DEALER").await
    }

    /// Greets on a stream in the name of `socket_type`.
    pub(crate) async fn greet(stream: TcpStream, socket_type: &str) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let mut connection = Self { stream, buffer: BytesMut::new(), partial: Vec::new() };
        let greeting = connection.exchange_greeting(socket_type);
        timeout(GREETING_LIMIT, greeting).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        Ok(connection)
    }

    async fn exchange_greeting(&mut self, socket_type: &str) -> io::Result<()> {
        let mut greeting = [0u8; 64];
        greeting[0] = 0xff;
        greeting[9] = 0x7f;
        greeting[10] = 3;
        greeting[12..16].copy_from_slice(b"NULL");
        self.stream.write_all(&greeting).await?;
        let mut ready = BytesMut::from(&b"\x05READY"[..]);
        for (name, value) in [("Socket-Type", socket_type), ("Identity", "")] {
            ready.put_u8(name.len() as u8);
            ready.put_slice(name.as_bytes());
            ready.put_u32(value.len() as u32);
            ready.put_slice(value.as_bytes());
        }
        let mut command = BytesMut::from(&[COMMAND, ready.len() as u8][..]);
        command.put(ready);
        self.stream.write_all(&command).await?;
        while self.buffer.len() < 64 {
            self.fill().await?;
        }
        let theirs = self.buffer.split_to(64);
        if theirs[0] != 0xff || theirs[9] != 0x7f || theirs[10] < 3 || &theirs[12..16] != b"NULL" {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a ZMTP 3 peer"));
        }
        loop {
            match self.parse()? {
                Some((flags, body)) if flags & COMMAND != 0 && body.starts_with(b"\x05READY") => return Ok(()),
                Some(_) => return Err(io::Error::new(io::ErrorKind::InvalidData, "READY expected")),
                None => self.fill().await?,
            }
        }
    }

    /// Sends one message.
    pub(crate) async fn send(&mut self, message: &[Bytes]) -> io::Result<()> {
        let mut bytes = BytesMut::new();
        for (index, frame) in message.iter().enumerate() {
            let more = if index + 1 < message.len() { MORE } else { 0 };
            match u8::try_from(frame.len()) {
                Ok(length) => bytes.put_slice(&[more, length]),
                Err(_) => {
                    bytes.put_u8(more | LONG);
                    bytes.put_u64(frame.len() as u64);
                }
            }
            bytes.put_slice(frame);
        }
        self.stream.write_all(&bytes).await
    }

    /// Receives one message; safe to cancel. The peer's end is an error.
    pub(crate) async fn receive(&mut self) -> io::Result<Message> {
        loop {
            while let Some((flags, body)) = self.parse()? {
                if flags & COMMAND != 0 {
                    continue;
                }
                self.partial.push(body);
                if flags & MORE == 0 {
                    return Ok(std::mem::take(&mut self.partial));
                }
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> io::Result<()> {
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    fn parse(&mut self) -> io::Result<Option<(u8, Bytes)>> {
        let Some(&flags) = self.buffer.first() else {
            return Ok(None);
        };
        let (head, length) = if flags & LONG != 0 {
            let Some(bytes) = self.buffer.get(1..9) else {
                return Ok(None);
            };
            let mut bytes = bytes;
            (9, usize::try_from(bytes.get_u64()).unwrap_or(usize::MAX))
        } else {
            let Some(&length) = self.buffer.get(1) else {
                return Ok(None);
            };
            (2, usize::from(length))
        };
        if length > FRAME_LIMIT {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "frame too long"));
        }
        if self.buffer.len() < head + length {
            return Ok(None);
        }
        self.buffer.advance(head);
        Ok(Some((flags, self.buffer.split_to(length).freeze())))
    }
}

/// A DEALER that connects, reconnects for ever and sends what is queued, in order. Ends when the queue does.
pub(crate) async fn dealer(host: String, port: u16, mut queue: mpsc::Receiver<Message>) {
    let mut pending: Option<Message> = None;
    loop {
        let Ok(mut connection) = Connection::dial(&host, port).await else {
            sleep(RECONNECT_INTERVAL).await;
            continue;
        };
        loop {
            if pending.is_none() {
                tokio::select! {
                    message = queue.recv() => match message {
                        Some(message) => pending = Some(message),
                        None => return,
                    },
                    received = connection.receive() => match received {
                        Ok(_) => continue,
                        Err(_) => break,
                    },
                }
            }
            if let Some(message) = &pending
                && connection.send(message).await.is_err()
            {
                break;
            }
            pending = None;
        }
        sleep(RECONNECT_INTERVAL).await;
    }
}
