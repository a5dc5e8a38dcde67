//! What stands around a proxy that is counted: made-up engines and a client, all played by the test's own thread, one step after
//! the other. So nothing depends on who is faster, and no step allocates.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use memchr::memmem;
use moriio_proxy::engine::{Mode, Role};
use serde_json::json;

use crate::PATIENCE;

/// Of what the engines say they are.
const RELEASE: &str = "0.32.0";
/// Longer than any message here.
const BUFFER: usize = 64 * 1024;
/// In every exchange nothing happens for so long: the proxy takes prefill's answer and decode's each by itself in WRITE, too, and the
/// thread that writes its log has to be woken again. Where that is too short for a busy machine, the exchange costs less.
const PAUSE: Duration = Duration::from_millis(10);
/// Of a transfer id in a leg, and behind it in prefill's answer.
const TRANSFER_ID: &[u8] = b"\"transfer_id\":\"";
const EVENT: &str = "data: {\"id\":\"cmpl-0123456789abcdef0123456789abcdef\",\"object\":\"text_completion\",\
    \"created\":1700000000,\"model\":\"sim-model\",\"choices\":[{\"index\":0,\"text\":\" word\",\"logprobs\":null,\
    \"finish_reason\":null,\"stop_reason\":null}]}\n\n";

/// An engine: its registration, a thread that answers probes, and the connection that legs come by.
struct Engine {
    connections: Receiver<TcpStream>,
    leg: Option<TcpStream>,
    _registration: TcpStream,
    _kv: [TcpListener; 2],
}

/// A client's connection and the two engines.
pub struct Stage {
    mode: Mode,
    client: TcpStream,
    prefill: Engine,
    decode: Engine,
    buffer: Box<[u8]>,
    asks: [Vec<u8>; 2],
    prefilled: Vec<u8>,
    answer: Vec<u8>,
    begin: Vec<u8>,
    event: Vec<u8>,
    end: Vec<u8>,
}

impl Stage {
    /// Engines that register once, and a client, as soon as the proxy would serve it.
    pub fn new(mode: Mode, http: SocketAddr, registration: SocketAddr) -> Stage {
        let (prefill, decode) =
            (Engine::new(Role::Prefill, mode, registration), Engine::new(Role::Decode, mode, registration));
        let buffer = vec![0; BUFFER].into();
        let params = json!({"do_remote_prefill": true, "do_remote_decode": false, "remote_block_ids": [[4, 5, 6]],
            "remote_engine_id": "127.0.0.1:6301", "remote_host": "127.0.0.1", "remote_handshake_port": "6301",
            "remote_notify_port": "61005", "remote_dp_rank": 0, "remote_dp_rank_override": true, "remote_dp_size": 1,
            "remote_dp_size_local": 1, "tp_size": 1, "transfer_id": format!("tx-{:032}", 0)});
        let head =
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
        let mut stage = Stage {
            mode,
            client: connect(http),
            prefill,
            decode,
            buffer,
            asks: [false, true].map(|stream| ask(http, stream)),
            prefilled: whole(&completion(&params)),
            answer: whole(&completion(&json!(null))),
            begin: [head.as_bytes(), &chunk(EVENT)].concat(),
            event: chunk(EVENT),
            end: [&chunk("data: [DONE]\n\n")[..], b"0\r\n\r\n"].concat(),
        };
        stage.until_ready();
        stage
    }

