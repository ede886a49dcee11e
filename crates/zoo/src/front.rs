//! Where clients connect, tenants' and administrators': TCP, TLS, HTTP/2 and HTTP/1.1.
//!
//! Invariant: everything that a client can make zoo hold before it is known who it is, is bounded in number and in time.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use kubewharf_foundation::Shutdown;
use kubewharf_foundation::tls::{Identity, ReloadingTls, identity};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::limits::{
    ACCEPT_PAUSE, CONNECTIONS_MAX, DRAIN_TIMEOUT, FIRST_REQUEST_TIMEOUT, HANDSHAKE_TIMEOUT, HEAD_TIMEOUT, IDLE_TIMEOUT,
    REFUSALS_TOLD_INTERVAL, STREAMS_PER_CONNECTION_MAX,
};
use crate::places::{Place, Places, network};
use crate::proxy::{Body, Broken};

/// Answers the requests of one connection.
pub(crate) trait Client: Send + Sync + 'static {
    /// Answers a request.
    fn answer<'a>(&'a self, request: Request<Incoming>) -> BoxFuture<'a, Response<Body>>;
}

/// Makes the client of a connection: from whom its certificate names, if it showed one, and its address.
pub(crate) type Connect = dyn Fn(Option<Identity>, SocketAddr) -> Arc<dyn Client> + Send + Sync;

/// What all listeners share about addresses.
pub(crate) struct Addresses {
    places: Arc<Places<IpAddr>>,
    refusals_told_at: Mutex<Option<Instant>>,
}

impl Addresses {
    /// So many connections for each address, or for each /64 of IPv6; 0: as many as all may be.
    pub(crate) fn new(connections_per_address_max: usize) -> Arc<Self> {
        Arc::new(Self { places: Places::new(connections_per_address_max), refusals_told_at: Mutex::default() })
    }

    fn enter(&self, address: IpAddr) -> Option<Place<IpAddr>> {
        let place = self.places.enter(network(address));
        if place.is_none() {
            // Not each one: whoever is refused may come back at once, and often.
            let mut told_at = self.refusals_told_at.lock();
            if told_at.is_none_or(|told_at| told_at.elapsed() >= REFUSALS_TOLD_INTERVAL) {
                *told_at = Some(Instant::now());
                tracing::warn!(
                    %address,
                    "an address has as many connections as it may (--connections-per-address-max); further ones are closed"
                );
            }
        }
        place
    }
}

/// What a connection holds for as long as it is open: also when it has become a stream, in whose request this is then found.
#[derive(Clone)]
pub(crate) struct Stay {
    _places: Arc<(OwnedSemaphorePermit, Place<IpAddr>)>,
    shutdown: Shutdown,
}

impl Stay {
    /// Waits until zoo has stopped and what was still open has had its time.
    pub(crate) async fn is_over(&self) {
        self.shutdown.requested().await;
        tokio::select! {
            () = tokio::time::sleep(DRAIN_TIMEOUT) => {}
            () = self.shutdown.requested_now() => {}
        }
    }
}

/// How long clients may do nothing.
#[derive(Clone, Copy)]
pub(crate) struct Timeouts {
    head: Duration,
    first_request: Duration,
    idle: Duration,
    /// How long a client that was told to go may stay.
    leave: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { head: HEAD_TIMEOUT, first_request: FIRST_REQUEST_TIMEOUT, idle: IDLE_TIMEOUT, leave: DRAIN_TIMEOUT }
    }
}

/// A listener.
pub(crate) struct Front {
    pub(crate) connect: Box<Connect>,
    pub(crate) tls: Arc<ReloadingTls>,
    pub(crate) addresses: Arc<Addresses>,
    pub(crate) timeouts: Timeouts,
    pub(crate) shutdown: Shutdown,
}

