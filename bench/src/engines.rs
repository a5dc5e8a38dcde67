//! Engines that compute nothing: the same ones serve every subject, whichever mode it registered them for.
//!
//! A prefill engine answers one token with transfer params; a decode engine answers as many as it is asked for, whole or as a
//! stream in which every chunk is a write of its own, for whoever reads it. Bodies are not kept: only their ends are looked at.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use memchr::memmem;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{spawn_blocking, spawn_local, yield_now};
use tokio::time::{Instant, sleep_until};

use crate::clock;
use crate::register::{Registration, ping};
use crate::stamps::stamp;
use crate::wire::{Message, read_with};

/// What is kept of either end of a body.
const ENDS: usize = 4096;
/// Bytes of a prompt in one block of KV.
const BLOCK: usize = 64;
/// Engines that register from the same address.
const ENGINES_A_HOST: u16 = 64;
const RELEASE: &str = "0.33.0";
/// What a chunk of a stream says.
const EVENT: &str = concat!(
    r#""id":"cmpl-0123456789abcdef0123456789abcdef","object":"text_completion","created":1700000000,"model":"sim-model","#,
    r#""choices":[{"index":0,"text":" word","logprobs":null,"finish_reason":null,"stop_reason":null}]"#
);
/// Bodies of which so much is still to come are large.
const LARGE: u64 = 1 << 20;
/// What a thread that reads a large body reads at once.
const PIECE: usize = 64 << 10;

thread_local! {
    /// Block ids as JSON has them, by their number.
    static BLOCKS: RefCell<HashMap<usize, Rc<str>>> = RefCell::default();
}

#[derive(Args)]
pub(crate) struct Options {
    /// Prefill engines
    #[arg(long, default_value_t = 1)]
    prefill: u16,
    /// Decode engines
    #[arg(long, default_value_t = 1)]
    decode: u16,
    /// Data-parallel ranks of each engine
    #[arg(long, default_value_t = 1)]
    dp: u32,
    /// The first engine's HTTP port, the others follow, prefill first; KV ports come after the last
    #[arg(long)]
    port: u16,
    /// Where to register, and in which mode; may be given often
    #[arg(long, value_name = "MODE:HOST:PORT")]
    register: Vec<String>,
    /// Milliseconds between two pings
    #[arg(long, default_value_t = 1000)]
    ping_interval: u64,
    /// Milliseconds between two tokens of a stream
    #[arg(long, default_value_t = 0)]
    token_delay: u64,
    /// Let each chunk of a stream say when it was written, and read and answer large bodies on threads of lowest priority, so
    /// that they delay no stream
    #[arg(long)]
    stamped: bool,
}

struct Engine {
    is_prefill: bool,
    port: u16,
    handshake: u16,
    notify: u16,
    dp: u32,
    token_delay: Duration,
    is_stamped: bool,
}

/// Serves until the process is ended.
pub(crate) async fn run(options: Options) -> io::Result<()> {
    let count = options.prefill + options.decode;
    let ranks = options.dp as u16;
    for number in 0..count {
        let handshake = options.port + count + number * ranks * 2;
        let engine = Arc::new(Engine {
            is_prefill: number < options.prefill,
            port: options.port + number,
            handshake,
            notify: handshake + ranks,
            dp: options.dp,
            token_delay: Duration::from_millis(options.token_delay),
            is_stamped: options.stamped,
        });
        for port in [engine.handshake, engine.notify] {
            spawn_local(take_and_drop(TcpListener::bind(("127.0.0.1", port)).await?));
        }
        let listener = TcpListener::bind(("127.0.0.1", engine.port)).await?;
        // A proxy limits how many peers one address may be.
        let from = Ipv4Addr::new(127, 0, 0, 1 + (number / ENGINES_A_HOST) as u8);
        for to in &options.register {
            let wrong = || io::Error::other(format!("not MODE:HOST:PORT: {to}"));
            let (mode, address) = to.split_once(':').ok_or_else(wrong)?;
            let address = address.parse().map_err(|_| wrong())?;
            let interval = Duration::from_millis(options.ping_interval);
            spawn_local(ping(address, from, engine.registration(mode), interval));
        }
        spawn_local(accept(engine, listener));
    }
    std::future::pending().await
}

/// A KV port: it is looked at, and nothing is sent to it.
async fn take_and_drop(listener: TcpListener) {
    while listener.accept().await.is_ok() {}
}

