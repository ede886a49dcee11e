//! Three members over one PostgreSQL or one TiKV cluster, and what happens to leaders: none of it loses, doubles or hides anything.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kubewharf_testkit::kubernetes::Apiserver;
use kubewharf_testkit::members::Members;
use kubewharf_testkit::tikv::Tikv;
use serde_json::json;
use tokio::runtime::Runtime;

use crate::client::Client;
use crate::crash::history::Outcome;
use crate::crash::load::{Load, Size};
use crate::crash::{compact_behind, compare};
use crate::random::{Random, seeds};

/// What happens to a leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// Its process is killed.
    Kill,
    /// Its process stands still for longer than others wait.
    Pause,
    /// It is told to stop.
    Stop,
    /// The database is killed and comes back.
    Database,
}

/// How long nothing was acknowledged around a fault.
struct Gap {
    fault: Fault,
    began: Instant,
}

const FLAGS: [&str; 2] = ["--log-level=info", "--log-format=console"];

/// As [`run_on`], over a PostgreSQL.
fn run(seed: u64, faults: &[Fault]) -> Vec<(Fault, Duration)> {
    run_on(Members::start(3, &FLAGS).expect("the members start"), seed, faults)
}

/// Rounds of load with a fault each; gives for each fault how long nothing was acknowledged around it.
fn run_on(mut members: Members, seed: u64, faults: &[Fault]) -> Vec<(Fault, Duration)> {
    let mut random = Random::new(seed);
    let runtime = Runtime::new().expect("a runtime starts");
    let urls = members.urls();
    let size = Size { writers: 6, readers: 3 };
    let (client, load) = runtime.block_on(async { (Client::new(&urls[0]), Load::start(&urls, size, seed)) });
    let mut gaps = Vec::new();
    let mut compacted = 0;
    for &fault in faults {
        let before = load.acknowledged();
        std::thread::sleep(Duration::from_millis(300 + random.below(500)));
        let deadline = Instant::now() + Duration::from_secs(60);
        while load.acknowledged() < before + 20 {
            assert!(Instant::now() < deadline, "nothing is acknowledged any more: {:?}", load.failures());
            std::thread::sleep(Duration::from_millis(10));
        }
        if random.once_in(3) {
            compacted = runtime.block_on(compact_behind(&client, load.watched(), compacted));
        }
        let leader = members.leader();
        gaps.push(Gap { fault, began: Instant::now() });
        strike_at(&mut members, leader, fault);
    }
    std::thread::sleep(Duration::from_secs(1));
    let ended = Instant::now();
    eprintln!("{:?}", load.failures());
    let history = runtime.block_on(load.finish());
    runtime.block_on(compare(&client, &history, compacted, &mut random));
    let mut acknowledged: Vec<Instant> = history
        .attempts
        .iter()
        .filter(|attempt| matches!(attempt.outcome, Outcome::Applied { .. }))
        .map(|attempt| attempt.ended)
        .collect();
    acknowledged.sort_unstable();
    let ends = gaps.iter().skip(1).map(|gap| gap.began).chain([ended]);
    gaps.iter()
        .zip(ends)
        .map(|(gap, end)| {
            let around: Vec<Instant> = acknowledged
                .iter()
                .copied()
                .filter(|at| *at >= gap.began - Duration::from_millis(100) && *at < end)
                .collect();
            // What was acknowledged before, and the end, count as well: a fault that stops everything is no gap of zero.
            let around: Vec<Instant> = around.into_iter().chain([end]).collect();
            let longest = around.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default();
            (gap.fault, longest)
        })
        .collect()
}

/// Does something to the leader.
fn strike(members: &mut Members, fault: Fault) {
    let leader = members.leader();
    strike_at(members, leader, fault);
}

fn strike_at(members: &mut Members, leader: usize, fault: Fault) {
    match fault {
        Fault::Kill => {
            members.process(leader).kill();
            std::thread::sleep(Duration::from_millis(1000));
            members.start_again(leader).expect("a killed member starts again");
        }
        Fault::Pause => {
            members.process(leader).pause();
            std::thread::sleep(Duration::from_millis(2500));
            members.process(leader).resume();
        }
        Fault::Stop => {
            members.stop(leader);
            members.start_again(leader).expect("a stopped member starts again");
        }
        Fault::Database => {
            members.postgres().kill9();
            std::thread::sleep(Duration::from_millis(500));
            members.postgres().restart().expect("the database starts again");
        }
    }
}

fn report(mut gaps: Vec<(Fault, Duration)>) {
    gaps.sort_unstable();
    for fault in [Fault::Kill, Fault::Pause, Fault::Stop, Fault::Database] {
        let of: Vec<Duration> = gaps.iter().filter(|gap| gap.0 == fault).map(|gap| gap.1).collect();
        if let (Some(longest), median) = (of.last(), of.get(of.len() / 2)) {
            let ms = |gap: Option<&Duration>| gap.map_or(0, Duration::as_millis);
            let [median, longest] = [ms(median), ms(Some(longest))];
            eprintln!("{fault:?}: {} times, nothing acknowledged for {median} ms, at most {longest} ms", of.len());
        }
    }
}

