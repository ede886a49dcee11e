//! An unmodified kube-apiserver on the store: what its users see of it, through failures of the store too.
//!
//! Each test has a store and a kube-apiserver of its own. `KUBEWHARF_TEST_STORE=etcd` runs the same tests on etcd.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kubewharf_testkit::folder::Folder;
use kubewharf_testkit::http::{Client, Watch};
use kubewharf_testkit::kubernetes::Apiserver;
use kubewharf_testkit::store::Store;
use serde_json::{Value, json};

/// Long enough for a busy machine; nothing here waits that long when all is well.
const PATIENCE: Duration = Duration::from_secs(60);

struct Cluster {
    // Before the store, so that it is gone when the store goes.
    apiserver: Apiserver,
    store: Store,
}

fn cluster(apiserver_flags: &[&str]) -> Cluster {
    let store = Store::start::<&str>(&[]).unwrap();
    let apiserver = Apiserver::start(&store.url(), apiserver_flags).unwrap();
    Cluster { apiserver, store }
}

fn create_namespace(client: &Client, name: &str) {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    client.post("/api/v1/namespaces", &namespace).unwrap().ok().unwrap();
}

fn config_maps(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/configmaps")
}

fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"text": "x".repeat(200)}})
}

fn create_config_maps(client: &Client, namespace: &str, names: &[String]) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                    client.post(&config_maps(namespace), &config_map(name)).unwrap().ok().unwrap();
                }
            });
        }
    });
}

fn numbered(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}-{number:05}")).collect()
}

fn name_of(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_else(|| panic!("an object without a name: {object}")).to_owned()
}

