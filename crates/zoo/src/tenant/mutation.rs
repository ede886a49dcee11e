//! What the apiserver behind puts into tenants' pods, and into the certificates that they trust, as mutating admission policies.
//!
//! A kubelet mounts into each pod a token of the host and the host's authority, and tells it the host's address: all good for nothing in the
//! tenant. So each pod, whoever creates it, gets what [`crate::pods`] says; and the ConfigMap `kube-root-ca.crt` of each of a tenant's
//! namespaces, which the host's controllers write, holds zoo's authority in place of the host's.
//!
//! Invariant: a pod that has the mark ([`NAMESPACE_ANNOTATION`]) stays as it was made, whatever is left out of what is written over it; one that
//! was made without is left alone, as nobody can change what is in it. That no pod is made without is a validating policy's matter.

use serde_json::{Value, json};

use crate::names::PREFIX_LENGTH;
use crate::pods::{HOST_ANNOTATION, NAMESPACE_ANNOTATION, NAMESPACE_PATH, PORT_ANNOTATION, path_of};

use super::admission::{API_VERSION, of_tenants, own_audience};

/// The name of the policy for pods, and of its binding.
const PODS: &str = "pod-access.tenancy.kubewharf.io";
/// The name of the policy for authorities, and of its binding.
const ROOTS: &str = "roots.tenancy.kubewharf.io";
/// The name of the binding by which one sees whether the policies are in force.
const PROBE: &str = "probe.tenancy.kubewharf.io";
/// The label of what is looked at for that.
pub(super) const PROBE_LABEL: &str = "tenancy.kubewharf.io/probe";
/// The ConfigMap with the authority that pods trust.
pub(super) const ROOT: &str = "kube-root-ca.crt";
/// The entry in it.
pub(super) const ROOT_KEY: &str = "ca.crt";
/// The variables by which a client library finds the API, and where their values are.
const VARIABLES: [(&str, &str); 2] =
    [("KUBERNETES_SERVICE_HOST", HOST_ANNOTATION), ("KUBERNETES_SERVICE_PORT", PORT_ANNOTATION)];

/// How pods reach their tenant's API.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    /// A name or an address of zoo.
    pub(crate) host: String,
    /// The port there.
    pub(crate) port: u16,
    /// The authority of zoo's certificate (PEM).
    pub(crate) authority: String,
}

/// The policies and their bindings, each with its path's last two parts. What proves that all are in force comes last.
pub(super) fn objects(access: &Access) -> Vec<(String, Value)> {
    let probe = json!({
        "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "kube-system" } },
        "objectSelector": { "matchExpressions": [{ "key": PROBE_LABEL, "operator": "Exists" }] },
    });
    let policies = "mutatingadmissionpolicies";
    let bindings = "mutatingadmissionpolicybindings";
    vec![
        (format!("{policies}/{PODS}"), pods(access)),
        (format!("{policies}/{ROOTS}"), roots(access)),
        (format!("{bindings}/{PODS}"), binding(PODS, PODS, &of_tenants())),
        (format!("{bindings}/{ROOTS}"), binding(ROOTS, ROOTS, &of_tenants())),
        (format!("{bindings}/{PROBE}"), binding(PROBE, ROOTS, &probe)),
    ]
}

fn binding(name: &str, policy: &str, resources: &Value) -> Value {
    json!({
        "apiVersion": API_VERSION, "kind": "MutatingAdmissionPolicyBinding",
        "metadata": { "name": name },
        "spec": { "policyName": policy, "matchResources": resources },
    })
}

fn policy(name: &str, rules: &Value, conditions: &Value, mutations: &[String]) -> Value {
    let patches = mutations
        .iter()
        .map(|expression| json!({ "patchType": "JSONPatch", "jsonPatch": { "expression": expression } }));
    json!({
        "apiVersion": API_VERSION, "kind": "MutatingAdmissionPolicy",
        "metadata": { "name": name },
        "spec": {
            "failurePolicy": "Fail", "reinvocationPolicy": "IfNeeded",
            "matchConstraints": { "resourceRules": rules }, "matchConditions": conditions,
            "mutations": patches.collect::<Vec<_>>(),
        },
    })
}

/// A text in CEL: its escapes are those of JSON.
fn text(text: &str) -> String {
    Value::from(text).to_string()
}

fn roots(access: &Access) -> Value {
    let rules = json!([{
        "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"],
        "resources": ["configmaps"], "resourceNames": [ROOT],
    }]);
    let (key, authority) = (text(ROOT_KEY), text(&access.authority));
    let data = format!("[JSONPatch{{op: 'add', path: '/data', value: {{{key}: {authority}}}}}]");
    policy(ROOTS, &rules, &json!([]), &[data])
}

fn pods(access: &Access) -> Value {
    let rules = json!([{
        "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"],
        "resources": ["pods", "pods/ephemeralcontainers", "pods/resize", "pods/status"],
    }]);
    let marked = |object: &str| {
        format!("has({object}.metadata.annotations) && '{NAMESPACE_ANNOTATION}' in {object}.metadata.annotations")
    };
    // Kubelets write statuses often, and never take the mark away.
    let condition = format!(
        "request.operation == 'CREATE' || ({} && !(has(request.subResource) && request.subResource == 'status' && {}))",
        marked("oldObject"),
        marked("object"),
    );
    let conditions = json!([{ "name": "is-or-becomes-marked", "expression": condition }]);
    let mut mutations = vec![annotations(access), projected(), told()];
    mutations.extend(["containers", "initContainers", "ephemeralContainers"].map(variables));
    policy(PODS, &rules, &conditions, &mutations)
}

