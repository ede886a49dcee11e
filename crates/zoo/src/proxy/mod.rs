//! What becomes of a tenant's request: whose it is, whether it may, what it is upstream, and the way back.
//!
//! Invariant: upstream, nothing that the client sent says who asks. Writes go with the tenant's identity there, which can do nothing outside of
//! the tenant's namespaces; reads, and writes of what is bounded by its name, go with zoo's own.

mod body;
mod decided;
mod identity;
mod negotiate;
mod nothing;
mod object;
mod selector;
mod target;
mod upgrade;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER, USER_AGENT, WARNING};
use http::{HeaderMap, HeaderValue, Request, Response};
use kubewharf_foundation::tls::Identity;
use kubewharf_front::{Inbound, NotWhole, Service};
use kubewharf_kube_api::users::PRIVILEGED_GROUP;
use kubewharf_kube_api::{RequestInfo, Status};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{OnceCell, Semaphore, SemaphorePermit};

use crate::authz::{self, Policy, UserInfo, impersonation};
use crate::certificates::Subject;
use crate::discovery::Discovery;
use crate::front::Stay;
use crate::limits::{BODY_TIMEOUT, GATHER_PATIENCE, LONG_WORK_BYTES, OWN_ANSWER_BYTES_MAX, REQUEST_BYTES_MAX};
use crate::list::Sealer;
use crate::mounted::{self, Judged, Mounted, MountedError};
use crate::names::{Names, TenantId};
use crate::rewrite::Kind;
use crate::tenant::{Tenant, Tenants};
use crate::time::now;
use crate::tokens::{self, Account, TOKEN_AUDIENCE, Tokens};
use crate::upstream::{Upstream, UpstreamError};
use crate::watch::Hubs;

pub(crate) use body::{Body, Broken, Paced, json, json_line, respond};
pub(crate) use negotiate::{Media, of_body as media_of};
pub(crate) use object::unsupported;
pub(crate) use target::{Wanted, escape, segment};

/// What all requests share.
pub(crate) struct Proxy {
    pub(crate) tenants: Arc<Tenants>,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) sealer: Sealer,
    pub(crate) tokens: Tokens,
    pub(crate) mounted: Mounted,
    /// What tenants find their API under.
    pub(crate) server: String,
    pub(crate) hubs: Arc<Hubs>,
    pub(crate) discovery: Arc<Discovery<Arc<Upstream>>>,
    /// The columns of tables of roles and bindings, once the apiserver has told them.
    pub(crate) columns: [OnceCell<serde_json::Value>; 4],
    /// Lists without a limit that may be read now.
    pub(crate) gathers: Semaphore,
}

/// A client's connection.
pub(crate) struct Client {
    proxy: Arc<Proxy>,
    subject: Option<Subject>,
    /// Which certificate it showed.
    credential: String,
    stay: Stay,
}

/// A request whose tenant and user are known.
pub(crate) struct Asked {
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) tenant: Arc<Tenant>,
    /// Who it is for: whoever asks, or whom this one acts as.
    pub(crate) user: UserInfo,
    pub(crate) headers: HeaderMap,
}

impl Client {
    pub(crate) fn new(proxy: Arc<Proxy>, identity: Option<Identity>, stay: Stay) -> Self {
        let credential = identity.as_ref().map(identity::credential_id).unwrap_or_default();
        Self { proxy, subject: identity.and_then(Subject::of), credential, stay }
    }

    async fn answer(&self, request: Request<Inbound>) -> Response<Body> {
        match self.try_answer(request).await {
            Ok(response) => response,
            Err(status) => {
                tracing::debug!(address = %self.stay.address, code = status.code, message = %status.message, "refused");
                respond(&status)
            }
        }
    }

    /// Whose a request is: by certificate, or by token.
    async fn who(&self, headers: &HeaderMap) -> Result<(Arc<Tenant>, UserInfo), Box<Status>> {
        let unauthorized = || Box::new(Status::unauthorized());
        let tenants = &self.proxy.tenants;
        if let Some(subject) = &self.subject {
            // Its object may be just made, or just gone.
            let tenant = tenants.find(&subject.tenant_uid, &subject.tenant).await.map_err(|error| failed(&error))?;
            return Ok((tenant.ok_or_else(unauthorized)?, identity::of_certificate(subject, &self.credential)));
        }
        let token = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        let token = token.ok_or_else(unauthorized)?;
        let audiences = [TOKEN_AUDIENCE.to_owned()];
        let Ok(known) = self.proxy.tokens.check(token, &audiences, now()) else {
            let uid = mounted::claimed(token, now()).ok_or_else(unauthorized)?.tenant_uid;
            let tenant = tenants.by_id(TenantId::of_uid(&uid)).filter(|tenant| *tenant.names.uid() == uid);
            let Some(tenant) = tenant else {
                // After a start, a good token must not be taken for a bad one.
                let unknown = || {
                    Box::new(Status::service_unavailable("tenants are not known yet; try again").with_retry_after(1))
                };
                return Err(if tenants.are_known() { unauthorized() } else { unknown() });
            };
            let judged = self.proxy.judge_mounted(&tenant, token, &audiences).await?;
            return Ok((tenant, judged.ok_or_else(unauthorized)?.user));
        };
        let account = &known.account;
        let tenant = tenants.find(&account.tenant_uid, &account.tenant).await.map_err(|error| failed(&error))?;
        let tenant = tenant.ok_or_else(unauthorized)?;
        let is_there = self.proxy.is_still_there(&tenant, account).await.map_err(|error| failed(&error))?;
        if is_there { Ok((tenant, known.user())) } else { Err(unauthorized()) }
    }

