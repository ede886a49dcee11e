//! One watch stream: its watches, and what its client is told in which order.
//!
//! Behaves as etcd 3.7 does (`server/etcdserver/api/v3rpc/watch.go`, `server/storage/mvcc/watch*.go`). All of a stream
//! is one task. It sends one response after the other, and while its client takes none it does nothing, so that its
//! watches fall behind; what they miss they get later, from the ring or the log.
//!
//! A watch is either *live*, then the hub marks it when it has events, or *replaying*, then its stream reads history
//! for it up to where the marks begin.
//!
//! Invariant: all events of a stream's watches up to a progress notification's revision were sent before it, and none
//! of them after.

use std::collections::{HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kubewharf_etcd_api::EtcdError;
use kubewharf_etcd_api::etcdserverpb::watch_request::RequestUnion;
use kubewharf_etcd_api::etcdserverpb::{ResponseHeader, WatchCreateRequest, WatchRequest, WatchResponse};
use tokio::task::JoinHandle;
use tokio::time::{Interval, MissedTickBehavior};

use super::hub::{Attachment, Mark};
use super::replay::{Page, Replay};
use super::response::{Entries, Message};
use super::ring::Segments;
use super::spec::Spec;
use crate::error::Error;
use crate::limits::{WATCH_PROGRESS_INTERVAL_MIN, WATCH_RESPONSE_BYTES, WATCHES_PER_STREAM_MAX};
use crate::store::{Store, random_u64};

/// The id that stands for no watch, or for all of the stream.
const NO_WATCH: i64 = -1;
/// Responses that are sent before requests are looked at again.
const RESPONSES_PER_TURN: usize = 16;
/// Turns in a row before other tasks may run.
const TURNS_MAX: usize = 4;

/// Where a stream's responses go.
pub(crate) trait Outlet: Sync {
    /// Sends a response; waits until the client has taken enough of the earlier ones.
    fn send(&self, message: Message) -> impl Future<Output = Result<(), Gone>> + Send;

    /// Waits until the stream must end because the client is gone or the server shuts down.
    fn ending(&self) -> impl Future<Output = ()> + Send;
}

/// Nothing can be sent any more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gone;

/// Where a stream's requests come from.
pub(crate) trait Requests: Send {
    /// What a broken request stream gives.
    type Error: Send;

    /// The next request; `None` if the client sends no more. May be cancelled and called again without loss.
    fn next(&mut self) -> impl Future<Output = Option<Result<WatchRequest, Self::Error>>> + Send;
}

/// Why a stream has ended.
#[derive(Debug)]
pub(crate) enum End<E> {
    /// The client is gone, or the server shuts down.
    Ending,
    /// The hub is closed, and why.
    Closed(Arc<str>),
    /// The history can't be read.
    Failed(Error),
    /// The request stream is broken.
    Request(E),
}

/// An end that does not come from the requests.
enum Stop {
    Ending,
    Closed(Arc<str>),
    Failed(Error),
}

impl<E> From<Stop> for End<E> {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Ending => Self::Ending,
            Stop::Closed(why) => Self::Closed(why),
            Stop::Failed(error) => Self::Failed(error),
        }
    }
}

impl From<Gone> for Stop {
    fn from(Gone: Gone) -> Self {
        Self::Ending
    }
}

/// What a stream is told about the server.
#[derive(Clone, Debug)]
pub(crate) struct StreamOptions {
    /// The header of all responses but for the revision.
    pub(crate) header: ResponseHeader,
    /// Time between progress notifications of a watch without events.
    pub(crate) progress_interval: Duration,
    /// Size from which a response is divided for watches that asked for it, in bytes.
    pub(crate) fragment_bytes: usize,
}

/// A watch.
struct Watch {
    id: i64,
    spec: Arc<Spec>,
    group: u32,
    /// The first revision asked for; 0 if none was.
    start: i64,
    phase: Phase,
    fragments: bool,
    /// Whether it wants progress notifications.
    notify: bool,
    /// Whether the next one is sent: not if there were events since the last.
    notify_next: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The hub's marks count. Up to date unless it is queued for delivery.
    Live {
        /// The next revision that it needs; if it is not queued, it has no event up to the stream's position anyway.
        cursor: i64,
        queued: bool,
    },
    /// Reads history up to this revision; from there on it is marked.
    Replaying { until: i64 },
    /// Cancelled because its history is compacted. Its id stays taken until the client cancels it too.
    Compacted,
}

