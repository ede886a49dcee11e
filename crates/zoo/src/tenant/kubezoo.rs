//! KubeZoo's own objects, `tenants.tenant.kubezoo.io/v1alpha1`: whoever has manifests of them keeps those.
//!
//! Their kind is the host's business: it may be installed at any time. Each object leads to a `Tenant` of its name, which it owns, so that the
//! host's garbage collector deletes the `Tenant` after it. The leader looks after them.
//!
//! Invariant: a `Tenant` that is there already, and is not the object's own, stays as it is; what an object asks for and no tenant has is told, and
//! not left out in silence.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::{Method, StatusCode};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::limits::OWN_ANSWER_BYTES_MAX;
use crate::names::TenantId;
use crate::upstream::UpstreamError;

use super::events::{Event, Events};
use super::follow::list;
use super::{FINALIZER, GROUP, Metadata, TENANTS_PATH, TenantObject, Tenants};

const API_VERSION: &str = "tenant.kubezoo.io/v1alpha1";
const PATH: &str = "/apis/tenant.kubezoo.io/v1alpha1/tenants";
/// Pause between two looks whether the kind is there, and before what failed is tried again.
const LOOK: Duration = Duration::from_secs(5);

/// What is known of them.
#[derive(Default)]
pub(super) struct KubeZoo {
    /// Whether the kind is there, as far as the leader knows.
    is_there: AtomicBool,
    /// Names of tenants that have changed since their objects were looked at.
    changed: Mutex<BTreeSet<String>>,
    wake: Notify,
}

impl KubeZoo {
    /// A `Tenant` of this name has changed, or is gone.
    pub(super) fn tenant_has_changed(&self, name: &str) {
        if self.is_there.load(Ordering::Relaxed) {
            self.changed.lock().insert(name.to_owned());
            self.wake.notify_one();
        }
    }
}

/// What is read of one of the objects. `spec.id` means nothing: KubeZoo did not use it either.
#[derive(Deserialize)]
struct Object {
    metadata: Metadata,
    #[serde(default)]
    spec: Value,
    #[serde(default)]
    status: Value,
}

impl Object {
    fn wants_quota(&self) -> bool {
        self.spec.pointer("/quota/hard").and_then(Value::as_object).is_some_and(|hard| !hard.is_empty())
    }

    fn owns(&self, tenant: &TenantObject) -> bool {
        tenant.metadata.owner_references.iter().any(|owner| owner.uid == self.metadata.uid)
    }
}

/// What is done about an object.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Its `Tenant` is made.
    Make,
    /// Its `Tenant` is there, and ready or not.
    Own { is_ready: bool },
    /// A `Tenant` of its name is on its way out, and waited for.
    Wait,
    /// A `Tenant` of its name is not its own.
    NameTaken,
    /// It wants a quota for the whole tenant, which none would keep.
    QuotaWanted,
}

fn judge(object: &Object, tenant: Option<&TenantObject>) -> Verdict {
    match tenant {
        None if object.wants_quota() => Verdict::QuotaWanted,
        None => Verdict::Make,
        Some(tenant) if tenant.metadata.deletion_timestamp.is_some() => Verdict::Wait,
        Some(tenant) if object.owns(tenant) => Verdict::Own { is_ready: tenant.status.phase == "Active" },
        Some(_) => Verdict::NameTaken,
    }
}

impl TenantObject {
    /// Whether one of KubeZoo's objects owns it.
    pub(super) fn is_of_kubezoo(&self) -> bool {
        self.metadata.owner_references.iter().any(|owner| owner.api_version == API_VERSION)
    }
}

