//! Where commits and watch streams meet.
//!
//! The committer appends to the ring and wakes the dispatcher, a task. The dispatcher matches each segment with the
//! groups of watches once, notes in the segment what each group gets of it, and leaves a mark in the mailbox of each
//! stream that has a watch in such a group. Streams that nothing concerns are neither looked at nor woken. Whoever must
//! not wait for the dispatcher (a new watch, a request for progress) does its next steps itself.
//!
//! Invariant: everything up to [`Shared::dispatched`] is published, and has left its marks. A watch that was not marked
//! since it was last up to date has no event up to there.

use std::collections::HashMap;
use std::mem;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::{Mutex, MutexGuard, RwLock};
use tokio::sync::{Notify, Semaphore};

use super::events::{EventBatch, Runs, Segment, Selection, push_run};
use super::index::Index;
use super::replay::PageMemory;
use super::ring::{Fallen, Ring, Segments};
use super::slab::Slab;
use super::spec::Spec;
use crate::limits::{WATCH_PAGES_BYTES_MAX, WATCH_REPLAYS_MAX};

/// The watchers' side of a store.
pub struct Hub {
    shared: Arc<Shared>,
}

/// Counts of the watches, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Open watch streams.
    pub streams: u64,
    /// Watches on them.
    pub watches: u64,
    /// Watches that read the log because the ring has not all that they need.
    pub slow_watches: u64,
    /// Events handed to clients' streams since the start; an event counts once for each watch that gets it.
    pub events_sent: u64,
    /// Memory of the recent history, in bytes.
    pub ring_bytes: usize,
}

pub(super) struct Shared {
    ring: RwLock<Ring>,
    /// The last revision appended, which may not be published yet.
    appended: AtomicI64,
    /// The last revision known to be published.
    visible: AtomicI64,
    /// See the module's invariant.
    dispatched: AtomicI64,
    dispatch: Mutex<Dispatch>,
    /// Wakes the dispatcher.
    news: Notify,
    /// Wakes whoever waits for a revision to be published.
    published: Notify,
    has_dispatcher: AtomicBool,
    has_streams: AtomicBool,
    /// Bounds how many pages of the log are read at once.
    pub(super) replays: Arc<Semaphore>,
    /// Bounds what was read and is not sent yet.
    pub(super) pages: Arc<PageMemory>,
    pub(super) counters: Counters,
}

#[derive(Default)]
pub(super) struct Counters {
    pub(super) watches: AtomicU64,
    pub(super) slow_watches: AtomicU64,
    pub(super) events_sent: AtomicU64,
}

#[derive(Default)]
struct Dispatch {
    groups: Slab<Group>,
    group_of_spec: HashMap<Arc<Spec>, u32>,
    index: Index<u32>,
    streams: Slab<Arc<Mailbox>>,
    /// Why no stream may stay, if so.
    closed: Option<Arc<str>>,
    /// Groups that the segment at hand concerns; kept for its memory.
    touched: Vec<u32>,
}

/// All watches with the same [`Spec`].
struct Group {
    spec: Arc<Spec>,
    members: Slab<Member>,
    /// What the segment at hand has for the group.
    runs: Runs,
}

struct Member {
    mailbox: Arc<Mailbox>,
    serial: u64,
    /// The mailbox's turn in which the member was marked last.
    marked_in: u64,
}

/// What a stream has to look at.
#[derive(Default)]
struct Mailbox {
    mail: Mutex<Mail>,
}

#[derive(Default)]
struct Mail {
    /// Grows when the stream takes its mail.
    turn: u64,
    marks: Vec<Mark>,
    /// The last revision that something in here speaks of. It may be ahead of [`Shared::dispatched`] while a segment is
    /// being marked, also where a mark that was there already stands for the segment's too.
    marked_to: i64,
    lost_from: Option<i64>,
    closed: Option<Arc<str>>,
    waker: Option<Waker>,
}

impl Mail {
    fn is_empty(&self) -> bool {
        self.marks.is_empty() && self.lost_from.is_none() && self.closed.is_none()
    }
}

/// A watch has events.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    /// The watch.
    pub(super) serial: u64,
    /// It has none between the revision up to which it was up to date and this one.
    pub(super) from: i64,
}