/// The watches that read history are back with a page of it.
type Read = (Replay, Result<Page, Error>);

/// A watch stream.
pub(crate) struct WatchStream<'o, O> {
    store: Arc<Store>,
    options: StreamOptions,
    outlet: &'o O,
    attachment: Attachment,
    /// All marks up to this revision were taken.
    position: i64,
    watches: HashMap<u64, Watch>,
    /// Serials of the watches by id.
    serials: HashMap<i64, u64>,
    next_serial: u64,
    next_id: i64,
    /// Live watches that have something to send.
    ready: VecDeque<u64>,
    /// The watches that read history; not here while a page is read.
    replay: Option<Replay>,
    /// The page that is being read.
    job: Option<JoinHandle<Read>>,
    /// Watches that came to the replay while it was not here: serial and position.
    joining: Vec<(u64, i64)>,
    /// Watches that left the replay while it was not here.
    leaving: Vec<u64>,
    replaying: u64,
    notified: usize,
    /// A request for progress came while a watch was behind.
    progress_asked: bool,
    ticks: Interval,
    /// Kept for its memory.
    marks: Vec<Mark>,
}

enum Input<E> {
    Ending,
    Request(Option<Result<WatchRequest, E>>),
    Page(Box<Read>),
    News,
    Tick,
    Ready,
}

impl<'o, O: Outlet> WatchStream<'o, O> {
    /// A stream of `store` that sends to `outlet`. Must be called on a tokio runtime with time.
    pub(crate) fn new(store: Arc<Store>, options: StreamOptions, outlet: &'o O) -> Self {
        let attachment = store.published().hub().attach();
        // A little longer for each stream, so that not all notify at once.
        let interval = options.progress_interval.max(WATCH_PROGRESS_INTERVAL_MIN);
        let interval = interval + interval.mul_f64((random_u64() % 1024) as f64 / 10_240.0);
        let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + interval, interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        Self {
            store,
            options,
            outlet,
            attachment,
            position: 0,
            watches: HashMap::new(),
            serials: HashMap::new(),
            next_serial: 0,
            next_id: 0,
            ready: VecDeque::new(),
            replay: Some(Replay::default()),
            job: None,
            joining: Vec::new(),
            leaving: Vec::new(),
            replaying: 0,
            notified: 0,
            progress_asked: false,
            ticks,
            marks: Vec::new(),
        }
    }

    /// Serves the stream to its end. A client that sends no more requests still gets events.
    pub(crate) async fn run<R: Requests>(mut self, mut requests: R) -> End<R::Error> {
        let outlet = self.outlet;
        let mut ending = pin!(outlet.ending());
        let mut listens = true;
        let mut turns = 0;
        loop {
            let input = {
                let (attachment, job, ticks) = (&self.attachment, &mut self.job, &mut self.ticks);
                let reads = job.is_some();
                tokio::select! {
                    biased;
                    () = &mut ending => Input::Ending,
                    request = requests.next(), if listens => Input::Request(request),
                    read = finished(job), if reads => Input::Page(Box::new(read)),
                    () = poll_fn(|context| attachment.poll_news(context)) => Input::News,
                    _ = ticks.tick(), if self.notified > 0 => Input::Tick,
                    () = std::future::ready(()), if !self.ready.is_empty() => Input::Ready,
                }
            };
            let result = match input {
                // A closed hub is why the rest of the server stops, too.
                Input::Ending => return self.attachment.closed().map_or(End::Ending, End::Closed),
                Input::Request(Some(Ok(request))) => self.request(request).await,
                Input::Request(Some(Err(error))) => return End::Request(error),
                Input::Request(None) => {
                    listens = false;
                    Ok(())
                }
                Input::Page(read) => self.page(read.0, read.1).await,
                Input::News => self.take_news(),
                Input::Tick => self.notify().await,
                Input::Ready => Ok(()),
            };
            let mut result = match result {
                Ok(()) => self.deliver(RESPONSES_PER_TURN).await,
                stopped => stopped,
            };
            if result.is_ok() && self.progress_asked && self.replaying == 0 && self.ready.is_empty() {
                result = self.progress().await;
            }
            if let Err(stop) = result {
                return stop.into();
            }
            self.start_reading();
            turns += 1;
            if self.ready.is_empty() {
                turns = 0;
            } else if turns % TURNS_MAX == 0 {
                tokio::task::yield_now().await;
            }
        }
    }

