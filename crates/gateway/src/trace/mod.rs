//! Traces, by choice: a span for each request that is sampled, and the span's context on the request's way to the kube-apiserver.
//!
//! [`context`] reads and writes `traceparent`, `export` takes ended spans to an OpenTelemetry collector, `otlp` is how they look there.
//!
//! A span begins when the head of its request has come and ends when its answer has, however that ends: a watch's span lasts as long as the
//! watch, as a span tells how long something took, and reaches the collector only then. The client decides whether its request is recorded if
//! it has begun a trace; else a share of the traces is, by their ids.
//!
//! Invariant: no request waits for its span, nor fails for it. What the collector does not take in time is counted and left out. Without a
//! collector, no header is changed.

mod context;
mod export;
mod otlp;

use std::borrow::Cow;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::header::{HOST, USER_AGENT};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Uri, Version};
use kubewharf_kube_api::RequestInfo;
use prometheus_client::metrics::counter::Counter;

pub(crate) use self::context::TraceContext;
use self::context::{TRACEPARENT, TRACESTATE};
pub(crate) use self::export::Exporter;
use self::export::Queue;
use crate::http_client::HttpError;
use crate::ids::{random_u128, unrepeated};
use crate::limits::{SPAN_RESOURCE_BYTES_MAX, SPAN_TEXT_BYTES_MAX, TRACE_STATE_BYTES_MAX};
use crate::record::Record;

/// Where spans go, and which.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceOptions {
    /// Where the collector takes them.
    pub endpoint: TracesEndpoint,
    /// Whose certificates the collector may have (a PEM file), if it is asked by HTTPS; the system's authorities if not set.
    pub authorities: Option<PathBuf>,
    /// Under which name the gateway's spans are found (`service.name`).
    pub service_name: String,
    /// The share of traces that are recorded, from 0 to 1, of those that no client has decided about.
    pub sampling_ratio: f64,
}

/// The URL at which a collector takes traces by OTLP over HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TracesEndpoint(Uri);

/// A URL that is none of a collector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it must be http://HOST[:PORT][/PATH] or https://HOST[:PORT][/PATH], without a user's name")]
pub struct NotAnEndpoint;

/// What OTLP adds to the URL of a collector that takes more than traces.
const TRACES_PATH: &str = "/v1/traces";

impl TracesEndpoint {
    /// The URL as it is: the meaning of `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`.
    ///
    /// # Errors
    ///
    /// If nothing can be sent there.
    pub fn exactly(url: &str) -> Result<Self, NotAnEndpoint> {
        let uri: Uri = url.parse().map_err(|_| NotAnEndpoint)?;
        let authority = uri.authority().ok_or(NotAnEndpoint)?;
        let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
        if !is_http || authority.host().is_empty() || authority.as_str().contains('@') {
            return Err(NotAnEndpoint);
        }
        Ok(Self(uri))
    }

    /// The place for traces beneath a URL: the meaning of `OTEL_EXPORTER_OTLP_ENDPOINT`.
    ///
    /// # Errors
    ///
    /// If nothing can be sent there.
    pub fn beneath(url: &str) -> Result<Self, NotAnEndpoint> {
        Self::exactly(&format!("{}{TRACES_PATH}", url.trim_end_matches('/')))
    }

    fn is_https(&self) -> bool {
        self.0.scheme_str() == Some("https")
    }
}

impl FromStr for TracesEndpoint {
    type Err = NotAnEndpoint;

    /// The URL as it is, or the usual place beneath it if it has no path.
    fn from_str(url: &str) -> Result<Self, NotAnEndpoint> {
        let endpoint = Self::exactly(url)?;
        if endpoint.0.path() == "/" && endpoint.0.query().is_none() { Self::beneath(url) } else { Ok(endpoint) }
    }
}

/// Why there can be no traces.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// The file of authorities can't be read.
    #[error("--otlp-ca-file: can't read {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Nobody is trusted.
    #[error("traces can't be sent by HTTPS: {0}")]
    Client(#[from] HttpError),
}

/// Begins spans, and takes them when they have ended.
pub(crate) struct Tracer {
    queue: Arc<Queue>,
    dropped: Counter,
    sampling: Sampling,
}

impl Tracer {
    /// With whom the spans leave; `dropped` counts those that don't.
    ///
    /// # Errors
    ///
    /// If the collector could not be trusted.
    pub(crate) fn new(options: &TraceOptions, dropped: Counter) -> Result<(Arc<Self>, Exporter), TraceError> {
        let queue = Arc::new(Queue::default());
        let exporter = Exporter::new(options, queue.clone(), dropped.clone())?;
        let sampling = Sampling::new(options.sampling_ratio);
        Ok((Arc::new(Self { queue, dropped, sampling }), exporter))
    }

    /// Begins the span of a request that is sampled. Either way the request carries the context that is its kube-apiserver's from here.
    pub(crate) fn begin(self: &Arc<Self>, parts: &mut Parts, client: IpAddr) -> Option<Box<Span>> {
        let parent = TraceContext::of(&parts.headers);
        if parent.is_some_and(|parent| !parent.is_sampled()) {
            // It goes on as it came: there is no span in between.
            return None;
        }
        let span_id = random_id();
        let context = match parent {
            Some(parent) => parent.with_span(span_id),
            None => {
                let trace_id = random_u128().max(1);
                // Of another trace, or of none.
                parts.headers.remove(&TRACESTATE);
                TraceContext::new(trace_id, span_id, self.sampling.takes(trace_id))
            }
        };
        parts.headers.insert(&TRACEPARENT, unrepeated(context.to_header()));
        context.is_sampled().then(|| Box::new(Span::new(self.clone(), context, parent, parts, client)))
    }

