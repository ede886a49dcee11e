//! How much room the store uses.
//!
//! The cluster tells no store's size, so the rows are measured by reading them, a bounded part at each call: a small store is measured whole each
//! time, a large one in turns. What it takes from the disks is not known at all: copies, versions that are not cleaned up yet and
//! compression are the cluster's. So it counts as what the rows take once.

use std::ops::{Bound, ControlFlow};

use kubewharf_engine::{Direction, EngineError, Size, Snapshot, Table};

use crate::Tikv;
use crate::client::Use;
use crate::snapshot::View;

/// What is read of a table at a call.
const TURN_BYTES: u64 = 64 << 20;
/// What a row costs beyond its key and value: the store's prefix, and the key once more in the index of versions. An estimate.
const ROW_OVERHEAD_BYTES: u64 = 64;

/// What is known of the tables' sizes.
#[derive(Debug, Default)]
pub(crate) struct Measure {
    tables: [TableMeasure; Table::ALL.len()],
}

#[derive(Debug, Default)]
struct TableMeasure {
    /// What the last whole measurement has found.
    bytes: u64,
    /// The last row that the measurement under way has read, and what it has found so far.
    under_way: Option<(Vec<u8>, u64)>,
}

impl TableMeasure {
    /// The best guess. A table that has grown shows it before it is measured to its end.
    fn guess(&self) -> u64 {
        self.under_way.as_ref().map_or(self.bytes, |(_, bytes)| self.bytes.max(*bytes))
    }
}

/// See [`kubewharf_engine::Engine::size`].
pub(crate) fn size(engine: &Tikv) -> Result<Size, EngineError> {
    let mut measure = engine.measure.lock();
    let view = View::begin(engine, Use::Views, &[])?;
    let mut in_use_bytes = 0;
    for table in Table::ALL {
        let measured = &mut measure.tables[usize::from(table.number())];
        let (start, before) = match &measured.under_way {
            Some((key, bytes)) => (Some(key.clone()), *bytes),
            None => (None, 0),
        };
        let start = start.as_ref().map_or(Bound::Unbounded, |key| Bound::Excluded(&key[..]));
        let mut read_bytes = 0;
        let mut stopped_at = None;
        view.scan(table, (start, Bound::Unbounded), Direction::Forward, &mut |key, value| {
            read_bytes += (2 * key.len() + value.len()) as u64 + ROW_OVERHEAD_BYTES;
            if read_bytes < TURN_BYTES {
                return ControlFlow::Continue(());
            }
            stopped_at = Some(key.to_vec());
            ControlFlow::Break(())
        })?;
        let bytes = before + read_bytes;
        measured.under_way = stopped_at.map(|key| (key, bytes));
        if measured.under_way.is_none() {
            measured.bytes = bytes;
        }
        in_use_bytes += measured.guess();
    }
    Ok(Size { allocated_bytes: in_use_bytes, in_use_bytes, capacity_bytes: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measurement_under_way_counts_once_it_has_found_more() {
        let mut table = TableMeasure { bytes: 100, under_way: None };
        assert_eq!(table.guess(), 100);
        table.under_way = Some((vec![1], 60));
        assert_eq!(table.guess(), 100);
        table.under_way = Some((vec![2], 160));
        assert_eq!(table.guess(), 160);
    }
}
