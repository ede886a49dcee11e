//! Loading a backup into a new store.
//!
//! Invariant: while rows are loaded the store says of itself that it is not whole, and its head is one that no other process expects. It is
//! whole again with the commit that gives it the backup's head, and only after the backup was found sound to its end.

use std::path::Path;

use bytes::Bytes;
use kubewharf_engine::{Batch, Cause, CommitError, EngineError, Head, Operation, Reserve, dump};

use crate::error::OpenError;
use crate::{Options, Tikv, commit, store};

/// Rows that are loaded with one commit: enough of them for what a commit costs by itself not to count.
const BATCH_BYTES_MAX: usize = 1 << 20;
const BATCH_ROWS_MAX: usize = 2048;
/// How often a commit without an outcome is sent again.
const ATTEMPTS_MAX: usize = 5;

/// See [`Tikv::restore`].
pub(crate) fn restore(options: Options, backup: &Path) -> Result<Tikv, OpenError> {
    let mut reader = dump::Reader::open(backup)?;
    let engine = Tikv::open(options)?;
    let fresh = store::head(&engine)?;
    let not_empty = || OpenError::NotEmpty { schema: engine.shared.options.schema.clone() };
    if (fresh.epoch, fresh.seq, fresh.revision) != (1, 1, 1) {
        return Err(not_empty());
    }
    let mut head = Head { epoch: 0, seq: 0, revision: 0, ..fresh };
    if !replace(&engine, (fresh, head), Vec::new(), Some(store::about(false)))? {
        return Err(not_empty());
    }

    let mut operations = Vec::new();
    let mut bytes = 0;
    while let Some(dump::Row { table, key, value }) = reader.next()? {
        let operation = Operation::Put { table, key, value };
        let is_full = bytes + operation.payload_bytes() > BATCH_BYTES_MAX || operations.len() == BATCH_ROWS_MAX;
        if is_full && !operations.is_empty() {
            load(&engine, &mut head, std::mem::take(&mut operations))?;
            bytes = 0;
        }
        bytes += operation.payload_bytes();
        operations.push(operation);
    }
    load(&engine, &mut head, operations)?;
    if !replace(&engine, (head, reader.head()), Vec::new(), Some(store::about(true)))? {
        return Err(changed().into());
    }
    Ok(engine)
}

fn load(engine: &Tikv, head: &mut Head, operations: Vec<Operation>) -> Result<(), EngineError> {
    let next = Head { seq: head.seq + 1, ..*head };
    if !replace(engine, (*head, next), operations, None)? {
        return Err(changed().into());
    }
    *head = next;
    Ok(())
}

fn changed() -> Cause {
    Cause::Io("another process has changed the store while it was loaded".to_owned())
}

/// Commits until the outcome is known. `false` if another head is stored than either.
fn replace(
    engine: &Tikv,
    (expected, next): (Head, Head),
    operations: Vec<Operation>,
    about: Option<Bytes>,
) -> Result<bool, EngineError> {
    let batch = Batch { expected, next, operations, reserve: Reserve::Whole };
    let mut last = changed();
    for _ in 0..ATTEMPTS_MAX {
        match commit::apply(engine, &batch, about.clone()) {
            Ok(()) => return Ok(true),
            // Sent again, it tells: its own head fences it if it was applied.
            Err(CommitError::Fenced(found)) => return Ok(found == next),
            Err(CommitError::Unknown(cause)) => last = cause,
            Err(CommitError::NotApplied(cause) | CommitError::Fatal(cause)) => return Err(cause.into()),
        }
    }
    Err(last.into())
}
