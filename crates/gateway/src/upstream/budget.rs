//! How many retries are affordable.
//!
//! Invariant: over any longer time, retries are at most the given share of the requests, plus the given minimum for
//! each second. So retries can't multiply the load of endpoints that are failing because of it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What a [`RetryBudget`] allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryBudgetSettings {
    /// Retries for each hundred requests.
    pub percent: u32,
    /// Retries that are allowed in each second in any case, for clusters with few requests.
    pub per_second_min: u32,
    /// Retries that can be saved up, so that the loss of an endpoint with much in flight is covered.
    pub saved_max: u32,
}

impl Default for RetryBudgetSettings {
    fn default() -> Self {
        Self { percent: 20, per_second_min: 10, saved_max: 500 }
    }
}

/// A retry costs this much; a request brings `percent` of it.
const RETRY: u64 = 100;

/// A budget of retries for one cluster. Lock-free; costs one load for a request while the savings are full.
#[derive(Debug)]
pub struct RetryBudget {
    settings: RetryBudgetSettings,
    /// Savings, in 1/100 retries.
    savings: AtomicU64,
    begin: Instant,
    /// When the minimum for each second will have been used up, in nanoseconds since `begin`.
    minimum_used_until: AtomicU64,
}

impl RetryBudget {
    /// A budget with its savings full.
    #[must_use]
    pub fn new(settings: RetryBudgetSettings) -> Self {
        Self {
            settings,
            savings: AtomicU64::new(u64::from(settings.saved_max) * RETRY),
            begin: Instant::now(),
            minimum_used_until: AtomicU64::new(0),
        }
    }

    /// A request came; not to be called for its retries.
    pub fn deposit(&self) {
        let full = u64::from(self.settings.saved_max) * RETRY;
        let savings = self.savings.load(Ordering::Relaxed);
        if savings < full {
            // Two at once may go over the edge by one deposit; `withdraw` does not care.
            self.savings.fetch_add(u64::from(self.settings.percent), Ordering::Relaxed);
        }
    }

    /// Takes one retry out. False: there is none left, and the failure must go to the client.
    #[must_use]
    pub fn withdraw(&self) -> bool {
        let saved = self
            .savings
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |savings| savings.checked_sub(RETRY))
            .is_ok();
        saved || self.withdraw_minimum(self.begin.elapsed())
    }

    /// The minimum, as a bucket that holds one second's worth.
    fn withdraw_minimum(&self, now: Duration) -> bool {
        const SECOND: u64 = 1_000_000_000;
        let Some(cost) = SECOND.checked_div(u64::from(self.settings.per_second_min)) else {
            return false;
        };
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        self.minimum_used_until
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used_until| {
                let next = used_until.max(now).saturating_add(cost);
                (next <= now.saturating_add(SECOND)).then_some(next)
            })
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(percent: u32, per_second_min: u32, saved_max: u32) -> RetryBudget {
        RetryBudget::new(RetryBudgetSettings { percent, per_second_min, saved_max })
    }

    #[test]
    fn retries_are_at_most_their_share_of_the_requests() {
        let budget = budget(20, 0, 10);
        let mut retries = 0;
        for _ in 0..1000 {
            budget.deposit();
            retries += u32::from(budget.withdraw());
        }
        // The share of 1000 requests, and what had been saved.
        assert!((200..=211).contains(&retries), "{retries}");
    }

    #[test]
    fn savings_have_a_bound() {
        let budget = budget(100, 0, 5);
        (0..1000).for_each(|_| budget.deposit());
        assert_eq!((0..1000).filter(|_| budget.withdraw()).count(), 5);
    }

    #[test]
    fn a_minimum_is_there_each_second_without_any_request() {
        let budget = budget(0, 10, 0);
        for second in 0..5 {
            let taken = (0..100).filter(|_| budget.withdraw_minimum(Duration::from_secs(second))).count();
            assert_eq!(taken, 10, "in second {second}");
        }
        // Nothing is saved up.
        assert_eq!((0..100).filter(|_| budget.withdraw_minimum(Duration::from_secs(100))).count(), 10);
    }
}
