//! The head of an engine's answer, and what it says of the body and of the connection.

use std::mem::MaybeUninit;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::framing::Framing;
use super::headers;

/// The longest head, interim answers before it included.
pub(super) const LONGEST: usize = 64 * 1024;
/// The most headers in one.
const MOST: usize = 128;

/// No head of HTTP/1.1, or one that leaves open where its body ends (RFC 9112, 6.3): two parties that read it differently would
/// take one answer's bytes for another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no head of HTTP/1.1 that is clear about its body")]
pub(super) struct Malformed;

/// The head of a final answer.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) status: StatusCode,
    pub(super) framing: Framing,
    /// Whether the connection may be used again once the body is over.
    pub(super) keeps_open: bool,
    /// Its text.
    text: Bytes,
}

impl Head {
    /// The head at the front of `input`, behind interim answers, and where it ends; nothing while it is not whole.
    pub(super) fn parse(input: &[u8]) -> Result<Option<(Head, usize)>, Malformed> {
        let mut begin = 0;
        loop {
            let mut room = [const { MaybeUninit::uninit() }; MOST];
            let mut answer = httparse::Response::new(&mut []);
            let length = match parse(&mut answer, &input[begin..], &mut room) {
                Ok(httparse::Status::Complete(length)) => length,
                Ok(httparse::Status::Partial) if input.len() < LONGEST => return Ok(None),
                Ok(httparse::Status::Partial) | Err(_) => return Err(Malformed),
            };
            let end = begin + length;
            match answer.code.and_then(|code| StatusCode::from_u16(code).ok()) {
                // Nobody asked for another protocol.
                Some(StatusCode::SWITCHING_PROTOCOLS) | None => return Err(Malformed),
                Some(status) if status.is_informational() => begin = end,
                Some(status) => {
                    let (framing, keeps_open) = ends(status, answer.version == Some(1), answer.headers)?;
                    let text = Bytes::copy_from_slice(&input[begin..end]);
                    return Ok(Some((Head { status, framing, keeps_open, text }, end)));
                }
            }
        }
    }

    /// Its headers as a client may have them.
    pub(super) fn relayed(&self) -> HeaderMap {
        let mut room = [const { MaybeUninit::uninit() }; MOST];
        let mut answer = httparse::Response::new(&mut []);
        // It was parsed before.
        let _ = parse(&mut answer, &self.text, &mut room);
        let fields = answer.headers;
        let named = |name: &str| names(fields).any(|other| other.eq_ignore_ascii_case(name));
        let mut relayed = HeaderMap::with_capacity(fields.len());
        for field in fields.iter().filter(|field| !headers::is_own(field.name) && !named(field.name)) {
            let value = HeaderValue::from_maybe_shared(self.text.slice_ref(field.value));
            if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(field.name.as_bytes()), value) {
                relayed.append(name, value);
            }
        }
        relayed
    }
}

/// Reads a head with room for its headers that nobody has to clear.
fn parse<'a, 'b>(
    answer: &mut httparse::Response<'a, 'b>,
    text: &'b [u8],
    room: &'a mut [MaybeUninit<httparse::Header<'b>>; MOST],
) -> httparse::Result<usize> {
    httparse::ParserConfig::default().parse_response_with_uninit_headers(answer, text, room)
}

