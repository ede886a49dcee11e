//! What the client port answers over plain HTTP: health, version, metrics, and the log of committed transactions.
//!
//! Paths, parameters and texts are etcd 3.7's (`/health`, `/livez`, `/readyz`, `/version`, `/metrics`); `/kubebrain/v1/log` is ours.

use std::sync::Arc;

use ::http::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use ::http::{Method, Request, Response, StatusCode};
use bytes::Bytes;
use kubewharf_engine::Table;
use kubewharf_grpc::{
    CallContext, Code, Dispatch, HttpFuture, MethodId, Peer, RequestStream, ResponseSink, Route, Status, UnaryReply,
};
use tracing::warn;

use super::maintenance::{ETCD_CLUSTER_VERSION, ETCD_VERSION};
use super::metrics;
use super::server::Server;
use super::{Api, log};
use crate::limits::COMMIT_STALL;

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const METRICS_TEXT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// Which of the paths a port has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Port {
    /// The clients': everything.
    Client,
    /// `--listen-metrics-urls`: health and metrics, as in etcd.
    Metrics,
}

/// The API without plain HTTP, where that has URLs of its own.
pub struct GrpcOnly(pub Api);

impl Dispatch for GrpcOnly {
    fn route(&self, path: &str) -> Route {
        self.0.route(path)
    }

    fn unary(&self, method: MethodId, context: CallContext, message: Bytes, reply: UnaryReply) {
        self.0.unary(method, context, message, reply);
    }

    fn stream(&self, method: MethodId, context: CallContext, requests: RequestStream, responses: ResponseSink) {
        self.0.stream(method, context, requests, responses);
    }

    fn ended(&self, method: MethodId, code: Code) {
        self.0.ended(method, code);
    }

    fn http(&self, _: Request<Bytes>, _: Arc<Peer>) -> HttpFuture {
        Box::pin(async { not_found() })
    }
}

/// Plain HTTP without the API.
pub struct HttpOnly {
    server: Arc<Server>,
    port: Port,
}

impl HttpOnly {
    /// Everything that the client port answers over HTTP.
    #[must_use]
    pub fn client(server: Arc<Server>) -> Self {
        Self { server, port: Port::Client }
    }

    /// Health and metrics.
    #[must_use]
    pub fn metrics(server: Arc<Server>) -> Self {
        Self { server, port: Port::Metrics }
    }
}

impl Dispatch for HttpOnly {
    fn route(&self, _: &str) -> Route {
        Route::UnknownService
    }

    fn unary(&self, _: MethodId, _: CallContext, _: Bytes, reply: UnaryReply) {
        reply.send(Err(Status::new(Code::Unimplemented, "this port has no API")));
    }

    fn stream(&self, _: MethodId, _: CallContext, _: RequestStream, responses: ResponseSink) {
        responses.finish(Status::new(Code::Unimplemented, "this port has no API"));
    }

    fn http(&self, request: Request<Bytes>, _: Arc<Peer>) -> HttpFuture {
        answer(self.server.clone(), request, self.port)
    }
}

/// Answers a request.
pub(super) fn serve(server: Arc<Server>, request: Request<Bytes>, _peer: Arc<Peer>) -> HttpFuture {
    answer(server, request, Port::Client)
}

/// Answers a request to a port.
fn answer(server: Arc<Server>, request: Request<Bytes>, port: Port) -> HttpFuture {
    Box::pin(async move {
        let path = request.uri().path();
        let query = Query(request.uri().query().unwrap_or(""));
        let answer = match path {
            "/health" => health,
            "/metrics" => |server: &Server, _: &Query<'_>| body(StatusCode::OK, METRICS_TEXT, metrics::render(server)),
            "/version" if port == Port::Client => |_: &Server, _: &Query<'_>| version(),
            log::PATH if port == Port::Client => {
                if request.method() != Method::GET {
                    return method_not_allowed();
                }
                return log::serve(&server, &query).await;
            }
            _ => match Checks::of(path) {
                Some(checks) if request.method() == Method::GET => return checks.answer(&server, &query),
                Some(_) => return method_not_allowed(),
                None => return not_found(),
            },
        };
        if request.method() == Method::GET { answer(&server, &query) } else { method_not_allowed() }
    })
}

/// The parameters of a request.
pub(super) struct Query<'a>(&'a str);

