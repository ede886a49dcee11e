//! Leases: who has one, until when, and what is told to the committer about it.
//!
//! The rows are the committer's: grants, revocations and checkpoints of the remaining time come here through [`Leases::apply`] once
//! they are confirmed. Renewals live in memory only. [`keeper`] is the task that ends leases whose time is up.
//!
//! Invariant: no lease ends before its time to live has passed since the answer to its grant or to its last renewal, restarts
//! included. A row never says less than that: a lease is renewed only while no remainder is stored for it or on the way there.

pub mod keeper;

use std::collections::{BTreeSet, HashMap};
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kubewharf_engine::{EngineError, Snapshot, Table};
use parking_lot::Mutex;
use tracing::error;

use crate::committer::LeaseChange;
use crate::error::Error;
use crate::limits::{LEASE_CHECKPOINT_INTERVAL, LEASE_EXPIRY_RETRY, LEASE_TTL_SECONDS_MAX, LEASE_TTL_SECONDS_MIN};
use crate::mvcc::{LeaseRecord, lease_id};

/// A clock that goes on while the machine sleeps and is never set back.
pub trait Clock: Send + Sync + 'static {
    /// The time since some moment that stays the same while the process runs.
    fn now(&self) -> Duration;
}

/// The machine's clock.
#[derive(Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        Duration::from_millis(kubewharf_foundation::clock::Clock::monotonic_ms(&kubewharf_foundation::clock::RealClock))
    }
}

/// A new lease's id: positive, and not in use by chance only.
#[must_use]
pub fn random_id() -> i64 {
    loop {
        let id = (crate::store::random_u64() & i64::MAX.cast_unsigned()).cast_signed();
        if id != 0 {
            return id;
        }
    }
}

/// The time to live that a request for `ttl_seconds` gets. etcd's limits: the shortest is one and a half election timeouts, in whole
/// seconds, at the default settings.
pub fn granted_ttl(ttl_seconds: i64) -> Result<i64, Error> {
    if ttl_seconds > LEASE_TTL_SECONDS_MAX {
        Err(Error::LeaseTtlTooLarge)
    } else {
        Ok(ttl_seconds.max(LEASE_TTL_SECONDS_MIN))
    }
}

/// The bounds of the rows in [`Table::LeaseKey`] that attach keys to the lease: the first included, the end as given.
#[must_use]
pub fn attachment_bounds(id: i64) -> ([u8; 8], Bound<[u8; 8]>) {
    let start = id.cast_unsigned();
    let end = start.checked_add(1).map_or(Bound::Unbounded, |end| Bound::Excluded(end.to_be_bytes()));
    (start.to_be_bytes(), end)
}

/// How a renewal went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Renewal {
    /// The lease has all of its time again.
    Renewed { ttl_seconds: i64 },
    /// Another process keeps the leases.
    NotOurs,
    /// There is no such lease.
    NotFound,
    /// Its time is up: it is about to be revoked and can't be renewed.
    Expired,
    /// A remainder is stored for it, or on the way; it must be cleared first.
    Checkpointed,
}

/// What a client may know about a lease's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeToLive {
    /// Whole seconds left.
    pub remaining_seconds: i64,
    /// The granted time to live, in seconds.
    pub granted_seconds: i64,
}

/// What has happened to leases since the start.
#[derive(Debug, Default)]
pub struct Counters {
    granted: AtomicU64,
    revoked: AtomicU64,
    renewed: AtomicU64,
    expired: AtomicU64,
    damaged_attachments: AtomicU64,
}

impl Counters {
    /// Leases granted.
    pub fn granted(&self) -> u64 {
        self.granted.load(Ordering::Relaxed)
    }

    /// Leases revoked, the expired ones too.
    pub fn revoked(&self) -> u64 {
        self.revoked.load(Ordering::Relaxed)
    }

    /// Renewals.
    pub fn renewed(&self) -> u64 {
        self.renewed.load(Ordering::Relaxed)
    }

    /// Leases whose time was up.
    pub fn expired(&self) -> u64 {
        self.expired.load(Ordering::Relaxed)
    }

    /// Damaged rows, each to attach a key, that were met when their leases ended.
    pub fn damaged_attachments(&self) -> u64 {
        self.damaged_attachments.load(Ordering::Relaxed)
    }

    pub(crate) fn count_damaged_attachment(&self) {
        self.damaged_attachments.fetch_add(1, Ordering::Relaxed);
    }
}

