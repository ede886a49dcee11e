//! Bodies on their way through: a client's request to a kube-apiserver, and the answer back.
//!
//! Invariant: no body is held whole, but for one that is no longer than its own first bytes. Each direction moves one piece at a time, and
//! takes the next only when the receiver has room for it, so that a slow reader slows its sender down to its own pace, and nobody else.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use kubewharf_front::watchdog::{self, Deadlines};
use kubewharf_front::{Broken, Inbound, Pause, SEND_PIECE_BYTES_MAX};
use kubewharf_upstream::{Lease, Pieces, UpgradeLease};
use memchr::memmem;
use smallvec::SmallVec;
use tokio::time::{Instant, Sleep};

use crate::drain::Turn;
use crate::limit::Admission;
use crate::limits::{READ_OFF_BYTES_MAX, READ_OFF_TIMEOUT, REPLAY_BYTES_MAX, WATCH_END_NOT_BEFORE};
use crate::record::Record;

/// The body of an answer to a client.
pub(crate) enum Body {
    /// Known as a whole: the gateway's own words, or nothing; and what of the request was not read. That must live until the answer is out:
    /// HTTP/2 would otherwise cancel the request, and with it the answer.
    Whole(Option<Bytes>, Option<Inbound>),
    /// A kube-apiserver's.
    Stream(Box<AnswerBody>),
    /// A kube-apiserver's over HTTP/1.1: it did not want to upgrade.
    Http1(Box<Http1Body>),
}

/// An answer over HTTP/1.1.
pub(crate) struct Http1Body {
    pub(crate) incoming: Incoming,
    pub(crate) pace: Pace,
    pub(crate) record: Record,
    pub(crate) _lease: UpgradeLease,
}

/// How long an answer may take, as its task's [`watchdog`] is told.
pub(crate) struct Pace {
    /// For the client to take a piece.
    pub(crate) unread: Duration,
    /// The answer's last moment.
    pub(crate) end: Option<Instant>,
    /// Over HTTP/1.1.
    pub(crate) _pause: Option<Pause>,
}

impl Pace {
    /// The answer was asked for more.
    fn tell<T>(&self, polled: &Poll<Option<T>>) {
        match polled {
            // The client must take that now.
            Poll::Ready(Some(_)) => watchdog::expect(Deadlines { unread: Some(self.unread), end: self.end }),
            // It is not the client that is waited for.
            Poll::Pending => watchdog::expect(Deadlines { unread: None, end: self.end }),
            Poll::Ready(None) => watchdog::over(),
        }
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        watchdog::over();
    }
}

impl Body {
    pub(crate) fn empty() -> Self {
        Self::Whole(None, None)
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::Whole((!bytes.is_empty()).then_some(bytes), None)
    }
}

/// Why an answer ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the kube-apiserver's answer broke off: {0}")]
    Upstream(h2::Error),
    #[error("the kube-apiserver's answer broke off: {0}")]
    Http1(hyper::Error),
    #[error("nothing moved for {} s", .0.as_secs())]
    Idle(Duration),
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Whole(bytes, _) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(stream) => {
                let polled = stream.poll_frame(context);
                stream.pace.tell(&polled);
                polled
            }
            Self::Http1(body) => {
                let polled = Pin::new(&mut body.incoming).poll_frame(context);
                match &polled {
                    Poll::Ready(Some(Err(_))) => body.record.broke("lost"),
                    Poll::Ready(None) => body.record.finished(),
                    // Who has the last piece, or the trailers, does not ask for another.
                    Poll::Ready(Some(Ok(frame))) if frame.is_trailers() || body.incoming.is_end_stream() => {
                        body.record.finished();
                    }
                    _ => {}
                }
                body.pace.tell(&polled);
                polled.map_err(BodyError::Http1)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes, _) => bytes.is_none(),
            Self::Stream(stream) => stream.is_end_stream(),
            Self::Http1(body) => body.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes, _) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Stream(_) => SizeHint::default(),
            Self::Http1(body) => body.incoming.size_hint(),
        }
    }
}