fn revision_of(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

fn names_of(list: &Value) -> Vec<String> {
    list["items"].as_array().unwrap().iter().map(name_of).collect()
}

/// The events until `last` was added, by name; fails on anything that is no addition.
fn added_until(watch: &Watch, last: &str) -> Vec<String> {
    let mut names = Vec::new();
    while names.last().is_none_or(|name| name != last) {
        let event = watch.event(PATIENCE);
        assert_eq!(event["type"], "ADDED", "{event}");
        names.push(name_of(&event["object"]));
    }
    names
}

#[test]
fn thousands_of_objects_come_back_in_pages_of_one_revision() {
    const COUNT: usize = 3000;
    let cluster = cluster(&[]);
    let client = cluster.apiserver.client();
    create_namespace(&client, "many");
    let expected = numbered("object", COUNT);
    create_config_maps(&client, "many", &expected);

    let next_page = |token: &str| {
        let page = client.get(&format!("{}?limit=250&continue={token}", config_maps("many"))).unwrap().ok().unwrap();
        let token = page["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
        (page, token)
    };
    let (page, mut token) = next_page("");
    let revision = revision_of(&page);
    assert_eq!(page["metadata"]["remainingItemCount"], json!(COUNT - 250));
    let mut read = names_of(&page);
    // What is written while the other pages are read must not show on them.
    let reading = AtomicBool::new(true);
    let written = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for (number, name) in expected.iter().rev().enumerate() {
                client.delete(&format!("{}/{name}", config_maps("many"))).unwrap().ok().unwrap();
                let later = config_map(&format!("object-later-{number}"));
                client.post(&config_maps("many"), &later).unwrap().ok().unwrap();
                written.fetch_add(1, Ordering::Relaxed);
                if !reading.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        let deadline = Instant::now() + PATIENCE;
        while written.load(Ordering::Relaxed) == 0 {
            assert!(Instant::now() < deadline, "nothing is written");
            std::thread::sleep(Duration::from_millis(1));
        }
        while !token.is_empty() {
            let (page, next) = next_page(&token);
            assert_eq!(revision_of(&page), revision);
            assert!(names_of(&page).len() <= 250);
            read.extend(names_of(&page));
            token = next;
        }
        reading.store(false, Ordering::Relaxed);
    });
    assert_eq!(read, expected);

    // The same view is there later, and kubectl sees all of what is there now.
    let path = format!("{}?resourceVersion={revision}&resourceVersionMatch=Exact", config_maps("many"));
    assert_eq!(names_of(&client.get(&path).unwrap().ok().unwrap()), read);
    let now = names_of(&client.get(&config_maps("many")).unwrap().ok().unwrap());
    let kubectl = cluster.apiserver.kubectl().unwrap();
    let printed = kubectl.run(&["get", "configmaps", "-n", "many", "--chunk-size=333", "-o", "name"]).unwrap();
    let printed: Vec<&str> = printed.lines().map(|line| line.trim_start_matches("configmap/")).collect();
    assert_eq!(printed, now);
}

#[test]
fn watches_go_on_when_the_store_is_killed_and_starts_again() {
    let mut cluster = cluster(&[]);
    let client = cluster.apiserver.client();
    create_namespace(&client, "watched");
    let list = client.get(&config_maps("watched")).unwrap().ok().unwrap();
    let path = format!("{}?watch=1&resourceVersion={}", config_maps("watched"), revision_of(&list));
    let watch = client.watch(&path).unwrap();
    let folder = Folder::new("watch").unwrap();
    let kubectl = cluster.apiserver.kubectl().unwrap();
    let arguments = ["get", "configmaps", "-n", "watched", "--watch", "-o", "name"];
    let mut printing = kubectl.start("kubectl", &folder, &arguments).unwrap();

    let before = numbered("before", 50);
    for name in &before {
        client.post(&config_maps("watched"), &config_map(name)).unwrap().ok().unwrap();
    }
    assert_eq!(added_until(&watch, before.last().unwrap()), before);
    printing.wait_for_log(PATIENCE, before.last().unwrap()).unwrap();

    cluster.store.kill_and_start().unwrap();
    let after = numbered("then", 50);
    for name in &after {
        let deadline = Instant::now() + PATIENCE;
        // The kube-apiserver may need a moment to find the store again. A request that failed may still have worked.
        loop {
            let answer = client.post(&config_maps("watched"), &config_map(name)).unwrap();
            if answer.status == 201 || answer.status == 409 {
                break;
            }
            assert!(Instant::now() < deadline, "{answer:?}");
        }
    }
    assert_eq!(added_until(&watch, after.last().unwrap()), after);
    printing.wait_for_log(PATIENCE, after.last().unwrap()).unwrap();
    let printed = printing.log_text().unwrap();
    let printed: Vec<&str> = printed.lines().map(|line| line.trim_start_matches("configmap/")).collect();
    // A freshly started kubectl lists first, and does not say that it lists.
    assert_eq!(printed, [before, after].concat());
}

#[test]
fn every_acknowledged_write_outlives_kill_9_of_the_store() {
    let mut cluster = cluster(&[]);
    let client = cluster.apiserver.client();
    create_namespace(&client, "load");
    let writing = AtomicBool::new(true);
    let acknowledged: BTreeMap<String, String> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let (client, writing) = (&client, &writing);
                scope.spawn(move || {
                    let mut acknowledged = Vec::new();
                    let mut number = 0;
                    while writing.load(Ordering::Relaxed) {
                        let name = format!("writer-{writer}-{number:06}");
                        number += 1;
                        let answer = client.post(&config_maps("load"), &config_map(&name)).unwrap();
                        if answer.status == 201 {
                            let uid = answer.body["metadata"]["uid"].as_str().unwrap().to_owned();
                            acknowledged.push((name, uid));
                        }
                    }
                    acknowledged
                })
            })
            .collect();
        for _ in 0..3 {
            std::thread::sleep(Duration::from_secs(2));
            cluster.store.kill_and_start().unwrap();
        }
        std::thread::sleep(Duration::from_secs(1));
        writing.store(false, Ordering::Relaxed);
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
    });
    assert!(acknowledged.len() > 100, "only {} writes", acknowledged.len());

    let deadline = Instant::now() + PATIENCE;
    let list = loop {
        let answer = client.get(&config_maps("load")).unwrap();
        if answer.status == 200 {
            break answer.body;
        }
        assert!(Instant::now() < deadline, "{answer:?}");
    };
    let found: BTreeMap<String, &str> = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| (name_of(it), it["metadata"]["uid"].as_str().unwrap()))
        .collect();
    let lost: Vec<_> = acknowledged.iter().filter(|(name, uid)| found.get(*name) != Some(&uid.as_str())).collect();
    assert!(lost.is_empty(), "{} of {} acknowledged writes are lost: {lost:?}", lost.len(), acknowledged.len());
}

#[test]
fn an_apiserver_that_starts_again_finds_everything_and_its_revisions_go_on() {
    let mut cluster = cluster(&[]);
    let client = cluster.apiserver.client();
    create_namespace(&client, "kept");
    let names = numbered("kept", 100);
    create_config_maps(&client, "kept", &names);
    let before = client.get(&config_maps("kept")).unwrap().ok().unwrap();
    assert_eq!(names_of(&before), names);

    cluster.apiserver.stop_and_start().unwrap();
    let client = cluster.apiserver.client();
    let after = client.get(&config_maps("kept")).unwrap().ok().unwrap();
    assert_eq!(after["items"], before["items"]);
    assert!(revision_of(&after) >= revision_of(&before), "{after} is older than {before}");

    let path = format!("{}?watch=1&resourceVersion={}", config_maps("kept"), revision_of(&after));
    let watch = client.watch(&path).unwrap();
    let created = client.post(&config_maps("kept"), &config_map("new")).unwrap().ok().unwrap();
    assert!(revision_of(&created) > revision_of(&after));
    let event = watch.event(PATIENCE);
    assert_eq!((&event["type"], &event["object"]), (&json!("ADDED"), &created));
}

