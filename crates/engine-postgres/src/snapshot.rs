//! A view: a read-only transaction on a connection of its own.
//!
//! Invariant: the view is taken, and the head known, before it is handed out. What a view reads is bounded in memory by pages and not by
//! ranges: rows are passed on as they come, and only a visitor that itself reads from the view makes the rest of its page wait in memory.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::ops::Bound;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::TryStreamExt;
use kubewharf_engine::{Cause, Direction, EngineError, Head, Snapshot, Table, Visitor, Wanted};
use tokio_postgres::types::Type;
use tokio_postgres::{Error, Row, RowStream};

use crate::Postgres;
use crate::error::{is_refusal, unavailable};
use crate::link::{Link, Parameter};
use crate::pool::{Pool, Pooled};
use crate::sql;
use crate::wait::{self, Step};

/// Rows of the first page of a scan, of the second, and of all others, where nobody says how many are wanted: most such scans are short or
/// end early, and what a page brings too much has been read in vain.
const PAGE_ROWS: [usize; 3] = [32, 256, 1024];
/// Rows of the first page where it is said how many are wanted; those of the others are bounded in bytes alone.
const FIRST_PAGE_ROWS_MAX: usize = 1024;
/// What a page should not exceed, by the size of the rows before it.
const PAGE_BYTES: usize = 4 << 20;
const PAGE_ROWS_MIN: usize = 16;
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
    /// A page was left before its end, with rows under way.
    has_abandoned: Cell<bool>,
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
        let begin = sql::begin_view(engine.options.is_pooled);
        let reading = Reading::new(engine, wanted);
        let (mut connection, row) = ask(engine, pool, async |link| {
            reading.prepare(link).await?;
            // Both are sent before the first is answered.
            let steps: Vec<Step<'_, Result<Option<Row>, Error>>> = vec![
                Box::pin(async { link.simple(&begin).await.map(|_| None) }),
                Box::pin(async { reading.run(link).await }),
            ];
            let answers: Result<Vec<_>, Error> = wait::in_order(steps).await.into_iter().collect();
            Ok(answers?.pop().flatten())
        })?;
        // Without a view nobody ends its transaction.
        let (head, rows) = reading.answer(row.as_ref()).inspect_err(|_| connection.spoil())?;
        let mut fetched: [Fetched; Table::ALL.len()] = Default::default();
        for ((table, key), row) in wanted.iter().zip(rows) {
            fetched[usize::from(table.number())].insert(key.to_vec(), row.map(Arc::from));
        }
        let (connection, fetched) = (RefCell::new(connection), RefCell::new(fetched));
        Ok(Self { engine, connection, head, fetched, pages: RefCell::default(), has_abandoned: Cell::new(false) })
    }

    /// Runs other statements within the view, and returns the fields of the last row.
    pub(crate) fn simple(&self, text: &str) -> Result<Vec<Option<String>>, EngineError> {
        self.settle()?;
        let answer = {
            let connection = self.connection.borrow();
            let link = connection.link().ok_or_else(spoiled)?;
            link.wait(self.engine.read_deadline(), link.simple(text))
        };
        self.conclude(answer)
    }

    /// The next of a statement's rows. Most are at hand, as they come many at a time.
    fn next_of(&self, stream: &mut Pin<Box<RowStream>>) -> Result<Option<Row>, EngineError> {
        let at_hand = self.connection.borrow().link().and_then(|link| link.at_hand(stream.try_next()));
        match at_hand {
            Some(Ok(row)) => Ok(row),
            Some(failure) => self.conclude(Some(failure)),
            None => self.wait(stream.try_next()),
        }
    }

    /// Waits for what the server answers; a failure spoils the view.
    fn wait<T>(&self, future: impl Future<Output = Result<T, Error>>) -> Result<T, EngineError> {
        let answer = {
            let connection = self.connection.borrow();
            let link = connection.link().ok_or_else(spoiled)?;
            link.wait(self.engine.read_deadline(), future)
        };
        self.conclude(answer)
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
            link.wait(self.engine.read_deadline(), link.stream(text, parameters))
        };
        Ok(Box::pin(self.conclude(answer)?))
    }

    /// Takes the rows that are under way out of the way of the next statement's.
    fn settle(&self) -> Result<(), EngineError> {
        let mut pages = self.pages.borrow_mut();
        if let Some(page) = pages.last_mut()
            && let Some(mut stream) = page.stream.take()
        {
            while let Some(row) = self.next_of(&mut stream)? {
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
            (None, Some(stream)) => {
                let row = self.next_of(stream)?;
                if row.is_none() {
                    page.stream = None;
                }
                Ok(row)
            }
            (None, None) => Ok(None),
        }
    }

    /// Visits one page, which has at most so many rows.
    fn visit(
        &self,
        stream: Pin<Box<RowStream>>,
        rows_max: usize,
        visit: &mut Visitor<'_>,
    ) -> Result<Visited, EngineError> {
        self.pages.borrow_mut().push(Page { stream: Some(stream), waiting: VecDeque::new() });
        let _pop = PopPage(self);
        let mut visited = Visited::default();
        while let Some(row) = self.next()? {
            let (key, value) = (bytes(&row, 0)?, bytes(&row, 1)?);
            visited.rows += 1;
            visited.bytes += key.len() + value.len();
            if visited.rows == rows_max {
                // Nothing that would have to be waited for is under way any more.
                self.finish_page();
            }
            if visit(key, value).is_break() {
                visited.is_over = true;
                return Ok(visited);
            }
            visited.last = Some(row);
        }
        Ok(visited)
    }

    /// Visits rows page by page. `rows` are those that are wanted, if anybody has said that.
    fn scan_pages(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        direction: Direction,
        mut rows: Option<usize>,
        value_bytes: usize,
        visit: &mut Visitor<'_>,
    ) -> Result<(), EngineError> {
        let (mut start, mut end) = (owned(range.0), owned(range.1));
        let value_bytes = i32::try_from(value_bytes).ok();
        let mut row_bytes = 0;
        for page in 0.. {
            let (low, high) = (start.as_ref().map(Vec::as_slice), end.as_ref().map(Vec::as_slice));
            let text = sql::scan(&self.engine.options.schema, table, (&low, &high), direction, value_bytes.is_some());
            let mut parameters: Vec<Parameter<'_>> = Vec::with_capacity(4);
            for bound in [&low, &high] {
                if let Bound::Included(key) | Bound::Excluded(key) = bound {
                    parameters.push((key, Type::BYTEA));
                }
            }
            let page_rows = page_rows(page, row_bytes, rows);
            let limit = page_rows as i64;
            parameters.push((&limit, Type::INT8));
            if let Some(value_bytes) = &value_bytes {
                parameters.push((value_bytes, Type::INT4));
            }
            let stream = self.query(&text, &parameters)?;
            let visited = self.visit(stream, page_rows, visit)?;
            let Some(last) = visited.last.filter(|_| visited.rows == page_rows && !visited.is_over) else { break };
            let behind = Bound::Excluded(bytes(&last, 0)?.to_vec());
            match direction {
                Direction::Forward => start = behind,
                Direction::Reverse => end = behind,
            }
            row_bytes = visited.bytes / visited.rows;
            rows = rows.map(|rows| rows.saturating_sub(visited.rows));
        }
        Ok(())
    }

    /// No more rows of the innermost page are under way.
    fn finish_page(&self) {
        if let Some(page) = self.pages.borrow_mut().last_mut() {
            page.stream = None;
        }
    }
}

