//! The pipeline: one request from its head to the head of its answer.
//!
//! Invariant: the order is who, what, whether, where. Nothing is sent to a kube-apiserver before the user is known and allowed; what is sent
//! has the path and the query byte for byte as the client wrote them; and a request is sent twice only if the first try was certainly not
//! begun, or changes nothing.

use std::borrow::Cow;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use kubewharf_front::places::Place as AddressPlace;
use kubewharf_front::{Inbound, Pause, Service, UNREAD_LASTING_TIMEOUT, UNREAD_TIMEOUT};
use kubewharf_kube_api::{RequestInfo, Status, request_info, status};
use kubewharf_upstream::{
    Class, Endpoint, EndpointId, EndpointSet, Failure, Outcome, Pieces, Processed, SendError, UpgradeLease,
};
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::error::Elapsed;

use crate::User;
use crate::access_log::AccessLog;
use crate::authentication::token::remove_websocket_token;
use crate::authentication::x509::ClientCertificate;
use crate::body::{
    AnswerBody, Body, Events, Http1Body, Idle, Pace, RequestBody, Upload, UploadError, WatchEnd, read_off,
};
use crate::cluster::{Cluster, Clusters, PolicyAtWork};
use crate::drain::{Drain, Turn};
use crate::identity::{IdentityHeaders, Mode, strip, strip_response};
use crate::ids::audit_id;
use crate::limit::breaker;
use crate::limits::{ANSWER_HELD_BYTES, BODY_BYTES_MAX, LONG_BODY_BYTES, TRIES_MAX};
use crate::metrics::Metrics;
use crate::policy::{self, Attributes, DegradationMode, DispatchPolicy};
use crate::record::{Line, Record};
use crate::trace::{TraceContext, Tracer};
use crate::upgrade;

static AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");
static FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// What all requests share.
pub(crate) struct Proxy {
    pub(crate) clusters: ArcSwap<Clusters>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) access_log: Arc<AccessLog>,
    /// None if nothing is traced.
    pub(crate) tracer: Option<Arc<Tracer>>,
    pub(crate) drain: Arc<Drain>,
}

/// What all requests of a client's connection share.
pub(crate) struct Client {
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) address: SocketAddr,
    /// The value of `X-Forwarded-For`.
    pub(crate) forwarded_for: HeaderValue,
    /// The cluster that the handshake named.
    pub(crate) cluster_by_sni: Option<Arc<str>>,
    pub(crate) certificate: Option<ClientCertificate>,
    /// The user who asked last and the headers for that user: mostly the next request is the same user's.
    pub(crate) named: Mutex<Option<Named>>,
    /// Whether the connection waits for the client to read as long as that takes; see [`Outlet`](kubewharf_front::Outlet).
    pub(crate) may_pause: Arc<AtomicBool>,
    /// Its place among all connections.
    pub(crate) place: Arc<Place>,
}

/// The place of a client's connection among all that may be there. Given back when the connection ends, whatever has become of it.
pub(crate) struct Place {
    metrics: Arc<Metrics>,
    /// Its place among those of its address, once that is known.
    pub(crate) of_address: OnceLock<AddressPlace<IpAddr>>,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    pub(crate) fn new(metrics: Arc<Metrics>, permit: OwnedSemaphorePermit) -> Arc<Self> {
        metrics.connection(1);
        Arc::new(Self { metrics, of_address: OnceLock::new(), _permit: permit })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.metrics.connection(-1);
    }
}

/// A user, and the headers that name it.
pub(crate) struct Named {
    user: Arc<User>,
    mode: Mode,
    headers: Arc<IdentityHeaders>,
}

/// Why the gateway answers by itself.
pub(crate) struct Refused {
    pub(crate) status: Status,
    /// For the access log.
    pub(crate) reason: Cow<'static, str>,
}

impl Refused {
    pub(crate) fn new(status: Status) -> Box<Self> {
        let reason = status.message.clone();
        Box::new(Self { status, reason })
    }

    fn because(status: Status, reason: impl std::fmt::Display) -> Box<Self> {
        Box::new(Self { status, reason: reason.to_string().into() })
    }
}

/// A request that is let in, on its way to an endpoint.
pub(crate) struct Admitted<'a> {
    pub(crate) client: &'a Client,
    pub(crate) cluster: &'a Cluster,
    pub(crate) policy: &'a DispatchPolicy,
    pub(crate) at_work: &'a PolicyAtWork,
    pub(crate) info: &'a RequestInfo<'a>,
    pub(crate) user: &'a User,
    pub(crate) identity: Arc<IdentityHeaders>,
    /// When all of the answer must be there.
    pub(crate) deadline: Option<Instant>,
    pub(crate) version: Version,
}

impl Service for Client {
    type Body = Body;

