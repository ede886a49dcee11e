//! The schema: made once, and checked at each opening.
//!
//! Invariant: it is made in one transaction, so it is whole or not there. Of several processes that make it at once one succeeds, and
//! the others find what it has made.

use std::hash::{BuildHasher, RandomState};
use std::thread;
use std::time::{Duration, Instant};

use kubewharf_engine::{Cause, EngineError, Head, Table};

use crate::Options;
use crate::error::{OpenError, describe, state, unavailable};
use crate::link::Link;
use crate::sql::{self, quote_name};

/// What the tables and rows look like. A store of a newer one is refused.
const FORMAT: i32 = 1;

/// Tries to make what others make at the same time.
const ATTEMPTS_MAX: u32 = 50;
const PAUSE: Duration = Duration::from_millis(20);

/// What else says that somebody was faster: the name exists, or its row in the catalogue was changed meanwhile.
const CONFLICTS: [&str; 7] = ["23505", "42P06", "42P07", "42710", "40001", "40P01", "XX000"];
/// What says that the database does not know how its tables are to be kept.
const UNKNOWN_SETTINGS: [&str; 5] = ["42601", "0A000", "22023", "42704", "42883"];

/// The transaction's statements that say how PostgreSQL is to keep the tables.
///
/// The head's row is replaced by each commit: with room on its page that touches no index, and its dead versions are cleared away by whoever
/// reads the page. In `current` as well, if the page has room. Both it and `log` turn over all the time, so they are cleaned sooner than
/// tables usually are; that never takes a lock which commits would wait for. Values are not compressed: it costs more time than it saves.
fn tuning(schema: &str) -> String {
    let mut text = format!("ALTER TABLE {} SET (fillfactor = 10);", sql::name(schema, "head"));
    for table in Table::ALL {
        let name = sql::name(schema, table.name());
        text += &format!("ALTER TABLE {name} ALTER COLUMN v SET STORAGE EXTERNAL;");
        if matches!(table, Table::Current | Table::Log) {
            let fill = if table == Table::Current { 80 } else { 100 };
            text += &format!(
                "ALTER TABLE {name} SET (fillfactor = {fill}, vacuum_truncate = false, \
                 autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000, \
                 autovacuum_vacuum_insert_scale_factor = 0.1, autovacuum_analyze_scale_factor = 0.1);"
            );
        }
    }
    text
}

fn creation(schema: &str, is_tuned: bool) -> String {
    let incarnation = u128::from(RandomState::new().hash_one(0)) << 64;
    let head = Head { epoch: 1, seq: 1, revision: 1, batch_id: incarnation | 1 };
    let (store, head_table) = (sql::name(schema, "store"), sql::name(schema, "head"));
    let mut text = format!(
        "CREATE TABLE {store} (id smallint PRIMARY KEY, format integer NOT NULL, is_whole boolean NOT NULL);\
         CREATE TABLE {head_table} (id smallint PRIMARY KEY, epoch bigint NOT NULL, seq bigint NOT NULL, \
         revision bigint NOT NULL, batch_id bytea NOT NULL);"
    );
    for table in Table::ALL {
        text += &format!("CREATE TABLE {} (k bytea PRIMARY KEY, v bytea NOT NULL);", sql::name(schema, table.name()));
    }
    if is_tuned {
        text += &tuning(schema);
    }
    text + &format!(
        "INSERT INTO {head_table} VALUES (1, {}, {}, {}, decode('{:032x}', 'hex'));\
         INSERT INTO {store} VALUES (1, {FORMAT}, true);",
        head.epoch, head.seq, head.revision, head.batch_id
    )
}

/// Runs one message, for as long as reads may take.
fn run(options: &Options, link: &Link, text: &str) -> Result<Vec<Option<String>>, RunError> {
    match link.wait(Instant::now() + options.read_timeout, link.simple(text)) {
        Some(Ok(row)) => Ok(row),
        Some(Err(error)) => match state(&error) {
            Some(state) => Err(RunError::Refused { state: state.to_owned(), text: describe(&error) }),
            None => Err(RunError::Failed(unavailable(&error))),
        },
        None => Err(RunError::Failed(Cause::Unavailable("PostgreSQL: no answer in time".to_owned()))),
    }
}

enum RunError {
    Refused { state: String, text: String },
    Failed(Cause),
}

impl RunError {
    fn is_any(&self, states: &[&str]) -> bool {
        matches!(self, Self::Refused { state, .. } if states.contains(&&state[..]))
    }
}

impl From<RunError> for OpenError {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Refused { text, .. } => Cause::Io(format!("PostgreSQL: {text}")).into(),
            RunError::Failed(cause) => cause.into(),
        }
    }
}

