//! Commits while connections and servers are lost.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kubewharf_engine::conformance::{apply, get, head, next_batch, put};
use kubewharf_engine::{Cause, CommitError, Engine, EngineError, Head, Table};
use kubewharf_engine_postgres::{Options, Postgres};
use kubewharf_testkit::postgres::Postgres as Server;

use crate::stores::options;
use crate::writer::{Writer, check, keep_ledger};

/// Reads until told to end, and checks each view that it gets. Returns how many it got.
fn read(engine: &Postgres, is_done: &AtomicBool) -> u32 {
    let mut views = 0;
    let mut newest = 0;
    while !is_done.load(Ordering::Acquire) {
        let Ok(view) = engine.snapshot() else { continue };
        let seq = view.head().unwrap().seq;
        assert!(seq >= newest, "views go forward");
        newest = seq;
        let mut last = None;
        match view.get(Table::Current, b"last", &mut |value| last = Some(value.to_vec())) {
            Ok(_) => assert_eq!(last.unwrap_or_else(|| 1_u64.to_be_bytes().to_vec()), seq.to_be_bytes()),
            Err(EngineError::Failed(Cause::Unavailable(_))) => {}
            Err(error) => panic!("{error}"),
        }
        views += 1;
    }
    views
}

/// Writes and reads while `disturb` does its work.
fn under_load(engine: &Postgres, disturb: impl FnOnce()) -> (Head, u32) {
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| read(engine, &is_done));
        let writer = scope.spawn(|| {
            let mut writer = Writer::new(engine);
            while !is_done.load(Ordering::Acquire) {
                writer.write();
            }
            writer
        });
        disturb();
        is_done.store(true, Ordering::Release);
        assert!(reader.join().unwrap() > 0);
        let writer = writer.join().unwrap();
        (writer.confirmed, writer.unknown)
    })
}

#[test]
fn what_is_confirmed_stays_and_nothing_is_applied_twice_while_connections_are_killed() {
    let server = Server::start().unwrap();
    let options = options(&server.url());
    let engine = Postgres::open(options.clone()).unwrap();
    keep_ledger(&server, &options);
    let (confirmed, unknown) = under_load(&engine, || {
        for _ in 0..60 {
            let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'kubewharf'";
            server.psql(kill).unwrap();
            thread::sleep(Duration::from_millis(10));
        }
    });
    println!("{} commits, {unknown} of them unknown at first", confirmed.seq - 1);
    assert!(unknown > 5, "connections were killed in the middle of commits");
    check(&server, &engine, confirmed);
}

#[test]
fn what_is_confirmed_survives_a_killed_server_and_the_engine_goes_on() {
    let mut server = Server::start().unwrap();
    let options = options(&server.url());
    let engine = Postgres::open(options.clone()).unwrap();
    keep_ledger(&server, &options);
    let (confirmed, unknown) = under_load(&engine, || {
        for _ in 0..4 {
            thread::sleep(Duration::from_millis(300));
            server.kill9();
            server.restart().unwrap();
        }
        thread::sleep(Duration::from_millis(300));
        // And in good order.
        server.restart().unwrap();
        thread::sleep(Duration::from_millis(300));
    });
    println!("{} commits, {unknown} of them unknown at first", confirmed.seq - 1);
    assert!(confirmed.seq > 50);
    check(&server, &engine, confirmed);
}

