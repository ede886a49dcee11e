//! Tells the cluster what it may clean up, if nobody else does.
//!
//! TiKV keeps what was overwritten until somebody moves the cluster's safe point; where TiDB runs, it does. The point is the whole cluster's, so it is
//! moved here only if the operator says so, and never to where views are that may still be read.

use std::sync::Arc;
use std::time::Duration;

use tikv_client::{Timestamp, TimestampExt, TransactionClient};
use tokio::time::{Instant, sleep};

use crate::Shared;
use crate::clients::Use;

/// How often the point is moved within the time that is kept.
const TURNS: u32 = 5;
/// Locks are looked for in the whole cluster each time.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Bits of a timestamp below its milliseconds.
const LOGICAL_BITS: u32 = 18;

/// Moves the safe point now and then, for ever.
pub(crate) async fn run(shared: Arc<Shared>, life_time: Duration) {
    loop {
        sleep(life_time / TURNS).await;
        let deadline = Instant::now() + TIMEOUT;
        let question = |client: TransactionClient| async move {
            let now = client.current_timestamp().await?;
            client.gc(Timestamp::from_version(safe_point(now.version(), life_time))).await
        };
        match shared.clients.take(Use::Views, deadline).await {
            Ok(loan) => match tokio::time::timeout_at(deadline, question(loan.client.clone())).await {
                Ok(Ok(is_moved)) => tracing::debug!(is_moved, "what TiKV may clean up"),
                Ok(Err(error)) => {
                    tracing::warn!(error = crate::outcome::describe(&error), "TiKV was not told what to clean up");
                }
                Err(_) => tracing::warn!("TiKV was not told what to clean up: no answer in time"),
            },
            Err(cause) => tracing::warn!(%cause, "TiKV was not told what to clean up"),
        }
    }
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
