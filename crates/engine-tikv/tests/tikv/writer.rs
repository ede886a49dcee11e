//! A writer that resolves what is unknown as the product does, beside readers that know what each view must show: for as long as something
//! happens to the cluster, or as `TIKV_TEST_SECONDS` says, so that somebody can do things to it by hand.
//!
//! What a batch holds follows from its number, so whoever has a view's head knows each row of that view.

use std::ops::{Bound, ControlFlow, Range};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kubewharf_engine::conformance::{delete, head, put, rows};
use kubewharf_engine::{Batch, CommitError, Direction, Engine, EngineError, Head, Snapshot, Table};
use kubewharf_engine_tikv::{Options, Tikv};

use crate::random::Random;
use crate::stores::options;

const PATIENCE: Duration = Duration::from_secs(120);
/// Rows that batches write.
pub(crate) const ROWS: u16 = 1000;
/// Every so many commits one writes many rows.
const WIDE_EVERY: u64 = 16;
/// Commits that take longer are told of.
const SLOW: Duration = Duration::from_secs(4);
/// What is read while nothing can be answered must not spin.
const PAUSE: Duration = Duration::from_millis(5);

/// How long a test does something to the cluster.
pub(crate) fn duration(otherwise_seconds: u64) -> Duration {
    let seconds = std::env::var("TIKV_TEST_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(otherwise_seconds))
}

pub(crate) fn every_outcome_is_settled_whatever_happens_to_the_cluster() {
    under_load(&options(), |_| thread::sleep(duration(3)));
}

/// The writer and the readers, as whoever does things to the cluster sees them.
#[derive(Default)]
pub(crate) struct Load {
    is_over: AtomicBool,
    /// The number of the last batch that was confirmed.
    confirmed: AtomicU64,
    views: AtomicU32,
    failed_reads: AtomicU32,
}

impl Load {
    /// Waits until there are some commits more.
    pub(crate) fn goes_on(&self) {
        let (begun, wanted) = (Instant::now(), self.confirmed.load(Ordering::Acquire) + 5);
        while self.confirmed.load(Ordering::Acquire) < wanted {
            assert!(begun.elapsed() < PATIENCE, "nothing is committed any more");
            assert!(!self.is_over.load(Ordering::Acquire), "the writer has failed");
            thread::sleep(PAUSE);
        }
    }
}

/// Ends the load when the test's own part is over, be it by a panic.
struct Over<'l>(&'l Load);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Release);
    }
}

/// Does something to the cluster while batches are committed and read, and then looks whether all of it is there, and nothing else.
pub(crate) fn under_load(options: &Options, meanwhile: impl FnOnce(&Load)) {
    let engine = Tikv::open(options.clone()).unwrap();
    let load = Load { confirmed: AtomicU64::new(head(&engine).seq), ..Load::default() };
    let begun = Instant::now();
    let counts = thread::scope(|scope| {
        for (number, direction) in [Direction::Forward, Direction::Reverse].into_iter().enumerate() {
            let (load, options) = (&load, options.clone());
            scope.spawn(move || {
                let _over = Over(load);
                read_until_over(&Tikv::open(options).unwrap(), load, direction, Random::new(number as u64));
            });
        }
        let writer = scope.spawn(|| {
            let _over = Over(&load);
            let mut counts = Counts::default();
            let mut stored = head(&engine);
            while !load.is_over.load(Ordering::Acquire) {
                let begun = Instant::now();
                stored = write(&engine, stored, &mut counts);
                let took = begun.elapsed();
                if took > SLOW {
                    eprintln!("batch {} took {took:.1?}", stored.seq);
                }
                counts.longest = counts.longest.max(took);
                load.confirmed.store(stored.seq, Ordering::Release);
            }
            counts
        });
        let over = Over(&load);
        meanwhile(&load);
        drop(over);
        writer.join().unwrap()
    });
    let Counts { applied, unknown, not_applied, longest } = counts;
    eprintln!(
        "{applied} commits in {:.1?}, {unknown} unknown at first, {not_applied} not applied, longest {longest:.1?}; {} views, {} reads failed",
        begun.elapsed(),
        load.views.load(Ordering::Relaxed),
        load.failed_reads.load(Ordering::Relaxed),
    );
    assert!(applied > 0 && load.views.load(Ordering::Relaxed) > 0);
    // Another engine, which has seen nothing of what happened.
    let engine = Tikv::open(options.clone()).unwrap();
    let last = load.confirmed.load(Ordering::Acquire);
    assert_eq!(head(&engine).seq, last);
    let stored: Vec<_> = rows(&engine, Table::Log).into_keys().collect();
    let wanted: Vec<_> = (2..=last).map(|number| number.to_be_bytes().to_vec()).collect();
    assert!(stored == wanted, "each commit has left its row, and nothing else has: {} of {last}", stored.len());
    let mut model = Model::default();
    for direction in [Direction::Forward, Direction::Reverse] {
        read(&engine, &mut model, 0..ROWS, direction).unwrap();
    }
}

#[derive(Default)]
struct Counts {
    applied: u64,
    unknown: u32,
    not_applied: u32,
    longest: Duration,
}

