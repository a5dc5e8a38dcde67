//! Where sessions were served last: the engines that have their prefixes. Bounded; who was not heard of for longest goes first.

use std::collections::HashMap;
use std::mem;
use std::sync::{Mutex, PoisonError};

/// Sessions that are remembered at least, when there are more; at most twice as many are.
const GENERATION: usize = 32_768;

/// The engines that served a session last, by their lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Home {
    /// The prefill engine and its rank.
    pub(super) prefill: (u64, u32),
    /// The decode engine.
    pub(super) decode: u64,
}

/// Homes by a hash of the session's name, of which nothing else is kept.
#[derive(Debug, Default)]
pub(super) struct Sessions(Mutex<Generations>);

/// Whoever is asked for goes to the young ones. When those are full they become the old, and the old are forgotten.
#[derive(Debug, Default)]
struct Generations {
    young: HashMap<u64, Home>,
    old: HashMap<u64, Home>,
}

impl Sessions {
    /// Where a session was served last.
    pub(super) fn home(&self, session: u64) -> Option<Home> {
        let generations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        generations.young.get(&session).or_else(|| generations.old.get(&session)).copied()
    }

    /// It is served there now.
    pub(super) fn settle(&self, session: u64, home: Home) {
        let Generations { young, old } = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if young.len() >= GENERATION && !young.contains_key(&session) {
            // What was allocated is used again.
            old.clear();
            mem::swap(young, old);
        }
        young.insert(session, home);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home(number: u64) -> Home {
        Home { prefill: (number, 0), decode: number }
    }

    #[test]
    fn who_is_heard_of_stays_and_the_oldest_go() {
        let sessions = Sessions::default();
        let few = GENERATION as u64;
        for session in 0..5 * few {
            sessions.settle(session, home(session));
            // One that comes back now and then.
            if session % 1000 == 0 {
                assert_eq!(sessions.home(0).map(|home| home.decode), Some(session.saturating_sub(1000)));
                sessions.settle(0, home(session));
            }
        }
        assert_eq!((sessions.home(1), sessions.home(few)), (None, None));
        assert!((4 * few..5 * few).all(|session| sessions.home(session) == Some(home(session))));
        let generations = sessions.0.into_inner().unwrap();
        assert!(generations.young.len() <= GENERATION && generations.old.len() <= GENERATION);
    }
}
