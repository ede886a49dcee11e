//! Events in their encoded form: made once by the committer, cut into segments, shared by all watches.
//!
//! An event is kept as an entry of the field `events` of a `WatchResponse`, tag and length included, with `prev_kv` at
//! its end. A run of neighbours is therefore part of a response as it lies, and an event without `prev_kv` is a prefix
//! of the one with it.
//!
//! Invariant: a transaction is never divided between segments, and a segment's buffer holds its events and nothing
//! else.

use std::mem::size_of;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::AtomicUsize;

use bytes::{Bytes, BytesMut};
use kubewharf_etcd_api::encode::{KeyValueRef, encoded_event_len, put_encoded_event, put_event};
use kubewharf_etcd_api::mvccpb;
use kubewharf_etcd_api::mvccpb::event::EventType;
use prost::Message;
use prost::encoding::encoded_len_varint;
use smallvec::SmallVec;

use crate::limits::WATCH_SEGMENT_BYTES;
use crate::mvcc::{Change, ChangeSink, Position, Version};

/// One event of a segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Event {
    pub(super) revision: i64,
    /// Where its entry starts in the segment's buffer.
    start: usize,
    /// Bytes of the event with `prev_kv`.
    full_bytes: u32,
    /// Bytes of the event without.
    plain_bytes: u32,
    key_bytes: u32,
    /// Bytes of the entry before the event.
    head_bytes: u8,
    /// Where the key is, from the start of the entry.
    key_at: u8,
    pub(super) is_delete: bool,
}

impl Event {
    fn end(&self) -> usize {
        self.start + usize::from(self.head_bytes) + self.full_bytes as usize
    }

    fn body(&self, prev_kv: bool) -> Range<usize> {
        let start = self.start + usize::from(self.head_bytes);
        start..start + if prev_kv { self.full_bytes } else { self.plain_bytes } as usize
    }

    fn prev_kv_field(&self) -> Range<usize> {
        let Range { end, .. } = self.body(true);
        end - (self.full_bytes - self.plain_bytes) as usize..end
    }
}

/// Whole transactions that follow each other, and which watches they concern.
pub(super) struct Segment {
    bytes: Bytes,
    events: Box<[Event]>,
    /// Set once the segment was matched with the groups of watches: by group, in the order of their ids.
    selections: OnceLock<Box<[(u32, Selection)]>>,
    /// What the selections weigh in the ring.
    pub(super) selections_weight: AtomicUsize,
}

impl Segment {
    fn new(bytes: &[u8], events: &[Event]) -> Self {
        debug_assert!(!events.is_empty());
        let offset = events[0].start;
        let events = events.iter().map(|event| Event { start: event.start - offset, ..*event }).collect();
        Self {
            bytes: Bytes::copy_from_slice(bytes),
            events,
            selections: OnceLock::new(),
            selections_weight: AtomicUsize::new(0),
        }
    }

    /// The revision of the first transaction.
    pub(super) fn first(&self) -> i64 {
        self.events[0].revision
    }

    /// The revision of the last transaction.
    pub(super) fn last(&self) -> i64 {
        self.events[self.events.len() - 1].revision
    }

    pub(super) fn events(&self) -> &[Event] {
        &self.events
    }

    pub(super) fn key(&self, event: &Event) -> &[u8] {
        let start = event.start + usize::from(event.key_at);
        &self.bytes[start..start + event.key_bytes as usize]
    }

    /// Appends an event's entry to `out`.
    pub(super) fn put(&self, event: &Event, prev_kv: bool, out: &mut BytesMut) {
        put_encoded_event(out, &self.bytes[event.body(prev_kv)]);
    }

    /// Memory of the segment without selections, in bytes.
    pub(super) fn weight(&self) -> usize {
        // The buffer and the list of events are allocations of their own, and the ring has a pointer.
        const OVERHEAD: usize = size_of::<Segment>() + 2 * size_of::<usize>() + 2 * 32 + 2 * size_of::<usize>();
        self.bytes.len() + self.events.len() * size_of::<Event>() + OVERHEAD
    }

    /// Notes which groups the segment concerns; `selections` is sorted by group.
    pub(super) fn set_selections(&self, selections: Vec<(u32, Selection)>) {
        debug_assert!(selections.is_sorted_by_key(|(group, _)| *group));
        let first = self.selections.set(selections.into_boxed_slice());
        debug_assert!(first.is_ok(), "a segment is matched once");
    }

