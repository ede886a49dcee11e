//! A writer that resolves what is unknown as the product does, and a ledger that the server keeps of what was applied.

use std::time::{Duration, Instant};

use kubewharf_engine::conformance::{get, head, put, rows};
use kubewharf_engine::{Batch, CommitError, Engine, Head, Table};
use kubewharf_engine_postgres::{Options, Postgres};
use kubewharf_testkit::postgres::Postgres as Server;

const PATIENCE: Duration = Duration::from_secs(60);

/// Commits batch after batch, each in `log` under its number.
pub(crate) struct Writer<'e> {
    engine: &'e Postgres,
    /// The last head that was confirmed.
    pub(crate) confirmed: Head,
    /// Commits whose outcome was unknown at first.
    pub(crate) unknown: u32,
}

impl<'e> Writer<'e> {
    pub(crate) fn new(engine: &'e Postgres) -> Self {
        Self { engine, confirmed: head(engine), unknown: 0 }
    }

    /// Commits the next batch, however often it has to be sent; panics if anybody else has written.
    pub(crate) fn write(&mut self) {
        let mut batch = next_batch_after(self.confirmed);
        let number = batch.next.seq.to_be_bytes();
        batch.operations = vec![put(Table::Current, "last", number), put(Table::Log, number, number)];
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.engine.commit(&batch) {
                Ok(()) => break,
                Err(CommitError::Fenced(found)) if found == batch.next => break,
                Err(CommitError::Unknown(_)) => self.unknown += 1,
                Err(CommitError::NotApplied(_)) => std::thread::sleep(Duration::from_millis(5)),
                Err(error) => panic!("{error} after {:?}", self.confirmed),
            }
            assert!(Instant::now() < deadline, "it never settles");
        }
        self.confirmed = batch.next;
    }
}

fn next_batch_after(expected: Head) -> Batch {
    let next = Head {
        seq: expected.seq + 1,
        revision: expected.revision + 1,
        batch_id: expected.batch_id.wrapping_add(1),
        ..expected
    };
    Batch { expected, next, ..Batch::default() }
}

/// Lets the server note each change of the head.
pub(crate) fn keep_ledger(server: &Server, options: &Options) {
    let head = format!("\"{}\".head", options.schema);
    let text = format!(
        "CREATE TABLE ledger (seq bigint); CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN INSERT INTO public.ledger VALUES (NEW.seq); RETURN NEW; END $$; \
         CREATE TRIGGER note AFTER UPDATE ON {head} FOR EACH ROW EXECUTE FUNCTION note()"
    );
    server.psql(&text).unwrap();
}

/// Checks that each batch up to the confirmed one was applied, once, and whole.
pub(crate) fn check(server: &Server, engine: &Postgres, confirmed: Head) {
    assert_eq!(head(engine), confirmed);
    let ledger = server.psql("SELECT seq FROM ledger ORDER BY seq").unwrap();
    let applied: Vec<u64> = ledger.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(applied, (2..=confirmed.seq).collect::<Vec<_>>(), "each batch once");
    let rows = rows(engine, Table::Log);
    let numbers: Vec<u64> = rows.keys().map(|key| u64::from_be_bytes(key[..].try_into().unwrap())).collect();
    assert_eq!(numbers, applied, "with its rows");
    assert_eq!(get(engine, Table::Current, b"last"), Some(confirmed.seq.to_be_bytes().to_vec()));
}