/// What a stream found in its mailbox.
#[derive(Debug, Default)]
pub(super) struct News {
    /// All marks up to this revision are there.
    pub(super) dispatched: i64,
    /// Nobody looked which watches the revisions from here on concern: they have left the ring too early.
    pub(super) lost_from: Option<i64>,
    /// The stream must end, and why.
    pub(super) closed: Option<Arc<str>>,
}

impl Hub {
    /// A hub of a store whose newest revision is `start_revision`; recent events take at most `ring_bytes` of memory.
    #[must_use]
    pub fn new(start_revision: i64, ring_bytes: usize) -> Self {
        Self {
            shared: Arc::new(Shared {
                ring: RwLock::new(Ring::new(start_revision, ring_bytes)),
                appended: AtomicI64::new(start_revision),
                visible: AtomicI64::new(start_revision),
                dispatched: AtomicI64::new(start_revision),
                dispatch: Mutex::default(),
                news: Notify::new(),
                published: Notify::new(),
                has_dispatcher: AtomicBool::new(false),
                has_streams: AtomicBool::new(false),
                replays: Arc::new(Semaphore::new(WATCH_REPLAYS_MAX)),
                pages: PageMemory::new(WATCH_PAGES_BYTES_MAX),
                counters: Counters::default(),
            }),
        }
    }

    /// Takes the events of a confirmed batch that is not published yet.
    pub fn append(&self, batch: EventBatch) {
        let last = batch.last();
        {
            let mut ring = self.shared.ring.write();
            for segment in batch.segments {
                ring.append(segment);
            }
        }
        self.shared.appended.store(last, Ordering::Release);
    }

    /// Leaves out what is up to `revision`: it is compacted, or will be read from the log.
    pub(crate) fn skip(&self, revision: i64) {
        self.shared.ring.write().skip(revision);
        self.shared.appended.store(revision, Ordering::Release);
    }

    /// Says that everything appended is published.
    pub fn wake(&self) {
        self.shared.visible.fetch_max(self.shared.appended.load(Ordering::Acquire), Ordering::AcqRel);
        self.shared.published.notify_waiters();
        if self.shared.has_streams.load(Ordering::Acquire) {
            self.shared.news.notify_one();
        }
    }

    /// Waits until `revision` is published.
    pub async fn reached(&self, revision: i64) {
        loop {
            let mut published = pin!(self.shared.published.notified());
            // Before the look, so that no publication in between is missed.
            published.as_mut().enable();
            if self.shared.visible.load(Ordering::Acquire) >= revision {
                return;
            }
            published.await;
        }
    }

    /// Ends all watch streams, those to come too; clients are told `why` and that they may try elsewhere.
    pub fn close(&self, why: &str) {
        let mut wakers = Vec::new();
        {
            let mut dispatch = self.shared.dispatch.lock();
            let why = dispatch.closed.get_or_insert_with(|| why.into()).clone();
            for mailbox in dispatch.streams.iter() {
                let mut mail = mailbox.mail.lock();
                mail.closed = Some(why.clone());
                wakers.extend(mail.waker.take());
            }
        }
        wakers.into_iter().for_each(Waker::wake);
        self.shared.news.notify_one();
    }

    #[cfg(test)]
    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Counts for metrics.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        let counters = &self.shared.counters;
        Statistics {
            streams: self.shared.dispatch.lock().streams.len() as u64,
            watches: counters.watches.load(Ordering::Relaxed),
            slow_watches: counters.slow_watches.load(Ordering::Relaxed),
            events_sent: counters.events_sent.load(Ordering::Relaxed),
            ring_bytes: self.shared.ring.read().weight(),
        }
    }

    /// Lets a stream in. Must be called on a tokio runtime, which then has the dispatcher's task if it has none yet.
    pub(super) fn attach(&self) -> Attachment {
        let shared = self.shared.clone();
        let mailbox = Arc::new(Mailbox::default());
        let (place, is_open) = {
            let mut dispatch = shared.dispatch.lock();
            mailbox.mail.lock().closed.clone_from(&dispatch.closed);
            shared.has_streams.store(true, Ordering::Release);
            (dispatch.streams.insert(mailbox.clone()), dispatch.closed.is_none())
        };
        if is_open && !shared.has_dispatcher.swap(true, Ordering::AcqRel) {
            let running = Dispatcher { shared: shared.clone() };
            tokio::spawn(running.run());
        }
        Attachment { shared, mailbox, place, subscriptions: HashMap::new() }
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.close("the store is closed");
    }
}

