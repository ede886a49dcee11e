//! One HTTP/2 connection to an endpoint: who may use it, the task that drives it, and how it is known to be alive.
//!
//! Invariant: a connection ends by itself only when no stream of it is left, or when it is proven dead. To drain it
//! means to give it no further streams; the last [`Lease`] that goes lets it close with a GOAWAY.
//!
//! A request needs a free stream first (a *reservation*, counted in `state`), then gets h2's handle. All of that is
//! lock-free but for h2's own mutex and one uncontended lock around the handle.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Ping, PingPong, RecvStream};
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::time::Sleep;

use crate::endpoint::Endpoint;
use crate::error::ExchangeError;
use crate::health::Event;
use crate::limits::{CALM_TICK, STREAMS_PER_CONNECTION_MAX, TIMER_LATE_MAX};
use crate::settings::{Class, PoolSettings};
use crate::transport::{Http2, Progress, Transport};
use crate::wakers::Wakers;
use crate::wire::Wire;

/// Set in `Connection::state`: no new streams, ever again.
const CLOSED: u32 = 1 << 31;
/// Set in `Connection::state`: no new streams while the endpoint gives no sign of life.
const SUSPECT: u32 = 1 << 30;
/// The part of `Connection::state` that counts streams.
const STREAMS: u32 = SUSPECT - 1;

/// What the pool, the driver and the users of a connection share.
pub(crate) struct Connection {
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) class: Class,
    /// Streams in flight and flags.
    state: AtomicU32,
    /// Streams that may be in flight.
    budget: AtomicU32,
    /// Requests that wait for their response's headers.
    waiting: AtomicU32,
    /// Streams since the beginning.
    opened: AtomicU64,
    /// h2's handle to open streams. `None` once the connection takes none; h2 ends it when all handles are gone.
    sender: Mutex<Option<SendRequest<Bytes>>>,
    progress: Arc<Progress>,
    /// Who is to be woken when it hangs.
    hang_watch: Mutex<Wakers>,
}

impl Connection {
    /// The connection, and the future that must be spawned to move its bytes.
    pub(crate) fn new(
        dialed: Http2,
        endpoint: Arc<Endpoint>,
        class: Class,
        pool: &PoolSettings,
    ) -> (Arc<Self>, Driver) {
        let Http2 { sender, mut connection, wire, progress, streams_max } = dialed;
        let shared = Arc::new(Self {
            endpoint,
            class,
            state: AtomicU32::new(0),
            budget: AtomicU32::new(budget(pool, streams_max)),
            waiting: AtomicU32::new(0),
            opened: AtomicU64::new(0),
            sender: Mutex::new(Some(sender)),
            progress,
            hang_watch: Mutex::default(),
        });
        let ping = connection.ping_pong();
        let driver = Driver::new(connection, wire, ping, shared.clone(), pool.clone());
        (shared, driver)
    }

    /// Streams that this connection may have in flight at once.
    pub(crate) fn budget(&self) -> u32 {
        self.budget.load(Ordering::Relaxed)
    }

    /// Streams in flight, if one more is allowed.
    pub(crate) fn room(&self) -> Option<u32> {
        let state = self.state.load(Ordering::SeqCst);
        (state < self.budget()).then_some(state)
    }

