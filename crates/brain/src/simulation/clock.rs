//! Clocks that are as bad as a member's may be.
//!
//! Invariant: a clock never goes back.

use std::time::Duration;

/// A member's own clock: never goes back, but may jump and run at another pace.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    base: u64,
    since: u64,
    /// Its pace, in 1024ths.
    pace: u64,
}

impl Clock {
    pub(super) fn new(base: u64) -> Self {
        Self { base, since: 0, pace: 1024 }
    }

    pub(super) fn read(&self, now: u64) -> Duration {
        Duration::from_micros(self.base + (((now - self.since) * self.pace) >> 10))
    }

    /// How long `duration` of this clock takes, and no less.
    pub(super) fn stretch(&self, duration: Duration) -> u64 {
        (duration.as_micros() as u64) * 1024 / self.pace + 1
    }

    pub(super) fn adjust(&mut self, now: u64, jump: u64, pace: u64) {
        *self = Self { base: self.read(now).as_micros() as u64 + jump, since: now, pace };
    }
}