/// The leases in memory.
pub struct Leases {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    counters: Counters,
}

#[derive(Default)]
struct State {
    /// Whether this process keeps the leases: where another one leads, nothing is known of them here.
    are_ours: bool,
    leases: HashMap<i64, Lease>,
    /// When each lease is to be looked at for expiry; one entry a lease.
    due: BTreeSet<(Duration, i64)>,
    /// When each lease with a long time to live is to be looked at for a checkpoint; at most one entry a lease.
    checkpoints: BTreeSet<(Duration, i64)>,
}

struct Lease {
    ttl_seconds: i64,
    /// When its time is up.
    expires: Duration,
    /// Its entry in [`State::due`]: not before `expires`, later while an attempt to end it is under way.
    due: Duration,
    /// Its entry in [`State::checkpoints`].
    checkpoint_due: Option<Duration>,
    /// When its row last said what is left, or could have said "all".
    settled: Duration,
    /// The remainder in its row, in seconds; 0 for all of it.
    stored_seconds: i64,
    /// A checkpoint of a remainder is on its way.
    checkpointing: bool,
    /// The committer has taken its expiry up.
    expiring: bool,
}

impl Default for Leases {
    /// No leases, by the machine's clock.
    fn default() -> Self {
        Self { clock: Arc::new(SystemClock), state: Mutex::default(), counters: Counters::default() }
    }
}

impl State {
    fn insert(&mut self, id: i64, ttl_seconds: i64, stored_seconds: i64, now: Duration) {
        self.remove(id);
        let left = match stored_seconds {
            0 => ttl_seconds,
            LeaseRecord::ENDING => 0,
            stored_seconds => stored_seconds,
        };
        let expires = now + seconds(left);
        let is_long = seconds(ttl_seconds) > LEASE_CHECKPOINT_INTERVAL;
        let checkpoint_due = is_long.then(|| now + LEASE_CHECKPOINT_INTERVAL);
        self.due.insert((expires, id));
        self.checkpoints.extend(checkpoint_due.map(|at| (at, id)));
        self.leases.insert(
            id,
            Lease {
                ttl_seconds,
                expires,
                due: expires,
                checkpoint_due,
                settled: now,
                stored_seconds,
                checkpointing: false,
                expiring: false,
            },
        );
    }

    fn remove(&mut self, id: i64) -> Option<Lease> {
        let lease = self.leases.remove(&id)?;
        self.due.remove(&(lease.due, id));
        if let Some(at) = lease.checkpoint_due {
            self.checkpoints.remove(&(at, id));
        }
        Some(lease)
    }
}

impl Leases {
    /// The leases of a snapshot. Each goes on with what its row says is left, counted from now.
    pub fn restore(snapshot: &dyn Snapshot) -> Result<Self, EngineError> {
        Self::restore_with(snapshot, Arc::new(SystemClock))
    }

    /// As [`Leases::restore`], by another clock.
    pub fn restore_with(snapshot: &dyn Snapshot, clock: Arc<dyn Clock>) -> Result<Self, EngineError> {
        let leases = Self { clock, ..Self::default() };
        leases.reset(snapshot)?;
        Ok(leases)
    }

    /// Takes the leases of a snapshot instead of what was here.
    pub(crate) fn reset(&self, snapshot: &dyn Snapshot) -> Result<(), EngineError> {
        let now = self.clock.now();
        let mut state = State { are_ours: true, ..State::default() };
        let everything = (Bound::Unbounded, Bound::Unbounded);
        snapshot.scan_past_damage(Table::Lease, everything, &mut |key, row| {
            match (lease_id(key), row.and_then(|row| LeaseRecord::decode(row).ok())) {
                (Ok(id), Some(record)) => state.insert(id, record.ttl_seconds, record.remaining_seconds, now),
                // Nobody knows when it ends, so it lives for as long as any lease may.
                (Ok(id), None) => {
                    error!(lease = format!("{id:x}"), "the row of a lease is damaged: it lives until it is revoked");
                    state.insert(id, LEASE_TTL_SECONDS_MAX, 0, now);
                }
                (Err(_), _) => error!("the row of a lease is damaged: its keys live until they are deleted"),
            }
            ControlFlow::Continue(())
        })?;
        *self.state.lock() = state;
        Ok(())
    }

    /// Forgets all leases: they are another member's.
    pub(crate) fn clear(&self) {
        *self.state.lock() = State::default();
    }

