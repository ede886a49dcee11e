//! LMDB's files: what is refused, what is noticed, what is limited.

use std::ffi::OsString;
use std::fs;
use std::ops::{Bound, ControlFlow};
use std::path::{Path, PathBuf};

use heed::types::Bytes;
use heed::{Database, EnvOpenOptions};
use kubewharf_engine::conformance::{Store, apply, delete, get, head, next_batch, put, rows};
use kubewharf_engine::lmdb::{Lmdb, Options};
use kubewharf_engine::{Batch, Cause, CommitError, Direction, Engine, EngineError, Reserve, Snapshot, Table};

use crate::child;
use crate::stores::LmdbStore;

fn open(path: &Path) -> Result<Lmdb, EngineError> {
    Lmdb::open(Options::new(path))
}

/// Replaces every occurrence of `from` in the closed store's file and tells how many there were.
fn replace(directory: &Path, from: &[u8], to: &[u8]) -> usize {
    assert_eq!(from.len(), to.len());
    let path = directory.join("data.mdb");
    let mut content = fs::read(&path).unwrap();
    let mut count = 0;
    let mut position = 0;
    while let Some(found) = content[position..].windows(from.len()).position(|window| window == from) {
        content[position + found..][..to.len()].copy_from_slice(to);
        position += found + from.len();
        count += 1;
    }
    fs::write(&path, content).unwrap();
    count
}

fn scan(snapshot: &dyn Snapshot, direction: Direction) -> (usize, Result<(), EngineError>) {
    let mut rows = 0;
    let all = (Bound::Unbounded, Bound::Unbounded);
    let outcome = snapshot.scan(Table::Current, all, direction, &mut |_, _| {
        rows += 1;
        ControlFlow::Continue(())
    });
    (rows, outcome)
}

#[test]
fn a_damaged_row_is_noticed_and_named() {
    // A value, and a key in such a way that it keeps its place in the order: elsewhere it would not be found at all.
    let damages = [("original value 7", "0riginal value 7", "key-7"), ("key-9", "kez-9", "kez-9")];
    for (from, to, key) in damages {
        let store = LmdbStore::new();
        let rows = (0..10).map(|n| put(Table::Current, format!("key-{n}"), format!("original value {n}")));
        apply(store.engine(), rows.collect());
        let directory = store.close();
        assert!(replace(directory.path(), from.as_bytes(), to.as_bytes()) > 0);

        let engine = open(directory.path()).unwrap();
        let assert_named = |error: EngineError| match error {
            EngineError::Failed(Cause::Corrupt(text)) => {
                assert!(text.contains("table current") && text.contains(&format!("{key:?}")), "{text}");
            }
            other => panic!("{other}"),
        };
        let snapshot = engine.snapshot().unwrap();
        let visit = &mut |_: &[u8]| panic!("a damaged value is never shown");
        assert_named(snapshot.get(Table::Current, key.as_bytes(), visit).unwrap_err());
        let position: usize = key[4..].parse().unwrap();
        for (direction, before) in [(Direction::Forward, position), (Direction::Reverse, 9 - position)] {
            let (seen, outcome) = scan(&*snapshot, direction);
            assert_eq!(seen, before);
            assert_named(outcome.unwrap_err());
        }
        // What must go on behind damage learns where it is.
        let mut damaged = Vec::new();
        let mut seen = 0;
        let outcome =
            snapshot.scan_past_damage(Table::Current, (Bound::Unbounded, Bound::Unbounded), &mut |key, value| {
                match value {
                    Some(_) => seen += 1,
                    None => damaged.push(key.to_vec()),
                }
                ControlFlow::Continue(())
            });
        assert_eq!((outcome, seen, damaged), (Ok(()), 9, vec![key.as_bytes().to_vec()]));
        drop(snapshot);
        // The others can be read, and the damaged one replaced.
        assert_eq!(get(&engine, Table::Current, b"key-3"), Some(b"original value 3".to_vec()));
        apply(&engine, vec![put(Table::Current, key, "repaired")]);
        assert_eq!(get(&engine, Table::Current, key.as_bytes()), Some(b"repaired".to_vec()));
    }
}

#[test]
fn a_damaged_head_stops_the_engine_at_the_door() {
    let store = LmdbStore::new();
    let mut batch = next_batch(store.engine(), vec![]);
    batch.next.batch_id = u128::from_le_bytes(*b"a-known-batch-id");
    store.engine().commit(&batch).unwrap();
    let directory = store.close();
    assert!(replace(directory.path(), b"a-known-batch-id", b"a-known-batch-iD") > 0);
    match open(directory.path()).err().unwrap() {
        EngineError::Failed(Cause::Corrupt(text)) => assert!(text.contains("engine"), "{text}"),
        other => panic!("{other}"),
    }
}

