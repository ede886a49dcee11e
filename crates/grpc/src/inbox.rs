//! How other threads reach a connection's task.
//!
//! Invariant: an event that was pushed is seen by the connection's next turn, and however many events are pushed before
//! that turn, the task is woken once. A wake from inside a turn (the HTTP/2 layer wakes its own task for every frame that
//! is queued) is only noted.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Wake, Waker};

use parking_lot::Mutex;

use crate::slab::SlotId;
use crate::{Code, Reply, ServerOptions, Status};

/// Something for a connection's task to do.
pub(crate) enum Event {
    /// The outcome of a unary call.
    Reply(SlotId, Result<Reply, Status>),
    /// Send the response headers of a stream now.
    Start(SlotId),
    /// A message of a stream.
    Message(SlotId, Reply),
    /// The end of a stream.
    Finish(SlotId, Status),
    /// The HTTP/2 layer, or a plain HTTP exchange, has news for this call.
    Wake(SlotId),
}

/// The part of a connection that is shared with its handlers.
pub(crate) struct Shared {
    inbox: Mutex<Inbox>,
    /// Bytes of unary replies that wait for the client.
    outstanding: AtomicUsize,
    /// Bytes of streams that wait for the client. Counted apart, because streams that a client leaves unread must not
    /// keep it from other calls.
    stream_outstanding: AtomicUsize,
    outstanding_max: usize,
    stream_outstanding_max: usize,
    /// Memory of half-sent requests, see [`HeldRequest`].
    requests_held: AtomicUsize,
    requests_held_max: usize,
    /// The connection accepts no calls until `outstanding` has gone down.
    paused: AtomicBool,
    draining: AtomicBool,
}

struct Inbox {
    events: Vec<Event>,
    mode: Mode,
    task: Option<Waker>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// The task sleeps and must be woken.
    Asleep,
    /// The task was woken and has not run yet.
    Woken,
    /// The task runs.
    Running,
    /// The task runs and must look again before it sleeps.
    RunningAgain,
    /// The connection is gone.
    Closed,
}

impl Shared {
    pub(crate) fn new(options: &ServerOptions) -> Arc<Self> {
        Arc::new(Self {
            inbox: Mutex::new(Inbox { events: Vec::new(), mode: Mode::Woken, task: None }),
            outstanding: AtomicUsize::new(0),
            stream_outstanding: AtomicUsize::new(0),
            outstanding_max: options.connection_send_bytes_max,
            stream_outstanding_max: options.stream_send_bytes_max,
            requests_held: AtomicUsize::new(0),
            requests_held_max: options.connection_request_bytes_max,
            paused: AtomicBool::new(false),
            draining: AtomicBool::new(false),
        })
    }

    /// Leaves an event and wakes the task if nobody has yet.
    pub(crate) fn push(&self, event: Event) {
        let waker = {
            let mut inbox = self.inbox.lock();
            if inbox.mode == Mode::Closed {
                drop(inbox);
                drop(event);
                return;
            }
            inbox.events.push(event);
            inbox.notice()
        };
        if let Some(waker) = waker {
            wake(waker);
        }
    }

    fn notify(&self) {
        let waker = self.inbox.lock().notice();
        if let Some(waker) = waker {
            wake(waker);
        }
    }

    /// The task begins to run; `task` is who to wake from now on.
    pub(crate) fn begin(&self, task: &Waker) {
        let mut inbox = self.inbox.lock();
        inbox.mode = Mode::Running;
        if !inbox.task.as_ref().is_some_and(|old| old.will_wake(task)) {
            inbox.task = Some(task.clone());
        }
    }

    /// Takes all events into `events`, which must be empty, and forgets earlier wakes.
    pub(crate) fn take(&self, events: &mut Vec<Event>) {
        debug_assert!(events.is_empty());
        let mut inbox = self.inbox.lock();
        inbox.mode = Mode::Running;
        std::mem::swap(&mut inbox.events, events);
    }

    /// Forgets wakes up to now, whose reasons the task is about to look at. Events stay.
    pub(crate) fn forget_wakes(&self) {
        self.inbox.lock().mode = Mode::Running;
    }

    /// Lets the task sleep, unless something came since `take`: then returns false.
    pub(crate) fn settle(&self) -> bool {
        let mut inbox = self.inbox.lock();
        if inbox.mode == Mode::RunningAgain || !inbox.events.is_empty() {
            return false;
        }
        inbox.mode = Mode::Asleep;
        true
    }

