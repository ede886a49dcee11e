//! What can go wrong at opening, and what the server's errors say.

use std::error::Error as _;

use kubewharf_engine::{Cause, EngineError};
use tokio_postgres::Error;
use tokio_postgres::error::{DbError, Severity};

/// Why the store in a database can't be opened, or a backup not be loaded into it. No text holds a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The URL or one of its files can't be used.
    #[error("the PostgreSQL URL: {0}")]
    Url(String),
    /// A standby follows the server without the server waiting for it.
    #[error(
        "PostgreSQL replicates asynchronously, so a failover to a standby could lose what was acknowledged: set \
         synchronous_standby_names on the server, or accept that with allow-asynchronous-replication"
    )]
    AsynchronousReplication,
    /// The data was written by a newer version.
    #[error("the schema {schema} has format version {found}; this program reads version {supported}")]
    Format {
        /// The schema.
        schema: String,
        /// The version found.
        found: i32,
        /// The version this program reads and writes.
        supported: i32,
    },
    /// A backup was being loaded, and the program that did it ended.
    #[error("loading a backup into the schema {schema} has not ended: drop the schema, and load the backup again")]
    HalfRestored {
        /// The schema.
        schema: String,
    },
    /// A backup is loaded into a new store only.
    #[error("the schema {schema} holds a store already: a backup is loaded into a schema of its own")]
    NotEmpty {
        /// The schema.
        schema: String,
    },
    /// The database failed.
    #[error(transparent)]
    Failed(#[from] EngineError),
}

impl From<Cause> for OpenError {
    fn from(cause: Cause) -> Self {
        Self::Failed(cause.into())
    }
}

/// The server's error of that kind, if it is the server that speaks.
pub(crate) fn state(error: &Error) -> Option<&str> {
    error.code().map(|code| code.code())
}

/// Whether the server refused one statement and goes on with the session. Else the connection is lost, or not to be trusted.
pub(crate) fn is_refusal(error: &Error) -> bool {
    error.as_db_error().is_some_and(|error| {
        // A server of before 9.6, and poolers, send the localized name alone.
        let is_error = error.parsed_severity().map_or(error.severity() == "ERROR", |it| it == Severity::Error);
        // Connection exceptions, which poolers report as errors, and shutdowns.
        is_error && !error.code().code().starts_with("08") && !error.code().code().starts_with("57P")
    })
}

/// Whether no later attempt to connect will fare better: a wrong password, user or database.
pub(crate) fn is_permanent(error: &Error) -> bool {
    state(error).is_some_and(|state| state.starts_with("28") || state == "3D000" || state == "42501")
}

/// The server's message and code, or what is wrong with the connection.
pub(crate) fn describe(error: &Error) -> String {
    if let Some(error) = error.as_db_error() {
        return describe_message(error);
    }
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        // Some errors have their cause in their own text, some have not.
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = cause.source();
    }
    text
}

/// An error or a notice of the server.
pub(crate) fn describe_message(message: &DbError) -> String {
    let detail = message.detail().map(|detail| format!(" ({detail})")).unwrap_or_default();
    format!("{}{detail} [{}]", message.message(), message.code().code())
}

/// A failed read: whatever it was, the rows are not to be had now.
pub(crate) fn unavailable(error: &Error) -> Cause {
    match state(error) {
        Some("XX001" | "XX002") => Cause::Corrupt(describe(error)),
        _ => Cause::Unavailable(format!("PostgreSQL: {}", describe(error))),
    }
}
