//! Physical compaction: removes what logical compaction has made unreadable, a little at a time.
//!
//! The log is cut below the compacted revision, and tombstones that were written below it leave the current table. Rows are looked up
//! here and removed by the committer, in batches together with other writes, so that nobody waits for it. The next rows are looked up
//! while some are removed.
//!
//! A step removes more than was written in the time of a step, so that the log gets shorter however busy the store is, and no more than
//! that, so that no commit takes much longer than it would without.
//!
//! Invariant: only rows below the compacted revision go; a watch from that revision on still finds all its events.

use std::ops::{Bound, ControlFlow};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use kubewharf_engine::{EngineError, Table};
use tracing::warn;

use crate::committer::{Trim, WriteRequest};
use crate::error::Error;
use crate::limits::{
    TRIM_BYTES_MAX, TRIM_BYTES_MIN, TRIM_PAUSE_MAX, TRIM_RETRY_MAX, TRIM_RETRY_MIN, TRIM_ROWS_MAX, TRIM_ROWS_MIN,
};
use crate::mvcc::{Change, Position};
use crate::store::{Store, Written};

/// Trims after each logical compaction, until the store fails or this is dropped.
pub async fn run(store: Arc<Store>) {
    let mut compactions = store.published().subscribe_compactions();
    let mut pace = Pace::default();
    let mut retry = TRIM_RETRY_MIN;
    loop {
        let compacted = *compactions.borrow_and_update();
        match trim(&store, compacted, &mut pace).await {
            Ok(()) => {
                retry = TRIM_RETRY_MIN;
                if compactions.changed().await.is_err() {
                    return;
                }
            }
            Err(_) if store.failure().is_some() => return,
            Err(error) => {
                warn!(%error, compacted, retry_ms = retry.as_millis(), "physical compaction has stopped; trying again");
                pace.failed(&error);
                tokio::time::sleep(retry).await;
                retry = (retry * 2).min(TRIM_RETRY_MAX);
            }
        }
    }
}

async fn trim(store: &Arc<Store>, compacted: i64, pace: &mut Pace) -> Result<(), Error> {
    pace.resume(store.published().written());
    let mut found = look(store, compacted, None, pace.step(store.published().written())).await?;
    loop {
        let Some(last) = found.log.last().copied() else {
            store.published().trimmed(compacted);
            return Ok(());
        };
        let begun = Instant::now();
        let keys: usize = found.tombstones.iter().map(|(key, _)| key.len()).sum();
        let bytes = found.log.len() * Position::KEY_BYTES + keys;
        let step = pace.step(store.published().written());
        let removed = store.write(WriteRequest::Trim(found), bytes);
        let (removed, next) = tokio::join!(removed, look(store, compacted, Some(last), step));
        removed?;
        pace.went_well();
        found = next?;
        if step.is_least() {
            // As long a pause as the step took leaves at least half of the committer's time to others.
            tokio::time::sleep(begun.elapsed().min(TRIM_PAUSE_MAX)).await;
        }
    }
}

/// How much one step removes: it ends with the row that reaches either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Step {
    rows: usize,
    bytes: usize,
}

impl Step {
    fn is_least(self) -> bool {
        self.rows <= TRIM_ROWS_MIN && self.bytes <= TRIM_BYTES_MIN
    }
}

/// How fast to go.
#[derive(Default)]
struct Pace {
    /// What was written up to the last step.
    seen: Written,
    /// What is written from step to step, on average, times [`Pace::WEIGHT`].
    rows: u64,
    bytes: u64,
    /// How often the step is halved, because there was no room for a larger one.
    halvings: u32,
}

impl Pace {
    /// How many steps the average looks back: a single large commit does not make a single large step.
    const WEIGHT: u64 = 16;

    /// Goes on after a time without steps, in which this much was written.
    fn resume(&mut self, written: Written) {
        self.seen = written;
    }

    /// The size of the next step.
    fn step(&mut self, written: Written) -> Step {
        self.rows = self.rows - self.rows / Self::WEIGHT + (written.rows - self.seen.rows);
        self.bytes = self.bytes - self.bytes / Self::WEIGHT + (written.bytes - self.seen.bytes);
        self.seen = written;
        // Half as much again as is written.
        let scaled = |sum: u64, min: usize, max: usize| {
            let more = sum.saturating_mul(3) / (2 * Self::WEIGHT);
            let size = usize::try_from(more).unwrap_or(max).clamp(min, max);
            size.checked_shr(self.halvings).unwrap_or(0).max(1)
        };
        Step {
            rows: scaled(self.rows, TRIM_ROWS_MIN, TRIM_ROWS_MAX),
            bytes: scaled(self.bytes, TRIM_BYTES_MIN, TRIM_BYTES_MAX),
        }
    }

    fn failed(&mut self, error: &Error) {
        if matches!(error, Error::NoSpace(_)) {
            self.halvings = (self.halvings + 1).min(usize::BITS);
        }
    }

    fn went_well(&mut self) {
        self.halvings = self.halvings.saturating_sub(1);
    }
}

/// Looks on a thread that may block.
async fn look(store: &Arc<Store>, compacted: i64, after: Option<Position>, step: Step) -> Result<Trim, Error> {
    let store = store.clone();
    let found = tokio::task::spawn_blocking(move || find(&store, compacted, after, step)).await;
    Ok(found.map_err(|error| Error::Unavailable(format!("physical compaction: {error}")))??)
}

