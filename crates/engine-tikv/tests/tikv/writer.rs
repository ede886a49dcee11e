//! A writer that resolves what is unknown as the product does, beside readers: for as long as `TIKV_TEST_SECONDS` says, so that somebody can do
//! things to the cluster meanwhile.

use std::ops::{Bound, ControlFlow};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kubewharf_engine::conformance::{head, put, rows};
use kubewharf_engine::{Batch, CommitError, Direction, Engine, Head, Table};
use kubewharf_engine_tikv::Tikv;

use crate::stores::options;

const SECONDS: u64 = 3;
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Default)]
struct Counts {
    applied: u64,
    unknown: u32,
    not_applied: u32,
    longest: Duration,
}

pub(crate) fn every_outcome_is_settled_whatever_happens_to_the_cluster() {
    let seconds = std::env::var("TIKV_TEST_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SECONDS);
    let options = options();
    let engine = Tikv::open(options.clone()).unwrap();
    let (is_over, confirmed) = (AtomicBool::new(false), AtomicU64::new(head(&engine).seq));
    let counts = thread::scope(|scope| {
        for direction in [Direction::Forward, Direction::Reverse] {
            let (is_over, confirmed, options) = (&is_over, &confirmed, options.clone());
            scope.spawn(move || {
                let reader = Tikv::open(options).unwrap();
                while !is_over.load(Ordering::Acquire) {
                    read(&reader, confirmed.load(Ordering::Acquire), direction);
                }
            });
        }
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut counts = Counts::default();
        let mut stored = head(&engine);
        while Instant::now() < end {
            let begun = Instant::now();
            stored = write(&engine, stored, &mut counts);
            counts.longest = counts.longest.max(begun.elapsed());
            confirmed.store(stored.seq, Ordering::Release);
        }
        is_over.store(true, Ordering::Release);
        counts
    });
    let Counts { applied, unknown, not_applied, longest } = counts;
    eprintln!(
        "{applied} commits in {seconds} s, {unknown} unknown at first, {not_applied} not applied, longest {longest:?}"
    );
    let stored = rows(&engine, Table::Log);
    assert_eq!(stored.len() as u64, applied, "each commit has left its row, and nothing else has");
    assert_eq!(head(&engine).seq, confirmed.load(Ordering::Acquire));
}

/// Commits the next batch, however often it has to be sent; panics if anybody else has written.
fn write(engine: &Tikv, expected: Head, counts: &mut Counts) -> Head {
    let next = Head {
        seq: expected.seq + 1,
        revision: expected.revision + 1,
        batch_id: expected.batch_id.wrapping_add(1),
        ..expected
    };
    let number = next.seq.to_be_bytes();
    // Some take one message, some many.
    let bytes = if next.seq.is_multiple_of(4) { 20_000 } else { 100 };
    let mut operations: Vec<_> =
        (0..4_u8).map(|row| put(Table::Current, [row], [&number[..], &vec![row; bytes]].concat())).collect();
    operations.push(put(Table::Log, number, number));
    let batch = Batch { expected, next, operations, ..Batch::default() };
    let deadline = Instant::now() + PATIENCE;
    loop {
        match engine.commit(&batch) {
            Ok(()) => break,
            Err(CommitError::Fenced(found)) if found == next => break,
            Err(CommitError::Unknown(cause)) => {
                eprintln!("unknown: {cause}");
                counts.unknown += 1;
            }
            Err(CommitError::NotApplied(cause)) => {
                eprintln!("not applied: {cause}");
                counts.not_applied += 1;
                thread::sleep(Duration::from_millis(5));
            }
            Err(error) => panic!("{error} after {expected:?}"),
        }
        assert!(Instant::now() < deadline, "it never settles");
    }
    counts.applied += 1;
    next
}

/// Looks whether a view shows all of one batch, and one that is not older than what was confirmed.
fn read(engine: &Tikv, confirmed: u64, direction: Direction) {
    let all = (Bound::Unbounded, Bound::Unbounded);
    let Ok(view) = engine.snapshot() else { return };
    let seq = view.head().unwrap().seq;
    assert!(seq >= confirmed, "a view at {seq} after {confirmed} was confirmed");
    let mut seen = Vec::new();
    let visit = &mut |_: &[u8], value: &[u8]| {
        seen.push(u64::from_be_bytes(value[..8].try_into().unwrap()));
        ControlFlow::Continue(())
    };
    if view.scan(Table::Current, all, direction, visit).is_err() {
        return;
    }
    assert!(seq == 1 || (seen.len() == 4 && seen.iter().all(|number| *number == seq)), "{seen:?} at {seq}");
    let mut last = None;
    let visit = &mut |key: &[u8], _: &[u8]| {
        last = Some(u64::from_be_bytes(key.try_into().unwrap()));
        ControlFlow::Break(())
    };
    if view.scan(Table::Log, all, Direction::Reverse, visit).is_ok() {
        assert_eq!(last.unwrap_or(1), seq);
    }
}