#[test]
fn a_commit_to_a_silent_server_is_unknown_at_the_deadline_and_settles_later() {
    let mut server = Server::start().unwrap();
    let options = Options { commit_timeout: Duration::from_secs(1), ..options(&server.url()) };
    let engine = Postgres::open(options.clone()).unwrap();
    keep_ledger(&server, &options);
    // Once before, as a statement that is still to be prepared is waited for before anything is sent.
    apply(&engine, vec![put(Table::Meta, "k", "before")]);
    let batch = next_batch(&engine, vec![put(Table::Meta, "k", "v")]);
    server.pause();
    let begin = Instant::now();
    let answer = engine.commit(&batch);
    assert!(matches!(answer, Err(CommitError::Unknown(Cause::Unavailable(_)))), "{answer:?}");
    assert!((Duration::from_secs(1)..Duration::from_secs(3)).contains(&begin.elapsed()), "{:?}", begin.elapsed());
    // No new connection comes about: that nothing was sent is certain.
    let answer = engine.commit(&batch);
    assert!(matches!(answer, Err(CommitError::NotApplied(Cause::Unavailable(_)))), "{answer:?}");
    server.resume();
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match engine.commit(&batch) {
            Ok(()) => break,
            Err(CommitError::Fenced(found)) if found == batch.next => break,
            Err(CommitError::Unknown(_) | CommitError::NotApplied(_)) => assert!(Instant::now() < deadline),
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(head(&engine), batch.next);
    assert_eq!(get(&engine, Table::Meta, b"k"), Some(b"v".to_vec()));
    assert_eq!(server.psql("SELECT seq FROM ledger ORDER BY 1").unwrap(), "2\n3");
}

/// The server then has the commit, but perhaps no standby has.
#[test]
fn a_commit_that_the_server_did_not_wait_out_is_unknown() {
    let server = Server::start().unwrap();
    let engine = Postgres::open(options(&server.url())).unwrap();
    apply(&engine, vec![]);
    server.psql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'").unwrap();
    server.psql("SELECT pg_reload_conf()").unwrap();
    let batch = next_batch(&engine, vec![put(Table::Meta, "k", "v")]);
    thread::scope(|scope| {
        let commit = scope.spawn(|| engine.commit(&batch));
        let waiting = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        let deadline = Instant::now() + Duration::from_secs(8);
        while server.psql(waiting).unwrap() == "0" {
            assert!(Instant::now() < deadline, "the commit never waits");
        }
        let answer = commit.join().unwrap();
        let Err(CommitError::Unknown(cause)) = answer else { panic!("{answer:?}") };
        assert!(cause.to_string().contains("synchronous replication"), "{cause}");
    });
    server.psql("ALTER SYSTEM RESET synchronous_standby_names").unwrap();
    server.psql("SELECT pg_reload_conf()").unwrap();
    assert_eq!(engine.commit(&batch), Err(CommitError::Fenced(batch.next)));
}

/// A step of the transaction that fails takes all of it along, whichever it is.
#[test]
fn a_refused_row_leaves_nothing() {
    let server = Server::start().unwrap();
    let options = options(&server.url());
    let engine = Postgres::open(options.clone()).unwrap();
    let before = apply(&engine, vec![put(Table::Current, "k", "before")]);
    let log = format!("\"{}\".log", options.schema);
    server.psql(&format!("ALTER TABLE {log} ADD CONSTRAINT small CHECK (length(v) < 3)")).unwrap();
    let operations = vec![
        put(Table::Meta, "k", "after"),
        put(Table::Current, "k", "after"),
        put(Table::Log, "k", "after"),
        put(Table::Lease, "k", "after"),
    ];
    let answer = engine.commit(&next_batch(&engine, operations));
    assert!(matches!(answer, Err(CommitError::NotApplied(_))), "{answer:?}");
    assert_eq!(head(&engine), before);
    assert_eq!(get(&engine, Table::Current, b"k"), Some(b"before".to_vec()));
    assert_eq!((get(&engine, Table::Meta, b"k"), get(&engine, Table::Lease, b"k")), (None, None));

    // A server that takes no writes says so, and is asked again once it does.
    server.psql(&format!("ALTER TABLE {log} DROP CONSTRAINT small; ALTER TABLE {log} RENAME TO gone")).unwrap();
    let batch = next_batch(&engine, vec![put(Table::Log, "k", "after")]);
    assert!(matches!(engine.commit(&batch), Err(CommitError::NotApplied(_))));
    server.psql(&format!("ALTER TABLE \"{}\".gone RENAME TO log", options.schema)).unwrap();
    assert_eq!(engine.commit(&batch), Ok(()));
}

/// The session's own settings are not what a commit relies on.
#[test]
fn a_commit_is_durable_and_has_time_whatever_the_database_s_defaults_say() {
    let server = Server::start().unwrap();
    server
        .psql(
            "ALTER DATABASE postgres SET synchronous_commit = off; ALTER DATABASE postgres SET statement_timeout = '1s'; \
             ALTER DATABASE postgres SET default_transaction_isolation = 'serializable'; \
             ALTER DATABASE postgres SET idle_in_transaction_session_timeout = '2s'",
        )
        .unwrap();
    for is_pooled in [false, true] {
        let options = Options { is_pooled, ..options(&server.url()) };
        let engine = Postgres::open(options.clone()).unwrap();
        server
            .psql(&format!(
                "CREATE TABLE IF NOT EXISTS seen (name text, value text); CREATE OR REPLACE FUNCTION look() RETURNS \
                 trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.seen SELECT name, current_setting(name) FROM \
                 unnest(ARRAY['synchronous_commit', 'statement_timeout', 'transaction_isolation', \
                 'idle_in_transaction_session_timeout']) AS name; \
                 RETURN NEW; END $$; CREATE TRIGGER look AFTER UPDATE ON \"{}\".head FOR EACH ROW \
                 EXECUTE FUNCTION look()",
                options.schema
            ))
            .unwrap();
        apply(&engine, vec![]);
    }
    let seen = server.psql("SELECT DISTINCT name || ' = ' || value FROM seen ORDER BY 1").unwrap();
    let seen = seen.replace("idle_in_transaction_session_timeout = 2s\n", "");
    assert_eq!(seen, "statement_timeout = 0\nsynchronous_commit = on\ntransaction_isolation = read committed");
}

#[test]
fn a_caller_within_a_runtime_is_no_trouble() {
    let server = Server::start().unwrap();
    let engine = Postgres::open(options(&server.url())).unwrap();
    let runtime = tokio_runtime();
    runtime.block_on(async {
        // Right on a task's thread, which is not done in production, and must not panic.
        apply(&engine, vec![put(Table::Meta, "k", "1")]);
        assert_eq!(get(&engine, Table::Meta, b"k"), Some(b"1".to_vec()));
    });
    runtime.block_on(async move { drop(engine) });
}

fn tokio_runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}
