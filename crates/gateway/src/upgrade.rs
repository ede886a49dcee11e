//! Requests that become streams of bytes: exec, attach, port-forward, over SPDY and WebSocket.
//!
//! Invariant: such a request passes the same checks as any other, has an HTTP/1.1 connection of its own on both sides, is never sent twice,
//! and not a byte of the client's stream is forwarded before the kube-apiserver has agreed (101) to the very protocol that was asked for.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
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
use kubewharf_front::{Inbound, Pause};
use kubewharf_kube_api::{RequestInfo, Status};
use kubewharf_upstream::{EndpointId, Outcome, Upgrade, UpgradeLease};
use smallvec::SmallVec;

use crate::body::{Body, Http1Body, Pace};
use crate::identity::strip_response;
use crate::limits::{TRIES_MAX, UPGRADE_ANSWER_TIMEOUT};
use crate::proxy::{Admitted, Answer, Place, Refused, timed_out, unavailable_now};
use crate::record::Record;
use crate::splice::splice;

/// Whether a request asks for an upgrade that a kube-apiserver could agree to. Any other such wish is not heard, as HTTP allows (RFC 9110,
/// section 7.8): not that of a request which can't become a stream, as it would only cost a connection of its own; and not that for another
/// version of HTTP, in which a client could then write requests, identities and all, that nobody looks at.
pub(crate) fn is_wanted(parts: &Parts, info: &RequestInfo<'_>) -> bool {
    parts.version == Version::HTTP_11
        && info.is_long_running()
        && parts.headers.get(UPGRADE).is_some_and(|protocol| !names_http(protocol))
        && parts.headers.get_all(CONNECTION).iter().any(|value| {
            value.as_bytes().split(|byte| *byte == b',').any(|word| word.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
        })
}

/// Whether one of the protocols is a version of HTTP, or the TLS that would hide one.
fn names_http(protocols: &HeaderValue) -> bool {
    protocols.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii).any(|protocol| {
        let name = protocol.split(|byte| *byte == b'/').next().unwrap_or_default();
        ["h2", "h2c", "h3", "http", "tls"].iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
    })
}

impl Admitted<'_> {
    /// Sends the request; if it is agreed to, both connections are joined until one ends.
    pub(crate) async fn upgrade(
        &self,
        parts: &mut Parts,
        body: Option<&Inbound>,
        record: &mut Record,
    ) -> Result<Answer, Box<Refused>> {
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
                // Neither need be the apiserver's fault: what it connects to is a kubelet, or anybody's pod.
                Ok(Err(_)) => {
                    return Err(Refused::new(Status::bad_gateway("the kube-apiserver broke the request off")));
                }
                Err(_) => {
                    return Err(Refused::new(timed_out("the kube-apiserver does not answer", false)));
                }
            };
            endpoint.report(Outcome::Answered);
            if response.status() != StatusCode::SWITCHING_PROTOCOLS {
                let (mut head, incoming) = response.into_parts();
                strip_response(&mut head.headers);
                return Ok(Answer::Http1(head, Box::new((incoming, self.pace(), lease))));
            }
            let agreed = response.headers().get(UPGRADE);
            if agreed.is_none_or(|agreed| !agreed.as_bytes().eq_ignore_ascii_case(protocol.as_bytes())) {
                return Err(Refused::new(Status::bad_gateway("the kube-apiserver upgrades to another protocol")));
            }
            let server = hyper::upgrade::on(&mut response);
            let stream = Stream {
                client,
                server,
                idle: self.policy.timeouts.idle,
                _lease: lease,
                _place: self.client.place.clone(),
                _pause: self.pause(),
            };
            let (head, _) = response.into_parts();
            return Ok(Answer::Upgraded(Response::from_parts(head, Body::empty()), Box::new(stream)));
        }
        Err(unavailable_now("no kube-apiserver of the cluster can be reached"))
    }
}

impl Http1Body {
    pub(crate) fn new((incoming, pace, lease): (Incoming, Pace, UpgradeLease), record: Record) -> Self {
        Self { incoming, pace, record, _lease: lease }
    }
}

fn outbound(
    parts: &Parts,
    uri: &Uri,
    protocol: &HeaderValue,
    endpoint: &kubewharf_upstream::Endpoint,
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

/// What a client's and a kube-apiserver's connection become, once the client has been told so.
pub(crate) struct Stream {
    client: OnUpgrade,
    server: OnUpgrade,
    idle: Option<Duration>,
    _lease: UpgradeLease,
    // It is a connection still, and counts as one.
    _place: Arc<Place>,
    _pause: Option<Pause>,
}

impl Stream {
    /// Moves bytes both ways until the end.
    pub(crate) async fn join(mut self, mut record: Record) {
        let (client, server) = match tokio::try_join!(&mut self.client, &mut self.server) {
            Ok(both) => both,
            Err(error) => return tracing::debug!(%error, "an upgrade did not come about"),
        };
        let metrics = record.metrics.clone();
        metrics.upgraded(1);
        let bytes_to_client = AtomicU64::new(0);
        let ended = splice(TokioIo::new(client), TokioIo::new(server), &bytes_to_client, self.idle).await;
        record.answer_bytes = bytes_to_client.into_inner();
        match ended {
            Ok(()) => record.finished(),
            Err(error) => {
                tracing::debug!(%error, "an upgraded connection ended");
                record.broke(if error.kind() == ErrorKind::TimedOut { "idle" } else { "lost" });
            }
        }
        metrics.upgraded(-1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_becomes_a_stream_is_upgraded_and_never_to_another_http() {
        let exec = "/api/v1/namespaces/a/pods/b/exec";
        for (version, target, protocol, connection, expected) in [
            (Version::HTTP_11, exec, "websocket", "Upgrade", true),
            (Version::HTTP_11, exec, "SPDY/3.1", "keep-alive, upgrade", true),
            (Version::HTTP_11, "/api/v1/namespaces/a/services/b/proxy/", "own-protocol", "upgrade", true),
            (Version::HTTP_11, "/api/v1/pods?watch=1", "websocket", "upgrade", true),
            (Version::HTTP_11, "/api/v1/pods", "websocket", "upgrade", false),
            (Version::HTTP_11, "/version", "websocket", "upgrade", false),
            (Version::HTTP_11, exec, "websocket", "keep-alive", false),
            (Version::HTTP_10, exec, "websocket", "upgrade", false),
            (Version::HTTP_11, exec, "h2c", "upgrade", false),
            (Version::HTTP_11, exec, "websocket,H2C", "upgrade", false),
            (Version::HTTP_11, exec, "http/2.0", "upgrade", false),
            (Version::HTTP_11, exec, "TLS/1.3", "upgrade", false),
        ] {
            let request = Request::builder().version(version).header(UPGRADE, protocol).header(CONNECTION, connection);
            let parts = request.body(()).unwrap().into_parts().0;
            let info = RequestInfo::parse("GET", target).unwrap();
            assert_eq!(is_wanted(&parts, &info), expected, "{version:?} {target} {protocol} {connection}");
        }
    }
}
