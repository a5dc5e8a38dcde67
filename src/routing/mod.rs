//! Which pair serves an exchange: round robin over slots, one turn counter for both sides.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::engine::versions;
use crate::engine::{Mode, Role};
use crate::pool::bonds::{self, Bonds, Partner};
use crate::pool::history::{Contacts, Standing};
use crate::pool::reason::Reason;
use crate::pool::{Engine, Pool, Seat, State};

/// What a pick must respect beyond the state of the engines.
#[derive(Clone, Copy, Debug)]
pub struct PickRules {
    /// Legs that an engine may have in flight; 0 is no limit (`--engine-in-flight`).
    pub engine_in_flight: usize,
    /// Whether a pair's first exchange goes alone (`--first-contact`).
    pub first_contact: bool,
    /// Whether pairs that should fail for ever are used all the same (`--allow-stale-pairs`).
    pub allow_stale: bool,
}

/// A pair with its two places taken.
#[derive(Debug)]
pub struct Picked {
    /// The prefill engine's place.
    pub prefill: Seat,
    /// The decode engine's place.
    pub decode: Seat,
    /// Prefill's rank, when it has more than one.
    pub rank: Option<u32>,
    /// Who moves the KV cache.
    pub mode: Mode,
    /// The pair's meeting; its end is told by dropping it.
    pub contact: Contact,
}

/// Why there is no pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPick {
    /// Usable engines exist; each is at its limit, in its first contact or bound to another.
    Busy,
    /// One side has no usable engine, or every pair is stale.
    Nobody,
}

/// A pair's exchange as far as [`Contacts`] is concerned.
#[derive(Debug)]
pub struct Contact {
    selector: Arc<Selector>,
    prefill: Arc<Engine>,
    decode: Arc<Engine>,
    mode: Mode,
    /// Whether this exchange is the pair's first, which has to be told.
    first: bool,
    /// Whether the prefill engine is bound, so that its exchanges are counted until decode's first byte.
    bound: bool,
}

impl Contact {
    /// Decode's first byte came: the two engines know each other.
    pub fn prove(&mut self) {
        self.tell(true);
    }

    fn tell(&mut self, proved: bool) {
        if !self.first && !self.bound {
            return;
        }
        let mut memory = self.selector.memory();
        if std::mem::take(&mut self.first) {
            memory.contacts.end(&self.prefill, &self.decode, self.mode, proved);
        }
        if std::mem::take(&mut self.bound) {
            memory.bonds.end(&self.prefill);
        }
        drop(memory);
        self.selector.freed.notify_waiters();
    }
}

impl Drop for Contact {
    fn drop(&mut self) {
        self.tell(false);
    }
}

/// Who has met whom, and who is bound to whom.
#[derive(Debug, Default)]
struct Memory {
    contacts: Contacts,
    bonds: Bonds,
}

/// The picker and its memory: the turn counter and the past of pairs.
#[derive(Debug)]
pub struct Selector {
    rules: PickRules,
    turn: AtomicU64,
    memory: Mutex<Memory>,
    /// Wakes requests that wait for a first contact to end.
    pub freed: tokio::sync::Notify,
}