    fn end(&self, span: Box<Span>) {
        if !self.queue.push(span) {
            self.dropped.inc();
        }
    }
}

/// Which traces are recorded that no client has decided about: by their ids, so that all who see one and take the same share agree.
#[derive(Clone, Copy, Debug)]
struct Sampling {
    /// Of the 63 bits that are looked at.
    below: u64,
}

impl Sampling {
    fn new(ratio: f64) -> Self {
        let below = (ratio.clamp(0.0, 1.0) * (1_u64 << 63) as f64) as u64;
        Self { below }
    }

    fn takes(self, trace_id: u128) -> bool {
        // The last 64 bits, of which OpenTelemetry's samplers take 63.
        (trace_id as u64) >> 1 < self.below
    }
}

/// What becomes a span at the collector. Boxed: requests that are not recorded have no room for it.
pub(crate) struct Span {
    /// Who takes it when it has ended; no longer there when it waits to leave.
    tracer: Option<Arc<Tracer>>,
    context: TraceContext,
    /// The span of the client.
    parent: Option<TraceContext>,
    trace_state: String,
    begun: SystemTime,
    /// What it is about, after the verb.
    subject: String,
    method: Method,
    path: String,
    /// The host that the client asked, and the port if it named one.
    host: String,
    port: Option<u16>,
    version: Version,
    user_agent: String,
    client: IpAddr,
    pub(crate) cluster: Option<Arc<str>>,
    pub(crate) policy: Option<Arc<str>>,
    user: String,
    impersonator: String,
    audit_id: Option<HeaderValue>,
    end: Ended,
}

/// What is known of a span when it has ended.
#[derive(Default)]
struct Ended {
    lasted: Duration,
    verb: &'static str,
    /// 0 if no answer began.
    status: u16,
    endpoint: Option<Arc<str>>,
    tries: u32,
    answer_bytes: u64,
    how: &'static str,
}

impl Span {
    fn new(
        tracer: Arc<Tracer>,
        context: TraceContext,
        parent: Option<TraceContext>,
        parts: &Parts,
        client: IpAddr,
    ) -> Self {
        let text = |name| parts.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let authority = match parts.uri.authority() {
            Some(authority) => Some(Cow::Borrowed(authority)),
            None => text(HOST).and_then(|host| host.parse::<Authority>().ok()).map(Cow::Owned),
        };
        Self {
            tracer: Some(tracer),
            context,
            parent,
            trace_state: trace_state(&parts.headers),
            begun: SystemTime::now(),
            subject: String::new(),
            method: parts.method.clone(),
            path: shortened(parts.uri.path()),
            host: authority.as_ref().map(|authority| shortened(authority.host())).unwrap_or_default(),
            port: authority.and_then(|authority| authority.port_u16()),
            version: parts.version,
            user_agent: text(USER_AGENT).map(shortened).unwrap_or_default(),
            client,
            cluster: None,
            policy: None,
            user: String::new(),
            impersonator: String::new(),
            audit_id: None,
            end: Ended::default(),
        }
    }

    /// Who asks for what. Told only of users who are known: nobody else can make up names of spans.
    pub(crate) fn asks(&mut self, info: &RequestInfo<'_>, user: &str, impersonator: Option<&str>) {
        self.subject = subject(info);
        self.user = shortened(user);
        self.impersonator = impersonator.map(shortened).unwrap_or_default();
    }

    /// By which the request is found in the audit log.
    pub(crate) fn is_audited_as(&mut self, audit_id: HeaderValue) {
        self.audit_id = Some(audit_id);
    }

    /// It has ended, and goes to the collector.
    pub(crate) fn end(mut self: Box<Self>, record: &Record) {
        self.end = Ended {
            lasted: record.begun.elapsed(),
            verb: record.verb,
            status: record.status,
            endpoint: record.endpoint.clone(),
            tries: record.tries,
            answer_bytes: record.answer_bytes,
            how: record.end(),
        };
        if let Some(tracer) = self.tracer.take() {
            tracer.end(self);
        }
    }
}

/// Never zero, which is no span's.
fn random_id() -> u64 {
    (random_u128() as u64).max(1)
}

/// The beginning of what a client wrote.
fn beginning(text: &str) -> &str {
    &text[..text.floor_char_boundary(SPAN_TEXT_BYTES_MAX)]
}

fn shortened(text: &str) -> String {
    beginning(text).to_owned()
}

/// All of it in one, or nothing: a part of it would be another one.
fn trace_state(headers: &HeaderMap) -> String {
    let mut all = String::new();
    for value in headers.get_all(&TRACESTATE) {
        let Ok(value) = value.to_str() else { return String::new() };
        if all.len() + 1 + value.len() > TRACE_STATE_BYTES_MAX {
            return String::new();
        }
        if !all.is_empty() {
            all.push(',');
        }
        all += value;
    }
    all
}

/// The resource and subresource, or the first part of a path that Kubernetes has. Few, as names of spans have to be: nothing that only one
/// client could have thought of.
fn subject(info: &RequestInfo<'_>) -> String {
    const PATHS: [&str; 9] = ["api", "apis", "healthz", "livez", "logs", "metrics", "openapi", "readyz", "version"];
    let is_name = |text: &str| {
        text.len() <= SPAN_RESOURCE_BYTES_MAX
            && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.'))
    };
    if !info.is_resource_request {
        let first = info.path.split('/').nth(1).unwrap_or_default();
        return PATHS.into_iter().find(|path| *path == first).map(|path| format!("/{path}")).unwrap_or_default();
    }
    match (&*info.resource, &*info.subresource) {
        (resource, "") if is_name(resource) => resource.to_owned(),
        (resource, subresource) if is_name(resource) && is_name(subresource) => format!("{resource}/{subresource}"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests;
