//! How much room the store uses.
//!
//! PostgreSQL knows what its files take, and gives the room of deleted rows back to new ones, not to the disk. What rows are in use it knows
//! only roughly and late. So the rows are measured: all of a small table's, and those of a sample of a large table's pages.

use kubewharf_engine::{Cause, EngineError, Size, Table};

use crate::snapshot::View;
use crate::{Postgres, sql};

/// Pages of a table that are looked at: all of a table of 8 MiB. A sample of that many errs by some per cent.
const SAMPLE_PAGES: f64 = 1024.0;
/// What a row costs beyond its key, its value and the key in the index: its header, and its places on its page and in the index.
const ROW_OVERHEAD_BYTES: f64 = 52.0;

/// See [`kubewharf_engine::Engine::size`].
pub(crate) fn size(engine: &Postgres) -> Result<Size, EngineError> {
    let mut size = Size::default();
    let view = View::begin(engine, &engine.pool, &[])?;
    for table in Table::ALL {
        let name = sql::name(&engine.options.schema, table.name());
        let literal = name.replace('\'', "''");
        let [total, pages] = numbers(&view.simple(&format!(
            "SELECT pg_total_relation_size('{literal}'::regclass), \
             pg_relation_size('{literal}'::regclass) / current_setting('block_size')::bigint"
        ))?)?;
        let percent = (100.0 * SAMPLE_PAGES / pages.max(1.0)).min(100.0);
        let [rows, bytes] = numbers(&view.simple(&format!(
            "SELECT count(*), coalesce(sum(2 * pg_column_size(k) + pg_column_size(v)), 0)::bigint \
             FROM {name} TABLESAMPLE SYSTEM ({percent})"
        ))?)?;
        let in_use = (bytes + rows * ROW_OVERHEAD_BYTES) * 100.0 / percent;
        size.allocated_bytes += total as u64;
        size.in_use_bytes += in_use.min(total) as u64;
    }
    Ok(size)
}

/// The two numbers of a row.
fn numbers(row: &[Option<String>]) -> Result<[f64; 2], EngineError> {
    let number = |at: usize| row.get(at)?.as_ref()?.parse::<f64>().ok();
    match (number(0), number(1)) {
        (Some(first), Some(second)) => Ok([first, second]),
        _ => Err(Cause::Io("PostgreSQL: a size is no number".to_owned()).into()),
    }
}
