//! Follows the `Tenant` objects upstream and brings about what they ask for.
//!
//! Invariant: what is known only helps; a tenant whose object was not seen yet is looked up when its credential comes
//! ([`Tenants::find`]). So a gap in the watch delays nothing.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::limits::{OWN_ANSWER_BYTES_MAX, PROVISION_DELAY};
use crate::names::{Names, TenantId};
use crate::upstream::{Upstream, UpstreamError};

use super::events::{Event, Events};
use super::{FINALIZER, FIRST_NAMESPACES, Metadata, TENANT_LABEL, TENANTS_PATH, TenantObject, Tenants};

/// Objects in a page of a list.
const PAGE: usize = 500;
/// Pause before what failed is tried again.
const PAUSE: Duration = Duration::from_millis(500);
/// Longest pause before what failed for one tenant is tried again.
const PAUSE_MAX: Duration = Duration::from_secs(60);

#[derive(Deserialize)]
struct List<T> {
    #[serde(default)]
    metadata: ListMetadata,
    items: Vec<T>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ListMetadata {
    resource_version: String,
    #[serde(rename = "continue")]
    next: String,
}

#[derive(Deserialize)]
struct Partial {
    metadata: Metadata,
}

/// What is kept of a tenant's namespace.
struct Found {
    name: Box<str>,
    /// What its label says.
    uid: Box<str>,
    is_ending: bool,
}

impl Found {
    /// None if its name is no tenant's.
    fn of(mut metadata: Metadata) -> Option<Self> {
        TenantId::split(&metadata.name)?;
        let uid = metadata.labels.remove(TENANT_LABEL).unwrap_or_default().into_boxed_str();
        Some(Self { name: metadata.name.into(), uid, is_ending: metadata.deletion_timestamp.is_some() })
    }
}

/// All objects at a path; and the version they were read at.
pub(super) async fn list<T: serde::de::DeserializeOwned>(
    upstream: &Upstream,
    path: &str,
) -> Result<(Vec<T>, String), UpstreamError> {
    let mut all = Vec::new();
    let version = list_each(upstream, path, |object| all.push(object)).await?;
    Ok((all, version))
}

/// Hands on all objects at a path, page by page, so that no more of them is kept than is wanted; the version they were read at.
async fn list_each<T: serde::de::DeserializeOwned>(
    upstream: &Upstream,
    path: &str,
    mut each: impl FnMut(T),
) -> Result<String, UpstreamError> {
    let mut next = String::new();
    loop {
        let mark = if path.contains('?') { '&' } else { '?' };
        let target = format!("{path}{mark}limit={PAGE}&continue={next}");
        let page: List<T> = upstream.own_json(Method::GET, &target, &Value::Null, usize::MAX).await?;
        page.items.into_iter().for_each(&mut each);
        if page.metadata.next.is_empty() {
            return Ok(page.metadata.resource_version);
        }
        next = page.metadata.next;
    }
}

impl Tenants {
    /// Follows the objects for as long as it is polled.
    pub(crate) async fn follow(self: Arc<Self>) -> std::convert::Infallible {
        let mut terms = self.leadership.terms();
        loop {
            tokio::select! {
                done = self.follow_once() => if let Err(error) = done {
                    tracing::warn!(%error, "the tenants can't be followed; trying again");
                },
                // Whoever begins to lead looks at all of them, for what the one before has left.
                _ = terms.changed() => continue,
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn follow_once(self: &Arc<Self>) -> Result<(), UpstreamError> {
        // What there is of tenants first, then whose it is: whoever is not among the tenants then is gone.
        let label = TENANT_LABEL.replace('/', "%2F");
        let namespaces = format!("/api/v1/namespaces?labelSelector={label}");
        let bindings = format!("/apis/rbac.authorization.k8s.io/v1/rolebindings?labelSelector={label}");
        let mut there = Vec::new();
        list_each(&self.upstream, &namespaces, |object: Partial| there.extend(Found::of(object.metadata))).await?;
        let mut bound = HashSet::new();
        list_each(&self.upstream, &bindings, |object: Partial| {
            bound.insert(object.metadata.namespace.into_boxed_str());
        })
        .await?;
        let (namespaces, bindings) = (there, bound);
        let (objects, version): (Vec<TenantObject>, _) = list(&self.upstream, TENANTS_PATH).await?;
        let there: HashSet<TenantId> = objects.iter().map(|object| TenantId::of_uid(&object.metadata.uid)).collect();
        self.by_id.write().retain(|id, _| there.contains(id));
        for object in &objects {
            self.insert(object);
        }
        self.are_known.store(true, Ordering::Release);
        self.find_namespaces(&namespaces, &bindings).await?;
        for object in objects {
            self.bring_about(object);
        }
        self.look_at_endpoints_again();
        let mut version = version;
        loop {
            let mut events = Events::open(&self.upstream, TENANTS_PATH, &version).await?;
            while let Some(line) = events.next().await? {
                match self.take_event(&line).map_err(|error| events.wrong(&error))? {
                    Some(newer) => version = newer,
                    None => return Ok(()),
                }
            }
        }
    }

    /// The version of the event; none if the list must be read again.
    fn take_event(self: &Arc<Self>, line: &[u8]) -> Result<Option<String>, serde_json::Error> {
        let event: Event<'_> = serde_json::from_slice(line)?;
        if event.kind == "ERROR" {
            tracing::info!(status = event.object.get(), "the watch of tenants ends");
            return Ok(None);
        }
        let object: TenantObject = serde_json::from_str(event.object.get())?;
        let version = object.metadata.resource_version.clone();
        match event.kind {
            "ADDED" | "MODIFIED" => {
                self.insert(&object);
                self.bring_about(object);
            }
            "DELETED" => {
                self.kubezoo.tenant_has_changed(&object.metadata.name);
                let id = TenantId::of_uid(&object.metadata.uid);
                self.remove(id);
                if let Some(next) = self.busy.lock().get_mut(&id) {
                    *next = None;
                }
            }
            _ => {}
        }
        Ok(Some(version))
    }

    /// Learns which namespaces there are already, so that they are not made again; finishes those that were left half made.
    async fn find_namespaces(&self, namespaces: &[Found], bound: &HashSet<Box<str>>) -> Result<(), UpstreamError> {
        for Found { name, uid, is_ending } in namespaces {
            let Some((id, _)) = TenantId::split(name) else { continue };
            let Some(tenant) = self.by_id(id) else {
                // By its label and its name, it was a tenant's that is gone.
                let is_orphan = TenantId::of_uid(uid) == id && !is_ending;
                if is_orphan && self.leadership.leads() {
                    tracing::info!(namespace = %name, "a namespace has outlived its tenant, and is deleted");
                    self.delete_namespace(name).await?;
                }
                continue;
            };
            let Some(own) = tenant.names.outward(name) else { continue };
            if **uid != *tenant.names.uid() {
                continue;
            }
            if !bound.contains(name) {
                if !is_ending && !tenant.is_ending && self.leadership.leads() {
                    tracing::info!(namespace = %name, "a namespace that was left half made is finished");
                    self.bind(&tenant, own).await?;
                } else {
                    continue;
                }
            }
            if let Some(place) = FIRST_NAMESPACES.iter().position(|first| *first == own) {
                // Already set by a request that came meanwhile: as well.
                let _ = tenant.first[place].set(None);
            }
        }
        Ok(())
    }

    /// Makes, in the background, what a tenant has from the beginning; or takes away what one has that is on its way out. One thing at a time
    /// for each tenant, and then what it has become meanwhile. Only the leader does.
    fn bring_about(self: &Arc<Self>, object: TenantObject) {
        if object.is_of_kubezoo() {
            self.kubezoo.tenant_has_changed(&object.metadata.name);
        }
        let id = TenantId::of_uid(&object.metadata.uid);
        if let Some(next) = self.busy.lock().get_mut(&id) {
            *next = Some(object);
            return;
        }
        if self.is_as_it_should_be(&object) || !self.leadership.leads() {
            return;
        }
        self.busy.lock().insert(id, None);
        let this = self.clone();
        tokio::spawn(async move {
            let mut object = object;
            let mut pause = PAUSE;
            loop {
                let done = if object.metadata.deletion_timestamp.is_some() {
                    this.take_away(&object).await
                } else {
                    this.make(&object).await
                };
                let has_failed = done.is_err();
                if let Err(error) = done {
                    tracing::warn!(tenant = object.metadata.name, %error, "the tenant is not as it should be yet; trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
                let is_still_wanted = has_failed && this.leadership.leads() && this.by_id(id).is_some();
                let mut busy = this.busy.lock();
                match busy.get_mut(&id).and_then(Option::take) {
                    Some(next) => (object, pause) = (next, PAUSE),
                    None if is_still_wanted => {}
                    None => {
                        busy.remove(&id);
                        return;
                    }
                }
            }
        });
    }

    /// Whether there is nothing to do for a tenant.
    fn is_as_it_should_be(&self, object: &TenantObject) -> bool {
        let has_finalizer = object.metadata.finalizers.iter().any(|finalizer| finalizer == FINALIZER);
        if object.metadata.deletion_timestamp.is_some() {
            return !has_finalizer;
        }
        let tenant = self.by_id(TenantId::of_uid(&object.metadata.uid));
        has_finalizer && object.status.phase == "Active" && tenant.is_none_or(|tenant| tenant.is_complete())
    }

    async fn make(self: &Arc<Self>, object: &TenantObject) -> Result<(), UpstreamError> {
        // Whoever made the tenant goes first: what a first request needs, it makes itself.
        tokio::time::sleep(PROVISION_DELAY).await;
        let Some(tenant) = self.by_id(TenantId::of_uid(&object.metadata.uid)) else { return Ok(()) };
        if tenant.is_ending || !self.leadership.leads() {
            return Ok(());
        }
        self.ensure_all_later(&tenant).await?;
        let _permit = self.provisions.acquire().await.expect("it is never closed");
        self.let_requests_pass().await;
        if !self.leadership.leads() {
            return Ok(());
        }
        if !object.metadata.finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
            let mut finalizers = object.metadata.finalizers.clone();
            finalizers.push(FINALIZER.to_owned());
            self.patch(
                object,
                "",
                &json!({ "metadata": {
                    "finalizers": finalizers, "resourceVersion": object.metadata.resource_version,
                }}),
            )
            .await?;
        }
        if object.status.phase != "Active" {
            self.make_service(&tenant).await?;
            self.make_endpoints(&tenant).await;
            self.set_phase(object, &tenant.names, "Active", ("True", "Provisioned", "its namespaces are there"))
                .await?;
        }
        Ok(())
    }

    pub(super) async fn set_phase(
        &self,
        object: &TenantObject,
        names: &Names,
        phase: &str,
        (status, reason, message): (&str, &str, &str),
    ) -> Result<(), UpstreamError> {
        let now = crate::time::rfc3339(crate::time::now());
        self.patch(
            object,
            "/status",
            &json!({ "status": {
                "phase": phase, "id": names.id().as_str(),
                "conditions": [{
                    "type": "Ready", "status": status, "reason": reason, "message": message, "lastTransitionTime": now,
                }],
            }}),
        )
        .await
    }

    pub(super) async fn patch(
        &self,
        object: &TenantObject,
        subresource: &str,
        patch: &Value,
    ) -> Result<(), UpstreamError> {
        let target = format!("{TENANTS_PATH}/{}{subresource}", object.metadata.name);
        match self.upstream.own_merge(&target, patch, OWN_ANSWER_BYTES_MAX).await {
            // Gone, or changed by somebody else, whose event comes.
            Err(error) if matches!(error.status(), Some(StatusCode::NOT_FOUND | StatusCode::CONFLICT)) => Ok(()),
            done => done.map(drop),
        }
    }
}
