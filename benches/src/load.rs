//! Keeps requests in flight.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures_util::future::try_join_all;

use crate::histogram::Histogram;

/// How much longer than planned a turn may take before something must be wrong.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The turn's share before the part of it that counts.
pub const WARM_UP: f64 = 0.15;

/// What a loop has done in the part of its time that counts.
pub struct Done<M> {
    /// What was begun with that part.
    pub meter: M,
    /// Operations.
    pub operations: u64,
    /// How long each took.
    pub latency: Histogram,
}

/// Runs operations, so many at a time, for that time; the first part of it does not count. When the part that counts begins, so does the
/// meter. An operation is told which of the loop's workers does it, and its number.
///
/// # Errors
/// When an operation or the meter fails, or the loop hangs.
pub async fn closed_loop<M>(
    in_flight: usize,
    time: Duration,
    meter: impl FnOnce() -> Result<M>,
    operation: impl AsyncFn(usize, u64) -> Result<()>,
) -> Result<Done<M>> {
    let next = Cell::new(0);
    let latency = RefCell::new(Histogram::default());
    let run = async |time: Duration| {
        let begun = Instant::now();
        let (next, latency, operation) = (&next, &latency, &operation);
        let worker = |worker: usize| async move {
            loop {
                let start = Instant::now();
                if start - begun >= time {
                    return anyhow::Ok(());
                }
                let number = next.get();
                next.set(number + 1);
                operation(worker, number).await?;
                latency.borrow_mut().record(start.elapsed());
            }
        };
        let all = try_join_all((0..in_flight).map(worker));
        tokio::time::timeout(time + PATIENCE, all).await.context("requests hang")??;
        anyhow::Ok(())
    };
    run(time.mul_f64(WARM_UP)).await?;
    let first = next.get();
    latency.replace(Histogram::default());
    let meter = meter()?;
    run(time.mul_f64(1.0 - WARM_UP)).await?;
    Ok(Done { meter, operations: next.get() - first, latency: latency.take() })
}