    fn until_ready(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.client.write_all(b"GET /ready HTTP/1.1\r\nhost: proxy\r\n\r\n").unwrap();
            let length = read_whole(&mut self.client, &mut self.buffer);
            let answer = String::from_utf8_lossy(&self.buffer[..length]);
            if answer.starts_with("HTTP/1.1 200 ") {
                return;
            }
            assert!(Instant::now() < deadline, "waited in vain for the engines: {answer}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// An exchange whose answer comes whole.
    pub fn exchange(&mut self) {
        self.legs(false);
        self.decode.say(&self.answer);
        read_whole(&mut self.client, &mut self.buffer);
        assert!(self.buffer.starts_with(b"HTTP/1.1 200 "));
    }

    /// The beginning of a stream, up to its first event.
    pub fn begin_stream(&mut self) {
        self.legs(true);
        self.decode.say(&self.begin);
        let length = read_until(&mut self.client, &mut self.buffer, b"\n\n\r\n");
        assert!(self.buffer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&self.buffer[..length]));
    }

    /// One more event of the stream.
    pub fn chunk(&mut self) {
        self.decode.say(&self.event);
        read_until(&mut self.client, &mut self.buffer, b"\n\n\r\n");
    }

    /// The end of the stream.
    pub fn end_stream(&mut self) {
        self.decode.say(&self.end);
        read_until(&mut self.client, &mut self.buffer, b"0\r\n\r\n");
    }

    /// A request, and its legs up to where decode's answer is due.
    fn legs(&mut self, stream: bool) {
        self.client.write_all(&self.asks[usize::from(stream)]).unwrap();
        self.prefill.hear(&mut self.buffer);
        let id = memmem::find(&self.buffer, TRANSFER_ID).expect("a transfer id") + TRANSFER_ID.len();
        let place = memmem::find(&self.prefilled, TRANSFER_ID).expect("a place for it") + TRANSFER_ID.len();
        let length = memchr::memchr(b'"', &self.buffer[id..]).expect("its end");
        assert_eq!(self.prefilled[place + length], b'"', "ids are as long as they were");
        self.prefilled[place..place + length].copy_from_slice(&self.buffer[id..id + length]);
        if self.mode == Mode::Write {
            self.decode.hear(&mut self.buffer);
        }
        self.prefill.say(&self.prefilled);
        thread::sleep(PAUSE);
        if self.mode == Mode::Read {
            self.decode.hear(&mut self.buffer);
        }
    }
}

impl Engine {
    fn new(role: Role, mode: Mode, registration: SocketAddr) -> Engine {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let kv = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [handshake, notify] = [0, 1].map(|n: usize| kv[n].local_addr().unwrap().port());
        let letter = if role == Role::Prefill { "P" } else { "D" };
        let says = json!({
            "type": letter, "http_address": listener.local_addr().unwrap().to_string(), "dp_size": 1, "tp_size": 1,
            "transfer_mode": mode.as_str(),
            "zmq_address": format!("host:127.0.0.1,handshake:{handshake},notify:{notify}"),
        });
        let (legs, connections) = mpsc::channel();
        thread::spawn(move || {
            for connection in listener.incoming() {
                let (connection, legs) = (connection.unwrap(), legs.clone());
                thread::spawn(move || {
                    let mut method = [0; 4];
                    // A leg that nobody waits for any more comes at the end of a failed test.
                    match connection.peek(&mut method) {
                        Ok(1..) if method == *b"POST" => drop(legs.send(connection)),
                        Ok(1..) => probes(connection),
                        _ => {}
                    }
                });
            }
        });
        Engine { connections, leg: None, _registration: register(registration, &says), _kv: kv }
    }

    /// Reads a leg. All come by one connection, unless it rested too long on a busy machine and was closed.
    fn hear(&mut self, buffer: &mut [u8]) {
        let is_over = |leg: &mut TcpStream| !matches!(leg.peek(&mut [0]), Ok(1..));
        if self.leg.as_mut().is_none_or(is_over) {
            let leg = self.connections.recv_timeout(PATIENCE).expect("a leg");
            patient(&leg);
            self.leg = Some(leg);
        }
        read_whole(self.leg.as_mut().expect("a leg"), buffer);
    }

