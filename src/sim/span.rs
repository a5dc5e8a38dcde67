//! What is demanded of legs where an engine or its peer has several ranks or hosts, whether or not a real engine would notice.

use std::net::IpAddr;

use serde_json::{Map, Value};

use super::ask::Ask;
use super::core::Core;
use super::params::Facts;
use super::peer::Peer;
use super::roster::{self, Entry};
use super::settings::Mode;

/// Notes what a leg says wrongly of its peer's hosts and ranks, or leaves open that must be said.
pub(crate) fn audit(core: &Core, ask: &Ask, facts: Facts, peer: &Peer) {
    let note = |text: String| core.books.violation(text);
    let Some(params) = ask.params() else { return };
    match (facts.mode, facts.prefill) {
        (Mode::Write, false) => contract(core, ask, facts, peer, &note),
        (Mode::Write, true) if ask.rank.is_none() && core.settings.header_range() > 1 => {
            note("WRITE prefill leg without a rank: decode cannot know whom to ask".into());
        }
        _ => {}
    }
    let Some(entry) = roster::find(&peer.host, peer.handshake, peer.notify) else { return };
    match (facts.mode, facts.prefill) {
        (Mode::Write, prefill) => layout(params, &entry, peer, prefill, &note),
        (Mode::Read, false) => one_rank(params, &entry, peer, &note),
        // Nobody dials decode; what is said of it must be true all the same.
        (Mode::Read, true) if names_hosts(params) => layout(params, &entry, peer, true, &note),
        (Mode::Read, true) => {}
    }
}

fn names_hosts(params: &Map<String, Value>) -> bool {
    params.contains_key("remote_hosts") || params.contains_key("remote_dp_size_local")
}

/// WRITE: which of decode's ranks asks for the push.
fn contract(core: &Core, ask: &Ask, facts: Facts, peer: &Peer, note: &dyn Fn(String)) {
    let flag = |key: &str| ask.params().and_then(|params| params.get(key)).and_then(Value::as_bool);
    let (leader, overridden) = (flag("is_request_leader"), flag("remote_dp_rank_override") == Some(true));
    match leader {
        Some(true) => {}
        Some(false) => note("is_request_leader is false: nobody asks for the push".into()),
        None if overridden && facts.rank as u32 != peer.dp_rank => {
            note(format!("remote_dp_rank_override on rank {}, remote_dp_rank is {}", facts.rank, peer.dp_rank));
        }
        None if overridden => {}
        None if core.settings.hosts.len() > 1 => {
            note("decode spans hosts: neither is_request_leader nor remote_dp_rank_override".into());
        }
        None if ask.rank.is_some() => {
            note("rank header on a decode leg without is_request_leader or remote_dp_rank_override".into());
        }
        None => {}
    }
}

/// WRITE: both legs name all hosts of the peer, in order, and its sizes.
fn layout(params: &Map<String, Value>, entry: &Entry, peer: &Peer, prefill: bool, note: &dyn Fn(String)) {
    if entry.hosts.len() == 1 && !names_hosts(params) {
        return;
    }
    let hosts: Vec<Value> = entry.hosts.iter().map(|host| Value::from(host.to_string())).collect();
    let hosts = Value::Array(hosts);
    match params.get("remote_hosts") {
        Some(given) if *given == hosts => {}
        None if entry.hosts.len() == 1 => {}
        given => note(format!("remote_hosts is {}, the peer's hosts are {hosts}", text(given))),
    }
    let local = params.get("remote_dp_size_local").and_then(Value::as_i64);
    let fits = match local {
        Some(local) if local > 0 => local == i64::from(entry.local_dp),
        // The list turned off, which serves one rank of decode alone.
        Some(local) if local < 0 => prefill && entry.dp == 1,
        _ => entry.hosts.len() == 1,
    };
    if !fits {
        let given = text(params.get("remote_dp_size_local"));
        note(format!("remote_dp_size_local is {given}, the peer has {} ranks a host", entry.local_dp));
    }
    if peer.dp_size != entry.dp {
        note(format!("remote_dp_size is {}, the peer has {} ranks", peer.dp_size, entry.dp));
    }
    if !prefill && peer.dp_rank >= entry.dp {
        note(format!("remote_dp_rank is {}, the peer has {} ranks", peer.dp_rank, entry.dp));
    }
    if entry.hosts.first().map(IpAddr::to_string).as_ref() != Some(&peer.host) {
        note(format!("remote_host {} is not the peer's master", peer.host));
    }
    if peer.handshake.is_some_and(|port| port != entry.handshake) || peer.notify != entry.notify {
        note("remote_handshake_port or remote_notify_port is not the peer's base".into());
    }
}

/// READ: the one rank of a peer that spans hosts, as if it were an engine of its own. Of one host all ranks may be named.
fn one_rank(params: &Map<String, Value>, entry: &Entry, peer: &Peer, note: &dyn Fn(String)) {
    if (peer.dp_size, peer.dp_rank) == (1, 0) && entry.dp > 1 {
        if names_hosts(params) {
            note("remote_hosts or remote_dp_size_local beside a single rank".into());
        }
        let offset = peer.handshake.map(|port| port - entry.handshake);
        if offset.is_none_or(|offset| u32::from(offset) >= entry.local_dp) {
            note("remote_handshake_port is none of the host's ranks".into());
        }
        if peer.notify.checked_sub(entry.notify) != offset {
            note("remote_handshake_port and remote_notify_port are of different ranks".into());
        }
    } else if entry.hosts.len() > 1 {
        note(format!("READ from an engine over several hosts dials {} ranks on one of them", peer.dp_size));
    } else if params.get("remote_hosts").is_some_and(|given| *given != Value::from(vec![peer.host.clone()])) {
        note(format!("remote_hosts is {}, the peer has {} alone", text(params.get("remote_hosts")), peer.host));
    }
}

fn text(value: Option<&Value>) -> String {
    value.map_or("absent".into(), Value::to_string)
}