/// Takes a short body off the connection before its request is refused: there are clients that do not expect an answer while they still send.
pub(crate) async fn read_off(body: &mut Inbound) {
    let reads = async {
        let mut bytes = 0;
        while let Some(Ok(piece)) = std::future::poll_fn(|context| body.poll_piece(context)).await {
            bytes += piece.len();
            if bytes > READ_OFF_BYTES_MAX {
                break;
            }
        }
    };
    // What has not come by then, nobody waits for.
    let _ = tokio::time::timeout(READ_OFF_TIMEOUT, reads).await;
}

/// An answer that streams. It holds the request's place at the endpoint, and whatever is left of the request's own body.
pub(crate) struct AnswerBody {
    /// What has come already, the first piece last.
    pub(crate) beginning: Pieces,
    pub(crate) stream: RecvStream,
    /// The rest of the request, if the answer has begun before its end.
    pub(crate) request: Option<Box<Upload>>,
    pub(crate) watch: Option<WatchEnd>,
    pub(crate) idle: Option<Idle>,
    pub(crate) pace: Pace,
    pub(crate) record: Record,
    /// What the request occupies of a limit.
    pub(crate) _admission: Option<Admission>,
    /// Dropped last.
    pub(crate) _lease: Lease,
}

/// The annotation of the bookmark behind the objects that a watch begins with (`sendInitialEvents`), in every encoding.
const INITIAL_EVENTS_END: &[u8] = b"k8s.io/initial-events-end";

/// Where an answer to a watch is between its events, as far as its encoding tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Events {
    /// JSON: each event is a line.
    Lines {
        /// A line has begun and not ended.
        is_within: bool,
    },
    /// Protobuf: the length of each event is in front of it, four bytes, the highest first.
    Frames {
        /// What there is of the length.
        length: u32,
        length_bytes: u8,
        /// What is still to come of the event, once its length is known.
        left: u32,
    },
    /// Another, or compressed. kube-apiserver sends each event by itself.
    Pieces,
}

impl Events {
    /// Those of an answer with this head, before its first byte.
    pub(crate) fn of(head: &HeaderMap) -> Self {
        let kind = head.get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
        if head.contains_key(CONTENT_ENCODING) {
            Self::Pieces
        } else if kind.starts_with(b"application/json") {
            Self::Lines { is_within: false }
        } else if kind.starts_with(b"application/vnd.kubernetes.protobuf") {
            Self::Frames { length: 0, length_bytes: 0, left: 0 }
        } else {
            Self::Pieces
        }
    }

    /// Whether a part of an event has passed, and not all of it.
    fn is_within(&self) -> bool {
        match self {
            Self::Lines { is_within } => *is_within,
            Self::Frames { length_bytes, left, .. } => *length_bytes > 0 || *left > 0,
            Self::Pieces => false,
        }
    }

    /// A piece passes. Whether an event ends in it.
    fn pass(&mut self, mut piece: &[u8]) -> bool {
        match self {
            Self::Lines { is_within } => {
                // From behind, where the line of nearly every piece ends.
                let end = memchr::memrchr(b'\n', piece);
                *is_within = end.map_or(*is_within || !piece.is_empty(), |end| end + 1 < piece.len());
                end.is_some()
            }
            Self::Frames { length, length_bytes, left } => {
                let mut has_ended = false;
                while !piece.is_empty() {
                    if *left == 0 {
                        *length = *length << 8 | u32::from(piece[0]);
                        *length_bytes += 1;
                        piece = &piece[1..];
                        if *length_bytes < 4 {
                            continue;
                        }
                        (*left, *length, *length_bytes) = (*length, 0, 0);
                    }
                    let passes = usize::try_from(*left).unwrap_or(usize::MAX).min(piece.len());
                    *left -= passes as u32;
                    piece = &piece[passes..];
                    has_ended |= *left == 0;
                }
                has_ended
            }
            Self::Pieces => true,
        }
    }
}

