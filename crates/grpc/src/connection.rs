//! The task of one HTTP/2 connection.
//!
//! Job: turn by turn, send what handlers left in the inbox, let the HTTP/2 layer read and write, start the calls that
//! arrived, and keep time (deadlines, keepalive, drain).
//!
//! Invariant: only this task starts responses and sends data, and a call's slot is removed the moment its end is
//! queued; what comes for it later finds no slot and is dropped.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Ping, PingPong, Reason, RecvStream, SendStream};
use http::header::{CONTENT_TYPE, HeaderMap};
use http::{Method, Request, Response, StatusCode, request};
use tokio::time::Sleep;

use crate::call::timeout;
use crate::deframer::Deframer;
use crate::inbox::{Event, HeldRequest, Shared, SlotWaker};
use crate::limits::{CALLS_PER_TURN_MAX, QUOTED_BYTES_MAX, RELEASE_EARLY_BYTES_MIN, SHRINK_INTERVAL, TURNS_MAX};
use crate::reply::{Account, Payload};
use crate::slab::{Slab, SlotId};
use crate::stall::{self, Followers, Owner, Sending, Stall};
use crate::stats::Tally;
use crate::status::GRPC_CONTENT_TYPE;
use crate::stream::{StreamShared, cut_short};
use crate::wire::Wire;
use crate::{
    CallContext, Code, Dispatch, HttpFuture, MethodId, Peer, Reply, RequestStream, ResponseSink, Route, ServerOptions,
    Stats, Status, UnaryReply,
};

type Responder = SendResponse<Payload>;

/// What all connections of a server have in common.
pub(crate) struct Common {
    pub(crate) dispatch: Arc<dyn Dispatch>,
    pub(crate) options: ServerOptions,
    pub(crate) stats: Arc<Stats>,
    /// Header block of every response that has a message; cloned, never built.
    pub(crate) ok_headers: HeaderMap,
    /// Trailers of every call that went well.
    pub(crate) ok_trailers: HeaderMap,
}

impl Common {
    pub(crate) fn new(dispatch: Arc<dyn Dispatch>, options: ServerOptions, stats: Arc<Stats>) -> Self {
        let mut ok_headers = HeaderMap::with_capacity(1);
        ok_headers.insert(CONTENT_TYPE, GRPC_CONTENT_TYPE);
        Self { dispatch, options, stats, ok_headers, ok_trailers: Status::ok().trailers() }
    }
}

/// A call that has a slot.
enum Call {
    /// Unary; its message has not arrived as a whole.
    Reading(Box<Reading>),
    /// Unary; its handler has it.
    Unary {
        method: MethodId,
        responder: Responder,
        deadline: Option<Instant>,
    },
    Stream {
        method: MethodId,
        answer: Answer,
        shared: Arc<StreamShared>,
        deadline: Option<Instant>,
        waker: Waker,
        /// Of its guarded messages, if it has any.
        sending: Option<Arc<Sending>>,
    },
    Http(Box<HttpCall>),
}

impl Call {
    fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Reading(reading) => reading.context.deadline,
            Self::Unary { deadline, .. } | Self::Stream { deadline, .. } => *deadline,
            Self::Http(_) => None,
        }
    }

    /// The method of a gRPC call.
    fn method(&self) -> Option<MethodId> {
        match self {
            Self::Reading(reading) => Some(reading.method),
            Self::Unary { method, .. } | Self::Stream { method, .. } => Some(*method),
            Self::Http(_) => None,
        }
    }
}

struct Reading {
    method: MethodId,
    context: CallContext,
    responder: Responder,
    body: RecvStream,
    deframer: Deframer,
    held: HeldRequest,
    waker: Waker,
}

/// The sending half of a stream, before and after the response headers.
enum Answer {
    Waiting(Responder),
    Started(SendStream<Payload>),
}

struct HttpCall {
    responder: Responder,
    /// The response must have no body, whatever the handler says.
    is_head: bool,
    waker: Waker,
    state: HttpState,
}

enum HttpState {
    Collecting { parts: Option<Box<request::Parts>>, body: RecvStream, collected: BytesMut, held: HeldRequest },
    Running(HttpFuture),
}

