//! Tenants: who there is, and what each has upstream.
//!
//! A tenant exists by its `Tenant` object alone. Its first four namespaces are made at once in the background, and at the latest when a
//! request needs one of them.
//!
//! Invariant: a tenant is known by the UID of its object; a name is only how people call it. Everything upstream that is a tenant's carries
//! [`TENANT_LABEL`] with that UID, or lies in a namespace that does.

mod admission;
pub mod crd;
mod election;
mod ending;
mod endpoints;
mod events;
mod follow;
mod kubezoo;
mod leader;
mod lease;
pub(crate) mod mutation;
mod namespaces;
mod policies;
mod presence;
pub(crate) mod roots;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use http::Method;
use parking_lot::{Mutex, RwLock};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::{OnceCell, Semaphore};

use crate::limits::{BINDING_PATIENCE, ENDINGS_AT_ONCE, OWN_ANSWER_BYTES_MAX, PROVISIONS_AT_ONCE};
use crate::names::{Names, TenantId};
use crate::upstream::{Upstream, UpstreamError};

pub(crate) use endpoints::check_address;
pub(crate) use events::Events;
pub(crate) use leader::Leadership;

/// The group of zoo's own objects.
pub const GROUP: &str = "tenancy.kubewharf.io";
/// The label of what is a tenant's: the UID of its `Tenant`.
pub const TENANT_LABEL: &str = "tenancy.kubewharf.io/tenant";
/// The RoleBinding in each namespace of a tenant that lets its upstream identity work there.
pub const BINDING: &str = "tenancy.kubewharf.io";
/// The ClusterRole that it binds: what tenants can do in their namespaces, at most.
pub const CLUSTER_ROLE: &str = "tenancy.kubewharf.io:tenant";
/// The namespaces that every cluster has.
pub const FIRST_NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];
/// Where `Tenant` objects are.
pub const TENANTS_PATH: &str = "/apis/tenancy.kubewharf.io/v1/tenants";
/// Keeps a `Tenant` until all that is the tenant's is gone.
pub const FINALIZER: &str = "tenancy.kubewharf.io/tenant";

/// The group that a tenant's requests have upstream.
#[must_use]
pub fn upstream_group(id: TenantId) -> String {
    format!("tenancy.kubewharf.io:tenant:{id}")
}

/// A tenant.
pub struct Tenant {
    /// What people call it.
    pub name: Box<str>,
    /// Its names upstream.
    pub names: Names,
    /// Whether it is on its way out: nothing new is made for it.
    pub is_ending: bool,
    /// When its object was made, as Kubernetes writes it.
    pub created: Box<str>,
    /// The version of its object when it was first seen.
    pub version: Box<str>,
    /// Which of [`FIRST_NAMESPACES`] are there, with their binding, and when this zoo made that.
    first: [OnceCell<Option<Instant>>; FIRST_NAMESPACES.len()],
}

impl Tenant {
    pub(crate) fn new(object: &TenantObject) -> Self {
        Self {
            name: object.metadata.name.as_str().into(),
            names: Names::of_uid(&object.metadata.uid),
            is_ending: object.metadata.deletion_timestamp.is_some(),
            created: object.metadata.creation_timestamp.as_str().into(),
            version: object.metadata.resource_version.as_str().into(),
            first: Default::default(),
        }
    }

    /// Whether one of its first namespaces got its binding just now, so that the apiserver's authorizer may not have heard of it.
    pub(crate) fn is_just_bound(&self, namespace: &str) -> bool {
        let place = FIRST_NAMESPACES.iter().position(|first| *first == namespace);
        let made = place.and_then(|place| *self.first[place].get()?);
        made.is_some_and(|made| made.elapsed() < BINDING_PATIENCE)
    }

    /// Whether its first namespaces are all there.
    fn is_complete(&self) -> bool {
        self.first.iter().all(OnceCell::initialized)
    }
}

/// What is read of a `Tenant` object.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct TenantObject {
    pub(crate) metadata: Metadata,
    #[serde(default)]
    pub(crate) status: TenantStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct TenantStatus {
    #[serde(default)]
    pub(crate) phase: String,
}

/// What is read of an object's metadata.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Metadata {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) uid: String,
    pub(crate) resource_version: String,
    pub(crate) creation_timestamp: String,
    pub(crate) deletion_timestamp: Option<String>,
    pub(crate) finalizers: Vec<String>,
    pub(crate) labels: HashMap<String, String>,
    pub(crate) owner_references: Vec<OwnerReference>,
}

/// What is read of an object's owner.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct OwnerReference {
    pub(crate) api_version: String,
    pub(crate) uid: String,
}

