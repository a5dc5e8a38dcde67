//! One random history: every step is done to the real parts and to the model, and the two are compared.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use moriio_proxy::engine::hosts::Contract;
use moriio_proxy::engine::versions::EngineVersion;
use moriio_proxy::engine::{Mode, Role};
use moriio_proxy::metrics::{LegStatus, Metrics};
use moriio_proxy::pool::pairs::Meeting;
use moriio_proxy::pool::reason::Failure;
use moriio_proxy::pool::registry::{Entered, Probe, Registry};
use moriio_proxy::pool::{InFlight, Pool, State};
use moriio_proxy::routing::{Demand, NoPick, Pick, Selector};
use moriio_proxy::settings::{
    Affinity, Balance, Cache, Caps, DecodeAlone, PickRules, Policies, Policy, RegistryLimits,
};
use moriio_proxy::upstream::Verdict;

use super::world::{BREAKER, End, Life, Met, meeting, registration};
use crate::fuzz::mutate::Random;

/// Of a long prompt; a short one has half of it.
const BYTES: u64 = 1000;
/// The first release that serves requests without a transfer (protocol O16).
const ALONE_SINCE: EngineVersion = EngineVersion::new(0, 33, 0);
const MAX_ENGINES: usize = 6;
const PORTS: u16 = 9;

/// A leg that is under way.
struct Leg {
    guard: InFlight,
    life: u64,
    trial: Option<u64>,
}

/// An exchange that is under way; its parts end one by one.
struct Open {
    legs: Vec<Leg>,
    meeting: Option<Meeting>,
    key: (u64, u16),
    first: bool,
}

pub struct History {
    random: Random,
    registry: Registry,
    selector: Arc<Selector>,
    rules: PickRules,
    now: Instant,
    lives: BTreeMap<u64, Life>,
    /// Lives that have ended while legs of theirs were under way.
    ghosts: BTreeMap<u64, Life>,
    met: Met,
    open: Vec<Open>,
    ranks: BTreeMap<u64, u32>,
    /// Picks of decode alone.
    alone: u64,
}

impl History {
    pub fn new(seed: u64) -> History {
        let mut random = Random::new(seed);
        let rules = PickRules {
            caps: Caps { prefill: random.below(4), decode: random.below(4) },
            first_contact: random.one_in(2),
            allow_stale: random.one_in(4),
            route_ranks: 0,
            contract: if random.one_in(4) { Contract::SameRank } else { Contract::Auto },
            policies: Policies { prefill: Policy::ALL[random.below(6)], decode: Policy::ALL[random.below(6)] },
            cache: Cache { hundredths: 30, memory: 4096 },
            decode_alone: DecodeAlone { below: if random.one_in(2) { BYTES } else { 0 }, ..DecodeAlone::default() },
            affinity: Affinity {
                is_on: random.one_in(2),
                balance: Balance { absolute: random.below(3) as u64, hundredths: 150 },
            },
        };
        let limits = RegistryLimits { ttl: Duration::from_secs(15), max_engines: MAX_ENGINES, breaker: BREAKER };
        History {
            random,
            registry: Registry::new(limits, Arc::new(Metrics::new())),
            selector: Selector::new(rules),
            rules,
            now: Instant::now(),
            lives: BTreeMap::new(),
            ghosts: BTreeMap::new(),
            met: Met::default(),
            open: Vec::new(),
            ranks: BTreeMap::new(),
            alone: 0,
        }
    }

    /// Takes so many steps and then lets everything end. Gives the number of picks, and of those of decode alone.
    pub fn run(mut self, steps: usize) -> (u64, u64) {
        let mut picks = 0;
        for _ in 0..steps {
            match self.random.below(10) {
                0 | 1 => self.hear(),
                2 => self.probe(),
                3 => self.now += Duration::from_secs(1 + self.random.below(7000) as u64),
                4..=6 => picks += u64::from(self.pick()),
                _ => self.end_something(),
            }
            self.compare();
        }
        while !self.open.is_empty() {
            self.end_something();
        }
        self.compare();
        assert!(self.lives.values().chain(self.ghosts.values()).all(|life| life.guards == 0));
        assert!(self.selector.loads.is_idle(), "nothing is left to do");
        (picks, self.alone)
    }

    fn pool(&self) -> Arc<Pool> {
        self.registry.subscribe().borrow().clone()
    }

    fn publish(&mut self) {
        for life in self.registry.publish() {
            self.selector.pairs.forget(life);
            self.met.first.retain(|key, _| key.0 != life);
            self.met.proved.retain(|key| key.0 != life);
            self.met.trying.retain(|key| key.0 != life);
        }
        // What the pool names is taken over; what it decides is checked elsewhere.
        let pool = self.pool();
        let mut lives = BTreeMap::new();
        for engine in pool.engines() {
            let fresh =
                || Life { says: engine.registration.clone(), ready: false, guards: 0, circuit: Default::default() };
            let life = self.lives.remove(&engine.incarnation).unwrap_or_else(fresh);
            lives.insert(engine.incarnation, Life { says: engine.registration.clone(), ..life });
        }
        self.ghosts.append(&mut self.lives);
        self.lives = lives;
    }

