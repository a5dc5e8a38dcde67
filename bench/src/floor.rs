//! The floor: the least that a relay between a client and two engines can cost. Both legs get the request's bytes as they
//! came, over connections that are kept; prefill's answer is thrown away, decode's passes byte by byte. Nothing is read but
//! where a message ends, and nothing is known of engines but their addresses.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use clap::Args;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;

use crate::wire::{Message, broken, read_with};

#[derive(Args)]
pub(crate) struct Options {
    /// Where to listen
    #[arg(long)]
    port: u16,
    /// Prefill engines
    #[arg(long, required = true)]
    prefill: Vec<SocketAddr>,
    /// Decode engines
    #[arg(long, required = true)]
    decode: Vec<SocketAddr>,
    /// Send decode's leg once prefill has answered, as READ must, and not both at once
    #[arg(long)]
    serial: bool,
}

/// Connections to the engines of one role, taken in turn; the one used last is used next.
struct Pool {
    addresses: Vec<SocketAddr>,
    idle: Vec<RefCell<Vec<TcpStream>>>,
    next: Cell<usize>,
}

impl Pool {
    fn new(addresses: Vec<SocketAddr>) -> Self {
        let idle = addresses.iter().map(|_| RefCell::new(Vec::new())).collect();
        Self { addresses, idle, next: Cell::new(0) }
    }

    async fn take(&self) -> io::Result<(usize, TcpStream)> {
        let place = self.next.get();
        self.next.set((place + 1) % self.addresses.len());
        if let Some(stream) = self.idle[place].borrow_mut().pop() {
            return Ok((place, stream));
        }
        let stream = TcpStream::connect(self.addresses[place]).await?;
        stream.set_nodelay(true)?;
        Ok((place, stream))
    }

    fn give(&self, place: usize, stream: TcpStream) {
        self.idle[place].borrow_mut().push(stream);
    }
}

struct Floor {
    prefill: Pool,
    decode: Pool,
    serial: bool,
}

/// Serves until the process is ended.
pub(crate) async fn run(options: Options) -> io::Result<()> {
    let floor = Rc::new(Floor {
        prefill: Pool::new(options.prefill),
        decode: Pool::new(options.decode),
        serial: options.serial,
    });
    let listener = TcpListener::bind(("127.0.0.1", options.port)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let floor = floor.clone();
        spawn_local(async move {
            // Whatever goes wrong closes the client's connection, which the load counts as a failure.
            let _ = floor.serve(stream).await;
        });
    }
}

impl Floor {
    async fn serve(&self, mut client: TcpStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        loop {
            client.readable().await?;
            let goes_on =
                if self.serial { self.one_by_one(&mut client).await? } else { self.at_once(&mut client).await? };
            if !goes_on {
                return Ok(());
            }
        }
    }

    /// WRITE: each piece of a request goes to both engines as it comes. False if the client has left.
    async fn at_once(&self, client: &mut TcpStream) -> io::Result<bool> {
        let (first, mut prefill) = self.prefill.take().await?;
        let (second, mut decode) = self.decode.take().await?;
        let mut request = Message::request();
        let (mut left_first, mut left_second) = (Vec::new(), Vec::new());
        loop {
            let piece = |bytes: &[u8]| {
                pass(&prefill, bytes, &mut left_first)?;
                pass(&decode, bytes, &mut left_second)?;
                request.feed(bytes, |_| {})
            };
            let Some(is_done) = read_with(client, piece).await? else {
                self.prefill.give(first, prefill);
                self.decode.give(second, decode);
                return Ok(false);
            };
            tokio::try_join!(flush(&mut prefill, &mut left_first), flush(&mut decode, &mut left_second))?;
            if is_done {
                break;
            }
        }
        let prefill_answers = async {
            answered(&mut prefill).await?;
            self.prefill.give(first, prefill);
            Ok::<_, io::Error>(())
        };
        let decode_answers = async {
            relay(&mut decode, client).await?;
            self.decode.give(second, decode);
            Ok(())
        };
        tokio::try_join!(prefill_answers, decode_answers)?;
        Ok(true)
    }

    /// READ: prefill answers first, so that the request has to be kept for decode. False if the client has left.
    async fn one_by_one(&self, client: &mut TcpStream) -> io::Result<bool> {
        let (mut request, mut message) = (Vec::new(), Message::request());
        let read = |bytes: &[u8]| {
            request.extend_from_slice(bytes);
            message.feed(bytes, |_| {})
        };
        if !whole(client, read).await? {
            return Ok(false);
        }
        let (place, mut leg) = self.prefill.take().await?;
        leg.write_all(&request).await?;
        answered(&mut leg).await?;
        self.prefill.give(place, leg);
        let (place, mut leg) = self.decode.take().await?;
        leg.write_all(&request).await?;
        drop(request);
        relay(&mut leg, client).await?;
        self.decode.give(place, leg);
        Ok(true)
    }
}

/// Writes what can be written at once; the rest is left.
fn pass(to: &TcpStream, bytes: &[u8], left: &mut Vec<u8>) -> io::Result<()> {
    let written = match to.try_write(bytes) {
        Ok(written) => written,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
        Err(error) => return Err(error),
    };
    left.extend_from_slice(&bytes[written..]);
    Ok(())
}

/// Writes what was left, and waits for it.
async fn flush(to: &mut TcpStream, left: &mut Vec<u8>) -> io::Result<()> {
    if !left.is_empty() {
        to.write_all(left).await?;
        left.clear();
    }
    Ok(())
}

/// Reads a message to its end; false if the other side left before it began.
async fn whole(stream: &mut TcpStream, mut feed: impl FnMut(&[u8]) -> io::Result<bool>) -> io::Result<bool> {
    let mut has_begun = false;
    loop {
        match read_with(stream, &mut feed).await? {
            Some(true) => return Ok(true),
            Some(false) => has_begun = true,
            None if has_begun => return Err(io::ErrorKind::UnexpectedEof.into()),
            None => return Ok(false),
        }
    }
}

/// Reads prefill's answer and throws it away.
async fn answered(leg: &mut TcpStream) -> io::Result<()> {
    let mut answer = Message::response();
    let is_whole = whole(leg, |bytes| answer.feed(bytes, |_| {})).await?;
    if is_whole { Ok(()) } else { Err(broken("prefill left")) }
}

/// Passes an answer on as it comes.
async fn relay(leg: &mut TcpStream, client: &mut TcpStream) -> io::Result<()> {
    let mut answer = Message::response();
    let mut left = Vec::new();
    loop {
        let piece = |bytes: &[u8]| {
            pass(client, bytes, &mut left)?;
            answer.feed(bytes, |_| {})
        };
        let is_done = read_with(leg, piece).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        flush(client, &mut left).await?;
        if is_done {
            return Ok(());
        }
    }
}
