//! Merging: the rows of the frozen delta go into LMDB, in the order of their keys, in steps.
//!
//! Why steps, each an LMDB transaction of its own: LMDB keeps the pages of a transaction in memory until its end, and the pages that it gives
//! back can be used again only by later ones. A thread of its own does them, with pauses, so that the disk and the processor are free for
//! commits most of the time.
//!
//! Invariant: LMDB's position in the journal moves with the last step. Until then it says up to which record there may be rows of the steps
//! before it; with those records laid over them, the rows are whole. A merge that fails or is cut short begins anew.

use std::ops::Bound;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::commit::{Writer, before_commit, end};
use super::delta::{Delta, Frozen};
use super::{Core, open};
use crate::{Cause, CommitError, Direction, Table};

/// Rows of a step, and bytes of their keys and values after which it ends.
pub(super) const STEP_ROWS: u64 = 1024;
const STEP_BYTES: u64 = 4 << 20;

/// Steps without rows in a row: after so many, pages that were given back before can be used.
const EMPTY_STEPS_MAX: u32 = 2;

/// A delta is merged when its oldest batch is this old, so that a store at rest is all in LMDB.
const AGE_MAX: Duration = Duration::from_secs(5);

/// A delta of so many rows is merged as soon as nothing has been committed for so long: every scan of the table has to pass by them, those
/// that only say that a row is gone too.
const IDLE_ROWS_MIN: u64 = 1000;
const IDLE_MIN: Duration = Duration::from_millis(200);

/// How often the thread looks at a delta that is not merged yet.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Pause after a merge that failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The longest pause between two steps.
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// The longest that a commit waits for a merge that is behind, for each MiB that it brings, unless both deltas are full: several times what
/// merging that takes. So commits are slowed down to the merge's pace by and by, instead of being held up at its end.
const COMMIT_WAIT_MAX_PER_MIB: Duration = Duration::from_millis(100);

/// What only the thread that writes to LMDB uses. Locked behind the writer where both are.
pub(super) struct Merger {
    /// The first record that LMDB has not passed.
    pub(super) position: u64,
    /// The stored form of a row, reused from row to row.
    scratch: Vec<u8>,
}

impl Merger {
    pub(super) fn new(position: u64) -> Self {
        Self { position, scratch: Vec::new() }
    }
}

/// What the thread waits for.
#[derive(Default)]
pub(super) struct Signals {
    state: Mutex<SignalState>,
    changed: Condvar,
}

#[derive(Default)]
struct SignalState {
    is_stopping: bool,
    /// Threads that wait for a merge to end, or to get further.
    waiting: usize,
    /// How much of the frozen delta's rows has been merged, from 0 to 1; 1 if there is no such delta.
    progress: f64,
}

impl Signals {
    fn change(&self, change: impl FnOnce(&mut SignalState)) {
        change(&mut self.state.lock());
        self.changed.notify_all();
    }
}

impl Core {
    /// The right to write to LMDB, as soon as a merge under way has ended, which from now on makes no pauses.
    pub(super) fn merger_now(&self) -> MutexGuard<'_, Merger> {
        self.signals.change(|state| state.waiting += 1);
        let merger = self.merger.lock();
        self.signals.state.lock().waiting -= 1;
        merger
    }

    /// Waits, but not for long, until the merge has got as far as the active delta, with so much in it, lets it be: the second half of one
    /// is filled no faster than the other is merged.
    pub(super) fn keep_pace(&self, active_bytes: u64, batch_bytes: u64) {
        let needed = 2.0 * active_bytes as f64 / self.delta_bytes as f64 - 1.0;
        let wait_max = COMMIT_WAIT_MAX_PER_MIB.mul_f64(batch_bytes as f64 / f64::from(1 << 20));
        let mut state = self.signals.state.lock();
        if state.progress >= needed {
            return;
        }
        let deadline = Instant::now() + wait_max;
        state.waiting += 1;
        self.signals.changed.notify_all();
        while state.progress < needed && !self.signals.changed.wait_until(&mut state, deadline).timed_out() {}
        state.waiting -= 1;
    }

    /// Waits between two steps, the longer the longer they take, unless somebody waits for the merge or the next delta fills up.
    fn pause(&self, step: Duration) {
        if self.readers.layers().active.memory_bytes() > self.delta_bytes / 2 {
            return;
        }
        let mut state = self.signals.state.lock();
        if state.waiting == 0 && !state.is_stopping {
            self.signals.changed.wait_for(&mut state, step.min(PAUSE_MAX));
        }
    }
}

