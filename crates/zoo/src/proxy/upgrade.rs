//! Requests that become streams: exec, attach, port-forward.
//!
//! Invariant: a stream has a connection of its own on both sides, and ends when either does. Not a byte that the client sends is passed on before
//! the apiserver has agreed to the very protocol that was asked for, which is no HTTP: on that connection, zoo's word is believed.

use http::header::{ACCEPT, CONNECTION, HOST, SEC_WEBSOCKET_PROTOCOL, UPGRADE, USER_AGENT};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use kubewharf_front::Inbound;
use kubewharf_kube_api::{RequestInfo, Status};
use kubewharf_upstream::Strategy;

use bytes::Bytes;

use crate::front::Stay;
use crate::kinds::Outcome;
use crate::limits::{UPGRADE_ANSWER_BYTES_MAX, UPGRADE_ANSWER_TIMEOUT};
use crate::rewrite::Kind;
use crate::upstream::Whole;

use super::{Asked, Body, Wanted};

/// A subprotocol of WebSocket that is a credential, which would be one upstream.
const TOKEN_SUBPROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";

/// Whether a request asks for a stream that an apiserver could agree to. Any other such wish is not heard, as HTTP allows (RFC 9110,
/// section 7.8).
pub(super) fn is_wanted(head: &Parts, info: &RequestInfo<'_>) -> bool {
    let has_upgrade = |value: &HeaderValue| words(value).any(|word| word.eq_ignore_ascii_case(b"upgrade"));
    head.version == Version::HTTP_11
        && matches!(&*info.subresource, "exec" | "attach" | "portforward" | "proxy")
        && protocol(&head.headers).is_some()
        && head.headers.get_all(CONNECTION).iter().any(has_upgrade)
}

/// The one protocol that is asked for, or agreed to. Another version of HTTP is none: a client could then write requests, identities and all,
/// that nobody looks at.
fn protocol(headers: &HeaderMap) -> Option<&HeaderValue> {
    let mut all = headers.get_all(UPGRADE).iter();
    let value = all.next().filter(|_| all.next().is_none())?;
    let mut names = words(value);
    let name = names.next().filter(|_| names.next().is_none())?;
    let name = name.split(|byte| *byte == b'/').next().unwrap_or_default();
    let is_http = ["", "h2", "h2c", "h3", "http", "tls"].iter().any(|http| name.eq_ignore_ascii_case(http.as_bytes()));
    (!is_http).then_some(value)
}

fn words(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

/// The subprotocols that may be asked for upstream.
fn subprotocols(value: &HeaderValue) -> Option<HeaderValue> {
    let text = value.to_str().ok()?;
    let kept: Vec<&str> = text
        .split(',')
        .map(str::trim)
        .filter(|word| !word.starts_with(TOKEN_SUBPROTOCOL) && !word.is_empty())
        .collect();
    if kept.is_empty() { None } else { HeaderValue::from_str(&kept.join(", ")).ok() }
}

/// What of a client's request goes upstream.
fn outbound_headers(client: &HeaderMap) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(12);
    for (name, value) in client {
        let text = name.as_str();
        if *name == SEC_WEBSOCKET_PROTOCOL {
            headers.extend(subprotocols(value).map(|value| (name.clone(), value)));
        } else if [USER_AGENT, ACCEPT, UPGRADE].contains(name)
            || text.starts_with("sec-websocket-")
            || text.starts_with("x-stream-")
        {
            headers.append(name.clone(), value.clone());
        }
    }
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers
}

