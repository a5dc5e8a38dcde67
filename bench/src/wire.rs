//! HTTP/1.1 as far as engines, floor and load need it: where a message's body is, and where it ends.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;

const HEADERS: usize = 64;
const LONGEST_HEAD: usize = 64 << 10;
/// What one read can bring. One buffer serves all connections, so that a waiting one has none.
const READ: usize = 256 << 10;

thread_local! {
    static READ_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ].into_boxed_slice());
}

/// An error in what the other side said.
pub(crate) fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// Reads once and shows what came; `None` at the end of the connection. What is called must not read itself.
pub(crate) async fn read_with<T>(
    stream: &mut TcpStream,
    mut each: impl FnMut(&[u8]) -> io::Result<T>,
) -> io::Result<Option<T>> {
    poll_fn(|context| {
        READ_BUFFER.with_borrow_mut(|buffer| {
            let mut into = ReadBuf::new(buffer);
            ready!(Pin::new(&mut *stream).poll_read(context, &mut into))?;
            Poll::Ready(if into.filled().is_empty() { Ok(None) } else { each(into.filled()).map(Some) })
        })
    })
    .await
}

/// How a body's end is known.
enum Framing {
    Length(u64),
    Chunked(Chunk),
}

/// Where in a chunked body the reader stands.
enum Chunk {
    Size(u64),
    Extension(u64),
    Data(u64),
    AfterData,
    Trailer { empty: bool },
    End,
}

/// One request or response on its way in, fed piece by piece.
pub(crate) struct Message {
    is_request: bool,
    held: Vec<u8>,
    framing: Option<Framing>,
    /// The path of a request.
    pub(crate) path: String,
    /// The rank that a request names.
    pub(crate) rank: u32,
    /// The status of a response.
    pub(crate) status: u16,
}

impl Message {
    /// A request to come.
    pub(crate) fn request() -> Self {
        Self { is_request: true, held: Vec::new(), framing: None, path: String::new(), rank: 0, status: 0 }
    }

    /// A response to come.
    pub(crate) fn response() -> Self {
        Self { is_request: false, ..Self::request() }
    }

    /// Takes the next bytes, shows the body's content among them, and tells whether that was the end.
    pub(crate) fn feed(&mut self, bytes: &[u8], mut content: impl FnMut(&[u8])) -> io::Result<bool> {
        if self.framing.is_some() {
            return self.body(bytes, &mut content);
        }
        if self.held.is_empty() {
            if let Some(length) = self.head(bytes)? {
                return self.body(&bytes[length..], &mut content);
            }
            self.held.extend_from_slice(bytes);
            return Ok(false);
        }
        let mut held = std::mem::take(&mut self.held);
        held.extend_from_slice(bytes);
        if let Some(length) = self.head(&held)? {
            return self.body(&held[length..], &mut content);
        }
        if held.len() > LONGEST_HEAD {
            return Err(broken("the head has no end"));
        }
        self.held = held;
        Ok(false)
    }

    /// Whether a request is for tokens.
    pub(crate) fn is_generation(&self) -> bool {
        matches!(self.path.as_str(), "/v1/completions" | "/v1/chat/completions")
    }

    /// How much of a body is still to come, as far as the head has told it.
    pub(crate) fn left(&self) -> u64 {
        if let Some(Framing::Length(left)) = self.framing { left } else { 0 }
    }

