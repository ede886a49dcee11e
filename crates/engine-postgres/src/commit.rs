//! A batch as one transaction and one round trip.
//!
//! All of it is sent before the first answer is read: the message that begins the transaction, marks it and moves the head; the rows, in
//! statements of bounded size; the commit. What follows a statement that failed fails too, as the transaction has. Should it never have
//! begun, the rows' statements find no mark and change nothing.
//!
//! The server waits for the end of what was sent as long as a commit may take, and then rolls back: a process that dies in the middle of sending
//! must not leave the head locked.
//!
//! Invariant: a commit that was sent is never cancelled. When its answer does not come, the connection is given up and the outcome is unknown.

use std::time::{Duration, Instant};

use kubewharf_engine::{Batch, Cause, CommitError, Engine, Operation, Table};
use tokio_postgres::types::Type;

use crate::Postgres;
use crate::error::{describe, unavailable};
use crate::link::{Link, Parameter};
use crate::outcome::{Answer, Answers, Verdict, verdict};
use crate::sql;
use crate::wait::{self, Step};

/// One message of rows; a single row may be larger.
const PART_BYTES_MAX: usize = 8 << 20;
const PART_ROWS_MAX: usize = 8192;
/// How long the server waits for the rest of a commit, at most. All of it is sent at once; a process that stands still in the middle must not keep
/// the head locked for much longer than others wait before they take over.
const IDLE_TIMEOUT_MAX: Duration = Duration::from_secs(2);
/// What a commit gets beyond its time for each second's worth of bytes.
const BYTES_PER_SECOND: usize = 8 << 20;

/// Commits a batch. See [`Engine::commit`].
pub(crate) fn commit(engine: &Postgres, batch: &Batch) -> Result<(), CommitError> {
    engine.limits().check(batch).map_err(CommitError::NotApplied)?;
    let bytes: usize = batch.operations.iter().map(Operation::payload_bytes).sum();
    let deadline =
        Instant::now() + engine.options.commit_timeout + Duration::from_secs((bytes / BYTES_PER_SECOND) as u64);

    let not_sent = |text: &str| CommitError::NotApplied(Cause::Unavailable(format!("PostgreSQL: {text}")));
    let Some(mut writer) = engine.writer.try_lock_until(deadline) else {
        return Err(not_sent("another commit does not end"));
    };
    let link = match writer.take().filter(Link::is_usable) {
        Some(link) => link,
        None => {
            let link = engine.connector.connect(deadline).map_err(CommitError::NotApplied)?;
            // Readers must not go on with a server that is no longer the one that takes writes.
            engine.reconnect();
            link
        }
    };

    let parts = parts(&engine.options.schema, batch);
    match link.wait(deadline, prepare(&link, &parts)) {
        Some(Ok(())) => {}
        Some(Err(error)) => return Err(CommitError::NotApplied(unavailable(&error))),
        None => return Err(not_sent("no answer in time")),
    }
    link.take_warnings();
    let verdict = match link.wait(deadline, send(engine, &link, batch, &parts)) {
        Some(answers) => verdict(&answers),
        None => Verdict::Unknown(Cause::Unavailable("PostgreSQL: no answer to a commit in time".to_owned())),
    };
    match verdict {
        Verdict::Applied => {
            *writer = Some(link);
            Ok(())
        }
        // The connection goes: with it goes what is not known of it, and the next one finds the server that takes writes.
        Verdict::NotApplied(cause) => Err(CommitError::NotApplied(cause)),
        Verdict::Unknown(cause) => Err(CommitError::Unknown(cause)),
        Verdict::Fenced => {
            let error = fenced(engine, &link, batch);
            if matches!(error, CommitError::Fenced(_)) {
                *writer = Some(link);
            }
            Err(error)
        }
    }
}

/// Which head it was that fenced. This batch was not applied now, but it may be one that was sent before: only the head can tell.
fn fenced(engine: &Postgres, link: &Link, batch: &Batch) -> CommitError {
    let unknown = |text: String| CommitError::Unknown(Cause::Unavailable(format!("PostgreSQL: {text}")));
    match link.wait(engine.read_deadline(), link.simple(&sql::select_head(&engine.options.schema))) {
        None => unknown("no answer in time".to_owned()),
        Some(Err(error)) => unknown(describe(&error)),
        Some(Ok(row)) => match sql::head(&row) {
            None => CommitError::NotApplied(Cause::Corrupt("the head's row is missing or damaged".to_owned())),
            Some(head) if head == batch.expected => unknown("the head went back".to_owned()),
            Some(head) => CommitError::Fenced(head),
        },
    }
}

/// Rows of one table that are written, or that are removed.
struct Part<'b> {
    text: String,
    keys: Vec<&'b [u8]>,
    /// Empty if the rows are removed.
    values: Vec<&'b [u8]>,
    is_put: bool,
}

