//! The store: an engine, the committer in front of it, and what readers and watchers share with it.
//!
//! Invariant: the published revision is confirmed, its events are in the ring, and every snapshot taken after reading it shows it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use kubewharf_engine::{Batch, Cause, CommitError, Engine, EngineError, Head, Operation, Reserve, Snapshot, Table};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{oneshot, watch as signal};

use crate::committer::{
    Committer, End, Inbox, LeaseChange, OnEnd, Responder, Submission, Threads, WriteRequest, WriteResponse,
};
use crate::error::Error;
use crate::lease::Leases;
use crate::meta::{self, Identity};
use crate::mvcc::Revisions;
use crate::rpc::metrics::CommitMetrics;
use crate::watch::{EventsBuilder, Hub};

/// What the committer publishes at each confirmation, in this order: events, revisions, leases.
pub struct Published {
    newest: AtomicI64,
    compacted: AtomicI64,
    hub: Hub,
    leases: Leases,
    failure: signal::Sender<Option<String>>,
    stalled: AtomicBool,
    commits: CommitMetrics,
    /// The compacted revision, for physical compaction to follow.
    compactions: signal::Sender<i64>,
    /// The compacted revision below which nothing is left.
    trimmed: signal::Sender<i64>,
    written_rows: AtomicU64,
    written_bytes: AtomicU64,
}

/// How much was written to the log since the store was opened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Written {
    /// Changes.
    pub(crate) rows: u64,
    /// Bytes of their keys and values, about.
    pub(crate) bytes: u64,
}

impl Published {
    /// The newest confirmed and the compacted revision. The compacted one is read first: it never exceeds the other.
    #[must_use]
    pub fn revisions(&self) -> Revisions {
        let compacted = self.compacted.load(Ordering::Acquire);
        Revisions { newest: self.newest.load(Ordering::Acquire), compacted }
    }

    /// The newest confirmed revision.
    #[must_use]
    pub fn newest(&self) -> i64 {
        self.newest.load(Ordering::Acquire)
    }

    /// The watchers' side.
    #[must_use]
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// The leases in memory.
    #[must_use]
    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    pub(crate) fn publish(&self, revisions: Revisions, events: EventsBuilder, leases: &[LeaseChange]) {
        // Only for the pace of physical compaction, which is the one that reads it.
        self.written_rows.fetch_add(u64::from(events.count()), Ordering::Relaxed);
        self.written_bytes.fetch_add(events.bytes() as u64, Ordering::Relaxed);
        let batch = events.finish();
        let wakes = batch.is_some();
        if let Some(batch) = batch {
            self.hub.append(batch);
        }
        // Before the revision: a lease granted by an answered request can be renewed at once.
        self.leases.apply(leases);
        self.newest.store(revisions.newest, Ordering::Release);
        if self.compacted.swap(revisions.compacted, Ordering::AcqRel) != revisions.compacted {
            self.compactions.send_replace(revisions.compacted);
        }
        if wakes {
            self.hub.wake();
        }
    }

    /// Follows the compacted revision.
    pub(crate) fn subscribe_compactions(&self) -> signal::Receiver<i64> {
        self.compactions.subscribe()
    }

    /// Takes note that nothing is left below `compacted`.
    pub(crate) fn trimmed(&self, compacted: i64) {
        self.trimmed.send_replace(compacted);
    }

    /// How much was written.
    pub(crate) fn written(&self) -> Written {
        Written { rows: self.written_rows.load(Ordering::Relaxed), bytes: self.written_bytes.load(Ordering::Relaxed) }
    }

    /// Waits until nothing is left below `compacted`; in a store that has failed, forever.
    pub async fn wait_trimmed(&self, compacted: i64) {
        // The sender lives as long as `self`.
        let _ = self.trimmed.subscribe().wait_for(|trimmed| *trimmed >= compacted).await;
    }

    /// What the committer observes.
    #[must_use]
    pub fn commit_metrics(&self) -> &CommitMetrics {
        &self.commits
    }

    /// Takes note whether a commit is under way that takes too long.
    pub(crate) fn set_stalled(&self, is_stalled: bool) {
        self.stalled.store(is_stalled, Ordering::Relaxed);
    }

    pub(crate) fn failed(&self, why: &str) {
        self.failure.send_replace(Some(why.to_owned()));
    }
}

/// Sizes that an operator may set.
#[derive(Clone, Copy, Debug)]
pub struct StoreOptions {
    /// Bytes of recent events kept in memory for watchers.
    pub ring_bytes: usize,
    /// Bytes of rows that a leader remembers of an engine that is shared.
    pub cache_bytes: usize,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { ring_bytes: 64 << 20, cache_bytes: 64 << 20 }
    }
}

