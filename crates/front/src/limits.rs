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
pub const HEAD_BYTES_MAX: u32 = 96 << 10;
/// Headers of an HTTP/1.1 request.
pub const HEADERS_MAX: usize = 128;
/// Requests at once on an HTTP/2 connection. Go's clients open another connection when it is reached.
pub const STREAMS_PER_CONNECTION_MAX: u32 = 250;
/// Streams of a connection that a client has reset and that are not forgotten yet, at which the connection ends.
pub const RESET_STREAMS_MAX: usize = 100;
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
