//! Opening a data directory.
//!
//! Invariant: nothing is served before the format is known to be ours and a new head is durable. The last root page may be visible in
//! the page cache and not be on the disk yet after a killed process; the commit made here settles it, and its new epoch fences whatever
//! an earlier process may still send.

use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

use heed::types::Bytes;
use heed::{Database, Env, EnvFlags, EnvOpenOptions, MdbError, RwTxn, WithoutTls};
use parking_lot::Mutex;

use super::commit::{self, Writer};
use super::delta::{Delta, Frozen, Layers};
use super::journal::{Journal, Recovered};
use super::lock::DirectoryLock;
use super::merge::{self, MergeThread, Merger, Signals};
use super::record::{self, Cut, PART_NUMBER_BYTES};
use super::room::Room;
use super::rows::Rows;
use super::snapshot::{Readers, read_head};
use super::warm::Warmer;
use super::{
    BATCH_BYTES_MAX, BATCH_OPERATIONS_MAX, Core, Databases, FORMAT_VERSION, FileStat, Lmdb, Options, VALUE_BYTES_MAX,
    cause,
};
use crate::{Cause, CommitError, EngineError, Head, Limits, Table, file};

pub(super) const HEAD_KEY: &[u8] = b"head";
/// Never moves, and its row's form never changes: every version must be able to read it.
const FORMAT_KEY: &[u8] = b"format";
const POSITION_KEY: &[u8] = b"journal";
/// The head with which the data file was all of the store: new, closed, or a backup. Then it opens without the journal's files. Opening
/// leaves another head, when the files' names are durable.
const ALONE_KEY: &[u8] = b"alone";
/// Where a new data file is made, in the data directory.
const NURSERY: &str = "new";
const ENGINE_DATABASE: &str = "engine";
/// LMDB's file, in the data directory.
const DATA_FILE: &str = "data.mdb";

/// Below this a smaller map is no longer tried.
const MAP_BYTES_MIN: u64 = 64 << 20;

/// The largest delta: places in its records are numbers of 32 bits.
const DELTA_BYTES_MAX: u64 = 1 << 30;

pub(super) fn open(options: Options) -> Result<Lmdb, EngineError> {
    let Options { path, map_size_bytes, readers_max, reserve_bytes, delta_bytes } = options;
    file::make_directory(&path)
        .map_err(|e| Cause::Io(format!("can't make the data directory {}: {e}", path.display())))?;
    let lock = DirectoryLock::acquire(&path)?;
    if !path.join(DATA_FILE).exists() {
        create(&path, map_size_bytes, readers_max)?;
    }
    let env = open_environment(&path, map_size_bytes, readers_max)?;
    env.clear_stale_readers().map_err(|e| cause(&e, "clear stale readers"))?;

    let Found { databases, head, position, is_alone } = look(&env, &path)?;
    let mut journal = Journal::open(&path, position.mark, !is_alone)?;
    let recovered = journal.recover(position.first, position.through, head)?;

    let delta_bytes = delta_bytes.min(DELTA_BYTES_MAX);
    let page_bytes = u64::from(env.stat().page_size);
    let map_bytes = env.info().map_size as u64;
    let limits = Limits {
        key_bytes_max: env.max_key_size() - PART_NUMBER_BYTES,
        value_bytes_max: VALUE_BYTES_MAX,
        batch_bytes_max: BATCH_BYTES_MAX,
        batch_operations_max: BATCH_OPERATIONS_MAX,
    };
    let failed = |e: io::Error| Cause::Io(format!("can't open the data file of {}: {e}", path.display()));
    let file_end = Arc::new(Mutex::new(()));
    let room = Room::open(&path.join(DATA_FILE), env.clone(), page_bytes, file_end.clone()).map_err(failed)?;
    let open_data_file = || File::open(path.join(DATA_FILE)).map_err(failed);
    let (file, to_warm) = (open_data_file()?, open_data_file()?);
    let core = Core {
        readers: Readers::new(
            layers(recovered, head, delta_bytes, Cut::new(page_bytes as usize)),
            env.info().last_txn_id,
        ),
        journal_bytes: AtomicU64::new(journal.bytes()),
        merger: Mutex::new(Merger::new(position.first)),
        writer: Mutex::new(Writer::new(journal)),
        signals: Signals::default(),
        room: Mutex::new(room),
        file_end,
        stat: Mutex::new(FileStat::default()),
        databases,
        env,
        limits,
        poison: OnceLock::new(),
        page_bytes,
        map_bytes,
        // A small map keeps a small part back.
        reserve_bytes: reserve_bytes.min(map_bytes / 8),
        delta_bytes,
        journal_mark: position.mark,
        path,
        file,
        _lock: lock,
    };
    settle(&core)?;
    let warmer = Warmer::start(to_warm, core.end_bytes());
    let core = Arc::new(core);
    Ok(Lmdb { _merge: MergeThread::start(core.clone())?, _warmer: warmer, core })
}

