//! A file that can't grow: what is in the journal must fit into the pages that are free, wherever they lie and whenever they become
//! usable.

use std::collections::BTreeMap;
use std::path::Path;

use kubewharf_engine::conformance::{apply, delete, next_batch, put, rows};
use kubewharf_engine::lmdb::{Lmdb, Options};
use kubewharf_engine::{Batch, Cause, CommitError, Engine, Operation, Reserve, Table};

use crate::journal::crashed;

const RESERVE_BYTES: u64 = 256 << 10;

fn options(directory: &Path, map_bytes: u64, delta_bytes: u64) -> Options {
    Options { map_size_bytes: map_bytes, reserve_bytes: RESERVE_BYTES, delta_bytes, ..Options::new(directory) }
}

/// A row of this size takes a page of its own, wherever it lies.
fn page_row(number: u32, content: u8) -> Operation {
    put(Table::Current, number.to_be_bytes(), [content; 3000])
}

/// Adds rows until there is no room for more; returns how many there are.
fn fill(engine: &Lmdb) -> u32 {
    let mut written = 0;
    loop {
        let batch = next_batch(engine, (written..written + 8).map(|number| page_row(number, 1)).collect());
        match engine.commit(&batch) {
            Ok(()) => written += 8,
            Err(CommitError::NotApplied(Cause::NoSpace(_))) => return written,
            Err(other) => panic!("{other}"),
        }
    }
}

fn check(engine: &Lmdb, expected: &BTreeMap<u32, u8>) {
    let found = rows(engine, Table::Current);
    assert_eq!(found.len(), expected.len());
    for (number, content) in expected {
        assert_eq!(found.get(&number.to_be_bytes()[..]), Some(&vec![*content; 3000]), "row {number}");
    }
}

/// Fills the store, and gives nearly all of it back with one batch, which goes to LMDB directly: it is large, but most of its rows are
/// deletions of rows that there are not. LMDB uses a page again in the second transaction behind the one that gave it back.
fn fill_and_empty(engine: &Lmdb) {
    let written = fill(engine);
    assert!(written > 1200, "most of the map can be used: {written}");
    let deletions = (0..written).map(|number| delete(Table::Current, number.to_be_bytes()));
    let absent = (0..1300_u16).map(|number| delete(Table::Meta, [&number.to_be_bytes()[..], &[0; 1800]].concat()));
    let batch = next_batch(engine, absent.chain(deletions).collect());
    engine.commit(&Batch { reserve: Reserve::Whole, ..batch }).unwrap();
}

/// Nothing but the merge brings about the transactions behind which those pages can be used.
#[test]
fn what_was_journalled_is_merged_into_pages_that_only_the_merge_makes_usable() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path(), 8 << 20, 8 << 20);
    let engine = Lmdb::open(options.clone()).unwrap();
    fill_and_empty(&engine);
    let mut expected = BTreeMap::new();
    for first in (0..700).step_by(100) {
        apply(&engine, (first..first + 100).map(|number| page_row(number, 2)).collect());
        expected.extend((first..first + 100).map(|number| (number, 2)));
    }
    // As a process that is killed now leaves it, and as one that ends.
    let copy = crashed(directory.path());
    check(&Lmdb::open(Options { path: copy.path().into(), ..options.clone() }).unwrap(), &expected);
    engine.backup(&directory.path().join("backup")).unwrap();
    drop(engine);
    check(&Lmdb::open(options).unwrap(), &expected);
}

/// Then not even a step of one row does.
#[test]
fn a_row_of_many_pages_is_merged_into_pages_that_only_the_merge_makes_usable() {
    let directory = tempfile::tempdir().unwrap();
    let engine = Lmdb::open(options(directory.path(), 8 << 20, 8 << 20)).unwrap();
    fill_and_empty(&engine);
    let large = vec![3; 3 << 19];
    apply(&engine, vec![put(Table::Log, "large", &large)]);
    engine.backup(&directory.path().join("backup")).unwrap();
    assert_eq!(rows(&engine, Table::Log)[&b"large"[..]], large);
}

/// A file in which every third page is free and that can't grow by one: what counts as room must be usable as it lies.
#[test]
fn a_fragmented_file_that_is_full_takes_what_was_journalled_and_opens_again() {
    const ROWS: u32 = 4500;
    const UPDATED: usize = 1100;
    let directory = tempfile::tempdir().unwrap();
    let roomy = options(directory.path(), 1 << 30, 32 << 20);
    let write = |operations: Vec<Operation>| {
        let engine = Lmdb::open(roomy.clone()).unwrap();
        for operations in operations.chunks(900) {
            apply(&engine, operations.to_vec());
        }
    };
    // In few transactions, so that rows that are neighbours lie on pages that are.
    write((0..ROWS).map(|number| page_row(number, 1)).collect());
    write((0..ROWS).step_by(3).map(|number| delete(Table::Current, number.to_be_bytes())).collect());
    let mut expected: BTreeMap<u32, u8> =
        (0..ROWS).filter(|number| number % 3 != 0).map(|number| (number, 1)).collect();

    // LMDB takes no map smaller than the file, and this one has not a page more.
    let full = Options { map_size_bytes: 0, ..roomy.clone() };
    let engine = Lmdb::open(full.clone()).unwrap();
    let updated: Vec<u32> = expected.keys().copied().take(UPDATED).collect();
    for numbers in updated.chunks(100) {
        apply(&engine, numbers.iter().map(|number| page_row(*number, 2)).collect());
    }
    expected.extend(updated.into_iter().map(|number| (number, 2)));
    let copy = crashed(directory.path());
    check(&Lmdb::open(Options { path: copy.path().into(), ..full.clone() }).unwrap(), &expected);
    engine.backup(&directory.path().join("backup")).unwrap();
    drop(engine);
    check(&Lmdb::open(full).unwrap(), &expected);
}
