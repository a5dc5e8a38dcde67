use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::registration::socket::guard::gate::{GREETING, ROUTER_READY};
use crate::registration::socket::guard::identity::Identity;
use crate::registration::socket::guard::link::{Den, Reserve};
use crate::registration::socket::guard::reject::Reject;
use crate::registration::socket::guard::{Guard, Limits, bind};

const PATIENCE: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(200);
const DEALER: &[u8] = b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06DEALER";
/// The guard's greeting, and its READY with an identity in it.
const INTRODUCTION: usize = 64 + 2 + 6 + 11 + 5 + 6 + 8 + 5 + 31;

/// A guard before a ROUTER that the test plays itself.
struct Bed {
    address: SocketAddr,
    guard: Arc<Guard>,
    router: UnixListener,
    rejects: mpsc::UnboundedReceiver<Reject>,
    den: Den,
}

fn limits() -> Limits {
    Limits { max_peers: 100, per_source: 100, handshake: PATIENCE, message: PATIENCE }
}

fn bed(limits: Limits) -> Bed {
    let mut den = Den::create(u64::MAX);
    let (link, inner) = den.open().unwrap();
    inner.set_nonblocking(true).unwrap();
    let (report, rejects) = mpsc::unbounded_channel();
    let guard = Arc::new(Guard::new(limits, Arc::new(link), move |reason| report.send(reason).unwrap_or_default()));
    let socket = bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(Arc::clone(&guard).run(TcpListener::from_std(socket).unwrap()));
    Bed { address, guard, router: UnixListener::from_std(inner).unwrap(), rejects, den }
}

impl Bed {
    async fn connect(&self, bytes: &[u8]) -> TcpStream {
        let mut peer = TcpStream::connect(self.address).await.unwrap();
        // The guard may be done with the peer before the peer has written.
        let _ = peer.write_all(bytes).await;
        peer
    }

    async fn shaken(&self) -> TcpStream {
        let mut peer = self.connect(&[&GREETING, DEALER].concat()).await;
        let answer = exactly(&mut peer, GREETING.len() + ROUTER_READY.len()).await;
        assert_eq!(answer, [&GREETING, ROUTER_READY].concat());
        peer
    }

    /// Accepts as the ROUTER does; returns the address in the identity.
    async fn accept(&self) -> (UnixStream, SocketAddr) {
        let (mut inner, _) = timeout(PATIENCE, self.router.accept()).await.unwrap().unwrap();
        inner.write_all(&[&GREETING, ROUTER_READY].concat()).await.unwrap();
        let introduction = exactly(&mut inner, INTRODUCTION).await;
        let address = Identity::address(&introduction[INTRODUCTION - 31..]).unwrap();
        (inner, address)
    }

    async fn reject(&mut self) -> Reject {
        timeout(PATIENCE, self.rejects.recv()).await.unwrap().unwrap()
    }
}

async fn exactly(stream: &mut (impl AsyncReadExt + Unpin), count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    timeout(PATIENCE, stream.read_exact(&mut bytes)).await.unwrap().unwrap();
    bytes
}

/// Reads to the end; a reset is an end as well.
async fn to_end(stream: &mut (impl AsyncReadExt + Unpin)) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.unwrap();
    bytes
}

#[tokio::test]
async fn router_learns_the_peers_address_and_gets_its_messages() {
    let bed = bed(limits());
    let mut peer = bed.shaken().await;
    let (mut inner, address) = bed.accept().await;
    assert_eq!(address, peer.local_addr().unwrap());
    peer.write_all(b"\x01\x00\x00\x02hi").await.unwrap();
    assert_eq!(exactly(&mut inner, 6).await, b"\x01\x00\x00\x02hi");
    drop(peer);
    assert_eq!(to_end(&mut inner).await, b"");
}

#[tokio::test]
async fn last_words_before_a_close_arrive() {
    let bed = bed(limits());
    let mut peer = bed.connect(&[&GREETING, DEALER, b"\x00\x03bye"].concat()).await;
    peer.shutdown().await.unwrap();
    let (mut inner, _) = bed.accept().await;
    assert_eq!(to_end(&mut inner).await, b"\x00\x03bye");
}

#[tokio::test]
async fn heartbeats_keep_the_connection() {
    let bed = bed(limits());
    let mut peer = bed.shaken().await;
    let (mut inner, _) = bed.accept().await;
    peer.write_all(b"\x04\x0b\x04PING\x00\x64ping\x00\x01x").await.unwrap();
    assert_eq!(exactly(&mut peer, 11).await, b"\x04\x09\x04PONGping");
    assert_eq!(exactly(&mut inner, 3).await, b"\x00\x01x");
}