impl Selector {
    /// A picker that begins with the first slot.
    pub fn new(rules: PickRules) -> Arc<Self> {
        Arc::new(Selector {
            rules,
            turn: AtomicU64::new(0),
            memory: Mutex::default(),
            freed: tokio::sync::Notify::new(),
        })
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An engine's life has ended.
    pub fn forget(&self, incarnation: u64) {
        let mut memory = self.memory();
        memory.contacts.forget_dialer(incarnation);
        memory.bonds.forget(incarnation);
    }

    /// How a pair stands, for status pages.
    pub fn standing(&self, prefill: &Engine, decode: &Engine, mode: Mode) -> Standing {
        self.memory().contacts.standing(prefill, decode, mode)
    }

    /// Why no work is sent to an engine of the pool, if so; asked for status pages, the log and metrics.
    pub fn reason(&self, pool: &Pool, engine: &Engine, now: Instant) -> Option<Reason> {
        let (own, Some(mode)) = (engine.reason(now), pool.mode) else { return engine.reason(now) };
        if own.is_some() {
            return own;
        }
        let memory = self.memory();
        // Each stale pair stands in a bounded memory, so that a long look here is rare however large the pool.
        let is_stale = |prefill: &Engine, decode: &Engine| {
            !self.rules.allow_stale && memory.contacts.standing(prefill, decode, mode) == Standing::Stale
        };
        let stranded = |peers: &[Arc<Engine>], stale: &dyn Fn(&Engine) -> bool| {
            let mut ready = peers.iter().filter(|peer| peer.state == State::Ready).peekable();
            ready.peek().is_some() && ready.all(|peer| stale(peer))
        };
        match engine.role() {
            Role::Prefill => stranded(&pool.decode, &|decode| is_stale(engine, decode)).then_some(Reason::StalePairs),
            Role::Decode if stranded(&pool.prefill, &|prefill| is_stale(prefill, engine)) => Some(Reason::StalePairs),
            Role::Decode => memory.bonds.leaves_out(pool, engine).then_some(Reason::Unbound),
        }
    }

    /// Prefill engines that are bound to a decode engine, each with that one.
    pub fn bound<'a>(&self, pool: &'a Pool) -> Vec<(&'a Engine, &'a Engine)> {
        let Some(mode) = pool.mode else { return Vec::new() };
        let memory = self.memory();
        let binding = pool.prefill.iter().filter(|prefill| bonds::binds(prefill, mode));
        let pairs = binding.filter_map(|prefill| {
            let life = memory.bonds.of(prefill)?;
            Some((prefill.as_ref(), pool.decode.iter().find(|decode| decode.incarnation == life)?.as_ref()))
        });
        pairs.collect()
    }

    /// Binds the prefill engines that have to be bound, evenly, before requests come.
    pub fn arrange(&self, pool: &Pool, now: Instant) {
        let Some(mode) = pool.mode.filter(|mode| *mode == Mode::Write && pool.has_pair()) else { return };
        let ready = pool.prefill.iter().filter(|prefill| prefill.state == State::Ready);
        for prefill in ready.filter(|prefill| bonds::binds(prefill, mode)) {
            let Memory { contacts, bonds } = &mut *self.memory();
            bonds.partner(pool, prefill, |decode| self.is_fit(contacts, prefill, decode, mode, now));
        }
        let Memory { contacts, bonds } = &mut *self.memory();
        bonds.spread(pool, mode, |prefill, decode| self.is_fit(contacts, prefill, decode, mode, now));
    }

    /// Whether a prefill engine may be bound to a decode engine.
    fn is_fit(&self, contacts: &Contacts, prefill: &Engine, decode: &Engine, mode: Mode, now: Instant) -> bool {
        decode.is_usable(now) && (self.rules.allow_stale || contacts.standing(prefill, decode, mode) != Standing::Stale)
    }

    fn has_room(&self, engine: &Engine) -> bool {
        self.rules.engine_in_flight == 0 || engine.vitals.in_flight() < self.rules.engine_in_flight
    }

    /// Takes the next pair. One turn is consumed whether or not there is one; what cannot be used is stepped over.
    pub fn pick(self: &Arc<Self>, pool: &Pool, now: Instant) -> Result<Picked, NoPick> {
        let Some(mode) = pool.mode.filter(|_| pool.has_pair()) else {
            return Err(NoPick::Nobody);
        };
        let turn = usize::try_from(self.turn.fetch_add(1, Ordering::Relaxed)).unwrap_or(0);
        let mut busy = false;
        let mut memory = self.memory();
        for slot in cycle(&pool.prefill_slots, turn) {
            let prefill = &pool.prefill[slot.engine];
            if !prefill.vitals.usable(now) {
                continue;
            }
            if !self.has_room(prefill) {
                busy = true;
                continue;
            }
            match self.pair(&mut memory, pool, prefill, (mode, turn), now) {
                Ok((prefill_seat, decode, contact)) => {
                    let rank = (prefill.registration.dp_size > 1).then_some(slot.rank);
                    return Ok(Picked { prefill: prefill_seat, decode, rank, mode, contact });
                }
                Err(NoPick::Busy) => busy = true,
                Err(NoPick::Nobody) => {}
            }
        }
        Err(if busy { NoPick::Busy } else { NoPick::Nobody })
    }

