//! A view: a read-only transaction on a connection of its own.
//!
//! Invariant: the view is taken, and the head known, before it is handed out. What a view reads is bounded in memory by pages and not by
//! ranges: rows are passed on as they come, and only a visitor that itself reads from the view makes the rest of its page wait in memory.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::ops::Bound;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use futures_util::TryStreamExt;
use kubewharf_engine::{Cause, Direction, EngineError, Head, Snapshot, Table, Visitor};
use tokio_postgres::types::Type;
use tokio_postgres::{Error, Row, RowStream};

use crate::Postgres;
use crate::error::{is_refusal, unavailable};
use crate::link::{Link, Parameter};
use crate::pool::{Pool, Pooled};
use crate::sql;
use crate::wait::{self, Step};

/// Rows of the first page of a scan, of the second, and of all others: most scans are short or end early, and what a page brings too much
/// has been read in vain.
const PAGE_ROWS: [i64; 3] = [32, 256, 1024];
/// What a page should not exceed, by the size of the rows before it.
const PAGE_BYTES: usize = 4 << 20;
const PAGE_ROWS_MIN: i64 = 16;
/// New connections that may be lost before one has a view.
const LOST_MAX: u32 = 3;
/// Keys that are fetched with one statement.
const PREFETCH_KEYS_MAX: usize = 1024;

/// A row's value by its key; `None` if there is no such row.
type Fetched = HashMap<Vec<u8>, Option<Arc<[u8]>>>;

/// The view.
pub(crate) struct View<'e> {
    engine: &'e Postgres,
    /// Spoiled by the first failure; the view then fails for good.
    connection: RefCell<Pooled<'e>>,
    head: Head,
    fetched: RefCell<[Fetched; Table::ALL.len()]>,
    /// The pages that are being visited, the innermost last: only that one may have rows under way.
    pages: RefCell<Vec<Page>>,
}

#[derive(Default)]
struct Page {
    /// Rows under way; `None` when all of them are here.
    stream: Option<Pin<Box<RowStream>>>,
    /// Rows that had to be taken out of the way.
    waiting: VecDeque<Row>,
}

impl<'e> View<'e> {
    /// Takes a view, and fetches some rows of it in the same round trip.
    pub(crate) fn begin(engine: &'e Postgres, pool: &'e Pool, wanted: &[(Table, &[u8])]) -> Result<Self, EngineError> {
        let begin = sql::begin_view(&engine.options.schema, engine.options.is_pooled);
        let deadline = engine.read_deadline();
        let mut lost_when_new = 0;
        loop {
            let mut connection = pool.take(&engine.connector, deadline)?;
            let answer = connection.link().and_then(|link| {
                link.take_warnings();
                let answer = wait::until(deadline, begin_with(engine, link, &begin, wanted));
                // That a transaction was open already, for example: its view would be an old one.
                let warning = link.take_warnings().pop();
                answer.map(|answer| (answer, warning))
            });
            let failure = match answer {
                Some((Ok((row, rows)), None)) => match sql::head(&row) {
                    Some(head) => {
                        let connection = RefCell::new(connection);
                        let mut fetched: [Fetched; Table::ALL.len()] = Default::default();
                        for ((table, key), row) in wanted.iter().zip(rows) {
                            let value = row.as_ref().map(|row| bytes(row, 0)).transpose()?.map(Arc::from);
                            fetched[usize::from(table.number())].insert(key.to_vec(), value);
                        }
                        let (fetched, pages) = (RefCell::new(fetched), RefCell::default());
                        return Ok(Self { engine, connection, head, fetched, pages });
                    }
                    None => Cause::Corrupt("the head's row is missing or damaged".to_owned()),
                },
                Some((Err(error), _)) if !is_refusal(&error) && (!connection.is_new() || lost_when_new < LOST_MAX) => {
                    // Lost since it was last used, each of which is closed; or lost as soon as it was made. No view was taken.
                    lost_when_new += u32::from(connection.is_new());
                    connection.spoil();
                    continue;
                }
                Some((Ok(_), Some(warning))) => Cause::Unavailable(format!("PostgreSQL: {warning}")),
                Some((Err(error), _)) => unavailable(&error),
                None => Cause::Unavailable("PostgreSQL: no answer in time".to_owned()),
            };
            connection.spoil();
            return Err(failure.into());
        }
    }

    /// Runs other statements within the view, and returns the fields of the last row.
    pub(crate) fn simple(&self, text: &str) -> Result<Vec<Option<String>>, EngineError> {
        self.settle()?;
        let answer = {
            let connection = self.connection.borrow();
            let link = connection.link().ok_or_else(spoiled)?;
            wait::until(self.engine.read_deadline(), link.simple(text))
        };
        self.conclude(answer)
    }

