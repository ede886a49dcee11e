//! Compaction without being asked, by etcd's rules (`--auto-compaction-mode`, `--auto-compaction-retention`).
//!
//! Invariant: in the periodic mode, whatever was the newest within the period stays readable.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::committer::WriteRequest;
use crate::config::AutoCompaction;
use crate::error::Error;
use crate::store::Store;

/// Weight of a compaction in the queue of writes, in bytes.
const WRITE_BYTES: usize = 64;
/// Time between two looks in the revision mode.
const REVISION_INTERVAL: Duration = Duration::from_secs(300);
/// Looks a period, or an hour if that is shorter.
const LOOKS_A_PERIOD: u32 = 10;
/// Shortest time between two looks.
const INTERVAL_MIN: Duration = Duration::from_millis(1);
/// From this period on, compaction runs once in this time.
const HOUR: Duration = Duration::from_secs(3600);

/// Compacts until it is dropped.
pub async fn run(store: Arc<Store>, mode: AutoCompaction) {
    let mut schedule = match mode {
        AutoCompaction::Periodic(period) => Schedule::Periodic(Periodic::new(period, Instant::now())),
        AutoCompaction::Revision(retention) => Schedule::Revision { retention, last: 0 },
    };
    loop {
        let interval = schedule.begin(store.published().newest());
        tokio::time::sleep(interval).await;
        let Some(revision) = schedule.due(store.published().newest(), Instant::now()) else { continue };
        match store.write(WriteRequest::Compact { revision }, WRITE_BYTES).await {
            Ok(_) | Err(Error::Compacted) => {
                info!(revision, "compacted");
                schedule.done(revision, Instant::now());
            }
            Err(error) => warn!(revision, %error, "can't compact; trying again"),
        }
    }
}

enum Schedule {
    Periodic(Periodic),
    Revision { retention: i64, last: i64 },
}

impl Schedule {
    /// Takes note of the newest revision; tells how long to wait.
    fn begin(&mut self, newest: i64) -> Duration {
        match self {
            Self::Periodic(periodic) => periodic.record(newest),
            Self::Revision { .. } => REVISION_INTERVAL,
        }
    }

    /// The revision to compact at, if it is time.
    fn due(&mut self, newest: i64, now: Instant) -> Option<i64> {
        match self {
            Self::Periodic(periodic) => periodic.due(now),
            Self::Revision { retention, last } => {
                Some(newest - *retention).filter(|revision| *revision > 0 && revision != last)
            }
        }
    }

    fn done(&mut self, revision: i64, now: Instant) {
        match self {
            Self::Periodic(periodic) => periodic.done(revision, now),
            Self::Revision { last, .. } => *last = revision,
        }
    }
}

/// The periodic mode: a window of revisions, the oldest of which was the newest one period ago.
struct Periodic {
    period: Duration,
    revisions: VecDeque<i64>,
    last_revision: i64,
    last_success: Instant,
    /// Time between compactions: the period at first, then that or an hour.
    interval: Duration,
}

impl Periodic {
    fn new(period: Duration, now: Instant) -> Self {
        Self { period, revisions: VecDeque::new(), last_revision: 0, last_success: now, interval: period }
    }

    fn look_interval(&self) -> Duration {
        (self.period.min(HOUR) / LOOKS_A_PERIOD).max(INTERVAL_MIN)
    }

    fn record(&mut self, newest: i64) -> Duration {
        let looks = self.period.as_nanos() / self.look_interval().as_nanos() + 1;
        self.revisions.push_back(newest);
        while self.revisions.len() as u128 > looks {
            self.revisions.pop_front();
        }
        self.look_interval()
    }

    fn due(&mut self, now: Instant) -> Option<i64> {
        let revision = *self.revisions.front()?;
        if now.duration_since(self.last_success) < self.interval || revision == self.last_revision {
            return None;
        }
        self.interval = self.period.min(HOUR);
        Some(revision)
    }

    fn done(&mut self, revision: i64, now: Instant) {
        self.last_revision = revision;
        self.last_success = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The revisions compacted at, by hour, of a store that gains 100 revisions a minute.
    fn compactions(period: Duration, run: Duration) -> Vec<(f64, i64)> {
        let start = Instant::now();
        let mut now = start;
        let mut periodic = Periodic::new(period, now);
        let mut compacted = Vec::new();
        while now < start + run {
            let minutes = now.duration_since(start).as_secs() / 60;
            now += periodic.record(i64::try_from(minutes).unwrap() * 100 + 1);
            if let Some(revision) = periodic.due(now) {
                compacted.push((now.duration_since(start).as_secs_f64() / 3600.0, revision));
                periodic.done(revision, now);
            }
        }
        compacted
    }

    #[test]
    fn a_short_period_compacts_once_a_period_and_keeps_at_least_the_period() {
        let compacted = compactions(Duration::from_secs(600), Duration::from_secs(1900));
        let minutes: Vec<(u32, i64)> =
            compacted.iter().map(|(hours, revision)| ((hours * 60.0).round() as u32, *revision)).collect();
        // As in etcd, one look more than the period is kept.
        assert_eq!(minutes, [(10, 1), (20, 901), (30, 1901)]);
    }

    #[test]
    fn a_long_period_compacts_every_hour_after_the_first_period() {
        let compacted = compactions(Duration::from_secs(3 * 3600), Duration::from_secs(5 * 3600));
        let hours: Vec<(u32, i64)> =
            compacted.iter().map(|(hours, revision)| (hours.round() as u32, *revision)).collect();
        assert_eq!(hours, [(3, 1), (4, 5401), (5, 11401)]);
    }

    #[test]
    fn an_idle_store_is_compacted_once() {
        let start = Instant::now();
        let mut periodic = Periodic::new(Duration::from_secs(10), start);
        let mut count = 0;
        let mut now = start;
        for _ in 0..100 {
            now += periodic.record(7);
            if let Some(revision) = periodic.due(now) {
                count += 1;
                periodic.done(revision, now);
            }
        }
        assert_eq!(count, 1);
    }

    #[test]
    fn the_revision_mode_keeps_that_many() {
        let mut schedule = Schedule::Revision { retention: 1000, last: 0 };
        let now = Instant::now();
        assert_eq!(schedule.due(900, now), None);
        assert_eq!(schedule.due(6000, now), Some(5000));
        schedule.done(5000, now);
        assert_eq!(schedule.due(6000, now), None);
        assert_eq!(schedule.due(6001, now), Some(5001));
    }
}
