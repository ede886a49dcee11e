//! A client's HTTP/2 connection.
//!
//! Invariant: one task has the connection and all that is answered on it. What wakes it, wakes it once for all that has happened since; what
//! its answers write in one turn leaves together. An answer whose stream the client has reset is dropped at once, and with it all that it
//! occupies; one that panics takes nobody else with it.

use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use h2::server::{Builder, Handshake, SendResponse};
use h2::{Ping, PingPong, Reason, RecvStream, SendStream};
use http::header::{CONTENT_LENGTH, DATE};
use http::{HeaderValue, Request, Response};
use http_body::Body as _;
use kubewharf_upstream::wire::Wire;
use tokio::time::{Instant, Sleep};

use crate::guard::Guarded;
use crate::inbound::Inbound;
use crate::limits::{
    CONNECTION_WINDOW_BYTES, HEAD_BYTES_MAX, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, RESET_STREAMS_MAX,
    SEND_BUFFER_BYTES, STREAM_WINDOW_BYTES, STREAMS_PER_CONNECTION_MAX,
};
use crate::watchdog::{self, Deadlines, Watched};
use crate::{Service, Stream};

type Io = Guarded<Wire<Stream>>;

/// A connection, to be polled to its end.
pub(crate) struct Connection<S: Service> {
    state: State,
    wire: Wire<Stream>,
    service: Arc<S>,
    answers: FuturesUnordered<Watched<Answer<S>>>,
    requests: Arc<Requests>,
    keepalive: Keepalive,
    /// Nothing new is to be taken.
    is_leaving: bool,
}

enum State {
    Greeting(Box<Handshake<Io, Bytes>>),
    Open(Box<h2::server::Connection<Io, Bytes>>),
    /// All streams have ended, or the connection has.
    Over,
}

impl<S: Service> Connection<S> {
    /// Serves a client whose frames may take so long.
    pub(crate) fn new(stream: Stream, service: Arc<S>, frame_timeout: Duration, requests: Arc<Requests>) -> Self {
        let wire = Wire::new(stream);
        let greeting = Builder::new()
            .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_header_list_size(HEAD_BYTES_MAX)
            .max_pending_accept_reset_streams(RESET_STREAMS_MAX)
            .max_local_error_reset_streams(Some(RESET_STREAMS_MAX))
            .max_send_buffer_size(SEND_BUFFER_BYTES)
            .handshake(Guarded::new(wire.clone(), frame_timeout));
        Self {
            state: State::Greeting(Box::new(greeting)),
            wire,
            service,
            answers: FuturesUnordered::new(),
            requests,
            keepalive: Keepalive::new(),
            is_leaving: false,
        }
    }

    /// Tells the client to send no more requests. The connection ends when those that there are have been answered.
    pub(crate) fn graceful_shutdown(&mut self) {
        self.is_leaving = true;
        if let State::Open(h2) = &mut self.state {
            h2.graceful_shutdown();
        }
    }

    /// Lets the HTTP/2 layer read and write, then all answers that can go on: what they write, it writes in the next turn, for which they
    /// wake it. Ready at the end of the connection.
    fn turn(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let State::Greeting(greeting) = &mut self.state {
            let mut h2 = Box::new(ready!(Pin::new(greeting).poll(context)).map_err(io::Error::other)?);
            self.keepalive.ping = h2.ping_pong();
            if self.is_leaving {
                h2.graceful_shutdown();
            }
            self.state = State::Open(h2);
        }
        while let State::Open(h2) = &mut self.state {
            match h2.poll_accept(context) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    self.requests.begun.fetch_add(1, Ordering::Relaxed);
                    self.answers.push(Watched::new(Answer::new(self.service.clone(), request, respond)));
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(io::Error::other(error))),
                Poll::Ready(None) => self.state = State::Over,
                Poll::Pending => break,
            }
        }
        while let Poll::Ready(Some(_)) = self.answers.poll_next_unpin(context) {}
        self.requests.open.store(self.answers.len(), Ordering::Relaxed);
        let is_over = matches!(self.state, State::Over) && self.answers.is_empty();
        if is_over { Poll::Ready(Ok(())) } else { Poll::Pending }
    }
}

impl<S: Service> Future for Connection<S> {
    type Output = io::Result<()>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Poll::Ready(result) = this.turn(context) {
            return Poll::Ready(result);
        }
        if let Poll::Ready(Err(error)) = this.wire.end_turn(context) {
            return Poll::Ready(Err(error));
        }
        this.keepalive.poll(context, || this.wire.reads()).map(Err)
    }
}