/// An open store. Cheap to share; [`Store::close`] ends it.
pub struct Store {
    engine: Arc<dyn Engine>,
    published: Arc<Published>,
    identity: Identity,
    /// Where writes go; `None` where another member writes.
    reign: ArcSwapOption<Reign>,
    /// The newest epoch known.
    epoch: AtomicU64,
    duty: Mutex<Duty>,
    /// Bytes of rows that a leader remembers of an engine that is shared; `None` for an engine of one's own.
    shared_cache_bytes: Option<usize>,
}

/// The time in which this process writes.
struct Reign {
    epoch: u64,
    inbox: Arc<Inbox>,
    threads: Mutex<Option<Threads>>,
}

/// Who publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Duty {
    /// The committer, under this epoch.
    Lead {
        /// The epoch.
        epoch: u64,
    },
    /// Whoever holds the lock of this, from what others have written.
    Follow,
}

impl Store {
    /// Opens the store in an engine that nobody else writes: reads where it stands, restores the leases, and starts the committer.
    pub fn open(engine: Arc<dyn Engine>, options: StoreOptions) -> Result<Arc<Self>, EngineError> {
        let (head, identity) = adopt(engine.as_ref())?;
        let store = Self::at(engine, head, identity, options, false)?;
        let published = store.published.clone();
        let mut duty = store.duty.lock();
        store.lead(&mut duty, head, Arc::new(move |end: &End| published.failed(&end.why)))?;
        drop(duty);
        Ok(store)
    }

    /// Opens the store in an engine that it shares with others, to follow what they write. `name` makes the member's id, and is to be
    /// its own among all members.
    pub fn join(engine: Arc<dyn Engine>, options: StoreOptions, name: &str) -> Result<Arc<Self>, EngineError> {
        crate::cluster::check_not_halted(engine.as_ref())?;
        let (head, cluster_id) = found(engine.as_ref())?;
        let mut id = [0; 8];
        id[..4].copy_from_slice(&crc32c::crc32c(name.as_bytes()).to_le_bytes());
        id[4..].copy_from_slice(&crc32c::crc32c_append(!0, name.as_bytes()).to_le_bytes());
        let member_id = (cluster_id ^ u64::from_le_bytes(id)).max(1);
        Self::at(engine, head, Identity { cluster_id, member_id }, options, true)
    }

    fn at(
        engine: Arc<dyn Engine>,
        head: Head,
        identity: Identity,
        options: StoreOptions,
        is_shared: bool,
    ) -> Result<Arc<Self>, EngineError> {
        let compacted = compacted(engine.snapshot()?.as_ref())?;
        let published = Arc::new(Published {
            newest: AtomicI64::new(head.revision),
            compacted: AtomicI64::new(compacted),
            hub: Hub::new(head.revision, options.ring_bytes),
            leases: Leases::default(),
            failure: signal::Sender::new(None),
            stalled: AtomicBool::new(false),
            commits: CommitMetrics::default(),
            compactions: signal::Sender::new(compacted),
            trimmed: signal::Sender::new(-1),
            written_rows: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
        });
        Ok(Arc::new(Self {
            engine,
            published,
            identity,
            reign: ArcSwapOption::empty(),
            epoch: AtomicU64::new(0),
            duty: Mutex::new(Duty::Follow),
            shared_cache_bytes: is_shared.then_some(options.cache_bytes),
        }))
    }