    async fn try_answer(&self, request: Request<Inbound>) -> Result<Response<Body>, Box<Status>> {
        let proxy = &self.proxy;
        let (tenant, user) = self.who(request.headers()).await?;
        let target = request.uri().path_and_query().map_or("/", |target| target.as_str()).to_owned();
        let method = request.method().clone();
        let info = RequestInfo::parse(method.as_str(), &target)
            .map_err(|error| Box::new(Status::bad_request(error.to_string())))?;
        let (mut head, incoming) = request.into_parts();
        let is_upgrade = upgrade::is_wanted(&head, &info);
        let headers = std::mem::take(&mut head.headers);
        let mut asked = Asked { proxy: proxy.clone(), tenant, user, headers };
        asked.act_as_asked(&info).await?;
        asked.authorize(&info).await?;
        if target.starts_with("//") {
            return Ok(body::no_page());
        }
        if !info.is_resource_request {
            return asked.other(&method, &target, &info).await;
        }
        let query = target.split_once('?').map_or("", |(_, query)| query);
        let wanted = Wanted::of(&method, &info, query)?;
        if !wanted.outcome.allows(&info.verb) {
            let message = format!("tenants can only read {}", info.resource);
            return Err(Box::new(Status::forbidden_request(&asked.user.username, &info, &message)));
        }
        if is_upgrade {
            return asked.upgrade(&wanted, Request::from_parts(head, incoming), self.stay.clone()).await;
        }
        asked.serve(&method, &wanted, incoming).await
    }
}

impl Proxy {
    /// What a token says that a kubelet mounted in a pod of the tenant's; none if it is not good for one of these audiences.
    pub(crate) async fn judge_mounted(
        &self,
        tenant: &Tenant,
        token: &str,
        audiences: &[String],
    ) -> Result<Option<Judged>, Box<Status>> {
        self.mounted.judge(&self.upstream, &tenant.names, token, audiences).await.map_err(|error| match error {
            MountedError::TooMany => Box::new(Status::too_many_requests(error.to_string(), 1)),
            MountedError::Upstream(error) => failed(&error),
        })
    }

