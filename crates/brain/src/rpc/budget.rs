//! The memory that lists may take, all together.
//!
//! A list grows its reply in chunks and asks for each. When the budget is used up it gives back what it has and starts again in the
//! one lane where waiting is allowed, so that lists never wait for each other in a circle.
//!
//! Invariant: the granted bytes never exceed the budget.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

/// The budget that all lists share.
pub(crate) struct ListBudget {
    bytes_max: usize,
    used: Mutex<usize>,
    freed: Condvar,
    lane: Mutex<()>,
}

/// A list's part; given back when dropped.
pub(crate) struct Grant {
    budget: Arc<ListBudget>,
    bytes: usize,
}

/// The budget does not suffice.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Exceeded {
    /// Try again in the lane.
    NotNow,
    /// The list alone is larger than the budget.
    TooLarge,
    /// Others held their memory for too long.
    TimedOut,
}

impl ListBudget {
    pub(crate) fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { bytes_max, used: Mutex::new(0), freed: Condvar::new(), lane: Mutex::new(()) })
    }

    pub(crate) fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// An empty part.
    pub(crate) fn grant(self: &Arc<Self>) -> Grant {
        Grant { budget: self.clone(), bytes: 0 }
    }

    /// Waits for the lane, at most `timeout`.
    pub(crate) fn enter_lane(&self, timeout: Duration) -> Option<MutexGuard<'_, ()>> {
        self.lane.try_lock_for(timeout)
    }
}

impl Grant {
    /// Adds `bytes`. Waits for others until `deadline` if there is one, which only the holder of the lane may have.
    pub(crate) fn grow(&mut self, bytes: usize, deadline: Option<Instant>) -> Result<(), Exceeded> {
        let budget = &self.budget;
        if self.bytes + bytes > budget.bytes_max {
            return Err(Exceeded::TooLarge);
        }
        let mut used = budget.used.lock();
        while *used + bytes > budget.bytes_max {
            let Some(deadline) = deadline else { return Err(Exceeded::NotNow) };
            if budget.freed.wait_until(&mut used, deadline).timed_out() {
                return Err(Exceeded::TimedOut);
            }
        }
        *used += bytes;
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        if self.bytes > 0 {
            *self.budget.used.lock() -= self.bytes;
            self.budget.freed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_waits_only_in_the_lane_and_gets_what_others_give_back() {
        let budget = ListBudget::new(100);
        let mut first = budget.grant();
        first.grow(80, None).unwrap();
        let mut second = budget.grant();
        assert_eq!(second.grow(30, None), Err(Exceeded::NotNow));
        assert_eq!(second.grow(101, None), Err(Exceeded::TooLarge));
        let lane = budget.enter_lane(Duration::from_secs(1)).unwrap();
        assert!(budget.enter_lane(Duration::from_millis(1)).is_none());
        let soon = Instant::now() + Duration::from_millis(5);
        assert_eq!(second.grow(30, Some(soon)), Err(Exceeded::TimedOut));
        let waiting = std::thread::spawn(move || {
            second.grow(30, Some(Instant::now() + Duration::from_secs(60))).map(|()| second.bytes)
        });
        drop(first);
        assert_eq!(waiting.join().unwrap(), Ok(30));
        drop(lane);
        assert_eq!(*budget.used.lock(), 0);
    }
}