/// What the journal had, to be merged.
fn layers(recovered: Recovered, head: Head, delta_bytes: u64, cut: Cut) -> Layers {
    let mut delta = Delta::new(delta_bytes);
    let mut newest = head;
    for record in recovered.records {
        newest = record.next();
        delta.apply(record, cut);
    }
    let next_record = recovered.next_record;
    let frozen = (!delta.is_empty()).then_some(Frozen { delta, head: newest, next_record });
    Layers { head: newest, active: Delta::new(delta_bytes), frozen }
}

fn open_environment(path: &Path, map_size_bytes: u64, readers_max: u32) -> Result<Env<WithoutTls>, Cause> {
    // A multiple of every page size in use.
    const UNIT: u64 = 64 << 10;
    let mut map_bytes = map_size_bytes.next_multiple_of(UNIT).max(UNIT);
    loop {
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        options.map_size(usize::try_from(map_bytes).unwrap_or(usize::MAX / 2)).max_readers(readers_max).max_dbs(8);
        // SAFETY: the file is changed by LMDB only: the directory is locked against other processes and the engine's other
        // descriptors on the file neither write nor shorten it. The flag is advice about reading (see `warm`); none that weakens
        // LMDB's guarantees is set.
        #[allow(unsafe_code)]
        let opened = unsafe {
            options.flags(EnvFlags::NO_READ_AHEAD);
            options.open(path)
        };
        match opened {
            Ok(env) => return Ok(env),
            Err(heed::Error::Io(e)) if e.raw_os_error() == Some(libc::ENOMEM) && map_bytes / 2 >= MAP_BYTES_MIN => {
                // The address space is limited; a store that is already larger than the half fails in LMDB, which takes no
                // map smaller than its data.
                map_bytes = map_bytes / 2 / UNIT * UNIT;
            }
            Err(heed::Error::Mdb(MdbError::Invalid)) => {
                return Err(Cause::Corrupt(format!("{} is not an LMDB file", path.join(DATA_FILE).display())));
            }
            Err(e) => return Err(cause(&e, &format!("open {}", path.display()))),
        }
    }
}

/// Makes the data file: an empty store one commit before its first opening.
///
/// LMDB writes and syncs a new file in several steps. They happen in a directory of their own, and the file gets its name when all of it
/// is durable, so a data file that exists is one that can be opened.
fn create(path: &Path, map_size_bytes: u64, readers_max: u32) -> Result<(), Cause> {
    let failed = |e: io::Error| Cause::Io(format!("can't make a store in {}: {e}", path.display()));
    let nursery = path.join(NURSERY);
    match fs::remove_dir_all(&nursery) {
        // What a process left that died on the way.
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed(e)),
    }
    fs::create_dir(&nursery).map_err(failed)?;
    let env = open_environment(&nursery, map_size_bytes, readers_max)?;
    write_first_rows(&env).map_err(|e| cause(&e, &format!("make a store in {}", path.display())))?;
    // Dropping the only handle closes the file.
    drop(env);
    fs::rename(nursery.join(DATA_FILE), path.join(DATA_FILE)).map_err(failed)?;
    file::sync_directory(path).map_err(failed)?;
    fs::remove_dir_all(&nursery).map_err(failed)
}

fn write_first_rows(env: &Env<WithoutTls>) -> heed::Result<()> {
    let mut txn = env.write_txn()?;
    for table in Table::ALL {
        env.create_database::<Bytes, Bytes>(&mut txn, Some(table.name()))?;
    }
    let engine = env.create_database(&mut txn, Some(ENGINE_DATABASE))?;
    put_engine_row(engine, &mut txn, FORMAT_KEY, &FORMAT_VERSION.to_le_bytes())?;
    let position = Position { first: 1, through: 0, mark: RandomState::new().hash_one(0) };
    put_engine_row(engine, &mut txn, POSITION_KEY, &position.encode())?;
    // Opening adds one to epoch and seq, also the first time.
    let head = Head { revision: 1, ..Head::default() };
    put_engine_row(engine, &mut txn, HEAD_KEY, &head.encode())?;
    put_engine_row(engine, &mut txn, ALONE_KEY, &head.encode())?;
    txn.commit()
}

/// What is in LMDB's file.
struct Found {
    databases: Databases,
    /// The head of the newest batch in it.
    head: Head,
    position: Position,
    /// Whether it is all of the store.
    is_alone: bool,
}