/// Makes the active delta the frozen one; there must be none.
pub(super) fn freeze(core: &Core, writer: &mut Writer) {
    core.readers.freeze(writer.journal.next_record(), Delta::new(core.delta_bytes));
    writer.journal.turn();
    writer.active_times = None;
    // Whoever is about to wait has the lock, and either sees the delta or is woken.
    core.signals.change(|state| state.progress = 0.0);
}

/// Has the thread look at the active delta, which has got its first batch.
pub(super) fn watch_active(core: &Core) {
    core.signals.change(|_| {});
}

/// Merges the frozen delta, if there is one.
///
/// A step that finds too few free pages, or none that are neighbours, is tried again with fewer rows: it needs fewer pages, which are
/// what it gives back in turn, and LMDB keeps the list of those on a page of its own as long as they are few. What transactions give back
/// can be used from the second one behind them on, so if not even one row fits, steps without rows bring that about.
pub(super) fn run(core: &Core, merger: &mut Merger, is_hurried: bool) -> Result<(), CommitError> {
    core.check_poison().map_err(CommitError::Fatal)?;
    let Some(frozen) = core.readers.layers().frozen.clone() else { return Ok(()) };
    let all = (Bound::Unbounded, Bound::Unbounded);
    let rows_in_all: u64 = Table::ALL.into_iter().map(|table| frozen.delta.rows(table)).sum();
    let mut rows_merged = 0;
    let mut changes = Table::ALL.into_iter().flat_map(|table| {
        frozen.delta.changes(table, all, Direction::Forward).map(move |(key, value)| (table, key, value))
    });
    let mut rows_max = STEP_ROWS;
    let mut empty_steps = 0;
    loop {
        let begun = Instant::now();
        let mut rest = changes.clone();
        match step(core, merger, &frozen, &mut rest, rows_max) {
            Ok(Merged { rows, is_last }) => {
                changes = rest;
                rows_merged += rows;
                let progress = if is_last { 1.0 } else { rows_merged as f64 / rows_in_all as f64 };
                core.signals.change(|state| state.progress = progress);
                if is_last {
                    return Ok(());
                }
                empty_steps = if rows_max == 0 { empty_steps + 1 } else { 0 };
                rows_max = (rows_max * 2).clamp(1, STEP_ROWS);
            }
            Err(CommitError::NotApplied(Cause::NoSpace(_))) if rows_max > 1 => rows_max = (rows_max / 4).max(1),
            Err(CommitError::NotApplied(Cause::NoSpace(_))) if rows_max == 1 && empty_steps < EMPTY_STEPS_MAX => {
                rows_max = 0;
            }
            Err(error) => return Err(error),
        }
        if !is_hurried {
            core.pause(begun.elapsed());
        }
    }
}

/// What a step has done.
struct Merged {
    rows: u64,
    /// There is nothing more to merge.
    is_last: bool,
}

/// Merges at most so many of the changes.
fn step<'d>(
    core: &Core,
    merger: &mut Merger,
    frozen: &Frozen,
    changes: &mut impl Iterator<Item = (Table, &'d [u8], Option<&'d [u8]>)>,
    rows_max: u64,
) -> Result<Merged, CommitError> {
    let mut txn = core.env.write_txn().map_err(|e| before_commit(core, &e, "begin a merge"))?;
    let failed = |e| before_commit(core, &e, "merge");
    let bytes_max = STEP_BYTES / STEP_ROWS * rows_max;
    let (mut rows, mut bytes) = (0, 0);
    let is_last = loop {
        if rows >= rows_max || bytes >= bytes_max {
            break false;
        }
        let Some((table, key, value)) = changes.next() else { break true };
        let table = core.databases.rows(table);
        match value {
            Some(value) => table.put(&mut txn, key, value, &mut merger.scratch),
            None => table.delete(&mut txn, key),
        }
        .map_err(failed)?;
        rows += 1;
        bytes += (key.len() + value.map_or(0, <[u8]>::len)) as u64;
    };
    let position = if is_last { frozen.next_record } else { merger.position };
    open::put_position(core, &mut txn, position, frozen.next_record - 1).map_err(failed)?;
    if is_last {
        open::put_engine_row(core.databases.engine, &mut txn, open::HEAD_KEY, &frozen.head.encode()).map_err(failed)?;
    }
    end(core, txn, |layers| {
        if is_last {
            layers.frozen = None;
        }
    })?;
    merger.position = position;
    Ok(Merged { rows, is_last })
}

