//! The journal in the files of a store: what a killed process leaves, what is forgotten, and what is noticed.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use kubewharf_engine::conformance::{Rows, apply, get, put, rows};
use kubewharf_engine::lmdb::{Lmdb, Options};
use kubewharf_engine::{Cause, Engine, EngineError, Table};
use tempfile::TempDir;

use crate::child::Running;
use crate::crash::{Delta, check_numbered, numbered_batch};

const FILES: [&str; 3] = ["data.mdb", "journal-0", "journal-1"];
const BLOCK_BYTES: usize = 4096;

/// What a killed process would leave of an open store that is at rest: what it has written is in the page cache.
pub(crate) fn crashed(directory: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for name in FILES {
        fs::copy(directory.join(name), copy.path().join(name)).unwrap();
    }
    copy
}

/// A crashed store with numbered batches in its journal, and their numbers.
fn with_journal(batches: usize) -> (TempDir, BTreeSet<u64>) {
    let directory = tempfile::tempdir().unwrap();
    let engine = Lmdb::open(Delta::Large.options(directory.path())).unwrap();
    for _ in 0..batches {
        engine.commit(&numbered_batch(&engine)).unwrap();
    }
    (crashed(directory.path()), check_numbered(&engine))
}

fn open(directory: &Path) -> Result<Lmdb, EngineError> {
    Lmdb::open(Delta::Large.options(directory))
}

fn refusal(directory: &Path) -> String {
    match open(directory).err().expect("the store is refused") {
        EngineError::Failed(Cause::Corrupt(text)) => text,
        other => panic!("{other}"),
    }
}

#[test]
fn batches_in_the_journal_are_found_and_merged() {
    let (directory, numbers) = with_journal(30);
    assert_eq!(numbers.len(), 30);
    let engine = open(directory.path()).unwrap();
    assert_eq!(check_numbered(&engine), numbers);
    drop(engine);
    // They are in LMDB now, and the journal is not needed.
    for name in &FILES[1..] {
        fs::remove_file(directory.path().join(name)).unwrap();
    }
    assert_eq!(check_numbered(&open(directory.path()).unwrap()), numbers);
}

#[test]
fn a_missing_journal_is_not_taken_for_an_empty_one() {
    let (directory, numbers) = with_journal(9);
    let lacking = |names: &[&str]| {
        let copy = crashed(directory.path());
        names.iter().for_each(|name| fs::remove_file(copy.path().join(name)).unwrap());
        copy
    };
    for names in [&FILES[1..2], &FILES[2..], &FILES[1..]] {
        let copy = lacking(names);
        let text = refusal(copy.path());
        assert!(text.starts_with(&format!("{} missing", names.join(" and "))), "{text}");
        assert!(text.contains(&copy.path().display().to_string()) && text.contains("empty file"), "{text}");
        // Nothing was made that a second attempt could take for the journal.
        assert_eq!(refusal(copy.path()), text);
        // Put back, it is as it was.
        for name in names {
            fs::copy(directory.path().join(name), copy.path().join(name)).unwrap();
        }
        assert_eq!(check_numbered(&open(copy.path()).unwrap()), numbers);
    }
    // The way out, for whoever gives up what was in it.
    let copy = lacking(&FILES[1..]);
    FILES[1..].iter().for_each(|name| fs::write(copy.path().join(name), "").unwrap());
    assert_eq!(check_numbered(&open(copy.path()).unwrap()), BTreeSet::new());

    // What a backup is of has nothing in a journal; the store that goes on has.
    let engine = open(directory.path()).unwrap();
    engine.backup(&directory.path().join("backup")).unwrap();
    let restored = tempfile::tempdir().unwrap();
    fs::copy(directory.path().join("backup"), restored.path().join(FILES[0])).unwrap();
    refusal(lacking(&FILES[1..]).path());
    assert_eq!(check_numbered(&open(restored.path()).unwrap()), numbers);
    drop(engine);
    // A store that was closed has nothing in it either, whatever becomes of it later.
    assert_eq!(check_numbered(&open(lacking(&FILES[1..]).path()).unwrap()), numbers);
}