/// How a watch ends for its client, which is to ask for what follows the last event that it has, and not to list everything again.
/// client-go lists again after an error, and after a watch that ends within a second without an event, as those do that begin at a
/// kube-apiserver that is about to go. A watch that begins with all objects is a new one for it from the bookmark behind them on.
///
/// So a lost endpoint is no error here, and such an early end is told when the second is over.
///
/// Nor is it an error if a part of an event has gone to the client and the rest is lost. client-go (v1.36) takes an end within an event for
/// what it is (`io.ErrUnexpectedEOF`), logs it, and goes on from the event before; a stream that is reset it reports as an event that can't
/// be decoded, and then lists everything again. But such a part is no event that would make a short watch a good one.
///
/// When the gateway stops, it ends by itself: at its turn, between two events, and not among the objects that it begins with.
pub(crate) struct WatchEnd {
    /// The client has got an event that it counts, and all of it.
    has_event: bool,
    /// All objects that are there come first, and a bookmark behind them that has not come yet.
    begins_with_all: bool,
    events: Events,
    /// When the end may be told if nothing was heard.
    not_before: Instant,
    /// Waits for that; there once the answer has ended.
    wait: Option<Pin<Box<Sleep>>>,
    turn: Turn,
}

impl WatchEnd {
    /// For a watch whose answer has just begun, and may begin with all objects that are there.
    pub(crate) fn new(begins_with_all: bool, events: Events, turn: Turn) -> Self {
        let not_before = Instant::now() + WATCH_END_NOT_BEFORE;
        Self { has_event: false, begins_with_all, events, not_before, wait: None, turn }
    }

    /// A piece goes to the client.
    fn pass(&mut self, piece: &[u8]) {
        let has_ended = self.events.pass(piece);
        if self.begins_with_all && memmem::find(piece, INITIAL_EVENTS_END).is_some() {
            self.begins_with_all = false;
            self.has_event = false;
            self.not_before = Instant::now() + WATCH_END_NOT_BEFORE;
        } else {
            self.has_event |= has_ended;
        }
    }

    /// Whether the answer may end for the client as it ends here.
    fn may_end_at_once(&self) -> bool {
        self.has_event
    }

    /// Ready when the answer is to end here and now, as the gateway stops.
    fn poll_turn(&mut self, context: &mut Context<'_>) -> Poll<()> {
        ready!(self.turn.poll(context));
        if self.begins_with_all || self.events.is_within() {
            // What comes next will tell when it is complete.
            return Poll::Pending;
        }
        if !self.may_end_at_once() && Instant::now() < self.not_before {
            return self.turn.put_off(self.not_before, context);
        }
        Poll::Ready(())
    }

    /// The answer has ended; ready when that may be told.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.may_end_at_once() {
            return Poll::Ready(());
        }
        let wait = self.wait.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(self.not_before)));
        wait.as_mut().poll(context)
    }
}

/// How long nothing may move.
pub(crate) struct Idle {
    timeout: Duration,
    timer: Pin<Box<Sleep>>,
}

impl Idle {
    pub(crate) fn new(timeout: Duration) -> Self {
        Self { timeout, timer: Box::pin(tokio::time::sleep(timeout)) }
    }
}

