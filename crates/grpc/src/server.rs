//! Accepting connections, finding out what they speak, and draining them.
//!
//! Invariant: a client that sends nothing, or too slowly, holds a connection for the handshake timeout at most; and
//! `serve` returns only when its connections have ended.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use rustls::ServerConfig;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::connection::{Common, Connection, h2_builder};
use crate::inbox::Shared;
use crate::limits::ACCEPT_RETRY;
use crate::wire::{Socket, Transport, Wire};
use crate::{Dispatch, Peer, PeerAddress, ServerOptions, Stats, http1};

/// Gives the TLS configuration for the next connection, so that certificates can change while the server runs.
///
/// The configuration should offer `h2` and `http/1.1` by ALPN; without an agreed protocol the first bytes decide.
pub type TlsSource = Arc<dyn Fn() -> Arc<ServerConfig> + Send + Sync>;

/// What every HTTP/2 connection begins with (RFC 9113 section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A bound socket.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A Unix socket.
    Unix(UnixListener),
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

impl From<UnixListener> for Listener {
    fn from(listener: UnixListener) -> Self {
        Self::Unix(listener)
    }
}

impl Listener {
    async fn accept(&self) -> io::Result<(Socket, PeerAddress)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok((Socket::Tcp(stream), PeerAddress::Tcp(address)))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Socket::Unix(stream), PeerAddress::Unix))
            }
        }
    }
}

/// A gRPC server. Serves any number of listeners at once; limits and counters are common to them.
#[derive(Clone)]
pub struct Server {
    common: Arc<Common>,
    connections: Arc<Semaphore>,
}

impl Server {
    /// A server of these methods.
    pub fn new(dispatch: Arc<dyn Dispatch>, options: ServerOptions) -> Self {
        let connections = Arc::new(Semaphore::new(options.connections_max.clamp(1, Semaphore::MAX_PERMITS)));
        Self { common: Arc::new(Common::new(dispatch, options, Arc::default())), connections }
    }

    /// The counters.
    pub fn stats(&self) -> Arc<Stats> {
        self.common.stats.clone()
    }

    /// Serves a listener until `shutdown` is ready and the connections have drained: new ones are refused, clients are
    /// told to go (GOAWAY), calls in flight may end, streams see [`ResponseSink::draining`](crate::ResponseSink), and
    /// after `drain_timeout` what is left is closed. Dropping the future closes everything at once.
    pub async fn serve(
        &self,
        listener: impl Into<Listener>,
        tls: Option<TlsSource>,
        shutdown: impl Future<Output = ()>,
    ) {
        let listener = listener.into();
        let mut shutdown = pin!(shutdown);
        let (drain, draining) = watch::channel(false);
        let registry = Arc::new(Registry::default());
        let mut tasks = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut shutdown => break,
                Some(ended) = tasks.join_next(), if !tasks.is_empty() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "the task of a connection failed");
                    }
                    continue;
                }
                accepted = self.accept(&listener) => accepted,
            };
            let (socket, address, permit) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "could not accept a connection");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            let session = Session {
                common: self.common.clone(),
                tls: tls.as_ref().map(|tls| tls()),
                registry: registry.clone(),
                draining: draining.clone(),
                _open: Open::new(self.common.stats.clone(), permit),
            };
            tasks.spawn(session.run(socket, address));
        }
        drop(listener);
        drain.send_replace(true);
        registry.drain();
        // The connections keep the drain timeout themselves; the extra second is for one that can't.
        let patience = self.common.options.drain_timeout + Duration::from_secs(1);
        let ended = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(patience, ended).await.is_err() {
            tracing::warn!("connections did not end in time and are aborted");
            tasks.shutdown().await;
        }
    }

    async fn accept(&self, listener: &Listener) -> io::Result<(Socket, PeerAddress, OwnedSemaphorePermit)> {
        let permit = self.connections.clone().acquire_owned().await.expect("the semaphore is never closed");
        let (socket, address) = listener.accept().await?;
        Ok((socket, address, permit))
    }
}

/// Counts a connection while it lives.
struct Open {
    stats: Arc<Stats>,
    _permit: OwnedSemaphorePermit,
}