    fn header(&self, revision: i64) -> ResponseHeader {
        ResponseHeader { revision, ..self.options.header }
    }

    fn newest(&self) -> i64 {
        self.store.published().newest()
    }

    async fn send(&self, response: WatchResponse) -> Result<(), Stop> {
        Ok(self.outlet.send(Message::control(&response)).await?)
    }

    async fn request(&mut self, request: WatchRequest) -> Result<(), Stop> {
        match request.request_union {
            Some(RequestUnion::CreateRequest(request)) => self.create(&request).await,
            Some(RequestUnion::CancelRequest(request)) => self.cancel(request.watch_id).await,
            Some(RequestUnion::ProgressRequest(_)) => self.progress().await,
            // etcd ignores what it does not know.
            None => Ok(()),
        }
    }

    async fn create(&mut self, request: &WatchCreateRequest) -> Result<(), Stop> {
        let (id, spec) = match self.check(request) {
            Ok(checked) => checked,
            Err(error) => {
                return self
                    .send(WatchResponse {
                        header: Some(self.header(self.newest())),
                        watch_id: NO_WATCH,
                        created: true,
                        canceled: true,
                        cancel_reason: error.to_string(),
                        ..WatchResponse::default()
                    })
                    .await;
            }
        };
        let spec = Arc::new(spec);
        let serial = self.next_serial;
        self.next_serial += 1;
        let (subscribed, group) = self.attachment.subscribe(serial, &spec, self.newest());
        let start = request.start_revision;
        // Live until decided below.
        let cursor = if start == 0 { subscribed + 1 } else { start };
        let watch = Watch {
            id,
            spec,
            group,
            start,
            phase: Phase::Live { cursor, queued: false },
            fragments: request.fragment,
            notify: request.progress_notify,
            notify_next: true,
        };
        if watch.notify {
            self.notified += 1;
            if self.notified == 1 {
                self.ticks.reset();
            }
        }
        self.watches.insert(serial, watch);
        self.serials.insert(id, serial);
        self.send(WatchResponse {
            header: Some(self.header(subscribed)),
            watch_id: id,
            created: true,
            ..WatchResponse::default()
        })
        .await?;
        if cursor <= subscribed {
            let compacted = self.store.revisions().compacted;
            if start < compacted {
                return self.compacted(serial, compacted).await;
            }
            self.start_replay(serial, cursor, subscribed);
        }
        Ok(())
    }

    /// What a new watch is called and sees, or why it can't be, in etcd's order of checks.
    fn check(&mut self, request: &WatchCreateRequest) -> Result<(i64, Spec), EtcdError> {
        if request.start_revision < 0 {
            return Err(EtcdError::Compacted);
        }
        let spec = Spec::from_request(request)?;
        let mut id = request.watch_id;
        if id == 0 {
            while self.serials.contains_key(&self.next_id) {
                self.next_id += 1;
            }
            id = self.next_id;
            self.next_id += 1;
        } else if self.serials.contains_key(&id) {
            return Err(EtcdError::WatcherDuplicateId);
        }
        if self.watches.len() >= WATCHES_PER_STREAM_MAX {
            let text = format!("etcdserver: more than {WATCHES_PER_STREAM_MAX} watches on one stream");
            return Err(EtcdError::other(kubewharf_etcd_api::Code::ResourceExhausted, text));
        }
        Ok((id, spec))
    }