    /// Takes one stream of the budget. [`Lease::of_reserved`] gives it back.
    pub(crate) fn try_reserve(&self) -> bool {
        // Any flag makes the state larger than any budget.
        let budget = self.budget();
        self.state
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |state| (state < budget).then_some(state + 1))
            .is_ok()
    }

    pub(crate) fn in_flight(&self) -> u32 {
        self.state.load(Ordering::Relaxed) & STREAMS
    }

    fn is_suspect(&self) -> bool {
        self.state.load(Ordering::SeqCst) & SUSPECT != 0
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state.load(Ordering::SeqCst) & CLOSED != 0
    }

    fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// No new streams from here on; ends when the last one has. Whoever calls this takes it out of the pool.
    pub(crate) fn drain(&self) {
        let before = self.state.fetch_or(CLOSED, Ordering::SeqCst);
        if before & STREAMS == 0 {
            self.hang_up();
        }
    }

    /// Like [`Connection::drain`], but only if there is no stream. True if the connection is closed.
    pub(crate) fn close_if_idle(&self) -> bool {
        let closed = self.state.compare_exchange(0, CLOSED, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        if closed {
            self.hang_up();
        }
        closed
    }

    /// Lets go of h2's handle. h2 says GOAWAY and ends the connection once its last stream is gone.
    fn hang_up(&self) {
        let sender = self.sender.lock().take();
        drop(sender);
    }

    /// A handle to open one stream with. `None`: the endpoint takes no more on this connection, which is then draining.
    ///
    /// Each request has a clone of its own. A shared handle would turn down every request for as long as one stream of
    /// it waits to be opened, which happens when many streams are cut and replaced at once.
    fn handle(&self) -> Option<SendRequest<Bytes>> {
        let mut sender = self.sender.lock().as_ref()?.clone();
        // A clone waits for nothing, so this says "ready" or why there will be no further stream.
        let mut nobody = Context::from_waker(Waker::noop());
        match sender.poll_ready(&mut nobody) {
            Poll::Ready(Ok(())) if self.opened.fetch_add(1, Ordering::Relaxed) < STREAMS_PER_CONNECTION_MAX => {
                Some(sender)
            }
            _ => None,
        }
    }

    /// True if the peer has said that it is going away.
    fn is_going_away(&self) -> bool {
        let mut nobody = Context::from_waker(Waker::noop());
        let mut sender = self.sender.lock();
        let state = sender.as_mut().map(|sender| sender.poll_ready(&mut nobody));
        matches!(state, Some(Poll::Ready(Err(error))) if error.is_go_away() && error.is_remote())
    }

    fn set_suspect(&self) {
        self.state.fetch_or(SUSPECT, Ordering::SeqCst);
        for waker in self.hang_watch.lock().take_all() {
            waker.wake();
        }
    }

    fn clear_suspect(&self) {
        self.state.fetch_and(!SUSPECT, Ordering::SeqCst);
    }
}

fn budget(pool: &PoolSettings, allowed_by_peer: usize) -> u32 {
    pool.streams_max.min(u32::try_from(allowed_by_peer).unwrap_or(u32::MAX)).min(STREAMS)
}

/// A stream in flight. While it exists, its connection is kept, and the stream counts as load. It must live as long as
/// the streams of its [`Exchange`] do.
pub struct Lease {
    connection: Arc<Connection>,
}

impl Lease {
    /// For a connection on which [`Connection::try_reserve`] was true.
    pub(crate) fn of_reserved(connection: Arc<Connection>) -> Self {
        connection.endpoint.load().begin(connection.class);
        Self { connection }
    }

    /// The endpoint that serves the stream.
    #[must_use]
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.connection.endpoint
    }

    /// Waits for the beginning of an answer: all of it if it is not longer than `bytes_max`, which must be less than a
    /// stream's window, and otherwise at least so much. Whoever hands the bytes on gives their room back to the stream.
    ///
    /// Fails as a [`Response`] does that is abandoned when its endpoint hangs: nobody has seen anything of the answer, so
    /// the request may be sent again if it may be repeated at all, and if `elsewhere` says that there is where.
    pub async fn beginning(
        &self,
        stream: &mut RecvStream,
        bytes_max: usize,
        elsewhere: impl Fn() -> bool,
    ) -> Result<Pieces, ExchangeError> {
        let connection = &self.connection;
        let mut pieces = Pieces::new();
        let mut bytes = 0;
        let mut waiting = None;
        std::future::poll_fn(|context| {
            while bytes < bytes_max && !stream.is_end_stream() {
                match stream.poll_data(context) {
                    Poll::Ready(Some(Ok(piece))) => {
                        bytes += piece.len();
                        pieces.push(piece);
                    }
                    Poll::Ready(Some(Err(error))) => {
                        return Poll::Ready(Err(ExchangeError::of_stream(
                            connection.endpoint.url().clone(),
                            error,
                            false,
                        )));
                    }
                    // Trailers, which stay where they are.
                    Poll::Ready(None) => break,
                    Poll::Pending => {
                        let waiting = waiting.get_or_insert_with(|| Waiting::begin(connection.clone()));
                        return waiting.poll_hung(context, &elsewhere).map(Err);
                    }
                }
            }
            Poll::Ready(Ok(()))
        })
        .await?;
        Ok(pieces)
    }

    /// Takes the request and sends its headers. `None`, and the request stays, if the connection is going away; an
    /// error if h2 refuses the request.
    pub(crate) fn send(
        self,
        request: &mut Option<http::Request<()>>,
        end_of_stream: bool,
    ) -> Option<Result<Exchange, h2::Error>> {
        let Some(mut sender) = self.connection.handle() else {
            self.connection.endpoint.pool(self.connection.class).forget(&self.connection);
            self.connection.drain();
            return None;
        };
        // Both before the request is queued, so that its being unwritten is certain and its wait can't be missed.
        let writes_before = self.connection.progress.writes();
        let waiting = Waiting::begin(self.connection.clone());
        let sent = sender.send_request(request.take()?, end_of_stream);
        Some(sent.map(|(response, body)| Exchange {
            response: Response { inner: response, waiting: Some(waiting), writes_before, elsewhere: None },
            body,
            lease: self,
        }))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let connection = &self.connection;
        connection.endpoint.load().end(connection.class);
        let before = connection.state.fetch_sub(1, Ordering::SeqCst);
        if before & CLOSED == 0 {
            connection.endpoint.pool(connection.class).stream_freed();
        } else if before & STREAMS == 1 {
            connection.hang_up();
        }
    }
}

