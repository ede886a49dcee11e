//! Clients' connections to a product that answers over HTTP: what lies between an accepted TCP connection and the requests on it. Who the
//! client is, what it may and what it is answered is the product's ([`Service`]).
//!
//! Invariant: everything that a client can make a connection hold is bounded, in number and in time; and a connection that ends gives all of
//! it back at once.

mod addresses;
mod guard;
mod http2;
mod inbound;
mod limits;
pub mod places;
pub mod watchdog;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use kubewharf_foundation::Shutdown;
use kubewharf_upstream::wire::Socket;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

pub use addresses::Addresses;
pub use guard::{Outlet, Pause};
pub use inbound::{Broken, Inbound, NotWhole};
pub use limits::{
    ACCEPT_PAUSE, HANDSHAKE_TIMEOUT, HEAD_TIMEOUT, IDLE_TIMEOUT, SEND_PIECE_BYTES_MAX, SEND_TIMEOUT,
    UNREAD_LASTING_TIMEOUT, UNREAD_TIMEOUT,
};

use limits::{HEAD_BYTES_MAX, HEADERS_MAX, LISTEN_BACKLOG, TCP_KEEPALIVE_AFTER, TCP_KEEPALIVE_INTERVAL};

use http2::{Connection, Requests};
use watchdog::Watched;

/// A client's connection within TLS.
pub type Stream = tokio_rustls::server::TlsStream<Outlet<Socket>>;

/// Listens at an address. Connections are asked now and then whether the client's machine is still there, also while nothing is to be sent.
///
/// # Errors
/// When the address can't be had.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    let keepalive = TcpKeepalive::new().with_time(TCP_KEEPALIVE_AFTER).with_interval(TCP_KEEPALIVE_INTERVAL);
    SockRef::from(&socket).set_tcp_keepalive(&keepalive)?;
    socket.bind(address)?;
    socket.listen(LISTEN_BACKLOG)
}

/// Answers the requests of a connection.
pub trait Service: Send + Sync + 'static {
    /// The body of an answer. When it is asked for the next piece, the piece before has been handed over. Pieces are small: one that is handed
    /// over waits for its client's room with nobody to look at the time.
    type Body: http_body::Body<Data = Bytes, Error: std::error::Error + Send + Sync> + Send + Unpin + 'static;

    /// Answers a request.
    fn serve(self: Arc<Self>, request: Request<Inbound>)
    -> impl Future<Output = Response<Self::Body>> + Send + 'static;

    /// How long an HTTP/2 client may leave a piece of this body unread; none if the body tells the [`watchdog`] itself.
    fn unread_timeout(body: &Self::Body) -> Option<Duration>;
}

/// How long a client may take for what a connection needs beside its requests, before the connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For the TLS handshake, and what comes before it.
    pub handshake: Duration,
    /// For the head of a request, or one frame of HTTP/2; and until the next request, over HTTP/1.1.
    pub head: Duration,
    /// Until the next request, over HTTP/2; up to twice that.
    pub idle: Duration,
    /// Until it takes a part of what is there for it.
    pub send: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { handshake: HANDSHAKE_TIMEOUT, head: HEAD_TIMEOUT, idle: IDLE_TIMEOUT, send: SEND_TIMEOUT }
    }
}

/// How connections are served.
#[derive(Clone)]
pub struct Server {
    /// How long clients may take.
    pub timeouts: Timeouts,
    /// How long a connection that was told to go may take for what it has begun.
    pub drain_timeout: Duration,
    /// When connections are told to go.
    pub shutdown: Shutdown,
}

impl Server {
    /// A connection that was just accepted, for TLS. It ends when the client takes nothing for too long, unless `may_pause` says that it may.
    #[must_use]
    pub fn outlet(&self, stream: TcpStream, may_pause: Arc<AtomicBool>) -> Outlet<Socket> {
        Outlet::new(Socket::new(stream), self.timeouts.send, may_pause)
    }

    /// Serves a connection to its end.
    ///
    /// # Errors
    /// When it breaks off, or the client passes a bound.
    pub async fn serve<S: Service>(&self, stream: Stream, service: Arc<S>) -> io::Result<()> {
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        // Boxed: nearly all connections are HTTP/2, and would otherwise have room for the other.
        if is_http2 { self.http2(stream, service).await } else { Box::pin(self.http1(stream, service)).await }
    }

    async fn http2<S: Service>(&self, stream: Stream, service: Arc<S>) -> io::Result<()> {
        let requests = Arc::new(Requests::default());
        let mut connection = Connection::new(stream, service, self.timeouts.head, requests.clone());
        tokio::select! {
            result = &mut connection => return result,
            () = requests.are_none(self.timeouts.head, self.timeouts.idle) => {
                connection.graceful_shutdown();
                // A request that crossed this on its way is answered, however long that takes.
                tokio::select! {
                    result = &mut connection => return result,
                    () = requests.are_none(self.drain_timeout, self.drain_timeout) => return Ok(()),
                    () = self.shutdown.requested() => {}
                }
            }
            () = self.shutdown.requested() => connection.graceful_shutdown(),
        }
        self.drained(connection).await
    }

    async fn http1<S: Service>(&self, stream: Stream, service: Arc<S>) -> io::Result<()> {
        let service = service_fn(move |request: Request<hyper::body::Incoming>| {
            let service = service.clone();
            async move { Ok::<_, Infallible>(service.serve(request.map(Inbound::Http1)).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.timeouts.head)
            .max_headers(HEADERS_MAX)
            .max_buf_size(HEAD_BYTES_MAX as usize)
            .preserve_header_case(true)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let mut connection = std::pin::pin!(Watched::new(connection));
        tokio::select! {
            result = connection.as_mut() => return result.unwrap_or(Ok(())).map_err(io::Error::other),
            () = self.shutdown.requested() => {
                if let Some(connection) = connection.as_mut().task() {
                    connection.graceful_shutdown();
                }
            }
        }
        self.drained(async { connection.await.unwrap_or(Ok(())).map_err(io::Error::other) }).await
    }

    /// Lets a connection finish what it has begun, for as long as that may take.
    async fn drained(&self, connection: impl Future<Output = io::Result<()>>) -> io::Result<()> {
        tokio::select! {
            result = connection => result,
            () = self.drain_is_over() => Ok(()),
        }
    }

    /// Waits until a connection that was told to go has had its time.
    pub async fn drain_is_over(&self) {
        tokio::select! {
            () = tokio::time::sleep(self.drain_timeout) => {}
            () = self.shutdown.requested_now() => {}
        }
    }
}