    /// What a group gets of the segment; an error if the segment has not been matched.
    pub(super) fn selection(&self, group: u32) -> Result<Option<&Selection>, ()> {
        let selections = self.selections.get().ok_or(())?;
        let found = selections.binary_search_by_key(&group, |(group, _)| *group);
        Ok(found.ok().map(|at| &selections[at].1))
    }
}

/// Numbers of events of a segment, as runs of neighbours.
pub(super) type Runs = SmallVec<[Range<u32>; 1]>;

/// Adds event number `event`, which is behind all others.
pub(super) fn push_run(runs: &mut Runs, event: u32) {
    match runs.last_mut() {
        Some(run) if run.end == event => run.end += 1,
        _ => runs.push(event..event + 1),
    }
}

/// What a group of watches gets of a segment.
pub(super) struct Selection {
    runs: Runs,
    prev_kv: bool,
    /// The entries; assembled by the first watch that needs them.
    bytes: OnceLock<Bytes>,
}

impl Selection {
    pub(super) fn new(runs: Runs, prev_kv: bool) -> Self {
        Self { runs, prev_kv, bytes: OnceLock::new() }
    }

    /// How many events there are.
    pub(super) fn events(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.end - run.start)).sum()
    }

    /// The entries of all events.
    pub(super) fn bytes(&self, segment: &Segment) -> Bytes {
        self.bytes.get_or_init(|| Assembly::of(segment, &self.runs, self.prev_kv).bytes()).clone()
    }

    /// The entries of the events from `revision` on, and how many these are.
    pub(super) fn bytes_from(&self, segment: &Segment, revision: i64) -> (Bytes, u64) {
        let first = segment.events.partition_point(|event| event.revision < revision);
        let first = u32::try_from(first).expect("runs number the events with 32 bits");
        let runs: Runs =
            self.runs.iter().map(|run| run.start.max(first)..run.end).filter(|run| run.start < run.end).collect();
        let rest = Self::new(runs, self.prev_kv);
        (Assembly::of(segment, &rest.runs, self.prev_kv).bytes(), rest.events())
    }

    /// Memory that the selection takes beside the segment once it is assembled, in bytes.
    pub(super) fn weight(&self, segment: &Segment) -> usize {
        let spilled = if self.runs.spilled() { self.runs.capacity() * size_of::<Range<u32>>() } else { 0 };
        size_of::<(u32, Self)>() + spilled + Assembly::of(segment, &self.runs, self.prev_kv).copied_bytes()
    }
}

/// A slice of a segment keeps the whole of it: a part smaller than this fraction is copied instead.
const SLICE_FRACTION_MIN: usize = 4;

/// How the entries of some events come together.
enum Assembly<'a> {
    /// They are part of the segment as they are.
    Slice(&'a Segment, Range<usize>),
    /// They are copied.
    Copy { segment: &'a Segment, runs: &'a [Range<u32>], prev_kv: bool, len: usize },
}

impl<'a> Assembly<'a> {
    fn of(segment: &'a Segment, runs: &'a [Range<u32>], prev_kv: bool) -> Self {
        let mut len = 0;
        let mut is_plain = true;
        for event in events_of(segment, runs) {
            is_plain &= prev_kv || event.full_bytes == event.plain_bytes;
            len += encoded_event_len(event.body(prev_kv).len());
        }
        if let ([run], true) = (runs, is_plain)
            && len * SLICE_FRACTION_MIN >= segment.bytes.len()
        {
            let start = segment.events[run.start as usize].start;
            return Self::Slice(segment, start..start + len);
        }
        Self::Copy { segment, runs, prev_kv, len }
    }

    fn copied_bytes(&self) -> usize {
        match self {
            Self::Slice(..) => 0,
            Self::Copy { len, .. } => *len,
        }
    }

    fn bytes(self) -> Bytes {
        match self {
            Self::Slice(segment, range) => segment.bytes.slice(range),
            Self::Copy { segment, runs, prev_kv, len } => {
                let mut bytes = BytesMut::with_capacity(len);
                for event in events_of(segment, runs) {
                    segment.put(event, prev_kv, &mut bytes);
                }
                debug_assert_eq!(bytes.len(), len);
                bytes.freeze()
            }
        }
    }
}

