//! Which engines are asked when, and what their answers mean.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::entry::{Entry, PROBE_AGAIN};
use super::{PROBE_AGAIN_MAX, PROBE_READY, Probe, ProbeOrder, RELEASE_AGAIN, Registry};
use crate::engine::versions::{self, EngineVersion};
use crate::engine::{HttpAddress, Misfit, Registration};
use crate::pool::State;
use crate::pool::reason::{Failure, Lost};

/// In a large pool ready engines are looked at in turn, so often: those that neither ping nor serve are noticed by that.
const PROBES_APART: Duration = Duration::from_millis(100);
/// Beyond the time to live, so that it has passed.
const AFTER: Duration = Duration::from_millis(1);

impl Registry {
    /// A probe came back.
    pub fn probed(&mut self, address: &HttpAddress, incarnation: u64, probe: Probe, now: Instant) {
        let Some(entry) = self.entries.get_mut(address).filter(|e| e.incarnation == incarnation) else {
            return;
        };
        entry.probing = false;
        match probe {
            Probe::Alive(release) => self.alive(address, release, now),
            Probe::Failed(failure) => self.failed(address, failure, now),
            Probe::HostGone(failure) => {
                entry.lose_host();
                self.failed(address, failure, now);
            }
        }
    }

    fn alive(&mut self, address: &HttpAddress, release: Option<EngineVersion>, now: Instant) {
        let ttl = self.limits.ttl;
        let in_turn = PROBES_APART * u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        let number = self.number();
        let Some(entry) = self.entries.get_mut(address) else { return };
        if !entry.has_spoken_since_refusal(now) {
            // It serves again, but what it said of its ports is from before: its first ping is waited for.
            entry.awaits_ping = true;
            entry.next_probe = now + entry.probe_wait;
            entry.probe_wait = (entry.probe_wait * 2).min(PROBE_AGAIN_MAX);
            return;
        }
        if entry.was_replaced() || entry.lost_host {
            let (registration, order, peers) = (entry.registration.clone(), entry.order, entry.peers.clone());
            let who = if entry.lost_host { "one of its hosts" } else { "it" };
            tracing::warn!(role = %registration.role, engine = %address, "engine is back after {who} refused connections: a new incarnation");
            self.remove(address);
            self.add(registration, peers, (order, number), now);
            return self.alive(address, release, now);
        }
        (entry.refused, entry.unreachable) = (None, false);
        if now.duration_since(entry.last_ping) > ttl && !entry.silent {
            entry.silent = true;
            tracing::warn!(role = %entry.registration.role, engine = %address, "engine has stopped pinging but answers: it stays");
        }
        entry.probe_wait = PROBE_AGAIN;
        entry.served = Some(now);
        if release.is_some() {
            entry.next_release = now + RELEASE_AGAIN;
        }
        if entry.state != State::Ready || (release.is_some() && entry.version != release) {
            entry.state = State::Ready;
            entry.version = release.or(entry.version);
            let traits = versions::traits(entry.version, entry.registration.dialect);
            log_ready(&entry.registration, entry.version, traits);
            self.dirty = true;
        }
        // While another claims its address, its end would have to be noticed soon.
        entry.next_probe = now
            + match entry.misfit() {
                // It may be a release that can, whose answer was lost.
                Some(Misfit::UnknownVersion) => PROBE_AGAIN,
                _ if !entry.rivals.is_empty() => PROBE_AGAIN_MAX.min(ttl),
                _ => PROBE_READY.min(ttl).max(in_turn),
            };
    }

    fn failed(&mut self, address: &HttpAddress, failure: Failure, now: Instant) {
        let Some(entry) = self.entries.get_mut(address) else { return };
        if let (Failure::KvRefused(_), Some((successor, peer))) = (failure, entry.successor()) {
            return self.replace(successor, Some(peer), now);
        }
        if failure.is_absence() && now.duration_since(entry.last_ping) > self.limits.ttl {
            tracing::warn!(role = %entry.registration.role, engine = %address, reason = %failure, "engine left: no ping and no answer");
            return self.depart(address);
        }
        if now.duration_since(entry.last_ping) > self.limits.ttl && !entry.silent {
            // It has been looked at for that: from now on its probes keep their pace.
            entry.silent = true;
            tracing::warn!(role = %entry.registration.role, engine = %address, reason = %failure, "engine has stopped pinging");
        }
        // One that is out of reach for the first time may only have been late.
        let is_out_of_reach = matches!(failure, Failure::Host(_, Lost::KvUnreachable(_)));
        let was_out_of_reach = std::mem::replace(&mut entry.unreachable, is_out_of_reach);
        let is_late = is_out_of_reach && !was_out_of_reach;
        if entry.lost_host || !((failure.is_doubtful() || is_late) && entry.state == State::Ready) {
            if failure == Failure::Refused && entry.served.is_some() {
                entry.refuse(now);
            }
            if entry.state != State::Unhealthy(failure) {
                entry.state = State::Unhealthy(failure);
                self.dirty = true;
            }
        }
        entry.next_probe = now + entry.probe_wait;
        entry.probe_wait = (entry.probe_wait * 2).min(PROBE_AGAIN_MAX);
    }

