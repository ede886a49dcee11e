//! What an administrator of the host does with tenants, from anywhere that reaches the host's apiserver and zoo.
//!
//! Invariant: keys are made here and stay here.

use std::path::Path;
use std::time::Duration;

use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::admin::{CertificateAnswer, CertificateRequest, certificate_path};
use crate::certificates::{self, CertificateError};
use crate::kubeconfig::{Kubeconfig, KubeconfigError};
use crate::limits::OWN_ANSWER_BYTES_MAX;
use crate::names::Names;
use crate::tenant::{FINALIZER, GROUP, TENANTS_PATH, is_tenant_name};
use crate::upstream::{Upstream, UpstreamError};
use crate::zoo::INFORMATION_PATH;

/// How often it is looked whether a tenant is gone.
const LOOK: Duration = Duration::from_millis(200);

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
pub enum AdministratorError {
    /// The kubeconfig can't be used.
    #[error("--upstream-kubeconfig: {0}")]
    Kubeconfig(#[from] KubeconfigError),
    /// What it says can't be used.
    #[error("--upstream-kubeconfig: {0}")]
    Settings(#[from] kubewharf_upstream::SettingsError),
    /// The host's apiserver, or zoo, does not do it.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// No key can be made.
    #[error("can't make a key: {0}")]
    Key(#[from] CertificateError),
    /// No tenant can have this name.
    #[error(
        "{0:?} can't be a tenant's name: it must have lower-case letters, digits, - and . only, as names of objects have"
    )]
    Name(String),
    /// There is no such tenant.
    #[error("there is no tenant {0:?}")]
    NotFound(String),
    /// No zoo has told where it is.
    #[error("no zoo serves this host: the ConfigMap kubewharf-zoo is not in kube-system")]
    NoZoo,
}

/// A tenant, as it is listed.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Active, Deleting, or empty if zoo has not seen it yet.
    pub phase: String,
    /// When it was made, as Kubernetes writes it.
    pub created: String,
    /// What the names of its namespaces begin with upstream.
    pub prefix: String,
}

/// Whose kubeconfig is wanted.
#[derive(Clone, Debug)]
pub struct TenantKubeconfig {
    /// The tenant's name.
    pub tenant: String,
    /// The user within the tenant.
    pub user: String,
    /// The user's groups within the tenant.
    pub groups: Vec<String>,
    /// How long its certificate lasts.
    pub lifetime: Duration,
    /// Where the tenant's API is, if it is not where zoo says.
    pub server: Option<String>,
}

/// An administrator of the host.
pub struct Administrator {
    host: Kubeconfig,
    upstream: Upstream,
}

#[derive(Deserialize)]
struct Tenants {
    items: Vec<Tenant>,
}

#[derive(Deserialize)]
struct Tenant {
    metadata: Metadata,
    #[serde(default)]
    status: TenantStatus,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: String,
    uid: String,
    creation_timestamp: String,
    #[serde(default)]
    finalizers: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct TenantStatus {
    phase: String,
    conditions: Vec<Condition>,
}

#[derive(Deserialize)]
struct Condition {
    message: String,
}

#[derive(Deserialize)]
struct Information {
    data: InformationData,
}

#[derive(Deserialize)]
struct InformationData {
    server: String,
    admin: String,
    #[serde(rename = "ca.crt")]
    authorities: String,
}

impl Administrator {
    /// Whom this kubeconfig names.
    ///
    /// # Errors
    /// When it can't be used.
    pub fn new(upstream_kubeconfig: &Path) -> Result<Self, AdministratorError> {
        let host = Kubeconfig::read(upstream_kubeconfig)?;
        let upstream = Upstream::new(&host)?;
        Ok(Self { host, upstream })
    }

    /// Makes a tenant.
    ///
    /// # Errors
    /// When the host's apiserver refuses, such as if there is one of this name.
    pub async fn create(&self, name: &str) -> Result<(), AdministratorError> {
        check_name(name)?;
        let object = json!({
            "apiVersion": format!("{GROUP}/v1"), "kind": "Tenant",
            "metadata": { "name": name, "finalizers": [FINALIZER] }, "spec": {},
        });
        self.upstream.own(Method::POST, TENANTS_PATH, &object, OWN_ANSWER_BYTES_MAX).await?;
        Ok(())
    }

