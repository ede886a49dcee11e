//! Reads as of a timestamp.
//!
//! Job: rows by their keys, and pages of ranges, one region at a time and in order.
//!
//! Invariant: an answer is whole: where a lock is in the way of a row, all that was asked together is asked again once it is out of the way. What
//! has no answer is asked again in smaller parts, since it may be too large to come in time.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use kubewharf_engine::{Cause, Direction};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::locks::{Caller, Passed, is_locked, lock_of};
use super::region_error::Missed;
use super::regions::Region;
use super::rpc::RegionRpc;
use super::{Backoff, Client, Use};
use crate::generated::kvrpcpb::{BatchGetRequest, KeyError, KvPair, ScanRequest};

/// How much less is asked for where there was no answer.
const SMALLER: usize = 4;
/// Regions that are asked at once for rows by their keys.
const REGIONS_AT_ONCE: usize = 4;

/// Reads as of one timestamp.
pub(crate) struct Reader {
    client: Arc<Client>,
    what_for: Use,
    timestamp: u64,
    passed: Mutex<Passed>,
}

/// Some rows of a range.
#[derive(Debug)]
pub(crate) struct Page {
    /// Keys and values, in the order of the scan.
    pub(crate) rows: Vec<(Bytes, Bytes)>,
    /// What is left of the range: its first key, and the first one behind.
    pub(crate) rest: Option<(Bytes, Bytes)>,
}

/// What came of a question to a region.
enum Asked {
    Rows(Vec<(Bytes, Bytes)>),
    /// It is to be asked again.
    Again,
    /// The same, for less: there was no answer.
    ForLess,
}

/// What answers to reads have in common.
struct Answer {
    pairs: Vec<KvPair>,
    error: Option<KeyError>,
}

impl Reader {
    pub(crate) fn new(client: Arc<Client>, what_for: Use, timestamp: u64) -> Self {
        Self { client, what_for, timestamp, passed: Mutex::default() }
    }

    /// The rows of these keys, which are in order, as far as they are there.
    pub(crate) async fn get(&self, keys: &[Bytes], deadline: Instant) -> Result<Vec<(Bytes, Bytes)>, Cause> {
        let mut groups = Vec::new();
        let mut left = keys;
        while let Some(first) = left.first() {
            let region = self.client.region(first, deadline).await?;
            let (inside, others) = left.split_at(left.iter().take_while(|key| region.holds(key)).count());
            groups.push(inside.to_vec());
            left = others;
        }
        let answers = groups.into_iter().map(|keys| Box::pin(self.get_some(keys, deadline)));
        let answers = stream::iter(answers).buffer_unordered(REGIONS_AT_ONCE);
        answers.try_concat().await
    }

    /// The rows of keys that were all in one region when that was last heard of.
    async fn get_some(&self, keys: Vec<Bytes>, deadline: Instant) -> Result<Vec<(Bytes, Bytes)>, Cause> {
        let mut backoff = Backoff::new(deadline);
        let (mut found, mut from, mut keys_max) = (Vec::new(), 0, keys.len());
        while let Some(first) = keys.get(from) {
            let region = self.client.region(first, deadline).await?;
            let inside = keys[from..].iter().take(keys_max).take_while(|key| region.holds(key)).count();
            let asked = keys[from..from + inside].to_vec();
            let request = BatchGetRequest { context: None, keys: asked, version: self.timestamp };
            let answer = self.ask(&region, request, &mut backoff, deadline, |answer| Answer {
                pairs: answer.pairs,
                error: answer.error,
            });
            match answer.await? {
                Asked::Rows(rows) => {
                    found.extend(rows);
                    from += inside;
                }
                Asked::Again => {}
                Asked::ForLess => keys_max = (keys_max / SMALLER).max(1),
            }
        }
        Ok(found)
    }

    /// The first rows of a range, at least one if there is any, and at most so many.
    pub(crate) async fn page(
        &self,
        (mut start, mut end): (Bytes, Bytes),
        mut rows_max: u32,
        direction: Direction,
        deadline: Instant,
    ) -> Result<Page, Cause> {
        let mut backoff = Backoff::new(deadline);
        loop {
            let region = match direction {
                Direction::Forward => self.client.region(&start, deadline).await?,
                Direction::Reverse => self.client.region_before(&end, deadline).await?,
            };
            let low = region.start.clone().max(start.clone());
            let high = if region.end.is_empty() { end.clone() } else { region.end.clone().min(end.clone()) };
            let is_reverse = direction == Direction::Reverse;
            let (start_key, end_key) =
                if is_reverse { (high.clone(), low.clone()) } else { (low.clone(), high.clone()) };
            let request = ScanRequest {
                context: None,
                start_key,
                limit: rows_max,
                version: self.timestamp,
                reverse: is_reverse,
                end_key,
            };
            let answer = self.ask(&region, request, &mut backoff, deadline, |answer| Answer {
                pairs: answer.pairs,
                error: answer.error,
            });
            let rows = match answer.await? {
                Asked::Rows(rows) => rows,
                Asked::Again => continue,
                Asked::ForLess => {
                    rows_max = (rows_max / SMALLER as u32).max(1);
                    continue;
                }
            };
            match (rows.last().filter(|_| rows.len() >= rows_max as usize), direction) {
                (Some((last, _)), Direction::Forward) => start = [&last[..], &[0]].concat().into(),
                (Some((last, _)), Direction::Reverse) => end = last.clone(),
                (None, Direction::Forward) => start = high,
                (None, Direction::Reverse) => end = low,
            }
            let is_over = start >= end;
            if is_over || !rows.is_empty() {
                return Ok(Page { rows, rest: (!is_over).then_some((start, end)) });
            }
        }
    }

    /// Asks a region once.
    async fn ask<R: RegionRpc>(
        &self,
        region: &Region,
        request: R,
        backoff: &mut Backoff,
        deadline: Instant,
        parts: impl FnOnce(R::Answer) -> Answer,
    ) -> Result<Asked, Cause> {
        let mut request = request;
        {
            let passed = self.passed.lock();
            let context = request.context();
            context.resolved_locks = passed.unseen.clone();
            context.committed_locks = passed.committed.clone();
        }
        let answer = match self.client.send(self.what_for, region, request, backoff).await {
            Ok(answer) => parts(answer),
            Err(missed) => {
                let asked = if matches!(missed, Missed::Lost(_)) { Asked::ForLess } else { Asked::Again };
                backoff.after(missed).await?;
                return Ok(asked);
            }
        };
        let mut locks = answer.error.into_iter().map(lock_of).collect::<Result<Vec<_>, Cause>>()?;
        let mut rows = Vec::with_capacity(answer.pairs.len());
        for KvPair { error, key, value } in answer.pairs {
            match error {
                Some(error) => locks.push(lock_of(error)?),
                None => rows.push((key, value)),
            }
        }
        if locks.is_empty() {
            return Ok(Asked::Rows(rows));
        }
        let locked = is_locked(&locks[0]);
        let mut passed = self.passed.lock().clone();
        let mut caller = Caller::Reader(self.timestamp, &mut passed);
        let is_free = self.client.meet(self.what_for, locks, &mut caller, deadline).await?;
        *self.passed.lock() = passed;
        let missed = if is_free { Missed::AtOnce(locked) } else { Missed::again(locked, Duration::ZERO) };
        backoff.after(missed).await?;
        Ok(Asked::Again)
    }
}
