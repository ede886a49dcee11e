//! Asks a cluster's kube-apiservers about tokens and accesses, with the gateway's own credentials.
//!
//! Invariant: a question is a JSON request of bounded size to one endpoint after another until one answers; what is not the answer of an
//! apiserver to that very question is an error, never a verdict.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::{ACCEPT, CONTENT_TYPE, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, StatusCode};
use kubewharf_kube_api::review::{
    ResourceAttributes, SUBJECT_ACCESS_REVIEW_PATH, SubjectAccessReview, SubjectAccessReviewSpec, TOKEN_REVIEW_PATH,
    TokenReview,
};
use kubewharf_upstream::{Class, EndpointId, Outcome, Strategy, Upstream, read_whole};

use crate::User;
use crate::authentication::{AccessAttributes, AccessVerdict, ReviewError, Reviewer, TokenVerdict};
use crate::config::OwnRequests;
use crate::limit::{FlowLimit, Schema, SchemaSettings};
use crate::limits::{REVIEW_BYTES_MAX, REVIEW_ENDPOINTS_MAX};

/// What the gateway calls itself in its own requests.
pub(crate) const OWN_USER_AGENT: &str = concat!("kubewharf-gateway/", env!("CARGO_PKG_VERSION"));

/// The reviewer of one cluster.
pub(crate) struct ClusterReviewer {
    upstream: Arc<Upstream>,
    limit: Option<Arc<Schema>>,
}

impl ClusterReviewer {
    pub(crate) fn new(upstream: Arc<Upstream>, limit: Option<OwnRequests>) -> Self {
        let limit = limit.map(|limit| {
            Schema::new(SchemaSettings {
                name: "clientConfig".to_owned(),
                // Less than one a second too.
                limit: FlowLimit::OneEach {
                    interval: Duration::from_secs_f64(1.0 / limit.per_second),
                    burst: limit.burst,
                },
                per_user: FlowLimit::Exempt,
            })
        });
        Self { upstream, limit: limit.map(Arc::new) }
    }

    async fn post(&self, path: &'static str, body: Bytes) -> Result<Bytes, ReviewError> {
        // Kept through the request, although a bucket has nothing to give back.
        let _admission = match &self.limit {
            Some(limit) => Some(limit.admit("", Instant::now()).map_err(|_| {
                ReviewError::Unavailable("the gateway's own requests are at their limit (clientConfig.qps)".to_owned())
            })?),
            None => None,
        };
        let mut tried: Vec<EndpointId> = Vec::new();
        let mut last = ReviewError::Unavailable("the cluster has no endpoint".to_owned());
        while tried.len() < REVIEW_ENDPOINTS_MAX {
            let Some(endpoint) = self.upstream.pick(Strategy::RoundRobin, None, &tried, "") else { break };
            tried.push(endpoint.id());
            let uri = endpoint
                .uri(PathAndQuery::from_static(path))
                .map_err(|error| ReviewError::Unavailable(error.to_string()))?;
            let mut request = Request::new(());
            *request.method_mut() = Method::POST;
            *request.uri_mut() = uri;
            let headers = request.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
            headers.insert(USER_AGENT, HeaderValue::from_static(OWN_USER_AGENT));
            // A review changes nothing, so it may be asked again whatever became of it.
            let elsewhere = || tried.len() < REVIEW_ENDPOINTS_MAX && self.upstream.has_another(None, &tried);
            match exchange(&endpoint, request, body.clone(), elsewhere).await {
                Ok((StatusCode::OK | StatusCode::CREATED, reply)) => return Ok(reply),
                Ok((status, reply)) => {
                    let text = String::from_utf8_lossy(&reply[..reply.len().min(512)]).into_owned();
                    last = ReviewError::Unavailable(format!("{}: {status}: {text}", endpoint.url()));
                    if !status.is_server_error() {
                        break;
                    }
                    if status == StatusCode::SERVICE_UNAVAILABLE {
                        endpoint.report(Outcome::Unavailable);
                    }
                }
                Err(problem) => last = ReviewError::Unavailable(problem),
            }
        }
        Err(last)
    }
}

/// One request with its whole answer. If the endpoint hangs, it is given up as soon as it can be sent `elsewhere`.
async fn exchange(
    endpoint: &Arc<kubewharf_upstream::Endpoint>,
    request: Request<()>,
    body: Bytes,
    elsewhere: impl Fn() -> bool + Unpin,
) -> Result<(StatusCode, Bytes), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let mut exchange = endpoint.send(Class::Short, request, false).await.map_err(|error| text(&error))?;
    // A review is far smaller than any stream's window; what does not fit waits in h2 until it does.
    exchange.body.send_data(body, true).map_err(|error| text(&error))?;
    let response = exchange.response.abandon_when_hung(Some(elsewhere)).await.map_err(|error| text(&error))?;
    endpoint.report(Outcome::Answered);
    let status = response.status();
    let reply = read_whole(&mut response.into_body(), REVIEW_BYTES_MAX).await;
    let reply = reply.map_err(|error| format!("endpoint {}: the reply to a review: {error}", endpoint.url()))?;
    drop(exchange.lease);
    Ok((status, reply))
}

impl Reviewer for ClusterReviewer {
    fn review_token<'a>(
        &'a self,
        token: &'a str,
        audiences: &'a [String],
    ) -> BoxFuture<'a, Result<TokenVerdict, ReviewError>> {
        Box::pin(async move {
            let question = TokenReview::of_token(token, audiences).to_json();
            let reply = self.post(TOKEN_REVIEW_PATH, question.into()).await?;
            let review = TokenReview::from_json(&reply).map_err(|error| ReviewError::Unavailable(error.to_string()))?;
            let status = review.status;
            let user = status.authenticated.then_some(User {
                name: status.user.username,
                uid: status.user.uid,
                groups: status.user.groups,
                extra: status.user.extra,
            });
            Ok(TokenVerdict { user, audiences: status.audiences, error: status.error })
        })
    }

    fn review_access<'a>(
        &'a self,
        attributes: AccessAttributes<'a>,
    ) -> BoxFuture<'a, Result<AccessVerdict, ReviewError>> {
        Box::pin(async move {
            let user = attributes.user;
            let review = SubjectAccessReview {
                spec: SubjectAccessReviewSpec {
                    resource_attributes: Some(ResourceAttributes {
                        namespace: attributes.namespace.into(),
                        verb: attributes.verb.into(),
                        group: attributes.api_group.into(),
                        version: attributes.api_version.into(),
                        resource: attributes.resource.into(),
                        subresource: attributes.subresource.into(),
                        name: attributes.name.into(),
                        ..ResourceAttributes::default()
                    }),
                    user: (&*user.name).into(),
                    groups: (&*user.groups).into(),
                    extra: (&*user.extra).into(),
                    uid: (&*user.uid).into(),
                    ..SubjectAccessReviewSpec::default()
                },
                ..SubjectAccessReview::default()
            };
            let reply = self.post(SUBJECT_ACCESS_REVIEW_PATH, review.to_json().into()).await?;
            let review =
                SubjectAccessReview::from_json(&reply).map_err(|error| ReviewError::Unavailable(error.to_string()))?;
            let status = review.status;
            Ok(AccessVerdict { allowed: status.allowed && !status.denied, reason: status.reason })
        })
    }
}
