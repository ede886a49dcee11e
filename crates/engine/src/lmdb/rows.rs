//! A table's rows in its LMDB database, whole rows to the outside, parts of one page inside.

use std::borrow::Cow;
use std::ops::{Bound, ControlFlow};

use heed::types::Bytes;
use heed::{Database, MdbError, PutFlags, RoTxn, RwTxn};

use super::cause;
use super::record::{Cut, First, Form, PartKey, corrupt, split_part_key};
use crate::{Cause, DamageVisitor, Direction, Operation, Table};

#[cfg(target_arch = "x86_64")]
const CACHE_LINE_BYTES: usize = 64;

/// One table.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    table: Table,
    database: Database<Bytes, Bytes>,
    cut: Cut,
}

impl Rows {
    pub(super) fn new(table: Table, database: Database<Bytes, Bytes>, page_bytes: usize) -> Self {
        Self { table, database, cut: Cut::new(page_bytes) }
    }

    pub(super) fn get(&self, txn: &RoTxn<'_>, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Result<bool, Cause> {
        let part_key = PartKey::first(key);
        match self.database.get(txn, part_key.bytes()).map_err(|e| cause(&e, "read a row"))? {
            Some(stored) => {
                visit(&self.value(txn, key, stored)?);
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// Visits the rows between the bounds, not looking at their values.
    pub(super) fn walk<'t>(
        &self,
        txn: &'t RoTxn<'_>,
        (start, end): (Bound<&[u8]>, Bound<&[u8]>),
        direction: Direction,
        mut visit: impl FnMut(Row<'t, '_>) -> Result<ControlFlow<()>, Cause>,
    ) -> Result<(), Cause> {
        let failed = |e| cause(&e, "read a range");
        let (start, end) = (start.map(PartKey::first), end.map(PartKey::first));
        let range = (start.as_ref().map(PartKey::bytes), end.as_ref().map(PartKey::bytes));
        let page_bytes = self.cut.page_bytes();
        let each = |part_key: &'t [u8], stored: &'t [u8]| -> Result<ControlFlow<()>, Cause> {
            let (key, part) = split_part_key(part_key).ok_or_else(|| corrupt(self.table.name(), part_key))?;
            if part != 0 {
                return Ok(ControlFlow::Continue(()));
            }
            visit(Row { rows: self, txn, key, stored })
        };
        match direction {
            Direction::Forward => {
                one_behind(self.database.range(txn, &range).map_err(failed)?, page_bytes, failed, each)
            }
            Direction::Reverse => {
                one_behind(self.database.rev_range(txn, &range).map_err(failed)?, page_bytes, failed, each)
            }
        }
    }

    /// The value whose first part is `stored`, if it is sound.
    #[inline]
    fn value<'r>(&self, txn: &RoTxn<'_>, key: &[u8], stored: &'r [u8]) -> Result<Cow<'r, [u8]>, Cause> {
        let first = First::decode(stored).ok_or_else(|| corrupt(self.table.name(), key))?;
        let value = match first.form {
            Form::Whole => Cow::Borrowed(first.piece),
            Form::Split { value_bytes } => Cow::Owned(self.join(txn, key, first.piece, value_bytes)?),
        };
        if first.is_sound(self.table.number(), key, &value) { Ok(value) } else { Err(corrupt(self.table.name(), key)) }
    }

    /// Puts a value together from its parts.
    fn join(&self, txn: &RoTxn<'_>, key: &[u8], piece: &[u8], value_bytes: usize) -> Result<Vec<u8>, Cause> {
        let mut value = Vec::with_capacity(value_bytes);
        value.extend_from_slice(piece);
        let mut part_key = PartKey::first(key);
        let mut part = 0;
        while value.len() < value_bytes {
            part += 1;
            let piece =
                self.database.get(txn, part_key.turn_to(part)).map_err(|e| cause(&e, "read a part of a row"))?;
            match piece {
                Some(piece) if !piece.is_empty() && value.len() + piece.len() <= value_bytes => {
                    value.extend_from_slice(piece);
                }
                _ => return Err(corrupt(self.table.name(), key)),
            }
        }
        Ok(value)
    }

    /// Writes a row. `first` is scratch space.
    pub(super) fn put(&self, txn: &mut RwTxn<'_>, key: &[u8], value: &[u8], first: &mut Vec<u8>) -> heed::Result<()> {
        let pieces = self.cut.encode(self.table.number(), key, value, first);
        let further = pieces.len() as u16;
        let mut part_key = PartKey::first(key);
        let is_appended = self.table == Table::Log && self.append(txn, part_key.bytes(), first)?;
        if !is_appended {
            // What the new row's parts don't overwrite of the old one's.
            let old = self.further_parts(txn, part_key.bytes())?;
            for part in further + 1..=old {
                self.database.delete(txn, part_key.turn_to(part))?;
            }
            self.database.put(txn, part_key.turn_to(0), first)?;
        }
        for (part, piece) in (1..).zip(pieces) {
            let part_key = part_key.turn_to(part);
            // The parts of an appended row come right behind it.
            if !(is_appended && self.append(txn, part_key, piece)?) {
                self.database.put(txn, part_key, piece)?;
            }
        }
        Ok(())
    }

    /// Removes a row, if there is one.
    pub(super) fn delete(&self, txn: &mut RwTxn<'_>, key: &[u8]) -> heed::Result<()> {
        let mut part_key = PartKey::first(key);
        for part in 0..=self.further_parts(txn, part_key.bytes())? {
            self.database.delete(txn, part_key.turn_to(part))?;
        }
        Ok(())
    }

    /// Writes a part that is behind all others; `false`, and nothing happens, if it is not. The log grows at its end, and appending
    /// fills its pages, where putting leaves room behind each split.
    fn append(&self, txn: &mut RwTxn<'_>, part_key: &[u8], stored: &[u8]) -> heed::Result<bool> {
        match self.database.put_with_flags(txn, PutFlags::APPEND, part_key, stored) {
            Ok(()) => Ok(true),
            Err(heed::Error::Mdb(MdbError::KeyExist)) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// How many pages the table has.
    pub(super) fn pages(&self, txn: &RoTxn<'_>) -> heed::Result<Pages> {
        let stat = self.database.stat(txn)?;
        let (leaves, branches) = (stat.leaf_pages as u64, stat.branch_pages as u64);
        Ok(Pages { leaves, branches, overflow: stat.overflow_pages as u64, depth: u64::from(stat.depth) })
    }

    /// Pages of this table that the operations rewrite at most: the leaves of their rows and what is above those. `exactly` counts the
    /// leaves, which takes a look at each row and a transaction that has changed nothing yet; else every operation may have one of its
    /// own.
    pub(super) fn rewritten_pages(
        &self,
        txn: &RoTxn<'_>,
        operations: &[Operation],
        exactly: bool,
    ) -> heed::Result<u64> {
        let pages = self.pages(txn)?;
        let mut leaves = pages.leaves.min(operations.len() as u64);
        if exactly {
            // The last leaf, where rows come in behind all others.
            let mut counted = 1;
            let mut last = None;
            for operation in operations {
                let key = PartKey::first(operation.key());
                let Some((found, _)) = self.database.get_greater_than_or_equal_to(txn, key.bytes())? else { break };
                // A key lies on its leaf, whose place in memory tells leaves apart.
                let leaf = Some(found.as_ptr().addr() / self.cut.page_bytes());
                if leaf != last {
                    // A new row may come in on the leaf before that of the row behind its place.
                    counted += if found == key.bytes() { 1 } else { 2 };
                }
                last = leaf;
            }
            leaves = leaves.min(counted);
        }
        Ok(pages.rewritten(leaves))
    }

    fn further_parts(&self, txn: &RwTxn<'_>, first_key: &[u8]) -> heed::Result<u16> {
        Ok(self.database.get(txn, first_key)?.map_or(0, |first| self.cut.further_parts(first)))
    }
}

/// Visits rows one behind the iterator, which asks for each page as it comes to it. Waiting for memory is most of what a walk through
/// rows takes that nobody has read for a while: so the rest of a page is on its way while its first rows are looked at.
fn one_behind<'t>(
    rows: impl Iterator<Item = heed::Result<(&'t [u8], &'t [u8])>>,
    page_bytes: usize,
    failed: impl Fn(heed::Error) -> Cause,
    mut visit: impl FnMut(&'t [u8], &'t [u8]) -> Result<ControlFlow<()>, Cause>,
) -> Result<(), Cause> {
    let mut behind: Option<(&[u8], &[u8])> = None;
    let mut page = None;
    for row in rows {
        // What comes before a row that can't be read is visited first.
        let row = match row {
            Ok(row) => {
                let its_page = row.1.as_ptr().addr() / page_bytes;
                if page.replace(its_page) != Some(its_page) {
                    prefetch(row.1.as_ptr().with_addr(its_page * page_bytes), page_bytes);
                }
                Ok(row)
            }
            Err(error) => Err(failed(error)),
        };
        if let Some((key, stored)) = behind.take()
            && visit(key, stored)?.is_break()
        {
            return Ok(());
        }
        behind = Some(row?);
    }
    if let Some((key, stored)) = behind {
        // It was the last one anyway.
        let _ = visit(key, stored)?;
    }
    Ok(())
}

/// Asks for a page to be brought into the processor's cache. A hint: it reads nothing and can't fail.
#[inline]
fn prefetch(page: *const u8, page_bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..page_bytes).step_by(CACHE_LINE_BYTES) {
        // SAFETY: the instruction has no effect on memory, whatever the address.
        #[allow(unsafe_code)]
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(page.wrapping_add(line).cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (page, page_bytes);
}

/// The pages of a table.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pages {
    pub(super) leaves: u64,
    pub(super) branches: u64,
    pub(super) overflow: u64,
    depth: u64,
}

impl Pages {
    /// How many are rewritten at most when rows on so many leaves change.
    pub(super) fn rewritten(&self, leaves: u64) -> u64 {
        let leaves = leaves.min(self.leaves);
        leaves + leaves.min(self.branches) + self.depth
    }
}

/// A row as it is stored, not looked at yet.
pub(super) struct Row<'t, 'r> {
    rows: &'r Rows,
    txn: &'t RoTxn<'t>,
    key: &'t [u8],
    stored: &'t [u8],
}

impl Row<'_, '_> {
    pub(super) fn key(&self) -> &[u8] {
        self.key
    }

    /// Visits the row if it is sound; if not, that is an error, or is shown.
    #[inline]
    pub(super) fn show(&self, is_damage_shown: bool, visit: &mut DamageVisitor<'_>) -> Result<ControlFlow<()>, Cause> {
        match self.rows.value(self.txn, self.key, self.stored) {
            Ok(value) => Ok(visit(self.key, Some(&value))),
            Err(Cause::Corrupt(_)) if is_damage_shown => Ok(visit(self.key, None)),
            Err(cause) => Err(cause),
        }
    }
}
