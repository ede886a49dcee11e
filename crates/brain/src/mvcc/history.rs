//! Versions at older revisions, found through a key's log rows.
//!
//! Invariant: for a revision that is not compacted, the walk only touches log rows newer than it, and those are never trimmed.

use std::ops::Deref;

use kubewharf_engine::{Cause, EngineError, Table};
use smallvec::SmallVec;

use super::record::{Change, Current, Ladder, Position, Previous, Rungs, Version, jump_span, put_rung};
use super::view::Rows;

/// Calls `visit` with the version that the key of `current` had at `revision`, if it existed then; tells whether it did.
///
/// The row must be newer than `revision`; `revision` must not be compacted.
pub(super) fn version_at(
    rows: &dyn Rows,
    current: &Current<'_>,
    revision: i64,
    visit: &mut dyn FnMut(&Version<'_>),
) -> Result<bool, EngineError> {
    debug_assert!(current.position.revision > revision);
    let mut at = current.position;
    loop {
        let mut step = None;
        let mut found = Ok(false);
        let exists = rows.get(Table::Log, &at.key(), &mut |row| {
            found = Change::decode(at, row).and_then(|change| match change.previous {
                None => Ok(false),
                Some(Previous::LOST) => Err(lost(at)),
                Some(previous) if previous.position.revision <= revision => {
                    Ok(previous.live.inspect(|live| visit(live)).is_some())
                }
                Some(previous) => {
                    let ladder = change.ladder;
                    let jumps = ladder.depth > 0 && ladder.jump.revision > revision;
                    step = Some(if jumps { ladder.jump } else { previous.position });
                    Ok(false)
                }
            });
        })?;
        if !exists {
            return Err(missing(at).into());
        }
        let found = found?;
        match step {
            None => return Ok(found),
            Some(next) => {
                debug_assert!(next < at);
                at = next;
            }
        }
    }
}

/// The stored form of a ladder's further rungs, of which there are few between two compactions.
pub(super) type RungsBuffer = SmallVec<[u8; 128]>;

/// The place of a new log row for a key whose current row is `current`, and the further rungs of its ladder.
pub(super) fn next_ladder(current: &Current<'_>, compacted: i64) -> (Ladder, RungsBuffer) {
    let mut rungs = RungsBuffer::new();
    if current.position.revision <= compacted {
        // No walk passes the new row.
        return (Ladder::default(), rungs);
    }
    let depth = current.ladder.depth + 1;
    let jump = if jump_span(depth) == 1 {
        if current.ladder.depth > 0 {
            put_rung(&mut rungs, current.ladder.jump);
        }
        rungs.extend_from_slice(current.rungs.stored());
        current.position
    } else {
        // Two equal jumps join into one that spans both. If the second is left out, it leads to what is compacted: nobody goes there.
        let (jump, rest) = current.rungs.split_first().unwrap_or((current.ladder.jump, Rungs::default()));
        rungs.extend_from_slice(rest.stored());
        jump
    };
    let kept = Rungs::new(&rungs).above(compacted).stored().len();
    rungs.truncate(kept);
    (Ladder { depth, jump }, rungs)
}

#[cold]
fn lost(at: Position) -> Cause {
    Cause::Corrupt(format!("what revision {} has deleted was damaged: there is no history before it", at.revision))
}

fn missing(at: Position) -> Cause {
    Cause::Corrupt(format!("the log has no row {}/{}, which a newer row names", at.revision, at.sub))
}

/// A key's current row, owned.
pub(super) struct CurrentRow(Vec<u8>);

impl CurrentRow {
    /// Reads the row of `key`, a tombstone included.
    pub(super) fn read(rows: &dyn Rows, key: &[u8]) -> Result<Option<Self>, EngineError> {
        let mut found = None;
        rows.get(Table::Current, key, &mut |row| found = Some(Self(row.to_vec())))?;
        Ok(found)
    }

    pub(super) fn decode(&self) -> Result<Current<'_>, EngineError> {
        Ok(Current::decode(self.0.deref())?)
    }
}
