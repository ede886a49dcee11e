//! The suite that every engine passes, whatever it is made of.
//!
//! Job: state the contract of [`Engine`] as checks that fail by panic. Pure use of the trait: an engine's own files, processes and faults
//! are tested beside the engine.
//!
//! Not for production code; the linker drops it there.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use bytes::Bytes;

use crate::{Batch, Cause, CommitError, Direction, Engine, Head, Operation, Reserve, Snapshot, Table, Wanted};

/// A store under test.
pub trait Store {
    /// The engine as it is open now.
    fn engine(&self) -> &dyn Engine;

    /// Closes the engine and opens it again on the same data; `false`, and nothing happens, if its data does not survive that.
    fn reopen(&mut self) -> bool;

    /// A new store with the content of a backup that this one wrote.
    fn restore(&self, backup: &Path) -> Box<dyn Store>;

    /// Whether opening takes the store over with an epoch of its own, as of a store that one process has at a time. If not, several
    /// processes share it, and opening leaves the head alone: a process that wants the store for itself begins an epoch by a commit.
    fn opening_begins_an_epoch(&self) -> bool {
        true
    }
}

/// Makes an empty store.
pub type Make<'m> = dyn Fn() -> Box<dyn Store> + 'm;

/// Rows by key, as a scan must show them.
pub type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// Runs every check, each on stores of its own; `scratch` is a directory for backups.
pub fn run(make: &Make<'_>, scratch: &Path) {
    println!("a fresh store begins at revision 1");
    a_fresh_store_begins_at_revision_1(&*make());
    println!("a batch is applied whole");
    a_batch_is_applied_whole(&*make());
    println!("each field of the head fences");
    each_field_of_the_head_fences(&*make());
    println!("one of racing writers wins");
    one_of_racing_writers_wins(&*make());
    println!("a snapshot keeps its view");
    a_snapshot_keeps_its_view(&*make());
    println!("readers never see a part of a batch");
    readers_never_see_a_part_of_a_batch(&*make());
    println!("what is fetched early is what is read");
    what_is_fetched_early_is_what_is_read(&*make());
    println!("a visitor may read from the same view");
    a_visitor_may_read_from_the_same_view(&*make());
    println!("scans agree with a model");
    scans_agree_with_a_model(&*make());
    println!("a scan of what is wanted shows that much");
    a_scan_of_what_is_wanted_shows_that_much(&*make());
    println!("rows are read with their head");
    rows_are_read_with_their_head(&*make());
    println!("a scan ends when told");
    a_scan_ends_when_told(&*make());
    println!("the limits hold and are reached");
    the_limits_hold_and_are_reached(&*make());
    println!("the size follows the rows");
    the_size_follows_the_rows(&*make());
    println!("a backup is one moment");
    a_backup_is_one_moment(&*make(), scratch);
    println!("a reopened store has everything, and a new epoch unless it is shared");
    a_reopened_store_has_everything(&mut *make());
}

/// Applies the operations as the next batch; panics if they are refused.
pub fn apply(engine: &dyn Engine, operations: Vec<Operation>) -> Head {
    let batch = next_batch(engine, operations);
    engine.commit(&batch).expect("a batch on the stored head is applied");
    batch.next
}

/// The batch that follows the stored head.
pub fn next_batch(engine: &dyn Engine, operations: Vec<Operation>) -> Batch {
    let expected = head(engine);
    let next = Head {
        epoch: expected.epoch,
        seq: expected.seq + 1,
        revision: expected.revision + 1,
        batch_id: expected.batch_id.wrapping_add(1),
    };
    Batch { expected, next, operations, reserve: Reserve::Untouched }
}

