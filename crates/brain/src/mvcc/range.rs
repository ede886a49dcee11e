//! Reads of keys and ranges, at one revision, in one go or in steps.
//!
//! Invariant: a read shows exactly the versions that were the newest at its revision, whatever was written or deleted since, also
//! between its steps.

use std::ops::{Bound, ControlFlow};

use bytes::{Bytes, BytesMut};
use kubewharf_engine::{Direction, EngineError, Table, Wanted};

use super::history::version_at;
use super::order::Best;
use super::record::{Current, Version};
use super::view::Rows;

/// What is read of a row whose value is not wanted: almost always all that comes before the value.
const HEAD_BYTES: usize = 192;

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

    /// The direction in which the table is read.
    fn direction(&self) -> Direction {
        match self.sort {
            Some((SortTarget::Key, direction)) if !self.count_only => direction,
            _ => Direction::Forward,
        }
    }

    /// Leaves out what comes before `key` in the direction of reading.
    fn go_on_at(&mut self, key: Bytes) {
        if self.range.end == RangeEnd::Single {
            return;
        }
        match self.direction() {
            Direction::Forward => self.range.start = key,
            Direction::Reverse => {
                let mut behind = BytesMut::from(key);
                behind.extend_from_slice(&[0]);
                self.range.end = RangeEnd::Before(behind.freeze());
            }
        }
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

/// Takes the keys of a read that goes in steps.
pub trait Receiver {
    /// One key, in the query's order. Breaking ends the step, and the next one begins with this very key.
    fn key(&mut self, key: &[u8], version: &Version<'_>) -> ControlFlow<()>;

    /// Asks for memory to keep a key until all have been seen, in bytes. Breaking ends the step likewise.
    fn hold(&mut self, bytes: usize) -> ControlFlow<()>;

    /// Gives back memory that was held.
    fn release(&mut self, bytes: usize);
}

/// A receiver that has memory for everything.
struct Unbounded<'s, 'f>(&'s mut KeySink<'f>);

impl Receiver for Unbounded<'_, '_> {
    fn key(&mut self, key: &[u8], version: &Version<'_>) -> ControlFlow<()> {
        (self.0)(key, version)
    }

    fn hold(&mut self, _: usize) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    fn release(&mut self, _: usize) {}
}

/// Passes the keys that `query` asks for to `sink`, in its order.
pub fn range(rows: &dyn Rows, query: &RangeQuery, sink: &mut KeySink<'_>) -> Result<RangeOutcome, EngineError> {
    receive(rows, query, &mut Unbounded(sink))
}

/// As [`range`], for a receiver whose memory is bounded.
pub(super) fn receive(
    rows: &dyn Rows,
    query: &RangeQuery,
    receiver: &mut dyn Receiver,
) -> Result<RangeOutcome, EngineError> {
    let mut state = State::new(query);
    let (progress, _) = state.step(rows, query, Share::ALL, receiver)?;
    Ok(RangeOutcome { stopped: progress == Progress::Stopped, ..state.outcome })
}

/// How much one step of a read looks at.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    /// Rows.
    pub rows: usize,
    /// Bytes of rows; the row that goes over is the last.
    pub bytes: usize,
}

impl Share {
    /// Everything in one step.
    pub const ALL: Self = Self { rows: usize::MAX, bytes: usize::MAX };

    fn take(&mut self, bytes: usize) -> bool {
        if self.rows == 0 || self.bytes == 0 {
            return false;
        }
        self.rows -= 1;
        self.bytes = self.bytes.saturating_sub(bytes);
        true
    }
}

/// How a step of a read ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The read is complete.
    Done,
    /// The step has had its share.
    Paused,
    /// The receiver broke.
    Stopped,
}

/// A read in steps, each of which may see another state of the store, as long as it is not older than the revision that is read.
pub struct Reading {
    /// Its range is what is left.
    query: RangeQuery,
    state: State,
}

