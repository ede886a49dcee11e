//! The memory that lists may take, all together, and the threads that read them.
//!
//! A list grows its reply in chunks and asks for each. When the budget is used up, it waits as a task, without a thread and without a
//! snapshot. Lists never wait for each other in a circle: what has been answered or is being sent is given back when its client has
//! read it, and of those that are still being put together only the one in the lane keeps what it has while it waits.
//!
//! Invariant: the granted bytes never exceed the budget.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::limits::LIST_READERS_MAX;

/// The budget that all lists share.
pub(crate) struct ListBudget {
    bytes_max: usize,
    /// A permit a byte. Those who wait come first, in their order.
    free: Semaphore,
    lane: Arc<Semaphore>,
    readers: Arc<Semaphore>,
}

/// The right to keep memory while waiting for more.
pub(crate) struct Lane {
    _permit: OwnedSemaphorePermit,
}

/// The right to occupy a thread.
pub(crate) struct Turn {
    _permit: OwnedSemaphorePermit,
}

/// A list's part; given back when dropped.
pub(crate) struct Grant {
    budget: Arc<ListBudget>,
    bytes: usize,
    used: usize,
}

/// The budget does not suffice.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Exceeded {
    /// Others have it now.
    NotNow,
    /// The list alone is larger than the budget.
    TooLarge,
}

impl ListBudget {
    pub(crate) fn new(bytes_max: usize) -> Arc<Self> {
        let bytes_max = bytes_max.min(Semaphore::MAX_PERMITS);
        Arc::new(Self {
            bytes_max,
            free: Semaphore::new(bytes_max),
            lane: Arc::new(Semaphore::new(1)),
            readers: Arc::new(Semaphore::new(LIST_READERS_MAX)),
        })
    }

    pub(crate) fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// An empty part.
    pub(crate) fn grant(self: &Arc<Self>) -> Grant {
        Grant { budget: self.clone(), bytes: 0, used: 0 }
    }

    /// The lane, if nobody has it or waits for it.
    pub(crate) fn try_lane(&self) -> Option<Lane> {
        Some(Lane { _permit: self.lane.clone().try_acquire_owned().ok()? })
    }

    /// Waits for the lane.
    pub(crate) async fn lane(&self) -> Lane {
        Lane { _permit: self.lane.clone().acquire_owned().await.expect("never closed") }
    }

    /// A thread's worth of reading, if one is to be had at once.
    pub(crate) fn try_turn(&self) -> Option<Turn> {
        Some(Turn { _permit: self.readers.clone().try_acquire_owned().ok()? })
    }

    /// Waits for a thread's worth of reading.
    pub(crate) async fn turn(&self) -> Turn {
        Turn { _permit: self.readers.clone().acquire_owned().await.expect("never closed") }
    }
}

impl Grant {
    /// An empty part of the same budget.
    pub(crate) fn another(&self) -> Self {
        self.budget.grant()
    }

    /// Takes `bytes`, of what was waited for or of what is free.
    pub(crate) fn take(&mut self, bytes: usize) -> Result<(), Exceeded> {
        let short = self.short_of(bytes)?;
        if short > 0 {
            self.budget.free.try_acquire_many(short).map_err(|_| Exceeded::NotNow)?.forget();
            self.bytes += short as usize;
        }
        self.used += bytes;
        Ok(())
    }

    /// Waits until `bytes` can be taken.
    pub(crate) async fn wait_for(&mut self, bytes: usize) -> Result<(), Exceeded> {
        let short = self.short_of(bytes)?;
        if short > 0 {
            self.budget.free.acquire_many(short).await.expect("never closed").forget();
            self.bytes += short as usize;
        }
        Ok(())
    }

    /// Gives back `bytes` of what was taken, to take them anew.
    pub(crate) fn release(&mut self, bytes: usize) {
        self.used -= bytes;
    }

    /// Gives everything back to the budget that is not taken.
    pub(crate) fn trim(&mut self) {
        self.budget.free.add_permits(self.bytes - self.used);
        self.bytes = self.used;
    }

    /// What is missing for `bytes` more.
    fn short_of(&self, bytes: usize) -> Result<u32, Exceeded> {
        if self.used + bytes > self.budget.bytes_max {
            return Err(Exceeded::TooLarge);
        }
        u32::try_from((self.used + bytes).saturating_sub(self.bytes)).map_err(|_| Exceeded::TooLarge)
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.budget.free.add_permits(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_list_takes_what_is_free_or_waits_for_what_others_give_back() {
        let budget = ListBudget::new(100);
        let mut first = budget.grant();
        first.take(80).unwrap();
        let mut second = budget.grant();
        assert_eq!(second.take(30), Err(Exceeded::NotNow));
        assert_eq!(second.take(101), Err(Exceeded::TooLarge));
        let lane = budget.try_lane().unwrap();
        assert!(budget.try_lane().is_none());
        assert!(tokio::time::timeout(Duration::from_millis(5), second.wait_for(30)).await.is_err());
        let waiting = tokio::spawn(async move {
            second.wait_for(30).await.unwrap();
            second.take(30).unwrap();
            second
        });
        tokio::task::yield_now().await;
        assert_eq!(budget.grant().take(30), Err(Exceeded::NotNow), "who waits comes first");
        drop(first);
        let mut second = waiting.await.unwrap();
        second.release(10);
        second.take(5).unwrap();
        assert_eq!(budget.free.available_permits(), 70);
        second.trim();
        assert_eq!(budget.free.available_permits(), 75);
        drop((second, lane));
        assert_eq!(budget.free.available_permits(), 100);
        assert!(budget.try_lane().is_some());
    }
}
