//! The administrator's listener: health, metrics, and how everything stands.
//!
//! Invariant: it is another port than the clients'; and without the token it tells no more than whether the gateway lives.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use kubewharf_foundation::Shutdown;
use kubewharf_front::{ACCEPT_PAUSE, HEAD_TIMEOUT};
use ring::digest::{SHA256, digest};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::config::Source;
use crate::limits::ADMIN_CONNECTIONS_MAX;
use crate::proxy::Proxy;

/// What the listener shows.
pub(crate) struct Admin {
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) source: Arc<Source>,
    pub(crate) token: Option<String>,
    pub(crate) shutdown: Shutdown,
}

#[derive(Serialize)]
struct Standing {
    generation: u64,
    config_errors: Vec<String>,
    config_warnings: Vec<String>,
    clusters: Vec<ClusterStanding>,
    access_log_lines_dropped: u64,
}

#[derive(Serialize)]
struct ClusterStanding {
    name: String,
    endpoints: Vec<EndpointStanding>,
    flow_control: Vec<SchemaStanding>,
}

#[derive(Serialize)]
struct EndpointStanding {
    url: String,
    state: &'static str,
    reason: String,
    state_seconds: f64,
    in_rotation: bool,
    disabled: bool,
    short_in_flight: u32,
    watch_in_flight: u32,
    bulk_in_flight: u32,
    upgrades: u32,
    connections: [usize; 3],
    requests: u64,
    ejections: u64,
    dials: u64,
    dial_failures: u64,
    connections_lost: u64,
    latency_ms: f64,
}

#[derive(Serialize)]
struct SchemaStanding {
    name: String,
    in_flight: u32,
}

impl Admin {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        }
        match request.uri().path() {
            "/livez" | "/healthz" => return text(StatusCode::OK, "ok\n"),
            "/readyz" if self.shutdown.is_requested() => {
                return text(StatusCode::SERVICE_UNAVAILABLE, "stopping\n");
            }
            "/readyz" => return text(StatusCode::OK, "ok\n"),
            _ => {}
        }
        if !self.lets_in(request) {
            return text(StatusCode::UNAUTHORIZED, "the header Authorization must be Bearer and the admin token\n");
        }
        match request.uri().path() {
            "/metrics" => {
                let mut response = text(StatusCode::OK, self.metrics());
                let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
                response.headers_mut().insert(CONTENT_TYPE, kind);
                response
            }
            "/status" => {
                let json = serde_json::to_vec_pretty(&self.standing()).expect("texts and numbers are JSON");
                let mut response = text(StatusCode::OK, json);
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                response
            }
            _ => text(StatusCode::NOT_FOUND, "there are /livez, /readyz, /metrics and /status\n"),
        }
    }

    fn lets_in(&self, request: &Request<Incoming>) -> bool {
        let Some(token) = &self.token else { return true };
        let given = request.headers().get(AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
        let given = given.strip_prefix(b"Bearer ").unwrap_or_default();
        // Equal digests take equally long to compare, whatever the tokens are.
        digest(&SHA256, given).as_ref() == digest(&SHA256, token.as_bytes()).as_ref()
    }

    fn metrics(&self) -> String {
        let mut text = self.proxy.metrics.text();
        let end = text.rfind("# EOF").unwrap_or(text.len());
        let mut more = String::new();
        let status = self.source.status();
        more += "# TYPE kubegateway_proxy_config_generation gauge\n";
        more += &format!("kubegateway_proxy_config_generation {}\n", status.generation);
        more += "# TYPE kubegateway_proxy_config_errors gauge\n";
        more += &format!("kubegateway_proxy_config_errors {}\n", status.errors.len());
        more += "# TYPE kubegateway_proxy_upstream_unhealthy gauge\n";
        for cluster in self.proxy.clusters.load().iter() {
            for endpoint in cluster.upstream.status() {
                let unhealthy = i32::from(!endpoint.in_rotation);
                // Names and URLs have no character that would have to be escaped.
                more += &format!(
                    "kubegateway_proxy_upstream_unhealthy{{cluster=\"{}\",endpoint=\"{}\"}} {unhealthy}\n",
                    cluster.config.name, endpoint.url
                );
            }
        }
        text.insert_str(end, &more);
        text
    }

    fn standing(&self) -> Standing {
        let status = self.source.status();
        let lines = |problems: &[crate::config::Problem]| problems.iter().map(ToString::to_string).collect();
        let clusters = self.proxy.clusters.load();
        let clusters = clusters.iter().map(|cluster| ClusterStanding {
            name: cluster.config.name.to_string(),
            endpoints: cluster
                .upstream
                .status()
                .into_iter()
                .map(|endpoint| EndpointStanding {
                    url: endpoint.url.to_string(),
                    state: endpoint.state.as_str(),
                    reason: endpoint.reason,
                    state_seconds: endpoint.state_age.as_secs_f64(),
                    in_rotation: endpoint.in_rotation,
                    disabled: endpoint.disabled,
                    short_in_flight: endpoint.short_in_flight,
                    watch_in_flight: endpoint.watch_in_flight,
                    bulk_in_flight: endpoint.bulk_in_flight,
                    upgrades: endpoint.upgrades,
                    connections: endpoint.connections,
                    requests: endpoint.requests,
                    ejections: endpoint.ejections,
                    dials: endpoint.dials,
                    dial_failures: endpoint.dial_failures,
                    connections_lost: endpoint.connections_lost,
                    latency_ms: endpoint.latency.as_secs_f64() * 1e3,
                })
                .collect(),
            flow_control: cluster
                .limits()
                .schemas()
                .map(|schema| SchemaStanding { name: schema.settings().name.clone(), in_flight: schema.in_flight() })
                .collect(),
        });
        Standing {
            generation: status.generation,
            config_errors: lines(&status.errors),
            config_warnings: lines(&status.warnings),
            clusters: clusters.collect(),
            access_log_lines_dropped: self.proxy.access_log.dropped(),
        }
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// Serves administrators. Has no end.
pub(crate) async fn listen(admin: Arc<Admin>, listener: TcpListener) {
    let mut tasks = JoinSet::new();
    loop {
        let accepted: io::Result<_> = tokio::select! {
            accepted = listener.accept(), if tasks.len() < ADMIN_CONNECTIONS_MAX => accepted,
            Some(_) = tasks.join_next() => continue,
        };
        match accepted {
            Ok((stream, _)) => {
                let admin = admin.clone();
                tasks.spawn(async move {
                    let service = service_fn(|request| {
                        let response = admin.answer(&request);
                        async move { Ok::<_, Infallible>(response) }
                    });
                    let connection = http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(HEAD_TIMEOUT)
                        .serve_connection(TokioIo::new(stream), service);
                    // A client that breaks off is its own affair; one that stays for ever is not.
                    let _ = tokio::time::timeout(Duration::from_secs(600), connection).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "no administrator's connection can be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
