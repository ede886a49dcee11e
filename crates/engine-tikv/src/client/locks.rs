//! Locks of other transactions that are in the way.
//!
//! A lock names its transaction and that one's primary, which decides: the transaction is alive while the primary has its lock and its time is not
//! over, and else committed or undone. Who meets the lock asks for the primary; the store itself undoes what is overdue. A lock of a transaction that is
//! over is taken away by whoever meets it, so that nothing is left of processes that die. A reader passes by a live one if that can't be committed
//! at the reader's timestamp any more, which the question itself sees to.
//!
//! Invariant: nothing is undone before its time is over, but what its own process gives up ([`Client::settle`]). Locks of transactions that are
//! committed otherwise than the engine's (asynchronously) are left alone: they are not in its keys.

use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::Bytes;
use kubewharf_engine::Cause;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::tso::LOGICAL_BITS;
use super::{Backoff, Client, Use, shortened, unavailable};
use crate::generated::kvrpcpb::{
    Action, CheckTxnStatusRequest, KeyError, LockInfo, Op, ResolveLockRequest, ScanLockRequest,
};

/// Transactions that are over, of which it is remembered how.
const KNOWN_MAX: usize = 1024;
/// Transactions that a reader passes by.
const PASSED_MAX: usize = 64;
/// With more keys in a region, all of them are taken care of at once.
const KEYS_MAX: usize = 16;
/// Locks that are looked at together in a region.
const SCANNED_MAX: u32 = 512;

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// With this timestamp.
    Committed(u64),
    /// It was undone, or never came, and never will.
    RolledBack,
    /// It may still become either; above the caller's timestamp only, if it is `is_pushed`.
    Alive { is_pushed: bool },
}

impl Status {
    /// As requests say it: when it was committed, 0 if it was undone.
    fn commit_version(self) -> u64 {
        if let Self::Committed(timestamp) = self { timestamp } else { 0 }
    }
}

/// How transactions ended, as far as it was heard of lately.
#[derive(Debug, Default)]
pub(crate) struct Locks {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    statuses: HashMap<u64, Status>,
    oldest_first: VecDeque<u64>,
}

impl Locks {
    fn get(&self, transaction: u64) -> Option<Status> {
        self.known.lock().statuses.get(&transaction).copied()
    }

    /// Remembers the end of a transaction.
    pub(crate) fn remember(&self, transaction: u64, status: Status) {
        if matches!(status, Status::Alive { .. }) {
            return;
        }
        let mut known = self.known.lock();
        if known.statuses.insert(transaction, status).is_none() {
            known.oldest_first.push_back(transaction);
            if known.oldest_first.len() > KNOWN_MAX
                && let Some(oldest) = known.oldest_first.pop_front()
            {
                known.statuses.remove(&oldest);
            }
        }
    }
}

/// Transactions whose locks a reader passes by: those that it does not see, and those that it sees as committed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Passed {
    pub(crate) unseen: Vec<u64>,
    pub(crate) committed: Vec<u64>,
}

impl Passed {
    /// Whether the reader was told before.
    fn add(list: &mut Vec<u64>, transaction: u64) -> bool {
        if list.contains(&transaction) {
            return true;
        }
        if list.len() >= PASSED_MAX {
            list.remove(0);
        }
        list.push(transaction);
        false
    }
}

/// Who has met locks.
pub(crate) enum Caller<'p> {
    /// A reader at a timestamp, and what it passes by.
    Reader(u64, &'p mut Passed),
    Writer,
}

impl Client {
    /// What became of a transaction that has not ended well: it is found committed, or can't be from then on. For its own process, which sends
    /// nothing for it any more.
    pub(crate) async fn settle(&self, primary: &Bytes, transaction: u64, deadline: Instant) -> Result<Status, Cause> {
        // As if its time were over, which a primary's lock then is taken away for; where there is none, a mark keeps it from coming.
        let question = CheckTxnStatusRequest {
            primary_key: primary.clone(),
            lock_ts: transaction,
            current_ts: u64::MAX,
            rollback_if_not_exist: true,
            ..CheckTxnStatusRequest::default()
        };
        let status = self.status(Use::Urgent, question, deadline).await?;
        status.ok_or_else(|| unavailable("a transaction is neither there nor not"))
    }

