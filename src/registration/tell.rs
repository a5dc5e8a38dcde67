//! Tells why engines cannot be used (protocol R11): a warning when the reason changes and again each minute while it lasts, and
//! a gauge. `/ready` says the same by [`Pairs::reason`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::Role;
use crate::engine::versions::EngineVersion;
use crate::metrics::Metrics;
use crate::pool::breaker::Circuit;
use crate::pool::pairs::Pairs;
use crate::pool::reason::{Failure, Reason};
use crate::pool::{Engine, Pool, State};
use crate::registration::announce::Announcer;
use crate::settings::{DecodeAlone, Expected, Presumed};

/// How often an unchanged pool is looked at: breakers change with time alone.
const LOOK: Duration = Duration::from_secs(1);
/// How often a lasting reason is told again.
const AGAIN: Duration = Duration::from_secs(60);
/// The release whose engines were seen at work over several hosts (docs/verification.md).
const OVER_HOSTS_PROVED: EngineVersion = EngineVersion::new(0, 32, 0);
/// The shortest time between two lines about one engine, whatever it goes through.
const PACE: Duration = Duration::from_secs(5);

/// So many requests that decode serves alone, one after another and for so long, are worth a line while prefill engines idle.
const ALONE: u64 = 20;

/// How long pairs have answered nothing, and what decode alone has meanwhile.
#[derive(Debug)]
struct Idle {
    /// Answers of pairs and of decode alone when this began.
    pairs: u64,
    alone: u64,
    since: Instant,
}

impl Idle {
    fn new(since: Instant) -> Idle {
        Idle { pairs: 0, alone: 0, since }
    }

    /// What is to be told by these counts: nobody shall believe that pairs are at work when none is.
    fn look(&mut self, (pairs, alone): (u64, u64), now: Instant) -> Option<(u64, Duration)> {
        let (more, idle) = (alone - self.alone, now.saturating_duration_since(self.since));
        let is_told = pairs == self.pairs && more >= ALONE && idle >= AGAIN;
        if pairs != self.pairs || is_told {
            *self = Idle { pairs, alone, since: now };
        }
        is_told.then_some((more, idle))
    }
}

/// What was told of one engine.
#[derive(Debug)]
struct Told {
    role: Role,
    name: String,
    /// What it was announced by, once it was ready.
    addresses: Option<String>,
    /// What the gauge shows.
    shown: Option<Reason>,
    /// What the last line said, and when.
    said: Option<(Reason, Instant)>,
}

/// Remembers what was told, by incarnation.
#[derive(Debug)]
pub struct Teller {
    /// What is set against what engines register.
    presumed: Presumed,
    /// How many of them are to be there.
    expected: Expected,
    are_there: bool,
    /// Which requests decode may serve alone.
    alone: DecodeAlone,
    idle: Idle,
    announcer: Announcer,
    /// Whether the program says STALL of what lasts that the proxy stands in for.
    says_stall: bool,
    told: HashMap<u64, Told>,
    last: Arc<Pool>,
    next: Instant,
}

impl Teller {
    /// One that has told nothing.
    pub fn new(
        presumed: Presumed,
        expected: Expected,
        announcer: Announcer,
        says_stall: bool,
        alone: DecodeAlone,
    ) -> Teller {
        let (last, now) = (Arc::default(), Instant::now());
        let (told, idle) = (HashMap::new(), Idle::new(now));
        Teller { presumed, expected, are_there: false, alone, idle, announcer, says_stall, told, last, next: now }
    }

