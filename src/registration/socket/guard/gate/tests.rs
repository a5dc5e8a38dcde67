use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};

use crate::registration::socket::guard::gate::{
    GREETING, Gate, MAX_COMMAND_BYTES, MAX_FRAMES, MAX_MESSAGE_BYTES, Output, ROUTER_READY,
};
use crate::registration::socket::guard::identity::Identity;
use crate::registration::socket::guard::reject::Reject;

const DEALER: &[u8] = b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06DEALER";

fn gate() -> Gate {
    Gate::new(Identity::new(7, "10.0.0.1:6301".parse().unwrap()))
}

fn feed(input: &[u8]) -> (Output, Result<(), Reject>) {
    let mut output = Output::default();
    let fed = gate().feed(input, &mut output);
    (output, fed)
}

fn shaken(rest: &[u8]) -> Vec<u8> {
    [&GREETING, DEALER, rest].concat()
}

fn frame(flags: u8, body: &[u8]) -> Vec<u8> {
    match u8::try_from(body.len()) {
        Ok(length) => [&[flags, length], body].concat(),
        Err(_) => [&[flags | 2], &(body.len() as u64).to_be_bytes()[..], body].concat(),
    }
}

fn announced(flags: u8, length: u64) -> Vec<u8> {
    [&[flags | 2], &length.to_be_bytes()[..]].concat()
}

/// What the ROUTER is sent for a DEALER that completed its handshake.
fn introduction() -> Vec<u8> {
    let identity = Identity::new(7, "10.0.0.1:6301".parse().unwrap());
    let properties = [b"\x0bSocket-Type\0\0\0\x06DEALER", &b"\x08Identity\0\0\0\x1f"[..], identity.as_ref()].concat();
    [&GREETING[..], &frame(4, &[b"\x05READY", &properties[..]].concat())].concat()
}

#[test]
fn handshake_is_answered_and_rewritten() {
    let (output, fed) = feed(&shaken(b""));
    assert_eq!(fed, Ok(()));
    assert_eq!(output.reply, [&GREETING, ROUTER_READY].concat());
    assert_eq!(output.forward, introduction());
}

#[test]
fn peer_identity_and_other_properties_are_left_out() {
    let properties = b"\x08identity\0\0\0\x04mine\x0bsocket-type\0\0\0\x06DEALER\x06X-Name\0\0\0\x01y";
    let ready = frame(4, &[b"\x05READY", &properties[..]].concat());
    let (output, fed) = feed(&[&GREETING[..], &ready].concat());
    assert_eq!(fed, Ok(()));
    assert_eq!(output.forward, introduction());
}

#[test]
fn messages_pass_as_they_came() {
    let messages = [
        frame(0, b"short"),
        frame(0, b""),
        frame(1, b""),
        frame(0, &[9; 300]),
        announced(0, 3),
        b"abc".to_vec(),
        frame(0, &vec![1; usize::try_from(MAX_MESSAGE_BYTES).unwrap()]),
    ]
    .concat();
    let (output, fed) = feed(&shaken(&messages));
    assert_eq!(fed, Ok(()));
    assert_eq!(output.forward, [introduction(), messages].concat());
}

#[test]
fn heartbeats_are_answered_and_do_not_pass() {
    let pings = [frame(4, b"\x04PING\0\x0a"), frame(4, b"\x04PING\0\x0acontext"), frame(4, b"\x04PONG")].concat();
    let (output, fed) = feed(&shaken(&[pings, frame(0, b"x")].concat()));
    assert_eq!(fed, Ok(()));
    let pongs = [frame(4, b"\x04PONG"), frame(4, b"\x04PONGcontext")].concat();
    assert_eq!(output.reply, [&GREETING[..], ROUTER_READY, &pongs].concat());
    assert_eq!(output.forward, [introduction(), frame(0, b"x")].concat());
}

