//! Who has which ports in this process. Engines ask nobody but their peers; audits look here for what a leg should have said
//! of a peer, also of one that the leg keeps them from ever reaching.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, Weak};

use super::books::lock;

/// What is true of an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) hosts: Vec<IpAddr>,
    pub(crate) dp: u32,
    pub(crate) local_dp: u32,
    /// The first handshake port, on every host.
    pub(crate) handshake: u16,
    /// The first notify port, on every host.
    pub(crate) notify: u16,
}

static ROSTER: Mutex<Vec<Weak<Entry>>> = Mutex::new(Vec::new());

/// Keeps an engine on the roster. Nobody else can have its ports meanwhile.
pub(crate) struct Listing {
    _entry: Arc<Entry>,
}

impl Listing {
    pub(crate) fn enter(entry: Entry) -> Self {
        let entry = Arc::new(entry);
        let mut roster = lock(&ROSTER);
        roster.retain(|other| other.strong_count() > 0);
        roster.push(Arc::downgrade(&entry));
        Self { _entry: entry }
    }
}

/// The engine that has this handshake port on this host, or this notify port where no other is known.
pub(crate) fn find(host: &str, handshake: Option<u16>, notify: u16) -> Option<Arc<Entry>> {
    let host: IpAddr = host.parse().ok()?;
    let has = |entry: &Entry| {
        let (base, port) = handshake.map_or((entry.notify, notify), |port| (entry.handshake, port));
        entry.hosts.contains(&host) && (u32::from(base)..u32::from(base) + entry.dp).contains(&u32::from(port))
    };
    lock(&ROSTER).iter().filter_map(Weak::upgrade).find(|entry| has(entry))
}
