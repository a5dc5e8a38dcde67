//! The circuit breaker of one engine: closed, open, probation. Pure: time and outcomes are passed in.
//!
//! Closed counts consecutive failures; at the limit (or at once, when a connection is refused) it opens. While it is open nothing is
//! sent. After that time one trial is let through (probation): its success closes the breaker, its failure opens it for
//! twice as long, up to a maximum. A trial that ends without a verdict (its client left) gives the trial place back. One that
//! lasts, as it may for half an hour on a cold pair (protocol P6), makes room for another once it has had as much time as the
//! circuit was open: a request that hangs is no reason to do without an engine that may be well. Each such one has twice as
//! much time, up to the same maximum: an engine that takes all and answers nothing must not get many. The last trial
//! decides; of earlier ones only a success is news.

use std::time::{Duration, Instant};

use crate::settings::BreakerLimits;

/// How a leg was let through, to be handed back with its verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// The breaker was closed.
    Regular,
    /// The leg is a trial of a probation, the breaker's so many-th.
    Trial(u64),
}

/// What operators see of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Circuit {
    /// Work flows.
    Closed,
    /// Nothing is sent.
    Open,
    /// One trial decides.
    Probation,
}

impl Circuit {
    /// The word for logs and status pages.
    pub fn as_str(self) -> &'static str {
        match self {
            Circuit::Closed => "closed",
            Circuit::Open => "open",
            Circuit::Probation => "probation",
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum State {
    Closed {
        failures: u32,
    },
    Open {
        until: Instant,
        period: Duration,
    },
    /// `trial`: when the last trial began, if that has not ended.
    Probation {
        trial: Option<Instant>,
        period: Duration,
    },
}

/// How long an engine that turned work away is not asked, where requests wait for it in line (protocol L12).
const PRESSED: Duration = Duration::from_millis(200);

/// The breaker of one engine.
#[derive(Debug)]
pub struct Breaker {
    limits: BreakerLimits,
    state: State,
    /// Trials that were ever let through, which is the number of the last one.
    trials: u64,
    /// Until when it is not asked since it turned work away, which is no failure.
    pressed: Option<Instant>,
}

impl Breaker {
    /// A closed breaker.
    pub fn new(limits: BreakerLimits) -> Self {
        Breaker { limits, state: State::Closed { failures: 0 }, trials: 0, pressed: None }
    }

    /// What operators see at `now`.
    pub fn circuit(&self, now: Instant) -> Circuit {
        match self.state {
            State::Closed { .. } => Circuit::Closed,
            State::Open { until, .. } if now < until => Circuit::Open,
            State::Open { .. } | State::Probation { .. } => Circuit::Probation,
        }
    }

    /// The engine turned work away.
    pub fn press(&mut self, now: Instant) {
        self.pressed = Some(now + PRESSED);
    }

    /// Whether it did just now.
    pub fn is_pressed(&self, now: Instant) -> bool {
        self.pressed.is_some_and(|until| now < until)
    }

    /// Whether [`Breaker::admit`] would let a leg through.
    pub fn usable(&self, now: Instant) -> bool {
        match self.state {
            State::Closed { .. } => true,
            State::Open { until, .. } => now >= until,
            State::Probation { trial, period } => trial.is_none_or(|began| now >= began + period),
        }
    }

    /// Lets a leg through, or not. In probation only one in so much time.
    pub fn admit(&mut self, now: Instant) -> Option<Admission> {
        let period = match self.state {
            State::Closed { .. } => return Some(Admission::Regular),
            _ if !self.usable(now) => return None,
            State::Probation { trial: Some(_), period } => self.twice(period),
            State::Open { period, .. } | State::Probation { trial: None, period } => period,
        };
        self.state = State::Probation { trial: Some(now), period };
        self.trials += 1;
        Some(Admission::Trial(self.trials))
    }

    fn twice(&self, period: Duration) -> Duration {
        (period * 2).min(self.limits.open_max)
    }

    /// Whether a trial has begun since this one did.
    fn is_old(&self, admission: Admission) -> bool {
        matches!(admission, Admission::Trial(number) if number != self.trials)
    }

    /// The engine did its work.
    pub(crate) fn succeed(&mut self, admission: Admission) {
        match (self.state, admission) {
            (State::Closed { .. }, _) | (State::Probation { .. }, Admission::Trial(_)) => {
                self.state = State::Closed { failures: 0 };
            }
            // A leg from before the circuit opened says nothing about the engine now.
            _ => {}
        }
    }

    /// The engine failed: a transport error, a time limit, or a 5xx other than 503. Says whether the circuit opened by it.
    pub fn fail(&mut self, admission: Admission, now: Instant) -> bool {
        if self.limits.failures == 0 || self.is_old(admission) {
            return false;
        }
        match (self.state, admission) {
            (State::Closed { failures }, _) if failures + 1 < self.limits.failures => {
                self.state = State::Closed { failures: failures + 1 };
                false
            }
            (State::Closed { .. }, _) => self.open(now, self.limits.open),
            (State::Probation { period, .. }, Admission::Trial(_)) => self.open(now, self.twice(period)),
            _ => false,
        }
    }

    /// Nobody listens at the engine's address: no need to count further failures.
    pub fn refuse(&mut self, admission: Admission, now: Instant) -> bool {
        if self.limits.failures == 0 || self.is_old(admission) {
            return false;
        }
        match self.state {
            State::Closed { .. } => self.open(now, self.limits.open),
            _ => self.fail(admission, now),
        }
    }

    /// The leg ended without a verdict.
    pub(crate) fn abstain(&mut self, admission: Admission) {
        if self.is_old(admission) {
            return;
        }
        if let (State::Probation { period, .. }, Admission::Trial(_)) = (self.state, admission) {
            self.state = State::Probation { trial: None, period };
        }
    }

    fn open(&mut self, now: Instant, period: Duration) -> bool {
        self.state = State::Open { until: now + period, period };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: BreakerLimits =
        BreakerLimits { failures: 3, open: Duration::from_secs(5), open_max: Duration::from_secs(12) };

    #[test]
    fn it_opens_tries_once_and_grows() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut breaker = Breaker::new(LIMITS);
        assert!(!breaker.fail(Admission::Regular, start));
        assert!(!breaker.fail(Admission::Regular, start));
        breaker.succeed(Admission::Regular);
        assert!(!breaker.fail(Admission::Regular, start));
        assert!(!breaker.fail(Admission::Regular, start));
        assert!(breaker.fail(Admission::Regular, start));
        assert_eq!(breaker.circuit(at(4)), Circuit::Open);
        assert_eq!(breaker.admit(at(4)), None);
        assert_eq!(breaker.admit(at(5)), Some(Admission::Trial(1)));
        assert_eq!(breaker.admit(at(5)), None, "one trial at a time");
        breaker.succeed(Admission::Regular);
        assert_eq!(breaker.circuit(at(5)), Circuit::Probation, "an old leg's success is no verdict");
        assert!(breaker.fail(Admission::Trial(1), at(5)));
        assert_eq!(breaker.admit(at(14)), None);
        assert_eq!(breaker.admit(at(15)), Some(Admission::Trial(2)));
        assert!(breaker.fail(Admission::Trial(2), at(15)));
        assert_eq!(breaker.admit(at(26)), None, "12 s at most");
        assert_eq!(breaker.admit(at(27)), Some(Admission::Trial(3)));
        breaker.abstain(Admission::Trial(3));
        assert_eq!(breaker.admit(at(27)), Some(Admission::Trial(4)));
        breaker.succeed(Admission::Trial(4));
        assert_eq!(breaker.circuit(at(27)), Circuit::Closed);
    }

    #[test]
    fn a_trial_that_lasts_is_not_the_only_one_for_ever() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut breaker = Breaker::new(LIMITS);
        assert!(breaker.refuse(Admission::Regular, start));
        assert_eq!(breaker.admit(at(5)), Some(Admission::Trial(1)));
        assert!(!breaker.usable(at(9)), "it has the time that the circuit was open");
        assert_eq!((breaker.usable(at(10)), breaker.circuit(at(10))), (true, Circuit::Probation));
        assert_eq!(breaker.admit(at(10)), Some(Admission::Trial(2)));
        assert_eq!((breaker.admit(at(10)), breaker.admit(at(14))), (None, None), "one more");
        // The last one decides. The other's success comes when nothing is let through, and the time is the longest.
        assert!(breaker.fail(Admission::Trial(2), at(14)));
        breaker.succeed(Admission::Trial(1));
        assert_eq!((breaker.circuit(at(25)), breaker.usable(at(26))), (Circuit::Open, true));
    }

    #[test]
    fn trials_beside_one_that_lasts_become_rare() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut breaker = Breaker::new(LIMITS);
        assert!(breaker.refuse(Admission::Regular, start));
        let let_through = (5..60).filter(|second| breaker.admit(at(*second)).is_some());
        assert_eq!(let_through.collect::<Vec<u64>>(), [5, 10, 20, 32, 44, 56], "12 s at most");
    }

