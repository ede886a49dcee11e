//! Loading a backup into a new store.
//!
//! Invariant: while rows are loaded the store says of itself that it is not whole, and its head is one that no other process expects. It is
//! whole again in the transaction that gives it the backup's head, and only after the backup was found sound to its end.

use std::path::Path;

use kubewharf_engine::{Batch, Cause, CommitError, Engine, EngineError, Head, Operation, Reserve, dump};

use crate::error::OpenError;
use crate::{Options, Postgres, schema, sql};

/// Rows that are loaded with one commit.
const BATCH_BYTES_MAX: usize = 8 << 20;
const BATCH_ROWS_MAX: usize = 8192;

/// See [`Postgres::restore`].
pub(crate) fn restore(options: Options, backup: &Path) -> Result<Postgres, OpenError> {
    let mut reader = dump::Reader::open(backup)?;
    let engine = Postgres::open(options)?;
    let fresh = engine.snapshot()?.head()?;
    let not_empty = || OpenError::NotEmpty { schema: engine.options.schema.clone() };
    if (fresh.epoch, fresh.seq, fresh.revision) != (1, 1, 1) {
        return Err(not_empty());
    }
    let mut head = Head { epoch: 0, seq: 0, revision: 0, ..fresh };
    if !set_whole(&engine, (&fresh, &head), false)? {
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
    if !set_whole(&engine, (&head, &reader.head()), true)? {
        return Err(Cause::Io("another process has changed the store while it was loaded".to_owned()).into());
    }
    Ok(engine)
}

fn load(engine: &Postgres, head: &mut Head, operations: Vec<Operation>) -> Result<(), EngineError> {
    let next = Head { seq: head.seq + 1, ..*head };
    let batch = Batch { expected: *head, next, operations, reserve: Reserve::Whole };
    let answer = match engine.commit(&batch) {
        // Sent again, it tells: its own head fences it if it was applied.
        Err(CommitError::Unknown(_)) => engine.commit(&batch),
        answer => answer,
    };
    match answer {
        Ok(()) => {}
        Err(CommitError::Fenced(found)) if found == next => {}
        Err(CommitError::NotApplied(cause) | CommitError::Unknown(cause) | CommitError::Fatal(cause)) => {
            return Err(cause.into());
        }
        Err(CommitError::Fenced(_)) => {
            return Err(Cause::Io("another process has changed the store while it was loaded".to_owned()).into());
        }
    }
    *head = next;
    Ok(())
}

/// Says that the store is whole, or that it is not, and moves its head with it. `false` if the head is another one.
fn set_whole(engine: &Postgres, heads: (&Head, &Head), is_whole: bool) -> Result<bool, EngineError> {
    let link = engine.connector.connect(engine.read_deadline())?;
    let store = sql::name(&engine.options.schema, "store");
    let statement = format!("UPDATE {store} SET is_whole = {is_whole} WHERE id = 1");
    schema::change_with_head(&engine.options, &link, heads, &statement)
}