/// Asks a client of which nothing was heard for a while whether it is still there.
struct Keepalive {
    ping: Option<PingPong>,
    timer: Pin<Box<Sleep>>,
    /// What had been read when the timer was set.
    reads: u64,
    is_asked: bool,
}

impl Keepalive {
    fn new() -> Self {
        Self { ping: None, timer: Box::pin(tokio::time::sleep(KEEPALIVE_INTERVAL)), reads: 0, is_asked: false }
    }

    /// Ready when the client is gone. Costs a look at the timer as long as that is not over. `reads` tells how often something was read.
    fn poll(&mut self, context: &mut Context<'_>, reads: impl Fn() -> u64) -> Poll<io::Error> {
        while self.timer.as_mut().poll(context).is_ready() {
            let reads = reads();
            let is_heard = std::mem::replace(&mut self.reads, reads) != reads;
            if self.is_asked && !is_heard {
                return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "the client does not answer a ping"));
            }
            self.is_asked = !is_heard && self.ask();
            let next = if self.is_asked { KEEPALIVE_TIMEOUT } else { KEEPALIVE_INTERVAL };
            self.timer.as_mut().reset(Instant::now() + next);
        }
        Poll::Pending
    }

    /// False if there is no connection to ask on yet.
    fn ask(&mut self) -> bool {
        let Some(ping) = &mut self.ping else { return false };
        // The answer to the one before, which has come unseen.
        let _ = ping.poll_pong(&mut Context::from_waker(Waker::noop()));
        // Fails if one is still on its way, which asks as well.
        let _ = ping.send_ping(Ping::opaque());
        true
    }
}

/// The requests of a connection, for who looks whether it is idle.
#[derive(Default)]
pub(crate) struct Requests {
    open: AtomicUsize,
    begun: AtomicU64,
}

impl Requests {
    /// Ends when the first one does not come in time, or when there was none for `idle`, or up to twice that.
    pub(crate) async fn are_none(&self, first: Duration, idle: Duration) {
        tokio::time::sleep(first).await;
        let mut begun_before = 0;
        loop {
            let begun = self.begun.load(Ordering::Relaxed);
            if self.open.load(Ordering::Relaxed) == 0 && begun == begun_before {
                return;
            }
            begun_before = begun;
            tokio::time::sleep(idle).await;
        }
    }
}

/// A request, from its head to the end of its answer.
enum Answer<S: Service> {
    /// The head of the answer is not known yet. Boxed: what that takes is given back before the answer streams.
    Serving(Pin<Box<dyn Future<Output = Response<S::Body>> + Send>>, SendResponse<Bytes>),
    Sending(Sending<S>),
    Over,
}

impl<S: Service> Answer<S> {
    fn new(service: Arc<S>, request: Request<RecvStream>, respond: SendResponse<Bytes>) -> Self {
        Self::Serving(Box::pin(service.serve(request.map(Inbound::Http2))), respond)
    }

    /// Ready when there is nothing more to do: all was handed over, or nobody wants it any more.
    fn advance(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let Self::Serving(serves, respond) = self {
            if respond.poll_reset(&mut Context::from_waker(Waker::noop())).is_ready() {
                return Poll::Ready(());
            }
            let Poll::Ready(response) = serves.as_mut().poll(context) else {
                return respond.poll_reset(context).map(drop);
            };
            let (head, body) = prepared(response).into_parts();
            let is_all = body.is_end_stream();
            match respond.send_response(Response::from_parts(head, ()), is_all) {
                Ok(sink) if !is_all => *self = Self::Sending(Sending { body, sink, held: None }),
                _ => return Poll::Ready(()),
            }
        }
        match self {
            Self::Sending(sending) => sending.advance(context),
            _ => Poll::Ready(()),
        }
    }
}

impl<S: Service> Future for Answer<S> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let polled = catch_unwind(AssertUnwindSafe(|| this.advance(context)));
        if matches!(polled, Ok(Poll::Pending)) {
            return Poll::Pending;
        }
        // After a panic too, of which the hook has told: the stream is reset, and its connection goes on. What broke may break what is dropped.
        let _ = catch_unwind(AssertUnwindSafe(|| *this = Self::Over));
        Poll::Ready(())
    }
}