    fn hear(&mut self) {
        let port = 1 + self.random.below(usize::from(PORTS)) as u16;
        let role = if port.is_multiple_of(2) { Role::Decode } else { Role::Prefill };
        let mode = if self.random.one_in(12) { Mode::Write } else { Mode::Read };
        let says = registration(port, role, mode, 1 + u32::from(port % 3), 1 + self.random.below(2) as u64);
        let known = self.lives.values().any(|life| life.says.http == says.http);
        let count = self.lives.len();
        let outcome = self.registry.hear(says, None, self.now);
        self.publish();
        match (known, outcome) {
            (false, Entered::Full) => assert_eq!(count, MAX_ENGINES),
            (false, Entered::Added) => assert_eq!(self.lives.len(), count + 1),
            (true, Entered::Refreshed | Entered::Restarted) => assert_eq!(self.lives.len(), count),
            other => panic!("{other:?}"),
        }
        // Most engines answer their first probe at once.
        if self.random.below(4) != 0 {
            self.probe();
        }
    }

    fn probe(&mut self) {
        for order in self.registry.due(self.now) {
            let probe = match self.random.below(16) {
                0 => Probe::Failed(Failure::Refused),
                1 => Probe::Failed(Failure::NoAnswer),
                2 => Probe::Failed(Failure::Status(503)),
                3 => Probe::Failed(Failure::Unresolved),
                4 => Probe::Failed(Failure::NoRoute),
                5 => Probe::Failed(Failure::KvRefused(6301)),
                6 => Probe::Failed(Failure::KvUnresolved),
                // Engines of either release, which only a new life changes.
                _ if order.registration.role == Role::Decode && order.incarnation.is_multiple_of(2) => {
                    Probe::Alive(Some(ALONE_SINCE))
                }
                _ => Probe::Alive(None),
            };
            self.registry.probed(&order.registration.http, order.incarnation, probe, self.now);
            // A result for a life that is over changes nothing.
            self.registry.probed(
                &order.registration.http,
                order.incarnation.wrapping_sub(1),
                Probe::Failed(Failure::Refused),
                self.now,
            );
        }
        self.publish();
        let pool = self.pool();
        for engine in pool.engines() {
            let life = self.lives.get_mut(&engine.incarnation).unwrap();
            life.ready = engine.state == State::Ready;
            assert!(!life.ready || Some(life.says.mode) == pool.mode, "ready means of the pool's mode");
        }
    }

    /// Whether the model would send work to this life.
    fn free(&self, life: &Life) -> bool {
        let Caps { prefill, decode } = self.rules.caps;
        let cap = if life.says.role == Role::Prefill { prefill } else { decode };
        let room = cap == 0 || life.guards < cap;
        life.ready && room && life.circuit.usable(self.now)
    }

    fn allowed(&self, mode: Mode, prefill: u64, decode: u64) -> bool {
        let (p, d) = (&self.lives[&prefill], &self.lives[&decode]);
        let (key, dialed) = meeting(mode, (prefill, p.says.http.port), (decode, d.says.http.port));
        let stale = self.met.first.get(&key).is_some_and(|first| *first != dialed);
        let alone = self.rules.first_contact && self.met.trying.contains(&key) && !self.met.proved.contains(&key);
        self.free(p)
            && self.free(d)
            && match stale {
                true => self.rules.allow_stale,
                false => !alone,
            }
    }

    fn of(&self, role: Role) -> Vec<u64> {
        let of = self.lives.iter().filter(|(_, life)| life.says.role == role);
        of.map(|(life, _)| *life).collect()
    }

