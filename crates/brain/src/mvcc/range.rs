//! Reads of keys and ranges, at one revision.
//!
//! Invariant: a read shows exactly the versions that were the newest at its revision, whatever was written or deleted since.

use std::cmp::Ordering;
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;
use kubewharf_engine::{Direction, EngineError, Table};

use super::history::version_at;
use super::record::{Current, Version};
use super::view::Rows;

/// A key or a range of keys.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyRange {
    /// The first key.
    pub start: Bytes,
    /// Where it ends.
    pub end: RangeEnd,
}

/// The end of a [`KeyRange`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RangeEnd {
    /// The range is the one key `start`.
    Single,
    /// The first key behind the range.
    Before(Bytes),
    /// All keys from `start` on.
    Unbounded,
}

impl KeyRange {
    /// A range as requests name it: an empty `range_end` for a single key, `\0` for no end.
    #[must_use]
    pub fn from_request(key: Bytes, range_end: Bytes) -> Self {
        let end = match range_end.as_ref() {
            [] => RangeEnd::Single,
            [0] => RangeEnd::Unbounded,
            _ => RangeEnd::Before(range_end),
        };
        Self { start: key, end }
    }

    /// Whether the range has `key`.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        match &self.end {
            RangeEnd::Single => self.start == key,
            RangeEnd::Before(end) => self.start <= key && key < end.as_ref(),
            RangeEnd::Unbounded => self.start <= key,
        }
    }

    /// The bounds of a scan over the range.
    #[must_use]
    pub fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        let start = Bound::Included(self.start.as_ref());
        match &self.end {
            RangeEnd::Single => (start, start),
            RangeEnd::Before(end) => (start, Bound::Excluded(end.as_ref())),
            RangeEnd::Unbounded => (start, Bound::Unbounded),
        }
    }
}

/// What a range is sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SortTarget {
    /// The key.
    Key,
    /// The number of writes since creation.
    Version,
    /// The revision of creation.
    Create,
    /// The revision of the last write.
    Mod,
    /// The value.
    Value,
}

/// A read.
#[derive(Clone, Debug)]
pub struct RangeQuery {
    /// The keys.
    pub range: KeyRange,
    /// The revision to read at: not compacted; larger than the newest reads the newest.
    pub revision: i64,
    /// Most keys to return; 0 for no limit.
    pub limit: u64,
    /// Leave values out.
    pub keys_only: bool,
    /// Return no keys, only their number.
    pub count_only: bool,
    /// Count the keys beyond the limit too.
    pub count_all: bool,
    /// The order; ascending by key if `None`.
    pub sort: Option<(SortTarget, Direction)>,
    /// Sort only the keys up to the limit and the one behind it: etcd does so for a target that comes without an order.
    pub sort_after_limit: bool,
    /// Bounds of the modification revision, each inclusive, 0 for none.
    pub mod_revisions: (i64, i64),
    /// Bounds of the creation revision, each inclusive, 0 for none.
    pub create_revisions: (i64, i64),
}

impl RangeQuery {
    /// All of `range` at `revision`.
    #[must_use]
    pub fn all(range: KeyRange, revision: i64) -> Self {
        Self {
            range,
            revision,
            limit: 0,
            keys_only: false,
            count_only: false,
            count_all: false,
            sort: None,
            sort_after_limit: false,
            mod_revisions: (0, 0),
            create_revisions: (0, 0),
        }
    }

    fn admits(&self, version: &Version<'_>) -> bool {
        let within = |(min, max): (i64, i64), value| (min == 0 || value >= min) && (max == 0 || value <= max);
        within(self.mod_revisions, version.mod_revision) && within(self.create_revisions, version.create_revision)
    }

    /// Whether only some of the versions are wanted, by revision.
    #[must_use]
    pub fn filters(&self) -> bool {
        self.mod_revisions != (0, 0) || self.create_revisions != (0, 0)
    }
}

/// What a read found beside the keys that it passed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RangeOutcome {
    /// Keys in the range: all of them with `count_all` or `count_only`, else those passed on.
    pub count: i64,
    /// Whether the limit left keys out.
    pub more: bool,
    /// Whether the receiver stopped the read; then count and `more` mean nothing.
    pub stopped: bool,
}

/// Receives keys with their versions; breaking stops the read.
pub type KeySink<'s> = dyn FnMut(&[u8], &Version<'_>) -> ControlFlow<()> + 's;

