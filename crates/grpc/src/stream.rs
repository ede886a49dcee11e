//! The two ends of a streaming call.
//!
//! Invariant: what a stream's client has not taken is bounded by `stream_send_bytes_max` (or one message), because
//! [`ResponseSink::send`] waits; and by HTTP/2 flow control in the other direction, because data is read from the
//! connection only when the handler asks for it.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::RecvStream;
use http::HeaderMap;
use tokio::sync::Notify;

use crate::deframer::{Deframer, PREFIX_LEN};
use crate::inbox::{Event, HeldRequest, Shared};
use crate::slab::SlotId;
use crate::{Reply, Stats, Status};

/// The client is gone, or the call has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream is closed")]
pub struct Closed;

/// Why a message was not taken.
#[derive(Debug, thiserror::Error)]
pub enum TrySendError {
    /// The client reads too slowly; here is the message back.
    #[error("the stream's client has too much to read")]
    Full(Reply),
    /// See [`Closed`].
    #[error("the stream is closed")]
    Closed,
}

/// The part of a stream that the connection's task and the handler share.
pub(crate) struct StreamShared {
    connection: Arc<Shared>,
    slot: SlotId,
    outstanding: AtomicUsize,
    /// A sender waits for room.
    waiting: AtomicBool,
    closed: AtomicBool,
    changed: Notify,
}

impl StreamShared {
    pub(crate) fn new(connection: Arc<Shared>, slot: SlotId) -> Arc<Self> {
        Arc::new(Self {
            connection,
            slot,
            outstanding: AtomicUsize::new(0),
            waiting: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            changed: Notify::new(),
        })
    }

    fn charge(&self, bytes: usize) {
        self.outstanding.fetch_add(bytes, Ordering::SeqCst);
        self.connection.charge_stream(bytes);
    }

    pub(crate) fn discharge(&self, bytes: usize) {
        self.outstanding.fetch_sub(bytes, Ordering::SeqCst);
        self.connection.discharge_stream(bytes);
        if self.waiting.swap(false, Ordering::SeqCst) {
            self.changed.notify_waiters();
        }
    }

    /// Says that nothing can be sent any more.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.changed.notify_waiters();
    }

    /// Lets the handler see that the connection drains.
    pub(crate) fn tell_draining(&self) {
        self.changed.notify_waiters();
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    fn has_room(&self, more: usize) -> bool {
        self.connection.stream_has_room(self.outstanding.load(Ordering::SeqCst), more)
    }

    async fn wait_until(&self, condition: impl Fn(&Self) -> bool) {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            if condition(self) {
                return;
            }
            changed.await;
        }
    }
}

/// Sends the messages of a streaming call. Dropped without [`ResponseSink::finish`], the client gets Internal.
///
/// The response headers go with the first message, so that a call that fails at once is a lone status, as in grpc-go.
pub struct ResponseSink {
    shared: Arc<StreamShared>,
    finished: bool,
}

impl ResponseSink {
    pub(crate) fn new(shared: Arc<StreamShared>) -> Self {
        Self { shared, finished: false }
    }

    /// Sends the response headers now, for clients that wait for them before they say anything.
    pub fn start(&self) {
        self.shared.connection.push(Event::Start(self.shared.slot));
    }

