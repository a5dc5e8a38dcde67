//! A client that writes what it likes.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::PATIENCE;

/// One connection to the proxy.
pub struct Wire {
    stream: TcpStream,
    unread: Vec<u8>,
}

/// One answer, interim ones included.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn has(&self, line: &str) -> bool {
        self.head.to_ascii_lowercase().lines().any(|found| found == line)
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }
}

impl Wire {
    pub async fn open(address: SocketAddr) -> Wire {
        let stream = timeout(PATIENCE, TcpStream::connect(address)).await.unwrap().unwrap();
        stream.set_nodelay(true).unwrap();
        Wire { stream, unread: Vec::new() }
    }

    /// Sends; a proxy that has closed already is no failure here.
    pub async fn send(&mut self, bytes: &[u8]) {
        let _ = timeout(PATIENCE, self.stream.write_all(bytes)).await.expect("the proxy reads");
    }

    /// Sends one byte at a time until all is sent or the proxy has closed.
    pub async fn drip(&mut self, bytes: &[u8], pause: Duration) {
        for byte in bytes {
            if self.stream.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Says that nothing more will be sent.
    pub async fn finish_sending(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// Ends the connection with a TCP reset.
    pub fn reset(self) {
        let _ = socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
    }

    /// The next answer; nothing when the proxy closes without one.
    pub async fn answer(&mut self) -> Option<Reply> {
        timeout(PATIENCE, self.read()).await.expect("an answer or an end in time")
    }

    /// Waits until the proxy has closed; gives what it said before.
    pub async fn closed(&mut self) -> Vec<u8> {
        let end = async { while self.fill().await {} };
        timeout(PATIENCE, end).await.expect("the proxy closes");
        std::mem::take(&mut self.unread)
    }

    /// Reads once; false at the end.
    async fn fill(&mut self) -> bool {
        matches!(self.stream.read_buf(&mut self.unread).await, Ok(1..))
    }

    async fn read(&mut self) -> Option<Reply> {
        let end = self.find(b"\r\n\r\n").await?;
        let head = String::from_utf8_lossy(&self.take(end)).into_owned();
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let field = |name: &str| {
            let lower = head.to_ascii_lowercase();
            let line = lower.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            line.map(str::to_owned)
        };
        let body = match (status, field("content-length"), field("transfer-encoding")) {
            (100..200, ..) => Vec::new(),
            (_, Some(length), _) => self.exactly(length.parse().ok()?).await?,
            (_, None, Some(_)) => self.chunks().await?,
            (_, None, None) => self.closed().await,
        };
        Some(Reply { status, head, body })
    }

    async fn chunks(&mut self) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let end = self.find(b"\r\n").await?;
            let line = self.take(end);
            let length = usize::from_str_radix(std::str::from_utf8(&line).ok()?.trim(), 16).ok()?;
            let part = self.exactly(length + 2).await?;
            body.extend_from_slice(&part[..length]);
            if length == 0 {
                return Some(body);
            }
        }
    }

    /// The position behind the next `mark`.
    async fn find(&mut self, mark: &[u8]) -> Option<usize> {
        loop {
            if let Some(at) = self.unread.windows(mark.len()).position(|window| window == mark) {
                return Some(at + mark.len());
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    async fn exactly(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.unread.len() < length {
            if !self.fill().await {
                return None;
            }
        }
        Some(self.take(length))
    }

    fn take(&mut self, length: usize) -> Vec<u8> {
        self.unread.drain(..length).collect()
    }
}