/// All tenants that are known.
pub struct Tenants {
    upstream: Arc<Upstream>,
    /// At which tenants' API is served.
    port: u16,
    by_id: RwLock<HashMap<TenantId, Arc<Tenant>>>,
    are_known: AtomicBool,
    policies: policies::Policies,
    leadership: Arc<Leadership>,
    /// Where tenants are told that their API is.
    addresses: endpoints::Addresses,
    kubezoo: kubezoo::KubeZoo,
    /// Bounds what is made in the background at once.
    provisions: Semaphore,
    /// Bounds what is looked at and deleted in the background at once.
    endings: Semaphore,
    /// Requests that wait for a namespace to be made.
    waiting: AtomicUsize,
    /// Tenants that something is done for in the background, and what is to be done next if they have changed meanwhile.
    busy: Mutex<HashMap<TenantId, Option<TenantObject>>>,
}

impl Tenants {
    /// Those of the host behind `upstream`, which find their API at this port of the zoo of this name.
    pub(crate) fn new(upstream: Arc<Upstream>, port: u16, me: String) -> Arc<Self> {
        Arc::new(Self {
            upstream,
            port,
            by_id: RwLock::default(),
            are_known: AtomicBool::new(false),
            policies: policies::Policies::default(),
            leadership: Arc::new(Leadership::new(me)),
            addresses: endpoints::Addresses::default(),
            kubezoo: kubezoo::KubeZoo::default(),
            provisions: Semaphore::new(PROVISIONS_AT_ONCE),
            endings: Semaphore::new(ENDINGS_AT_ONCE),
            waiting: AtomicUsize::new(0),
            busy: Mutex::default(),
        })
    }

    /// Whether this zoo does what nobody waits for.
    pub(crate) fn leadership(&self) -> &Arc<Leadership> {
        &self.leadership
    }

    /// The tenant of this id, if it is known here.
    #[must_use]
    pub fn by_id(&self, id: TenantId) -> Option<Arc<Tenant>> {
        self.by_id.read().get(&id).cloned()
    }

    /// Whether all that there were at the start are known.
    #[must_use]
    pub fn are_known(&self) -> bool {
        self.are_known.load(Ordering::Acquire)
    }

    /// How many are known.
    #[must_use]
    pub fn count(&self) -> usize {
        self.by_id.read().len()
    }

    /// The tenant whose object has this UID, looked up by its name if it is not known yet: its object may be just made.
    ///
    /// # Errors
    /// When the apiserver can't be asked.
    pub async fn find(&self, uid: &str, name: &str) -> Result<Option<Arc<Tenant>>, UpstreamError> {
        if let Some(tenant) = self.by_id(TenantId::of_uid(uid)) {
            return Ok((*tenant.names.uid() == *uid).then_some(tenant));
        }
        Ok(self.fetch(name).await?.filter(|tenant| *tenant.names.uid() == *uid))
    }

    /// The tenant of this name, as the apiserver has it now.
    ///
    /// # Errors
    /// When the apiserver can't be asked.
    pub async fn fetch(&self, name: &str) -> Result<Option<Arc<Tenant>>, UpstreamError> {
        if !is_tenant_name(name) {
            return Ok(None);
        }
        let target = format!("{TENANTS_PATH}/{name}");
        match self.upstream.own_json::<TenantObject>(Method::GET, &target, &Value::Null, OWN_ANSWER_BYTES_MAX).await {
            Ok(object) => Ok(Some(self.insert(&object))),
            Err(error) if error.status() == Some(http::StatusCode::NOT_FOUND) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes an object in; the same tenant keeps what is known of it.
    fn insert(&self, object: &TenantObject) -> Arc<Tenant> {
        let mut new = Tenant::new(object);
        let mut by_id = self.by_id.write();
        let known = by_id.get(&new.names.id());
        if let Some(known) = known
            && known.names == new.names
            && known.is_ending == new.is_ending
        {
            return known.clone();
        }
        if let Some(known) = known {
            new.version.clone_from(&known.version);
        }
        let new = Arc::new(new);
        if let Some(known) = known {
            for (cell, known) in new.first.iter().zip(&known.first) {
                if let Some(made) = known.get() {
                    // It is new, so this can't fail.
                    let _ = cell.set(*made);
                }
            }
        }
        by_id.insert(new.names.id(), new.clone());
        new
    }

    fn remove(&self, id: TenantId) {
        self.by_id.write().remove(&id);
    }
}

/// Whether a `Tenant` can have this name: it then fits in a path, a certificate and a label.
#[must_use]
pub fn is_tenant_name(name: &str) -> bool {
    let ends = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    name.len() <= 253 && ends(name.bytes().next()) && ends(name.bytes().last()) && name.bytes().all(fits)
}
