//! What zoo installs upstream: the kind `Tenant`, and what tenants can do at most in their namespaces.
//!
//! Invariant: installing is idempotent and goes by server-side apply, so that a newer zoo brings what an older one had up to date.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method};
use kubewharf_upstream::Class;
use serde_json::{Value, json};

use crate::authz::roles::Kind;
use crate::limits::OWN_ANSWER_BYTES_MAX;
use crate::private;
use crate::upstream::{Question, Upstream, UpstreamError, own_headers};

use super::mutation::Access;
use super::{CLUSTER_ROLE, GROUP, TENANTS_PATH, admission, mutation, roots};

/// How long a new kind may take until it is served.
const SERVED_WITHIN: Duration = Duration::from_secs(30);

/// Installs everything, and waits until `Tenant` objects can be asked for and the policies are in force.
///
/// # Errors
/// When the apiserver refuses, or can't be asked.
pub(crate) async fn install(
    upstream: &Upstream,
    storage_classes: &[String],
    access: &Access,
) -> Result<(), UpstreamError> {
    let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    apply(upstream, &format!("{crds}/tenants.{GROUP}"), &tenants()).await?;
    for kind in Kind::ALL {
        let crd = kept(kind);
        let name = crd["metadata"]["name"].as_str().expect("it has a name").to_owned();
        apply(upstream, &format!("{crds}/{name}"), &crd).await?;
    }
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    apply(upstream, &format!("{roles}/{CLUSTER_ROLE}"), &cluster_role()).await?;
    for (path, object) in admission::objects(storage_classes).into_iter().chain(mutation::objects(access)) {
        apply(upstream, &format!("/apis/admissionregistration.k8s.io/v1/{path}"), &object).await?;
    }
    let deadline = tokio::time::Instant::now() + SERVED_WITHIN;
    let kept = Kind::ALL.map(|kind| format!("/apis/{}/{}", private::STORED_API_VERSION, private::resource(kind)));
    for path in std::iter::once(TENANTS_PATH).chain(kept.iter().map(String::as_str)) {
        let target = format!("{path}?limit=1");
        loop {
            match upstream.own(Method::GET, &target, &Value::Null, OWN_ANSWER_BYTES_MAX).await {
                Ok(_) => break,
                Err(error) if tokio::time::Instant::now() > deadline => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
    while let Err(error) = roots::check_in_force(upstream, &access.authority).await {
        if tokio::time::Instant::now() > deadline {
            return Err(error);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Applies an object as zoo's.
///
/// # Errors
/// When the apiserver refuses, or can't be asked.
pub(crate) async fn apply(upstream: &Upstream, path: &str, object: &Value) -> Result<(), UpstreamError> {
    apply_with(upstream, path, "", object).await.map(drop)
}

/// The same, with more parameters; what the apiserver makes of the object.
pub(super) async fn apply_with(
    upstream: &Upstream,
    path: &str,
    parameters: &str,
    object: &Value,
) -> Result<Bytes, UpstreamError> {
    let mut headers = own_headers("application/apply-patch+yaml");
    headers.insert(http::header::ACCEPT, HeaderValue::from_static("application/json"));
    let question = Question {
        method: Method::PATCH,
        target: format!("{path}?fieldManager=kubewharf-zoo&force=true{parameters}"),
        headers,
        body: object.to_string().into(),
        class: Class::Short,
    };
    let answer = upstream.send(&question).await?.whole(OWN_ANSWER_BYTES_MAX).await?;
    if answer.status.is_success() {
        return Ok(answer.body);
    }
    Err(UpstreamError::Answer {
        method: question.method,
        path: path.to_owned(),
        status: answer.status,
        body: answer.body,
    })
}

fn tenants() -> Value {
    let text = |description: &str| json!({ "type": "string", "description": description });
    let condition = json!({
        "type": "object",
        "required": ["type", "status", "lastTransitionTime", "reason", "message"],
        "properties": {
            "type": { "type": "string" }, "status": { "type": "string", "enum": ["True", "False", "Unknown"] },
            "observedGeneration": { "type": "integer", "format": "int64" },
            "lastTransitionTime": { "type": "string", "format": "date-time" },
            "reason": { "type": "string" }, "message": { "type": "string" },
        },
    });
    let column = |name: &str, path: &str, kind: &str| json!({ "name": name, "jsonPath": path, "type": kind });
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("tenants.{GROUP}") },
        "spec": {
            "group": GROUP, "scope": "Cluster",
            "names": { "kind": "Tenant", "listKind": "TenantList", "plural": "tenants", "singular": "tenant" },
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "subresources": { "status": {} },
                "additionalPrinterColumns": [
                    column("Phase", ".status.phase", "string"),
                    column("Id", ".status.id", "string"),
                    column("Age", ".metadata.creationTimestamp", "date"),
                ],
                "schema": { "openAPIV3Schema": {
                    "type": "object",
                    "description": "A tenant: a Kubernetes API of its own.",
                    "properties": {
                        "apiVersion": { "type": "string" }, "kind": { "type": "string" }, "metadata": { "type": "object" },
                        "spec": { "type": "object" },
                        "status": { "type": "object", "properties": {
                            "phase": text("Active, or Deleting until all that is the tenant's is gone."),
                            "id": text("What the names of its objects upstream have after kz."),
                            "conditions": {
                                "type": "array", "items": condition,
                                "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"],
                            },
                        }},
                    },
                }},
            }],
        },
    })
}

