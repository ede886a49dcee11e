//! A database that fails over to a standby: with synchronous replication nothing is lost and members go on by themselves; without, what is
//! lost is noticed, and nobody serves until an operator says so.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kubewharf_testkit::members::{Members, Place};
use kubewharf_testkit::postgres::{Postgres, Setup};
use kubewharf_testkit::process;
use kubewharf_testkit::store::product;
use tokio::runtime::Runtime;

use crate::client::{Client, get, put};
use crate::members::Trial;
use crate::random::seeds;

const SOON: Duration = Duration::from_secs(60);
/// Nothing is left in `/dev/shm` of a server that is killed and never comes back.
const MEMORY: (&str, &str) = ("dynamic_shared_memory_type", "mmap");
/// The name of a standby at its primary.
const STANDBY: &str = "standby";
const FLAGS: [&str; 2] = ["--log-level=info", "--log-format=console"];

/// A URL of both, as an operator writes it.
fn url(servers: [&Postgres; 2]) -> String {
    let [one, other] = servers.map(Postgres::address);
    format!("postgres://postgres@{one},{other}/postgres")
}

fn wait_for(server: &Postgres, what: &str, sql: &str, expected: &str) {
    let deadline = Instant::now() + SOON;
    while server.psql(sql).expect("an answer") != expected {
        assert!(Instant::now() < deadline, "{what}: {:?}", server.log_text());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until a standby takes the log as it is written.
fn wait_for_streaming(primary: &Postgres) {
    let sql = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
    wait_for(primary, "no standby follows", sql, "1");
}

/// A standby that the primary waits for from now on.
fn add_synchronous(primary: &Postgres, setup: Setup<'_>) -> Postgres {
    let standby = primary.start_standby(STANDBY, setup).expect("a standby starts");
    wait_for_streaming(primary);
    primary.psql(&format!("ALTER SYSTEM SET synchronous_standby_names = '{STANDBY}'")).expect("a setting");
    primary.psql("SELECT pg_reload_conf()").expect("a new configuration");
    wait_for(primary, "nobody is waited for", "SELECT sync_state FROM pg_stat_replication", "sync");
    standby
}

/// How a primary is lost.
#[derive(Clone, Copy, Debug)]
enum Loss {
    /// It is killed, and then its standby promoted.
    Killed,
    /// It stands still from then on, as if its host had no power: connections to it neither answer nor end.
    Frozen,
}

#[test]
fn a_standby_that_is_waited_for_takes_over_with_everything() {
    for seed in seeds(1) {
        eprintln!("seed {seed}");
        let setup =
            |address| Setup { settings: &[("synchronous_commit", "remote_apply")], address, ..Setup::default() };
        let mut primary = Postgres::start().expect("PostgreSQL starts");
        let mut standby = add_synchronous(&primary, setup(None));
        let members = Members::at(&url([&primary, &standby]), &[PLACE; 3], &FLAGS).expect("the members start");
        let mut trial = Trial::start(members, seed, 60);
        for loss in [Loss::Killed, Loss::Frozen] {
            trial.work();
            let begun = Instant::now();
            match loss {
                Loss::Killed => primary.kill9(),
                Loss::Frozen => primary.pause(),
            }
            standby.promote().expect("the standby takes over");
            let promoted = begun.elapsed();
            trial.recovers();
            eprintln!("{loss:?}: another primary after {promoted:.1?}, all went on after {:.1?}", begun.elapsed());
            // It must never come back as it was.
            primary.kill9();
            // The next standby has the address of the primary that was lost.
            let address = primary.address();
            (primary, standby) = (standby, primary);
            drop(standby);
            standby = add_synchronous(&primary, setup(Some(address)));
        }
        trial.work();
        trial.finish();
        drop(standby);
    }
}

/// A member that is like all others.
const PLACE: Place = Place { host: None, namespaces: Vec::new(), environment: Vec::new() };

/// Writes a key; gives the revision at which that was acknowledged.
async fn write(client: &Client, key: &str) -> Result<i64, tonic::Status> {
    let reply = client.clone().kv.put(put(key, key.as_bytes())).await?.into_inner();
    Ok(reply.header.expect("replies have headers").revision)
}

#[test]
fn a_standby_that_lags_is_noticed_and_served_only_after_an_operator_says_so() {
    let runtime = Runtime::new().expect("a runtime starts");
    let mut primary = Postgres::start_with(&[MEMORY], None).expect("PostgreSQL starts");
    let setup = Setup { settings: &[MEMORY], ..Setup::default() };
    let mut standby = primary.start_standby(STANDBY, setup).expect("a standby starts");
    wait_for_streaming(&primary);
    let url = url([&primary, &standby]);
    let flags = [&FLAGS[..], &["--engine-allow-asynchronous-replication"]].concat();
    let mut members = Members::at(&url, &[PLACE; 3], &flags).expect("the members start");
    let urls = members.urls();
    let clients: Vec<Client> = runtime.block_on(async { urls.iter().map(|url| Client::new(url)).collect() });
    let kept = runtime.block_on(write(&clients[0], "kept")).expect("a put");
    let caught_up = "SELECT replay_lsn >= pg_current_wal_flush_lsn() FROM pg_stat_replication";
    wait_for(&primary, "the standby does not catch up", caught_up, "t");
    // What follows the standby does not get.
    standby.stop();
    let mut lost = 0;
    for number in 0..100 {
        lost = runtime.block_on(write(&clients[number % 3], &format!("lost-{number}"))).expect("a put");
    }
    primary.kill9();
    standby.restart().expect("the standby starts again");
    // Clients go on all the time, on each member.
    let stops = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = clients
        .iter()
        .cloned()
        .map(|client| {
            let stops = stops.clone();
            runtime.spawn(async move {
                let mut acknowledged = Vec::new();
                while !stops.load(Ordering::Relaxed) {
                    acknowledged.extend(write(&client, "after").await);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                acknowledged
            })
        })
        .collect();
    standby.promote().expect("the standby takes over");

    for member in 0..3 {
        let ended = members.process(member).wait_for_end(SOON);
        assert!(ended.is_some_and(|ended| !ended.success()), "member {member} goes on: {ended:?}");
        let log = members.process(member).log_text().expect("a log");
        assert!(log.contains("lost acknowledged data") && log.contains("kubewharf brain recover"), "{log}");
    }
    stops.store(true, Ordering::Relaxed);
    for writer in writers {
        let acknowledged = runtime.block_on(writer).expect("a writer does not panic");
        assert!(acknowledged.is_empty(), "acknowledged on top of what had gone back: {acknowledged:?}");
    }
    // Those that know nothing of what was lost find it written.
    assert!(members.start_again(0).is_err(), "a store that has lost data is served again");
    let log = members.process(0).log_text().expect("a log");
    assert!(log.rsplit("lost acknowledged data").next().is_some_and(|end| end.contains("brain recover")), "{log}");

    let recover = |words: &[&str]| {
        let mut command = Command::new(product().expect("the product is built"));
        process::run(command.args(["brain", "recover"]).args(words).env("ETCD_ENGINE_URL", &url))
    };
    let refused = recover(&[]).expect_err("nobody has accepted the loss").to_string();
    assert!(refused.contains("--accept-data-loss"), "{refused}");
    let told = recover(&["--accept-data-loss"]).expect("the store is recovered");
    assert!(told.contains("recovered"), "{told}");
    for member in 0..3 {
        members.start_again(member).expect("a member starts again");
    }
    let read = async |client: &Client, key: &str| client.clone().kv.range(get(key)).await.expect("a read").into_inner();
    for client in &clients {
        let reply = runtime.block_on(read(client, "kept"));
        assert_eq!(reply.kvs.first().map(|kv| kv.mod_revision), Some(kept), "what the standby had is there");
        assert!(reply.header.expect("replies have headers").revision > lost + 1_000_000);
        assert_eq!(runtime.block_on(read(client, "lost-99")).kvs.len(), 0);
        assert!(runtime.block_on(write(client, "new")).expect("a put") > lost + 1_000_000);
    }
}
