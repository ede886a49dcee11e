//! The rows against a model that keeps every state there ever was.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;
use kubewharf_engine::{Batch, Direction, Engine, Head, Reserve, Table, memory::Memory};
use kubewharf_etcd_api::etcdserverpb::request_op::Request;
use kubewharf_etcd_api::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};
use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Kv {
    create: i64,
    modified: i64,
    version: i64,
    lease: i64,
    value: Vec<u8>,
}

type State = BTreeMap<Vec<u8>, Kv>;

#[derive(Clone, Debug)]
enum Step {
    /// A transaction: each key is put (with a lease) or deleted; it may be taken back.
    Txn { writes: Vec<(u8, Option<(u8, i64)>)>, rolled_back: bool },
    /// The batch in flight is committed, the growing one takes its place.
    Commit,
    /// Compaction at this part of the history, and the removal of what it makes useless.
    Compact(f64),
    /// Reads at this part of the history.
    Read(f64),
}

fn step() -> impl Strategy<Value = Step> {
    let write = (0_u8..12, proptest::option::weighted(0.7, (any::<u8>(), 0_i64..3)));
    prop_oneof![
        8 => (proptest::collection::vec(write, 1..5), proptest::bool::weighted(0.1))
            .prop_map(|(writes, rolled_back)| Step::Txn { writes, rolled_back }),
        3 => Just(Step::Commit),
        1 => (0.0..=1.0_f64).prop_map(Step::Compact),
        3 => (0.0..=1.0_f64).prop_map(Step::Read),
    ]
}

#[derive(Default)]
struct Recorded(Vec<(Position, Vec<u8>, Option<i64>)>);

impl ChangeSink for Recorded {
    fn change(&mut self, position: Position, change: &Change<'_>) {
        let previous = change.previous.and_then(|previous| previous.live).map(|live| live.mod_revision);
        self.0.push((position, change.key.to_vec(), previous));
    }
}

/// Rows for a writer, which finds all that it needs of the past in the current table.
struct WithoutLog<'a>(SnapshotRows<'a>);

impl Rows for WithoutLog<'_> {
    fn get(
        &self,
        table: Table,
        key: &[u8],
        visit: &mut dyn FnMut(&[u8]),
    ) -> Result<bool, kubewharf_engine::EngineError> {
        assert_ne!(table, Table::Log, "a writer reads no log");
        self.0.get(table, key, visit)
    }

    fn scan(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        direction: Direction,
        visit: &mut kubewharf_engine::Visitor<'_>,
    ) -> Result<(), kubewharf_engine::EngineError> {
        assert_ne!(table, Table::Log, "a writer reads no log");
        self.0.scan(table, range, direction, visit)
    }
}

struct World {
    engine: Memory,
    in_flight: Overlay,
    growing: Overlay,
    /// `history[r - 1]` is the state at revision r.
    history: Vec<State>,
    compacted: i64,
}

/// Keys whose order needs care: prefixes of each other, zero and 0xff bytes.
fn key(number: u8) -> Vec<u8> {
    match number {
        0 => vec![0],
        1 => vec![0, 0],
        2 => b"a".to_vec(),
        3 => b"a\0".to_vec(),
        4 => b"a\0\0b".to_vec(),
        5 => vec![b'a', 0xff],
        6 => vec![0xff],
        7 => vec![0xff, 0xff],
        other => vec![b'k', other],
    }
}

impl World {
    fn new() -> Self {
        Self {
            engine: Memory::new(),
            in_flight: Overlay::default(),
            growing: Overlay::default(),
            history: vec![State::new()],
            compacted: -1,
        }
    }

    fn newest(&self) -> i64 {
        i64::try_from(self.history.len()).unwrap()
    }

    fn commit_rows(&self, overlay: &Overlay) {
        let expected = self.engine.snapshot().unwrap().head().unwrap();
        let next = Head { seq: expected.seq + 1, batch_id: expected.batch_id + 1, ..expected };
        let operations = overlay.to_operations();
        self.engine.commit(&Batch { expected, next, operations, reserve: Reserve::Untouched }).unwrap();
    }

