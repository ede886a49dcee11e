//! Leases of the host in which zoos tell each other that they are there and who leads them: the objects, and how they are read and written.
//!
//! Invariant: a lease is only overwritten at the version that was read, so that of two who write one finds out that it was too late.

use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::limits::OWN_ANSWER_BYTES_MAX;
use crate::upstream::{Upstream, UpstreamError};

use super::Metadata;

/// Where the zoos' leases are.
pub(super) const LEASES_PATH: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";

/// What a lease says, as far as it is ours.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct LeaseSpec {
    /// Nobody's if none. It is then written as `null`, which takes it away.
    pub(super) holder_identity: Option<String>,
    pub(super) lease_duration_seconds: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) acquire_time: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) renew_time: String,
    pub(super) lease_transitions: u32,
}

/// A lease.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Lease {
    pub(super) metadata: Metadata,
    #[serde(default)]
    pub(super) spec: LeaseSpec,
}

/// The lease of this name, if there is one.
pub(super) async fn read(upstream: &Upstream, name: &str) -> Result<Option<Lease>, UpstreamError> {
    let target = format!("{LEASES_PATH}/{name}");
    let found = upstream.own_json(Method::GET, &target, &Value::Null, OWN_ANSWER_BYTES_MAX).await;
    there(found, &[StatusCode::NOT_FOUND])
}

/// Makes a lease; none if there is one of its name.
pub(super) async fn create(
    upstream: &Upstream,
    name: &str,
    labels: &Value,
    spec: &LeaseSpec,
) -> Result<Option<Lease>, UpstreamError> {
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": { "name": name, "namespace": "kube-system", "labels": labels }, "spec": spec,
    });
    let made = upstream.own_json(Method::POST, LEASES_PATH, &lease, OWN_ANSWER_BYTES_MAX).await;
    there(made, &[StatusCode::CONFLICT])
}

/// Writes a lease that was at this version; none if it has changed or is gone.
pub(super) async fn update(
    upstream: &Upstream,
    name: &str,
    version: &str,
    spec: &LeaseSpec,
) -> Result<Option<Lease>, UpstreamError> {
    let patch = json!({ "metadata": { "resourceVersion": version }, "spec": spec });
    let target = format!("{LEASES_PATH}/{name}");
    let written = match upstream.own_merge(&target, &patch, OWN_ANSWER_BYTES_MAX).await {
        Ok(body) => serde_json::from_slice(&body)
            .map_err(|error| UpstreamError::Content { path: target, problem: error.to_string() }),
        Err(error) => Err(error),
    };
    there(written, &[StatusCode::CONFLICT, StatusCode::NOT_FOUND])
}

/// Takes a lease away, if it is still at this version.
pub(super) async fn delete(upstream: &Upstream, name: &str, version: &str) -> Result<(), UpstreamError> {
    let options = json!({ "preconditions": { "resourceVersion": version } });
    let target = format!("{LEASES_PATH}/{name}");
    let done = upstream.own(Method::DELETE, &target, &options, OWN_ANSWER_BYTES_MAX).await;
    there(done, &[StatusCode::CONFLICT, StatusCode::NOT_FOUND]).map(drop)
}

/// A time as leases have it, of so many milliseconds since 1970.
pub(super) fn micro_time(wall_ms: u64) -> String {
    let (seconds, millis) = (wall_ms / 1000, wall_ms % 1000);
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    crate::time::format(seconds, millis as i64 * 1_000_000, 6).unwrap_or_default()
}

fn there<T>(done: Result<T, UpstreamError>, absent: &[StatusCode]) -> Result<Option<T>, UpstreamError> {
    match done {
        Ok(done) => Ok(Some(done)),
        Err(error) if error.status().is_some_and(|status| absent.contains(&status)) => Ok(None),
        Err(error) => Err(error),
    }
}
