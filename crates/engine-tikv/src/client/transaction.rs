//! Optimistic transactions, as Percolator has them.
//!
//! The first phase locks all rows, the primary first, whose lock decides; the second commits the primary, and with it the transaction. The locks of
//! the other rows are taken away by a task while nobody waits, or by whoever meets them. Where all rows are in one region, and few, it is one
//! message that does both.
//!
//! Invariant: no row is locked before the primary was, so what became of a transaction is known from its primary, and one that conflicts leaves no
//! locks. Each message has its own rows and no others. A failure past the first message says nothing: see [`Client::settle`].

use std::convert::Infallible;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use kubewharf_engine::Cause;
use tokio::time::{Instant, sleep};

use super::locks::{Caller, Status, describe, is_locked};
use super::region_error::Missed;
use super::regions::Region;
use super::{Backoff, Client, Reader, Use, unavailable};
use crate::generated::kvrpcpb::{CommitRequest, Mutation, PrewriteRequest, TxnHeartBeatRequest};

/// What a row counts for in a message beside its bytes.
const ROW_BYTES: usize = 64;
/// What a message should not exceed, in keys and values: an entry of the log may have some megabytes, and others wait behind it. Those of the second
/// phase have keys only, but there are stores that move the values then.
const MESSAGE_BYTES_MAX: usize = 512 << 10;
/// Messages that are under way at once.
const MESSAGES_AT_ONCE: usize = 4;
/// How long locks stay when their process is gone.
const LOCK_TTL: Duration = Duration::from_secs(3);
/// How often the primary's lock is made to stay for that long again.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long the last locks are tried to be taken away; others do it then.
const FINISH_TIMEOUT: Duration = Duration::from_secs(20);
/// With more keys, the locks of a transaction that has failed are looked for in their regions.
const KEYS_MAX: usize = 16;

/// What a transaction changes, in the order of keys. The first one is the primary.
pub(crate) type Mutations = Arc<[Mutation]>;

/// A transaction.
pub(crate) struct Transaction {
    client: Arc<Client>,
    start: u64,
    /// Not later than the cluster's clock says.
    begun: Instant,
    mutations: Mutations,
    /// Those behind the first so many were not sent.
    sent: AtomicUsize,
}

/// What became of a message of the first phase.
enum Prewritten {
    Locked,
    Committed(u64),
}

impl Transaction {
    pub(crate) async fn begin(client: Arc<Client>, mutations: Mutations, deadline: Instant) -> Result<Self, Cause> {
        let begun = Instant::now();
        let start = client.timestamp(deadline).await?;
        Ok(Self { client, start, begun, mutations, sent: AtomicUsize::new(0) })
    }

    /// What the cluster has as of the transaction's begin.
    pub(crate) fn reader(&self) -> Reader {
        Reader::new(self.client.clone(), Use::Urgent, self.start)
    }

    /// Writes all of it, or fails: its outcome is then known only once it is settled.
    pub(crate) async fn commit(&self, may_be_one_phase: bool, deadline: Instant) -> Result<(), Cause> {
        let first = match Box::pin(self.prewrite_first(may_be_one_phase, deadline)).await? {
            (Prewritten::Committed(at), _) => {
                self.client.locks.remember(self.start, Status::Committed(at));
                return Ok(());
            }
            (Prewritten::Locked, first) => first,
        };
        let committed = async {
            let others = self.messages(first..self.mutations.len(), deadline).await?;
            let prewrites = others.into_iter().map(|rows| Box::pin(self.prewrite(rows, deadline)));
            stream::iter(prewrites).buffer_unordered(MESSAGES_AT_ONCE).try_collect::<()>().await?;
            self.commit_primary(deadline).await
        };
        let (at, committed) = tokio::select! {
            committed = Box::pin(committed) => committed?,
            never = self.keep_alive(deadline) => match never {},
        };
        self.client.locks.remember(self.start, Status::Committed(at));
        if committed < self.mutations.len() {
            let rows = self.mutations[committed..].iter().map(|row| (row.key.clone(), size_of(row))).collect();
            self.client.clone().finish(self.start, at, rows);
        }
        Ok(())
    }

    /// Asks what became of it, after which nothing of it is written any more that was not.
    pub(crate) async fn settle(&self, deadline: Instant) -> Result<Status, Cause> {
        let status = self.client.settle(&self.mutations[0].key, self.start, deadline).await?;
        let sent = self.sent.load(Ordering::Relaxed);
        let keys: Vec<Bytes> = self.mutations[..sent].iter().skip(1).map(|mutation| mutation.key.clone()).collect();
        if matches!(status, Status::Alive { .. }) {
            return Ok(status);
        }
        // Whoever meets the locks does the same, so it does not matter if it is not done here.
        if let (Ok(permit), false) = (self.client.finishing.clone().try_acquire_owned(), keys.is_empty()) {
            let (client, start) = (self.client.clone(), self.start);
            tokio::spawn(async move {
                let deadline = Instant::now() + FINISH_TIMEOUT;
                let is_large = keys.len() > KEYS_MAX;
                if let Err(cause) = client.resolve_keys(Use::Views, start, status, &keys, is_large, deadline).await {
                    tracing::debug!(%cause, "locks of a transaction that has failed are left to others");
                }
                drop(permit);
            });
        }
        Ok(status)
    }

