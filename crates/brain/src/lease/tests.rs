use std::collections::BTreeMap;

use kubewharf_engine::memory::Memory;
use kubewharf_engine::{Batch, Engine, Head, Operation, Reserve};
use proptest::prelude::*;

use super::*;
use crate::mvcc::lease_key;

/// A clock that goes when it is told to.
#[derive(Default)]
struct ManualClock(Mutex<Duration>);

impl ManualClock {
    fn advance(&self, time: Duration) {
        *self.0.lock() += time;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Duration {
        *self.0.lock()
    }
}

/// Leases restored from these rows: id, time to live, remainder.
fn restored(rows: &[(i64, i64, i64)]) -> (Leases, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::default());
    clock.advance(Duration::from_secs(1000));
    (restore(rows, &clock), clock)
}

fn restore(rows: &[(i64, i64, i64)], clock: &Arc<ManualClock>) -> Leases {
    let engine = Memory::new();
    let expected = engine.snapshot().unwrap().head().unwrap();
    let operations = rows
        .iter()
        .map(|&(id, ttl_seconds, remaining_seconds)| Operation::Put {
            table: Table::Lease,
            key: lease_key(id),
            value: LeaseRecord { ttl_seconds, remaining_seconds }.encode(),
        })
        .collect();
    let next = Head { seq: expected.seq + 1, ..expected };
    engine.commit(&Batch { expected, next, operations, reserve: Reserve::Untouched }).unwrap();
    let snapshot = engine.snapshot().unwrap();
    Leases::restore_with(snapshot.as_ref(), clock.clone()).unwrap()
}

#[test]
fn the_granted_time_is_within_etcds_limits() {
    assert_eq!(granted_ttl(-5).unwrap(), 2);
    assert_eq!(granted_ttl(1).unwrap(), 2);
    assert_eq!(granted_ttl(60).unwrap(), 60);
    assert_eq!(granted_ttl(9_000_000_000).unwrap(), 9_000_000_000);
    assert!(matches!(granted_ttl(9_000_000_001), Err(Error::LeaseTtlTooLarge)));
}

#[test]
fn attachments_of_the_last_id_have_no_upper_bound() {
    let (start, end) = attachment_bounds(7);
    assert_eq!((start, end), (7_u64.to_be_bytes(), Bound::Excluded(8_u64.to_be_bytes())));
    // The id of all ones, -1.
    assert_eq!(attachment_bounds(-1), ([0xff; 8], Bound::Unbounded));
    assert_eq!(attachment_bounds(i64::MAX).1, Bound::Excluded(i64::MIN.to_be_bytes()));
}

#[test]
fn random_ids_are_positive_and_differ() {
    let ids: std::collections::HashSet<i64> = (0..1000).map(|_| random_id()).collect();
    assert_eq!(ids.len(), 1000);
    assert!(ids.iter().all(|id| *id > 0));
}

#[test]
fn a_restored_lease_goes_on_with_its_remainder_and_is_renewed_only_after_clearing_it() {
    let (leases, clock) = restored(&[(1, 600, 10), (2, 600, 0)]);
    assert_eq!(leases.time_to_live(1), Some(TimeToLive { remaining_seconds: 10, granted_seconds: 600 }));
    assert_eq!(leases.time_to_live(2), Some(TimeToLive { remaining_seconds: 600, granted_seconds: 600 }));
    assert_eq!(leases.list(), [1, 2]);
    assert_eq!(leases.renew(1), Renewal::Checkpointed);
    leases.apply(&[LeaseChange::Checkpointed { id: 1, remaining_seconds: 0 }]);
    assert_eq!(leases.renew(1), Renewal::Renewed { ttl_seconds: 600 });
    clock.advance(Duration::from_secs(599));
    assert!(leases.take_expired(10).contains(&2) || leases.time_to_live(2).unwrap().remaining_seconds == 1);
    assert!(!leases.begin_expiry(1));
}