/// The kind as which tenants' roles or bindings are kept. No authorizer looks at it.
fn kept(kind: Kind) -> Value {
    let text = || json!({ "type": "string" });
    let texts = || json!({ "type": "array", "items": { "type": "string" }, "x-kubernetes-list-type": "atomic" });
    let list = |items: Value| json!({ "type": "array", "items": items, "x-kubernetes-list-type": "atomic" });
    let rules = list(json!({ "type": "object", "properties": {
        "verbs": texts(), "apiGroups": texts(), "resources": texts(), "resourceNames": texts(), "nonResourceURLs": texts(),
    }}));
    let selector = json!({ "type": "object", "x-kubernetes-map-type": "atomic", "properties": {
        "matchLabels": { "type": "object", "additionalProperties": { "type": "string" } },
        "matchExpressions": list(json!({ "type": "object", "properties": {
            "key": text(), "operator": text(), "values": texts(),
        }})),
    }});
    let mut properties = json!({ "apiVersion": text(), "kind": text(), "metadata": { "type": "object" } });
    match kind {
        Kind::Role => properties["rules"] = rules,
        Kind::ClusterRole => {
            properties["rules"] = rules;
            properties["aggregationRule"] =
                json!({ "type": "object", "properties": { "clusterRoleSelectors": list(selector) } });
        }
        Kind::RoleBinding | Kind::ClusterRoleBinding => {
            let fields = || json!({ "apiGroup": text(), "kind": text(), "name": text() });
            let mut subject = fields();
            subject["namespace"] = text();
            properties["subjects"] = list(json!({ "type": "object", "properties": subject }));
            properties["roleRef"] =
                json!({ "type": "object", "properties": fields(), "x-kubernetes-map-type": "atomic" });
        }
    }
    let (plural, name) = (private::resource(kind), private::kind_name(kind));
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{plural}.{GROUP}") },
        "spec": {
            "group": GROUP, "scope": if kind.is_namespaced() { "Namespaced" } else { "Cluster" },
            "names": {
                "kind": name, "listKind": format!("{name}List"), "plural": plural, "singular": name.to_lowercase(),
            },
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": { "openAPIV3Schema": {
                    "type": "object",
                    "description": "What a tenant has as a role or binding of its own.",
                    "properties": properties,
                }},
            }],
        },
    })
}

/// Everything in namespaces that tenants have (see [`crate::kinds`]), and nothing that reaches out of them.
fn cluster_role() -> Value {
    let mut rules = Vec::new();
    for kind in crate::kinds::all().iter().filter(|kind| kind.outcome == crate::kinds::Outcome::Namespaced) {
        let subresources = kind.subresources.iter();
        let served = subresources.filter(|sub| sub.outcome == crate::kinds::Outcome::Namespaced);
        let names: Vec<String> = std::iter::once(kind.resource.to_owned())
            .chain(served.map(|sub| format!("{}/{}", kind.resource, sub.name)))
            .collect();
        rules.push(json!({ "apiGroups": [kind.group], "resources": names, "verbs": ["*"] }));
    }
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": { "name": CLUSTER_ROLE },
        "rules": rules,
    })
}
