//! Remembered counts of paged lists.
//!
//! Every page of a list tells how many keys are left in all, which without help means counting to the end for each page. But the next
//! page asks from behind the last key for the same revision, and that count is known when this page is answered.
//!
//! Invariant: a count is for exactly the range and revision that it is found under; what exists at a revision never changes.

use std::collections::HashMap;
use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

use crate::limits::COUNTS_MAX;
use crate::mvcc::{KeyRange, RangeQuery};

/// The counts of the most recent pages' continuations.
#[derive(Default)]
pub(crate) struct Counts {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    counts: HashMap<(KeyRange, i64), i64>,
    /// Oldest first.
    order: VecDeque<(KeyRange, i64)>,
}

impl Counts {
    /// The number of keys in the query's range at its revision, if a page before it left that.
    pub(crate) fn get(&self, query: &RangeQuery) -> Option<i64> {
        self.state.lock().counts.get(&(query.range.clone(), query.revision)).copied()
    }

    /// Remembers that `count` keys of the query's range come behind `last_key`.
    pub(crate) fn put(&self, query: &RangeQuery, last_key: &[u8], count: i64) {
        let mut start = BytesMut::with_capacity(last_key.len() + 1);
        start.extend_from_slice(last_key);
        start.extend_from_slice(&[0]);
        let range = KeyRange { start: start.freeze(), end: unshared(&query.range.end) };
        let mut state = self.state.lock();
        if state.order.len() == COUNTS_MAX
            && let Some(oldest) = state.order.pop_front()
        {
            state.counts.remove(&oldest);
        }
        if state.counts.insert((range.clone(), query.revision), count).is_none() {
            state.order.push_back((range, query.revision));
        }
    }
}

/// A copy that does not keep a request's whole message alive.
fn unshared(end: &crate::mvcc::RangeEnd) -> crate::mvcc::RangeEnd {
    match end {
        crate::mvcc::RangeEnd::Before(end) => crate::mvcc::RangeEnd::Before(Bytes::copy_from_slice(end)),
        other => other.clone(),
    }
}