/// Whether the message of a unary call is there.
enum Progress {
    Message(Bytes),
    Pending,
    Failed(Status),
    /// The client reset the call: nobody waits for an answer.
    Gone,
}

enum Step {
    /// A call was started, there may be more.
    Call,
    /// Nothing is left to do until something happens.
    Idle,
    /// The connection is over.
    Over,
}

enum Keepalive {
    /// Looks now and then whether the client was heard.
    Listening,
    /// A ping is under way.
    Pinged,
}

pub(crate) struct Connection {
    h2: h2::server::Connection<Wire, Payload>,
    wire: Wire,
    shared: Arc<Shared>,
    /// `shared` as a waker.
    waker: Waker,
    common: Arc<Common>,
    peer: Arc<Peer>,
    calls: Slab<Call>,
    /// Reused from turn to turn.
    events: Vec<Event>,
    timer: Pin<Box<Sleep>>,
    timer_at: Instant,
    /// No later than the earliest deadline of a call.
    deadline_next: Option<Instant>,
    ping: Option<PingPong>,
    keepalive: Keepalive,
    keepalive_at: Instant,
    bytes_in_heard: u64,
    /// Something has happened since `shrink_at` was set.
    is_used: bool,
    /// When to look whether the connection has become quiet; `None` if it was, and since then.
    shrink_at: Option<Instant>,
    drain_until: Option<Instant>,
    /// Calls with replies that hold something until they have left.
    followers: Followers,
    tally: Tally,
    bytes_told: (u64, u64),
}

impl Connection {
    pub(crate) fn new(
        mut h2: h2::server::Connection<Wire, Payload>,
        wire: Wire,
        shared: Arc<Shared>,
        common: Arc<Common>,
        peer: Arc<Peer>,
    ) -> Self {
        let keepalive_at = Instant::now() + common.options.keepalive_interval;
        let mut timer = Box::pin(tokio::time::sleep_until(keepalive_at.into()));
        let waker = Waker::from(shared.clone());
        let _ = timer.as_mut().poll(&mut Context::from_waker(&waker));
        Self {
            ping: h2.ping_pong(),
            h2,
            wire,
            waker,
            shared,
            common,
            peer,
            calls: Slab::new(),
            events: Vec::new(),
            timer,
            timer_at: keepalive_at,
            deadline_next: None,
            keepalive: Keepalive::Listening,
            keepalive_at,
            bytes_in_heard: 0,
            is_used: false,
            shrink_at: None,
            drain_until: None,
            followers: Followers::default(),
            tally: Tally::default(),
            bytes_told: (0, 0),
        }
    }

