//! Where clients connect: TCP, TLS, HTTP/2 and HTTP/1.1.
//!
//! Invariant: everything that a client can make the gateway hold is bounded, in number and in time, before it is known who the client is:
//! connections, handshakes, heads, streams. A connection is never dropped by a new configuration; it is only told to go when the gateway
//! stops, and may then finish what it has begun.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use kubewharf_foundation::Shutdown;
use kubewharf_foundation::clock::Clock;
use parking_lot::Mutex;
use pin_project_lite::pin_project;
use rustls_pki_types::UnixTime;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::rustls::server::Acceptor;
use tokio_rustls::server::TlsStream;

use crate::authentication::x509::ClientCertificate;
use crate::cluster::Cluster;
use crate::gateway::ClientTimeouts;
use crate::guard::{Guarded, Outlet};
use crate::limits::{
    ACCEPT_PAUSE, CONNECTION_WINDOW_BYTES, HEAD_BYTES_MAX, HEADERS_MAX, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT,
    RESET_STREAMS_MAX, SEND_BUFFER_BYTES, STREAM_WINDOW_BYTES, STREAMS_PER_CONNECTION_MAX,
};
use crate::per_address::PerAddress;
use crate::proxy::{Client, Place, Proxy, forwarded_for};
use crate::proxy_protocol::{self, TrustedPeers};
use crate::watchdog::Watched;
use crate::wire::{Socket, Wire};

/// A client's connection within TLS.
type Stream = TlsStream<Outlet<Socket>>;

/// What all listeners share.
pub(crate) struct Front {
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) clock: Arc<dyn Clock>,
    /// Who may tell, by the PROXY protocol, that a connection is somebody else's.
    pub(crate) proxy_protocol_peers: TrustedPeers,
    /// Places for connections, so many in all.
    pub(crate) connections: Arc<Semaphore>,
    pub(crate) connections_max: usize,
    pub(crate) per_address: Arc<PerAddress>,
    pub(crate) timeouts: ClientTimeouts,
    pub(crate) drain_timeout: Duration,
    pub(crate) shutdown: Shutdown,
}