    /// The first phase's first message, with the primary; and how many rows it had.
    async fn prewrite_first(&self, may_be_one_phase: bool, deadline: Instant) -> Result<(Prewritten, usize), Cause> {
        let mut backoff = Backoff::new(deadline);
        let mut was_one_phase = false;
        loop {
            let (region, rows) = self.message(0..self.mutations.len(), deadline).await?;
            let is_one_phase = may_be_one_phase && rows.len() == self.mutations.len();
            if was_one_phase && !is_one_phase {
                // The region was split. The message before may have been carried out as a whole, so this transaction can't go on in parts.
                return Err(unavailable("a region has changed in the middle of a commit"));
            }
            was_one_phase = is_one_phase;
            let last = rows.end;
            let sent = self.send(&region, rows, is_one_phase, &mut backoff, deadline).await?;
            if let Some(prewritten) = sent {
                return Ok((prewritten, last));
            }
        }
    }

    /// The first phase for some rows, in as many messages as it takes by now.
    async fn prewrite(&self, mut rows: Range<usize>, deadline: Instant) -> Result<(), Cause> {
        let mut backoff = Backoff::new(deadline);
        while !rows.is_empty() {
            let (region, part) = self.message(rows.clone(), deadline).await?;
            let end = part.end;
            if self.send(&region, part, false, &mut backoff, deadline).await?.is_some() {
                rows.start = end;
            }
        }
        Ok(())
    }

    /// Sends one message of the first phase, once; `None` if it is to be sent again.
    async fn send(
        &self,
        region: &Region,
        rows: Range<usize>,
        is_one_phase: bool,
        backoff: &mut Backoff,
        deadline: Instant,
    ) -> Result<Option<Prewritten>, Cause> {
        self.sent.fetch_max(rows.end, Ordering::Relaxed);
        let request = PrewriteRequest {
            context: None,
            mutations: self.mutations[rows.clone()].to_vec(),
            primary_lock: self.mutations[0].key.clone(),
            start_version: self.start,
            lock_ttl: self.lock_ttl_ms(),
            txn_size: rows.len() as u64,
            // A reader can make the transaction commit behind it only where this is said.
            min_commit_ts: self.start + 1,
            try_one_pc: is_one_phase,
        };
        let answer = match self.client.send(Use::Urgent, region, request, backoff).await {
            Ok(answer) => answer,
            Err(missed) => {
                backoff.after(missed).await?;
                return Ok(None);
            }
        };
        if answer.errors.is_empty() {
            return Ok(Some(match answer.one_pc_commit_ts {
                // Also where one phase was wanted: the store then leaves locks.
                0 => Prewritten::Locked,
                at => Prewritten::Committed(at),
            }));
        }
        let mut locks = Vec::with_capacity(answer.errors.len());
        for error in answer.errors {
            let text = describe(&error);
            locks.push(error.locked.ok_or_else(|| unavailable(text))?);
        }
        let locked = is_locked(&locks[0]);
        let is_free = self.client.meet(Use::Urgent, locks, &mut Caller::Writer, deadline).await?;
        let missed = if is_free { Missed::AtOnce(locked) } else { Missed::again(locked, Duration::ZERO) };
        backoff.after(missed).await?;
        Ok(None)
    }

    /// The second phase for the primary, and for those that go with it in one message. Gives when it was committed, and how many rows were.
    async fn commit_primary(&self, deadline: Instant) -> Result<(u64, usize), Cause> {
        let mut at = self.client.timestamp(deadline).await?;
        let mut backoff = Backoff::new(deadline);
        loop {
            let (region, rows) = self.message(0..self.mutations.len(), deadline).await?;
            let keys = self.mutations[rows.clone()].iter().map(|mutation| mutation.key.clone()).collect();
            let request = CommitRequest { context: None, start_version: self.start, keys, commit_version: at };
            match self.client.send(Use::Urgent, &region, request, &backoff).await {
                Ok(answer) => match answer.error {
                    None => return Ok((at, rows.end)),
                    // A reader was told that it would be committed later, and so it is.
                    Some(error) if error.commit_ts_expired.is_some() && Instant::now() < deadline => {
                        at = self.client.timestamp(deadline).await?;
                    }
                    Some(error) => return Err(unavailable(describe(&error))),
                },
                Err(missed) => backoff.after(missed).await?,
            }
        }
    }

