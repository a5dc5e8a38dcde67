//! Membership and liveness: takes what the listener hears, decodes it, lets the registry decide, and probes engines over HTTP.
//! One task owns the registry, so nothing here needs a lock.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use ipnet::IpNet;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{Notify, Semaphore, mpsc, watch};

use super::probe;
use super::tell::Teller;
use crate::engine::{HttpAddress, Registration};
use crate::metrics::Metrics;
use crate::pool::Pool;
use crate::pool::pairs::Pairs;
use crate::pool::reason::Failure;
use crate::pool::registry::{Entered, Probe, ProbeOrder, Registry};
use crate::pool::rounds::Rounds;
use crate::registration::decode::{self, Message};
use crate::registration::socket::listener::Heard;
use crate::settings::Spans;

/// The least time between the beginnings of two rounds of probes that requests ask for.
const ROUNDS_APART: Duration = Duration::from_millis(100);
/// The least time between two looks for due probes, and the longest while an engine is not ready.
const LOOKS_APART: Duration = Duration::from_millis(200);
/// The longest while all are. What is due wakes it in any case; this is for what changes with time alone and only has to be told.
const LOOK: Duration = Duration::from_secs(2);
/// Messages that are dealt with before a snapshot is published, so that a burst costs one.
const BATCH: usize = 256;
/// First probes at once; a crowd of engines that never answer delays a real one by its share only.
const FIRST_PROBES: usize = 256;
/// Later probes at once.
const LATER_PROBES: usize = 64;
/// Complaints about a peer or a field are logged once each, up to so many; then only counted.
const COMPLAINTS: usize = 1024;

/// The membership task.
pub struct Discovery {
    registry: Registry,
    pool: watch::Receiver<Arc<Pool>>,
    teller: Teller,
    pairs: Arc<Pairs>,
    metrics: Arc<Metrics>,
    client: reqwest::Client,
    allowed: Vec<IpNet>,
    spans: Spans,
    complained: HashSet<String>,
    rounds: Arc<Rounds>,
    /// Called when something was heard that is no mere repetition.
    news: Arc<Notify>,
    /// Called when a leg's connection was refused.
    refusals: Arc<Notify>,
    /// Whether a request waits for the next round.
    round_wanted: bool,
    next_round: Instant,
    /// The rounds that are under way.
    round: Option<Round>,
    first_probes: Arc<Semaphore>,
    later_probes: Arc<Semaphore>,
}

/// The rounds of probes that are under way, taken together: an engine that does not answer keeps nobody else from being asked again.
#[derive(Debug, Default)]
struct Round {
    /// Engines that were being probed when the last of them began: they are asked once more.
    wanted: HashSet<u64>,
    /// Engines whose answers are waited for.
    asked: HashSet<u64>,
}

/// A probe's result on its way back.
type Probed = (HttpAddress, u64, Probe);

impl Discovery {
    /// A task over an empty registry. `allowed` empty means that every host may register (`--engine-allow`); of engines over several
    /// hosts only the first registers, `spans` has the others (`--engine-hosts`).
    pub fn new(
        (registry, news): (Registry, Arc<Notify>),
        pairs: Arc<Pairs>,
        metrics: Arc<Metrics>,
        client: reqwest::Client,
        (allowed, spans): (Vec<IpNet>, Spans),
        rounds: Arc<Rounds>,
        teller: Teller,
    ) -> Self {
        Discovery {
            pool: registry.subscribe(),
            teller,
            news,
            refusals: registry.refusals(),
            registry,
            pairs,
            metrics,
            client,
            allowed,
            spans,
            complained: HashSet::new(),
            rounds,
            round_wanted: false,
            next_round: Instant::now(),
            round: None,
            first_probes: Arc::new(Semaphore::new(FIRST_PROBES)),
            later_probes: Arc::new(Semaphore::new(LATER_PROBES)),
        }
    }

