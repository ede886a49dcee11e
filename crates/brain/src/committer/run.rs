//! The committer's two threads: one evaluates, the other waits for the engine.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use kubewharf_engine::{Batch, Cause, CommitError, Engine, EngineError, Head, Limits, Snapshot, Table};
use parking_lot::{Mutex, MutexGuard};
use tracing::{error, info, warn};

use super::batch::{Content, Entry, Ground, LeaseChange, Unread, evaluate};
use super::cache::{RowCache, View};
use super::outcome::{Resolution, Step};
use super::{Inbox, Submission, Threads, WriteRequest};
use crate::error::Error;
use crate::limits::{
    BATCH_BYTES, BATCH_REQUESTS_MAX, COMMIT_STALL, PREFETCH_REQUESTS_MAX, READ_RETRY, RESOLVE_MS_MAX,
    WRITE_RESPONSE_BYTES_MAX,
};
use crate::meta;
use crate::mvcc::{Bounds, Overlay, Revisions, single_keys};
use crate::store::Published;

/// Submissions that interrupt the wait for a commit: fewer are evaluated when it ends, which costs less than a wake-up each.
const WAKE_AT_IN_FLIGHT: usize = 16;

/// The longest wait for more requests before a commit.
const GATHER_MAX: Duration = Duration::from_millis(1);

/// A short wait before a commit, for the clients that were just answered: most ask again at once, and each commit costs
/// the same whether it holds half of the requests under way or all of them.
#[derive(Clone, Copy, Debug)]
struct Gather {
    /// The wait ends with this many requests,
    requests: usize,
    /// or now, an eighth of a commit's time after the last one.
    until: Instant,
}

/// How writing ends other than by being told to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndKind {
    /// Another process has the store.
    Deposed,
    /// The engine gives no answers; another process may get some.
    GivenUp,
    /// The engine has lost what it had confirmed.
    Lost,
    /// The engine failed, or this process did.
    Poisoned,
}

/// The end of writing, other than by being told to.
#[derive(Clone, Debug)]
pub(crate) struct End {
    pub(crate) kind: EndKind,
    pub(crate) why: String,
}

/// Is told of the end.
pub(crate) type OnEnd = Arc<dyn Fn(&End) + Send + Sync>;

/// A batch under way.
struct InFlight {
    resolution: Resolution,
    overlay: Arc<Overlay>,
    entries: Vec<Entry>,
    bytes: usize,
    events: crate::watch::EventsBuilder,
    leases: Vec<LeaseChange>,
    revisions: Revisions,
    begun: Instant,
    /// It takes so long that the store says that it is not ready.
    is_stalled: bool,
}

/// A batch growing on a snapshot that shows at least everything confirmed when it was begun, with the batch laid over it that was
/// in flight then.
struct Growing<'e> {
    snapshot: Box<dyn Snapshot + 'e>,
    below: Option<Arc<Overlay>>,
    content: Content,
}

/// What the committer is given at its start.
pub(crate) struct Committer {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) published: Arc<Published>,
    pub(crate) head: Head,
    pub(crate) compacted: i64,
    /// Bytes of rows to remember of an engine that others may write too; `None` for an engine of one's own.
    pub(crate) shared_cache_bytes: Option<usize>,
    pub(crate) on_end: OnEnd,
}

impl Committer {
    /// Starts both threads; they end when the inbox is closed and empty.
    pub(crate) fn start(self) -> std::io::Result<Threads> {
        // One batch is under way at most.
        let (commits, to_commit) = mpsc::sync_channel::<(Arc<Batch>, Duration)>(1);
        let engine = self.engine.clone();
        let inbox = self.inbox.clone();
        let commit_thread = thread::Builder::new().name("engine-commit".to_owned()).spawn(move || {
            while let Ok((batch, pause)) = to_commit.recv() {
                if !pause.is_zero() {
                    thread::sleep(pause);
                }
                // Nobody may wait for an outcome that never comes.
                let result = catch_unwind(AssertUnwindSafe(|| engine.commit(&batch)));
                let panicked = |_| Err(CommitError::Fatal(Cause::Poisoned("the engine panicked".to_owned())));
                inbox.committed(result.unwrap_or_else(panicked));
            }
        })?;
        let committer_thread = thread::Builder::new().name("committer".to_owned()).spawn(move || {
            let engine = self.engine.clone();
            let mut run = Run {
                engine: engine.as_ref(),
                bounds: bounds(engine.limits()),
                head: self.head,
                confirmed: Revisions { newest: self.head.revision, compacted: self.compacted },
                inbox: self.inbox,
                published: self.published,
                commits,
                ended: None,
                on_end: self.on_end.clone(),
                cache: self.shared_cache_bytes.map(|bytes| Arc::new(Mutex::new(RowCache::new(bytes)))),
                deposed_by: Arc::default(),
                unread_since: None,
                in_flight: None,
                growing: None,
                backlog: std::collections::VecDeque::new(),
                alone: 0,
                gather: None,
            };
            let (inbox, on_end) = (run.inbox.clone(), self.on_end);
            // Nobody may wait for a thread that is gone. The unwinding drops, and so answers, what the thread had taken.
            if catch_unwind(AssertUnwindSafe(move || run.run())).is_err() {
                inbox
                    .abandon(&Error::Unavailable("the store has stopped after a failure; its log says why".to_owned()));
                on_end(&End { kind: EndKind::Poisoned, why: "the committer panicked".to_owned() });
            }
        })?;
        Ok(Threads { committer: committer_thread, commits: commit_thread })
    }
}