#[test]
fn an_expired_lease_is_given_out_again_only_later_and_not_renewed_meanwhile() {
    let (leases, clock) = restored(&[(1, 5, 0)]);
    assert_eq!(leases.next_due(), Some(Duration::from_secs(5)));
    clock.advance(Duration::from_secs(5));
    assert_eq!(leases.take_expired(10), [1]);
    assert_eq!(leases.take_expired(10), [0_i64; 0]);
    assert_eq!(leases.renew(1), Renewal::Expired);
    assert!(leases.begin_expiry(1));
    leases.abandon_expiry(1);
    assert_eq!(leases.next_due(), Some(LEASE_EXPIRY_RETRY));
    clock.advance(LEASE_EXPIRY_RETRY);
    assert_eq!(leases.take_expired(10), [1]);
    assert!(leases.begin_expiry(1));
    leases.apply(&[LeaseChange::Revoked { id: 1 }]);
    assert_eq!(leases.renew(1), Renewal::NotFound);
    assert_eq!((leases.counters().expired(), leases.counters().revoked()), (1, 1));
    assert_eq!(leases.next_due(), None);
}

#[test]
fn rounds_are_bounded_and_take_the_longest_overdue_first() {
    let rows: Vec<(i64, i64, i64)> = (1..=100).map(|id| (id, 200 - id, 0)).collect();
    let (leases, clock) = restored(&rows);
    clock.advance(Duration::from_secs(150));
    assert_eq!(leases.take_expired(3), [100, 99, 98]);
    assert_eq!(leases.take_expired(100).len(), 48);
}

#[test]
fn only_leases_that_nobody_renews_are_checkpointed() {
    let (leases, clock) = restored(&[(1, 3600, 0), (2, 3600, 0), (3, 60, 0)]);
    clock.advance(Duration::from_secs(299));
    assert_eq!(leases.renew(1), Renewal::Renewed { ttl_seconds: 3600 });
    clock.advance(Duration::from_secs(1));
    let mut submitted = Vec::new();
    let remainders = leases.checkpoint_due(10, |remainders| submitted.extend_from_slice(remainders));
    assert_eq!(remainders, [(2, 3300)]);
    assert_eq!(submitted, remainders);
    // Until it is known to be written, a renewal has to clear it behind.
    assert_eq!(leases.renew(2), Renewal::Checkpointed);
    assert!(leases.expects_checkpoint(2) && !leases.expects_checkpoint(1));
    leases.apply(&[LeaseChange::Checkpointed { id: 2, remaining_seconds: 3300 }]);
    leases.checkpoints_settled(&remainders);
    assert_eq!(leases.renew(2), Renewal::Checkpointed);
    assert!(leases.checkpoint_due(10, |_| panic!("nothing is due")).is_empty());
}

#[test]
fn a_graceful_stop_writes_what_is_left_of_the_leases_that_are_there() {
    let rows: Vec<(i64, i64, i64)> = (1..=5).map(|id| (id, 100 + id, 0)).collect();
    let (leases, clock) = restored(&rows);
    clock.advance(Duration::from_millis(50_500));
    // Rounded up.
    let remainders = [(1, 51), (5, 55)];
    assert_eq!(leases.checkpoint(&[1, 77, 5], |submitted| assert_eq!(submitted, remainders)), remainders);
    assert!(leases.checkpoint(&[77], |_| panic!("there is nothing to write")).is_empty());
}

#[test]
fn a_lease_that_has_begun_to_end_is_never_renewed_and_taken_up_when_nobody_finishes_it() {
    let (leases, clock) = restored(&[(1, 600, 0), (2, 600, LeaseRecord::ENDING)]);
    // After a restart at once.
    assert_eq!(leases.take_expired(10), [2]);
    assert_eq!(leases.renew(2), Renewal::Expired);
    leases.apply(&[LeaseChange::Ending { id: 1 }]);
    assert_eq!(leases.renew(1), Renewal::Expired);
    assert!(leases.checkpoint(&[1, 2], |_| panic!("nothing is left of them")).is_empty());
    assert_eq!(leases.take_expired(10), [0_i64; 0]);
    clock.advance(LEASE_EXPIRY_RETRY);
    assert_eq!(leases.take_expired(10), [1, 2]);
}

