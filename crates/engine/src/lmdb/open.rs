//! Opening a data directory.
//!
//! Invariant: nothing is served before the format is known to be ours and a new head is durable. The last root page may be visible in
//! the page cache and not be on the disk yet after a killed process; the commit made here settles it, and its new epoch fences whatever
//! an earlier process may still send.

use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::sync::OnceLock;

use heed::{Env, EnvOpenOptions, MdbError, RwTxn, WithoutTls};
use parking_lot::Mutex;

use super::commit::Writer;
use super::lock::DirectoryLock;
use super::record::{self, ENGINE_TABLE};
use super::room::Room;
use super::snapshot::{ReaderPool, read_head};
use super::{BATCH_BYTES_MAX, BATCH_OPERATIONS_MAX, FORMAT_VERSION, Lmdb, Options, Rows, VALUE_BYTES_MAX, cause};
use crate::{Cause, EngineError, Head, Limits, Table, file};

pub(super) const HEAD_KEY: &[u8] = b"head";
/// Never moves, and its row's form never changes: every version must be able to read it.
const FORMAT_KEY: &[u8] = b"format";
const ENGINE_DATABASE: &str = "engine";
/// LMDB's file, in the data directory.
pub(super) const DATA_FILE: &str = "data.mdb";

/// Below this a smaller map is no longer tried.
const MAP_BYTES_MIN: u64 = 64 << 20;

pub(super) fn open(options: Options) -> Result<Lmdb, EngineError> {
    let Options {
        path,
        map_size_bytes,
        readers_max,
        reserve_bytes,
    } = options;
    make_directory(&path)?;
    let lock = DirectoryLock::acquire(&path)?;
    let env = open_environment(&path, map_size_bytes, readers_max)?;
    // LMDB does not make its file's name durable.
    file::sync_directory(&path).map_err(|e| Cause::Io(format!("can't sync {}: {e}", path.display())))?;
    env.clear_stale_readers()
        .map_err(|e| cause(&e, "clear stale readers"))?;

    let (rows, newest) = settle(&env, &path)?;
    let page_bytes = u64::from(env.stat().page_size);
    let map_bytes = env.info().map_size as u64;
    let limits = Limits {
        key_bytes_max: env.max_key_size(),
        value_bytes_max: VALUE_BYTES_MAX,
        batch_bytes_max: BATCH_BYTES_MAX,
        batch_operations_max: BATCH_OPERATIONS_MAX,
    };
    let room = Room::open(&path.join(DATA_FILE)).map_err(|e| Cause::Io(format!("can't open the data file: {e}")))?;
    let file = File::open(path.join(DATA_FILE)).map_err(|e| Cause::Io(format!("can't open the data file: {e}")))?;
    Ok(Lmdb {
        readers: ReaderPool::new(newest),
        writer: Mutex::new(Writer::new(room)),
        rows,
        env,
        limits,
        poison: OnceLock::new(),
        page_bytes,
        map_bytes,
        // A small map keeps a small part back.
        reserve_bytes: reserve_bytes.min(map_bytes / 8),
        path,
        file,
        _lock: lock,
    })
}

fn make_directory(path: &Path) -> Result<(), Cause> {
    let failed = |e: std::io::Error| Cause::Io(format!("can't make the data directory {}: {e}", path.display()));
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path).map_err(failed)?;
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => file::sync_directory(parent).map_err(failed),
        _ => Ok(()),
    }
}