    async fn serve(self: Arc<Self>, request: Request<Inbound>) -> Response<Body> {
        let mut record = Record::new(self.proxy.metrics.clone(), self.proxy.access_log.clone());
        let (mut parts, body) = request.into_parts();
        if let Some(tracer) = &self.proxy.tracer {
            record.span = tracer.begin(&mut parts, self.ip());
        }
        // Never reused: a response that is refused before its request was read closes an HTTP/1.1 connection.
        let mut body = Some(body);
        let is_head = parts.method == Method::HEAD;
        match self.answer(&mut parts, &mut body, &mut record).await {
            Ok(Answer::Streams(head, stream)) => {
                let mut response = Response::from_parts(head, Body::empty());
                record.status = response.status().as_u16();
                *response.body_mut() = stream.into_body(record);
                response
            }
            Ok(Answer::Http1(head, stream)) => {
                record.status = head.status.as_u16();
                Response::from_parts(head, Body::Http1(Box::new(Http1Body::new(*stream, record))))
            }
            Ok(Answer::Upgraded(response, stream)) => {
                record.status = response.status().as_u16();
                tokio::spawn(stream.join(record));
                response
            }
            Ok(Answer::Whole(mut response)) => {
                record.status = response.status().as_u16();
                record.finished();
                finish(&mut response, is_head, body).await;
                response
            }
            Err(refused) => {
                if let Some(line) = &mut record.line {
                    line.reason = refused.reason.into_owned();
                }
                record.status = refused.status.code;
                record.finished();
                let mut response = respond(&refused.status);
                finish(&mut response, is_head, body).await;
                response
            }
        }
    }

    fn unread_timeout(body: &Body) -> Option<Duration> {
        // A kube-apiserver's answer tells by itself; the client must take the gateway's own words too.
        matches!(body, Body::Whole(..)).then_some(UNREAD_TIMEOUT)
    }
}