    /// Sees to locks that are in the way. Tells whether to try again at once; if not, some of them are alive.
    pub(crate) async fn meet(
        &self,
        what_for: Use,
        locks: Vec<LockInfo>,
        caller: &mut Caller<'_>,
        deadline: Instant,
    ) -> Result<bool, Cause> {
        let mut by_transaction: BTreeMap<u64, Vec<LockInfo>> = BTreeMap::new();
        for lock in locks {
            by_transaction.entry(lock.lock_version).or_default().push(lock);
        }
        let mut is_free = true;
        for (transaction, locks) in by_transaction {
            let caller_timestamp = if let Caller::Reader(timestamp, _) = caller { *timestamp } else { 0 };
            let status = self.status_of(what_for, &locks[0], caller_timestamp, deadline).await?;
            // Its other locks are being taken away just now, one after another.
            let is_own = self.is_finishing(transaction);
            let was_told = match (status, &mut *caller) {
                (Status::Alive { is_pushed: true }, Caller::Reader(_, passed)) => {
                    Passed::add(&mut passed.unseen, transaction)
                }
                (Status::Alive { .. }, _) => true,
                (Status::Committed(at), Caller::Reader(timestamp, passed)) if at <= *timestamp => {
                    Passed::add(&mut passed.committed, transaction)
                }
                (_, Caller::Reader(_, passed)) => Passed::add(&mut passed.unseen, transaction),
                (_, Caller::Writer) => false,
            };
            let is_alive = matches!(status, Status::Alive { .. });
            if is_alive || (is_own && matches!(caller, Caller::Reader(..))) {
                // A store that does not pass by although it was told to has to be waited for.
                is_free &= !was_told;
            } else {
                self.resolve(what_for, &locks, status, !is_own, deadline).await?;
            }
        }
        Ok(is_free)
    }

    /// What became of a lock's transaction.
    async fn status_of(
        &self,
        what_for: Use,
        lock: &LockInfo,
        caller_timestamp: u64,
        deadline: Instant,
    ) -> Result<Status, Cause> {
        if let Some(status) = self.locks.get(lock.lock_version) {
            return Ok(status);
        }
        let now = self.timestamp(deadline).await?;
        let is_overdue = (lock.lock_version >> LOGICAL_BITS).saturating_add(lock.lock_ttl) < now >> LOGICAL_BITS;
        let question = CheckTxnStatusRequest {
            primary_key: lock.primary_lock.clone(),
            lock_ts: lock.lock_version,
            caller_start_ts: caller_timestamp,
            current_ts: now,
            // Others of its locks may come before that of its primary.
            rollback_if_not_exist: is_overdue,
            verify_is_primary: true,
            ..CheckTxnStatusRequest::default()
        };
        let status = self.status(what_for, question, deadline).await?;
        Ok(status.unwrap_or(Status::Alive { is_pushed: false }))
    }

    /// Asks for a primary; `None` if there is no trace of its transaction, and it may still come.
    async fn status(
        &self,
        what_for: Use,
        question: CheckTxnStatusRequest,
        deadline: Instant,
    ) -> Result<Option<Status>, Cause> {
        let (primary, transaction) = (question.primary_key.clone(), question.lock_ts);
        let answer = self.send_for_key(what_for, &primary, question, deadline).await?;
        match &answer.error {
            Some(KeyError { txn_not_found: Some(_), .. }) => return Ok(None),
            Some(error) => return Err(unavailable(format!("a lock's transaction is not known: {}", describe(error)))),
            None => {}
        }
        let status = match (answer.lock_ttl, answer.commit_version) {
            (0, 0) => Status::RolledBack,
            (0, commit_version) => Status::Committed(commit_version),
            _ => Status::Alive { is_pushed: answer.action() == Action::MinCommitTsPushed },
        };
        self.locks.remember(transaction, status);
        Ok(Some(status))
    }

    /// Takes locks of one transaction away, which is over.
    async fn resolve(
        &self,
        what_for: Use,
        locks: &[LockInfo],
        status: Status,
        may_be_whole_regions: bool,
        deadline: Instant,
    ) -> Result<(), Cause> {
        let mut keys: Vec<Bytes> = locks.iter().map(|lock| lock.key.clone()).collect();
        keys.sort_unstable();
        let is_large = locks.len() > KEYS_MAX || locks.iter().any(|lock| lock.txn_size > KEYS_MAX as u64);
        let in_whole_regions = may_be_whole_regions && is_large;
        self.resolve_keys(what_for, locks[0].lock_version, status, &keys, in_whole_regions, deadline).await
    }

    /// Takes locks of a transaction away, at these keys, which are in order, or in all of their regions.
    pub(super) async fn resolve_keys(
        &self,
        what_for: Use,
        transaction: u64,
        status: Status,
        keys: &[Bytes],
        in_whole_regions: bool,
        deadline: Instant,
    ) -> Result<(), Cause> {
        let mut backoff = Backoff::new(deadline);
        let mut from = 0;
        while let Some(first) = keys.get(from) {
            let region = self.region(first, deadline).await?;
            let inside = keys[from..].iter().take_while(|key| region.holds(key)).count();
            let inside = if in_whole_regions { inside } else { inside.min(KEYS_MAX) };
            let request = ResolveLockRequest {
                context: None,
                start_version: transaction,
                commit_version: status.commit_version(),
                keys: if in_whole_regions { Vec::new() } else { keys[from..from + inside].to_vec() },
            };
            match self.send(what_for, &region, request, &backoff).await {
                Ok(answer) => {
                    if let Some(error) = answer.error {
                        return Err(unavailable(format!("a lock can't be taken away: {}", describe(&error))));
                    }
                    from += inside;
                }
                Err(missed) => backoff.after(missed).await?,
            }
        }
        Ok(())
    }

