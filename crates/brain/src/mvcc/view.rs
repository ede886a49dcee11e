//! What evaluation reads: rows of an engine's snapshot, with the changes that are not there yet laid over them.
//!
//! Invariant: a [`Layered`] view shows exactly what a snapshot taken after all of its overlays' commits would show.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;
use kubewharf_engine::{Cause, DamageVisitor, Direction, EngineError, Operation, Snapshot, Table, Visitor, Wanted};

/// Rows that can be read; the common part of a snapshot and of a snapshot with overlays.
pub trait Rows {
    /// Calls `visit` with the row's value if there is such a row; tells whether there was.
    fn get(&self, table: Table, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Result<bool, EngineError>;

    /// Visits the rows between the bounds in the given direction until `visit` breaks.
    fn scan(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<(), EngineError>;

    /// As [`Rows::scan`], for who knows what of the rows is wanted.
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

    /// As [`Rows::scan`] forward, but shows a damaged row without its value and goes on behind it.
    fn scan_past_damage(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        visit: &mut DamageVisitor<'_>,
    ) -> Result<(), EngineError> {
        self.scan(table, range, Direction::Forward, &mut |key, value| visit(key, Some(value)))
    }
}

/// An engine's snapshot as rows.
pub struct SnapshotRows<'a>(pub &'a dyn Snapshot);

impl Rows for SnapshotRows<'_> {
    #[inline]
    fn get(&self, table: Table, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Result<bool, EngineError> {
        self.0.get(table, key, visit)
    }

    fn scan(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<(), EngineError> {
        self.0.scan(table, range, direction, visit)
    }

    fn scan_wanted(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        direction: Direction,
        wanted: Wanted,
        visit: &mut Visitor<'_>,
    ) -> Result<(), EngineError> {
        self.0.scan_wanted(table, range, direction, wanted, visit)
    }

    fn scan_past_damage(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        visit: &mut DamageVisitor<'_>,
    ) -> Result<(), EngineError> {
        self.0.scan_past_damage(table, range, visit)
    }
}

/// The row of one key, of which there may be none, for a read that needs no others.
pub struct OneRow<'a> {
    /// The key, of the current table.
    pub key: &'a [u8],
    /// Its row.
    pub row: Option<&'a [u8]>,
}

impl OneRow<'_> {
    fn unknown() -> EngineError {
        Cause::Io("a row was asked for that was not read".to_owned()).into()
    }
}

impl Rows for OneRow<'_> {
    fn get(&self, table: Table, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Result<bool, EngineError> {
        if table != Table::Current || key != self.key {
            return Err(Self::unknown());
        }
        if let Some(row) = self.row {
            visit(row);
        }
        Ok(self.row.is_some())
    }

    fn scan(
        &self,
        _: Table,
        _: (Bound<&[u8]>, Bound<&[u8]>),
        _: Direction,
        _: &mut Visitor<'_>,
    ) -> Result<(), EngineError> {
        Err(Self::unknown())
    }
}

/// A snapshot's rows for one request, which mostly looks at the same key twice: compares it, then writes it.
pub struct RecentRows<'a> {
    snapshot: &'a dyn Snapshot,
    recent: RefCell<Option<Recent>>,
}

/// The last row that was looked up in the current table.
struct Recent {
    key: Vec<u8>,
    row: Option<Vec<u8>>,
}

impl<'a> RecentRows<'a> {
    /// The rows of `snapshot`.
    #[must_use]
    pub fn new(snapshot: &'a dyn Snapshot) -> Self {
        Self { snapshot, recent: RefCell::new(None) }
    }
}

impl Rows for RecentRows<'_> {
    fn get(&self, table: Table, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Result<bool, EngineError> {
        if table != Table::Current {
            return self.snapshot.get(table, key, visit);
        }
        let mut recent = self.recent.borrow_mut();
        let recent = match &mut *recent {
            Some(recent) if recent.key == key => recent,
            other => {
                let mut row = None;
                self.snapshot.get(table, key, &mut |found| row = Some(found.to_vec()))?;
                other.insert(Recent { key: key.to_vec(), row })
            }
        };
        if let Some(row) = &recent.row {
            visit(row);
        }
        Ok(recent.row.is_some())
    }

    fn scan(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<(), EngineError> {
        self.snapshot.scan(table, range, direction, visit)
    }

    fn scan_past_damage(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        visit: &mut DamageVisitor<'_>,
    ) -> Result<(), EngineError> {
        self.snapshot.scan_past_damage(table, range, visit)
    }
}

/// Row changes that wait for their commit: the row's new value, or `None` where it is deleted.
#[derive(Debug, Default, Clone)]
pub struct Overlay {
    tables: [BTreeMap<Bytes, Option<Bytes>>; Table::ALL.len()],
    bytes: usize,
    /// `bytes` at the last savepoint.
    saved_bytes: usize,
    operations: usize,
    /// What each change since the last savepoint replaced, to take it back.
    undo: Vec<Undo>,
}

#[derive(Debug, Clone)]
struct Undo {
    table: Table,
    key: Bytes,
    /// The overlay's entry before; `None` if it had none.
    before: Option<Option<Bytes>>,
}

impl Overlay {
    /// Writes a row.
    pub fn put(&mut self, table: Table, key: Bytes, value: Bytes) {
        self.set(table, key, Some(value));
    }

    /// Deletes a row.
    pub fn delete(&mut self, table: Table, key: Bytes) {
        self.set(table, key, None);
    }

    fn set(&mut self, table: Table, key: Bytes, value: Option<Bytes>) {
        self.bytes += key.len() + value.as_ref().map_or(0, Bytes::len);
        let before = self.tables[usize::from(table.number())].insert(key.clone(), value);
        self.operations += usize::from(before.is_none());
        self.undo.push(Undo { table, key, before });
    }

    /// Keeps all changes so far: [`Overlay::rollback`] takes back later ones only.
    pub fn savepoint(&mut self) {
        self.undo.clear();
        self.saved_bytes = self.bytes;
    }

    /// Takes back every change since the savepoint.
    pub fn rollback(&mut self) {
        self.bytes = self.saved_bytes;
        while let Some(Undo { table, key, before }) = self.undo.pop() {
            let rows = &mut self.tables[usize::from(table.number())];
            match before {
                Some(before) => {
                    rows.insert(key, before);
                }
                None => {
                    rows.remove(&key);
                    self.operations -= 1;
                }
            }
        }
    }

    /// Whether there is no change.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.operations == 0
    }

    /// The changes' size: the sum of keys and values ever set and not taken back, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The size of the changes since the savepoint.
    #[must_use]
    pub fn bytes_since_savepoint(&self) -> usize {
        self.bytes - self.saved_bytes
    }

    /// How many rows change.
    #[must_use]
    pub fn operations(&self) -> usize {
        self.operations
    }

    /// Whether a row is changed here.
    #[must_use]
    pub fn changes(&self, table: Table, key: &[u8]) -> bool {
        self.table(table).contains_key(key)
    }

    /// The changes in the order that engines like: by table and key.
    #[must_use]
    pub fn to_operations(&self) -> Vec<Operation> {
        let mut operations = Vec::with_capacity(self.operations);
        for table in Table::ALL {
            for (key, value) in &self.tables[usize::from(table.number())] {
                operations.push(match value {
                    Some(value) => Operation::Put { table, key: key.clone(), value: value.clone() },
                    None => Operation::Delete { table, key: key.clone() },
                });
            }
        }
        operations
    }

    fn table(&self, table: Table) -> &BTreeMap<Bytes, Option<Bytes>> {
        &self.tables[usize::from(table.number())]
    }
}