/// Checks the format and reads where the store stands; changes nothing.
fn look(env: &Env<WithoutTls>, path: &Path) -> Result<Found, EngineError> {
    let failed = |e: heed::Error| cause(&e, &format!("open the store in {}", path.display()));
    let not_ours = || Cause::Corrupt(format!("{} is not a store of this program", path.join(DATA_FILE).display()));
    // A handle of a database stays if its transaction is committed.
    let txn = env.write_txn().map_err(failed)?;
    let open = |txn: &RwTxn<'_>, name| -> Result<Database<Bytes, Bytes>, Cause> {
        env.open_database(txn, Some(name)).map_err(failed)?.ok_or_else(not_ours)
    };

    let engine = open(&txn, ENGINE_DATABASE)?;
    let format = engine.get(&txn, FORMAT_KEY).map_err(failed)?.ok_or_else(not_ours)?;
    let format = record::decode_engine_row(FORMAT_KEY, format)?;
    let found = u32::from_le_bytes(format.try_into().map_err(|_| not_ours())?);
    if found != FORMAT_VERSION {
        return Err(EngineError::Format { path: path.display().to_string(), found, supported: FORMAT_VERSION });
    }
    let page_bytes = env.stat().page_size as usize;
    let mut tables = Vec::with_capacity(Table::ALL.len());
    for table in Table::ALL {
        tables.push(Rows::new(table, open(&txn, table.name())?, page_bytes));
    }
    let Ok(tables) = tables.try_into() else { unreachable!("one database a table") };
    let databases = Databases { tables, engine };

    let head = read_head(&databases, &txn)?;
    let position = engine.get(&txn, POSITION_KEY).map_err(failed)?.ok_or_else(not_ours)?;
    let position = Position::decode(record::decode_engine_row(POSITION_KEY, position)?).ok_or_else(not_ours)?;
    let alone = engine.get(&txn, ALONE_KEY).map_err(failed)?;
    // A damaged one says nothing.
    let alone = alone.and_then(|row| record::decode_engine_row(ALONE_KEY, row).ok());
    let is_alone = alone.is_some_and(|of_head| of_head == head.encode());
    txn.commit().map_err(failed)?;
    Ok(Found { databases, head, position, is_alone })
}

/// Merges what the journal had, and commits the first head of this process.
fn settle(core: &Core) -> Result<(), EngineError> {
    let failed = |error: CommitError| match error {
        CommitError::NotApplied(cause) | CommitError::Unknown(cause) | CommitError::Fatal(cause) => cause,
        CommitError::Fenced(_) => unreachable!("nothing compares a head"),
    };
    let txn = core.env.write_txn().map_err(|e| cause(&e, "open the store"))?;
    *core.stat.lock() = core.read_stat(&txn).map_err(|e| cause(&e, "read the file's statistics"))?;
    drop(txn);
    merge::run(core, &mut core.merger.lock(), true).map_err(failed)?;

    let head = core.readers.layers().head;
    let seq = head.seq + 1;
    // A hash with keys from the system's random source: an incarnation that no other process has.
    let incarnation = u128::from(RandomState::new().hash_one(seq)) << 64;
    let next = Head { epoch: head.epoch + 1, seq, revision: head.revision, batch_id: incarnation | u128::from(seq) };
    let mut txn = core.env.write_txn().map_err(|e| cause(&e, "open the store"))?;
    put_engine_row(core.databases.engine, &mut txn, HEAD_KEY, &next.encode())
        .map_err(|e| cause(&e, "write the head"))?;
    Ok(commit::end(core, txn, |layers| layers.head = next).map_err(failed)?)
}

/// Where LMDB stands in the journal.
#[derive(Clone, Copy, Debug)]
struct Position {
    /// The first record that it has not passed.
    first: u64,
    /// The last record of which it may hold rows.
    through: u64,
    /// What the journal's records begin with.
    mark: u64,
}

impl Position {
    fn encode(self) -> [u8; 24] {
        let mut row = [0; 24];
        row[..8].copy_from_slice(&self.first.to_le_bytes());
        row[8..16].copy_from_slice(&self.through.to_le_bytes());
        row[16..].copy_from_slice(&self.mark.to_le_bytes());
        row
    }

    fn decode(row: &[u8]) -> Option<Self> {
        let row: &[u8; 24] = row.try_into().ok()?;
        let [first, through, mark] = [0, 8, 16].map(|at| row[at..at + 8].try_into().map_or(0, u64::from_le_bytes));
        Some(Self { first, through, mark })
    }
}

/// Writes that LMDB has passed all records before `first`, and may hold rows of those up to `through`.
pub(super) fn put_position(core: &Core, txn: &mut RwTxn<'_>, first: u64, through: u64) -> heed::Result<()> {
    let position = Position { first, through, mark: core.journal_mark };
    put_engine_row(core.databases.engine, txn, POSITION_KEY, &position.encode())
}

/// Writes that the data file is all of the store, as it is when everything is merged and nothing is being committed; or takes that back.
pub(super) fn put_alone(core: &Core, is_alone: bool) -> Result<(), CommitError> {
    let mut txn = core.env.write_txn().map_err(|e| commit::before_commit(core, &e, "begin a batch"))?;
    let head = read_head(&core.databases, &txn).map_err(|cause| core.fatal(cause))?;
    let engine = core.databases.engine;
    let written = if is_alone {
        put_engine_row(engine, &mut txn, ALONE_KEY, &head.encode())
    } else {
        engine.delete(&mut txn, ALONE_KEY).map(|_| ())
    };
    written.map_err(|e| commit::before_commit(core, &e, "write that the data file is all of the store"))?;
    commit::end(core, txn, |_| {})
}

/// Writes one of the engine's own rows.
pub(super) fn put_engine_row(
    engine: Database<Bytes, Bytes>,
    txn: &mut RwTxn<'_>,
    key: &[u8],
    value: &[u8],
) -> heed::Result<()> {
    engine.put(txn, key, &record::encode_engine_row(key, value))
}
