//! The legs that `docs/wide-ep.md` shows are those that engines get.

use moriio_proxy::sim::{Engine, Mode};
use serde_json::{Map, Value};

use super::{Layout, requests, side};

/// The legs that the page shows, each behind its marker.
fn shown(marker: &str) -> Map<String, Value> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/wide-ep.md")).unwrap();
    let (_, after) = page.split_once(&format!("<!-- leg {marker} -->\n```json\n")).expect(marker);
    let text = after.split_once("```").unwrap().0;
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{marker}: {error}"))
}

/// The page's addresses and ports for an engine's own.
fn page_words(text: &str, engines: &[(&Engine, &str)]) -> String {
    let mut text = text.to_owned();
    for (engine, net) in engines {
        for (number, host) in engine.settings().hosts.iter().enumerate() {
            text = text.replace(&format!("{host}:{}", engine.handshake_port()), &format!("{net}.{}:6301", number + 1));
            text = text.replace(&format!("\"{host}\""), &format!("\"{net}.{}\"", number + 1));
        }
    }
    text
}

/// A leg's params in the page's words: ports by their distance from `engine`'s bases.
fn params(leg: &Value, engine: &Engine, engines: &[(&Engine, &str)]) -> Map<String, Value> {
    let mut params: Map<String, Value> = serde_json::from_str(&page_words(&leg.to_string(), engines)).unwrap();
    for (key, base, page) in [
        ("remote_port", engine.handshake_port(), 6301),
        ("remote_handshake_port", engine.handshake_port(), 6301),
        ("remote_notify_port", engine.notify_port(), 61005),
    ] {
        let port = params[key].as_u64().unwrap();
        params[key] = Value::from(port - u64::from(base) + page);
    }
    params["transfer_id"] = Value::from("tx-…");
    params
}

/// The leg that a decode engine got for prefill's rank 11, and prefill's own.
async fn legs(mode: Mode) -> (Map<String, Value>, Map<String, Value>) {
    let world = Layout::new(mode, side(2, 8), side(2, 8)).start().await;
    requests(&world, 16).await;
    let (prefill, decode) = (&world.prefill[0], &world.decode[0]);
    let engines = [(prefill, "10.0.1"), (decode, "10.0.2")];
    let sent = prefill.legs().into_iter().find(|leg| leg.header("x-data-parallel-rank") == Some("11")).unwrap();
    let id = &sent.transfer_params["transfer_id"];
    let got = decode.legs().into_iter().find(|leg| leg.transfer_params["transfer_id"] == *id).unwrap();
    assert_eq!(got.header("x-data-parallel-rank"), None);
    let both = (params(&sent.transfer_params, decode, &engines), params(&got.transfer_params, prefill, &engines));
    world.settle().await;
    both
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_what_engines_get() {
    let (prefill, decode) = legs(Mode::Write).await;
    assert_eq!(prefill, shown("write prefill"));
    assert_eq!(decode, shown("write decode"));
    let (_, decode) = legs(Mode::Read).await;
    for (key, value) in shown("read decode") {
        assert_eq!(decode[&key], value, "{key}");
    }
    for key in ["remote_hosts", "remote_dp_size_local", "is_request_leader"] {
        assert_eq!(decode.get(key), None, "{key}");
    }
}