/// An operation that writes a row.
pub fn put(table: Table, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Operation {
    Operation::Put { table, key: Bytes::copy_from_slice(key.as_ref()), value: Bytes::copy_from_slice(value.as_ref()) }
}

/// An operation that removes a row.
pub fn delete(table: Table, key: impl AsRef<[u8]>) -> Operation {
    Operation::Delete { table, key: Bytes::copy_from_slice(key.as_ref()) }
}

/// The value of a row now.
pub fn get(engine: &dyn Engine, table: Table, key: &[u8]) -> Option<Vec<u8>> {
    get_at(&*engine.snapshot().expect("a snapshot"), table, key)
}

/// The stored head.
pub fn head(engine: &dyn Engine) -> Head {
    engine.snapshot().expect("a snapshot").head().expect("a head")
}

/// The rows of a whole table now.
pub fn rows(engine: &dyn Engine, table: Table) -> Rows {
    let all = (Bound::Unbounded, Bound::Unbounded);
    scan(&*engine.snapshot().expect("a snapshot"), table, all, Direction::Forward).into_iter().collect()
}

/// Checks that a scan between the bounds shows exactly the model's rows, both ways.
pub fn assert_scans(engine: &dyn Engine, table: Table, model: &Rows, range: (Bound<&[u8]>, Bound<&[u8]>)) {
    let (start, end) = range;
    let is_inside = |key: &[u8]| {
        (match start {
            Bound::Included(start) => key >= start,
            Bound::Excluded(start) => key > start,
            Bound::Unbounded => true,
        }) && match end {
            Bound::Included(end) => key <= end,
            Bound::Excluded(end) => key < end,
            Bound::Unbounded => true,
        }
    };
    let mut expected: Vec<_> =
        model.iter().filter(|(key, _)| is_inside(key)).map(|(key, value)| (key.clone(), value.clone())).collect();
    let snapshot = engine.snapshot().expect("a snapshot");
    assert_eq!(scan(&*snapshot, table, range, Direction::Forward), expected, "forward {range:?}");
    expected.reverse();
    assert_eq!(scan(&*snapshot, table, range, Direction::Reverse), expected, "reverse {range:?}");
}

fn get_at(snapshot: &dyn Snapshot, table: Table, key: &[u8]) -> Option<Vec<u8>> {
    let mut value = None;
    let found = snapshot.get(table, key, &mut |row| value = Some(row.to_vec())).expect("reads");
    assert_eq!(found, value.is_some(), "a get tells whether it has called the visitor");
    value
}

fn scan(
    snapshot: &dyn Snapshot,
    table: Table,
    range: (Bound<&[u8]>, Bound<&[u8]>),
    direction: Direction,
) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut rows = Vec::new();
    let visit = &mut |key: &[u8], value: &[u8]| {
        rows.push((key.to_vec(), value.to_vec()));
        ControlFlow::Continue(())
    };
    snapshot.scan(table, range, direction, visit).expect("scans");
    rows
}

/// Small random numbers, the same on every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % bound
    }

    /// Mostly short keys of few different bytes, the extremes among them, so that keys are often equal or prefixes of each other;
    /// sometimes one at the limit.
    fn key(&mut self, key_bytes_max: usize) -> Vec<u8> {
        const BYTES: [u8; 5] = [0x00, 0x01, b'a', 0xfe, 0xff];
        let length = if self.below(20) == 0 { key_bytes_max - self.below(2) } else { 1 + self.below(4) };
        let tail = BYTES[self.below(BYTES.len())];
        let mut key = vec![tail; length];
        for byte in key.iter_mut().take(4) {
            *byte = BYTES[self.below(BYTES.len())];
        }
        key
    }

    fn value(&mut self) -> Vec<u8> {
        // Empty, small, around a page less what an engine adds, and several pages.
        let length = match self.below(4) {
            0 => self.below(3),
            1 => self.below(2200),
            2 => 4040 + self.below(80),
            _ => 8000 + self.below(9000),
        };
        vec![self.below(256) as u8; length]
    }
}

fn a_fresh_store_begins_at_revision_1(store: &dyn Store) {
    let head = head(store.engine());
    assert_eq!((head.epoch, head.seq, head.revision), (1, 1, 1));
    assert_ne!(head.batch_id, 0, "the first head is somebody's");
    for table in Table::ALL {
        assert_eq!(rows(store.engine(), table), Rows::new(), "{table:?}");
        assert_eq!(get(store.engine(), table, b"key"), None);
    }
}

