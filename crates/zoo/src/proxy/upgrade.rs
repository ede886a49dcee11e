//! Requests that become streams: exec, attach, port-forward.
//!
//! Invariant: a stream has a connection of its own on both sides, and ends when either does.

use http::header::{CONNECTION, HOST, UPGRADE};
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use kubewharf_kube_api::Status;
use kubewharf_upstream::Strategy;

use bytes::Bytes;

use crate::kinds::Outcome;
use crate::limits::{ANSWER_BYTES_MAX, UPGRADE_ANSWER_TIMEOUT};
use crate::rewrite::Kind;
use crate::upstream::Whole;

use super::{Asked, Body, Wanted};

/// Whether a request asks for a stream.
pub(super) fn is_upgrade(head: &Parts) -> bool {
    head.headers.contains_key(UPGRADE)
}

impl Asked {
    /// Opens the stream upstream and joins the two.
    pub(super) async fn upgrade(
        &self,
        wanted: &Wanted<'_>,
        mut request: Request<Incoming>,
    ) -> Result<Response<Body>, Box<Status>> {
        if wanted.outcome != Outcome::Namespaced || wanted.kind.is_some() {
            return Err(Box::new(Status::bad_request("this is no stream")));
        }
        let unreachable = || Box::new(Status::service_unavailable("the apiserver can't be reached; try again"));
        let pool = self.proxy.upstream.pool();
        let endpoint = pool.pick(Strategy::RoundRobin, None, &[], "").ok_or_else(unreachable)?;
        let opened = endpoint.open_upgrade::<Empty<Bytes>>().await.map_err(|error| {
            tracing::warn!(%error, "no stream to upstream");
            unreachable()
        })?;
        let target = wanted.upstream(self.names())?;
        let target = target.parse().map_err(|_| Box::new(Status::bad_request("the target can't be passed on")))?;
        let uri = endpoint.uri(target).map_err(|error| Box::new(Status::bad_request(error.to_string())))?;
        let mut outbound = Request::new(Empty::<Bytes>::new());
        *outbound.method_mut() = request.method().clone();
        let path = uri.path_and_query().cloned().ok_or_else(unreachable)?;
        *outbound.uri_mut() = path.into();
        let mut headers = self.upstream_headers(None);
        for (name, value) in &self.headers {
            let text = name.as_str();
            if text == "upgrade" || text.starts_with("sec-websocket-") || text.starts_with("x-stream-") {
                headers.append(name.clone(), value.clone());
            }
        }
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        if let Some(host) = uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok()) {
            headers.insert(HOST, host);
        }
        endpoint.authorize(&mut headers);
        super::identity::impersonate(&self.user, self.names(), &mut headers);
        *outbound.headers_mut() = headers;
        let mut sender = opened.sender;
        let lease = opened.lease;
        let answered = tokio::time::timeout(UPGRADE_ANSWER_TIMEOUT, sender.send_request(outbound)).await;
        let mut answer = match answered {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => return Err(Box::new(Status::bad_gateway("the apiserver broke the request off"))),
            Err(_) => return Err(Box::new(Status::gateway_timeout("the apiserver does not answer", 0))),
        };
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            let (head, body) = answer.into_parts();
            let body = http_body_util::Limited::new(body, ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|_| Box::new(Status::bad_gateway("the apiserver's answer broke off")))?.to_bytes();
            let whole = Whole { status: head.status, headers: head.headers, body };
            return self.answer(Kind::of("", "v1", "Status").expect("every table has it"), whole);
        }
        let mut response = Response::new(Body::Whole(Bytes::new()));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        for (name, value) in answer.headers() {
            let text = name.as_str();
            if matches!(text, "upgrade" | "connection")
                || text.starts_with("sec-websocket-")
                || text.starts_with("x-stream-")
            {
                response.headers_mut().append(name.clone(), value.clone());
            }
        }
        let server = hyper::upgrade::on(&mut answer);
        let client = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let (Ok(client), Ok(server)) = (client.await, server.await) else { return };
            // How it ended, both ends know.
            let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(server)).await;
            drop(lease);
        });
        Ok(response)
    }
}