    /// Sends a message, after waiting until this stream's client has taken enough of the earlier ones.
    pub async fn send(&self, mut reply: Reply) -> Result<(), Closed> {
        loop {
            match self.try_send(reply) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Closed) => return Err(Closed),
                Err(TrySendError::Full(back)) => reply = back,
            }
            let more = reply.message_len() + PREFIX_LEN;
            self.shared
                .wait_until(|shared| {
                    shared.waiting.store(true, Ordering::SeqCst);
                    shared.is_closed() || shared.has_room(more)
                })
                .await;
        }
    }

    /// Sends a message if there is room for it.
    pub fn try_send(&self, reply: Reply) -> Result<(), TrySendError> {
        if self.shared.is_closed() {
            return Err(TrySendError::Closed);
        }
        let bytes = reply.message_len() + PREFIX_LEN;
        if !self.shared.has_room(bytes) {
            return Err(TrySendError::Full(reply));
        }
        self.shared.charge(bytes);
        self.shared.connection.push(Event::Message(self.shared.slot, reply));
        Ok(())
    }

    /// Reply bytes of this stream that have not left for the socket.
    pub fn waiting_bytes(&self) -> usize {
        self.shared.outstanding.load(Ordering::SeqCst)
    }

    /// Ends the call; messages sent before arrive first.
    pub fn finish(mut self, status: Status) {
        self.finished = true;
        self.shared.connection.push(Event::Finish(self.shared.slot, status));
    }

    /// Waits until nothing can be sent any more: the client reset the call or went away, or its deadline passed.
    pub async fn closed(&self) {
        self.shared.wait_until(StreamShared::is_closed).await;
    }

    /// Waits until the server wants the call to end because it shuts down (or the connection is gone).
    pub async fn draining(&self) {
        self.shared.wait_until(|shared| shared.connection.is_draining() || shared.is_closed()).await;
    }
}

impl Drop for ResponseSink {
    fn drop(&mut self) {
        if !self.finished {
            let status = Status::internal("the handler ended without a status");
            self.shared.connection.push(Event::Finish(self.shared.slot, status));
        }
    }
}

/// Receives the messages of a streaming call.
pub struct RequestStream {
    body: RecvStream,
    deframer: Deframer,
    /// Only what the deframer looks at.
    headers: HeaderMap,
    stats: Arc<Stats>,
    held: HeldRequest,
    ended: bool,
}

impl RequestStream {
    pub(crate) fn new(
        body: RecvStream,
        headers: &HeaderMap,
        message_bytes_max: usize,
        stats: Arc<Stats>,
        held: HeldRequest,
    ) -> Self {
        let encoding = headers.get("grpc-encoding").cloned();
        let headers = encoding.map(|value| (http::HeaderName::from_static("grpc-encoding"), value));
        Self {
            body,
            deframer: Deframer::new(message_bytes_max),
            headers: headers.into_iter().collect(),
            stats,
            held,
            ended: false,
        }
    }

    /// The next message. `None` once the client has said that it sends no more; an error if it went away or broke the
    /// protocol, and `None` after that. May be cancelled and called again without loss.
    pub async fn next(&mut self) -> Option<Result<Bytes, Status>> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// As [`RequestStream::next`], for hand-written futures.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        loop {
            match self.deframer.next(&self.headers) {
                Ok(Some(message)) => {
                    let _ = self.held.set(0);
                    self.stats.messages_in.fetch_add(1, Ordering::Relaxed);
                    return Poll::Ready(Some(Ok(message)));
                }
                Ok(None) => {}
                Err(status) => return self.end(Some(status)),
            }
            let Poll::Ready(received) = self.body.poll_data(context) else {
                return match self.held.set(self.deframer.held_bytes()) {
                    Ok(()) => Poll::Pending,
                    Err(too_much) => self.end(Some(too_much.into())),
                };
            };
            match received {
                Some(Ok(piece)) => {
                    // An error means that the stream is closed; the next poll tells.
                    let _ = self.body.flow_control().release_capacity(piece.len());
                    self.deframer.push(piece);
                }
                Some(Err(_)) => return self.end(Some(Status::cancelled())),
                None if self.deframer.is_empty() => return self.end(None),
                None => return self.end(Some(cut_short())),
            }
        }
    }

    fn end(&mut self, status: Option<Status>) -> Poll<Option<Result<Bytes, Status>>> {
        self.ended = true;
        Poll::Ready(status.map(Err))
    }
}

/// What a client is told whose request ends inside a message; the text is grpc-go's.
pub(crate) fn cut_short() -> Status {
    Status::internal("unexpected EOF")
}