#[test]
fn limits_are_exact() {
    let most_frames = [frame(1, b"x").repeat(MAX_FRAMES - 1), frame(0, b"x")].concat();
    let half = usize::try_from(MAX_MESSAGE_BYTES / 2).unwrap();
    for (rest, expected) in [
        (most_frames.repeat(2), Ok(())),
        (frame(1, b"").repeat(MAX_FRAMES + 1), Err(Reject::Frames)),
        ([frame(1, &vec![0; half]), announced(0, MAX_MESSAGE_BYTES / 2)].concat(), Ok(())),
        ([frame(1, &vec![0; half]), announced(0, MAX_MESSAGE_BYTES / 2 + 1)].concat(), Err(Reject::TooBig)),
        (announced(0, MAX_MESSAGE_BYTES), Ok(())),
        (announced(0, MAX_MESSAGE_BYTES + 1), Err(Reject::TooBig)),
        (announced(1, u64::MAX), Err(Reject::TooBig)),
        ([frame(1, b"x"), announced(1, u64::MAX)].concat(), Err(Reject::TooBig)),
        (announced(4, MAX_COMMAND_BYTES), Ok(())),
        (announced(4, MAX_COMMAND_BYTES + 1), Err(Reject::TooBig)),
        (frame(8, b"x"), Err(Reject::Flags)),
        (vec![0x80], Err(Reject::Flags)),
        (frame(5, b"\x04PING\0\0"), Err(Reject::Flags)),
        (frame(4, b""), Err(Reject::Command)),
        (frame(4, b"\x04PING\0"), Err(Reject::Command)),
        (frame(4, &[b"\x04PING\0\0", &[b'c'; 17][..]].concat()), Err(Reject::Command)),
        (frame(4, b"\x09SUBSCRIBEx"), Err(Reject::Command)),
        (DEALER.to_vec(), Err(Reject::Command)),
    ] {
        assert_eq!(feed(&shaken(&rest)).1, expected, "{:?}", &rest[..rest.len().min(40)]);
    }
}

#[test]
fn bad_greetings_are_refused_as_soon_as_they_show() {
    let changed = |at: usize, byte: u8| {
        let mut greeting = GREETING;
        greeting[at] = byte;
        greeting[..=at].to_vec()
    };
    for input in [b"G".to_vec(), changed(0, 0), changed(9, 0x7e), changed(10, 2)] {
        assert_eq!(feed(&input).1, Err(Reject::Greeting), "{input:?}");
    }
    let mut plain = GREETING;
    plain[12..17].copy_from_slice(b"PLAIN");
    let mut server = GREETING;
    server[32] = 1;
    for input in [plain, server] {
        assert_eq!(feed(&input).1, Err(Reject::Greeting));
        assert_eq!(feed(&input[..63]).1, Ok(()));
    }
    let mut newer = GREETING;
    newer[8] = 1;
    newer[11] = 1;
    assert_eq!(feed(&newer).1, Ok(()));
}

#[test]
fn bad_handshakes_are_refused() {
    let typed = |name: &[u8]| {
        let length = (name.len() as u32).to_be_bytes();
        frame(4, &[b"\x05READY\x0bSocket-Type", &length[..], name].concat())
    };
    for (ready, expected) in [
        (frame(0, b"early"), Reject::Handshake),
        (frame(4, b"\x05READY"), Reject::Handshake),
        (frame(4, b"\x05ERROR\x02no"), Reject::Handshake),
        (frame(4, b"\x05READY\x0bSocket-Type\0\0\0"), Reject::Handshake),
        (frame(4, b"\x05READY\x0bSocket-Type\xff\xff\xff\xffDEALER"), Reject::Handshake),
        (frame(4, b"\x05READY\xffSocket-Type\0\0\0\x06DEALER"), Reject::Handshake),
        (announced(0, 30 << 30), Reject::Handshake),
        (announced(4, 30 << 30), Reject::TooBig),
        (typed(b"PUB"), Reject::SocketType),
        (typed(b"PUSH"), Reject::SocketType),
        (typed(b"STREAM"), Reject::SocketType),
        (typed(b""), Reject::SocketType),
    ] {
        let (output, fed) = feed(&[&GREETING[..], &ready].concat());
        assert_eq!(fed, Err(expected), "{ready:?}");
        assert!(output.forward.is_empty());
    }
    for name in [&b"DEALER"[..], b"REQ", b"ROUTER"] {
        assert_eq!(feed(&[&GREETING[..], &typed(name)].concat()).1, Ok(()));
    }
}