impl Open {
    fn new(stats: Arc<Stats>, permit: OwnedSemaphorePermit) -> Self {
        stats.connections.fetch_add(1, Ordering::Relaxed);
        stats.connections_open.fetch_add(1, Ordering::Relaxed);
        Self { stats, _permit: permit }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.stats.connections_open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The HTTP/2 connections of one `serve`, to tell them of the drain.
#[derive(Default)]
struct Registry {
    state: Mutex<RegistryState>,
}

#[derive(Default)]
struct RegistryState {
    next: u64,
    draining: bool,
    connections: HashMap<u64, Weak<Shared>>,
}

impl Registry {
    fn enter(self: &Arc<Self>, shared: &Arc<Shared>) -> Entry {
        let mut state = self.state.lock();
        let id = state.next;
        state.next += 1;
        state.connections.insert(id, Arc::downgrade(shared));
        if state.draining {
            shared.drain();
        }
        Entry { registry: self.clone(), id }
    }

    fn drain(&self) {
        let connections: Vec<_> = {
            let mut state = self.state.lock();
            state.draining = true;
            state.connections.values().filter_map(Weak::upgrade).collect()
        };
        for connection in connections {
            connection.drain();
        }
    }
}

struct Entry {
    registry: Arc<Registry>,
    id: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.registry.state.lock().connections.remove(&self.id);
    }
}

/// One accepted connection.
struct Session {
    common: Arc<Common>,
    tls: Option<Arc<ServerConfig>>,
    registry: Arc<Registry>,
    draining: watch::Receiver<bool>,
    _open: Open,
}

/// What a connection turned out to speak.
enum Spoken {
    Http2(Box<(h2::server::Connection<Wire, crate::reply::Payload>, Wire)>),
    Http1(Transport, Bytes),
}

impl Session {
    async fn run(mut self, socket: Socket, address: PeerAddress) {
        let patience = self.common.options.handshake_timeout;
        let mut draining = self.draining.clone();
        let greeted = tokio::select! {
            greeted = tokio::time::timeout(patience, self.greet(socket)) => greeted,
            () = wait_for_drain(&mut draining) => return,
        };
        let (spoken, certificates) = match greeted {
            Ok(Ok(greeted)) => greeted,
            Ok(Err(error)) => return self.failed(address, &error),
            Err(_) => return self.failed(address, &io::ErrorKind::TimedOut.into()),
        };
        let peer = Arc::new(Peer::new(address, certificates));
        match spoken {
            Spoken::Http1(io, ahead) => {
                Box::pin(http1::serve(io, ahead, self.common.clone(), peer, draining)).await;
            }
            Spoken::Http2(connection) => {
                let (h2, wire) = *connection;
                let shared = Shared::new(&self.common.options);
                let _entry = self.registry.enter(&shared);
                Box::pin(Connection::new(h2, wire, shared, self.common.clone(), peer)).await;
            }
        }
    }

    fn failed(&self, address: PeerAddress, error: &io::Error) {
        // A closed connection that never spoke is a port probe, not an error.
        if error.kind() != io::ErrorKind::UnexpectedEof {
            tracing::debug!(peer = %address, %error, "handshake failed");
        }
        self.common.stats.handshakes_failed.fetch_add(1, Ordering::Relaxed);
    }

    /// TLS, and the first bytes.
    async fn greet(&mut self, socket: Socket) -> io::Result<(Spoken, Vec<rustls_pki_types::CertificateDer<'static>>)> {
        let mut certificates = Vec::new();
        let mut alpn_http2 = false;
        let mut io = match self.tls.take() {
            None => Transport::Plain(socket),
            Some(config) => {
                let stream = TlsAcceptor::from(config).accept(socket).await?;
                let (_, session) = stream.get_ref();
                alpn_http2 = session.alpn_protocol() == Some(b"h2");
                if let Some(chain) = session.peer_certificates() {
                    certificates = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
                }
                Transport::Tls(Box::new(stream))
            }
        };
        let (ahead, http2) = if alpn_http2 { (Bytes::new(), true) } else { sniff(&mut io).await? };
        if !http2 {
            return Ok((Spoken::Http1(io, ahead), certificates));
        }
        let wire = Wire::new(io, ahead);
        let handshake = h2_builder(&self.common.options).handshake(wire.clone());
        let mut handshake = pin!(handshake);
        // The server speaks first (SETTINGS), and the wire holds writes back until it is told.
        let h2 = std::future::poll_fn(|context| {
            let polled = handshake.as_mut().poll(context);
            if let std::task::Poll::Ready(Err(error)) = wire.flush(context) {
                return std::task::Poll::Ready(Err(error));
            }
            polled.map_err(io::Error::other)
        })
        .await?;
        Ok((Spoken::Http2(Box::new((h2, wire))), certificates))
    }
}

/// Reads just enough to tell HTTP/2 from HTTP/1.1.
async fn sniff(io: &mut Transport) -> io::Result<(Bytes, bool)> {
    let mut ahead = BytesMut::with_capacity(512);
    loop {
        if io.read_buf(&mut ahead).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let common = ahead.len().min(PREFACE.len());
        if ahead[..common] != PREFACE[..common] {
            return Ok((ahead.freeze(), false));
        }
        if common == PREFACE.len() {
            return Ok((ahead.freeze(), true));
        }
    }
}

/// Waits until the server drains.
pub(crate) async fn wait_for_drain(draining: &mut watch::Receiver<bool>) {
    // The sender lives as long as `serve`, which outlives its connections.
    let _ = draining.wait_for(|draining| *draining).await;
}