fn a_batch_is_applied_whole(store: &dyn Store) {
    let engine = store.engine();
    let everywhere: Vec<_> = Table::ALL.iter().map(|&table| put(table, "k", table.name())).collect();
    let left = apply(engine, everywhere.clone());
    assert_eq!(head(engine), left);
    for table in Table::ALL {
        assert_eq!(get(engine, table, b"k"), Some(table.name().into()), "a key belongs to its table");
    }

    // A batch on a head that is gone changes nothing, not even in part.
    let stale = Batch { expected: Head { seq: left.seq - 1, ..left }, ..next_batch(engine, vec![]) };
    let mut changes: Vec<_> = Table::ALL.iter().map(|&table| put(table, "k", "changed")).collect();
    changes.push(delete(Table::Meta, "k"));
    assert_eq!(engine.commit(&Batch { operations: changes, ..stale }), Err(CommitError::Fenced(left)));
    // Nor does one whose last row is too large.
    let too_long = vec![0; engine.limits().key_bytes_max + 1];
    let refused = next_batch(engine, vec![put(Table::Meta, "k", "changed"), put(Table::Meta, too_long, "")]);
    assert!(matches!(engine.commit(&refused), Err(CommitError::NotApplied(Cause::TooLarge(_)))));
    assert_eq!(head(engine), left);
    for table in Table::ALL {
        assert_eq!(get(engine, table, b"k"), Some(table.name().into()));
    }

    // A batch of nothing moves the head; overwriting, removing, and removing what is not there are one batch like any other.
    let left = apply(engine, vec![]);
    assert_eq!(head(engine), left);
    apply(
        engine,
        vec![
            delete(Table::Meta, "k"),
            delete(Table::Meta, "missing"),
            put(Table::Current, "k", ""),
            put(Table::Current, "l", "new"),
        ],
    );
    assert_eq!(get(engine, Table::Meta, b"k"), None);
    assert_eq!(get(engine, Table::Current, b"k"), Some(vec![]), "an empty value is a value");
    assert_eq!(get(engine, Table::Current, b"l"), Some(b"new".to_vec()));
    assert_eq!(get(engine, Table::Lease, b"k"), Some(b"lease".to_vec()));
}

fn each_field_of_the_head_fences(store: &dyn Store) {
    let engine = store.engine();
    apply(engine, vec![put(Table::Meta, "k", "v")]);
    let stored = head(engine);
    let others = [
        Head { epoch: stored.epoch + 1, ..stored },
        Head { epoch: stored.epoch - 1, ..stored },
        Head { seq: stored.seq + 1, ..stored },
        Head { seq: stored.seq - 1, ..stored },
        Head { revision: stored.revision + 1, ..stored },
        Head { revision: stored.revision - 1, ..stored },
        Head { batch_id: stored.batch_id ^ 1, ..stored },
        Head { batch_id: stored.batch_id ^ 1 << 127, ..stored },
        Head::default(),
    ];
    for expected in others {
        let batch = Batch { expected, ..next_batch(engine, vec![put(Table::Meta, "k", "fenced")]) };
        assert_eq!(engine.commit(&batch), Err(CommitError::Fenced(stored)), "expected {expected:?}");
    }
    assert_eq!(head(engine), stored);
    assert_eq!(get(engine, Table::Meta, b"k"), Some(b"v".to_vec()));

    // The same batch again is fenced by its own first application.
    let batch = next_batch(engine, vec![put(Table::Meta, "k", "once")]);
    assert_eq!(engine.commit(&batch), Ok(()));
    assert_eq!(engine.commit(&batch), Err(CommitError::Fenced(batch.next)));
    // The extremes of every field are stored as they are.
    let extreme = Head { epoch: u64::MAX, seq: u64::MAX - 9, revision: i64::MAX, batch_id: u128::MAX };
    let batch = Batch { next: extreme, ..next_batch(engine, vec![]) };
    assert_eq!(engine.commit(&batch), Ok(()));
    assert_eq!(head(engine), extreme);
}