    /// Looks at the pool if it is another than last time or some time has passed.
    pub(super) fn look(&mut self, pool: &Arc<Pool>, pairs: &Pairs, metrics: &Metrics, now: Instant) {
        if Arc::ptr_eq(pool, &self.last) && now < self.next {
            return;
        }
        (self.last, self.next) = (pool.clone(), now + LOOK);
        for (role, engine, waited) in pairs.memory().history.lasting(now) {
            let waited_s = waited.as_secs();
            let stall = if self.says_stall { "STALL: " } else { "" };
            tracing::info!(%role, %engine, waited_s, "{stall}the first answer of a pair is waited for: its engines may be building kernels");
        }
        // A pool that has just changed is arranged first, so that nobody is told to be without a partner for a moment.
        pairs.arrange(pool, now);
        let mut before = std::mem::take(&mut self.told);
        let mut news = Vec::new();
        for engine in pool.engines() {
            let told = before.remove(&engine.incarnation).unwrap_or_else(|| Told::new(engine, now));
            news.push((engine, told));
        }
        // Those that left first: the next life of an engine has the same labels.
        for gone in before.into_values() {
            gone.show(None, metrics);
            if let Some(addresses) = gone.addresses {
                self.announcer.engine(false, gone.role, &addresses);
            }
        }
        let mut usable = [0, 0];
        for (engine, mut told) in news {
            let reason = pairs.reason(pool, engine, now);
            told.show(reason, metrics);
            told.shown = reason;
            if reason.is_none() {
                usable[engine.role() as usize] += self.expected.count(engine.registration.dp_size);
            }
            if engine.state == State::Ready && told.addresses.is_none() {
                let addresses = format!("HTTP:{}, ZMQ:{}", engine.name, engine.registration.kv.text);
                self.announcer.engine(true, told.role, &addresses);
                told.addresses = Some(addresses);
                warn_of_unproved(engine);
                self.warn_of_pairs_alone(engine);
                for said in self.presumed.contradictions(&engine.registration) {
                    let dp_size = engine.registration.dp_size;
                    tracing::warn!(role = %told.role, engine = %told.name, dp_size, said, "engine is not as the command line says: what it registered counts");
                }
            }
            told.say(engine, reason, now);
            self.told.insert(engine.incarnation, told);
        }
        self.count(usable);
        if !self.alone.is_on() || pool.prefill.is_empty() {
            return;
        }
        if let Some((decode_alone, idle)) = self.idle.look(metrics.by_whom(), now) {
            let (prefill_engines, for_s) = (pool.prefill.len(), idle.as_secs());
            tracing::warn!(
                prefill_engines,
                decode_alone,
                for_s,
                "prefill engines are registered and idle while decode serves all requests alone (--decode-alone-below, --decode-alone-missing)"
            );
        }
    }

    /// Names decode engines that do not serve alone what they are asked to.
    fn warn_of_pairs_alone(&self, engine: &Engine) {
        if !self.alone.is_on() || engine.role() != Role::Decode {
            return;
        }
        let (role, name) = (engine.role(), &engine.name);
        if !engine.traits.plain_requests {
            let release = engine.version.map(|release| release.to_string());
            tracing::warn!(%role, engine = %name, release, "serves no request alone (--decode-alone-below, --decode-alone-missing): before 0.33.0 one without a transfer can hang or end it; its requests go over prefill");
        } else if self.alone.missing > 0 && engine.registration.dp_size > 1 {
            let dp_size = engine.registration.dp_size;
            tracing::warn!(%role, engine = %name, dp_size, "serves nothing alone for what it has (--decode-alone-missing): nobody knows which of its ranks has it");
        }
    }

    /// Says when as many engines as are expected can be used, and when no longer.
    fn count(&mut self, [prefill, decode]: [usize; 2]) {
        let expected = self.expected;
        let are_there = expected.are_there(prefill, decode);
        if expected.prefill + expected.decode == 0 || are_there == self.are_there {
            return;
        }
        self.are_there = are_there;
        let wanted = format!("{} and {}", expected.prefill, expected.decode);
        match are_there {
            true => tracing::info!(prefill, decode, expected = wanted, "the expected engines can be used"),
            false => tracing::warn!(prefill, decode, expected = wanted, "fewer engines than expected can be used"),
        }
    }
}