impl Reading {
    /// A read that has not begun.
    #[must_use]
    pub fn new(query: RangeQuery) -> Self {
        Self { state: State::new(&query), query }
    }

    /// The query, whose range is what is left of it.
    #[must_use]
    pub fn query(&self) -> &RangeQuery {
        &self.query
    }

    /// What was found so far.
    #[must_use]
    pub fn outcome(&self) -> RangeOutcome {
        self.state.outcome
    }

    /// Goes on for a share of rows, at least one.
    pub fn step(
        &mut self,
        rows: &dyn Rows,
        share: Share,
        receiver: &mut dyn Receiver,
    ) -> Result<Progress, EngineError> {
        let (progress, rest) = self.state.step(rows, &self.query, share, receiver)?;
        if let Some(key) = rest {
            self.query.go_on_at(key);
        }
        Ok(progress)
    }
}

/// Where a read stands.
struct State {
    outcome: RangeOutcome,
    passed: u64,
    /// The whole range was looked at.
    scanned: bool,
    /// The keys that wait for their order, if that is another than the table's.
    best: Option<Best>,
}

/// What is to be done after a key.
enum Verdict {
    Next,
    /// The receiver did not take it.
    Refused,
    /// No later key matters.
    Enough,
}

/// A row of the current table, which was just seen.
fn read_row(rows: &dyn Rows, key: &[u8]) -> Result<Bytes, EngineError> {
    let mut row = Bytes::new();
    rows.get(Table::Current, key, &mut |found| row = Bytes::copy_from_slice(found))?;
    Ok(row)
}

impl State {
    fn new(query: &RangeQuery) -> Self {
        let best = match query.sort {
            Some((target, direction)) if !query.count_only && target != SortTarget::Key => {
                Some(Best::new(query, target, direction))
            }
            _ => None,
        };
        Self { outcome: RangeOutcome::default(), passed: 0, scanned: false, best }
    }

    /// Goes on; tells the key, if any, that the next step begins with.
    fn step(
        &mut self,
        rows: &dyn Rows,
        query: &RangeQuery,
        share: Share,
        receiver: &mut dyn Receiver,
    ) -> Result<(Progress, Option<Bytes>), EngineError> {
        if !self.scanned {
            let (progress, rest) = self.scan(rows, query, share, receiver)?;
            if progress != Progress::Done {
                return Ok((progress, rest));
            }
            self.scanned = true;
        }
        let flow = self.best.as_mut().map_or(ControlFlow::Continue(()), |best| best.pass_on(receiver));
        Ok((if flow.is_break() { Progress::Stopped } else { Progress::Done }, None))
    }

    /// Visits every key that exists at the query's revision, whatever its filters, until nothing more is wanted.
    fn scan(
        &mut self,
        rows: &dyn Rows,
        query: &RangeQuery,
        mut share: Share,
        receiver: &mut dyn Receiver,
    ) -> Result<(Progress, Option<Bytes>), EngineError> {
        if query.range.end == RangeEnd::Single {
            let key = &query.range.start;
            let mut verdict = Ok(Verdict::Next);
            rows.get(Table::Current, key, &mut |row| {
                verdict = self.visit_row(rows, query, (key, row, false), receiver);
            })?;
            let is_refused = matches!(verdict?, Verdict::Refused);
            return Ok(if is_refused { (Progress::Stopped, Some(key.clone())) } else { (Progress::Done, None) });
        }
        // The last key of the part before this one.
        let mut last: Option<Bytes> = None;
        loop {
            let without_values = self.needs_no_values(query);
            let wanted = Wanted {
                rows: self.rows_wanted(query).min(share.rows.saturating_add(1)),
                value_bytes: if without_values { HEAD_BYTES } else { usize::MAX },
            };
            let mut result = Ok((Progress::Done, None));
            let mut values_end_at = None;
            let mut visit = |key: &[u8], row: &[u8]| {
                if !share.take(row.len()) {
                    result = Ok((Progress::Paused, Some(Bytes::copy_from_slice(key))));
                    return ControlFlow::Break(());
                }
                match self.visit_row(rows, query, (key, row, without_values), receiver) {
                    Ok(Verdict::Next) if !without_values && self.needs_no_values(query) => {
                        values_end_at = Some(Bytes::copy_from_slice(key));
                    }
                    Ok(Verdict::Next) => return ControlFlow::Continue(()),
                    Ok(Verdict::Enough) => {}
                    Ok(Verdict::Refused) => result = Ok((Progress::Stopped, Some(Bytes::copy_from_slice(key)))),
                    Err(error) => result = Err(error),
                }
                ControlFlow::Break(())
            };
            let (mut bounds, direction) = (query.range.bounds(), query.direction());
            if let Some(last) = &last {
                let behind = Bound::Excluded(last.as_ref());
                match direction {
                    Direction::Forward => bounds.0 = behind,
                    Direction::Reverse => bounds.1 = behind,
                }
            }
            rows.scan_wanted(Table::Current, bounds, direction, wanted, &mut visit)?;
            if values_end_at.is_none() {
                return result;
            }
            last = values_end_at;
        }
    }