fn one_of_racing_writers_wins(store: &dyn Store) {
    const WRITERS: usize = 4;
    const ROUNDS: u64 = 20;
    let engine = store.engine();
    for round in 0..ROUNDS {
        let base = next_batch(engine, vec![]);
        let start = Barrier::new(WRITERS);
        let outcomes: Vec<_> = thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS)
                .map(|writer| {
                    let (start, mut batch) = (&start, base.clone());
                    batch.next.batch_id = u128::from(round) << 64 | writer as u128;
                    batch.operations = vec![put(Table::Current, "winner", writer.to_string())];
                    scope.spawn(move || {
                        start.wait();
                        (batch.next, engine.commit(&batch))
                    })
                })
                .collect();
            writers.into_iter().map(|writer| writer.join().expect("a writer ends")).collect()
        });
        let winners: Vec<_> = outcomes.iter().filter(|(_, outcome)| outcome.is_ok()).collect();
        assert_eq!(winners.len(), 1, "{outcomes:?}");
        let won = winners[0].0;
        assert_eq!(head(engine), won);
        for (_, outcome) in &outcomes {
            assert!(matches!(outcome, Ok(()) | Err(CommitError::Fenced(_))), "{outcome:?}");
            if let Err(CommitError::Fenced(seen)) = outcome {
                assert_eq!(*seen, won);
            }
        }
        let winner = (won.batch_id as u64).to_string();
        assert_eq!(get(engine, Table::Current, b"winner"), Some(winner.into_bytes()));
    }
}

fn a_snapshot_keeps_its_view(store: &dyn Store) {
    let engine = store.engine();
    let mut views = Vec::new();
    let mut model = Rows::new();
    for step in 0..20_u8 {
        let key = vec![b'k', step % 7];
        model.insert(key.clone(), vec![step; usize::from(step) * 400]);
        let mut operations = vec![put(Table::Current, &key, &model[&key])];
        if step % 5 == 4 {
            let gone = vec![b'k', (step + 3) % 7];
            model.remove(&gone);
            operations.push(delete(Table::Current, gone));
        }
        operations.sort_by(|a, b| a.key().cmp(b.key()));
        let head = apply(engine, operations);
        views.push((engine.snapshot().expect("a snapshot"), head, model.clone()));
    }
    // Views of every age, read after all commits and in any order.
    let all = (Bound::Unbounded, Bound::Unbounded);
    for (view, head, model) in views.iter().rev() {
        assert_eq!(view.head(), Ok(*head));
        let seen: Rows = scan(&**view, Table::Current, all, Direction::Forward).into_iter().collect();
        assert_eq!(&seen, model);
        for last in 0..7 {
            let key = [b'k', last];
            assert_eq!(get_at(&**view, Table::Current, &key).as_ref(), model.get(&key[..]));
        }
    }
    // A view may move to another thread and outlast others.
    let (view, head, _) = views.swap_remove(0);
    drop(views);
    thread::scope(|scope| {
        scope.spawn(move || assert_eq!(view.head(), Ok(head)));
    });
}

fn readers_never_see_a_part_of_a_batch(store: &dyn Store) {
    const ROWS: u32 = 50;
    const COMMITS: u64 = 60;
    let engine = store.engine();
    let write = |stamp: u64| {
        let operations = (0..ROWS).map(|row| put(Table::Current, row.to_be_bytes(), stamp.to_be_bytes())).collect();
        apply(engine, operations)
    };
    let first = write(head(engine).seq + 1).seq;
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        for direction in [Direction::Forward, Direction::Reverse] {
            let is_done = &is_done;
            scope.spawn(move || {
                let mut seen = first;
                let mut views = 0;
                while !is_done.load(Ordering::Acquire) || views == 0 {
                    let view = engine.snapshot().expect("a snapshot");
                    let stamp = view.head().expect("a head").seq;
                    assert!(stamp >= seen, "views go forward");
                    seen = stamp;
                    views += 1;
                    let all = (Bound::Unbounded, Bound::Unbounded);
                    let rows = scan(&*view, Table::Current, all, direction);
                    assert_eq!(rows.len(), ROWS as usize);
                    assert!(
                        rows.iter().all(|(_, value)| *value == stamp.to_be_bytes()),
                        "all rows are of batch {stamp}"
                    );
                    let one = get_at(&*view, Table::Current, &(stamp as u32 % ROWS).to_be_bytes());
                    assert_eq!(one, Some(stamp.to_be_bytes().to_vec()));
                }
            });
        }
        for _ in 0..COMMITS {
            let stamp = head(engine).seq + 1;
            write(stamp);
            // What has been confirmed is in every view from then on.
            let view = engine.snapshot().expect("a snapshot");
            assert_eq!(view.head().expect("a head").seq, stamp);
            assert_eq!(get_at(&*view, Table::Current, &0_u32.to_be_bytes()), Some(stamp.to_be_bytes().to_vec()));
        }
        is_done.store(true, Ordering::Release);
    });
}

