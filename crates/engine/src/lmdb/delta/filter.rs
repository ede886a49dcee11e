//! Which keys a delta certainly does not name (a Bloom filter), so that most reads of a row that is in LMDB don't search the delta.
//!
//! Invariant: a key's bits are set before a clone of the delta that names it can be seen, and are never cleared.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::Table;

/// Bytes of a delta for each bit: rows of Kubernetes are larger by far than the two bits that each sets.
const DELTA_BYTES_PER_BIT: u64 = 32;

/// A set of keys that may contain more.
pub(super) struct Filter {
    /// A power of two of words.
    words: Box<[AtomicU64]>,
}

impl Filter {
    /// For a delta of that size.
    pub(super) fn new(delta_bytes: u64) -> Self {
        let words = (delta_bytes / DELTA_BYTES_PER_BIT / 64).max(1).next_power_of_two();
        Self { words: (0..words).map(|_| AtomicU64::new(0)).collect() }
    }

    pub(super) fn add(&self, table: Table, key: &[u8]) {
        for (word, bit) in self.bits(table, key) {
            // Readers learn of the key through a lock.
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }

    #[inline]
    pub(super) fn may_contain(&self, table: Table, key: &[u8]) -> bool {
        self.bits(table, key).into_iter().all(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
    }

    #[inline]
    fn bits(&self, table: Table, key: &[u8]) -> [(&AtomicU64, u64); 2] {
        let hash = u64::from(crc32c::crc32c_append(u32::from(table.number()), key));
        // Two numbers of one hash: its high and its low bits, mixed.
        let mixed = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        [mixed >> 40, mixed >> 16].map(|number| {
            let word = &self.words[(number >> 6) as usize & (self.words.len() - 1)];
            (word, 1 << (number & 63))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_is_there_and_most_else_is_not() {
        let filter = Filter::new(32 << 20);
        let key = |number: u32| format!("/registry/pods/namespace/pod-{number}");
        (0..40_000).for_each(|number| filter.add(Table::Current, key(number).as_bytes()));
        assert!((0..40_000).all(|number| filter.may_contain(Table::Current, key(number).as_bytes())));
        let wrong = (40_000..80_000).filter(|number| filter.may_contain(Table::Current, key(*number).as_bytes()));
        assert!(wrong.count() < 2000);
    }
}