    /// Whether keys still to come are only counted, or passed on without their values.
    fn needs_no_values(&self, query: &RangeQuery) -> bool {
        let is_over = query.count_all && query.limit > 0 && self.passed >= query.limit;
        query.count_only || (self.best.is_none() && (query.keys_only || is_over))
    }

    /// About how many rows are still to be visited, if each has a key that counts.
    fn rows_wanted(&self, query: &RangeQuery) -> usize {
        if self.best.is_some() || query.limit == 0 || query.count_only {
            return usize::MAX;
        }
        match query.limit.saturating_sub(self.passed) {
            0 if query.count_all => usize::MAX,
            left if query.count_all => usize::try_from(left).unwrap_or(usize::MAX),
            // One more tells that there are more.
            left => usize::try_from(left).unwrap_or(usize::MAX).saturating_add(1),
        }
    }

    /// Visits a key with its row, or with the beginning of its row.
    #[inline]
    fn visit_row(
        &mut self,
        rows: &dyn Rows,
        query: &RangeQuery,
        (key, row, is_beginning): (&[u8], &[u8], bool),
        receiver: &mut dyn Receiver,
    ) -> Result<Verdict, EngineError> {
        let whole;
        let current = match Current::decode(row) {
            Err(_) if is_beginning && row.len() >= HEAD_BYTES => {
                // A key that was written very often since the last compaction has more before its value.
                whole = read_row(rows, key)?;
                Current::decode(&whole)?
            }
            decoded => decoded?,
        };
        if current.position.revision <= query.revision {
            return Ok(current.live.map_or(Verdict::Next, |live| self.visit(query, key, &live, receiver)));
        }
        let mut verdict = Verdict::Next;
        version_at(rows, &current, query.revision, &mut |version| {
            verdict = self.visit(query, key, version, receiver);
        })?;
        Ok(verdict)
    }

    #[inline]
    fn visit(&mut self, query: &RangeQuery, key: &[u8], version: &Version<'_>, receiver: &mut dyn Receiver) -> Verdict {
        if !query.count_only && query.admits(version) {
            let limit = if query.limit == 0 { u64::MAX } else { query.limit };
            let is_over = self.passed >= limit;
            self.outcome.more |= is_over;
            let flow = match &mut self.best {
                // All are looked at, unless the order is made only afterwards.
                Some(_) if is_over && query.sort_after_limit && self.passed > limit => ControlFlow::Continue(()),
                Some(best) => best.offer(key, version, receiver),
                None if is_over => ControlFlow::Continue(()),
                None => receiver.key(key, version),
            };
            if flow.is_break() {
                return Verdict::Refused;
            }
            if is_over && !query.count_all && (self.best.is_none() || query.sort_after_limit) {
                return Verdict::Enough;
            }
            self.passed += 1;
        }
        self.outcome.count += 1;
        Verdict::Next
    }
}
