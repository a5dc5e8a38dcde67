use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::registration::socket::guard::gate::{GREETING, ROUTER_READY};
use crate::registration::socket::guard::reject::Reject;
use crate::registration::socket::listener::Incident;
use crate::registration::socket::listener::tests::{bed, ended, shaken};

const NAMED: &[u8] = b"\x04\x2d\x05READY\x0bSocket-Type\0\0\0\x06DEALER\x08Identity\0\0\0\x04same";

fn announced(flags: u8, length: u64) -> Vec<u8> {
    [&[flags | 2], &length.to_be_bytes()[..]].concat()
}

#[tokio::test]
async fn attacks_are_refused_and_harm_nobody() {
    let mut bed = bed(1024, |_| {});
    let greeted = |rest: &[u8]| [&GREETING, rest].concat();
    let typed = |ready: &[u8]| greeted(&[&[4, u8::try_from(ready.len()).unwrap()], ready].concat());
    let mut hundred_megabytes = announced(0, 100 << 20);
    hundred_megabytes.resize(1 << 20, 7);
    let attacks = [
        ("8 GiB frame", shaken(&announced(0, 8 << 30)), Reject::TooBig),
        ("30 GiB before READY", greeted(&announced(0, 30 << 30)), Reject::Handshake),
        ("30 GiB as READY", greeted(&announced(4, 30 << 30)), Reject::TooBig),
        ("usize::MAX", shaken(&announced(0, u64::MAX)), Reject::TooBig),
        ("isize::MAX", shaken(&announced(1, i64::MAX as u64)), Reject::TooBig),
        ("sum overflows", shaken(&[announced(1, 1), vec![0], announced(0, u64::MAX)].concat()), Reject::TooBig),
        ("endless MORE", shaken(&[1, 0].repeat(100_000)), Reject::Frames),
        ("100 MB message", shaken(&hundred_megabytes), Reject::TooBig),
        ("garbage", vec![0xa5; 4096], Reject::Greeting),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), Reject::Greeting),
        ("msgpack without ZMTP", b"\x81\xa4type\xa1P".to_vec(), Reject::Greeting),
        ("PUB", typed(b"\x05READY\x0bSocket-Type\0\0\0\x03PUB"), Reject::SocketType),
        ("STREAM", typed(b"\x05READY\x0bSocket-Type\0\0\0\x06STREAM"), Reject::SocketType),
        ("no type", typed(b"\x05READY"), Reject::Handshake),
        ("unknown command", shaken(b"\x04\x04\x03BAD"), Reject::Command),
        ("reserved flags", shaken(&[0xf8, 1, 0]), Reject::Flags),
    ];
    for (name, bytes, reason) in attacks {
        for _ in 0..3 {
            let mut peer = bed.raw(&bytes).await;
            ended(&mut peer).await;
            bed.incident(Incident::Rejected(reason)).await;
        }
        println!("survived: {name}");
        bed.serves_good_client().await;
    }
}

#[tokio::test]
async fn silent_and_half_open_peers_give_up_their_places() {
    let mut bed = bed(1024, |settings| {
        settings.max_peers = 4;
        settings.handshake = Duration::from_secs(1);
    });
    let mut silent = Vec::new();
    for number in 0..24 {
        silent.push(bed.raw([&b""[..], &GREETING[..5], &GREETING[..20], &GREETING][number % 4]).await);
    }
    bed.serves_good_client().await;
    bed.incident(Incident::Rejected(Reject::Timeout)).await;
    for peer in &mut silent {
        ended(peer).await;
    }
}

#[tokio::test]
async fn two_thousand_connections_of_one_identity_are_all_heard() {
    let mut bed = bed(1024, |_| {});
    let hello = [&GREETING, NAMED, b"\x00\x05cycle"].concat();
    for _ in 0..2000 {
        let mut peer = bed.raw(&hello).await;
        peer.read_exact(&mut vec![0; GREETING.len() + ROUTER_READY.len()]).await.unwrap();
        let address = peer.local_addr().unwrap();
        drop(peer);
        let heard = bed.next().await;
        assert_eq!((&heard.payload[..], heard.peer), (&b"cycle"[..], Some(address)));
    }
    bed.serves_good_client().await;
    assert!(bed.incidents.is_empty());
}

#[tokio::test]
async fn mutated_streams_do_no_harm() {
    let mut bed = bed(1024, |_| {});
    let valid = shaken(&[&[1, 0, 0, 3][..], b"abc", &announced(0, 300), &[7; 300], b"\x04\x07\x04PING\0\0"].concat());
    // A small generator of its own, so that a failure can be repeated.
    let mut seed: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut random = move |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        usize::try_from(seed % below as u64).unwrap()
    };
    for _ in 0..300 {
        let mut bytes = valid.clone();
        for _ in 0..=random(4) {
            let at = random(bytes.len());
            match random(3) {
                0 => bytes[at] = u8::try_from(random(256)).unwrap(),
                1 => bytes.insert(at, 0xff),
                _ => drop(bytes.remove(at)),
            }
        }
        let mut peer = bed.raw(&bytes).await;
        let _ = peer.shutdown().await;
        ended(&mut peer).await;
        while bed.heard.try_recv().is_ok() {}
    }
    bed.serves_good_client().await;
}
