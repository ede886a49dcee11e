//! One mock apiserver: HTTP/2 over TLS, or without.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering::SeqCst};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use kubewharf_testkit::address::free_port;
use kubewharf_testkit::pki::Identity;
use parking_lot::Mutex;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use super::Texts;
use crate::fixture::wait;

/// What kube-apiserver allows on a connection.
const STREAMS_MAX: u32 = 100;
/// Every so many revisions, an event is a bookmark.
const BOOKMARK_EACH: u64 = 5;
/// How long an apiserver that stops still takes requests after it has said that it is not ready, and how long it then
/// waits for those that it has.
const DRAIN: Duration = Duration::from_millis(300);
const DRAIN_MAX: Duration = Duration::from_secs(2);
/// Body of an ordinary answer, in bytes.
const ANSWER_BYTES: usize = 1000;
/// What is in every log.
pub(crate) const LOG_LINE: &str = "a line\n";

/// The one thing that all apiservers know.
#[derive(Clone)]
pub(crate) struct Etcd(watch::Sender<u64>);

impl Etcd {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(1))
    }

    pub(crate) fn revision(&self) -> u64 {
        *self.0.borrow()
    }

    /// Writes something, whatever it is.
    pub(crate) fn write(&self) {
        self.0.send_modify(|revision| *revision += 1);
    }
}

/// What a watch tells of a revision: a line of JSON.
fn event(revision: u64) -> Bytes {
    let kind = if revision.is_multiple_of(BOOKMARK_EACH) { "BOOKMARK" } else { "MODIFIED" };
    format!(
        "{{\"type\":\"{kind}\",\"object\":{{\"kind\":\"ConfigMap\",\"apiVersion\":\"v1\",\"metadata\":{{\"name\":\"a\",\
         \"resourceVersion\":\"{revision}\"}}}}}}\n"
    )
    .into()
}

/// What is told to an apiserver, and what it has seen.
#[derive(Default)]
pub(crate) struct Control {
    /// The status that everything but the probe is answered with; 0 for what is right.
    pub(crate) says: AtomicU16,
    /// Refuse every stream before looking at it.
    pub(crate) refuses: AtomicBool,
    /// Let each request wait until it is answered, in milliseconds.
    pub(crate) delay_ms: AtomicU64,
    /// Send no more than half of each event.
    pub(crate) halves: AtomicBool,
    /// As SIGSTOP.
    frozen: AtomicBool,
    sleepers: Mutex<Vec<Waker>>,
    /// It is about to go.
    leaving: watch::Sender<bool>,
    /// It accepts no connections any more, and lets go of those that it has.
    closed: watch::Sender<bool>,

    /// Requests, without probes.
    pub(crate) requests: AtomicU64,
    /// The same by method, for those that are not GET.
    pub(crate) changes: Texts,
    pub(crate) connections: Gauge,
    pub(crate) streams: Gauge,
    pub(crate) watches: Gauge,
    /// The headers of the last request that was no probe.
    pub(crate) last_headers: Mutex<HeaderMap>,
}

/// Something that comes and goes.
#[derive(Default)]
pub(crate) struct Gauge {
    now: AtomicU64,
    most: AtomicU64,
}

impl Gauge {
    pub(crate) fn now(&self) -> u64 {
        self.now.load(SeqCst)
    }

    /// The most at once.
    pub(crate) fn most(&self) -> u64 {
        self.most.load(SeqCst)
    }

    fn enter(&self) -> Inside<'_> {
        let now = self.now.fetch_add(1, SeqCst) + 1;
        self.most.fetch_max(now, SeqCst);
        Inside(self)
    }
}

struct Inside<'a>(&'a Gauge);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, SeqCst);
    }
}

pub(crate) struct Apiserver {
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    etcd: Etcd,
    handle: Handle,
    pub(crate) control: Arc<Control>,
    process: Option<JoinHandle<()>>,
}

impl Apiserver {
    /// Starts one with that certificate, or without TLS.
    pub(crate) fn start(runtime: &Runtime, etcd: &Etcd, identity: Option<&Identity>) -> Self {
        let mut apiserver = Self {
            address: free_port(),
            tls: identity.map(acceptor),
            etcd: etcd.clone(),
            handle: runtime.handle().clone(),
            control: Arc::default(),
            process: None,
        };
        apiserver.start_again();
        apiserver
    }

    pub(crate) fn url(&self) -> String {
        format!("{}://{}", if self.tls.is_some() { "https" } else { "http" }, self.address)
    }