/// A snapshot under overlays, the last of which is the newest.
pub struct Layered<'a> {
    base: &'a dyn Rows,
    overlays: [Option<&'a Overlay>; 2],
}

impl<'a> Layered<'a> {
    /// Lays `newer` over `older` over `base`.
    #[must_use]
    pub fn new(base: &'a dyn Rows, older: Option<&'a Overlay>, newer: &'a Overlay) -> Self {
        Self { base, overlays: [Some(newer), older] }
    }

    fn overlays(&self) -> impl Iterator<Item = &'a Overlay> {
        self.overlays.iter().copied().flatten()
    }

    /// Visits the rows of the base that no overlay changes, and the changes, in one order. `scan_base` visits those of the base.
    fn overlaid(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        direction: Direction,
        visit: &mut DamageVisitor<'_>,
        scan_base: impl FnOnce(&mut DamageVisitor<'_>) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let mut changed: BTreeMap<&[u8], Option<&[u8]>> = BTreeMap::new();
        if is_empty_range(&range) {
            return Ok(());
        }
        for overlay in self.overlays() {
            for (key, value) in overlay.table(table).range::<[u8], _>(range) {
                // The newest overlay comes first and wins.
                changed.entry(key).or_insert(value.as_deref());
            }
        }
        if changed.is_empty() {
            return scan_base(visit);
        }
        let mut pending: Vec<(&[u8], Option<&[u8]>)> = changed.into_iter().collect();
        if direction == Direction::Forward {
            pending.reverse();
        }
        let before = |a: &[u8], b: &[u8]| if direction == Direction::Forward { a < b } else { a > b };
        let mut stopped = false;
        scan_base(&mut |key, value| {
            while let Some((changed_key, changed_value)) =
                pending.pop_if(|(changed_key, _)| *changed_key == key || before(changed_key, key))
            {
                let replaces = changed_key == key;
                if changed_value.is_some() && visit(changed_key, changed_value).is_break() {
                    stopped = true;
                    return ControlFlow::Break(());
                }
                if replaces {
                    return ControlFlow::Continue(());
                }
            }
            let flow = visit(key, value);
            stopped = flow.is_break();
            flow
        })?;
        while let Some((key, value)) = pending.pop() {
            if stopped {
                break;
            }
            if value.is_some() {
                stopped = visit(key, value).is_break();
            }
        }
        Ok(())
    }
}

impl Rows for Layered<'_> {
    fn get(&self, table: Table, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Result<bool, EngineError> {
        for overlay in self.overlays() {
            if let Some(value) = overlay.table(table).get(key) {
                if let Some(value) = value {
                    visit(value);
                }
                return Ok(value.is_some());
            }
        }
        self.base.get(table, key, visit)
    }

    fn scan(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<(), EngineError> {
        // Damage is an error of the base's, so there always is a value.
        let visit = &mut |key: &[u8], value: Option<&[u8]>| value.map_or(ControlFlow::Continue(()), |v| visit(key, v));
        self.overlaid(table, range, direction, visit, |visit| {
            self.base.scan(table, range, direction, &mut |key, value| visit(key, Some(value)))
        })
    }

    fn scan_past_damage(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        visit: &mut DamageVisitor<'_>,
    ) -> Result<(), EngineError> {
        self.overlaid(table, range, Direction::Forward, visit, |visit| self.base.scan_past_damage(table, range, visit))
    }
}

/// Whether the bounds exclude everything; `BTreeMap::range` panics on some of those.
fn is_empty_range(range: &(Bound<&[u8]>, Bound<&[u8]>)) -> bool {
    match *range {
        (Bound::Included(start), Bound::Included(end)) => start > end,
        (Bound::Included(start) | Bound::Excluded(start), Bound::Excluded(end) | Bound::Included(end)) => start >= end,
        _ => false,
    }
}