#[test]
fn damage_behind_the_rows_of_a_record_is_none() {
    let (directory, numbers) = with_journal(12);
    let journal = directory.path().join("journal-0");
    let mut content = fs::read(&journal).unwrap();
    let mark = content[..8].to_vec();
    let mut damaged = 0;
    let starts: Vec<usize> = record_starts(&content);
    assert_eq!(starts.len(), numbers.len());
    for start in starts {
        let rows_bytes = u32::from_le_bytes(content[start + 12..][..4].try_into().unwrap()) as usize;
        let end = start + 104 + rows_bytes;
        let padding = &mut content[end..end.next_multiple_of(BLOCK_BYTES)];
        assert!(padding.iter().all(|byte| *byte == 0));
        // Also where it looks like a record.
        padding.iter_mut().zip(mark.iter().cycle()).for_each(|(byte, of_mark)| *byte = *of_mark);
        damaged += padding.len();
    }
    assert!(damaged > 0);
    fs::write(&journal, content).unwrap();
    assert_eq!(check_numbered(&open(directory.path()).unwrap()), numbers);
}

/// An acknowledged record is damaged, and the one that was being written when the power failed is not whole.
#[test]
fn a_damaged_record_in_front_of_one_that_is_not_whole_is_noticed() {
    let (directory, numbers) = with_journal(12);
    let journal = directory.path().join("journal-0");
    let whole = fs::read(&journal).unwrap();
    let starts = record_starts(&whole);
    let (damaged, torn) = (starts[10], starts[11]);
    let mut content = whole.clone();
    // Its first sector is there, the others are not.
    content[torn + 512..].fill(0);
    fs::write(&journal, &content).unwrap();
    let found = check_numbered(&open(crashed(directory.path()).path()).unwrap());
    assert_eq!(found, numbers.iter().copied().take(11).collect(), "it was never acknowledged");
    content[damaged + 200] ^= 1;
    fs::write(&journal, &content).unwrap();
    let text = refusal(directory.path());
    assert!(text.contains("record 11 is damaged or missing, and record 12"), "{text}");
}

/// Where records begin in a segment.
fn record_starts(content: &[u8]) -> Vec<usize> {
    (0..content.len()).step_by(BLOCK_BYTES).filter(|at| content[*at..*at + 8] == content[..8]).collect()
}

#[test]
fn a_record_that_is_not_whole_is_forgotten_if_it_is_the_last_and_noticed_if_not() {
    let (directory, numbers) = with_journal(12);
    let journal = directory.path().join("journal-0");
    let whole = fs::read(&journal).unwrap();
    let starts = record_starts(&whole);
    assert_eq!(starts.len(), numbers.len());
    let last = *starts.last().unwrap();
    let end =
        (0..whole.len()).step_by(BLOCK_BYTES).rfind(|at| whole[*at..][..BLOCK_BYTES] != [0; BLOCK_BYTES]).unwrap();
    // A block that was not written, wherever it is. What is behind the rows of a record is not looked at.
    for block in (0..=end).step_by(BLOCK_BYTES) {
        let mut content = whole.clone();
        content[block..block + BLOCK_BYTES / 2].fill(0xaa);
        fs::write(&journal, &content).unwrap();
        let copy = crashed(directory.path());
        if block < last {
            let record = starts.partition_point(|start| *start <= block);
            let text = refusal(copy.path());
            assert!(text.contains("journal-0") && text.contains(&format!("record {record} is damaged")), "{text}");
        } else {
            let found = check_numbered(&open(copy.path()).unwrap());
            assert_eq!(found, numbers.iter().copied().take(11).collect(), "block {block}");
        }
    }
    // A file that is cut short.
    for length in [last + 100, last] {
        fs::write(&journal, &whole[..length]).unwrap();
        let engine = open(crashed(directory.path()).path()).unwrap();
        assert_eq!(check_numbered(&engine).len(), 11);
    }
}