/// The rows that a batch writes, and whether it deletes them.
fn changes(seq: u64) -> Vec<(u16, bool)> {
    let mut random = Random::new(seq);
    let count = if seq.is_multiple_of(WIDE_EVERY) { u64::from(ROWS) / 3 } else { 1 + random.below(6) };
    let mut changes: Vec<_> = (0..count).map(|_| (random.below(ROWS.into()) as u16, random.once_in(5))).collect();
    changes.sort_unstable();
    changes.dedup_by_key(|(row, _)| *row);
    changes
}

/// A row as that batch leaves it. Some rows fill messages.
fn value(row: u16, seq: u64) -> Vec<u8> {
    let bytes = if row.is_multiple_of(100) { 20_000 } else { 100 };
    [&seq.to_be_bytes()[..], &vec![row as u8; bytes]].concat()
}

/// Which batch has written each row last, at some head.
struct Model {
    seq: u64,
    rows: Vec<Option<u64>>,
}

impl Default for Model {
    fn default() -> Self {
        Self { seq: 1, rows: vec![None; ROWS.into()] }
    }
}

impl Model {
    fn advance(&mut self, to: u64) {
        assert!(to >= self.seq, "a view at {to} after one at {}", self.seq);
        for seq in self.seq + 1..=to {
            for (row, is_deleted) in changes(seq) {
                self.rows[usize::from(row)] = (!is_deleted).then_some(seq);
            }
        }
        self.seq = to;
    }
}

/// Commits the next batch, however often it has to be sent; panics if anybody else has written.
fn write(engine: &Tikv, expected: Head, counts: &mut Counts) -> Head {
    let next = Head {
        seq: expected.seq + 1,
        revision: expected.revision + 1,
        batch_id: expected.batch_id.wrapping_add(1),
        ..expected
    };
    let operation = |(row, is_deleted): (u16, bool)| match is_deleted {
        true => delete(Table::Current, row.to_be_bytes()),
        false => put(Table::Current, row.to_be_bytes(), value(row, next.seq)),
    };
    let mut operations: Vec<_> = changes(next.seq).into_iter().map(operation).collect();
    operations.push(put(Table::Log, next.seq.to_be_bytes(), next.seq.to_be_bytes()));
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
                thread::sleep(PAUSE);
            }
            Err(error) => panic!("{error} after {expected:?}"),
        }
        assert!(Instant::now() < deadline, "it never settles");
    }
    counts.applied += 1;
    next
}

fn read_until_over(engine: &Tikv, load: &Load, direction: Direction, mut random: Random) {
    let mut model = Model::default();
    while !load.is_over.load(Ordering::Acquire) {
        let confirmed = load.confirmed.load(Ordering::Acquire);
        let range = if random.once_in(3) {
            0..ROWS
        } else {
            let start = random.below(ROWS.into()) as u16;
            start..start + 1 + random.below(u64::from(ROWS - start)) as u16
        };
        match read(engine, &mut model, range, direction) {
            Ok(seq) => {
                assert!(seq >= confirmed, "a view at {seq} after {confirmed} was confirmed");
                load.views.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => {
                load.failed_reads.fetch_add(1, Ordering::Relaxed);
                thread::sleep(PAUSE);
            }
        }
    }
}

/// Looks whether a view shows in that range what was committed up to its head, and nothing else. Returns the head's number.
fn read(engine: &Tikv, model: &mut Model, range: Range<u16>, direction: Direction) -> Result<u64, EngineError> {
    let (start, end) = (range.start.to_be_bytes(), range.end.to_be_bytes());
    let view = engine.snapshot_with(&[(Table::Current, &start)])?;
    let seq = view.head()?.seq;
    model.advance(seq);
    let mut first = None;
    let is_there = view.get(Table::Current, &start, &mut |value| first = Some(value.to_vec()))?;
    let wanted = model.rows[usize::from(range.start)].map(|seq| value(range.start, seq));
    assert!(is_there == first.is_some() && first == wanted, "row {} at {seq}", range.start);

    let mut seen = Vec::new();
    let bounds = (Bound::Included(&start[..]), Bound::Excluded(&end[..]));
    view.scan(Table::Current, bounds, direction, &mut |key, stored| {
        let row = u16::from_be_bytes(key.try_into().unwrap());
        let written = u64::from_be_bytes(stored[..8].try_into().unwrap());
        assert!(stored == value(row, written), "row {row} is as {written} has not left it");
        seen.push((row, written));
        ControlFlow::Continue(())
    })?;
    let mut wanted: Vec<_> =
        range.clone().filter_map(|row| model.rows[usize::from(row)].map(|seq| (row, seq))).collect();
    if direction == Direction::Reverse {
        wanted.reverse();
    }
    assert!(seen == wanted, "{direction:?} over {range:?} at {seq}: {seen:?} instead of {wanted:?}");

    let last = last_of_log(&*view)?;
    assert_eq!(last.unwrap_or(1), seq, "the log ends with the head");
    Ok(seq)
}

fn last_of_log(view: &dyn Snapshot) -> Result<Option<u64>, EngineError> {
    let mut last = None;
    let all = (Bound::Unbounded, Bound::Unbounded);
    view.scan(Table::Log, all, Direction::Reverse, &mut |key, _| {
        last = Some(u64::from_be_bytes(key.try_into().unwrap()));
        ControlFlow::Break(())
    })?;
    Ok(last)
}