fn open_environment(path: &Path, map_size_bytes: u64, readers_max: u32) -> Result<Env<WithoutTls>, Cause> {
    // A multiple of every page size in use.
    const UNIT: u64 = 64 << 10;
    let mut map_bytes = map_size_bytes.next_multiple_of(UNIT).max(UNIT);
    loop {
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        options
            .map_size(usize::try_from(map_bytes).unwrap_or(usize::MAX / 2))
            .max_readers(readers_max)
            .max_dbs(8);
        // SAFETY: the file is changed by LMDB only: the directory is locked against other processes and the engine's other
        // descriptor on the file neither writes nor shortens it. No flag that weakens LMDB's guarantees is set.
        #[allow(unsafe_code)]
        let opened = unsafe { options.open(path) };
        match opened {
            Ok(env) => return Ok(env),
            Err(heed::Error::Io(e)) if e.raw_os_error() == Some(libc::ENOMEM) && map_bytes / 2 >= MAP_BYTES_MIN => {
                // The address space is limited; a store that is already larger than the half fails in LMDB, which takes no
                // map smaller than its data.
                map_bytes = map_bytes / 2 / UNIT * UNIT;
            }
            Err(heed::Error::Mdb(MdbError::Invalid)) => {
                return Err(Cause::Corrupt(format!(
                    "{} is not an LMDB file",
                    path.join(DATA_FILE).display()
                )));
            }
            Err(e) => return Err(cause(&e, &format!("open {}", path.display()))),
        }
    }
}

/// Checks or writes the format, and commits the first head of this process. Returns LMDB's id of that commit.
fn settle(env: &Env<WithoutTls>, path: &Path) -> Result<(Rows, usize), EngineError> {
    let failed = |e: heed::Error| cause(&e, &format!("prepare {}", path.display()));
    let mut txn = env.write_txn().map_err(failed)?;
    let is_fresh = env.stat().entries == 0;
    if !is_fresh {
        check_format(env, &txn, path)?;
    }
    let mut create = |name| env.create_database(&mut txn, Some(name)).map_err(failed);
    let mut tables = Vec::with_capacity(Table::ALL.len());
    for table in Table::ALL {
        tables.push(create(table.name())?);
    }
    let engine = create(ENGINE_DATABASE)?;
    let rows = Rows {
        tables: tables.try_into().ok().expect("one database a table"),
        engine,
    };

    // Two independent 64-bit keys of the system's random source make an incarnation that no other process has.
    let incarnation = u128::from(RandomState::new().hash_one(FORMAT_KEY)) << 64;
    let next = if is_fresh {
        put_engine_row(&rows, &mut txn, FORMAT_KEY, &FORMAT_VERSION.to_le_bytes()).map_err(failed)?;
        Head {
            epoch: 1,
            seq: 1,
            revision: 1,
            batch_id: incarnation | 1,
        }
    } else {
        let head = read_head(&rows, &txn)?;
        let seq = head.seq + 1;
        Head {
            epoch: head.epoch + 1,
            seq,
            revision: head.revision,
            batch_id: incarnation | u128::from(seq),
        }
    };
    put_engine_row(&rows, &mut txn, HEAD_KEY, &next.encode()).map_err(failed)?;
    let newest = txn.id();
    txn.commit().map_err(failed)?;
    Ok((rows, newest))
}

fn check_format(env: &Env<WithoutTls>, txn: &RwTxn<'_>, path: &Path) -> Result<(), EngineError> {
    let engine = env
        .open_database::<heed::types::Bytes, heed::types::Bytes>(txn, Some(ENGINE_DATABASE))
        .map_err(|e| cause(&e, "read the format version"))?;
    let not_ours = || {
        Cause::Corrupt(format!(
            "{} is not a store of this program",
            path.join(DATA_FILE).display()
        ))
    };
    let engine = engine.ok_or_else(not_ours)?;
    let stored = engine
        .get(txn, FORMAT_KEY)
        .map_err(|e| cause(&e, "read the format version"))?
        .ok_or_else(not_ours)?;
    let row = record::verify(ENGINE_TABLE, ENGINE_DATABASE, FORMAT_KEY, stored)?;
    let found = u32::from_le_bytes(row.try_into().map_err(|_| not_ours())?);
    if found != FORMAT_VERSION {
        return Err(EngineError::Format {
            path: path.display().to_string(),
            found,
            supported: FORMAT_VERSION,
        });
    }
    Ok(())
}

/// Writes one of the engine's own rows.
pub(super) fn put_engine_row(rows: &Rows, txn: &mut RwTxn<'_>, key: &[u8], value: &[u8]) -> heed::Result<()> {
    let mut stored = value.to_vec();
    stored.extend_from_slice(&record::checksum(ENGINE_TABLE, key, value).to_le_bytes());
    rows.engine.put(txn, key, &stored)
}