/// The task that marks streams.
struct Dispatcher {
    shared: Arc<Shared>,
}

impl Dispatcher {
    async fn run(self) {
        loop {
            self.shared.news.notified().await;
            loop {
                let wakers = {
                    let mut dispatch = self.shared.dispatch.lock();
                    if dispatch.closed.is_some() {
                        return;
                    }
                    let target = self.shared.visible.load(Ordering::Acquire);
                    if self.shared.dispatched.load(Ordering::Acquire) >= target {
                        break;
                    }
                    self.shared.step(&mut dispatch, target)
                };
                wakers.into_iter().for_each(Waker::wake);
                // The streams that were just woken come first.
                tokio::task::yield_now().await;
            }
        }
    }
}

impl Drop for Dispatcher {
    fn drop(&mut self) {
        // Its runtime ended; another one's streams start another one.
        self.shared.has_dispatcher.store(false, Ordering::Release);
    }
}

impl Shared {
    /// Marks everything up to `newest`, which must be published, or further.
    fn dispatch_to(&self, newest: i64) -> MutexGuard<'_, Dispatch> {
        // All that is visible: `wake` may have found no stream just before, and then nobody else will do it.
        let newest = self.visible.fetch_max(newest, Ordering::AcqRel).max(newest);
        loop {
            let mut dispatch = self.dispatch.lock();
            if self.dispatched.load(Ordering::Acquire) >= newest {
                return dispatch;
            }
            let target = self.visible.load(Ordering::Acquire);
            let wakers = self.step(&mut dispatch, target);
            drop(dispatch);
            wakers.into_iter().for_each(Waker::wake);
        }
    }

    /// Marks the watches that the next segment concerns; there must be one up to `target`. Gives whom to wake.
    fn step(&self, dispatch: &mut Dispatch, target: i64) -> Vec<Waker> {
        let next = self.dispatched.load(Ordering::Acquire) + 1;
        debug_assert!(next <= target);
        if dispatch.index.is_empty() {
            self.dispatched.store(target, Ordering::Release);
            return Vec::new();
        }
        let mut segments = Segments::new();
        let result = self.ring.read().read(next, target, 1, &mut segments);
        let mut wakers = Vec::new();
        let done = match (result, segments.pop()) {
            (Err(Fallen { first }), _) => {
                // The ring may already have what is not published.
                let last = (first - 1).min(target);
                for mailbox in dispatch.streams.iter() {
                    let mut mail = mailbox.mail.lock();
                    mail.lost_from.get_or_insert(next);
                    mail.marked_to = last;
                    wakers.extend(mail.waker.take());
                }
                last
            }
            (Ok(()), Some(segment)) => {
                self.mark(dispatch, &segment, &mut wakers);
                segment.last()
            }
            (Ok(()), None) => unreachable!("what is published was appended before"),
        };
        self.dispatched.store(done, Ordering::Release);
        wakers
    }

    fn mark(&self, dispatch: &mut Dispatch, segment: &Arc<Segment>, wakers: &mut Vec<Waker>) {
        let Dispatch { groups, index, touched, .. } = dispatch;
        debug_assert!(touched.is_empty());
        for (number, event) in (0u32..).zip(segment.events()) {
            index.find(segment.key(event), |group_id| {
                let group = groups.get_mut(group_id as usize).expect("indexed groups exist");
                if group.spec.admits(event.is_delete) {
                    if group.runs.is_empty() {
                        touched.push(group_id);
                    }
                    push_run(&mut group.runs, number);
                }
            });
        }
        touched.sort_unstable();
        let mut selections = Vec::with_capacity(touched.len());
        let mut weight = 0;
        for &group_id in &*touched {
            let group = groups.get_mut(group_id as usize).expect("just found");
            let selection = Selection::new(mem::take(&mut group.runs), group.spec.prev_kv);
            weight += selection.weight(segment);
            selections.push((group_id, selection));
        }
        segment.set_selections(selections);
        if weight > 0 {
            self.ring.write().charge(segment, weight);
        }
        let (from, to) = (segment.first(), segment.last());
        for group_id in touched.drain(..) {
            let group = groups.get_mut(group_id as usize).expect("just found");
            for member in group.members.iter_mut() {
                let mut mail = member.mailbox.mail.lock();
                mail.marked_to = to;
                // A turn of 0 has not begun: members start with it.
                if member.marked_in != mail.turn + 1 {
                    member.marked_in = mail.turn + 1;
                    mail.marks.push(Mark { serial: member.serial, from });
                    wakers.extend(mail.waker.take());
                }
            }
        }
    }
}

