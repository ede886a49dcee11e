//! Twenty tenants at work, each with a random marker in all that it makes. Whatever one of them is answered holds no
//! marker, id, UID or name of another one, nor what its own names are upstream.

mod examples;
pub(crate) mod needles;
mod reads;

use std::collections::hash_map::RandomState;
use std::fmt::Write as _;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kubewharf_testkit::http::Client;
use libtest_mimic::{Failed, Trial};
use serde_json::{Value, json};

use crate::fixture::{Tenant, World, Zoo};
use needles::Needles;

const TENANTS: usize = 20;
/// Those whose answers are read; the others are only at work.
const READERS: [usize; 2] = [0, TENANTS - 1];
/// Requests at the same time.
const WORKERS: usize = 6;
/// Watches at the same time: they wait most of the time.
const WATCHERS: usize = 40;
/// Between two changes, so that the machine has time for those who read.
const CHANGE_INTERVAL: Duration = Duration::from_millis(20);
/// How many findings are shown.
const SHOWN_MAX: usize = 40;

/// A tenant and what marks it.
pub(crate) struct Marked {
    pub(crate) tenant: Tenant,
    /// Letters that nobody else writes, and that are a name everywhere.
    pub(crate) marker: String,
    client: Client,
}

/// The tests of this module.
pub(crate) fn trials(world: &Arc<World>) -> Vec<Trial> {
    let judges = World::judges_a_tenant();
    let world = world.clone();
    vec![
        Trial::test("taint/needles", || {
            needles::self_test();
            Ok(())
        }),
        Trial::test("taint/no_answer_tells_of_another_tenant", move || no_answer_tells(world.zoo()))
            .with_ignored_flag(!judges),
    ]
}

/// Letters that no two calls have in common.
pub(crate) fn marker() -> String {
    let mut bits = RandomState::new().build_hasher().finish();
    let mut text = "mk".to_owned();
    for _ in 0..12 {
        text.push(char::from(b'a' + (bits % 26) as u8));
        bits /= 26;
    }
    text
}

/// Runs the work on several threads, each taking the next one.
pub(crate) fn in_parallel<T: Sync>(all: &[T], work: impl Fn(usize, &T) + Sync) {
    on_threads(WORKERS, all, work);
}

fn on_threads<T: Sync>(threads: usize, all: &[T], work: impl Fn(usize, &T) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let Some(one) = all.get(place) else { return };
                    work(place, one);
                }
            });
        }
    });
}

fn no_answer_tells(zoo: &Zoo) -> Result<(), Failed> {
    let begun = Instant::now();
    let names: Vec<String> = (0..TENANTS).map(|number| format!("taint{number:02}")).collect();
    let tenants = Mutex::new(Vec::new());
    in_parallel(&names, |place, name| {
        let tenant = zoo.create_tenant(name);
        let client = tenant.client();
        tenants.lock().unwrap().push((place, Marked { tenant, marker: marker(), client }));
    });
    let mut tenants = tenants.into_inner().unwrap();
    tenants.sort_by_key(|(place, _)| *place);
    let tenants: Vec<Marked> = tenants.into_iter().map(|(_, tenant)| tenant).collect();

    let made = begun.elapsed();
    let resources = reads::served(&tenants[0].client);
    let missing = examples::missing(&resources);
    let refused = Mutex::new(Vec::new());
    in_parallel(&tenants, |_, tenant| refused.lock().unwrap().extend(work(tenant, &resources)));
    let mut refused = refused.into_inner().unwrap();
    refused.sort_unstable();
    refused.dedup();

    let worked = begun.elapsed();
    // While two read, the others go on.
    let reading = AtomicBool::new(true);
    let findings = std::thread::scope(|scope| {
        scope.spawn(|| go_on(&tenants[1..TENANTS - 1], &reading));
        let readers = READERS.map(|reader| {
            let (tenants, resources) = (&tenants, &resources);
            scope.spawn(move || {
                let needles = Needles::of(tenants, reader);
                reads::read_all(&tenants[reader], &tenants[1], resources, &needles)
            })
        });
        let all = readers.map(|reader| reader.join().unwrap());
        reading.store(false, Ordering::Relaxed);
        all
    });
    println!("tenants after {made:.1?}, at work after {worked:.1?}, all read after {:.1?}", begun.elapsed());
    let mut report = String::new();
    for (reader, all) in READERS.iter().zip(&findings) {
        let reads::Answers { count, of_its_own, findings } = all;
        println!(
            "tenant {reader}: {count} answers, {of_its_own} with its own marker, {} tell of others",
            findings.len()
        );
        // Or nothing was looked at.
        if of_its_own * 5 < *count {
            writeln!(report, "tenant {reader} finds its own marker in no more than {of_its_own} of {count} answers")
                .unwrap();
        }
        for finding in findings.iter().take(SHOWN_MAX) {
            writeln!(report, "tenant {reader}: {finding}").unwrap();
        }
    }
    for kind in missing {
        writeln!(report, "no example of {kind}: tests/zoo/taint/examples.rs needs one").unwrap();
    }
    // What there is none of for tenants can be looked for all the same.
    for answer in refused.iter().filter(|answer| !answer.contains("tenants can only read")) {
        writeln!(report, "a tenant could not make its objects: {answer}").unwrap();
    }
    if report.is_empty() { Ok(()) } else { Err(report.into()) }
}

/// Makes an object of each kind in two namespaces, and some without one; says what was refused.
fn work(tenant: &Marked, resources: &[reads::Resource]) -> Vec<String> {
    let marker = tenant.marker.as_str();
    let mut refused = Vec::new();
    let mut make = |path: &str, object: &Value| {
        let answer = tenant.client.post(path, object).unwrap();
        if !matches!(answer.status, 201 | 409) {
            let what = answer.body["message"].to_string().replace(marker, "<marker>");
            refused.push(format!("POST {path}: {} {what}", answer.status).replace(marker, "<marker>"));
        }
    };
    make("/api/v1/namespaces", &json!({"metadata": {"name": marker, "labels": {marker: marker}}}));
    if resources.iter().any(|resource| resource.plural == "customresourcedefinitions") {
        make("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &examples::definition(marker));
    }
    for (path, object) in examples::wide(marker) {
        make(path, &object);
    }
    for resource in resources {
        for namespace in ["default", marker] {
            if let Some(object) = examples::namespaced(resource, namespace, marker) {
                make(&resource.path(Some(namespace)), &object);
            }
        }
    }
    refused
}

/// Changes an object of each of these tenants, again and again.
fn go_on(tenants: &[Marked], reading: &AtomicBool) {
    let mut round = 0;
    while reading.load(Ordering::Relaxed) {
        round += 1;
        for tenant in tenants {
            let marker = tenant.marker.as_str();
            let change = json!({"metadata": {"annotations": {"round": format!("{marker}-{round}")}}});
            let maps = format!("/api/v1/namespaces/{marker}/configmaps/{marker}");
            let roles = format!("/apis/rbac.authorization.k8s.io/v1/clusterroles/{marker}");
            for path in [format!("/api/v1/namespaces/{marker}"), maps, roles] {
                // A product that refuses it is judged elsewhere.
                let _ = tenant.client.patch(&path, "application/merge-patch+json", &change);
            }
            if !reading.load(Ordering::Relaxed) {
                return;
            }
            std::thread::sleep(CHANGE_INTERVAL);
        }
    }
}
