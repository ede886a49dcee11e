//! Backups, across engines and cut short.

use std::path::Path;

use kubewharf_engine::conformance::{apply, head, put, rows};
use kubewharf_engine::memory::Memory;
use kubewharf_engine::{Engine, Table};
use kubewharf_engine_postgres::{OpenError, Postgres};
use kubewharf_testkit::postgres::Postgres as Server;

use crate::stores::options;

fn fill(engine: &dyn Engine) {
    for table in Table::ALL {
        let row = |n: u32| put(table, [table.number(), n as u8, (n >> 8) as u8], vec![n as u8; n as usize % 700]);
        apply(engine, (0..3000).map(row).collect());
    }
    // More than one batch of a restore takes.
    apply(engine, (0..3).map(|n| put(Table::Log, format!("large {n}"), vec![n; 6 << 20])).collect());
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

#[test]
fn a_store_moves_between_engines_by_its_backup() {
    let server = Server::start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let memory = Memory::new();
    fill(&memory);
    let first = backup(&memory, folder.path(), "first");
    let loaded = Postgres::restore(options(&server.url()), &first).unwrap();
    assert_same(&memory, &loaded);
    let second = backup(&loaded, folder.path(), "second");
    assert!(std::fs::read(&first).unwrap() == std::fs::read(&second).unwrap(), "the same bytes");
    assert_same(&Memory::restore(&second).unwrap(), &memory);
    apply(&loaded, vec![put(Table::Meta, "k", "v")]);
}

#[test]
fn a_damaged_backup_leaves_a_store_that_is_refused_and_a_used_one_is_left_alone() {
    let server = Server::start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let memory = Memory::new();
    fill(&memory);
    let target = backup(&memory, folder.path(), "whole");
    let options = options(&server.url());
    let mut content = std::fs::read(&target).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    let damaged = folder.path().join("damaged");
    std::fs::write(&damaged, content).unwrap();
    let error = Postgres::restore(options.clone(), &damaged).map(|_| ()).unwrap_err();
    assert!(matches!(&error, OpenError::Failed(failed) if failed.is_corrupt()), "{error}");
    let half = OpenError::HalfRestored { schema: options.schema.clone() };
    assert_eq!(Postgres::open(options.clone()).map(|_| ()).unwrap_err(), half);
    assert_eq!(Postgres::restore(options.clone(), &target).map(|_| ()).unwrap_err(), half);

    server.psql(&format!("DROP SCHEMA \"{}\" CASCADE", options.schema)).unwrap();
    let loaded = Postgres::restore(options.clone(), &target).unwrap();
    assert_same(&memory, &loaded);
    drop(loaded);
    let error = Postgres::restore(options.clone(), &target).map(|_| ()).unwrap_err();
    assert_eq!(error, OpenError::NotEmpty { schema: options.schema.clone() });
    assert_same(&memory, &Postgres::open(options).unwrap());
}

/// An engine that was open before the restore must not mix its rows with those of the backup.
#[test]
fn who_had_the_store_open_before_is_fenced() {
    let server = Server::start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let memory = Memory::new();
    apply(&memory, vec![put(Table::Meta, "k", "v")]);
    let target = backup(&memory, folder.path(), "backup");
    let options = options(&server.url());
    let early = Postgres::open(options.clone()).unwrap();
    let late = kubewharf_engine::conformance::next_batch(&early, vec![put(Table::Meta, "late", "")]);
    let loaded = Postgres::restore(options, &target).unwrap();
    assert_eq!(early.commit(&late), Err(kubewharf_engine::CommitError::Fenced(head(&memory))));
    assert_same(&memory, &loaded);
}
