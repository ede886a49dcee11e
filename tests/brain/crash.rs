//! Kills the store in the middle of its work, again and again, and holds what its clients were told against what is
//! there afterwards.
//!
//! [`load`] is the clients, [`history`] what they note, [`check`] the promises. A kill shows that nothing depends on the
//! process, not that everything is on the disk: that the engine's own tests show, on a simulated one.

pub(crate) mod check;
pub(crate) mod history;
pub(crate) mod load;

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kubewharf_etcd_api::etcdserverpb::{LeaseTimeToLiveRequest, RangeRequest, StatusRequest};
use kubewharf_testkit::process;
use kubewharf_testkit::store::{Kind, Store, product};
use serde_json::Value;
use tokio::runtime::Runtime;

use self::check::{State, Verdict, check};
use self::history::{History, Version};
use self::load::{LONG_TTL_SECONDS, Load, Size, WENT_AWAY};
use crate::client::{Client, compact, range};
use crate::random::{Random, new_seeds, seeds};

/// How often the whole store is compared at an old revision.
const OLD_REVISIONS: i64 = 12;
/// How many revisions a compaction keeps.
const KEPT_REVISIONS: i64 = 300;

/// What happened in the rounds.
#[derive(Debug, Default)]
struct Report {
    restarts: Vec<Duration>,
    compacted: i64,
    failures: BTreeMap<String, usize>,
}

/// Rounds of load, each ended by `interrupt`; then everything is checked.
fn run(seed: u64, rounds: usize, size: Size, interrupt: impl Fn(&mut Store)) -> Report {
    let mut random = Random::new(seed);
    let runtime = Runtime::new().expect("a runtime starts");
    let mut store = Store::start(&["--log-level=error"]).expect("the store starts");
    let (client, load) =
        runtime.block_on(async { (Client::new(&store.url()), Load::start(&[store.url()], size, seed)) });
    let mut report = Report::default();
    for _ in 0..rounds {
        let before = load.acknowledged();
        std::thread::sleep(Duration::from_millis(300 + random.below(700)));
        // A kill that meets no work shows nothing.
        let deadline = Instant::now() + Duration::from_secs(60);
        while load.acknowledged() < before + 20 {
            assert!(Instant::now() < deadline, "nothing is acknowledged any more: {:?}", load.failures());
            std::thread::sleep(Duration::from_millis(10));
        }
        if random.once_in(3) {
            report.compacted = runtime.block_on(compact_behind(&client, load.watched(), report.compacted));
        }
        let begun = Instant::now();
        interrupt(&mut store);
        report.restarts.push(begun.elapsed());
    }
    report.failures = load.failures();
    let history = runtime.block_on(load.finish());
    runtime.block_on(compare(&client, &history, report.compacted, &mut random));
    if store.kind() == Kind::Brain {
        compare_log(&mut store, &history, report.compacted);
    }
    report
}

/// What `kubewharf brain log` tells, of the running store and of its files, is what the first watcher saw.
fn compare_log(store: &mut Store, history: &History, compacted: i64) {
    let transactions = &history.watched[0].transactions;
    let log = |source: &[String]| {
        let program = product().expect("the product is built");
        process::run(Command::new(program).args(["brain", "log"]).args(source)).expect("a log")
    };
    let running = log(&[format!("--endpoint={}", store.url())]);
    store.process().stop(Duration::from_secs(30));
    let stopped = log(&[format!("--data-dir={}", store.data().display())]);
    let mut expected = transactions.iter().skip_while(|transaction| transaction.revision < compacted);
    let mut lines = running.lines();
    for (line, transaction) in lines.by_ref().zip(expected.by_ref()) {
        let line: Value = serde_json::from_str(line).expect("a line of JSON");
        let (revision, changes) = logged(&line);
        assert_eq!(revision, transaction.revision, "the log is dense");
        assert!(changes == transaction.changes, "the log at {revision} is not what a watcher saw: {line}");
    }
    assert!(expected.next().is_none(), "the log ends early");
    // What followed the last write that was waited for is in both.
    assert!(stopped.starts_with(&running), "the files tell another log than the running store");
}

/// A line of the log: the revision and its changes.
fn logged(line: &Value) -> (i64, BTreeMap<String, Option<Version>>) {
    let bytes = |value: &Value| STANDARD.decode(value.as_str().expect("a text")).expect("base64");
    let number = |value: &Value| value.as_i64().expect("a number");
    let revision = number(&line["revision"]);
    let operations = line["ops"].as_array().expect("a list").iter().map(|operation| {
        let key = String::from_utf8(bytes(&operation["key"])).expect("the keys of the test are text");
        let version = (operation["type"] == "put").then(|| Version {
            value: bytes(&operation["value"]),
            lease: number(&operation["lease"]),
            create_revision: number(&operation["create_revision"]),
            mod_revision: revision,
            version: number(&operation["version"]),
        });
        (key, version)
    });
    (revision, operations.collect())
}

/// Compacts some way behind what all watchers have; returns the compacted revision.
pub(crate) async fn compact_behind(client: &Client, watched: i64, compacted: i64) -> i64 {
    let revision = watched - KEPT_REVISIONS;
    if revision <= compacted {
        return compacted;
    }
    client.clone().kv.compact(compact(revision)).await.expect("a compaction").into_inner();
    revision
}