    /// Engines whose probe is due; each is given out once until its result is in.
    pub fn due(&mut self, now: Instant) -> Vec<ProbeOrder> {
        let ttl = self.limits.ttl;
        let mut dirty = false;
        let due = self.entries.values_mut().filter_map(|entry| {
            dirty |= !entry.rivals.is_empty() && entry.forget_rivals(ttl, now);
            let suspect = now.duration_since(entry.last_ping) > ttl && !entry.silent;
            let refusing = entry.vitals.take_refused();
            if entry.probing || !(now >= entry.next_probe || suspect || refusing) {
                return None;
            }
            Some(order(entry, now >= entry.next_release))
        });
        let due = due.collect();
        self.dirty |= dirty;
        due
    }

    /// When the next engine is due, as far as that is a matter of time alone.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        let free = self.entries.values().filter(|entry| !entry.probing);
        let due = free.map(|entry| match entry.silent {
            true => entry.next_probe,
            false => entry.next_probe.min(entry.last_ping + self.limits.ttl + AFTER),
        });
        due.min()
    }

    /// The lives of all engines that are not ready.
    pub fn unready(&self) -> HashSet<u64> {
        self.entries.values().filter(|entry| entry.state != State::Ready).map(|entry| entry.incarnation).collect()
    }

    /// Gives out those of `wanted` whose probe is not in flight, whether or not it is due. The others are left in it, to be asked for
    /// again when a result has come in, unless they are ready or gone by now.
    pub fn hasten(&mut self, wanted: &mut HashSet<u64>) -> Vec<ProbeOrder> {
        let unready = self.entries.values_mut().filter(|entry| entry.state != State::Ready);
        let (probing, free): (Vec<_>, Vec<_>) =
            unready.filter(|entry| wanted.contains(&entry.incarnation)).partition(|entry| entry.probing);
        *wanted = probing.into_iter().map(|entry| entry.incarnation).collect();
        free.into_iter().map(|entry| order(entry, true)).collect()
    }
}

/// An engine's probe is given out. Of one that is not known to serve the release is asked for in any case.
fn order(entry: &mut Entry, asks_release: bool) -> ProbeOrder {
    entry.probing = true;
    ProbeOrder {
        incarnation: entry.incarnation,
        registration: entry.registration.clone(),
        first: entry.served.is_none() && entry.state == State::Probing,
        release: asks_release || entry.state != State::Ready || entry.version.is_none() || entry.refused.is_some(),
        contested: !entry.rivals.is_empty(),
    }
}

fn log_ready(registration: &Registration, release: Option<EngineVersion>, traits: &versions::Traits) {
    let release = release.map_or_else(|| "unknown".to_owned(), |r| r.to_string());
    let hosts = registration.hosts.as_ref().map(|hosts| hosts.all().len());
    tracing::info!(
        role = %registration.role, engine = %registration.http, kv = %registration.kv.text, mode = %registration.mode,
        dp_size = registration.dp_size, tp_size = registration.tp_size, hosts, %release, "engine ready"
    );
    if let Some(warning) = traits.warning(registration.mode) {
        tracing::warn!(engine = %registration.http, "{warning}");
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{registry, says};
    use super::*;
    use crate::engine::Role;

    #[test]
    fn a_ready_engine_is_seldom_asked_for_its_release() {
        const RELEASE: EngineVersion = EngineVersion::new(0, 32, 0);
        let (mut registry, start) = registry();
        registry.hear(says(1, Role::Prefill), None, start);
        let mut look = |seconds: u64, result: Probe| {
            let now = start + Duration::from_secs(seconds);
            registry.hear(says(1, Role::Prefill), None, now);
            let [order] = &registry.due(now)[..] else { panic!("one engine") };
            registry.probed(&order.registration.http, order.incarnation, result, now);
            order.release
        };
        // Until one is known, then after half a minute.
        assert!(look(0, Probe::Alive(None)) && look(10, Probe::Alive(Some(RELEASE))));
        assert!(!look(20, Probe::Alive(None)) && !look(30, Probe::Alive(None)));
        assert!(look(40, Probe::Alive(None)) && look(50, Probe::Alive(Some(RELEASE))));
        // And whenever it was not as it should be.
        assert!(!look(60, Probe::Failed(Failure::Status(503))) && look(62, Probe::Alive(Some(RELEASE))));
        assert!(!look(72, Probe::Alive(None)));
    }
}
