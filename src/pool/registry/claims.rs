//! Two processes that announce one HTTP address (protocol R10). The one that was there stays as long as it pings and its KV
//! ports answer; nothing is concluded from the other's pings. A restart looks the same at first, so the ports of the one
//! that was there are asked at once: when they refuse, or when its pings stop, the other has taken its place.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::entry::{Entry, OLD_PINGS, Rival};
use crate::engine::Registration;
use crate::pool::Claim;

/// Others at one address that are remembered; the one that was heard longest ago makes room.
const REMEMBERED: usize = 4;

impl Entry {
    /// Whether a registration that says something else comes from another process than the one that is known.
    pub(super) fn is_of_another(&self, says: &Registration, peer: Option<SocketAddr>) -> bool {
        !self.registration.same_engine(says)
            && peer.is_some_and(|peer| !self.peers.is_empty() && !self.peers.knows(peer))
    }

    /// Another process claims the address. Says whether it has it from now on, because the one that was there has stopped.
    pub(super) fn challenge(&mut self, says: &Registration, peer: SocketAddr, now: Instant) -> bool {
        if now.duration_since(self.last_ping) > self.peers.patience() {
            return true;
        }
        let ousted = self.ousted.contains(&peer);
        match self.rivals.iter_mut().find(|rival| rival.says.same_engine(says)) {
            Some(rival) => {
                (rival.peer, rival.last) = (peer, now);
                rival.ousted |= ousted;
            }
            None => {
                if self.rivals.len() >= REMEMBERED {
                    let oldest = (0..self.rivals.len()).min_by_key(|at| self.rivals[*at].last);
                    oldest.map(|at| self.rivals.swap_remove(at));
                }
                let says = says.clone();
                self.rivals.push(Rival { says, peer, since: now, last: now, ousted, told: false });
                self.next_probe = now;
            }
        }
        false
    }

    /// Tells of rivals that have proved to live beside the engine, once each; says whether there were any. A single message
    /// may be the last word of a process that has ended.
    pub(super) fn tell_of_rivals(&mut self) -> bool {
        let mut any = false;
        for rival in &mut self.rivals {
            let both_live = rival.last > rival.since + OLD_PINGS && self.last_ping > rival.since;
            if rival.told || !both_live {
                continue;
            }
            (rival.told, any) = (true, true);
            let engine = &self.registration;
            let stays = self.peers.latest().map_or_else(|| "unknown".to_owned(), |peer| peer.to_string());
            tracing::warn!(
                role = %engine.role, engine = %engine.http, stays, stays_kv = %engine.kv.text, refused = %rival.peer,
                refused_kv = %rival.says.kv.text, "two engines claim this address"
            );
        }
        any
    }

    /// Forgets rivals that have been silent for `ttl`; says whether one of them was told of.
    pub(super) fn forget_rivals(&mut self, ttl: Duration, now: Instant) -> bool {
        let told = self.claims().len();
        self.rivals.retain(|rival| now.duration_since(rival.last) <= ttl);
        self.claims().len() != told
    }

    /// The rival that takes over when a KV port refuses: the last that spoke and did not have the address before.
    pub(super) fn successor(&mut self) -> Option<(Registration, SocketAddr)> {
        let fresh = self.rivals.iter().filter(|rival| !rival.ousted);
        fresh.max_by_key(|rival| rival.last).map(|rival| (rival.says.clone(), rival.peer))
    }

    /// Those that were told of, for status pages.
    pub(super) fn claims(&self) -> Vec<Claim> {
        let told = self.rivals.iter().filter(|rival| rival.told);
        told.map(|rival| Claim { peer: rival.peer, kv: rival.says.kv.clone() }).collect()
    }
}
