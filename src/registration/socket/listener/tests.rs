mod attacks;

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use zeromq::util::PeerIdentity;
use zeromq::{DealerSocket, ReqSocket, Socket, SocketOptions, SocketSend, ZmqMessage};

use crate::registration::socket::guard::gate::{GREETING, ROUTER_READY};
use crate::registration::socket::listener::{Ended, Heard, Incident, Listener, ListenerSettings, start, start_with};

const PATIENCE: Duration = Duration::from_secs(60);
const DEALER: &[u8] = b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06DEALER";

struct Bed {
    listener: Listener,
    heard: mpsc::Receiver<Heard>,
    incidents: mpsc::UnboundedReceiver<Incident>,
    deaf: Arc<AtomicBool>,
    news: Arc<Notify>,
}

fn bed(capacity: usize, change: impl FnOnce(&mut ListenerSettings)) -> Bed {
    let mut settings = ListenerSettings::new("127.0.0.1:0".parse().unwrap());
    // A busy machine must not look like a slow peer.
    settings.handshake = PATIENCE;
    settings.message = PATIENCE;
    change(&mut settings);
    let news = settings.news.clone();
    let (sink, heard) = mpsc::channel(capacity);
    let (report, incidents) = mpsc::unbounded_channel();
    let deaf = Arc::new(AtomicBool::new(false));
    let report = move |incident| report.send(incident).unwrap_or_default();
    let listener = start_with(settings, sink, report, Arc::clone(&deaf)).unwrap();
    Bed { listener, heard, incidents, deaf, news }
}

impl Drop for Bed {
    /// Waits for the thread, or the end of the test process could leave its private directory behind.
    fn drop(&mut self) {
        self.listener.stop.cancel();
        let deadline = Instant::now() + PATIENCE;
        while !self.listener.ended.is_cancelled() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Bed {
    async fn dealer(&self) -> DealerSocket {
        let mut dealer = DealerSocket::new();
        dealer.connect(&format!("tcp://{}", self.listener.local_addr())).await.unwrap();
        dealer
    }

    async fn raw(&self, bytes: &[u8]) -> TcpStream {
        let mut peer = TcpStream::connect(self.listener.local_addr()).await.unwrap();
        // The other side may end the connection before it has read everything.
        let _ = peer.write_all(bytes).await;
        peer
    }

    async fn next(&mut self) -> Heard {
        timeout(PATIENCE, self.heard.recv()).await.unwrap().unwrap()
    }

    async fn incident(&mut self, wanted: Incident) {
        let found = async { while self.incidents.recv().await.unwrap() != wanted {} };
        timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("no {wanted:?}"));
    }

    /// A new client is heard, whatever else arrives. It may take several: limits and watchdogs set short by a test can
    /// hit a good client on a busy machine.
    async fn serves_good_client(&mut self) {
        for _ in 0..10 {
            let target = format!("tcp://{}", self.listener.local_addr());
            let mut dealer = DealerSocket::new();
            if dealer.connect(&target).await.is_err() || dealer.send(Bytes::from_static(b"good").into()).await.is_err()
            {
                continue;
            }
            let good = async { while self.heard.recv().await.unwrap().payload != "good" {} };
            if timeout(PATIENCE / 4, good).await.is_ok() {
                return;
            }
        }
        panic!("no good client is heard");
    }
}

fn shaken(rest: &[u8]) -> Vec<u8> {
    [&GREETING, DEALER, rest].concat()
}

/// Waits for the other side to end the connection; a reset is an end as well.
async fn ended(peer: &mut TcpStream) {
    let _ = timeout(PATIENCE, peer.read_to_end(&mut Vec::new())).await.unwrap();
}

#[tokio::test]
async fn payloads_arrive_with_their_peers_addresses() {
    let mut bed = bed(1024, |_| {});
    for number in 0..20 {
        let message = [0, 1, number];
        let mut peer = bed.raw(&shaken(&message)).await;
        let expected = (vec![number].into(), Some(peer.local_addr().unwrap()));
        let Heard { payload, peer: from, at } = bed.next().await;
        assert_eq!((payload, from), expected);
        timeout(PATIENCE, bed.news.notified()).await.expect("it is news");
        peer.write_all(&message).await.unwrap();
        let again = bed.next().await;
        assert_eq!((again.payload, again.peer), expected);
        assert!(at <= again.at && again.at <= Instant::now());
        assert!(futures::poll!(pin!(bed.news.notified())).is_pending(), "it is repeated");
    }
    assert!(bed.incidents.is_empty());
}

#[tokio::test]
async fn dealer_and_delimited_payloads_are_heard_and_others_counted() {
    let mut bed = bed(1024, |_| {});
    let mut dealer = bed.dealer().await;
    dealer.send(Bytes::from_static(b"plain").into()).await.unwrap();
    assert_eq!(bed.next().await.payload, "plain");
    let frames = |frames: &[&'static str]| -> ZmqMessage {
        let frames: Vec<Bytes> = frames.iter().map(|frame| Bytes::from_static(frame.as_bytes())).collect();
        frames.try_into().unwrap()
    };
    dealer.send(frames(&["", "delimited"])).await.unwrap();
    assert_eq!(bed.next().await.payload, "delimited");
    for bad in [frames(&["two", "frames"]), frames(&["", "", "three"])] {
        dealer.send(bad).await.unwrap();
        bed.incident(Incident::Malformed).await;
    }
    let mut req = ReqSocket::new();
    req.connect(&format!("tcp://{}", bed.listener.local_addr())).await.unwrap();
    req.send(Bytes::from_static(b"asked").into()).await.unwrap();
    assert_eq!(bed.next().await.payload, "asked");
}

#[tokio::test]
async fn two_live_clients_of_one_identity_are_both_heard() {
    let mut bed = bed(1024, |_| {});
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut options = SocketOptions::default();
        options.peer_identity("same".parse::<PeerIdentity>().unwrap());
        let mut dealer = DealerSocket::with_options(options);
        dealer.connect(&format!("tcp://{}", bed.listener.local_addr())).await.unwrap();
        clients.push(dealer);
    }
    let mut peers = HashSet::new();
    for _ in 0..10 {
        for client in &mut clients {
            client.send(Bytes::from_static(b"ping").into()).await.unwrap();
            peers.insert(bed.next().await.peer);
        }
    }
    assert_eq!(peers.len(), 2);
}

