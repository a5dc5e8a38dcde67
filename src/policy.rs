//! Which pair serves an exchange: round robin over slots, one turn counter for both sides.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::compat;
use crate::contacts::{Contacts, Standing};
use crate::engine::Mode;
use crate::pool::{Engine, Pool, Seat};

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
    /// Usable engines exist; each is at its limit or in its first contact.
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
}

impl Contact {
    /// Decode's first byte came: the two engines know each other.
    pub fn prove(&mut self) {
        self.tell(true);
    }

    fn tell(&mut self, proved: bool) {
        if self.first {
            self.first = false;
            self.selector.contacts().end(&self.prefill, &self.decode, self.mode, proved);
            self.selector.freed.notify_waiters();
        }
    }
}

impl Drop for Contact {
    fn drop(&mut self) {
        self.tell(false);
    }
}

/// The picker and its memory: the turn counter and who has met whom.
#[derive(Debug)]
pub struct Selector {
    rules: PickRules,
    turn: AtomicU64,
    contacts: Mutex<Contacts>,
    /// Wakes requests that wait for a first contact to end.
    pub freed: tokio::sync::Notify,
}

impl Selector {
    /// A picker that begins with the first slot.
    pub fn new(rules: PickRules) -> Arc<Self> {
        Arc::new(Selector {
            rules,
            turn: AtomicU64::new(0),
            contacts: Mutex::default(),
            freed: tokio::sync::Notify::new(),
        })
    }

    fn contacts(&self) -> std::sync::MutexGuard<'_, Contacts> {
        self.contacts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An engine's life has ended.
    pub fn forget(&self, incarnation: u64) {
        self.contacts().forget_dialer(incarnation);
    }

    /// How a pair stands, for status pages.
    pub fn standing(&self, prefill: &Engine, decode: &Engine, mode: Mode) -> Standing {
        self.contacts().standing(prefill, decode, mode)
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
        let mut contacts = self.contacts();
        for slot in cycle(&pool.prefill_slots, turn) {
            let prefill = &pool.prefill[slot.engine];
            if !prefill.vitals.usable(now) {
                continue;
            }
            if !self.has_room(prefill) {
                busy = true;
                continue;
            }
            for decode in cycle(&pool.decode_slots, turn) {
                let decode = &pool.decode[*decode];
                if !decode.vitals.usable(now) {
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
                let contact =
                    Contact { selector: self.clone(), prefill: prefill.clone(), decode: decode.clone(), mode, first };
                let rank = (prefill.registration.dp_size > 1).then_some(slot.rank);
                return Ok(Picked { prefill: prefill_seat, decode: decode_seat, rank, mode, contact });
            }
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
        let mut contacts = self.contacts();
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
            return Some((seat, Contact { selector: self.clone(), prefill, decode, mode: Mode::Read, first }));
        }
        None
    }

    /// Whether the pair's first exchange must go alone: not when both are known to be 0.31.0 or newer.
    fn alone(&self, prefill: &Engine, decode: &Engine) -> bool {
        self.rules.first_contact && compat::first_contact_gate(prefill.traits, decode.traits)
    }
}

/// All of `items`, beginning with the one whose turn it is.
fn cycle<T>(items: &[T], turn: usize) -> impl Iterator<Item = &T> {
    let (before, from) = items.split_at(turn % items.len().max(1));
    from.iter().chain(before)
}