    fn txn(&mut self, writes: &[(u8, Option<(u8, i64)>)], rolled_back: bool) {
        let revision = self.newest() + 1;
        let mut state = self.history.last().unwrap().clone();
        let snapshot = self.engine.snapshot().unwrap();
        let base = WithoutLog(SnapshotRows(snapshot.as_ref()));
        let mut changes = Recorded::default();
        self.growing.savepoint();
        let before = self.growing.to_operations();
        let revisions = Revisions { newest: revision - 1, compacted: self.compacted };
        let mut writer = Writer::new(&base, Some(&self.in_flight), &mut self.growing, &mut changes, revisions, 7);
        let mut expected = Vec::new();
        for (number, write) in writes {
            let key = key(*number);
            let old = state.get(&key).cloned();
            match write {
                Some((byte, lease)) => {
                    let value = vec![*byte; usize::from(*byte)];
                    writer.put(&Bytes::from(key.clone()), &value, *lease).unwrap();
                    let kv = Kv {
                        create: old.as_ref().map_or(revision, |old| old.create),
                        modified: revision,
                        version: old.as_ref().map_or(1, |old| old.version + 1),
                        lease: *lease,
                        value,
                    };
                    state.insert(key.clone(), kv);
                }
                None => {
                    assert_eq!(writer.delete(&Bytes::from(key.clone())).unwrap(), old.is_some());
                    if old.is_none() {
                        continue;
                    }
                    state.remove(&key);
                }
            }
            let sub = u32::try_from(expected.len()).unwrap();
            expected.push((Position { revision, sub }, key, old.map(|old| old.modified)));
        }
        assert_eq!(writer.wrote(), !expected.is_empty());
        assert_eq!(changes.0, expected);
        if rolled_back {
            self.growing.rollback();
            assert_eq!(self.growing.to_operations(), before);
        } else if !expected.is_empty() {
            self.history.push(state);
        }
    }

    fn commit(&mut self) {
        self.commit_rows(&self.in_flight);
        self.in_flight = std::mem::take(&mut self.growing);
    }

    fn compact(&mut self, revision: i64) {
        if revision <= self.compacted {
            return;
        }
        self.commit();
        self.commit();
        self.compacted = revision;
        let mut useless = Overlay::default();
        let snapshot = self.engine.snapshot().unwrap();
        let end = Position { revision, sub: 0 }.key();
        let below = (Bound::Unbounded, Bound::Excluded(&end[..]));
        snapshot
            .scan(Table::Log, below, Direction::Forward, &mut |row_key, row| {
                let position = Position::from_key(row_key).unwrap();
                let change = Change::decode(position, row).unwrap();
                useless.delete(Table::Log, Bytes::copy_from_slice(row_key));
                let mut tombstone = false;
                snapshot
                    .get(Table::Current, change.key, &mut |row| {
                        let current = Current::decode(row).unwrap();
                        tombstone = current.live.is_none() && current.position == position;
                    })
                    .unwrap();
                if tombstone {
                    useless.delete(Table::Current, Bytes::copy_from_slice(change.key));
                }
                ControlFlow::Continue(())
            })
            .unwrap();
        drop(snapshot);
        self.commit_rows(&useless);
    }