fn what_is_fetched_early_is_what_is_read(store: &dyn Store) {
    let engine = store.engine();
    let too_long = vec![b'a'; engine.limits().key_bytes_max + 1];
    apply(engine, vec![put(Table::Current, "a", "1"), put(Table::Current, "b", ""), put(Table::Log, "c", "3")]);
    let view = engine.snapshot().expect("a snapshot");
    let keys: [&[u8]; 6] = [b"a", b"b", b"c", b"a", b"", &too_long];
    view.prefetch(Table::Current, &keys).expect("fetches");
    view.prefetch(Table::Current, &[]).expect("fetches nothing");
    apply(engine, vec![put(Table::Current, "a", "later"), put(Table::Current, "c", "later")]);
    // Twice: what was fetched stays.
    for _ in 0..2 {
        let seen: Vec<_> = keys.iter().map(|key| get_at(&*view, Table::Current, key)).collect();
        assert_eq!(seen, [Some(b"1".to_vec()), Some(vec![]), None, Some(b"1".to_vec()), None, None]);
    }
    assert_eq!(get_at(&*view, Table::Log, b"c"), Some(b"3".to_vec()), "a key belongs to its table");
    assert_eq!(get(engine, Table::Current, b"a"), Some(b"later".to_vec()), "another view has its own rows");
}

