//! What a stream proves does not depend on where the network cuts it, and nothing in it can make the scanner fall over.

use moriio_proxy::api::Api;
use moriio_proxy::api::output::{Scanner, Stage, without_comments};

use super::fuzz;
use super::mutate::Random;

const WORDS: [&[u8]; 20] = [
    b"data: {\"id\":1,\"choices\":[]}\n\n",
    b"data: {\"error\":{\"message\":\"m\",\"code\":503}}\n\n",
    b"data: { \"error\" : null}\r\n\r\n",
    b"data: [DONE]\n\n",
    b"data:[DONE]\r\n",
    b": keep-alive\n\n",
    b":\n",
    b"event: response.created\ndata: {}\n\n",
    b"event: response.in_progress\ndata: {}\n\n",
    b"event: response.output_item.added\ndata: {}\n\n",
    b"event: response.incomplete\ndata: {\"a\":\"data: [DONE]\"}\n\n",
    b"event: message_start\ndata: {}\n\n",
    b"event: message_stop\ndata: {}\n\n",
    b"event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\"}}\n\n",
    b"event: ping\ndata: {}\n\n",
    b"\n",
    b"\r\n",
    b"data:",
    b"\xff\0",
    b"data: {\"error\"",
];

fn stream(random: &mut Random) -> Vec<u8> {
    let mut text: Vec<u8> = (0..random.below(12)).flat_map(|_| WORDS[random.below(WORDS.len())].to_vec()).collect();
    if random.one_in(2) {
        random.mutate(&mut text, &WORDS);
    }
    text
}

/// All that is known after some parts.
fn known(scanner: &mut Scanner) -> (Stage, u32, bool, Option<moriio_proxy::api::output::EventError>) {
    (scanner.stage(), scanner.comments(), scanner.is_between_events(), scanner.take_error())
}

#[test]
fn a_stream_says_the_same_however_it_is_cut() {
    fuzz("Scanner::feed", |random| {
        let api = Api::ALL[random.below(Api::ALL.len())];
        let text = stream(random);
        let (mut whole, mut cut) = (Scanner::new(api, true), Scanner::new(api, true));
        let speaks = whole.feed(&text);
        let mut pieces_speak = false;
        let mut stage = Stage::Waiting;
        for piece in random.split(&text) {
            pieces_speak |= cut.feed(piece);
            assert!(cut.stage() >= stage, "what is proved stays proved");
            stage = cut.stage();
        }
        assert_eq!(pieces_speak, speaks, "{}", String::from_utf8_lossy(&text));
        assert_eq!(known(&mut cut), known(&mut whole), "{}", String::from_utf8_lossy(&text));
        whole.finish();
        cut.finish();
        assert_eq!(known(&mut cut), known(&mut whole), "{}", String::from_utf8_lossy(&text));

        // Comments carry nothing: without them the same is proved.
        let bare = without_comments(&text);
        let mut without = Scanner::new(api, true);
        without.feed(&bare);
        without.finish();
        assert_eq!(without.stage(), whole.stage(), "{}", String::from_utf8_lossy(&text));
    });
}