/// A stream's place in the hub; its watches go with it.
pub(super) struct Attachment {
    pub(super) shared: Arc<Shared>,
    mailbox: Arc<Mailbox>,
    place: usize,
    /// Where the stream's watches are: group and place in it, by serial.
    subscriptions: HashMap<u64, (u32, usize)>,
}

impl Attachment {
    /// Adds the watch `serial`. From the revision behind the returned one on, which is at least `newest`, the watch is
    /// marked. The group is what segments are asked for.
    pub(super) fn subscribe(&mut self, serial: u64, spec: &Arc<Spec>, newest: i64) -> (i64, u32) {
        let mut dispatch = self.shared.dispatch_to(newest);
        let dispatch = &mut *dispatch;
        let group_id = match dispatch.group_of_spec.get(spec) {
            Some(group_id) => *group_id,
            None => {
                let group = Group { spec: spec.clone(), members: Slab::default(), runs: Runs::new() };
                let group_id =
                    u32::try_from(dispatch.groups.insert(group)).expect("watches are limited far below 2^32");
                dispatch.group_of_spec.insert(spec.clone(), group_id);
                dispatch.index.insert(&spec.range, group_id);
                group_id
            }
        };
        let group = dispatch.groups.get_mut(group_id as usize).expect("found or made above");
        let member = Member { mailbox: self.mailbox.clone(), serial, marked_in: 0 };
        self.subscriptions.insert(serial, (group_id, group.members.insert(member)));
        self.shared.counters.watches.fetch_add(1, Ordering::Relaxed);
        (self.shared.dispatched.load(Ordering::Acquire), group_id)
    }

    /// Removes the watch; marks that it has may still be found.
    pub(super) fn unsubscribe(&mut self, serial: u64) {
        if let Some(subscription) = self.subscriptions.remove(&serial) {
            self.remove(&mut self.shared.dispatch.lock(), subscription);
        }
    }

    fn remove(&self, dispatch: &mut Dispatch, (group_id, place): (u32, usize)) {
        let group = dispatch.groups.get_mut(group_id as usize).expect("a group lives as long as its members");
        group.members.remove(place);
        if group.members.is_empty() {
            let group = dispatch.groups.remove(group_id as usize).expect("just found");
            dispatch.group_of_spec.remove(&group.spec);
            dispatch.index.remove(&group.spec.range, group_id);
        }
        self.shared.counters.watches.fetch_sub(1, Ordering::Relaxed);
    }

    /// Waits until there is mail.
    pub(super) fn poll_news(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut mail = self.mailbox.mail.lock();
        if !mail.is_empty() {
            return Poll::Ready(());
        }
        match &mut mail.waker {
            Some(waker) => waker.clone_from(context.waker()),
            waker => *waker = Some(context.waker().clone()),
        }
        Poll::Pending
    }

    /// Takes the mail; the marks go to `marks`. They are those of all revisions up to [`News::dispatched`], and of no
    /// later ones.
    pub(super) fn take(&self, marks: &mut Vec<Mark>) -> News {
        debug_assert!(marks.is_empty());
        // Read first: the marks up to there are in the mailbox.
        let mut dispatched = self.shared.dispatched.load(Ordering::Acquire);
        let mut mail = self.mailbox.mail.lock();
        let mut _between_segments = None;
        if mail.marked_to > dispatched {
            // The dispatcher is in the middle of a segment, or got further meanwhile. Taken now, the mail would have lost
            // what a mark of an earlier segment says of this one. The dispatcher locks its state before a mailbox.
            drop(mail);
            _between_segments = Some(self.shared.dispatch.lock());
            dispatched = self.shared.dispatched.load(Ordering::Acquire);
            mail = self.mailbox.mail.lock();
        }
        debug_assert!(mail.marked_to <= dispatched);
        mail.turn += 1;
        mem::swap(&mut mail.marks, marks);
        News { dispatched, lost_from: mail.lost_from.take(), closed: mail.closed.clone() }
    }

    /// Why the hub is closed, if it is.
    pub(super) fn closed(&self) -> Option<Arc<str>> {
        self.mailbox.mail.lock().closed.clone()
    }