async fn accept(engine: Arc<Engine>, listener: TcpListener) {
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            let engine = engine.clone();
            spawn_local(async move {
                // A client that leaves is none of the engine's business.
                let _ = engine.serve(stream).await;
            });
        }
    }
}

/// What a request asks for, as far as it matters here.
#[derive(Default)]
struct Ask {
    head: Vec<u8>,
    tail: Vec<u8>,
    length: usize,
}

impl Ask {
    fn add(&mut self, bytes: &[u8]) {
        self.length += bytes.len();
        let free = ENDS - self.head.len();
        self.head.extend_from_slice(&bytes[..free.min(bytes.len())]);
        if bytes.len() >= ENDS {
            self.tail.clear();
        } else if self.tail.len() + bytes.len() > ENDS * 2 {
            self.tail.drain(..self.tail.len() - ENDS);
        }
        self.tail.extend_from_slice(&bytes[bytes.len().saturating_sub(ENDS)..]);
    }

    /// What follows a key at either end.
    fn after(&self, key: &[u8]) -> Option<&[u8]> {
        let found = |bytes: &'_ [u8]| memmem::rfind(bytes, key).map(|at| at + key.len());
        found(&self.tail).map(|at| &self.tail[at..]).or_else(|| found(&self.head).map(|at| &self.head[at..]))
    }

    fn tokens(&self) -> usize {
        let digits = self.after(b"\"max_tokens\":").unwrap_or_default();
        let digits = digits.iter().skip_while(|byte| **byte == b' ').take_while(|byte| byte.is_ascii_digit());
        digits
            .fold(0, |number: usize, digit| number.saturating_mul(10).saturating_add(usize::from(digit - b'0')))
            .max(1)
    }

    fn is_streamed(&self) -> bool {
        self.after(b"\"stream\":").is_some_and(|value| value.trim_ascii_start().starts_with(b"true"))
    }

    fn transfer_id(&self) -> &str {
        let value = self.after(b"\"transfer_id\":").unwrap_or_default();
        let id =
            value.trim_ascii_start().strip_prefix(b"\"").and_then(|value| value.split(|byte| *byte == b'"').next());
        id.and_then(|id| std::str::from_utf8(id).ok()).unwrap_or("tx-none")
    }
}

impl Engine {
    fn registration(&self, mode: &str) -> Registration {
        Registration {
            role: if self.is_prefill { "P" } else { "D" },
            http_address: format!("127.0.0.1:{}", self.port),
            zmq_address: format!("host:127.0.0.1,handshake:{},notify:{}", self.handshake, self.notify),
            dp_size: self.dp,
            tp_size: 1,
            transfer_mode: mode.to_uppercase(),
        }
    }

    async fn serve(self: Arc<Self>, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        loop {
            let (mut request, mut ask) = (Message::request(), Ask::default());
            while let Some(is_done) =
                read_with(&mut stream, |bytes| request.feed(bytes, |content| ask.add(content))).await?
            {
                if is_done || (self.is_stamped && request.left() >= LARGE) {
                    break;
                }
            }
            if request.path.is_empty() {
                return Ok(());
            }
            if request.left() >= LARGE {
                stream = self.clone().serve_apart(stream, request, ask).await?;
            } else if !self.is_prefill && request.is_generation() && ask.is_streamed() {
                self.stream(&mut stream, ask.tokens()).await?;
            } else {
                stream.write_all(&self.answer(&request, &ask)).await?;
            }
        }
    }

    /// Reads the rest of a large body and answers it whole, on a thread that every other goes before.
    async fn serve_apart(
        self: Arc<Self>,
        stream: TcpStream,
        mut request: Message,
        mut ask: Ask,
    ) -> io::Result<TcpStream> {
        let mut stream = stream.into_std()?;
        let serve = move || {
            clock::step_back()?;
            stream.set_nonblocking(false)?;
            let mut buffer = vec![0; PIECE];
            loop {
                let count = stream.read(&mut buffer)?;
                if count == 0 {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
                }
                if request.feed(&buffer[..count], |content| ask.add(content))? {
                    break;
                }
            }
            stream.write_all(&self.answer(&request, &ask))?;
            stream.set_nonblocking(true)?;
            Ok(stream)
        };
        TcpStream::from_std(spawn_blocking(serve).await.map_err(io::Error::other)??)
    }

