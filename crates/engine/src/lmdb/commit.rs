//! Committing: one LMDB write transaction a batch, and what each failure of it means.
//!
//! Invariant: `NotApplied` is reported only where LMDB can't have written the page that names the batch's root.
//!
//! What LMDB does in `mdb_txn_commit`, in order, and what a failure of each step leaves:
//! 1. saves its list of free pages: needs pages, may fail with `MDB_MAP_FULL`; nothing has been written;
//! 2. writes the changed pages, all to places that no committed root reaches: `ENOSPC`, or `EIO` if a write was cut short. The batch
//!    is not applied; LMDB goes on, and so does the engine if the cause is shown to be a full disk;
//! 3. `fdatasync`: after a failure the system may have dropped pages while calling them clean. The batch is not applied, but what the disk
//!    holds is in doubt, so the process must end;
//! 4. writes the root page and syncs it: after a failure it may be on the disk or not. LMDB refuses everything from then on.

use heed::{MdbError, RwTxn};

use super::record::{PART_NUMBER_BYTES, WHOLE_TRAILER_BYTES};
use super::room::Room;
use super::snapshot::read_head;
use super::{Lmdb, cause, is_no_space, open};
use crate::{Batch, Cause, CommitError, Operation, Reserve};

/// What a row takes beyond its key and value: LMDB's header and offset, the number of the part, the trailer.
const ROW_OVERHEAD_BYTES: usize = 10 + PART_NUMBER_BYTES + WHOLE_TRAILER_BYTES;

/// A batch that rewrites more than this, each of its operations on a page of its own, is worth a look at how many pages these are.
const LARGE_BATCH_BYTES: u64 = 32 << 20;

/// What only the thread that commits uses.
pub(super) struct Writer {
    room: Room,
    /// The stored form of a row, reused from row to row.
    scratch: Vec<u8>,
}

impl Writer {
    pub(super) fn new(room: Room) -> Self {
        Self { room, scratch: Vec::new() }
    }
}

impl Lmdb {
    fn fatal(&self, cause: Cause) -> CommitError {
        // The first reason stays; later ones follow from it.
        let _ = self.poison.set(cause.to_string());
        CommitError::Fatal(cause)
    }
}

pub(super) fn commit(engine: &Lmdb, batch: &Batch) -> Result<(), CommitError> {
    engine.limits.check(batch).map_err(CommitError::NotApplied)?;
    let mut writer = engine.writer.lock();
    engine.check_poison().map_err(CommitError::Fatal)?;

    // Until the commit, a failure leaves nothing behind: the transaction is dropped, and with it its pages.
    let mut txn = engine.env.write_txn().map_err(|e| before_commit(engine, &e, "begin a batch"))?;
    let head = read_head(&engine.databases, &txn).map_err(|cause| engine.fatal(cause))?;
    if head != batch.expected {
        return Err(CommitError::Fenced(head));
    }
    make_room(engine, &txn, &mut writer.room, batch)?;
    for operation in &batch.operations {
        let rows = engine.databases.rows(operation.table());
        match operation {
            Operation::Put { key, value, .. } => rows.put(&mut txn, key, value, &mut writer.scratch),
            Operation::Delete { key, .. } => rows.delete(&mut txn, key),
        }
        .map_err(|e| before_commit(engine, &e, "apply a batch"))?;
    }
    open::put_engine_row(engine.databases.engine, &mut txn, open::HEAD_KEY, &batch.next.encode())
        .map_err(|e| before_commit(engine, &e, "write the head"))?;
    let id = txn.id();
    match txn.commit() {
        Ok(()) => {
            engine.readers.advance(id);
            Ok(())
        }
        Err(error) => Err(failed_commit(engine, &mut writer.room, id, &error)),
    }
}

