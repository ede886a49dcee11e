//! Bytes to and from an endpoint: TCP, with TLS or without, counted.
//!
//! Invariant: [`Progress`] never says less than what happened. "Nothing was written" and "nothing came" are therefore
//! certain.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, Connection, SendRequest};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::error::DialError;
use crate::limits::{
    FRAME_BYTES_MAX, RESET_STREAMS_MAX, RESPONSE_HEADERS_BYTES_MAX, SEND_BUFFER_BYTES_MAX, TCP_KEEPALIVE_IDLE,
    TCP_KEEPALIVE_INTERVAL, WINDOW_BYTES_MAX,
};
use crate::settings::{Address, Class, PoolSettings};
use crate::tls::ClientTls;
use crate::wire::{Socket, Wire};

/// How often bytes came and went. One task writes, anyone reads.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    reads: AtomicU64,
    writes: AtomicU64,
}

impl Progress {
    pub(crate) fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    pub(crate) fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }
}

/// One up. Not a read-modify-write: there is only the one writer.
fn count(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
}

/// A byte stream to an endpoint.
pub(crate) struct Transport {
    stream: Stream,
    progress: Arc<Progress>,
}

enum Stream {
    Plain(Socket),
    // Boxed: a TLS session is some kilobytes, which every future on the way would carry.
    Tls(Box<TlsStream<Socket>>),
}

macro_rules! with_stream {
    ($self:expr, $stream:ident => $call:expr) => {
        match &mut $self.stream {
            Stream::Plain(stream) => {
                let $stream = Pin::new(stream);
                $call
            }
            Stream::Tls(stream) => {
                let $stream = Pin::new(stream.as_mut());
                $call
            }
        }
    };
}

impl AsyncRead for Transport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(with_stream!(self, stream => stream.poll_read(context, buffer)))?;
        if buffer.filled().len() > before {
            count(&self.progress.reads);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(with_stream!(self, stream => stream.poll_write(context, bytes)));
        // Counted on errors too: with TLS, a part may have gone out before.
        count(&self.progress.writes);
        Poll::Ready(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(with_stream!(self, stream => stream.poll_write_vectored(context, slices)));
        count(&self.progress.writes);
        Poll::Ready(written)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        with_stream!(self, stream => stream.poll_flush(context))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        with_stream!(self, stream => stream.poll_shutdown(context))
    }
}

/// A connection that speaks HTTP/2 and whose peer has said how many streams it allows.
pub(crate) struct Http2 {
    pub(crate) sender: SendRequest<Bytes>,
    pub(crate) connection: Connection<Wire<Transport>, Bytes>,
    /// What the connection writes to.
    pub(crate) wire: Wire<Transport>,
    pub(crate) progress: Arc<Progress>,
    /// What the peer allows.
    pub(crate) streams_max: usize,
}

/// Opens a connection for HTTP/2, within `dial_timeout`.
pub(crate) async fn dial_http2(
    address: &Address,
    tls: Option<&ClientTls>,
    pool: &PoolSettings,
    class: Class,
) -> Result<Http2, DialError> {
    within(pool.dial_timeout, async {
        let transport = connect(address, tls, ClientTls::http2, pool.dial_timeout).await?;
        if let Stream::Tls(stream) = &transport.stream
            && stream.get_ref().1.alpn_protocol() != Some(b"h2")
        {
            return Err(DialError::NoHttp2);
        }
        let progress = transport.progress.clone();
        let wire = Wire::new(transport);
        let (sender, mut connection) = http2(pool, class).handshake(wire.clone()).await.map_err(DialError::Http2)?;
        let streams_max = allowed_streams(&mut connection, &wire).await?;
        Ok(Http2 { sender, connection, wire, progress, streams_max })
    })
    .await
}

/// Opens a connection for HTTP/1.1, within `dial_timeout`.
pub(crate) async fn dial_http1(
    address: &Address,
    tls: Option<&ClientTls>,
    dial_timeout: Duration,
) -> Result<Transport, DialError> {
    within(dial_timeout, connect(address, tls, ClientTls::http1, dial_timeout)).await
}

async fn within<T>(limit: Duration, dial: impl Future<Output = Result<T, DialError>>) -> Result<T, DialError> {
    let waited_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    timeout(limit, dial).await.unwrap_or(Err(DialError::Timeout { waited_ms }))
}

