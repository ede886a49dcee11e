//! The log of committed transactions, for people and programs: one JSON object a revision.
//!
//! ```text
//! {"revision":7,"time":"2026-01-31T12:00:00.123Z","ops":[
//!   {"type":"put","key":"L2E=","value":"Yg==","lease":0,"version":2,"create_revision":5},
//!   {"type":"delete","key":"L2M="}]}
//! ```
//!
//! `key` and `value` are base64, whatever they hold; `lease` is 0 for none; `time` is the writer's wall clock. The log begins behind the
//! compacted revision and has each revision from there on.
//!
//! Invariant: a page never ends inside a revision, and a revision is never left out: a gap is an error.

use std::fmt::Write;
use std::ops::{Bound, ControlFlow};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kubewharf_engine::{Cause, Direction, EngineError, Snapshot, Table};

use crate::mvcc::{Change, Position};
use crate::store::compacted;

/// Where a page of the log starts and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRange {
    /// The first revision; 0 for the first that is left.
    pub from: i64,
    /// The last revision, at most.
    pub to: i64,
    /// Bytes after which the page ends, at the end of a revision.
    pub bytes: usize,
}

/// Some lines of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// JSON objects, each ended by a line feed.
    pub lines: String,
    /// The revision that the next page starts with.
    pub next: i64,
    /// The newest revision of the store as the page was read.
    pub newest: i64,
}

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The log begins later.
    #[error("revision {from} is compacted: the log begins at revision {first}")]
    Compacted {
        /// The revision asked for.
        from: i64,
        /// The first one left.
        first: i64,
    },
    /// The engine failed, or its rows are damaged.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// The first revision that a store writes: an empty store is at revision 1, as in etcd.
const FIRST_REVISION: i64 = 2;

