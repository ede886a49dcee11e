//! What lies between HTTP/2, TLS and TCP, so that each system call moves as much as there is.
//!
//! [`Socket`] is below TLS: rustls asks for 4 KiB at a time, and gets them from one read of all that has come. [`Wire`] is above TLS: the
//! HTTP/2 layer writes and flushes nearly each frame by itself; here frames gather, and leave in full TLS records when the task that drives
//! the connection ends its turn.
//!
//! Invariant: bytes keep their order, none waits once its connection's task has nothing more to do, and a connection at rest holds no buffer.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::limits::{WIRE_BUFFER_BYTES, WIRE_BUFFERS_KEPT};

thread_local! {
    /// Buffers that nobody needs now: there are as many as connections that a thread is busy with, not as there are connections.
    static SPARE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of [`WIRE_BUFFER_BYTES`], of which a part is filled.
#[derive(Debug)]
struct Buffer {
    bytes: Box<[u8]>,
    from: usize,
    to: usize,
}

impl Buffer {
    fn new() -> Self {
        let spare = SPARE.with_borrow_mut(Vec::pop);
        let bytes = spare.unwrap_or_else(|| vec![0; WIRE_BUFFER_BYTES].into_boxed_slice());
        Self { bytes, from: 0, to: 0 }
    }

    fn filled(&self) -> &[u8] {
        &self.bytes[self.from..self.to]
    }

    /// Takes as much as there is room for.
    fn push(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.bytes.len() - self.to);
        self.bytes[self.to..self.to + count].copy_from_slice(&bytes[..count]);
        self.to += count;
        count
    }

    /// Gives as much as there is room for.
    fn pop_into(&mut self, target: &mut ReadBuf<'_>) {
        let count = self.filled().len().min(target.remaining());
        target.put_slice(&self.filled()[..count]);
        self.from += count;
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        // Fails only while the thread ends.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < WIRE_BUFFERS_KEPT {
                spare.push(bytes);
            }
        });
    }
}

/// A TCP connection that reads ahead.
#[derive(Debug)]
pub struct Socket {
    tcp: TcpStream,
    ahead: Option<Buffer>,
}

impl Socket {
    /// Nothing is read from it yet.
    #[must_use]
    pub fn new(tcp: TcpStream) -> Self {
        Self { tcp, ahead: None }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, target: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let mut ahead = match this.ahead.take() {
            Some(ahead) => ahead,
            None if target.remaining() >= WIRE_BUFFER_BYTES => {
                return Pin::new(&mut this.tcp).poll_read(context, target);
            }
            None => {
                let mut buffer = Buffer::new();
                let mut read = ReadBuf::new(&mut buffer.bytes);
                ready!(Pin::new(&mut this.tcp).poll_read(context, &mut read))?;
                buffer.to = read.filled().len();
                buffer
            }
        };
        ahead.pop_into(target);
        if !ahead.filled().is_empty() {
            this.ahead = Some(ahead);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}

/// A stream whose writes gather until [`Wire::end_turn`]. Clones are the same one: the HTTP/2 layer has one, the task that drives it the
/// other.
#[derive(Debug)]
pub struct Wire<S> {
    inner: Arc<Mutex<Inner<S>>>,
}

impl<S> Clone for Wire<S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

#[derive(Debug)]
struct Inner<S> {
    stream: S,
    out: Option<Buffer>,
    /// The stream itself holds nothing back.
    is_flushed: bool,
    /// How often something was read.
    reads: u64,
}

impl<S: AsyncWrite + Unpin> Wire<S> {
    /// Of a stream of which nothing is read or written yet.
    #[must_use]
    pub fn new(stream: S) -> Self {
        Self { inner: Arc::new(Mutex::new(Inner { stream, out: None, is_flushed: true, reads: 0 })) }
    }

    /// Writes what has gathered. To be called whenever the task has driven the HTTP/2 layer.
    ///
    /// Pending while the stream takes no more; the task is then woken when it does. Fails as the stream does.
    pub fn end_turn(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.inner.lock();
        if inner.out.is_none() && inner.is_flushed { Poll::Ready(Ok(())) } else { inner.flush(context) }
    }

    /// How often something was read so far.
    pub fn reads(&self) -> u64 {
        self.inner.lock().reads
    }
}

impl<S: AsyncWrite + Unpin> Inner<S> {
    fn flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.write_out(context))?;
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        self.is_flushed = true;
        Poll::Ready(Ok(()))
    }

