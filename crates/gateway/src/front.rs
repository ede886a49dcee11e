//! Where clients connect: TCP, TLS, HTTP/2 and HTTP/1.1.
//!
//! Invariant: everything that a client can make the gateway hold is bounded, in number and in time, before it is known who the client is:
//! connections, handshakes, heads, streams. A connection is never dropped by a new configuration; it is only told to go when the gateway
//! stops, and may then finish what it has begun.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use kubewharf_foundation::clock::Clock;
use kubewharf_front::{ACCEPT_PAUSE, Addresses, Outlet, Server, Stream};
use kubewharf_upstream::wire::Socket;
use parking_lot::Mutex;
use rustls_pki_types::UnixTime;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::rustls::server::Acceptor;

use crate::authentication::x509::ClientCertificate;
use crate::cluster::Cluster;
use crate::proxy::{Client, Place, Proxy, forwarded_for};
use crate::proxy_protocol::{self, TrustedPeers};

/// What all listeners share.
pub(crate) struct Front {
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) clock: Arc<dyn Clock>,
    /// Who may tell, by the PROXY protocol, that a connection is somebody else's.
    pub(crate) proxy_protocol_peers: TrustedPeers,
    /// Places for connections, so many in all.
    pub(crate) connections: Arc<Semaphore>,
    pub(crate) connections_max: usize,
    pub(crate) per_address: Arc<Addresses>,
    pub(crate) server: Server,
}

impl Front {
    /// Accepts connections until the shutdown; ends when the last of them has.
    pub(crate) async fn listen(self: Arc<Self>, listener: TcpListener) {
        let mut tasks = tokio::task::JoinSet::new();
        loop {
            // A place first: clients beyond the limit wait in the kernel's queue instead of in our memory.
            let place = tokio::select! {
                place = self.connections.clone().acquire_owned() => place.expect("it is never closed"),
                () = self.server.shutdown.requested() => break,
                // Only so that those that have ended give back their memory.
                Some(_) = tasks.join_next() => continue,
            };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.server.shutdown.requested() => break,
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
            () = self.server.drain_is_over() => {}
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
            let stream = self.server.outlet(stream, may_pause.clone());
            Ok::<_, io::Error>(Some((address, self.handshake(stream).await?)))
        };
        // Boxed: a handshake needs some kilobytes, which the connection would keep to its end.
        let timed = tokio::time::timeout(self.server.timeouts.handshake, Box::pin(handshake)).await;
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
        self.server.serve(stream, client).await
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
}