/// Merges all that has been committed until now, and leaves the right to write to LMDB with the caller.
pub(super) fn flush(core: &Core) -> Result<MutexGuard<'_, Merger>, CommitError> {
    let target = core.writer.lock().journal.next_record();
    loop {
        let mut merger = core.merger_now();
        run(core, &mut merger, true)?;
        if merger.position >= target {
            return Ok(merger);
        }
        drop(merger);
        freeze_if(core, |_, _| true);
    }
}

/// Freezes the active delta if there is no other, it is not empty, and `is_due` says so.
fn freeze_if(core: &Core, is_due: impl FnOnce(&mut Writer, &Delta) -> bool) {
    let mut writer = core.writer.lock();
    let layers = core.readers.layers();
    if layers.frozen.is_none() && !layers.active.is_empty() && is_due(&mut writer, &layers.active) {
        drop(layers);
        freeze(core, &mut writer);
    }
}

/// The thread that merges; dropping it merges everything, or leaves it to the journal if that fails.
pub(super) struct MergeThread {
    core: Arc<Core>,
    thread: Option<JoinHandle<()>>,
}

impl MergeThread {
    pub(super) fn start(core: Arc<Core>) -> Result<Self, Cause> {
        let of_thread = core.clone();
        let thread = thread::Builder::new().name("engine-merge".into()).spawn(move || work(&of_thread));
        let thread = thread.map_err(|e| Cause::Unavailable(format!("can't start the thread that merges: {e}")))?;
        Ok(Self { core, thread: Some(thread) })
    }
}

impl Drop for MergeThread {
    fn drop(&mut self) {
        self.core.signals.change(|state| state.is_stopping = true);
        if let Some(thread) = self.thread.take() {
            // If it has panicked, the journal has what is not merged.
            let _ = thread.join();
        }
    }
}

fn work(core: &Core) {
    loop {
        {
            let mut state = core.signals.state.lock();
            // The layers are let go before the wait: they would keep a delta in memory.
            let (has_frozen, is_empty) = {
                let layers = core.readers.layers();
                (layers.frozen.is_some(), layers.active.is_empty())
            };
            if !state.is_stopping && !has_frozen {
                if is_empty {
                    core.signals.changed.wait(&mut state);
                } else {
                    core.signals.changed.wait_for(&mut state, LOOK_INTERVAL);
                }
            }
            if state.is_stopping {
                break;
            }
        }
        freeze_if(core, |writer, active| {
            let rows: u64 = Table::ALL.into_iter().map(|table| active.rows(table)).sum();
            // Without times it is what the journal had when the store was opened.
            let is_due = writer.active_times.as_ref().is_none_or(|times| {
                times.first.elapsed() >= AGE_MAX || rows >= IDLE_ROWS_MIN && times.last.elapsed() >= IDLE_MIN
            });
            if is_due {
                writer.journal.release_memory();
            }
            is_due
        });
        let outcome = run(core, &mut core.merger.lock(), false);
        if outcome.is_err() {
            // The journal has it. Commits meet the same cause and tell it; room may be made meanwhile.
            let mut state = core.signals.state.lock();
            if !state.is_stopping {
                core.signals.changed.wait_for(&mut state, RETRY_INTERVAL);
            }
        }
    }
    // A failure leaves the rest to the journal.
    if let Ok(_merger) = flush(core) {
        let _ = open::put_alone(core, true);
    }
}
