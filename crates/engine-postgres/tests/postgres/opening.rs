//! Opening: many at once, and what is refused.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use kubewharf_engine::conformance::{apply, head, put};
use kubewharf_engine::{Head, Table};
use kubewharf_engine_postgres::{OpenError, Options, Postgres};
use kubewharf_testkit::postgres::Postgres as Server;
use kubewharf_testkit::process::Spec;

use crate::stores::options;

fn refusal(options: Options) -> OpenError {
    Postgres::open(options).map(|_| ()).unwrap_err()
}

#[test]
fn an_empty_database_is_opened_by_many_at_once() {
    const OPENERS: usize = 8;
    let server = Server::start().unwrap();
    for _ in 0..3 {
        let options = options(&server.url());
        let start = Barrier::new(OPENERS);
        let heads: Vec<Head> = thread::scope(|scope| {
            let open = || {
                start.wait();
                head(&Postgres::open(options.clone()).unwrap())
            };
            let openers: Vec<_> = (0..OPENERS).map(|_| scope.spawn(open)).collect();
            openers.into_iter().map(|opener| opener.join().unwrap()).collect()
        });
        assert_eq!((heads[0].epoch, heads[0].seq, heads[0].revision), (1, 1, 1));
        assert!(heads.iter().all(|head| *head == heads[0]), "one store: {heads:?}");
        let tuned = "SELECT count(*) FROM pg_class WHERE reloptions::text LIKE '%fillfactor=10,%' OR \
                     reloptions::text LIKE '%fillfactor=10}%'";
        assert_ne!(server.psql(tuned).unwrap(), "0");
    }
}

#[test]
fn an_owner_of_the_schema_needs_no_right_on_the_database() {
    let server = Server::start().unwrap();
    server.psql("CREATE USER tenant; CREATE SCHEMA mine AUTHORIZATION tenant").unwrap();
    server.psql("REVOKE CREATE ON DATABASE postgres FROM PUBLIC").unwrap();
    let url = server.url().replace("postgres@", "tenant@");
    let engine = Postgres::open(Options { schema: "mine".to_owned(), ..Options::new(&url) }).unwrap();
    apply(&engine, vec![put(Table::Meta, "k", "v")]);
    let error = refusal(Options { schema: "another".to_owned(), ..Options::new(&url) }).to_string();
    assert!(error.contains("permission denied"), "{error}");
}

#[test]
fn what_another_version_or_a_half_restore_left_is_refused() {
    let server = Server::start().unwrap();
    let options = options(&server.url());
    drop(Postgres::open(options.clone()).unwrap());
    let store = format!("\"{}\".store", options.schema);
    server.psql(&format!("UPDATE {store} SET is_whole = false")).unwrap();
    let schema = options.schema.clone();
    assert_eq!(refusal(options.clone()), OpenError::HalfRestored { schema: schema.clone() });
    server.psql(&format!("UPDATE {store} SET format = 2")).unwrap();
    assert_eq!(refusal(options), OpenError::Format { schema, found: 2, supported: 1 });
}

#[test]
fn a_server_that_is_not_there_or_not_ours_is_an_error_without_the_password() {
    let server = Server::start().unwrap();
    let url = |user: &str, database: &str, port: u16| {
        format!("postgres://{user}:hunter2@{}:{port}/{database}", server.address().ip())
    };
    let port = server.address().port();
    let begin = Instant::now();
    for (url, said) in [(url("nobody", "postgres", port), "nobody"), (url("postgres", "missing", port), "missing")] {
        let error = refusal(Options::new(url)).to_string();
        assert!(error.contains(said) && !error.contains("hunter2"), "{error}");
    }
    assert!(begin.elapsed() < Duration::from_secs(5), "what can't succeed is not tried again");
    let closed = kubewharf_testkit::address::free_port();
    let read_timeout = Duration::from_millis(300);
    let options = Options { read_timeout, ..Options::new(url("postgres", "postgres", closed.port())) };
    let error = refusal(options).to_string();
    assert!(error.contains(&closed.port().to_string()) && !error.contains("hunter2"), "{error}");
    let error = refusal(Options::new("postgres://u:hunter2@h/d?sslmode=maybe")).to_string();
    assert!(error.contains("sslmode") && !error.contains("hunter2"), "{error}");
    assert!(!format!("{:?}", Options::new("postgres://u:hunter2@h/d")).contains("hunter2"));
}

/// A server among several that takes no writes is passed over.
#[test]
fn the_host_that_takes_writes_is_found() {
    let reader = Server::start_with(&[("default_transaction_read_only", "on")], None).unwrap();
    let server = Server::start().unwrap();
    let hosts = format!("{},{}", reader.address(), server.address());
    let engine = Postgres::open(options(&format!("postgres://postgres@{hosts}/postgres"))).unwrap();
    apply(&engine, vec![put(Table::Meta, "k", "v")]);
    assert_eq!(server.psql("SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'store%'").unwrap(), "1");
}

#[test]
fn asynchronous_replication_is_refused_unless_it_is_allowed() {
    let server = Server::start().unwrap();
    let options = options(&server.url());
    drop(Postgres::open(options.clone()).unwrap());
    let folder = server.folder().path();
    let target = folder.join("received");
    std::fs::create_dir(&target).unwrap();
    // It takes the log as a standby does.
    let mut standby = Spec::new("standby", server.programs().join("pg_receivewal"), folder)
        .args(["-U", "postgres", "-w", "-h"])
        .arg(folder)
        .args(["-p", &server.address().port().to_string(), "-D"])
        .arg(&target)
        .start()
        .unwrap();
    let streaming = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
    standby.wait_until(Duration::from_secs(30), |_| server.psql(streaming).unwrap() == "1").unwrap();
    let error = refusal(options.clone());
    assert_eq!(error, OpenError::AsynchronousReplication);
    let text = error.to_string();
    assert!(text.contains("synchronous_standby_names") && text.contains("allow-asynchronous-replication"), "{text}");
    let allowed = Options { allow_asynchronous_replication: true, ..options };
    apply(&Postgres::open(allowed).unwrap(), vec![]);
}
