//! Registration: one DEALER that pings the proxy and never hears from it.

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::core::Core;
use super::listen::becomes;
use super::zmtp::{HIGH_WATER_MARK, dealer};

/// Releases up to 0.19.
#[derive(Serialize)]
struct DialectA<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    role: &'a str,
    index: String,
    request_address: String,
    handshake_port: u16,
    notify_port: u16,
    dp_size: u32,
    tp_size: u32,
    transfer_mode: &'a str,
}

/// Releases from 0.20 on.
#[derive(Serialize)]
struct DialectB<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    http_address: String,
    zmq_address: String,
    dp_size: u32,
    tp_size: u32,
    transfer_mode: &'a str,
}

/// The payload of ping number `index`.
pub(crate) fn ping(core: &Core, index: u64) -> Bytes {
    let settings = &core.settings;
    let (handshake_port, notify_port) = (core.ports.handshake_base(), core.ports.notify_base());
    let payload = if core.minor <= 19 {
        rmp_serde::to_vec_named(&DialectA {
            kind: "register",
            role: settings.role.letter(),
            index: index.to_string(),
            request_address: format!("http://{}/v1/completions", core.ports.http_address()),
            handshake_port,
            notify_port,
            dp_size: settings.dp,
            tp_size: settings.tp,
            transfer_mode: settings.mode.name(),
        })
    } else {
        rmp_serde::to_vec_named(&DialectB {
            kind: settings.role.letter(),
            // Never bracketed, not even for IPv6.
            http_address: format!("{}:{}", settings.host, core.ports.http_address().port()),
            zmq_address: format!("host:{},handshake:{handshake_port},notify:{notify_port}", settings.host),
            dp_size: settings.dp,
            tp_size: settings.tp,
            transfer_mode: settings.mode.name(),
        })
    };
    payload.unwrap_or_default().into()
}

/// Pings for the whole life of an engine, over as many sockets as there are API servers. Only the master does it.
pub(crate) async fn run(core: Arc<Core>) {
    let Some((host, port)) = core.settings.registration.rsplit_once(':') else {
        return;
    };
    let Ok(port) = port.parse() else { return };
    let host = host.trim_start_matches('[').trim_end_matches(']').to_string();
    let mut senders = Vec::new();
    for _ in 0..core.settings.api_servers {
        let (sender, receiver) = mpsc::channel(HIGH_WATER_MARK);
        core.spawn(dealer(host.clone(), port, receiver));
        senders.push(sender);
    }
    let mut silent = core.books.silent.subscribe();
    let mut index = 0;
    loop {
        becomes(&mut silent, false).await;
        index += 1;
        for sender in &senders {
            if sender.try_send(vec![ping(&core, index)]).is_ok() {
                core.books.count(|counters| counters.pings += 1);
            }
        }
        sleep(core.settings.ping_interval + core.books.lateness()).await;
    }
}