fn a_visitor_may_read_from_the_same_view(store: &dyn Store) {
    const ROWS: u32 = 300;
    let engine = store.engine();
    apply(engine, (0..ROWS).map(|row| put(Table::Log, row.to_be_bytes(), vec![row as u8; 3000])).collect());
    let view = engine.snapshot().expect("a snapshot");
    let all = (Bound::Unbounded, Bound::Unbounded);
    let mut seen = 0;
    let visit = &mut |key: &[u8], value: &[u8]| {
        // Not at each row, so that both ways of going on are met.
        if seen % 3 == 0 {
            assert_eq!(get_at(&*view, Table::Log, key).as_deref(), Some(value));
            let from_here = (Bound::Included(key), Bound::Unbounded);
            let mut inner = 0;
            let count = &mut |_: &[u8], _: &[u8]| {
                inner += 1;
                if inner == 40 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            view.scan(Table::Log, from_here, Direction::Forward, count).expect("scans within a scan");
            assert_eq!(inner, (ROWS - seen).min(40));
        }
        assert_eq!(key, seen.to_be_bytes());
        seen += 1;
        ControlFlow::Continue(())
    };
    view.scan(Table::Log, all, Direction::Forward, visit).expect("scans");
    assert_eq!(seen, ROWS);
}

fn scans_agree_with_a_model(store: &dyn Store) {
    let engine = store.engine();
    let key_bytes_max = engine.limits().key_bytes_max;
    let mut random = Random(7);
    let mut model = Rows::new();
    for round in 0..30 {
        let mut changes = BTreeMap::new();
        for _ in 0..=random.below(40) {
            let value = (random.below(3) > 0).then(|| random.value());
            changes.insert(random.key(key_bytes_max), value);
        }
        let mut operations = Vec::new();
        for (key, value) in changes {
            operations.push(match &value {
                Some(value) => put(Table::LeaseKey, &key, value),
                None => delete(Table::LeaseKey, &key),
            });
            match value {
                Some(value) => drop(model.insert(key, value)),
                None => drop(model.remove(&key)),
            }
        }
        // Neighbours in other tables must not leak into the scans.
        operations.push(put(Table::Lease, [0xff], "before"));
        operations.sort_by(|a, b| (a.table(), a.key()).cmp(&(b.table(), b.key())));
        apply(engine, operations);

        for _ in 0..20 {
            // Bounds that are stored keys, keys beside them, empty ones and longer ones than any key.
            let mut bound = || match random.below(8) {
                0 => vec![],
                1 => vec![0xff; key_bytes_max + 1],
                2 => {
                    let mut key = random.key(key_bytes_max);
                    key.push(0);
                    key
                }
                _ => random.key(key_bytes_max),
            };
            let (start, end) = (bound(), bound());
            let kind = |key, which| match which {
                0 => Bound::Included(key),
                1 => Bound::Excluded(key),
                _ => Bound::Unbounded,
            };
            let range = (kind(&start[..], random.below(3)), kind(&end[..], random.below(3)));
            assert_scans(engine, Table::LeaseKey, &model, range);
        }
        for key in model.keys().take(5) {
            assert_eq!(get(engine, Table::LeaseKey, key).as_ref(), model.get(key), "round {round}");
        }
        for key in [&[][..], &vec![b'a'; key_bytes_max + 1]] {
            assert_eq!(get(engine, Table::LeaseKey, key), None, "no row can have a key of {} bytes", key.len());
        }
    }
    assert!(model.len() > 50, "the model is worth comparing with");
}

fn a_scan_of_what_is_wanted_shows_that_much(store: &dyn Store) {
    const ROWS: usize = 1500;
    let engine = store.engine();
    let value = |row: usize| vec![row as u8; row % 90];
    apply(engine, (0..ROWS).map(|row| put(Table::Current, (row as u32).to_be_bytes(), value(row))).collect());
    let view = engine.snapshot().expect("a snapshot");
    let all = (Bound::Unbounded, Bound::Unbounded);
    for direction in [Direction::Forward, Direction::Reverse] {
        // The number of rows is no bound, however wrong it is.
        for rows in [0, 1, 700, 1024, ROWS, usize::MAX] {
            for value_bytes in [0, 50, usize::MAX] {
                let mut seen = 0;
                let visit = &mut |key: &[u8], found: &[u8]| {
                    let row = if direction == Direction::Forward { seen } else { ROWS - 1 - seen };
                    let whole = value(row);
                    assert_eq!(key, (row as u32).to_be_bytes());
                    assert_eq!(found, &whole[..whole.len().min(value_bytes)]);
                    if seen % 400 == 0 {
                        assert_eq!(get_at(&*view, Table::Current, key).as_deref(), Some(&whole[..]));
                    }
                    seen += 1;
                    if seen == 1200 && rows == 700 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                };
                view.scan_wanted(Table::Current, all, direction, Wanted { rows, value_bytes }, visit).expect("scans");
                assert_eq!(seen, if rows == 700 { 1200 } else { ROWS });
            }
        }
    }
}

fn rows_are_read_with_their_head(store: &dyn Store) {
    let engine = store.engine();
    let too_long = vec![b'a'; engine.limits().key_bytes_max + 1];
    let written =
        apply(engine, vec![put(Table::Current, "a", "1"), put(Table::Meta, "a", ""), put(Table::Log, "b", "3")]);
    let wanted: [(Table, &[u8]); 6] = [
        (Table::Current, b"a"),
        (Table::Meta, b"a"),
        (Table::Current, b"b"),
        (Table::Log, b"b"),
        (Table::Current, b""),
        (Table::Current, &too_long),
    ];
    let (head, rows) = engine.read(&wanted).expect("reads");
    assert_eq!(head, written);
    let rows: Vec<Option<&[u8]>> = rows.iter().map(Option::as_deref).collect();
    assert_eq!(rows, [Some(&b"1"[..]), Some(b""), None, Some(b"3"), None, None]);
    assert_eq!(engine.read(&[]).expect("reads"), (written, vec![]));
    let later = apply(engine, vec![put(Table::Current, "a", "2")]);
    assert_eq!(engine.read(&wanted[..1]).expect("reads"), (later, vec![Some(Bytes::from_static(b"2"))]));
}

fn a_scan_ends_when_told(store: &dyn Store) {
    let engine = store.engine();
    apply(engine, (0..100_u8).map(|key| put(Table::Log, [key], [key])).collect());
    let snapshot = engine.snapshot().expect("a snapshot");
    for (direction, expected) in [(Direction::Forward, [10, 11, 12]), (Direction::Reverse, [90, 89, 88])] {
        let mut seen = Vec::new();
        let visit = &mut |key: &[u8], _: &[u8]| {
            seen.push(key[0]);
            if seen.len() == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let range = (Bound::Included(&[10][..]), Bound::Included(&[90][..]));
        snapshot.scan(Table::Log, range, direction, visit).expect("a scan that is told to end is no failure");
        assert_eq!(seen, expected);
    }
}

fn the_limits_hold_and_are_reached(store: &dyn Store) {
    let engine = store.engine();
    let limits = engine.limits();
    let longest_key = Bytes::from(vec![b'k'; limits.key_bytes_max]);
    let largest_value = Bytes::from(vec![b'v'; limits.value_bytes_max]);
    let row =
        |key: &Bytes, value: &Bytes| Operation::Put { table: Table::Current, key: key.clone(), value: value.clone() };
    let before = head(engine);
    let mut refused = vec![
        vec![row(&Bytes::new(), &Bytes::new())],
        vec![delete(Table::Current, "")],
        vec![put(Table::Current, vec![b'k'; limits.key_bytes_max + 1], "")],
        vec![delete(Table::Current, vec![b'k'; limits.key_bytes_max + 1])],
        vec![put(Table::Current, &longest_key, vec![b'v'; limits.value_bytes_max + 1])],
    ];
    // The same bytes over and over: the sum counts, the memory is shared.
    let rows_to_fill = limits.batch_bytes_max / limits.value_bytes_max + 1;
    refused.push((0..rows_to_fill).map(|n| row(&Bytes::from(n.to_string()), &largest_value)).collect());
    refused.push((0..=limits.batch_operations_max).map(|n| delete(Table::Current, n.to_be_bytes())).collect());
    for operations in refused {
        let what = format!("{} operations, the first of {} bytes", operations.len(), operations[0].payload_bytes());
        let outcome = engine.commit(&next_batch(engine, operations));
        assert!(matches!(outcome, Err(CommitError::NotApplied(Cause::TooLarge(_)))), "{what}: {outcome:?}");
    }
    assert_eq!(head(engine), before);
    assert_eq!(rows(engine, Table::Current), Rows::new());

    apply(engine, vec![row(&longest_key, &largest_value)]);
    assert_eq!(get(engine, Table::Current, &longest_key).as_deref(), Some(&largest_value[..]));
    apply(engine, vec![Operation::Delete { table: Table::Current, key: longest_key.clone() }]);
    assert_eq!(get(engine, Table::Current, &longest_key), None);

    let most = limits.batch_operations_max as u32;
    apply(engine, (0..most).map(|n| put(Table::Lease, n.to_be_bytes(), "")).collect());
    assert_eq!(rows(engine, Table::Lease).len(), limits.batch_operations_max);
    let size = engine.size().expect("a size");
    assert!(
        size.allocated_bytes < 1 << 30,
        "room is taken for what a batch can need, not for its every operation: {size:?}"
    );
    apply(engine, (0..most).map(|n| delete(Table::Lease, n.to_be_bytes())).collect());
    assert_eq!(rows(engine, Table::Lease), Rows::new());
}

fn the_size_follows_the_rows(store: &dyn Store) {
    const ROWS: u64 = 2000;
    const VALUE_BYTES: u64 = 1000;
    let engine = store.engine();
    let empty = engine.size().expect("a size");
    let value = vec![1; VALUE_BYTES as usize];
    apply(engine, (0..ROWS).map(|n| put(Table::Log, n.to_be_bytes(), &value)).collect());
    let full = engine.size().expect("a size");
    assert!(full.in_use_bytes >= empty.in_use_bytes + ROWS * VALUE_BYTES, "{full:?} after {empty:?}");
    assert!(full.in_use_bytes <= empty.in_use_bytes + 3 * ROWS * VALUE_BYTES, "{full:?} after {empty:?}");
    assert!(full.allocated_bytes >= full.in_use_bytes, "{full:?}");
    assert!(full.capacity_bytes.is_none_or(|capacity| capacity > full.in_use_bytes), "{full:?}");
    apply(engine, (0..ROWS).map(|n| delete(Table::Log, n.to_be_bytes())).collect());
    let emptied = engine.size().expect("a size");
    assert!(emptied.in_use_bytes < empty.in_use_bytes + ROWS * VALUE_BYTES / 10, "{emptied:?} after {full:?}");
}

fn a_backup_is_one_moment(store: &dyn Store, scratch: &Path) {
    const ROWS: u32 = 500;
    let engine = store.engine();
    let write = |stamp: u64| {
        let operations = (0..ROWS).map(|row| put(Table::Current, row.to_be_bytes(), stamp.to_be_bytes())).collect();
        apply(engine, operations)
    };
    let before = write(head(engine).seq + 1);
    let target = scratch.join(format!("{}-backup", engine.name()));
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            engine.backup(&target).expect("a backup while batches are committed");
            is_done.store(true, Ordering::Release);
        });
        loop {
            write(head(engine).seq + 1);
            if is_done.load(Ordering::Acquire) {
                break;
            }
        }
    });
    let after = head(engine);

    let mut copy = store.restore(&target);
    let copied = rows(copy.engine(), Table::Current);
    assert_eq!(copied.len(), ROWS as usize);
    let stamps: Vec<_> =
        copied.values().map(|value| u64::from_be_bytes(value[..].try_into().expect("8 bytes"))).collect();
    assert!(stamps.iter().all(|stamp| *stamp == stamps[0]), "all rows are of one batch");
    assert!((before.seq..=after.seq).contains(&stamps[0]), "{} is between {before:?} and {after:?}", stamps[0]);
    // The copy is a store like any other, and not tied to its origin.
    apply(copy.engine(), vec![put(Table::Meta, "restored", "yes")]);
    assert_eq!(get(engine, Table::Meta, b"restored"), None);
    if copy.reopen() {
        assert_eq!(get(copy.engine(), Table::Meta, b"restored"), Some(b"yes".to_vec()));
    }

    // A target that exists is left alone.
    let taken = scratch.join(format!("{}-taken", engine.name()));
    std::fs::write(&taken, "precious").expect("writes the file");
    assert!(engine.backup(&taken).is_err());
    assert_eq!(std::fs::read(&taken).expect("reads the file"), b"precious");
    // Nothing but the two is left behind.
    let left = std::fs::read_dir(scratch).expect("lists").filter(|entry| {
        let name = entry.as_ref().expect("an entry").file_name();
        name.to_string_lossy().contains("partial")
    });
    assert_eq!(left.count(), 0);
}

