//! A socket whose writes are gathered into few system calls.
//!
//! The HTTP/2 layer writes each larger frame by itself. Clients of Kubernetes send what all their callers have ready
//! with one call, and a server that gets requests one by one works harder than it does in a cluster. So writes gather
//! here and leave once a turn of the connection's task ([`Gather::send`]), or when there are many.
//!
//! Invariant: bytes leave in the order in which they were written.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that may wait before a write has to: as much as grpc-go gathers.
const WAITING_BYTES_MAX: usize = 32 << 10;

/// The socket. Clones are the same one: the HTTP/2 layer has one, the task that drives it the other.
#[derive(Debug)]
pub(crate) struct Gather<S> {
    inner: Rc<RefCell<Inner<S>>>,
}

impl<S> Clone for Gather<S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

#[derive(Debug)]
struct Inner<S> {
    socket: S,
    waiting: Vec<u8>,
    sent: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Gather<S> {
    pub(crate) fn new(socket: S) -> Self {
        Self { inner: Rc::new(RefCell::new(Inner { socket, waiting: Vec::new(), sent: 0 })) }
    }

    /// Sends what waits.
    pub(crate) fn send(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.borrow_mut().send(context)
    }
}

impl<S: AsyncWrite + Unpin> Inner<S> {
    fn send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.waiting.len() {
            let written = ready!(Pin::new(&mut self.socket).poll_write(context, &self.waiting[self.sent..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += written;
        }
        self.waiting.clear();
        self.sent = 0;
        // TLS keeps what its socket has no room for.
        Pin::new(&mut self.socket).poll_flush(context)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gather<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner.borrow_mut().socket).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gather<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = self.inner.borrow_mut();
        if inner.waiting.len() >= WAITING_BYTES_MAX {
            ready!(inner.send(context))?;
        }
        inner.waiting.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    /// Nothing: [`Gather::send`] does it, once a turn.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.inner.borrow_mut();
        ready!(inner.send(context))?;
        Pin::new(&mut inner.socket).poll_shutdown(context)
    }
}
