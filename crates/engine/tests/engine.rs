//! Tests of the engines.

use std::ops::{Bound, ControlFlow};

use bytes::Bytes;
use kubewharf_engine::lmdb::{Lmdb, Options};
use kubewharf_engine::memory::Memory;
use kubewharf_engine::{Batch, CommitError, Direction, Engine, Head, Operation, Table};

fn smoke(engine: &dyn Engine) {
    let head = engine.snapshot().unwrap().head().unwrap();
    assert_eq!((head.epoch, head.seq, head.revision), (1, 1, 1));
    let put = |key: &str, value: &str| Operation::Put {
        table: Table::Current,
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
    };
    let next = Head {
        seq: 2,
        revision: 2,
        batch_id: 7,
        ..head
    };
    let batch = Batch {
        expected: head,
        next,
        operations: vec![put("a", "1"), put("b", "2")],
    };
    let old = engine.snapshot().unwrap();
    engine.commit(&batch).unwrap();
    assert_eq!(engine.commit(&batch), Err(CommitError::Fenced(next)));
    assert!(!old.get(Table::Current, b"a", &mut |_| {}).unwrap());
    let mut rows = Vec::new();
    let range = (Bound::Excluded(&b""[..]), Bound::Excluded(&b"c"[..]));
    let visit = &mut |key: &[u8], value: &[u8]| {
        rows.push((key.to_vec(), value.to_vec()));
        ControlFlow::Continue(())
    };
    engine
        .snapshot()
        .unwrap()
        .scan(Table::Current, range, Direction::Reverse, visit)
        .unwrap();
    assert_eq!(rows, [(b"b".to_vec(), b"2".to_vec()), (b"a".to_vec(), b"1".to_vec())]);
    println!("{:?} {:?}", engine.limits(), engine.size());
}

#[test]
fn smoke_both() {
    smoke(&Memory::new());
    let directory = tempfile::tempdir().unwrap();
    let options = Options::new(directory.path());
    let lmdb = Lmdb::open(options.clone()).unwrap();
    smoke(&lmdb);
    drop(lmdb);
    let lmdb = Lmdb::open(options).unwrap();
    let head = lmdb.snapshot().unwrap().head().unwrap();
    assert_eq!((head.epoch, head.seq, head.revision), (2, 3, 2));
}