impl AnswerBody {
    fn is_end_stream(&self) -> bool {
        self.beginning.is_empty()
            && self.stream.is_end_stream()
            && self.watch.as_ref().is_none_or(WatchEnd::may_end_at_once)
    }

    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>> {
        if let Some(piece) = self.beginning.pop() {
            return Poll::Ready(Some(Ok(piece)));
        }
        loop {
            match self.stream.poll_data(context) {
                // A frame that only ends the stream; the client gets one of its own, and some take many empty ones for an attack.
                Poll::Ready(Some(Ok(piece))) if piece.is_empty() => {}
                polled => return polled,
            }
        }
    }

    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(upload) = &mut self.request
            && upload.poll(context).is_ready()
        {
            self.request = None;
        }
        if let Some(WatchEnd { wait: Some(wait), .. }) = &mut self.watch {
            return wait.as_mut().poll(context).map(|()| None);
        }
        if let Some(watch) = &mut self.watch
            && watch.poll_turn(context).is_ready()
        {
            self.record.broke("drained");
            return Poll::Ready(None);
        }
        let polled = match self.poll_piece(context) {
            Poll::Ready(Some(Ok(piece))) => {
                // It is on its way to the client, whose own window says how much of this there can be. Fails only when the stream is over.
                let _ = self.stream.flow_control().release_capacity(piece.len());
                self.record.answer_bytes += piece.len() as u64;
                if let Some(watch) = &mut self.watch {
                    watch.pass(&piece);
                }
                // Who has the last piece does not ask for another.
                if self.is_end_stream() {
                    self.record.finished();
                }
                Poll::Ready(Some(Ok(Frame::data(piece))))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(self.broken(error)),
            Poll::Ready(None) => match ready!(self.stream.poll_trailers(context)) {
                Ok(Some(trailers)) => {
                    // Nobody asks for more behind them.
                    self.record.finished();
                    Poll::Ready(Some(Ok(Frame::trailers(trailers))))
                }
                Ok(None) => Poll::Ready(None),
                Err(error) => Poll::Ready(self.broken(error)),
            },
            Poll::Pending => Poll::Pending,
        };
        if let Some(idle) = &mut self.idle {
            if polled.is_ready() {
                idle.timer.as_mut().reset(Instant::now() + idle.timeout);
            } else if idle.timer.as_mut().poll(context).is_ready() {
                self.record.broke("idle");
                // As when its endpoint is lost: the client asks for what follows.
                return Poll::Ready(self.watch.is_none().then_some(Err(BodyError::Idle(idle.timeout))));
            }
        }
        if let Poll::Ready(None) = polled {
            self.record.finished();
            if let Some(watch) = &mut self.watch {
                return watch.poll(context).map(|()| None);
            }
        }
        polled
    }

    fn broken(&mut self, error: h2::Error) -> Option<Result<Frame<Bytes>, BodyError>> {
        self.record.broke(kubewharf_upstream::Failure::of(&error).as_str());
        if self.watch.is_some() { None } else { Some(Err(BodyError::Upstream(error))) }
    }
}

/// The first bytes of a request's body, kept so that it can be sent again.
#[derive(Default)]
pub(crate) struct Replay {
    pieces: SmallVec<[Bytes; 2]>,
    bytes: usize,
    is_whole: bool,
    /// There was more than is kept.
    is_lost: bool,
}

impl Replay {
    fn keep(&mut self, piece: &Bytes) {
        self.bytes += piece.len();
        if self.is_lost || self.bytes > REPLAY_BYTES_MAX {
            self.is_lost = true;
            self.pieces = SmallVec::new();
        } else {
            self.pieces.push(piece.clone());
        }
    }
}

/// Where the body of a request comes from, through all tries.
pub(crate) struct RequestBody {
    incoming: Inbound,
    replay: Replay,
    bytes: u64,
    bytes_max: u64,
}

/// Why the body of a request ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UploadError {
    #[error("the body is longer than {bytes_max} bytes")]
    TooLong { bytes_max: u64 },
    #[error("the client broke off")]
    Client,
    #[error("the kube-apiserver takes no more of it")]
    Upstream,
}

impl RequestBody {
    pub(crate) fn new(incoming: Inbound, bytes_max: u64) -> Self {
        Self { incoming, replay: Replay::default(), bytes: 0, bytes_max }
    }

    /// What was not read of it.
    pub(crate) fn into_unread(self) -> Inbound {
        self.incoming
    }

    /// Whether it can be sent from its beginning again.
    pub(crate) fn can_replay(&self) -> bool {
        !self.replay.is_lost
    }

    /// Starts to send it, from its beginning.
    pub(crate) fn upload(self, sink: SendStream<Bytes>) -> Upload {
        let replayed = 0;
        Upload { body: self, sink, replayed, piece: None, is_over: false }
    }
}

/// A body on its way to an endpoint.
pub(crate) struct Upload {
    body: RequestBody,
    sink: SendStream<Bytes>,
    /// Pieces that were taken from the replay.
    replayed: usize,
    piece: Option<Bytes>,
    is_over: bool,
}