impl Asked {
    /// Opens the stream upstream and joins the two.
    pub(super) async fn upgrade(
        &self,
        wanted: &Wanted<'_>,
        mut request: Request<Inbound>,
        stay: Stay,
    ) -> Result<Response<Body>, Box<Status>> {
        if wanted.outcome != Outcome::Namespaced || wanted.kind.is_some() {
            return Err(Box::new(Status::bad_request("this is no stream")));
        }
        if !request.body().is_end_stream() {
            return Err(Box::new(Status::bad_request("a request for a stream can't have a body")));
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
        let mut headers = outbound_headers(&self.headers);
        if let Some(host) = uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok()) {
            headers.insert(HOST, host);
        }
        endpoint.authorize(&mut headers);
        super::identity::impersonate(&self.user, self.names(), &mut headers);
        *outbound.headers_mut() = headers;
        let mut sender = opened.sender;
        let lease = opened.lease;
        let until = tokio::time::Instant::now() + UPGRADE_ANSWER_TIMEOUT;
        let late = |_| Box::new(Status::gateway_timeout("the apiserver does not answer", 0));
        let answered = tokio::time::timeout_at(until, sender.send_request(outbound)).await.map_err(late)?;
        let mut answer = answered.map_err(|_| Box::new(Status::bad_gateway("the apiserver broke the request off")))?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            let (head, body) = answer.into_parts();
            let body = http_body_util::Limited::new(body, UPGRADE_ANSWER_BYTES_MAX).collect();
            let body = tokio::time::timeout_at(until, body).await.map_err(late)?;
            let body = body.map_err(|_| Box::new(Status::bad_gateway("the apiserver's answer broke off")))?.to_bytes();
            let whole = Whole { status: head.status, headers: head.headers, body };
            return self.answer(Kind::of("", "v1", "Status").expect("every table has it"), whole);
        }
        let (asked, agreed) = (protocol(&self.headers), protocol(answer.headers()));
        if !asked.zip(agreed).is_some_and(|(asked, agreed)| asked.as_bytes().eq_ignore_ascii_case(agreed.as_bytes())) {
            return Err(Box::new(Status::bad_gateway("the apiserver has agreed to another protocol")));
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
            let _pause = stay.pause();
            let (Ok(client), Ok(server)) = (client.await, server.await) else { return };
            let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
            tokio::select! {
                // How it ended, both ends know.
                _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                () = stay.is_over() => {}
            }
            drop((lease, stay));
        });
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::new(());
        for (name, value) in headers {
            let name = http::HeaderName::from_bytes(name.as_bytes()).expect("a name");
            request.headers_mut().append(name, HeaderValue::from_str(value).expect("a value"));
        }
        request.into_parts().0
    }

    #[test]
    fn only_what_can_be_a_stream_is_one() {
        let wants = |target: &str, headers: &[(&str, &str)]| {
            let info = RequestInfo::parse("GET", target).expect("a request");
            is_wanted(&head(headers), &info)
        };
        let exec = "/api/v1/namespaces/default/pods/a/exec?command=ls";
        let connection = ("connection", "keep-alive, Upgrade");
        for protocol in ["websocket", "SPDY/3.1"] {
            assert!(wants(exec, &[connection, ("upgrade", protocol)]));
        }
        assert!(!wants("/api/v1/namespaces/default/pods/a/log", &[connection, ("upgrade", "websocket")]));
        assert!(!wants("/api/v1/namespaces/default/pods/a", &[connection, ("upgrade", "websocket")]));
        assert!(!wants(exec, &[("upgrade", "websocket")]));
        assert!(!wants(exec, &[connection]));
        for protocol in ["h2c", "HTTP/2.0", "websocket, h2c", "TLS/1.0", "", "H2C"] {
            assert!(!wants(exec, &[connection, ("upgrade", protocol)]), "{protocol}");
        }
        assert!(!wants(exec, &[connection, ("upgrade", "websocket"), ("upgrade", "h2c")]));
    }

    #[test]
    fn only_the_intended_headers_go_upstream() {
        let head = head(&[
            ("authorization", "Bearer a"),
            ("impersonate-user", "b"),
            ("x-remote-user", "c"),
            ("content-length", "5"),
            ("transfer-encoding", "chunked"),
            ("host", "d"),
            ("cookie", "e"),
            ("connection", "upgrade, x-stream-protocol-version"),
            ("upgrade", "websocket"),
            ("user-agent", "kubectl"),
            ("x-stream-protocol-version", "v5.channel.k8s.io"),
            ("sec-websocket-key", "f"),
            ("sec-websocket-protocol", "base64url.bearer.authorization.k8s.io.Zm9v, v5.channel.k8s.io"),
            ("sec-websocket-protocol", "base64url.bearer.authorization.k8s.io.Zm9v"),
        ]);
        let sent = outbound_headers(&head.headers);
        let mut sent: Vec<_> =
            sent.iter().map(|(name, value)| (name.as_str(), value.to_str().expect("text"))).collect();
        sent.sort_unstable();
        let expected = [
            ("connection", "Upgrade"),
            ("sec-websocket-key", "f"),
            ("sec-websocket-protocol", "v5.channel.k8s.io"),
            ("upgrade", "websocket"),
            ("user-agent", "kubectl"),
            ("x-stream-protocol-version", "v5.channel.k8s.io"),
        ];
        assert_eq!(sent, expected);
    }
}