const WIDGETS: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: widgets, singular: widget, kind: Widget}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec: {type: object, properties: {size: {type: integer}, colour: {type: string}}}
          status: {type: object, properties: {ready: {type: boolean}}}
"#;

#[test]
fn custom_resources_are_applied_by_two_managers_and_go_with_their_definition() {
    let cluster = cluster(&[]);
    let kubectl = cluster.apiserver.kubectl().unwrap();
    kubectl.run_with_input(&["apply", "-f", "-"], WIDGETS).unwrap();
    let definition = "customresourcedefinition/widgets.example.com";
    kubectl.run(&["wait", "--for=condition=Established", "--timeout=60s", definition]).unwrap();

    let widget =
        |spec: &str| format!("{{apiVersion: example.com/v1, kind: Widget, metadata: {{name: w}}, spec: {spec}}}");
    let apply = |manager: &str, spec: &str, more: &[&str]| {
        let manager = format!("--field-manager={manager}");
        let mut arguments = vec!["apply", "--server-side", &manager, "-f", "-"];
        arguments.extend(more);
        kubectl.run_with_input(&arguments, &widget(spec))
    };
    apply("one", "{size: 1, colour: red}", &[]).unwrap();
    apply("two", "{colour: red}", &[]).unwrap();
    let conflict = apply("two", "{size: 2}", &[]).unwrap_err().to_string();
    assert!(conflict.contains(r#"conflict with "one": .spec.size"#), "{conflict}");
    apply("two", "{size: 2}", &["--force-conflicts"]).unwrap();
    let spec = |path: &str| kubectl.run(&["get", "widget", "w", "-o", &format!("jsonpath={{{path}}}")]).unwrap();
    assert_eq!(spec(".spec.size"), "2");
    // Its second owner let go of the colour; the first still has it.
    assert_eq!(spec(".spec.colour"), "red");
    kubectl
        .run(&["patch", "widget", "w", "--subresource=status", "--type=merge", "-p", r#"{"status":{"ready":true}}"#])
        .unwrap();
    assert_eq!(spec(".status.ready"), "true");
    assert_eq!(spec(".metadata.generation"), "2");

    kubectl.run(&["delete", definition, "--timeout=60s"]).unwrap();
    let client = cluster.apiserver.client();
    let deadline = Instant::now() + PATIENCE;
    while client.get("/apis/example.com/v1/widgets").unwrap().status != 404 {
        assert!(Instant::now() < deadline, "the resource is still served");
        std::thread::sleep(Duration::from_millis(50));
    }
    // Nothing of it is left in the store.
    let keys =
        cluster.store.etcdctl().unwrap().run(&["get", "--prefix", "--keys-only", "/registry/example.com/"]).unwrap();
    assert_eq!(keys, "");
}

#[test]
fn events_end_with_their_lease_and_not_before() {
    const TTL: Duration = Duration::from_secs(5);
    let cluster = cluster(&["--event-ttl=5s"]);
    let client = cluster.apiserver.client();
    let events = "/api/v1/namespaces/default/events";
    let list = client.get(events).unwrap().ok().unwrap();
    let watch = client.watch(&format!("{events}?watch=1&resourceVersion={}", revision_of(&list))).unwrap();
    let event = json!({
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": "short-lived"},
        "involvedObject": {"namespace": "default"}, "reason": "Test", "type": "Normal",
    });
    let begun = Instant::now();
    client.post(events, &event).unwrap().ok().unwrap();
    assert_eq!(watch.event(PATIENCE)["type"], "ADDED");
    assert_eq!(client.get(&format!("{events}/short-lived")).unwrap().status, 200);

    let deleted = watch.event(PATIENCE);
    let lived = begun.elapsed();
    assert_eq!((&deleted["type"], name_of(&deleted["object"])), (&json!("DELETED"), "short-lived".to_owned()));
    assert!(lived >= TTL, "gone after {lived:?}");
    assert!(lived < TTL * 3, "still there after {lived:?}");
    assert_eq!(client.get(&format!("{events}/short-lived")).unwrap().status, 404);
}

#[test]
fn no_update_is_lost_when_many_change_one_object() {
    const WRITERS: usize = 8;
    const INCREMENTS: usize = 25;
    let cluster = cluster(&[]);
    let client = cluster.apiserver.client();
    let path = config_maps("default") + "/counter";
    let counter = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "counter"}, "data": {"n": "0"}});
    client.post(&config_maps("default"), &counter).unwrap().ok().unwrap();
    let conflicts = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..WRITERS {
            scope.spawn(|| {
                let mut done = 0;
                while done < INCREMENTS {
                    let mut counter = client.get(&path).unwrap().ok().unwrap();
                    let n: usize = counter["data"]["n"].as_str().unwrap().parse().unwrap();
                    counter["data"]["n"] = json!((n + 1).to_string());
                    let answer = client.put(&path, &counter).unwrap();
                    match answer.status {
                        200 => done += 1,
                        409 => drop(conflicts.fetch_add(1, Ordering::Relaxed)),
                        _ => panic!("{answer:?}"),
                    }
                }
            });
        }
    });
    let counter = client.get(&path).unwrap().ok().unwrap();
    assert_eq!(counter["data"]["n"], json!((WRITERS * INCREMENTS).to_string()));
    assert!(conflicts.into_inner() > 0, "the writers never met");
}