impl Client {
    /// What is not read of the body stays in `body`.
    async fn answer(
        &self,
        parts: &mut Parts,
        body: &mut Option<Inbound>,
        record: &mut Record,
    ) -> Result<Answer, Box<Refused>> {
        let clusters = self.proxy.clusters.load_full();
        check_form(parts)?;
        let cluster = self.cluster(&clusters, parts)?;
        let target = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        let method = parts.method.clone();
        let info = RequestInfo::parse(method.as_str(), target.as_str()).map_err(|error| match error {
            request_info::Error::NoResource { .. } => Refused::new(Status::internal_error(error.to_string())),
            _ => Refused::new(Status::bad_request(error.to_string())),
        })?;
        record.verb = known_verb(&info.verb);
        if let Some(span) = &mut record.span {
            span.cluster = Some(cluster.config.name.clone());
        }
        let authenticated = cluster
            .authenticator
            .authenticate(self.certificate.as_ref(), &parts.headers, &info.path, self.ip())
            .await
            .map_err(|error| {
                let status = match error.status() {
                    StatusCode::UNAUTHORIZED => Status::unauthorized(),
                    StatusCode::TOO_MANY_REQUESTS => Status::too_many_requests("too many users wait to be told", 1),
                    _ => Status::service_unavailable("the user can't be told now").with_retry_after(1),
                };
                Refused::because(status, error)
            })?;
        let impersonated =
            cluster.impersonator.effective_user(&authenticated.user, &parts.headers).await.map_err(|error| {
                let status = match error.status() {
                    StatusCode::BAD_REQUEST => Status::bad_request(error.to_string()),
                    StatusCode::FORBIDDEN => Status::forbidden(&error.to_string()),
                    StatusCode::TOO_MANY_REQUESTS => {
                        Status::too_many_requests("too many impersonations wait to be judged", 1)
                    }
                    _ => Status::service_unavailable("the impersonation can't be judged now").with_retry_after(1),
                };
                Refused::because(status, error)
            })?;
        let user = impersonated.as_ref().unwrap_or(&authenticated.user).clone();
        let identity = self.name(&user, cluster.identity_mode)?;
        let user_agent = parts.headers.get(USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let address = self.ip();
        let attributes = Attributes { info: &info, user: &user, user_agent, client: address };
        let decision = cluster.config.policies.decide(&attributes);
        let access = cluster.config.access.check(&attributes);
        if self.proxy.access_log.is_on() && decision.is_none_or(|decision| decision.policy.access_log) {
            record.line = Some(Box::new(Line {
                client: self.address.to_string(),
                cluster: cluster.config.name.clone(),
                policy: decision.map(|decision| decision.policy.name.to_string()).unwrap_or_default(),
                method: parts.method.to_string(),
                target: target.to_string(),
                user: user.name.clone(),
                impersonator: if impersonated.is_some() { authenticated.user.name.clone() } else { String::new() },
                user_agent: user_agent.to_owned(),
                audit_id: String::new(),
                trace_id: trace_id(&parts.headers),
                reason: String::new(),
            }));
        }
        if let Some(span) = &mut record.span {
            let impersonator = impersonated.as_ref().map(|_| &*authenticated.user.name);
            span.asks(&info, &user.name, impersonator);
            span.policy = decision.map(|decision| decision.policy.name.clone());
        }
        if !access.is_allowed() {
            let why = "the gateway's access rules do not let this request in";
            return Err(Refused::because(Status::forbidden_request(&user.name, &info, why), why));
        }
        if cluster.config.features.deny_all_requests {
            let why = "the gateway refuses all requests to this cluster (feature gate DenyAllRequests)";
            return Err(Refused::new(Status::too_many_requests(why, 1)));
        }
        let Some(decision) = decision else {
            let why = "no dispatch policy of the gateway takes this request";
            return Err(Refused::because(Status::forbidden_request(&user.name, &info, why), why));
        };
        let policy = decision.policy;
        let at_work = &cluster.policies[policy.place];
        record.policy = Some(at_work.metrics.clone());
        record.rule = decision.rule;
        if let Some(degradation) = &policy.degradation
            && degradation.mode == DegradationMode::Always
        {
            return Ok(Answer::Whole(degraded(degradation)));
        }
        let now = Instant::now();
        let mut admission = match &at_work.schema {
            Some(schema) => Some(schema.admit(&user.name, now).map_err(|refusal| {
                // Events are many and of little weight: KubeGateway lets their senders try again at once, and so do we.
                let seconds = if &*info.resource == "events" { 0 } else { refusal.retry_after_seconds };
                let why = format!("too many requests: {refusal}");
                Refused::new(Status::too_many_requests(why, u32::try_from(seconds).unwrap_or(u32::MAX)))
            })?),
            None => None,
        };
        let permit = match &at_work.breaker {
            Some(breaker) => match breaker.try_pass(now) {
                Ok(permit) => Some(permit),
                Err(refusal) => {
                    if let Some(degradation) = &policy.degradation {
                        return Ok(Answer::Whole(degraded(degradation)));
                    }
                    let seconds = u32::try_from(refusal.retry_after_seconds).unwrap_or(u32::MAX);
                    let status = Status::service_unavailable("the gateway's circuit breaker is open");
                    return Err(Refused::new(status.with_retry_after(seconds)));
                }
            },
            None => None,
        };
        record.is_long_running = info.is_long_running();
        if record.is_long_running {
            at_work.metrics.long_running(1);
        }
        let deadline = if record.is_long_running { None } else { policy.timeouts.request };
        let admitted = Admitted {
            client: self,
            cluster,
            policy,
            at_work,
            info: &info,
            user: &user,
            identity,
            deadline: deadline.map(|time| record.begun + time),
            version: parts.version,
        };
        let upgrades = upgrade::is_wanted(parts, &info);
        let answer = if upgrades {
            Box::pin(admitted.upgrade(parts, body.as_ref(), record)).await
        } else {
            admitted.forward(parts, body, record).await
        };
        record.head = Some(Instant::now());
        if let Some(permit) = permit {
            let outcome = match &answer {
                Ok(answer) if answer.status().is_server_error() => breaker::Outcome::Failure,
                Ok(_) => breaker::Outcome::Success,
                Err(refused) if refused.status.code >= 500 => breaker::Outcome::Failure,
                Err(_) => breaker::Outcome::Success,
            };
            permit.record(outcome, Instant::now());
        }
        match answer {
            Ok(Answer::Streams(head, mut stream)) => {
                if record.is_long_running
                    && let Some(admission) = &mut admission
                {
                    admission.release_now();
                }
                stream.admission = admission;
                Ok(Answer::Streams(head, stream))
            }
            Err(refused) if refused.status.code >= 500 => match &policy.degradation {
                Some(degradation) => Ok(Answer::Whole(degraded(degradation))),
                None => Err(refused),
            },
            other => other,
        }
    }

    /// The cluster that a request is for: the one that its host names. A handshake may have named one before; then it must be the same, as
    /// the client's certificate was checked for that one.
    fn cluster<'c>(&self, clusters: &'c Clusters, parts: &Parts) -> Result<&'c Arc<Cluster>, Box<Refused>> {
        let misdirected = || Refused::new(Status::misdirected("this gateway serves no cluster of that name here"));
        let host = match parts.uri.authority() {
            Some(authority) => authority.as_str(),
            None => match parts.headers.get(HOST) {
                Some(host) => host.to_str().map_err(|_| misdirected())?,
                None => "",
            },
        };
        let config = clusters.snapshot.cluster_of_authority(host).ok_or_else(misdirected)?;
        let cluster = clusters.of(config).ok_or_else(misdirected)?;
        match &self.cluster_by_sni {
            Some(name) if **name != *cluster.config.name => Err(misdirected()),
            _ => Ok(cluster),
        }
    }

    fn ip(&self) -> IpAddr {
        self.address.ip().to_canonical()
    }

    fn name(&self, user: &Arc<User>, mode: Mode) -> Result<Arc<IdentityHeaders>, Box<Refused>> {
        let mut named = self.named.lock();
        if let Some(last) = &*named
            && last.mode == mode
            && (Arc::ptr_eq(&last.user, user) || last.user == *user)
        {
            return Ok(last.headers.clone());
        }
        let headers = IdentityHeaders::new(user, mode)
            .map_err(|error| Refused::because(Status::forbidden("the user's name can't be passed on"), error))?;
        let headers = Arc::new(headers);
        *named = Some(Named { user: user.clone(), mode, headers: headers.clone() });
        Ok(headers)
    }
}

