//! Counts of durations by size, in buckets whose width is under 1 % of their value.
//!
//! Invariant: memory is fixed whatever is recorded; a quantile is at most one bucket above the true value, never below.

use std::time::Duration;

/// Buckets per doubling: 2^7, so a bucket is at most 1/128 of its value wide.
const STEPS_LOG2: u32 = 7;
const STEPS: usize = 1 << STEPS_LOG2;
/// Enough for every `u64` of nanoseconds.
const BUCKETS: usize = (64 - STEPS_LOG2 as usize + 1) * STEPS;

/// A histogram of durations.
#[derive(Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max_ns: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0, max_ns: 0 }
    }
}

impl Histogram {
    /// Counts one duration.
    pub fn record(&mut self, duration: Duration) {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(ns)] += 1;
        self.total += 1;
        self.max_ns = self.max_ns.max(ns);
    }

    /// The duration that this share (0 to 1) of all does not exceed; zero if nothing was recorded.
    pub fn quantile(&self, share: f64) -> Duration {
        let wanted = ((self.total as f64 * share).ceil() as u64).clamp(1, self.total.max(1));
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return Duration::from_nanos(upper_end(index).min(self.max_ns));
            }
        }
        Duration::ZERO
    }

    /// The longest.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.max_ns)
    }

    /// How many were recorded.
    pub fn total(&self) -> u64 {
        self.total
    }
}

fn bucket(ns: u64) -> usize {
    if ns < STEPS as u64 {
        return ns as usize;
    }
    let shift = 63 - ns.leading_zeros() - STEPS_LOG2;
    (shift as usize) * STEPS + (ns >> shift) as usize
}

/// The largest value of a bucket.
fn upper_end(index: usize) -> u64 {
    let shift = (index / STEPS).saturating_sub(1);
    let step = (index - shift * STEPS) as u64;
    // Written so that the last bucket ends at u64::MAX instead of beyond it.
    (step << shift) + ((1 << shift) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_in_a_bucket_that_ends_less_than_a_hundredth_above_it() {
        let mut last = 0;
        for shift in 0..64 {
            for ns in [1_u64 << shift, (1 << shift) + (1 << shift) / 3, (1 << shift) - 1 + (1 << shift)] {
                let index = bucket(ns);
                assert!(index < BUCKETS && index >= last, "{ns}");
                last = index;
                let end = upper_end(index);
                assert!(end >= ns && end - ns <= ns / 100, "{ns} {end}");
                assert!(index == 0 || upper_end(index - 1) < ns, "{ns}");
            }
        }
        assert_eq!(upper_end(bucket(u64::MAX)), u64::MAX);
    }

    #[test]
    fn quantiles_are_those_of_the_recorded_values() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), Duration::ZERO);
        for us in 1..=1000 {
            histogram.record(Duration::from_micros(us));
        }
        for (share, us) in [(0.5, 500.0), (0.99, 990.0), (1.0, 1000.0)] {
            let found = histogram.quantile(share).as_secs_f64() * 1e6;
            assert!(found >= us && found <= us * 1.01, "{share}: {found}");
        }
        assert_eq!(histogram.max(), Duration::from_millis(1));
        assert_eq!(histogram.total(), 1000);
    }
}
