//! A real kube-apiserver on a KubeBrain, with one object to read and a rule that lets the benchmark's user read it.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use kubewharf_testkit::folder::Folder;
use kubewharf_testkit::kubernetes::Apiserver;
use kubewharf_testkit::store::Store;
use serde_json::json;

use super::requests;
use super::tls::USER;
use crate::tls::Files;

/// A name in its certificate.
pub const HOST: &str = "localhost";
/// The object.
pub const OBJECT: &str = "/api/v1/namespaces/default/configmaps/object";

/// The kube-apiserver. Dropping it ends it and its store.
pub struct RealApiserver {
    // In the order in which they end.
    apiserver: Apiserver,
    _store: Store,
    /// Whom it obeys, and who has signed what it shows.
    pub files: Files,
}

impl RealApiserver {
    /// Starts it; files go into that folder.
    ///
    /// # Errors
    /// When its program is missing, or it does not get ready.
    pub fn start(folder: &Folder) -> Result<Self> {
        let store = Store::brain::<&str>(&[])?;
        let apiserver = Apiserver::start::<&str>(&store.url(), &[])?;
        let identity = apiserver.authority().client(folder, "proxy-of-apiserver", "system:masters")?;
        let files = Files {
            certificate: identity.certificate_path,
            key: identity.key_path,
            authority: apiserver.authority().certificate_path().to_owned(),
        };
        let client = apiserver.client();
        let text = String::from_utf8_lossy(&requests::text(requests::SMALL_BYTES / 2)).into_owned();
        let object =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "object"}, "data": {"text": text}});
        client.post("/api/v1/namespaces/default/configmaps", &object)?.ok()?;
        // Not "view" or the like: those are put together by a controller, which does not run here.
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "benchmark"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": USER}],
        });
        client.post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding)?.ok()?;
        Ok(Self { apiserver, _store: store, files })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// Never: it is an address.
    pub fn address(&self) -> Result<SocketAddr> {
        self.apiserver.url().trim_start_matches("https://").parse().context("an address")
    }

    /// Its process number.
    pub fn id(&self) -> u32 {
        self.apiserver.id()
    }
}