/// The answer to a request.
pub(crate) enum Answer {
    /// Known as a whole.
    Whole(Response<Body>),
    /// A kube-apiserver's: its head, and its body still to come.
    Streams(http::response::Parts, Box<Streaming>),
    /// The same over HTTP/1.1.
    Http1(http::response::Parts, Box<(Incoming, Pace, UpgradeLease)>),
    /// That a kube-apiserver agrees to an upgrade, and what follows.
    Upgraded(Response<Body>, Box<upgrade::Stream>),
}

impl Answer {
    fn status(&self) -> StatusCode {
        match self {
            Self::Whole(response) | Self::Upgraded(response, _) => response.status(),
            Self::Streams(head, _) | Self::Http1(head, _) => head.status,
        }
    }
}

/// An answer that streams, until its record joins it.
pub(crate) struct Streaming {
    /// The first piece last.
    beginning: Pieces,
    stream: h2::RecvStream,
    request: Option<Box<Upload>>,
    watch: Option<WatchEnd>,
    idle: Option<Idle>,
    pace: Pace,
    lease: kubewharf_upstream::Lease,
    admission: Option<crate::limit::Admission>,
}

impl Streaming {
    fn into_body(self, mut record: Record) -> Body {
        let Self { beginning, stream, request, watch, idle, pace, lease, admission } = self;
        if beginning.is_empty() && stream.is_end_stream() && request.is_none() {
            record.finished();
        }
        Body::Stream(Box::new(AnswerBody {
            beginning,
            stream,
            request,
            watch,
            idle,
            pace,
            record,
            _admission: admission,
            _lease: lease,
        }))
    }
}

/// An answer that has begun, and what is left of the request.
struct Answered {
    response: Response<h2::RecvStream>,
    beginning: Pieces,
    upload: Option<Box<Upload>>,
    lease: kubewharf_upstream::Lease,
}

/// What comes first of a try.
enum Sent {
    /// The request is sent, or the endpoint wants no more of it.
    All,
    /// The client broke off, or sends too much.
    Broken,
    /// The answer, while the rest of the request is still on its way.
    Answered(Result<Response<h2::RecvStream>, kubewharf_upstream::ExchangeError>),
}

/// How one try ended.
enum Tried {
    Answered(Answered),
    Failed { refused: Box<Refused>, body: Option<RequestBody>, again: Again },
}

/// Where a request that failed may be sent again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Again {
    /// Nowhere: it is at fault itself, or nobody knows what became of it.
    Never,
    /// At another endpoint.
    Elsewhere,
    /// At another endpoint, or at the same one if there is no other: only the connection was to blame.
    Anywhere,
}