/// Bytes of a body, as they came.
pub type Pieces = SmallVec<[Bytes; 2]>;

/// A request on its way.
pub struct Exchange {
    /// The response's headers, and its body to read.
    pub response: Response,
    /// The request's body to write; to be dropped if the request had none.
    pub body: h2::SendStream<Bytes>,
    /// To be kept until both bodies are done.
    pub lease: Lease,
}

/// The time from a request to its response's headers.
struct Waiting {
    connection: Arc<Connection>,
    since: Instant,
    /// Place in the connection's `hang_watch`.
    place: Option<usize>,
}

impl Waiting {
    fn begin(connection: Arc<Connection>) -> Self {
        connection.waiting.fetch_add(1, Ordering::Relaxed);
        Self { connection, since: Instant::now(), place: None }
    }

    /// Ready when the endpoint is known to hang, and there is another one.
    fn poll_hung(&mut self, context: &mut Context<'_>, elsewhere: impl Fn() -> bool) -> Poll<ExchangeError> {
        let connection = &self.connection;
        self.place = Some(connection.hang_watch.lock().enter(self.place, context.waker()));
        // After the waker is in place: a hang that is found now is seen here, a later one wakes us.
        if connection.is_suspect() && elsewhere() {
            Poll::Ready(ExchangeError::hung(connection.endpoint.url().clone()))
        } else {
            Poll::Pending
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.connection.waiting.fetch_sub(1, Ordering::Relaxed);
        if let Some(place) = self.place {
            self.connection.hang_watch.lock().leave(place);
        }
    }
}

/// The future of a response.
#[must_use = "a response must be waited for"]
pub struct Response<F = fn() -> bool> {
    inner: ResponseFuture,
    waiting: Option<Waiting>,
    writes_before: u64,
    /// Whether the request can be sent to another endpoint. `None`: it may not be repeated.
    elsewhere: Option<F>,
}

impl Response {
    /// Fails with [`crate::Failure::Hung`] as soon as the endpoint is known to hang, instead of when its connection is
    /// cut, if `elsewhere` says then that there is another endpoint to send the request to. Where there is none, an
    /// endpoint that may go on is better than an error. `None` is for requests that may not be repeated.
    pub fn abandon_when_hung<F: Fn() -> bool>(self, elsewhere: Option<F>) -> Response<F> {
        let Self { inner, waiting, writes_before, elsewhere: _ } = self;
        Response { inner, waiting, writes_before, elsewhere }
    }
}

impl<F: Fn() -> bool + Unpin> Future for Response<F> {
    type Output = Result<http::Response<RecvStream>, ExchangeError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll(context);
        let Some(waiting) = &mut this.waiting else {
            unreachable!("a response is not polled after it has come");
        };
        let result = match polled {
            Poll::Ready(Ok(response)) => {
                if waiting.connection.class == Class::Short {
                    waiting.connection.endpoint.latency().record(waiting.since, Instant::now());
                }
                Ok(response)
            }
            Poll::Ready(Err(error)) => {
                let unwritten = waiting.connection.progress.writes() == this.writes_before;
                Err(ExchangeError::of_stream(waiting.connection.endpoint.url().clone(), error, unwritten))
            }
            Poll::Pending => {
                let Some(elsewhere) = &this.elsewhere else { return Poll::Pending };
                match waiting.poll_hung(context, elsewhere) {
                    Poll::Ready(error) => Err(error),
                    Poll::Pending => return Poll::Pending,
                }
            }
        };
        this.waiting = None;
        Poll::Ready(result)
    }
}