/// The headers that the connection's own header names, as those of one hop.
fn names<'a>(fields: &'a [httparse::Header<'a>]) -> impl Iterator<Item = &'a str> {
    let connection = fields.iter().filter(|field| field.name.eq_ignore_ascii_case("connection"));
    connection
        .filter_map(|field| std::str::from_utf8(field.value).ok())
        .flat_map(|value| value.split(',').map(str::trim))
}

/// Where the body ends, and whether the connection outlives it.
fn ends(status: StatusCode, is_1_1: bool, fields: &[httparse::Header<'_>]) -> Result<(Framing, bool), Malformed> {
    let mut length = None;
    let mut chunked = false;
    for field in fields {
        if field.name.eq_ignore_ascii_case("content-length") {
            let text = std::str::from_utf8(field.value).map_err(|_| Malformed)?.trim();
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            let bytes: u64 = if digits { text.parse().map_err(|_| Malformed)? } else { return Err(Malformed) };
            if length.replace(bytes).is_some() {
                return Err(Malformed);
            }
        } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
            // Anything but one `chunked` is nothing that an engine sends, or that a proxy could pass on.
            let is_chunked = field.value.trim_ascii().eq_ignore_ascii_case(b"chunked");
            if !is_chunked || !is_1_1 || std::mem::replace(&mut chunked, true) {
                return Err(Malformed);
            }
        }
    }
    let keeps_open = is_1_1 && !names(fields).any(|name| name.eq_ignore_ascii_case("close"));
    let framing = match (length, chunked) {
        (Some(_), true) => return Err(Malformed),
        _ if matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) => Framing::Over,
        (Some(bytes), false) => Framing::length(bytes),
        (None, true) => Framing::CHUNKED,
        (None, false) => Framing::UntilClose,
    };
    Ok((framing, keeps_open && framing != Framing::UntilClose))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> Result<Option<(u16, Framing, bool, usize)>, Malformed> {
        let parsed = Head::parse(text.as_bytes())?;
        Ok(parsed.map(|(head, end)| (head.status.as_u16(), head.framing, head.keeps_open, end)))
    }

    #[test]
    fn a_head_says_where_its_body_ends() {
        for (text, status, framing, keeps_open) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", 200, Framing::Length(5), true),
            ("HTTP/1.1 200\r\ncontent-length:0\r\n\r\n", 200, Framing::Over, true),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n", 200, Framing::CHUNKED, true),
            ("HTTP/1.1 200 OK\r\n\r\n", 200, Framing::UntilClose, false),
            ("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", 200, Framing::Length(5), false),
            ("HTTP/1.1 500 No\r\nContent-Length: 5\r\nConnection: a, Close\r\n\r\n", 500, Framing::Length(5), false),
            ("HTTP/1.1 204 No\r\n\r\n", 204, Framing::Over, true),
            ("HTTP/1.1 304 No\r\nContent-Length: 5\r\n\r\n", 304, Framing::Over, true),
            (
                "HTTP/1.1 100 Go\r\n\r\nHTTP/1.1 103 Hint\r\nLink: a\r\n\r\nHTTP/1.1 400 No\r\nContent-Length: 1\r\n\r\n",
                400,
                Framing::Length(1),
                true,
            ),
        ] {
            assert_eq!(head(text), Ok(Some((status, framing, keeps_open, text.len()))), "{text:?}");
            assert_eq!(head(&format!("{text}HTTP")), Ok(Some((status, framing, keeps_open, text.len()))), "{text:?}");
            for cut in 0..text.len() {
                assert_eq!(head(&text[..cut]), Ok(None), "{:?}", &text[..cut]);
            }
        }
    }

    #[test]
    fn a_head_that_leaves_open_where_its_body_ends_is_refused() {
        for fields in [
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Content-Length: 5\r\nContent-Length: 6\r\n",
            "Content-Length: 5\r\nContent-Length: 5\r\n",
            "Content-Length: 5, 5\r\n",
            "Content-Length: +5\r\n",
            "Content-Length: -5\r\n",
            "Content-Length: 0x5\r\n",
            "Content-Length: \r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: identity\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "X: a\r\n folded\r\n",
            "X : a\r\n",
            ": a\r\n",
            "X: a\0b\r\n",
        ] {
            assert_eq!(head(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n")), Err(Malformed), "{fields:?}");
        }
        for text in [
            "HTTP/1.1 101 Other\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/2.0 200 OK\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "ICY 200 OK\r\n\r\n",
            "{}",
        ] {
            assert_eq!(head(text), Err(Malformed), "{text:?}");
        }
    }

    #[test]
    fn a_head_has_a_limit() {
        let long = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(LONGEST));
        assert_eq!(head(&long), Err(Malformed));
        assert_eq!(head(&long[..LONGEST - 1]), Ok(None));
        let many = |count: usize| format!("HTTP/1.1 204 No\r\n{}\r\n", "X: y\r\n".repeat(count));
        assert!(head(&many(MOST)).unwrap().is_some());
        assert_eq!(head(&many(MOST + 1)), Err(Malformed));
    }

    #[test]
    fn headers_of_one_hop_stay() {
        let text = "HTTP/1.1 200 OK\r\nContent-Type: a\r\nConnection: X-Hop, keep-alive\r\nX-HOP: b\r\nKeep-Alive: 5\r\n\
                    Location: /\r\nX-Request-Id: c\r\nSet-Cookie: d\r\nSet-Cookie: e\r\nContent-Length: 3\r\n\r\n";
        let (head, _) = Head::parse(text.as_bytes()).unwrap().unwrap();
        let relayed = head.relayed();
        let shown: Vec<_> = relayed.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(shown, [("content-type", "a"), ("set-cookie", "d"), ("set-cookie", "e"), ("content-length", "3")]);
    }
}