impl Upload {
    /// The body, for another try.
    pub(crate) fn into_body(self) -> RequestBody {
        self.body
    }

    /// Whether nothing of it is left to send.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Moves what can be moved. Ready when all of it was handed over, or nothing more will be.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), UploadError>> {
        loop {
            if self.is_over {
                return Poll::Ready(Ok(()));
            }
            if let Some(mut piece) = self.piece.take() {
                if self.sink.capacity() == 0 {
                    self.sink.reserve_capacity(piece.len().min(SEND_PIECE_BYTES_MAX));
                    self.piece = Some(piece);
                    match ready!(self.sink.poll_capacity(context)) {
                        Some(Ok(_)) => {}
                        Some(Err(_)) | None => return self.end(Err(UploadError::Upstream)),
                    }
                    continue;
                }
                let room = self.sink.capacity().min(piece.len());
                let part = piece.split_to(room);
                let is_last = piece.is_empty() && self.is_last_piece();
                if !piece.is_empty() {
                    self.piece = Some(piece);
                }
                if self.sink.send_data(part, is_last).is_err() {
                    return self.end(Err(UploadError::Upstream));
                }
                self.is_over = is_last;
                continue;
            }
            match ready!(self.next(context)) {
                Ok(Some(piece)) => self.piece = (!piece.is_empty()).then_some(piece),
                Ok(None) => {
                    let sent = self.sink.send_data(Bytes::new(), true);
                    return self.end(sent.map_err(|_| UploadError::Upstream));
                }
                Err(error) => {
                    // The endpoint must not take half a body for a whole one.
                    self.sink.send_reset(Reason::CANCEL);
                    return self.end(Err(error));
                }
            }
        }
    }

    fn end(&mut self, result: Result<(), UploadError>) -> Poll<Result<(), UploadError>> {
        self.is_over = true;
        self.piece = None;
        Poll::Ready(result)
    }

    fn is_last_piece(&self) -> bool {
        let replay = &self.body.replay;
        self.replayed == replay.pieces.len() && (replay.is_whole || self.body.incoming.is_end_stream())
    }

    fn next(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, UploadError>> {
        let body = &mut self.body;
        if let Some(piece) = body.replay.pieces.get(self.replayed) {
            self.replayed += 1;
            return Poll::Ready(Ok(Some(piece.clone())));
        }
        if body.replay.is_whole {
            return Poll::Ready(Ok(None));
        }
        Poll::Ready(match ready!(body.incoming.poll_piece(context)) {
            Some(Ok(piece)) => {
                body.bytes += piece.len() as u64;
                if body.bytes > body.bytes_max {
                    Err(UploadError::TooLong { bytes_max: body.bytes_max })
                } else {
                    body.replay.keep(&piece);
                    self.replayed = body.replay.pieces.len();
                    Ok(Some(piece))
                }
            }
            Some(Err(Broken)) => Err(UploadError::Client),
            None => {
                body.replay.is_whole = true;
                Ok(None)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::drain::Drain;

    fn watch(begins_with_all: bool, drain: Arc<Drain>) -> WatchEnd {
        WatchEnd::new(begins_with_all, Events::Lines { is_within: false }, Turn::new(drain))
    }

    /// How long the end of the watch waits.
    async fn wait(watch: &mut WatchEnd) -> Duration {
        let begun = Instant::now();
        std::future::poll_fn(|context| watch.poll(context)).await;
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_a_watch_waits_until_its_client_does_not_list_again() {
        let event = b"{\"type\":\"ADDED\",\"object\":{}}\n";
        let bookmark = b"{\"type\":\"BOOKMARK\",\"object\":{\"metadata\":{\"annotations\":{\"k8s.io/initial-events-end\":\"true\"}}}}\n";
        let new = |begins_with_all| watch(begins_with_all, Drain::new(Duration::ZERO));

        assert_eq!(wait(&mut new(false)).await, WATCH_END_NOT_BEFORE);
        let mut watch = new(false);
        watch.pass(event);
        assert_eq!(wait(&mut watch).await, Duration::ZERO);

        // Among the objects that it begins with; the client asks for all of them again in any case.
        let mut watch = new(true);
        watch.pass(event);
        assert_eq!(wait(&mut watch).await, Duration::ZERO);
        // Behind them, some time later.
        let mut watch = new(true);
        watch.pass(event);
        tokio::time::advance(Duration::from_secs(5)).await;
        watch.pass(bookmark);
        assert_eq!(wait(&mut watch).await, WATCH_END_NOT_BEFORE);
        let mut watch = new(true);
        watch.pass(bookmark);
        watch.pass(event);
        assert_eq!(wait(&mut watch).await, Duration::ZERO);
        let mut watch = new(true);
        watch.pass(bookmark);
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(wait(&mut watch).await, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn half_an_event_is_none_that_makes_a_short_watch_a_good_one() {
        let mut watch = watch(false, Drain::new(Duration::ZERO));
        watch.pass(b"{\"type\":\"ADDED\",");
        assert_eq!(wait(&mut watch).await, WATCH_END_NOT_BEFORE);
        let mut watch = self::watch(false, Drain::new(Duration::ZERO));
        watch.pass(b"{\"type\":\"ADDED\",");
        watch.pass(b"\"object\":{}}\n{");
        assert_eq!(wait(&mut watch).await, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_gateway_that_stops_ends_a_watch_between_two_events_and_not_among_its_first_objects() {
        let bookmark = b"{\"object\":{\"annotations\":{\"k8s.io/initial-events-end\":\"true\"}}}\n";
        let drain = Drain::new(Duration::ZERO);
        let mut watch = watch(true, drain.clone());
        let ends = async |watch: &mut WatchEnd| {
            let turn = std::future::poll_fn(|context| watch.poll_turn(context));
            tokio::time::timeout(Duration::from_secs(10), turn).await.is_ok()
        };
        watch.pass(b"{}\n");
        assert!(!ends(&mut watch).await, "the gateway does not stop");
        drain.begin();
        assert!(!ends(&mut watch).await, "there are more objects");
        watch.pass(bookmark);
        watch.pass(b"{");
        assert!(!ends(&mut watch).await, "half an event");
        watch.pass(b"}\n");
        let begun = Instant::now();
        assert!(ends(&mut watch).await);
        assert_eq!(begun.elapsed(), Duration::ZERO);
        // Without an event, not within the second that makes its client list again.
        let mut quiet = self::watch(false, drain);
        assert!(ends(&mut quiet).await);
        assert_eq!(begun.elapsed(), WATCH_END_NOT_BEFORE);
    }

    #[test]
    fn events_are_told_apart_however_they_are_cut() {
        let lines = b"{\"a\":1}\n{}\n{\"b\":\"two\"}\n".to_vec();
        let mut frames = Vec::new();
        for length in [1_u32, 0, 300] {
            frames.extend_from_slice(&length.to_be_bytes());
            frames.resize(frames.len() + length as usize, 7);
        }
        let line_ends = [8, 11, 23].to_vec();
        let frame_ends = [5, 9, 313].to_vec();
        for (kind, all, ends) in [
            ("application/json;stream=watch", lines, line_ends),
            ("application/vnd.kubernetes.protobuf;stream=watch", frames, frame_ends),
        ] {
            let mut head = HeaderMap::new();
            head.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            for step in 1..=all.len() {
                let mut events = Events::of(&head);
                let mut at = 0;
                for piece in all.chunks(step) {
                    let before = at;
                    at += piece.len();
                    let has_ended = ends.iter().any(|end| *end > before && *end <= at);
                    assert_eq!(events.pass(piece), has_ended, "{kind}: {before} to {at}");
                    assert_eq!(events.is_within(), !ends.contains(&at), "{kind}: {before} to {at}");
                }
            }
            head.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            assert_eq!(Events::of(&head), Events::Pieces);
        }
        assert_eq!(Events::of(&HeaderMap::new()), Events::Pieces);
    }
}