fn events_of<'a>(segment: &'a Segment, runs: &'a [Range<u32>]) -> impl Iterator<Item = &'a Event> {
    runs.iter().flat_map(|run| &segment.events[run.start as usize..run.end as usize])
}

/// The events of a batch, complete.
pub struct EventBatch {
    pub(super) segments: SmallVec<[Segment; 1]>,
}

impl EventBatch {
    /// The revision of the last transaction.
    pub(super) fn last(&self) -> i64 {
        self.segments[self.segments.len() - 1].last()
    }
}

/// Collects the events of a batch while it is evaluated.
#[derive(Default)]
pub struct EventsBuilder {
    bytes: BytesMut,
    events: Vec<Event>,
    /// Bytes and events at the savepoint.
    saved: (usize, usize),
    /// The number of the running transaction's first event.
    transaction: usize,
    /// Changes of keys that the running transaction had changed before: their places, and those of the first change.
    again: Vec<(u32, u32)>,
}

impl ChangeSink for EventsBuilder {
    fn change(&mut self, position: Position, change: &Change<'_>) {
        if position.sub == 0 {
            self.transaction = self.events.len();
            self.again.clear();
        }
        match change.previous {
            Some(previous) if previous.position.revision == position.revision => {
                self.changed_again(position, previous.position.sub, change);
            }
            Some(previous) => self.push(position.revision, change, previous.live.as_ref()),
            None => self.push(position.revision, change, None),
        }
    }
}

impl EventsBuilder {
    /// Keeps all events so far: [`EventsBuilder::rollback`] takes back later ones only.
    pub fn savepoint(&mut self) {
        self.saved = (self.bytes.len(), self.events.len());
    }

    /// Takes back every event since the savepoint.
    pub fn rollback(&mut self) {
        self.bytes.truncate(self.saved.0);
        self.events.truncate(self.saved.1);
    }

    /// The batch; `None` without events.
    #[must_use]
    pub fn finish(self) -> Option<EventBatch> {
        let mut segments = SmallVec::new();
        let mut rest = &self.events[..];
        while !rest.is_empty() {
            let start = rest[0].start;
            let full = rest.partition_point(|event| event.start - start < WATCH_SEGMENT_BYTES);
            // What began before the bound is taken to its transaction's end.
            let last = rest[full - 1].revision;
            let count = rest.partition_point(|event| event.revision <= last);
            let (taken, left) = rest.split_at(count);
            segments.push(Segment::new(&self.bytes[start..taken[count - 1].end()], taken));
            rest = left;
        }
        (!segments.is_empty()).then_some(EventBatch { segments })
    }

    fn push(&mut self, revision: i64, change: &Change<'_>, before: Option<&Version<'_>>) {
        let before = before.map(|before| key_value(change.key, before));
        self.push_event(revision, change, before.as_ref());
    }

    fn push_event(&mut self, revision: i64, change: &Change<'_>, before: Option<&KeyValueRef<'_>>) {
        let (kind, kv) = event_parts(revision, change);
        let prev_kv = before.filter(|_| !is_create(change));
        let start = self.bytes.len();
        put_event(&mut self.bytes, kind, &kv, prev_kv);
        let kv_len = kv.encoded_len();
        let type_len = if change.live.is_none() { 2 } else { 0 };
        let plain = type_len + 1 + encoded_len_varint(kv_len as u64) + kv_len;
        let full = plain
            + prev_kv.map_or(0, |prev_kv| {
                let len = prev_kv.encoded_len();
                1 + encoded_len_varint(len as u64) + len
            });
        let head = self.bytes.len() - start - full;
        debug_assert_eq!(head + full, encoded_event_len(full));
        let key_at = head + plain - kv_len + 1 + encoded_len_varint(change.key.len() as u64);
        debug_assert_eq!(&self.bytes[start + key_at..][..change.key.len()], change.key);
        let small = |len: usize| u32::try_from(len).expect("requests are limited far below 4 GiB");
        self.events.push(Event {
            revision,
            start,
            full_bytes: small(full),
            plain_bytes: small(plain),
            key_bytes: small(change.key.len()),
            head_bytes: u8::try_from(head).expect("a tag and a length"),
            key_at: u8::try_from(key_at).expect("tags, lengths and a type"),
            is_delete: change.live.is_none(),
        });
    }

