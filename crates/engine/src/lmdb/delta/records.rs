//! The bytes of a delta's rows: the journal's records as they were written.
//!
//! Invariant: a record is added once, by the one writer, and neither moves nor changes as long as the delta lives, so readers need
//! no lock.

use std::sync::OnceLock;

use bytes::Bytes;

use super::super::record::Cut;

/// Records of the first block; each further block has twice as many.
const FIRST_BLOCK: usize = 64;
const FIRST_BLOCK_LOG2: u32 = FIRST_BLOCK.ilog2();
/// With this many blocks there is room for 2^32 records, and a delta never has that many.
const BLOCKS: usize = 26;

type Block = Box<[OnceLock<Bytes>]>;

/// Where a row lies: which record, where in it, and how long its key and its value are.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::lmdb) struct Place {
    pub(in crate::lmdb) record: u32,
    /// Where the key begins; the value follows it.
    pub(in crate::lmdb) offset: u32,
    /// [`Place::DELETED`] where the row is removed.
    pub(in crate::lmdb) value_bytes: u32,
    pub(in crate::lmdb) key_bytes: u16,
}

impl Place {
    /// Stands for the length of a value that there is not.
    pub(in crate::lmdb) const DELETED: u32 = u32::MAX;

    /// Bytes of the key and the value of a row that is put; 0 for one that is removed.
    pub(super) fn put_bytes(&self) -> u64 {
        if self.value_bytes == Self::DELETED { 0 } else { u64::from(self.value_bytes) + u64::from(self.key_bytes) }
    }

    /// The most room that the row takes in LMDB's file; 0 for one that is removed.
    pub(super) fn room_bytes(&self, cut: Cut) -> u64 {
        if self.value_bytes == Self::DELETED {
            return 0;
        }
        cut.room_bytes(usize::from(self.key_bytes), self.value_bytes as usize)
    }
}

/// An append-only list.
pub(in crate::lmdb) struct Records {
    blocks: [OnceLock<Block>; BLOCKS],
}

impl Records {
    pub(super) fn new() -> Self {
        Self { blocks: [const { OnceLock::new() }; BLOCKS] }
    }

    /// Adds record number `number`; each number is used once.
    pub(super) fn set(&self, number: u32, record: Bytes) {
        let (block, position) = locate(number);
        let block = self.blocks[block].get_or_init(|| (0..FIRST_BLOCK << block).map(|_| OnceLock::new()).collect());
        block[position].set(record).expect("the one writer uses each number once");
    }

    #[inline]
    fn record(&self, number: u32) -> &[u8] {
        let (block, position) = locate(number);
        let record = self.blocks[block].get().and_then(|block| block[position].get());
        record.expect("a place names a record that was added before it")
    }

    #[inline]
    pub(super) fn key(&self, place: &Place) -> &[u8] {
        let start = place.offset as usize;
        &self.record(place.record)[start..start + usize::from(place.key_bytes)]
    }

    /// `None` where the row is removed.
    #[inline]
    pub(super) fn value(&self, place: &Place) -> Option<&[u8]> {
        if place.value_bytes == Place::DELETED {
            return None;
        }
        let start = place.offset as usize + usize::from(place.key_bytes);
        Some(&self.record(place.record)[start..start + place.value_bytes as usize])
    }
}

fn locate(number: u32) -> (usize, usize) {
    let shifted = number as usize + FIRST_BLOCK;
    let block = shifted.ilog2() - FIRST_BLOCK_LOG2;
    (block as usize, shifted - (FIRST_BLOCK << block))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_stay_where_they_are() {
        let records = Records::new();
        let content = |number: u32| Bytes::copy_from_slice(&number.to_be_bytes());
        for number in 0..1000 {
            records.set(number, content(number));
        }
        for number in 0..1000_u32 {
            let place = Place { record: number, offset: 1, value_bytes: 2, key_bytes: 1 };
            let bytes = number.to_be_bytes();
            assert_eq!((records.key(&place), records.value(&place)), (&bytes[1..2], Some(&bytes[2..])));
        }
    }
}
