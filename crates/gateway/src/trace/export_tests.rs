use std::net::Ipv4Addr;

use http::Response;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::AbortHandle;

use super::*;
use crate::trace::Tracer;
use crate::trace::tests::tracer;

/// A collector with these answers, one after another, and then only 200.
struct Collector {
    endpoint: TracesEndpoint,
    /// The bodies that it was sent.
    received: UnboundedReceiver<Value>,
    serving: AbortHandle,
}

impl Collector {
    async fn start(answers: &[(u16, &'static str, &'static str)]) -> Self {
        Self::start_with("http", None, answers).await
    }

    /// One that is asked by HTTPS, and the certificate that vouches for it.
    async fn start_https() -> (Self, String) {
        let server = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let key = rustls_pki_types::PrivateKeyDer::try_from(server.signing_key.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(crate::authentication::x509::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![server.cert.der().clone()], key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        (Self::start_with("https", Some(acceptor), &[]).await, server.cert.pem())
    }

    async fn start_with(
        scheme: &str,
        tls: Option<tokio_rustls::TlsAcceptor>,
        answers: &[(u16, &'static str, &'static str)],
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("{scheme}://{}/v1/traces", listener.local_addr().unwrap());
        let answers = Arc::new(Mutex::new(VecDeque::from(answers.to_vec())));
        let (sender, received) = unbounded_channel();
        let serving = tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let (answers, sender) = (answers.clone(), sender.clone());
                let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let (answers, sender) = (answers.clone(), sender.clone());
                    async move {
                        use http_body_util::BodyExt as _;
                        assert_eq!((request.method(), request.uri().path()), (&Method::POST, "/v1/traces"));
                        assert_eq!(request.headers()["content-type"], "application/json");
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        let _ = sender.send(serde_json::from_slice(&body).unwrap());
                        let (status, retry_after, body) = answers.lock().pop_front().unwrap_or((200, "", "{}"));
                        let mut response = Response::builder().status(status);
                        if !retry_after.is_empty() {
                            response = response.header(RETRY_AFTER, retry_after);
                        }
                        response.body(Full::new(Bytes::from(body)))
                    }
                });
                let server = hyper::server::conn::http1::Builder::new();
                let _ = match &tls {
                    None => server.serve_connection(TokioIo::new(socket), service).await,
                    Some(tls) => match tls.accept(socket).await {
                        Ok(stream) => server.serve_connection(TokioIo::new(stream), service).await,
                        Err(_) => continue,
                    },
                };
            }
        });
        Self { endpoint: TracesEndpoint::exactly(&url).unwrap(), received, serving: serving.abort_handle() }
    }

    /// How many spans came in the next request.
    async fn next(&mut self) -> usize {
        let body = self.received.recv().await.unwrap();
        body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap().len()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn exporter(endpoint: &TracesEndpoint) -> (Arc<Tracer>, Exporter) {
    let options = TraceOptions {
        endpoint: endpoint.clone(),
        authorities: None,
        service_name: "kubegateway".to_owned(),
        sampling_ratio: 1.0,
    };
    Tracer::new(&options, Counter::default()).unwrap()
}

fn span(tracer: &Arc<Tracer>) -> Box<Span> {
    let mut parts = Request::new(()).into_parts().0;
    tracer.begin(&mut parts, Ipv4Addr::LOCALHOST.into()).unwrap()
}

#[test]
fn spans_beyond_the_queue_are_left_out_and_counted() {
    let tracer = tracer(1.0);
    for _ in 0..SPANS_WAITING_MAX + 3 {
        tracer.end(span(&tracer));
    }
    assert_eq!((tracer.queue.len(), tracer.dropped.get()), (SPANS_WAITING_MAX, 3));
    assert_eq!(tracer.queue.take().len(), SPANS_PER_EXPORT_MAX);
    tracer.end(span(&tracer));
    assert_eq!((tracer.queue.len(), tracer.dropped.get()), (SPANS_WAITING_MAX - SPANS_PER_EXPORT_MAX + 1, 3));
}

#[tokio::test]
async fn spans_go_together_and_the_last_ones_when_it_ends() {
    let mut collector = Collector::start(&[]).await;
    let (tracer, exporter) = exporter(&collector.endpoint);
    let stop = Shutdown::new();
    let running = tokio::spawn(exporter.run(stop.clone()));
    for _ in 0..SPANS_PER_EXPORT_MAX + 1 {
        tracer.end(span(&tracer));
    }
    assert_eq!((collector.next().await, collector.next().await), (SPANS_PER_EXPORT_MAX, 1));
    tracer.end(span(&tracer));
    stop.request();
    running.await.unwrap();
    assert_eq!((collector.next().await, tracer.dropped.get()), (1, 0));
}

#[tokio::test]
async fn spans_are_sent_again_if_the_collector_says_so_and_else_counted() {
    let partial = r#"{"partialSuccess": {"rejectedSpans": "1", "errorMessage": "one is bad"}}"#;
    let mut collector = Collector::start(&[(503, "0", ""), (429, "0", ""), (200, "", partial), (400, "", "")]).await;
    let (tracer, mut exporter) = exporter(&collector.endpoint);
    let stop = Shutdown::new();
    exporter.deliver(&[span(&tracer), span(&tracer)], &stop).await;
    for _ in 0..3 {
        assert_eq!(collector.next().await, 2);
    }
    assert_eq!((tracer.dropped.get(), exporter.fails), (1, false));
    exporter.deliver(&[span(&tracer)], &stop).await;
    assert_eq!((tracer.dropped.get(), exporter.fails), (2, true));
    exporter.deliver(&[span(&tracer)], &stop).await;
    assert_eq!((tracer.dropped.get(), exporter.fails), (2, false));
    assert_eq!((collector.next().await, collector.next().await), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_collector_that_is_not_there_is_given_up() {
    // Nobody may listen at port 1.
    let (tracer, mut exporter) = exporter(&TracesEndpoint::exactly("http://127.0.0.1:1/v1/traces").unwrap());
    let begun = tokio::time::Instant::now();
    exporter.deliver(&[span(&tracer)], &Shutdown::new()).await;
    assert_eq!((tracer.dropped.get(), exporter.fails), (1, true));
    // Pauses of 1, 2, 4 and 8 seconds, or half of them.
    let took = begun.elapsed().as_secs_f64();
    assert!((7.5..15.5).contains(&took), "{took}");
    // At the end there is no time for that.
    let (begun, stop) = (tokio::time::Instant::now(), Shutdown::new());
    stop.request();
    exporter.deliver(&[span(&tracer)], &stop).await;
    assert_eq!(tracer.dropped.get(), 2);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[test]
fn a_collector_says_when_it_wants_to_be_asked_again() {
    let now = SystemTime::now();
    let of = |text: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, text.parse().unwrap());
        retry_after(&headers, now)
    };
    assert_eq!(of("7"), Some(Duration::from_secs(7)));
    let later = of(&httpdate::fmt_http_date(now + Duration::from_secs(60))).unwrap();
    assert!((58..=60).contains(&later.as_secs()), "{later:?}");
    assert_eq!(of("Thu, 01 Jan 1970 00:00:00 GMT"), Some(Duration::ZERO));
    assert_eq!((of("soon"), of("-1"), retry_after(&HeaderMap::new(), now)), (None, None, None));
}

#[tokio::test]
async fn a_collector_is_asked_by_https_if_it_can_be_trusted() {
    let (mut collector, pem) = Collector::start_https().await;
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        std::fs::write(folder.path().join(name), text).unwrap();
        folder.path().join(name)
    };
    let stranger = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let endpoint = collector.endpoint.clone();
    let with = |path| {
        let options = TraceOptions {
            endpoint: endpoint.clone(),
            authorities: Some(path),
            service_name: "kubegateway".to_owned(),
            sampling_ratio: 1.0,
        };
        Tracer::new(&options, Counter::default())
    };
    assert!(matches!(with(folder.path().join("missing.pem")), Err(TraceError::File { .. })));
    assert!(matches!(with(write("empty.pem", "")), Err(TraceError::Client(_))));
    let (distrusting, mut to_nobody) = with(write("other.pem", &stranger.cert.pem())).ok().unwrap();
    let (tracer, mut exporter) = with(write("ca.pem", &pem)).ok().unwrap();
    let stop = Shutdown::new();
    stop.request();
    to_nobody.deliver(&[span(&distrusting)], &stop).await;
    assert_eq!(distrusting.dropped.get(), 1);
    exporter.deliver(&[span(&tracer)], &stop).await;
    assert_eq!((collector.next().await, tracer.dropped.get()), (1, 0));
}
