//! KubeZoo is killed under load: clients go on where they were, and no tenant stays half made.

use std::path::PathBuf;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kubewharf_testkit::http::Client;
use kubewharf_testkit::process::{Process, Spec};
use kubewharf_testkit::{go_program, informers};
use serde_json::{Value, json};

use crate::fixture::{Tenant, WITHIN, Zoo, wait};

/// How often it is killed.
const KILLS: usize = 4;
/// How long it is away each time.
const AWAY: Duration = Duration::from_millis(700);
/// How long it runs between.
const BETWEEN: Duration = Duration::from_secs(2);
/// Informers of each tenant.
const INFORMERS: u64 = 30;
/// Pause between two writes.
const WRITE_INTERVAL: Duration = Duration::from_millis(15);

static PROGRAM: LazyLock<PathBuf> =
    LazyLock::new(|| go_program::build("informers", &mut |line| eprintln!("{line}")).unwrap());

/// Informers of a tenant.
struct Informers(Process);

impl Informers {
    fn start(tenant: &Tenant) -> Self {
        let process = Spec::new(&format!("informers-{}", tenant.name), &*PROGRAM, tenant.folder.path())
            .arg(format!("-kubeconfig={}", tenant.kubeconfig.display()))
            .arg("-namespace=default")
            .arg(format!("-informers={INFORMERS}"))
            .arg("-connections=6")
            .start()
            .unwrap();
        let started = Self(process);
        wait("all informers are in step", || started.report()["informers"]["synced"] == INFORMERS);
        started
    }

    fn report(&self) -> Value {
        informers::report(&self.0).unwrap()
    }
}

pub(crate) fn clients_go_on_and_no_tenant_stays_half_made() {
    let zoo = Zoo::start();
    let tenants: Vec<Tenant> = ["red", "green", "blue"].map(|name| zoo.create_tenant(name)).into();
    for tenant in &tenants {
        let path = "/api/v1/namespaces/default/configmaps";
        tenant.client().post(path, &config_map("first")).unwrap().ok().unwrap();
    }
    let followers: Vec<Informers> = tenants.iter().map(Informers::start).collect();
    let host = zoo.cluster.apiserver.client();
    let stop = AtomicBool::new(false);
    let mut half_made = Vec::new();
    std::thread::scope(|scope| {
        let writers: Vec<_> = tenants
            .iter()
            .map(|tenant| {
                scope.spawn(|| write_until(&stop, &zoo.cluster.apiserver.client(), &tenant.names.inward("default")))
            })
            .collect();
        let kills = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for round in 0..KILLS {
                std::thread::sleep(BETWEEN);
                // Some are just being made when it dies, at another moment each time.
                for number in 0..5 {
                    let name = format!("made-{round}-{number}");
                    zoo.tool(&["tenant", "create", &name]).unwrap();
                    half_made.push(name);
                }
                std::thread::sleep(Duration::from_millis(7 * round as u64));
                zoo.process.lock().unwrap().kill();
                std::thread::sleep(AWAY);
                zoo.start_again();
            }
        }));
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            writer.join().unwrap();
        }
        kills.unwrap();
    });
    for (tenant, follower) in tenants.iter().zip(&followers) {
        let list = tenant.client().get("/api/v1/namespaces/default/configmaps").unwrap().ok().unwrap();
        let expected = json!({ informers::digest(&list): INFORMERS });
        let deadline = Instant::now() + WITHIN;
        loop {
            let report = follower.report();
            if report["informers"]["stores"] == expected {
                assert_eq!(report["informers"]["lists"], INFORMERS, "some listed again: {report:#}");
                break;
            }
            assert!(Instant::now() < deadline, "{}: not all informers hold what there is: {report:#}", tenant.name);
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    for name in &half_made {
        let tenant = zoo.tenant(name);
        let path = "/api/v1/namespaces/default/configmaps";
        tenant.client().post(path, &config_map("first")).unwrap().ok().unwrap();
        wait("all of the tenant is there", || {
            let object = host.get(&format!("/apis/tenancy.kubewharf.io/v1/tenants/{name}")).unwrap().ok().unwrap();
            let is_bound = |namespace: &&str| {
                let namespace = tenant.names.inward(namespace);
                let path = format!(
                    "/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings/tenancy.kubewharf.io"
                );
                host.get(&path).unwrap().status == 200
            };
            object["status"]["phase"] == "Active"
                && ["default", "kube-system", "kube-public", "kube-node-lease"].iter().all(is_bound)
        });
    }
    // By its object, all that was a tenant's goes.
    zoo.tool(&["tenant", "delete", "red"]).unwrap();
    let namespaces = host.get("/api/v1/namespaces").unwrap().ok().unwrap();
    let left: Vec<&Value> = namespaces["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|namespace| &namespace["metadata"]["name"])
        .filter(|name| name.as_str().unwrap().starts_with(tenants[0].names.prefix()))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(tenants[0].client().get("/api").unwrap().status, 401, "its credential is good no more");
    zoo.create_tenant("red");
    assert_eq!(tenants[0].client().get("/api").unwrap().status, 401, "nor in another tenant of the same name");
}

fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"text": "x".repeat(200)}})
}

/// Creates, changes and deletes, straight at the host.
fn write_until(stop: &AtomicBool, host: &Client, namespace: &str) {
    let path = format!("/api/v1/namespaces/{namespace}/configmaps");
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        host.post(&path, &config_map(&format!("written-{number}"))).unwrap().ok().unwrap();
        std::thread::sleep(WRITE_INTERVAL);
        let change = json!({"data": {"number": number.to_string()}});
        let answer = host.patch(&format!("{path}/written-{}", number / 2), "application/merge-patch+json", &change);
        assert!(matches!(answer.unwrap().status, 200 | 404));
        std::thread::sleep(WRITE_INTERVAL);
        if number % 3 == 2 {
            assert!(matches!(host.delete(&format!("{path}/written-{}", number / 3)).unwrap().status, 200 | 404));
            std::thread::sleep(WRITE_INTERVAL);
        }
        number += 1;
    }
}
