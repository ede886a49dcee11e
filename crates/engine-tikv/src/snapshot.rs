//! A view: a timestamp, at which the cluster shows its rows as they were then.
//!
//! Invariant: the view is taken, and the head known, before it is handed out. What a view reads is bounded in memory by pages and not by ranges. A
//! view that is so old that the cluster may have cleaned up what it shows fails; the cluster itself would not say so.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use kubewharf_engine::{Cause, DamageVisitor, Direction, EngineError, Head, Snapshot, Table, Visitor};
use tikv_client::{KvPair, Timestamp};
use tokio::time::Instant;

use crate::clients::Use;
use crate::commit::{read_options, stored_head};
use crate::{LIMITS, Tikv, key};

/// Rows of the first page of a scan, of the second, and of all others: most scans are short or end early. The library asks every region of
/// the rest of the range for as many at once, so pages are not larger.
const PAGE_ROWS: [u32; 3] = [32, 256, 512];
/// What a page should not exceed, by the size of the rows before it.
const PAGE_BYTES: usize = 4 << 20;
const PAGE_ROWS_MIN: u32 = 4;
/// Keys that are fetched with one question.
const PREFETCH_KEYS_MAX: usize = 1024;

/// A row's value by its key; `None` if there is no such row.
type Fetched = HashMap<Vec<u8>, Option<Arc<[u8]>>>;

/// Receives a row's key, and its value unless it is damaged; ends the scan by its answer.
type RowVisitor<'v> = dyn FnMut(&[u8], Result<&[u8], Cause>) -> Result<ControlFlow<()>, Cause> + 'v;

/// The view.
pub(crate) struct View<'e> {
    engine: &'e Tikv,
    what_for: Use,
    timestamp: Timestamp,
    taken: Instant,
    head: Head,
    fetched: RefCell<[Fetched; Table::ALL.len()]>,
}

impl<'e> View<'e> {
    /// Takes a view, and fetches some rows of it with the same question.
    pub(crate) fn begin(engine: &'e Tikv, what_for: Use, wanted: &[(Table, &[u8])]) -> Result<Self, EngineError> {
        let shared = &engine.shared;
        let head_key = shared.keys.head();
        let mut keys: BTreeSet<Vec<u8>> =
            wanted.iter().filter(|(_, key)| may_exist(key)).map(|(table, key)| shared.keys.row(*table, key)).collect();
        keys.insert(head_key.clone());
        let keys: Vec<Vec<u8>> = keys.into_iter().collect();
        let taken = Instant::now();
        let (deadline, asked) = (engine.read_deadline(), shared.clone());
        let (timestamp, pairs) = engine.run(deadline, async move {
            let question = |client: tikv_client::TransactionClient| {
                let keys = keys.clone();
                async move {
                    let now = client.current_timestamp().await?;
                    let pairs = client.snapshot(now.clone(), read_options()).batch_get(keys).await?;
                    Ok((now, pairs.collect::<Vec<_>>()))
                }
            };
            asked.clients.ask(what_for, deadline, question).await
        })?;
        let mut rows: HashMap<Vec<u8>, Vec<u8>> = pairs.into_iter().map(parts).collect();
        let head = stored_head(rows.remove(&head_key))?;
        let mut fetched: [Fetched; Table::ALL.len()] = Default::default();
        for (table, key) in wanted {
            let row = rows.get(&shared.keys.row(*table, key));
            let value = row.map(|row| key::value(row)).transpose()?.flatten().map(Arc::from);
            fetched[usize::from(table.number())].insert(key.to_vec(), value);
        }
        Ok(Self { engine, what_for, timestamp, taken, head, fetched: RefCell::new(fetched) })
    }

    /// Asks for rows of a list of keys, which are as the cluster has them.
    fn fetch(&self, keys: Vec<Vec<u8>>) -> Result<HashMap<Vec<u8>, Vec<u8>>, EngineError> {
        self.check_age()?;
        let (deadline, shared) = (self.engine.read_deadline(), self.engine.shared.clone());
        let (timestamp, what_for) = (self.timestamp.clone(), self.what_for);
        let pairs = self.engine.run(deadline, async move {
            let question = |client: tikv_client::TransactionClient| {
                let (keys, timestamp) = (keys.clone(), timestamp.clone());
                async move {
                    let pairs = client.snapshot(timestamp, read_options()).batch_get(keys).await?;
                    Ok(pairs.collect::<Vec<_>>())
                }
            };
            shared.clients.ask(what_for, deadline, question).await
        })?;
        Ok(pairs.into_iter().map(parts).collect())
    }

    /// Asks for the first rows of a range.
    fn page(
        &self,
        range: &(Vec<u8>, Vec<u8>),
        rows_max: u32,
        direction: Direction,
    ) -> Result<Vec<KvPair>, EngineError> {
        self.check_age()?;
        let (deadline, shared) = (self.engine.read_deadline(), self.engine.shared.clone());
        let (timestamp, what_for, range) = (self.timestamp.clone(), self.what_for, range.clone());
        let pairs = self.engine.run(deadline, async move {
            let question = |client: tikv_client::TransactionClient| {
                let (timestamp, range) = (timestamp.clone(), range.0.clone()..range.1.clone());
                async move {
                    let mut snapshot = client.snapshot(timestamp, read_options());
                    Ok(match direction {
                        Direction::Forward => snapshot.scan(range, rows_max).await?.collect::<Vec<_>>(),
                        Direction::Reverse => snapshot.scan_reverse(range, rows_max).await?.collect(),
                    })
                }
            };
            shared.clients.ask(what_for, deadline, question).await
        })?;
        Ok(pairs)
    }

