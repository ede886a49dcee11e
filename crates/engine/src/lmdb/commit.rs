//! Committing: a record in the journal and rows in the delta, or, where that does not do, one LMDB write transaction.
//!
//! A batch goes to LMDB directly, behind everything that was committed before it, if it is large, or if room is so short that a later merge
//! could fail for want of it. So what is in the journal can be merged, and a store that is nearly full behaves as LMDB does: what
//! fits is durable in it, what does not is refused, and deletions and compaction go on.
//!
//! Invariant: `NotApplied` is reported only where neither a record nor LMDB's root page can have been written.
//!
//! What LMDB does in `mdb_txn_commit`, in order, and what a failure of each step leaves:
//! 1. saves its list of free pages: needs pages, may fail with `MDB_MAP_FULL`; nothing has been written;
//! 2. writes the changed pages, all to places that no committed root reaches: `ENOSPC`, or `EIO` of LMDB's own if a write was cut short,
//!    which only a full disk does to a write to a file. The batch is not applied, and LMDB and the engine go on. An `EIO` of the
//!    system's is a failing disk: the process must end;
//! 3. `fdatasync`: after a failure the system may have dropped pages while calling them clean. The batch is not applied, but what the disk
//!    holds is in doubt, so the process must end;
//! 4. writes the root page and syncs it: after a failure it may be on the disk or not. LMDB refuses everything from then on.
//!
//! A record is written and synced in two steps of which the same is to be said as of 2 and 3.

use std::io;
use std::sync::atomic::Ordering;
use std::time::Instant;

use heed::{MdbError, RwTxn};
use parking_lot::MutexGuard;

use super::delta::{INDEX_BYTES, Layers};
use super::journal::{AppendError, Journal, Record};
use super::merge::{self, STEP_ROWS};
use super::{Core, FileStat, cause, is_no_space, open};
use crate::{Batch, Cause, CommitError, Operation, Reserve, Table};

/// A batch that rewrites more than this, each of its operations on a page of its own, is worth a look at how many pages these are.
const LARGE_BATCH_BYTES: u64 = 32 << 20;

/// Free pages for one that lists them: LMDB's lists are half full at least.
const LISTED_PER_LIST: u64 = 256;

/// A batch that takes more than this part of a delta goes to LMDB directly.
const DELTA_PART_MAX: u64 = 4;

/// What only the thread that commits uses.
pub(super) struct Writer {
    pub(super) journal: Journal,
    /// When the active delta got its batches; `None` while it is empty.
    pub(super) active_times: Option<ActiveTimes>,
    /// The stored form of a row, reused from row to row.
    scratch: Vec<u8>,
}

/// When the active delta got its first and its last batch.
pub(super) struct ActiveTimes {
    pub(super) first: Instant,
    pub(super) last: Instant,
}

impl Writer {
    pub(super) fn new(journal: Journal) -> Self {
        Self { journal, active_times: None, scratch: Vec::new() }
    }
}

impl Core {
    pub(super) fn fatal(&self, cause: Cause) -> CommitError {
        // The first reason stays; later ones follow from it.
        let _ = self.poison.set(cause.to_string());
        CommitError::Fatal(cause)
    }
}

pub(super) fn commit(core: &Core, batch: &Batch) -> Result<(), CommitError> {
    core.limits.check(batch).map_err(CommitError::NotApplied)?;
    let mut writer = core.writer.lock();
    core.check_poison().map_err(CommitError::Fatal)?;
    let head = core.readers.layers().head;
    if head != batch.expected {
        return Err(CommitError::Fenced(head));
    }
    if journal(core, &mut writer, batch)? { Ok(()) } else { directly(core, writer, batch) }
}

/// Writes the batch to the journal and applies it to the active delta; `false`, and nothing happens, if it has to go to LMDB.
fn journal(core: &Core, writer: &mut Writer, batch: &Batch) -> Result<bool, CommitError> {
    let memory_bytes = Record::bytes_of(batch) as u64 + batch.operations.len() as u64 * INDEX_BYTES;
    if memory_bytes > core.delta_bytes / DELTA_PART_MAX {
        return Ok(false);
    }
    let mut layers = core.readers.layers();
    if layers.active.memory_bytes() + memory_bytes > core.delta_bytes {
        if layers.frozen.is_some() {
            merge::run(core, &mut core.merger_now(), true)?;
        }
        merge::freeze(core, writer);
        layers = core.readers.layers();
    } else if layers.frozen.is_some() {
        core.keep_pace(layers.active.memory_bytes(), memory_bytes);
        layers = core.readers.layers();
    }
    if !has_room(core, &layers, batch) {
        return Ok(false);
    }
    let record = match writer.journal.append(batch) {
        Ok(record) => record,
        Err(AppendError::NoSpace) => return Ok(false),
        Err(AppendError::Failed(cause)) => return Err(core.fatal(cause)),
    };
    let unpublished = Unpublished(core);
    core.journal_bytes.store(writer.journal.bytes(), Ordering::Relaxed);
    let mut active = layers.active.clone();
    drop(layers);
    active.apply(record, core.cut());
    core.readers.publish(batch.next, active);
    std::mem::forget(unpublished);
    let now = Instant::now();
    match &mut writer.active_times {
        Some(times) => times.last = now,
        None => {
            writer.active_times = Some(ActiveTimes { first: now, last: now });
            merge::watch_active(core);
        }
    }
    Ok(true)
}