#[test]
fn a_lease_whose_row_is_damaged_lives_on() {
    struct Damaged;
    impl Snapshot for Damaged {
        fn get(&self, _: Table, _: &[u8], _: &mut dyn FnMut(&[u8])) -> Result<bool, EngineError> {
            unreachable!("leases are scanned")
        }
        fn scan(
            &self,
            _: Table,
            _: (Bound<&[u8]>, Bound<&[u8]>),
            _: kubewharf_engine::Direction,
            _: &mut kubewharf_engine::Visitor<'_>,
        ) -> Result<(), EngineError> {
            unreachable!("past damage")
        }
        fn scan_past_damage(
            &self,
            _: Table,
            _: (Bound<&[u8]>, Bound<&[u8]>),
            visit: &mut kubewharf_engine::DamageVisitor<'_>,
        ) -> Result<(), EngineError> {
            let sound = LeaseRecord { ttl_seconds: 60, remaining_seconds: 0 }.encode();
            let _ = visit(&lease_key(1), None);
            let _ = visit(b"?", None);
            let _ = visit(&lease_key(2), Some(&sound));
            Ok(())
        }
        fn head(&self) -> Result<Head, EngineError> {
            unreachable!("leases are scanned")
        }
    }
    let clock = Arc::new(ManualClock::default());
    let leases = Leases::restore_with(&Damaged, clock.clone()).unwrap();
    clock.advance(Duration::from_secs(1_000_000));
    assert_eq!(leases.take_expired(10), [2]);
    assert_eq!(leases.renew(1), Renewal::Renewed { ttl_seconds: LEASE_TTL_SECONDS_MAX });
    leases.apply(&[LeaseChange::Revoked { id: 1 }]);
    assert_eq!(leases.renew(1), Renewal::NotFound);
}

/// What a client or the clock does to a store with leases.
#[derive(Clone, Debug)]
enum Step {
    Grant {
        id: i64,
        ttl_seconds: i64,
    },
    Revoke {
        id: i64,
    },
    Renew {
        id: i64,
    },
    Advance {
        ms: u64,
    },
    /// The keeper looks for expired leases and due checkpoints; what it submits waits.
    Tick,
    /// What waits is committed.
    Commit,
    /// The process is killed: only rows are left.
    Crash,
    /// The process is stopped: remainders are written first.
    Stop,
}

fn step() -> impl Strategy<Value = Step> {
    let id = || 1..4_i64;
    prop_oneof![
        2 => (id(), prop_oneof![2..10_i64, 301..2000_i64]).prop_map(|(id, ttl_seconds)| Step::Grant { id, ttl_seconds }),
        1 => id().prop_map(|id| Step::Revoke { id }),
        4 => id().prop_map(|id| Step::Renew { id }),
        4 => prop_oneof![1..5_000_u64, 100_000..400_000_u64].prop_map(|ms| Step::Advance { ms }),
        4 => Just(Step::Tick),
        3 => Just(Step::Commit),
        1 => Just(Step::Crash),
        1 => Just(Step::Stop),
    ]
}

/// A write that waits for the committer.
#[derive(Clone, Debug)]
enum Write {
    Grant { id: i64, ttl_seconds: i64 },
    Revoke { id: i64, only_expired: bool },
    Checkpoint(Vec<(i64, i64)>),
}

/// A store with leases: rows, a queue of writes, and what clients were told.
struct Model {
    leases: Leases,
    clock: Arc<ManualClock>,
    rows: BTreeMap<i64, (i64, i64)>,
    queue: Vec<Write>,
    /// Until when each lease must live.
    promised: BTreeMap<i64, Duration>,
}

