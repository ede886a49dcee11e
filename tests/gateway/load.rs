//! A load through the gateway that must not notice what happens behind it: `tests/go/informers`, and a writer.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, MutexGuard};
use std::time::{Duration, Instant};

use kubewharf_testkit::http::{Answer, Client};
use kubewharf_testkit::process::{Process, Spec};
use kubewharf_testkit::{go_program, informers};
use serde_json::{Value, json};

use crate::fixture::{Fixture, WITHIN, alone};

/// Where everything is written, and what the informers follow.
const CONFIG_MAPS: &str = "/api/v1/namespaces/team/configmaps";
/// Pause between two writes.
const WRITE_INTERVAL: Duration = Duration::from_millis(50);
/// Requests of the load in a second.
const RATE: u64 = 150;
const INFORMERS: u64 = 200;
/// The connections of the informers.
const CONNECTIONS: u64 = 20;

static PROGRAM: LazyLock<std::path::PathBuf> =
    LazyLock::new(|| go_program::build("informers", &mut |line| eprintln!("{line}")).unwrap());

/// 200 informers, and 150 requests a second.
pub(crate) struct Load {
    process: Process,
    client: Client,
    begun: Instant,
    reports_seen: usize,
    _alone: MutexGuard<'static, ()>,
}

impl Load {
    /// Starts it through the fixture's gateway, and waits until all informers know a first state.
    pub(crate) fn start(fixture: &Fixture) -> Self {
        let alone = alone();
        let client = fixture.admin();
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}});
        client.post("/api/v1/namespaces", &namespace).unwrap().ok().unwrap();
        client.post(CONFIG_MAPS, &config_map("settings")).unwrap().ok().unwrap();
        let kubeconfig = fixture.kubeconfig();
        let process = Spec::new("informers", &*PROGRAM, fixture.gateway.folder.path())
            .arg(format!("-kubeconfig={}", kubeconfig.display()))
            .arg("-namespace=team")
            .arg(format!("-informers={INFORMERS}"))
            .arg(format!("-connections={CONNECTIONS}"))
            .arg(format!("-rate={RATE}"))
            .arg(format!("-get={CONFIG_MAPS}/settings"))
            .arg("-get=/api/v1/namespaces/team")
            .arg(format!("-get={CONFIG_MAPS}?limit=3"))
            .arg("-get=/api/v1/namespaces?resourceVersion=0")
            .arg("-get=/version")
            .arg("-get=/apis/rbac.authorization.k8s.io/v1/clusterroles/admin")
            .arg("-vmodule=reflector=4")
            .start()
            .unwrap();
        let mut load = Self { process, client, begun: Instant::now(), reports_seen: 0, _alone: alone };
        load.wait("all informers are in step", |report| report["informers"]["synced"] == INFORMERS);
        load
    }

    /// What happened so far.
    pub(crate) fn report(&self) -> Value {
        informers::report(&self.process).unwrap()
    }

    /// Waits for a report.
    fn wait(&mut self, what: &str, enough: impl Fn(&Value) -> bool) {
        let deadline = Instant::now() + WITHIN;
        loop {
            let report = self.report();
            if enough(&report) {
                return;
            }
            assert!(Instant::now() < deadline, "never came: {what}: {report:#}");
            assert!(self.process.ended().is_none(), "{}", self.process.log_text().unwrap());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until every informer holds what there is now, while nobody writes.
    pub(crate) fn wait_until_all_is_known(&mut self) {
        let list = self.client.get(CONFIG_MAPS).unwrap().ok().unwrap();
        let digest = informers::digest(&list);
        self.wait("all informers hold what there is", |report| {
            report["informers"]["stores"] == json!({&*digest: INFORMERS})
        });
    }

    /// The longest that a request took which ended since this was asked the last time.
    pub(crate) fn slowest_since_asked(&mut self) -> Duration {
        let text = self.process.log_text().unwrap();
        let reports: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let new = &reports[self.reports_seen..];
        let slowest = new.iter().filter_map(|report| report["load"]["slowestMs"].as_u64()).max();
        self.reports_seen = reports.len();
        Duration::from_millis(slowest.unwrap())
    }

    /// What client-go says of the ends of watches, each text once, with how often it was said.
    fn why_they_listed(&self) -> String {
        let log = self.process.log_text().unwrap();
        let mut texts: BTreeMap<&str, u64> = BTreeMap::new();
        for line in log.lines() {
            if let Some((_, text)) = line.split_once(" with: ").filter(|_| line.contains("reflector.go")) {
                *texts.entry(text).or_default() += 1;
            }
        }
        format!("{texts:#?}")
    }

    /// Ends it and checks that nothing has happened to it. Gives back its last report.
    pub(crate) fn finish(mut self) -> Value {
        let seconds = self.begun.elapsed().as_secs();
        self.process.stop(WITHIN);
        let report = self.report();
        println!("{report:#}");
        assert_eq!(report["load"]["failures"], json!({}), "{report:#}");
        assert_eq!(report["load"]["sent"], report["load"]["answered"], "{report:#}");
        assert!(report["load"]["sent"].as_u64().unwrap() >= seconds * RATE * 9 / 10, "{seconds} s: {report:#}");
        assert_eq!(
            report["informers"]["lists"],
            INFORMERS,
            "some listed again: {report:#}\n{}",
            self.why_they_listed()
        );
        assert_eq!(report["informers"]["errors"], json!({}), "{report:#}");
        report
    }
}

fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"text": "x".repeat(500)}})
}

/// Does that while objects are created, changed and deleted. What fails there is tried again: a request that changes
/// something may fail when its apiserver dies, as nobody knows what became of it. Gives back what failed, by its text.
pub(crate) fn while_writing(client: &Client, what: impl FnOnce()) -> BTreeMap<String, u64> {
    struct StopAtEnd<'a>(&'a AtomicBool);
    // Also when the test fails, which would otherwise wait for the writer for ever.
    impl Drop for StopAtEnd<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writes = scope.spawn(|| write_until(&stop, client));
        let stop_at_end = StopAtEnd(&stop);
        what();
        drop(stop_at_end);
        writes.join().unwrap()
    })
}

fn write_until(stop: &AtomicBool, client: &Client) -> BTreeMap<String, u64> {
    let mut failures = BTreeMap::new();
    let mut insist = |allowed: &[u16], send: &dyn Fn() -> kubewharf_testkit::Result<Answer>| {
        let deadline = Instant::now() + WITHIN;
        loop {
            let failure = match send() {
                Ok(answer) if allowed.contains(&answer.status) => return,
                Ok(answer) => format!("{}: {}", answer.status, answer.body["message"]),
                Err(error) => error.to_string(),
            };
            assert!(Instant::now() < deadline, "writing fails for too long: {failure}");
            *failures.entry(failure).or_default() += 1;
            std::thread::sleep(WRITE_INTERVAL);
        }
    };
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let path = |number: u32| format!("{CONFIG_MAPS}/written-{number}");
        insist(&[201, 409], &|| client.post(CONFIG_MAPS, &config_map(&format!("written-{number}"))));
        std::thread::sleep(WRITE_INTERVAL);
        let change = json!({"data": {"number": number.to_string()}});
        insist(&[200, 404], &|| client.patch(&path(number / 2), "application/merge-patch+json", &change));
        std::thread::sleep(WRITE_INTERVAL);
        if number % 3 == 2 {
            insist(&[200, 404], &|| client.delete(&path(number / 3)));
            std::thread::sleep(WRITE_INTERVAL);
        }
        number += 1;
    }
    failures
}