#[tokio::test]
async fn messages_before_a_bad_one_arrive() {
    let mut bed = bed(limits());
    let mut peer = bed.shaken().await;
    let (mut inner, _) = bed.accept().await;
    peer.write_all(b"\x00\x01x\x80").await.unwrap();
    assert_eq!(to_end(&mut inner).await, b"\x00\x01x");
    to_end(&mut peer).await;
    drop(inner);
    assert_eq!(bed.reject().await, Reject::Flags);
}

#[tokio::test]
async fn unfinished_handshakes_end_in_time() {
    let mut bed = bed(Limits { handshake: SHORT, ..limits() });
    for bytes in [&b""[..], &GREETING[..1], &GREETING[..20], &GREETING, &[&GREETING, &DEALER[..9]].concat()] {
        let mut peer = bed.connect(bytes).await;
        to_end(&mut peer).await;
        assert_eq!(bed.reject().await, Reject::Timeout, "{bytes:?}");
    }
}

#[tokio::test]
async fn begun_messages_end_in_time_and_silence_may_last() {
    let mut bed = bed(Limits { message: SHORT, ..limits() });
    let mut silent = bed.shaken().await;
    let (mut silent_inner, _) = bed.accept().await;
    for begun in [&b"\x00"[..], b"\x00\x05abc", b"\x01\x01x", b"\x04\x05"] {
        let mut peer = bed.shaken().await;
        let inner = bed.accept().await;
        peer.write_all(begun).await.unwrap();
        to_end(&mut peer).await;
        drop(inner);
        assert_eq!(bed.reject().await, Reject::Timeout, "{begun:?}");
    }
    // Silent for at least four message limits by now.
    silent.write_all(b"\x00\x01x").await.unwrap();
    assert_eq!(exactly(&mut silent_inner, 3).await, b"\x00\x01x");
}

#[tokio::test]
async fn router_that_does_not_answer_ends_the_connection() {
    let mut bed = bed(Limits { handshake: Duration::from_secs(1), ..limits() });
    loop {
        let mut peer = bed.connect(&[&GREETING, DEALER].concat()).await;
        to_end(&mut peer).await;
        match bed.reject().await {
            Reject::Unanswered => break,
            // A busy machine can be late with the peer's own half.
            reason => assert_eq!(reason, Reject::Timeout),
        }
    }
}

#[tokio::test]
async fn one_address_gets_its_share_only() {
    let mut bed = bed(Limits { per_source: 2, ..limits() });
    let first = bed.shaken().await;
    let (mut first_inner, _) = bed.accept().await;
    let _second = bed.shaken().await;
    let _second_inner = bed.accept().await;
    to_end(&mut TcpStream::connect(bed.address).await.unwrap()).await;
    assert_eq!(bed.reject().await, Reject::Source);
    drop(first);
    to_end(&mut first_inner).await;
    drop(first_inner);
    // The place is free a moment after the link has closed.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let mut peer = TcpStream::connect(bed.address).await.unwrap();
        let written = peer.write_all(&GREETING).await;
        if written.is_ok() && peer.read_exact(&mut [0; 64]).await.is_ok() {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline);
    }
}

#[tokio::test]
async fn relinking_ends_connections_to_the_router_before() {
    let mut bed = bed(limits());
    let mut peer = bed.shaken().await;
    let (mut inner, _) = bed.accept().await;
    let (link, listener) = bed.den.open().unwrap();
    listener.set_nonblocking(true).unwrap();
    bed.guard.relink(Arc::new(link));
    assert_eq!(to_end(&mut peer).await, b"");
    to_end(&mut inner).await;
    bed.router = UnixListener::from_std(listener).unwrap();
    let again = bed.shaken().await;
    assert_eq!(bed.accept().await.1, again.local_addr().unwrap());
}

#[tokio::test]
async fn links_are_private_and_leave_nothing_behind() {
    let mut den = Den::create(u64::MAX);
    let (link, listener) = den.open().unwrap();
    let path = listener.local_addr().unwrap().as_pathname().unwrap().to_owned();
    let directory = path.parent().unwrap().to_owned();
    assert_eq!(directory.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    link.connect(Reserve::take().unwrap()).await.unwrap();
    drop(den);
    assert!(!directory.exists());
}

#[test]
fn bind_errors_name_the_address() {
    let holder = bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let taken = holder.local_addr().unwrap();
    let error = bind(taken).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    assert!(error.to_string().contains(&taken.to_string()), "{error}");
}
