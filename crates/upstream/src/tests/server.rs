//! Endpoints for tests: HTTP/2 servers on 127.0.0.1 that misbehave on demand.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, Request, Response, StatusCode};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::Address;

/// What a server has seen, and what it is told to do.
#[derive(Default)]
pub(super) struct Control {
    /// Connections ever.
    pub(super) accepted: AtomicU32,
    /// Connections now.
    pub(super) open: AtomicU32,
    /// Requests ever, without probes.
    pub(super) requests: AtomicU32,
    /// The most requests at once on one connection.
    pub(super) peak: AtomicU32,
    /// Streams that the client has cut.
    pub(super) cut: AtomicU32,
    /// `authorization` of the last request.
    pub(super) authorization: Mutex<Option<String>>,
    /// The certificate that the client of the last request showed.
    pub(super) certificate: Mutex<Option<Vec<u8>>>,
    /// The status of `/readyz`; 0 is 200.
    pub(super) ready: AtomicU16,
    /// Like SIGSTOP.
    frozen: AtomicBool,
    sleepers: Mutex<Vec<Waker>>,
    thawed: Notify,
    going_away: Notify,
    killed: Notify,
    dead: AtomicBool,
}

pub(super) struct Server {
    pub(super) address: Address,
    pub(super) control: Arc<Control>,
    tls: Option<TlsAcceptor>,
    streams_max: u32,
}

impl Server {
    pub(super) async fn start() -> Self {
        Self::with(None, 100).await
    }

    pub(super) async fn with(tls: Option<rustls::ServerConfig>, streams_max: u32) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let server = Self {
            address: Address { https: tls.is_some(), host: "127.0.0.1".to_owned(), port },
            control: Arc::default(),
            tls: tls.map(|config| TlsAcceptor::from(Arc::new(config))),
            streams_max,
        };
        server.listen(listener);
        server
    }

    fn listen(&self, listener: TcpListener) {
        let (control, tls, streams_max) = (self.control.clone(), self.tls.clone(), self.streams_max);
        control.dead.store(false, Ordering::SeqCst);
        tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    () = control.killed.notified() => break,
                    accepted = listener.accept() => {
                        let (stream, _) = accepted.expect("accepted");
                        control.wait_until_thawed().await;
                        control.accepted.fetch_add(1, Ordering::SeqCst);
                        connections.spawn(connection(stream, tls.clone(), control.clone(), streams_max));
                    }
                }
            }
            // Like a process that dies: every socket is gone at once.
            drop(listener);
            connections.shutdown().await;
            control.dead.store(true, Ordering::SeqCst);
        });
    }

    /// Like SIGKILL.
    pub(super) async fn kill(&self) {
        self.control.killed.notify_one();
        until("the server is dead", || self.control.dead.load(Ordering::SeqCst)).await;
    }

    /// A new process at the same address.
    pub(super) async fn restart(&self) {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(true).expect("set");
        socket.bind(([127, 0, 0, 1], self.address.port).into()).expect("bound");
        self.listen(socket.listen(64).expect("listening"));
    }

    /// Like SIGSTOP.
    pub(super) fn freeze(&self) {
        self.control.frozen.store(true, Ordering::SeqCst);
    }

    /// Like SIGCONT.
    pub(super) fn thaw(&self) {
        self.control.frozen.store(false, Ordering::SeqCst);
        self.control.thawed.notify_waiters();
        for waker in self.control.sleepers.lock().drain(..) {
            waker.wake();
        }
    }

    /// All connections say GOAWAY and end when their streams have.
    pub(super) fn go_away(&self) {
        self.control.going_away.notify_waiters();
    }

    pub(super) fn accepted(&self) -> u32 {
        self.control.accepted.load(Ordering::SeqCst)
    }

    pub(super) fn open(&self) -> u32 {
        self.control.open.load(Ordering::SeqCst)
    }

    pub(super) fn requests(&self) -> u32 {
        self.control.requests.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.control.killed.notify_one();
    }
}

impl Control {
    async fn wait_until_thawed(&self) {
        loop {
            let thawed = self.thawed.notified();
            if !self.frozen.load(Ordering::SeqCst) {
                return;
            }
            thawed.await;
        }
    }

    fn frozen(&self, context: &Context<'_>) -> bool {
        let mut sleepers = self.sleepers.lock();
        let frozen = self.frozen.load(Ordering::SeqCst);
        if frozen {
            sleepers.push(context.waker().clone());
        }
        frozen
    }
}

/// Waits for something that must come to pass.
pub(super) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within 10 s: {what}");
}

