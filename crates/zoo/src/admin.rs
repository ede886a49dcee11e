//! What administrators of the host ask zoo itself for: certificates for tenants, health, metrics.
//!
//! An administrator is whom the apiserver behind knows: by a certificate of the authority that it trusts itself, or by a token that it judges;
//! and may what the apiserver allows. A tenant's credential is none of these.
//!
//! Invariant: but for health, nothing is answered that the apiserver behind did not allow for this user.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use kubewharf_foundation::tls::Identity;
use kubewharf_front::{Inbound, Service};
use kubewharf_kube_api::Status;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::certificates::{Authority, LIFETIME_MAX, Subject};
use crate::limits::{BODY_TIMEOUT, OWN_ANSWER_BYTES_MAX};
use crate::metrics::Metrics;
use crate::proxy::{Body, json as json_response, respond};
use crate::tenant::{GROUP, Tenant, Tenants};
use crate::upstream::Upstream;

/// Longest body of a request, in bytes.
const REQUEST_BYTES_MAX: usize = 64 << 10;

/// The path that signs certificates of a tenant, with its name for the dots.
#[must_use]
pub fn certificate_path(tenant: &str) -> String {
    format!("/tenants/{tenant}/certificate")
}

/// What is asked for at [`certificate_path`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CertificateRequest {
    /// A PKCS #10 request (PEM), whose key is signed.
    pub request: String,
    /// The user within the tenant.
    pub user: String,
    /// The user's groups within the tenant.
    pub groups: Vec<String>,
    /// How long it shall last, in seconds; at most a day.
    pub seconds: u64,
}

/// The answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CertificateAnswer {
    /// The certificate (PEM).
    pub certificate: String,
    /// Where the tenant's API is.
    pub server: String,
    /// Whose certificate it shows there (PEM).
    pub authorities: String,
}

/// What all administrators' connections share.
pub(crate) struct Admin {
    pub(crate) tenants: Arc<Tenants>,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) authority: Arc<Authority>,
    pub(crate) metrics: Arc<Metrics>,
    /// Where tenants find their API.
    pub(crate) server: String,
}

/// An administrator's connection.
pub(crate) struct AdminClient {
    pub(crate) admin: Arc<Admin>,
    pub(crate) identity: Option<Identity>,
    pub(crate) address: SocketAddr,
}

/// Who asks, as the apiserver behind knows it.
#[derive(Debug, Default, Deserialize)]
struct Caller {
    username: String,
    #[serde(default)]
    groups: Vec<String>,
}

impl Service for AdminClient {
    type Body = Body;

    async fn serve(self: Arc<Self>, request: Request<Inbound>) -> Response<Body> {
        self.try_answer(request).await.unwrap_or_else(|status| {
            tracing::info!(address = %self.address, code = status.code, message = %status.message, "an administrator is refused");
            respond(&status)
        })
    }

    fn unread_timeout(body: &Body) -> Option<Duration> {
        Some(body.unread_timeout())
    }
}

impl AdminClient {
    async fn try_answer(&self, request: Request<Inbound>) -> Result<Response<Body>, Box<Status>> {
        let path = request.uri().path().to_owned();
        let (head, mut incoming) = request.into_parts();
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        match (&head.method, parts.as_slice()) {
            (&Method::GET, ["livez" | "healthz"]) => Ok(text("ok")),
            (&Method::GET, ["readyz"]) => self.admin.ready().await.map(|()| text("ok")),
            (&Method::GET, ["metrics"]) => {
                let caller = self.caller(&head.headers).await?;
                self.admin
                    .check(&caller, &json!({ "nonResourceAttributes": { "path": "/metrics", "verb": "get" } }))
                    .await?;
                Ok(text(&self.admin.metrics.render()))
            }
            (&Method::POST, ["tenants", name, "certificate"]) => {
                let caller = self.caller(&head.headers).await?;
                let attributes = json!({ "resourceAttributes": {
                    "group": GROUP, "resource": "tenants", "subresource": "certificate", "verb": "create", "name": name,
                }});
                // Both at once; what is found is told only if it may be.
                let (may, found) = tokio::join!(self.admin.check(&caller, &attributes), self.admin.tenants.fetch(name));
                may?;
                let found = found.map_err(|error| Box::new(error.to_client()))?;
                let late = |_| Box::new(Status::request_timeout("the body of the request did not come in time"));
                let body = tokio::time::timeout(BODY_TIMEOUT, incoming.whole(REQUEST_BYTES_MAX)).await.map_err(late)?;
                let body = body.map_err(|error| Box::new(Status::bad_request(error.to_string())))?;
                self.admin.sign(name, found.as_deref(), &body)
            }
            _ => Err(Box::new(Status::not_found("there is no such page; there are /livez, /readyz and /metrics"))),
        }
    }