    async fn cancel(&mut self, id: i64) -> Result<(), Stop> {
        // An unknown id is no error, and gets no answer.
        let Some(serial) = self.serials.remove(&id) else { return Ok(()) };
        self.attachment.unsubscribe(serial);
        let watch = self.watches.remove(&serial).expect("every id is a watch's");
        if let Phase::Replaying { .. } = watch.phase {
            self.left_replay();
            match &mut self.replay {
                Some(replay) => replay.remove(serial),
                None => self.leaving.push(serial),
            }
        }
        self.notified -= usize::from(watch.notify);
        self.send(WatchResponse {
            header: Some(self.header(self.newest())),
            watch_id: id,
            canceled: true,
            ..WatchResponse::default()
        })
        .await
    }

    /// Ends a watch whose history is gone.
    async fn compacted(&mut self, serial: u64, compacted: i64) -> Result<(), Stop> {
        self.attachment.unsubscribe(serial);
        let Some(watch) = self.watches.get_mut(&serial) else { return Ok(()) };
        watch.phase = Phase::Compacted;
        let response = WatchResponse {
            // etcd tells no revision here.
            header: Some(ResponseHeader { revision: 0, ..self.options.header }),
            watch_id: watch.id,
            canceled: true,
            compact_revision: compacted,
            ..WatchResponse::default()
        };
        self.send(response).await
    }

    /// Answers a request for progress once every watch of the stream is up to date. As etcd, it does not answer at all
    /// if one waits for a later revision, or is cancelled because its history is compacted.
    async fn progress(&mut self) -> Result<(), Stop> {
        self.catch_up().await?;
        // Where etcd would forget it.
        self.progress_asked = self.replaying > 0;
        let all = self.watches.values().all(|watch| watch.is_up_to_date(self.position));
        if self.watches.is_empty() || !all {
            return Ok(());
        }
        self.send(WatchResponse {
            header: Some(self.header(self.position)),
            watch_id: NO_WATCH,
            ..WatchResponse::default()
        })
        .await
    }

    /// Sends the progress notifications that are due.
    async fn notify(&mut self) -> Result<(), Stop> {
        self.catch_up().await?;
        let mut due = Vec::new();
        for watch in self.watches.values_mut().filter(|watch| watch.notify) {
            if watch.notify_next && watch.is_up_to_date(self.position) {
                due.push(watch.id);
            }
            watch.notify_next = true;
        }
        for watch_id in due {
            let header = Some(self.header(self.position));
            self.send(WatchResponse { header, watch_id, ..WatchResponse::default() }).await?;
        }
        Ok(())
    }

    /// Sends what live watches have up to a revision at least as new as the newest one now; the position is there then.
    async fn catch_up(&mut self) -> Result<(), Stop> {
        self.attachment.dispatch_to(self.newest());
        self.take_news()?;
        self.deliver(usize::MAX).await
    }

    fn take_news(&mut self) -> Result<(), Stop> {
        let mut marks = std::mem::take(&mut self.marks);
        let news = self.attachment.take(&mut marks);
        if let Some(why) = news.closed {
            return Err(Stop::Closed(why));
        }
        self.position = news.dispatched;
        for Mark { serial, from } in marks.drain(..) {
            let Some(watch) = self.watches.get_mut(&serial) else { continue };
            if let Phase::Live { cursor, queued: false } = watch.phase {
                // Whether it has events in what nobody looked at is not known, be the mark from before or behind that.
                let from = news.lost_from.map_or(from, |lost_from| from.min(lost_from));
                watch.phase = Phase::Live { cursor: cursor.max(from), queued: true };
                self.ready.push_back(serial);
            }
        }
        if let Some(lost_from) = news.lost_from {
            self.look_again_from(lost_from);
        }
        self.marks = marks;
        Ok(())
    }

    /// Lets every watch look at all revisions from `lost_from` on: nobody marked the watches that some of them concern.
    fn look_again_from(&mut self, lost_from: i64) {
        let mut late = Vec::new();
        for (serial, watch) in &self.watches {
            if let Phase::Live { cursor, queued } = watch.phase {
                let cursor = if queued { cursor } else { cursor.max(lost_from) };
                if cursor <= self.position {
                    late.push((*serial, cursor));
                }
            }
        }
        for (serial, cursor) in late {
            self.start_replay(serial, cursor, self.position);
        }
        let watches = &self.watches;
        self.ready.retain(|serial| watches.get(serial).is_some_and(Watch::is_queued));
    }