    /// An answer that is no stream.
    fn answer(&self, request: &Message, ask: &Ask) -> Vec<u8> {
        whole(&match request.path.as_str() {
            "/version" => format!("{{\"version\":\"{RELEASE}\"}}"),
            _ if !request.is_generation() => "{}".to_owned(),
            _ if self.is_prefill => completion(1, &self.transfer_params(request, ask)),
            _ => completion(ask.tokens(), "null"),
        })
    }

    /// The head, then each chunk as it is due.
    async fn stream(&self, stream: &mut TcpStream, tokens: usize) -> io::Result<()> {
        let head =
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
        stream.write_all(head.as_bytes()).await?;
        let plain = chunk(&format!("data: {{{EVENT}}}\n\n"));
        let begin = Instant::now();
        for number in 0..tokens {
            if self.token_delay.is_zero() {
                // Streams take turns, as they do where tokens are computed in batches.
                yield_now().await;
            } else {
                sleep_until(begin + self.token_delay * number as u32).await;
            }
            if self.is_stamped {
                stream.write_all(chunk(&format!("data: {{{EVENT},{}}}\n\n", stamp())).as_bytes()).await?;
            } else {
                stream.write_all(plain.as_bytes()).await?;
            }
        }
        stream.write_all((chunk("data: [DONE]\n\n") + "0\r\n\r\n").as_bytes()).await
    }

    fn transfer_params(&self, request: &Message, ask: &Ask) -> String {
        let ids = block_ids(ask.length.div_ceil(BLOCK));
        let (handshake, notify, rank, dp) = (self.handshake, self.notify, request.rank, self.dp);
        let transfer_id = ask.transfer_id();
        format!(
            "{{\"do_remote_prefill\":true,\"do_remote_decode\":false,\"remote_block_ids\":[[{ids}]],\
             \"remote_engine_id\":\"127.0.0.1:{handshake}\",\"remote_host\":\"127.0.0.1\",\
             \"remote_handshake_port\":\"{handshake}\",\"remote_notify_port\":\"{notify}\",\"remote_dp_rank\":{rank},\
             \"remote_dp_rank_override\":true,\"remote_dp_size\":{dp},\"remote_dp_size_local\":{dp},\"tp_size\":1,\
             \"transfer_id\":\"{transfer_id}\",\"remote_prefill_cached_tokens\":0}}"
        )
    }
}

fn block_ids(count: usize) -> Rc<str> {
    let make = || {
        let mut ids = String::new();
        for id in 0..count {
            let _ = write!(ids, "{}{id}", if id == 0 { "" } else { "," });
        }
        ids.into()
    };
    BLOCKS.with_borrow_mut(|blocks| blocks.entry(count).or_insert_with(make).clone())
}

fn completion(tokens: usize, params: &str) -> String {
    let text = " word".repeat(tokens);
    format!(
        "{{\"id\":\"cmpl-0123456789abcdef0123456789abcdef\",\"object\":\"text_completion\",\"created\":1700000000,\
         \"model\":\"sim-model\",\"choices\":[{{\"index\":0,\"text\":\"{text}\",\"logprobs\":null,\"finish_reason\":\"length\",\
         \"stop_reason\":null}}],\"usage\":{{\"prompt_tokens\":256,\"total_tokens\":272,\"completion_tokens\":{tokens}}},\
         \"kv_transfer_params\":{params}}}"
    )
}

fn whole(body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}").into_bytes()
}

fn chunk(content: &str) -> String {
    format!("{:x}\r\n{content}\r\n", content.len())
}

#[cfg(test)]
mod tests {
    use super::{Ask, ENDS};

    #[test]
    fn what_is_asked_for_is_found_at_either_end() {
        let long = "a".repeat(ENDS * 5);
        for text in [
            format!("{{\"prompt\":\"{long}\",\"max_tokens\":17,\"stream\": true,\"x\":{{\"transfer_id\":\"tx-1\"}}}}"),
            format!("{{\"max_tokens\": 17,\"stream\":true,\"transfer_id\":\"tx-1\",\"prompt\":\"{long}\"}}"),
        ] {
            for piece in [1, 100, ENDS - 1, ENDS * 6] {
                let mut ask = Ask::default();
                text.as_bytes().chunks(piece).for_each(|bytes| ask.add(bytes));
                assert_eq!((ask.tokens(), ask.is_streamed(), ask.transfer_id()), (17, true, "tx-1"));
                assert_eq!(ask.length, text.len());
            }
        }
    }
}