/// Passes the keys that `query` asks for to `sink`, in its order.
pub fn range(rows: &dyn Rows, query: &RangeQuery, sink: &mut KeySink<'_>) -> Result<RangeOutcome, EngineError> {
    if query.count_only {
        let mut count = 0;
        scan(rows, query, Direction::Forward, &mut |_, _| {
            count += 1;
            ControlFlow::Continue(())
        })?;
        return Ok(RangeOutcome { count, ..RangeOutcome::default() });
    }
    match query.sort {
        None | Some((SortTarget::Key, Direction::Forward)) => in_key_order(rows, query, Direction::Forward, sink),
        Some((SortTarget::Key, Direction::Reverse)) => in_key_order(rows, query, Direction::Reverse, sink),
        Some((target, direction)) => sorted(rows, query, target, direction, sink),
    }
}

fn in_key_order(
    rows: &dyn Rows,
    query: &RangeQuery,
    direction: Direction,
    sink: &mut KeySink<'_>,
) -> Result<RangeOutcome, EngineError> {
    let limit = if query.limit == 0 { u64::MAX } else { query.limit };
    let mut outcome = RangeOutcome::default();
    let mut passed = 0;
    scan(rows, query, direction, &mut |key, version| {
        outcome.count += 1;
        if !query.admits(version) {
            return ControlFlow::Continue(());
        }
        if passed == limit {
            outcome.more = true;
            if query.count_all {
                return ControlFlow::Continue(());
            }
            outcome.count -= 1;
            return ControlFlow::Break(());
        }
        passed += 1;
        let flow = sink(key, version);
        outcome.stopped = flow.is_break();
        flow
    })?;
    Ok(outcome)
}

/// An owned key and version, for sorting.
struct Found {
    key: Vec<u8>,
    version: Version<'static>,
    value: Vec<u8>,
}

fn sorted(
    rows: &dyn Rows,
    query: &RangeQuery,
    target: SortTarget,
    direction: Direction,
    sink: &mut KeySink<'_>,
) -> Result<RangeOutcome, EngineError> {
    let mut outcome = RangeOutcome::default();
    let mut found = Vec::new();
    scan(rows, query, Direction::Forward, &mut |key, version| {
        outcome.count += 1;
        let is_beyond = query.sort_after_limit && query.limit > 0 && found.len() as u64 > query.limit;
        if !is_beyond && query.admits(version) {
            found.push(Found {
                key: key.to_vec(),
                value: version.value.to_vec(),
                version: Version { value: &[], ..*version },
            });
        }
        ControlFlow::Continue(())
    })?;
    let compare = |a: &Found, b: &Found| -> Ordering {
        match target {
            SortTarget::Key => a.key.cmp(&b.key),
            SortTarget::Version => a.version.version.cmp(&b.version.version),
            SortTarget::Create => a.version.create_revision.cmp(&b.version.create_revision),
            SortTarget::Mod => a.version.mod_revision.cmp(&b.version.mod_revision),
            SortTarget::Value => a.value.cmp(&b.value),
        }
    };
    // Stable, so that equal ones stay in key order.
    match direction {
        Direction::Forward => found.sort_by(compare),
        Direction::Reverse => found.sort_by(|a, b| compare(b, a)),
    }
    if query.limit > 0 && found.len() as u64 > query.limit {
        outcome.more = true;
        found.truncate(usize::try_from(query.limit).unwrap_or(usize::MAX));
    }
    for Found { key, version, value } in &found {
        if sink(key, &Version { value, ..*version }).is_break() {
            outcome.stopped = true;
            break;
        }
    }
    Ok(outcome)
}

/// Visits every key that exists at the query's revision, whatever its limit and filters.
fn scan(rows: &dyn Rows, query: &RangeQuery, direction: Direction, visit: &mut KeySink<'_>) -> Result<(), EngineError> {
    if query.range.end == RangeEnd::Single {
        let mut result = Ok(());
        rows.get(Table::Current, &query.range.start, &mut |row| {
            result = visit_row(rows, query.revision, &query.range.start, row, visit).map(|_| ());
        })?;
        return result;
    }
    let mut result = Ok(());
    rows.scan(Table::Current, query.range.bounds(), direction, &mut |key, row| match visit_row(
        rows,
        query.revision,
        key,
        row,
        visit,
    ) {
        Ok(flow) => flow,
        Err(error) => {
            result = Err(error);
            ControlFlow::Break(())
        }
    })?;
    result
}

#[inline]
fn visit_row(
    rows: &dyn Rows,
    revision: i64,
    key: &[u8],
    row: &[u8],
    visit: &mut KeySink<'_>,
) -> Result<ControlFlow<()>, EngineError> {
    let current = Current::decode(row)?;
    if current.position.revision <= revision {
        return Ok(current.live.map_or(ControlFlow::Continue(()), |live| visit(key, &live)));
    }
    let mut flow = ControlFlow::Continue(());
    version_at(rows, &current, revision, &mut |version| flow = visit(key, version))?;
    Ok(flow)
}