/// A batch that is in the journal and not in the delta. If it stays so, which only a panic can bring about, the next batch would not follow it.
struct Unpublished<'c>(&'c Core);

impl Drop for Unpublished<'_> {
    fn drop(&mut self) {
        let _ = self.0.poison.set("a batch was written and could not be made visible".to_owned());
    }
}

/// Whether all that is in the layers, and the batch, can be merged with the room that there is, and what is to be kept back is.
fn has_room(core: &Core, layers: &Layers, batch: &Batch) -> bool {
    let stat = *core.stat.lock();
    let mut rows = [0; Table::ALL.len()];
    for operation in &batch.operations {
        rows[usize::from(operation.table().number())] += 1;
    }
    let mut pages = 0;
    for table in Table::ALL {
        let number = usize::from(table.number());
        rows[number] += layers.rows(table);
        pages += stat.pages[number].rewritten(rows[number].min(STEP_ROWS));
    }
    // The pages that a step gives back are free in the next but one. That a step may have to be smaller than this is the merge's affair.
    let need_bytes = 3 * pages * core.page_bytes + new_bytes(core, layers.room_bytes() + room_bytes(core, batch));
    check_room(core, &stat, need_bytes, batch.reserve).is_ok()
}

/// Writes the batch to LMDB, behind all that was committed before it.
fn directly(core: &Core, mut writer: MutexGuard<'_, Writer>, batch: &Batch) -> Result<(), CommitError> {
    let mut merger = core.merger_now();
    merge::run(core, &mut merger, true)?;
    if !core.readers.layers().active.is_empty() {
        merge::freeze(core, &mut writer);
        merge::run(core, &mut merger, true)?;
    }

    // Until the commit, a failure leaves nothing behind: the transaction is dropped, and with it its pages.
    let mut txn = core.env.write_txn().map_err(|e| before_commit(core, &e, "begin a batch"))?;
    make_room(core, &txn, batch)?;
    for operation in &batch.operations {
        let rows = core.databases.rows(operation.table());
        match operation {
            Operation::Put { key, value, .. } => rows.put(&mut txn, key, value, &mut writer.scratch),
            Operation::Delete { key, .. } => rows.delete(&mut txn, key),
        }
        .map_err(|e| before_commit(core, &e, "apply a batch"))?;
    }
    open::put_engine_row(core.databases.engine, &mut txn, open::HEAD_KEY, &batch.next.encode())
        .map_err(|e| before_commit(core, &e, "write the head"))?;
    end(core, txn, |layers| layers.head = batch.next)
}

/// Commits the transaction, and lets readers see it.
pub(super) fn end(core: &Core, txn: RwTxn<'_>, change: impl FnOnce(&mut Layers)) -> Result<(), CommitError> {
    let stat = core.read_stat(&txn).map_err(|e| before_commit(core, &e, "read the file's statistics"))?;
    let id = txn.id();
    let (committed, is_told_by_system) = {
        let _file = core.file_end.lock();
        clear_system_error();
        let committed = txn.commit();
        // A write that was cut short has not failed, so the system has told no error.
        (committed, io::Error::last_os_error().raw_os_error() == Some(libc::EIO))
    };
    match committed {
        Ok(()) => {
            *core.stat.lock() = FileStat { end_bytes: core.end_bytes(), ..stat };
            core.readers.advance(id, change);
            Ok(())
        }
        Err(error) => Err(failed_commit(core, id, &error, is_eio(&error) && !is_told_by_system)),
    }
}

/// Refuses a batch that would go further into the room kept back than it may.
fn make_room(core: &Core, txn: &RwTxn<'_>, batch: &Batch) -> Result<(), CommitError> {
    let failed = |e| before_commit(core, &e, "read the file's statistics");
    let need_bytes = batch_bytes_max(core, txn, batch).map_err(failed)?;
    let stat = core.read_stat(txn).map_err(failed)?;
    match check_room(core, &stat, need_bytes, batch.reserve) {
        Err(cause) if batch.reserve != Reserve::Whole => Err(CommitError::NotApplied(cause)),
        _ => Ok(()),
    }
}