    /// The task gives way to others with work left; it is woken already.
    pub(crate) fn yield_now(&self) {
        let mut inbox = self.inbox.lock();
        inbox.mode = Mode::Woken;
        if let Some(task) = &inbox.task {
            task.wake_by_ref();
        }
    }

    /// Gives the memory of an empty inbox back.
    pub(crate) fn shrink(&self) {
        let mut inbox = self.inbox.lock();
        if inbox.events.is_empty() {
            inbox.events = Vec::new();
        }
    }

    /// Whether the connection is gone.
    pub(crate) fn is_closed(&self) -> bool {
        self.inbox.lock().mode == Mode::Closed
    }

    /// The connection is gone: what is pushed from now on is dropped.
    pub(crate) fn close(&self) {
        let events = {
            let mut inbox = self.inbox.lock();
            inbox.mode = Mode::Closed;
            inbox.task = None;
            std::mem::take(&mut inbox.events)
        };
        drop(events);
    }

    pub(crate) fn outstanding(&self) -> usize {
        self.outstanding.load(Ordering::Relaxed)
    }

    pub(crate) fn charge(&self, bytes: usize) {
        self.outstanding.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn discharge(&self, bytes: usize) {
        let before = self.outstanding.fetch_sub(bytes, Ordering::SeqCst);
        debug_assert!(before >= bytes, "more bytes came back than were charged");
        if self.paused.load(Ordering::SeqCst) && before - bytes <= self.outstanding_max / 2 {
            self.paused.store(false, Ordering::Relaxed);
            self.notify();
        }
    }

    pub(crate) fn charge_stream(&self, bytes: usize) {
        self.stream_outstanding.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn discharge_stream(&self, bytes: usize) {
        let before = self.stream_outstanding.fetch_sub(bytes, Ordering::Relaxed);
        debug_assert!(before >= bytes, "more bytes came back than were charged");
    }

    /// Whether so many reply bytes wait that no new call may start. The task is woken when it may again.
    pub(crate) fn pause_if_full(&self) -> bool {
        if self.outstanding() <= self.outstanding_max {
            return self.paused.load(Ordering::Relaxed);
        }
        self.paused.store(true, Ordering::SeqCst);
        if self.outstanding.load(Ordering::SeqCst) <= self.outstanding_max / 2 {
            // The bytes left between the two looks, and nobody will tell.
            self.paused.store(false, Ordering::Relaxed);
            return false;
        }
        true
    }

    /// Whether a stream that has `waiting` bytes may queue `more`. One message is always allowed.
    pub(crate) fn stream_has_room(&self, waiting: usize, more: usize) -> bool {
        let all = self.stream_outstanding.load(Ordering::Relaxed);
        waiting == 0 || (waiting + more <= self.stream_outstanding_max && all + more <= self.outstanding_max)
    }

    /// Asks the connection to end when its calls have.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.notify();
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }
}

/// The memory that a half-sent request takes of its connection's share; given back when dropped.
pub(crate) struct HeldRequest {
    shared: Arc<Shared>,
    bytes: usize,
}

impl HeldRequest {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, bytes: 0 }
    }

    /// Says how much it is now. An error if that is too much with what the connection's other requests take.
    pub(crate) fn set(&mut self, bytes: usize) -> Result<(), HeldTooMuch> {
        if bytes <= self.bytes {
            if bytes < self.bytes {
                self.shared.requests_held.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
                self.bytes = bytes;
            }
            return Ok(());
        }
        let more = bytes - self.bytes;
        let all = self.shared.requests_held.fetch_add(more, Ordering::Relaxed) + more;
        self.bytes = bytes;
        // One alone is bounded by the longest message.
        if all > self.shared.requests_held_max && all > bytes {
            return Err(HeldTooMuch { bytes_max: self.shared.requests_held_max });
        }
        Ok(())
    }
}

impl Drop for HeldRequest {
    fn drop(&mut self) {
        self.shared.requests_held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The half-sent requests of a connection take too much memory.
#[derive(Debug)]
pub(crate) struct HeldTooMuch {
    bytes_max: usize,
}

impl From<HeldTooMuch> for Status {
    fn from(HeldTooMuch { bytes_max }: HeldTooMuch) -> Self {
        let text = format!("half-sent requests take more than {bytes_max} bytes on this connection");
        Self::new(Code::ResourceExhausted, text)
    }
}

impl Inbox {
    /// Notes a wake; returns the task if it has to be told.
    fn notice(&mut self) -> Option<Waker> {
        match self.mode {
            Mode::Asleep => {
                self.mode = Mode::Woken;
                self.task.clone()
            }
            Mode::Running => {
                self.mode = Mode::RunningAgain;
                None
            }
            Mode::Woken | Mode::RunningAgain | Mode::Closed => None,
        }
    }
}

impl Wake for Shared {
    fn wake(self: Arc<Self>) {
        self.notify();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.notify();
    }
}

/// The waker of one call: tells the connection which call to look at.
pub(crate) struct SlotWaker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) slot: SlotId,
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.shared.push(Event::Wake(self.slot));
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.shared.push(Event::Wake(self.slot));
    }
}

