//! Versions at older revisions, found through a key's log rows.
//!
//! Invariant: for a revision that is not compacted, the walk only touches log rows newer than it, and those are never trimmed.

use std::ops::Deref;

use kubewharf_engine::{Cause, EngineError, Table};

use super::record::{Change, Current, Ladder, Position, Version, jump_span};
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
            found = Change::decode(at, row).map(|change| match change.previous {
                None => false,
                Some(previous) if previous.position.revision <= revision => {
                    previous.live.inspect(|live| visit(live)).is_some()
                }
                Some(previous) => {
                    let ladder = change.ladder;
                    let jumps = ladder.depth > 0 && ladder.jump.revision > revision;
                    step = Some(if jumps { ladder.jump } else { previous.position });
                    false
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

/// The place of a new log row for a key whose current row is `current`.
pub(super) fn next_ladder(rows: &dyn Rows, current: &Current<'_>) -> Result<Ladder, EngineError> {
    let depth = current.ladder.depth + 1;
    if jump_span(depth) == 1 {
        return Ok(Ladder { depth, jump: current.position });
    }
    // Two equal jumps join into one that spans both.
    let middle = current.ladder.jump;
    let mut jump = Ok(middle);
    rows.get(Table::Log, &middle.key(), &mut |row| {
        jump = Change::decode(middle, row).map(|change| change.ladder.jump);
    })?;
    // A trimmed row leaves `middle`: it is compacted, so no walk follows a jump to it.
    Ok(Ladder { depth, jump: jump? })
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
