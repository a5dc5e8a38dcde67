//! The budget of retries: a share of the requests, and a reserve whatever the traffic, so that an outage is not made worse by
//! everyone who asks again.

use std::sync::atomic::{AtomicI64, Ordering};

/// Retries that are allowed whatever the traffic.
const RESERVE: i64 = 10;
/// One retry, in the budget's unit: requests times percent.
const COST: i64 = 100;

/// What is left for retries.
pub(super) struct RetryBudget {
    left: AtomicI64,
    /// What each request adds (`--retry-budget`).
    percent: i64,
}

impl RetryBudget {
    /// The whole reserve.
    pub fn new(percent: u32) -> Self {
        RetryBudget { left: AtomicI64::new(RESERVE * COST), percent: percent.into() }
    }

    /// A request has come, and brings its share. What quiet traffic has not used is not saved up beyond the reserve.
    pub fn request(&self) {
        self.left.fetch_min(RESERVE * COST, Ordering::Relaxed);
        self.left.fetch_add(self.percent, Ordering::Relaxed);
    }

    /// Takes one retry, or not.
    pub fn take(&self) -> bool {
        let take = |left: i64| (left >= COST).then_some(left - COST);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each request asks for so many retries; the budget grants so many of all.
    #[track_caller]
    fn check(percent: u32, requests: usize, wanted: usize, granted: usize) {
        let budget = RetryBudget::new(percent);
        let mut taken = 0;
        for _ in 0..requests {
            budget.request();
            taken += (0..wanted).filter(|_| budget.take()).count();
        }
        assert_eq!(taken, granted, "{percent}% of {requests} requests, {wanted} wanted by each");
    }

    #[test]
    fn a_share_and_a_reserve() {
        // A share of nothing leaves the reserve.
        check(0, 1, 20, 10);
        check(0, 1000, 2, 10);
        // The first request's share counts, too, once it makes a whole retry.
        check(10, 1, 20, 10);
        check(10, 10, 20, 11);
        check(10, 1000, 2, 110);
        check(100, 1, 20, 11);
        check(100, 1000, 2, 1010);
        // Nobody is held back who asks for less than the share.
        check(100, 1000, 1, 1000);
    }

    #[test]
    fn quiet_traffic_saves_up_no_more_than_the_reserve() {
        let budget = RetryBudget::new(100);
        for _ in 0..1000 {
            budget.request();
        }
        assert_eq!((0..100).filter(|_| budget.take()).count(), 11, "the reserve and the last request's share");
        budget.request();
        assert!(budget.take());
        assert!(!budget.take());
    }
}
