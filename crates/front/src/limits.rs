//! Every bound of this crate that is not its user's.

use std::time::Duration;

/// Pause after a connection could not be accepted.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// The most that the TLS handshake and what comes before it may take, unless the operator says otherwise.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The most that the head of a request, or any one frame of HTTP/2, may take, and how long an HTTP/1.1 connection may be idle; unless the
/// operator says otherwise.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an HTTP/2 connection may be without a request, unless the operator says otherwise; up to twice that, as it is looked at now and
/// then. Longer than Go's clients keep one (90 s).
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// How long a client may take nothing of what is there for it, unless the operator says otherwise. Does not count against an answer over
/// HTTP/1.1 that streams, nor an upgraded connection: their readers may pause.
pub const SEND_TIMEOUT: Duration = Duration::from_secs(60);
/// Time between two lines of the log about addresses that have too many connections.
pub(crate) const REFUSALS_TOLD_INTERVAL: Duration = Duration::from_secs(10);
/// Frames of HTTP/2 that ask for nothing (SETTINGS, PING, RST_STREAM, PRIORITY, and unknown ones) which a client may send at once.
pub(crate) const CONTROL_FRAMES_BURST: u64 = 1000;
/// The same in a second.
pub(crate) const CONTROL_FRAMES_PER_SECOND: u64 = 100;
/// Requests that give reason for one more of them, which may be a reset.
pub(crate) const REQUESTS_PER_CONTROL_FRAME: u64 = 2;
/// WINDOW_UPDATE frames that a client may send at once.
pub(crate) const WINDOW_UPDATES_BURST: u64 = 10_000;
/// The same in a second.
pub(crate) const WINDOW_UPDATES_PER_SECOND: u64 = 1000;
/// Bytes sent to a client that give reason for one more: there are clients that open both windows after each of a watch's events.
pub(crate) const WRITTEN_BYTES_PER_WINDOW_UPDATE: u64 = 64;
/// Longest head of a request, in bytes.
pub(crate) const HEAD_BYTES_MAX: u32 = 96 << 10;
/// Headers of an HTTP/1.1 request.
pub(crate) const HEADERS_MAX: usize = 128;
/// Requests at once on an HTTP/2 connection. Go's clients open another connection when it is reached.
pub(crate) const STREAMS_PER_CONNECTION_MAX: u32 = 250;
/// Streams of a connection that a client has reset and that are not forgotten yet, at which the connection ends.
pub(crate) const RESET_STREAMS_MAX: usize = 100;
/// What a client may send on one stream before it is read, in bytes.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 256 << 10;
/// The same on all streams of a connection together.
pub(crate) const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
/// What one stream holds that a client has no room for yet, in bytes.
pub(crate) const SEND_BUFFER_BYTES: usize = 64 << 10;
/// Time between pings on a quiet HTTP/2 connection.
pub(crate) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// How long the answer to a ping may take.
pub(crate) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Connections that the kernel may hold that were not accepted yet.
pub(crate) const LISTEN_BACKLOG: u32 = 4096;
/// Silence after which the kernel asks a client's machine whether it is still there.
pub(crate) const TCP_KEEPALIVE_AFTER: Duration = Duration::from_secs(30);
/// Time between two such questions.
pub(crate) const TCP_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// How long a client may leave a piece of an answer unread, unless a policy says otherwise (`timeouts.idle`).
pub const UNREAD_TIMEOUT: Duration = Duration::from_secs(60);
/// The same of an answer that lasts (a log, a watch), whose reader may be a person who has paused it.
pub const UNREAD_LASTING_TIMEOUT: Duration = Duration::from_secs(1800);
/// Piece in which a body is handed on, in bytes.
pub const SEND_PIECE_BYTES_MAX: usize = 64 << 10;
