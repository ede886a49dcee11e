//! Every bound of this crate that is not a setting.

// Connections to endpoints.

/// Dials of one pool that run at once; more requests than these can serve wait for the next.
pub(crate) const DIALS_MAX: u32 = 8;
/// Requests that wait for a stream of one pool; the next is refused at once.
pub(crate) const WAITERS_MAX: usize = 65_536;
/// Streams in flight on each connection of a pool at which another is opened in the background, up to the spread.
pub(crate) const SPREAD_AT_STREAMS: u32 = 16;
/// After a dial that failed, requests get the same error for this long instead of dialling again.
pub(crate) const DIAL_PAUSE: std::time::Duration = std::time::Duration::from_millis(20);
/// Scans of a pool for a free stream before any free stream is taken, not the best.
pub(crate) const RESERVE_TRIES: usize = 3;
/// Connections that one request is tried on when each turns out to be going away just then.
pub(crate) const CONNECTIONS_PER_REQUEST_MAX: usize = 3;
/// Streams after which a connection is replaced, long before the 2^30 identifiers of HTTP/2 end.
pub(crate) const STREAMS_PER_CONNECTION_MAX: u64 = 1 << 29;
/// Streams that were cut by us and whose late frames are dropped in silence.
pub(crate) const RESET_STREAMS_MAX: usize = 512;
/// Largest header list of a response, in bytes as HTTP/2 counts them.
pub(crate) const RESPONSE_HEADERS_BYTES_MAX: u32 = 256 << 10;
/// Largest DATA frame that an endpoint may send on a connection for ordinary or large answers, in bytes. Larger than
/// HTTP/2's initial 16 KiB because each frame costs the same work.
pub(crate) const FRAME_BYTES_MAX: u32 = 64 << 10;
/// Bytes of request body that one stream buffers before its sender must wait.
pub(crate) const SEND_BUFFER_BYTES_MAX: usize = 256 << 10;
/// The largest window of HTTP/2.
pub(crate) const WINDOW_BYTES_MAX: u32 = (1 << 31) - 1;
/// A timer that fires later than this says that this process stood still, which must not be held against the endpoint.
pub(crate) const TIMER_LATE_MAX: std::time::Duration = std::time::Duration::from_millis(150);
/// How often a connection with streams in flight that nobody waits for is looked at.
pub(crate) const CALM_TICK: std::time::Duration = std::time::Duration::from_secs(1);
/// An endpoint that comes back sooner was not really away: no slow start, no longer ejection the next time.
pub(crate) const BLIP: std::time::Duration = std::time::Duration::from_secs(1);
/// First pause before an endpoint that is away is probed again; it doubles up to the probe interval.
pub(crate) const PROBE_RETRY_MIN: std::time::Duration = std::time::Duration::from_millis(250);
/// Probes in a row without an answer that eject an endpoint.
pub(crate) const PROBE_TIMEOUTS_MAX: u32 = 2;
/// Bytes of a probe's answer that are read; the rest is cut off.
pub(crate) const PROBE_BYTES_MAX: usize = 16 << 10;
/// Outcomes of requests that are remembered for ejection; bits of a `u32`.
pub(crate) const OUTCOMES_REMEMBERED: u32 = 16;
/// Weight of a watch in the work of an endpoint, where a request that is being answered weighs [`REQUEST_WORK`].
pub(crate) const WATCH_WORK: u64 = 1;
/// Weight of a request that is being answered in the work of an endpoint.
pub(crate) const REQUEST_WORK: u64 = 16;
/// Share of its weight that an endpoint begins slow start with, in 1/256.
pub(crate) const SLOW_START_SHARE_MIN: u32 = 26;
/// Time in which a latency loses its influence, for balancing.
pub(crate) const LATENCY_DECAY: std::time::Duration = std::time::Duration::from_secs(10);
/// TCP: idle time before the first keepalive probe.
pub(crate) const TCP_KEEPALIVE_IDLE: std::time::Duration = std::time::Duration::from_secs(30);
/// TCP: time between keepalive probes.
pub(crate) const TCP_KEEPALIVE_INTERVAL: std::time::Duration = std::time::Duration::from_secs(10);
/// Largest file of endpoints, in bytes.
pub(crate) const ENDPOINT_FILE_BYTES_MAX: u64 = 1 << 20;
/// Most endpoints that a discovery may yield.
pub(crate) const DISCOVERED_ENDPOINTS_MAX: usize = 1024;

// What lies beneath HTTP/2, on both sides of a proxy.

/// What is read from a connection at once, and what gathers until it is written, in bytes: four full TLS records.
pub(crate) const WIRE_BUFFER_BYTES: usize = 64 << 10;
/// Buffers of that length that a thread keeps for the next connection that needs one.
pub(crate) const WIRE_BUFFERS_KEPT: usize = 16;
