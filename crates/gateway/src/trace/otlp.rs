//! How spans look to a collector: OTLP's JSON, by OpenTelemetry's conventions for HTTP servers.
//!
//! OTLP's JSON is protobuf's, but for ids, which are hexadecimal; numbers of 64 bits are texts.

use std::fmt::Display;
use std::time::UNIX_EPOCH;

use http::{Method, Version};
use serde::{Serialize, Serializer};

use super::Span;

/// `SPAN_KIND_SERVER`.
const SERVER: u8 = 2;
/// `STATUS_CODE_ERROR`.
const ERROR: u8 = 2;
/// Of a span's flags: it is known whether its parent is another process's.
const KNOWS_PARENT: u32 = 0x100;
/// Of a span's flags: its parent is.
const HAS_REMOTE_PARENT: u32 = 0x200;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Export<'a> {
    resource_spans: [ResourceSpans<'a>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ResourceSpans<'a> {
    resource: Resource<'a>,
    scope_spans: [ScopeSpans<'a>; 1],
}

#[derive(Serialize)]
struct Resource<'a> {
    attributes: [Attribute<'a>; 2],
}

#[derive(Serialize)]
struct ScopeSpans<'a> {
    scope: Scope,
    spans: Vec<Entry<'a>>,
}

#[derive(Serialize)]
struct Scope {
    name: &'static str,
    version: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry<'a> {
    trace_id: String,
    span_id: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    trace_state: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_span_id: Option<String>,
    flags: u32,
    name: String,
    kind: u8,
    #[serde(serialize_with = "text")]
    start_time_unix_nano: u128,
    #[serde(serialize_with = "text")]
    end_time_unix_nano: u128,
    attributes: Vec<Attribute<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
}

#[derive(Serialize)]
struct Status {
    code: u8,
    #[serde(skip_serializing_if = "str::is_empty")]
    message: &'static str,
}

#[derive(Serialize)]
struct Attribute<'a> {
    key: &'static str,
    value: Value<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum Value<'a> {
    StringValue(&'a str),
    #[serde(serialize_with = "text")]
    IntValue(u64),
}

fn text<S: Serializer>(number: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(number)
}

/// The body of a request to the collector.
pub(super) fn export(service_name: &str, spans: &[Box<Span>]) -> Vec<u8> {
    let string = |key, value| Attribute { key, value: Value::StringValue(value) };
    let attributes = [string("service.name", service_name), string("service.version", env!("CARGO_PKG_VERSION"))];
    let clients: Vec<Texts> = spans.iter().map(|span| Texts::of(span)).collect();
    let spans = spans.iter().zip(&clients).map(|(span, texts)| entry(span, texts)).collect();
    let scope = Scope { name: "kubegateway", version: env!("CARGO_PKG_VERSION") };
    let scope_spans = [ScopeSpans { scope, spans }];
    let resource_spans = [ResourceSpans { resource: Resource { attributes }, scope_spans }];
    serde_json::to_vec(&Export { resource_spans }).expect("texts and numbers are JSON")
}

/// What an entry only refers to.
struct Texts {
    client: String,
    status: String,
}

impl Texts {
    fn of(span: &Span) -> Self {
        Self { client: span.client.to_string(), status: span.end.status.to_string() }
    }
}

fn entry<'a>(span: &'a Span, texts: &'a Texts) -> Entry<'a> {
    let begun = span.begun.duration_since(UNIX_EPOCH).unwrap_or_default();
    let remote = if span.parent.is_some() { HAS_REMOTE_PARENT } else { 0 };
    let error = error(span, texts);
    Entry {
        trace_id: format!("{:032x}", span.context.trace_id),
        span_id: format!("{:016x}", span.context.span_id),
        trace_state: &span.trace_state,
        parent_span_id: span.parent.map(|parent| format!("{:016x}", parent.span_id)),
        flags: u32::from(span.context.flags()) | KNOWS_PARENT | remote,
        name: name(span),
        kind: SERVER,
        start_time_unix_nano: begun.as_nanos(),
        // By a clock that does not jump meanwhile.
        end_time_unix_nano: (begun + span.end.lasted).as_nanos(),
        attributes: attributes(span, texts, error),
        status: error
            .map(|error| Status { code: ERROR, message: if error == texts.status { "" } else { span.end.how } }),
    }
}

/// The verb and what it is about. Both are few: see [`super::subject`].
fn name(span: &Span) -> String {
    let verb = match span.end.verb {
        // It was refused before it was understood.
        "" => known_method(&span.method).unwrap_or("HTTP"),
        verb => verb,
    };
    if span.subject.is_empty() { verb.to_owned() } else { format!("{verb} {}", span.subject) }
}

/// Why it failed, if it did, in one word. A client that leaves is no failure; a watch that ends because the gateway does, neither.
fn error<'a>(span: &Span, texts: &'a Texts) -> Option<&'a str> {
    match (span.end.how, span.end.status) {
        ("finished" | "abandoned" | "drained", 500..) => Some(texts.status.as_str()),
        ("finished" | "abandoned" | "drained", _) => None,
        (how, _) => Some(how),
    }
}

fn attributes<'a>(span: &'a Span, texts: &'a Texts, error: Option<&'a str>) -> Vec<Attribute<'a>> {
    let mut all = Vec::with_capacity(24);
    let mut string = |key, value: &'a str| {
        if !value.is_empty() {
            all.push(Attribute { key, value: Value::StringValue(value) });
        }
    };
    match known_method(&span.method) {
        Some(method) => string("http.request.method", method),
        None => {
            string("http.request.method", "_OTHER");
            string("http.request.method_original", super::beginning(span.method.as_str()));
        }
    }
    string("url.scheme", "https");
    string("url.path", &span.path);
    string("network.protocol.version", if span.version == Version::HTTP_2 { "2" } else { "1.1" });
    string("server.address", &span.host);
    string("client.address", &texts.client);
    string("user_agent.original", &span.user_agent);
    string("error.type", error.unwrap_or_default());
    string("enduser.id", &span.user);
    // As kube-apiserver's own spans have it.
    string("audit-id", span.audit_id.as_ref().and_then(|id| id.to_str().ok()).unwrap_or_default());
    string("kubegateway.cluster", span.cluster.as_deref().unwrap_or_default());
    string("kubegateway.policy", span.policy.as_deref().unwrap_or_default());
    string("kubegateway.endpoint", span.end.endpoint.as_deref().unwrap_or_default());
    string("kubegateway.impersonator", &span.impersonator);
    string("kubegateway.end", span.end.how);
    let mut number = |key, value: u64| {
        if value > 0 {
            all.push(Attribute { key, value: Value::IntValue(value) });
        }
    };
    number("http.response.status_code", span.end.status.into());
    number("http.response.body.size", span.end.answer_bytes);
    number("server.port", span.port.unwrap_or_default().into());
    number("kubegateway.tries", span.end.tries.into());
    all
}

/// The methods that have names in OpenTelemetry's conventions.
fn known_method(method: &Method) -> Option<&'static str> {
    const METHODS: [&str; 9] = ["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"];
    METHODS.into_iter().find(|known| *known == method.as_str())
}