    /// Reads in every order, a row a step, and compares with the sorted model; what is held for that is bounded by the limit.
    fn read_in_steps(&self, view: &dyn Rows, revision: i64, expected: &[(Vec<u8>, Kv)]) {
        use Direction::{Forward, Reverse};
        use SortTarget::{Create, Key, Mod, Value};
        for sort in [Key, SortTarget::Version, Create, Mod, Value].iter().flat_map(|t| [(*t, Forward), (*t, Reverse)]) {
            for (limit, sort_after_limit) in [(0, false), (2, false), (2, true)] {
                let everything = KeyRange { start: Bytes::from_static(&[0]), end: RangeEnd::Unbounded };
                let query = RangeQuery {
                    limit,
                    sort: Some(sort),
                    sort_after_limit,
                    count_all: true,
                    create_revisions: (0, revision / 2),
                    ..RangeQuery::all(everything, revision)
                };
                let mut sorted: Vec<_> =
                    expected.iter().filter(|(_, kv)| revision < 2 || kv.create <= revision / 2).cloned().collect();
                let more = limit > 0 && sorted.len() as u64 > limit;
                if sort_after_limit && sort.0 != Key {
                    sorted.truncate(3);
                }
                let by = |a: &(Vec<u8>, Kv), b: &(Vec<u8>, Kv)| match sort.0 {
                    Key => a.0.cmp(&b.0),
                    SortTarget::Version => a.1.version.cmp(&b.1.version),
                    Create => a.1.create.cmp(&b.1.create),
                    Mod => a.1.modified.cmp(&b.1.modified),
                    Value => a.1.value.cmp(&b.1.value),
                };
                // Stable, so that equal ones stay in the order of their keys.
                sorted.sort_by(|a, b| if sort.1 == Forward { by(a, b) } else { by(b, a) });
                if limit > 0 {
                    sorted.truncate(2);
                }
                let mut reading = Reading::new(query);
                let mut receiver = Reluctant::default();
                while reading.step(view, Share { rows: 1, bytes: 1 }, &mut receiver).unwrap() != Progress::Done {}
                let outcome = reading.outcome();
                assert_eq!(receiver.found, sorted, "{sort:?} {limit} at {revision}");
                assert_eq!((outcome.count, outcome.more), (i64::try_from(expected.len()).unwrap(), more), "{sort:?}");
                assert_eq!(receiver.held, 0);
                assert!(limit == 0 || receiver.held_max <= 3 * (300 + 256), "{} bytes are held", receiver.held_max);
            }
        }
        let count = RangeQuery {
            count_only: true,
            ..RangeQuery::all(KeyRange { start: Bytes::from_static(&[0]), end: RangeEnd::Unbounded }, revision)
        };
        let mut reading = Reading::new(count);
        while reading.step(view, Share { rows: 1, bytes: 1 }, &mut Reluctant::default()).unwrap() != Progress::Done {}
        assert_eq!(reading.outcome().count, i64::try_from(expected.len()).unwrap());
    }

    fn read(&self, revision: i64) {
        let snapshot = self.engine.snapshot().unwrap();
        let base = SnapshotRows(snapshot.as_ref());
        let view = Layered::new(&base, Some(&self.in_flight), &self.growing);
        let state = &self.history[usize::try_from(revision - 1).unwrap()];
        let everything = KeyRange { start: Bytes::from_static(&[0]), end: RangeEnd::Unbounded };
        let mut query = RangeQuery::all(everything, revision);
        let expected: Vec<_> = state.iter().map(|(key, kv)| (key.clone(), kv.clone())).collect();
        assert_eq!(read(&view, &query), (expected.clone(), expected.len(), false), "at {revision}");

        query.sort = Some((SortTarget::Key, Direction::Reverse));
        let reversed: Vec<_> = expected.iter().rev().cloned().collect();
        assert_eq!(read(&view, &query), (reversed, expected.len(), false), "backwards at {revision}");

        // In pages that continue behind the last key, each with the count of what is left.
        let mut start = vec![0];
        let mut rest = expected.as_slice();
        loop {
            let page = RangeQuery {
                limit: 2,
                count_all: true,
                ..RangeQuery::all(
                    KeyRange { start: start.into(), end: RangeEnd::Before(vec![0xff, 0xff].into()) },
                    revision,
                )
            };
            let within = rest.iter().filter(|(key, _)| key.as_slice() < &[0xff, 0xff][..]).count();
            let (found, count, more) = read(&view, &page);
            assert_eq!(count, within);
            assert_eq!(found, rest[..within.min(2)]);
            assert_eq!(more, within > 2);
            if !more {
                break;
            }
            rest = &rest[2..];
            start = found[1].0.clone();
            start.push(0);
        }
        self.read_in_steps(&view, revision, &expected);
        for number in 0..12 {
            let key = key(number);
            let query = RangeQuery::all(KeyRange { start: key.clone().into(), end: RangeEnd::Single }, revision);
            let expected: Vec<_> = state.get(&key).map(|kv| (key, kv.clone())).into_iter().collect();
            assert_eq!(read(&view, &query).0, expected);
        }
    }
}

