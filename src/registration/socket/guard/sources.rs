//! The cap on connections from one address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Connections counted by the address they came from.
pub struct Sources {
    limit: usize,
    counts: Mutex<HashMap<IpAddr, usize>>,
}

/// One connection's count, given back on drop.
pub struct Counted {
    sources: Arc<Sources>,
    source: IpAddr,
}

impl Sources {
    /// At most `limit` connections from one address, but always one.
    pub fn new(limit: usize) -> Self {
        Self { limit: limit.max(1), counts: Mutex::default() }
    }

    /// Counts a connection from `source`, unless there are too many.
    pub fn take(self: &Arc<Self>, source: IpAddr) -> Option<Counted> {
        let source = source.to_canonical();
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(source).or_default();
        if *count >= self.limit {
            return None;
        }
        *count += 1;
        Some(Counted { sources: Arc::clone(self), source })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.sources.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.source);
            }
        }
    }
}