    /// Keeps others from taking it for dead, for as long as it is polled.
    async fn keep_alive(&self, deadline: Instant) -> Infallible {
        let primary = &self.mutations[0].key;
        loop {
            sleep(HEARTBEAT).await;
            let request = TxnHeartBeatRequest {
                context: None,
                primary_lock: primary.clone(),
                start_version: self.start,
                advise_lock_ttl: self.lock_ttl_ms(),
            };
            match self.client.send_for_key(Use::Urgent, primary, request, deadline).await {
                Ok(answer) if answer.error.is_none() => {}
                // The commit will tell.
                Ok(_) => tracing::debug!("a transaction has lost its primary's lock"),
                Err(cause) => tracing::debug!(%cause, "a transaction can't be kept alive"),
            }
        }
    }

    fn lock_ttl_ms(&self) -> u64 {
        (self.begun.elapsed() + LOCK_TTL).as_millis() as u64
    }

    /// The rows of the next message, which are in one region: at least one, and no more than fit.
    async fn message(&self, rows: Range<usize>, deadline: Instant) -> Result<(Arc<Region>, Range<usize>), Cause> {
        let region = self.client.region(&self.mutations[rows.start].key, deadline).await?;
        let end = rows.start + fitting(&self.mutations[rows.clone()], size_of, |row| region.holds(&row.key));
        Ok((region, rows.start..end))
    }

    /// These rows by messages.
    async fn messages(&self, mut rows: Range<usize>, deadline: Instant) -> Result<Vec<Range<usize>>, Cause> {
        let mut messages = Vec::new();
        while !rows.is_empty() {
            let (_, message) = self.message(rows.clone(), deadline).await?;
            rows.start = message.end;
            messages.push(message);
        }
        Ok(messages)
    }
}

/// What a row counts for in a message.
fn size_of(row: &Mutation) -> usize {
    ROW_BYTES + row.key.len() + row.value.len()
}

/// How many items go together: the first, and those behind it that are meant and still fit.
fn fitting<T>(items: &[T], size_of: impl Fn(&T) -> usize, is_meant: impl Fn(&T) -> bool) -> usize {
    let mut bytes = 0;
    let fits = |item: &&T| {
        bytes += size_of(item);
        bytes <= MESSAGE_BYTES_MAX && is_meant(item)
    };
    items.iter().take_while(fits).count().max(1)
}

impl Client {
    /// The second phase for the rows that are left, while nobody waits. Not for more transactions at once than are meant to: whoever meets the
    /// locks of others takes them away.
    fn finish(self: Arc<Self>, start: u64, at: u64, rows: Vec<(Bytes, usize)>) {
        let Ok(permit) = self.finishing.clone().try_acquire_owned() else { return };
        self.set_finishing(start, true);
        tokio::spawn(async move {
            let deadline = Instant::now() + FINISH_TIMEOUT;
            if let Err(cause) = self.commit_rows(start, at, &rows, deadline).await {
                tracing::debug!(%cause, "locks of a transaction that is committed are left to others");
            }
            self.set_finishing(start, false);
            drop(permit);
        });
    }

    /// The second phase for rows, of which each has its key and what it counts for.
    async fn commit_rows(&self, start: u64, at: u64, rows: &[(Bytes, usize)], deadline: Instant) -> Result<(), Cause> {
        let mut backoff = Backoff::new(deadline);
        let mut from = 0;
        while let Some((first, _)) = rows.get(from) {
            let region = self.region(first, deadline).await?;
            let count = fitting(&rows[from..], |(_, bytes)| *bytes, |(key, _)| region.holds(key));
            let keys = rows[from..from + count].iter().map(|(key, _)| key.clone()).collect();
            let request = CommitRequest { context: None, start_version: start, keys, commit_version: at };
            match self.send(Use::Urgent, &region, request, &backoff).await {
                Ok(answer) => match answer.error {
                    None => from += count,
                    Some(error) => return Err(unavailable(describe(&error))),
                },
                Err(missed) => backoff.after(missed).await?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_what_fits_and_at_least_one_row() {
        let rows = [3, 4, 5, 1].map(|eighths| MESSAGE_BYTES_MAX / 8 * eighths);
        let fitting_from = |from: usize| fitting(&rows[from..], |row| *row, |_| true);
        assert_eq!([0, 1, 2, 3].map(fitting_from), [2, 1, 2, 1]);
        assert_eq!(fitting(&rows, |_| MESSAGE_BYTES_MAX + 1, |_| true), 1);
        assert_eq!(fitting(&rows, |_| 1, |row| *row != rows[2]), 2);
        assert_eq!(fitting(&rows, |_| 1, |_| false), 1);
    }
}