/// Checks the history, and that the store still tells the same.
pub(crate) async fn compare(client: &Client, history: &History, compacted: i64, random: &mut Random) {
    let mut client = client.clone();
    let newest = history.watched[0].transactions.last().map_or(1, |transaction| transaction.revision);
    let from = compacted.max(2);
    let old: Vec<i64> = (0..OLD_REVISIONS)
        .map(|_| from + i64::try_from(random.below(newest.abs_diff(from) + 1)).expect("a small number"))
        .chain([from, newest])
        .collect();
    let mut states: BTreeMap<i64, State> = BTreeMap::new();
    let verdict = check(history, |revision, state| {
        if old.contains(&revision) {
            states.insert(revision, state.clone());
        }
    });
    report_of(&verdict, history);
    verdict.assert_kept();
    for (revision, state) in states {
        let request = RangeRequest { revision, ..range("\0", "\0") };
        let reply = client.kv.range(request).await.expect("a read at a kept revision").into_inner();
        let found: State = reply.kvs.into_iter().map(load::keyed).collect();
        assert!(found == state, "the store at revision {revision} is not what its watchers saw");
    }
    for lease in history.leases.iter().filter(|lease| lease.granted && lease.ttl_seconds == LONG_TTL_SECONDS) {
        let request = LeaseTimeToLiveRequest { id: lease.id, keys: true };
        let reply = client.lease.lease_time_to_live(request).await.expect("a lease").into_inner();
        let age = i64::try_from(lease.asked.elapsed().as_secs()).expect("a short time");
        let ttl = i64::try_from(LONG_TTL_SECONDS).expect("a small number");
        assert!(reply.granted_ttl == ttl && reply.ttl <= ttl, "{reply:?}");
        // One for the seconds that are cut off.
        assert!(reply.ttl >= ttl - age - 1, "{} s are left of a lease of {ttl} s after {age} s", reply.ttl);
        let mut keys: Vec<String> = reply.keys.iter().map(|key| String::from_utf8_lossy(key).into_owned()).collect();
        keys.sort();
        let attached = verdict.state.iter().filter(|(_, version)| version.lease == lease.id);
        assert_eq!(keys, attached.map(|(key, _)| key.clone()).collect::<Vec<_>>(), "the keys of lease {}", lease.id);
    }
    let status = client.maintenance.status(StatusRequest {}).await.expect("a status").into_inner();
    assert!(status.header.is_some_and(|header| header.revision >= newest));
}

fn report_of(verdict: &Verdict, history: &History) {
    eprintln!(
        "{} writes, {} reads, {} revisions; without an answer: {} applied, {} not; {} leases ended",
        history.attempts.len(),
        history.reads.len(),
        history.watched[0].transactions.len(),
        verdict.unknown_applied,
        verdict.unknown_absent,
        verdict.leases_ended,
    );
}

fn report_restarts(report: &mut Report) {
    report.restarts.sort_unstable();
    let restarts = &report.restarts;
    let median = restarts[restarts.len() / 2];
    let longest = restarts[restarts.len() - 1];
    eprintln!("{} restarts, median {median:.0?}, longest {longest:.0?}; {:?}", restarts.len(), report.failures);
}

fn kill(store: &mut Store) {
    store.kill_and_start().expect("a killed store starts again");
}

#[test]
fn a_killed_store_keeps_its_promises() {
    for seed in seeds(1) {
        eprintln!("seed {seed}");
        let mut report = run(seed, 10, Size { writers: 4, readers: 2, kept_ttl_seconds: 15 }, kill);
        report_restarts(&mut report);
    }
}

#[test]
#[ignore = "takes ten minutes"]
fn a_store_killed_two_hundred_times_keeps_its_promises() {
    for seed in new_seeds(10) {
        eprintln!("seed {seed}");
        let mut report = run(seed, 20, Size { writers: 8, readers: 2, kept_ttl_seconds: 15 }, kill);
        report_restarts(&mut report);
    }
}

#[test]
fn a_store_that_is_stopped_loses_nothing_and_fails_with_unavailable_alone() {
    for seed in seeds(1) {
        eprintln!("seed {seed}");
        let mut report = run(seed, 4, Size { writers: 4, readers: 2, kept_ttl_seconds: 15 }, |store| {
            store.stop_and_start().expect("a stopped store starts again");
        });
        report_restarts(&mut report);
        assert!(!report.failures.is_empty(), "the stops met no call");
        // A client that retries what is Unavailable, as every client of etcd does, sees no failure. "Canceled" is this
        // client's own word for a request that it had not yet sent when the connection was closed in good order.
        let retried = ["Unavailable: ", "Cancelled: operation was canceled"];
        let is_retried = |failure: &&String| {
            failure.ends_with(WENT_AWAY) || retried.iter().any(|retried| failure.starts_with(retried))
        };
        let others: Vec<_> = report.failures.keys().filter(|failure| !is_retried(failure)).collect();
        assert!(others.is_empty() || Kind::from_environment() == Kind::Etcd, "{others:?}");
    }
}
