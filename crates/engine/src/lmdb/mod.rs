//! The embedded default engine: LMDB, one file, copy-on-write pages, no log to replay.
//!
//! Job: keep each [`Table`] as one named database of an LMDB environment and turn [`Engine::commit`] into one LMDB write transaction
//! that is on the disk when it returns.
//!
//! Invariants:
//! - The head is compared inside the write transaction that replaces it.
//! - LMDB's syncing is never weakened: data pages are written, then `fdatasync`, then the page that names the new root through a
//!   descriptor opened `O_DSYNC`. (Leaving the last sync out, `MDB_NOMETASYNC`, keeps the file sound but may lose acknowledged batches.)
//! - One process, by a lock file, and one writer, by a mutex, use the file. A failure whose outcome this process can't prove
//!   poisons the engine, because after it memory and disk may differ.
//! - Every row carries a checksum over its table, key and value, verified whenever the row is read. LMDB's own pages have none.

mod backup;
mod commit;
mod lock;
mod open;
mod record;
mod room;
mod rows;
mod snapshot;
mod warm;

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use heed::types::Bytes;
use heed::{Database, Env, MdbError, WithoutTls};
use parking_lot::Mutex;

use crate::{Batch, Cause, CommitError, Engine, EngineError, Limits, Size, Snapshot, Table};
use commit::Writer;
use lock::DirectoryLock;
use rows::Rows;
use snapshot::ReaderPool;
use warm::Warmer;

/// Version of the layout of the file and of the rows in it, stored in it and compared when it is opened.
const FORMAT_VERSION: u32 = 2;

/// Longest value, in bytes. etcd's default for a whole request is 1.5 MiB.
pub const VALUE_BYTES_MAX: usize = 32 << 20;
/// Largest batch, in bytes of its rows. Bounds the memory of a commit; LMDB itself writes changed pages out from 512 MiB on.
const BATCH_BYTES_MAX: usize = 256 << 20;
/// Most operations of a batch: a deletion of 100,000 keys writes up to four times as many rows.
const BATCH_OPERATIONS_MAX: usize = 1 << 19;

/// How to open a data directory.
#[derive(Clone, Debug)]
pub struct Options {
    /// The data directory; made if it is missing.
    pub path: PathBuf,
    /// Address space set aside for the file, and so the most that it can grow to. It costs nothing until it is used; if the
    /// system refuses that much, less is taken. Fixed while the engine is open.
    pub map_size_bytes: u64,
    /// Snapshots that can be open at once.
    pub readers_max: u32,
    /// Room kept back, so that a full store can still be emptied: see [`Reserve`](crate::Reserve). Half of it is the floor.
    pub reserve_bytes: u64,
}

impl Options {
    /// The defaults: 1 TiB of address space, 4096 readers, 16 MiB kept back.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), map_size_bytes: 1 << 40, readers_max: 4096, reserve_bytes: 16 << 20 }
    }
}

/// The engine. Dropping it closes the file and releases the data directory.
pub struct Lmdb {
    // Fields drop in this order: idle readers before the environment that they read, the lock last.
    readers: ReaderPool,
    writer: Mutex<Writer>,
    databases: Databases,
    env: Env<WithoutTls>,
    limits: Limits,
    poison: OnceLock<String>,
    page_bytes: u64,
    map_bytes: u64,
    reserve_bytes: u64,
    path: PathBuf,
    /// LMDB's file, only to ask for its size.
    file: File,
    _warmer: Warmer,
    _lock: DirectoryLock,
}

/// The environment's databases.
#[derive(Clone, Copy)]
struct Databases {
    tables: [Rows; Table::ALL.len()],
    /// The engine's own rows, the head and the format version: not in [`Table::Meta`], so that no batch can touch them.
    engine: Database<Bytes, Bytes>,
}

impl Databases {
    fn rows(&self, table: Table) -> &Rows {
        &self.tables[usize::from(table.number())]
    }

    /// Bytes of the pages that hold rows and their index; free pages and the list of them not counted.
    fn in_use_bytes(&self, txn: &heed::RoTxn<'_>, page_bytes: u64) -> heed::Result<u64> {
        // Two pages that name the roots, one that lists the databases.
        let mut pages = 3;
        for database in self.tables.iter().map(Rows::database).chain([self.engine]) {
            let stat = database.stat(txn)?;
            pages += stat.leaf_pages + stat.branch_pages + stat.overflow_pages;
        }
        Ok(pages as u64 * page_bytes)
    }
}

impl Lmdb {
    /// Opens the data directory, making it if need be, and leaves a new head: one epoch later in a store that existed.
    pub fn open(options: Options) -> Result<Self, EngineError> {
        open::open(options)
    }

    /// Bytes that the file takes on the disk.
    fn disk_bytes(&self) -> Result<u64, Cause> {
        const BLOCK_BYTES: u64 = 512;
        match self.file.metadata() {
            Ok(metadata) => Ok(metadata.blocks() * BLOCK_BYTES),
            Err(e) => Err(Cause::Io(format!("can't read the size of {}: {e}", self.path.display()))),
        }
    }

    fn check_poison(&self) -> Result<(), Cause> {
        match self.poison.get() {
            None => Ok(()),
            Some(reason) => Err(Cause::Poisoned(reason.clone())),
        }
    }
}

impl Engine for Lmdb {
    fn name(&self) -> &'static str {
        "lmdb"
    }

    fn snapshot(&self) -> Result<Box<dyn Snapshot + '_>, EngineError> {
        self.check_poison()?;
        Ok(Box::new(self.readers.view(self)?))
    }

    fn commit(&self, batch: &Batch) -> Result<(), CommitError> {
        commit::commit(self, batch)
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn size(&self) -> Result<Size, EngineError> {
        self.check_poison()?;
        let view = self.readers.view(self)?;
        let in_use_bytes = self
            .databases
            .in_use_bytes(view.txn(), self.page_bytes)
            .map_err(|e| cause(&e, "read the file's statistics"))?;
        Ok(Size {
            allocated_bytes: self.disk_bytes()?,
            in_use_bytes,
            capacity_bytes: Some(self.map_bytes - self.reserve_bytes),
        })
    }

    fn backup(&self, target: &Path) -> Result<(), EngineError> {
        self.check_poison()?;
        Ok(backup::backup(&self.env, target)?)
    }
}

/// The cause to report for an error of LMDB or of the system beneath it.
fn cause(error: &heed::Error, doing: &str) -> Cause {
    let text = format!("can't {doing}: {error}");
    match error {
        heed::Error::Io(e) if is_no_space(e) => Cause::NoSpace(text),
        heed::Error::Mdb(MdbError::MapFull) => Cause::NoSpace(text),
        heed::Error::Mdb(MdbError::TxnFull | MdbError::BadValSize) => Cause::TooLarge(text),
        heed::Error::Mdb(MdbError::ReadersFull) => Cause::Unavailable(text),
        heed::Error::Mdb(MdbError::Panic) => Cause::Poisoned(text),
        heed::Error::Mdb(
            MdbError::Corrupted
            | MdbError::PageNotFound
            | MdbError::Invalid
            | MdbError::VersionMismatch
            | MdbError::Incompatible,
        ) => Cause::Corrupt(text),
        _ => Cause::Io(text),
    }
}

/// Whether the system refused for want of room: the disk, a quota, or the process's file size limit.
fn is_no_space(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG))
}