    /// Follows confirmed changes, in their order.
    pub(crate) fn apply(&self, changes: &[LeaseChange]) {
        if changes.is_empty() {
            return;
        }
        let now = self.clock.now();
        let mut state = self.state.lock();
        for change in changes {
            match *change {
                LeaseChange::Granted { id, ttl_seconds } => {
                    state.insert(id, ttl_seconds, 0, now);
                    self.counters.granted.fetch_add(1, Ordering::Relaxed);
                }
                LeaseChange::Ending { id } => {
                    let State { leases, due, .. } = &mut *state;
                    if let Some(lease) = leases.get_mut(&id) {
                        due.remove(&(lease.due, id));
                        lease.expires = lease.expires.min(now);
                        // Whoever ends it goes on at once; this is for when nobody does.
                        lease.due = now + LEASE_EXPIRY_RETRY;
                        due.insert((lease.due, id));
                    }
                }
                LeaseChange::Revoked { id } => {
                    let removed = state.remove(id);
                    self.counters.revoked.fetch_add(1, Ordering::Relaxed);
                    if removed.is_some_and(|lease| lease.expiring) {
                        self.counters.expired.fetch_add(1, Ordering::Relaxed);
                    }
                }
                LeaseChange::Checkpointed { id, remaining_seconds } => {
                    if let Some(lease) = state.leases.get_mut(&id) {
                        lease.stored_seconds = remaining_seconds;
                    }
                }
            }
        }
    }

    /// Takes the expiry of a lease up if its time is still up: from now on it can't be renewed.
    pub(crate) fn begin_expiry(&self, id: i64) -> bool {
        let now = self.clock.now();
        let mut state = self.state.lock();
        match state.leases.get_mut(&id) {
            Some(lease) if lease.expires <= now => {
                lease.expiring = true;
                true
            }
            _ => false,
        }
    }

    /// Takes [`Leases::begin_expiry`] back: the batch was not applied.
    pub(crate) fn abandon_expiry(&self, id: i64) {
        if let Some(lease) = self.state.lock().leases.get_mut(&id) {
            lease.expiring = false;
        }
    }

    /// Whether a checkpoint of a remainder that was submitted for the lease is still meant for it, and not for an earlier one with its id.
    pub(crate) fn expects_checkpoint(&self, id: i64) -> bool {
        self.state.lock().leases.get(&id).is_some_and(|lease| lease.checkpointing)
    }

    /// Gives the lease all of its time again, unless something has to be done first. See [`keeper::renew`] for all of it.
    pub(crate) fn renew(&self, id: i64) -> Renewal {
        let now = self.clock.now();
        let mut state = self.state.lock();
        let State { are_ours, leases, due, .. } = &mut *state;
        if !*are_ours {
            return Renewal::NotOurs;
        }
        let Some(lease) = leases.get_mut(&id) else { return Renewal::NotFound };
        if lease.expiring || lease.expires <= now {
            return Renewal::Expired;
        }
        if lease.stored_seconds > 0 || lease.checkpointing {
            return Renewal::Checkpointed;
        }
        due.remove(&(lease.due, id));
        lease.expires = now + seconds(lease.ttl_seconds);
        lease.due = lease.expires;
        lease.settled = now;
        due.insert((lease.due, id));
        self.counters.renewed.fetch_add(1, Ordering::Relaxed);
        Renewal::Renewed { ttl_seconds: lease.ttl_seconds }
    }

    /// Whether this process keeps the leases.
    #[must_use]
    pub fn are_ours(&self) -> bool {
        self.state.lock().are_ours
    }

    /// How long the lease has; `None` if there is no such lease.
    #[must_use]
    pub fn time_to_live(&self, id: i64) -> Option<TimeToLive> {
        let now = self.clock.now();
        let state = self.state.lock();
        let lease = state.leases.get(&id)?;
        let remaining_seconds = whole_seconds(lease.expires.saturating_sub(now));
        Some(TimeToLive { remaining_seconds, granted_seconds: lease.ttl_seconds })
    }

    /// All leases, those that end first in front.
    #[must_use]
    pub fn list(&self) -> Vec<i64> {
        let mut leases: Vec<(Duration, i64)> =
            self.state.lock().leases.iter().map(|(id, lease)| (lease.expires, *id)).collect();
        leases.sort_unstable();
        leases.into_iter().map(|(_, id)| id).collect()
    }