type Found = (Vec<(Vec<u8>, Kv)>, usize, bool);

fn read(rows: &dyn Rows, query: &RangeQuery) -> Found {
    let mut found = Vec::new();
    let outcome = range(rows, query, &mut |key, version| {
        found.push(owned(key, version));
        ControlFlow::Continue(())
    })
    .unwrap();
    (found, usize::try_from(outcome.count).unwrap(), outcome.more)
}

fn owned(key: &[u8], version: &Version<'_>) -> (Vec<u8>, Kv) {
    let kv = Kv {
        create: version.create_revision,
        modified: version.mod_revision,
        version: version.version,
        lease: version.lease,
        value: version.value.to_vec(),
    };
    (key.to_vec(), kv)
}

/// A receiver that has no memory each other time that it is asked.
#[derive(Default)]
struct Reluctant {
    found: Vec<(Vec<u8>, Kv)>,
    asked: usize,
    held: usize,
    held_max: usize,
}

impl Reluctant {
    fn refuses(&mut self) -> bool {
        self.asked += 1;
        self.asked % 2 == 1
    }
}

impl Receiver for Reluctant {
    fn key(&mut self, key: &[u8], version: &Version<'_>) -> ControlFlow<()> {
        if self.refuses() {
            return ControlFlow::Break(());
        }
        self.found.push(owned(key, version));
        ControlFlow::Continue(())
    }

    fn hold(&mut self, bytes: usize) -> ControlFlow<()> {
        if self.refuses() {
            return ControlFlow::Break(());
        }
        self.held += bytes;
        self.held_max = self.held_max.max(self.held);
        ControlFlow::Continue(())
    }