/// Reads a page from a snapshot.
pub fn read(snapshot: &dyn Snapshot, range: PageRange) -> Result<Page, LogError> {
    let newest = snapshot.head()?.revision;
    let compacted = compacted(snapshot)?;
    // The compacted revision itself is still there whole.
    let first = compacted.max(FIRST_REVISION);
    let from = if range.from <= 0 { first } else { range.from.max(FIRST_REVISION) };
    if from < first {
        return Err(LogError::Compacted { from: range.from, first });
    }
    let mut lines = Lines { page: Page { lines: String::new(), next: from, newest }, ops: 0 };
    let last = range.to.min(newest);
    let mut failed = Ok(());
    let start = Position { revision: from, sub: 0 }.key();
    let bounds = (Bound::Included(&start[..]), Bound::Unbounded);
    snapshot.scan(Table::Log, bounds, Direction::Forward, &mut |key, row| {
        let read = Position::from_key(key).and_then(|position| Ok((position, Change::decode(position, row)?)));
        let (position, change) = match read {
            Ok(read) => read,
            Err(cause) => {
                failed = Err(cause);
                return ControlFlow::Break(());
            }
        };
        if position.revision > last {
            return ControlFlow::Break(());
        }
        let begins = position.revision == lines.page.next;
        if begins && lines.page.lines.len() >= range.bytes {
            return ControlFlow::Break(());
        }
        if let Err(cause) = lines.add(position, &change) {
            failed = Err(cause);
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })?;
    failed.map_err(EngineError::from)?;
    lines.end_revision();
    let page = lines.page;
    if page.next == from && page.next <= last {
        return Err(EngineError::from(missing(page.next)).into());
    }
    Ok(page)
}

struct Lines {
    page: Page,
    /// Operations of the revision under way, which is `page.next - 1`.
    ops: u32,
}

impl Lines {
    fn add(&mut self, position: Position, change: &Change<'_>) -> Result<(), Cause> {
        if position.sub == 0 {
            if position.revision != self.page.next {
                return Err(missing(self.page.next));
            }
            self.end_revision();
            self.page.next += 1;
            let time = rfc3339_ms(change.time_ms);
            let _ = write!(self.page.lines, r#"{{"revision":{},"time":"{time}","ops":["#, position.revision);
        } else {
            if position.revision != self.page.next - 1 || position.sub != self.ops {
                return Err(missing(position.revision));
            }
            self.page.lines.push(',');
        }
        self.ops += 1;
        let lines = &mut self.page.lines;
        match change.live {
            Some(live) => {
                lines.push_str(r#"{"type":"put","key":""#);
                STANDARD.encode_string(change.key, lines);
                lines.push_str(r#"","value":""#);
                STANDARD.encode_string(live.value, lines);
                let _ = write!(
                    lines,
                    r#"","lease":{},"version":{},"create_revision":{}}}"#,
                    live.lease, live.version, live.create_revision
                );
            }
            None => {
                lines.push_str(r#"{"type":"delete","key":""#);
                STANDARD.encode_string(change.key, lines);
                lines.push_str(r#""}"#);
            }
        }
        Ok(())
    }

    fn end_revision(&mut self) {
        if self.ops > 0 {
            self.page.lines.push_str("]}\n");
            self.ops = 0;
        }
    }
}

fn missing(revision: i64) -> Cause {
    Cause::Corrupt(format!("the log has a gap at revision {revision}"))
}

/// A wall clock time in UTC with milliseconds.
fn rfc3339_ms(time_ms: u64) -> String {
    let (days, ms_of_day) = (time_ms / 86_400_000, time_ms % 86_400_000);
    // Days of the proleptic Gregorian calendar, in years that begin in March, so that the leap day is the last one.
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute) = (ms_of_day / 3_600_000, ms_of_day / 60_000 % 60);
    let (second, ms) = (ms_of_day / 1000 % 60, ms_of_day % 1000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use kubewharf_engine::memory::Memory;
    use kubewharf_etcd_api::etcdserverpb::{DeleteRangeRequest, PutRequest};

    use super::*;
    use crate::committer::WriteRequest;
    use crate::{Store, StoreOptions};

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(rfc3339_ms(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339_ms(951_782_399_999), "2000-02-28T23:59:59.999Z");
        assert_eq!(rfc3339_ms(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(rfc3339_ms(1_709_251_199_001), "2024-02-29T23:59:59.001Z");
        assert_eq!(rfc3339_ms(4_107_542_400_000), "2100-03-01T00:00:00.000Z");
    }

    async fn put(store: &Store, key: &'static str, value: &'static str) {
        let request = PutRequest { key: Bytes::from(key), value: Bytes::from(value), ..PutRequest::default() };
        store.write(WriteRequest::Put(request), 1).await.unwrap();
    }

    fn page(store: &Store, from: i64, to: i64, bytes: usize) -> Result<Page, LogError> {
        read(store.snapshot().unwrap().as_ref(), PageRange { from, to, bytes })
    }

    #[tokio::test]
    async fn the_log_has_every_revision_once_in_whole_pages_until_it_is_compacted() {
        let store = Store::open(Arc::new(Memory::new()), StoreOptions::default()).unwrap();
        assert_eq!(page(&store, 0, i64::MAX, 1 << 20).unwrap(), Page { lines: String::new(), next: 2, newest: 1 });
        put(&store, "a", "1").await;
        put(&store, "b", "2").await;
        put(&store, "a", "3").await;
        let all =
            DeleteRangeRequest { key: Bytes::from_static(b"a"), range_end: Bytes::from_static(b"z"), prev_kv: false };
        store.write(WriteRequest::DeleteRange(all), 1).await.unwrap();

        let whole = page(&store, 0, i64::MAX, 1 << 20).unwrap();
        assert_eq!((whole.next, whole.newest), (6, 5));
        let lines: Vec<serde_json::Value> =
            whole.lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 4);
        let revisions: Vec<_> = lines.iter().map(|line| line["revision"].as_i64().unwrap()).collect();
        assert_eq!(revisions, [2, 3, 4, 5]);
        let update = serde_json::json!([
            {"type": "put", "key": "YQ==", "value": "Mw==", "lease": 0, "version": 2, "create_revision": 2}
        ]);
        assert_eq!(lines[2]["ops"], update);
        let deletion = serde_json::json!([{"type": "delete", "key": "YQ=="}, {"type": "delete", "key": "Yg=="}]);
        assert_eq!(lines[3]["ops"], deletion);

        let mut paged = String::new();
        let mut from = 2;
        while from <= 5 {
            let part = page(&store, from, 5, 1).unwrap();
            assert_eq!(part.next, from + 1, "a page of one byte is one revision");
            paged.push_str(&part.lines);
            from = part.next;
        }
        assert_eq!(paged, whole.lines);
        assert_eq!(page(&store, 2, 3, 1 << 20).unwrap().next, 4);
        assert_eq!(page(&store, 9, i64::MAX, 1 << 20).unwrap().next, 9);

        store.write(WriteRequest::Compact { revision: 4 }, 1).await.unwrap();
        assert!(matches!(page(&store, 3, i64::MAX, 1), Err(LogError::Compacted { from: 3, first: 4 })));
        assert_eq!(page(&store, 0, i64::MAX, 1 << 20).unwrap().lines.lines().count(), 2);
        store.close();
    }
}