/// What an engine with these limits lets one request do in a batch that has others before it.
fn bounds(limits: Limits) -> Bounds {
    Bounds {
        // Each key has a row in the current table and in the log, and may be attached to one lease and detached from another.
        keys: limits.batch_operations_max / 4,
        row_bytes: limits.batch_bytes_max.saturating_sub(BATCH_BYTES),
        response_bytes: WRITE_RESPONSE_BYTES_MAX,
    }
}

struct Run<'e> {
    engine: &'e dyn Engine,
    /// The most that one request may change and return.
    bounds: Bounds,
    /// The confirmed head, and the revisions that go with it.
    head: Head,
    confirmed: Revisions,
    inbox: Arc<Inbox>,
    published: Arc<Published>,
    commits: mpsc::SyncSender<(Arc<Batch>, Duration)>,
    /// Why nothing is written any more.
    ended: Option<EndKind>,
    on_end: OnEnd,
    /// What is known of an engine that others may write too.
    cache: Option<Arc<Mutex<RowCache>>>,
    /// The epoch of another writer, 0 for none.
    deposed_by: Arc<AtomicU64>,
    /// Since when the engine can't be read.
    unread_since: Option<Instant>,
    in_flight: Option<InFlight>,
    growing: Option<Growing<'e>>,
    backlog: std::collections::VecDeque<Submission>,
    /// How many of the next submissions get a batch of their own, so that one that the engine refuses takes no other with it.
    alone: usize,
    gather: Option<Gather>,
}

impl<'e> Run<'e> {
    fn run(&mut self) {
        while let Some(result) = self.wait() {
            if let Some(result) = result {
                self.settle(result);
            }
            self.evaluate_backlog();
            self.submit();
        }
    }

    /// Waits for something to do and takes it: submissions into the backlog, and a commit's result. `None` when all is done.
    fn wait(&mut self) -> Option<Option<Result<(), CommitError>>> {
        let mut state = self.inbox.state.lock();
        loop {
            let result = state.result.take();
            let takes = self.backlog.is_empty() && !state.submissions.is_empty();
            if takes {
                std::mem::swap(&mut self.backlog, &mut state.submissions);
            }
            if result.is_some() || takes {
                return Some(result);
            }
            if let Some(gather) = self.gather.filter(|_| self.in_flight.is_none()) {
                if state.closed.is_some() || Instant::now() >= gather.until {
                    self.gather = None;
                    return Some(None);
                }
                state.wake_at = gather.requests.saturating_sub(self.growing_requests()).max(1);
                self.inbox.arrived.wait_until(&mut state, gather.until);
                state.wake_at = usize::MAX;
                continue;
            }
            if state.closed.is_some() && self.in_flight.is_none() && self.backlog.is_empty() {
                return None;
            }
            state.wake_at = match &self.in_flight {
                // What arrives has to wait for what is here.
                _ if !self.backlog.is_empty() => usize::MAX,
                Some(_) => WAKE_AT_IN_FLIGHT,
                None => 1,
            };
            match self.in_flight.as_mut().filter(|in_flight| !in_flight.is_stalled) {
                None => self.inbox.arrived.wait(&mut state),
                Some(in_flight) => {
                    let stalls = in_flight.begun + COMMIT_STALL;
                    if self.inbox.arrived.wait_until(&mut state, stalls).timed_out() && state.result.is_none() {
                        in_flight.is_stalled = true;
                        MutexGuard::unlocked(&mut state, || {
                            error!(ms = COMMIT_STALL.as_millis(), "a commit does not end: the disk does not answer");
                            self.published.set_stalled(true);
                        });
                    }
                }
            }
            state.wake_at = usize::MAX;
        }
    }