    fn release(&mut self, bytes: usize) {
        self.held -= bytes;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn reads_at_every_kept_revision_agree_with_a_model(steps in proptest::collection::vec(step(), 1..120)) {
        let mut world = World::new();
        for step in steps {
            let at = |world: &World, part: f64| {
                let oldest = world.compacted.max(1);
                #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
                let offset = (part * (world.newest() - oldest) as f64) as i64;
                oldest + offset
            };
            match step {
                Step::Txn { writes, rolled_back } => world.txn(&writes, rolled_back),
                Step::Commit => world.commit(),
                Step::Compact(part) => world.compact(at(&world, part)),
                Step::Read(part) => world.read(at(&world, part)),
            }
        }
        for revision in world.compacted.max(1)..=world.newest() {
            world.read(revision);
        }
    }

    #[test]
    fn records_survive_their_encoding(
        ints in proptest::array::uniform6(any::<i64>()),
        key in proptest::collection::vec(any::<u8>(), 0..40),
        values in proptest::array::uniform2(proptest::collection::vec(any::<u8>(), 0..40)),
        flags in proptest::array::uniform4(any::<bool>()),
        depth in any::<u64>(),
    ) {
        let position = Position { revision: ints[0] & i64::MAX, sub: 9 };
        let version = |value, updated: bool, leased: bool| Version {
            create_revision: if updated { ints[1] } else { position.revision },
            mod_revision: position.revision,
            version: if updated { ints[2] } else { 1 },
            lease: if leased { ints[3] } else { 0 },
            value,
        };
        let ladder = if depth % 2 == 0 { Ladder::default() } else { Ladder { depth, jump: position } };
        let mut rungs = Vec::new();
        for rung in (0..depth % 64).filter(|_| ladder.depth > 0) {
            super::record::put_rung(&mut rungs, Position { revision: ints[5], sub: u32::try_from(rung).unwrap() });
        }
        let live = flags[0].then(|| version(&values[0], flags[1], flags[2]));
        let current = Current { position, ladder, rungs: Rungs::new(&rungs), live };
        let encoded = current.encode();
        prop_assert_eq!(Current::decode(&encoded).unwrap(), current);
        let previous = if depth % 3 == 0 {
            Some(Previous::LOST)
        } else {
            flags[3].then(|| Previous { position, live: flags[1].then(|| version(&values[1], flags[2], flags[0])) })
        };
        let change = Change { time_ms: ints[4].unsigned_abs(), key: &key, live, previous, ladder };
        let encoded = change.encode();
        prop_assert_eq!(Change::decode(position, &encoded).unwrap(), change);
        for end in 0..encoded.len() {
            prop_assert!(Change::decode(position, &encoded[..end]).is_err());
        }
        prop_assert_eq!(Position::from_key(&position.key()).unwrap(), position);
    }
}

#[test]
fn a_walk_to_an_old_version_takes_few_steps() {
    struct Counting<'a>(&'a dyn Rows, std::cell::Cell<usize>);
    impl Rows for Counting<'_> {
        fn get(
            &self,
            table: Table,
            key: &[u8],
            visit: &mut dyn FnMut(&[u8]),
        ) -> Result<bool, kubewharf_engine::EngineError> {
            self.1.set(self.1.get() + usize::from(table == Table::Log));
            self.0.get(table, key, visit)
        }
        fn scan(
            &self,
            table: Table,
            range: (Bound<&[u8]>, Bound<&[u8]>),
            direction: Direction,
            visit: &mut kubewharf_engine::Visitor<'_>,
        ) -> Result<(), kubewharf_engine::EngineError> {
            self.0.scan(table, range, direction, visit)
        }
    }
    let mut world = World::new();
    for number in 0..5000_u32 {
        world.txn(&[(8, Some((u8::try_from(number % 200).unwrap(), 0)))], false);
        if number % 100 == 0 {
            world.commit();
        }
    }
    let snapshot = world.engine.snapshot().unwrap();
    let base = SnapshotRows(snapshot.as_ref());
    let view = Layered::new(&base, Some(&world.in_flight), &world.growing);
    for revision in [2, 3, 100, 2500, 4999] {
        let counting = Counting(&view, std::cell::Cell::new(0));
        let query = RangeQuery::all(KeyRange { start: key(8).into(), end: RangeEnd::Single }, revision);
        let (found, ..) = read(&counting, &query);
        assert_eq!(found[0].1.modified, revision);
        assert!(counting.1.get() <= 40, "{} steps back to {revision}", counting.1.get());
    }
    // What it takes to know the ladder of the next row stays small, and goes with compaction.
    drop(snapshot);
    let rungs = |world: &World| {
        let snapshot = world.engine.snapshot().unwrap();
        let base = SnapshotRows(snapshot.as_ref());
        let mut rungs = None;
        Layered::new(&base, Some(&world.in_flight), &world.growing)
            .get(Table::Current, &key(8), &mut |row| {
                rungs = Some(Current::decode(row).unwrap().rungs.stored().len() / 12)
            })
            .unwrap();
        rungs.unwrap()
    };
    assert!((1..=13).contains(&rungs(&world)), "{}", rungs(&world));
    world.compact(4990);
    world.txn(&[(8, Some((1, 0)))], false);
    assert!(rungs(&world) <= 4, "{}", rungs(&world));
    world.compact(world.newest());
    world.txn(&[(8, Some((2, 0)))], false);
    assert_eq!(rungs(&world), 0);
}

