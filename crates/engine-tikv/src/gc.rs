//! Tells the cluster what it may clean up, if nobody else does.
//!
//! TiKV keeps what was overwritten until somebody moves the cluster's safe point; where TiDB runs, it does. The point is the whole cluster's, so it is
//! moved here only if the operator says so, and never to where views are that may still be read.

use std::sync::Arc;
use std::time::Duration;

use kubewharf_engine::Cause;
use tokio::time::{Instant, sleep};

use crate::Shared;
use crate::client::LOGICAL_BITS;

/// How often the point is moved within the time that is kept.
const TURNS: u32 = 5;

/// Moves the safe point now and then, for ever.
pub(crate) async fn run(shared: Arc<Shared>, life_time: Duration) {
    loop {
        let turn_time = life_time / TURNS;
        sleep(turn_time).await;
        // Locks are looked for in the whole cluster, which may take its time.
        match turn(&shared, life_time, Instant::now() + life_time).await {
            Ok(safe_point) => tracing::debug!(safe_point, "what TiKV may clean up"),
            Err(cause) => tracing::warn!(%cause, "TiKV was not told what to clean up"),
        }
    }
}

/// Moves the point once. Locks that are older go first: nobody could find out any more what they are.
async fn turn(shared: &Shared, life_time: Duration, deadline: Instant) -> Result<u64, Cause> {
    let now = shared.client.timestamp(deadline).await?;
    let clear = shared.client.clear(safe_point(now, life_time), deadline).await?;
    shared.client.move_safe_point(clear, deadline).await
}

/// The timestamp of that long ago.
fn safe_point(now: u64, life_time: Duration) -> u64 {
    let milliseconds = u64::try_from(life_time.as_millis()).unwrap_or(u64::MAX);
    (now >> LOGICAL_BITS).saturating_sub(milliseconds) << LOGICAL_BITS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_safe_point_is_as_far_back_as_versions_are_kept() {
        let now = (1_000_000 << LOGICAL_BITS) + 77;
        assert_eq!(safe_point(now, Duration::from_secs(600)), 400_000 << LOGICAL_BITS);
        assert_eq!(safe_point(now, Duration::from_secs(6000)), 0);
    }
}