    /// Sends at most `responses_max` responses of the watches that are ready.
    async fn deliver(&mut self, responses_max: usize) -> Result<(), Stop> {
        let (mut sent, mut looked) = (0, 0);
        while sent < responses_max {
            let Some(serial) = self.ready.pop_front() else { break };
            sent += usize::from(self.deliver_one(serial).await?);
            looked += 1;
            if looked % (RESPONSES_PER_TURN * TURNS_MAX) == 0 {
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }

    /// Sends the next response of a live watch; tells whether there was one. Queues the watch again if there may be
    /// more.
    async fn deliver_one(&mut self, serial: u64) -> Result<bool, Stop> {
        // It may have been cancelled since it was queued.
        let Some(watch) = self.watches.get_mut(&serial) else { return Ok(false) };
        let Phase::Live { cursor, queued: true } = watch.phase else { return Ok(false) };
        let mut entries = Entries::default();
        let mut next = cursor;
        let mut segments = Segments::new();
        'history: while next <= self.position {
            segments.clear();
            let read = self.attachment.shared.read(next, self.position, segments.inline_size(), &mut segments);
            if read.is_err() || segments.is_empty() {
                break;
            }
            for segment in &segments {
                let Ok(selection) = segment.selection(watch.group) else {
                    debug_assert!(false, "the hub has marked all up to the position");
                    break 'history;
                };
                if let Some(selection) = selection {
                    let (bytes, events) = selection.bytes_from(segment, next);
                    entries.push(bytes, events);
                }
                next = segment.last() + 1;
                if entries.bytes() >= WATCH_RESPONSE_BYTES {
                    break 'history;
                }
            }
        }
        if next <= self.position {
            if entries.is_empty() {
                // It has fallen off the ring.
                self.start_replay(serial, next, self.position);
                return Ok(false);
            }
            self.ready.push_back(serial);
        }
        watch.phase = Phase::Live { cursor: next, queued: next <= self.position };
        if entries.is_empty() {
            return Ok(false);
        }
        self.send_events(serial, entries, next - 1).await?;
        Ok(true)
    }

    /// Sends events of a watch that has all its events up to `revision` then.
    async fn send_events(&mut self, serial: u64, entries: Entries, revision: i64) -> Result<(), Stop> {
        let header = self.header(revision);
        let Some(watch) = self.watches.get_mut(&serial) else { return Ok(()) };
        watch.notify_next = false;
        self.attachment.shared.counters.events_sent.fetch_add(entries.events(), Ordering::Relaxed);
        if !watch.fragments {
            return Ok(self.outlet.send(entries.whole(&header, watch.id)).await?);
        }
        for fragment in entries.fragments(&header, watch.id, self.options.fragment_bytes) {
            self.outlet.send(fragment).await?;
        }
        Ok(())
    }

    /// Lets a watch read history from `cursor` to `until`, from where on it is marked.
    fn start_replay(&mut self, serial: u64, cursor: i64, until: i64) {
        let Some(watch) = self.watches.get_mut(&serial) else { return };
        debug_assert!(cursor <= until);
        watch.phase = Phase::Replaying { until };
        self.replaying += 1;
        self.attachment.shared.counters.slow_watches.fetch_add(1, Ordering::Relaxed);
        match &mut self.replay {
            Some(replay) => replay.insert(serial, &watch.spec, cursor),
            None => self.joining.push((serial, cursor)),
        }
    }

    fn left_replay(&mut self) {
        self.replaying -= 1;
        self.attachment.shared.counters.slow_watches.fetch_sub(1, Ordering::Relaxed);
    }

    /// Starts to read the next page if there is need and none is being read.
    fn start_reading(&mut self) {
        let Some(mut replay) = self.replay.take_if(|replay| !replay.is_empty()) else { return };
        let (store, shared) = (self.store.clone(), self.attachment.shared.clone());
        // What is marked later is not read here.
        let last = self.watches.values().filter_map(Watch::replays_until).max().unwrap_or(self.position);
        self.job = Some(tokio::spawn(async move {
            let permit = shared.replays.clone().acquire_owned().await.expect("the semaphore is never closed");
            shared.pages.room().await;
            let read = tokio::task::spawn_blocking(move || {
                let page = replay.read(&store, &shared, last);
                drop(permit);
                (replay, page)
            });
            read.await.unwrap_or_else(|error| {
                (Replay::default(), Err(Error::Unavailable(format!("the log could not be read: {error}"))))
            })
        }));
    }

    /// Sends what a page has, and moves the watches on that are through with their history.
    async fn page(&mut self, mut replay: Replay, page: Result<Page, Error>) -> Result<(), Stop> {
        for serial in self.leaving.drain(..) {
            replay.remove(serial);
        }
        let mut page = page.map_err(Stop::Failed)?;
        let gone = page.compacted.take();
        for (position, serial) in self.send_page(page).await? {
            replay.rewind(serial, position);
        }
        if let Some((compacted, gone)) = gone {
            for serial in gone {
                if self.watches.contains_key(&serial) {
                    self.left_replay();
                    self.compacted(serial, compacted).await?;
                }
            }
        }
        let mut through = Vec::new();
        for (serial, position) in replay.positions() {
            let until = self.watches.get(&serial).and_then(Watch::replays_until);
            if until.is_none_or(|until| position > until) {
                through.push((serial, position));
            }
        }
        for (serial, cursor) in through {
            replay.remove(serial);
            if let Some(watch) = self.watches.get_mut(&serial) {
                // Its marks did not count until now.
                watch.phase = Phase::Live { cursor, queued: true };
                self.ready.push_back(serial);
                self.left_replay();
            }
        }
        for (serial, position) in self.joining.drain(..) {
            // A cancelled one's serial is not used again.
            if let Some(watch) = self.watches.get(&serial) {
                replay.insert(serial, &watch.spec, position);
            }
        }
        self.replay = Some(replay);
        Ok(())
    }

    /// Sends what watches get of a page. Gives the watches, with their positions, that did not get it: while pages take
    /// too much memory, one is not kept for a client that reads slowly.
    async fn send_page(&mut self, mut page: Page) -> Result<Vec<(i64, u64)>, Stop> {
        let shared = self.attachment.shared.clone();
        let revision = page.next - 1;
        while let Some(mut output) = page.outputs.pop() {
            let mut watches = std::mem::take(&mut output.watches).into_iter();
            let mut shared_by: Option<(i64, Entries)> = None;
            while let Some((position, serial)) = watches.next() {
                // It may have been cancelled meanwhile.
                if !self.watches.contains_key(&serial) {
                    continue;
                }
                let entries = match shared_by.take() {
                    Some((same, entries)) if same == position => entries,
                    _ => page.entries(&output, position),
                };
                shared_by = Some((position, entries.clone()));
                if entries.is_empty() {
                    continue;
                }
                let mut sent = pin!(self.send_events(serial, entries, revision));
                tokio::select! {
                    biased;
                    sent = &mut sent => sent?,
                    () = shared.pages.full() => {
                        let rest = page.outputs.drain(..).flat_map(|output| output.watches);
                        let rest = watches.chain(rest).collect();
                        drop((page, output, shared_by));
                        sent.await?;
                        return Ok(rest);
                    }
                }
            }
        }
        Ok(Vec::new())
    }
}

impl<O> Drop for WatchStream<'_, O> {
    fn drop(&mut self) {
        self.attachment.shared.counters.slow_watches.fetch_sub(self.replaying, Ordering::Relaxed);
    }
}

impl Watch {
    fn is_queued(&self) -> bool {
        matches!(self.phase, Phase::Live { queued: true, .. })
    }

    fn replays_until(&self) -> Option<i64> {
        if let Phase::Replaying { until } = self.phase { Some(until) } else { None }
    }

    /// Whether its client has all its events up to `position`, where its stream is; not before its first revision, as
    /// in etcd.
    fn is_up_to_date(&self, position: i64) -> bool {
        matches!(self.phase, Phase::Live { queued: false, .. }) && position >= self.start
    }
}

/// The page that is being read.
async fn finished(job: &mut Option<JoinHandle<Read>>) -> Read {
    let Some(running) = job else { return std::future::pending().await };
    let page = running.await.unwrap_or_else(|error| {
        (Replay::default(), Err(Error::Unavailable(format!("the log could not be read: {error}"))))
    });
    *job = None;
    page
}
