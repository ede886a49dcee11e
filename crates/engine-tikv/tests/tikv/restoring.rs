//! Backups, across engines and cut short.

use std::path::Path;

use kubewharf_engine::conformance::{apply, head, next_batch, put, rows};
use kubewharf_engine::memory::Memory;
use kubewharf_engine::{CommitError, Engine, Table};
use kubewharf_engine_tikv::{OpenError, Tikv};

use crate::stores::options;

fn fill(engine: &dyn Engine) {
    for table in Table::ALL {
        let row = |n: u32| put(table, [table.number(), n as u8, (n >> 8) as u8], vec![n as u8; n as usize % 700]);
        apply(engine, (0..2500).map(row).collect());
    }
    // More than one batch of a restore takes.
    apply(engine, (0..3).map(|n| put(Table::Log, format!("large {n}"), vec![n; 5 << 20])).collect());
}

fn assert_same(one: &dyn Engine, other: &dyn Engine) {
    assert_eq!(head(one), head(other));
    for table in Table::ALL {
        assert!(rows(one, table) == rows(other, table), "{table:?}");
    }
}

fn backup(engine: &dyn Engine, folder: &Path, name: &str) -> std::path::PathBuf {
    let target = folder.join(name);
    engine.backup(&target).unwrap();
    target
}

pub(crate) fn a_store_moves_between_engines_by_its_backup() {
    let folder = tempfile::tempdir().unwrap();
    let memory = Memory::new();
    fill(&memory);
    let first = backup(&memory, folder.path(), "first");
    let options = options();
    // Whoever had the place open before must not mix its rows with those of the backup.
    let early = Tikv::open(options.clone()).unwrap();
    let late = next_batch(&early, vec![put(Table::Meta, "late", "")]);
    let loaded = Tikv::restore(options, &first).unwrap();
    assert_eq!(early.commit(&late), Err(CommitError::Fenced(head(&memory))));
    assert_same(&memory, &loaded);
    let second = backup(&loaded, folder.path(), "second");
    assert!(std::fs::read(&first).unwrap() == std::fs::read(&second).unwrap(), "the same bytes");
    assert_same(&Memory::restore(&second).unwrap(), &memory);
    apply(&loaded, vec![put(Table::Meta, "k", "v")]);
}

pub(crate) fn a_damaged_backup_leaves_a_store_that_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let memory = Memory::new();
    apply(&memory, (0..3000_u32).map(|n| put(Table::Log, n.to_be_bytes(), [7; 300])).collect());
    let target = backup(&memory, folder.path(), "whole");
    let mut content = std::fs::read(&target).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    let damaged = folder.path().join("damaged");
    std::fs::write(&damaged, content).unwrap();
    let bad = options();
    let error = Tikv::restore(bad.clone(), &damaged).map(|_| ()).unwrap_err();
    assert!(matches!(&error, OpenError::Failed(failed) if failed.is_corrupt()), "{error}");
    let half = OpenError::HalfRestored { schema: bad.schema.clone() };
    assert_eq!(Tikv::open(bad.clone()).map(|_| ()).unwrap_err(), half);
    assert_eq!(Tikv::restore(bad, &target).map(|_| ()).unwrap_err(), half);

    let good = options();
    let loaded = Tikv::restore(good.clone(), &target).unwrap();
    assert_same(&memory, &loaded);
    drop(loaded);
    let error = Tikv::restore(good.clone(), &target).map(|_| ()).unwrap_err();
    assert_eq!(error, OpenError::NotEmpty { schema: good.schema.clone() });
    assert_same(&memory, &Tikv::open(good).unwrap());
}