    /// Sees to it that the marks up to `newest`, which must be published, are in the mailboxes.
    pub(super) fn dispatch_to(&self, newest: i64) {
        drop(self.shared.dispatch_to(newest));
    }
}

impl Shared {
    /// See [`Ring::read`].
    pub(super) fn read(&self, from: i64, last: i64, count: usize, segments: &mut Segments) -> Result<(), Fallen> {
        self.ring.read().read(from, last, count, segments)
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let subscriptions = mem::take(&mut self.subscriptions);
        let mut dispatch = self.shared.dispatch.lock();
        dispatch.streams.remove(self.place);
        for subscription in subscriptions.into_values() {
            self.remove(&mut dispatch, subscription);
        }
        if dispatch.streams.is_empty() {
            self.shared.has_streams.store(false, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use bytes::Bytes;

    use super::*;
    use crate::mvcc::{Change, ChangeSink, KeyRange, Ladder, Position, RangeEnd, Version};
    use crate::watch::EventsBuilder;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// A stream that sleeps until it has mail.
    struct Sleeper {
        attachment: Attachment,
        wakes: Arc<Count>,
        marks: Vec<Mark>,
    }

    impl Sleeper {
        fn new(hub: &Hub) -> Self {
            Self { attachment: hub.attach(), wakes: Arc::default(), marks: Vec::new() }
        }

        fn watch(&mut self, serial: u64, start: &'static str, end: &'static str) -> (i64, u32) {
            let end =
                if end.is_empty() { RangeEnd::Single } else { RangeEnd::Before(Bytes::from_static(end.as_bytes())) };
            let range = KeyRange { start: Bytes::from_static(start.as_bytes()), end };
            let spec = Arc::new(Spec { range, puts: true, deletes: true, prev_kv: false });
            self.attachment.subscribe(serial, &spec, 0)
        }

        fn sleep(&self) {
            let waker = Waker::from(self.wakes.clone());
            assert!(self.attachment.poll_news(&mut Context::from_waker(&waker)).is_pending());
        }

        fn wakes(&self) -> usize {
            self.wakes.0.load(Ordering::SeqCst)
        }

        /// What it finds: serials and revisions, sorted, and the news.
        fn take(&mut self) -> (Vec<(u64, i64)>, News) {
            self.marks.clear();
            let news = self.attachment.take(&mut self.marks);
            let mut marks: Vec<_> = self.marks.iter().map(|mark| (mark.serial, mark.from)).collect();
            marks.sort_unstable();
            (marks, news)
        }
    }

    fn append(hub: &Hub, revision: i64, keys: &[&str]) {
        let mut builder = EventsBuilder::default();
        for (sub, key) in (0..).zip(keys) {
            let live =
                Version { create_revision: revision, mod_revision: revision, version: 1, lease: 0, value: &[7; 50] };
            let key = key.as_bytes();
            let change = Change { time_ms: 0, key, live: Some(live), previous: None, ladder: Ladder::default() };
            builder.change(Position { revision, sub }, &change);
        }
        hub.append(builder.finish().unwrap());
    }

    #[tokio::test]
    async fn only_streams_that_a_commit_concerns_are_woken_and_once() {
        let hub = Hub::new(1, 1 << 20);
        let mut prefix = Sleeper::new(&hub);
        let mut single = Sleeper::new(&hub);
        let mut other = Sleeper::new(&hub);
        assert_eq!(prefix.watch(1, "k", "l"), (1, 0));
        assert_eq!(prefix.watch(2, "k", "l"), (1, 0), "the same group");
        assert_eq!(single.watch(1, "k1", ""), (1, 1));
        other.watch(1, "x", "z");
        for sleeper in [&prefix, &single, &other] {
            sleeper.sleep();
        }
        append(&hub, 2, &["k1", "k2"]);
        hub.wake();
        append(&hub, 3, &["k3"]);
        hub.wake();
        prefix.attachment.dispatch_to(3);
        assert_eq!((prefix.wakes(), single.wakes(), other.wakes()), (1, 1, 0));
        let (marks, news) = prefix.take();
        assert_eq!((marks, news.dispatched, news.lost_from), (vec![(1, 2), (2, 2)], 3, None));
        assert_eq!(single.take().0, [(1, 2)]);
        let (marks, news) = other.take();
        assert_eq!((marks, news.dispatched), (vec![], 3));

        append(&hub, 4, &["k1"]);
        hub.wake();
        prefix.sleep();
        prefix.attachment.dispatch_to(4);
        assert_eq!(prefix.take().0, [(1, 4), (2, 4)], "taken marks can come again");
        let mut segments = Segments::new();
        hub.shared.read(2, 2, 1, &mut segments).unwrap();
        assert_eq!(segments[0].selection(0).unwrap().unwrap().events(), 2);
        assert_eq!(segments[0].selection(1).unwrap().unwrap().events(), 1);
        assert!(segments[0].selection(2).unwrap().is_none());
    }

    #[tokio::test]
    async fn what_is_appended_and_not_published_is_not_marked() {
        let hub = Hub::new(1, 1 << 20);
        let mut sleeper = Sleeper::new(&hub);
        append(&hub, 2, &["k"]);
        assert_eq!(sleeper.watch(1, "k", ""), (1, 0));
        sleeper.sleep();
        sleeper.attachment.dispatch_to(1);
        assert_eq!(sleeper.wakes(), 0);
        hub.wake();
        sleeper.attachment.dispatch_to(2);
        assert_eq!(sleeper.take().0, [(1, 2)]);
        // Without watches nothing is matched, and later watches begin later.
        sleeper.attachment.unsubscribe(1);
        append(&hub, 3, &["k"]);
        hub.wake();
        assert_eq!(sleeper.watch(2, "k", ""), (3, 0));
        assert_eq!(sleeper.take().0, []);
    }

    #[tokio::test]
    async fn revisions_that_leave_the_ring_unmarked_are_told_to_all_streams() {
        let hub = Hub::new(1, 0);
        let mut concerned = Sleeper::new(&hub);
        let mut other = Sleeper::new(&hub);
        concerned.watch(1, "k", "");
        other.watch(1, "x", "");
        for revision in 2..=5 {
            append(&hub, revision, &["k"]);
        }
        hub.wake();
        other.attachment.dispatch_to(5);
        for sleeper in [&mut concerned, &mut other] {
            let (_, news) = sleeper.take();
            assert_eq!((news.lost_from, news.dispatched), (Some(2), 5));
        }
        let (marks, news) = concerned.take();
        assert_eq!((marks.len(), news.lost_from), (0, None));
        // The ring may hold only what is not published yet.
        append(&hub, 6, &["k"]);
        append(&hub, 7, &["k"]);
        concerned.attachment.dispatch_to(6);
        let (marks, news) = concerned.take();
        assert_eq!((marks, news.lost_from, news.dispatched), (vec![], Some(6), 6));
        concerned.attachment.dispatch_to(7);
        assert_eq!(concerned.take().0, [(1, 7)]);
    }

    #[tokio::test]
    async fn mail_that_is_taken_in_the_middle_of_a_segment_has_that_segments_marks_whole() {
        let hub = Hub::new(1, 1 << 20);
        let mut sleeper = Sleeper::new(&hub);
        sleeper.watch(1, "k", "l");
        sleeper.watch(2, "m", "n");
        append(&hub, 2, &["k"]);
        hub.wake();
        sleeper.attachment.dispatch_to(2);
        append(&hub, 3, &["k", "m"]);
        let shared = hub.shared.clone();
        let taken = std::thread::scope(|scope| {
            let mut dispatch = shared.dispatch.lock();
            let mut segments = Segments::new();
            shared.read(3, 3, 1, &mut segments).unwrap();
            shared.mark(&mut dispatch, &segments[0], &mut Vec::new());
            let taker = scope.spawn(move || {
                let (marks, news) = sleeper.take();
                (marks, news.dispatched)
            });
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert!(!taker.is_finished(), "what is half marked is not taken");
            shared.dispatched.store(3, Ordering::Release);
            drop(dispatch);
            taker.join().unwrap()
        });
        assert_eq!(taken, (vec![(1, 2), (2, 3)], 3));
    }

    #[tokio::test]
    async fn the_dispatcher_marks_without_being_asked() {
        let hub = Hub::new(1, 1 << 20);
        let mut sleeper = Sleeper::new(&hub);
        sleeper.watch(9, "k", "");
        append(&hub, 2, &["k"]);
        hub.wake();
        std::future::poll_fn(|context| sleeper.attachment.poll_news(context)).await;
        assert_eq!(sleeper.take().0, [(9, 2)]);
    }
}