/// The body of an answer on its way to the client.
struct Sending<S: Service> {
    body: S::Body,
    sink: SendStream<Bytes>,
    /// A piece for which there was no room, and whether it is the last one.
    held: Option<(Bytes, bool)>,
}

impl<S: Service> Sending<S> {
    /// Moves the body on, a piece at a time: the next one is asked for when the one before is handed over. Ready at the end.
    fn advance(&mut self, context: &mut Context<'_>) -> Poll<()> {
        // The waker that is still there from before would have this very answer woken as soon as it asks for room.
        if self.sink.poll_reset(&mut Context::from_waker(Waker::noop())).is_ready() {
            return Poll::Ready(());
        }
        loop {
            let (piece, is_last) = match self.held.take() {
                Some(held) => held,
                None => match ready!(self.next(context)) {
                    Some(next) => next,
                    None => return Poll::Ready(()),
                },
            };
            if !piece.is_empty() && self.sink.capacity() == 0 {
                // Any room at all: HTTP/2 gets whole pieces, and sends of them what fits.
                self.sink.reserve_capacity(1);
                match self.sink.poll_capacity(context) {
                    Poll::Ready(Some(Ok(_))) => {}
                    Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(()),
                    Poll::Pending => {
                        self.held = Some((piece, is_last));
                        return Poll::Pending;
                    }
                }
            }
            if self.sink.send_data(piece, is_last).is_err() || is_last {
                return Poll::Ready(());
            }
        }
    }

    /// The next piece, and whether it is the last one. `None` if the answer has ended otherwise.
    fn next(&mut self, context: &mut Context<'_>) -> Poll<Option<(Bytes, bool)>> {
        loop {
            let frame = match Pin::new(&mut self.body).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => frame,
                Poll::Ready(Some(Err(_))) => {
                    self.sink.send_reset(Reason::INTERNAL_ERROR);
                    return Poll::Ready(None);
                }
                Poll::Ready(None) => return Poll::Ready(Some((Bytes::new(), true))),
                Poll::Pending => {
                    if S::unread_timeout(&self.body).is_some() {
                        // It is not the client that is waited for.
                        watchdog::expect(Deadlines::default());
                    }
                    return self.sink.poll_reset(context).map(|_| None);
                }
            };
            match frame.into_data() {
                Ok(piece) => {
                    let is_last = self.body.is_end_stream();
                    if !piece.is_empty() || is_last {
                        if let Some(unread) = S::unread_timeout(&self.body) {
                            watchdog::expect(Deadlines { unread: Some(unread), end: None });
                        }
                        return Poll::Ready(Some((piece, is_last)));
                    }
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        // Fails only when nobody is there to hear of it.
                        let _ = self.sink.send_trailers(trailers);
                    }
                    return Poll::Ready(None);
                }
            }
        }
    }
}

/// The head as it goes out.
fn prepared<B: http_body::Body>(mut response: Response<B>) -> Response<B> {
    let bytes = response.body().size_hint().exact().filter(|bytes| *bytes > 0);
    let headers = response.headers_mut();
    if let Some(bytes) = bytes
        && !headers.contains_key(CONTENT_LENGTH)
    {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(bytes));
    }
    // A product's own answers have none; those of kube-apiservers do.
    if !headers.contains_key(DATE)
        && let Ok(now) = HeaderValue::try_from(httpdate::fmt_http_date(SystemTime::now()))
    {
        headers.insert(DATE, now);
    }
    response
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    /// How long a client is kept that sends something, but no answer to a ping, at these seconds.
    async fn kept(heard: &[u64]) -> u64 {
        let (client, server) = tokio::io::duplex(1 << 16);
        let (server, client) = tokio::join!(h2::server::handshake(server), h2::client::handshake(client));
        let (mut h2, _client): (h2::server::Connection<_, Bytes>, _) = (server.unwrap(), client.unwrap());
        let mut keepalive = Keepalive::new();
        keepalive.ping = h2.ping_pong();
        let begun = Instant::now();
        let reads = || heard.iter().filter(|second| **second <= begun.elapsed().as_secs()).count() as u64;
        poll_fn(|context| keepalive.poll(context, reads)).await;
        begun.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_of_which_nothing_is_heard_is_asked_and_then_let_go() {
        assert_eq!(kept(&[]).await, 50);
        assert_eq!(kept(&[10, 40, 70]).await, 140);
        // What it sends while it is asked counts as well, but the ping that it has not answered does not keep it for ever.
        assert_eq!(kept(&[35]).await, 100);
    }
}