    /// Runs until it is dropped. When the listener is gone it only waits for that.
    pub async fn run(mut self, mut heard: mpsc::Receiver<Heard>) {
        // A result is awaited before its engine is probed again, so that this cannot hold more than one for each engine.
        let (results_in, mut results) = mpsc::unbounded_channel::<Probed>();
        let (mut last_look, mut is_refusing) = (Instant::now(), false);
        loop {
            let mut result = None;
            let next_look = self.next_look(last_look, is_refusing);
            let mut look = tokio::select! {
                () = self.news.notified() => false,
                probed = results.recv() => {
                    result = probed;
                    false
                }
                () = self.rounds.wanted(), if !self.round_wanted => {
                    self.round_wanted = true;
                    false
                }
                () = tokio::time::sleep_until(self.next_round.into()), if self.round_wanted => {
                    self.begin_round();
                    false
                }
                () = self.refusals.notified(), if !is_refusing => {
                    is_refusing = true;
                    false
                }
                () = tokio::time::sleep_until(next_look.into()) => true,
            };
            // Whatever was said is known before anything is judged. A new engine is probed at once, and so is one whose address
            // another claims.
            match self.hear_all(&mut heard).await {
                Some(added) => look |= added,
                None => return std::future::pending().await,
            }
            if let Some((address, incarnation, probe)) = result {
                self.registry.probed(&address, incarnation, probe, Instant::now());
                if let Some(round) = &mut self.round {
                    round.asked.remove(&incarnation);
                }
            }
            if look {
                (last_look, is_refusing) = (Instant::now(), false);
                for order in self.registry.due(last_look) {
                    self.probe(order, results_in.clone());
                }
            }
            self.go_round(&results_in);
            for incarnation in self.registry.publish() {
                self.pairs.forget(incarnation);
            }
            self.end_round();
            let pool = self.pool.borrow_and_update().clone();
            self.teller.look(&pool, &self.pairs, &self.metrics, Instant::now());
        }
    }

    /// When to look for due probes: as soon as one is due, or to see that all is as it was.
    fn next_look(&self, last: Instant, is_refusing: bool) -> Instant {
        let is_whole = {
            let pool = self.pool.borrow();
            pool.probing + pool.unhealthy == 0
        };
        let idle = last + if is_whole { LOOK } else { LOOKS_APART };
        let due = if is_refusing { last } else { self.registry.next_due().map_or(idle, |due| due.min(idle)) };
        due.max(last + LOOKS_APART)
    }

    /// Deals with the messages that are there; says whether an engine wants to be probed now. None when the listener is gone.
    async fn hear_all(&mut self, heard: &mut mpsc::Receiver<Heard>) -> Option<bool> {
        let mut added = false;
        for _ in 0..BATCH {
            match heard.try_recv() {
                Ok(message) => added |= self.hear(&message),
                Err(TryRecvError::Empty) => return Some(added),
                Err(TryRecvError::Disconnected) => return None,
            }
        }
        // There may be more; probes have their turn in between.
        self.news.notify_one();
        tokio::task::yield_now().await;
        Some(added)
    }

    /// Deals with one message; says whether an engine wants to be probed now.
    fn hear(&mut self, message: &Heard) -> bool {
        let listed = |says: &Registration| self.spans.of(says);
        let (registration, unknown) = match decode::decode_of(&message.payload, listed) {
            Ok(Message::Register(registration, unknown)) => (registration, unknown),
            Ok(Message::Hello) => {
                self.metrics.registration("hello");
                return false;
            }
            Err(rejection) => {
                self.metrics.registration(rejection.as_str());
                self.complain(message.peer, &rejection.to_string());
                return false;
            }
        };
        if let Some(reason) = distrust(&registration, message.peer, &self.allowed) {
            self.metrics.registration("not_allowed");
            self.complain(message.peer, &format!("engine {}: {reason}", registration.http));
            return false;
        }
        for key in unknown {
            self.complain(None, &format!("engine {}: unknown registration key {key:?}", registration.http));
        }
        if let Some(listed) =
            self.spans.nearly(&registration).filter(|_| registration.dp_size > 1).map(ToString::to_string)
        {
            let text = format!("engine {}: --engine-hosts has its KV host for {listed} only", registration.http);
            self.complain(message.peer, &text);
        }
        let address = registration.http.clone();
        let (role, mode) = (registration.role, registration.mode);
        let outcome = self.registry.hear(registration, message.peer, message.at);
        self.metrics.registration(outcome.as_str());
        match outcome {
            Entered::Added => tracing::info!(%role, engine = %address, %mode, "engine registered"),
            Entered::Full => self.complain(message.peer, "no room for another engine (--max-engines)"),
            Entered::Refreshed | Entered::Restarted | Entered::Claimed => {}
        }
        matches!(outcome, Entered::Added | Entered::Restarted | Entered::Claimed)
    }

    /// Logs each complaint once: engines repeat themselves every few seconds.
    fn complain(&mut self, peer: Option<SocketAddr>, text: &str) {
        let peer = peer.map_or_else(|| "unknown".to_owned(), |peer| peer.ip().to_string());
        let complaint = format!("{peer} {text}");
        if self.complained.len() < COMPLAINTS && self.complained.insert(complaint) {
            tracing::warn!(peer, "registration: {text}");
        }
    }

