//! The engines against an ordered map, with the inputs that proptest thinks up.

use std::ops::Bound;

use kubewharf_engine::Table;
use kubewharf_engine::conformance::{Rows, Store, apply, assert_scans, delete, get, put};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;

use crate::stores::{LmdbStore, MemoryStore};

const KEY_BYTES_MAX: usize = 1980;

/// Short keys of the bytes that sort at the edges, and some at the limit of length.
fn key() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![Just(0x00), Just(0x01), Just(0xfe), Just(0xff), any::<u8>()];
    prop_oneof![
        9 => vec(byte, 1..5),
        1 => (vec(any::<u8>(), 3), prop_oneof![Just(0x00), Just(0xff)], 0..2_usize).prop_map(|(mut key, fill, less)| {
            key.resize(KEY_BYTES_MAX - less, fill);
            key
        }),
    ]
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => vec(any::<u8>(), 0..40),
        1 => (any::<u8>(), prop_oneof![1900..2100_usize, 4060..4100_usize, 8100..9000_usize]).prop_map(|(byte, length)| vec![byte; length]),
    ]
}

fn bound() -> impl Strategy<Value = Bound<Vec<u8>>> {
    prop_oneof![
        4 => key().prop_map(Bound::Included),
        4 => key().prop_map(Bound::Excluded),
        1 => Just(Bound::Included(vec![])),
        1 => Just(Bound::Excluded(vec![])),
        2 => Just(Bound::Unbounded),
    ]
}

type Change = std::collections::BTreeMap<Vec<u8>, Option<Vec<u8>>>;

fn changes() -> impl Strategy<Value = Vec<Change>> {
    vec(btree_map(key(), option::weighted(0.7, value()), 1..12), 1..6)
}

type Range = (Bound<Vec<u8>>, Bound<Vec<u8>>);

fn check(store: &dyn Store, table: Table, changes: &[Change], ranges: &[Range]) {
    let engine = store.engine();
    assert_eq!(engine.limits().key_bytes_max, KEY_BYTES_MAX);
    let mut model = Rows::new();
    for change in changes {
        let mut operations = Vec::new();
        for (key, value) in change {
            match value {
                Some(value) => {
                    operations.push(put(table, key, value));
                    model.insert(key.clone(), value.clone());
                }
                None => {
                    operations.push(delete(table, key));
                    model.remove(key);
                }
            }
        }
        apply(engine, operations);
    }
    for (start, end) in ranges {
        assert_scans(engine, table, &model, (start.as_ref().map(|key| &key[..]), end.as_ref().map(|key| &key[..])));
    }
    for key in changes.iter().flat_map(|change| change.keys()) {
        assert_eq!(get(engine, table, key).as_ref(), model.get(key));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn lmdb_is_an_ordered_map(
        changes in changes(),
        ranges in vec((bound(), bound()), 1..12),
        delta_bytes in prop_oneof![Just(0), Just(80_u64 << 10), Just(32 << 20)],
    ) {
        // Both ways of putting: at the end where possible, and anywhere.
        let store = LmdbStore::with_delta(delta_bytes);
        check(&store, Table::Log, &changes, &ranges);
        check(&store, Table::Current, &changes, &ranges);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn memory_is_an_ordered_map(changes in changes(), ranges in vec((bound(), bound()), 1..12)) {
        check(&MemoryStore::new(), Table::Log, &changes, &ranges);
    }
}