impl Admitted<'_> {
    /// Sends the request to an endpoint, or to several until one answers.
    async fn forward(
        &self,
        parts: &mut Parts,
        unread: &mut Option<Inbound>,
        record: &mut Record,
    ) -> Result<Answer, Box<Refused>> {
        let body_bytes_max = self.policy.body_bytes_max.unwrap_or(BODY_BYTES_MAX);
        let has_body = unread.as_ref().is_some_and(|body| !body.is_end_stream());
        if content_length(&parts.headers).is_some_and(|bytes| bytes > body_bytes_max) {
            return Err(too_long(body_bytes_max));
        }
        let class = self.class(parts);
        let is_safe = matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS);
        let mut body = if has_body { unread.take() } else { None }.map(|body| RequestBody::new(body, body_bytes_max));
        self.prepare(&mut parts.headers, record);
        self.cluster.retries.deposit();
        let mut tried: SmallVec<[EndpointId; TRIES_MAX]> = SmallVec::new();
        let mut next = self.pick(&tried);
        let mut unavailable = None;
        while let Some(endpoint) = next {
            tried.push(endpoint.id());
            record.tries += 1;
            record.endpoint = Some(endpoint.url().clone());
            // An answer that is there already is better than none.
            let has_answer = unavailable.is_some();
            let elsewhere = || has_answer || self.has_another(&tried);
            match self.attempt(parts, &endpoint, class, body.take(), is_safe, elsewhere).await {
                Tried::Answered(answered) => {
                    let is_unavailable = answered.response.status() == StatusCode::SERVICE_UNAVAILABLE;
                    let is_own_doing = is_unavailable && is_built_in(self.info);
                    endpoint.report(if is_own_doing { Outcome::Unavailable } else { Outcome::Answered });
                    if is_unavailable && is_safe && !has_body {
                        // An endpoint that was found unwell may be back already: worth a look if this one is about to go, but not
                        // if both only pass on that another server is away.
                        let any = is_own_doing || !self.info.is_resource_request;
                        next = self.another(&tried, |next| any || next.is_available());
                        if next.is_some() {
                            unavailable = Some(answered);
                            continue;
                        }
                    }
                    return Ok(self.streaming(parts, answered));
                }
                Tried::Failed { refused, body: left, again } => {
                    let is_whole = left.as_ref().map_or(!has_body, RequestBody::can_replay);
                    body = left;
                    next = match again {
                        _ if !is_whole => None,
                        Again::Never => None,
                        Again::Elsewhere => self.another(&tried, |_| true),
                        Again::Anywhere => self.another(&tried, |_| true).or_else(|| self.once_more(&tried, endpoint)),
                    };
                    if next.is_none() {
                        *unread = body.map(RequestBody::into_unread);
                        let Some(answered) = unavailable else { return Err(refused) };
                        // What an endpoint says is worth more than that another one says nothing.
                        record.endpoint = Some(answered.lease.endpoint().url().clone());
                        return Ok(self.streaming(parts, answered));
                    }
                }
            }
        }
        *unread = body.map(RequestBody::into_unread);
        Err(unavailable_now("no kube-apiserver of the cluster can be used"))
    }

    /// An endpoint for a further try, if one is left that fits and the budget allows.
    fn another(&self, tried: &[EndpointId], fits: impl FnOnce(&Endpoint) -> bool) -> Option<Arc<Endpoint>> {
        let next = (tried.len() < TRIES_MAX).then(|| self.pick(tried)).flatten().filter(|next| fits(next))?;
        self.afford(next)
    }

    /// Whether an endpoint in rotation is left for a further try.
    fn has_another(&self, tried: &[EndpointId]) -> bool {
        tried.len() < TRIES_MAX && self.cluster.upstream.has_another(self.filter(), tried)
    }

    /// The endpoint that was tried last, for one further try, if the budget allows.
    fn once_more(&self, tried: &[EndpointId], last: Arc<Endpoint>) -> Option<Arc<Endpoint>> {
        let times = tried.iter().filter(|id| **id == last.id()).count();
        (times < 2 && tried.len() < TRIES_MAX).then(|| self.afford(last)).flatten()
    }

    fn afford(&self, next: Arc<Endpoint>) -> Option<Arc<Endpoint>> {
        self.cluster.retries.withdraw().then(|| {
            self.at_work.metrics.retried();
            next
        })
    }

    /// One try. After it, the body is back if it can be sent again. If the endpoint hangs, the try ends as soon as that is known and the
    /// request can be sent `elsewhere`.
    async fn attempt(
        &self,
        parts: &Parts,
        endpoint: &Arc<Endpoint>,
        class: Class,
        body: Option<RequestBody>,
        is_safe: bool,
        elsewhere: impl Fn() -> bool + Copy + Unpin,
    ) -> Tried {
        let request = match outbound(parts, endpoint) {
            Ok(request) => request,
            Err(refused) => return Tried::Failed { refused, body, again: Again::Never },
        };
        let exchange = match endpoint.send(class, request, body.is_none()).await {
            Ok(exchange) => exchange,
            Err(error) => {
                let status = if error.is_request_fault() {
                    Status::bad_request("the request can't be sent to a kube-apiserver")
                } else {
                    Status::service_unavailable("the kube-apiserver can't be reached").with_retry_after(1)
                };
                let again = match error {
                    _ if error.is_request_fault() => Again::Never,
                    SendError::GoingAway { .. } => Again::Anywhere,
                    _ => Again::Elsewhere,
                };
                return Tried::Failed { refused: Refused::because(status, error), body, again };
            }
        };
        let mut response = exchange.response.abandon_when_hung(is_safe.then_some(elsewhere));
        let mut upload = body.map(|body| Box::new(body.upload(exchange.body)));
        // As long as the client has seen nothing of an answer, another endpoint can give it. Not for aggregated APIs, which may let an
        // answer trickle.
        let is_held = is_safe && upload.is_none() && class != Class::Watch;
        let is_held = is_held && (is_built_in(self.info) || !self.info.is_resource_request);
        let mut beginning = Pieces::new();
        let mut upload_failure = None;
        // Until all of the request is sent, it is the client that takes its time.
        let sends = std::future::poll_fn(|context| {
            let Some(running) = &mut upload else { return Poll::Ready(Sent::All) };
            if let Poll::Ready(sent) = running.poll(context) {
                upload_failure = sent.err();
                return Poll::Ready(match upload_failure {
                    None | Some(UploadError::Upstream) => Sent::All,
                    Some(UploadError::Client | UploadError::TooLong { .. }) => Sent::Broken,
                });
            }
            Pin::new(&mut response).poll(context).map(Sent::Answered)
        });
        let Ok(sent) = before(self.deadline, sends).await else {
            let refused = Refused::new(Status::request_timeout("the request was not sent in time"));
            return Tried::Failed { refused, body: upload.map(|upload| upload.into_body()), again: Again::Never };
        };
        if matches!(sent, Sent::Broken) {
            let refused = match upload_failure {
                Some(UploadError::TooLong { bytes_max }) => too_long(bytes_max),
                _ => Refused::new(Status::bad_request("the body of the request broke off")),
            };
            return Tried::Failed { refused, body: upload.map(|upload| upload.into_body()), again: Again::Never };
        }
        let begun = Instant::now();
        let answers = async {
            let mut answered = match sent {
                Sent::Answered(answered) => answered,
                Sent::All | Sent::Broken => (&mut response).await,
            };
            if is_held && let Ok(response) = &mut answered {
                match exchange.lease.beginning(response.body_mut(), ANSWER_HELD_BYTES, elsewhere).await {
                    Ok(pieces) => beginning = pieces,
                    Err(error) => answered = Err(error),
                }
            }
            answered
        };
        let per_try = self.policy.timeouts.per_try.filter(|_| class != Class::Watch).map(|time| begun + time);
        let deadline = [per_try, self.deadline].into_iter().flatten().min();
        let Ok(answered) = before(deadline, answers).await else {
            endpoint.report(Outcome::Deadline);
            let why = format!("no answer from the kube-apiserver within {} ms", begun.elapsed().as_millis());
            let refused = Refused::new(timed_out(&why, is_safe));
            let is_over = self.deadline.is_some_and(|deadline| deadline <= Instant::now());
            let again = if is_safe && !is_over { Again::Elsewhere } else { Again::Never };
            return Tried::Failed { refused, body: upload.map(|upload| upload.into_body()), again };
        };
        match answered {
            Ok(response) => {
                let upload = upload.filter(|upload| !upload.is_over() && upload_failure.is_none());
                Tried::Answered(Answered { response, beginning, upload, lease: exchange.lease })
            }
            Err(error) => {
                // What breaks a log or a proxied request off may as well be what is behind the apiserver.
                if matches!(error.failure, Failure::Reset(_)) && is_own_affair(self.info) {
                    endpoint.report(Outcome::Broken);
                }
                let again = if error.processed == Processed::No || (is_safe && error.failure == Failure::Lost) {
                    Again::Anywhere
                } else if is_safe {
                    Again::Elsewhere
                } else {
                    Again::Never
                };
                let status = match error.failure {
                    Failure::Hung => timed_out("the kube-apiserver does not answer", is_safe),
                    _ => Status::bad_gateway("the kube-apiserver broke the request off"),
                };
                // Kubernetes' clients then try again by themselves.
                let status = if again != Again::Never { status.with_retry_after(1) } else { status };
                let body = upload.map(|upload| upload.into_body());
                Tried::Failed { refused: Refused::because(status, error), body, again }
            }
        }
    }

    fn streaming(&self, parts: &Parts, answered: Answered) -> Answer {
        let Answered { response, mut beginning, upload, lease } = answered;
        beginning.reverse();
        let (mut head, stream) = response.into_parts();
        strip_response(&mut head.headers);
        if let Some(audit_id) = head.headers.get_mut(&AUDIT_ID) {
            audit_id.set_sensitive(true);
        }
        let idle = self.policy.timeouts.idle.map(Idle::new);
        let pace = self.pace();
        let is_watch = &*self.info.verb == "watch" && self.info.is_resource_request && head.status == StatusCode::OK;
        let begins_with_all = parts.uri.query().is_some_and(|query| query.contains("sendInitialEvents=true"));
        let watch = is_watch.then(|| {
            WatchEnd::new(begins_with_all, Events::of(&head.headers), Turn::new(self.client.proxy.drain.clone()))
        });
        let streaming = Streaming { beginning, stream, request: upload, watch, idle, pace, lease, admission: None };
        Answer::Streams(head, Box::new(streaming))
    }

    /// How long the answer may take.
    pub(crate) fn pace(&self) -> Pace {
        let default = if self.info.is_long_running() { UNREAD_LASTING_TIMEOUT } else { UNREAD_TIMEOUT };
        Pace {
            unread: self.policy.timeouts.idle.unwrap_or(default),
            end: self.deadline.map(tokio::time::Instant::from_std),
            _pause: self.pause(),
        }
    }

    /// Lets the client of an HTTP/1.1 connection pause.
    pub(crate) fn pause(&self) -> Option<Pause> {
        (self.version != Version::HTTP_2).then(|| Pause::new(self.client.may_pause.clone()))
    }

    /// The next endpoint to try.
    pub(crate) fn pick(&self, tried: &[EndpointId]) -> Option<Arc<Endpoint>> {
        self.cluster.upstream.pick(self.policy.strategy, self.filter(), tried, &self.user.name)
    }

    fn filter(&self) -> Option<&EndpointSet> {
        match &self.policy.weights {
            Some(weights) => self.at_work.arms.get(weights.arm_of_user(&self.user.name)),
            None => self.at_work.subset.as_ref(),
        }
    }

    fn class(&self, parts: &Parts) -> Class {
        if self.info.is_long_running() {
            Class::Watch
        } else if content_length(&parts.headers).is_some_and(|bytes| bytes >= LONG_BODY_BYTES)
            || (&*self.info.verb == "list" && !parts.uri.query().is_some_and(|query| query.contains("limit=")))
        {
            Class::Bulk
        } else {
            Class::Short
        }
    }

    /// Makes the headers those that an endpoint is to see, but for its own credentials.
    pub(crate) fn prepare(&self, headers: &mut HeaderMap, record: &mut Record) {
        remove_websocket_token(headers);
        strip(headers);
        self.identity.apply(headers);
        headers.insert(&FORWARDED_FOR, self.client.forwarded_for.clone());
        let audit_id = audit_id();
        if let Some(line) = &mut record.line {
            audit_id.to_str().unwrap_or_default().clone_into(&mut line.audit_id);
        }
        if let Some(span) = &mut record.span {
            span.is_audited_as(audit_id.clone());
        }
        headers.insert(&AUDIT_ID, audit_id);
    }
}