#[test]
fn leaders_that_die_stand_still_or_stop_lose_nothing() {
    for seed in seeds(1) {
        eprintln!("seed {seed}");
        let faults = [
            Fault::Kill,
            Fault::Stop,
            Fault::Pause,
            Fault::Kill,
            Fault::Database,
            Fault::Stop,
            Fault::Kill,
            Fault::Pause,
        ];
        report(run(seed, &faults));
    }
}

#[test]
#[ignore = "needs a TiKV cluster, which PD_ADDRS names, and a program with the feature tikv"]
fn leaders_over_tikv_that_die_stand_still_or_stop_lose_nothing() {
    for seed in seeds(1) {
        let Some(tikv) = Tikv::from_environment() else { return };
        eprintln!("seed {seed}");
        let members = Members::over_tikv(&tikv, 3, &FLAGS).expect("the members start");
        let faults = [Fault::Kill, Fault::Stop, Fault::Pause, Fault::Kill, Fault::Stop, Fault::Pause];
        report(run_on(members, seed, &faults));
    }
}

#[test]
#[ignore = "takes many minutes"]
fn a_hundred_leaders_lose_nothing() {
    for seed in seeds(1) {
        eprintln!("seed {seed}");
        let faults: Vec<Fault> =
            (0..100).map(|number| [Fault::Kill, Fault::Kill, Fault::Pause, Fault::Stop][number % 4]).collect();
        report(run(seed, &faults));
    }
}

/// How often kube-apiserver's watch caches began anew, over all resources.
fn cache_starts(apiserver: &Apiserver) -> f64 {
    let metrics = apiserver.client().get("/metrics").expect("an answer").ok().expect("metrics");
    let lines = metrics
        .as_str()
        .expect("a text")
        .lines()
        .filter(|line| line.starts_with("apiserver_watch_cache_initializations_total{"));
    lines.map(|line| line.rsplit(' ').next().and_then(|count| count.parse::<f64>().ok()).expect("a count")).sum()
}

#[test]
fn a_kube_apiserver_on_three_members_sees_nothing_of_what_happens_to_leaders() {
    const WRITERS: usize = 4;
    let mut members = Members::start(3, &FLAGS).expect("the members start");
    let mut apiserver = Apiserver::start::<&str>(&members.urls().join(","), &[]).expect("kube-apiserver starts");
    let client = apiserver.client();
    let process = apiserver.id();
    let path = "/api/v1/namespaces/default/configmaps";
    let list = client.get(path).expect("an answer").ok().expect("a list");
    let version = list["metadata"]["resourceVersion"].as_str().expect("a version").to_owned();
    let watch = client.watch(&format!("{path}?watch=1&resourceVersion={version}")).expect("a watch");
    let starts = cache_starts(&apiserver);
    assert!(starts > 10.0, "each resource has a cache");

    let stops = AtomicBool::new(false);
    let failures = AtomicUsize::new(0);
    let written: Vec<usize> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (stops, failures, client) = (&stops, &failures, apiserver.client());
                scope.spawn(move || {
                    let mut written = 0;
                    while !stops.load(Ordering::Relaxed) {
                        let name = format!("w{writer}-{written:06}");
                        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
                        // As a controller does: again until it is there.
                        loop {
                            match client.post(path, &object) {
                                Ok(answer) if answer.status == 201 || answer.status == 409 => break,
                                _ => {
                                    failures.fetch_add(1, Ordering::Relaxed);
                                    std::thread::sleep(Duration::from_millis(20));
                                }
                            }
                        }
                        written += 1;
                    }
                    written
                })
            })
            .collect();
        for fault in [Fault::Kill, Fault::Stop, Fault::Pause, Fault::Kill, Fault::Kill] {
            std::thread::sleep(Duration::from_millis(800));
            strike(&mut members, fault);
        }
        std::thread::sleep(Duration::from_millis(800));
        stops.store(true, Ordering::Relaxed);
        writers.into_iter().map(|writer| writer.join().expect("a writer does not panic")).collect()
    });
    eprintln!("{written:?} objects, {} failures on the way", failures.load(Ordering::Relaxed));

    // The one watch that was opened before has each object once, in the order of its writer.
    let mut seen = [0; WRITERS];
    while seen.iter().zip(&written).any(|(seen, written)| seen < written) {
        let event = watch.event(Duration::from_secs(60));
        assert_eq!(event["type"], "ADDED", "{event}");
        let name = event["object"]["metadata"]["name"].as_str().expect("a name");
        if let Some((writer, number)) = name.strip_prefix('w').and_then(|rest| rest.split_once('-')) {
            let writer: usize = writer.parse().expect("a number");
            assert_eq!(number, format!("{:06}", seen[writer]), "nothing is lost, doubled or out of order");
            seen[writer] += 1;
        }
    }
    assert_eq!(cache_starts(&apiserver), starts, "no watch cache had to begin anew");
    assert!(apiserver.process().ended().is_none() && apiserver.id() == process);
    assert!(client.get("/readyz").expect("an answer").status == 200);
}