    /// Waits for what the server answers; a failure spoils the view.
    fn wait<T>(&self, future: impl Future<Output = Result<T, Error>>) -> Result<T, EngineError> {
        self.conclude(wait::until(self.engine.read_deadline(), future))
    }

    fn conclude<T>(&self, answer: Option<Result<T, Error>>) -> Result<T, EngineError> {
        let cause = match answer {
            Some(Ok(value)) => return Ok(value),
            Some(Err(error)) => unavailable(&error),
            None => Cause::Unavailable("PostgreSQL: no answer in time".to_owned()),
        };
        self.connection.borrow_mut().spoil();
        Err(cause.into())
    }

    /// Begins to read the rows of a statement.
    fn query(&self, text: &str, parameters: &[Parameter<'_>]) -> Result<Pin<Box<RowStream>>, EngineError> {
        self.settle()?;
        // The connection is not borrowed any more when a failure takes it away.
        let answer = {
            let connection = self.connection.borrow();
            let link = connection.link().ok_or_else(spoiled)?;
            wait::until(self.engine.read_deadline(), link.stream(text, parameters))
        };
        Ok(Box::pin(self.conclude(answer)?))
    }

    /// Takes the rows that are under way out of the way of the next statement's.
    fn settle(&self) -> Result<(), EngineError> {
        let mut pages = self.pages.borrow_mut();
        if let Some(page) = pages.last_mut()
            && let Some(mut stream) = page.stream.take()
        {
            while let Some(row) = self.wait(stream.try_next())? {
                page.waiting.push_back(row);
            }
        }
        Ok(())
    }

    /// The next row of the innermost page.
    fn next(&self) -> Result<Option<Row>, EngineError> {
        let mut pages = self.pages.borrow_mut();
        let Some(page) = pages.last_mut() else { return Ok(None) };
        match (page.waiting.pop_front(), &mut page.stream) {
            (Some(row), _) => Ok(Some(row)),
            (None, Some(stream)) => self.wait(stream.try_next()),
            (None, None) => Ok(None),
        }
    }

    /// Visits one page.
    fn visit(&self, stream: Pin<Box<RowStream>>, visit: &mut Visitor<'_>) -> Result<Visited, EngineError> {
        self.pages.borrow_mut().push(Page { stream: Some(stream), waiting: VecDeque::new() });
        let _pop = PopPage(&self.pages);
        let mut visited = Visited::default();
        while let Some(row) = self.next()? {
            let (key, value) = (bytes(&row, 0)?, bytes(&row, 1)?);
            visited.rows += 1;
            visited.bytes += key.len() + value.len();
            if visit(key, value).is_break() {
                visited.is_over = true;
                return Ok(visited);
            }
            visited.last = Some(row);
        }
        Ok(visited)
    }
}

/// What one message returned: the fields of the last row, or the one row.
enum Begun {
    Head(Vec<Option<String>>),
    Row(Option<Row>),
}

/// Begins a view and asks for rows, all before the first answer is read. Gives the head's fields and the rows.
async fn begin_with(
    engine: &Postgres,
    link: &Link,
    begin: &str,
    wanted: &[(Table, &[u8])],
) -> Result<(Vec<Option<String>>, Vec<Option<Row>>), Error> {
    let texts: Vec<String> = wanted.iter().map(|(table, _)| sql::get(&engine.options.schema, *table)).collect();
    for text in &texts {
        link.prepare(text, &[Type::BYTEA]).await?;
    }
    let mut steps: Vec<Step<'_, Result<Begun, Error>>> = Vec::with_capacity(1 + wanted.len());
    steps.push(Box::pin(async { link.simple(begin).await.map(Begun::Head) }));
    for (text, (_, key)) in texts.iter().zip(wanted) {
        steps.push(Box::pin(async {
            let rows = link.rows(text, &[(key, Type::BYTEA)]).await?;
            Ok(Begun::Row(rows.into_iter().next()))
        }));
    }
    let (mut head, mut rows) = (Vec::new(), Vec::with_capacity(wanted.len()));
    for answer in wait::in_order(steps).await {
        match answer? {
            Begun::Head(fields) => head = fields,
            Begun::Row(row) => rows.push(row),
        }
    }
    Ok((head, rows))
}

#[derive(Default)]
struct Visited {
    rows: i64,
    bytes: usize,
    last: Option<Row>,
    /// The visitor wants no more.
    is_over: bool,
}

/// Ends a page, also when its visitor panics.
struct PopPage<'p>(&'p RefCell<Vec<Page>>);