#[tokio::test]
async fn full_channel_costs_messages_and_nothing_else() {
    let mut bed = bed(1, |_| {});
    let mut dealer = bed.dealer().await;
    for _ in 0..3 {
        dealer.send(Bytes::from_static(b"ping").into()).await.unwrap();
    }
    bed.incident(Incident::Dropped).await;
    bed.incident(Incident::Dropped).await;
    assert_eq!(bed.next().await.payload, "ping");
    bed.serves_good_client().await;
}

#[tokio::test]
async fn deaf_router_is_rebuilt_behind_the_same_port() {
    let mut bed = bed(1024, |settings| settings.watchdog = Duration::from_secs(1));
    bed.serves_good_client().await;
    let mut old = bed.raw(&shaken(b"")).await;
    bed.deaf.store(true, Ordering::Relaxed);
    bed.incident(Incident::Rebuilt).await;
    assert!(!bed.deaf.load(Ordering::Relaxed));
    ended(&mut old).await;
    bed.serves_good_client().await;
}

#[tokio::test]
async fn worn_router_is_replaced() {
    // The watchdog's connection counts as one.
    let mut bed = bed(1024, |settings| settings.renew_after = 20);
    for _ in 0..20 {
        let mut peer = bed.raw(&shaken(b"\x00\x01x")).await;
        peer.read_exact(&mut vec![0; GREETING.len() + ROUTER_READY.len()]).await.unwrap();
    }
    bed.incident(Incident::Rebuilt).await;
    bed.serves_good_client().await;
}

#[tokio::test]
async fn own_marker_is_not_passed_on_and_causes_no_rebuild() {
    let mut bed = bed(1024, |settings| settings.watchdog = Duration::from_secs(1));
    let pulse = Arc::clone(&bed.listener.pulse);
    let beaten = async {
        while pulse.load(Ordering::Relaxed) < 5 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, beaten).await.unwrap();
    assert!(bed.heard.try_recv().is_err());
    bed.serves_good_client().await;
}

#[tokio::test]
async fn thread_without_a_pulse_is_given_up() {
    let listener = Listener {
        address: "127.0.0.1:1".parse().unwrap(),
        interval: Duration::from_millis(10),
        pulse: Arc::default(),
        stop: CancellationToken::new(),
        ended: CancellationToken::new(),
    };
    assert_eq!(timeout(PATIENCE, listener.ended()).await.unwrap(), Ended::Unresponsive);
    listener.ended.cancel();
    assert_eq!(timeout(PATIENCE, listener.ended()).await.unwrap(), Ended::Thread);
}

#[tokio::test]
async fn stop_closes_the_port_and_ends_everyone() {
    // An address of its own, so that no other test can be given this port in between.
    let address = SocketAddr::from((Ipv4Addr::new(127, 77, 1, 9), 0));
    let mut first = bed(1024, |settings| settings.address = address);
    let bound = first.listener.local_addr();
    first.serves_good_client().await;
    let mut live = first.raw(&shaken(b"")).await;
    let mut silent = first.raw(b"").await;
    first.listener.stop().await;
    assert_eq!(timeout(PATIENCE, first.listener.ended()).await.unwrap(), Ended::Thread);
    assert!(first.heard.recv().await.is_none());
    ended(&mut live).await;
    ended(&mut silent).await;
    assert_eq!(TcpStream::connect(bound).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);

    let mut second = bed(1024, |settings| settings.address = bound);
    second.serves_good_client().await;
    let (sink, _heard) = mpsc::channel(1);
    let error = start(ListenerSettings::new(bound), sink, |_| {}).unwrap_err();
    assert!(error.to_string().contains("127.77.1.9"), "{error}");
}

#[tokio::test]
async fn dropping_the_listener_stops_it() {
    let (sink, mut heard) = mpsc::channel(1);
    let listener = start(ListenerSettings::new("127.0.0.1:0".parse().unwrap()), sink, |_| {}).unwrap();
    let ended = listener.ended.clone();
    drop(listener);
    assert!(timeout(PATIENCE, heard.recv()).await.unwrap().is_none());
    timeout(PATIENCE, ended.cancelled()).await.unwrap();
}

#[tokio::test]
async fn any_address_takes_both_families() {
    let (sink, mut heard) = mpsc::channel(16);
    let listener = match start(ListenerSettings::new("[::]:0".parse().unwrap()), sink, |_| {}) {
        Ok(listener) => listener,
        // Nothing to show where the kernel has no IPv6.
        Err(_) => return,
    };
    let port = listener.local_addr().port();
    for host in ["127.0.0.1", "[::1]"] {
        let target: SocketAddr = format!("{host}:{port}").parse().unwrap();
        let Ok(mut peer) = TcpStream::connect(target).await else {
            continue;
        };
        peer.write_all(&shaken(b"\x00\x01x")).await.unwrap();
        let heard = timeout(PATIENCE, heard.recv()).await.unwrap().unwrap();
        assert_eq!(heard.peer, Some(peer.local_addr().unwrap()));
    }
    listener.stop().await;
}
