//! The embedded default engine: a journal for what was committed last, LMDB for all the rest.
//!
//! Job: keep each [`Table`] as one named database of an LMDB environment. [`Engine::commit`] writes the batch to the end of a journal,
//! which is one write and one sync, and lays its rows over LMDB in memory, as the delta. A thread merges them into LMDB in large sorted
//! pieces, so that a page of LMDB is written once for many batches.
//!
//! Invariants:
//! - The head is compared under the lock under which the batch is made durable.
//! - LMDB's syncing is never weakened: data pages are written, then `fdatasync`, then the page that names the new root through a
//!   descriptor opened `O_DSYNC`. The journal's record of a batch is on the disk before the batch is acknowledged, and stays until LMDB has
//!   its rows.
//! - One process, by a lock file, and one writer, by a mutex, use the files. A failure whose outcome this process can't prove
//!   poisons the engine, because after it memory and disk may differ.
//! - Every row in LMDB carries a checksum over its table, key and value, verified whenever the row is read, and every record of
//!   the journal one over all of it, verified when it is read. LMDB's own pages have none.
//! - Memory is bounded: two deltas at most, each of at most [`Options::delta_bytes`].

mod backup;
mod commit;
mod delta;
mod journal;
mod lock;
mod merge;
mod open;
mod record;
mod room;
mod rows;
mod snapshot;
mod warm;

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use heed::types::Bytes;
use heed::{Database, Env, MdbError, WithoutTls};
use parking_lot::Mutex;

use crate::{Batch, Cause, CommitError, Engine, EngineError, Limits, Size, Snapshot, Table};
use commit::Writer;
use lock::DirectoryLock;
use merge::{MergeThread, Merger, Signals};
use record::Cut;
use room::Room;
use rows::{Pages, Rows};
use snapshot::Readers;
use warm::Warmer;

/// Version of the layout of the files and of the rows in them, stored in LMDB's and compared when it is opened.
const FORMAT_VERSION: u32 = 3;

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
    /// Memory of a delta, and so about the size of a segment of the journal, of which there are two. Larger deltas write fewer pages for
    /// the same batches, and take longer to replay after a crash.
    pub delta_bytes: u64,
}

/// See [`Options::delta_bytes`].
pub const DELTA_BYTES: u64 = 32 << 20;

impl Options {
    /// The defaults: 1 TiB of address space, 4096 readers, 16 MiB kept back, deltas of [`DELTA_BYTES`].
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            map_size_bytes: 1 << 40,
            readers_max: 4096,
            reserve_bytes: 16 << 20,
            delta_bytes: DELTA_BYTES,
        }
    }
}

/// The engine. Dropping it merges what the journal holds, closes the files and releases the data directory.
pub struct Lmdb {
    // Fields drop in this order: first the threads that use the core.
    _merge: MergeThread,
    _warmer: Warmer,
    core: Arc<Core>,
}

/// What the threads of the engine share.
struct Core {
    // Fields drop in this order: idle readers before the environment that they read, the lock last.
    readers: Readers,
    /// Locked before `merger` where both are.
    writer: Mutex<Writer>,
    merger: Mutex<Merger>,
    signals: Signals,
    room: Mutex<Room>,
    /// Held while LMDB writes its file, and while the file is shortened.
    file_end: Arc<Mutex<()>>,
    stat: Mutex<FileStat>,
    databases: Databases,
    env: Env<WithoutTls>,
    limits: Limits,
    poison: OnceLock<String>,
    page_bytes: u64,
    map_bytes: u64,
    reserve_bytes: u64,
    delta_bytes: u64,
    /// What the journal's records begin with.
    journal_mark: u64,
    /// What the journal takes on the disk.
    journal_bytes: AtomicU64,
    path: PathBuf,
    /// LMDB's file, only to ask for its size.
    file: File,
    _lock: DirectoryLock,
}

/// LMDB's file as its newest commit left it.
#[derive(Clone, Copy, Debug, Default)]
struct FileStat {
    pages: [Pages; Table::ALL.len()],
    /// Bytes of the pages that hold rows and their index; free pages and the list of them not counted.
    in_use_bytes: u64,
    /// The end of the last page.
    end_bytes: u64,
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
}

impl Core {
    /// The file's figures as of a transaction.
    fn read_stat(&self, txn: &heed::RoTxn<'_>) -> heed::Result<FileStat> {
        let mut stat = FileStat { end_bytes: self.end_bytes(), ..FileStat::default() };
        // Two pages that name the roots, one that lists the databases, one of the engine's own rows.
        let mut pages = 4;
        for (rows, of_table) in self.databases.tables.iter().zip(&mut stat.pages) {
            *of_table = rows.pages(txn)?;
            pages += of_table.leaves + of_table.branches + of_table.overflow;
        }
        stat.in_use_bytes = pages * self.page_bytes;
        Ok(stat)
    }

    /// The end of the file's last page.
    fn end_bytes(&self) -> u64 {
        (self.env.info().last_page_number as u64 + 1) * self.page_bytes
    }

    /// Bytes that the files take on the disk.
    fn disk_bytes(&self) -> Result<u64, Cause> {
        const BLOCK_BYTES: u64 = 512;
        match self.file.metadata() {
            Ok(metadata) => Ok(metadata.blocks() * BLOCK_BYTES + self.journal_bytes.load(Ordering::Relaxed)),
            Err(e) => Err(Cause::Io(format!("can't read the size of {}: {e}", self.path.display()))),
        }
    }

    /// How rows are cut for the file's pages.
    fn cut(&self) -> Cut {
        Cut::new(self.page_bytes as usize)
    }

    fn check_poison(&self) -> Result<(), Cause> {
        match self.poison.get() {
            None => Ok(()),
            Some(reason) => Err(Cause::Poisoned(reason.clone())),
        }
    }
}

impl Lmdb {
    /// Opens the data directory, making it if need be, and leaves a new head: one epoch later in a store that existed.
    pub fn open(options: Options) -> Result<Self, EngineError> {
        open::open(options)
    }
}

impl Engine for Lmdb {
    fn name(&self) -> &'static str {
        "lmdb"
    }

    fn snapshot(&self) -> Result<Box<dyn Snapshot + '_>, EngineError> {
        self.core.check_poison()?;
        Ok(Box::new(self.core.readers.view(&self.core)?))
    }

    fn commit(&self, batch: &Batch) -> Result<(), CommitError> {
        commit::commit(&self.core, batch)
    }

    fn limits(&self) -> Limits {
        self.core.limits
    }

    /// Rows that are not merged yet are counted as new ones, and what they replace or remove as in use.
    fn size(&self) -> Result<Size, EngineError> {
        self.core.check_poison()?;
        let unmerged_bytes = self.core.readers.layers().put_bytes();
        Ok(Size {
            allocated_bytes: self.core.disk_bytes()?,
            in_use_bytes: self.core.stat.lock().in_use_bytes + unmerged_bytes,
            capacity_bytes: Some(self.core.map_bytes - self.core.reserve_bytes),
        })
    }

    fn backup(&self, target: &Path) -> Result<(), EngineError> {
        self.core.check_poison()?;
        Ok(backup::backup(&self.core, target)?)
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
