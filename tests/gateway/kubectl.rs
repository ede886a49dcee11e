//! kubectl through the gateway.

use std::collections::BTreeMap;

use serde_json::json;

use crate::fixture::{EVERYTHING, Fixture, WITHIN};

#[test]
fn kubectl_works_as_it_does_without_a_gateway() {
    let fixture = Fixture::start(EVERYTHING);
    let kubectl = fixture.kubectl();
    assert_eq!(kubectl.run(&["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"]).unwrap(), "admin");
    kubectl.run(&["create", "namespace", "team"]).unwrap();
    kubectl.run(&["create", "configmap", "settings", "--from-literal=answer=42", "-n", "team"]).unwrap();
    let mut watch = kubectl
        .start("watch", &fixture.gateway.folder, &["get", "configmaps", "-n", "team", "--watch", "-o", "name"])
        .unwrap();
    watch.wait_for_log(WITHIN, "configmap/settings").unwrap();
    let client = fixture.admin();
    for number in 0..300 {
        let object =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("many-{number:03}")}});
        client.post("/api/v1/namespaces/team/configmaps", &object).unwrap().ok().unwrap();
    }
    watch.wait_for_log(WITHIN, "configmap/many-299").unwrap();
    watch.kill();
    let listed = kubectl.run(&["get", "configmaps", "-n", "team", "-o", "name", "--chunk-size=50"]).unwrap();
    assert_eq!(listed.lines().filter(|line| line.contains("many-")).count(), 300);
    let patched = ["patch", "configmap", "settings", "-n", "team", "--type=merge", "-p", r#"{"data":{"answer":"43"}}"#];
    kubectl.run(&patched).unwrap();
    let applied = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: applied\n  namespace: team\ndata:\n  a: b\n";
    kubectl.run_with_input(&["apply", "--server-side", "-f", "-"], applied).unwrap();
    let answer = kubectl.run(&["get", "configmap", "settings", "-n", "team", "-o", "jsonpath={.data.answer}"]).unwrap();
    assert_eq!(answer, "43");
    kubectl.run(&["get", "--raw=/apis"]).unwrap();
    kubectl.run(&["delete", "configmaps", "applied", "many-000", "many-001", "-n", "team"]).unwrap();
    // All at once. One by one, kubectl allows itself five requests a second.
    kubectl.run(&["delete", "--raw=/api/v1/namespaces/team/configmaps"]).unwrap();
    assert_eq!(kubectl.run(&["get", "configmaps", "-n", "team", "-o", "name"]).unwrap(), "");

    // Requests of one client are spread evenly over both.
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for line in fixture.gateway.access_log() {
        assert_eq!(line["user"], "admin", "{line}");
        if line["verb"] == "create" {
            *counts.entry(line["endpoint"].as_str().unwrap().to_owned()).or_default() += 1;
        }
    }
    assert_eq!(counts.len(), 2, "{counts:?}");
    let (least, most) = (counts.values().min().unwrap(), counts.values().max().unwrap());
    assert!(most - least <= most / 3, "{counts:?}");
}