impl Part<'_> {
    fn types(&self) -> Vec<Type> {
        if self.is_put {
            vec![Type::BYTEA_ARRAY, Type::BYTEA_ARRAY, Type::TEXT]
        } else {
            vec![Type::BYTEA_ARRAY, Type::TEXT]
        }
    }

    fn parameters<'p>(&'p self, mark: &'p String) -> Vec<Parameter<'p>> {
        let mut parameters: Vec<Parameter<'p>> = vec![(&self.keys, Type::BYTEA_ARRAY)];
        if self.is_put {
            parameters.push((&self.values, Type::BYTEA_ARRAY));
        }
        parameters.push((mark, Type::TEXT));
        parameters
    }
}

/// The batch's rows by table and kind. A row is named once, so the order is free.
fn parts<'b>(schema: &str, batch: &'b Batch) -> Vec<Part<'b>> {
    let mut parts = Vec::new();
    for table in Table::ALL {
        for is_put in [true, false] {
            let mut bytes = 0;
            let mut open: Option<Part<'b>> = None;
            for operation in &batch.operations {
                let (key, value) = match operation {
                    Operation::Put { table: its, key, value } if is_put && *its == table => (key, Some(value)),
                    Operation::Delete { table: its, key } if !is_put && *its == table => (key, None),
                    _ => continue,
                };
                let is_full = |part: &Part<'_>| {
                    part.keys.len() == PART_ROWS_MAX || bytes + operation.payload_bytes() > PART_BYTES_MAX
                };
                if open.as_ref().is_some_and(is_full) {
                    parts.extend(open.take());
                    bytes = 0;
                }
                bytes += operation.payload_bytes();
                let part = open.get_or_insert_with(|| Part {
                    text: if is_put { sql::put(schema, table) } else { sql::delete(schema, table) },
                    keys: Vec::new(),
                    values: Vec::new(),
                    is_put,
                });
                part.keys.push(key);
                part.values.extend(value.map(|value| &value[..]));
            }
            parts.extend(open);
        }
    }
    parts
}

/// Prepares what is not prepared yet, before anything of the transaction is sent.
async fn prepare(link: &Link, parts: &[Part<'_>]) -> Result<(), tokio_postgres::Error> {
    for part in parts {
        link.prepare(&part.text, &part.types()).await?;
    }
    Ok(())
}

async fn send(engine: &Postgres, link: &Link, batch: &Batch, parts: &[Part<'_>]) -> Answers {
    let mark = format!("{:032x}-{}", batch.next.batch_id, batch.next.seq);
    let Postgres { options, .. } = engine;
    let heads = (&batch.expected, &batch.next);
    let idle_timeout = options.commit_timeout.min(IDLE_TIMEOUT_MAX);
    let begin = sql::begin_batch(&options.schema, &mark, heads, options.is_pooled, idle_timeout);
    let parameters: Vec<_> = parts.iter().map(|part| part.parameters(&mark)).collect();

    let mut steps: Vec<Step<'_, Answer>> = Vec::with_capacity(parts.len() + 2);
    steps.push(Box::pin(async { link.simple(&begin).await.map(drop).into() }));
    for (part, parameters) in parts.iter().zip(&parameters) {
        steps.push(Box::pin(async { link.rows(&part.text, parameters).await.map(drop).into() }));
    }
    steps.push(Box::pin(async { link.simple("COMMIT").await.map(drop).into() }));
    let mut answers = wait::in_order(steps).await;
    let lost = || Answer::Lost("a step has no answer".to_owned());
    let commit = answers.pop().unwrap_or_else(lost);
    let rows = answers.split_off(1.min(answers.len()));
    let begin = answers.pop().unwrap_or_else(lost);
    Answers { begin, rows, commit, warnings: link.take_warnings() }
}

#[cfg(test)]
mod tests {
    use kubewharf_engine::conformance::{delete, put};

    use super::*;

    #[test]
    fn rows_are_parted_by_table_and_kind_and_bounded() {
        let mut operations = vec![
            put(Table::Meta, "m", "1"),
            put(Table::Current, "a", "2"),
            delete(Table::Current, "b"),
            put(Table::Current, "c", ""),
        ];
        operations.extend((0..=PART_ROWS_MAX).map(|n| delete(Table::Log, n.to_be_bytes())));
        let large = vec![0; PART_BYTES_MAX - 10];
        operations.extend(["x", "y"].map(|key| put(Table::Lease, key, &large)));
        let batch = Batch { operations, ..Batch::default() };
        let parts = parts("s", &batch);
        let shape: Vec<_> = parts.iter().map(|part| (part.is_put, part.keys.len(), part.values.len())).collect();
        let expected = [
            (true, 1, 1),
            (true, 2, 2),
            (false, 1, 0),
            (false, PART_ROWS_MAX, 0),
            (false, 1, 0),
            (true, 1, 1),
            (true, 1, 1),
        ];
        assert_eq!(shape, expected);
        assert_eq!(parts[1].keys, [b"a", b"c"]);
        assert_eq!(parts[1].values, [&b"2"[..], b""]);
        assert!(parts[1].text.contains("\"current\"") && parts[2].text.starts_with("DELETE"));
    }
}
