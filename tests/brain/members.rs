//! Three members over one PostgreSQL or one TiKV cluster, and what happens to leaders: none of it loses, doubles or hides anything.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kubewharf_testkit::kubernetes::Apiserver;
use kubewharf_testkit::members::Members;
use kubewharf_testkit::tikv::Tikv;
use serde_json::json;
use tokio::runtime::Runtime;

use crate::client::Client;
use crate::crash::history::{History, Outcome};
use crate::crash::load::{Load, Size};
use crate::crash::{compact_behind, compare};
use crate::random::{Random, seeds};

/// What happens to a leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
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

/// Members under load, whose history is checked in the end.
pub(crate) struct Trial {
    load: Load,
    pub(crate) client: Client,
    pub(crate) members: Members,
    random: Random,
    compacted: i64,
    runtime: Runtime,
}

impl Trial {
    /// How long it takes at most until what must go on does.
    const GOES_ON_WITHIN: Duration = Duration::from_secs(60);

    /// Starts clients on each member, and one that keeps a lease of so many seconds.
    pub(crate) fn start(members: Members, seed: u64, kept_ttl_seconds: u64) -> Self {
        let runtime = Runtime::new().expect("a runtime starts");
        let urls = members.urls();
        let size = Size { writers: 6, readers: 3, kept_ttl_seconds };
        let (client, load) = runtime.block_on(async { (Client::new(&urls[0]), Load::start(&urls, size, seed)) });
        Self { load, client, members, random: Random::new(seed), compacted: 0, runtime }
    }

    /// Lets clients work for some time, on whichever member, and then compacts or not.
    pub(crate) fn work(&mut self) {
        let before = self.load.acknowledged();
        std::thread::sleep(Duration::from_millis(300 + self.random.below(500)));
        self.wait(|load| load.acknowledged() >= before + 20, || "nothing is acknowledged any more".to_owned());
        if self.random.once_in(3) {
            let compacting = compact_behind(&self.client, self.load.watched(), self.compacted);
            self.compacted = self.runtime.block_on(compacting);
        }
    }

    /// The revision that every watcher has.
    pub(crate) fn watched(&self) -> i64 {
        self.load.watched()
    }

    /// Waits until writes are acknowledged on each of these members.
    pub(crate) fn goes_on(&self, members: &[usize]) {
        for &member in members {
            let before = self.load.acknowledged_at(member);
            let stands = || format!("nothing is acknowledged any more on member {member} of {members:?}");
            self.wait(|load| load.acknowledged_at(member) >= before + 5, stands);
        }
    }

    /// Waits until all members say that they are ready, and writes are acknowledged on each.
    pub(crate) fn recovers(&self) {
        for member in 0..3 {
            self.wait(|_| self.members.is_ready(member), || format!("member {member} does not get ready again"));
        }
        self.goes_on(&[0, 1, 2]);
    }

    /// How many calls have failed so.
    pub(crate) fn failed(&self, text: &str) -> usize {
        self.load.failures().get(text).copied().unwrap_or(0)
    }

    /// Waits until something is so, or panics with what is not.
    pub(crate) fn wait(&self, is_so: impl Fn(&Load) -> bool, else_what: impl Fn() -> String) {
        let deadline = Instant::now() + Self::GOES_ON_WITHIN;
        while !is_so(&self.load) {
            assert!(Instant::now() < deadline, "{}: {:?}", else_what(), self.load.failures());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Runs something of the tests' clients.
    pub(crate) fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Ends the load, and checks all that happened and that the store still tells the same.
    pub(crate) fn finish(mut self) -> History {
        eprintln!("{:?}", self.load.failures());
        let history = self.runtime.block_on(self.load.finish());
        self.runtime.block_on(compare(&self.client, &history, self.compacted, &mut self.random));
        history
    }
}

const FLAGS: [&str; 2] = ["--log-level=info", "--log-format=console"];

/// As [`run_on`], over a PostgreSQL.
fn run(seed: u64, faults: &[Fault]) -> Vec<(Fault, Duration)> {
    run_on(Members::start(3, &FLAGS).expect("the members start"), seed, faults)
}

/// Rounds of load with a fault each; gives for each fault how long nothing was acknowledged around it.
fn run_on(members: Members, seed: u64, faults: &[Fault]) -> Vec<(Fault, Duration)> {
    let mut trial = Trial::start(members, seed, 15);
    let mut gaps = Vec::new();
    for &fault in faults {
        trial.work();
        let leader = trial.members.leader();
        gaps.push(Gap { fault, began: Instant::now() });
        strike_at(&mut trial.members, leader, fault);
    }
    std::thread::sleep(Duration::from_secs(1));
    let ended = Instant::now();
    let history = trial.finish();
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

pub(crate) fn strike_at(members: &mut Members, leader: usize, fault: Fault) {
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
#[ignore = "needs a TiKV cluster, which PD_ADDRS names"]
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
#[ignore = "takes more than three minutes"]
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
