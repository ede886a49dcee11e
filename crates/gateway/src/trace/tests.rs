use std::net::Ipv4Addr;

use http::Request;
use serde_json::{Value, json};

use super::*;
use crate::access_log::{AccessLog, AccessLogTarget};
use crate::metrics::Metrics;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

/// A tracer that takes such a share, whose spans go nowhere.
pub(super) fn tracer(ratio: f64) -> Arc<Tracer> {
    let options = TraceOptions {
        endpoint: TracesEndpoint::exactly("http://127.0.0.1:1/v1/traces").unwrap(),
        authorities: None,
        service_name: "kubegateway".to_owned(),
        sampling_ratio: ratio,
    };
    Tracer::new(&options, Counter::default()).unwrap().0
}

fn parts(target: &str, headers: &[(&'static str, &str)]) -> Parts {
    let mut builder = Request::builder().uri(target).version(Version::HTTP_2);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(()).unwrap().into_parts().0
}

/// Begins the span of a request with these headers; what is there then.
fn begin(ratio: f64, headers: &[(&'static str, &str)]) -> (Option<Box<Span>>, HeaderMap) {
    let mut parts = parts("https://cluster.test/api/v1/pods", headers);
    let span = tracer(ratio).begin(&mut parts, Ipv4Addr::LOCALHOST.into());
    (span, parts.headers)
}

/// A span of a request to `target` that has ended, as the collector gets it.
fn exported(target: &str, headers: &[(&'static str, &str)], change: impl FnOnce(&mut Record)) -> Value {
    let tracer = tracer(1.0);
    let mut record = Record::new(Metrics::new(), AccessLog::start(&AccessLogTarget::Off).unwrap());
    let mut parts = parts(target, headers);
    record.span = tracer.begin(&mut parts, Ipv4Addr::LOCALHOST.into());
    change(&mut record);
    drop(record);
    let spans = tracer.queue.take();
    assert_eq!(spans.len(), 1);
    let mut export: Value = serde_json::from_slice(&otlp::export("of-a-test", &spans)).unwrap();
    export["resourceSpans"][0]["scopeSpans"][0]["spans"][0].take()
}

/// The attributes of a span or resource.
fn attributes(of: &Value) -> Value {
    let all = of["attributes"].as_array().unwrap().iter();
    let all = all.map(|attribute| (attribute["key"].as_str().unwrap().to_owned(), attribute["value"].clone()));
    Value::Object(all.collect())
}

#[test]
fn the_trace_of_a_client_goes_on_and_the_kube_apiserver_hears_of_the_gateways_span() {
    let parent = format!("00-{TRACE}-{SPAN}-01");
    let (span, headers) = begin(0.0, &[("traceparent", &parent), ("tracestate", "a=1"), ("tracestate", "b=2")]);
    let span = span.unwrap();
    assert_eq!(format!("{:032x}", span.context.trace_id), TRACE);
    assert_eq!(format!("{:016x}", span.parent.unwrap().span_id), SPAN);
    assert_eq!(headers["traceparent"], format!("00-{TRACE}-{:016x}-01", span.context.span_id));
    assert_ne!(headers["traceparent"], parent);
    assert_eq!(headers.get_all("tracestate").iter().collect::<Vec<_>>(), ["a=1", "b=2"]);
    assert_eq!(span.trace_state, "a=1,b=2");
}

#[test]
fn a_trace_that_the_client_does_not_record_is_left_alone() {
    let parent = format!("00-{TRACE}-{SPAN}-00");
    let (span, headers) = begin(1.0, &[("traceparent", &parent), ("tracestate", "a=1")]);
    assert!(span.is_none());
    assert_eq!((&headers["traceparent"], &headers["tracestate"]), (&parent.parse().unwrap(), &"a=1".parse().unwrap()));
}

#[test]
fn a_request_of_no_trace_begins_one_whether_it_is_recorded_or_not() {
    let invalid = format!("00-{TRACE}-{SPAN}-01-more");
    let twice = format!("00-{TRACE}-{SPAN}-01");
    for headers in [
        &[][..],
        &[("tracestate", "a=1")],
        &[("traceparent", &*invalid), ("tracestate", "a=1")],
        &[("traceparent", &*twice), ("traceparent", &*twice)],
        &[("traceparent", "")],
    ] {
        for ratio in [0.0, 1.0] {
            let (span, after) = begin(ratio, headers);
            let context = TraceContext::of(&after).expect("one that is valid");
            assert_eq!((context.is_sampled(), span.is_some()), (ratio == 1.0, ratio == 1.0), "{headers:?}");
            assert_ne!(format!("{:032x}", context.trace_id), TRACE);
            assert_eq!(after.get("tracestate"), None, "{headers:?}");
            if let Some(span) = span {
                assert_eq!((span.context, span.parent), (context, None));
            }
        }
    }
}

#[test]
fn as_many_traces_are_recorded_as_are_wanted() {
    let count = |ratio| {
        let sampling = Sampling::new(ratio);
        (0..10_000).filter(|_| sampling.takes(random_u128())).count()
    };
    assert_eq!((count(0.0), count(-1.0), count(f64::NAN), count(1.0), count(2.0)), (0, 0, 0, 10_000, 10_000));
    assert!((2_200..2_800).contains(&count(0.25)), "{}", count(0.25));
    assert!(Sampling::new(1.0).takes(u128::MAX) && !Sampling::new(0.0).takes(1));
    // As other samplers see it that go by the id.
    let half = Sampling::new(0.5);
    assert!(half.takes(0x7fff_ffff_ffff_fffe) && !half.takes(0x8000_0000_0000_0000));
}

#[test]
fn a_span_tells_what_became_of_a_request() {
    let target = "https://cluster.test:6443/api/v1/namespaces/a/pods/b/log?follow=true";
    let parent = format!("00-{TRACE}-{SPAN}-01");
    let headers = [("traceparent", &*parent), ("tracestate", "a=1"), ("user-agent", "kubectl/v1.36")];
    let mut context = None;
    let span = exported(target, &headers, |record| {
        record.verb = "get";
        record.status = 200;
        record.tries = 1;
        record.answer_bytes = 1 << 40;
        record.endpoint = Some("https://10.0.0.1:6443".into());
        let span = record.span.as_mut().unwrap();
        context = Some(span.context);
        let info = RequestInfo::parse("GET", "/api/v1/namespaces/a/pods/b/log?follow=true").unwrap();
        span.cluster = Some("cluster.test".into());
        span.asks(&info, "alice", None);
        span.policy = Some("reads".into());
        span.is_audited_as(HeaderValue::from_static("an-audit-id"));
        record.finished();
    });
    assert_eq!(span["traceId"], TRACE);
    assert_eq!(span["spanId"], format!("{:016x}", context.unwrap().span_id));
    assert_eq!((&span["parentSpanId"], &span["traceState"]), (&json!(SPAN), &json!("a=1")));
    assert_eq!((&span["name"], &span["kind"], &span["flags"]), (&json!("get pods/log"), &json!(2), &json!(0x301)));
    let nanoseconds = |field: &str| span[field].as_str().unwrap().parse::<u128>().unwrap();
    let (begun, ended) = (nanoseconds("startTimeUnixNano"), nanoseconds("endTimeUnixNano"));
    assert!(begun <= ended && ended - begun < 60_000_000_000, "{begun} {ended}");
    assert!(span.get("status").is_none(), "{span}");
    let expected = json!({
        "http.request.method": {"stringValue": "GET"},
        "url.scheme": {"stringValue": "https"},
        // Without the query: the commands of exec are in it.
        "url.path": {"stringValue": "/api/v1/namespaces/a/pods/b/log"},
        "network.protocol.version": {"stringValue": "2"},
        "server.address": {"stringValue": "cluster.test"},
        "server.port": {"intValue": "6443"},
        "client.address": {"stringValue": "127.0.0.1"},
        "user_agent.original": {"stringValue": "kubectl/v1.36"},
        "enduser.id": {"stringValue": "alice"},
        "audit-id": {"stringValue": "an-audit-id"},
        "kubegateway.cluster": {"stringValue": "cluster.test"},
        "kubegateway.policy": {"stringValue": "reads"},
        "kubegateway.endpoint": {"stringValue": "https://10.0.0.1:6443"},
        "kubegateway.end": {"stringValue": "finished"},
        "kubegateway.tries": {"intValue": "1"},
        "http.response.status_code": {"intValue": "200"},
        "http.response.body.size": {"intValue": "1099511627776"},
    });
    assert_eq!(attributes(&span), expected);
}

#[test]
fn only_answers_of_a_server_at_fault_and_those_that_broke_off_are_errors() {
    let of = |status, how: Option<&'static str>| {
        let span = exported("https://cluster.test/", &[], |record| {
            record.status = status;
            match how {
                None => {}
                Some("finished") => record.finished(),
                Some(how) => record.broke(how),
            }
        });
        let error = attributes(&span).get("error.type").map(|error| error["stringValue"].as_str().unwrap().to_owned());
        (span.get("status").cloned(), error)
    };
    let error = |message: Option<&str>| {
        Some(message.map_or(json!({"code": 2}), |message| json!({"code": 2, "message": message})))
    };
    assert_eq!(of(200, Some("finished")), (None, None));
    assert_eq!(of(404, Some("finished")), (None, None));
    assert_eq!(of(429, Some("finished")), (None, None));
    assert_eq!(of(503, Some("finished")), (error(None), Some("503".to_owned())));
    assert_eq!(of(200, Some("lost")), (error(Some("lost")), Some("lost".to_owned())));
    // The client has left, or the gateway: a watch has no other end.
    assert_eq!(of(200, None), (None, None));
    assert_eq!(of(0, None), (None, None));
    assert_eq!(of(200, Some("drained")), (None, None));
}

#[test]
fn names_of_spans_are_few_whatever_clients_ask_for() {
    let name = |method: &str, verb: &'static str, target: &str, is_known: bool| {
        let span = exported("https://cluster.test/", &[], |record| {
            record.verb = verb;
            let span = record.span.as_mut().unwrap();
            span.method = method.parse().unwrap();
            if is_known {
                span.asks(&RequestInfo::parse(method, target).unwrap(), "alice", None);
            }
        });
        span["name"].as_str().unwrap().to_owned()
    };
    let long = format!("/api/v1/{}", "x".repeat(64));
    for (method, verb, target, is_known, expected) in [
        ("GET", "list", "/api/v1/pods?limit=500", true, "list pods"),
        ("GET", "watch", "/apis/apps/v1/namespaces/a/deployments?watch=1", true, "watch deployments"),
        ("PUT", "update", "/api/v1/nodes/a/status", true, "update nodes/status"),
        ("GET", "get", "/healthz/etcd", true, "get /healthz"),
        ("GET", "get", "/apis/apps/v1", true, "get /apis"),
        ("GET", "get", "/whatever", true, "get"),
        ("GET", "list", "/api/v1/Who%20knows", true, "list"),
        ("GET", "list", &long, true, "list"),
        ("GET", "list", "/api/v1/pods", false, "list"),
        ("GET", "", "/", false, "GET"),
        ("BREW", "", "/", false, "HTTP"),
    ] {
        assert_eq!(name(method, verb, target, is_known), expected, "{method} {target}");
    }
}

#[test]
fn what_a_client_writes_is_cut_off() {
    let long = "ä".repeat(SPAN_TEXT_BYTES_MAX);
    let path = format!("https://cluster.test/{}", "x".repeat(2 * SPAN_TEXT_BYTES_MAX));
    let state = format!("a={}", "x".repeat(TRACE_STATE_BYTES_MAX));
    let agent = "a".repeat(2 * SPAN_TEXT_BYTES_MAX);
    let parent = format!("00-{TRACE}-{SPAN}-01");
    let headers = [("traceparent", &*parent), ("tracestate", &state), ("user-agent", &agent)];
    let span = exported(&path, &headers, |record| {
        let span = record.span.as_mut().unwrap();
        span.asks(&RequestInfo::parse("GET", "/api/v1/pods").unwrap(), &long, Some(&long));
        span.method = "M".repeat(2 * SPAN_TEXT_BYTES_MAX).parse().unwrap();
    });
    let attributes = attributes(&span);
    for key in
        ["url.path", "user_agent.original", "enduser.id", "kubegateway.impersonator", "http.request.method_original"]
    {
        assert_eq!(attributes[key]["stringValue"].as_str().unwrap().len(), SPAN_TEXT_BYTES_MAX, "{key}");
    }
    assert_eq!(attributes["http.request.method"]["stringValue"], "_OTHER");
    // A part of it would be another one.
    assert!(span.get("traceState").is_none());
}

#[test]
fn what_is_exported_names_the_service() {
    let tracer = tracer(1.0);
    let span = tracer.begin(&mut parts("https://cluster.test/", &[]), Ipv4Addr::LOCALHOST.into()).unwrap();
    let export: Value = serde_json::from_slice(&otlp::export("of-a-test", &[span])).unwrap();
    let resource = attributes(&export["resourceSpans"][0]["resource"]);
    assert_eq!(resource["service.name"]["stringValue"], "of-a-test");
    assert_eq!(export["resourceSpans"][0]["scopeSpans"][0]["scope"]["name"], "kubegateway");
}

#[test]
fn what_is_no_url_of_a_collector_is_refused() {
    for url in
        ["", "localhost:4318", "grpc://a:4317", "http://", "/v1/traces", "http://user:password@a/", "http://a b/"]
    {
        assert_eq!(TracesEndpoint::exactly(url), Err(NotAnEndpoint), "{url}");
        assert!(url.parse::<TracesEndpoint>().is_err(), "{url}");
    }
}
