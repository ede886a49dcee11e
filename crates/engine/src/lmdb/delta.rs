//! The delta: rows that are durable in the journal and not yet in LMDB, in memory and in order (a memtable).
//!
//! Job: an index over the journal's records as they were written, one ordered map a table. A change adds a record and sets the places of
//! its rows; readers keep clones, which cost a few reference counts.
//!
//! Invariant: a delta tells of each row that it names what the newest of its records says, so that laid over LMDB it shows
//! the same whether none, some or all of its rows have been merged into it.

mod filter;
mod records;
mod tree;

use std::cmp::Ordering;
use std::ops::Bound;
use std::sync::Arc;

use filter::Filter;
pub(super) use records::{Place, Records};
use tree::{Cursor, Tree};

use super::journal::Record;
use super::record::Cut;
use crate::{Direction, Head, Table};

/// Memory that a row takes in the index, with what is free in the leaves.
pub(super) const INDEX_BYTES: u64 = 24;

/// A change of a row: its new value, or `None` where it is removed.
pub(super) type Change<'d> = (&'d [u8], Option<&'d [u8]>);

/// Some batches' rows.
#[derive(Clone)]
pub(super) struct Delta {
    records: Arc<Records>,
    filter: Arc<Filter>,
    tables: [Tree; Table::ALL.len()],
    records_count: u32,
    put_bytes: u64,
    room_bytes: u64,
    memory_bytes: u64,
}

impl Delta {
    /// An empty one that is meant to take so many bytes.
    pub(super) fn new(bytes_max: u64) -> Self {
        Self {
            records: Arc::new(Records::new()),
            filter: Arc::new(Filter::new(bytes_max)),
            tables: Default::default(),
            records_count: 0,
            put_bytes: 0,
            room_bytes: 0,
            memory_bytes: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.records_count == 0
    }

    /// Adds a batch, the rows of which LMDB is to keep cut so. To be called on the newest clone only.
    pub(super) fn apply(&mut self, record: Record, cut: Cut) {
        let number = self.records_count;
        self.records_count += 1;
        let rows: Vec<(Table, Place)> = record.rows().collect();
        let bytes = record.into_bytes();
        self.memory_bytes += bytes.len() as u64;
        self.records.set(number, bytes);
        let mut added = 0;
        for (table, place) in rows {
            let place = Place { record: number, ..place };
            self.put_bytes += place.put_bytes();
            self.room_bytes += place.room_bytes(cut);
            self.filter.add(table, self.records.key(&place));
            match self.tables[usize::from(table.number())].set(&self.records, place) {
                Some(replaced) => {
                    self.put_bytes -= replaced.put_bytes();
                    self.room_bytes -= replaced.room_bytes(cut);
                }
                None => added += 1,
            }
        }
        self.memory_bytes += added * INDEX_BYTES;
    }

    /// Rows of a table that it names.
    pub(super) fn rows(&self, table: Table) -> u64 {
        self.tables[usize::from(table.number())].rows()
    }

    /// Bytes of the rows that it puts.
    pub(super) fn put_bytes(&self) -> u64 {
        self.put_bytes
    }

    /// The most room that the rows which it puts take in LMDB's file.
    pub(super) fn room_bytes(&self) -> u64 {
        self.room_bytes
    }

    /// Memory that it takes.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// What it says of a row; `None` if nothing.
    pub(super) fn get(&self, table: Table, key: &[u8]) -> Option<Option<&[u8]>> {
        if !self.filter.may_contain(table, key) {
            return None;
        }
        let place = self.tables[usize::from(table.number())].get(&self.records, key)?;
        Some(self.records.value(place))
    }

    /// Its changes of a table between the bounds.
    pub(super) fn changes<'d>(
        &'d self,
        table: Table,
        (start, end): (Bound<&'d [u8]>, Bound<&'d [u8]>),
        direction: Direction,
    ) -> Changes<'d> {
        let (near, far) = match direction {
            Direction::Forward => (start, end),
            Direction::Reverse => (end, start),
        };
        let tree = &self.tables[usize::from(table.number())];
        Changes { records: &self.records, cursor: tree.range(&self.records, (near, far), direction) }
    }
}