/// The marks: as the pod was made with them.
fn annotations(access: &Access) -> String {
    let name = format!("namespaceObject.metadata.name.substring({PREFIX_LENGTH})");
    let values = [
        (NAMESPACE_ANNOTATION, name),
        (HOST_ANNOTATION, text(&access.host)),
        (PORT_ANNOTATION, text(&access.port.to_string())),
    ];
    let each = values.map(|(key, value)| {
        format!(
            "JSONPatch{{op: 'add', path: '/metadata/annotations/' + jsonpatch.escapeKey('{key}'), \
             value: request.operation == 'UPDATE' && '{key}' in oldObject.metadata.annotations \
             ? string(oldObject.metadata.annotations['{key}']) : {value}}}"
        )
    });
    format!(
        "(has(object.metadata.annotations) ? [] : \
         [JSONPatch{{op: 'add', path: '/metadata/annotations', value: {{'{NAMESPACE_ANNOTATION}': ''}}}}]) + [{}]",
        each.join(", ")
    )
}

/// What of itself a pod is told in a file: the item `d` of the downward API.
fn told_item() -> String {
    let path = path_of(NAMESPACE_ANNOTATION);
    let field = format!("dyn({{'fieldPath': dyn(\"{path}\")}})");
    format!(
        "(!has(d.fieldRef) || has(d.resourceFieldRef) || d.fieldRef.fieldPath != '{NAMESPACE_PATH}' ? dyn(d) : \
         has(d.mode) ? dyn({{'path': dyn(d.path), 'mode': dyn(d.mode), 'fieldRef': {field}}}) : \
         dyn({{'path': dyn(d.path), 'fieldRef': {field}}}))"
    )
}

/// Volumes of the downward API.
fn told() -> String {
    let item = told_item();
    format!(
        "!has(object.spec.volumes) ? [] : object.spec.volumes.transformList(i, v, \
         has(v.downwardAPI) && has(v.downwardAPI.items), JSONPatch{{op: 'replace', \
         path: '/spec/volumes/' + string(i) + '/downwardAPI/items', value: v.downwardAPI.items.map(d, {item})}})"
    )
}

/// Volumes of several sources, among them tokens. A source that is of two kinds is left to be refused, as everywhere here.
fn projected() -> String {
    let own = own_audience();
    let item = told_item();
    let asked = "s.serviceAccountToken.audience";
    let audience = format!(
        "(!has({asked}) || {asked} == '' ? {own} : {asked} == {own} || {asked}.startsWith({own} + ':') ? {asked} : \
         {own} + ':' + {asked})"
    );
    format!(
        "!has(object.spec.volumes) ? [] : object.spec.volumes.transformList(i, v, \
         has(v.projected) && has(v.projected.sources) && v.projected.sources != null, JSONPatch{{op: 'replace', \
         path: '/spec/volumes/' + string(i) + '/projected/sources', value: v.projected.sources.map(s, \
         size(s) != 1 ? dyn(s) : \
         has(s.serviceAccountToken) ? dyn({{'serviceAccountToken': dyn({{\
           'audience': dyn({audience}), \
           'expirationSeconds': dyn(s.serviceAccountToken.expirationSeconds), \
           'path': dyn(s.serviceAccountToken.path)}})}}) : \
         has(s.downwardAPI) && has(s.downwardAPI.items) ? \
           dyn({{'downwardAPI': dyn({{'items': dyn(s.downwardAPI.items.map(d, {item}))}})}}) : dyn(s))}})"
    )
}

/// The variables of containers: first those by which the API is found, as the author's own may refer to them. That there are containers is not
/// yet certain.
fn variables(list: &str) -> String {
    let from = |path: &str| format!("dyn({{'fieldRef': dyn({{'fieldPath': dyn(\"{path}\")}})}})");
    let added = VARIABLES.map(|(name, annotation)| {
        let value = from(&path_of(annotation));
        format!(
            "(has(c.env) && c.env.exists(e, e.name == '{name}') ? [] : \
             [dyn({{'name': dyn('{name}'), 'valueFrom': {value}}})])"
        )
    });
    let namespace = from(&path_of(NAMESPACE_ANNOTATION));
    format!(
        "!has(object.spec.{list}) || object.spec.{list} == null ? [] : object.spec.{list}.transformList(i, c, JSONPatch{{op: 'add', \
         path: '/spec/{list}/' + string(i) + '/env', value: {} + (has(c.env) ? c.env.map(e, \
         has(e.valueFrom) && size(e.valueFrom) == 1 && (!has(e.value) || e.value == '') && \
         has(e.valueFrom.fieldRef) && e.valueFrom.fieldRef.fieldPath == '{NAMESPACE_PATH}' ? \
         dyn({{'name': dyn(e.name), 'valueFrom': {namespace}}}) : dyn(e)) : [])}})",
        added.join(" + ")
    )
}
