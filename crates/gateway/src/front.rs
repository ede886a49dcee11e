//! Where clients connect: TCP, TLS, HTTP/2 and HTTP/1.1.
//!
//! Invariant: everything that a client can make the gateway hold is bounded, in number and in time, before it is known who the client is:
//! connections, handshakes, heads, streams. A connection is never dropped by a new configuration; it is only told to go when the gateway
//! stops, and may then finish what it has begun.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use kubewharf_foundation::Shutdown;
use kubewharf_foundation::clock::Clock;
use parking_lot::Mutex;
use rustls_pki_types::UnixTime;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::rustls::server::Acceptor;
use tokio_rustls::server::TlsStream;

use crate::authentication::x509::ClientCertificate;
use crate::cluster::Cluster;
use crate::limits::{
    ACCEPT_PAUSE, CONNECTION_WINDOW_BYTES, HANDSHAKE_TIMEOUT, HEAD_BYTES_MAX, HEAD_TIMEOUT, HEADERS_MAX,
    KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, RESET_STREAMS_MAX, SEND_BUFFER_BYTES, STREAM_WINDOW_BYTES,
    STREAMS_PER_CONNECTION_MAX,
};
use crate::proxy::{Client, Proxy};
use crate::proxy_protocol::{self, TrustedPeers};

/// What all listeners share.
pub(crate) struct Front {
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) clock: Arc<dyn Clock>,
    /// Who may tell, by the PROXY protocol, that a connection is somebody else's.
    pub(crate) proxy_protocol_peers: TrustedPeers,
    pub(crate) connections: Arc<Semaphore>,
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
                    tasks.spawn(async move {
                        front.proxy.metrics.connection(1);
                        if let Err(error) = front.serve(stream, address).await {
                            tracing::debug!(%address, %error, "a connection failed");
                        }
                        front.proxy.metrics.connection(-1);
                        drop(place);
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
    }

    async fn serve(&self, mut stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let handshake = async {
            let address = if self.proxy_protocol_peers.contains(peer.ip()) {
                proxy_protocol::read(&mut stream).await?.unwrap_or(peer)
            } else {
                peer
            };
            Ok::<_, io::Error>((address, self.handshake(stream).await?))
        };
        let (address, (stream, cluster, by_sni)) = match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok(done)) => done,
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
            cluster_by_sni: by_sni.then(|| cluster.config.name.clone()),
            named: Mutex::default(),
        });
        drop(cluster);
        if is_http2 { self.http2(stream, client).await } else { self.http1(stream, client).await }
    }

    /// The TLS handshake, as the cluster wants it that the client names; and whether it named one.
    async fn handshake(&self, stream: TcpStream) -> io::Result<(TlsStream<TcpStream>, Arc<Cluster>, bool)> {
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

    async fn http2(&self, stream: TlsStream<TcpStream>, client: Arc<Client>) -> io::Result<()> {
        let service = service_fn(move |request| {
            let client = client.clone();
            async move { Ok::<_, std::convert::Infallible>(client.serve(request).await) }
        });
        let connection = http2::Builder::new(TokioExecutor::new())
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
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            result = connection.as_mut() => return result.map_err(io::Error::other),
            () = self.shutdown.requested() => connection.as_mut().graceful_shutdown(),
        }
        self.drained(connection).await
    }

    async fn http1(&self, stream: TlsStream<TcpStream>, client: Arc<Client>) -> io::Result<()> {
        let service = service_fn(move |request| {
            let client = client.clone();
            async move { Ok::<_, std::convert::Infallible>(client.serve(request).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_headers(HEADERS_MAX)
            .max_buf_size(HEAD_BYTES_MAX as usize)
            .preserve_header_case(true)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            result = connection.as_mut() => return result.map_err(io::Error::other),
            () = self.shutdown.requested() => connection.as_mut().graceful_shutdown(),
        }
        self.drained(connection).await
    }

    /// Lets a connection finish what it has begun, for as long as that may take.
    async fn drained(&self, connection: impl Future<Output = hyper::Result<()>>) -> io::Result<()> {
        tokio::select! {
            result = connection => result.map_err(io::Error::other),
            () = tokio::time::sleep(self.drain_timeout) => Ok(()),
            () = self.shutdown.requested_now() => Ok(()),
        }
    }
}