    /// The right to publish, or the knowledge of who has it.
    pub(crate) fn duty(&self) -> MutexGuard<'_, Duty> {
        self.duty.lock()
    }

    /// Begins to write behind `head`, which this process has written and up to which everything is published. `on_end` is called, on the
    /// committer's thread, if that ends by itself; nothing is published after that.
    pub(crate) fn lead(&self, duty: &mut Duty, head: Head, on_end: OnEnd) -> Result<(), EngineError> {
        if self.published.newest() != head.revision {
            // It was so long on the way that this process has followed another one since.
            return Err(Cause::Unavailable("another process has taken over already".to_owned()).into());
        }
        let compacted = {
            let snapshot = self.engine.snapshot()?;
            self.published.leases.reset(snapshot.as_ref())?;
            compacted(snapshot.as_ref())?
        };
        let inbox = Arc::new(Inbox::default());
        let committer = Committer {
            engine: self.engine.clone(),
            inbox: inbox.clone(),
            published: self.published.clone(),
            head,
            compacted,
            shared_cache_bytes: self.shared_cache_bytes,
            on_end,
        };
        let threads = committer
            .start()
            .map_err(|error| EngineError::Failed(Cause::Unavailable(format!("can't start a thread: {error}"))))?;
        *duty = Duty::Lead { epoch: head.epoch };
        self.saw_epoch(head.epoch);
        let reign = Reign { epoch: head.epoch, inbox, threads: Mutex::new(Some(threads)) };
        self.reign.store(Some(Arc::new(reign)));
        Ok(())
    }

    /// Ends writing: accepts no more, finishes what was accepted if it still can be, and follows from then on. Blocks until then.
    pub(crate) fn follow(&self) {
        if let Some(reign) = self.reign.swap(None) {
            // What is forwarded from now on is not asked of leases that others keep.
            self.published.leases.clear();
            reign.inbox.close(Error::NotLeader);
            if let Some(threads) = reign.threads.lock().take() {
                // A commit that does not return holds nothing up: whatever it is, it is fenced.
                threads.join_committer();
            }
            *self.duty.lock() = Duty::Follow;
        }
    }

    /// Takes note of an epoch.
    pub(crate) fn saw_epoch(&self, epoch: u64) {
        self.epoch.fetch_max(epoch, Ordering::AcqRel);
    }

    /// Whether this process writes.
    #[must_use]
    pub fn is_leading(&self) -> bool {
        self.reign.load().is_some()
    }

    /// The epoch in which it does.
    #[must_use]
    pub fn leading_epoch(&self) -> Option<u64> {
        self.reign.load().as_ref().map(|reign| reign.epoch)
    }

    /// Whether others may write to the engine.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.shared_cache_bytes.is_some()
    }

    /// The confirmed state.
    #[must_use]
    pub fn published(&self) -> &Arc<Published> {
        &self.published
    }

    /// The newest confirmed and the compacted revision.
    #[must_use]
    pub fn revisions(&self) -> Revisions {
        self.published.revisions()
    }

    /// Who answers.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The newest epoch known; etcd's clients know it as the raft term.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// The engine.
    #[must_use]
    pub fn engine(&self) -> &Arc<dyn Engine> {
        &self.engine
    }

    /// A view that shows at least every revision published so far.
    pub fn snapshot(&self) -> Result<Box<dyn Snapshot + '_>, EngineError> {
        self.engine.snapshot()
    }

    /// A view to read at any revision from the compacted one to the newest, and these: one that is not below what the view may have lost, and
    /// the newest confirmed before the view was taken.
    ///
    /// Where others write too, the newest is what the view itself has: it is the newest of all at that moment, so a read of it is
    /// linearizable whoever leads. `wanted` is a key that is about to be asked for.
    pub fn view(&self, wanted: Option<&[u8]>) -> Result<(Revisions, Box<dyn Snapshot + '_>), EngineError> {
        if self.is_shared() {
            let rows = [(Table::Meta, &meta::COMPACTED[..]), (Table::Current, wanted.unwrap_or_default())];
            let rows = if wanted.is_some() { &rows[..] } else { &rows[..1] };
            let snapshot = self.engine.snapshot_with(rows)?;
            let revisions = Revisions { newest: snapshot.head()?.revision, compacted: compacted(snapshot.as_ref())? };
            return Ok((revisions, snapshot));
        }
        loop {
            let newest = self.published.newest();
            let snapshot = self.snapshot()?;
            let compacted = self.published.compacted.load(Ordering::Acquire);
            // Else there were a write and a compaction meanwhile, and there is something newer to read.
            if compacted <= newest {
                return Ok((Revisions { newest, compacted }, snapshot));
            }
        }
    }

    /// The row of a key as of the newest revision, over an engine that is shared: with [`Store::view`]'s revisions, and no view kept.
    pub fn newest_of(&self, key: &[u8]) -> Result<(Revisions, Option<Bytes>), EngineError> {
        let (head, mut rows) = self.engine.read(&[(Table::Meta, &meta::COMPACTED), (Table::Current, key)])?;
        let (row, compacted) = (rows.pop().flatten(), rows.pop().flatten());
        let compacted = compacted.map_or(Ok(-1), |row| meta::decode_revision(&row))?;
        Ok((Revisions { newest: head.revision, compacted }, row))
    }

    /// Queues a write; `respond` gets its outcome on the committer's thread and must not block. `bytes` is the write's weight in the
    /// queue's bound.
    pub fn submit(&self, request: WriteRequest, bytes: usize, respond: Responder) {
        match &*self.reign.load() {
            Some(reign) => reign.inbox.submit(Submission { request, bytes, respond }),
            None => respond(Err(Error::NotLeader)),
        }
    }

    /// Queues a write and waits for its outcome.
    pub async fn write(&self, request: WriteRequest, bytes: usize) -> Result<WriteResponse, Error> {
        let (sender, receiver) = oneshot::channel();
        self.submit(request, bytes, Box::new(move |result| drop(sender.send(result))));
        receiver.await.unwrap_or_else(|_| Err(Error::Unavailable("the store has stopped".to_owned())))
    }

    /// Waits until the store has failed, and tells why. Never ends while it is healthy.
    pub async fn failed(&self) -> String {
        let mut failure = self.published.failure.subscribe();
        let failed = failure.wait_for(Option::is_some).await;
        failed.ok().and_then(|why| why.clone()).unwrap_or_else(|| "the store is gone".to_owned())
    }

    /// Whether writes wait for a commit that takes longer than a disk that works.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        self.published.stalled.load(Ordering::Relaxed)
    }

    /// Why the store has failed, if it has.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.published.failure.borrow().clone()
    }

    /// Refuses further writes, finishes those that were accepted, and ends the threads. Blocks until then.
    pub fn close(&self) {
        if let Some(reign) = &*self.reign.load() {
            reign.inbox.close(Error::Unavailable("the store is stopping".to_owned()));
            if let Some(threads) = reign.threads.lock().take() {
                threads.join();
            }
        }
    }
}

