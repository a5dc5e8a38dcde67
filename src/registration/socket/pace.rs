//! One wake-up for many pings. A thread that is woken for each of 500 pings a second spends ten times on waking what it spends on
//! pings; where it would wake so often it sleeps a little first and finds several at once.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::thread;
use std::time::{Duration, Instant};

/// So many waits within [`OFTEN`] are many. One engine's handshake has some ten.
const MANY: usize = 16;
/// The time for [`MANY`] waits, longer than they take while each is put off.
const OFTEN: Duration = Duration::from_millis(400);
/// How long a wait is put off: an engine pings every few seconds, and a handshake has four turns.
const REST: Duration = Duration::from_millis(20);

thread_local! {
    static PACE: RefCell<Pace> = RefCell::default();
}

/// To be called when the thread is about to wait.
pub(super) fn wait() {
    if PACE.with_borrow_mut(|pace| pace.is_often(Instant::now())) {
        thread::sleep(REST);
    }
}

/// A peer has just connected: its handshake, and those of all that follow it closely, are not put off.
pub(super) fn hurry() {
    PACE.with_borrow_mut(|pace| pace.waits.clear());
}

/// The last times at which the thread had nothing to do.
#[derive(Debug, Default)]
struct Pace {
    waits: VecDeque<Instant>,
}

impl Pace {
    fn is_often(&mut self, now: Instant) -> bool {
        self.waits.push_back(now);
        if self.waits.len() <= MANY {
            return false;
        }
        self.waits.pop_front().is_some_and(|first| now.duration_since(first) < OFTEN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_waits_are_put_off_and_few_are_not() {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        let mut after = |wait: u64, count: usize| {
            let often = (0..count).map(|_| {
                now += Duration::from_millis(wait);
                pace.is_often(now)
            });
            often.filter(|often| *often).count()
        };
        assert_eq!(after(100, 100), 0, "few");
        assert_eq!(after(2, 10), 0, "a handshake");
        assert_eq!(after(100, 100), 0, "few again");
        assert!(after(2, 100) > 80, "many");
        assert_eq!(after(22, 100), 100, "as many as there are while each is put off");
        assert!(after(250, 100) < MANY, "few again");
    }
}