#[test]
fn a_key_whose_row_is_damaged_can_be_deleted_and_made_anew_and_has_no_history_before() {
    let mut world = World::new();
    world.txn(&[(8, Some((1, 0)))], false);
    world.commit();
    world.commit();
    let mut changes = Recorded::default();
    let snapshot = world.engine.snapshot().unwrap();
    let base = SnapshotRows(snapshot.as_ref());
    let revisions = Revisions { newest: 2, compacted: -1 };
    Writer::new(&base, None, &mut world.growing, &mut changes, revisions, 7).delete_unread(&Bytes::from(key(8)));
    drop(snapshot);
    world.history.push(State::new());
    world.txn(&[(8, Some((2, 0)))], false);
    assert_eq!(changes.0, [(Position { revision: 3, sub: 0 }, key(8), None)]);
    let snapshot = world.engine.snapshot().unwrap();
    let base = SnapshotRows(snapshot.as_ref());
    let view = Layered::new(&base, Some(&world.in_flight), &world.growing);
    let at = |revision| {
        let query = RangeQuery::all(KeyRange { start: key(8).into(), end: RangeEnd::Single }, revision);
        let mut modified = Vec::new();
        range(&view, &query, &mut |_, version| {
            modified.push(version.mod_revision);
            ControlFlow::Continue(())
        })
        .map(|_| modified)
    };
    assert_eq!((at(4), at(3)), (Ok(vec![4]), Ok(vec![])));
    assert!(at(2).is_err_and(|error| error.is_corrupt()));
}

/// Evaluates a request on ten keys with values of 200 bytes.
fn evaluate<R>(bounds: Bounds, run: impl FnOnce(&mut Evaluator<'_, '_>) -> Result<R, Refusal>) -> Result<R, Refusal> {
    let mut world = World::new();
    let writes: Vec<_> = (0..10).map(|number| (number, Some((200, 0)))).collect();
    world.txn(&writes, false);
    world.commit();
    let snapshot = world.engine.snapshot().unwrap();
    let base = SnapshotRows(snapshot.as_ref());
    let mut changes = Recorded::default();
    let revisions = Revisions { newest: 2, compacted: -1 };
    world.growing.savepoint();
    let mut writer = Writer::new(&base, Some(&world.in_flight), &mut world.growing, &mut changes, revisions, 7);
    let result = run(&mut Evaluator::writer(&mut writer, revisions, bounds));
    if result.is_err() {
        world.growing.rollback();
        assert_eq!((world.growing.bytes(), world.growing.is_empty()), (0, true), "a refusal leaves nothing");
    }
    result
}

#[test]
fn what_a_request_changes_and_returns_is_bounded_in_bytes() {
    let wide = Bounds { keys: 100, row_bytes: usize::MAX, response_bytes: usize::MAX };
    let (few_rows, few_kvs) = (Bounds { row_bytes: 1900, ..wide }, Bounds { response_bytes: 1900, ..wide });
    let everything = Bytes::from_static(&[0]);
    let txn = |requests: Vec<Request>| {
        let success = requests.into_iter().map(|request| RequestOp { request: Some(request) }).collect();
        TxnRequest { success, ..TxnRequest::default() }
    };

    let mut delete = DeleteRangeRequest { key: everything.clone(), range_end: everything.clone(), prev_kv: false };
    assert_eq!(evaluate(wide, |evaluator| evaluator.delete_range(&delete)).unwrap().deleted, 10);
    assert_eq!(evaluate(few_kvs, |evaluator| evaluator.delete_range(&delete)).unwrap().deleted, 10);
    let refused = evaluate(few_rows, |evaluator| evaluator.delete_range(&delete)).unwrap_err();
    assert!(matches!(refused, Refusal::TooManyBytes { bytes_max: 1900 }), "{refused}");
    delete.prev_kv = true;
    let refused = evaluate(few_kvs, |evaluator| evaluator.delete_range(&delete)).unwrap_err();
    assert!(matches!(refused, Refusal::ResponseTooLarge { bytes_max: 1900 }), "{refused}");

    // What is kept is written anew: twice, with what it replaces.
    let keeps = |number| {
        Request::RequestPut(PutRequest { key: key(number).into(), ignore_value: true, ..PutRequest::default() })
    };
    let puts = txn((0..10).map(keeps).collect());
    evaluate(wide, |evaluator| evaluator.txn(&puts)).unwrap();
    let refused = evaluate(few_rows, |evaluator| evaluator.txn(&puts)).unwrap_err();
    assert!(matches!(refused, Refusal::TooManyBytes { .. }), "{refused}");

    for (sort_target, limit) in [(0, 0), (3, 0), (3, 1)] {
        let all = RangeRequest {
            key: everything.clone(),
            range_end: everything.clone(),
            sort_target,
            limit,
            ..RangeRequest::default()
        };
        let reads = txn(vec![Request::RequestRange(all)]);
        let read = evaluate(few_kvs, |evaluator| evaluator.txn(&reads));
        // One that is sorted is within the bound if what it keeps is.
        assert_eq!(read.is_ok(), limit == 1, "{read:?}");
    }
}