/// Finds the oldest rows that can go, behind those that are about to.
fn find(store: &Store, compacted: i64, after: Option<Position>, step: Step) -> Result<Trim, EngineError> {
    let mut found = Trim::default();
    let mut bytes = 0;
    let mut failed = Ok(());
    // A store that was never compacted says -1, which is not a place in the log.
    let end = Position { revision: compacted.max(0), sub: 0 }.key();
    let after = after.map(Position::key);
    let start = after.as_ref().map_or(Bound::Unbounded, |key| Bound::Excluded(&key[..]));
    let snapshot = store.snapshot()?;
    // Each row of the log may take a tombstone along.
    let rows_max = step.rows.min(store.engine().limits().batch_operations_max / 4);
    snapshot.scan_past_damage(Table::Log, (start, Bound::Excluded(&end[..])), &mut |key, row| {
        let position = match Position::from_key(key) {
            Ok(position) => position,
            Err(cause) => {
                failed = Err(cause);
                return ControlFlow::Break(());
            }
        };
        match row.map(|row| Change::decode(position, row)) {
            Some(Ok(change)) if change.live.is_none() => {
                found.tombstones.push((Bytes::copy_from_slice(change.key), position));
            }
            Some(Ok(_)) => {}
            // Nobody can read it any more, so it goes too. If it deleted its key, the tombstone stays, unseen.
            Some(Err(_)) | None => {
                warn!(revision = position.revision, sub = position.sub, "a damaged row of the log is removed");
            }
        }
        found.log.push(position);
        bytes += row.map_or(0, <[u8]>::len);
        if found.log.len() < rows_max && bytes < step.bytes {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    })?;
    failed?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kubewharf_engine::Cause;
    use kubewharf_engine::Direction;
    use kubewharf_engine::memory::{Fault, Faulty, Memory};
    use kubewharf_etcd_api::etcdserverpb::{DeleteRangeRequest, PutRequest};

    use super::*;
    use crate::StoreOptions;

    #[test]
    fn more_is_removed_than_is_written_and_a_single_large_commit_makes_no_large_step() {
        for rate in [1, 100, 1000, 20_000] {
            let mut pace = Pace::default();
            let mut written = Written::default();
            let mut removed = 0;
            for _ in 0..200 {
                written.rows += rate;
                written.bytes += rate * 100;
                removed += pace.step(written).rows as u64;
            }
            assert!(removed > written.rows * 5 / 4, "{removed} of {} at {rate}", written.rows);
            let last = pace.step(written).rows as u64;
            assert!(last <= (rate * 3 / 2).max(TRIM_ROWS_MIN as u64), "a step of {last} rows at {rate}");
        }
        let mut pace = Pace::default();
        let commit = Written { rows: 200_000, bytes: 200 << 20 };
        pace.resume(commit);
        assert!(pace.step(commit).is_least(), "what was written in between does not count");
        let twice = Written { rows: 2 * commit.rows, bytes: 2 * commit.bytes };
        let steps: Vec<usize> = (0..100).map(|_| pace.step(twice).rows).collect();
        assert!(steps[0] < 20_000, "a step of {} rows", steps[0]);
        assert!(steps.iter().sum::<usize>() > 200_000);
    }

    #[test]
    fn without_room_steps_become_smaller_until_one_is_taken() {
        let mut pace = Pace::default();
        for _ in 0..100 {
            pace.failed(&Error::NoSpace(String::new()));
        }
        assert_eq!(pace.step(Written::default()), Step { rows: 1, bytes: 1 });
        for _ in 0..100 {
            pace.went_well();
        }
        assert_eq!(pace.step(Written::default()), Step { rows: TRIM_ROWS_MIN, bytes: TRIM_BYTES_MIN });
    }

    #[tokio::test]
    async fn steps_that_fail_are_tried_again_until_nothing_is_left() {
        let engine = Arc::new(Faulty::new(Memory::new()));
        let store = Store::open(engine.clone(), StoreOptions::default()).unwrap();
        for number in 0..2200 {
            let request = PutRequest { key: format!("{}", number % 1700).into(), ..PutRequest::default() };
            store.write(WriteRequest::Put(request), 1).await.unwrap();
        }
        let delete = DeleteRangeRequest { key: "0".into(), range_end: "2".into(), prev_kv: false };
        store.write(WriteRequest::DeleteRange(delete), 1).await.unwrap();
        let put = PutRequest { key: "last".into(), ..PutRequest::default() };
        store.write(WriteRequest::Put(put), 1).await.unwrap();
        let compacted = store.revisions().newest;
        store.write(WriteRequest::Compact { revision: compacted }, 1).await.unwrap();
        engine.script([
            Fault::Refuse(Cause::NoSpace("disk".to_owned())),
            Fault::None,
            Fault::Refuse(Cause::NoSpace("disk".to_owned())),
            Fault::Refuse(Cause::Io("disk".to_owned())),
        ]);
        let running = tokio::spawn(run(store.clone()));
        let trimmed = tokio::time::timeout(Duration::from_secs(20), store.published().wait_trimmed(compacted));
        trimmed.await.expect("it goes on after failures");
        let rows = |table| {
            let mut rows = 0;
            let all = (Bound::Unbounded, Bound::Unbounded);
            let mut visit = |_: &[u8], _: &[u8]| {
                rows += 1;
                ControlFlow::Continue(())
            };
            store.snapshot().unwrap().scan(table, all, Direction::Forward, &mut visit).unwrap();
            rows
        };
        assert_eq!(rows(Table::Log), 1, "the compacted revision itself stays");
        let live = (0..1700).filter(|number| !matches!(format!("{number}").as_bytes()[0], b'0' | b'1')).count();
        assert_eq!(rows(Table::Current), live + 1, "tombstones are gone");
        running.abort();
        store.close();
    }
}