#[test]
fn a_journal_that_does_not_fit_the_data_file_is_refused() {
    let (directory, _) = with_journal(5);
    let before = crashed(directory.path());
    drop(open(directory.path()).unwrap());
    // The data file is later than the journal: nothing to do. It is earlier by some records that the journal has no more: a gap.
    let engine = open(directory.path()).unwrap();
    for _ in 0..3 {
        engine.commit(&numbered_batch(&engine)).unwrap();
    }
    let later = crashed(directory.path());
    fs::copy(later.path().join("journal-0"), before.path().join("journal-0")).unwrap();
    let text = refusal(before.path());
    assert!(text.contains("record 1 is damaged or missing"), "{text}");
    // The journal of another store has nothing to say.
    let (other, _) = with_journal(9);
    fs::copy(other.path().join("journal-0"), later.path().join("journal-0")).unwrap();
    assert_eq!(check_numbered(&open(later.path()).unwrap()).len(), 5);
}

#[test]
fn a_store_at_rest_is_merged_and_a_view_stays_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let engine = Lmdb::open(Options::new(directory.path())).unwrap();
    apply(&engine, vec![put(Table::Current, "a", "old"), put(Table::Current, "b", "old")]);
    let view = engine.snapshot().unwrap();
    let in_use = engine.size().unwrap().in_use_bytes;
    let deadline = Instant::now() + Duration::from_secs(20);
    while crashed_without_journal(directory.path()).is_none_or(|rows| rows.len() != 2) {
        assert!(Instant::now() < deadline, "the rows are not merged");
        std::thread::sleep(Duration::from_millis(200));
    }
    apply(&engine, vec![put(Table::Current, "a", "new")]);
    let mut seen = Vec::new();
    view.get(Table::Current, b"a", &mut |value| seen = value.to_vec()).unwrap();
    assert_eq!(seen, b"old");
    assert_eq!(get(&engine, Table::Current, b"a"), Some(b"new".to_vec()));
    assert!(engine.size().unwrap().in_use_bytes > in_use, "a page for the table");
}

/// The rows that the data file has by itself; `None` if it does not open.
fn crashed_without_journal(directory: &Path) -> Option<Rows> {
    let copy = without_records(directory);
    Some(rows(&Lmdb::open(Options::new(copy.path())).ok()?, Table::Current))
}

/// The data file, with a journal that is empty.
fn without_records(directory: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    fs::copy(directory.join("data.mdb"), copy.path().join("data.mdb")).unwrap();
    FILES[1..].iter().for_each(|name| fs::write(copy.path().join(name), "").unwrap());
    copy
}

const STEP_BATCH_ROWS: u32 = 500;

/// The job: commits batches whose merges take many steps, with pauses between them.
pub(crate) fn commit_for_steps(directory: &Path) {
    let engine = Lmdb::open(Options { delta_bytes: 4 << 20, ..Options::new(directory) }).unwrap();
    for batch in 0_u32.. {
        let rows = (0..STEP_BATCH_ROWS).map(|n| put(Table::Current, (n * 1000 + batch).to_be_bytes(), [7; 20]));
        apply(&engine, rows.collect());
        println!("acknowledged {batch}");
    }
}

#[test]
fn a_store_that_dies_in_a_merge_needs_its_journal() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = Running::start("steps", directory.path());
    let mut acknowledged = 0;
    let (copy, error) = loop {
        assert!(acknowledged < 5000, "the writer is never met in a merge");
        for _ in 0..7 {
            acknowledged = writer.next("acknowledged ").unwrap().parse::<u32>().unwrap() + 1;
        }
        let signal = |name: &str| {
            assert!(Command::new("kill").args([name, &writer.id().to_string()]).status().unwrap().success());
        };
        signal("-STOP");
        std::thread::sleep(Duration::from_millis(5));
        let copy = crashed(directory.path());
        signal("-CONT");
        let bare = without_records(copy.path());
        if let Err(error) = Lmdb::open(Options::new(bare.path())) {
            break (copy, error);
        }
    };
    writer.kill("");
    assert!(error.to_string().contains("the data file holds rows of records up to"), "{error}");
    let found = rows(&Lmdb::open(Options::new(copy.path())).unwrap(), Table::Current);
    let batches = found.len() as u32 / STEP_BATCH_ROWS;
    assert_eq!(found.len() as u32 % STEP_BATCH_ROWS, 0, "whole batches");
    assert!(batches >= acknowledged);
    for batch in 0..batches {
        assert!((0..STEP_BATCH_ROWS).all(|n| found.contains_key(&(n * 1000 + batch).to_be_bytes()[..])));
    }
}
