//! Time as a value that tests can move.
//!
//! Invariant: `monotonic_ms` never goes back, and counts while the machine sleeps (CLOCK_BOOTTIME), because leases and
//! leadership are promises to others whose clocks go on.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

/// The future of [`Clock::sleep_until`].
pub type Sleep<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// The longest sleep that is not checked against the clock again: Tokio's timers stand still while the machine sleeps.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// A source of time.
pub trait Clock: Send + Sync + 'static {
    /// Milliseconds since some moment in the past; only differences mean something.
    fn monotonic_ms(&self) -> u64;

    /// Milliseconds since 1970 in UTC. May jump.
    fn wall_ms(&self) -> u64;

    /// Waits until `monotonic_ms` has reached a value.
    fn sleep_until(&self, monotonic_ms: u64) -> Sleep<'_>;
}

/// The time of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealClock;

impl Clock for RealClock {
    fn monotonic_ms(&self) -> u64 {
        read(libc::CLOCK_BOOTTIME)
    }

    fn wall_ms(&self) -> u64 {
        read(libc::CLOCK_REALTIME)
    }

    fn sleep_until(&self, monotonic_ms: u64) -> Sleep<'_> {
        Box::pin(async move {
            loop {
                let left = monotonic_ms.saturating_sub(self.monotonic_ms());
                if left == 0 {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(left).min(SLEEP_MAX)).await;
            }
        })
    }
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec that lives through the call, which writes to nothing else.
    #[allow(unsafe_code)]
    let result = unsafe { libc::clock_gettime(clock, &mut time) };
    assert_eq!(result, 0, "Linux has these clocks, and reading one can't fail");
    time.tv_sec.unsigned_abs() * 1000 + time.tv_nsec.unsigned_abs() / 1_000_000
}

/// A clock that moves when a test says so. Clones are the same clock.
#[derive(Clone, Debug, Default)]
pub struct ManualClock {
    state: Arc<ManualState>,
}

#[derive(Debug, Default)]
struct ManualState {
    monotonic_ms: AtomicU64,
    wall_ms: AtomicU64,
    moved: Notify,
}

impl ManualClock {
    /// A clock that shows these times.
    pub fn new(monotonic_ms: u64, wall_ms: u64) -> Self {
        let state = ManualState {
            monotonic_ms: AtomicU64::new(monotonic_ms),
            wall_ms: AtomicU64::new(wall_ms),
            moved: Notify::new(),
        };
        Self { state: Arc::new(state) }
    }

    /// Lets time pass, on both faces of the clock.
    pub fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_millis()).expect("a test does not last an age");
        self.state.monotonic_ms.fetch_add(by, Ordering::SeqCst);
        self.state.wall_ms.fetch_add(by, Ordering::SeqCst);
        self.state.moved.notify_waiters();
    }

    /// Sets the wall clock alone, as an administrator may.
    pub fn set_wall_ms(&self, wall_ms: u64) {
        self.state.wall_ms.store(wall_ms, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn monotonic_ms(&self) -> u64 {
        self.state.monotonic_ms.load(Ordering::SeqCst)
    }

    fn wall_ms(&self) -> u64 {
        self.state.wall_ms.load(Ordering::SeqCst)
    }

    fn sleep_until(&self, monotonic_ms: u64) -> Sleep<'_> {
        Box::pin(async move {
            loop {
                // Armed before the look, so that no step in between is missed.
                let moved = self.state.moved.notified();
                if self.monotonic_ms() >= monotonic_ms {
                    return;
                }
                moved.await;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_real_clock_goes_forward_at_the_pace_of_time() {
        let begin = RealClock.monotonic_ms();
        RealClock.sleep_until(begin + 30).await;
        let passed = RealClock.monotonic_ms() - begin;
        assert!((30..5000).contains(&passed), "{passed}");
        // 2020 and 2100.
        assert!((1_577_836_800_000..4_102_444_800_000).contains(&RealClock.wall_ms()));
    }

    #[tokio::test]
    async fn a_manual_clock_moves_only_when_told_and_wakes_sleepers() {
        let clock = ManualClock::new(100, 5_000);
        let sleeper = tokio::spawn({
            let clock = clock.clone();
            async move { clock.sleep_until(250).await }
        });
        clock.advance(Duration::from_millis(100));
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!sleeper.is_finished());
        clock.advance(Duration::from_millis(50));
        sleeper.await.expect("no panic");
        assert_eq!((clock.monotonic_ms(), clock.wall_ms()), (250, 5_150));
        clock.set_wall_ms(1);
        assert_eq!((clock.monotonic_ms(), clock.wall_ms()), (250, 1));
    }
}
