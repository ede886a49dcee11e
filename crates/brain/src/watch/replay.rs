//! Pages of history for watches whose position is before what the hub marks.
//!
//! One page serves all such watches of a stream: ten thousand watches that come back after a reconnect read the history
//! once, not ten thousand times. A page is read from the ring if that has the earliest position, else from the log, by
//! one snapshot. Its events are there once, whoever wants them; what a watch gets of them is put together when it is
//! sent.
//!
//! Invariant: a page ends between transactions, its outputs are all events up to there, and a revision that the log
//! lacks without being compacted is an error. A stream has one page at most, of about [`WATCH_PAGE_BYTES`] or one
//! transaction, and all streams' pages together are bounded by [`PageMemory`].

use std::collections::HashMap;
use std::mem::{self, size_of};
use std::ops::{Bound, ControlFlow, Range};
use std::sync::Arc;

use kubewharf_engine::{Direction, EngineError, Snapshot, Table};
use kubewharf_etcd_api::encode::KeyValueRef;
use smallvec::SmallVec;
use tokio::sync::watch as signal;

use super::events::{EventsBuilder, Runs, Segment, Selection, is_create, key_value, push_run};
use super::hub::Shared;
use super::index::Index;
use super::response::Entries;
use super::ring::Segments;
use super::slab::Slab;
use super::spec::Spec;
use crate::error::Error;
use crate::limits::{WATCH_PAGE_BYTES, WATCH_PAGE_READ_BYTES, WATCH_PAGE_ROWS};
use crate::mvcc::{Change, Position, Previous};
use crate::store::{Store, compacted};

/// An empty store is at revision 1, so the first change is at this one.
const FIRST_REVISION: i64 = 2;

/// The watches that read history, by serial.
#[derive(Default)]
pub(super) struct Replay {
    watches: HashMap<u64, Reader>,
    groups: Slab<Group>,
    group_of_spec: HashMap<Arc<Spec>, u32>,
    index: Index<u32>,
    /// Groups that the segment at hand concerns; kept for its memory.
    touched: Vec<u32>,
}

struct Reader {
    group: u32,
    /// The next revision that it needs.
    position: i64,
}

/// All watches with the same [`Spec`].
struct Group {
    spec: Arc<Spec>,
    watches: usize,
    /// The earliest position of its watches when the page was begun.
    first: i64,
    /// What the segment at hand has for it.
    runs: Runs,
    /// What the page's segments before have for it.
    output: Output,
}

/// What was read of the history.
#[derive(Default)]
pub(super) struct Page {
    segments: Segments,
    /// What watches get, a group at a time.
    pub(super) outputs: Vec<Output>,
    /// All watches are now at this revision, or were further.
    pub(super) next: i64,
    /// The compacted revision, and the serials of the watches that are below it; these have left.
    pub(super) compacted: Option<(i64, Vec<u64>)>,
    _held: Option<Held>,
}

/// What the watches of a group get of a page.
#[derive(Default)]
pub(super) struct Output {
    /// Positions before the page and serials of the watches, in order.
    pub(super) watches: Vec<(i64, u64)>,
    /// Numbers of segments, and what they have for the group.
    parts: SmallVec<[(usize, Selection); 1]>,
}

impl Page {
    /// What a watch gets of the page that was at `position`.
    pub(super) fn entries(&self, output: &Output, position: i64) -> Entries {
        let mut entries = Entries::default();
        for (number, selection) in &output.parts {
            let (bytes, events) = selection.bytes_from(&self.segments[*number], position);
            entries.push(bytes, events);
        }
        entries
    }

    /// Memory of the page, in bytes.
    pub(super) fn weight(&self) -> usize {
        let runs = |output: &Output| output.parts.iter().map(|(_, selection)| selection.runs_weight()).sum::<usize>();
        self.segments.iter().map(|segment| segment.weight()).sum::<usize>()
            + self.outputs.iter().map(runs).sum::<usize>()
    }
}

/// Who wants an event.
#[derive(Default)]
struct Wanted {
    by_any: bool,
    with_prev_kv: bool,
    /// Memory that it took to note that, in bytes.
    bytes: usize,
}

impl Replay {
    pub(super) fn is_empty(&self) -> bool {
        self.watches.is_empty()
    }

