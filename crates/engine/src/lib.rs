//! Ordered, durable key-value engines behind one small contract.
//!
//! Job: keep rows in ordered tables and change them only through [`Engine::commit`], an atomic, durable batch that is
//! fenced by the whole [`Head`]. Knows nothing of revisions' meaning, keys' meaning or wire formats.
//!
//! Invariant: after `commit` returns `Ok`, the batch survives the loss of power, and every later snapshot shows all of it; no
//! snapshot ever shows a part of a batch.
//!
//! The trait blocks: reads of the default engine are memory accesses, and everything that may take long runs on threads that may
//! block. An engine whose rows are behind a network says so with [`Engine::reads_may_wait`].

mod batch;
pub mod conformance;
pub mod dump;
mod error;
mod file;
mod head;
pub mod lmdb;
pub mod memory;
mod table;

use std::ops::{Bound, ControlFlow};
use std::path::Path;

use bytes::Bytes;

pub use batch::{Batch, Operation, Reserve};
pub use error::{Cause, CommitError, EngineError};
pub use file::make_directory;
pub use head::Head;
pub use table::Table;

/// Whether a scan goes up or down in key order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Ascending byte order.
    Forward,
    /// Descending byte order.
    Reverse,
}

/// Receives the rows of a scan: key, then value; both are valid for the call only.
pub type Visitor<'v> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'v;

/// As [`Visitor`], with `None` for the value of a damaged row. Its key is as stored, and may be what is damaged.
pub type DamageVisitor<'v> = dyn FnMut(&[u8], Option<&[u8]>) -> ControlFlow<()> + 'v;

/// What of a scan is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Rows that are probably visited before `visit` breaks: an engine behind a network fetches about as many at once. Not a bound.
    pub rows: usize,
    /// Bytes of each value that are looked at: values are shown without what is behind these.
    pub value_bytes: usize,
}

/// A point-in-time view that includes every batch whose `commit` returned before the view was taken, and none that a failure may still
/// undo: who looks tells others what is there.
///
/// Hold it for one page of work only: an old view keeps the engine from reusing space.
pub trait Snapshot: Send {
    /// Calls `visit` with the value of `key`, if there is such a row; tells whether there was. `key` may have any length.
    fn get(&self, table: Table, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Result<bool, EngineError>;

    /// Tells the view which rows are about to be asked for one by one: an engine behind a network fetches them in one round trip, and
    /// [`Snapshot::get`] then answers from memory. Fetched rows stay with the view; keys may have any length and need not exist.
    fn prefetch(&self, table: Table, keys: &[&[u8]]) -> Result<(), EngineError> {
        let _ = (table, keys);
        Ok(())
    }

    /// Visits the rows of `table` between the bounds in the given direction until `visit` breaks. Bounds may have any length; a
    /// range whose end is not behind its start is empty.
    fn scan(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<(), EngineError>;

    /// As [`Snapshot::scan`], for who knows what of the rows is wanted.
    fn scan_wanted(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        direction: Direction,
        wanted: Wanted,
        visit: &mut Visitor<'_>,
    ) -> Result<(), EngineError> {
        self.scan(table, range, direction, &mut |key, value| visit(key, &value[..value.len().min(wanted.value_bytes)]))
    }

    /// As [`Snapshot::scan`] forward, but goes on behind a row that fails its checksum. For what must not be stopped by damage.
    fn scan_past_damage(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        visit: &mut DamageVisitor<'_>,
    ) -> Result<(), EngineError> {
        self.scan(table, range, Direction::Forward, &mut |key, value| visit(key, Some(value)))
    }

    /// The head row as of this view.
    fn head(&self) -> Result<Head, EngineError>;
}

/// What an engine can take and holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest key of a row, in bytes; the shortest has one byte.
    pub key_bytes_max: usize,
    /// Longest value of a row, in bytes.
    pub value_bytes_max: usize,
    /// Largest batch: the sum of its keys and values, in bytes.
    pub batch_bytes_max: usize,
    /// Most operations in a batch.
    pub batch_operations_max: usize,
}

/// How much room an engine uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Bytes taken from the disk (or memory) in all.
    pub allocated_bytes: u64,
    /// Bytes of those in use by rows and their index.
    pub in_use_bytes: u64,
    /// Bytes at which writes are refused for want of room; `None` where only the disk sets the limit.
    pub capacity_bytes: Option<u64>,
}

/// An ordered store with one way to change: [`Engine::commit`].
pub trait Engine: Send + Sync + 'static {
    /// A short name for logs and metrics: `lmdb`, `memory`, `postgres`, `tikv`.
    fn name(&self) -> &'static str;

    /// A linearizable point-in-time view.
    fn snapshot(&self) -> Result<Box<dyn Snapshot + '_>, EngineError>;

    /// A view, as [`Engine::snapshot`] gives it, of which these rows are about to be asked for: an engine behind a network takes the view and
    /// fetches them in one round trip.
    fn snapshot_with(&self, wanted: &[(Table, &[u8])]) -> Result<Box<dyn Snapshot + '_>, EngineError> {
        let _ = wanted;
        self.snapshot()
    }

    /// The head and these rows as of one view, as [`Engine::snapshot`] gives it, for who needs no others: an engine behind a network asks for
    /// all of it with one statement.
    fn read(&self, wanted: &[(Table, &[u8])]) -> Result<(Head, Vec<Option<Bytes>>), EngineError> {
        let snapshot = self.snapshot_with(wanted)?;
        let mut rows = Vec::with_capacity(wanted.len());
        for (table, key) in wanted {
            let mut row = None;
            snapshot.get(*table, key, &mut |value| row = Some(Bytes::copy_from_slice(value)))?;
            rows.push(row);
        }
        Ok((snapshot.head()?, rows))
    }

    /// A view, as [`Engine::snapshot`] gives it, that no number of other views keeps waiting: for what others wait for. Few at a time.
    fn urgent_snapshot(&self) -> Result<Box<dyn Snapshot + '_>, EngineError> {
        self.snapshot()
    }

    /// Makes an engine behind a network look anew for the server that takes writes.
    fn reconnect(&self) {}

    /// Applies `batch` if the stored head equals `batch.expected`, and replaces that head by `batch.next`; all of it or nothing,
    /// durable on return. Blocks until the outcome is known or can't be.
    fn commit(&self, batch: &Batch) -> Result<(), CommitError>;

    /// What a row and a batch may measure.
    fn limits(&self) -> Limits;

    /// The room in use now.
    fn size(&self) -> Result<Size, EngineError>;

    /// Writes a consistent copy of everything to `target` while writes go on; `target` must not exist yet.
    fn backup(&self, target: &Path) -> Result<(), EngineError>;

    /// Whether a read may wait for a network; callers then keep reads away from threads that must not block.
    fn reads_may_wait(&self) -> bool {
        false
    }
}