/// Refuses what has more than one meaning, before anything is decided by one of them.
fn check_form(parts: &Parts) -> Result<(), Box<Refused>> {
    let bad = |why: &'static str| Err(Refused::new(Status::bad_request(why)));
    if parts.method == Method::CONNECT {
        return bad("CONNECT is not a request to an apiserver");
    }
    let mut hosts = parts.headers.get_all(HOST).iter();
    match (parts.uri.authority(), hosts.next(), parts.version) {
        (_, Some(_), _) if hosts.next().is_some() => bad("there is more than one Host header"),
        (None, None, Version::HTTP_11) => bad("there is no Host header"),
        // RFC 9113, section 8.3.1. The absolute form of HTTP/1.1 has precedence over its Host header instead.
        (Some(authority), Some(host), Version::HTTP_2)
            if !authority.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes()) =>
        {
            bad("the Host header and :authority differ")
        }
        _ if parts.headers.get_all(CONTENT_LENGTH).iter().count() > 1 => {
            bad("there is more than one Content-Length header")
        }
        _ if parts.headers.contains_key(CONTENT_LENGTH) && content_length(&parts.headers).is_none() => {
            bad("the Content-Length header is no length")
        }
        _ => Ok(()),
    }
}

/// What comes of it, unless the deadline does first.
async fn before<T>(deadline: Option<Instant>, future: impl Future<Output = T>) -> Result<T, Elapsed> {
    match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline.into(), future).await,
        None => Ok(future.await),
    }
}