/// The task of a connection: moves its bytes, pings, finds out that it hangs, closes it when idle.
///
/// The timer costs nothing while frames flow: it is set anew only when it fires, and when the first request begins to
/// wait on a connection that nobody waited on.
pub(crate) struct Driver {
    connection: h2::client::Connection<Wire<Transport>, Bytes>,
    wire: Wire<Transport>,
    ping: Option<PingPong>,
    shared: Arc<Connection>,
    pool: PoolSettings,
    timer: Pin<Box<Sleep>>,
    timer_at: Instant,
    /// True: the timer is set as for a request that waits.
    alert: bool,
    /// `Progress::reads` when the timer was last set, or when the ping was sent.
    reads_seen: u64,
    /// When something was last known to have been read; as exact as the timer.
    read_at: Instant,
    /// The ping that is not answered yet.
    ping_sent_at: Option<Instant>,
    idle_since: Option<Instant>,
}

/// How a connection ended.
enum End {
    /// As we wanted.
    Closed,
    /// The peer said that it would go, or went while nothing was in flight. Whether it is still there, a probe finds
    /// out.
    Quiet,
    /// Otherwise, with the reason.
    Lost(String),
}

impl Driver {
    fn new(
        connection: h2::client::Connection<Wire<Transport>, Bytes>,
        wire: Wire<Transport>,
        ping: Option<PingPong>,
        shared: Arc<Connection>,
        pool: PoolSettings,
    ) -> Self {
        let now = Instant::now();
        let timer_at = now + CALM_TICK;
        Self {
            connection,
            wire,
            ping,
            shared,
            pool,
            timer: Box::pin(tokio::time::sleep_until(timer_at.into())),
            timer_at,
            alert: false,
            reads_seen: 0,
            read_at: now,
            ping_sent_at: None,
            idle_since: Some(now),
        }
    }

    fn set_timer(&mut self, at: Instant) {
        self.timer_at = at;
        self.timer.as_mut().reset(at.into());
    }

    /// The timer has fired. `Some` ends the connection.
    fn tick(&mut self, now: Instant) -> Option<End> {
        let late = now.saturating_duration_since(self.timer_at) > TIMER_LATE_MAX;
        let reads = self.shared.progress.reads();
        if reads != self.reads_seen {
            self.alive(now, reads);
        } else if late {
            // This process stood still: whatever was waited for, it had no chance to be seen.
            self.read_at = now;
            self.ping_sent_at = self.ping_sent_at.map(|_| now);
        } else if let Some(sent_at) = self.ping_sent_at {
            let silence = now.saturating_duration_since(sent_at);
            if silence >= self.pool.ping_timeout && !self.shared.is_suspect() {
                self.suspect();
            }
            let nobody_left = self.shared.in_flight() == 0;
            if silence >= self.pool.cut_timeout || (nobody_left && self.shared.is_suspect()) {
                let silence_ms = silence.as_millis();
                return Some(End::Lost(format!("no answer to a ping for {silence_ms} ms")));
            }
        }
        let budget = budget(&self.pool, self.connection.max_concurrent_send_streams());
        if self.shared.budget.swap(budget, Ordering::Relaxed) < budget {
            self.shared.endpoint.pool(self.shared.class).stream_freed();
        }
        if !self.shared.is_closed() && self.shared.is_going_away() {
            self.shared.endpoint.pool(self.shared.class).forget(&self.shared);
            self.shared.drain();
        }
        self.plan(now);
        None
    }

    /// Frames have come since the last look.
    fn alive(&mut self, now: Instant, reads: u64) {
        self.reads_seen = reads;
        self.read_at = now;
        self.idle_since = None;
        if self.ping_sent_at.is_some() {
            // The answer may be behind much data. Each look that finds data counts as an answer.
            self.ping_sent_at = Some(now);
        }
        if self.shared.is_suspect() {
            self.shared.clear_suspect();
            self.shared.endpoint.event(Event::StallOver);
            self.shared.endpoint.pool(self.shared.class).stream_freed();
        }
    }

    fn suspect(&mut self) {
        self.shared.set_suspect();
        self.shared.endpoint.event(Event::Hung);
        // Who waits for a stream of it must not wait on.
        let pool = self.shared.endpoint.pool(self.shared.class);
        pool.dial_if_needed(&self.shared.endpoint);
    }