impl Front {
    /// Accepts connections until the shutdown; ends when the last of them has.
    pub(crate) async fn listen(self: Arc<Self>, listener: TcpListener) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut tasks = tokio::task::JoinSet::new();
        loop {
            // A place first: clients beyond the limit wait in the kernel's queue instead of in our memory.
            let place = tokio::select! {
                place = places.clone().acquire_owned() => place.expect("it is never closed"),
                () = self.shutdown.requested() => break,
                // Only so that those that have ended give back their memory.
                Some(_) = tasks.join_next() => continue,
            };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.shutdown.requested() => break,
            };
            match accepted {
                Ok((stream, address)) => {
                    let Some(of_address) = self.addresses.enter(address.ip()) else { continue };
                    let stay = Stay { _places: Arc::new((place, of_address)), shutdown: self.shutdown.clone() };
                    let front = self.clone();
                    tasks.spawn(async move {
                        if let Err(error) = front.serve(stream, address, stay).await {
                            tracing::debug!(%address, %error, "a connection failed");
                        }
                    });
                }
                Err(error) => {
                    // Mostly a lack of file descriptors: others end meanwhile.
                    tracing::warn!(%error, "no connection can be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        let ended = async {
            while tasks.join_next().await.is_some() {}
            // Streams that connections have become have left these tasks, but not their places.
            let all = u32::try_from(CONNECTIONS_MAX).expect("it is small");
            drop(places.acquire_many(all).await);
        };
        tokio::select! {
            () = ended => {}
            () = tokio::time::sleep(DRAIN_TIMEOUT) => {}
            () = self.shutdown.requested_now() => {}
        }
    }

    async fn serve(&self, stream: TcpStream, address: SocketAddr, stay: Stay) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let acceptor = TlsAcceptor::from(self.tls.current());
        // Boxed: a handshake needs some kilobytes, which the connection would keep to its end.
        let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, Box::pin(acceptor.accept(stream))).await??;
        let connection = stream.get_ref().1;
        // The handshake has verified who signed it, and that the client has its key.
        let certificate = connection.peer_certificates().and_then(|chain| chain.first());
        let identity = certificate.map(identity).transpose().map_err(io::Error::other)?;
        let is_http2 = connection.alpn_protocol() == Some(b"h2");
        let client = (self.connect)(identity, address);
        // Boxed: nearly all connections are HTTP/2, and would otherwise have room for the other.
        if is_http2 { self.http2(stream, client, stay).await } else { Box::pin(self.http1(stream, client, stay)).await }
    }

    async fn http2(&self, stream: TlsStream<TcpStream>, client: Arc<dyn Client>, _stay: Stay) -> io::Result<()> {
        let requests = Arc::new(Requests::default());
        let counted = requests.clone();
        let service = service_fn(move |request| {
            let (client, request_is_open) = (client.clone(), counted.begin());
            async move {
                let response = client.answer(request).await;
                Ok::<_, std::convert::Infallible>(response.map(|body| Counted { body, _open: request_is_open }))
            }
        });
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
            .keep_alive_interval(Duration::from_secs(30));
        let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
        tokio::select! {
            result = connection.as_mut() => return result.map_err(io::Error::other),
            () = requests.are_none(self.timeouts.first_request, self.timeouts.idle) => {
                connection.as_mut().graceful_shutdown();
                // A request that crossed this on its way is answered, however long that takes.
                tokio::select! {
                    result = connection.as_mut() => return result.map_err(io::Error::other),
                    () = requests.leave(self.timeouts.leave) => return Ok(()),
                    () = self.shutdown.requested() => {}
                }
            }
            () = self.shutdown.requested() => connection.as_mut().graceful_shutdown(),
        }
        connection.await.map_err(io::Error::other)
    }

    async fn http1(&self, stream: TlsStream<TcpStream>, client: Arc<dyn Client>, stay: Stay) -> io::Result<()> {
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(stay.clone());
            let client = client.clone();
            async move { Ok::<_, std::convert::Infallible>(client.answer(request).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.timeouts.head)
            .preserve_header_case(true)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let mut connection = std::pin::pin!(connection);
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = self.shutdown.requested() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        result.map_err(io::Error::other)
    }
}

/// The requests of a connection that are not answered to the end.
struct Requests {
    open: AtomicUsize,
    has_begun: AtomicBool,
    /// When the last of them ended, or the connection began.
    none_since: Mutex<Instant>,
}

impl Default for Requests {
    fn default() -> Self {
        Self { open: AtomicUsize::new(0), has_begun: AtomicBool::new(false), none_since: Mutex::new(Instant::now()) }
    }
}

impl Requests {
    fn begin(self: &Arc<Self>) -> Open {
        self.open.fetch_add(1, Ordering::AcqRel);
        self.has_begun.store(true, Ordering::Release);
        Open(self.clone())
    }

    /// Waits for so long, and then until there is none.
    async fn leave(&self, timeout: Duration) {
        tokio::time::sleep(timeout).await;
        self.are_none(timeout, timeout).await;
    }

    /// Waits until there was none for so long: from the beginning on, or after the first. Pings are none.
    async fn are_none(&self, first: Duration, later: Duration) {
        loop {
            let limit = if self.has_begun.load(Ordering::Acquire) { later } else { first };
            let since = *self.none_since.lock();
            let is_open = self.open.load(Ordering::Acquire) > 0;
            if !is_open && since.elapsed() >= limit {
                return;
            }
            let until = if is_open { Instant::now() } else { since } + limit;
            tokio::time::sleep_until(until).await;
        }
    }
}

/// A request that is not answered to the end.
struct Open(Arc<Requests>);

impl Drop for Open {
    fn drop(&mut self) {
        *self.0.none_since.lock() = Instant::now();
        self.0.open.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The body of an answer, at whose end the request has ended.
struct Counted {
    body: Body,
    _open: Open,
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests;
