//! Traces: those that clients have begun, and the gateway's own part of them.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::{HeaderMap, Method, StatusCode};
use kubewharf_testkit::address::free_port;
use serde_json::Value;

use crate::fixture::{CLUSTER, EVERYTHING, wait};
use crate::mock::Mock;
use crate::raw::{End, Http2};
use crate::recorder::{ENDLESS, Target};

const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN_ID: &str = "00f067aa0ba902b7";
const PODS: &str = "/api/v1/namespaces/a/pods";

/// A collector of traces, which takes all that it is sent.
struct Collector {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<Value>>>,
}

impl Collector {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let spans = Arc::new(Mutex::new(Vec::new()));
        let all = spans.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let export = take(stream.unwrap());
                let scope = &export["resourceSpans"][0]["scopeSpans"][0];
                let service = &export["resourceSpans"][0]["resource"]["attributes"][0]["value"]["stringValue"];
                assert_eq!(service, "kubegateway", "{export}");
                all.lock().unwrap().extend(scope["spans"].as_array().unwrap().iter().cloned());
            }
        });
        Self { address, spans }
    }

    fn flag(&self) -> String {
        format!("--otlp-endpoint=http://{}", self.address)
    }

    fn spans(&self) -> Vec<Value> {
        self.spans.lock().unwrap().clone()
    }

    /// Waits until there are so many.
    fn wait_for(&self, count: usize) -> Vec<Value> {
        wait("the spans come", || self.spans().len() >= count);
        let spans = self.spans();
        assert_eq!(spans.len(), count, "{spans:?}");
        spans
    }
}

/// One request to the collector: its body. It is answered.
fn take(mut stream: TcpStream) -> Value {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut lines = reader.by_ref().lines().map(Result::unwrap);
    assert_eq!(lines.next().unwrap(), "POST /v1/traces HTTP/1.1");
    let headers: BTreeMap<String, String> = lines
        .take_while(|line| !line.is_empty())
        .map(|line| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned())).unwrap())
        .collect();
    assert_eq!(headers["content-type"], "application/json");
    let mut body = vec![0; headers["content-length"].parse().unwrap()];
    reader.read_exact(&mut body).unwrap();
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}").unwrap();
    serde_json::from_slice(&body).unwrap()
}

/// The text of an attribute.
fn text<'a>(span: &'a Value, key: &str) -> &'a str {
    let found = span["attributes"].as_array().unwrap().iter().find(|attribute| attribute["key"] == key);
    let value = found.and_then(|attribute| attribute["value"].as_object()?.values().next()?.as_str());
    value.unwrap_or_else(|| panic!("no {key} in {span}"))
}

/// Asks, over HTTP/2, and waits for the answer.
fn ask(client: &mut Http2, path: &str, headers: &[(&str, &str)]) {
    let stream = client.get(path, headers);
    assert_eq!(client.end(stream), End::Status(200));
}

#[test]
fn the_context_of_a_trace_reaches_the_apiserver_and_the_access_log() {
    let mock = Mock::start(1, EVERYTHING);
    let parent = format!("00-{TRACE_ID}-{SPAN_ID}-01");
    let mut headers = HeaderMap::new();
    headers.insert("traceparent", parent.parse().unwrap());
    headers.insert("tracestate", "vendor=opaque".parse().unwrap());
    let ask = |headers: &HeaderMap| {
        mock.runtime.block_on(async {
            let connection = mock.connector().connect().await;
            connection.ask(Method::GET, "/api/v1/nodes", headers, None).await.unwrap()
        })
    };
    assert_eq!(ask(&headers).0, StatusCode::OK);
    let seen = mock.apiservers[0].control.last_headers.lock().clone();
    assert_eq!((&seen["traceparent"], &seen["tracestate"]), (&headers["traceparent"], &headers["tracestate"]));
    // What is no trace is no business of the log.
    headers.insert("traceparent", "00-no-trace-01".parse().unwrap());
    assert_eq!(ask(&headers).0, StatusCode::OK);
    let seen = mock.apiservers[0].control.last_headers.lock().clone();
    assert_eq!(seen["traceparent"], headers["traceparent"]);
    wait("both are logged", || mock.gateway.access_log().len() == 2);
    let log = mock.gateway.access_log();
    assert_eq!(log[0]["trace_id"], TRACE_ID, "{log:?}");
    assert!(log[1].get("trace_id").is_none(), "{log:?}");
    // And a request of none stays so.
    headers.clear();
    assert_eq!(ask(&headers).0, StatusCode::OK);
    let seen = mock.apiservers[0].control.last_headers.lock().clone();
    assert!(!seen.contains_key("traceparent"), "{seen:?}");
}

