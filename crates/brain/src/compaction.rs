//! Physical compaction: removes what logical compaction has made unreadable, a little at a time.
//!
//! The log is cut below the compacted revision, and tombstones that were written below it leave the current table. Rows are looked up
//! here and removed by the committer, in batches together with other writes, so that nobody waits for it.
//!
//! Invariant: only rows below the compacted revision go; a watch from that revision on still finds all its events.

use std::ops::{Bound, ControlFlow};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use kubewharf_engine::{Direction, EngineError, Table};
use tracing::warn;

use crate::committer::{Trim, WriteRequest};
use crate::limits::{TRIM_PAUSE_MAX, TRIM_ROWS};
use crate::mvcc::{Change, Position};
use crate::store::Store;

/// Trims after each logical compaction, until the store fails or this is dropped.
pub async fn run(store: Arc<Store>) {
    let mut compactions = store.published().subscribe_compactions();
    loop {
        let compacted = *compactions.borrow_and_update();
        if let Err(error) = trim(&store, compacted).await {
            // The next compaction, or the next start, tries again.
            warn!(%error, compacted, "physical compaction has stopped early");
        }
        if compactions.changed().await.is_err() {
            return;
        }
    }
}

async fn trim(store: &Arc<Store>, compacted: i64) -> Result<(), crate::Error> {
    loop {
        let begun = Instant::now();
        let reader = store.clone();
        let found = tokio::task::spawn_blocking(move || find(&reader, compacted))
            .await
            .map_err(|error| crate::Error::Unavailable(format!("physical compaction: {error}")))??;
        if found.log.is_empty() {
            store.published().trimmed(compacted);
            return Ok(());
        }
        let bytes = found.log.len() * Position::KEY_BYTES;
        store.write(WriteRequest::Trim(found), bytes).await?;
        // As long a pause as the step took leaves at least half of the committer's time to others.
        tokio::time::sleep(begun.elapsed().min(TRIM_PAUSE_MAX)).await;
    }
}

/// Finds the oldest rows that can go.
fn find(store: &Store, compacted: i64) -> Result<Trim, EngineError> {
    let mut found = Trim::default();
    let mut failed = Ok(());
    // A store that was never compacted says -1, which is not a place in the log.
    let end = Position { revision: compacted.max(0), sub: 0 }.key();
    let snapshot = store.snapshot()?;
    let range = (Bound::Unbounded, Bound::Excluded(&end[..]));
    snapshot.scan(Table::Log, range, Direction::Forward, &mut |key, row| {
        let read = Position::from_key(key).and_then(|position| Ok((position, Change::decode(position, row)?)));
        match read {
            Ok((position, change)) => {
                if change.live.is_none() {
                    found.tombstones.push((Bytes::copy_from_slice(change.key), position));
                }
                found.log.push(position);
            }
            Err(cause) => {
                failed = Err(cause);
                return ControlFlow::Break(());
            }
        }
        if found.log.len() < TRIM_ROWS { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    failed?;
    Ok(found)
}
