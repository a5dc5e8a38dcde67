//! Load: so many clients, each with one connection and one request at a time. Every answer is read to its end, and one that is
//! not whole is a failure.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::clock;
use crate::spread::Spread;
use crate::stamps::Stamps;
use crate::wire::{Message, broken, read_with};

/// Streams that are being opened at the same time, when they are to stay open.
const OPENING: usize = 32;
const OPENS_WITHIN: Duration = Duration::from_secs(5);

#[derive(Args, Clone)]
pub(crate) struct Options {
    /// Where to send requests
    #[arg(long)]
    target: SocketAddr,
    /// Clients
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// For how long new requests are sent; those under way are seen to their end
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// How many requests each client sends at most
    #[arg(long, default_value_t = usize::MAX)]
    requests: usize,
    /// Seconds over which the clients begin
    #[arg(long, default_value_t = 0.0)]
    ramp: f64,
    /// Milliseconds that a client waits after each answer
    #[arg(long, default_value_t = 0)]
    pause: u64,
    /// Bytes of the prompt
    #[arg(long, default_value_t = 1024)]
    prompt: usize,
    /// Tokens to ask for
    #[arg(long, default_value_t = 16)]
    tokens: usize,
    /// Ask for a stream
    #[arg(long)]
    stream: bool,
    /// Take from each chunk when its engine wrote it, and report how long it was under way
    #[arg(long)]
    stamped: bool,
    /// A conversation of an agent, of many messages with tool calls, in place of one prompt
    #[arg(long)]
    agent: bool,
    /// Open a stream for each client, say so when all have begun, and hold them until stdin closes
    #[arg(long)]
    hold: bool,
}

struct Seen {
    requests: u64,
    failures: u64,
    first_failure: Option<String>,
    events: u64,
    bytes: u64,
    first: Spread,
    gaps: Spread,
    delays: Spread,
    whole: Spread,
}

struct Load {
    options: Options,
    request: Bytes,
    until: Instant,
    seen: RefCell<Seen>,
}

/// Sends, waits, prints.
pub(crate) async fn run(options: Options) -> io::Result<()> {
    let begin = Instant::now();
    let seen = Seen {
        requests: 0,
        failures: 0,
        first_failure: None,
        events: 0,
        bytes: 0,
        first: Spread::new(),
        gaps: Spread::new(),
        delays: Spread::new(),
        whole: Spread::new(),
    };
    let load = Rc::new(Load {
        request: request(&options),
        until: begin + Duration::from_secs_f64(options.seconds),
        seen: RefCell::new(seen),
        options,
    });
    if load.options.hold {
        return load.hold().await;
    }
    let mut clients = JoinSet::new();
    for number in 0..load.options.connections {
        clients.spawn_local(load.clone().client(number));
    }
    while clients.join_next().await.is_some() {}
    print(&load.report(begin.elapsed()))
}

fn print(value: &Value) -> io::Result<()> {
    use std::io::Write;
    writeln!(io::stdout(), "{value}")
}