    fn begin_round(&mut self) {
        self.round_wanted = false;
        self.next_round = Instant::now() + ROUNDS_APART;
        self.round.get_or_insert_default().wanted = self.registry.unready();
        self.rounds.begin();
    }

    /// Probes what a round still wants.
    fn go_round(&mut self, results: &mpsc::UnboundedSender<Probed>) {
        let Some(round) = &mut self.round else { return };
        let orders = self.registry.hasten(&mut round.wanted);
        round.asked.extend(orders.iter().map(|order| order.incarnation));
        for order in orders {
            self.probe(order, results.clone());
        }
    }

    /// Ends the rounds once their last answer is in, and published.
    fn end_round(&mut self) {
        if self.round.take_if(|round| round.wanted.is_empty() && round.asked.is_empty()).is_some() {
            self.rounds.end();
        }
    }

    fn probe(&self, order: ProbeOrder, results: mpsc::UnboundedSender<Probed>) {
        let room = if order.first { &self.first_probes } else { &self.later_probes };
        let (room, client) = (room.clone(), self.client.clone());
        tokio::spawn(async move {
            let Ok(_permit) = room.acquire().await else { return };
            let probe = finished(&order, probe::probe(&client, &order)).await;
            // The task has ended when nobody listens any more.
            let _ = results.send((order.registration.http, order.incarnation, probe));
        });
    }
}

/// A probe's result. One that panics counts as unanswered: without a result its engine would never be probed again.
async fn finished(order: &ProbeOrder, probe: impl Future<Output = Probe>) -> Probe {
    AssertUnwindSafe(probe).catch_unwind().await.unwrap_or_else(|_| {
        tracing::error!(engine = %order.registration.http, "a probe has panicked");
        Probe::Failed(Failure::NoAnswer)
    })
}

/// Why an engine's hosts are not to be dialled.
fn distrust(registration: &Registration, peer: Option<SocketAddr>, nets: &[IpNet]) -> Option<String> {
    let remote = peer.is_some_and(|peer| !peer.ip().to_canonical().is_loopback());
    for host in [&registration.http.host, &registration.kv.host] {
        let address = host.parse::<IpAddr>().ok();
        let here = address.is_some_and(|a| a.is_loopback()) || host.eq_ignore_ascii_case("localhost");
        if here && remote {
            return Some(format!(
                "host {host} is this machine's own, but the engine is elsewhere; set VLLM_HOST_IP there"
            ));
        }
        let allowed = |address: IpAddr| nets.iter().any(|net| net.contains(&address));
        if !nets.is_empty() && !address.is_some_and(allowed) {
            return Some(format!("host {host} is not in --engine-allow"));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_probe_that_panics_has_a_result() {
        let registration = crate::pool::tests::engine_of(1, crate::engine::Role::Prefill, 1, 1).registration.clone();
        let order = ProbeOrder { incarnation: 1, registration, first: true, release: true, contested: false };
        assert_eq!(finished(&order, async { Probe::Alive(None) }).await, Probe::Alive(None));
        assert_eq!(finished(&order, async { panic!("a defect") }).await, Probe::Failed(Failure::NoAnswer));
    }

    #[test]
    fn hosts_are_trusted_by_where_they_come_from() {
        let check = |host: &str, peer: &str, nets: &[&str], trusted: bool| {
            let wire = serde_json::json!({
                "type": "P", "http_address": format!("{host}:8000"),
                "zmq_address": format!("host:{host},handshake:6301,notify:61005"),
                "dp_size": 1, "tp_size": 1, "transfer_mode": "READ",
            });
            let Ok(Message::Register(registration, _)) = decode::decode(&rmp_serde::to_vec(&wire).unwrap()) else {
                panic!("{host} makes a registration");
            };
            let nets: Vec<IpNet> = nets.iter().map(|net| net.parse().unwrap()).collect();
            let peer = peer.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, 4000));
            assert_eq!(distrust(&registration, peer, &nets).is_none(), trusted, "{host} from {peer:?} with {nets:?}");
        };
        check("127.0.0.1", "127.0.0.1", &[], true);
        check("127.0.0.1", "10.0.0.5", &[], false);
        check("localhost", "10.0.0.5", &[], false);
        check("::1", "10.0.0.5", &[], false);
        check("10.0.0.5", "10.0.0.5", &[], true);
        check("node-3", "10.0.0.5", &[], true);
        check("10.0.0.5", "10.0.0.5", &["10.0.0.0/24"], true);
        check("10.0.1.5", "10.0.0.5", &["10.0.0.0/24"], false);
        check("node-3", "10.0.0.5", &["10.0.0.0/24"], false);
    }
}