    pub(super) fn insert(&mut self, serial: u64, spec: &Arc<Spec>, position: i64) {
        let group_id = match self.group_of_spec.get(spec) {
            Some(group_id) => *group_id,
            None => {
                let group =
                    Group { spec: spec.clone(), watches: 0, first: 0, runs: Runs::new(), output: Output::default() };
                let group_id = u32::try_from(self.groups.insert(group)).expect("watches are limited far below 2^32");
                self.group_of_spec.insert(spec.clone(), group_id);
                self.index.insert(&spec.range, group_id);
                group_id
            }
        };
        self.group_mut(group_id).watches += 1;
        self.watches.insert(serial, Reader { group: group_id, position });
    }

    pub(super) fn remove(&mut self, serial: u64) {
        let Some(reader) = self.watches.remove(&serial) else { return };
        let group = self.group_mut(reader.group);
        group.watches -= 1;
        if group.watches == 0 {
            let group = self.groups.remove(reader.group as usize).expect("just found");
            self.group_of_spec.remove(&group.spec);
            self.index.remove(&group.spec.range, reader.group);
        }
    }

    /// Sets a watch that is here back to `position`: it did not get what the page has for it.
    pub(super) fn rewind(&mut self, serial: u64, position: i64) {
        if let Some(reader) = self.watches.get_mut(&serial) {
            reader.position = position;
        }
    }

    /// The watches, and the next revision that each needs.
    pub(super) fn positions(&self) -> impl Iterator<Item = (u64, i64)> {
        self.watches.iter().map(|(serial, reader)| (*serial, reader.position))
    }

    /// Reads the next page, up to `last` at most, which must be published. Blocks.
    pub(super) fn read(&mut self, store: &Store, shared: &Shared, last: i64) -> Result<Page, Error> {
        let mut page = Page::default();
        self.read_into(&mut page, store, shared, last)?;
        for (serial, reader) in &mut self.watches {
            let group = self.groups.get_mut(reader.group as usize).expect("a group lives as long as its watches");
            if !group.output.parts.is_empty() {
                group.output.watches.push((reader.position, *serial));
            }
            reader.position = reader.position.max(page.next);
        }
        for group in self.groups.iter_mut().filter(|group| !group.output.parts.is_empty()) {
            let mut output = mem::take(&mut group.output);
            output.watches.sort_unstable();
            page.outputs.push(output);
        }
        page._held = Some(shared.pages.hold(page.weight()));
        Ok(page)
    }

    fn read_into(&mut self, page: &mut Page, store: &Store, shared: &Shared, last: i64) -> Result<(), Error> {
        if let Some(first) = self.begin()
            && self.read_ring(page, shared, first, last, store.revisions().compacted)
        {
            return Ok(());
        }
        let snapshot = store.snapshot()?;
        let compacted = compacted(snapshot.as_ref())?;
        let gone: Vec<u64> =
            self.watches.iter().filter(|(_, reader)| reader.position < compacted).map(|(serial, _)| *serial).collect();
        if !gone.is_empty() {
            for serial in &gone {
                self.remove(*serial);
            }
            page.compacted = Some((compacted, gone));
        }
        match self.begin() {
            Some(first) => self.read_log(page, snapshot.as_ref(), first, last, compacted),
            None => {
                page.next = last + 1;
                Ok(())
            }
        }
    }

    /// Notes where each group begins; gives where the page does, if there is any watch.
    fn begin(&mut self) -> Option<i64> {
        for group in self.groups.iter_mut() {
            group.first = i64::MAX;
        }
        for reader in self.watches.values() {
            let group = self.groups.get_mut(reader.group as usize).expect("a group lives as long as its watches");
            group.first = group.first.min(reader.position);
        }
        self.groups.iter().map(|group| group.first).min().map(|first| first.max(FIRST_REVISION))
    }

