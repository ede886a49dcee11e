//! A tenant's namespaces upstream: made with the tenant's label and the binding that lets its identity work there.
//!
//! Invariant: making one is idempotent, so that whoever finds it half made finishes it. A namespace of that name which is not the tenant's is
//! never touched.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::limits::{OWN_ANSWER_BYTES_MAX, PROVISION_YIELD, PROVISION_YIELDS_MAX};
use crate::upstream::UpstreamError;

use super::{BINDING, CLUSTER_ROLE, FIRST_NAMESPACES, Metadata, TENANT_LABEL, Tenant, Tenants, upstream_group};

#[derive(serde::Deserialize)]
struct Named {
    metadata: Metadata,
}

/// A request that waits for a namespace.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Tenants {
    /// Makes sure that one of the first namespaces is there, because a request needs it. Any other one is the tenant's own business.
    ///
    /// # Errors
    /// When the apiserver refuses, or can't be asked.
    pub async fn ensure(&self, tenant: &Tenant, namespace: &str) -> Result<(), UpstreamError> {
        let Some(place) = FIRST_NAMESPACES.iter().position(|first| *first == namespace) else { return Ok(()) };
        if tenant.first[place].initialized() || tenant.is_ending {
            return Ok(());
        }
        let _waiting = Waiting::begin(&self.waiting);
        self.ensure_first(tenant, place).await
    }

    /// Makes sure that all of them are, because a request needs them.
    ///
    /// # Errors
    /// When the apiserver refuses, or can't be asked.
    pub async fn ensure_all(&self, tenant: &Tenant) -> Result<(), UpstreamError> {
        if tenant.is_complete() || tenant.is_ending {
            return Ok(());
        }
        let _waiting = Waiting::begin(&self.waiting);
        let all = (0..FIRST_NAMESPACES.len()).map(|place| self.ensure_first(tenant, place));
        futures_util::future::try_join_all(all).await.map(drop)
    }

    /// The same in the background: few at once, and only while no request waits for any.
    pub(super) async fn ensure_all_later(&self, tenant: &Tenant) -> Result<(), UpstreamError> {
        for place in 0..FIRST_NAMESPACES.len() {
            if tenant.first[place].initialized() {
                continue;
            }
            let _permit = self.provisions.acquire().await.expect("it is never closed");
            self.let_requests_pass().await;
            self.ensure_first(tenant, place).await?;
        }
        Ok(())
    }

    /// Waits until no request waits for a namespace, but not for ever.
    pub(super) async fn let_requests_pass(&self) {
        for _ in 0..PROVISION_YIELDS_MAX {
            if self.waiting.load(Ordering::Relaxed) == 0 {
                return;
            }
            tokio::time::sleep(PROVISION_YIELD).await;
        }
    }

    async fn ensure_first(&self, tenant: &Tenant, place: usize) -> Result<(), UpstreamError> {
        if tenant.is_ending {
            return Ok(());
        }
        let namespace = FIRST_NAMESPACES[place];
        let made = tenant.first[place].get_or_try_init(|| async {
            self.make_namespace(tenant, namespace).await?;
            self.bind(tenant, namespace).await?;
            Ok(Some(Instant::now()))
        });
        made.await.map(drop)
    }

    /// Makes the Service by which every cluster's API is found.
    ///
    /// # Errors
    /// When the apiserver refuses, or can't be asked.
    pub(super) async fn make_service(&self, tenant: &Tenant) -> Result<(), UpstreamError> {
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": "kubernetes", "labels": { "component": "apiserver", "provider": "kubernetes" } },
            "spec": { "ports": [{ "name": "https", "port": 443, "protocol": "TCP", "targetPort": self.port }] },
        });
        let target =
            format!("/api/v1/namespaces/{}/services?fieldManager=kube-apiserver", tenant.names.inward("default"));
        match self.upstream.own(Method::POST, &target, &service, OWN_ANSWER_BYTES_MAX).await {
            Ok(_) => Ok(()),
            Err(error) if error.status() == Some(StatusCode::CONFLICT) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn make_namespace(&self, tenant: &Tenant, namespace: &str) -> Result<(), UpstreamError> {
        let name = tenant.names.inward(namespace);
        let object = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": { "name": name, "labels": { TENANT_LABEL: tenant.names.uid() } },
        });
        // Whoever looks finds the manager that every cluster's first namespaces have.
        let target = "/api/v1/namespaces?fieldManager=kube-apiserver";
        match self.upstream.own(Method::POST, target, &object, OWN_ANSWER_BYTES_MAX).await {
            Ok(_) => Ok(()),
            Err(error) if error.status() == Some(StatusCode::CONFLICT) => self.check_ownership(tenant, &name).await,
            Err(error) => Err(error),
        }
    }

    async fn check_ownership(&self, tenant: &Tenant, name: &str) -> Result<(), UpstreamError> {
        let path = format!("/api/v1/namespaces/{name}");
        let found: Named = self.upstream.own_json(Method::GET, &path, &Value::Null, OWN_ANSWER_BYTES_MAX).await?;
        if found.metadata.labels.get(TENANT_LABEL).is_some_and(|uid| uid == tenant.names.uid()) {
            return Ok(());
        }
        let problem = format!("it is not the tenant's: it has no label {TENANT_LABEL}={}", tenant.names.uid());
        Err(UpstreamError::Content { path, problem })
    }

    /// Lets the tenant's identity work in one of its namespaces.
    ///
    /// # Errors
    /// When the apiserver refuses, as it does if the namespace is gone or going, or can't be asked.
    pub async fn bind(&self, tenant: &Tenant, namespace: &str) -> Result<(), UpstreamError> {
        let upstream_namespace = tenant.names.inward(namespace);
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": { "name": BINDING, "labels": { TENANT_LABEL: tenant.names.uid() } },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": CLUSTER_ROLE },
            "subjects": [{
                "apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": upstream_group(tenant.names.id()),
            }],
        });
        let path = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{upstream_namespace}/rolebindings");
        match self.upstream.own(Method::POST, &path, &binding, OWN_ANSWER_BYTES_MAX).await {
            Ok(_) => Ok(()),
            Err(error) if error.status() == Some(StatusCode::CONFLICT) => Ok(()),
            // A quota may refuse another one although it is there.
            Err(error) if error.status() == Some(StatusCode::FORBIDDEN) => {
                let there = format!("{path}/{BINDING}");
                let found = self.upstream.own(Method::GET, &there, &Value::Null, OWN_ANSWER_BYTES_MAX).await;
                found.map(drop).map_err(|_| error)
            }
            Err(error) => Err(error),
        }
    }
}