    fn scan_rows(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        direction: Direction,
        visit: &mut RowVisitor<'_>,
    ) -> Result<(), EngineError> {
        let keys = &self.engine.shared.keys;
        let Some(mut range) = keys.range(table, range) else { return Ok(()) };
        let mut rows_max = PAGE_ROWS[0];
        for page in 1.. {
            let pairs = self.page(&range, rows_max, direction)?;
            let (count, mut bytes) = (pairs.len(), 0);
            let mut last = Vec::new();
            for pair in pairs {
                let (stored_key, row) = parts(pair);
                bytes += stored_key.len() + row.len();
                let key = stored_key.get(keys.row_prefix_bytes()..).unwrap_or_default();
                // A row that the store answers with but does not have is passed over.
                if let Some(value) = key::value(&row).transpose()
                    && visit(key, value)?.is_break()
                {
                    return Ok(());
                }
                last = stored_key;
            }
            if count < rows_max as usize {
                break;
            }
            match direction {
                Direction::Forward => {
                    last.push(0);
                    range.0 = last;
                }
                Direction::Reverse => range.1 = last,
            }
            if range.0 >= range.1 {
                break;
            }
            rows_max = page_rows(page, bytes / count.max(1));
        }
        Ok(())
    }

    fn check_age(&self) -> Result<(), EngineError> {
        let age_max = self.engine.shared.view_age_max;
        if self.taken.elapsed() <= age_max {
            return Ok(());
        }
        let text = format!("TiKV: the view is older than {} s, and so may be cleaned up", age_max.as_secs());
        Err(Cause::Unavailable(text).into())
    }
}

/// Whether a row can have such a key. The cluster refuses the empty one, and very long ones.
fn may_exist(key: &[u8]) -> bool {
    (1..=LIMITS.key_bytes_max).contains(&key.len())
}

fn parts(pair: KvPair) -> (Vec<u8>, Vec<u8>) {
    let (key, value) = pair.into();
    (key.into(), value)
}

/// Rows of the page behind the `page`-th, when rows are of that size.
fn page_rows(page: usize, row_bytes: usize) -> u32 {
    let rows = PAGE_ROWS[page.min(PAGE_ROWS.len() - 1)];
    rows.min(u32::try_from(PAGE_BYTES / row_bytes.max(1)).unwrap_or(u32::MAX)).max(PAGE_ROWS_MIN)
}

impl Snapshot for View<'_> {
    fn get(&self, table: Table, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Result<bool, EngineError> {
        let fetched = self.fetched.borrow()[usize::from(table.number())].get(key).cloned();
        let value = match fetched {
            Some(value) => value,
            None if !may_exist(key) => None,
            None => {
                let row = self.engine.shared.keys.row(table, key);
                let rows = self.fetch(vec![row.clone()])?;
                rows.get(&row).map(|row| key::value(row)).transpose()?.flatten().map(Arc::from)
            }
        };
        if let Some(value) = &value {
            visit(value);
        }
        Ok(value.is_some())
    }

    fn prefetch(&self, table: Table, keys: &[&[u8]]) -> Result<(), EngineError> {
        for keys in keys.chunks(PREFETCH_KEYS_MAX) {
            let row_of = |key: &[u8]| self.engine.shared.keys.row(table, key);
            let wanted: BTreeSet<Vec<u8>> = keys.iter().filter(|key| may_exist(key)).map(|key| row_of(key)).collect();
            let rows = if wanted.is_empty() { HashMap::new() } else { self.fetch(wanted.into_iter().collect())? };
            let mut fetched = Fetched::with_capacity(keys.len());
            for key in keys {
                let value = rows.get(&row_of(key)).map(|row| key::value(row)).transpose()?.flatten().map(Arc::from);
                fetched.insert(key.to_vec(), value);
            }
            self.fetched.borrow_mut()[usize::from(table.number())].extend(fetched);
        }
        Ok(())
    }

    fn scan(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<(), EngineError> {
        self.scan_rows(table, range, direction, &mut |key, value| Ok(visit(key, value?)))
    }

    fn scan_past_damage(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        visit: &mut DamageVisitor<'_>,
    ) -> Result<(), EngineError> {
        self.scan_rows(table, range, Direction::Forward, &mut |key, value| Ok(visit(key, value.ok())))
    }

    fn head(&self) -> Result<Head, EngineError> {
        Ok(self.head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_grow_unless_rows_are_large() {
        assert_eq!([1, 2, 3, 9].map(|page| page_rows(page, 500)), [256, 512, 512, 512]);
        assert_eq!([1, 2, 3].map(|page| page_rows(page, 64 << 10)), [64, 64, 64]);
        assert_eq!([1, 2, 3].map(|page| page_rows(page, 6 << 20)), [4, 4, 4]);
        assert_eq!(page_rows(1, 0), 256);
    }
}
