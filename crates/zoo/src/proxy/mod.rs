//! What becomes of a tenant's request: whose it is, whether it may, what it is upstream, and the way back.
//!
//! Invariant: upstream, nothing that the client sent says who asks. Writes go with the tenant's identity there, which can do nothing outside of
//! the tenant's namespaces; reads, and writes of what is bounded by its name, go with zoo's own.

mod body;
mod identity;
mod negotiate;
mod object;
mod selector;
mod target;
mod upgrade;

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER, USER_AGENT, WARNING};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use kubewharf_kube_api::{RequestInfo, Status};

use crate::certificates::Subject;
use crate::front;
use crate::limits::REQUEST_BYTES_MAX;
use crate::list::Sealer;
use crate::names::Names;
use crate::tenant::{Tenant, Tenants};
use crate::upstream::Upstream;
use crate::watch::Hubs;

pub(crate) use body::{Body, Broken, json, respond};
pub(crate) use identity::User;
pub(crate) use negotiate::{Media, of_body as media_of};
pub(crate) use target::Wanted;

/// What all requests share.
pub(crate) struct Proxy {
    pub(crate) tenants: Arc<Tenants>,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) sealer: Sealer,
    pub(crate) hubs: Arc<Hubs>,
}

/// A client's connection.
pub(crate) struct Client {
    proxy: Arc<Proxy>,
    subject: Option<Subject>,
    address: SocketAddr,
}

/// A request whose tenant and user are known.
pub(crate) struct Asked {
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) tenant: Arc<Tenant>,
    pub(crate) user: User,
    pub(crate) headers: HeaderMap,
}

impl Client {
    pub(crate) fn new(proxy: Arc<Proxy>, subject: Option<Subject>, address: SocketAddr) -> Self {
        Self { proxy, subject, address }
    }

    async fn serve(&self, request: Request<Incoming>) -> Response<Body> {
        match self.try_serve(request).await {
            Ok(response) => response,
            Err(status) => {
                tracing::debug!(address = %self.address, code = status.code, message = %status.message, "refused");
                respond(&status)
            }
        }
    }

    async fn try_serve(&self, request: Request<Incoming>) -> Result<Response<Body>, Box<Status>> {
        let subject = self.subject.as_ref().ok_or_else(|| Box::new(Status::unauthorized()))?;
        let proxy = &self.proxy;
        // Its object may be just made, or just gone.
        let tenant = proxy.tenants.find(&subject.tenant_uid, &subject.tenant).await;
        let tenant = tenant.map_err(|error| failed(&error))?.ok_or_else(|| Box::new(Status::unauthorized()))?;
        let user = User::of_certificate(subject);
        let target = request.uri().path_and_query().map_or("/", |target| target.as_str()).to_owned();
        let method = request.method().clone();
        let info = RequestInfo::parse(method.as_str(), &target)
            .map_err(|error| Box::new(Status::bad_request(error.to_string())))?;
        let (head, incoming) = request.into_parts();
        let asked = Asked { proxy: proxy.clone(), tenant, user, headers: head.headers.clone() };
        asked.authorize(&info)?;
        if !info.is_resource_request {
            return asked.other(&method, &target, &info).await;
        }
        let query = target.split_once('?').map_or("", |(_, query)| query);
        let wanted = Wanted::of(&info, query)?;
        if !wanted.outcome.allows(&info.verb) {
            let message = format!("tenants can only read {}", info.resource);
            return Err(Box::new(Status::forbidden_request(&asked.user.name, &info, &message)));
        }
        if upgrade::is_upgrade(&head) {
            return asked.upgrade(&wanted, Request::from_parts(head, incoming)).await;
        }
        asked.serve(&method, &wanted, incoming).await
    }
}

impl front::Client for Client {
    fn answer<'a>(&'a self, request: Request<Incoming>) -> BoxFuture<'a, Response<Body>> {
        Box::pin(self.serve(request))
    }
}

impl Asked {
    pub(crate) fn names(&self) -> &Names {
        &self.tenant.names
    }

    /// Whether the user may do this.
    fn authorize(&self, info: &RequestInfo<'_>) -> Result<(), Box<Status>> {
        if self.headers.keys().any(|name| name.as_str().starts_with("impersonate-")) {
            return Err(Box::new(Status::forbidden("acting as somebody else is not served to tenants yet")));
        }
        if self.user.groups.iter().any(|group| group == "system:masters") {
            return Ok(());
        }
        Err(Box::new(Status::forbidden_request(&self.user.name, info, "")))
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
            _ if is_read
                && (path == "/version"
                    || path == "/api"
                    || path.starts_with("/api")
                    || path.starts_with("/openapi")) =>
            {
                // TODO(discovery)
                let question = crate::upstream::Question {
                    method: method.clone(),
                    target: target.to_owned(),
                    headers: self.upstream_headers(None),
                    body: Bytes::new(),
                    class: kubewharf_upstream::Class::Short,
                };
                let answer = self.proxy.upstream.send(&question).await.map_err(|error| failed(&error))?;
                let whole = answer.whole(usize::MAX).await.map_err(|error| failed(&error))?;
                let mut response = Response::new(Body::Whole(whole.body));
                *response.status_mut() = whole.status;
                *response.headers_mut() = self.client_headers(&whole.headers);
                Ok(response)
            }
            _ => Err(Box::new(Status::not_found("the server could not find the requested resource"))),
        }
    }

    /// The body of a request.
    pub(crate) async fn read_body(&self, incoming: Incoming) -> Result<Bytes, Box<Status>> {
        match Limited::new(incoming, REQUEST_BYTES_MAX).collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.is::<http_body_util::LengthLimitError>() => {
                Err(Box::new(Status::request_entity_too_large(&format!("limit is {REQUEST_BYTES_MAX}"))))
            }
            Err(error) => Err(Box::new(Status::bad_request(format!("the body can't be read: {error}")))),
        }
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

/// What a client is told when the apiserver gave no answer.
pub(crate) fn failed(error: &crate::upstream::UpstreamError) -> Box<Status> {
    tracing::warn!(%error, "no answer from upstream");
    Box::new(error.to_client())
}