thread_local! {
    /// Wakes held back on this thread, while a [`WakeBatch`] lives.
    static HELD: RefCell<Option<Vec<Waker>>> = const { RefCell::new(None) };
}

fn wake(waker: Waker) {
    let mut waker = Some(waker);
    // A thread that is ending has no batch any more.
    let _ = HELD.try_with(|held| {
        if let Some(held) = held.borrow_mut().as_mut() {
            held.extend(waker.take());
        }
    });
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// Holds back the wakes of connections on this thread until it is dropped.
///
/// A thread that has many replies to give at once makes one of these first. Then each connection wakes when the last
/// reply is in its inbox rather than the first, and answers them all with one write. Keep it for microseconds: a
/// connection that has a held wake is not woken by others either. It belongs to its thread and must not live across an
/// await.
pub struct WakeBatch {
    outermost: bool,
    _this_thread: std::marker::PhantomData<*const ()>,
}

impl WakeBatch {
    /// Starts to hold wakes back. Within another batch this changes nothing.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        let outermost = HELD.with_borrow_mut(|held| {
            let outermost = held.is_none();
            held.get_or_insert_default();
            outermost
        });
        Self { outermost, _this_thread: std::marker::PhantomData }
    }
}

impl Drop for WakeBatch {
    fn drop(&mut self) {
        if self.outermost {
            let held = HELD.with_borrow_mut(Option::take);
            for waker in held.into_iter().flatten() {
                waker.wake();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn sleeping() -> (Arc<Shared>, Arc<Count>, SlotId) {
        let shared = Shared::new(&ServerOptions::default());
        let count = Arc::new(Count(AtomicUsize::new(0)));
        shared.begin(&Waker::from(count.clone()));
        shared.take(&mut Vec::new());
        assert!(shared.settle());
        (shared, count, crate::slab::Slab::<()>::new().next_id())
    }

    #[test]
    fn many_events_wake_a_sleeping_task_once() {
        let (shared, count, slot) = sleeping();
        for _ in 0..100 {
            shared.push(Event::Wake(slot));
        }
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        let mut events = Vec::new();
        shared.take(&mut events);
        assert_eq!(events.len(), 100);
        assert!(shared.settle());
    }

    #[test]
    fn a_wake_during_a_turn_keeps_the_task_from_sleeping_and_is_not_passed_on() {
        let (shared, count, slot) = sleeping();
        shared.begin(&Waker::from(count.clone()));
        shared.take(&mut Vec::new());
        Waker::from(shared.clone()).wake();
        assert!(!shared.settle());
        shared.take(&mut Vec::new());
        shared.push(Event::Wake(slot));
        assert!(!shared.settle());
        assert_eq!(count.0.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_wake_batch_wakes_when_its_outermost_end_is_reached() {
        let (shared, count, slot) = sleeping();
        let outer = WakeBatch::new();
        let inner = WakeBatch::new();
        shared.push(Event::Wake(slot));
        drop(inner);
        assert_eq!(count.0.load(Ordering::SeqCst), 0);
        drop(outer);
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn events_for_a_closed_connection_are_dropped() {
        let (shared, count, slot) = sleeping();
        shared.close();
        let guard = Arc::new(());
        shared.push(Event::Message(slot, Reply::default().with_guard(guard.clone())));
        assert_eq!(Arc::strong_count(&guard), 1);
        assert_eq!(count.0.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_full_connection_is_woken_when_half_is_gone() {
        let (shared, count, _) = sleeping();
        let max = ServerOptions::default().connection_send_bytes_max;
        shared.charge(max + 1);
        assert!(shared.pause_if_full());
        shared.discharge(1);
        assert!(shared.pause_if_full(), "stays paused until half is gone");
        assert_eq!(count.0.load(Ordering::SeqCst), 0);
        shared.discharge(max / 2 + 1);
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert!(!shared.pause_if_full());
    }
}
