//! A file that can't grow: what is in the journal must fit into the pages that are free, wherever they lie and whenever they become
//! usable.

use std::collections::BTreeMap;
use std::path::Path;

use kubewharf_engine::conformance::{apply, delete, next_batch, put, rows};
use kubewharf_engine::lmdb::{Lmdb, Options};
use kubewharf_engine::{Batch, Cause, CommitError, Engine, Operation, Reserve, Table};

use crate::journal::crashed;

const PAGE_BYTES: u64 = 4096;
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

/// Commits what makes room by itself, in batches of so many rows.
fn remove(engine: &Lmdb, numbers: impl Iterator<Item = u32>, batch_rows: usize) {
    let operations: Vec<Operation> = numbers.map(|number| delete(Table::Current, number.to_be_bytes())).collect();
    for operations in operations.chunks(batch_rows) {
        let batch = Batch { reserve: Reserve::Whole, ..next_batch(engine, operations.to_vec()) };
        engine.commit(&batch).unwrap();
    }
}

fn check(engine: &Lmdb, expected: &BTreeMap<u32, u8>) {
    let found = rows(engine, Table::Current);
    assert_eq!(found.len(), expected.len());
    for (number, content) in expected {
        assert_eq!(found.get(&number.to_be_bytes()[..]), Some(&vec![*content; 3000]), "row {number}");
    }
}

/// LMDB uses a page again in the second transaction behind the one that gave it back. Nothing but the merge brings those about.
#[test]
fn what_was_journalled_is_merged_into_pages_that_only_the_merge_makes_usable() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path(), 8 << 20, 3 << 20);
    let engine = Lmdb::open(options.clone()).unwrap();
    let written = fill(&engine);
    assert!(written > 1200, "most of the map can be used: {written}");
    // One batch gives nearly all of it back. It goes to LMDB directly, for its size, which is that of rows that there are not.
    let deletions = (0..written).map(|number| delete(Table::Current, number.to_be_bytes()));
    let absent = (0..500_u16).map(|number| delete(Table::Meta, [&number.to_be_bytes()[..], &[0; 1800]].concat()));
    let batch = next_batch(&engine, absent.chain(deletions).collect());
    engine.commit(&Batch { reserve: Reserve::Whole, ..batch }).unwrap();

    let mut expected = BTreeMap::new();
    for first in (0..700).step_by(100) {
        apply(&engine, (first..first + 100).map(|number| page_row(number, 2)).collect());
        expected.extend((first..first + 100).map(|number| (number, 2)));
    }
    // As a process that is killed now leaves it, and as one that ends.
    let copy = crashed(directory.path());
    check(&Lmdb::open(Options { path: copy.path().into(), ..options.clone() }).unwrap(), &expected);
    engine.backup(&directory.path().join("backup")).unwrap();
    // One row of many pages.
    let large = vec![3; 600 << 10];
    apply(&engine, vec![put(Table::Log, "large", &large)]);
    drop(engine);
    let engine = Lmdb::open(options).unwrap();
    check(&engine, &expected);
    assert_eq!(rows(&engine, Table::Log)[&b"large"[..]], large);
}

/// LMDB keeps the list of the pages that a transaction gives back on neighbouring pages. Here no two free ones are neighbours.
#[test]
fn a_fragmented_file_that_is_full_takes_what_was_journalled_and_opens_again() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path(), 24 << 20, 8 << 20);
    let engine = Lmdb::open(options.clone()).unwrap();
    let written = fill(&engine);
    // Few at a time, so that the rows that stay don't move.
    remove(&engine, (0..written).filter(|number| number % 2 == 1), 16);
    engine.backup(&directory.path().join("backup")).unwrap();
    let mut expected: BTreeMap<u32, u8> = (0..written).step_by(2).map(|number| (number, 1)).collect();

    // The same rows again: each takes a page and gives one back.
    let mut commit = |content: u8, rows: usize| {
        let numbers: Vec<u32> = expected.keys().copied().take(rows).collect();
        for numbers in numbers.chunks(100) {
            apply(&engine, numbers.iter().map(|number| page_row(*number, content)).collect());
        }
        expected.extend(numbers.into_iter().map(|number| (number, content)));
    };
    for content in 2..8 {
        commit(content, usize::MAX);
    }
    let size = engine.size().unwrap();
    assert!(size.in_use_bytes * 10 > size.capacity_bytes.unwrap() * 4, "{size:?}");
    let copy = crashed(directory.path());
    check(&Lmdb::open(Options { path: copy.path().into(), ..options.clone() }).unwrap(), &expected);
    drop(engine);
    // In a file that may not grow by a page.
    let map_size_bytes = std::fs::metadata(directory.path().join("data.mdb")).unwrap().len() / PAGE_BYTES * PAGE_BYTES;
    check(&Lmdb::open(Options { map_size_bytes, ..options }).unwrap(), &expected);
}