    /// Whether a service account, and what its token is bound to, is still there.
    pub(crate) async fn is_still_there(&self, tenant: &Tenant, account: &Account) -> Result<bool, UpstreamError> {
        let namespace = tenant.names.inward(&account.namespace);
        let of_account = [("serviceaccounts", &account.name, &account.uid)];
        let of_bound = account.bound.iter().map(|(kind, name, uid)| match kind.as_str() {
            "pod" => ("pods", name, uid),
            _ => ("secrets", name, uid),
        });
        for (resource, name, uid) in of_account.into_iter().chain(of_bound) {
            let Ok(name) = segment(name) else { return Ok(false) };
            let path = format!("/api/v1/namespaces/{namespace}/{resource}/{name}");
            let found =
                self.upstream.own(http::Method::GET, &path, &serde_json::Value::Null, OWN_ANSWER_BYTES_MAX).await;
            match found {
                Ok(found) if crate::scan::text(&found, &["metadata", "uid"]) == Some(uid) => {}
                Ok(_) => return Ok(false),
                Err(error) if error.status() == Some(http::StatusCode::NOT_FOUND) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

impl Service for Client {
    type Body = Body;

    async fn serve(self: Arc<Self>, request: Request<Inbound>) -> Response<Body> {
        let is_http1 = matches!(request.body(), Inbound::Http1(_));
        let mut response = if is_long_work(&request) {
            // The connection's task has other requests to answer meanwhile. It ends with its request.
            let client = self.clone();
            let mut task = tokio::task::JoinSet::new();
            task.spawn(async move { client.answer(request).await });
            match task.join_next().await.expect("there is one") {
                Ok(response) => response,
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    // The program ends, and this connection with it.
                    Err(_) => std::future::pending().await,
                },
            }
        } else {
            self.answer(request).await
        };
        if let Body::Pieces { pause, .. } = response.body_mut()
            && is_http1
        {
            *pause = Some(Paced::new(self.stay.pause()));
        }
        response
    }

    fn unread_timeout(body: &Body) -> Option<Duration> {
        Some(body.unread_timeout())
    }
}

impl Asked {
    pub(crate) fn names(&self) -> &Names {
        &self.tenant.names
    }

    /// The tenant's policy.
    pub(crate) fn policy(&self) -> Policy {
        self.proxy.tenants.policy(self.names().id())
    }

    /// Changes the policy at once, before the watch does.
    pub(crate) fn change_policy(&self, change: impl FnOnce(&mut Policy)) {
        self.proxy.tenants.change_policy(self.names().id(), change);
    }

    /// Policies are needed for everyone but those who may do everything.
    async fn wait_for_policies(&self) -> Result<(), Box<Status>> {
        if self.user.groups.iter().any(|group| group == PRIVILEGED_GROUP) || self.proxy.tenants.knows_policies().await {
            return Ok(());
        }
        Err(Box::new(Status::service_unavailable("who may do what is not known yet; try again")))
    }

    /// Becomes whom the request asks to act as, if its user may.
    async fn act_as_asked(&mut self, info: &RequestInfo<'_>) -> Result<(), Box<Status>> {
        let headers = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
        if let Some(wanted) = impersonation::Wanted::from_headers(headers).map_err(Box::new)? {
            self.wait_for_policies().await?;
            self.user = wanted.decide(&self.policy(), &self.user, info).map_err(Box::new)?;
        }
        Ok(())
    }

    /// A turn to read a list, which is in memory as a whole unless it has a limit.
    pub(crate) async fn turn(&self, wanted: &Wanted<'_>) -> Result<Option<SemaphorePermit<'_>>, Box<Status>> {
        let limit = wanted.query.get("limit").and_then(|limit| limit.parse::<u64>().ok());
        if limit.is_some_and(|limit| limit > 0) {
            return Ok(None);
        }
        match tokio::time::timeout(GATHER_PATIENCE, self.proxy.gathers.acquire()).await {
            Ok(turn) => Ok(Some(turn.expect("it is never closed"))),
            Err(_) => Err(Box::new(Status::too_many_requests("there are too many lists at once; try again", 1))),
        }
    }

    /// Whether the user may do this.
    async fn authorize(&self, info: &RequestInfo<'_>) -> Result<(), Box<Status>> {
        self.wait_for_policies().await?;
        let decision = authz::authorize(&self.policy(), &self.user, &authz::Attributes::of_request(info));
        if decision.allowed {
            return Ok(());
        }
        Err(Box::new(Status::forbidden_request(&self.user.username, info, &decision.reason.to_string())))
    }

    /// What is not a resource.
    async fn other(
        &self,
        method: &http::Method,
        target: &str,
        info: &RequestInfo<'_>,
    ) -> Result<Response<Body>, Box<Status>> {
        let path: &str = &info.path;
        let is_read = *method == http::Method::GET;
        match path {
            "/healthz" | "/livez" | "/readyz" if is_read => {
                let mut response = Response::new(Body::Whole(Bytes::from_static(b"ok")));
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
                Ok(response)
            }
            "/version" | "/version/" if is_read => {
                let upstream = &self.proxy.upstream;
                let nothing = &serde_json::Value::Null;
                let version = upstream.own(http::Method::GET, "/version", nothing, OWN_ANSWER_BYTES_MAX).await;
                Ok(json(http::StatusCode::OK, version.map_err(|error| failed(&error))?))
            }
            // What those need who check tokens of the tenant's service accounts without asking for each.
            "/.well-known/openid-configuration" if is_read => {
                let configuration = tokens::configuration(self.names().uid(), &self.proxy.server);
                Ok(public("application/json", json_line(&configuration)))
            }
            "/openid/v1/jwks" if is_read => {
                Ok(public("application/jwk-set+json", json_line(&self.proxy.tokens.keys())))
            }
            _ if is_read || *method == http::Method::HEAD => {
                let query = target.split_once('?').map(|(_, query)| query);
                match self.proxy.discovery.respond(path, query, &self.headers).await {
                    Some(response) => Ok(response.map(Body::Whole)),
                    None => Ok(body::no_page()),
                }
            }
            _ => Ok(body::no_page()),
        }
    }

    /// The body of a request.
    pub(crate) async fn read_body(&self, mut incoming: Inbound) -> Result<Bytes, Box<Status>> {
        let late = |_| Box::new(Status::request_timeout("the body of the request did not come in time"));
        let whole = tokio::time::timeout(BODY_TIMEOUT, incoming.whole(REQUEST_BYTES_MAX)).await.map_err(late)?;
        whole.map_err(|error| {
            Box::new(match error {
                NotWhole::TooLong(bytes_max) => Status::request_entity_too_large(&format!("limit is {bytes_max}")),
                NotWhole::Broken(error) => Status::bad_request(format!("the body can't be read: {error}")),
            })
        })
    }

    /// A body as JSON, however it is written.
    pub(crate) fn body_json(&self, kind: Kind, body: &[u8]) -> Result<String, Box<Status>> {
        let malformed =
            |error: &dyn std::fmt::Display| Box::new(Status::bad_request(format!("the body can't be read: {error}")));
        while_others_go_on(body.len(), || match media_of(&self.headers) {
            Media::Protobuf => {
                let json = crate::rewrite::to_json(kind, body).map_err(|error| malformed(&error))?;
                String::from_utf8(json).map_err(|error| malformed(&error))
            }
            Media::Yaml | Media::ApplyPatch => {
                let text = std::str::from_utf8(body).map_err(|error| malformed(&error))?;
                let value: serde_json::Value = serde_saphyr::from_str(text).map_err(|error| malformed(&error))?;
                Ok(value.to_string())
            }
            Media::Other => {
                Err(Box::new(Status::unsupported_media_type("the body of the request was in an unknown format")))
            }
            _ => String::from_utf8(body.to_vec()).map_err(|error| malformed(&error)),
        })
    }

    /// Headers for upstream: those of the client that the apiserver needs, and nothing that says who asks.
    pub(crate) fn upstream_headers(&self, accept: Option<&str>) -> HeaderMap {
        const PASSED: [http::HeaderName; 4] = [
            USER_AGENT,
            CONTENT_TYPE,
            http::HeaderName::from_static("kubectl-command"),
            http::HeaderName::from_static("kubectl-session"),
        ];
        let mut headers = HeaderMap::with_capacity(8);
        for name in PASSED {
            if let Some(value) = self.headers.get(&name) {
                headers.insert(name, value.clone());
            }
        }
        let accept = match accept {
            Some(accept) => HeaderValue::from_str(accept).ok(),
            None => self.headers.get(ACCEPT).cloned(),
        };
        if let Some(accept) = accept {
            headers.insert(ACCEPT, accept);
        }
        headers
    }

    /// Headers for the client: those of the apiserver that are about the answer.
    pub(crate) fn client_headers(&self, answer: &HeaderMap) -> HeaderMap {
        const PASSED: [http::HeaderName; 4] =
            [CONTENT_TYPE, RETRY_AFTER, http::header::CACHE_CONTROL, http::HeaderName::from_static("audit-id")];
        let mut headers = HeaderMap::with_capacity(4);
        for name in PASSED {
            if let Some(value) = answer.get(&name) {
                headers.insert(name, value.clone());
            }
        }
        for warning in answer.get_all(WARNING) {
            let text = String::from_utf8_lossy(warning.as_bytes());
            if let Ok(value) = HeaderValue::from_bytes(self.names().text_outward(&text).as_bytes()) {
                headers.append(WARNING, value);
            }
        }
        headers
    }
}

/// Whether an answer may take long to put together: lists, also of what was deleted, watches that begin with one, and documents.
fn is_long_work(request: &Request<Inbound>) -> bool {
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    RequestInfo::parse(request.method().as_str(), target)
        .is_ok_and(|info| !info.is_resource_request || matches!(&*info.verb, "list" | "watch" | "deletecollection"))
}

/// A document that anybody may keep for an hour, as at a kube-apiserver.
fn public(content_type: &'static str, document: Bytes) -> Response<Body> {
    let mut response = json(http::StatusCode::OK, document);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    let kept = HeaderValue::from_static("public, max-age=3600");
    response.headers_mut().insert(http::header::CACHE_CONTROL, kept);
    response
}

/// Works on so many bytes. If these are many, what else this thread has to do goes on elsewhere.
#[expect(
    clippy::disallowed_methods,
    reason = "what is worked on is borrowed, and a single thread is not asked for another"
)]
pub(crate) fn while_others_go_on<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    let has_threads = || Handle::current().runtime_flavor() == RuntimeFlavor::MultiThread;
    if bytes >= LONG_WORK_BYTES && has_threads() { tokio::task::block_in_place(work) } else { work() }
}

/// What a client is told when the apiserver gave no answer.
pub(crate) fn failed(error: &crate::upstream::UpstreamError) -> Box<Status> {
    tracing::warn!(%error, "no answer from upstream");
    Box::new(error.to_client())
}
