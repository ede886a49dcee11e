//! A view: a timestamp, at which the cluster shows its rows as they were then.
//!
//! Invariant: the view is taken, and the head known, before it is handed out. What a view reads is bounded in memory by pages and not by ranges. A
//! view that is so old that the cluster may have cleaned up what it shows fails; the cluster itself would not say so.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use bytes::Bytes;
use kubewharf_engine::{Cause, DamageVisitor, Direction, EngineError, Head, Snapshot, Table, Visitor, Wanted};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::client::{Page, Reader, Use};
use crate::commit::stored_head;
use crate::{LIMITS, Tikv, key, wait_for};

/// Rows of the first page of a scan, of the second, and of all others, where nobody says how many are wanted: most such scans are short or
/// end early, and what a page brings too much has been read in vain.
const PAGE_ROWS: [u32; 3] = [32, 256, 1024];
/// Rows of the first page where it is said how many are wanted: the cluster bounds no answer in bytes, and how large rows are is not known yet.
const FIRST_PAGE_ROWS_MAX: u32 = 128;
/// Rows of a page, however small: those behind may be larger.
const PAGE_ROWS_MAX: u32 = 1024;
/// What a page should not exceed, by the size of the rows before it.
const PAGE_BYTES: usize = 4 << 20;
/// Keys that are fetched with one question.
const PREFETCH_KEYS_MAX: usize = 1024;

/// A row's value by its key; `None` if there is no such row.
type Fetched = HashMap<Vec<u8>, Option<Bytes>>;

/// Receives a row's key, and its value unless it is damaged; ends the scan by its answer.
type RowVisitor<'v> = dyn FnMut(&[u8], Result<&[u8], Cause>) -> Result<ControlFlow<()>, Cause> + 'v;

/// The view.
pub(crate) struct View<'e> {
    engine: &'e Tikv,
    reader: Arc<Reader>,
    taken: Instant,
    head: Head,
    fetched: RefCell<[Fetched; Table::ALL.len()]>,
}

/// A page that is being fetched; not any more once nobody wants it.
struct Fetching {
    page: Option<JoinHandle<Result<Page, Cause>>>,
    deadline: Instant,
}

impl Drop for Fetching {
    fn drop(&mut self) {
        if let Some(page) = &self.page {
            page.abort();
        }
    }
}

impl<'e> View<'e> {
    /// Takes a view, and fetches some rows of it with the same question.
    pub(crate) fn begin(engine: &'e Tikv, what_for: Use, wanted: &[(Table, &[u8])]) -> Result<Self, EngineError> {
        let shared = &engine.shared;
        let head_key = shared.keys.head();
        let mut keys: BTreeSet<Bytes> =
            wanted.iter().filter(|(_, key)| may_exist(key)).map(|(table, key)| shared.keys.row(*table, key)).collect();
        keys.insert(head_key.clone());
        let keys: Vec<Bytes> = keys.into_iter().collect();
        let taken = Instant::now();
        let (deadline, client) = (engine.read_deadline(), shared.client.clone());
        let (reader, rows) = engine.run(deadline, async move {
            let now = client.timestamp(deadline).await?;
            let reader = Reader::new(client, what_for, now);
            let rows = reader.get(&keys, deadline).await?;
            Ok((Arc::new(reader), rows))
        })?;
        let mut rows: HashMap<Bytes, Bytes> = rows.into_iter().collect();
        let head = stored_head(rows.remove_entry(&head_key))?;
        let mut fetched: [Fetched; Table::ALL.len()] = Default::default();
        for (table, key) in wanted {
            let value = found(&rows, &shared.keys.row(*table, key))?;
            fetched[usize::from(table.number())].insert(key.to_vec(), value);
        }
        Ok(Self { engine, reader, taken, head, fetched: RefCell::new(fetched) })
    }

    /// Asks for rows of a list of keys, which are as the cluster has them.
    fn fetch(&self, keys: Vec<Bytes>) -> Result<HashMap<Bytes, Bytes>, EngineError> {
        self.check_age()?;
        let (deadline, reader) = (self.engine.read_deadline(), self.reader.clone());
        let rows = self.engine.run(deadline, async move { reader.get(&keys, deadline).await })?;
        // The answer may have taken its time.
        self.check_age()?;
        Ok(rows.into_iter().collect())
    }

    /// Begins to ask for the first rows of a range.
    fn fetch_page(&self, range: (Bytes, Bytes), rows_max: u32, direction: Direction) -> Result<Fetching, EngineError> {
        self.check_age()?;
        let (deadline, reader) = (self.engine.read_deadline(), self.reader.clone());
        let page = async move { reader.page(range, rows_max, direction, deadline).await };
        Ok(Fetching { page: Some(self.engine.runtime().spawn(page)), deadline })
    }

