//! What a client's HTTP/2 connection may cost beside its requests.
//!
//! The protocol lets a client send frames that ask for nothing, begin a frame or a head and never end it, and leave unread what it asked
//! for. `h2` bounds the memory that this takes; here it is bounded in number and time.
//!
//! Invariant: a connection that passes its bounds ends at once, and one that keeps them never notices that they are there. The bytes
//! themselves pass unchanged.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::limits::{
    CONTROL_FRAMES_BURST, CONTROL_FRAMES_PER_SECOND, REQUESTS_PER_CONTROL_FRAME, WINDOW_UPDATES_BURST,
    WINDOW_UPDATES_PER_SECOND, WRITTEN_BYTES_PER_WINDOW_UPDATE,
};

/// What a client sends first (RFC 9113, section 3.4).
const PREFACE_BYTES: usize = 24;
const FRAME_HEAD_BYTES: usize = 9;

// Types and flags of frames (RFC 9113, section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// A number of frames that grows back with time, and with what gives reason for them.
struct Budget {
    /// In parts of a frame, of which [`PART`] are a whole.
    left: u64,
    most: u64,
    per_second: u64,
    filled: Instant,
}

const PART: u64 = 1 << 16;

impl Budget {
    fn new(burst: u64, per_second: u64, now: Instant) -> Self {
        Self { left: burst * PART, most: burst * PART, per_second: per_second * PART, filled: now }
    }

    fn give(&mut self, parts: u64) {
        self.left = self.left.saturating_add(parts).min(self.most);
    }

    /// Takes one frame, if there is one left.
    fn take(&mut self) -> bool {
        if self.left < PART {
            let now = Instant::now();
            let milliseconds = u64::try_from((now - self.filled).as_millis()).unwrap_or(u64::MAX);
            self.filled = now;
            self.give(self.per_second.saturating_mul(milliseconds) / 1000);
        }
        match self.left.checked_sub(PART) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}

/// Follows a stream of frames from head to head.
struct Frames {
    head: [u8; FRAME_HEAD_BYTES],
    /// Bytes of the head that have come.
    head_bytes: usize,
    /// Bytes that come before the next head: the rest of a frame, or of the preface.
    skip: usize,
    /// A head of a request has begun whose end is in a frame to come.
    in_header_block: bool,
    /// How many frames have ended, not counting those within a head.
    ended: u64,
    control: Budget,
    window_updates: Budget,
}

/// A client that sent too much of what asks for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the client floods the connection with frames of type {kind}")]
struct Flood {
    kind: u8,
}

impl Frames {
    fn new(now: Instant) -> Self {
        Self {
            head: [0; FRAME_HEAD_BYTES],
            head_bytes: 0,
            skip: PREFACE_BYTES,
            in_header_block: false,
            ended: 0,
            control: Budget::new(CONTROL_FRAMES_BURST, CONTROL_FRAMES_PER_SECOND, now),
            window_updates: Budget::new(WINDOW_UPDATES_BURST, WINDOW_UPDATES_PER_SECOND, now),
        }
    }

    /// Takes notice of what has come.
    fn read(&mut self, mut bytes: &[u8]) -> Result<(), Flood> {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let skipped = self.skip.min(bytes.len());
                self.skip -= skipped;
                bytes = &bytes[skipped..];
                self.ended += u64::from(!self.is_in_the_middle());
                continue;
            }
            let taken = (FRAME_HEAD_BYTES - self.head_bytes).min(bytes.len());
            self.head[self.head_bytes..self.head_bytes + taken].copy_from_slice(&bytes[..taken]);
            self.head_bytes += taken;
            bytes = &bytes[taken..];
            if self.head_bytes == FRAME_HEAD_BYTES {
                self.head_bytes = 0;
                let [high, middle, low, kind, flags, ..] = self.head;
                self.skip = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
                self.frame(kind, flags)?;
                self.ended += u64::from(!self.is_in_the_middle());
            }
        }
        Ok(())
    }

    fn frame(&mut self, kind: u8, flags: u8) -> Result<(), Flood> {
        let is_within = match kind {
            // Bounded by the windows, and by h2 where they are small or empty.
            DATA => true,
            HEADERS | CONTINUATION => {
                self.in_header_block = flags & END_HEADERS == 0;
                if kind == HEADERS {
                    self.control.give(PART / REQUESTS_PER_CONTROL_FRAME);
                }
                true
            }
            WINDOW_UPDATE => self.window_updates.take(),
            // SETTINGS, PING, RST_STREAM, PRIORITY, GOAWAY, and what nobody knows.
            _ => self.control.take(),
        };
        if is_within { Ok(()) } else { Err(Flood { kind }) }
    }

    /// Answers were sent: there is reason to open their windows again.
    fn written(&mut self, bytes: usize) {
        self.window_updates.give(bytes as u64 * (PART / WRITTEN_BYTES_PER_WINDOW_UPDATE));
    }

    /// Whether something has begun that the client must bring to its end.
    fn is_in_the_middle(&self) -> bool {
        self.skip > 0 || self.head_bytes > 0 || self.in_header_block
    }
}

