//! Every limit of the server, with its default and the reason for it.

use std::time::Duration;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// The longest part of a request path, header or method name that is repeated in an error.
pub(crate) const QUOTED_BYTES_MAX: usize = 256;
/// Calls that one turn of a connection's task starts before their replies are written out: enough to share a write, few
/// enough that the first of them doesn't wait long for the last.
pub(crate) const CALLS_PER_TURN_MAX: usize = 32;
/// Turns of a connection's task in a row before it lets others run.
pub(crate) const TURNS_MAX: usize = 16;
/// Bytes that wait in user space for one write to the socket.
pub(crate) const WRITE_BATCH_BYTES_MAX: usize = 64 * KIB;
/// From this size on, data goes to the socket from where it lies instead of being copied into the write batch. A
/// system call costs about as much as copying this many bytes.
pub(crate) const WRITE_THROUGH_BYTES_MIN: usize = 12 * KIB;
/// Bytes that one call reads from a socket at most.
pub(crate) const READ_BATCH_BYTES_MAX: usize = 32 * KIB;
/// With less room than this, the layer above gets copies of bytes that were read elsewhere.
pub(crate) const READ_DIRECT_BYTES_MIN: usize = 4 * KIB;
/// What a half-read message may reserve ahead of its bytes, so that a length alone costs no memory.
pub(crate) const MESSAGE_RESERVE_BYTES_MAX: usize = 64 * KIB;
/// From so many bytes on, a request message gives its flow-control window back as it is read; fewer bytes are given back
/// when the call ends or must wait for more, which spares most calls a lock.
pub(crate) const RELEASE_EARLY_BYTES_MIN: usize = KIB;
/// How long to wait after the operating system refused a new connection (usually for want of file descriptors).
pub(crate) const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// How long a connection must have been quiet before the memory that a burst left behind is given back.
pub(crate) const SHRINK_INTERVAL: Duration = Duration::from_secs(30);

/// The limits and times of a [`Server`](crate::Server).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServerOptions {
    /// The longest request message in bytes (2 MiB: etcd's 1.5 MiB request limit and 512 KiB of room). Also bounds the
    /// body of a plain HTTP request.
    pub request_bytes_max: usize,
    /// Open connections, over all listeners. More wait in the listen queue.
    pub connections_max: usize,
    /// Calls that a client may have open on one connection (HTTP/2 MAX_CONCURRENT_STREAMS).
    pub streams_per_connection_max: u32,
    /// Calls of one connection that may still occupy handlers, including those that the client gave up. More are not
    /// accepted until some end: this stops a client that opens and resets calls in a loop.
    pub calls_per_connection_max: usize,
    /// Calls of one connection that the client may reset before they are even looked at. More end the connection.
    pub reset_streams_max: usize,
    /// The size of one request's headers in bytes, as HTTP/2 counts them.
    pub header_list_bytes_max: u32,
    /// Memory of one connection's half-sent requests in bytes. A request that would take more is refused with
    /// ResourceExhausted (plain HTTP: 503), unless it is the only one. Flow control alone can't keep this limit: HTTP/2
    /// streams share the connection's window, so that requests that were made to wait would starve those that are to end.
    pub connection_request_bytes_max: usize,
    /// Flow-control window of one request stream in bytes.
    pub stream_window_bytes: u32,
    /// Flow-control window of one connection in bytes.
    pub connection_window_bytes: u32,
    /// Reply bytes that may wait for one stream's client; a longer single message is taken alone.
    pub stream_send_bytes_max: usize,
    /// Bytes of unary replies that may wait for one connection's client before it can start no more calls; and bytes of
    /// its streams before each may hold only one message.
    pub connection_send_bytes_max: usize,
    /// Time for the TLS handshake and the connection preface, for the head of an HTTP/1.1 request, and for its body.
    pub handshake_timeout: Duration,
    /// A connection from which nothing came for this long is pinged.
    pub keepalive_interval: Duration,
    /// A ping that is not answered for this long ends the connection.
    pub keepalive_timeout: Duration,
    /// A call with a guarded reply ([`Reply::with_guard`](crate::Reply::with_guard)) of which nothing could be sent for about this long is
    /// reset, so that what the guard stands for is free again; if the socket does not even take that, the connection ends after as long
    /// again. Other replies, those of watches, wait without end.
    pub reply_stall_timeout: Duration,
    /// At shutdown: the time that calls in flight have to end.
    pub drain_timeout: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            request_bytes_max: 2 * MIB,
            connections_max: 16 * KIB,
            streams_per_connection_max: 16 * KIB as u32,
            calls_per_connection_max: 32 * KIB,
            reset_streams_max: 256,
            header_list_bytes_max: 64 * KIB as u32,
            connection_request_bytes_max: 256 * MIB,
            stream_window_bytes: MIB as u32,
            connection_window_bytes: 8 * MIB as u32,
            stream_send_bytes_max: 256 * KIB,
            connection_send_bytes_max: 64 * MIB,
            handshake_timeout: Duration::from_secs(10),
            keepalive_interval: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(20),
            reply_stall_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(10),
        }
    }
}
