//! What an answer's body is: whole, or in pieces as they come.
//!
//! Invariant: the next piece is asked for when the one before has been taken.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::BoxStream;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use http_body::{Frame, SizeHint};
use kubewharf_front::watchdog::{self, Deadlines};
use kubewharf_front::{Pause, SEND_PIECE_BYTES_MAX, UNREAD_LASTING_TIMEOUT, UNREAD_TIMEOUT};
use kubewharf_kube_api::Status;
use kubewharf_kube_api::status;

/// Why a body breaks off: the client then sees that it is not whole.
#[derive(Debug, thiserror::Error)]
#[error("the answer broke off")]
pub(crate) struct Broken;

/// The body of an answer.
pub(crate) enum Body {
    /// All of it; empty once it is taken.
    Whole(Bytes),
    /// Pieces, as they come.
    Pieces {
        /// What comes.
        pieces: BoxStream<'static, Result<Bytes, Broken>>,
        /// Over HTTP/1.1.
        pause: Option<Paced>,
    },
}

impl Body {
    /// Pieces, as they come.
    pub(crate) fn streams(pieces: impl Stream<Item = Result<Bytes, Broken>> + Send + 'static) -> Self {
        Self::Pieces { pieces: Box::pin(pieces), pause: None }
    }
}

impl Body {
    /// How long its client may leave a piece unread. The reader of what lasts may be a person who has paused it.
    pub(crate) fn unread_timeout(&self) -> Duration {
        match self {
            Self::Whole(_) => UNREAD_TIMEOUT,
            Self::Pieces { .. } => UNREAD_LASTING_TIMEOUT,
        }
    }
}

/// What lasts over HTTP/1.1: its client may pause, but not for ever.
pub(crate) struct Paced {
    _pause: Pause,
}

impl Paced {
    pub(crate) fn new(pause: Pause) -> Self {
        Self { _pause: pause }
    }

    /// The answer was asked for more.
    fn tell<T>(&self, polled: &Poll<Option<T>>) {
        match polled {
            Poll::Ready(Some(_)) => {
                watchdog::expect(Deadlines { unread: Some(UNREAD_LASTING_TIMEOUT), end: None });
            }
            // It is not the client that is waited for.
            Poll::Pending => watchdog::expect(Deadlines::default()),
            Poll::Ready(None) => watchdog::over(),
        }
    }
}

impl Drop for Paced {
    fn drop(&mut self) {
        watchdog::over();
    }
}

impl From<Bytes> for Body {
    fn from(whole: Bytes) -> Self {
        Self::Whole(whole)
    }
}

impl From<Infallible> for Broken {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self.get_mut() {
            Self::Whole(whole) if whole.is_empty() => Poll::Ready(None),
            Self::Whole(whole) => {
                let piece = whole.split_to(whole.len().min(SEND_PIECE_BYTES_MAX));
                Poll::Ready(Some(Ok(Frame::data(piece))))
            }
            Self::Pieces { pieces, pause } => {
                let polled = Pin::new(pieces).poll_next(context);
                if let Some(pause) = pause {
                    pause.tell(&polled);
                }
                polled.map(|piece| piece.map(|piece| piece.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(whole) if whole.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(whole) => SizeHint::with_exact(whole.len() as u64),
            Self::Pieces { .. } => SizeHint::default(),
        }
    }
}

/// An answer that is a failure.
pub(crate) fn respond(status: &Status) -> Response<Body> {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json(code, status.to_json().into());
    if let Some(seconds) = status.retry_after_seconds() {
        response.headers_mut().insert(http::header::RETRY_AFTER, seconds.into());
    }
    response
}

/// The answer to a request for a path at which there is nothing.
pub(crate) fn no_page() -> Response<Body> {
    let mut response = json(StatusCode::NOT_FOUND, Bytes::from_static(b"404 page not found\n"));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// JSON as kube-apiserver writes it: with a line break at its end.
pub(crate) fn json_line(value: &serde_json::Value) -> Bytes {
    let mut text = value.to_string().into_bytes();
    text.push(b'\n');
    text.into()
}

/// An answer in JSON.
pub(crate) fn json(code: StatusCode, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::Whole(body));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(status::CONTENT_TYPE));
    response.headers_mut().insert(http::header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

#[cfg(test)]
mod tests {
    use http_body::Body as _;

    use super::*;

    #[test]
    fn a_long_answer_comes_in_small_pieces() {
        let whole: Bytes = (0..SEND_PIECE_BYTES_MAX * 5 / 2).map(|number| number as u8).collect();
        let mut body = Body::Whole(whole.clone());
        let (mut received, mut pieces) = (Vec::new(), 0);
        while !body.is_end_stream() {
            assert_eq!(body.size_hint().exact(), Some((whole.len() - received.len()) as u64));
            let polled = Pin::new(&mut body).poll_frame(&mut Context::from_waker(std::task::Waker::noop()));
            let Poll::Ready(Some(Ok(frame))) = polled else { panic!("there is more") };
            received.extend_from_slice(frame.data_ref().expect("a piece"));
            pieces += 1;
        }
        assert_eq!((received, pieces), (whole.to_vec(), 3));
    }
}