struct Open(Arc<Control>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn connection(stream: TcpStream, tls: Option<TlsAcceptor>, control: Arc<Control>, streams_max: u32) {
    control.open.fetch_add(1, Ordering::SeqCst);
    let _open = Open(control.clone());
    let stream = Freezable { inner: stream, control: control.clone() };
    match tls {
        None => serve(stream, control, streams_max, None).await,
        Some(acceptor) => {
            // A client that does not trust us, or is not trusted, is no panic.
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let session = stream.get_ref().1;
            let certificate = session.peer_certificates().and_then(|chain| chain.first()).map(|one| one.to_vec());
            if session.alpn_protocol() == Some(b"http/1.1") {
                *control.certificate.lock() = certificate;
                super::upgrade::serve(stream).await;
            } else {
                serve(stream, control, streams_max, certificate).await;
            }
        }
    }
}

async fn serve<S>(stream: S, control: Arc<Control>, streams_max: u32, certificate: Option<Vec<u8>>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let built = h2::server::Builder::new().max_concurrent_streams(streams_max).handshake(stream).await;
    let Ok(mut connection) = built else { return };
    let mut handlers = JoinSet::new();
    let current = Arc::new(AtomicU32::new(0));
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            () = control.going_away.notified() => {
                connection.graceful_shutdown();
                continue;
            }
            Some(_) = handlers.join_next() => continue,
        };
        let Some(Ok((request, respond))) = accepted else { break };
        control.certificate.lock().clone_from(&certificate);
        let (control, current) = (control.clone(), current.clone());
        handlers.spawn(async move {
            let now = current.fetch_add(1, Ordering::SeqCst) + 1;
            control.peak.fetch_max(now, Ordering::SeqCst);
            answer(request, respond, &control).await;
            current.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

async fn answer(request: Request<RecvStream>, mut respond: SendResponse<Bytes>, control: &Control) {
    let path = request.uri().path().to_owned();
    if path == "/readyz" {
        let status = match control.ready.load(Ordering::SeqCst) {
            0 => StatusCode::OK,
            status => StatusCode::from_u16(status).expect("a status"),
        };
        return say(respond, status, Bytes::from_static(b"ok")).await;
    }
    control.requests.fetch_add(1, Ordering::SeqCst);
    *control.authorization.lock() = authorization(request.headers());
    let argument = path.rsplit('/').next().and_then(|last| last.parse().ok()).unwrap_or(0);
    match path.split('/').nth(1).unwrap_or_default() {
        "slow" => {
            tokio::time::sleep(Duration::from_millis(argument)).await;
            say(respond, StatusCode::OK, Bytes::from_static(b"slow")).await;
        }
        "hang" => {
            let reset = std::future::poll_fn(|context| respond.poll_reset(context)).await;
            control.cut.fetch_add(u32::from(reset.is_ok()), Ordering::SeqCst);
        }
        // A head, as many bytes, and nothing more.
        "stall" => {
            let Ok(mut body) = respond.send_response(Response::new(()), false) else { return };
            body.send_data(vec![b'x'; argument as usize].into(), false).expect("sent");
            let _ = std::future::poll_fn(|context| body.poll_reset(context)).await;
        }
        "refuse" => respond.send_reset(Reason::REFUSED_STREAM),
        "fail" => respond.send_reset(Reason::INTERNAL_ERROR),
        "status" => say(respond, StatusCode::from_u16(argument as u16).expect("a status"), Bytes::new()).await,
        "bytes" => say(respond, StatusCode::OK, vec![b'x'; argument as usize].into()).await,
        "echo" => {
            let mut body = request.into_body();
            let mut all = Vec::new();
            while let Some(Ok(data)) = body.data().await {
                body.flow_control().release_capacity(data.len()).expect("released");
                all.extend_from_slice(&data);
            }
            say(respond, StatusCode::OK, all.into()).await;
        }
        // A watch: a small event each 10 ms until it is cut, or as often as it is told.
        "watch" => {
            let Ok(mut body) = respond.send_response(Response::new(()), false) else { return };
            let events = if argument == 0 { u64::MAX } else { argument };
            for _ in 0..events {
                if body.send_data(Bytes::from_static(b"{}\n"), false).is_err() {
                    control.cut.fetch_add(1, Ordering::SeqCst);
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let _ = body.send_data(Bytes::new(), true);
        }
        _ => say(respond, StatusCode::OK, Bytes::from_static(b"hello")).await,
    }
}

fn authorization(headers: &HeaderMap) -> Option<String> {
    Some(headers.get("authorization")?.to_str().expect("text").to_owned())
}

async fn say(mut respond: SendResponse<Bytes>, status: StatusCode, mut body: Bytes) {
    let response = Response::builder().status(status).body(()).expect("a response");
    let Ok(mut stream) = respond.send_response(response, body.is_empty()) else { return };
    while !body.is_empty() {
        stream.reserve_capacity(body.len());
        match std::future::poll_fn(|context| stream.poll_capacity(context)).await {
            Some(Ok(capacity)) => {
                let part = body.split_to(capacity.min(body.len()));
                if stream.send_data(part, body.is_empty()).is_err() {
                    return;
                }
            }
            _ => return,
        }
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