#[test]
fn gate_rests_only_between_messages() {
    let mut gate = gate();
    let mut output = Output::default();
    for (input, resting, completed) in [
        (&GREETING[..], false, 0),
        (DEALER, true, 1),
        (b"\x01", false, 1),
        (b"\x01", false, 1),
        (b"x", false, 1),
        (b"\x00\x02y", false, 1),
        (b"y", true, 2),
        (b"\x00\x00", true, 3),
    ] {
        gate.feed(input, &mut output).unwrap();
        assert_eq!((gate.is_resting(), gate.completed()), (resting, completed), "{input:?}");
    }
}

fn part() -> impl Strategy<Value = Vec<u8>> {
    let body = prop_oneof![vec(any::<u8>(), 0..40), vec(any::<u8>(), 250..600)];
    prop_oneof![
        4 => body.clone().prop_map(|body| frame(0, &body)),
        2 => (vec(body.clone(), 1..4), body).prop_map(|(firsts, last)| {
            let mut message: Vec<u8> = firsts.iter().flat_map(|first| frame(1, first)).collect();
            message.extend(frame(0, &last));
            message
        }),
        1 => vec(any::<u8>(), 0..=16).prop_map(|context| frame(4, &[b"\x04PING\0\0", &context[..]].concat())),
        1 => Just(frame(4, b"\x04PONG")),
    ]
}

fn stream() -> impl Strategy<Value = Vec<u8>> {
    vec(part(), 0..8).prop_map(|parts| shaken(&parts.concat()))
}

fn mutated() -> impl Strategy<Value = Vec<u8>> {
    (stream(), vec((any::<usize>(), any::<u8>()), 1..5)).prop_map(|(mut bytes, changes)| {
        for (at, byte) in changes {
            let at = at % bytes.len();
            match byte % 3 {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => bytes.truncate(at.max(1)),
            }
        }
        bytes
    })
}

/// Feeds `input` in pieces whose lengths come from `cuts`, in turn.
fn feed_cut(input: &[u8], cuts: &[usize]) -> (Output, Result<(), Reject>) {
    let mut gate = gate();
    let mut output = Output::default();
    let mut rest = input;
    for cut in cuts.iter().cycle() {
        let (piece, after) = rest.split_at(rest.len().min(*cut));
        if let Err(reason) = gate.feed(piece, &mut output) {
            return (output, Err(reason));
        }
        rest = after;
        if rest.is_empty() {
            break;
        }
    }
    (output, Ok(()))
}

proptest! {
    #[test]
    fn valid_streams_pass_however_they_are_cut(bytes in stream(), cuts in vec(1usize..90, 1..10)) {
        let whole = feed(&bytes);
        prop_assert_eq!(whole.1, Ok(()));
        prop_assert_eq!(&feed_cut(&bytes, &cuts), &whole);
        prop_assert_eq!(&feed_cut(&bytes, &[1]), &whole);
        for at in 1..bytes.len() {
            prop_assert_eq!(&feed_cut(&bytes, &[at, bytes.len()]), &whole);
        }
    }

    #[test]
    fn mutated_streams_end_alike_and_stay_bounded(bytes in mutated(), cuts in vec(1usize..90, 1..10)) {
        let whole = feed(&bytes);
        prop_assert!(whole.0.forward.len() <= bytes.len() + introduction().len());
        prop_assert!(whole.0.reply.len() <= bytes.len() + GREETING.len() + ROUTER_READY.len());
        prop_assert_eq!(&feed_cut(&bytes, &cuts), &whole);
        prop_assert_eq!(&feed_cut(&bytes, &[1]), &whole);
    }

    #[test]
    fn any_bytes_after_the_handshake_end_alike(bytes in vec(any::<u8>(), 0..200), cuts in vec(1usize..20, 1..10)) {
        let bytes = shaken(&bytes);
        prop_assert_eq!(feed_cut(&bytes, &cuts), feed(&bytes));
    }
}