    /// Decides what is due next, and sets the timer for it.
    fn plan(&mut self, now: Instant) {
        let in_flight = self.shared.in_flight();
        let waited_for = self.shared.waiting() > 0;
        self.idle_since = if in_flight == 0 { self.idle_since.or(Some(now)) } else { None };
        let silence = now.saturating_duration_since(self.read_at);
        let quiet_max = if waited_for { self.pool.ping_after } else { self.pool.keepalive_interval };
        if self.ping_sent_at.is_none() && in_flight > 0 && silence >= quiet_max {
            self.send_ping(now);
        }
        self.alert = waited_for || self.ping_sent_at.is_some();
        let next = match (self.ping_sent_at, self.idle_since) {
            (Some(sent_at), _) if !self.shared.is_suspect() => sent_at + self.pool.ping_timeout,
            (Some(_), _) => now + self.pool.ping_after,
            (None, _) if waited_for => now + self.pool.ping_after,
            (None, Some(idle_since)) => {
                let close_at = idle_since + self.pool.idle_timeout;
                if close_at <= now {
                    self.shared.endpoint.pool(self.shared.class).close_if_surplus(&self.shared);
                    now + self.pool.idle_timeout.max(CALM_TICK)
                } else {
                    close_at
                }
            }
            (None, None) => (self.read_at + self.pool.keepalive_interval).max(now + CALM_TICK),
        };
        // Never at once again: what is due already has just been done.
        self.set_timer(next.max(now + Duration::from_millis(1)));
    }

    fn send_ping(&mut self, now: Instant) {
        let sent = self.ping.as_mut().is_some_and(|ping| ping.send_ping(Ping::opaque()).is_ok());
        if sent {
            self.ping_sent_at = Some(now);
            self.reads_seen = self.shared.progress.reads();
        }
    }

    fn poll_pong(&mut self, context: &mut Context<'_>) {
        if self.ping_sent_at.is_none() {
            return;
        }
        let pong = self.ping.as_mut().map(|ping| ping.poll_pong(context));
        if let Some(Poll::Ready(Ok(_))) = pong {
            self.alive(Instant::now(), self.shared.progress.reads());
            self.ping_sent_at = None;
        }
    }

    /// What the end of h2's connection means, or of what it writes to.
    fn end_of(&self, result: Result<(), impl std::fmt::Display>) -> End {
        let in_flight = self.shared.in_flight();
        match result {
            _ if in_flight == 0 && self.shared.is_closed() => End::Closed,
            _ if in_flight == 0 || self.shared.is_going_away() => End::Quiet,
            Ok(()) => End::Lost("the endpoint closed the connection".to_owned()),
            Err(error) => End::Lost(error.to_string()),
        }
    }

    fn finish(&mut self, end: End) {
        let endpoint = &self.shared.endpoint;
        self.shared.state.fetch_or(CLOSED, Ordering::SeqCst);
        let pool = endpoint.pool(self.shared.class);
        pool.forget(&self.shared);
        self.shared.hang_up();
        match end {
            End::Closed => {}
            End::Quiet => endpoint.probe_now(),
            End::Lost(reason) => endpoint.event(Event::Lost(&reason)),
        }
        pool.dial_if_needed(endpoint);
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        // Reads whatever there is before anything is judged.
        let end = match Pin::new(&mut this.connection).poll(context) {
            Poll::Ready(result) => Some(this.end_of(result)),
            Poll::Pending => match this.wire.end_turn(context) {
                Poll::Ready(Err(error)) => Some(this.end_of(Err(error))),
                _ => None,
            },
        };
        if let Some(end) = end {
            this.finish(end);
            return Poll::Ready(());
        }
        this.poll_pong(context);
        if !this.alert && this.shared.waiting() > 0 {
            // A request has come to a connection that nobody waited on.
            let now = Instant::now();
            this.alert = true;
            this.reads_seen = this.shared.progress.reads();
            this.read_at = now;
            this.set_timer(now + this.pool.ping_after);
        }
        while this.timer.as_mut().poll(context).is_ready() {
            if let Some(end) = this.tick(Instant::now()) {
                this.finish(end);
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }
}

impl Drop for Driver {
    /// Also when the runtime ends: nobody may wait for a stream of a connection that is gone.
    fn drop(&mut self) {
        self.shared.state.fetch_or(CLOSED, Ordering::SeqCst);
        self.shared.endpoint.pool(self.shared.class).forget(&self.shared);
        self.shared.hang_up();
    }
}