    fn say(&mut self, text: &[u8]) {
        self.leg.as_mut().expect("a leg").write_all(text).unwrap();
    }
}

/// Answers one connection's probes until it ends.
fn probes(mut connection: TcpStream) {
    let version = whole(&json!({"version": RELEASE}).to_string());
    let mut buffer = [0; 4096];
    // A probe is short and comes at once.
    while let Ok(1..) = connection.read(&mut buffer) {
        if connection.write_all(&version).is_err() {
            return;
        }
    }
}

/// Registers once, by the little of ZMTP 3.0 that a DEALER has to say.
fn register(registration: SocketAddr, says: &serde_json::Value) -> TcpStream {
    let mut greeting = [0; 64];
    (greeting[0], greeting[9], greeting[10]) = (0xff, 0x7f, 3);
    greeting[12..16].copy_from_slice(b"NULL");
    let ready = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00\x00";
    let payload = rmp_serde::to_vec_named(says).unwrap();
    let mut connection = connect(registration);
    connection.write_all(&greeting).unwrap();
    connection.write_all(&[&[4, u8::try_from(ready.len()).unwrap()][..], ready].concat()).unwrap();
    connection.write_all(&[&[2][..], &(payload.len() as u64).to_be_bytes(), &payload].concat()).unwrap();
    connection
}

fn connect(to: SocketAddr) -> TcpStream {
    let connection = TcpStream::connect(to).unwrap();
    patient(&connection);
    connection
}

fn patient(connection: &TcpStream) {
    connection.set_nodelay(true).unwrap();
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
}

fn ask(http: SocketAddr, stream: bool) -> Vec<u8> {
    let prompt = "a few words more, ".repeat(50);
    let body = json!({"model": "sim-model", "prompt": prompt, "max_tokens": 1000, "stream": stream}).to_string();
    let length = body.len();
    let head = format!("POST /v1/completions HTTP/1.1\r\nhost: {http}\r\ncontent-type: application/json\r\n");
    format!("{head}accept: */*\r\nuser-agent: counted\r\ncontent-length: {length}\r\n\r\n{body}").into_bytes()
}

fn completion(params: &serde_json::Value) -> String {
    let choice = json!({"index": 0, "text": " word", "logprobs": null, "finish_reason": "length", "stop_reason": null});
    let usage = json!({"prompt_tokens": 256, "total_tokens": 257, "completion_tokens": 1});
    json!({"id": "cmpl-0123456789abcdef0123456789abcdef", "object": "text_completion", "created": 1_700_000_000,
        "model": "sim-model", "choices": [choice], "usage": usage, "kv_transfer_params": params})
    .to_string()
}

fn whole(body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}").into_bytes()
}

fn chunk(content: &str) -> Vec<u8> {
    format!("{:x}\r\n{content}\r\n", content.len()).into_bytes()
}

/// Reads a message that says its length, and nothing comes behind it.
fn read_whole(connection: &mut TcpStream, buffer: &mut [u8]) -> usize {
    read(connection, buffer, |come| {
        let Some(head) = memmem::find(come, b"\r\n\r\n") else { return false };
        let name = b"content-length: ";
        let is_name = |bytes: &[u8]| bytes.eq_ignore_ascii_case(name);
        let value = come[..head].windows(name.len()).position(is_name).expect("a content-length") + name.len();
        let digits = come[value..].iter().take_while(|byte| byte.is_ascii_digit());
        let length = digits.fold(0, |length, digit| length * 10 + usize::from(digit - b'0'));
        come.len() >= head + 4 + length
    })
}

/// Reads until what has come ends so.
fn read_until(connection: &mut TcpStream, buffer: &mut [u8], end: &[u8]) -> usize {
    read(connection, buffer, |come| come.ends_with(end))
}

fn read(connection: &mut TcpStream, buffer: &mut [u8], is_enough: impl Fn(&[u8]) -> bool) -> usize {
    let mut length = 0;
    while !is_enough(&buffer[..length]) {
        let come = connection.read(&mut buffer[length..]).expect("the next step in time");
        assert!(come > 0, "the connection ended behind {}", String::from_utf8_lossy(&buffer[..length]));
        length += come;
    }
    length
}
