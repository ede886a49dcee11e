//! Batches whose rows tell whether any is missing, and a process that is killed while it commits them.

use std::collections::BTreeSet;
use std::path::Path;
use std::thread;
use std::time::Duration;

use kubewharf_engine::conformance::{Rows, apply, head, next_batch, put, rows};
use kubewharf_engine::lmdb::{Lmdb, Options};
use kubewharf_engine::{Batch, CommitError, Engine, EngineError, Table};

use crate::child::Running;

/// Rows that a wide batch has more than others.
const WIDE_ROWS: u16 = 700;

/// `Current` has this many rows, written in turn.
const SLOTS: u64 = 40;

/// The batch that follows the head: a row in `Log` under its seq, and one of the slots replaced, of ever different sizes.
pub(crate) fn numbered_batch(engine: &dyn Engine) -> Batch {
    let mut batch = next_batch(engine, vec![]);
    let seq = batch.next.seq;
    batch.operations = vec![put(Table::Current, slot(seq), value(seq)), put(Table::Log, seq.to_be_bytes(), value(seq))];
    batch
}

/// As [`numbered_batch`], with so many more rows that the merge of two takes several steps.
fn wide_batch(engine: &dyn Engine) -> Batch {
    let mut batch = numbered_batch(engine);
    let seq = batch.next.seq;
    batch.operations.extend((0..WIDE_ROWS).map(|row| put(Table::LeaseKey, wide_key(seq, row), [])));
    batch
}

fn wide_key(seq: u64, row: u16) -> Vec<u8> {
    [&row.to_be_bytes()[..], &seq.to_be_bytes()].concat()
}

fn slot(seq: u64) -> [u8; 2] {
    [b's', (seq % SLOTS) as u8]
}

fn value(seq: u64) -> Vec<u8> {
    let mut value = seq.to_be_bytes().to_vec();
    value.resize(8 + (seq * 977 % 9000) as usize, seq as u8);
    value
}

/// Checks every row of a store that holds numbered batches only, all of them wide or none, and returns their numbers.
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
    let wide = rows(engine, Table::LeaseKey);
    if !wide.is_empty() {
        assert_eq!(wide.len(), numbers.len() * usize::from(WIDE_ROWS));
        assert!(numbers.iter().all(|seq| (0..WIDE_ROWS).all(|row| wide.contains_key(&wide_key(*seq, row)))));
    }
    numbers
}

/// How much of the batches gathers in memory before it is merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delta {
    /// Nothing: each batch goes to LMDB.
    None,
    /// A few batches, and the largest go to LMDB.
    Small,
    /// All that a test writes.
    Large,
    /// The same, of wide batches.
    Wide,
}

impl Delta {
    pub(crate) const ALL: [Self; 3] = [Self::None, Self::Small, Self::Large];

    /// A small file, of which many copies are made.
    pub(crate) fn options(self, directory: &Path) -> Options {
        let delta_bytes = match self {
            Self::None => 0,
            Self::Small => 64 << 10,
            Self::Large | Self::Wide => 32 << 20,
        };
        Options { reserve_bytes: 64 << 10, delta_bytes, ..Options::new(directory) }
    }

    /// The batch that follows the head.
    pub(crate) fn batch(self, engine: &dyn Engine) -> Batch {
        if self == Self::Wide { wide_batch(engine) } else { numbered_batch(engine) }
    }

    pub(crate) fn job(self, batches: u64) -> String {
        format!("commit {batches} {self:?}")
    }
}

/// The job: commits numbered batches and writes a line after each outcome. The arguments say how many, and the delta.
pub(crate) fn commit(directory: &Path, arguments: &str) {
    let mut arguments = arguments.split(' ');
    let batches = arguments.next().and_then(|batches| batches.parse().ok()).unwrap_or(u64::MAX);
    let delta = arguments.next().map_or(Delta::Large, |name| {
        Delta::ALL.into_iter().chain([Delta::Wide]).find(|delta| format!("{delta:?}") == name).expect("the name of one")
    });
    let engine = Lmdb::open(delta.options(directory)).unwrap();
    println!("opened");
    for _ in 0..batches {
        let batch = delta.batch(&engine);
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
    const ROUNDS: u64 = 24;
    let directory = tempfile::tempdir().unwrap();
    let mut acknowledged = BTreeSet::new();
    let mut epochs = 0;
    for round in 0..ROUNDS {
        let delta = Delta::ALL[(round / 2 % 3) as usize];
        let mut writer = Running::start(&delta.job(u64::MAX), directory.path());
        let seq = |line: String| line.parse::<u64>().unwrap();
        // Enough for some merges.
        for _ in 0..=round * 7 % 25 {
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
    let mut holder = Running::start(&Delta::Large.job(u64::MAX), directory.path());
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