    /// The length of the head, once it is whole.
    fn head(&mut self, bytes: &[u8]) -> io::Result<Option<usize>> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS];
        let wrong = |error: httparse::Error| broken(&error.to_string());
        let (length, headers) = if self.is_request {
            let mut request = httparse::Request::new(&mut headers);
            let httparse::Status::Complete(length) = request.parse(bytes).map_err(wrong)? else { return Ok(None) };
            self.path = request.path.unwrap_or_default().to_owned();
            (length, request.headers)
        } else {
            let mut response = httparse::Response::new(&mut headers);
            let httparse::Status::Complete(length) = response.parse(bytes).map_err(wrong)? else { return Ok(None) };
            self.status = response.code.unwrap_or_default();
            (length, response.headers)
        };
        let mut framing = Framing::Length(0);
        for header in headers.iter() {
            let number = || std::str::from_utf8(header.value).ok().and_then(|text| text.trim().parse::<u64>().ok());
            if header.name.eq_ignore_ascii_case("content-length") {
                framing = Framing::Length(number().ok_or_else(|| broken("content-length is no number"))?);
            } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
                framing = Framing::Chunked(Chunk::Size(0));
            } else if header.name.eq_ignore_ascii_case("x-data-parallel-rank") {
                self.rank = number().and_then(|rank| rank.try_into().ok()).unwrap_or_default();
            }
        }
        self.framing = Some(framing);
        Ok(Some(length))
    }

    fn body(&mut self, bytes: &[u8], content: &mut impl FnMut(&[u8])) -> io::Result<bool> {
        let (used, is_done) = match &mut self.framing {
            Some(Framing::Length(left)) => {
                let here = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= here as u64;
                if here > 0 {
                    content(&bytes[..here]);
                }
                (here, *left == 0)
            }
            Some(Framing::Chunked(chunk)) => chunk.feed(bytes, content)?,
            None => (0, false),
        };
        // Nobody here sends a request before the last answer has ended.
        if used < bytes.len() { Err(broken("bytes after the end of a message")) } else { Ok(is_done) }
    }
}

impl Chunk {
    /// How much was used, and whether the body has ended.
    fn feed(&mut self, bytes: &[u8], content: &mut impl FnMut(&[u8])) -> io::Result<(usize, bool)> {
        let mut at = 0;
        while at < bytes.len() {
            if let Self::Data(left) = self {
                let here = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len() - at);
                content(&bytes[at..at + here]);
                at += here;
                *left -= here as u64;
                if *left == 0 {
                    *self = Self::AfterData;
                }
                continue;
            }
            self.step(bytes[at])?;
            at += 1;
            if matches!(self, Self::End) {
                return Ok((at, true));
            }
        }
        Ok((at, false))
    }

    /// One byte that is not content.
    fn step(&mut self, byte: u8) -> io::Result<()> {
        *self = match (&*self, byte) {
            (Self::Size(0), b'\n') | (Self::Extension(0), b'\n') => Self::Trailer { empty: true },
            (Self::Size(size) | Self::Extension(size), b'\n') => Self::Data(*size),
            (Self::Size(size), b'\r' | b';') | (Self::Extension(size), _) => Self::Extension(*size),
            (Self::Size(size), digit) => {
                let digit = char::from(digit).to_digit(16).ok_or_else(|| broken("a chunk's size is no number"))?;
                let grown = size.checked_mul(16).ok_or_else(|| broken("a chunk's size is too large"))?;
                Self::Size(grown + u64::from(digit))
            }
            (Self::AfterData, b'\n') => Self::Size(0),
            (Self::AfterData, _) => Self::AfterData,
            (Self::Trailer { empty: true }, b'\n') => Self::End,
            (Self::Trailer { .. }, b'\n') => Self::Trailer { empty: true },
            (Self::Trailer { empty }, b'\r') => Self::Trailer { empty: *empty },
            (Self::Trailer { .. }, _) => Self::Trailer { empty: false },
            (Self::Data(_) | Self::End, _) => return Err(broken("bytes after the end of a message")),
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Message;

    fn read(text: &str, pieces: usize) -> (String, bool) {
        let (mut message, mut content, mut is_done) = (Message::response(), Vec::new(), false);
        for piece in text.as_bytes().chunks(pieces) {
            assert!(!is_done);
            is_done = message.feed(piece, |bytes| content.extend_from_slice(bytes)).unwrap();
        }
        assert_eq!(message.status, 200);
        (String::from_utf8(content).unwrap(), is_done)
    }

    #[test]
    fn bodies_end_where_they_say_however_they_are_cut() {
        let length = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
        let chunked =
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\na: b\r\n\r\n";
        for text in [length, chunked] {
            for pieces in 1..=text.len() {
                assert_eq!(read(text, pieces), ("hello".to_owned(), true));
            }
            assert!(!read(&text[..text.len() - 1], 7).1);
        }
    }

    #[test]
    fn what_follows_the_end_is_an_error() {
        let text = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nab";
        assert!(Message::response().feed(text, |_| {}).is_err());
    }
}