    /// An event's `prev_kv` is the key-value before the transaction, whatever the transaction itself did to the key
    /// before.
    fn changed_again(&mut self, position: Position, previous: u32, change: &Change<'_>) {
        let first = self.again.iter().find(|(sub, _)| *sub == previous).map_or(previous, |(_, first)| *first);
        self.again.push((position.sub, first));
        let field = self.events[self.transaction + first as usize].prev_kv_field();
        let before = mvccpb::Event::decode(&self.bytes[field]).expect("written by `push_event`").prev_kv;
        self.push_event(position.revision, change, before.as_ref().map(KeyValueRef::from).as_ref());
    }
}

/// Whether the change creates the key; then its event has no `prev_kv`, even if the transaction deleted the key before.
pub(super) fn is_create(change: &Change<'_>) -> bool {
    change.live.is_some_and(|live| live.create_revision == live.mod_revision)
}

/// Kind and `kv` of a change's event.
pub(super) fn event_parts<'a>(revision: i64, change: &Change<'a>) -> (EventType, KeyValueRef<'a>) {
    match &change.live {
        Some(live) => (EventType::Put, key_value(change.key, live)),
        // A deletion has no more than this.
        None => (EventType::Delete, KeyValueRef { key: change.key, mod_revision: revision, ..KeyValueRef::default() }),
    }
}

/// The parts of a version on the wire.
pub(super) fn key_value<'a>(key: &'a [u8], version: &Version<'a>) -> KeyValueRef<'a> {
    KeyValueRef {
        key,
        create_revision: version.create_revision,
        mod_revision: version.mod_revision,
        version: version.version,
        value: version.value,
        lease: version.lease,
    }
}

#[cfg(test)]
mod tests {
    use kubewharf_etcd_api::etcdserverpb::WatchResponse;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::mvcc::{Ladder, Previous};

    /// A change: the key's and the values' sizes, and whether there is a new and an old value.
    type Made = (u8, usize, Option<usize>, Option<usize>);

