//! The authority that pods trust: whether the policy that puts it in its place is in force, and what was written before it was.
//!
//! Invariant: only what the policy would write is written.

use http::Method;
use kubewharf_upstream::Class;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::limits::{OWN_ANSWER_BYTES_MAX, ROOTS_PER_PAGE};
use crate::names::TenantId;
use crate::upstream::{Question, Upstream, UpstreamError, own_headers};

use super::Metadata;
use super::crd::apply_with;
use super::mutation::{PROBE_LABEL, ROOT, ROOT_KEY};

#[derive(Deserialize)]
struct Map {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    data: std::collections::HashMap<String, String>,
}

#[derive(Deserialize)]
struct Page {
    metadata: PageMetadata,
    items: Vec<Map>,
}

#[derive(Default, Deserialize)]
struct PageMetadata {
    #[serde(default, rename = "continue")]
    rest: String,
}

/// Makes sure that the mutating policies are in force at the apiserver: it is asked what it would make of an object.
///
/// # Errors
/// When they are not, or the apiserver can't be asked.
pub(super) async fn check_in_force(upstream: &Upstream, authority: &str) -> Result<(), UpstreamError> {
    let path = format!("/api/v1/namespaces/kube-system/configmaps/{ROOT}");
    let probe = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": ROOT, "labels": { PROBE_LABEL: "" } },
    });
    let made = apply_with(upstream, &path, "&dryRun=All", &probe).await?;
    let wrong = |problem: String| UpstreamError::Content { path: path.clone(), problem };
    let made: Map = serde_json::from_slice(&made).map_err(|error| wrong(error.to_string()))?;
    if made.data.get(ROOT_KEY).is_none_or(|found| found != authority) {
        return Err(wrong("the mutating admission policies that pods of tenants need are not in force".to_owned()));
    }
    Ok(())
}

/// Gives the tenants' namespaces the authority where they have another one: of an earlier zoo, or of the host.
pub(crate) async fn renew(upstream: &Upstream, authority: &str) {
    if let Err(error) = try_renew(upstream, authority).await {
        tracing::warn!(%error, "some pods of tenants may not trust their API yet");
    }
}

async fn try_renew(upstream: &Upstream, authority: &str) -> Result<(), UpstreamError> {
    let (mut rest, mut limit) = (String::new(), ROOTS_PER_PAGE);
    loop {
        let target = format!("/api/v1/configmaps?fieldSelector=metadata.name%3D{ROOT}&limit={limit}&continue={rest}");
        let page = upstream.own_json::<Page>(Method::GET, &target, &Value::Null, OWN_ANSWER_BYTES_MAX).await;
        let page = match page {
            // Tenants can put more into theirs.
            Err(UpstreamError::TooLong(_)) if limit > 1 => {
                limit /= 2;
                continue;
            }
            page => page?,
        };
        for map in page.items {
            let namespace = &map.metadata.namespace;
            if TenantId::split(namespace).is_none() || map.data.get(ROOT_KEY).is_some_and(|found| found == authority) {
                continue;
            }
            // Whoever looks finds the manager that this object has in every cluster.
            let question = Question {
                method: Method::PATCH,
                target: format!(
                    "/api/v1/namespaces/{namespace}/configmaps/{ROOT}?fieldManager=kube-controller-manager"
                ),
                headers: own_headers("application/merge-patch+json"),
                body: json!({ "data": { ROOT_KEY: authority } }).to_string().into(),
                class: Class::Short,
            };
            let status = upstream.send(&question).await?.whole(OWN_ANSWER_BYTES_MAX).await?.status;
            if !status.is_success() {
                // The namespace is going or gone, or the tenant lets nobody change the object.
                tracing::debug!(%status, namespace, "an authority stays as it is");
            }
        }
        rest = page.metadata.rest;
        if rest.is_empty() {
            return Ok(());
        }
    }
}
