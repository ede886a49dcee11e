//! Tests of the engine over a real PostgreSQL: one binary.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

mod commits;
mod fencing;
mod hot;
mod opening;
mod pooler;
mod restoring;
mod stores;
mod tls;
mod writer;

use kubewharf_engine::conformance;
use kubewharf_testkit::postgres::Postgres as Server;

#[test]
fn postgres_conforms() {
    let server = Server::start().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    conformance::run(&|| Box::new(stores::PostgresStore::new(&server.url(), false)), scratch.path());
}

/// As behind a pooler: nothing is prepared, nothing belongs to a session.
#[test]
fn postgres_conforms_with_unnamed_statements() {
    let server = Server::start().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    conformance::run(&|| Box::new(stores::PostgresStore::new(&server.url(), true)), scratch.path());
}
