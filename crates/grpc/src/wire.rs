//! The socket under a connection, with writes gathered.
//!
//! Invariant: bytes reach the socket in the order they were written, and only [`Wire::flush`], a full batch, a large
//! write or the end of the connection cost a system call. The HTTP/2 layer flushes after every few frames; those flushes
//! do nothing here, and the connection's task flushes once a turn instead. In the other direction, one call reads all that
//! is there even when the layer above has little room left in its buffer.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

use crate::limits::{READ_BATCH_BYTES_MAX, READ_DIRECT_BYTES_MIN, WRITE_BATCH_BYTES_MAX, WRITE_THROUGH_BYTES_MIN};

/// A connected socket.
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A socket, encrypted or not.
pub(crate) enum Transport {
    Plain(Socket),
    Tls(Box<TlsStream<Socket>>),
}

macro_rules! each {
    ($this:expr, $type:ident { $($variant:ident),+ }, $io:ident => $call:expr) => {
        match $this.get_mut() {
            $($type::$variant(io) => { let $io = Pin::new(io); $call })+
        }
    };
}

macro_rules! forward {
    ($type:ident { $($variant:ident),+ }) => {
        impl AsyncRead for $type {
            fn poll_read(
                self: Pin<&mut Self>,
                context: &mut Context<'_>,
                buffer: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                each!(self, $type { $($variant),+ }, io => io.poll_read(context, buffer))
            }
        }

        impl AsyncWrite for $type {
            fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
                each!(self, $type { $($variant),+ }, io => io.poll_write(context, bytes))
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                context: &mut Context<'_>,
                slices: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                each!(self, $type { $($variant),+ }, io => io.poll_write_vectored(context, slices))
            }

            fn is_write_vectored(&self) -> bool {
                true
            }

            fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
                each!(self, $type { $($variant),+ }, io => io.poll_flush(context))
            }

            fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
                each!(self, $type { $($variant),+ }, io => io.poll_shutdown(context))
            }
        }
    };
}

forward!(Socket { Tcp, Unix });
forward!(Transport { Plain, Tls });

/// A transport whose writes are gathered. Clones are the same wire: one is inside the HTTP/2 layer, one with the
/// connection's task, so the lock is never contended.
#[derive(Clone)]
pub(crate) struct Wire {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    io: Transport,
    /// Bytes that were read and the layer above has not taken.
    ahead: Bytes,
    /// Written by the layer above, not yet by us, from `out_start` on.
    out: Vec<u8>,
    out_start: usize,
    /// The system keeps what does not fill a packet, as more is to follow in this turn.
    is_corked: bool,
    bytes_in: u64,
    bytes_out: u64,
}

impl Wire {
    pub(crate) fn new(io: Transport, ahead: Bytes) -> Self {
        let inner = Inner { io, ahead, out: Vec::new(), out_start: 0, is_corked: false, bytes_in: 0, bytes_out: 0 };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    /// Writes out what has been gathered.
    pub(crate) fn flush(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.lock().flush(context)
    }

    /// Bytes read and written so far.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        let inner = self.inner.lock();
        (inner.bytes_in, inner.bytes_out)
    }

    /// Gives the batch buffer's memory back while the connection is idle.
    pub(crate) fn shrink(&self) {
        let mut inner = self.inner.lock();
        if inner.out.is_empty() {
            inner.out = Vec::new();
        }
    }
}

impl Inner {
    fn waiting(&self) -> usize {
        self.out.len() - self.out_start
    }

    /// Writes the batch and `more` with as few calls as the socket allows; returns how much of `more` was written,
    /// once the batch is.
    fn write_through(&mut self, context: &mut Context<'_>, more: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        loop {
            let waiting = self.out.len() - self.out_start;
            let mut slices = [IoSlice::new(&[]); 16];
            slices[0] = IoSlice::new(&self.out[self.out_start..]);
            let count = more.len().min(slices.len() - 1);
            slices[1..=count].copy_from_slice(&more[..count]);
            let first = usize::from(waiting == 0);
            if first > count {
                return Poll::Ready(Ok(0));
            }
            let written = ready!(Pin::new(&mut self.io).poll_write_vectored(context, &slices[first..=count]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.bytes_out += written as u64;
            if written < waiting {
                self.out_start += written;
                continue;
            }
            self.out.clear();
            self.out_start = 0;
            if written > waiting || more.is_empty() {
                return Poll::Ready(Ok(written - waiting));
            }
        }
    }

    /// Has the system put the large writes of one turn into few packets, each of which costs as much as a call. HTTP/2 makes a write of
    /// every frame, and frames are short.
    fn cork(&mut self, is_corked: bool) {
        if let Transport::Plain(Socket::Tcp(socket)) = &self.io
            && self.is_corked != is_corked
        {
            // Where it can't be had, packets are smaller.
            let _ = socket2::SockRef::from(socket).set_tcp_cork(is_corked);
            self.is_corked = is_corked;
        }
    }

    fn flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = self.flush_batch(context);
        self.cork(false);
        flushed
    }

    fn flush_batch(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.waiting() > 0 {
            ready!(self.write_through(context, &[]))?;
            return Pin::new(&mut self.io).poll_flush(context);
        }
        match self.io {
            Transport::Plain(_) => Poll::Ready(Ok(())),
            // Large writes and the protocol itself leave records behind.
            Transport::Tls(_) => Pin::new(&mut self.io).poll_flush(context),
        }
    }

    fn write(&mut self, context: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        if total < WRITE_THROUGH_BYTES_MIN && self.waiting() + total <= WRITE_BATCH_BYTES_MAX {
            if self.out_start > 0 && self.out.len() + total > self.out.capacity() {
                self.out.drain(..self.out_start);
                self.out_start = 0;
            }
            for slice in slices {
                self.out.extend_from_slice(slice);
            }
            return Poll::Ready(Ok(total));
        }
        self.cork(true);
        self.write_through(context, slices)
    }
}

thread_local! {
    /// Where bytes are read to that the layer above has no room for.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BATCH_BYTES_MAX]);
}

impl Inner {
    /// Reads into `buffer`; when it has little room, reads on into `ahead`, to spare a call for the rest.
    fn read(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            if buffer.remaining() >= READ_DIRECT_BYTES_MIN {
                return Pin::new(&mut self.io).poll_read(context, buffer);
            }
            return SCRATCH.with_borrow_mut(|scratch| {
                let mut scratch = ReadBuf::new(scratch);
                ready!(Pin::new(&mut self.io).poll_read(context, &mut scratch))?;
                let read = scratch.filled();
                let count = read.len().min(buffer.remaining());
                buffer.put_slice(&read[..count]);
                if count < read.len() {
                    self.ahead = Bytes::copy_from_slice(&read[count..]);
                }
                Poll::Ready(Ok(()))
            });
        }
        let count = self.ahead.len().min(buffer.remaining());
        buffer.put_slice(&self.ahead.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.inner.lock();
        let before = buffer.filled().len();
        ready!(inner.read(context, buffer))?;
        inner.bytes_in += (buffer.filled().len() - before) as u64;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.inner.lock().write(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.inner.lock().write(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.inner.lock();
        ready!(inner.flush(context))?;
        Pin::new(&mut inner.io).poll_shutdown(context)
    }
}