impl Model {
    fn commit(&mut self) {
        for write in std::mem::take(&mut self.queue) {
            match write {
                Write::Grant { id, ttl_seconds } => {
                    if self.rows.contains_key(&id) {
                        continue;
                    }
                    self.rows.insert(id, (ttl_seconds, 0));
                    self.leases.apply(&[LeaseChange::Granted { id, ttl_seconds }]);
                    self.promise(id, ttl_seconds);
                }
                Write::Revoke { id, only_expired } => {
                    if !self.rows.contains_key(&id) || only_expired && !self.leases.begin_expiry(id) {
                        continue;
                    }
                    if only_expired {
                        assert!(self.clock.now() >= self.promised[&id], "lease {id} ends early");
                    }
                    self.rows.remove(&id);
                    self.promised.remove(&id);
                    self.leases.apply(&[LeaseChange::Revoked { id }]);
                }
                Write::Checkpoint(remainders) => {
                    for &(id, remaining_seconds) in &remainders {
                        if remaining_seconds > 0 && !self.leases.expects_checkpoint(id) {
                            continue;
                        }
                        if let Some(row) = self.rows.get_mut(&id) {
                            row.1 = remaining_seconds;
                            self.leases.apply(&[LeaseChange::Checkpointed { id, remaining_seconds }]);
                        }
                    }
                    if remainders.iter().all(|(_, remaining)| *remaining > 0) {
                        self.leases.checkpoints_settled(&remainders);
                    }
                }
            }
        }
    }

    fn promise(&mut self, id: i64, ttl_seconds: i64) {
        self.promised.insert(id, self.clock.now() + seconds(ttl_seconds));
    }

    fn renew(&mut self, id: i64) {
        loop {
            match self.leases.renew(id) {
                Renewal::Renewed { ttl_seconds } => return self.promise(id, ttl_seconds),
                Renewal::NotFound => return assert!(!self.rows.contains_key(&id)),
                Renewal::NotOurs => unreachable!("nobody else keeps them"),
                Renewal::Expired => self.queue.push(Write::Revoke { id, only_expired: true }),
                Renewal::Checkpointed => self.queue.push(Write::Checkpoint(vec![(id, 0)])),
            }
            self.commit();
        }
    }

    fn tick(&mut self) {
        for id in self.leases.take_expired(2) {
            self.queue.push(Write::Revoke { id, only_expired: true });
        }
        let remainders = self.leases.checkpoint_due(2, |_| {});
        if !remainders.is_empty() {
            self.queue.push(Write::Checkpoint(remainders));
        }
    }

    fn restart(&mut self) {
        self.queue.clear();
        let rows: Vec<_> = self.rows.iter().map(|(id, (ttl, remaining))| (*id, *ttl, *remaining)).collect();
        self.leases = restore(&rows, &self.clock);
        let now = self.clock.now();
        for (id, promised) in &self.promised {
            let left = seconds(self.leases.time_to_live(*id).expect("the row is there").remaining_seconds + 1);
            assert!(now + left > *promised, "lease {id} would end early after the restart");
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Grant { id, ttl_seconds } => self.queue.push(Write::Grant { id, ttl_seconds }),
            Step::Revoke { id } => self.queue.push(Write::Revoke { id, only_expired: false }),
            Step::Renew { id } => self.renew(id),
            Step::Advance { ms } => self.clock.advance(Duration::from_millis(ms)),
            Step::Tick => self.tick(),
            Step::Commit => self.commit(),
            Step::Crash => self.restart(),
            Step::Stop => {
                self.commit();
                let remainders = self.leases.checkpoint(&self.leases.list(), |_| {});
                self.queue.push(Write::Checkpoint(remainders));
                self.commit();
                self.restart();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_lease_ends_early_and_every_lease_ends(steps in prop::collection::vec(step(), 1..80)) {
        let clock = Arc::new(ManualClock::default());
        let leases = restore(&[], &clock);
        let mut model =
            Model { leases, clock, rows: BTreeMap::new(), queue: Vec::new(), promised: BTreeMap::new() };
        for step in steps {
            model.step(step);
        }
        model.commit();
        prop_assert_eq!(model.leases.len(), model.rows.len());
        model.clock.advance(Duration::from_secs(2001));
        for _ in 0..4 {
            model.tick();
            model.commit();
        }
        prop_assert!(model.rows.is_empty(), "{:?} never ended", model.rows);
        prop_assert!(model.leases.is_empty());
        prop_assert_eq!(model.leases.next_due(), None);
    }
}