async fn connect(
    address: &Address,
    tls: Option<&ClientTls>,
    protocol: fn(&ClientTls) -> Arc<ClientConfig>,
    dial_timeout: Duration,
) -> Result<Transport, DialError> {
    // Before any packet: what is missing is said at once.
    let secure = if address.https {
        let tls = tls.ok_or(DialError::NoTls)?;
        let name = match tls.server_name() {
            Some(name) => name.clone(),
            None => ServerName::try_from(address.host.clone()).map_err(|_| DialError::ServerName)?,
        };
        Some((TlsConnector::from(protocol(tls)), name))
    } else {
        None
    };
    let tcp = Socket::new(connect_tcp(address, dial_timeout).await?);
    let stream = match secure {
        None => Stream::Plain(tcp),
        Some((connector, name)) => {
            Stream::Tls(Box::new(Box::pin(connector.connect(name, tcp)).await.map_err(DialError::Tls)?))
        }
    };
    Ok(Transport { stream, progress: Arc::default() })
}

async fn connect_tcp(address: &Address, dial_timeout: Duration) -> Result<TcpStream, DialError> {
    let tcp = match address.host.parse::<IpAddr>() {
        Ok(ip) => TcpStream::connect(SocketAddr::new(ip, address.port)).await.map_err(DialError::Connect)?,
        Err(_) => connect_by_name(address, dial_timeout).await?,
    };
    tcp.set_nodelay(true).map_err(DialError::Connect)?;
    // HTTP/2 has its pings; what was upgraded has only this.
    let keepalive = TcpKeepalive::new().with_time(TCP_KEEPALIVE_IDLE).with_interval(TCP_KEEPALIVE_INTERVAL);
    SockRef::from(&tcp).set_tcp_keepalive(&keepalive).map_err(DialError::Connect)?;
    Ok(tcp)
}

/// Tries each address of a name in turn. None may use up the time of the next.
async fn connect_by_name(address: &Address, dial_timeout: Duration) -> Result<TcpStream, DialError> {
    let found: Vec<SocketAddr> =
        tokio::net::lookup_host((address.host.as_str(), address.port)).await.map_err(DialError::Resolve)?.collect();
    let share = dial_timeout / u32::try_from(found.len().max(1)).unwrap_or(u32::MAX);
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for candidate in found {
        match timeout(share, TcpStream::connect(candidate)).await {
            Ok(Ok(tcp)) => return Ok(tcp),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, format!("{candidate} does not answer")),
        }
    }
    Err(DialError::Connect(last))
}

/// HTTP/2 as we speak it. What differs from h2's defaults, and why:
///
/// - No streams until the peer has said how many: a stream too many is refused, and a refusal costs a retry.
/// - The connection's window is the sum of its streams' windows.
/// - h2 ends a connection after 1,024 late frames for streams that were cut, over its whole life, and after a number of
///   small DATA frames that readers have not taken yet. Both guard against hostile peers; here they would let clients
///   that cancel watches, or do not read them, end other clients' streams. The peer is our own apiserver: the first
///   limit is off, the second is as large as frames of 51 bytes can need, and the windows bound what is buffered.
fn http2(pool: &PoolSettings, class: Class) -> Builder {
    let window = pool.window_bytes(class).clamp(1, WINDOW_BYTES_MAX);
    let sum = window.saturating_mul(pool.streams_max.max(1)).min(WINDOW_BYTES_MAX);
    let mut builder = Builder::new();
    builder
        .initial_max_send_streams(0)
        .enable_push(false)
        .initial_window_size(window)
        .initial_connection_window_size(sum)
        .max_header_list_size(RESPONSE_HEADERS_BYTES_MAX)
        .max_send_buffer_size(SEND_BUFFER_BYTES_MAX)
        .max_concurrent_reset_streams(RESET_STREAMS_MAX)
        .max_local_error_reset_streams(None)
        .data_frame_budget((sum as usize).saturating_mul(4));
    if class != Class::Watch {
        builder.max_frame_size(FRAME_BYTES_MAX);
    }
    builder
}

/// Waits for the peer's settings. A peer that allows no stream at all is waited for too, until the dial times out.
async fn allowed_streams(
    connection: &mut Connection<Wire<Transport>, Bytes>,
    wire: &Wire<Transport>,
) -> Result<usize, DialError> {
    std::future::poll_fn(|context| {
        if let Poll::Ready(ended) = Pin::new(&mut *connection).poll(context) {
            return Poll::Ready(Err(ended.map_or_else(DialError::Http2, |()| DialError::Closed)));
        }
        if let Poll::Ready(Err(error)) = wire.end_turn(context) {
            return Poll::Ready(Err(DialError::Connect(error)));
        }
        match connection.max_concurrent_send_streams() {
            0 => Poll::Pending,
            allowed => Poll::Ready(Ok(allowed)),
        }
    })
    .await
}