impl Front {
    /// Accepts connections until the shutdown; ends when the last of them has.
    pub(crate) async fn listen(self: Arc<Self>, listener: TcpListener) {
        let mut tasks = tokio::task::JoinSet::new();
        loop {
            // A place first: clients beyond the limit wait in the kernel's queue instead of in our memory.
            let place = tokio::select! {
                place = self.connections.clone().acquire_owned() => place.expect("it is never closed"),
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
                    let front = self.clone();
                    let place = Place::new(front.proxy.metrics.clone(), place);
                    tasks.spawn(async move {
                        if let Err(error) = front.serve(stream, address, place).await {
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
        while tasks.join_next().await.is_some() {}
        // Upgraded connections have left these tasks, but not their places.
        let all = u32::try_from(self.connections_max).unwrap_or(u32::MAX);
        let ended = async { drop(self.connections.acquire_many(all).await) };
        tokio::select! {
            () = ended => {}
            () = tokio::time::sleep(self.drain_timeout) => {}
            () = self.shutdown.requested_now() => {}
        }
    }

    async fn serve(&self, mut stream: TcpStream, peer: SocketAddr, place: Arc<Place>) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let may_pause = Arc::new(AtomicBool::new(false));
        let handshake = async {
            let address = if self.proxy_protocol_peers.contains(peer.ip()) {
                proxy_protocol::read(&mut stream).await?.unwrap_or(peer)
            } else {
                peer
            };
            let Some(of_address) = self.per_address.enter(address.ip()) else {
                self.proxy.metrics.connection_refused();
                self.per_address.tell_refusal(address.ip(), Instant::now());
                return Ok(None);
            };
            // It is not there yet: the address is told once.
            let _ = place.of_address.set(of_address);
            let stream = Outlet::new(Socket::new(stream), self.timeouts.send, may_pause.clone());
            Ok::<_, io::Error>(Some((address, self.handshake(stream).await?)))
        };
        // Boxed: a handshake needs some kilobytes, which the connection would keep to its end.
        let timed = tokio::time::timeout(self.timeouts.handshake, Box::pin(handshake)).await;
        let (address, (stream, cluster, by_sni)) = match timed {
            Ok(Ok(Some(done))) => done,
            Ok(Ok(None)) => return Ok(()),
            Ok(Err(error)) => {
                self.proxy.metrics.handshake_failed();
                return Err(error);
            }
            Err(_) => {
                self.proxy.metrics.handshake_failed();
                return Err(io::ErrorKind::TimedOut.into());
            }
        };
        let (_, connection) = stream.get_ref();
        let now = UnixTime::since_unix_epoch(Duration::from_millis(self.clock.wall_ms()));
        let is_http2 = connection.alpn_protocol() == Some(b"h2");
        let client = Arc::new(Client {
            certificate: ClientCertificate::of_connection(connection, cluster.trust.as_deref(), now),
            proxy: self.proxy.clone(),
            address,
            forwarded_for: forwarded_for(address),
            cluster_by_sni: by_sni.then(|| cluster.config.name.clone()),
            named: Mutex::default(),
            may_pause,
            place,
        });
        drop(cluster);
        // Boxed: nearly all connections are HTTP/2, and would otherwise have room for the other.
        if is_http2 { self.http2(stream, client).await } else { Box::pin(self.http1(stream, client)).await }
    }

    /// The TLS handshake, as the cluster wants it that the client names; and whether it named one.
    async fn handshake(&self, stream: Outlet<Socket>) -> io::Result<(Stream, Arc<Cluster>, bool)> {
        let started = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let clusters = self.proxy.clusters.load_full();
        let hello = started.client_hello();
        let name = hello.server_name();
        let config = match name {
            Some(name) => clusters.snapshot.cluster_of_host(name),
            None => clusters.snapshot.default_cluster(),
        };
        let unknown = || {
            let name = name.unwrap_or("(none, and there is no --default-cluster)");
            io::Error::new(io::ErrorKind::NotFound, format!("no cluster has the server name {name}"))
        };
        let cluster = config.and_then(|config| clusters.of(config)).ok_or_else(unknown)?.clone();
        let by_sni = name.is_some();
        let tls = cluster.tls.as_ref().ok_or_else(|| io::Error::other("the cluster has no certificate for clients"))?;
        let stream = started.into_stream(tls.config().clone()).await?;
        Ok((stream, cluster, by_sni))
    }

    async fn http2(&self, stream: Stream, client: Arc<Client>) -> io::Result<()> {
        let service = service_fn(move |request| {
            let client = client.clone();
            // Boxed: what it takes to begin an answer would otherwise be kept as long as the answer lasts, by each watch.
            Box::pin(async move { Ok::<_, std::convert::Infallible>(client.serve(request).await) })
        });
        let requests = Arc::new(Requests::default());
        let wire = Wire::new(stream);
        let connection = http2::Builder::new(Streams(requests.clone()))
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_header_list_size(HEAD_BYTES_MAX)
            .max_pending_accept_reset_streams(RESET_STREAMS_MAX)
            .max_local_error_reset_streams(RESET_STREAMS_MAX)
            .max_send_buf_size(SEND_BUFFER_BYTES)
            .keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .serve_connection(TokioIo::new(Guarded::new(wire.clone(), self.timeouts.head)), service);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            result = (Driven { connection: connection.as_mut(), wire: &wire }) => return result,
            () = requests.are_none(self.timeouts.head, self.timeouts.idle) => {
                connection.as_mut().graceful_shutdown();
                // A request that crossed this on its way is answered, however long that takes.
                tokio::select! {
                    result = (Driven { connection: connection.as_mut(), wire: &wire }) => return result,
                    () = requests.are_none(self.drain_timeout, self.drain_timeout) => return Ok(()),
                    () = self.shutdown.requested() => {}
                }
            }
            () = self.shutdown.requested() => connection.as_mut().graceful_shutdown(),
        }
        self.drained(Driven { connection, wire: &wire }).await
    }

    async fn http1(&self, stream: Stream, client: Arc<Client>) -> io::Result<()> {
        let service = service_fn(move |request| {
            let client = client.clone();
            async move { Ok::<_, std::convert::Infallible>(client.serve(request).await) }
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
            () = tokio::time::sleep(self.drain_timeout) => Ok(()),
            () = self.shutdown.requested_now() => Ok(()),
        }
    }
}

/// An HTTP/2 connection whose writes leave once a turn.
struct Driven<'a, C> {
    connection: Pin<&'a mut C>,
    wire: &'a Wire<Stream>,
}

impl<C: Future<Output = hyper::Result<()>>> Future for Driven<'_, C> {
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Poll::Ready(result) = self.connection.as_mut().poll(context) {
            return Poll::Ready(result.map_err(io::Error::other));
        }
        match self.wire.end_turn(context) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Pending,
        }
    }
}

/// The requests of an HTTP/2 connection.
#[derive(Default)]
struct Requests {
    open: AtomicUsize,
    begun: AtomicU64,
}

impl Requests {
    /// Ends when the first one does not come in time, or when there was none for `idle`, or up to twice that.
    async fn are_none(&self, first: Duration, idle: Duration) {
        tokio::time::sleep(first).await;
        let mut begun_before = 0;
        loop {
            let begun = self.begun.load(Ordering::Relaxed);
            if self.open.load(Ordering::Relaxed) == 0 && begun == begun_before {
                return;
            }
            begun_before = begun;
            tokio::time::sleep(idle).await;
        }
    }
}

/// Gives each request of an HTTP/2 connection a task.
#[derive(Clone)]
struct Streams(Arc<Requests>);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, task: F) {
        self.0.open.fetch_add(1, Ordering::Relaxed);
        self.0.begun.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(OpenRequest { task: Watched::new(task), requests: self.0.clone() });
    }
}

pin_project! {
    struct OpenRequest<F> {
        #[pin]
        task: Watched<F>,
        requests: Arc<Requests>,
    }
    impl<F> PinnedDrop for OpenRequest<F> {
        fn drop(this: Pin<&mut Self>) {
            this.requests.open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl<F: Future<Output = ()>> Future for OpenRequest<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.project().task.poll(context).map(|_| ())
    }
}