    /// One turn: a number of steps of the inbox and the HTTP/2 layer, then one write. `Ready` when the connection is
    /// over.
    fn turn(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut step = Step::Call;
        for _ in 0..CALLS_PER_TURN_MAX {
            self.empty_inbox();
            step = self.step(context);
            if !matches!(step, Step::Call) {
                break;
            }
        }
        if matches!(step, Step::Call) {
            // There may be more: look again before sleeping.
            self.waker.wake_by_ref();
        }
        let broken = matches!(self.wire.flush(context), Poll::Ready(Err(_)));
        if broken || matches!(step, Step::Over) { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Handles what was left for this task. What is queued by that goes out with the next step.
    fn empty_inbox(&mut self) {
        self.shared.take(&mut self.events);
        if !self.events.is_empty() {
            self.is_used = true;
            let mut events = std::mem::take(&mut self.events);
            for event in events.drain(..) {
                self.handle(event);
            }
            self.events = events;
            // Queueing frames has woken this very task, which is about to look at them anyway.
            self.shared.forget_wakes();
        }
        if self.drain_until.is_none() && self.shared.is_draining() {
            self.begin_drain();
        }
    }

    /// Lets the HTTP/2 layer read and write, and starts a call if one has arrived.
    fn step(&mut self, context: &mut Context<'_>) -> Step {
        if self.shared.pause_if_full() || self.calls.len() >= self.common.options.calls_per_connection_max {
            return if self.h2.poll_closed(context).is_ready() { Step::Over } else { Step::Idle };
        }
        match self.h2.poll_accept(context) {
            Poll::Pending => Step::Idle,
            Poll::Ready(Some(Ok((request, responder)))) => {
                self.arrive(request, responder);
                Step::Call
            }
            Poll::Ready(Some(Err(error))) => {
                tracing::debug!(peer = %self.peer.address(), %error, "connection failed");
                Step::Over
            }
            Poll::Ready(None) => Step::Over,
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Reply(slot, result) => {
                if matches!(self.calls.get_mut(slot), Some(Call::Unary { .. }))
                    && let Some(Call::Unary { method, responder, .. }) = self.calls.remove(slot)
                {
                    self.ended(method, result.as_ref().map_or_else(Status::code, |_| Code::Ok));
                    self.answer(responder, result);
                }
            }
            Event::Start(slot) => {
                if let Some(Call::Stream { answer, shared, .. }) = self.calls.get_mut(slot) {
                    if !start(answer, &self.common.ok_headers) {
                        shared.close();
                    }
                    self.watch_reset(slot);
                }
            }
            Event::Message(slot, reply) => self.stream_message(slot, reply),
            Event::Finish(slot, status) => self.stream_finish(slot, &status),
            Event::Wake(slot) => match self.calls.get_mut(slot) {
                Some(Call::Reading(_)) => self.read_on(slot),
                Some(Call::Stream { .. }) => self.watch_reset(slot),
                Some(Call::Http(_)) => self.http_on(slot),
                Some(Call::Unary { .. }) | None => {}
            },
        }
    }

    /// Begins a call, or answers it at once when it can't be one.
    fn arrive(&mut self, request: Request<RecvStream>, responder: Responder) {
        self.is_used = true;
        let (parts, body) = request.into_parts();
        if !is_grpc(&parts.headers) {
            return self.http_arrive(parts, body, responder);
        }
        if parts.method != Method::POST {
            let mut response = Response::new(());
            *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
            return end_with(responder, response);
        }
        let deadline = match timeout(&parts.headers) {
            Ok(None) => None,
            Ok(Some(timeout)) => {
                let deadline = Instant::now().checked_add(timeout);
                if let Some(deadline) = deadline {
                    self.deadline_next = Some(self.deadline_next.map_or(deadline, |next| next.min(deadline)));
                }
                deadline
            }
            Err(()) => {
                return refuse(responder, &Status::internal("malformed grpc-timeout"));
            }
        };
        let context = CallContext { headers: parts.headers, uri: parts.uri, peer: self.peer.clone(), deadline };
        match self.common.dispatch.route(context.path()) {
            Route::Unary(method) => self.unary_arrive(method, context, body, responder),
            Route::Streaming(method) => self.stream_arrive(method, context, body, responder),
            route => refuse(responder, &unknown(route, context.path())),
        }
    }

    fn unary_arrive(&mut self, method: MethodId, context: CallContext, mut body: RecvStream, responder: Responder) {
        self.tally.calls_unary += 1;
        let mut deframer = Deframer::new(self.common.options.request_bytes_max);
        // Nearly always the message is there already, and no waker needs to be made.
        let mut progress = read_message(&mut body, &mut deframer, &context, Waker::noop());
        if matches!(progress, Progress::Pending) {
            let slot = self.calls.next_id();
            let waker = self.slot_waker(slot);
            progress = read_message(&mut body, &mut deframer, &context, &waker);
            if matches!(progress, Progress::Pending) {
                let mut held = HeldRequest::new(self.shared.clone());
                if let Err(too_much) = held.set(deframer.held_bytes()) {
                    return self.unary_start(method, context, responder, Progress::Failed(too_much.into()));
                }
                let reading = Reading { method, context, responder, body, deframer, held, waker };
                self.calls.insert(Call::Reading(Box::new(reading)));
                return;
            }
        }
        self.unary_start(method, context, responder, progress);
    }

    fn read_on(&mut self, slot: SlotId) {
        let Some(Call::Reading(reading)) = self.calls.get_mut(slot) else { return };
        let Reading { body, deframer, held, context, waker, .. } = &mut **reading;
        let mut progress = read_message(body, deframer, context, waker);
        if matches!(progress, Progress::Pending) {
            match held.set(deframer.held_bytes()) {
                Ok(()) => return,
                Err(too_much) => progress = Progress::Failed(too_much.into()),
            }
        }
        if let Some(Call::Reading(reading)) = self.calls.remove(slot) {
            self.unary_start(reading.method, reading.context, reading.responder, progress);
        }
    }

    fn unary_start(&mut self, method: MethodId, context: CallContext, responder: Responder, progress: Progress) {
        match progress {
            Progress::Message(message) => {
                self.tally.messages_in += 1;
                let slot = self.calls.insert(Call::Unary { method, responder, deadline: context.deadline });
                let reply = UnaryReply::new(self.shared.clone(), slot);
                let dispatch = &self.common.dispatch;
                caught(|| dispatch.unary(method, context, message, reply));
            }
            Progress::Failed(status) => {
                self.ended(method, status.code());
                refuse(responder, &status);
            }
            Progress::Gone => self.ended(method, Code::Cancelled),
            Progress::Pending => unreachable!("the callers keep waiting calls"),
        }
    }

    /// Sends the outcome of a unary call.
    fn answer(&mut self, mut responder: Responder, result: Result<Reply, Status>) {
        let reply = match result {
            Ok(reply) => reply,
            Err(status) => return refuse(responder, &status),
        };
        let sending = reply.has_guard().then(Arc::default);
        let Some(payload) = Payload::message(reply, Account::Connection(self.shared.clone()), sending.clone()) else {
            return refuse(responder, &too_long());
        };
        // Every error below means that the client has reset the call or gone.
        let Ok(mut stream) = responder.send_response(self.ok_response(), false) else { return };
        if stream.send_data(payload, false).is_ok() {
            self.tally.messages_out += 1;
            let _ = stream.send_trailers(self.common.ok_trailers.clone());
            if let Some(sending) = sending {
                self.followers.add(Owner::Answered(stream), sending, self.common.options.reply_stall_timeout);
            }
        }
    }

    fn ok_response(&self) -> Response<()> {
        let mut response = Response::new(());
        *response.headers_mut() = self.common.ok_headers.clone();
        response
    }

    fn stream_arrive(&mut self, method: MethodId, context: CallContext, body: RecvStream, responder: Responder) {
        self.tally.calls_streaming += 1;
        let slot = self.calls.next_id();
        let shared = StreamShared::new(self.shared.clone(), slot);
        let waker = self.slot_waker(slot);
        let deadline = context.deadline;
        let answer = Answer::Waiting(responder);
        let sending = None;
        self.calls.insert(Call::Stream { method, answer, shared: shared.clone(), deadline, waker, sending });
        self.watch_reset(slot);
        let max = self.common.options.request_bytes_max;
        let held = HeldRequest::new(self.shared.clone());
        let requests = RequestStream::new(body, &context.headers, max, self.common.stats.clone(), held);
        let responses = ResponseSink::new(shared);
        let dispatch = &self.common.dispatch;
        caught(|| dispatch.stream(method, context, requests, responses));
    }

    /// Looks whether the client has reset a stream, and asks to be told when it does.
    fn watch_reset(&mut self, slot: SlotId) {
        let Some(Call::Stream { answer, shared, waker, .. }) = self.calls.get_mut(slot) else { return };
        let mut context = Context::from_waker(waker);
        let reset = match answer {
            Answer::Waiting(responder) => responder.poll_reset(&mut context),
            Answer::Started(stream) => stream.poll_reset(&mut context),
        };
        if reset.is_ready() {
            shared.close();
            self.remove(slot, Code::Cancelled);
        }
    }

    fn stream_message(&mut self, slot: SlotId, reply: Reply) {
        let bytes = reply.message_len() + crate::deframer::PREFIX_LEN;
        let Some(Call::Stream { answer, shared, sending, .. }) = self.calls.get_mut(slot) else {
            // The stream's counters are gone with it, the connection's are not.
            self.shared.discharge_stream(bytes);
            return;
        };
        let followed = reply.has_guard().then(|| {
            let sending = sending.get_or_insert_with(|| {
                let sending = Arc::<Sending>::default();
                self.followers.add(Owner::Call(slot), sending.clone(), self.common.options.reply_stall_timeout);
                sending
            });
            sending.clone()
        });
        let Some(payload) = Payload::message(reply, Account::Stream(shared.clone()), followed) else {
            shared.discharge(bytes);
            return self.stream_finish(slot, &too_long());
        };
        if !matches!(answer, Answer::Started(_)) {
            start(answer, &self.common.ok_headers);
            self.watch_reset(slot);
        }
        let Some(Call::Stream { answer, shared, .. }) = self.calls.get_mut(slot) else { return };
        let sent = match answer {
            Answer::Started(stream) => stream.send_data(payload, false).is_ok(),
            Answer::Waiting(_) => false,
        };
        if sent {
            self.tally.messages_out += 1;
        } else {
            shared.close();
            self.remove(slot, Code::Cancelled);
        }
    }

    fn stream_finish(&mut self, slot: SlotId, status: &Status) {
        if !matches!(self.calls.get_mut(slot), Some(Call::Stream { .. })) {
            return;
        }
        if let Some(Call::Stream { answer, shared, sending, .. }) = self.take(slot, status.code()) {
            shared.close();
            match answer {
                Answer::Waiting(responder) => refuse(responder, status),
                Answer::Started(mut stream) => {
                    // Fails only when the client has reset the stream.
                    let _ = stream.send_trailers(status.trailers());
                    if sending.is_some() {
                        self.followers.ended(slot, Some(stream));
                    }
                }
            }
        }
    }

    /// Takes a call away that ends with this code, and what is queued for it.
    fn remove(&mut self, slot: SlotId, code: Code) -> Option<Call> {
        let call = self.take(slot, code);
        if let Some(Call::Stream { sending: Some(_), .. }) = &call {
            self.followers.ended(slot, None);
        }
        call
    }

    /// Takes a call away that ends with this code.
    fn take(&mut self, slot: SlotId, code: Code) -> Option<Call> {
        let call = self.calls.remove(slot);
        if let Some(method) = call.as_ref().and_then(Call::method) {
            self.ended(method, code);
        }
        call
    }

    fn ended(&mut self, method: MethodId, code: Code) {
        self.tally.calls_ended += 1;
        self.common.dispatch.ended(method, code);
    }

    fn http_arrive(&mut self, parts: request::Parts, body: RecvStream, responder: Responder) {
        let slot = self.calls.next_id();
        let waker = self.slot_waker(slot);
        let is_head = parts.method == Method::HEAD;
        let (parts, held) = (Some(Box::new(parts)), HeldRequest::new(self.shared.clone()));
        let state = HttpState::Collecting { parts, body, collected: BytesMut::new(), held };
        self.calls.insert(Call::Http(Box::new(HttpCall { responder, is_head, waker, state })));
        self.http_on(slot);
    }

    /// Brings a plain HTTP exchange as far as it goes.
    fn http_on(&mut self, slot: SlotId) {
        let Some(Call::Http(call)) = self.calls.get_mut(slot) else { return };
        let response = match poll_http(call, &self.common, &self.peer) {
            Poll::Pending => return,
            Poll::Ready(response) => response,
        };
        let Some(Call::Http(mut call)) = self.calls.remove(slot) else { return };
        let Some(response) = response else { return };
        let (mut parts, body) = response.into_parts();
        // HTTP/2 has no connection-specific headers.
        parts.headers.remove(http::header::CONNECTION);
        parts.headers.remove(http::header::TRANSFER_ENCODING);
        let empty = body.is_empty() || call.is_head;
        // An error means that the client has gone.
        let sent = call.responder.send_response(Response::from_parts(parts, ()), empty);
        if let Ok(mut stream) = sent
            && !empty
        {
            let _ = stream.send_data(Payload::plain(body, self.shared.clone()), true);
        }
    }

    fn slot_waker(&self, slot: SlotId) -> Waker {
        Waker::from(Arc::new(SlotWaker { shared: self.shared.clone(), slot }))
    }

    /// Does what is due, and sets the timer for what is next. Returns true when the connection must end now.
    fn keep_time(&mut self) -> bool {
        if self.is_used && self.shrink_at.is_none() {
            self.shrink_later(Instant::now());
        }
        let elapsed = self.timer.is_elapsed();
        if elapsed {
            let now = Instant::now();
            if self.deadline_next.is_some_and(|deadline| deadline <= now) {
                self.expire_calls(now);
            }
            if self.drain_until.is_some_and(|until| until <= now) {
                tracing::debug!(peer = %self.peer.address(), calls = self.calls.len(), "drain time is over");
                return true;
            }
            if self.keepalive_at <= now && self.keep_alive(now) {
                tracing::debug!(peer = %self.peer.address(), "the client does not answer pings");
                return true;
            }
            if self.followers.look_at().is_some_and(|at| at <= now) && self.end_stalled(now) {
                tracing::debug!(peer = %self.peer.address(), "the client takes nothing of what it has asked for");
                return true;
            }
            if self.shrink_at.is_some_and(|at| at <= now) {
                if self.is_used { self.shrink_later(now) } else { self.shrink() }
            }
        }
        let next = [self.deadline_next, self.drain_until, self.shrink_at, self.followers.look_at()]
            .into_iter()
            .flatten()
            .fold(self.keepalive_at, Instant::min);
        // A later time is not worth a new setting: the timer runs early and is set again then.
        if elapsed || next < self.timer_at {
            self.timer_at = next;
            self.timer.as_mut().reset(next.into());
            let _ = self.timer.as_mut().poll(&mut Context::from_waker(&self.waker));
        }
        false
    }

    fn expire_calls(&mut self, now: Instant) {
        self.deadline_next = None;
        let mut due = Vec::new();
        for (slot, call) in self.calls.iter_mut() {
            match call.deadline() {
                Some(deadline) if deadline <= now => due.push(slot),
                Some(deadline) => {
                    self.deadline_next = Some(self.deadline_next.map_or(deadline, |next| next.min(deadline)));
                }
                None => {}
            }
        }
        for slot in due {
            let status = Status::deadline_exceeded();
            match self.calls.get_mut(slot) {
                Some(Call::Stream { .. }) => self.stream_finish(slot, &status),
                _ => match self.remove(slot, status.code()) {
                    Some(Call::Reading(reading)) => refuse(reading.responder, &status),
                    Some(Call::Unary { responder, .. }) => refuse(responder, &status),
                    _ => {}
                },
            }
        }
    }

    /// Resets the calls that have stalled. Returns true when that does not help.
    fn end_stalled(&mut self, now: Instant) -> bool {
        let mut is_stuck = false;
        for stall in self.followers.look(now, self.common.options.reply_stall_timeout) {
            match stall {
                Stall::Stuck => is_stuck = true,
                Stall::Reset(slot) => {
                    let Some(Call::Stream { answer, shared, .. }) = self.take(slot, Code::ResourceExhausted) else {
                        continue;
                    };
                    shared.close();
                    if let Answer::Started(mut stream) = answer {
                        stall::reset(&mut stream);
                        self.followers.ended(slot, Some(stream));
                        self.tally.replies_stalled += 1;
                    }
                }
            }
        }
        self.tally.replies_stalled += self.followers.take_resets();
        is_stuck
    }

    /// Returns true if the client is dead.
    fn keep_alive(&mut self, now: Instant) -> bool {
        let (bytes_in, _) = self.wire.bytes();
        let heard = bytes_in != self.bytes_in_heard;
        self.bytes_in_heard = bytes_in;
        let wait = match self.keepalive {
            Keepalive::Pinged if !heard => return true,
            Keepalive::Listening if !heard => {
                if let Some(ping) = &mut self.ping {
                    let _ = ping.poll_pong(&mut Context::from_waker(Waker::noop()));
                    // Fails only while an earlier ping is unanswered, or on a closed connection.
                    let _ = ping.send_ping(Ping::opaque());
                }
                self.keepalive = Keepalive::Pinged;
                self.common.options.keepalive_timeout
            }
            Keepalive::Listening | Keepalive::Pinged => {
                self.keepalive = Keepalive::Listening;
                self.common.options.keepalive_interval
            }
        };
        self.keepalive_at = now + wait;
        false
    }

    fn shrink_later(&mut self, now: Instant) {
        self.is_used = false;
        self.shrink_at = Some(now + SHRINK_INTERVAL);
    }

    /// Gives the memory back that a burst has left behind.
    fn shrink(&mut self) {
        self.shrink_at = None;
        self.wire.shrink();
        self.events = Vec::new();
        self.shared.shrink();
    }

    fn begin_drain(&mut self) {
        self.drain_until = Some(Instant::now() + self.common.options.drain_timeout);
        self.h2.graceful_shutdown();
        for (_, call) in self.calls.iter_mut() {
            if let Call::Stream { shared, .. } = call {
                shared.tell_draining();
            }
        }
    }

    fn publish(&mut self) {
        let (bytes_in, bytes_out) = self.wire.bytes();
        self.tally.bytes_in = bytes_in - self.bytes_told.0;
        self.tally.bytes_out = bytes_out - self.bytes_told.1;
        self.bytes_told = (bytes_in, bytes_out);
        self.tally.publish(&self.common.stats);
    }

    /// Says goodbye in a hurry: one attempt to send GOAWAY.
    fn abort(&mut self, context: &mut Context<'_>) {
        self.h2.abrupt_shutdown(Reason::NO_ERROR);
        let _ = self.h2.poll_closed(context);
        let _ = self.wire.flush(context);
    }
}

impl Future for Connection {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        this.shared.begin(task.waker());
        let waker = this.waker.clone();
        let mut context = Context::from_waker(&waker);
        for _ in 0..TURNS_MAX {
            if this.turn(&mut context).is_ready() {
                this.publish();
                return Poll::Ready(());
            }
            if this.keep_time() {
                this.abort(&mut context);
                this.publish();
                return Poll::Ready(());
            }
            if this.shared.settle() {
                this.publish();
                return Poll::Pending;
            }
            if !tokio::task::coop::has_budget_remaining() {
                break;
            }
        }
        this.publish();
        this.shared.yield_now();
        Poll::Pending
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.close();
        let calls: Vec<Call> = self.calls.drain().collect();
        for call in calls {
            if let Call::Stream { shared, .. } = &call {
                shared.close();
            }
            if let Some(method) = call.method() {
                self.ended(method, Code::Cancelled);
            }
        }
        self.publish();
    }
}

/// Reads a unary call's message as far as it has arrived.
fn read_message(body: &mut RecvStream, deframer: &mut Deframer, context: &CallContext, waker: &Waker) -> Progress {
    let mut task = Context::from_waker(waker);
    let mut unreleased = 0;
    loop {
        match body.poll_data(&mut task) {
            Poll::Pending => {
                // However small the pieces are, together they would use up the window before the message is whole.
                release(body, unreleased);
                return Progress::Pending;
            }
            Poll::Ready(Some(Ok(piece))) => {
                unreleased += piece.len();
                if unreleased >= RELEASE_EARLY_BYTES_MIN {
                    release(body, std::mem::take(&mut unreleased));
                }
                deframer.push(piece);
            }
            Poll::Ready(Some(Err(_))) => return Progress::Gone,
            Poll::Ready(None) => return Progress::Failed(cut_short()),
        }
        match deframer.next(&context.headers) {
            Ok(Some(message)) if deframer.is_empty() => return Progress::Message(message),
            Ok(Some(_)) => {
                return Progress::Failed(Status::internal("a unary call has more than one request message"));
            }
            Ok(None) => {}
            Err(status) => return Progress::Failed(status),
        }
    }
}

/// Gives flow-control window back.
fn release(body: &mut RecvStream, bytes: usize) {
    if bytes > 0 {
        // An error means that the stream is closed; the next poll tells.
        let _ = body.flow_control().release_capacity(bytes);
    }
}

/// Brings a plain HTTP exchange on: collects the body, then runs the handler. `None`: the client has gone.
fn poll_http(call: &mut HttpCall, common: &Common, peer: &Arc<Peer>) -> Poll<Option<Response<Bytes>>> {
    let mut context = Context::from_waker(&call.waker);
    loop {
        match &mut call.state {
            HttpState::Collecting { parts, body, collected, held } => match body.poll_data(&mut context) {
                Poll::Pending => {
                    if held.set(collected.capacity()).is_err() {
                        let mut response = Response::new(Bytes::new());
                        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                        return Poll::Ready(Some(response));
                    }
                    return Poll::Pending;
                }
                Poll::Ready(Some(Ok(piece))) => {
                    if collected.len() + piece.len() > common.options.request_bytes_max {
                        let mut response = Response::new(Bytes::new());
                        *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
                        return Poll::Ready(Some(response));
                    }
                    release(body, piece.len());
                    collected.extend_from_slice(&piece);
                }
                Poll::Ready(Some(Err(_))) => return Poll::Ready(None),
                Poll::Ready(None) => {
                    let parts = parts.take().expect("taken only here, where the state ends");
                    let request = Request::from_parts(*parts, std::mem::take(collected).freeze());
                    call.state = HttpState::Running(common.dispatch.http(request, peer.clone()));
                }
            },
            HttpState::Running(future) => return future.as_mut().poll(&mut context).map(Some),
        }
    }
}

/// Sends the response headers of a stream. False if the client has gone.
fn start(answer: &mut Answer, headers: &HeaderMap) -> bool {
    let Answer::Waiting(responder) = answer else { return true };
    let mut response = Response::new(());
    *response.headers_mut() = headers.clone();
    match responder.send_response(response, false) {
        Ok(stream) => {
            *answer = Answer::Started(stream);
            true
        }
        Err(_) => false,
    }
}

/// Ends a call with nothing but a status.
fn refuse(responder: Responder, status: &Status) {
    let mut response = Response::new(());
    *response.headers_mut() = status.only();
    end_with(responder, response);
}

fn end_with(mut responder: Responder, response: Response<()>) {
    // Fails only when the client has reset the call or gone.
    let _ = responder.send_response(response, true);
}

fn too_long() -> Status {
    Status::new(Code::ResourceExhausted, "the reply is longer than a gRPC message can be")
}

/// gRPC's content type, with a format (`+proto`) or parameters behind it or not.
fn is_grpc(headers: &HeaderMap) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    let Some(value) = headers.get(CONTENT_TYPE) else { return false };
    let value = value.as_bytes();
    value.starts_with(GRPC) && matches!(value.get(GRPC.len()), None | Some(b'+' | b';'))
}