/// 504. Only what changes nothing may be repeated, and Kubernetes' clients repeat whatever has a Retry-After.
pub(crate) fn timed_out(why: &str, may_repeat: bool) -> Status {
    Status::gateway_timeout(why, u32::from(may_repeat))
}

/// The request as an endpoint gets it.
fn outbound(parts: &Parts, endpoint: &Endpoint) -> Result<Request<()>, Box<Refused>> {
    let target = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let uri = endpoint
        .uri(target)
        .map_err(|error| Refused::because(Status::bad_request("the URL can't be passed on"), error))?;
    let mut request = Request::new(());
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = uri;
    *request.headers_mut() = parts.headers.clone();
    Ok(request)
}

/// Whether an answer tells how the apiserver itself is. It passes on what pods, services and nodes answer, or that they don't.
fn is_own_affair(info: &RequestInfo<'_>) -> bool {
    &*info.verb == "watch" || !info.is_long_running()
}

/// Whether kube-apiserver itself serves that: it is of one of its own API groups. For another group, an apiserver that answers 503 only passes
/// on that the server behind it is away.
fn is_built_in(info: &RequestInfo<'_>) -> bool {
    const GROUPS: [&str; 23] = [
        "",
        "admissionregistration.k8s.io",
        "apiextensions.k8s.io",
        "apiregistration.k8s.io",
        "apps",
        "authentication.k8s.io",
        "authorization.k8s.io",
        "autoscaling",
        "batch",
        "certificates.k8s.io",
        "coordination.k8s.io",
        "discovery.k8s.io",
        "events.k8s.io",
        "flowcontrol.apiserver.k8s.io",
        "internal.apiserver.k8s.io",
        "networking.k8s.io",
        "node.k8s.io",
        "policy",
        "rbac.authorization.k8s.io",
        "resource.k8s.io",
        "scheduling.k8s.io",
        "storage.k8s.io",
        "storagemigration.k8s.io",
    ];
    info.is_resource_request && is_own_affair(info) && GROUPS.binary_search(&&*info.api_group).is_ok()
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(CONTENT_LENGTH)?.to_str().ok()?;
    // Rust's own reader takes a sign, too.
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

fn too_long(bytes_max: u64) -> Box<Refused> {
    Refused::new(Status::request_entity_too_large(&format!("limit is {bytes_max}")))
}

pub(crate) fn unavailable_now(why: &'static str) -> Box<Refused> {
    Refused::new(Status::service_unavailable(why).with_retry_after(1))
}

/// The gateway's own answer.
pub(crate) fn respond(status: &Status) -> Response<Body> {
    let mut response = Response::new(Body::from(bytes::Bytes::from(status.to_json())));
    *response.status_mut() = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(status::CONTENT_TYPE));
    headers.insert(HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff"));
    if let Some(seconds) = status.retry_after_seconds() {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Makes an answer of the gateway's own ready to go out, whatever is left of its request.
async fn finish(response: &mut Response<Body>, is_head: bool, mut unread: Option<Inbound>) {
    if let Some(unread) = &mut unread {
        read_off(unread).await;
    }
    let Body::Whole(bytes, rest) = response.body_mut() else { return };
    *rest = unread;
    if is_head {
        // What its length would be is told all the same.
        let length = bytes.take().map_or(0, |bytes| bytes.len());
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
}

fn degraded(degradation: &policy::Degradation) -> Response<Body> {
    let mut response = Response::new(Body::from(degradation.body.clone()));
    *response.status_mut() = degradation.status;
    response.headers_mut().insert(CONTENT_TYPE, degradation.content_type.clone());
    response
}

/// The value of `X-Forwarded-For` for a client's address.
pub(crate) fn forwarded_for(address: SocketAddr) -> HeaderValue {
    let address = address.ip().to_canonical();
    HeaderValue::try_from(address.to_string()).expect("an address is ASCII")
}

/// Of the trace that a request belongs to; empty if there is none. For the access log.
fn trace_id(headers: &HeaderMap) -> String {
    TraceContext::of(headers).map(|context| format!("{:032x}", context.trace_id)).unwrap_or_default()
}

/// The verb as metrics have it: a client can't make up new ones.
fn known_verb(verb: &str) -> &'static str {
    const VERBS: [&str; 13] = [
        "get",
        "list",
        "watch",
        "create",
        "update",
        "patch",
        "delete",
        "deletecollection",
        "proxy",
        "post",
        "put",
        "head",
        "options",
    ];
    VERBS.into_iter().find(|known| *known == verb).unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_behind_an_apiserver_tells_nothing_of_the_apiserver() {
        for (target, expected) in [
            ("/api/v1/namespaces/a/services/b", true),
            ("/api/v1/namespaces/a/pods?watch=1", true),
            ("/apis/apps/v1/deployments", true),
            ("/api/v1/namespaces/a/services/b/proxy/metrics", false),
            ("/api/v1/nodes/b/proxy/stats", false),
            ("/api/v1/namespaces/a/pods/b/exec", false),
            ("/api/v1/namespaces/a/pods/b/log?follow=1", false),
            ("/apis/metrics.k8s.io/v1beta1/nodes", false),
            ("/healthz", false),
        ] {
            assert_eq!(is_built_in(&RequestInfo::parse("GET", target).unwrap()), expected, "{target}");
        }
    }

    #[test]
    fn what_has_two_meanings_is_refused() {
        let with = |version, uri: &str, headers: &[(&'static str, &'static str)]| {
            let mut builder = Request::builder().version(version).uri(uri);
            for (name, value) in headers {
                builder = builder.header(*name, *value);
            }
            check_form(&builder.body(()).unwrap().into_parts().0).map_err(|refused| refused.status.code)
        };
        let (one, two) = (Version::HTTP_11, Version::HTTP_2);
        let host = ("host", "a.test");
        for (version, uri, headers, expected) in [
            (one, "/", &[host][..], Ok(())),
            (one, "/", &[], Err(400)),
            (one, "/", &[host, host], Err(400)),
            (one, "https://b.test/", &[host], Ok(())),
            (Version::HTTP_10, "/", &[], Ok(())),
            (two, "https://a.test/", &[], Ok(())),
            (two, "https://A.test/", &[host], Ok(())),
            (two, "https://b.test/", &[host], Err(400)),
            (two, "https://a.test/", &[host, host], Err(400)),
            (two, "https://a.test/", &[("content-length", "1"), ("content-length", "1")], Err(400)),
            (two, "https://a.test/", &[("content-length", "1,1")], Err(400)),
            (two, "https://a.test/", &[("content-length", "+1")], Err(400)),
            (two, "https://a.test/", &[("content-length", "18446744073709551616")], Err(400)),
            (two, "https://a.test/", &[("content-length", "1")], Ok(())),
        ] {
            assert_eq!(with(version, uri, headers), expected, "{version:?} {uri} {headers:?}");
        }
    }
}