impl Drop for Store {
    /// Lets the threads end, and the engine with them, for an owner that did not wait in [`Store::close`].
    fn drop(&mut self) {
        if let Some(reign) = &*self.reign.load() {
            reign.inbox.close(Error::Unavailable("the store is gone".to_owned()));
        }
    }
}

/// Takes an engine of one's own over: a new incarnation in the head, and an identity if the store has none.
fn adopt(engine: &dyn Engine) -> Result<(Head, Identity), EngineError> {
    let (found, identity) = read_identity(engine)?;
    let mut operations = Vec::new();
    let identity = identity.unwrap_or_else(|| {
        let identity = Identity { cluster_id: random_u64(), member_id: random_u64() };
        operations.push(Operation::Put { table: Table::Meta, key: meta::IDENTITY, value: identity.encode() });
        identity
    });
    let next = new_reign(found, random_u64());
    engine
        .commit(&Batch { expected: found, next, operations, reserve: Reserve::Whole })
        .map_err(|error| EngineError::Failed(Cause::Unavailable(format!("can't take the store over: {error}"))))?;
    Ok((next, identity))
}

/// The head that a takeover of `found` leaves; `incarnation` is a random number.
pub(crate) fn new_reign(found: Head, incarnation: u64) -> Head {
    let seq = found.seq + 1;
    let batch_id = u128::from(incarnation) << 64 | u128::from(seq);
    Head { epoch: found.epoch + 1, seq, revision: found.revision, batch_id }
}

/// Reads the head and the cluster's id, which is written if the engine is new. Several processes may do that at once.
fn found(engine: &dyn Engine) -> Result<(Head, u64), EngineError> {
    const ATTEMPTS_MAX: usize = 16;
    let mut failure = Cause::Unavailable("others write".to_owned());
    for _ in 0..ATTEMPTS_MAX {
        let (head, identity) = read_identity(engine)?;
        if let Some(identity) = identity {
            return Ok((head, identity.cluster_id));
        }
        let identity = Identity { cluster_id: random_u64(), member_id: 0 };
        let next = Head { epoch: head.epoch, ..new_reign(head, random_u64()) };
        let operations = vec![Operation::Put { table: Table::Meta, key: meta::IDENTITY, value: identity.encode() }];
        // Whatever became of it, the next look tells.
        match engine.commit(&Batch { expected: head, next, operations, reserve: Reserve::Whole }) {
            Ok(()) | Err(CommitError::Fenced(_)) => {}
            Err(CommitError::NotApplied(cause) | CommitError::Unknown(cause) | CommitError::Fatal(cause)) => {
                failure = cause;
            }
        }
    }
    Err(failure.into())
}

fn read_identity(engine: &dyn Engine) -> Result<(Head, Option<Identity>), EngineError> {
    let snapshot = engine.snapshot()?;
    let mut identity = None;
    snapshot.get(Table::Meta, &meta::IDENTITY, &mut |row| identity = Some(Identity::decode(row)))?;
    Ok((snapshot.head()?, identity.transpose()?))
}

/// The compacted revision of a snapshot, -1 for none.
pub(crate) fn compacted(snapshot: &dyn Snapshot) -> Result<i64, EngineError> {
    let mut compacted = Ok(-1);
    snapshot.get(Table::Meta, &meta::COMPACTED, &mut |row| compacted = meta::decode_revision(row))?;
    Ok(compacted?)
}

/// A random number from the standard library's seeds.
pub(crate) fn random_u64() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use kubewharf_engine::memory::Memory;

    use super::*;

    #[test]
    fn a_process_that_has_followed_another_one_since_it_took_over_does_not_lead() {
        let store = Store::join(Arc::new(Memory::new()), StoreOptions::default(), "a").unwrap();
        let head = store.snapshot().unwrap().head().unwrap();
        let later = Revisions { newest: head.revision + 1, compacted: -1 };
        store.published().publish(later, EventsBuilder::default(), &[]);
        assert!(store.lead(&mut store.duty(), head, Arc::new(|_| {})).is_err());
        assert!(!store.is_leading());
    }
}