impl Drop for PopPage<'_> {
    fn drop(&mut self) {
        // Rows that are still under way are thrown away as they come.
        self.0.borrow_mut().pop();
    }
}

fn spoiled() -> EngineError {
    Cause::Unavailable("PostgreSQL: the view has failed before".to_owned()).into()
}

fn bytes(row: &Row, column: usize) -> Result<&[u8], EngineError> {
    row.try_get(column).map_err(|error| unavailable(&error).into())
}

fn owned(bound: Bound<&[u8]>) -> Bound<Vec<u8>> {
    bound.map(<[u8]>::to_vec)
}

/// Rows of the page behind the `page`-th, when rows are of that size.
fn page_rows(page: usize, row_bytes: usize) -> i64 {
    let rows = PAGE_ROWS[page.min(PAGE_ROWS.len() - 1)];
    rows.min((PAGE_BYTES / row_bytes.max(1)) as i64).max(PAGE_ROWS_MIN)
}

impl Snapshot for View<'_> {
    fn get(&self, table: Table, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Result<bool, EngineError> {
        let fetched = self.fetched.borrow()[usize::from(table.number())].get(key).cloned();
        if let Some(fetched) = fetched {
            if let Some(value) = &fetched {
                visit(value);
            }
            return Ok(fetched.is_some());
        }
        let text = sql::get(&self.engine.options.schema, table);
        let mut stream = self.query(&text, &[(&key, Type::BYTEA)])?;
        let mut found = None;
        // To the end, so that the next statement finds the connection free.
        while let Some(row) = self.wait(stream.try_next())? {
            found = Some(row);
        }
        if let Some(row) = &found {
            visit(bytes(row, 0)?);
        }
        Ok(found.is_some())
    }

    fn prefetch(&self, table: Table, keys: &[&[u8]]) -> Result<(), EngineError> {
        let text = sql::get_many(&self.engine.options.schema, table);
        for keys in keys.chunks(PREFETCH_KEYS_MAX) {
            let keys: Vec<&[u8]> = keys.to_vec();
            let mut found: Fetched = keys.iter().map(|key| (key.to_vec(), None)).collect();
            let mut stream = self.query(&text, &[(&keys, Type::BYTEA_ARRAY)])?;
            while let Some(row) = self.wait(stream.try_next())? {
                found.insert(bytes(&row, 0)?.to_vec(), Some(bytes(&row, 1)?.into()));
            }
            self.fetched.borrow_mut()[usize::from(table.number())].extend(found);
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
        let (mut start, mut end) = (owned(range.0), owned(range.1));
        let mut rows = PAGE_ROWS[0];
        for page in 1.. {
            let (low, high) = (start.as_ref().map(Vec::as_slice), end.as_ref().map(Vec::as_slice));
            let text = sql::scan(&self.engine.options.schema, table, (&low, &high), direction);
            let mut parameters: Vec<Parameter<'_>> = Vec::with_capacity(3);
            for bound in [&low, &high] {
                if let Bound::Included(key) | Bound::Excluded(key) = bound {
                    parameters.push((key, Type::BYTEA));
                }
            }
            parameters.push((&rows, Type::INT8));
            let stream = self.query(&text, &parameters)?;
            let visited = self.visit(stream, visit)?;
            let Some(last) = visited.last.filter(|_| visited.rows == rows && !visited.is_over) else { break };
            let behind = Bound::Excluded(bytes(&last, 0)?.to_vec());
            match direction {
                Direction::Forward => start = behind,
                Direction::Reverse => end = behind,
            }
            rows = page_rows(page, visited.bytes / visited.rows as usize);
        }
        Ok(())
    }

    fn head(&self) -> Result<Head, EngineError> {
        Ok(self.head)
    }
}

impl Drop for View<'_> {
    fn drop(&mut self) {
        // Sent, and not waited for: whatever uses the connection next comes behind it. If it fails, the transaction has failed as a whole,
        // and the next one can't begin in it.
        if let Some(link) = self.connection.get_mut().link() {
            let _ = wait::until(Instant::now(), link.simple("ROLLBACK"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_grow_unless_rows_are_large() {
        assert_eq!([1, 2, 3, 9].map(|page| page_rows(page, 500)), [256, 1024, 1024, 1024]);
        assert_eq!([1, 2, 3].map(|page| page_rows(page, 64 << 10)), [64, 64, 64]);
        assert_eq!([1, 2, 3].map(|page| page_rows(page, 32 << 20)), [16, 16, 16]);
        assert_eq!(page_rows(1, 0), 256);
    }
}
