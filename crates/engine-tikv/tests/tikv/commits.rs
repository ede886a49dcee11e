//! Commits.

use kubewharf_engine::conformance::{Rows, apply, get, put, rows};
use kubewharf_engine::{Engine, Table};
use kubewharf_engine_tikv::Tikv;

use crate::stores::options;

pub(crate) fn a_caller_within_a_runtime_is_no_trouble() {
    let engine = Tikv::open(options()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        // Right on a task's thread, which is not done in production, and must not panic.
        apply(&engine, vec![put(Table::Meta, "k", "1")]);
        assert_eq!(get(&engine, Table::Meta, b"k"), Some(b"1".to_vec()));
    });
    runtime.block_on(async move { drop(engine) });
}

/// One message, several, and those with rows beyond what a message usually holds.
pub(crate) fn batches_of_all_sizes_are_applied() {
    let engine = Tikv::open(options()).unwrap();
    let mut model = Rows::new();
    for (count, bytes) in
        [(1, 10), (10, 1000), (400, 600), (30_000, 10), (60, 512 << 10), (1, engine.limits().value_bytes_max)]
    {
        let row = |number: u32| (format!("{count}/{number:05}").into_bytes(), vec![number as u8; bytes]);
        let batch: Vec<_> = (0..count).map(row).collect();
        apply(&engine, batch.iter().map(|(key, value)| put(Table::Current, key, value)).collect());
        model.extend(batch);
        assert!(rows(&engine, Table::Current) == model, "{count} rows of {bytes} bytes");
    }
}