impl Told {
    /// A first probe takes a moment, which is worth no line.
    fn new(engine: &Engine, now: Instant) -> Told {
        let said = Some((Reason::FirstProbe, now));
        Told { role: engine.role(), name: engine.name.clone(), addresses: None, shown: None, said }
    }

    fn show(&self, reason: Option<Reason>, metrics: &Metrics) {
        let (before, after) = (self.shown.map(Reason::as_str), reason.map(Reason::as_str));
        if before == after {
            return;
        }
        if let Some(word) = before {
            metrics.unusable(self.role, &self.name, word, false);
        }
        if let Some(word) = after {
            metrics.unusable(self.role, &self.name, word, true);
        }
    }

    fn say(&mut self, engine: &Engine, reason: Option<Reason>, now: Instant) {
        let Some(reason) = reason else {
            // While a trial is awaited the circuit may open again, which is the same story.
            if engine.vitals.circuit(now) == Circuit::Closed && self.said.take().is_some_and(|(said, _)| hides(said)) {
                tracing::info!(role = %self.role, engine = %self.name, mode = %engine.registration.mode, "engine can be used again");
            }
            return;
        };
        let worth_a_line = self.said.is_none_or(|(said, at)| {
            let first = said == Reason::FirstProbe && said != reason;
            first || now >= at + if said == reason { AGAIN } else { PACE }
        });
        if !worth_a_line {
            return;
        }
        self.said = Some((reason, now));
        let mode = engine.registration.mode;
        let why = engine.explain(reason);
        // Engines ping long before they serve, so that this is every start's beginning.
        if reason == Reason::Failed(Failure::Refused) && self.addresses.is_none() {
            tracing::warn!(role = %self.role, engine = %self.name, %mode, reason = %why, "engine is not up yet");
        } else {
            tracing::warn!(role = %self.role, engine = %self.name, %mode, reason = %why, "engine cannot be used");
        }
    }
}

/// Says what of an engine over several hosts was never run on real ones (docs/verification.md).
fn warn_of_unproved(engine: &Engine) {
    let says = &engine.registration;
    let (role, name) = (engine.role(), &engine.name);
    if says.repeats() {
        tracing::warn!(%role, engine = %name, "its first host's address stands for all its hosts, which was not run on real engines: it is right only where the others bind no ports of their own, else --engine-hosts must list them");
    }
    let ranks = says.local_ranks();
    if says.spans() && (engine.version != Some(OVER_HOSTS_PROVED) || ranks > 1) {
        let release = engine.version.map(|release| release.to_string());
        tracing::warn!(%role, engine = %name, release, ranks_of_a_host = ranks, "not run on real engines: over several hosts those were of release {OVER_HOSTS_PROVED} and had one rank on each");
    }
}

/// Whether an engine stays ready under this reason, so that its end has no line of its own.
fn hides(reason: Reason) -> bool {
    matches!(reason, Reason::CircuitOpen | Reason::StalePairs | Reason::Unbound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefill_that_idles_while_decode_works_is_told_of() {
        let begin = Instant::now();
        let mut idle = Idle::new(begin);
        let mut look = |seconds, pairs, alone| idle.look((pairs, alone), begin + Duration::from_secs(seconds));
        // Few, or for a short time, is nothing.
        assert_eq!([look(59, 0, 1000), look(61, 0, 19)], [None, None]);
        assert_eq!(look(61, 0, 20), Some((20, Duration::from_secs(61))));
        // Again after a minute; a pair that answers ends it.
        assert_eq!(look(120, 0, 90), None);
        assert_eq!(look(121, 0, 91), Some((71, Duration::from_secs(60))));
        assert_eq!(look(122, 1, 200), None);
        assert_eq!(look(181, 1, 300), None);
        assert_eq!(look(182, 1, 300), Some((100, Duration::from_secs(60))));
    }
}