/// The status of a path that leads nowhere; the texts are grpc-go's.
fn unknown(route: Route, path: &str) -> Status {
    let shown = path.get(..path.len().min(QUOTED_BYTES_MAX)).unwrap_or("");
    let text = match path.strip_prefix('/').and_then(|path| path.rsplit_once('/')) {
        None => format!("malformed method name: {shown:?}"),
        Some((service, method)) => {
            let service = service.get(..service.len().min(QUOTED_BYTES_MAX)).unwrap_or("");
            let method = method.get(..method.len().min(QUOTED_BYTES_MAX)).unwrap_or("");
            if route == Route::UnknownMethod {
                format!("unknown method {method} for service {service}")
            } else {
                format!("unknown service {service}")
            }
        }
    };
    Status::new(Code::Unimplemented, text)
}

/// Runs a handler; a panic ends its call (the reply handle answers as it is dropped), not the connection.
fn caught(handler: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(handler)).is_err() {
        tracing::error!("a handler panicked");
    }
}

/// The HTTP/2 settings of a server with these options.
pub(crate) fn h2_builder(options: &ServerOptions) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(options.stream_window_bytes)
        .initial_connection_window_size(options.connection_window_bytes)
        .max_concurrent_streams(options.streams_per_connection_max)
        .max_header_list_size(options.header_list_bytes_max)
        .max_pending_accept_reset_streams(options.reset_streams_max)
        .reset_stream_duration(Duration::from_secs(1));
    builder
}
