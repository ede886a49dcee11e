//! Requests that become streams of bytes: exec, attach, port-forward, over SPDY and WebSocket.
//!
//! Invariant: such a request passes the same checks as any other, has an HTTP/1.1 connection of its own on both sides, is never sent twice,
//! and not a byte of the client's stream is forwarded before the kube-apiserver has agreed (101) to the very protocol that was asked for.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, UPGRADE};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Response, StatusCode, Uri, Version};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use kubewharf_kube_api::Status;
use smallvec::SmallVec;

use crate::body::{Body, Http1Body};
use crate::identity::strip_response;
use crate::limits::{TRIES_MAX, UPGRADE_ANSWER_TIMEOUT};
use crate::proxy::{Admitted, Answer, Refused, unavailable_now};
use crate::record::Record;
use crate::upstream::{EndpointId, Outcome, Upgrade};

/// Whether a request asks for an upgrade.
pub(crate) fn is_wanted(parts: &Parts) -> bool {
    parts.version == Version::HTTP_11
        && parts.headers.contains_key(UPGRADE)
        && parts.headers.get_all(CONNECTION).iter().any(|value| {
            value.as_bytes().split(|byte| *byte == b',').any(|word| word.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
        })
}

impl Admitted<'_> {
    /// Sends the request; if it is agreed to, both connections are joined until one ends.
    pub(crate) async fn upgrade(
        &self,
        parts: &mut Parts,
        body: Option<&Incoming>,
        record: &mut Record,
    ) -> Result<Answer, Box<Refused>> {
        use http_body::Body as _;
        if body.is_some_and(|body| !body.is_end_stream()) {
            return Err(Refused::new(Status::bad_request("a request for an upgrade can't have a body")));
        }
        let Some(client) = parts.extensions.remove::<OnUpgrade>() else {
            return Err(Refused::new(Status::bad_request("this connection can't be upgraded")));
        };
        let Some(protocol) = parts.headers.get(UPGRADE).cloned() else {
            return Err(Refused::new(Status::bad_request("there is no Upgrade header")));
        };
        self.prepare(&mut parts.headers, record);
        let mut tried: SmallVec<[EndpointId; TRIES_MAX]> = SmallVec::new();
        while tried.len() < TRIES_MAX {
            let Some(endpoint) = self.pick(&tried) else { break };
            tried.push(endpoint.id());
            record.tries += 1;
            record.endpoint = Some(endpoint.url().clone());
            // Until a connection is there, nothing was sent.
            let Ok(Upgrade { mut sender, lease }) = endpoint.open_upgrade::<Empty<Bytes>>().await else { continue };
            let target = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
            let uri = endpoint
                .uri(target)
                .map_err(|error| Refused::new(Status::bad_request(format!("the URL can't be passed on: {error}"))))?;
            let request = outbound(parts, &uri, &protocol, &endpoint)?;
            let answered = tokio::time::timeout(UPGRADE_ANSWER_TIMEOUT, sender.send_request(request)).await;
            let mut response = match answered {
                Ok(Ok(response)) => response,
                Ok(Err(_)) => {
                    endpoint.report(Outcome::Broken);
                    return Err(Refused::new(Status::bad_gateway("the kube-apiserver broke the request off")));
                }
                Err(_) => {
                    endpoint.report(Outcome::Deadline);
                    return Err(Refused::new(Status::gateway_timeout("the kube-apiserver does not answer", 1)));
                }
            };
            endpoint.report(Outcome::Answered);
            if response.status() != StatusCode::SWITCHING_PROTOCOLS {
                let (mut head, incoming) = response.into_parts();
                strip_response(&mut head.headers);
                return Ok(Answer::Http1(head, Box::new((incoming, lease))));
            }
            let agreed = response.headers().get(UPGRADE);
            if agreed.is_none_or(|agreed| !agreed.as_bytes().eq_ignore_ascii_case(protocol.as_bytes())) {
                return Err(Refused::new(Status::bad_gateway("the kube-apiserver upgrades to another protocol")));
            }
            let server = hyper::upgrade::on(&mut response);
            let idle = self.policy.timeouts.idle;
            let connections = self.client.proxy.metrics.clone();
            tokio::spawn(async move {
                connections.upgraded(1);
                join(client, server, idle).await;
                connections.upgraded(-1);
                drop(lease);
            });
            let (head, _) = response.into_parts();
            return Ok(Answer::Whole(Response::from_parts(head, Body::empty())));
        }
        Err(unavailable_now("no kube-apiserver of the cluster can be reached"))
    }
}

impl Http1Body {
    pub(crate) fn new((incoming, lease): (Incoming, crate::upstream::UpgradeLease), record: Record) -> Self {
        Self { incoming, record, _lease: lease }
    }
}

fn outbound(
    parts: &Parts,
    uri: &Uri,
    protocol: &HeaderValue,
    endpoint: &crate::upstream::Endpoint,
) -> Result<Request<Empty<Bytes>>, Box<Refused>> {
    let mut request = Request::new(Empty::new());
    *request.method_mut() = parts.method.clone();
    // HTTP/1.1 has the path alone in its first line.
    *request.uri_mut() = Uri::from(uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/")));
    let headers = request.headers_mut();
    headers.clone_from(&parts.headers);
    let host = uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    headers.insert(HOST, host.ok_or_else(|| unavailable_now("the endpoint has no host"))?);
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, protocol.clone());
    if parts.headers.contains_key(CONTENT_LENGTH) {
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    endpoint.authorize(headers);
    Ok(request)
}

/// Moves bytes both ways until one side ends.
async fn join(client: OnUpgrade, server: OnUpgrade, idle: Option<Duration>) {
    let (client, server) = match tokio::try_join!(client, server) {
        Ok(both) => both,
        Err(error) => return tracing::debug!(%error, "an upgrade did not come about"),
    };
    let (client, server) = (TokioIo::new(client), TokioIo::new(server));
    if let Err(error) = crate::splice::splice(client, server, idle).await {
        tracing::debug!(%error, "an upgraded connection ended");
    }
}