    fn write_out(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(out) = &mut self.out {
            self.is_flushed = false;
            let written = ready!(Pin::new(&mut self.stream).poll_write(context, out.filled()))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            out.from += written;
            if out.filled().is_empty() {
                self.out = None;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Takes what there is room for; makes room only if there is none, so that what is written then is whole TLS records.
    fn gather(&mut self, context: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.out.as_ref().is_some_and(|out| out.to == WIRE_BUFFER_BYTES) {
            ready!(self.write_out(context))?;
        }
        let out = self.out.get_or_insert_with(Buffer::new);
        let count = slices.iter().map(|slice| out.push(slice)).sum();
        Poll::Ready(Ok(count))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, target: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.inner.lock();
        ready!(Pin::new(&mut inner.stream).poll_read(context, target))?;
        inner.reads += 1;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.inner.lock().gather(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.inner.lock().gather(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Nothing: [`Wire::end_turn`] does it.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.inner.lock();
        ready!(inner.flush(context))?;
        Pin::new(&mut inner.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// Takes at most so many bytes at a time, and nothing each second time.
    #[derive(Default)]
    struct Slow {
        bytes_max: usize,
        is_full: bool,
        writes: Vec<usize>,
        taken: Vec<u8>,
        /// Turns that it takes to flush what was taken, as TLS does when its socket is full.
        behind: usize,
    }

    impl AsyncWrite for Slow {
        fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.is_full = !self.is_full && self.bytes_max < WIRE_BUFFER_BYTES;
            if self.is_full {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let count = bytes.len().min(self.bytes_max);
            self.writes.push(count);
            self.taken.extend_from_slice(&bytes[..count]);
            Poll::Ready(Ok(count))
        }

        fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            if self.behind == 0 {
                return Poll::Ready(Ok(()));
            }
            self.behind -= 1;
            context.waker().wake_by_ref();
            Poll::Pending
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn numbered(count: usize) -> Vec<u8> {
        (0..count).map(|number| (number / 7) as u8).collect()
    }

    #[tokio::test]
    async fn what_is_written_in_one_turn_leaves_at_its_end_at_once() {
        let wire = Wire::new(Slow { bytes_max: WIRE_BUFFER_BYTES, ..Slow::default() });
        let mut writer = wire.clone();
        for number in 0..10 {
            writer.write_all(&[number; 100]).await.unwrap();
            writer.flush().await.unwrap();
        }
        assert!(wire.inner.lock().writes().is_empty());
        poll_fn(|context| wire.end_turn(context)).await.unwrap();
        assert_eq!(wire.inner.lock().writes(), [1000]);
        assert!(wire.inner.lock().out.is_none(), "it is at rest and holds no buffer");
    }

    #[tokio::test]
    async fn what_the_stream_itself_holds_back_is_flushed_in_the_turns_that_follow() {
        let mut wire = Wire::new(Slow { bytes_max: WIRE_BUFFER_BYTES, behind: 3, ..Slow::default() });
        wire.write_all(b"frame").await.unwrap();
        poll_fn(|context| wire.end_turn(context)).await.unwrap();
        assert_eq!(wire.inner.lock().stream.behind, 0);
    }

    #[tokio::test]
    async fn bytes_keep_their_order_whatever_the_receiver_takes() {
        for bytes_max in [1, 1000, 40_000, WIRE_BUFFER_BYTES] {
            let bytes = numbered(WIRE_BUFFER_BYTES * 2 + 12_345);
            let mut wire = Wire::new(Slow { bytes_max, ..Slow::default() });
            for frame in bytes.chunks(16_393) {
                wire.write_all(frame).await.unwrap();
            }
            wire.shutdown().await.unwrap();
            let inner = wire.inner.lock();
            assert!(inner.stream.taken == bytes, "{bytes_max}");
            if bytes_max == WIRE_BUFFER_BYTES {
                assert_eq!(inner.writes(), [WIRE_BUFFER_BYTES, WIRE_BUFFER_BYTES, 12_345], "whole TLS records");
            }
        }
    }

    impl Inner<Slow> {
        fn writes(&self) -> &[usize] {
            &self.stream.writes
        }
    }

    #[tokio::test]
    async fn a_socket_gives_all_bytes_in_order_and_then_holds_none() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut socket = Socket::new(listener.accept().await.unwrap().0);
        let bytes = numbered(300_000);
        let sent = bytes.clone();
        let sends = tokio::spawn(async move {
            peer.write_all(&sent).await.unwrap();
            peer.shutdown().await.unwrap();
        });
        let mut read = Vec::new();
        let mut piece = vec![0; 100_000];
        for size in [1, 4096, 100_000, 5].into_iter().cycle() {
            let count = socket.read(&mut piece[..size]).await.unwrap();
            read.extend_from_slice(&piece[..count]);
            if count == 0 {
                break;
            }
        }
        sends.await.unwrap();
        assert!(read == bytes);
        assert!(socket.ahead.is_none());
    }
}