/// Asks for something on a connection of the pool, and on another when that one turns out to be lost: it must change nothing.
fn ask<'e, T>(
    engine: &'e Postgres,
    pool: &'e Pool,
    question: impl AsyncFn(&Link) -> Result<T, Error>,
) -> Result<(Pooled<'e>, T), EngineError> {
    let deadline = engine.read_deadline();
    let mut lost_when_new = 0;
    loop {
        let mut connection = pool.take(&engine.connector, deadline)?;
        let answer = connection.link().and_then(|link| {
            link.take_warnings();
            let answer = link.wait(deadline, question(link));
            // That a transaction was open already, for example: its view would be an old one.
            let warning = link.take_warnings().pop();
            answer.map(|answer| (answer, warning))
        });
        let failure = match answer {
            Some((Ok(answer), None)) => return Ok((connection, answer)),
            Some((Err(error), _)) if !is_refusal(&error) && (!connection.is_new() || lost_when_new < LOST_MAX) => {
                // Lost since it was last used, each of which is closed; or lost as soon as it was made.
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

/// A row's value, if there is such a row.
type Value<'r> = Option<&'r [u8]>;

/// The statement that reads the head and some rows, and its parameters.
struct Reading<'w> {
    text: String,
    parameters: Vec<Parameter<'w>>,
}

impl<'w> Reading<'w> {
    fn new(engine: &Postgres, wanted: &'w [(Table, &'w [u8])]) -> Self {
        let text = sql::read(&engine.options.schema, wanted.iter().map(|(table, _)| *table));
        Self { text, parameters: wanted.iter().map(|(_, key)| (key as _, Type::BYTEA)).collect() }
    }

    /// Prepares it, where statements are prepared.
    async fn prepare(&self, link: &Link) -> Result<(), Error> {
        let types: Vec<Type> = self.parameters.iter().map(|(_, its_type)| its_type.clone()).collect();
        link.prepare(&self.text, &types).await
    }

    async fn run(&self, link: &Link) -> Result<Option<Row>, Error> {
        Ok(link.rows(&self.text, &self.parameters).await?.pop())
    }

    /// The head and the rows' values.
    fn answer<'r>(&self, row: Option<&'r Row>) -> Result<(Head, Vec<Value<'r>>), EngineError> {
        let headless = || Cause::Corrupt("the head's row is missing or damaged".to_owned());
        let row = row.ok_or_else(headless)?;
        let number = |column| row.try_get::<_, i64>(column).map_err(|error| unavailable(&error));
        let head = Head {
            epoch: number(0)?.cast_unsigned(),
            seq: number(1)?.cast_unsigned(),
            revision: number(2)?,
            batch_id: u128::from_be_bytes(bytes(row, 3)?.try_into().map_err(|_| headless())?),
        };
        let value = |at: usize| row.try_get::<_, Option<&[u8]>>(at + 4).map_err(|error| unavailable(&error).into());
        Ok((head, (0..self.parameters.len()).map(value).collect::<Result<_, EngineError>>()?))
    }
}

