//! An object of each kind with a tenant's marker wherever one may stand.

use serde_json::{Value, json};

use super::reads::Resource;

/// Kinds that are answers, not objects.
const ANSWERS: &[&str] = &["bindings", "localsubjectaccessreviews"];

/// Kinds with a namespace of which there is no example.
pub(super) fn missing(resources: &[Resource]) -> Vec<String> {
    let is_missing = |resource: &&Resource| {
        resource.namespaced
            && resource.can("create")
            && !ANSWERS.contains(&resource.plural.as_str())
            && namespaced(resource, "x", "x").is_none()
    };
    resources.iter().filter(is_missing).map(|it| format!("{}.{}", it.plural, it.group)).collect()
}

/// A definition of a kind in a group of the tenant's own.
pub(super) fn definition(marker: &str) -> Value {
    json!({
        "metadata": {"name": format!("things.{marker}.example.com"), "labels": {marker: marker}},
        "spec": {
            "group": format!("{marker}.example.com"),
            "scope": "Namespaced",
            "names": {"plural": "things", "singular": "thing", "kind": "Thing", "shortNames": [marker]},
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {
                    "type": "object", "description": format!("A thing of {marker}."),
                    "x-kubernetes-preserve-unknown-fields": true,
                }},
            }],
        },
    })
}

/// Objects without a namespace, and where they are made.
pub(super) fn wide(marker: &str) -> Vec<(&'static str, Value)> {
    let metadata = json!({"name": marker, "labels": {marker: marker}, "annotations": {"note": marker}});
    let rules = json!([{"apiGroups": [format!("{marker}.example.com")], "resources": ["*"], "verbs": ["get"]}]);
    let subjects = json!([{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": marker}]);
    vec![
        ("/apis/rbac.authorization.k8s.io/v1/clusterroles", json!({"metadata": metadata, "rules": rules})),
        (
            "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
            json!({
                "metadata": metadata, "subjects": subjects,
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": marker},
            }),
        ),
    ]
}

/// An object of this kind, without its kind: the path tells it.
pub(super) fn namespaced(resource: &Resource, namespace: &str, marker: &str) -> Option<Value> {
    let labels = json!({marker: marker, "app": marker});
    let metadata = json!({"name": marker, "labels": labels, "annotations": {"note": format!("of {marker}")}});
    let template = json!({
        "metadata": {"labels": {"app": marker}},
        "spec": {
            "schedulerName": "none", "restartPolicy": "Always",
            "containers": [{"name": "c", "image": marker, "env": [
                {"name": "A", "value": marker}, {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
            ]}],
            "volumes": [{"name": "v", "projected": {"sources": [
                {"serviceAccountToken": {"path": "token", "audience": marker}},
            ]}}],
        },
    });
    let mut once = template.clone();
    once["spec"]["restartPolicy"] = json!("Never");
    let selector = json!({"matchLabels": {"app": marker}});
    let claim = json!({
        "storageClassName": marker, "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}},
    });
    let request = json!({"devices": {"requests": [{"name": "one", "exactly": {"deviceClassName": marker}}]}});
    let mut object = match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "configmaps") => json!({"data": {"text": marker}}),
        ("", "secrets") => json!({"stringData": {"text": marker}}),
        ("", "serviceaccounts") => json!({"imagePullSecrets": [{"name": marker}]}),
        ("", "services") => json!({"spec": {"selector": {"app": marker}, "ports": [{"port": 80, "name": "http"}]}}),
        ("", "endpoints") => json!({"subsets": [{
            "addresses": [{"ip": "192.0.2.7", "hostname": marker}], "ports": [{"port": 80}],
        }]}),
        ("", "pods") => json!({"spec": template["spec"]}),
        ("", "podtemplates") => json!({"template": template}),
        ("", "replicationcontrollers") => {
            json!({"spec": {"replicas": 0, "selector": {"app": marker}, "template": template}})
        }
        ("", "limitranges") => {
            json!({"spec": {"limits": [{"type": "PersistentVolumeClaim", "max": {"storage": "100Gi"}}]}})
        }
        ("", "resourcequotas") => {
            json!({"spec": {"hard": {"pods": "100", format!("count/things.{marker}.example.com"): "5"}}})
        }
        ("", "persistentvolumeclaims") => json!({"spec": claim}),
        ("", "events") => {
            json!({"involvedObject": {"kind": "Pod", "name": marker, "namespace": namespace}, "reason": "Tested", "message": marker})
        }
        ("events.k8s.io", "events") => json!({
            "regarding": {"kind": "Pod", "name": marker, "namespace": namespace}, "reason": "Tested", "note": marker,
            "type": "Normal", "action": "Testing", "reportingController": "example.com/tester", "reportingInstance": marker,
            "eventTime": "2026-01-01T00:00:00.000000Z",
        }),
        ("apps", "deployments") => json!({"spec": {"replicas": 1, "selector": selector, "template": template}}),
        ("apps", "replicasets") => json!({"spec": {"replicas": 0, "selector": selector, "template": template}}),
        ("apps", "statefulsets") => json!({"spec": {
            "replicas": 0, "serviceName": marker, "selector": selector, "template": template,
            "volumeClaimTemplates": [{"metadata": {"name": marker}, "spec": claim}],
        }}),
        ("apps", "daemonsets") => json!({"spec": {"selector": selector, "template": template}}),
        ("apps", "controllerrevisions") => json!({"revision": 1, "data": {"spec": {"template": template}}}),
        ("batch", "jobs") => json!({"spec": {"suspend": true, "template": once}}),
        ("batch", "cronjobs") => {
            json!({"spec": {"schedule": "0 3 * * *", "suspend": true, "jobTemplate": {"spec": {"template": once}}}})
        }
        ("autoscaling", "horizontalpodautoscalers") => json!({"spec": {
            "maxReplicas": 3, "scaleTargetRef": {"apiVersion": format!("{marker}.example.com/v1"), "kind": "Thing", "name": marker},
        }}),
        ("policy", "poddisruptionbudgets") => json!({"spec": {"minAvailable": 1, "selector": selector}}),
        ("networking.k8s.io", "ingresses") => json!({"spec": {
            "ingressClassName": marker, "defaultBackend": {"service": {"name": marker, "port": {"number": 80}}},
            "tls": [{"secretName": marker}],
        }}),
        ("networking.k8s.io", "networkpolicies") => json!({"spec": {
            "podSelector": selector, "ingress": [{"from": [{"namespaceSelector": {}}]}],
        }}),
        ("discovery.k8s.io", "endpointslices") => json!({
            "addressType": "IPv4", "endpoints": [{"addresses": ["192.0.2.8"], "hostname": marker}],
        }),
        ("coordination.k8s.io", "leases") => json!({"spec": {"holderIdentity": marker}}),
        ("rbac.authorization.k8s.io", "roles") => json!({"rules": [{
            "apiGroups": [format!("{marker}.example.com")], "resources": ["things"], "verbs": ["get"], "resourceNames": [marker],
        }]}),
        ("rbac.authorization.k8s.io", "rolebindings") => json!({
            "subjects": [
                {"kind": "ServiceAccount", "name": marker, "namespace": marker},
                {"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": "system:authenticated"},
            ],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        }),
        ("resource.k8s.io", "resourceclaims") => json!({"spec": request}),
        ("resource.k8s.io", "resourceclaimtemplates") => json!({"spec": {"spec": request}}),
        ("storage.k8s.io", "csistoragecapacities") => json!({"storageClassName": marker}),
        _ => return None,
    };
    object["metadata"] = metadata;
    Some(object)
}
