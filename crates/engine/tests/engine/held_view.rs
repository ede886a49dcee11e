//! What a snapshot that is never given back costs in memory, while the store goes on.

use std::fs;
use std::path::Path;

use kubewharf_engine::conformance::{apply, get, put};
use kubewharf_engine::lmdb::{Lmdb, Options};
use kubewharf_engine::{Engine, Table};

use crate::child::Running;

const DELTA_BYTES: u64 = 4 << 20;
const BATCH_ROWS: u32 = 100;
const VALUE_BYTES: usize = 2000;
const BATCHES: u32 = 1200;

/// Memory that the engine keeps of records to use it again, whatever the size of a delta.
const ARENA_BYTES: u64 = 80 << 20;

/// The job: commits batches over one held view, and tells the most memory that this process has had beyond that of the beginning.
pub(crate) fn hold(directory: &Path) {
    let engine = Lmdb::open(Options { delta_bytes: DELTA_BYTES, ..Options::new(directory) }).unwrap();
    let commit = |batch: u32| {
        let rows = (0..BATCH_ROWS)
            .map(|row| put(Table::Current, (batch % 10 * BATCH_ROWS + row).to_be_bytes(), [batch as u8; VALUE_BYTES]));
        apply(&engine, rows.collect());
    };
    println!("opened");
    // Some of what the view sees is in the delta.
    commit(0);
    let view = engine.snapshot().unwrap();
    let before = anonymous_bytes();
    let mut most = 0;
    for batch in 1..=BATCHES {
        commit(batch);
        most = most.max(anonymous_bytes().saturating_sub(before));
    }
    let mut seen = Vec::new();
    view.get(Table::Current, &0_u32.to_be_bytes(), &mut |value| seen = value.to_vec()).unwrap();
    assert_eq!(seen, [0; VALUE_BYTES]);
    assert_eq!(get(&engine, Table::Current, &0_u32.to_be_bytes()), Some(vec![BATCHES as u8; VALUE_BYTES]));
    println!("most {most}");
}

/// Memory of this process that is no file's.
fn anonymous_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn a_held_view_costs_the_deltas_that_it_sees_and_no_later_ones() {
    let directory = tempfile::tempdir().unwrap();
    let most: u64 = Running::start("hold", directory.path()).next("most ").unwrap().parse().unwrap();
    let written = u64::from(BATCHES * BATCH_ROWS) * VALUE_BYTES as u64;
    // Its own deltas, the current ones, a step of the merge in LMDB's memory twice, and what the allocator keeps.
    let bound = ARENA_BYTES + 4 * DELTA_BYTES + (16 << 20) + (16 << 20);
    assert!(written > bound + (64 << 20), "keeping all of it would be noticed");
    assert!(most <= bound, "{most} bytes, at most {bound}");
}