    /// Starts it at the same address after it has ended.
    pub(crate) fn start_again(&mut self) {
        self.control.leaving.send_replace(false);
        self.control.closed.send_replace(false);
        let _inside = self.handle.enter();
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(self.address).unwrap();
        let listener = socket.listen(1024).unwrap();
        let run = run(listener, self.tls.clone(), self.etcd.clone(), self.control.clone());
        self.process = Some(self.handle.spawn(run));
    }

    /// As SIGKILL: every socket is gone.
    pub(crate) fn kill(&mut self) {
        let process = self.process.take().expect("it runs");
        process.abort();
        // It was aborted, as its result says too.
        let _ = self.handle.block_on(process);
        wait("every connection is gone", || self.control.connections.now() == 0);
    }

    /// As SIGTERM: it says that it is not ready and ends its watches, then accepts nothing any more and says GOAWAY.
    pub(crate) fn stop(&mut self) {
        self.control.leaving.send_replace(true);
        std::thread::sleep(DRAIN);
        self.control.closed.send_replace(true);
        let process = self.process.take().expect("it runs");
        let ended = self.handle.block_on(async { tokio::time::timeout(DRAIN_MAX, process).await });
        assert!(ended.is_ok(), "requests or connections did not end");
    }

    /// As SIGSTOP.
    pub(crate) fn freeze(&self) {
        self.control.frozen.store(true, SeqCst);
    }

    /// As SIGCONT.
    pub(crate) fn thaw(&self) {
        // Under the lock, so that nobody goes to sleep on what was true before.
        let mut sleepers = self.control.sleepers.lock();
        self.control.frozen.store(false, SeqCst);
        sleepers.drain(..).for_each(Waker::wake);
    }
}

impl Control {
    fn frozen(&self, context: &Context<'_>) -> bool {
        if !self.frozen.load(SeqCst) {
            return false;
        }
        let mut sleepers = self.sleepers.lock();
        let frozen = self.frozen.load(SeqCst);
        if frozen {
            sleepers.push(context.waker().clone());
        }
        frozen
    }

    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(SeqCst)
    }
}

