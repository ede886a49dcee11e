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
    /// Retries that can be saved up in any case. What more requests bring is saved for about ten seconds, so that the loss of an
    /// endpoint with much in flight is covered whatever the rate.
    pub saved_min: u32,
}

impl Default for RetryBudgetSettings {
    fn default() -> Self {
        Self { percent: 20, per_second_min: 10, saved_min: 500 }
    }
}

/// A retry costs this much; a request brings `percent` of it.
const RETRY: u64 = 100;

/// The part of the savings above their minimum that is lost each second is one in so many.
const DECAY: u64 = 10;
/// After so many seconds without a request, nothing is left of them.
const DECAY_SECONDS_MAX: u64 = 300;

/// A budget of retries for one cluster. Lock-free.
#[derive(Debug)]
pub struct RetryBudget {
    settings: RetryBudgetSettings,
    /// Savings, in 1/100 retries.
    savings: AtomicU64,
    begin: Instant,
    /// When the savings were last made less, in seconds since `begin`.
    decayed_at: AtomicU64,
    /// When the minimum for each second will have been used up, in nanoseconds since `begin`.
    minimum_used_until: AtomicU64,
}

impl RetryBudget {
    /// A budget with the least savings.
    #[must_use]
    pub fn new(settings: RetryBudgetSettings) -> Self {
        Self {
            settings,
            savings: AtomicU64::new(u64::from(settings.saved_min) * RETRY),
            begin: Instant::now(),
            decayed_at: AtomicU64::new(0),
            minimum_used_until: AtomicU64::new(0),
        }
    }

    /// A request came; not to be called for its retries.
    pub fn deposit(&self) {
        self.deposit_at(self.begin.elapsed());
    }

    fn deposit_at(&self, now: Duration) {
        self.savings.fetch_add(u64::from(self.settings.percent), Ordering::Relaxed);
        let (now, before) = (now.as_secs(), self.decayed_at.load(Ordering::Relaxed));
        if now > before && self.decayed_at.compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.decay(now - before);
        }
    }

    fn decay(&self, seconds: u64) {
        let least = u64::from(self.settings.saved_min) * RETRY;
        let decayed = |savings: u64| {
            (0..seconds.min(DECAY_SECONDS_MAX)).fold(savings, |savings, _| {
                let surplus = savings.saturating_sub(least);
                savings - surplus.div_ceil(DECAY)
            })
        };
        // The closure always gives a value, so this can't fail.
        let _ = self.savings.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |savings| Some(decayed(savings)));
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

    fn budget(percent: u32, per_second_min: u32, saved_min: u32) -> RetryBudget {
        RetryBudget::new(RetryBudgetSettings { percent, per_second_min, saved_min })
    }

    #[test]
    fn retries_are_at_most_their_share_of_the_requests() {
        let budget = budget(20, 0, 10);
        let mut retries = 0;
        for number in 0..1000 {
            budget.deposit_at(Duration::from_millis(number));
            retries += u32::from(budget.withdraw());
        }
        // The share of 1000 requests, and what had been saved.
        assert!((200..=211).contains(&retries), "{retries}");
    }

    #[test]
    fn the_share_of_about_ten_seconds_is_saved_and_a_quiet_time_leaves_the_minimum() {
        let withdrawn = |budget: &RetryBudget| (0..100_000).filter(|_| budget.withdraw()).count();
        let busy = |budget: &RetryBudget| {
            for millisecond in 0..60_000 {
                budget.deposit_at(Duration::from_millis(millisecond));
            }
        };
        let at_once = budget(20, 0, 500);
        busy(&at_once);
        // 1000 requests a second, of which a fifth counts.
        let saved = withdrawn(&at_once);
        assert!((2000..=2700).contains(&saved), "{saved}");
        let later = budget(20, 0, 500);
        busy(&later);
        later.deposit_at(Duration::from_secs(600));
        assert_eq!(withdrawn(&later), 500);
        let few = budget(20, 0, 500);
        few.deposit_at(Duration::from_secs(600));
        assert_eq!(withdrawn(&few), 500);
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
