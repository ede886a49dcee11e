//! Opening a data directory.
//!
//! Invariant: nothing is served before the format is known to be ours and a new head is durable. The last root page may be visible in
//! the page cache and not be on the disk yet after a killed process; the commit made here settles it, and its new epoch fences whatever
//! an earlier process may still send.

use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::Path;
use std::sync::OnceLock;

use heed::types::Bytes;
use heed::{Database, Env, EnvFlags, EnvOpenOptions, MdbError, RwTxn, WithoutTls};
use parking_lot::Mutex;

use super::commit::Writer;
use super::lock::DirectoryLock;
use super::record::{self, PART_NUMBER_BYTES};
use super::room::Room;
use super::rows::Rows;
use super::snapshot::{ReaderPool, read_head};
use super::warm::Warmer;
use super::{BATCH_BYTES_MAX, BATCH_OPERATIONS_MAX, Databases, FORMAT_VERSION, Lmdb, Options, VALUE_BYTES_MAX, cause};
use crate::{Cause, EngineError, Head, Limits, Table, file};

pub(super) const HEAD_KEY: &[u8] = b"head";
/// Never moves, and its row's form never changes: every version must be able to read it.
const FORMAT_KEY: &[u8] = b"format";
/// Where a new data file is made, in the data directory.
const NURSERY: &str = "new";
const ENGINE_DATABASE: &str = "engine";
/// LMDB's file, in the data directory.
const DATA_FILE: &str = "data.mdb";

/// Below this a smaller map is no longer tried.
const MAP_BYTES_MIN: u64 = 64 << 20;

pub(super) fn open(options: Options) -> Result<Lmdb, EngineError> {
    let Options { path, map_size_bytes, readers_max, reserve_bytes } = options;
    file::make_directory(&path)
        .map_err(|e| Cause::Io(format!("can't make the data directory {}: {e}", path.display())))?;
    let lock = DirectoryLock::acquire(&path)?;
    if !path.join(DATA_FILE).exists() {
        create(&path, map_size_bytes, readers_max)?;
    }
    let env = open_environment(&path, map_size_bytes, readers_max)?;
    env.clear_stale_readers().map_err(|e| cause(&e, "clear stale readers"))?;

    let (databases, newest) = settle(&env, &path)?;
    let page_bytes = u64::from(env.stat().page_size);
    let map_bytes = env.info().map_size as u64;
    let limits = Limits {
        key_bytes_max: env.max_key_size() - PART_NUMBER_BYTES,
        value_bytes_max: VALUE_BYTES_MAX,
        batch_bytes_max: BATCH_BYTES_MAX,
        batch_operations_max: BATCH_OPERATIONS_MAX,
    };
    let failed = |e: io::Error| Cause::Io(format!("can't open the data file of {}: {e}", path.display()));
    let room = Room::open(&path.join(DATA_FILE)).map_err(failed)?;
    let open_data_file = || File::open(path.join(DATA_FILE)).map_err(failed);
    let used_bytes = (env.info().last_page_number as u64 + 1) * page_bytes;
    let file = open_data_file()?;
    let warmer = Warmer::start(open_data_file()?, used_bytes);
    Ok(Lmdb {
        readers: ReaderPool::new(newest),
        writer: Mutex::new(Writer::new(room)),
        databases,
        env,
        limits,
        poison: OnceLock::new(),
        page_bytes,
        map_bytes,
        // A small map keeps a small part back.
        reserve_bytes: reserve_bytes.min(map_bytes / 8),
        path,
        file,
        _warmer: warmer,
        _lock: lock,
    })
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
    // Opening adds one to epoch and seq, also the first time.
    put_engine_row(engine, &mut txn, HEAD_KEY, &Head { revision: 1, ..Head::default() }.encode())?;
    txn.commit()
}

/// Checks the format and commits the first head of this process. Returns LMDB's id of that commit.
fn settle(env: &Env<WithoutTls>, path: &Path) -> Result<(Databases, usize), EngineError> {
    let failed = |e: heed::Error| cause(&e, &format!("open the store in {}", path.display()));
    let not_ours = || Cause::Corrupt(format!("{} is not a store of this program", path.join(DATA_FILE).display()));
    let mut txn = env.write_txn().map_err(failed)?;
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
    let seq = head.seq + 1;
    // A hash with keys from the system's random source: an incarnation that no other process has.
    let incarnation = u128::from(RandomState::new().hash_one(seq)) << 64;
    let next = Head { epoch: head.epoch + 1, seq, revision: head.revision, batch_id: incarnation | u128::from(seq) };
    put_engine_row(engine, &mut txn, HEAD_KEY, &next.encode()).map_err(failed)?;
    let newest = txn.id();
    txn.commit().map_err(failed)?;
    Ok((databases, newest))
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
