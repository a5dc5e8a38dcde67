//! The model: what an engine of the pool is, as far as picking goes, kept in the plainest way.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use moriio_proxy::engine::{Dialect, HttpAddress, KvEndpoint, Mode, Registration, Role};
use moriio_proxy::settings::BreakerLimits;

pub const BREAKER: BreakerLimits =
    BreakerLimits { failures: 2, open: Duration::from_secs(3600), open_max: Duration::from_secs(7200) };

/// Registrations differ in what matters to picking only.
pub fn registration(port: u16, role: Role, mode: Mode, dp_size: u32, index: u64) -> Registration {
    Registration {
        role,
        http: HttpAddress { host: "10.0.0.1".into(), port },
        kv: KvEndpoint { host: "10.0.0.1".into(), handshake: 1000 + port, notify: 2000 + port, text: String::new() },
        dp_size,
        tp_size: 1,
        mode,
        // What decode serves alone only releases that speak B can. Prefill that may speak it has bonds, which are tested elsewhere.
        dialect: if role == Role::Prefill { Dialect::A } else { Dialect::B },
        index: Some(index),
        hosts: None,
    }
}

/// A breaker told in words: how many failures in a row, or until when it is open.
#[derive(Clone, Copy, Debug, Default)]
pub struct Circuit {
    pub failures: u32,
    pub open: Option<(Instant, Duration)>,
    /// Whether a trial was let through since it opened.
    pub probation: bool,
    /// When the last trial began, if it has not ended.
    pub trial: Option<Instant>,
    /// Trials that were ever let through.
    pub trials: u64,
}

impl Circuit {
    pub fn usable(&self, now: Instant) -> bool {
        let lasts = |period| self.trial.is_none_or(|began| now >= began + period);
        self.open.is_none_or(|(until, period)| now >= until && lasts(period))
    }

    /// A leg is let through; says which trial it is, if it is one. Beside one that lasts the next has to wait twice as long.
    pub fn admit(&mut self, now: Instant) -> Option<u64> {
        let (_, period) = self.open.as_mut()?;
        if self.trial.is_some() {
            *period = (*period * 2).min(BREAKER.open_max);
        }
        (self.probation, self.trial) = (true, Some(now));
        self.trials += 1;
        Some(self.trials)
    }
}

/// How a leg ends, as the model sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Healthy,
    Ailing,
    Refusing,
    Nothing,
}

/// One incarnation.
#[derive(Clone, Debug)]
pub struct Life {
    pub says: Registration,
    pub ready: bool,
    pub guards: usize,
    pub circuit: Circuit,
}

impl Life {
    /// `at` is the moment of the real breaker, which reads the clock itself when a guard is dropped.
    pub fn end_leg(&mut self, trial: Option<u64>, end: End, at: Instant) {
        self.guards -= 1;
        // Of all trials but the last only a success is news.
        if end != End::Healthy && trial.is_some_and(|trial| trial != self.circuit.trials) {
            return;
        }
        let decides = trial.is_some() && self.circuit.probation;
        let trials = self.circuit.trials;
        let period = match (self.circuit.open, decides, end) {
            (None, _, End::Healthy) => {
                self.circuit.failures = 0;
                return;
            }
            (None, _, End::Ailing) if self.circuit.failures + 1 < BREAKER.failures => {
                self.circuit.failures += 1;
                return;
            }
            (None, _, End::Ailing | End::Refusing) => BREAKER.open,
            (Some((_, period)), true, End::Ailing | End::Refusing) => (period * 2).min(BREAKER.open_max),
            (Some(_), true, End::Healthy) => {
                self.circuit = Circuit { trials, ..Circuit::default() };
                return;
            }
            (Some(_), true, End::Nothing) => {
                self.circuit.trial = None;
                return;
            }
            (None, _, End::Nothing) | (Some(_), false, _) => return,
        };
        self.circuit = Circuit { open: Some((at + period, period)), trials, ..Circuit::default() };
    }
}

/// Who has met whom: the dialer's life and the address it dialed.
#[derive(Debug, Default)]
pub struct Met {
    /// The life that was met first.
    pub first: HashMap<(u64, u16), u64>,
    pub proved: HashSet<(u64, u16)>,
    pub trying: HashSet<(u64, u16)>,
}

/// The key of a pair in [`Met`] and the life of its dialed side.
pub fn meeting(mode: Mode, prefill: (u64, u16), decode: (u64, u16)) -> ((u64, u16), u64) {
    match mode {
        Mode::Write => ((prefill.0, decode.1), decode.0),
        Mode::Read => ((decode.0, prefill.1), prefill.0),
    }
}
