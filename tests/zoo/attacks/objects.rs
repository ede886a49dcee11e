//! Objects that would reach out of a tenant if they were made upstream as they are.

use kubewharf_testkit::http::Client;
use serde_json::{Value, json};

use super::{Findings, HOST_NAMESPACE, Scene};
use crate::fixture::Tenant;

/// The label that says whose a namespace is.
const TENANT_LABEL: &str = "tenancy.kubewharf.io/tenant";

fn pod(spec: Value) -> Value {
    let mut whole = json!({"schedulerName": "none", "containers": [{"name": "c", "image": "i"}]});
    for (field, value) in spec.as_object().unwrap() {
        whole[field] = value.clone();
    }
    json!({"metadata": {"generateName": "attack-"}, "spec": whole})
}

pub(super) fn no_object_reaches_out(scene: &Scene, findings: &mut Findings) {
    let client = scene.attacker.client();
    let (theirs, marker) = (scene.victims_default(), scene.victims.as_str());
    let container = |security: Value| json!({"containers": [{"name": "c", "image": "i", "securityContext": security}]});
    let volume = |source: Value| {
        let mut volume = source;
        volume["name"] = json!("v");
        json!({"volumes": [volume]})
    };
    let pods = "/api/v1/namespaces/default/pods";
    // Refused, or not served at all; what is taken in is judged below.
    let refused: Vec<(&str, &str, Value)> = vec![
        ("a pod on a node of its choice", pods, pod(json!({"nodeName": "node"}))),
        ("a privileged pod", pods, pod(container(json!({"privileged": true})))),
        ("a pod with capabilities", pods, pod(container(json!({"capabilities": {"add": ["SYS_ADMIN"]}})))),
        ("a pod in the host's network", pods, pod(json!({"hostNetwork": true}))),
        ("a pod among the host's processes", pods, pod(json!({"hostPID": true, "hostIPC": true}))),
        ("a pod with the host's files", pods, pod(volume(json!({"hostPath": {"path": "/"}})))),
        (
            "a pod with the host's ports",
            pods,
            pod(json!({"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80, "hostPort": 80}]}]})),
        ),
        ("a pod with a proc mount", pods, pod(container(json!({"procMount": "Unmasked"})))),
        (
            "a pod with sysctls",
            pods,
            pod(json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}})),
        ),
        ("a pod with a priority of the system", pods, pod(json!({"priorityClassName": "system-node-critical"}))),
        (
            "a service at addresses of others",
            "/api/v1/namespaces/default/services",
            json!({
                "metadata": {"generateName": "attack-"}, "spec": {"ports": [{"port": 443}], "externalIPs": ["10.0.0.1", "192.0.2.1"]},
            }),
        ),
        (
            "a volume with the host's files",
            "/api/v1/persistentvolumes",
            json!({
                "metadata": {"generateName": "attack-"},
                "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/"}},
            }),
        ),
        ("a tenant", "/apis/tenancy.kubewharf.io/v1/tenants", json!({"metadata": {"name": "attack"}})),
        (
            "a binding of a pod to a node",
            "/api/v1/namespaces/default/bindings",
            json!({
                "metadata": {"name": "x"}, "target": {"kind": "Node", "name": "node"},
            }),
        ),
        (
            "an API served by the host's services",
            "/apis/apiregistration.k8s.io/v1/apiservices",
            json!({
                "metadata": {"name": "v1.attack.example.com"},
                "spec": {"group": "attack.example.com", "version": "v1", "groupPriorityMinimum": 1, "versionPriority": 1,
                         "service": {"namespace": "kube-system", "name": "x"}, "insecureSkipTLSVerify": true},
            }),
        ),
    ];
    for (what, path, object) in refused {
        let answer = client.post(path, &object).unwrap();
        findings.check(matches!(answer.status, 400..500), || format!("{what}: {}", answer.status));
    }
    // Made or not: what is upstream then must not name anything of the host's or the victim's.
    let taken: Vec<(&str, &str, Value)> = vec![
        (
            "a volume claimed for another",
            "/api/v1/persistentvolumes",
            json!({
                "metadata": {"name": "attack"},
                "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "csi": {"driver": "d", "volumeHandle": "h"},
                         "storageClassName": "x", "claimRef": {"namespace": theirs, "name": "x", "kind": "PersistentVolumeClaim", "apiVersion": "v1"}},
            }),
        ),
        (
            "a role binding with the host's accounts",
            "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings",
            json!({
                "metadata": {"name": "attack"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
                "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": HOST_NAMESPACE}, {"kind": "ServiceAccount", "name": "default", "namespace": theirs}],
            }),
        ),
        (
            "a webhook of everybody's objects",
            "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations",
            json!({
                "metadata": {"name": "attack"},
                "webhooks": [{"name": "a.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None", "failurePolicy": "Fail",
                              "clientConfig": {"service": {"namespace": "default", "name": "x"}},
                              "rules": [{"apiGroups": ["attack.example.com"], "apiVersions": ["*"], "operations": ["CREATE"], "resources": ["attacks"]}]}],
            }),
        ),
        (
            "a definition of the host's kind",
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
            json!({
                "metadata": {"name": "tenants.tenancy.kubewharf.io"},
                "spec": {"group": "tenancy.kubewharf.io", "scope": "Cluster", "names": {"plural": "tenants", "kind": "Tenant"},
                         "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}]},
            }),
        ),
        (
            "a request for a certificate",
            "/apis/certificates.k8s.io/v1/certificatesigningrequests",
            json!({
                "metadata": {"name": "attack"},
                "spec": {"signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"], "request": "eA=="},
            }),
        ),
        (
            "a class for everybody",
            "/apis/scheduling.k8s.io/v1/priorityclasses",
            json!({
                "metadata": {"name": "attack"}, "value": 999_999_999, "globalDefault": true,
            }),
        ),
        (
            "a default storage class for everybody",
            "/apis/storage.k8s.io/v1/storageclasses",
            json!({
                "metadata": {"name": "attack", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}, "provisioner": "x",
            }),
        ),
        (
            "a claim of another's data",
            "/api/v1/namespaces/default/persistentvolumeclaims",
            json!({
                "metadata": {"name": "attack"},
                "spec": {"storageClassName": "", "volumeName": "disk-of-the-host", "accessModes": ["ReadWriteOnce"],
                         "dataSourceRef": {"apiGroup": "", "kind": "PersistentVolumeClaim", "name": "x", "namespace": theirs},
                         "resources": {"requests": {"storage": "1Gi"}}},
            }),
        ),
        (
            "an object owned by the host's",
            "/api/v1/namespaces/default/configmaps",
            json!({
                "metadata": {"name": "attack", "ownerReferences": [{"apiVersion": "v1", "kind": "Namespace", "name": "kube-system", "uid": "x"}]},
            }),
        ),
        (
            "a token of an account that it names",
            "/api/v1/namespaces/default/secrets",
            json!({
                "metadata": {"name": "attack", "annotations": {"kubernetes.io/service-account.name": "default"}},
                "type": "kubernetes.io/service-account-token",
            }),
        ),
    ];
    for (what, path, object) in taken {
        let answer = client.post(path, &object).unwrap();
        findings.check(answer.status < 500, || format!("{what}: {answer:?}"));
    }
    let host = scene.host();
    let uncontrolled = |path: &str| -> Vec<String> {
        let list = host.get(path).unwrap().ok().unwrap();
        let items = list["items"].as_array().unwrap();
        items
            .iter()
            .filter(|it| it["metadata"]["name"] == "attack" || it["globalDefault"] == true)
            .map(Value::to_string)
            .collect()
    };
    for path in [
        "/apis/scheduling.k8s.io/v1/priorityclasses",
        "/apis/storage.k8s.io/v1/storageclasses",
        "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations",
        "/apis/apiregistration.k8s.io/v1/apiservices",
        "/api/v1/persistentvolumes",
    ] {
        let found = uncontrolled(path);
        findings.check(found.is_empty(), || format!("upstream {path}: {found:?}"));
    }
    // The host's definition is the host's: with its schema, and with its tenants.
    let tenants = host.get("/apis/tenancy.kubewharf.io/v1/tenants").unwrap().ok().unwrap();
    findings.check(tenants["items"].as_array().unwrap().len() >= 2, || format!("the host's tenants: {tenants}"));
    let own = scene.attackers_default();
    let bindings =
        host.get(&format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{own}/rolebindings")).unwrap().ok().unwrap();
    for binding in bindings["items"].as_array().unwrap() {
        for subject in binding["subjects"].as_array().into_iter().flatten() {
            let namespace = subject["namespace"].as_str().unwrap_or_default();
            findings.check(namespace != HOST_NAMESPACE && namespace != theirs, || format!("upstream {own}: {binding}"));
        }
    }
    let claim = host.get(&format!("/api/v1/namespaces/{own}/persistentvolumeclaims/attack")).unwrap();
    if claim.status == 200 {
        let spec = &claim.body["spec"];
        findings.check(spec["volumeName"] != "disk-of-the-host", || format!("a claim of the host's volume: {spec}"));
        findings.check(spec["dataSourceRef"]["namespace"] != theirs.as_str(), || {
            format!("a claim of another's data: {spec}")
        });
    }
    // A token that the host's controller filled in would be one of the host.
    let secret = host.get(&format!("/api/v1/namespaces/{own}/secrets/attack")).unwrap();
    if let Some(token) = client.get("/api/v1/namespaces/default/secrets/attack").unwrap().body["data"]["token"].as_str()
    {
        findings.check(secret.body["data"]["token"] != token, || "the host's token is told to the tenant".to_owned());
    }
    let seen = scene.victim.client().get(&format!("/api/v1/namespaces/default/secrets/{marker}")).unwrap();
    findings.check(seen.status == 200, || format!("the victim's secret: {seen:?}"));
}

