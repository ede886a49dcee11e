//! What zoo installs upstream: the kind `Tenant`, and what tenants can do at most in their namespaces.
//!
//! Invariant: installing is idempotent and goes by server-side apply, so that a newer zoo brings what an older one had up to date.

use std::time::Duration;

use http::{HeaderValue, Method};
use kubewharf_upstream::Class;
use serde_json::{Value, json};

use crate::limits::OWN_ANSWER_BYTES_MAX;
use crate::upstream::{Question, Upstream, UpstreamError, own_headers};

use super::{CLUSTER_ROLE, GROUP, TENANTS_PATH};

/// How long a new kind may take until it is served.
const SERVED_WITHIN: Duration = Duration::from_secs(30);

/// Installs everything, and waits until `Tenant` objects can be asked for.
///
/// # Errors
/// When the apiserver refuses, or can't be asked.
pub(crate) async fn install(upstream: &Upstream) -> Result<(), UpstreamError> {
    let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    apply(upstream, &format!("{crds}/tenants.{GROUP}"), &tenants()).await?;
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    apply(upstream, &format!("{roles}/{CLUSTER_ROLE}"), &cluster_role()).await?;
    let deadline = tokio::time::Instant::now() + SERVED_WITHIN;
    loop {
        let target = format!("{TENANTS_PATH}?limit=1");
        match upstream.own(Method::GET, &target, &Value::Null, OWN_ANSWER_BYTES_MAX).await {
            Ok(_) => return Ok(()),
            Err(error) if tokio::time::Instant::now() > deadline => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Applies an object as zoo's.
///
/// # Errors
/// When the apiserver refuses, or can't be asked.
pub(crate) async fn apply(upstream: &Upstream, path: &str, object: &Value) -> Result<(), UpstreamError> {
    let mut headers = own_headers("application/apply-patch+yaml");
    headers.insert(http::header::ACCEPT, HeaderValue::from_static("application/json"));
    let question = Question {
        method: Method::PATCH,
        target: format!("{path}?fieldManager=kubewharf-zoo&force=true"),
        headers,
        body: object.to_string().into(),
        class: Class::Short,
    };
    let answer = upstream.send(&question).await?.whole(OWN_ANSWER_BYTES_MAX).await?;
    if answer.status.is_success() {
        return Ok(());
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

/// Everything in namespaces that tenants have (see [`crate::kinds`]), and nothing that reaches out of them.
fn cluster_role() -> Value {
    let mut rules = Vec::new();
    for kind in crate::kinds::all().iter().filter(|kind| kind.outcome == crate::kinds::Outcome::Namespaced) {
        // Roles and bindings are written with zoo's own identity, after zoo has checked what they give.
        let verbs =
            if kind.group == "rbac.authorization.k8s.io" { json!(["get", "list", "watch"]) } else { json!(["*"]) };
        let subresources = kind.subresources.iter();
        let served = subresources.filter(|sub| sub.outcome == crate::kinds::Outcome::Namespaced);
        let names: Vec<String> = std::iter::once(kind.resource.to_owned())
            .chain(served.map(|sub| format!("{}/{}", kind.resource, sub.name)))
            .collect();
        rules.push(json!({ "apiGroups": [kind.group], "resources": names, "verbs": verbs }));
    }
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": { "name": CLUSTER_ROLE },
        "rules": rules,
    })
}