/// Opens the closed store's file with LMDB itself.
fn with_raw_rows(directory: &Path, change: impl FnOnce(&mut heed::RwTxn<'_>, Database<Bytes, Bytes>)) {
    // SAFETY: no engine has the directory open.
    #[allow(unsafe_code)]
    let env = unsafe { EnvOpenOptions::new().max_dbs(8).open(directory).unwrap() };
    let mut txn = env.write_txn().unwrap();
    let rows = env.create_database(&mut txn, Some("engine")).unwrap();
    change(&mut txn, rows);
    txn.commit().unwrap();
}

#[test]
fn another_format_is_refused_by_number() {
    let directory = LmdbStore::new().close();
    let (key, version) = (&b"format"[..], 99_u32.to_le_bytes());
    with_raw_rows(directory.path(), |txn, rows| {
        let start = (u32::from(u8::MAX) + 1) << 17 | key.len() as u32;
        let sum = crc32c::crc32c_append(crc32c::crc32c_append(start, key), &version);
        rows.put(txn, key, &[&version[..], &sum.to_le_bytes(), &[0]].concat()).unwrap();
    });
    let before = fs::read(directory.path().join("data.mdb")).unwrap();
    match open(directory.path()).err().unwrap() {
        EngineError::Format { path, found, supported } => {
            assert_eq!((found, supported), (99, 3));
            assert_eq!(path, directory.path().display().to_string());
        }
        other => panic!("{other}"),
    }
    assert!(before == fs::read(directory.path().join("data.mdb")).unwrap(), "a refused file is not changed");
}

#[test]
fn a_file_of_others_is_refused_and_not_changed() {
    // LMDB's, but not ours.
    let directory = tempfile::tempdir().unwrap();
    with_raw_rows(directory.path(), |txn, rows| rows.put(txn, b"some", b"thing").unwrap());
    // No database file at all, and an empty one.
    let text = tempfile::tempdir().unwrap();
    fs::write(text.path().join("data.mdb"), "x".repeat(10_000)).unwrap();
    for directory in [&directory, &text] {
        let before = fs::read(directory.path().join("data.mdb")).unwrap();
        let error = open(directory.path()).err().unwrap();
        assert!(matches!(error, EngineError::Failed(Cause::Corrupt(_))), "{error}");
        assert!(before == fs::read(directory.path().join("data.mdb")).unwrap());
    }
}

#[test]
fn a_creation_that_was_cut_short_is_begun_again() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("new")).unwrap();
    fs::write(directory.path().join("new/data.mdb"), "half a page").unwrap();
    let engine = open(directory.path()).unwrap();
    assert_eq!((head(&engine).epoch, head(&engine).seq, head(&engine).revision), (1, 1, 1));
    assert!(!directory.path().join("new").exists());
}

/// Also where somebody else has made the directory and died before its name was durable.
#[test]
fn the_names_of_the_data_directory_and_of_what_is_above_it_are_durable() {
    let scratch = tempfile::tempdir().unwrap();
    let data = scratch.path().join("a/b/data");
    for expected in [&["", "a", "a/b"][..], &["a/b"]] {
        let log = scratch.path().join("trace");
        let mut line: Vec<OsString> = ["strace", "-f", "-qq", "-y", "-e", "trace=fsync"].map(OsString::from).into();
        line.extend(["-o".into(), log.clone().into(), "--".into()]);
        line.extend(child::command_line());
        let output =
            child::command(&line, "commit 1 Large", &data).output().expect("strace, which this test needs, runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let calls = fs::read_to_string(&log).unwrap();
        for directory in expected {
            let path = scratch.path().join(directory).components().collect::<PathBuf>();
            assert!(calls.contains(&format!("<{}>)", path.display())), "{directory} is not synced: {calls}");
        }
    }
}

#[test]
fn a_missing_directory_is_made_and_a_file_in_its_place_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let nested = scratch.path().join("a/b/data");
    drop(open(&nested).unwrap());
    assert!(nested.join("data.mdb").is_file());
    let taken = scratch.path().join("file");
    fs::write(&taken, "").unwrap();
    match open(&taken).err().unwrap() {
        EngineError::Failed(Cause::Io(text)) => assert!(text.contains(&taken.display().to_string()), "{text}"),
        other => panic!("{other}"),
    }
}