    fn evaluate_backlog(&mut self) {
        while !self.backlog.is_empty() {
            if let Some(kind) = self.ended {
                self.fail_backlog(&why_not(kind));
                return;
            }
            let alone = self.alone > 0;
            if self.growing.is_none()
                && let Err(error) = self.grow()
            {
                self.fail(self.kind_of_failure(), &format!("the engine gives no snapshot: {error}"));
                continue;
            }
            let Some(growing) = self.growing.as_mut() else { continue };
            if growing.content.entries.is_empty() && self.cache.is_some() {
                let requests = self.backlog.iter().take(PREFETCH_REQUESTS_MAX).map(|submission| &submission.request);
                // If it fails, so does what is asked for next.
                let _ = prefetch(growing.snapshot.as_ref(), requests);
            }
            if !growing.content.has_room() || (alone && !growing.content.entries.is_empty()) {
                return;
            }
            let submission = self.backlog.pop_front().expect("checked by the loop");
            self.alone = self.alone.saturating_sub(1);
            let ground = Ground {
                snapshot: growing.snapshot.as_ref(),
                in_flight: growing.below.as_deref(),
                leases: self.published.leases(),
                bounds: self.bounds,
                is_shared: self.cache.is_some(),
            };
            if let Err(unread) = evaluate(&mut growing.content, &ground, submission) {
                let Unread { submission, error } = *unread;
                self.backlog.push_front(submission);
                if self.may_read_again() {
                    warn!(%error, "the engine can't be read; trying again");
                    continue;
                }
                // Damage in rows is the request's own matter; here nothing can be read any more.
                self.fail(self.kind_of_failure(), &format!("the engine can't be read: {error}"));
            }
        }
    }

    /// Waits a little before an engine behind a network is read again, unless that was tried for too long. What was evaluated is evaluated again,
    /// as the view that it rests on is gone.
    fn may_read_again(&mut self) -> bool {
        let since = *self.unread_since.get_or_insert_with(Instant::now);
        let is_over = since.elapsed() >= Duration::from_millis(RESOLVE_MS_MAX);
        if self.cache.is_none() || self.deposed_by.load(Ordering::Relaxed) != 0 || is_over {
            return false;
        }
        if let Some(growing) = self.growing.take() {
            self.abandon_expiries(&growing.content.leases);
            let again = growing.content.entries.into_iter().rev().map(|entry| entry.submission);
            again.for_each(|submission| self.backlog.push_front(submission));
        }
        thread::sleep(READ_RETRY);
        true
    }

    /// What an engine that can't be read means: one that is shared may be read by others.
    fn kind_of_failure(&self) -> EndKind {
        match (self.deposed_by.load(Ordering::Relaxed), &self.cache) {
            (0, None) => EndKind::Poisoned,
            (0, Some(_)) => EndKind::GivenUp,
            _ => EndKind::Deposed,
        }
    }

