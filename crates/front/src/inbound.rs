//! The body of a request, as its connection delivers it.
//!
//! Invariant: who takes a piece has room for it; only then may the client send more.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http_body::Body as _;
use hyper::body::Incoming;

/// The body of a request.
pub enum Inbound {
    /// On a stream of HTTP/2.
    Http2(RecvStream),
    /// On a connection of HTTP/1.1.
    Http1(Incoming),
}

/// The client broke off in the middle of a body.
#[derive(Debug, thiserror::Error)]
#[error("the body broke off")]
pub struct Broken;

/// Why a body is not read as a whole.
#[derive(Debug, thiserror::Error)]
pub enum NotWhole {
    /// It broke off.
    #[error(transparent)]
    Broken(#[from] Broken),
    /// It is longer than it may be.
    #[error("the body has more than {0} bytes")]
    TooLong(usize),
}

impl Inbound {
    /// Whether nothing more is to come of it.
    #[must_use]
    pub fn is_end_stream(&self) -> bool {
        match self {
            Self::Http2(stream) => stream.is_end_stream(),
            Self::Http1(incoming) => incoming.is_end_stream(),
        }
    }

    /// The next piece; `None` behind the last one. Trailers are left out: kube-apiserver reads none.
    pub fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Broken>>> {
        match self {
            Self::Http2(stream) => {
                let Some(polled) = ready!(stream.poll_data(context)) else { return Poll::Ready(None) };
                let piece = polled.map_err(|_| Broken);
                if let Ok(piece) = &piece {
                    // Fails only when the stream is over.
                    let _ = stream.flow_control().release_capacity(piece.len());
                }
                Poll::Ready(Some(piece))
            }
            Self::Http1(incoming) => loop {
                match ready!(Pin::new(&mut *incoming).poll_frame(context)) {
                    Some(Ok(frame)) => {
                        if let Ok(piece) = frame.into_data() {
                            return Poll::Ready(Some(Ok(piece)));
                        }
                    }
                    Some(Err(_)) => return Poll::Ready(Some(Err(Broken))),
                    None => return Poll::Ready(None),
                }
            },
        }
    }

    /// All of it, if it has no more than so many bytes.
    ///
    /// # Errors
    /// When it is longer, or breaks off.
    pub async fn whole(&mut self, bytes_max: usize) -> Result<Bytes, NotWhole> {
        let mut whole = Bytes::new();
        while let Some(piece) = poll_fn(|context| self.poll_piece(context)).await {
            let piece = piece?;
            if whole.len() + piece.len() > bytes_max {
                return Err(NotWhole::TooLong(bytes_max));
            }
            // Most bodies are one piece, which then is not copied.
            whole = if whole.is_empty() { piece } else { joined(whole, &piece) };
        }
        Ok(whole)
    }
}

fn joined(whole: Bytes, piece: &[u8]) -> Bytes {
    // What was joined once is nobody else's, and grows in place.
    let mut whole = bytes::BytesMut::from(whole);
    whole.extend_from_slice(piece);
    whole.freeze()
}