    #[test]
    fn only_the_last_trial_gives_its_place_back() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut breaker = Breaker::new(LIMITS);
        assert!(breaker.refuse(Admission::Regular, start));
        let first = breaker.admit(at(5)).unwrap();
        let second = breaker.admit(at(10)).unwrap();
        breaker.abstain(first);
        assert!(!breaker.usable(at(11)), "the second is under way");
        breaker.abstain(second);
        assert!(breaker.usable(at(11)));
    }

    #[test]
    fn the_failure_of_an_earlier_trial_is_old() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut breaker = Breaker::new(LIMITS);
        assert!(breaker.refuse(Admission::Regular, start));
        let first = breaker.admit(at(5)).unwrap();
        let second = breaker.admit(at(10)).unwrap();
        assert!(!breaker.fail(first, at(11)));
        assert_eq!(breaker.circuit(at(11)), Circuit::Probation, "the second decides");
        assert!(breaker.fail(second, at(12)));
        let third = breaker.admit(at(24)).unwrap();
        assert!(!breaker.refuse(first, at(25)) && !breaker.fail(second, at(25)));
        assert_eq!(breaker.circuit(at(25)), Circuit::Probation);
        // What works does so whichever trial shows it, and what failed before then is old.
        breaker.succeed(second);
        assert_eq!(breaker.circuit(at(25)), Circuit::Closed);
        for _ in 0..LIMITS.failures {
            assert!(!breaker.fail(first, at(26)) && !breaker.refuse(second, at(26)));
        }
        assert!(breaker.refuse(third, at(26)), "the last one is news");
    }

    #[test]
    fn a_refused_connection_opens_at_once_and_off_means_off() {
        let now = Instant::now();
        let mut breaker = Breaker::new(LIMITS);
        assert!(breaker.refuse(Admission::Regular, now));
        assert!(!breaker.usable(now));
        let mut off = Breaker::new(BreakerLimits { failures: 0, ..LIMITS });
        for _ in 0..100 {
            off.refuse(Admission::Regular, now);
            off.fail(Admission::Regular, now);
        }
        assert_eq!(off.admit(now), Some(Admission::Regular));
    }

    #[test]
    fn legs_from_before_say_nothing_and_a_closed_circuit_begins_anew() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut breaker = Breaker::new(LIMITS);
        assert!(breaker.refuse(Admission::Regular, start));
        // Legs that were let through before it opened make it no longer.
        assert!(!breaker.fail(Admission::Regular, at(4)));
        assert!(!breaker.refuse(Admission::Regular, at(4)));
        breaker.succeed(Admission::Regular);
        assert!(!breaker.usable(at(4)));
        assert!(breaker.usable(at(5)));
        assert_eq!(breaker.circuit(at(5)), Circuit::Probation);
        assert_eq!(breaker.admit(at(5)), Some(Admission::Trial(1)));
        // Nor do they decide in place of the trial, or give its place back.
        assert!(!breaker.fail(Admission::Regular, at(6)));
        breaker.abstain(Admission::Regular);
        assert!(!breaker.usable(at(6)));
        assert!(breaker.refuse(Admission::Trial(1), at(6)));
        assert_eq!((breaker.usable(at(15)), breaker.usable(at(16))), (false, true), "twice as long");
        assert_eq!(breaker.admit(at(16)), Some(Admission::Trial(2)));
        breaker.succeed(Admission::Trial(2));
        assert!(breaker.refuse(Admission::Regular, at(20)));
        assert_eq!((breaker.usable(at(24)), breaker.usable(at(25))), (false, true), "as the first time");
    }
}