    /// The next decode engine for a prefill engine that has room, both places taken.
    fn pair(
        self: &Arc<Self>,
        memory: &mut Memory,
        pool: &Pool,
        prefill: &Arc<Engine>,
        (mode, turn): (Mode, usize),
        now: Instant,
    ) -> Result<(Seat, Seat, Contact), NoPick> {
        let Memory { contacts, bonds } = memory;
        let bound = bonds::binds(prefill, mode);
        let fit = |decode: &Engine| self.is_fit(contacts, prefill, decode, mode, now);
        let only = match if bound { bonds.partner(pool, prefill, fit) } else { Partner::Any } {
            Partner::Any => None,
            Partner::One(life) => Some(life),
            Partner::Later => return Err(NoPick::Busy),
        };
        let mut busy = false;
        for decode in cycle(&pool.decode_slots, turn) {
            let decode = &pool.decode[*decode];
            if only.is_some_and(|life| life != decode.incarnation) || !decode.vitals.usable(now) {
                continue;
            }
            let standing = contacts.standing(prefill, decode, mode);
            if !self.has_room(decode) || (standing == Standing::Waiting && self.alone(prefill, decode)) {
                busy = true;
                continue;
            }
            if standing == Standing::Stale && !self.rules.allow_stale {
                if contacts.complain(prefill, decode) {
                    let restart = if mode == Mode::Write { &prefill.name } else { &decode.name };
                    tracing::warn!(prefill = %prefill.name, decode = %decode.name, %restart, "pair is not used: one side remembers an earlier life of the other until it is restarted");
                }
                continue;
            }
            // Another thread may have taken a probation's only place since `usable` looked.
            let Some(prefill_seat) = prefill.take_seat(now) else {
                break;
            };
            let Some(decode_seat) = decode.take_seat(now) else {
                busy = true;
                continue;
            };
            let first = matches!(standing, Standing::First | Standing::Waiting);
            if first {
                contacts.begin(prefill, decode, mode);
            }
            if bound {
                bonds.begin(prefill, decode);
            }
            let (selector, prefill, decode) = (self.clone(), prefill.clone(), decode.clone());
            let contact = Contact { selector, prefill, decode, mode, first, bound };
            return Ok((prefill_seat, decode_seat, contact));
        }
        Err(if busy { NoPick::Busy } else { NoPick::Nobody })
    }

    /// READ: another decode engine for a prefill that has answered, its own refused. `refused` are not asked again.
    pub fn another_decode(
        self: &Arc<Self>,
        pool: &Pool,
        prefill: &Arc<Engine>,
        refused: &[u64],
        now: Instant,
    ) -> Option<(Seat, Contact)> {
        let turn = usize::try_from(self.turn.load(Ordering::Relaxed)).unwrap_or(0);
        let contacts = &mut self.memory().contacts;
        for decode in cycle(&pool.decode_slots, turn) {
            let decode = &pool.decode[*decode];
            let standing = contacts.standing(prefill, decode, Mode::Read);
            let barred = match standing {
                Standing::Stale => !self.rules.allow_stale,
                Standing::Waiting => self.alone(prefill, decode),
                Standing::Open | Standing::First => false,
            };
            if refused.contains(&decode.incarnation) || barred || !self.has_room(decode) {
                continue;
            }
            let Some(seat) = decode.take_seat(now) else { continue };
            let first = matches!(standing, Standing::First | Standing::Waiting);
            if first {
                contacts.begin(prefill, decode, Mode::Read);
            }
            let (prefill, decode) = (prefill.clone(), decode.clone());
            let (selector, mode) = (self.clone(), Mode::Read);
            return Some((seat, Contact { selector, prefill, decode, mode, first, bound: false }));
        }
        None
    }

    /// Whether the pair's first exchange must go alone: not when both are known to be 0.31.0 or newer.
    fn alone(&self, prefill: &Engine, decode: &Engine) -> bool {
        self.rules.first_contact && versions::first_contact_gate(prefill.traits, decode.traits)
    }
}

/// All of `items`, beginning with the one whose turn it is.
fn cycle<T>(items: &[T], turn: usize) -> impl Iterator<Item = &T> {
    let (before, from) = items.split_at(turn % items.len().max(1));
    from.iter().chain(before)
}