#[test]
fn keys_are_counted_and_passed_on_without_their_values_whatever_comes_before_these() {
    struct Beginnings<'a>(SnapshotRows<'a>, std::cell::Cell<usize>);
    impl Rows for Beginnings<'_> {
        fn get(
            &self,
            table: Table,
            key: &[u8],
            visit: &mut dyn FnMut(&[u8]),
        ) -> Result<bool, kubewharf_engine::EngineError> {
            self.0.get(table, key, visit)
        }
        fn scan(
            &self,
            table: Table,
            range: (Bound<&[u8]>, Bound<&[u8]>),
            direction: Direction,
            visit: &mut kubewharf_engine::Visitor<'_>,
        ) -> Result<(), kubewharf_engine::EngineError> {
            self.0.scan(table, range, direction, &mut |key, value| {
                self.1.set(self.1.get() + value.len());
                visit(key, value)
            })
        }
        fn scan_wanted(
            &self,
            table: Table,
            range: (Bound<&[u8]>, Bound<&[u8]>),
            direction: Direction,
            wanted: kubewharf_engine::Wanted,
            visit: &mut kubewharf_engine::Visitor<'_>,
        ) -> Result<(), kubewharf_engine::EngineError> {
            self.0.scan_wanted(table, range, direction, wanted, &mut |key, value| {
                self.1.set(self.1.get() + value.len());
                visit(key, value)
            })
        }
    }
    const VALUE_BYTES: usize = 10_000;
    let (value, rungs) = (vec![7; VALUE_BYTES], vec![0; 12 * 30]);
    let live = Some(Version { create_revision: 2, mod_revision: 2, version: 1, lease: 0, value: &value });
    let plain = Current {
        position: Position { revision: 2, sub: 0 },
        ladder: Ladder::default(),
        rungs: Rungs::default(),
        live,
    };
    let ladder = Ladder { depth: 1 << 30, jump: plain.position };
    let often_written = Current { ladder, rungs: Rungs::new(&rungs), ..plain };
    let engine = Memory::new();
    let put = |key: &str, row: Current<'_>| kubewharf_engine::conformance::put(Table::Current, key, row.encode());
    let deleted = Current { live: None, ..plain };
    let rows = vec![put("a", plain), put("b", often_written), put("c", plain), put("d", deleted), put("e", plain)];
    kubewharf_engine::conformance::apply(&engine, rows);
    let snapshot = engine.snapshot().unwrap();
    let all = RangeQuery::all(KeyRange { start: b"a".as_ref().into(), end: RangeEnd::Unbounded }, 2);
    let reversed = Some((SortTarget::Key, Direction::Reverse));
    for (query, keys, whole_values) in [
        (RangeQuery { count_only: true, ..all.clone() }, vec![], 0),
        (RangeQuery { keys_only: true, ..all.clone() }, vec!["a", "b", "c", "e"], 0),
        (RangeQuery { limit: 1, count_all: true, ..all.clone() }, vec!["a"], 1),
        (RangeQuery { limit: 2, count_all: true, sort: reversed, ..all.clone() }, vec!["e", "c"], 2),
        (all.clone(), vec!["a", "b", "c", "e"], 4),
    ] {
        let rows = Beginnings(SnapshotRows(snapshot.as_ref()), std::cell::Cell::new(0));
        let mut found = Vec::new();
        let outcome = range(&rows, &query, &mut |key, version| {
            assert!(query.keys_only || version.value == value);
            found.push(String::from_utf8_lossy(key).into_owned());
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!((found, outcome.count), (keys.iter().map(|key| (*key).to_owned()).collect(), 4), "{query:?}");
        assert_eq!(rows.1.get() / VALUE_BYTES, whole_values, "{query:?}");
    }
}