/// The head and some rows, by one statement, which is a view of its own.
pub(crate) fn read(engine: &Postgres, wanted: &[(Table, &[u8])]) -> Result<(Head, Vec<Option<Bytes>>), EngineError> {
    let reading = Reading::new(engine, wanted);
    let (_, row) = ask(engine, &engine.pool, async |link| {
        reading.prepare(link).await?;
        reading.run(link).await
    })?;
    let (head, rows) = reading.answer(row.as_ref())?;
    Ok((head, rows.into_iter().map(|row| row.map(Bytes::copy_from_slice)).collect()))
}

#[derive(Default)]
struct Visited {
    rows: usize,
    bytes: usize,
    last: Option<Row>,
    /// The visitor wants no more.
    is_over: bool,
}

/// Ends a page, also when its visitor panics.
struct PopPage<'v, 'e>(&'v View<'e>);

impl Drop for PopPage<'_, '_> {
    fn drop(&mut self) {
        // Rows that are still under way are thrown away as they come.
        let page = self.0.pages.borrow_mut().pop();
        if page.is_some_and(|page| page.stream.is_some()) {
            self.0.has_abandoned.set(true);
        }
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

/// Rows of a page behind the first `page` ones, when rows were of that size so far, and so many more are wanted, if anybody has said that.
fn page_rows(page: usize, row_bytes: usize, wanted: Option<usize>) -> usize {
    let by_size = (PAGE_BYTES / row_bytes.max(1)).max(PAGE_ROWS_MIN);
    match wanted {
        // A few more than were wanted are, if it is not over by then.
        Some(wanted) => {
            wanted.max(PAGE_ROWS_MIN).min(by_size).min(if page == 0 { FIRST_PAGE_ROWS_MAX } else { usize::MAX })
        }
        None => PAGE_ROWS[page.min(PAGE_ROWS.len() - 1)].min(by_size),
    }
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
        self.scan_pages(table, range, direction, None, usize::MAX, visit)
    }

    fn scan_wanted(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        direction: Direction,
        wanted: Wanted,
        visit: &mut Visitor<'_>,
    ) -> Result<(), EngineError> {
        self.scan_pages(table, range, direction, Some(wanted.rows), wanted.value_bytes, visit)
    }

    fn head(&self) -> Result<Head, EngineError> {
        Ok(self.head)
    }
}

impl Drop for View<'_> {
    fn drop(&mut self) {
        // Sent, and not waited for: whatever uses the connection next comes behind it. If it fails, the transaction has failed as a whole,
        // and the next one can't begin in it. But rows that are still under way are taken in first: the server could not send them, and
        // its transaction would stay open.
        let has_abandoned = std::mem::take(self.has_abandoned.get_mut());
        let deadline = if has_abandoned { self.engine.read_deadline() } else { Instant::now() };
        let connection = self.connection.get_mut();
        let is_over = connection.link().is_none_or(|link| link.wait(deadline, link.simple("ROLLBACK")).is_some());
        if has_abandoned && !is_over {
            connection.spoil();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_grow_unless_rows_are_large() {
        assert_eq!([0, 1, 2, 3, 9].map(|page| page_rows(page, 500, None)), [32, 256, 1024, 1024, 1024]);
        assert_eq!([1, 2, 3].map(|page| page_rows(page, 64 << 10, None)), [64, 64, 64]);
        assert_eq!([1, 2, 3].map(|page| page_rows(page, 32 << 20, None)), [16, 16, 16]);
        assert_eq!(page_rows(1, 0, None), 256);
    }

    #[test]
    fn pages_have_what_is_wanted_within_their_bytes() {
        assert_eq!([0, 1].map(|page| page_rows(page, 0, Some(501))), [501, 501]);
        assert_eq!([0, 1].map(|page| page_rows(page, 4 << 10, Some(100_000))), [1024, 1024]);
        assert_eq!(page_rows(1, 512, Some(100_000)), 8192);
        assert_eq!(page_rows(0, 0, Some(usize::MAX)), 1024);
        assert_eq!(page_rows(2, 100, Some(0)), 16, "what was said was wrong");
    }
}