/// Takes room for so many bytes, and tells whether it is there, what may be used of the reserve included.
fn check_room(core: &Core, stat: &FileStat, need_bytes: u64, reserve: Reserve) -> Result<(), Cause> {
    let kept = match reserve {
        Reserve::Untouched => core.reserve_bytes,
        Reserve::ToFloor => core.reserve_bytes / 2,
        Reserve::Whole => 0,
    };
    let mut room = core.room.lock();
    // All of the reserve is taken from the disk, whoever may use it.
    let refused = room.ensure((stat.end_bytes + need_bytes + core.reserve_bytes).min(core.map_bytes)).err();
    let is_map_short = stat.end_bytes + need_bytes + kept > core.map_bytes;
    if refused.is_none() && !is_map_short {
        return Ok(());
    }
    // No room behind the last page: it must be among the free pages, less those that LMDB needs to list them.
    let in_use = stat.in_use_bytes;
    let holds = if refused.is_some() { room.allocated_bytes() } else { core.map_bytes };
    if in_use + need_bytes + kept + holds.saturating_sub(in_use) / LISTED_PER_LIST <= holds {
        return Ok(());
    }
    Err(match refused {
        Some(e) if !is_no_space(&e) => Cause::Io(format!("can't allocate room for the data file: {e}")),
        Some(e) => {
            Cause::NoSpace(format!("{in_use} bytes in use, {kept} are kept back, the data file can't grow: {e}"))
        }
        None => Cause::NoSpace(format!("{in_use} bytes in use of {}, {kept} are kept back", core.map_bytes)),
    })
}

/// The most room that a batch can take.
fn batch_bytes_max(core: &Core, txn: &RwTxn<'_>, batch: &Batch) -> heed::Result<u64> {
    let rewritten_bytes = |exactly| -> heed::Result<u64> {
        let mut pages = 0;
        for operations in batch.operations.chunk_by(|a, b| a.table() == b.table()) {
            pages += core.databases.rows(operations[0].table()).rewritten_pages(txn, operations, exactly)?;
        }
        Ok(pages * core.page_bytes)
    };
    let mut rewritten = rewritten_bytes(false)?;
    if rewritten > LARGE_BATCH_BYTES {
        rewritten = rewritten_bytes(true)?;
    }
    Ok(rewritten + new_bytes(core, room_bytes(core, batch)))
}

/// The most that is needed for rows of so much room, with some pages for what LMDB itself writes.
fn new_bytes(core: &Core, room_bytes: u64) -> u64 {
    room_bytes + 64 * core.page_bytes
}

/// The most room that the rows of a batch take.
fn room_bytes(core: &Core, batch: &Batch) -> u64 {
    let cut = core.cut();
    let rooms = batch.operations.iter().map(|operation| match operation {
        Operation::Put { key, value, .. } => cut.room_bytes(key.len(), value.len()),
        Operation::Delete { .. } => 0,
    });
    rooms.sum()
}

/// The error of a batch whose transaction was not committed.
pub(super) fn before_commit(core: &Core, error: &heed::Error, doing: &str) -> CommitError {
    match cause(error, doing) {
        // The tree itself can't be walked or LMDB has given up: nothing further can be trusted.
        cause @ (Cause::Corrupt(_) | Cause::Poisoned(_)) => core.fatal(cause),
        cause => CommitError::NotApplied(cause),
    }
}

/// The error of a batch for which `mdb_txn_commit` failed; see the module's table of its steps.
fn failed_commit(core: &Core, id: usize, error: &heed::Error, is_cut_short: bool) -> CommitError {
    let reported = cause(error, "commit a batch");
    match error {
        heed::Error::Mdb(MdbError::MapFull | MdbError::TxnFull) => return CommitError::NotApplied(reported),
        heed::Error::Io(_) => {}
        heed::Error::Mdb(_) | heed::Error::Encoding(_) | heed::Error::Decoding(_) | heed::Error::EnvAlreadyOpened => {
            return core.fatal(reported);
        }
    }
    // A failed root page makes LMDB refuse every later transaction; that it begins this one anew shows that step 4 was never
    // reached.
    match core.env.write_txn() {
        Ok(txn) if txn.id() == id => {}
        _ => return core.fatal(reported),
    }
    // A failed sync shows on this descriptor too.
    if let Err(e) = core.room.lock().verify_written() {
        return core.fatal(Cause::Io(format!("written data did not reach the disk: {e} ({error})")));
    }
    match reported {
        Cause::NoSpace(_) => CommitError::NotApplied(reported),
        // The disk need not be full any more.
        Cause::Io(text) if is_cut_short => {
            CommitError::NotApplied(Cause::NoSpace(format!("the disk was full, a write was cut short: {text}")))
        }
        other => core.fatal(other),
    }
}

/// Forgets what the system told this thread last.
fn clear_system_error() {
    // SAFETY: a variable of this thread, which its system calls write and nobody else.
    #[allow(unsafe_code)]
    unsafe {
        *libc::__errno_location() = 0;
    }
}

fn is_eio(error: &heed::Error) -> bool {
    matches!(error, heed::Error::Io(e) if e.raw_os_error() == Some(libc::EIO))
}