    /// Visits rows page by page. `wanted` are those that are wanted, if anybody has said that.
    fn scan_rows(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        direction: Direction,
        mut wanted: Option<usize>,
        visit: &mut RowVisitor<'_>,
    ) -> Result<(), EngineError> {
        let keys = &self.engine.shared.keys;
        let Some(range) = keys.range(table, range) else { return Ok(()) };
        let mut fetching = self.fetch_page(range, page_rows(0, 0, wanted), direction)?;
        for page in 1.. {
            let Some(task) = fetching.page.take() else { break };
            let Page { rows, rest } = wait_for(fetching.deadline, task)?;
            self.check_age()?;
            let bytes: usize = rows.iter().map(|(key, value)| key.len() + value.len()).sum();
            let row_bytes = bytes / rows.len().max(1);
            wanted = wanted.map(|wanted| wanted.saturating_sub(rows.len()));
            let mut next = rest.map(|rest| (rest, page_rows(page, row_bytes, wanted)));
            // While these rows are visited the next ones come; but not behind the first page, with which most scans end.
            if page > 1
                && let Some((rest, rows_max)) = next.take()
            {
                fetching = self.fetch_page(rest, rows_max, direction)?;
            }
            for (stored_key, row) in &rows {
                let key = stored_key.get(keys.row_prefix_bytes()..).unwrap_or_default();
                // A row that the store answers with but does not have is passed over.
                if let Some(value) = key::value(row).transpose()
                    && visit(key, value)?.is_break()
                {
                    return Ok(());
                }
            }
            if let Some((rest, rows_max)) = next {
                fetching = self.fetch_page(rest, rows_max, direction)?;
            }
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

/// A row's value among those that were found.
fn found(rows: &HashMap<Bytes, Bytes>, key: &Bytes) -> Result<Option<Bytes>, Cause> {
    let Some(row) = rows.get(key) else { return Ok(None) };
    Ok(key::value(row)?.map(|value| row.slice_ref(value)))
}

/// Rows of a page behind the first `page` ones, when rows were of that size so far, and so many more are wanted, if anybody has said that.
fn page_rows(page: usize, row_bytes: usize, wanted: Option<usize>) -> u32 {
    let rows = match wanted {
        Some(wanted) => {
            let rows_max = if page == 0 { FIRST_PAGE_ROWS_MAX } else { PAGE_ROWS_MAX };
            // A few more than were wanted are, if it is not over by then.
            u32::try_from(wanted).unwrap_or(u32::MAX).clamp(PAGE_ROWS[0], rows_max)
        }
        None => PAGE_ROWS[page.min(PAGE_ROWS.len() - 1)],
    };
    rows.min(u32::try_from(PAGE_BYTES / row_bytes.max(1)).unwrap_or(u32::MAX)).max(1)
}

impl Snapshot for View<'_> {
    fn get(&self, table: Table, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Result<bool, EngineError> {
        let fetched = self.fetched.borrow()[usize::from(table.number())].get(key).cloned();
        let value = match fetched {
            Some(value) => value,
            None if !may_exist(key) => None,
            None => {
                let row = self.engine.shared.keys.row(table, key);
                found(&self.fetch(vec![row.clone()])?, &row)?
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
            let wanted: BTreeSet<Bytes> = keys.iter().filter(|key| may_exist(key)).map(|key| row_of(key)).collect();
            let rows = if wanted.is_empty() { HashMap::new() } else { self.fetch(wanted.into_iter().collect())? };
            let mut fetched = Fetched::with_capacity(keys.len());
            for key in keys {
                fetched.insert(key.to_vec(), found(&rows, &row_of(key))?);
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
        self.scan_rows(table, range, direction, None, &mut |key, value| Ok(visit(key, value?)))
    }

    fn scan_wanted(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        direction: Direction,
        wanted: Wanted,
        visit: &mut Visitor<'_>,
    ) -> Result<(), EngineError> {
        // The cluster sends values whole, or none: what is wanted of them is mostly their first bytes.
        self.scan_rows(table, range, direction, Some(wanted.rows), &mut |key, value| {
            let value = value?;
            Ok(visit(key, &value[..value.len().min(wanted.value_bytes)]))
        })
    }

    fn scan_past_damage(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        visit: &mut DamageVisitor<'_>,
    ) -> Result<(), EngineError> {
        self.scan_rows(table, range, Direction::Forward, None, &mut |key, value| Ok(visit(key, value.ok())))
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
        assert_eq!([0, 1, 2, 3, 9].map(|page| page_rows(page, 500, None)), [32, 256, 1024, 1024, 1024]);
        assert_eq!([1, 2, 3].map(|page| page_rows(page, 64 << 10, None)), [64, 64, 64]);
        assert_eq!([1, 2, 3].map(|page| page_rows(page, 6 << 20, None)), [1, 1, 1]);
        assert_eq!(page_rows(1, 0, None), 256);
    }

    #[test]
    fn pages_have_what_is_wanted_within_their_bytes() {
        assert_eq!([0, 1].map(|page| page_rows(page, 0, Some(501))), [128, 501]);
        assert_eq!([0, 1].map(|page| page_rows(page, 512, Some(100_000))), [128, 1024]);
        assert_eq!(page_rows(1, 8 << 10, Some(100_000)), 512);
        assert_eq!(page_rows(2, 100, Some(0)), 32, "what was said was wrong");
    }
}