/// `system:authenticated` and its like are the tenant's users, not everybody.
pub(super) fn everybody_is_the_tenants_own(scene: &Scene, findings: &mut Findings) {
    let client = scene.attacker.client();
    for group in [
        "system:authenticated",
        "system:unauthenticated",
        "system:serviceaccounts",
        "system:masters",
        "system:nodes",
        "system:monitoring",
    ] {
        let subjects = json!([{"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": group}]);
        let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"});
        let name = format!("attack-{}", group.trim_start_matches("system:"));
        let binding = json!({"metadata": {"name": name}, "roleRef": role, "subjects": subjects});
        for path in ["clusterrolebindings", "namespaces/default/rolebindings"] {
            let answer = client.post(&format!("/apis/rbac.authorization.k8s.io/v1/{path}"), &binding).unwrap();
            findings.check(answer.status < 500, || format!("{group}: {answer:?}"));
        }
    }
    let apiserver = &scene.zoo().cluster.apiserver;
    let root = apiserver.authority().certificate();
    let nobody = apiserver.authority().client(&scene.zoo().folder, "anybody-of-the-host", "nogroup").unwrap();
    let own = scene.attackers_default();
    for (who, client) in [
        ("a user of the host", Client::with_root(&apiserver.url(), root, Some(&nobody))),
        ("nobody", Client::with_root(&apiserver.url(), root, None)),
    ] {
        for path in [
            "/api/v1/namespaces/kube-system/secrets".to_owned(),
            format!("/api/v1/namespaces/{own}/secrets"),
            "/api/v1/nodes".to_owned(),
        ] {
            let answer = client.get(&path).unwrap();
            findings
                .check(matches!(answer.status, 401 | 403), || format!("{who}, upstream, {path}: {}", answer.status));
        }
    }
    let answer = Client::with_root(&scene.attacker.server, &scene.attacker.root, None).get("/api/v1/secrets");
    findings.check(answer.is_err() || answer.is_ok_and(|answer| matches!(answer.status, 401 | 403)), || {
        "nobody reads the attacker's secrets".to_owned()
    });
    let answer = scene.victim.client().get(&format!("/api/v1/namespaces/{own}/secrets")).unwrap();
    findings.check(answer.status == 200 && answer.body["items"] == json!([]) || answer.status == 404, || {
        format!("the victim reads the attacker's: {answer:?}")
    });
}