#[test]
fn a_full_map_refuses_growth_and_lets_deletes_through() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options { map_size_bytes: 4 << 20, reserve_bytes: 1 << 20, ..Options::new(directory.path()) };
    let engine = Lmdb::open(options).unwrap();
    let value = vec![7; 3000];
    let mut written = 0_u32;
    let refusal = loop {
        let batch =
            next_batch(&engine, (0..20).map(|n| put(Table::Log, (written + n).to_be_bytes(), &value)).collect());
        match engine.commit(&batch) {
            Ok(()) => written += 20,
            Err(error) => break error,
        }
    };
    assert!(matches!(&refusal, CommitError::NotApplied(Cause::NoSpace(_))), "{refusal}");
    assert!(written >= 200, "most of the map can be used: {written}");
    let size = engine.size().unwrap();
    assert_eq!(size.capacity_bytes, Some((4 << 20) - (512 << 10)), "an eighth at most is kept back");
    assert_eq!(rows(&engine, Table::Log).len(), written as usize);

    // Deletions write rows too, and end at the floor.
    let rows_until_refused = |reserve| {
        let mut rows = 0_u32;
        loop {
            let batch = next_batch(&engine, vec![put(Table::Current, head(&engine).seq.to_be_bytes(), &value)]);
            match engine.commit(&Batch { reserve, ..batch }) {
                Ok(()) => rows += 1,
                Err(CommitError::NotApplied(Cause::NoSpace(_))) => return rows,
                Err(other) => panic!("{other}"),
            }
            assert!(rows < 200, "there is no end at {reserve:?}");
        }
    };
    rows_until_refused(Reserve::Untouched);
    assert!(rows_until_refused(Reserve::ToFloor) > 20);
    assert_eq!(rows_until_refused(Reserve::Untouched), 0);

    // Compaction goes on there, in small steps, all the way down.
    for first in (0..written).step_by(4) {
        let mut batch = vec![put(Table::Meta, "compacted", first.to_be_bytes())];
        batch.extend((first..first + 4).map(|n| delete(Table::Log, n.to_be_bytes())));
        assert_eq!(engine.commit(&Batch { reserve: Reserve::Whole, ..next_batch(&engine, batch) }), Ok(()));
    }
    // And the room is there again.
    for first in (0..written / 2).step_by(10) {
        apply(&engine, (first..first + 10).map(|n| put(Table::Log, n.to_be_bytes(), &value)).collect());
    }
    assert!(rows(&engine, Table::Log).len() >= written as usize / 2);
}

#[test]
fn old_snapshots_do_not_stop_writes_and_too_many_are_refused() {
    const READERS: u32 = 8;
    let directory = tempfile::tempdir().unwrap();
    let engine = Lmdb::open(Options { readers_max: READERS, ..Options::new(directory.path()) }).unwrap();
    let mut batch = next_batch(&engine, vec![put(Table::Current, "k", "v")]);
    let mut held = Vec::new();
    let refusal = loop {
        // Without reading the head from a snapshot, which there may be none of.
        engine.commit(&batch).unwrap();
        batch.expected = batch.next;
        batch.next.seq += 1;
        match engine.snapshot() {
            Ok(snapshot) => held.push(snapshot),
            Err(error) => break error,
        }
    };
    assert!(matches!(refusal, EngineError::Failed(Cause::Unavailable(_))), "{refusal}");
    assert_eq!(held.len(), READERS as usize);
    engine.commit(&batch).unwrap();
    held.pop();
    assert_eq!(head(&engine), batch.next);
}

#[test]
fn a_large_batch_of_neighbours_takes_no_more_room_than_it_can_use() {
    const KEYS: u32 = 6000;
    let directory = tempfile::tempdir().unwrap();
    // All of it goes to LMDB.
    let options = Options { reserve_bytes: 1 << 20, delta_bytes: 0, ..Options::new(directory.path()) };
    let engine = Lmdb::open(options).unwrap();
    // Most of the store is elsewhere: 16,000 rows of a page each on both sides of small ones.
    for first in (0_u32..16_000).step_by(1000) {
        let key = |n: u32| [&[u8::from(n >= 8000) * 2][..], &n.to_be_bytes()].concat();
        apply(&engine, (first..first + 1000).map(|n| put(Table::Current, key(n), [1; 3000])).collect());
    }
    let key = |n: u32| [&[1][..], &n.to_be_bytes()].concat();
    apply(&engine, (0..KEYS).map(|n| put(Table::Current, key(n), [1; 100])).collect());
    let before = engine.size().unwrap();
    assert!(before.in_use_bytes > 60 << 20, "{before:?}");
    let deletion = (0..KEYS).map(|n| put(Table::Current, key(n), [2; 20]));
    apply(&engine, deletion.chain((0..KEYS).map(|n| put(Table::Log, n.to_be_bytes(), [2; 200]))).collect());
    let after = engine.size().unwrap();
    // A quarter of the size at most, by which the file grows when it must.
    assert!(after.allocated_bytes <= before.allocated_bytes + (24 << 20), "{after:?} after {before:?}");
}

#[test]
fn space_of_replaced_rows_is_used_again() {
    for delta_bytes in [0, 4 << 20] {
        let directory = tempfile::tempdir().unwrap();
        let engine = Lmdb::open(Options { delta_bytes, ..Options::new(directory.path()) }).unwrap();
        let value = vec![1; 1000];
        let fill = || apply(&engine, (0..500_u32).map(|n| put(Table::Current, n.to_be_bytes(), &value)).collect());
        // Until both segments of the journal are as long as they get.
        for _ in 0..100 {
            fill();
        }
        let before = engine.size().unwrap();
        for _ in 0..60 {
            fill();
        }
        let after = engine.size().unwrap();
        assert!(after.allocated_bytes <= before.allocated_bytes, "{after:?} after {before:?}");
        // What is to be merged is counted as if it replaced nothing.
        assert!(after.in_use_bytes <= before.in_use_bytes + (2 << 20), "{after:?} after {before:?}");
    }
}