    /// All tenants.
    ///
    /// # Errors
    /// When the host's apiserver can't be asked.
    pub async fn list(&self) -> Result<Vec<Listed>, AdministratorError> {
        let found: Tenants = self.upstream.own_json(Method::GET, TENANTS_PATH, &Value::Null, usize::MAX).await?;
        Ok(found
            .items
            .into_iter()
            .map(|tenant| Listed {
                prefix: Names::of_uid(&tenant.metadata.uid).prefix().to_owned(),
                name: tenant.metadata.name,
                phase: tenant.status.phase,
                created: tenant.metadata.creation_timestamp,
            })
            .collect())
    }

    /// A kubeconfig (YAML) with a new key, whose certificate zoo signs.
    ///
    /// # Errors
    /// When there is no such tenant, or no zoo that this administrator may ask.
    pub async fn kubeconfig(&self, wanted: TenantKubeconfig) -> Result<String, AdministratorError> {
        check_name(&wanted.tenant)?;
        let information: Result<Information, _> =
            self.upstream.own_json(Method::GET, INFORMATION_PATH, &Value::Null, OWN_ANSWER_BYTES_MAX).await;
        let InformationData { server, admin, authorities } = match information {
            Ok(information) => information.data,
            Err(error) if error.status() == Some(StatusCode::NOT_FOUND) => return Err(AdministratorError::NoZoo),
            Err(error) => return Err(error.into()),
        };
        let zoo = Upstream::new(&Kubeconfig {
            server: admin,
            authorities: Some(authorities.into_bytes()),
            server_name: None,
            ..self.host.clone()
        })?;
        let (key, request) = certificates::request()?;
        let request = CertificateRequest {
            request,
            user: wanted.user.clone(),
            groups: wanted.groups,
            seconds: wanted.lifetime.as_secs(),
        };
        let request = serde_json::to_value(request).expect("texts and a number");
        let path = certificate_path(&wanted.tenant);
        let answer: Result<CertificateAnswer, _> =
            zoo.own_json(Method::POST, &path, &request, OWN_ANSWER_BYTES_MAX).await;
        let answer = match answer {
            Err(error) if error.status() == Some(StatusCode::NOT_FOUND) => {
                return Err(AdministratorError::NotFound(wanted.tenant));
            }
            answer => answer?,
        };
        let kubeconfig = Kubeconfig {
            server: wanted.server.unwrap_or(server),
            authorities: Some(answer.authorities.into_bytes()),
            server_name: None,
            certificate: Some((answer.certificate.into_bytes(), key.into_bytes())),
            token: None,
        };
        Ok(kubeconfig.to_yaml(&wanted.tenant, &wanted.user))
    }

    /// Asks for the end of a tenant.
    ///
    /// # Errors
    /// When there is none, or the host's apiserver refuses.
    pub async fn delete(&self, name: &str) -> Result<(), AdministratorError> {
        check_name(name)?;
        match self.upstream.own(Method::DELETE, &path(name), &Value::Null, OWN_ANSWER_BYTES_MAX).await {
            Ok(_) => Ok(()),
            Err(error) if error.status() == Some(StatusCode::NOT_FOUND) => {
                Err(AdministratorError::NotFound(name.to_owned()))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until a tenant is gone, and tells now and then what holds it.
    pub async fn gone(&self, name: &str, mut tell: impl FnMut(&str)) {
        let mut told = String::new();
        loop {
            let target = path(name);
            let found: Result<Tenant, _> =
                self.upstream.own_json(Method::GET, &target, &Value::Null, OWN_ANSWER_BYTES_MAX).await;
            match found {
                Err(error) if error.status() == Some(StatusCode::NOT_FOUND) => return,
                Ok(tenant) => {
                    let held = tenant.held();
                    if !held.is_empty() && held != told {
                        tell(&held);
                        told = held;
                    }
                }
                // It may come back.
                Err(_) => {}
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Tenant {
    /// What it waits for on its way out: what zoo says; and others' finalizers on its object, when zoo's own is gone.
    fn held(&self) -> String {
        let finalizers = &self.metadata.finalizers;
        if !finalizers.is_empty() && !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
            return format!("waiting for who has put finalizers on the Tenant object: {}", finalizers.join(", "));
        }
        let ready = self.status.conditions.first().filter(|_| self.status.phase == "Deleting");
        ready.map(|condition| condition.message.clone()).unwrap_or_default()
    }
}

fn path(name: &str) -> String {
    format!("{TENANTS_PATH}/{name}")
}

fn check_name(name: &str) -> Result<(), AdministratorError> {
    if is_tenant_name(name) { Ok(()) } else { Err(AdministratorError::Name(name.to_owned())) }
}
