//! Batches whose rows tell whether any is missing, and a process that is killed while it commits them.

use std::collections::BTreeSet;
use std::path::Path;
use std::thread;
use std::time::Duration;

use kubewharf_engine::conformance::{Rows, apply, head, next_batch, put, rows};
use kubewharf_engine::lmdb::{Lmdb, Options};
use kubewharf_engine::{Batch, CommitError, Engine, EngineError, Table};

use crate::child::Running;

/// `Current` has this many rows, written in turn.
const SLOTS: u64 = 40;

/// The batch that follows the head: a row in `Log` under its seq, and one of the slots replaced, of ever different sizes.
pub(crate) fn numbered_batch(engine: &dyn Engine) -> Batch {
    let mut batch = next_batch(engine, vec![]);
    let seq = batch.next.seq;
    batch.operations = vec![put(Table::Current, slot(seq), value(seq)), put(Table::Log, seq.to_be_bytes(), value(seq))];
    batch
}

fn slot(seq: u64) -> [u8; 2] {
    [b's', (seq % SLOTS) as u8]
}

fn value(seq: u64) -> Vec<u8> {
    let mut value = seq.to_be_bytes().to_vec();
    value.resize(8 + (seq * 977 % 9000) as usize, seq as u8);
    value
}

/// Checks every row of a store that holds numbered batches only, and returns their numbers.
pub(crate) fn check_numbered(engine: &dyn Engine) -> BTreeSet<u64> {
    let log = rows(engine, Table::Log);
    let mut numbers = BTreeSet::new();
    let mut slots = Rows::new();
    for (key, found) in log {
        let seq = u64::from_be_bytes(key.try_into().unwrap());
        assert_eq!(found, value(seq), "log row {seq}");
        slots.insert(slot(seq).to_vec(), found);
        numbers.insert(seq);
    }
    assert_eq!(rows(engine, Table::Current), slots, "each slot has the value of its last log row");
    assert!(numbers.last().is_none_or(|last| *last <= head(engine).seq));
    numbers
}

/// A small file, of which many copies are made.
pub(crate) fn options(directory: &Path) -> Options {
    Options { reserve_bytes: 64 << 10, ..Options::new(directory) }
}

/// The job: commits numbered batches and writes a line after each outcome.
pub(crate) fn commit(directory: &Path, batches: u64) {
    let engine = Lmdb::open(options(directory)).unwrap();
    println!("opened");
    for _ in 0..batches {
        let batch = numbered_batch(&engine);
        match engine.commit(&batch) {
            Ok(()) => println!("acknowledged {}", batch.next.seq),
            Err(CommitError::NotApplied(cause)) => println!("refused {cause}"),
            Err(error) => {
                println!("failed {error}");
                let read = engine.snapshot().err().unwrap();
                let write = engine.commit(&batch).unwrap_err();
                println!("then {read} / {write}");
                return;
            }
        }
    }
}

#[test]
fn kill_9_loses_nothing_acknowledged() {
    const ROUNDS: u64 = 15;
    let directory = tempfile::tempdir().unwrap();
    let mut acknowledged = BTreeSet::new();
    let mut epochs = 0;
    for round in 0..ROUNDS {
        let mut writer = Running::start("commit", directory.path());
        let seq = |line: String| line.parse::<u64>().unwrap();
        for _ in 0..=round % 5 {
            acknowledged.insert(seq(writer.next("acknowledged ").unwrap()));
        }
        // Lands anywhere in a commit.
        thread::sleep(Duration::from_micros(round * 331 % 3000));
        acknowledged.extend(writer.kill("acknowledged ").into_iter().map(seq));
        epochs += 1;

        if round % 3 == 2 {
            let engine = Lmdb::open(Options::new(directory.path())).unwrap();
            epochs += 1;
            let found = check_numbered(&engine);
            assert!(found.is_superset(&acknowledged), "round {round}");
            // A kill may leave one batch applied that nobody was told of.
            assert!(found.len() as u64 <= acknowledged.len() as u64 + round + 1, "round {round}");
            assert_eq!(head(&engine).epoch, epochs);
        }
    }
    assert!(acknowledged.len() as u64 >= ROUNDS);
}

#[test]
fn a_second_process_is_refused_and_told_the_holder() {
    let directory = tempfile::tempdir().unwrap();
    let mut holder = Running::start("commit", directory.path());
    holder.next("acknowledged ").unwrap();
    match Lmdb::open(Options::new(directory.path())) {
        Err(EngineError::Locked { path, holder: named }) => {
            assert_eq!(path, directory.path().display().to_string());
            assert_eq!(named, holder.id().to_string());
        }
        other => panic!("{:?}", other.err()),
    }
    // The same process is refused a second time as well.
    holder.kill("");
    let engine = Lmdb::open(Options::new(directory.path())).unwrap();
    let again = Lmdb::open(Options::new(directory.path())).err().unwrap();
    assert!(
        matches!(&again, EngineError::Locked { holder, .. } if *holder == std::process::id().to_string()),
        "{again}"
    );
    apply(&engine, vec![]);
}