    /// Reads a page of the ring, if that has what is needed.
    fn read_ring(&mut self, page: &mut Page, shared: &Shared, first: i64, last: i64, compacted: i64) -> bool {
        let mut segments = Segments::new();
        if shared.read(first, last, segments.inline_size(), &mut segments).is_err() {
            return false;
        }
        let found = segments.len();
        page.next = first;
        let mut bytes = 0;
        for segment in segments {
            debug_assert!(segment.first() <= page.next && segment.last() <= last);
            for (number, event) in (0u32..).zip(segment.events()) {
                let wanted = self.find(segment.key(event), event.revision, event.is_delete, number);
                bytes += wanted.bytes;
                if wanted.by_any {
                    bytes += event.body(wanted.with_prev_kv).len();
                }
            }
            page.next = segment.last() + 1;
            self.select(page, segment, compacted);
            if bytes >= WATCH_PAGE_BYTES {
                return true;
            }
        }
        // Fewer than asked for: that was all up to `last`.
        if found < Segments::new().inline_size() {
            page.next = page.next.max(last + 1);
        }
        true
    }

    fn read_log(
        &mut self,
        page: &mut Page,
        snapshot: &dyn Snapshot,
        first: i64,
        last: i64,
        compacted: i64,
    ) -> Result<(), Error> {
        let mut events = EventsBuilder::default();
        let (mut rows, mut read_bytes, mut bytes) = (0, 0, 0);
        // The last row seen.
        let mut at = Position { revision: first - 1, sub: 0 };
        let mut failed: Result<(), EngineError> = Ok(());
        let mut ended_early = false;
        let start = Position { revision: first, sub: 0 }.key();
        let bounds = (Bound::Included(&start[..]), Bound::Unbounded);
        snapshot.scan(Table::Log, bounds, Direction::Forward, &mut |key, row| {
            let position = match Position::from_key(key).and_then(|position| position.behind(at)) {
                Ok(position) => position,
                Err(cause) => {
                    failed = Err(cause.into());
                    return ControlFlow::Break(());
                }
            };
            if position.sub == 0 {
                let full = rows >= WATCH_PAGE_ROWS
                    || read_bytes >= WATCH_PAGE_READ_BYTES
                    || bytes + events.bytes() >= WATCH_PAGE_BYTES;
                if full || position.revision > last {
                    ended_early = true;
                    return ControlFlow::Break(());
                }
            }
            at = position;
            rows += 1;
            read_bytes += row.len();
            match self.take(snapshot, position, row, compacted, &mut events) {
                Ok(taken) => bytes += taken,
                Err(error) => {
                    failed = Err(error);
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        })?;
        failed?;
        if !ended_early && at.revision < last {
            return Err(Position::missing(at.revision + 1).into());
        }
        page.next = at.revision + 1;
        if let Some(segment) = events.finish_whole() {
            self.select(page, Arc::new(segment), compacted);
        }
        Ok(())
    }

    /// Adds a row's event if a group wants it; tells how many bytes it took to note who does.
    fn take(
        &mut self,
        snapshot: &dyn Snapshot,
        position: Position,
        row: &[u8],
        compacted: i64,
        events: &mut EventsBuilder,
    ) -> Result<usize, EngineError> {
        let change = Change::decode(position, row)?;
        let wanted = self.find(change.key, position.revision, change.live.is_none(), events.count());
        if wanted.by_any {
            if wanted.with_prev_kv && has_prev_kv(position.revision, compacted) && !is_create(&change) {
                with_previous(snapshot, position, &change, |before| {
                    events.push_event(position.revision, &change, before);
                })?;
            } else {
                events.push_event(position.revision, &change, None);
            }
        }
        Ok(wanted.bytes)
    }

    /// Notes event number `number` of the segment at hand for the groups that want it.
    fn find(&mut self, key: &[u8], revision: i64, is_delete: bool, number: u32) -> Wanted {
        let Self { groups, index, touched, .. } = self;
        let mut wanted = Wanted::default();
        index.find(key, |group_id| {
            let group = groups.get_mut(group_id as usize).expect("indexed groups exist");
            if revision < group.first || !group.spec.admits(is_delete) {
                return;
            }
            let runs = group.runs.len();
            if runs == 0 {
                touched.push(group_id);
            }
            push_run(&mut group.runs, number);
            wanted.bytes += (group.runs.len() - runs) * size_of::<Range<u32>>();
            wanted.by_any = true;
            wanted.with_prev_kv |= group.spec.prev_kv;
        });
        wanted
    }

    /// Adds the segment at hand to the page, with what the groups found in it.
    fn select(&mut self, page: &mut Page, segment: Arc<Segment>, compacted: i64) {
        if self.touched.is_empty() {
            return;
        }
        let number = page.segments.len();
        let bare = segment.events().partition_point(|event| !has_prev_kv(event.revision, compacted));
        let bare = u32::try_from(bare).expect("runs number the events with 32 bits");
        for group_id in self.touched.drain(..) {
            let group = self.groups.get_mut(group_id as usize).expect("just found");
            let mut runs = mem::take(&mut group.runs);
            if group.spec.prev_kv && bare > 0 {
                let before: Runs = cut(&runs, 0..bare);
                if !before.is_empty() {
                    group.output.parts.push((number, Selection::new(before, false)));
                }
                runs = cut(&runs, bare..u32::MAX);
            }
            if !runs.is_empty() {
                group.output.parts.push((number, Selection::new(runs, group.spec.prev_kv)));
            }
        }
        page.segments.push(segment);
    }

    fn group_mut(&mut self, group_id: u32) -> &mut Group {
        self.groups.get_mut(group_id as usize).expect("a group lives as long as its watches")
    }
}

/// What of `runs` is in a range.
fn cut(runs: &Runs, range: Range<u32>) -> Runs {
    let cut = |run: &Range<u32>| run.start.max(range.start)..run.end.min(range.end);
    runs.iter().map(cut).filter(|run| !run.is_empty()).collect()
}

/// etcd reads the previous key-value at the revision before the event's, and leaves it out if that is compacted.
fn has_prev_kv(revision: i64, compacted: i64) -> bool {
    revision > compacted
}

/// Calls `then` with the key-value before the transaction: what the transaction itself had written before does not
/// count.
fn with_previous(
    snapshot: &dyn Snapshot,
    position: Position,
    change: &Change<'_>,
    mut then: impl FnMut(Option<&KeyValueRef<'_>>),
) -> Result<(), EngineError> {
    let is_own = |previous: &Previous<'_>| previous.position.revision == position.revision;
    let mut then = |previous: Option<Previous<'_>>| {
        let before = previous.and_then(|previous| previous.live);
        then(before.as_ref().map(|before| key_value(change.key, before)).as_ref());
    };
    let mut own = match change.previous.as_ref().filter(|previous| is_own(previous)) {
        Some(own) => own.position,
        None => {
            then(change.previous);
            return Ok(());
        }
    };
    let mut row = Vec::new();
    loop {
        row.clear();
        snapshot.get(Table::Log, &own.key(), &mut |found| row.extend_from_slice(found))?;
        match Change::decode(own, &row)?.previous {
            Some(previous) if is_own(&previous) => own = previous.position,
            previous => {
                then(previous);
                return Ok(());
            }
        }
    }
}

/// The memory of all pages that were read and are not sent yet.
///
/// Invariant: it is over its bound by no more than the pages that are being read. No client can keep the others from it:
/// while it is full, a stream whose client reads slowly gives its page up and reads the rest again later.
pub(super) struct PageMemory {
    held: signal::Sender<usize>,
    bytes_max: usize,
}

/// The memory of one page.
pub(super) struct Held {
    memory: Arc<PageMemory>,
    bytes: usize,
}

impl PageMemory {
    pub(super) fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { held: signal::Sender::new(0), bytes_max })
    }

    pub(super) fn hold(self: &Arc<Self>, bytes: usize) -> Held {
        self.change(|held| held + bytes);
        Held { memory: self.clone(), bytes }
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        *self.held.borrow()
    }

    /// Waits until a page may be read.
    pub(super) async fn room(&self) {
        self.wait(|is_full| !is_full).await;
    }

    /// Waits until others wait, or would.
    pub(super) async fn full(&self) {
        self.wait(|is_full| is_full).await;
    }

    async fn wait(&self, condition: impl Fn(bool) -> bool) {
        // The sender lives as long as `self`.
        let _ = self.held.subscribe().wait_for(|held| condition(*held >= self.bytes_max)).await;
    }

    /// Those who wait are woken only when the answer to their question has changed.
    fn change(&self, change: impl FnOnce(usize) -> usize) {
        self.held.send_if_modified(|held| {
            let was_full = *held >= self.bytes_max;
            *held = change(*held);
            was_full != (*held >= self.bytes_max)
        });
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.memory.change(|held| held - self.bytes);
    }
}