    /// Takes away all locks in the cluster that are as old as that. Gives the timestamp below which there are none: the same, or less if
    /// there are some that must stay.
    pub(crate) async fn clear(&self, before: u64, deadline: Instant) -> Result<u64, Cause> {
        let (mut clear_before, mut start) = (before, Bytes::new());
        let mut backoff = Backoff::new(deadline);
        loop {
            let region = self.region(&start, deadline).await?;
            let request = ScanLockRequest {
                context: None,
                max_version: before,
                start_key: start.clone(),
                limit: SCANNED_MAX,
                end_key: region.end.clone(),
            };
            let answer = match self.send(Use::Views, &region, request, &backoff).await {
                Ok(answer) => answer,
                Err(missed) => {
                    backoff.after(missed).await?;
                    continue;
                }
            };
            if let Some(error) = answer.error {
                return Err(unavailable(format!("locks can't be looked for: {}", describe(&error))));
            }
            let is_full = answer.locks.len() >= SCANNED_MAX as usize;
            let last = answer.locks.last().map(|lock| lock.key.clone());
            for lock in answer.locks {
                let is_ours = !lock.use_async_commit && lock.lock_type() != Op::PessimisticLock;
                // One that can't be judged stays, as those of others do, and holds the point.
                let stays = Status::Alive { is_pushed: false };
                let status = match is_ours {
                    true => self.status_of(Use::Views, &lock, 0, deadline).await.unwrap_or(stays),
                    false => stays,
                };
                if let Status::Alive { .. } = status {
                    clear_before = clear_before.min(lock.lock_version.saturating_sub(1));
                } else {
                    self.resolve(Use::Views, &[lock], status, true, deadline).await?;
                }
            }
            start = match last {
                Some(last) if is_full => [&last[..], &[0]].concat().into(),
                _ if region.end.is_empty() => return Ok(clear_before),
                _ => region.end.clone(),
            };
        }
    }
}

/// The lock that an error tells of, or the error.
pub(crate) fn lock_of(error: KeyError) -> Result<LockInfo, Cause> {
    match error.locked {
        Some(lock) => Ok(lock),
        None => Err(unavailable(format!("a row can't be read: {}", describe(&error)))),
    }
}

/// What is told where it is not waited for any longer.
pub(crate) fn is_locked(lock: &LockInfo) -> Cause {
    unavailable(format!("a row is locked by the transaction {}", lock.lock_version))
}

/// An error without the keys in it.
pub(crate) fn describe(error: &KeyError) -> String {
    let text = match error {
        KeyError { locked: Some(lock), .. } => format!("it is locked by the transaction {}", lock.lock_version),
        KeyError { conflict: Some(conflict), .. } => {
            format!("it was written by the transaction {} meanwhile", conflict.conflict_ts)
        }
        KeyError { already_exist: Some(_), .. } => "it is there already".to_owned(),
        KeyError { commit_ts_expired: Some(_), .. } => "the timestamp of the commit is too low".to_owned(),
        KeyError { commit_ts_too_large: Some(_), .. } => "the timestamp of the commit is too high".to_owned(),
        KeyError { txn_not_found: Some(_), .. } => "there is no such transaction".to_owned(),
        KeyError { txn_lock_not_found: Some(_), .. } => "the transaction has no lock there".to_owned(),
        KeyError { primary_mismatch: Some(_), .. } => "it is not the primary".to_owned(),
        KeyError { retryable, abort, .. } => format!("{retryable}{abort}"),
    };
    shortened(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_transactions_are_remembered_for_a_while() {
        let locks = Locks::default();
        locks.remember(1, Status::Alive { is_pushed: true });
        assert_eq!(locks.get(1), None);
        for transaction in 0..=KNOWN_MAX as u64 {
            locks.remember(transaction, Status::Committed(transaction + 1));
            locks.remember(transaction, Status::Committed(transaction + 1));
        }
        assert_eq!(locks.get(0), None);
        assert_eq!(locks.get(1), Some(Status::Committed(2)));
        assert_eq!(locks.known.lock().oldest_first.len(), KNOWN_MAX);
    }

    #[test]
    fn a_reader_passes_by_a_bounded_number_of_transactions() {
        let mut list = Vec::new();
        assert!(!Passed::add(&mut list, 1));
        assert!(Passed::add(&mut list, 1));
        for transaction in 2..=PASSED_MAX as u64 + 1 {
            assert!(!Passed::add(&mut list, transaction));
        }
        assert_eq!((list.len(), list[0]), (PASSED_MAX, 2));
    }
}
