//! Tests of the engines: one binary.
//!
//! Some tests need a process of their own to kill, to trace or to limit: they run this binary again (see [`child`]).

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

mod child;
mod crash;
mod durability;
mod faults;
mod files;
mod full_disk;
mod full_map;
mod held_view;
mod journal;
mod model;
mod stores;

use kubewharf_engine::conformance;

#[test]
fn lmdb_conforms() {
    let scratch = tempfile::tempdir().unwrap();
    conformance::run(&|| Box::new(stores::LmdbStore::new()), scratch.path());
}

/// With merges all the time, and with none, as each batch goes to LMDB.
#[test]
fn lmdb_conforms_with_small_deltas_and_without() {
    for delta_bytes in [96 << 10, 0] {
        let scratch = tempfile::tempdir().unwrap();
        conformance::run(&|| Box::new(stores::LmdbStore::with_delta(delta_bytes)), scratch.path());
    }
}

#[test]
fn memory_conforms() {
    let scratch = tempfile::tempdir().unwrap();
    conformance::run(&|| Box::new(stores::MemoryStore::new()), scratch.path());
}