/// A selector of all namespaces upstream selects those of the tenant.
pub(super) fn selectors_stay_within(scene: &Scene, findings: &mut Findings) {
    let client = scene.attacker.client();
    let selectors = json!([
        {}, {"matchLabels": {"a": "b"}},
        {"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["default"]}]},
        {"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]},
    ]);
    let peers: Vec<Value> =
        selectors.as_array().unwrap().iter().map(|selector| json!({"namespaceSelector": selector})).collect();
    let policy = json!({"metadata": {"name": "everywhere"}, "spec": {"podSelector": {}, "ingress": [{"from": peers}], "egress": [{"to": peers}]}});
    let policies = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies";
    let answer = client.post(policies, &policy).unwrap();
    findings.check(answer.status == 201, || format!("a policy: {answer:?}"));
    let terms: Vec<Value> = selectors
        .as_array()
        .unwrap()
        .iter()
        .map(|selector| json!({"topologyKey": "zone", "labelSelector": {}, "namespaceSelector": selector}))
        .collect();
    let affinity = json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}, "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}});
    let template = pod(json!({"affinity": affinity, "topologySpreadConstraints": []}));
    let mut single = template.clone();
    single["metadata"] = json!({"name": "everywhere"});
    let answer = client.post("/api/v1/namespaces/default/pods", &single).unwrap();
    findings.check(answer.status == 201, || format!("a pod: {answer:?}"));
    let deployment = json!({"metadata": {"name": "everywhere"}, "spec": {
        "replicas": 0, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": template["spec"]},
    }});
    let answer = client.post("/apis/apps/v1/namespaces/default/deployments", &deployment).unwrap();
    findings.check(answer.status == 201, || format!("a deployment: {answer:?}"));
    // Changed to one without the tenant's term.
    let change = json!({"spec": {"ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"c": "d"}}}]}]}});
    let changed = client.patch(&format!("{policies}/everywhere"), "application/merge-patch+json", &change).unwrap();
    findings.check(changed.status == 200, || format!("a change of the policy: {changed:?}"));

    let own = scene.attackers_default();
    for path in [
        format!("/apis/networking.k8s.io/v1/namespaces/{own}/networkpolicies/everywhere"),
        format!("/api/v1/namespaces/{own}/pods/everywhere"),
        format!("/apis/apps/v1/namespaces/{own}/deployments/everywhere"),
    ] {
        let object = scene.host().get(&path).unwrap();
        let mut count = 0;
        each_selector(&object.body, &mut |selector| {
            count += 1;
            findings.check(is_within(selector, &scene.attacker), || format!("upstream {path}: {selector}"));
        });
        findings.check(count > 0, || format!("upstream {path}: no selector: {object:?}"));
    }
    // And the tenant sees them as they were made.
    let seen = client.get(&format!("{policies}/everywhere")).unwrap();
    findings.check(seen.body["spec"]["egress"] == policy["spec"]["egress"], || {
        format!("as the tenant sees it: {}", seen.body["spec"])
    });
}

fn each_selector(value: &Value, found: &mut impl FnMut(&Value)) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| each_selector(value, found)),
        Value::Object(fields) => {
            for (name, value) in fields {
                if name == "namespaceSelector" {
                    found(value);
                }
                // What managers manage says nothing of what is selected.
                if name != "managedFields" {
                    each_selector(value, found);
                }
            }
        }
        _ => {}
    }
}

/// Whether it asks for the tenant's label.
fn is_within(selector: &Value, tenant: &Tenant) -> bool {
    let uid = tenant.names.uid();
    let by_expression = |expression: &Value| {
        expression["key"] == TENANT_LABEL && expression["operator"] == "In" && expression["values"] == json!([uid])
    };
    selector["matchLabels"][TENANT_LABEL] == uid
        || selector["matchExpressions"].as_array().is_some_and(|expressions| expressions.iter().any(by_expression))
}
