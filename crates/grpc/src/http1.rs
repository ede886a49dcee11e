//! HTTP/1.1 connections, for health checks, metrics and whatever else the product answers without gRPC.
//!
//! Invariant: a request reaches the handler only as a whole and within the size limit.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

use crate::Peer;
use crate::connection::Common;
use crate::server::wait_for_drain;
use crate::wire::Transport;

/// A transport behind the bytes that were read from it already.
struct Ahead {
    bytes: Bytes,
    io: Transport,
}

/// Serves one connection until it ends or the server drains.
pub(crate) async fn serve(
    io: Transport,
    ahead: Bytes,
    common: Arc<Common>,
    peer: Arc<Peer>,
    mut drain: watch::Receiver<bool>,
) {
    let timeout = common.options.handshake_timeout;
    let header_bytes_max = (common.options.header_list_bytes_max as usize).max(8 << 10);
    let service = service_fn(|request| answer(request, common.clone(), peer.clone()));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(timeout)
        .max_buf_size(header_bytes_max)
        .serve_connection(TokioIo::new(Ahead { bytes: ahead, io }), service);
    let mut connection = pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = wait_for_drain(&mut drain) => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(common.options.drain_timeout, connection).await {
                Ok(result) => result,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(peer = %peer.address(), %error, "HTTP/1.1 connection failed");
    }
}

async fn answer(
    request: Request<Incoming>,
    common: Arc<Common>,
    peer: Arc<Peer>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = Limited::new(body, common.options.request_bytes_max).collect();
    let refused = match tokio::time::timeout(common.options.handshake_timeout, body).await {
        Ok(Ok(body)) => {
            let response = common.dispatch.http(Request::from_parts(parts, body.to_bytes()), peer).await;
            return Ok(response.map(Full::new));
        }
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => StatusCode::PAYLOAD_TOO_LARGE,
        Ok(Err(_)) => StatusCode::BAD_REQUEST,
        Err(_) => StatusCode::REQUEST_TIMEOUT,
    };
    let mut response = Response::new(Full::default());
    *response.status_mut() = refused;
    // The rest of the body is not waited for.
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    Ok(response)
}

impl AsyncRead for Ahead {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        if self.bytes.is_empty() {
            return std::pin::Pin::new(&mut self.io).poll_read(context, buffer);
        }
        let count = self.bytes.len().min(buffer.remaining());
        buffer.put_slice(&self.bytes.split_to(count));
        std::task::Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Ahead {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        std::pin::Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> std::task::Poll<io::Result<usize>> {
        std::pin::Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.io).poll_shutdown(context)
    }
}