fn a_reopened_store_has_everything(store: &mut dyn Store) {
    let mut expected = BTreeMap::new();
    for round in 0..3_u8 {
        let operations: Vec<_> =
            Table::ALL.iter().map(|&table| put(table, [round], vec![round; 5000 * usize::from(round)])).collect();
        let left = apply(store.engine(), operations);
        for table in Table::ALL {
            expected.entry(table).or_insert_with(Rows::new).insert(vec![round], vec![round; 5000 * usize::from(round)]);
        }
        let unsent = next_batch(store.engine(), vec![put(Table::Meta, "late", [round])]);
        if !store.reopen() {
            return;
        }
        let opened = head(store.engine());
        let answer = store.engine().commit(&unsent);
        if store.opening_begins_an_epoch() {
            assert_eq!((opened.epoch, opened.seq, opened.revision), (left.epoch + 1, left.seq + 1, left.revision));
            assert_ne!(opened.batch_id, left.batch_id);
            assert_eq!(answer, Err(CommitError::Fenced(opened)), "an earlier process is fenced");
        } else {
            assert_eq!(opened, left, "opening leaves the head alone");
            assert_eq!(answer, Ok(()), "whoever shares the store goes on");
            expected.entry(Table::Meta).or_default().insert(b"late".to_vec(), vec![round]);
        }
        for table in Table::ALL {
            assert_eq!(rows(store.engine(), table), expected[&table]);
        }
    }
}