/// A time by which something must have happened.
#[derive(Default)]
struct Deadline {
    timer: Option<Pin<Box<Sleep>>>,
    is_set: bool,
}

impl Deadline {
    /// Sets it, unless it is set already.
    fn set(&mut self, timeout: Duration) {
        if !std::mem::replace(&mut self.is_set, true) {
            let at = Instant::now() + timeout;
            match &mut self.timer {
                Some(timer) => timer.as_mut().reset(at),
                None => self.timer = Some(Box::pin(tokio::time::sleep_until(at))),
            }
        }
    }

    fn clear(&mut self) {
        self.is_set = false;
    }

    /// Whether it is over. Else the task is woken when it is.
    fn is_over(&mut self, context: &mut Context<'_>) -> bool {
        self.is_set && self.timer.as_mut().is_some_and(|timer| timer.as_mut().poll(context).is_ready())
    }
}

/// A client's HTTP/2 connection whose frames are within their bounds.
pub(crate) struct Guarded<S> {
    stream: S,
    frames: Frames,
    /// How long a frame, or the head of a request, may take from its first byte to its last.
    timeout: Duration,
    deadline: Deadline,
    /// What had ended when the deadline was set.
    ended: u64,
}

impl<S> Guarded<S> {
    /// Guards a stream of which nothing was read yet.
    pub(crate) fn new(stream: S, timeout: Duration) -> Self {
        Self { stream, frames: Frames::new(Instant::now()), timeout, deadline: Deadline::default(), ended: 0 }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(context, buffer)?;
        this.frames.read(&buffer.filled()[before..]).map_err(io::Error::other)?;
        if this.ended != this.frames.ended {
            this.ended = this.frames.ended;
            this.deadline.clear();
        }
        if this.frames.is_in_the_middle() {
            this.deadline.set(this.timeout);
            if polled.is_pending() && this.deadline.is_over(context) {
                return Poll::Ready(Err(timed_out("the client does not end what it began to send")));
            }
        }
        polled.map(Ok)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.stream).poll_write(context, bytes))?;
        this.frames.written(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.stream).poll_write_vectored(context, slices))?;
        this.frames.written(written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

/// While it lives, the client of an HTTP/1.1 connection may pause: it reads an answer that streams, or a stream of its own protocol.
pub struct Pause {
    may_pause: Arc<AtomicBool>,
}

impl Pause {
    /// From now on it may.
    #[must_use]
    pub fn new(may_pause: Arc<AtomicBool>) -> Self {
        may_pause.store(true, Ordering::Relaxed);
        Self { may_pause }
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        self.may_pause.store(false, Ordering::Relaxed);
    }
}

/// A client's connection, below TLS: it ends when the client takes nothing of what is there for it.
pub struct Outlet<S> {
    stream: S,
    timeout: Duration,
    deadline: Deadline,
    /// Whether the client may take as long as it likes.
    may_pause: Arc<AtomicBool>,
}

impl<S> Outlet<S> {
    /// The client may pause for `timeout`, or as long as it likes while `may_pause` says so.
    #[must_use]
    pub fn new(stream: S, timeout: Duration, may_pause: Arc<AtomicBool>) -> Self {
        Self { stream, timeout, deadline: Deadline::default(), may_pause }
    }

    fn after_write<T>(&mut self, context: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() || self.may_pause.load(Ordering::Relaxed) {
            self.deadline.clear();
            return polled;
        }
        self.deadline.set(self.timeout);
        if self.deadline.is_over(context) {
            return Poll::Ready(Err(timed_out("the client does not take what is there for it")));
        }
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Outlet<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Outlet<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.after_write(context, polled)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write_vectored(context, slices);
        this.after_write(context, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

fn timed_out(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, why)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    const TIMEOUT: Duration = Duration::from_secs(30);

    fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
        let [.., high, middle, low] = length.to_be_bytes();
        [&[high, middle, low, kind, flags, 0, 0, 0, 1][..], &vec![7; length]].concat()
    }

    fn frames() -> Frames {
        let mut frames = Frames::new(Instant::now());
        frames.read(&[b'P'; PREFACE_BYTES]).unwrap();
        frames
    }

    #[tokio::test(start_paused = true)]
    async fn what_asks_for_nothing_is_bounded_and_comes_back_with_time() {
        let mut frames = frames();
        for _ in 0..CONTROL_FRAMES_BURST {
            frames.read(&frame(PING, 0, 8)).unwrap();
        }
        assert_eq!(frames.read(&frame(SETTINGS, 0, 0)), Err(Flood { kind: SETTINGS }));
        tokio::time::advance(Duration::from_secs(1)).await;
        for _ in 0..CONTROL_FRAMES_PER_SECOND {
            frames.read(&frame(PING, 0, 8)).unwrap();
        }
        assert_eq!(frames.read(&frame(PING, 0, 8)), Err(Flood { kind: PING }));
    }

    #[tokio::test(start_paused = true)]
    async fn requests_and_answers_give_reason_for_more() {
        let mut frames = frames();
        for _ in 0..CONTROL_FRAMES_BURST * 10 {
            frames.read(&frame(HEADERS, END_HEADERS, 20)).unwrap();
            frames.read(&frame(HEADERS, END_HEADERS, 20)).unwrap();
            frames.read(&frame(PING, 0, 8)).unwrap();
        }
        for _ in 0..WINDOW_UPDATES_BURST * 10 {
            frames.read(&frame(WINDOW_UPDATE, 0, 4)).unwrap();
            frames.written(WRITTEN_BYTES_PER_WINDOW_UPDATE as usize);
        }
        let mut window_updates = 0;
        while frames.read(&frame(WINDOW_UPDATE, 0, 4)).is_ok() {
            window_updates += 1;
        }
        assert_eq!(window_updates, WINDOW_UPDATES_BURST);
    }

    #[tokio::test(start_paused = true)]
    async fn what_begins_must_end_however_slowly_its_bytes_come() {
        // The preface itself; a frame; a head whose frames all end, but not itself.
        let head = [frame(HEADERS, 0, 3), frame(CONTINUATION, 0, 3)].concat();
        for (whole, begun) in
            [(0, vec![b'P'; 3]), (PREFACE_BYTES, frame(DATA, 0, 100)[..50].to_vec()), (PREFACE_BYTES, head)]
        {
            let (mut client, server) = tokio::io::duplex(1 << 16);
            let started = Instant::now();
            let reads = tokio::spawn(async move {
                let mut bytes = Vec::new();
                let mut guarded = Guarded::new(server, TIMEOUT);
                (guarded.read_to_end(&mut bytes).await.unwrap_err().kind(), bytes.len())
            });
            client.write_all(&vec![b'P'; whole]).await.unwrap();
            for byte in &begun {
                client.write_all(&[*byte]).await.unwrap();
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            assert_eq!(reads.await.unwrap(), (io::ErrorKind::TimedOut, whole + begun.len()));
            assert!(started.elapsed() < TIMEOUT + Duration::from_secs(1), "{:?}", started.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_between_two_frames_may_wait() {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let mut guarded = Guarded::new(server, TIMEOUT);
        let frames = [vec![b'P'; PREFACE_BYTES], frame(SETTINGS, 0, 0), frame(HEADERS, END_HEADERS, 5)].concat();
        client.write_all(&frames).await.unwrap();
        guarded.read_exact(&mut vec![0; frames.len()]).await.unwrap();
        tokio::time::timeout(TIMEOUT * 100, guarded.read_u8()).await.unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_let_go_unless_it_may_pause() {
        let may_pause = Arc::new(AtomicBool::new(true));
        let (mut client, server) = tokio::io::duplex(10);
        let mut outlet = Outlet::new(server, TIMEOUT, may_pause.clone());
        outlet.write_all(&[1; 10]).await.unwrap();
        tokio::time::timeout(TIMEOUT * 100, outlet.write_u8(1)).await.unwrap_err();
        may_pause.store(false, Ordering::Relaxed);
        // One who takes some of it now and then is waited for.
        for _ in 0..3 {
            tokio::time::timeout(TIMEOUT * 2 / 3, outlet.write_u8(1)).await.unwrap_err();
            client.read_u8().await.unwrap();
            outlet.write_u8(1).await.unwrap();
        }
        assert_eq!(outlet.write_u8(1).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    proptest! {
        /// Whatever comes, in whatever pieces: it is taken the same way, and never a panic.
        #[test]
        fn frames_are_followed_in_any_pieces(bytes in proptest::collection::vec(any::<u8>(), 0..400), cuts in proptest::collection::vec(1_usize..40, 1..20)) {
            let now = Instant::now();
            let mut whole = Frames::new(now);
            let as_whole = whole.read(&bytes);
            let mut pieces = Frames::new(now);
            let (mut rest, mut cuts) = (&bytes[..], cuts.iter().cycle());
            let mut in_pieces = Ok(());
            while in_pieces.is_ok() && !rest.is_empty() {
                let (piece, next) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                in_pieces = pieces.read(piece);
                rest = next;
            }
            prop_assert_eq!(as_whole, in_pieces);
            prop_assert_eq!((whole.skip, whole.head_bytes, whole.ended), (pieces.skip, pieces.head_bytes, pieces.ended));
        }
    }
}
