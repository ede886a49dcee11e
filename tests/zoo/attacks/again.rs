//! A tenant that was deleted, and another one of the same name.

use serde_json::json;

use super::{Findings, Scene};
use crate::fixture::{WITHIN, wait};

pub(super) fn is_another(scene: &Scene, findings: &mut Findings) {
    let zoo = scene.zoo();
    let first = zoo.create_tenant("phoenix");
    let maps = "/api/v1/namespaces/default/configmaps";
    let before = first.client();
    before.post(maps, &json!({"metadata": {"name": "ashes"}})).unwrap().ok().unwrap();
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let token = before.post("/api/v1/namespaces/default/serviceaccounts/default/token", &request).unwrap();
    let bearer = format!("Bearer {}", token.body["status"]["token"].as_str().unwrap_or_default());
    let without = kubewharf_testkit::http::Client::with_root(&first.server, &first.root, None);
    let dead = |when: &str, findings: &mut Findings| {
        let answer = first.client().get("/api/v1/namespaces");
        // It may end the handshake as well.
        findings.check(!answer.is_ok_and(|answer| !matches!(answer.status, 401 | 403)), || {
            format!("{when}, the old certificate is let in")
        });
        let answer = without.request("GET", "/api/v1/namespaces", &[("authorization", &bearer)], b"").unwrap();
        findings.check(matches!(answer.status, 401 | 403), || format!("{when}, the old token: {}", answer.status));
    };
    if let Err(error) = zoo.tool(&["tenant", "delete", "phoenix"]) {
        findings.check(false, || error);
        return;
    }
    let path = "/apis/tenancy.kubewharf.io/v1/tenants/phoenix";
    let host = scene.host();
    wait("the tenant is gone", || host.get(path).unwrap().status == 404);
    dead("after the end", findings);
    let prefix = first.names.prefix();
    let spaces = host.get("/api/v1/namespaces").unwrap().ok().unwrap();
    let left: Vec<_> = spaces["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|it| it["metadata"]["name"].as_str().unwrap().starts_with(prefix))
        .collect();
    findings
        .check(left.is_empty(), || format!("the tenant is gone within {WITHIN:?}, but not its namespaces: {left:?}"));

    let second = zoo.create_tenant("phoenix");
    findings.check(first.names != second.names, || "the new one has the names of the old one".to_owned());
    let after = second.client();
    let list = after.get(maps).unwrap();
    findings.check(list.status == 200 && !list.body.to_string().contains("ashes"), || {
        format!("what the new one has: {list:?}")
    });
    dead("after the new beginning", findings);
    let answer = after.post(maps, &json!({"metadata": {"name": "ashes"}})).unwrap();
    findings.check(answer.status == 201, || format!("the new one makes it again: {answer:?}"));
}
