//! A socket that is moved by whoever waits for it.
//!
//! The client library asks a socket to read and write without waiting. This one notes what would have had to wait, and [`Waiter::wait`] puts
//! the calling thread to sleep until that can be done: no other thread has to be woken to pass an answer on.
//!
//! Invariant: what a read or a write could not do is what the next wait ends for.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::Config;
use tokio_postgres::config::Host;

/// Read ahead of what is asked for: rows come in many small messages.
const AHEAD_BYTES: usize = 64 << 10;

const READ: u8 = 1;
const WRITE: u8 = 2;

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

struct Shared {
    stream: Stream,
    /// What would have had to wait.
    wants: AtomicU8,
    /// The last read got less than there was room for, so nothing more had come by then.
    is_drained: AtomicBool,
}

impl AsFd for Shared {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.stream {
            Stream::Tcp(stream) => stream.as_fd(),
            Stream::Unix(stream) => stream.as_fd(),
        }
    }
}

impl Shared {
    fn read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        match &self.stream {
            Stream::Tcp(stream) => (&mut &*stream).read(bytes),
            Stream::Unix(stream) => (&mut &*stream).read(bytes),
        }
    }

    fn write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match &self.stream {
            Stream::Tcp(stream) => (&mut &*stream).write_vectored(slices),
            Stream::Unix(stream) => (&mut &*stream).write_vectored(slices),
        }
    }

    /// Turns what would block into what the next wait ends for.
    fn attempt(&self, want: u8, mut attempt: impl FnMut() -> io::Result<usize>) -> Poll<io::Result<usize>> {
        loop {
            match attempt() {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.wants.fetch_or(want, Ordering::Relaxed);
                    return Poll::Pending;
                }
                other => return Poll::Ready(other),
            }
        }
    }
}

/// A connected socket, for the client library.
pub(crate) struct Socket {
    shared: Arc<Shared>,
    ahead: Box<[u8]>,
    from: usize,
    to: usize,
}

/// Waits for a socket.
pub(crate) struct Waiter(Arc<Shared>);

impl Socket {
    /// Connects to the one host of that configuration.
    ///
    /// # Errors
    /// When its name is unknown, or it does not answer by the deadline. Looking a name up may take longer than that.
    pub(crate) fn connect(host: &Config, deadline: Instant) -> io::Result<(Self, Waiter)> {
        let port = host.get_ports().first().copied().unwrap_or(5432);
        let stream = match (host.get_hostaddrs().first(), host.get_hosts().first()) {
            (Some(address), _) => tcp(host, (*address, port), deadline)?,
            (None, Some(Host::Tcp(name))) => tcp(host, (&name[..], port), deadline)?,
            (None, Some(Host::Unix(folder))) => {
                let stream = UnixStream::connect(folder.join(format!(".s.PGSQL.{port}")))?;
                stream.set_nonblocking(true)?;
                Stream::Unix(stream)
            }
            (None, None) => return Err(io::Error::new(ErrorKind::InvalidInput, "no host")),
        };
        let shared = Arc::new(Shared { stream, wants: AtomicU8::new(0), is_drained: AtomicBool::new(false) });
        let ahead = vec![0; AHEAD_BYTES].into_boxed_slice();
        Ok((Self { shared: shared.clone(), ahead, from: 0, to: 0 }, Waiter(shared)))
    }
}

/// Connects to the first address that answers.
fn tcp(host: &Config, name: impl ToSocketAddrs, deadline: Instant) -> io::Result<Stream> {
    let mut last = io::Error::new(ErrorKind::NotFound, "the name has no address");
    for address in name.to_socket_addrs()? {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        match TcpStream::connect_timeout(&address, left) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
                let socket = SockRef::from(&stream);
                if host.get_keepalives() {
                    let mut keepalive = TcpKeepalive::new().with_time(host.get_keepalives_idle());
                    if let Some(interval) = host.get_keepalives_interval() {
                        keepalive = keepalive.with_interval(interval);
                    }
                    if let Some(retries) = host.get_keepalives_retries() {
                        keepalive = keepalive.with_retries(retries);
                    }
                    socket.set_tcp_keepalive(&keepalive)?;
                }
                if let Some(timeout) = host.get_tcp_user_timeout() {
                    socket.set_tcp_user_timeout(Some(*timeout))?;
                }
                return Ok(Stream::Tcp(stream));
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

impl Waiter {
    /// Time has passed: the next read asks the socket.
    pub(crate) fn look_again(&self) {
        self.0.is_drained.store(false, Ordering::Relaxed);
    }

    /// Sleeps until something can be done that could not, or for so long.
    pub(crate) fn wait(&self, at_most: Duration) {
        self.look_again();
        let wants = self.0.wants.swap(0, Ordering::Relaxed);
        let mut events = PollFlags::empty();
        events.set(PollFlags::IN, wants & READ != 0);
        events.set(PollFlags::OUT, wants & WRITE != 0);
        let timeout = Timespec {
            tv_sec: i64::try_from(at_most.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(at_most.subsec_nanos()),
        };
        // A failure ends the wait early, and whoever waits looks anew.
        let _ = rustix::event::poll(&mut [PollFd::new(&*self.0, events)], Some(&timeout));
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, target: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.from == this.to {
            if this.shared.is_drained.swap(false, Ordering::Relaxed) {
                this.shared.wants.fetch_or(READ, Ordering::Relaxed);
                return Poll::Pending;
            }
            let ahead = &mut this.ahead;
            let count = match this.shared.attempt(READ, || this.shared.read(ahead)) {
                Poll::Ready(count) => count?,
                Poll::Pending => return Poll::Pending,
            };
            // The end is told again whenever it is asked for.
            this.shared.is_drained.store(0 < count && count < ahead.len(), Ordering::Relaxed);
            (this.from, this.to) = (0, count);
        }
        let count = (this.to - this.from).min(target.remaining());
        target.put_slice(&this.ahead[this.from..this.from + count]);
        this.from += count;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.shared.attempt(WRITE, || self.shared.write(&[IoSlice::new(bytes)]))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.shared.attempt(WRITE, || self.shared.write(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let socket = SockRef::from(&*self.shared);
        Poll::Ready(socket.shutdown(std::net::Shutdown::Write))
    }
}