/// A request's bytes, made once, and a large prompt copied but once.
fn request(options: &Options) -> Bytes {
    let (tokens, stream, target) = (options.tokens, options.stream, options.target);
    let (path, field, prompt, end) = if options.agent {
        ("chat/completions", "\"messages\":[", conversation(options.prompt).into_bytes(), "]")
    } else {
        ("completions", "\"prompt\":\"", vec![b'a'; options.prompt], "\"")
    };
    let before = format!("{{\"model\":\"sim-model\",{field}");
    let after = format!("{end},\"max_tokens\":{tokens},\"stream\":{stream}}}");
    let length = before.len() + prompt.len() + after.len();
    let head = format!(
        "POST /v1/{path} HTTP/1.1\r\nhost: {target}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    [head.as_bytes(), before.as_bytes(), &prompt, after.as_bytes()].concat().into()
}

/// Messages of a coding agent, about so many bytes: text with escapes, calls with JSON inside JSON, results.
fn conversation(bytes: usize) -> String {
    let call = concat!(
        r#"{"role":"assistant","content":null,"tool_calls":[{"id":"call_0123456789abcdef","type":"function","#,
        r#""function":{"name":"read_file","arguments":"{\"path\": \"src/main.rs\", \"from\": 1}"}}]}"#
    );
    let line = r#"    let value = map.get(\"key\").unwrap_or(&default); // a line of a file\n"#;
    let result = format!(r#"{{"role":"tool","tool_call_id":"call_0123456789abcdef","content":"{}"}}"#, line.repeat(50));
    let mut messages = String::from(r#"{"role":"system","content":"You are a coding agent."}"#);
    while messages.len() < bytes {
        messages += ",";
        messages += call;
        messages += ",";
        messages += &result;
    }
    messages
}

impl Load {
    async fn client(self: Rc<Self>, number: usize) {
        // Spread evenly, and neighbours far from each other.
        let share = (number as f64 * 0.618_033_988_75).fract();
        sleep(Duration::from_secs_f64(self.options.ramp * share)).await;
        let mut connection = None;
        for _ in 0..self.options.requests {
            if Instant::now() >= self.until {
                break;
            }
            let outcome = self.exchange(&mut connection).await;
            if outcome.is_err() {
                connection = None;
            }
            self.count(outcome);
            if self.options.pause > 0 {
                sleep(Duration::from_millis(self.options.pause)).await;
            }
        }
    }

    fn count(&self, outcome: io::Result<()>) {
        let mut seen = self.seen.borrow_mut();
        seen.requests += 1;
        if let Err(error) = outcome {
            seen.failures += 1;
            seen.first_failure.get_or_insert_with(|| error.to_string());
        }
    }

    /// One request and its answer.
    async fn exchange(&self, connection: &mut Option<TcpStream>) -> io::Result<()> {
        let stream = self.connected(connection).await?;
        let mut answer = Answer::new(self);
        stream.write_all(&self.request).await?;
        loop {
            match read_with(stream, |bytes| answer.feed(bytes)).await? {
                Some(true) => return answer.check(),
                Some(false) => {}
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }

    async fn connected<'a>(&self, connection: &'a mut Option<TcpStream>) -> io::Result<&'a mut TcpStream> {
        if connection.is_none() {
            let stream = TcpStream::connect(self.options.target).await?;
            stream.set_nodelay(true)?;
            *connection = Some(stream);
        }
        connection.as_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Streams that stay open after their first output: as many as can be had, if those are fewer.
    async fn hold(self: Rc<Self>) -> io::Result<()> {
        let opening = Rc::new(Semaphore::new(OPENING));
        let is_full = Rc::new(Cell::new(false));
        let mut clients = JoinSet::new();
        for _ in 0..self.options.connections {
            let (load, opening, is_full) = (self.clone(), opening.clone(), is_full.clone());
            clients.spawn_local(async move {
                let _place = opening.acquire().await.ok()?;
                if is_full.get() {
                    return None;
                }
                let stream = timeout(OPENS_WITHIN, load.open()).await.ok().and_then(Result::ok);
                is_full.set(is_full.get() || stream.is_none());
                stream
            });
        }
        let mut open = Vec::new();
        while let Some(stream) = clients.join_next().await {
            open.extend(stream.map_err(io::Error::other)?);
        }
        print(&json!({"open": open.len()}))?;
        // Whoever started this closes stdin.
        tokio::io::stdin().read_to_end(&mut Vec::new()).await?;
        Ok(())
    }

    async fn open(&self) -> io::Result<TcpStream> {
        let mut connection = None;
        self.connected(&mut connection).await?;
        let mut stream = connection.ok_or(io::ErrorKind::NotConnected)?;
        let mut answer = Answer::new(self);
        stream.write_all(&self.request).await?;
        while answer.events == 0 {
            let is_done = read_with(&mut stream, |bytes| answer.feed(bytes)).await?;
            if is_done != Some(false) {
                return Err(broken("a stream that was to stay open ended"));
            }
        }
        Ok(stream)
    }

    fn report(&self, elapsed: Duration) -> Value {
        let seen = self.seen.borrow();
        json!({
            "requests": seen.requests, "failures": seen.failures, "first_failure": seen.first_failure,
            "chunks": seen.events, "bytes": seen.bytes, "seconds": elapsed.as_secs_f64(),
            "first": seen.first.report(), "gap": seen.gaps.report(), "delay": seen.delays.report(), "whole": seen.whole.report(),
        })
    }
}

/// One answer on its way in.
struct Answer<'a> {
    load: &'a Load,
    message: Message,
    begin: Instant,
    last: Option<Instant>,
    newlines: usize,
    events: usize,
    stamps: Stamps,
}

impl<'a> Answer<'a> {
    fn new(load: &'a Load) -> Self {
        Self {
            load,
            message: Message::response(),
            begin: Instant::now(),
            last: None,
            newlines: 0,
            events: 0,
            stamps: Stamps::default(),
        }
    }

    fn feed(&mut self, bytes: &[u8]) -> io::Result<bool> {
        let (mut content, mut newlines) = (0, 0);
        let arrived = self.load.options.stamped.then(clock::now);
        let mut seen = self.load.seen.borrow_mut();
        let is_done = self.message.feed(bytes, |bytes| {
            content += bytes.len();
            newlines += memchr::memchr_iter(b'\n', bytes).count();
            if let Some(arrived) = arrived {
                self.stamps.feed(bytes, |written| seen.delays.add(arrived.saturating_sub(written), 1));
            }
        })?;
        let now = Instant::now();
        seen.bytes += bytes.len() as u64;
        if self.message.status == 200 {
            // An event of a stream is a line and an empty one.
            self.newlines += newlines;
            let events = self.newlines / 2 - self.events;
            if let Some(last) = self.last.filter(|_| events > 0) {
                seen.gaps.add(nanos(now - last), 1);
                seen.gaps.add(0, events as u64 - 1);
            }
            if self.last.is_none() && if self.load.options.stream { events > 0 } else { content > 0 } {
                seen.first.add(nanos(now - self.begin), 1);
                self.last = Some(now);
            }
            if events > 0 {
                self.last = Some(now);
                self.events += events;
                seen.events += events as u64;
            }
        }
        if is_done {
            seen.whole.add(nanos(now - self.begin), 1);
        }
        Ok(is_done)
    }

    /// Whether the answer, which has ended, was what was asked for.
    fn check(&self) -> io::Result<()> {
        let options = &self.load.options;
        if self.message.status != 200 {
            return Err(broken(&format!("status {}", self.message.status)));
        }
        // The last event says that it is the last.
        if options.stream && self.events != options.tokens + 1 {
            return Err(broken(&format!("{} events and not {}", self.events, options.tokens + 1)));
        }
        Ok(())
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