impl Query<'_> {
    /// The values of a parameter, decoded.
    pub(super) fn all(&self, name: &str) -> Vec<String> {
        let pairs = self.0.split('&').filter(|pair| !pair.is_empty());
        pairs
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .filter(|(key, _)| decode(key) == name)
            .map(|(_, value)| decode(value))
            .collect()
    }

    /// The first value of a parameter.
    pub(super) fn first(&self, name: &str) -> Option<String> {
        self.all(name).into_iter().next()
    }
}

/// Undoes the encoding of a query's names and values; what is not encoded correctly stays as it is.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |index: usize| bytes.get(index).and_then(|byte| char::from(*byte).to_digit(16));
        match (bytes[at], hex(at + 1), hex(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push(u8::try_from(high * 16 + low).expect("two hexadecimal digits make a byte"));
                at += 3;
            }
            (b'+', ..) => {
                decoded.push(b' ');
                at += 1;
            }
            (byte, ..) => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

fn health(server: &Server, query: &Query<'_>) -> Response<Bytes> {
    let serializable = query.first("serializable").as_deref() == Some("true");
    let excludes_no_space = query.all("exclude").iter().any(|alarm| alarm == "NOSPACE");
    let reason = if server.quota.is_exceeded() && !excludes_no_space {
        Some("ALARM NOSPACE".to_owned())
    } else if !serializable && server.store.failure().is_some() {
        Some("RAFT NO LEADER".to_owned())
    } else if !serializable && let Err(error) = lead(server) {
        Some(format!("RANGE ERROR:{error}"))
    } else {
        read(server).err().map(|error| format!("RANGE ERROR:{error}"))
    };
    match reason {
        None => {
            server.metrics.health_successes.increment();
            body(StatusCode::OK, TEXT, r#"{"health":"true","reason":""}"#)
        }
        Some(reason) => {
            server.metrics.health_failures.increment();
            warn!(reason, "/health says that the store is not healthy");
            let answer = serde_json::json!({ "health": "false", "reason": reason });
            failure(StatusCode::SERVICE_UNAVAILABLE, &answer.to_string())
        }
    }
}

fn version() -> Response<Bytes> {
    let versions = serde_json::json!({
        "etcdserver": ETCD_VERSION,
        "etcdcluster": ETCD_CLUSTER_VERSION,
        "storage": ETCD_CLUSTER_VERSION,
        "kubebrain": env!("CARGO_PKG_VERSION"),
    });
    body(StatusCode::OK, JSON, versions.to_string())
}

/// Reads something from the engine. One that is behind a network is read all the time, and its silence ends no process: another start would not
/// help.
fn read(server: &Server) -> Result<(), String> {
    if server.cluster.is_some() {
        return Ok(());
    }
    let snapshot = server.store.snapshot().map_err(|error| error.to_string())?;
    snapshot.get(Table::Current, &[0], &mut |_| {}).map_err(|error| error.to_string())?;
    Ok(())
}

/// The store takes writes, so what it has confirmed is the newest that there is.
fn lead(server: &Server) -> Result<(), String> {
    match server.store.failure() {
        Some(why) => Err(why),
        None if server.store.is_stalled() => {
            Err(format!("a commit takes longer than {} s: the disk does not answer", COMMIT_STALL.as_secs()))
        }
        None => server.cluster.as_ref().map_or(Ok(()), |cluster| cluster.readiness()),
    }
}

type Check = (&'static str, fn(&Server) -> Result<(), String>);

const LIVE: &[Check] = &[("serializable_read", read)];
const READY: &[Check] = &[
    // A damaged row fails the requests that need it; nothing marks the whole store.
    ("data_corruption", |_| Ok(())),
    ("serializable_read", read),
    ("linearizable_read", |server| lead(server).and_then(|()| read(server))),
    ("non_learner", |_| Ok(())),
];

/// The checks that a path asks for.
struct Checks {
    checks: Vec<Check>,
    /// Whether `exclude` may take some away: not where the path names one.
    is_list: bool,
}

impl Checks {
    fn of(path: &str) -> Option<Self> {
        let (root, name) = match path.strip_prefix('/')?.split_once('/') {
            Some((root, name)) => (root, Some(name)),
            None => (path.strip_prefix('/')?, None),
        };
        let all = match root {
            "livez" => LIVE,
            "readyz" => READY,
            _ => return None,
        };
        match name {
            None => Some(Self { checks: all.to_vec(), is_list: true }),
            Some(name) => {
                let check = all.iter().find(|(known, _)| *known == name)?;
                Some(Self { checks: vec![*check], is_list: false })
            }
        }
    }

    fn answer(self, server: &Server, query: &Query<'_>) -> Response<Bytes> {
        let excluded = if self.is_list { query.all("exclude") } else { Vec::new() };
        let mut report = String::new();
        let mut failed = false;
        for (name, check) in self.checks.iter().filter(|(name, _)| excluded.iter().all(|excluded| excluded != name)) {
            match check(server) {
                Ok(()) => report.push_str(&format!("[+]{name} ok\n")),
                Err(error) => {
                    failed = true;
                    report.push_str(&format!("[-]{name} failed: {error}\n"));
                }
            }
        }
        if failed {
            warn!(report, "a health check fails");
            return failure(StatusCode::SERVICE_UNAVAILABLE, &report);
        }
        if query.all("verbose").is_empty() {
            report.clear();
        }
        report.push_str("ok\n");
        with_header(body(StatusCode::OK, TEXT, report), X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"))
    }
}

pub(super) fn body(status: StatusCode, content_type: HeaderValue, text: impl Into<Bytes>) -> Response<Bytes> {
    let mut response = Response::new(text.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

/// An error as Go's HTTP server writes it.
pub(super) fn failure(status: StatusCode, text: &str) -> Response<Bytes> {
    let response = body(status, TEXT, format!("{text}\n"));
    with_header(response, X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"))
}

/// The answer to a path that there is not.
pub(super) fn not_found() -> Response<Bytes> {
    failure(StatusCode::NOT_FOUND, "404 page not found")
}

fn method_not_allowed() -> Response<Bytes> {
    with_header(failure(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed"), ALLOW, HeaderValue::from_static("GET"))
}

pub(super) fn with_header(mut response: Response<Bytes>, name: HeaderName, value: HeaderValue) -> Response<Bytes> {
    response.headers_mut().insert(name, value);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        let query = Query("exclude=NOSPACE&exclude=a%20b+c&verbose&x=%zz");
        assert_eq!(query.all("exclude"), ["NOSPACE", "a b c"]);
        assert_eq!(query.all("verbose"), [""]);
        assert_eq!(query.first("x").as_deref(), Some("%zz"));
        assert_eq!(query.first("none"), None);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_commit_that_does_not_end_shows_in_the_health_until_it_does() {
        use std::time::Duration;

        use kubewharf_engine::memory::{Fault, Faulty, Memory};

        use crate::committer::WriteRequest;
        use crate::rpc::ServerOptions;
        use crate::{Store, StoreOptions};

        let engine = Faulty::new(Memory::new());
        engine.script([Fault::None, Fault::Delay(COMMIT_STALL + Duration::from_secs(1))]);
        let store = Store::open(Arc::new(engine), StoreOptions::default()).unwrap();
        let server = Server::new(store.clone(), ServerOptions::default());
        let answers = || {
            let ready = |path| Checks::of(path).unwrap().answer(&server, &Query(""));
            let health = |query| health(&server, &Query(query));
            [ready("/readyz"), health(""), ready("/livez"), health("serializable=true")].map(|answer| answer.status())
        };
        let grant = WriteRequest::LeaseGrant { id: 1, ttl_seconds: 60 };
        let granted = tokio::spawn(async move { store.write(grant, 1).await });
        tokio::time::sleep(COMMIT_STALL / 2).await;
        assert_eq!(answers(), [StatusCode::OK; 4]);
        tokio::time::sleep(COMMIT_STALL / 2 + Duration::from_millis(500)).await;
        let unready = StatusCode::SERVICE_UNAVAILABLE;
        assert_eq!(answers(), [unready, unready, StatusCode::OK, StatusCode::OK], "a restart would not help the disk");
        granted.await.unwrap().unwrap();
        assert_eq!(answers(), [StatusCode::OK; 4]);
    }

    #[test]
    fn each_check_has_its_own_path() {
        assert_eq!(Checks::of("/readyz").map(|checks| checks.checks.len()), Some(4));
        assert_eq!(Checks::of("/readyz/linearizable_read").map(|checks| checks.checks.len()), Some(1));
        assert!(Checks::of("/livez/linearizable_read").is_none());
        assert!(Checks::of("/healthz").is_none());
    }
}