    fn grow(&mut self) -> Result<(), EngineError> {
        let snapshot: Box<dyn Snapshot + 'e> = match &self.cache {
            None => {
                let snapshot = self.engine.snapshot()?;
                // Rows of another writer have revisions that are given here once more, and make no sense to the evaluation.
                self.check_epoch(snapshot.head()?)?;
                snapshot
            }
            Some(cache) => {
                let below = self.in_flight.as_ref().map(|in_flight| in_flight.overlay.clone());
                let (epoch, deposed_by) = (self.head.epoch, self.deposed_by.clone());
                Box::new(View::new(self.engine, epoch, cache.clone(), below, deposed_by))
            }
        };
        let (below, revisions) = match &self.in_flight {
            Some(in_flight) => (Some(in_flight.overlay.clone()), in_flight.revisions),
            None => (None, self.confirmed),
        };
        self.growing = Some(Growing { snapshot, below, content: Content::new(revisions) });
        Ok(())
    }

    fn check_epoch(&self, found: Head) -> Result<(), EngineError> {
        if found.epoch == self.head.epoch {
            return Ok(());
        }
        self.deposed_by.store(found.epoch, Ordering::Relaxed);
        Err(Cause::Unavailable(format!("another process took the store over: epoch {} is written", found.epoch)).into())
    }

    /// Whether this process still writes, as an engine that is shared knows it. An answer that nothing is committed for needs that: others
    /// may have written meanwhile.
    fn check_reign(&self) -> Result<(), EngineError> {
        if self.cache.is_none() { Ok(()) } else { self.check_epoch(self.engine.urgent_snapshot()?.head()?) }
    }

    /// Sends the growing batch off, or answers it if there is nothing to commit, unless an earlier one is under way.
    fn submit(&mut self) {
        if let Some(gather) = self.gather {
            let is_full = self.growing_requests() >= gather.requests || !self.backlog.is_empty();
            if self.in_flight.is_none() && !is_full && Instant::now() < gather.until {
                return;
            }
            self.gather = None;
        }
        while self.in_flight.is_none() && self.ended.is_none() {
            let Some(growing) = self.growing.take() else { return };
            if growing.content.writes() {
                self.begin_commit(growing.content);
            } else if let Err(error) = self.check_reign() {
                self.growing = Some(growing);
                if self.may_read_again() {
                    warn!(%error, "the engine can't be read; trying again");
                    self.evaluate_backlog();
                    continue;
                }
                self.fail(self.kind_of_failure(), &format!("the engine can't be read: {error}"));
            } else {
                self.answer(growing.content.entries, growing.content.bytes);
            }
            // The backlog may hold more than one batch's worth, and the engine's time is used for evaluating it.
            self.evaluate_backlog();
        }
    }

    fn growing_requests(&self) -> usize {
        self.growing.as_ref().map_or(0, |growing| growing.content.entries.len())
    }

    fn begin_commit(&mut self, content: Content) {
        let batch = content.to_batch(self.head);
        let Content { entries, bytes, overlay, events, leases, revisions, .. } = content;
        self.in_flight = Some(InFlight {
            resolution: Resolution::new(batch.clone()),
            overlay: Arc::new(overlay),
            entries,
            bytes,
            events,
            leases,
            revisions,
            begun: Instant::now(),
            is_stalled: false,
        });
        self.send(batch, Duration::ZERO);
    }

    fn send(&self, batch: Arc<Batch>, pause: Duration) {
        self.commits.send((batch, pause)).expect("the commit thread lives as long as this sender");
    }

    fn settle(&mut self, result: Result<(), CommitError>) {
        // After a failure nobody waits for the batch any more.
        let Some(in_flight) = self.in_flight.as_mut() else { return };
        match in_flight.resolution.step(result) {
            Step::Applied(head) => self.confirm(head),
            Step::NotApplied(cause) => self.refuse(&cause.into()),
            // The attempts themselves may take long.
            Step::Retry { .. } if in_flight.begun.elapsed() >= Duration::from_millis(RESOLVE_MS_MAX) => {
                self.fail(EndKind::GivenUp, "the outcome of a commit can't be found out");
            }
            Step::Retry { batch, after_ms } => {
                warn!(after_ms, "the outcome of a commit is unknown; asking again");
                self.send(batch, Duration::from_millis(after_ms));
            }
            Step::Deposed(why) => self.fail(EndKind::Deposed, &why),
            Step::GivenUp(why) => self.fail(EndKind::GivenUp, &why),
            Step::Lost(why) => self.fail(EndKind::Lost, &why),
            Step::Fatal(cause) => self.fail(EndKind::Poisoned, &cause.to_string()),
        }
    }

    /// Takes the batch whose commit has ended.
    fn take_in_flight(&mut self) -> InFlight {
        let in_flight = self.in_flight.take().expect("checked by `settle`");
        if in_flight.is_stalled {
            let ms = u64::try_from(in_flight.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            info!(ms, "the commit that did not end has ended");
            self.published.set_stalled(false);
        }
        in_flight
    }

    fn confirm(&mut self, head: Head) {
        let in_flight = self.take_in_flight();
        self.head = head;
        self.unread_since = None;
        self.confirmed = in_flight.revisions;
        let metrics = self.published.commit_metrics();
        if let Some(cache) = &self.cache {
            let mut cache = cache.lock();
            cache.confirmed(&in_flight.overlay);
            let (hits, misses) = cache.take_counts();
            metrics.cache_hits.add(hits);
            metrics.cache_misses.add(misses);
        }
        let took = in_flight.begun.elapsed();
        metrics.seconds.observe_time(took);
        let requests = in_flight.entries.len() + self.growing_requests();
        if requests > 1 && self.alone == 0 {
            let until = Instant::now() + (took / 8).min(GATHER_MAX);
            self.gather = Some(Gather { requests: requests.min(BATCH_REQUESTS_MAX), until });
        }
        metrics.requests.observe(f64::from(u32::try_from(in_flight.entries.len()).unwrap_or(u32::MAX)));
        self.published.publish(in_flight.revisions, in_flight.events, &in_flight.leases);
        self.answer(in_flight.entries, in_flight.bytes);
    }

    /// The engine certainly did not take the batch. If it held several requests, each is tried again by itself.
    fn refuse(&mut self, error: &Error) {
        let in_flight = self.take_in_flight();
        self.abandon_expiries(&in_flight.leases);
        let mut again: std::collections::VecDeque<Submission> = std::collections::VecDeque::new();
        let count = in_flight.entries.len();
        if count == 1 {
            warn!(%error, "the engine refused a write");
            self.inbox.answered(count, in_flight.bytes);
            in_flight.entries.into_iter().for_each(|entry| entry.answer_unconfirmed(error, error));
        } else {
            again.extend(in_flight.entries.into_iter().map(|entry| entry.submission));
            self.alone = count;
        }
        // What was evaluated on top of it, failed compares too, is evaluated again.
        if let Some(growing) = self.growing.take() {
            self.abandon_expiries(&growing.content.leases);
            again.extend(growing.content.entries.into_iter().map(|entry| entry.submission));
        }
        again.append(&mut self.backlog);
        self.backlog = again;
    }

    fn abandon_expiries(&self, changes: &[LeaseChange]) {
        for change in changes {
            if let LeaseChange::Revoked { id } | LeaseChange::Ending { id } = change {
                self.published.leases().abandon_expiry(*id);
            }
        }
    }

    fn answer(&self, entries: Vec<Entry>, bytes: usize) {
        self.inbox.answered(entries.len(), bytes);
        entries.into_iter().for_each(Entry::answer);
    }

    /// Stops writing for good.
    fn fail(&mut self, kind: EndKind, why: &str) {
        error!(?kind, why, "the store stops writing");
        self.ended = Some(kind);
        let error = why_not(kind);
        self.inbox.close(error.clone());
        if self.in_flight.is_some() {
            let in_flight = self.take_in_flight();
            self.inbox.answered(in_flight.entries.len(), in_flight.bytes);
            let fate = if kind == EndKind::Deposed { self.fate(&in_flight.resolution) } else { None };
            match fate {
                Some(true) => in_flight.entries.into_iter().for_each(Entry::answer),
                Some(false) => {
                    in_flight.entries.into_iter().for_each(|entry| entry.answer_unconfirmed(&error, &error));
                }
                None => {
                    let unknown = Error::OutcomeUnknown(why.to_owned());
                    in_flight.entries.into_iter().for_each(|entry| entry.answer_unconfirmed(&unknown, &error));
                }
            }
        }
        if let Some(growing) = self.growing.take() {
            self.inbox.answered(growing.content.entries.len(), growing.content.bytes);
            growing.content.entries.into_iter().for_each(|entry| entry.answer_unconfirmed(&error, &error));
        }
        self.fail_backlog(&error);
        (self.on_end)(&End { kind, why: why.to_owned() });
    }

    /// Whether the batch was applied before another process took over, if that can be told.
    fn fate(&self, resolution: &Resolution) -> Option<bool> {
        let snapshot = self.engine.snapshot().ok()?;
        let mut previous = None;
        snapshot.get(Table::Meta, &meta::PREVIOUS, &mut |row| previous = Head::decode(row)).ok()?;
        resolution.was_applied(previous?)
    }

    fn fail_backlog(&mut self, error: &Error) {
        for submission in std::mem::take(&mut self.backlog) {
            self.inbox.answered(1, submission.bytes);
            (submission.respond)(Err(error.clone()));
        }
    }
}

/// Has an engine behind a network fetch at once what the requests look at one by one.
fn prefetch<'r>(snapshot: &dyn Snapshot, requests: impl Iterator<Item = &'r WriteRequest>) -> Result<(), EngineError> {
    let mut keys = Vec::new();
    for request in requests {
        match request {
            WriteRequest::Put(put) => keys.push(&put.key[..]),
            WriteRequest::DeleteRange(delete) if delete.range_end.is_empty() => keys.push(&delete.key[..]),
            WriteRequest::Txn(txn) => single_keys(txn, &mut keys),
            _ => {}
        }
    }
    keys.sort_unstable();
    keys.dedup();
    snapshot.prefetch(Table::Current, &keys)
}

/// What is told to those whose writes were not begun.
fn why_not(kind: EndKind) -> Error {
    match kind {
        EndKind::Deposed | EndKind::GivenUp => Error::NotLeader,
        EndKind::Lost | EndKind::Poisoned => {
            Error::Unavailable("the store has stopped after a failure; its log says why".to_owned())
        }
    }
}
