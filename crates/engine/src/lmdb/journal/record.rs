//! A batch as the journal keeps it.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | the journal's mark: a random number that the data file knows, so that no client's value looks like a record |
//! | 4 | CRC-32C of everything behind it up to the end of the rows |
//! | 4 | bytes of the rows |
//! | 8 | the record's number |
//! | 40, 40 | the head that the batch expects, the head that it leaves |
//! | | the rows: table (and whether it is removed), length of the key, length of the value, key, value |
//! | | zeros up to a whole number of blocks |
//!
//! Numbers are little-endian. A record begins on a block, so that writing the next one never touches what is already promised.
//!
//! The checksum leaves the zeros out: nothing reads them, and they fill no whole block, so that nothing looks for a record in them. Damage
//! there is none.

use bytes::{BufMut, Bytes};

use super::super::delta::Place;
use super::arena::Arena;
use crate::{Batch, Head, Operation, Table};

/// Records begin and end on multiples of this; what disks and the page cache write whole.
pub(in crate::lmdb) const BLOCK_BYTES: usize = 4096;

const SUM_AT: usize = 8;
const CHECKED_FROM: usize = SUM_AT + 4;
const NUMBER_AT: usize = CHECKED_FROM + 4;
const EXPECTED_AT: usize = NUMBER_AT + 8;
const NEXT_AT: usize = EXPECTED_AT + Head::ENCODED_BYTES;
const ROWS_AT: usize = NEXT_AT + Head::ENCODED_BYTES;

/// Bytes in front of a row's key.
const ROW_HEADER_BYTES: usize = 1 + 2 + 4;
/// Set in the table's number where the row is removed.
const DELETED: u8 = 0x80;

/// A record, sound and whole.
pub(in crate::lmdb) struct Record(Bytes);

impl Record {
    /// Bytes that the batch takes in the journal.
    pub(in crate::lmdb) fn bytes_of(batch: &Batch) -> usize {
        let rows: usize = batch.operations.iter().map(|operation| ROW_HEADER_BYTES + operation.payload_bytes()).sum();
        (ROWS_AT + rows).next_multiple_of(BLOCK_BYTES)
    }

    /// The record of a batch, which is not larger than 4 GiB, in memory of the arena.
    pub(super) fn encode(arena: &mut Arena, mark: u64, number: u64, batch: &Batch) -> Self {
        let bytes = Self::bytes_of(batch);
        let record = arena.room(bytes);
        record.extend_from_slice(&mark.to_le_bytes());
        record.extend_from_slice(&[0; 8]);
        record.extend_from_slice(&number.to_le_bytes());
        record.extend_from_slice(&batch.expected.encode());
        record.extend_from_slice(&batch.next.encode());
        for operation in &batch.operations {
            let (flag, value) = match operation {
                Operation::Put { value, .. } => (0, &value[..]),
                Operation::Delete { .. } => (DELETED, &[][..]),
            };
            let key = operation.key();
            record.put_u8(operation.table().number() | flag);
            // The limits on keys and values are far below.
            record.put_u16_le(key.len() as u16);
            record.put_u32_le(value.len() as u32);
            record.extend_from_slice(key);
            record.extend_from_slice(value);
        }
        let rows_bytes = (record.len() - ROWS_AT) as u32;
        record[CHECKED_FROM..NUMBER_AT].copy_from_slice(&rows_bytes.to_le_bytes());
        let sum = crc32c::crc32c(&record[CHECKED_FROM..]);
        record[SUM_AT..CHECKED_FROM].copy_from_slice(&sum.to_le_bytes());
        record.resize(bytes, 0);
        Self(record.split().freeze())
    }

    /// Reads the record that begins at the start of `bytes`; `None` if there is none, or one that is damaged or not whole.
    pub(super) fn read(mark: u64, bytes: &[u8]) -> Option<Self> {
        Self::claimed_number(mark, bytes)?;
        let word = |at: usize| bytes[at..at + 4].try_into().map_or(0, u32::from_le_bytes);
        let end = ROWS_AT + word(CHECKED_FROM) as usize;
        let checked = bytes.get(CHECKED_FROM..end)?;
        if crc32c::crc32c(checked) != word(SUM_AT) {
            return None;
        }
        let record = Self(Bytes::copy_from_slice(&bytes[..end.next_multiple_of(BLOCK_BYTES).min(bytes.len())]));
        record.is_well_formed().then_some(record)
    }

    /// The number that the record at the start of `bytes` claims to have, sound or not.
    pub(super) fn claimed_number(mark: u64, bytes: &[u8]) -> Option<u64> {
        let header = bytes.get(..ROWS_AT).filter(|header| header.starts_with(&mark.to_le_bytes()))?;
        Some(u64::from_le_bytes(header[NUMBER_AT..EXPECTED_AT].try_into().ok()?))
    }

    fn is_well_formed(&self) -> bool {
        let end = self.rows_end();
        let mut at = ROWS_AT;
        while at < end {
            match self.row_at(at) {
                Some((table, _, next)) if usize::from(table) < Table::ALL.len() && next <= end => at = next,
                _ => return false,
            }
        }
        true
    }

    /// The record's number.
    pub(in crate::lmdb) fn number(&self) -> u64 {
        u64::from_le_bytes(self.0[NUMBER_AT..EXPECTED_AT].try_into().expect("eight bytes"))
    }

    /// The head that its batch expects.
    pub(super) fn expected(&self) -> Head {
        Head::decode(&self.0[EXPECTED_AT..NEXT_AT]).expect("as long as a head")
    }

    /// The head that its batch leaves.
    pub(in crate::lmdb) fn next(&self) -> Head {
        Head::decode(&self.0[NEXT_AT..ROWS_AT]).expect("as long as a head")
    }

    /// The rows and where they lie; the number of the record in their delta is for others to say.
    pub(in crate::lmdb) fn rows(&self) -> impl Iterator<Item = (Table, Place)> + '_ {
        let end = self.rows_end();
        let mut at = ROWS_AT;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let (table, place, next) = self.row_at(at).expect("a record is well formed");
            at = next;
            Some((Table::ALL[usize::from(table)], place))
        })
    }

    fn rows_end(&self) -> usize {
        let bytes = self.0[CHECKED_FROM..NUMBER_AT].try_into().expect("four bytes");
        ROWS_AT + u32::from_le_bytes(bytes) as usize
    }

    /// The table's number and the place of the row at `at`, and where the next one is.
    fn row_at(&self, at: usize) -> Option<(u8, Place, usize)> {
        let header: &[u8; ROW_HEADER_BYTES] = self.0.get(at..at + ROW_HEADER_BYTES)?.try_into().ok()?;
        let [table, k0, k1, v0, v1, v2, v3] = *header;
        let key_bytes = u16::from_le_bytes([k0, k1]);
        let value_bytes = u32::from_le_bytes([v0, v1, v2, v3]);
        let offset = at + ROW_HEADER_BYTES;
        let next = offset + usize::from(key_bytes) + value_bytes as usize;
        let value_bytes = if table & DELETED == 0 { value_bytes } else { Place::DELETED };
        let place = Place { record: 0, offset: u32::try_from(offset).ok()?, value_bytes, key_bytes };
        Some((table & !DELETED, place, next))
    }

    /// All of it, as it is written.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// All of it.
    pub(in crate::lmdb) fn into_bytes(self) -> Bytes {
        self.0
    }
}
