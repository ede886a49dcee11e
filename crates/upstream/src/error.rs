//! What can go wrong on the way to an endpoint.
//!
//! Invariant: [`Processed::No`] is said only when it is certain that the endpoint has not begun with the request, so
//! that any request, a POST too, may be sent again. Whatever is in doubt is [`Processed::Maybe`].

use std::io;
use std::sync::Arc;

use h2::Reason;

/// Settings of an upstream that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// The URL of an endpoint is malformed.
    #[error("endpoint {url:?}: {problem}")]
    Endpoint {
        /// As it was given.
        url: String,
        /// What is wrong with it, and what is right.
        problem: &'static str,
    },
    /// TLS settings are wrong by themselves or do not go together.
    #[error("{field}: {problem}")]
    Tls {
        /// Which setting.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A bearer token that can't be a header.
    #[error(
        "bearer token: it has characters that a header can't carry; give the token alone, without a line break inside"
    )]
    Token,
}

/// Why there is no connection to an endpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// The endpoint's name has no address.
    #[error("its name can't be resolved: {0}")]
    Resolve(io::Error),
    /// No TCP connection.
    #[error("can't connect: {0}")]
    Connect(io::Error),
    /// The endpoint is https, and no TLS settings were given.
    #[error("it is https, but its cluster has no TLS settings")]
    NoTls,
    /// The endpoint's host is no name that TLS could check, and no server name was given.
    #[error("TLS can't check its host name; set the server name")]
    ServerName,
    /// No TLS session.
    #[error("TLS: {0}")]
    Tls(io::Error),
    /// TLS was agreed on, HTTP/2 was not.
    #[error("it did not agree on HTTP/2 (ALPN h2)")]
    NoHttp2,
    /// The endpoint accepted the connection and closed it before its first stream.
    #[error("it closed the connection at once")]
    Closed,
    /// HTTP/2 failed before its first stream.
    #[error("HTTP/2: {0}")]
    Http2(h2::Error),
    /// HTTP/1.1 failed before its first request.
    #[error("HTTP/1.1: {0}")]
    Http1(hyper::Error),
    /// It took too long.
    #[error("no connection within {waited_ms} ms")]
    Timeout {
        /// How long it was waited for, in milliseconds.
        waited_ms: u64,
    },
}

/// Why a request was not sent. Never was it processed, so any request may be tried again, elsewhere or here.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// There is no connection, and none could be opened.
    #[error("endpoint {endpoint}: {source}")]
    Dial {
        /// The endpoint's URL.
        endpoint: Arc<str>,
        /// Why.
        source: Arc<DialError>,
    },
    /// No connection came up, or no stream became free, in time.
    #[error("endpoint {endpoint}: no free stream within {waited_ms} ms")]
    Wait {
        /// The endpoint's URL.
        endpoint: Arc<str>,
        /// How long the request waited, in milliseconds.
        waited_ms: u64,
    },
    /// Too many requests wait for a stream already.
    #[error("endpoint {endpoint}: {waiting} requests wait for a free stream already")]
    QueueFull {
        /// The endpoint's URL.
        endpoint: Arc<str>,
        /// How many.
        waiting: usize,
    },
    /// Every connection was going away just when the request came.
    #[error("endpoint {endpoint}: its connections are going away")]
    GoingAway {
        /// The endpoint's URL.
        endpoint: Arc<str>,
    },
    /// The request itself can't be sent, for example because of a header that HTTP/2 forbids. Another try is useless.
    #[error("endpoint {endpoint}: the request can't be sent: {source}")]
    Malformed {
        /// The endpoint's URL.
        endpoint: Arc<str>,
        /// What is wrong with it.
        source: Arc<h2::Error>,
    },
}

impl SendError {
    /// True if another try is useless because the request itself is at fault.
    #[must_use]
    pub fn is_request_fault(&self) -> bool {
        matches!(self, Self::Malformed { .. })
    }
}

/// Whether an endpoint may have begun with a request that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Processed {
    /// Certainly not: any request may be sent again.
    No,
    /// Perhaps: only a request that changes nothing, or the same thing again, may be sent again.
    Maybe,
}

/// How a stream failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Failure {
    /// The endpoint refused the stream before it looked at the request (RFC 9113, section 8.7).
    Refused,
    /// The endpoint is going away and did not take the stream any more (RFC 9113, section 6.8).
    GoingAway,
    /// The endpoint reset the stream.
    Reset(Reason),
    /// The connection was lost, or one side broke the protocol.
    Lost,
    /// The endpoint reads nothing and answers nothing, pings included. See [`crate::Response::abandon_when_hung`].
    Hung,
}

impl Failure {
    /// What an error of a stream means; for bodies too.
    #[must_use]
    pub fn of(error: &h2::Error) -> Self {
        match error.reason() {
            Some(reason) if error.is_reset() && error.is_remote() => match reason {
                Reason::REFUSED_STREAM => Self::Refused,
                other => Self::Reset(other),
            },
            // Of all streams, only those above the last stream of a GOAWAY end with the peer's GOAWAY itself as the
            // error.
            Some(_) if error.is_go_away() && error.is_remote() => Self::GoingAway,
            _ => Self::Lost,
        }
    }

    /// A short word for metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::GoingAway => "going_away",
            Self::Reset(_) => "reset",
            Self::Lost => "lost",
            Self::Hung => "hung",
        }
    }
}

/// Why a request that was sent has no response.
#[derive(Debug, thiserror::Error)]
#[error("endpoint {endpoint}: {}", describe(.failure, .source))]
pub struct ExchangeError {
    /// The endpoint's URL.
    pub endpoint: Arc<str>,
    /// How it failed.
    pub failure: Failure,
    /// Whether the endpoint may have begun with it.
    pub processed: Processed,
    /// The error of HTTP/2, if there was one.
    #[source]
    pub source: Option<h2::Error>,
}

impl ExchangeError {
    /// `unwritten`: not one byte went to the endpoint since before the request was queued.
    pub(crate) fn of_stream(endpoint: Arc<str>, source: h2::Error, unwritten: bool) -> Self {
        let failure = Failure::of(&source);
        let processed = match failure {
            Failure::Refused | Failure::GoingAway => Processed::No,
            _ if unwritten => Processed::No,
            _ => Processed::Maybe,
        };
        Self { endpoint, failure, processed, source: Some(source) }
    }

    /// Always in doubt: what has not been written yet still will be, should the endpoint go on.
    pub(crate) fn hung(endpoint: Arc<str>) -> Self {
        Self { endpoint, failure: Failure::Hung, processed: Processed::Maybe, source: None }
    }
}

/// Why a body can't be had as a whole.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BodyError {
    /// It is longer than the caller allows.
    #[error("the body is longer than {bytes_max} bytes")]
    TooLong {
        /// How long it may be.
        bytes_max: usize,
    },
    /// Its stream failed; [`Failure::of`] says how.
    #[error("the body broke off: {0}")]
    Broken(#[from] h2::Error),
}

fn describe(failure: &Failure, source: &Option<h2::Error>) -> String {
    match (failure, source) {
        (Failure::Refused, _) => "it refused the stream".to_owned(),
        (Failure::GoingAway, _) => "it is going away and did not take the request".to_owned(),
        (Failure::Hung, _) => "it hangs: no frame from it, not even the answer to a ping".to_owned(),
        (_, Some(error)) => error.to_string(),
        (_, None) => failure.as_str().to_owned(),
    }
}
