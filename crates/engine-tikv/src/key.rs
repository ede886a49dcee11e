//! The bytes of keys and values in the cluster.
//!
//! All of a store's keys begin with `kw/`, its name and a zero byte, which no name has, so that stores share a cluster, and others can use it
//! beside them. Behind that: `m` and a name for the rows about the store, or `t`, the table's number and the row's key. In a keyspace the cluster's mark
//! for it stands before all of that.
//!
//! Invariant: no stored value is empty. A value begins with a byte that says how the row is written; a reader that finds another one
//! has found damage.

use std::ops::Bound;

use bytes::Bytes;
use kubewharf_engine::{Cause, Table};

/// How a row is written: as it is, behind this byte.
const PLAIN: u8 = 1;
const ABOUT: u8 = b'm';
const TABLES: u8 = b't';

/// Makes a store's keys.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    prefix: Vec<u8>,
}

impl Keys {
    /// The keys of the store of that name; the error says what is wrong with the name.
    pub(crate) fn new(schema: &str) -> Result<Self, String> {
        if schema.is_empty() || schema.len() > 64 || schema.contains('\0') {
            return Err(format!("{schema:?}: a store's name has 1 to 64 bytes, none of them zero"));
        }
        let mut prefix = b"kw/".to_vec();
        prefix.extend_from_slice(schema.as_bytes());
        prefix.push(0);
        Ok(Self { prefix })
    }

    /// The same in a keyspace, whose mark it is.
    pub(crate) fn within(mut self, mut keyspace: Vec<u8>) -> Self {
        keyspace.append(&mut self.prefix);
        Self { prefix: keyspace }
    }

    /// The row with the head.
    pub(crate) fn head(&self) -> Bytes {
        self.about(b"head")
    }

    /// The row with the format, and whether the store is whole.
    pub(crate) fn store(&self) -> Bytes {
        self.about(b"store")
    }

    fn about(&self, name: &[u8]) -> Bytes {
        [&self.prefix[..], &[ABOUT], name].concat().into()
    }

    /// A row's key.
    pub(crate) fn row(&self, table: Table, key: &[u8]) -> Bytes {
        [&self.prefix[..], &[TABLES, table.number()], key].concat().into()
    }

    /// What comes before a row's own key, in bytes.
    pub(crate) fn row_prefix_bytes(&self) -> usize {
        self.prefix.len() + 2
    }

    /// The first key of a range of rows, and the first one behind it. `None` if nothing can be in between.
    pub(crate) fn range(&self, table: Table, range: (Bound<&[u8]>, Bound<&[u8]>)) -> Option<(Bytes, Bytes)> {
        let behind = |key: &[u8]| self.row(table, &[key, &[0]].concat());
        let start = match range.0 {
            Bound::Included(key) => self.row(table, key),
            Bound::Excluded(key) => behind(key),
            Bound::Unbounded => self.row(table, b""),
        };
        let end = match range.1 {
            Bound::Included(key) => behind(key),
            Bound::Excluded(key) => self.row(table, key),
            Bound::Unbounded => [&self.prefix[..], &[TABLES, table.number() + 1]].concat().into(),
        };
        (start < end).then_some((start, end))
    }
}

/// A value as it is stored.
pub(crate) fn stored(value: &[u8]) -> Bytes {
    [&[PLAIN][..], value].concat().into()
}

/// The value of what is stored. None is ever stored empty, and there are servers that answer so for a row that is not there.
pub(crate) fn value(row: &[u8]) -> Result<Option<&[u8]>, Cause> {
    match row {
        [PLAIN, value @ ..] => Ok(Some(value)),
        [] => Ok(None),
        [other, ..] => Err(Cause::Corrupt(format!("TiKV: a row is written in the unknown form {other}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_and_tables_are_apart() {
        let (one, other) = (Keys::new("a").unwrap(), Keys::new("ab").unwrap());
        let all = (Bound::Unbounded, Bound::Unbounded);
        let mut ranges: Vec<_> = [&one, &other]
            .into_iter()
            .flat_map(|keys| Table::ALL.map(|table| keys.range(table, all).unwrap()))
            .collect();
        ranges.sort();
        for pair in ranges.windows(2) {
            assert!(pair[0].1 <= pair[1].0, "{pair:?}");
        }
        for keys in [&one, &other] {
            for about in [keys.head(), keys.store()] {
                assert!(ranges.iter().all(|(start, end)| about < *start || about >= *end), "{about:?}");
            }
        }
        assert_eq!(one.row(Table::Log, b"k"), b"kw/a\0t\x02k"[..]);
        assert_eq!(one.row(Table::Log, b"k").len(), one.row_prefix_bytes() + 1);
        let within = one.clone().within(b"x\0\0\x07".to_vec());
        assert_eq!(within.row(Table::Log, b"k"), b"x\0\0\x07kw/a\0t\x02k"[..]);
        assert_eq!(within.row_prefix_bytes(), one.row_prefix_bytes() + 4);
        for name in ["", "a\0b", &"x".repeat(65)] {
            assert!(Keys::new(name).is_err());
        }
    }

    #[test]
    fn bounds_are_first_keys_and_first_keys_behind() {
        let keys = Keys::new("s").unwrap();
        let range = |start, end| keys.range(Table::Meta, (start, end));
        let (a, b): (&[u8], &[u8]) = (b"a", b"b");
        let row = |key: &[u8]| keys.row(Table::Meta, key);
        assert_eq!(range(Bound::Included(a), Bound::Excluded(b)), Some((row(b"a"), row(b"b"))));
        assert_eq!(range(Bound::Excluded(a), Bound::Included(b)), Some((row(b"a\0"), row(b"b\0"))));
        assert_eq!(range(Bound::Included(a), Bound::Included(a)), Some((row(b"a"), row(b"a\0"))));
        for (start, end) in [
            (Bound::Included(b), Bound::Included(a)),
            (Bound::Included(a), Bound::Excluded(a)),
            (Bound::Excluded(a), Bound::Included(a)),
            (Bound::Excluded(a), Bound::Excluded(a)),
        ] {
            assert_eq!(range(start, end), None, "{start:?} {end:?}");
        }
        let (start, end) = range(Bound::Unbounded, Bound::Unbounded).unwrap();
        assert!(start < row(b"\0") && row(&[0xff; 9]) < end && end <= keys.row(Table::Current, b""));
    }

    #[test]
    fn a_value_is_never_stored_empty() {
        for sample in [&b""[..], b"\x01", b"value"] {
            let row = stored(sample);
            assert!(!row.is_empty());
            assert_eq!(value(&row), Ok(Some(sample)));
        }
        assert_eq!(value(b""), Ok(None));
        for damaged in [&b"\0"[..], b"\x02x"] {
            assert!(matches!(value(damaged), Err(Cause::Corrupt(_))));
        }
    }
}