#[test]
fn a_namespace_goes_with_all_that_is_in_it() {
    let cluster = cluster(&[]);
    let client = cluster.apiserver.client();
    create_namespace(&client, "doomed");
    create_config_maps(&client, "doomed", &numbered("object", 300));
    let _controllers = cluster.apiserver.start_controllers(&["namespace-controller"]).unwrap();
    cluster.apiserver.kubectl().unwrap().run(&["delete", "namespace", "doomed", "--timeout=60s"]).unwrap();
    assert_eq!(client.get("/api/v1/namespaces/doomed").unwrap().status, 404);
    let keys =
        cluster.store.etcdctl().unwrap().run(&["get", "--prefix", "--keys-only", "/registry/configmaps/doomed/"]);
    assert_eq!(keys.unwrap(), "");
}

#[test]
fn lists_are_answered_from_the_watch_cache_because_the_store_reports_progress() {
    let cluster = cluster(&[]);
    let client = cluster.apiserver.client();
    for name in numbered("object", 20) {
        client.post(&config_maps("default"), &config_map(&name)).unwrap().ok().unwrap();
        let names = names_of(&client.get(&config_maps("default")).unwrap().ok().unwrap());
        assert!(names.contains(&name), "a list does not show what was written before it: {names:?}");
    }
    let metrics = client.get("/metrics").unwrap().ok().unwrap();
    let consistent_reads: f64 = metrics
        .as_str()
        .unwrap()
        .lines()
        .filter(|line| line.starts_with("apiserver_watch_cache_consistent_read_total{"))
        .filter(|line| line.contains(r#"fallback="false""#) && line.contains(r#"resource="configmaps""#))
        .filter(|line| line.contains(r#"success="true""#))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum();
    assert!(consistent_reads >= 20.0, "{consistent_reads} lists came from the cache");
}

#[test]
fn a_list_that_is_too_old_to_go_on_says_so_and_offers_a_way() {
    let cluster = cluster(&["--etcd-compaction-interval=1s"]);
    let client = cluster.apiserver.client();
    create_config_maps(&client, "default", &numbered("object", 30));
    let page = client.get(&format!("{}?limit=10", config_maps("default"))).unwrap().ok().unwrap();
    let token = page["metadata"]["continue"].as_str().unwrap();
    let rest = format!("{}?limit=100&continue=", config_maps("default"));

    let deadline = Instant::now() + PATIENCE;
    let mut number = 0;
    let expired = loop {
        let name = format!("later-{number:04}");
        number += 1;
        client.post(&config_maps("default"), &config_map(&name)).unwrap().ok().unwrap();
        let answer = client.get(&format!("{rest}{token}")).unwrap();
        if answer.status != 200 {
            break answer;
        }
        assert!(!names_of(&answer.body).contains(&name), "a page shows what is newer than its list");
        assert!(Instant::now() < deadline, "never too old");
        std::thread::sleep(Duration::from_millis(100));
    };
    assert_eq!(expired.status, 410, "{expired:?}");
    assert_eq!(expired.body["reason"], "Expired", "{expired:?}");
    // The answer holds a token that goes on behind the same key, at the newest revision.
    let token = expired.body["metadata"]["continue"].as_str().unwrap();
    let names = names_of(&client.get(&format!("{rest}{token}")).unwrap().ok().unwrap());
    assert!(names.contains(&"object-00029".to_owned()) && !names.contains(&"object-00009".to_owned()), "{names:?}");
}