/// Refuses a server whose standbys may miss what was acknowledged, unless that is allowed.
pub(crate) fn check_replication(options: &Options, link: &Link) -> Result<(), OpenError> {
    // A user without the right to see more sees only that there are standbys. Logical replication makes no standby.
    let found = run(
        options,
        link,
        "SELECT current_setting('synchronous_standby_names') = '' AND EXISTS (SELECT 1 FROM pg_stat_replication r \
         WHERE (r.state IS NULL OR r.state = 'streaming') AND NOT EXISTS (SELECT 1 FROM pg_replication_slots s \
         WHERE s.active_pid = r.pid AND s.slot_type = 'logical'))",
    );
    match found {
        Ok(row) if row.first() == Some(&Some("t".to_owned())) => {
            if !options.allow_asynchronous_replication {
                return Err(OpenError::AsynchronousReplication);
            }
            tracing::warn!("PostgreSQL replicates asynchronously: a failover may lose what was acknowledged");
            Ok(())
        }
        Ok(_) => Ok(()),
        // What has no such catalogue replicates in another way.
        Err(RunError::Refused { text, .. }) => {
            tracing::debug!(text, "the database does not tell of standbys");
            Ok(())
        }
        Err(failed) => Err(failed.into()),
    }
}

/// Makes the store if it is not there, and checks it if it is.
pub(crate) fn ensure(options: &Options, link: &Link) -> Result<(), OpenError> {
    let mut is_tuned = true;
    let mut last = None;
    for _ in 0..ATTEMPTS_MAX {
        if is_there(options, link)? {
            return Ok(());
        }
        match create(options, link, is_tuned) {
            Ok(()) => tracing::info!(schema = options.schema, "a store was made in PostgreSQL"),
            Err(error) if error.is_any(&CONFLICTS) => {
                last = Some(error);
                thread::sleep(PAUSE);
            }
            Err(error) if is_tuned && error.is_any(&UNKNOWN_SETTINGS) => is_tuned = false,
            Err(error) => return Err(error.into()),
        }
    }
    let late = || Cause::Unavailable("PostgreSQL: the schema can't be made".to_owned()).into();
    Err(last.map_or_else(late, Into::into))
}

/// Whether there is a store; an error if it is none for this version.
fn is_there(options: &Options, link: &Link) -> Result<bool, OpenError> {
    let schema = || options.schema.clone();
    let table = sql::name(&options.schema, "store");
    match run(options, link, &format!("SELECT format, is_whole FROM {table} WHERE id = 1")) {
        Ok(row) => match &row[..] {
            [Some(format), Some(is_whole)] => {
                let found = format.parse().unwrap_or(i32::MAX);
                if found != FORMAT {
                    return Err(OpenError::Format { schema: schema(), found, supported: FORMAT });
                }
                if is_whole == "t" { Ok(true) } else { Err(OpenError::HalfRestored { schema: schema() }) }
            }
            _ => Err(Cause::Corrupt(format!("{table} has lost its row")).into()),
        },
        // No such table, no such schema.
        Err(error) if error.is_any(&["42P01", "3F000"]) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn create(options: &Options, link: &Link, is_tuned: bool) -> Result<(), RunError> {
    let schema = quote_name(&options.schema);
    let named = options.schema.replace('\'', "''");
    // Asked for first: to make a schema, if it is not there, needs a right that the owner of one need not have.
    let there = run(options, link, &format!("SELECT count(*) FROM pg_namespace WHERE nspname = '{named}'"))?;
    let mut text = "BEGIN;".to_owned();
    if there.first() != Some(&Some("1".to_owned())) {
        text += &format!("CREATE SCHEMA IF NOT EXISTS {schema};");
    }
    text += &creation(&options.schema, is_tuned);
    text += "COMMIT";
    let made = run(options, link, &text);
    if made.is_err() {
        // Nothing to add to the failure if this one fails: the connection is lost then.
        let _ = run(options, link, "ROLLBACK");
    }
    made.map(drop)
}

/// Runs statements as one transaction that moves the head as well. `false` if the head is another one than expected.
pub(crate) fn change_with_head(
    options: &Options,
    link: &Link,
    (expected, next): (&Head, &Head),
    statement: &str,
) -> Result<bool, EngineError> {
    let text = format!("BEGIN;{};{statement};COMMIT", sql::move_head(&options.schema, expected, next));
    match run(options, link, &text) {
        Ok(_) => Ok(true),
        Err(RunError::Refused { state, text }) => {
            let _ = run(options, link, "ROLLBACK");
            if state == "22012" { Ok(false) } else { Err(Cause::Io(format!("PostgreSQL: {text}")).into()) }
        }
        Err(RunError::Failed(cause)) => Err(cause.into()),
    }
}