impl Tenants {
    /// Looks after KubeZoo's objects, while this zoo leads, for as long as it is polled.
    pub(crate) async fn follow_kubezoo(self: Arc<Self>) -> std::convert::Infallible {
        let mut terms = self.leadership.terms();
        loop {
            if self.leadership.leads()
                && let Err(error) = self.follow_kubezoo_once().await
            {
                tracing::warn!(%error, "KubeZoo's objects can't be followed; trying again");
            }
            tokio::select! {
                _ = terms.changed() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    async fn follow_kubezoo_once(&self) -> Result<(), UpstreamError> {
        let listed = list::<Object>(&self.upstream, PATH).await;
        let is_absent = |error: &UpstreamError| error.status() == Some(StatusCode::NOT_FOUND);
        let was_there = self.kubezoo.is_there.swap(!listed.as_ref().is_err_and(is_absent), Ordering::Relaxed);
        let (objects, mut version) = match listed {
            Err(error) if is_absent(&error) => return Ok(()),
            listed => listed?,
        };
        if !was_there {
            tracing::info!(objects = objects.len(), "KubeZoo's tenants are on this host, and become tenants here");
        }
        let mut again = BTreeSet::new();
        for object in objects {
            self.try_honour(&object, &mut again).await;
        }
        loop {
            let mut events = Events::open(&self.upstream, PATH, &version).await?;
            loop {
                let names = tokio::select! {
                    line = events.next() => {
                        let Some(line) = line? else { break };
                        let event: Event<'_> = serde_json::from_slice(&line).map_err(|error| events.wrong(&error))?;
                        if event.kind == "ERROR" {
                            return Ok(());
                        }
                        let object: Object =
                            serde_json::from_str(event.object.get()).map_err(|error| events.wrong(&error))?;
                        version.clone_from(&object.metadata.resource_version);
                        if matches!(event.kind, "ADDED" | "MODIFIED") {
                            self.try_honour(&object, &mut again).await;
                        }
                        BTreeSet::new()
                    }
                    () = self.kubezoo.wake.notified() => std::mem::take(&mut *self.kubezoo.changed.lock()),
                    () = tokio::time::sleep(LOOK), if !again.is_empty() => std::mem::take(&mut again),
                };
                if !self.leadership.leads() {
                    return Ok(());
                }
                for name in names {
                    let target = format!("{PATH}/{name}");
                    match self.upstream.own_json(Method::GET, &target, &Value::Null, OWN_ANSWER_BYTES_MAX).await {
                        Ok(object) => self.try_honour(&object, &mut again).await,
                        Err(error) if is_absent(&error) => {}
                        Err(error) => return Err(error),
                    }
                }
            }
        }
    }

    /// What fails is told, and tried again.
    async fn try_honour(&self, object: &Object, again: &mut BTreeSet<String>) {
        if object.metadata.deletion_timestamp.is_some() || !self.leadership.leads() {
            return;
        }
        let name = &object.metadata.name;
        if let Err(error) = self.honour(object).await {
            tracing::warn!(name, %error, "KubeZoo's tenant is not a tenant here yet; trying again");
            again.insert(name.clone());
        }
    }

    async fn honour(&self, object: &Object) -> Result<(), UpstreamError> {
        let name = &object.metadata.name;
        let target = format!("{TENANTS_PATH}/{name}");
        let found = self.upstream.own_json::<TenantObject>(Method::GET, &target, &Value::Null, OWN_ANSWER_BYTES_MAX);
        let tenant = match found.await {
            Ok(tenant) => Some(tenant),
            Err(error) if error.status() == Some(StatusCode::NOT_FOUND) => None,
            Err(error) => return Err(error),
        };
        let verdict = judge(object, tenant.as_ref());
        match &verdict {
            Verdict::Make => self.make_owned(object).await?,
            Verdict::Own { .. } if object.wants_quota() => {
                let message =
                    "spec.quota.hard is not kept: there are no quotas for a whole tenant; its ResourceQuotas are";
                self.tell(object, "QuotaNotKept", message).await?;
            }
            Verdict::QuotaWanted => {
                let message = "no tenant is made: spec.quota.hard is set, and there are no quotas for a whole tenant; leave it out, \
                     and make ResourceQuotas in the tenant's namespaces";
                self.tell(object, "QuotaNotServed", message).await?;
            }
            Verdict::NameTaken => {
                let message =
                    format!("no tenant is made: there is a Tenant {name:?} of {GROUP} that is not this object's");
                self.tell(object, "NameTaken", &message).await?;
            }
            Verdict::Own { .. } | Verdict::Wait => {}
        }
        self.set_online(object, verdict == Verdict::Own { is_ready: true }).await
    }

    async fn make_owned(&self, object: &Object) -> Result<(), UpstreamError> {
        let Metadata { name, uid, .. } = &object.metadata;
        let tenant = json!({
            "apiVersion": format!("{GROUP}/v1"), "kind": "Tenant",
            "metadata": {
                "name": name, "finalizers": [FINALIZER],
                "ownerReferences": [{
                    "apiVersion": API_VERSION, "kind": "Tenant", "name": name, "uid": uid,
                    "controller": true, "blockOwnerDeletion": true,
                }],
            },
            "spec": {},
        });
        self.upstream.own(Method::POST, TENANTS_PATH, &tenant, OWN_ANSWER_BYTES_MAX).await?;
        tracing::info!(name, "KubeZoo's tenant is a tenant here");
        Ok(())
    }

    /// Tells whoever looks at the object.
    async fn tell(&self, object: &Object, reason: &str, message: &str) -> Result<(), UpstreamError> {
        let Metadata { name, uid, .. } = &object.metadata;
        tracing::warn!(name, reason, message, "KubeZoo's tenant");
        let now = crate::time::rfc3339(crate::time::now());
        let event = json!({
            "apiVersion": "v1", "kind": "Event",
            // One of each reason, until the host forgets it.
            "metadata": { "name": format!("kubezoo-{}-{}", TenantId::of_uid(uid), reason.to_lowercase()) },
            "involvedObject": { "apiVersion": API_VERSION, "kind": "Tenant", "name": name, "uid": uid },
            "type": "Warning", "reason": reason, "message": message, "count": 1,
            "firstTimestamp": now, "lastTimestamp": now,
            "source": { "component": "kubewharf-zoo" }, "reportingComponent": "kubewharf-zoo",
        });
        let path = "/api/v1/namespaces/default/events";
        match self.upstream.own(Method::POST, path, &event, OWN_ANSWER_BYTES_MAX).await {
            Err(error) if error.status() == Some(StatusCode::CONFLICT) => Ok(()),
            done => done.map(drop),
        }
    }

    /// Writes whether the tenant can be used, if the kind has a place for it.
    async fn set_online(&self, object: &Object, is_online: bool) -> Result<(), UpstreamError> {
        if object.status.get("online").and_then(Value::as_bool).unwrap_or_default() == is_online {
            return Ok(());
        }
        let target = format!("{PATH}/{}", object.metadata.name);
        let patch = json!({ "metadata": { "uid": object.metadata.uid }, "status": { "online": is_online } });
        let is_absent = |error: &UpstreamError| error.status() == Some(StatusCode::NOT_FOUND);
        let mut done = self.upstream.own_merge(&format!("{target}/status"), &patch, OWN_ANSWER_BYTES_MAX).await;
        if done.as_ref().is_err_and(is_absent) {
            // The kind may have no status of its own; what it doesn't know is left out.
            done = self.upstream.own_merge(&target, &patch, OWN_ANSWER_BYTES_MAX).await;
        }
        match done {
            // Gone, or another one of its name now.
            Err(error) if is_absent(&error) || error.status() == Some(StatusCode::CONFLICT) => Ok(()),
            done => done.map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_is_only_taken_for_an_objects_own_by_its_uid() {
        let object: Object = serde_json::from_value(
            json!({ "metadata": { "name": "a", "uid": "1" }, "spec": { "id": 7, "quota": { "hard": {} } } }),
        )
        .expect("an object");
        let tenant = |owner: Option<&str>, ends: bool| -> TenantObject {
            let owners: Vec<Value> = owner
                .iter()
                .map(|uid| json!({ "apiVersion": API_VERSION, "kind": "Tenant", "name": "a", "uid": uid }))
                .collect();
            let ends = ends.then_some("2026-11-26T00:00:00Z");
            let metadata = json!({ "name": "a", "ownerReferences": owners, "deletionTimestamp": ends });
            serde_json::from_value(json!({ "metadata": metadata, "status": { "phase": "Active" } })).expect("a tenant")
        };
        assert_eq!(judge(&object, None), Verdict::Make);
        assert_eq!(judge(&object, Some(&tenant(Some("1"), false))), Verdict::Own { is_ready: true });
        assert_eq!(judge(&object, Some(&tenant(Some("2"), false))), Verdict::NameTaken);
        assert_eq!(judge(&object, Some(&tenant(None, false))), Verdict::NameTaken);
        assert_eq!(judge(&object, Some(&tenant(Some("1"), true))), Verdict::Wait);
        let spec = json!({ "quota": { "hard": { "pods": "5" } } });
        let greedy = Object { spec, ..object };
        assert_eq!(judge(&greedy, None), Verdict::QuotaWanted);
        assert_eq!(judge(&greedy, Some(&tenant(Some("1"), false))), Verdict::Own { is_ready: true });
    }
}