    fn pick(&mut self) -> bool {
        let pool = self.pool();
        for engine in pool.engines() {
            self.lives.get_mut(&engine.incarnation).unwrap().ready = engine.state == State::Ready;
        }
        let mode = pool.mode.unwrap_or(Mode::Read);
        let (prefills, decodes) = (self.of(Role::Prefill), self.of(Role::Decode));
        let possible = prefills.iter().any(|p| decodes.iter().any(|d| self.allowed(mode, *p, *d)));
        let session = (!self.random.one_in(3)).then(|| self.random.below(5) as u64);
        let prefix = [self.random.below(7) as u64];
        let (is_short, may_skip_prefill) = (self.random.one_in(3), !self.random.one_in(4));
        let bytes = if is_short { BYTES / 2 } else { BYTES };
        let demand = Demand { session, key: self.random.below(5) as u64, bytes, prefix: &prefix, may_skip_prefill };
        let newer = pool.decode.iter().filter(|engine| engine.version == Some(ALONE_SINCE));
        let alone = newer.map(|engine| engine.incarnation).filter(|life| self.free(&self.lives[life]));
        let has_pair = [&prefills, &decodes].into_iter().all(|side| side.iter().any(|life| self.lives[life].ready));
        let may_be_alone = is_short && may_skip_prefill && self.rules.decode_alone.below > 0 && has_pair;
        let alone: Vec<u64> = alone.filter(|_| may_be_alone).collect();
        let picked = match self.selector.pick_any(&pool, demand, &[], self.now) {
            Ok(Pick::Alone(picked)) => {
                let life = picked.decode.engine.incarnation;
                assert!(alone.contains(&life), "{life} is not one of {alone:?}");
                let leg = self.take(life, picked.decode);
                self.open.push(Open { legs: vec![leg], meeting: None, key: (0, 0), first: false });
                self.alone += 1;
                return true;
            }
            Ok(Pick::Pair(_)) if !alone.is_empty() => panic!("{alone:?} serve it alone"),
            Ok(Pick::Pair(picked)) => *picked,
            Err(NoPick::Busy | NoPick::FirstContact | NoPick::Nobody) => {
                assert!(!possible, "a pair was possible");
                return false;
            }
        };
        let (p, d) = (picked.prefill.engine.incarnation, picked.decode.engine.incarnation);
        assert!(self.allowed(mode, p, d), "{p} and {d} are no pair to pick: {:?}", self.lives);
        let ports = (self.lives[&p].says.http.port, self.lives[&d].says.http.port);
        let dp_size = self.lives[&p].says.dp_size;
        assert_eq!(picked.rank.is_some(), dp_size > 1);
        assert!(picked.rank.is_none_or(|rank| rank < dp_size));
        *self.ranks.entry(p).or_default() |= 1 << picked.rank.unwrap_or(0);
        let (key, dialed) = meeting(mode, (p, ports.0), (d, ports.1));
        let stale = self.met.first.get(&key).is_some_and(|first| *first != dialed);
        let first = !stale && !self.met.proved.contains(&key);
        if first {
            self.met.first.entry(key).or_insert(dialed);
            self.met.trying.insert(key);
        }
        let legs = vec![self.take(p, picked.prefill), self.take(d, picked.decode)];
        self.open.push(Open { legs, meeting: Some(picked.meeting), key, first });
        true
    }

    fn take(&mut self, life: u64, guard: InFlight) -> Leg {
        let model = self.lives.get_mut(&life).unwrap();
        model.guards += 1;
        Leg { guard, life, trial: model.circuit.admit(self.now) }
    }

    /// Ends one leg or one meeting of one exchange that is under way.
    fn end_something(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let at = self.random.below(self.open.len());
        let which = self.random.below(self.open[at].legs.len() + 1);
        match self.open[at].legs.get(which) {
            Some(_) => {
                let leg = self.open[at].legs.swap_remove(which);
                self.end_leg(leg);
            }
            None => self.end_contact(at),
        }
        if self.open[at].legs.is_empty() {
            self.end_contact(at);
            self.open.swap_remove(at);
        }
    }

    fn end_contact(&mut self, at: usize) {
        let open = &mut self.open[at];
        let Some(mut meeting) = open.meeting.take() else { return };
        let proved = self.random.one_in(2);
        if proved {
            meeting.prove();
        }
        drop(meeting);
        if open.first {
            self.met.trying.remove(&open.key);
            if proved && self.met.first.contains_key(&open.key) {
                self.met.proved.insert(open.key);
            }
        }
    }

    fn end_leg(&mut self, leg: Leg) {
        let Leg { guard, life, trial } = leg;
        let (end, status, verdict) = match self.random.below(6) {
            0 => (End::Ailing, LegStatus::Broken, Verdict::Ailing),
            1 => (End::Refusing, LegStatus::Connect, Verdict::Refusing),
            2 => (End::Nothing, LegStatus::Cancelled, Verdict::None),
            _ => (End::Healthy, LegStatus::Success, Verdict::Healthy),
        };
        if end != End::Nothing || self.random.one_in(2) {
            guard.end(status, verdict);
            // Only the first word counts.
            guard.end(LegStatus::Broken, Verdict::Refusing);
        }
        drop(guard);
        let dropped = Instant::now();
        let model = self.lives.get_mut(&life).or_else(|| self.ghosts.get_mut(&life)).unwrap();
        model.end_leg(trial, end, dropped);
    }

    fn compare(&self) {
        let pool = self.pool();
        assert!(pool.engines().count() <= MAX_ENGINES);
        for engine in pool.engines() {
            let life = &self.lives[&engine.incarnation];
            assert_eq!(engine.vitals.in_flight(), life.guards, "guards on {}", engine.name);
            let each = if engine.role() == Role::Prefill { BYTES } else { 1 };
            let legs = life.guards as u64;
            let work = self.selector.loads.work(engine.role(), engine.incarnation);
            assert!(work.legs == legs && work.weight <= legs * each, "work of {}: {work:?}", engine.name);
        }
        for leg in self.open.iter().flat_map(|open| &open.legs) {
            assert!(leg.guard.engine.vitals.in_flight() >= 1);
        }
    }
}
