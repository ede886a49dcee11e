//! One limit's count, in two words and without a lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::FlowLimit;

/// Counts for one limit. It does not know the limit, which may change while requests are in flight.
#[derive(Debug, Default)]
pub(super) struct Gate {
    in_flight: AtomicU32,
    /// When the bucket will be full again, in nanoseconds since the schema began: the state of the generic cell rate
    /// algorithm (ITU-T I.371), which is that of a token bucket in one number.
    full_at_ns: AtomicU64,
}

/// What a request occupies at one gate.
#[derive(Debug, Default)]
pub(super) enum Entered {
    /// Nothing.
    #[default]
    Free,
    /// A token, which does not come back.
    Token(Arc<Gate>),
    /// A place.
    Place(Place),
}

/// A place among the requests in flight.
#[derive(Debug)]
pub(super) struct Place(Arc<Gate>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Release);
    }
}

impl Entered {
    /// What an admitted request keeps: a place. A token is spent, and its gate may be forgotten.
    pub(super) fn kept(self) -> Self {
        match self {
            Self::Place(place) => Self::Place(place),
            Self::Free | Self::Token(_) => Self::Free,
        }
    }

    /// Takes it back as if it had not been: the request was refused elsewhere.
    pub(super) fn undo(self, limit: FlowLimit) {
        let interval_ns = match limit {
            FlowLimit::TokenBucket { qps, .. } => interval_ns(qps),
            FlowLimit::OneEach { interval, .. } => nanoseconds(interval),
            FlowLimit::Exempt | FlowLimit::MaxRequestsInflight { .. } => return,
        };
        if let Self::Token(gate) = &self {
            let _ = gate.full_at_ns.fetch_update(Ordering::AcqRel, Ordering::Acquire, |full_at_ns| {
                Some(full_at_ns.saturating_sub(interval_ns))
            });
        }
    }
}

/// Time in which one token comes.
fn interval_ns(qps: u32) -> u64 {
    (1_000_000_000 / u64::from(qps.max(1))).max(1)
}

fn nanoseconds(interval: Duration) -> u64 {
    u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX)
}

impl Gate {
    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// When the bucket will be, or was, full.
    pub(super) fn full_at_ns(&self) -> u64 {
        self.full_at_ns.load(Ordering::Relaxed)
    }

    /// Enters, or tells how long to wait.
    pub(super) fn enter(self: &Arc<Self>, limit: FlowLimit, now: Duration) -> Result<Entered, Duration> {
        match limit {
            FlowLimit::Exempt => Ok(Entered::Free),
            FlowLimit::MaxRequestsInflight { max } => {
                let more = |in_flight: u32| (in_flight < max).then_some(in_flight + 1);
                match self.in_flight.fetch_update(Ordering::AcqRel, Ordering::Acquire, more) {
                    Ok(_) => Ok(Entered::Place(Place(self.clone()))),
                    // When a place will be free, nobody knows.
                    Err(_) => Err(Duration::ZERO),
                }
            }
            FlowLimit::TokenBucket { qps: 0, .. } => Err(Duration::ZERO),
            FlowLimit::TokenBucket { qps, burst } => self.take(interval_ns(qps), burst, now),
            FlowLimit::OneEach { interval, burst } => self.take(nanoseconds(interval), burst, now),
        }
    }

    fn take(self: &Arc<Self>, interval_ns: u64, burst: u32, now: Duration) -> Result<Entered, Duration> {
        if burst == 0 {
            return Err(Duration::ZERO);
        }
        // 584 years fit.
        let now_ns = now.as_nanos() as u64;
        let latest_ns = now_ns.saturating_add(interval_ns.saturating_mul(u64::from(burst)));
        let after = |full_at_ns: u64| full_at_ns.max(now_ns).saturating_add(interval_ns);
        let take = |full_at_ns| Some(after(full_at_ns)).filter(|full_at_ns| *full_at_ns <= latest_ns);
        match self.full_at_ns.fetch_update(Ordering::AcqRel, Ordering::Acquire, take) {
            Ok(_) => Ok(Entered::Token(self.clone())),
            Err(full_at_ns) => Err(Duration::from_nanos(after(full_at_ns) - latest_ns)),
        }
    }
}