/// Refuses a batch that would go further into the room kept back than it may.
fn make_room(engine: &Lmdb, txn: &RwTxn<'_>, room: &mut Room, batch: &Batch) -> Result<(), CommitError> {
    let page = engine.page_bytes;
    let failed = |e| before_commit(engine, &e, "read the file's statistics");
    let batch_bytes = batch_bytes_max(engine, txn, batch).map_err(failed)?;
    let kept = match batch.reserve {
        Reserve::Untouched => engine.reserve_bytes,
        Reserve::ToFloor => engine.reserve_bytes / 2,
        Reserve::Whole => 0,
    };
    let file_end = (engine.env.info().last_page_number as u64 + 1) * page;
    // All of the reserve is taken from the disk, whoever may use it.
    let refused = room.ensure((file_end + batch_bytes + engine.reserve_bytes).min(engine.map_bytes)).err();
    let is_map_short = file_end + batch_bytes + kept > engine.map_bytes;
    if refused.is_none() && !is_map_short || batch.reserve == Reserve::Whole {
        return Ok(());
    }
    // No room behind the last page: it must be among the free pages.
    let in_use = engine.databases.in_use_bytes(txn, page).map_err(failed)?;
    let holds = if refused.is_some() { room.allocated_bytes() } else { engine.map_bytes };
    if in_use + batch_bytes + kept <= holds {
        return Ok(());
    }
    Err(CommitError::NotApplied(match refused {
        Some(e) if !is_no_space(&e) => Cause::Io(format!("can't allocate room for the data file: {e}")),
        Some(e) => {
            Cause::NoSpace(format!("{in_use} bytes in use, {kept} are kept back, the data file can't grow: {e}"))
        }
        None => Cause::NoSpace(format!("{in_use} bytes in use of {}, {kept} are kept back", engine.map_bytes)),
    }))
}

/// The most room that a batch can take.
fn batch_bytes_max(engine: &Lmdb, txn: &RwTxn<'_>, batch: &Batch) -> heed::Result<u64> {
    let page = engine.page_bytes;
    let rewritten_bytes = |exactly| -> heed::Result<u64> {
        let mut pages = 0;
        for operations in batch.operations.chunk_by(|a, b| a.table() == b.table()) {
            pages += engine.databases.rows(operations[0].table()).rewritten_pages(txn, operations, exactly)?;
        }
        Ok(pages * page)
    };
    let mut rewritten = rewritten_bytes(false)?;
    if rewritten > LARGE_BATCH_BYTES {
        rewritten = rewritten_bytes(true)?;
    }
    let is_put = |operation: &&Operation| matches!(operation, Operation::Put { .. });
    let puts = batch.operations.iter().filter(is_put);
    let payload: usize = puts.map(|operation| operation.payload_bytes() + ROW_OVERHEAD_BYTES).sum();
    // New pages may be half full. The last few are for LMDB's own lists.
    Ok(rewritten + 2 * payload as u64 + 64 * page)
}

/// The error of a batch whose transaction was not committed.
fn before_commit(engine: &Lmdb, error: &heed::Error, doing: &str) -> CommitError {
    match cause(error, doing) {
        // The tree itself can't be walked or LMDB has given up: nothing further can be trusted.
        cause @ (Cause::Corrupt(_) | Cause::Poisoned(_)) => engine.fatal(cause),
        cause => CommitError::NotApplied(cause),
    }
}

/// The error of a batch for which `mdb_txn_commit` failed; see the module's table of its steps.
fn failed_commit(engine: &Lmdb, room: &mut Room, id: usize, error: &heed::Error) -> CommitError {
    let reported = cause(error, "commit a batch");
    match error {
        heed::Error::Mdb(MdbError::MapFull | MdbError::TxnFull) => return CommitError::NotApplied(reported),
        heed::Error::Io(_) => {}
        heed::Error::Mdb(_) | heed::Error::Encoding(_) | heed::Error::Decoding(_) | heed::Error::EnvAlreadyOpened => {
            return engine.fatal(reported);
        }
    }
    // A failed root page makes LMDB refuse every later transaction; that it begins this one anew shows that step 4 was never
    // reached.
    match engine.env.write_txn() {
        Ok(txn) if txn.id() == id => {}
        _ => return engine.fatal(reported),
    }
    // A failed sync shows on this descriptor too.
    if let Err(e) = room.verify_written() {
        return engine.fatal(Cause::Io(format!("written data did not reach the disk: {e} ({error})")));
    }
    match reported {
        Cause::NoSpace(_) => CommitError::NotApplied(reported),
        // LMDB's word for a write that was cut short.
        Cause::Io(text) if is_eio(error) && room.is_disk_full() => {
            CommitError::NotApplied(Cause::NoSpace(format!("the disk is full: {text}")))
        }
        other => engine.fatal(other),
    }
}

fn is_eio(error: &heed::Error) -> bool {
    matches!(error, heed::Error::Io(e) if e.raw_os_error() == Some(libc::EIO))
}