    /// How many leases there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.state.lock().leases.len()
    }

    /// Whether there is no lease.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What has happened since the start.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Up to `count_max` leases whose time is up. Each is given out again only after a while, so that a lost attempt is repeated.
    pub(crate) fn take_expired(&self, count_max: usize) -> Vec<i64> {
        let now = self.clock.now();
        let mut expired = Vec::new();
        let mut state = self.state.lock();
        let State { leases, due, .. } = &mut *state;
        while expired.len() < count_max
            && let Some(&(at, id)) = due.first()
            && at <= now
        {
            due.pop_first();
            let lease = leases.get_mut(&id).expect("an entry goes with its lease");
            if lease.expires <= now {
                expired.push(id);
                lease.due = now + LEASE_EXPIRY_RETRY;
            } else {
                lease.due = lease.expires;
            }
            due.insert((lease.due, id));
        }
        expired
    }

    /// Hands the remainders of up to `count_max` leases whose checkpoint is due to `submit`, by id; tells how many.
    ///
    /// `submit` runs under the lock, so that a renewal that sees the checkpoint is ordered behind it; it must not call back here.
    /// [`Leases::checkpoints_settled`] has to follow.
    pub(crate) fn checkpoint_due(&self, count_max: usize, submit: impl FnOnce(&[(i64, i64)])) -> Vec<(i64, i64)> {
        let now = self.clock.now();
        let mut remainders = Vec::new();
        let mut state = self.state.lock();
        let State { leases, checkpoints, .. } = &mut *state;
        while remainders.len() < count_max
            && let Some(&(at, id)) = checkpoints.first()
            && at <= now
        {
            checkpoints.pop_first();
            let lease = leases.get_mut(&id).expect("an entry goes with its lease");
            // A renewal puts the checkpoint off without touching the order.
            if lease.settled + LEASE_CHECKPOINT_INTERVAL <= now {
                remainders.extend(lease.begin_checkpoint(id, now));
                lease.settled = now;
            }
            let next = lease.settled + LEASE_CHECKPOINT_INTERVAL;
            lease.checkpoint_due = Some(next);
            checkpoints.insert((next, id));
        }
        if !remainders.is_empty() {
            submit(&remainders);
        }
        remainders
    }

    /// As [`Leases::checkpoint_due`], for those of these leases that have less than what their row says.
    pub(crate) fn checkpoint(&self, ids: &[i64], submit: impl FnOnce(&[(i64, i64)])) -> Vec<(i64, i64)> {
        let now = self.clock.now();
        let mut remainders = Vec::new();
        let mut state = self.state.lock();
        for &id in ids {
            if let Some(lease) = state.leases.get_mut(&id) {
                remainders.extend(lease.begin_checkpoint(id, now));
            }
        }
        if !remainders.is_empty() {
            submit(&remainders);
        }
        remainders
    }

    /// Takes note that the checkpoints are written, or never will be.
    pub(crate) fn checkpoints_settled(&self, remainders: &[(i64, i64)]) {
        let mut state = self.state.lock();
        for (id, _) in remainders {
            if let Some(lease) = state.leases.get_mut(id) {
                lease.checkpointing = false;
            }
        }
    }

    /// The time until something is due; `None` if nothing is.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        let now = self.clock.now();
        let state = self.state.lock();
        let next = [state.due.first(), state.checkpoints.first()].into_iter().flatten().map(|(at, _)| *at).min()?;
        Some(next.saturating_sub(now))
    }
}

impl Lease {
    /// What is left, if that is less than the row says and not nothing, and a checkpoint of it from now on.
    fn begin_checkpoint(&mut self, id: i64, now: Duration) -> Option<(i64, i64)> {
        let left = self.expires.saturating_sub(now);
        // Rounded up: a lease may live a second longer, never shorter.
        let remaining_seconds = whole_seconds(left) + i64::from(left.subsec_nanos() > 0);
        let stored_seconds = if self.stored_seconds > 0 { self.stored_seconds } else { self.ttl_seconds };
        if remaining_seconds == 0 || remaining_seconds >= stored_seconds || self.expiring {
            return None;
        }
        self.settled = now;
        self.checkpointing = true;
        Some((id, remaining_seconds))
    }
}

fn seconds(count: i64) -> Duration {
    Duration::from_secs(count.max(0).cast_unsigned())
}

fn whole_seconds(time: Duration) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