fn acceptor(identity: &Identity) -> TlsAcceptor {
    let certificate = CertificateDer::from_pem_slice(identity.certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

async fn run(listener: TcpListener, tls: Option<TlsAcceptor>, etcd: Etcd, control: Arc<Control>) {
    let mut connections = JoinSet::new();
    let mut closed = control.closed.subscribe();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted.expect("accepted");
                connections.spawn(connection(stream, tls.clone(), etcd.clone(), control.clone()));
            }
            Some(_) = connections.join_next() => {}
            _ = closed.wait_for(|closed| *closed) => break,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection(stream: TcpStream, tls: Option<TlsAcceptor>, etcd: Etcd, control: Arc<Control>) {
    let _open = control.connections.enter();
    stream.set_nodelay(true).expect("set");
    let stream = Freezable { inner: stream, control: control.clone() };
    match tls {
        None => serve(stream, etcd, &control).await,
        Some(acceptor) => {
            // A handshake that the gateway breaks off is its affair.
            if let Ok(stream) = acceptor.accept(stream).await {
                serve(stream, etcd, &control).await;
            }
        }
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(stream: S, etcd: Etcd, control: &Arc<Control>) {
    let built = h2::server::Builder::new().max_concurrent_streams(STREAMS_MAX).handshake(stream).await;
    let Ok(mut connection) = built else { return };
    let mut handlers = JoinSet::new();
    let mut closed = control.closed.subscribe();
    let mut is_open = true;
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            _ = closed.wait_for(|closed| *closed), if is_open => {
                is_open = false;
                connection.graceful_shutdown();
                continue;
            }
            Some(_) = handlers.join_next() => continue,
        };
        let Some(Ok((request, respond))) = accepted else { break };
        let (etcd, control) = (etcd.clone(), control.clone());
        handlers.spawn(async move {
            let _stream = control.streams.enter();
            answer(request, respond, &etcd, &control).await;
        });
    }
}

async fn answer(request: Request<RecvStream>, mut respond: SendResponse<Bytes>, etcd: &Etcd, control: &Control) {
    let (head, mut body) = request.into_parts();
    if head.uri.path() == "/readyz" {
        let status = if *control.leaving.borrow() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
        return say(&mut respond, status, Bytes::from_static(b"ok"));
    }
    if control.refuses.load(SeqCst) {
        return respond.send_reset(Reason::REFUSED_STREAM);
    }
    control.requests.fetch_add(1, SeqCst);
    while let Some(Ok(piece)) = body.data().await {
        // Fails only when the stream is over, which the next look tells.
        let _ = body.flow_control().release_capacity(piece.len());
    }
    if head.method != Method::GET {
        control.changes.add(format!("{} {}", head.method, head.uri.path()));
    }
    let query = head.uri.query().unwrap_or_default().to_owned();
    let path = head.uri.path().to_owned();
    *control.last_headers.lock() = head.headers;
    let says = control.says.load(SeqCst);
    if says != 0 {
        let status = StatusCode::from_u16(says).expect("a status");
        return say(&mut respond, status, Bytes::from_static(b"{\"kind\":\"Status\",\"status\":\"Failure\"}"));
    }
    let delay_ms = control.delay_ms.load(SeqCst);
    if delay_ms > 0 {
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
    }
    if query.contains("watch=true") {
        let from = query.split('&').find_map(|part| part.strip_prefix("resourceVersion=")?.parse().ok());
        let _watch = control.watches.enter();
        return tell_events(respond, etcd, control, from.unwrap_or_else(|| etcd.revision())).await;
    }
    if path.ends_with("/log") {
        return tell_lines(respond).await;
    }
    if path.ends_with("/trailers") {
        return say_with_trailers(&mut respond);
    }
    say(&mut respond, StatusCode::OK, vec![b' '; ANSWER_BYTES].into());
}

/// A log that is followed: a line, and then nothing until the client leaves.
async fn tell_lines(mut respond: SendResponse<Bytes>) {
    let response = Response::builder().header("content-type", "text/plain").body(()).expect("a response");
    let Ok(mut stream) = respond.send_response(response, false) else { return };
    // Whoever is gone needs no line.
    let _ = stream.send_data(LOG_LINE.into(), false);
    let _ = std::future::poll_fn(|context| stream.poll_reset(context)).await;
}

/// An answer with something behind its body.
fn say_with_trailers(respond: &mut SendResponse<Bytes>) {
    let Ok(mut stream) = respond.send_response(Response::new(()), false) else { return };
    let mut trailers = HeaderMap::new();
    trailers.insert("checksum", http::HeaderValue::from_static("42"));
    // Whoever is gone needs no answer.
    let _ = stream.send_data(vec![b' '; ANSWER_BYTES].into(), false);
    let _ = stream.send_trailers(trailers);
}

/// All events after a revision, until the client leaves or the apiserver is about to.
async fn tell_events(mut respond: SendResponse<Bytes>, etcd: &Etcd, control: &Control, mut told: u64) {
    let mut revisions = etcd.0.subscribe();
    let mut leaving = control.leaving.subscribe();
    let response = Response::builder().header("content-type", "application/json").body(()).expect("a response");
    let Ok(mut stream) = respond.send_response(response, false) else { return };
    loop {
        let now = *revisions.borrow_and_update();
        while told < now {
            told += 1;
            let mut event = event(told);
            if control.halves.load(SeqCst) {
                event.truncate(event.len() / 2);
            }
            if stream.send_data(event, false).is_err() {
                return;
            }
        }
        tokio::select! {
            changed = revisions.changed() => changed.expect("the etcd is there as long as its apiservers"),
            _ = leaving.wait_for(|leaving| *leaving) => break,
            _ = std::future::poll_fn(|context| stream.poll_reset(context)) => return,
        }
    }
    // Whoever is gone needs no end.
    let _ = stream.send_data(Bytes::new(), true);
}

/// No longer than a stream's first window: it is sent at once.
fn say(respond: &mut SendResponse<Bytes>, status: StatusCode, body: Bytes) {
    let response = Response::builder().status(status).header("content-type", "application/json").body(());
    // Whoever is gone needs no answer.
    if let Ok(mut stream) = respond.send_response(response.expect("a response"), false) {
        let _ = stream.send_data(body, true);
    }
}

/// A socket that stands still while its process is stopped.
struct Freezable {
    inner: TcpStream,
    control: Arc<Control>,
}

impl AsyncRead for Freezable {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.control.frozen(cx) { Poll::Pending } else { Pin::new(&mut self.inner).poll_read(cx, buffer) }
    }
}

impl AsyncWrite for Freezable {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.control.frozen(cx) { Poll::Pending } else { Pin::new(&mut self.inner).poll_write(cx, bytes) }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