    /// Who asks: by certificate, or by token.
    async fn caller(&self, headers: &http::HeaderMap) -> Result<Caller, Box<Status>> {
        if let Some(identity) = &self.identity {
            let mut groups = identity.organizations.clone();
            groups.push("system:authenticated".into());
            return Ok(Caller { username: identity.common_name.clone(), groups });
        }
        let token = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        let token = token.ok_or_else(|| Box::new(Status::unauthorized()))?;
        let review =
            json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": { "token": token } });
        let status = self.admin.review("/apis/authentication.k8s.io/v1/tokenreviews", &review).await?;
        if status.get("authenticated") != Some(&Value::Bool(true)) {
            return Err(Box::new(Status::unauthorized()));
        }
        let user = status.get("user").cloned().unwrap_or_default();
        serde_json::from_value(user).map_err(|_| Box::new(Status::unauthorized()))
    }
}

impl Admin {
    async fn ready(&self) -> Result<(), Box<Status>> {
        let answer = self.upstream.own(Method::GET, "/readyz", &Value::Null, OWN_ANSWER_BYTES_MAX).await;
        answer
            .map(drop)
            .map_err(|error| Box::new(Status::service_unavailable(format!("the apiserver behind: {error}"))))
    }

    /// Whether the apiserver behind allows it.
    async fn check(&self, caller: &Caller, attributes: &Value) -> Result<(), Box<Status>> {
        let mut spec = attributes.clone();
        spec["user"] = caller.username.as_str().into();
        spec["groups"] = caller.groups.clone().into();
        let review = json!({ "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec });
        let status = self.review("/apis/authorization.k8s.io/v1/subjectaccessreviews", &review).await?;
        if status.get("allowed") == Some(&Value::Bool(true)) {
            return Ok(());
        }
        Err(Box::new(Status::forbidden(&format!("User {:?} may not do this: {attributes}", caller.username))))
    }

    async fn review(&self, path: &str, review: &Value) -> Result<Value, Box<Status>> {
        let answer: Value =
            self.upstream.own_json(Method::POST, path, review, OWN_ANSWER_BYTES_MAX).await.map_err(|error| {
                tracing::warn!(%error, "the apiserver behind can't be asked about an administrator");
                Box::new(error.to_client())
            })?;
        Ok(answer.get("status").cloned().unwrap_or_default())
    }

    fn sign(&self, tenant: &str, found: Option<&Tenant>, body: &[u8]) -> Result<Response<Body>, Box<Status>> {
        let wanted: CertificateRequest =
            serde_json::from_slice(body).map_err(|error| Box::new(Status::bad_request(error.to_string())))?;
        let found =
            found.ok_or_else(|| Box::new(Status::not_found(format!("tenants.{GROUP} \"{tenant}\" not found"))))?;
        if found.is_ending {
            return Err(Box::new(Status::forbidden(&format!("the tenant {tenant:?} is being deleted"))));
        }
        let subject = Subject {
            tenant_uid: found.names.uid().to_owned(),
            tenant: found.name.to_string(),
            user: wanted.user,
            groups: wanted.groups,
        };
        let lifetime = Duration::from_secs(wanted.seconds).min(LIFETIME_MAX);
        let certificate = self
            .authority
            .sign(&wanted.request, &subject, lifetime)
            .map_err(|error| Box::new(Status::bad_request(format!("the request can't be signed: {error}"))))?;
        tracing::info!(tenant, user = subject.user, groups = ?subject.groups, "a certificate is signed");
        let answer = CertificateAnswer {
            certificate,
            server: self.server.clone(),
            authorities: self.authority.certificate_pem().to_owned(),
        };
        let body = serde_json::to_vec(&answer).expect("three texts");
        Ok(json_response(StatusCode::CREATED, body.into()))
    }
}

fn text(text: &str) -> Response<Body> {
    let mut response = Response::new(Body::Whole(Bytes::copy_from_slice(text.as_bytes())));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
