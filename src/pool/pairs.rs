//! What is known of pairs beyond the state of their engines: who has met whom, and who is bound to whom. Exchanges tell it by
//! their [`Meeting`]; whoever picks asks it under one lock.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::engine::{Mode, Role, reach};
use crate::pool::bonds::{self, Bonds};
use crate::pool::history::{PairHistory, PairState};
use crate::pool::reason::Reason;
use crate::pool::{Engine, Pool, State};

/// A pair's exchange as far as [`PairHistory`] is concerned.
#[derive(Debug)]
pub struct Meeting {
    pairs: Arc<Pairs>,
    prefill: Arc<Engine>,
    decode: Arc<Engine>,
    mode: Mode,
    /// Whether this exchange is the pair's first, which has to be told.
    first: bool,
    /// The rank that this exchange is the first of, where decode takes prefill's ranks for engines of their own.
    rank: Option<u32>,
    /// Whether the prefill engine is bound, so that its exchanges are counted until decode's first byte.
    bound: bool,
}

impl Meeting {
    /// Decode's first byte came: the two engines know each other.
    pub fn prove(&mut self) {
        self.tell(true);
    }

    /// Whether the two have not answered together yet, in this exchange or in another (protocol P6).
    pub(crate) fn is_cold(&self) -> bool {
        self.first && self.pairs.memory().history.state(&self.prefill, &self.decode, self.mode) != PairState::Known
    }

    /// Prefill has answered: decode is waited for.
    pub(crate) fn prefill_answered(&self) {
        if self.first {
            self.pairs.memory().history.prefill_answered(&self.prefill, &self.decode, self.mode);
        }
    }

    fn tell(&mut self, proved: bool) {
        if !self.first && !self.bound && self.rank.is_none() {
            return;
        }
        let mut memory = self.pairs.memory();
        if let Some(rank) = self.rank.take() {
            memory.history.end_rank(&self.prefill, &self.decode, rank, proved);
        }
        if std::mem::take(&mut self.first) {
            memory.history.end(&self.prefill, &self.decode, self.mode, proved);
        }
        if std::mem::take(&mut self.bound) {
            memory.bonds.end(&self.prefill);
        }
        drop(memory);
        self.pairs.freed.notify_waiters();
    }
}

impl Drop for Meeting {
    fn drop(&mut self) {
        self.tell(false);
    }
}

/// Who has met whom, and who is bound to whom.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    pub(crate) history: PairHistory,
    pub(crate) bonds: Bonds,
}

/// The past of all pairs.
#[derive(Debug)]
pub struct Pairs {
    allow_stale: bool,
    memory: Mutex<Memory>,
    /// Wakes requests that wait for a first contact to end.
    pub freed: tokio::sync::Notify,
}

impl Pairs {
    /// Nobody has met anybody. With `allow_stale` (`--allow-stale-pairs`) pairs that should fail for ever are used all the same.
    pub fn new(allow_stale: bool) -> Arc<Self> {
        Arc::new(Pairs { allow_stale, memory: Mutex::default(), freed: tokio::sync::Notify::new() })
    }

    /// All of it, locked for a few statements.
    pub(crate) fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An exchange of a pair begins, the first of a `rank` where one is named. The memory is this one's, locked since the pair was
    /// found fit.
    pub(crate) fn meet(
        self: &Arc<Self>,
        memory: &mut Memory,
        (prefill, rank): (&Arc<Engine>, Option<u32>),
        decode: &Arc<Engine>,
        mode: Mode,
        now: Instant,
    ) -> Meeting {
        if let Some(rank) = rank {
            memory.history.begin_rank(prefill, decode, rank);
        }
        let first = matches!(memory.history.state(prefill, decode, mode), PairState::Cold | PairState::FirstContact);
        if first {
            memory.history.begin(prefill, decode, mode, now);
        }
        let bound = bonds::binds(prefill, mode);
        if bound {
            memory.bonds.begin(prefill, decode);
        }
        Meeting { pairs: self.clone(), prefill: prefill.clone(), decode: decode.clone(), mode, first, rank, bound }
    }

    /// An engine's life has ended.
    pub fn forget(&self, incarnation: u64) {
        let mut memory = self.memory();
        memory.history.forget_dialer(incarnation);
        memory.bonds.forget(incarnation);
    }

    /// How a pair stands, for status pages.
    pub fn state(&self, prefill: &Engine, decode: &Engine, mode: Mode) -> PairState {
        self.memory().history.state(prefill, decode, mode)
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
            !self.allow_stale && memory.history.state(prefill, decode, mode) == PairState::Stale
        };
        let stranded = |peers: &[Arc<Engine>], stale: &dyn Fn(&Engine) -> bool| {
            let mut ready = peers.iter().filter(|peer| peer.state == State::Ready).peekable();
            ready.peek().is_some() && ready.all(|peer| stale(peer))
        };
        let is_untold =
            |prefill: &Engine, decode: &Engine| !reach::hosts_agree(prefill.spoken(), decode.spoken(), mode);
        let peers = if engine.role() == Role::Prefill { &pool.decode } else { &pool.prefill };
        let with = |is: &dyn Fn(&Engine, &Engine) -> bool, peer: &Engine| match engine.role() {
            Role::Prefill => is(engine, peer),
            Role::Decode => is(peer, engine),
        };
        if stranded(peers, &|peer| with(&is_untold, peer)) {
            return Some(Reason::HostsUntold);
        }
        if stranded(peers, &|peer| with(&is_untold, peer) || with(&is_stale, peer)) {
            return Some(Reason::StalePairs);
        }
        match engine.role() {
            Role::Prefill => None,
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
    pub(crate) fn arrange(&self, pool: &Pool, now: Instant) {
        let Some(mode) = pool.mode.filter(|mode| *mode == Mode::Write && pool.has_pair()) else { return };
        let ready = pool.prefill.iter().filter(|prefill| prefill.state == State::Ready);
        for prefill in ready.filter(|prefill| bonds::binds(prefill, mode)) {
            let Memory { history, bonds } = &mut *self.memory();
            bonds.partner(pool, prefill, |decode| self.is_fit(history, prefill, decode, mode, now));
        }
        let Memory { history, bonds } = &mut *self.memory();
        bonds.spread(pool, mode, |prefill, decode| self.is_fit(history, prefill, decode, mode, now));
    }

    /// Whether a prefill engine may be bound to a decode engine.
    pub(crate) fn is_fit(
        &self,
        history: &PairHistory,
        prefill: &Engine,
        decode: &Engine,
        mode: Mode,
        now: Instant,
    ) -> bool {
        let agree = reach::hosts_agree(prefill.spoken(), decode.spoken(), mode);
        agree && decode.is_usable(now) && (self.allow_stale || history.state(prefill, decode, mode) != PairState::Stale)
    }
}