    fn version(revision: i64, create_revision: i64, value: &[u8]) -> Version<'_> {
        Version { create_revision, mod_revision: revision, version: revision - create_revision + 1, lease: 7, value }
    }

    /// Adds a transaction; gives its events as generated code has them.
    fn add(builder: &mut EventsBuilder, revision: i64, made: &[Made]) -> Vec<mvccpb::Event> {
        let value = vec![9; 70_000];
        let mut events = Vec::new();
        for (sub, (name, key_bytes, new, old)) in (0..).zip(made) {
            let key = vec![*name; *key_bytes];
            let before = old.map(|bytes| version(1, 1, &value[..bytes]));
            let live = new.map(|bytes| version(revision, before.map_or(revision, |_| 1), &value[..bytes]));
            let previous = Previous { position: Position { revision: 1, sub: 0 }, live: before };
            let change = Change { time_ms: 0, key: &key, live, previous: Some(previous), ladder: Ladder::default() };
            builder.change(Position { revision, sub }, &change);
            let kv = |version: Version<'_>| mvccpb::KeyValue {
                key: key.clone().into(),
                create_revision: version.create_revision,
                mod_revision: version.mod_revision,
                version: version.version,
                value: Bytes::copy_from_slice(version.value),
                lease: version.lease,
            };
            let deleted =
                || mvccpb::KeyValue { key: key.clone().into(), mod_revision: revision, ..mvccpb::KeyValue::default() };
            events.push(mvccpb::Event {
                r#type: i32::from(live.is_none()),
                kv: Some(live.map_or_else(deleted, kv)),
                prev_kv: before.map(kv),
            });
        }
        events
    }

    fn made() -> impl Strategy<Value = Made> {
        let bytes = || prop_oneof![0..200usize, 16_380..16_390usize, 0..60_000usize];
        (any::<u8>(), 1..200usize, proptest::option::weighted(0.7, bytes()), proptest::option::of(bytes()))
    }

    fn decode(entries: Bytes) -> Vec<mvccpb::Event> {
        WatchResponse::decode(entries).unwrap().events
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn segments_have_what_was_changed_and_not_taken_back_in_whole_transactions(
            transactions in vec((vec(made(), 1..6), any::<bool>()), 1..20),
            wanted in any::<u64>(),
        ) {
            let mut builder = EventsBuilder::default();
            let mut expected = Vec::new();
            for (made, keeps) in &transactions {
                builder.savepoint();
                let revision = expected.len() as i64 + 2;
                let events = add(&mut builder, revision, made);
                if *keeps {
                    expected.push(events);
                } else {
                    builder.rollback();
                }
            }
            let segments = builder.finish().map(|batch| batch.segments).unwrap_or_default();
            let mut next = 2;
            for segment in &segments {
                prop_assert_eq!(segment.first(), next);
                next = segment.last() + 1;
                let of_segment: Vec<_> =
                    expected[segment.first() as usize - 2..=segment.last() as usize - 2].concat();
                prop_assert_eq!(segment.events().len(), of_segment.len());
                let is_wanted = |number: usize| wanted >> (number % 64) & 1 == 1;
                let mut runs = Runs::new();
                for (number, (event, expected)) in segment.events().iter().zip(&of_segment).enumerate() {
                    prop_assert_eq!(segment.key(event), &expected.kv.as_ref().unwrap().key[..]);
                    prop_assert_eq!(event.is_delete, expected.r#type == 1);
                    if is_wanted(number) {
                        push_run(&mut runs, number as u32);
                    }
                }
                for (prev_kv, runs) in [(true, runs.clone()), (false, runs), (true, one_run(segment)), (false, one_run(segment))] {
                    let selected = |from: i64| -> Vec<mvccpb::Event> {
                        let mut events = Vec::new();
                        for number in runs.iter().flat_map(|run| run.clone()) {
                            let mut event = of_segment[number as usize].clone();
                            event.prev_kv = event.prev_kv.filter(|_| prev_kv);
                            if event.kv.as_ref().unwrap().mod_revision >= from {
                                events.push(event);
                            }
                        }
                        events
                    };
                    let selection = Selection::new(runs.clone(), prev_kv);
                    prop_assert_eq!(selection.events(), selected(0).len() as u64);
                    prop_assert_eq!(decode(selection.bytes(segment)), selected(0));
                    let (rest, count) = selection.bytes_from(segment, segment.last());
                    prop_assert_eq!(count, selected(segment.last()).len() as u64);
                    prop_assert_eq!(decode(rest), selected(segment.last()));
                }
            }
            prop_assert_eq!(next, expected.len() as i64 + 2);
        }
    }

    fn one_run(segment: &Segment) -> Runs {
        Runs::from_elem(0..segment.events().len() as u32, 1)
    }

    #[test]
    fn a_segment_ends_with_the_transaction_that_fills_it() {
        let mut builder = EventsBuilder::default();
        for revision in 2..=41 {
            add(&mut builder, revision, &[(1, 10, Some(10_000), None), (2, 10, Some(10_000), None)]);
        }
        let segments = builder.finish().unwrap().segments;
        let revisions: Vec<_> = segments.iter().map(|segment| (segment.first(), segment.last())).collect();
        assert_eq!(segments.len(), 10);
        assert_eq!(revisions[0], (2, 5));
        assert!(segments.iter().all(|segment| segment.bytes.len() < WATCH_SEGMENT_BYTES + 21_000));
        assert!(EventsBuilder::default().finish().is_none());
    }

    #[test]
    fn neighbours_are_the_segments_own_bytes_and_a_small_part_does_not_hold_the_whole() {
        let mut builder = EventsBuilder::default();
        let put = |name: u8| (name, 10, Some(1000), Some(1000));
        add(&mut builder, 2, &(0..8).map(put).collect::<Vec<_>>());
        let segment = builder.finish().unwrap().segments.pop().unwrap();
        let buffer = segment.bytes.as_ptr_range();
        let is_shared = |runs: Runs, prev_kv| {
            let selection = Selection::new(runs, prev_kv);
            let bytes = selection.bytes(&segment);
            let shared = buffer.contains(&bytes.as_ptr());
            let own = selection.weight(&segment) - size_of::<(u32, Selection)>();
            assert_eq!(own, if shared { 0 } else { bytes.len() }, "what is copied is counted");
            shared
        };
        assert!(is_shared(Runs::from_elem(0..8, 1), true));
        assert!(is_shared(Runs::from_elem(3..6, 1), true));
        assert!(!is_shared(Runs::from_elem(3..4, 1), true));
        assert!(!is_shared(Runs::from_elem(0..8, 1), false), "previous values lie between");
    }
}