#[test]
fn the_gateways_span_is_between_the_clients_and_the_apiservers() {
    let collector = Collector::start();
    let target = Target::start(EVERYTHING, &[&collector.flag()]);
    let mut client = target.http2();
    // Not to be recorded: there is nothing in between.
    let unsampled = format!("00-{TRACE_ID}-{SPAN_ID}-00");
    ask(&mut client, "/unsampled", &[("traceparent", &unsampled)]);
    assert_eq!(target.mock.seen_at("/unsampled")[0].values("traceparent"), [&*unsampled]);
    let sampled = format!("00-{TRACE_ID}-{SPAN_ID}-01");
    let path = format!("{PODS}?limit=7");
    ask(&mut client, &path, &[("traceparent", &sampled), ("tracestate", "vendor=opaque"), ("user-agent", "test")]);
    let spans = collector.wait_for(1);
    let span = &spans[0];
    assert_eq!((&span["traceId"], &span["parentSpanId"]), (&TRACE_ID.into(), &SPAN_ID.into()), "{span}");
    assert_eq!((&span["name"], &span["traceState"]), (&"list pods".into(), &"vendor=opaque".into()));
    let seen = &target.mock.seen_at(PODS)[0];
    assert_eq!(seen.values("traceparent"), [format!("00-{TRACE_ID}-{}-01", span["spanId"].as_str().unwrap())]);
    assert_eq!(seen.values("tracestate"), ["vendor=opaque"]);
    assert_eq!(text(span, "audit-id"), seen.values("audit-id")[0]);
    for (key, value) in [
        ("http.request.method", "GET"),
        ("http.response.status_code", "200"),
        ("url.path", PODS),
        ("user_agent.original", "test"),
        ("client.address", "127.0.0.1"),
        ("enduser.id", "alice"),
        ("kubegateway.cluster", CLUSTER),
        ("kubegateway.endpoint", &target.mock.url()),
        ("kubegateway.end", "finished"),
    ] {
        assert_eq!(text(span, key), value, "{key}");
    }
    // A request of no trace begins one, over HTTP/1.1 too; and nobody but the gateway says so.
    let ask = format!("GET /version HTTP/1.1\r\nHost: {CLUSTER}\r\ntracestate: of=another\r\n\r\n");
    assert_eq!(target.first_answer(ask.as_bytes()), [200]);
    let span = &collector.wait_for(2)[1];
    assert!(span.get("parentSpanId").is_none() && span["name"] == "get /version", "{span}");
    let seen = &target.mock.seen_at("/version")[0];
    let (trace, id) = (span["traceId"].as_str().unwrap(), span["spanId"].as_str().unwrap());
    assert_eq!(seen.values("traceparent"), [format!("00-{trace}-{id}-01")]);
    assert!(seen.values("tracestate").is_empty() && trace != TRACE_ID, "{seen:?}");
    wait("all are logged", || target.gateway.access_log().len() == 3);
    assert_eq!(target.gateway.access_log()[2]["trace_id"], trace);
}

#[test]
fn a_span_lasts_as_long_as_its_answer_and_those_of_a_gateway_that_stops_are_not_lost() {
    let collector = Collector::start();
    let mut target = Target::start(EVERYTHING, &[&collector.flag(), "--trace-sampling-ratio=0"]);
    let sampled = format!("00-{TRACE_ID}-{SPAN_ID}-01");
    let mut client = target.http2();
    let stream = client.get(ENDLESS, &[("traceparent", &sampled)]);
    assert_eq!(client.end(stream), End::Status(200));
    // Nobody has decided about this one, and the gateway takes none.
    let mut other = target.http2();
    ask(&mut other, "/undecided", &[]);
    let seen = target.mock.seen_at("/undecided");
    assert!(seen[0].values("traceparent")[0].ends_with("-00"), "{seen:?}");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(collector.spans(), Vec::<Value>::new());
    drop(client);
    let spans = collector.wait_for(1);
    assert_eq!(text(&spans[0], "kubegateway.end"), "abandoned");
    let nanoseconds = |field: &str| spans[0][field].as_str().unwrap().parse::<u128>().unwrap();
    assert!(nanoseconds("endTimeUnixNano") - nanoseconds("startTimeUnixNano") >= 2_000_000_000, "{spans:?}");
    assert!(spans[0].get("status").is_none(), "a client may leave: {spans:?}");
    ask(&mut other, PODS, &[("traceparent", &sampled)]);
    drop(other);
    assert!(target.gateway.process.stop(Duration::from_secs(20)).success());
    assert_eq!(collector.wait_for(2)[1]["name"], "list pods");
}

#[test]
fn a_collector_that_is_away_or_hangs_harms_nobody() {
    // Connections are taken there, by the kernel; nothing is answered.
    let hangs = TcpListener::bind("127.0.0.1:0").unwrap();
    for address in [free_port(), hangs.local_addr().unwrap()] {
        let mut target = Target::start(EVERYTHING, &[&format!("--otlp-endpoint=http://{address}/v1/traces")]);
        let mut client = target.http2();
        let begun = Instant::now();
        // More than go together.
        for _ in 0..1000 {
            ask(&mut client, PODS, &[]);
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        assert_eq!(target.mock.seen_at(PODS).len(), 1000);
        assert_eq!(target.gateway.metric("kubegateway_proxy_http_request_inflight"), 0.0);
        drop(client);
        let begun = Instant::now();
        assert!(target.gateway.process.stop(Duration::from_secs(20)).success());
        assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    }
}

#[test]
fn spans_that_the_collector_does_not_want_are_counted() {
    let collector = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = collector.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in collector.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 1 << 16]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let target = Target::start(EVERYTHING, &[&format!("--otlp-endpoint=http://{address}")]);
    assert_eq!(target.gateway.metric("kubegateway_proxy_spans_dropped_total"), 0.0);
    ask(&mut target.http2(), PODS, &[]);
    wait("it is counted", || target.gateway.metric("kubegateway_proxy_spans_dropped_total") == 1.0);
}