/// Changes in the order of their keys, or in reverse.
#[derive(Clone)]
pub(super) struct Changes<'d> {
    records: &'d Records,
    cursor: Cursor<'d>,
}

impl<'d> Changes<'d> {
    fn peek(&mut self) -> Option<Change<'d>> {
        let place = self.cursor.peek(self.records)?;
        Some((self.records.key(&place), self.records.value(&place)))
    }
}

impl<'d> Iterator for Changes<'d> {
    type Item = Change<'d>;

    fn next(&mut self) -> Option<Change<'d>> {
        let change = self.peek();
        self.cursor.advance();
        change
    }
}

/// A delta that is being merged, and how the store stands behind it.
#[derive(Clone)]
pub(super) struct Frozen {
    pub(super) delta: Delta,
    /// The head that its last batch left.
    pub(super) head: Head,
    /// The number of the first record behind it.
    pub(super) next_record: u64,
}

/// What lies over LMDB: the delta that takes batches, and an older one while that is being merged.
#[derive(Clone)]
pub(super) struct Layers {
    /// The newest head.
    pub(super) head: Head,
    pub(super) active: Delta,
    pub(super) frozen: Option<Frozen>,
}

impl Layers {
    /// What the newest layer that names the row says of it; `None` if none does.
    #[inline]
    pub(super) fn get(&self, table: Table, key: &[u8]) -> Option<Option<&[u8]>> {
        self.active.get(table, key).or_else(|| self.frozen.as_ref()?.delta.get(table, key))
    }

    /// The changes of a table between the bounds, each row once; `None` if there is none.
    pub(super) fn changes<'d>(
        &'d self,
        table: Table,
        range: (Bound<&'d [u8]>, Bound<&'d [u8]>),
        direction: Direction,
    ) -> Option<LayeredChanges<'d>> {
        let mut newer = self.active.changes(table, range, direction);
        let mut older = self.frozen.as_ref().map(|frozen| frozen.delta.changes(table, range, direction));
        if newer.peek().is_none() && older.as_mut().is_none_or(|older| older.peek().is_none()) {
            return None;
        }
        Some(LayeredChanges { newer, older, direction })
    }

    /// Rows of a table that the layers name, at most.
    pub(super) fn rows(&self, table: Table) -> u64 {
        self.active.rows(table) + self.frozen.as_ref().map_or(0, |frozen| frozen.delta.rows(table))
    }

    /// Bytes of the rows that the layers put, at most.
    pub(super) fn put_bytes(&self) -> u64 {
        self.active.put_bytes() + self.frozen.as_ref().map_or(0, |frozen| frozen.delta.put_bytes())
    }

    /// The most room that the rows which the layers put take in LMDB's file.
    pub(super) fn room_bytes(&self) -> u64 {
        self.active.room_bytes() + self.frozen.as_ref().map_or(0, |frozen| frozen.delta.room_bytes())
    }
}

/// The changes of both layers.
pub(super) struct LayeredChanges<'d> {
    newer: Changes<'d>,
    older: Option<Changes<'d>>,
    direction: Direction,
}

impl<'d> Iterator for LayeredChanges<'d> {
    type Item = Change<'d>;

    fn next(&mut self) -> Option<Change<'d>> {
        let Some(older) = &mut self.older else { return self.newer.next() };
        let (Some((newer_key, _)), Some((older_key, _))) = (self.newer.peek(), older.peek()) else {
            return self.newer.next().or_else(|| older.next());
        };
        match in_direction(newer_key.cmp(older_key), self.direction) {
            Ordering::Less => self.newer.next(),
            Ordering::Equal => {
                older.next();
                self.newer.next()
            }
            Ordering::Greater => older.next(),
        }
    }
}

/// The order of two keys as a scan in this direction meets them.
pub(super) fn in_direction(order: Ordering, direction: Direction) -> Ordering {
    match direction {
        Direction::Forward => order,
        Direction::Reverse => order.reverse(),
    }
}
