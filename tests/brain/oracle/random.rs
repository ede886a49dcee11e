//! Requests that nobody thought of: drawn from a seed, over a few keys, compared one by one.
//!
//! At the end all that both stores still know is compared: every kept revision is read, and watches replay the history
//! from kept revisions on. Now and then the store under test is killed and started again, which must not show.

use kubewharf_etcd_api::etcdserverpb::compare::TargetUnion;
use kubewharf_etcd_api::etcdserverpb::*;
use prost::bytes::Bytes;

use super::pair::Pair;
use super::recorder::Recorder;
use super::watching::Watching;
use crate::client::{Operation, range};
use crate::random::{Random, new_seeds, seeds};

/// Few, so that requests meet; of forms that order and encodings may trip over. etcd's sort is stable up to 12 keys only.
const KEYS: &[&[u8]] = &[b"a", b"a\0", b"a\0\0", b"a\0b", b"a/", b"b", b"ba", b"c", b"\x01", b"\xff", b"\xff\xff"];
const VALUES: &[&str] = &["", "0", "1", "x", "a longer value"];
/// The leases that may be. Each lives longer than the one before, so that their order is known.
const LEASES: u64 = 5;
const STEPS_BETWEEN_KILLS: u64 = 700;

struct Generator {
    random: Random,
    /// As the last reply of etcd told.
    newest: i64,
    compacted: i64,
}

/// What a transaction may have: what etcd lets through its own checks and then stops the whole process for is left out.
#[derive(Clone, Copy)]
enum Flavour {
    /// Puts that keep a key's value or lease.
    Keeping,
    /// Deletions without an end, which etcd's check for keys written twice takes for another range.
    Unbounded,
}

impl Generator {
    fn key(&mut self) -> Bytes {
        let key: &&[u8] = self.random.one_of(KEYS);
        Bytes::from_static(key)
    }

    fn value(&mut self) -> Bytes {
        let value: &&str = self.random.one_of(VALUES);
        Bytes::from_static(value.as_bytes())
    }

    fn end(&mut self) -> Bytes {
        match self.random.below(10) {
            0..5 => Bytes::new(),
            5 => Bytes::from_static(b"\0"),
            6 => [self.key(), Bytes::from_static(b"\0")].concat().into(),
            _ => self.key(),
        }
    }

    fn revision(&mut self) -> i64 {
        match self.random.below(12) {
            0..5 => 0,
            5 => self.newest + 1,
            6 => self.compacted - 1,
            7 => self.compacted,
            8 => self.newest,
            _ => self.past(),
        }
    }

    fn past(&mut self) -> i64 {
        let kept = u64::try_from(self.newest - self.compacted).unwrap_or(0);
        self.compacted + i64::try_from(self.random.below(kept + 2)).expect("a small number")
    }

    fn bound(&mut self) -> i64 {
        if self.random.once_in(12) { self.past() } else { 0 }
    }

    fn lease(&mut self) -> i64 {
        if self.random.once_in(3) { 1 + self.random.below(LEASES) as i64 } else { 0 }
    }

    fn range(&mut self) -> RangeRequest {
        RangeRequest {
            key: self.key(),
            range_end: self.end(),
            limit: *self.random.one_of(&[0, 0, 0, 1, 2, 5, -1]),
            revision: self.revision(),
            sort_order: *self.random.one_of(&[0, 0, 1, 2]),
            sort_target: *self.random.one_of(&[0, 0, 0, 1, 2, 3, 4]),
            serializable: self.random.once_in(4),
            keys_only: self.random.once_in(6),
            count_only: self.random.once_in(8),
            min_mod_revision: self.bound(),
            max_mod_revision: self.bound(),
            min_create_revision: self.bound(),
            max_create_revision: self.bound(),
        }
    }

    fn put(&mut self, keeping: bool) -> PutRequest {
        let ignore_value = keeping && self.random.once_in(6);
        let ignore_lease = keeping && self.random.once_in(6);
        PutRequest {
            key: self.key(),
            value: if ignore_value { Bytes::new() } else { self.value() },
            lease: if ignore_lease { 0 } else { self.lease() },
            prev_kv: self.random.once_in(3),
            ignore_value,
            ignore_lease,
        }
    }

    fn delete(&mut self, unbounded: bool) -> DeleteRangeRequest {
        let mut range_end = self.end();
        if !unbounded && range_end == b"\0"[..] {
            range_end = Bytes::new();
        }
        DeleteRangeRequest { key: self.key(), range_end, prev_kv: self.random.once_in(3) }
    }

    fn compare(&mut self) -> Compare {
        let number = if self.random.once_in(2) { self.past() } else { self.random.below(4) as i64 };
        let operands = [
            TargetUnion::Version(number),
            TargetUnion::CreateRevision(number),
            TargetUnion::ModRevision(number),
            TargetUnion::Value(self.value()),
            TargetUnion::Lease(number),
        ];
        let target = self.random.below(5);
        let operand = if self.random.once_in(20) { self.random.below(5) } else { target };
        Compare {
            result: self.random.below(4) as i32,
            target: target as i32,
            key: self.key(),
            range_end: self.end(),
            target_union: (!self.random.once_in(30)).then(|| operands[operand as usize].clone()),
        }
    }

    fn operations(&mut self, depth: u64, flavour: Flavour) -> Vec<RequestOp> {
        let count = self.random.below(4);
        (0..count)
            .map(|_| match self.random.below(10 + depth) {
                0..3 => {
                    let mut request = self.range();
                    if !self.random.once_in(4) {
                        // Otherwise nearly every transaction would be refused.
                        request.revision = 0;
                    }
                    request.op()
                }
                3..7 => self.put(matches!(flavour, Flavour::Keeping)).op(),
                7..10 => self.delete(matches!(flavour, Flavour::Unbounded)).op(),
                _ => self.txn(depth - 1, flavour).op(),
            })
            .collect()
    }

    fn txn(&mut self, depth: u64, flavour: Flavour) -> TxnRequest {
        let compares = *self.random.one_of(&[0, 1, 1, 2]);
        TxnRequest {
            compare: (0..compares).map(|_| self.compare()).collect(),
            success: self.operations(depth, flavour),
            failure: self.operations(depth, flavour),
        }
    }

    /// The next step: the same request to both.
    async fn step(&mut self, pair: &mut Pair) {
        let id = 1 + self.random.below(LEASES) as i64;
        let Pair { etcd, ours, .. } = pair;
        /// Sends a request to both.
        macro_rules! both {
            ($method:ident, $request:expr) => {{
                let request = $request;
                let (etcd, _) = tokio::join!(etcd.$method(request.clone()), ours.$method(request));
                etcd.ok().and_then(|reply| reply.header)
            }};
        }
        let header = match self.random.below(100) {
            0..30 => both!(put, self.put(true)),
            30..38 => both!(delete_range, self.delete(true)),
            38..64 => {
                let flavour = if self.random.once_in(2) { Flavour::Keeping } else { Flavour::Unbounded };
                both!(txn, self.txn(2, flavour))
            }
            64..80 => both!(range, self.range()),
            80..85 => both!(
                range_stream,
                RangeRequest {
                    key: self.key(),
                    range_end: self.end(),
                    limit: *self.random.one_of(&[0, 0, 1, 3, -1]),
                    revision: self.revision(),
                    keys_only: self.random.once_in(4),
                    count_only: self.random.once_in(4),
                    serializable: self.random.once_in(4),
                    ..RangeRequest::default()
                }
            ),
            85..91 => both!(grant, LeaseGrantRequest { id, ttl: 10_000 * id }),
            91..93 => both!(lease_revoke, LeaseRevokeRequest { id }),
            93..95 => both!(lease_time_to_live, LeaseTimeToLiveRequest { id, keys: true }),
            95..96 => both!(lease_leases, LeaseLeasesRequest {}),
            96..98 => both!(keep_alive, id),
            _ => {
                // Mostly near the compacted end, so that a history remains.
                let revision = match self.random.below(8) {
                    0 => self.revision(),
                    _ => self.compacted.midpoint(self.past()),
                };
                let header = both!(compact, CompactionRequest { revision, physical: self.random.once_in(2) });
                if header.is_some() {
                    self.compacted = revision;
                }
                header
            }
        };
        self.newest = header.map_or(self.newest, |header| header.revision.max(self.newest));
    }
}

/// A watch of everything from a revision on.
fn all_from(start_revision: i64, prev_kv: bool) -> WatchCreateRequest {
    let (key, range_end) = (Bytes::from_static(b"\0"), Bytes::from_static(b"\0"));
    WatchCreateRequest { key, range_end, start_revision, prev_kv, ..WatchCreateRequest::default() }
}

async fn watch_from(recorder: &mut Recorder, start_revision: i64) -> Watching {
    let mut watching = Watching::open(recorder);
    watching.create(recorder, all_from(start_revision, true)).await;
    watching
}

async fn run(pair: &mut Pair, seed: u64, Size { steps, replays }: Size) {
    pair.settle().await;
    let mut generator = Generator { random: Random::new(seed), newest: pair.etcd.base, compacted: pair.etcd.base };
    let compaction = CompactionRequest { revision: generator.compacted, physical: true };
    let _ = tokio::join!(pair.etcd.compact(compaction), pair.ours.compact(compaction));
    let from = generator.newest + 1;
    let (mut etcd, mut ours) = tokio::join!(watch_from(&mut pair.etcd, from), watch_from(&mut pair.ours, from));
    let mut until_kill = STEPS_BETWEEN_KILLS;
    for step in 0..steps {
        generator.step(pair).await;
        if !pair.compare(&format!("seed {seed}, step {step}")) {
            return;
        }
        until_kill -= 1;
        if until_kill == 0 {
            until_kill = STEPS_BETWEEN_KILLS;
            tokio::join!(etcd.rest(&mut pair.etcd), ours.rest(&mut pair.ours));
            if !pair.compare(&format!("seed {seed}, the watch up to step {step}")) {
                return;
            }
            pair.kill_ours();
            let from = generator.newest + 1;
            (etcd, ours) = tokio::join!(watch_from(&mut pair.etcd, from), watch_from(&mut pair.ours, from));
        }
    }
    tokio::join!(etcd.rest(&mut pair.etcd), ours.rest(&mut pair.ours));
    pair.compare(&format!("seed {seed}, the watch"));

    let Generator { newest, compacted, mut random } = generator;
    let kept = compacted..=newest;
    tokio::join!(read_all(&mut pair.etcd, kept.clone()), read_all(&mut pair.ours, kept.clone()));
    if !pair.compare(&format!("seed {seed}, reads of all kept revisions")) {
        return;
    }
    // Each replay is as long as what is left of the history.
    let starts: Vec<i64> = if newest - compacted < replays {
        kept.collect()
    } else {
        (0..replays).map(|_| compacted + random.below((newest - compacted + 1) as u64) as i64).collect()
    };
    let seed_of_ranges = random.next();
    tokio::join!(
        replay(&mut pair.etcd, &starts, Random::new(seed_of_ranges)),
        replay(&mut pair.ours, &starts, Random::new(seed_of_ranges)),
    );
    pair.compare(&format!("seed {seed}, replays"));
}

async fn read_all(recorder: &mut Recorder, revisions: impl Iterator<Item = i64>) {
    for revision in revisions {
        let request = RangeRequest { revision, ..range("\0", "\0") };
        let _ = recorder.range(request.clone()).await;
        for &key in KEYS {
            let request = RangeRequest { key: Bytes::from_static(key), range_end: Bytes::new(), ..request.clone() };
            let _ = recorder.range(request).await;
        }
    }
}

async fn replay(recorder: &mut Recorder, starts: &[i64], random: Random) {
    let mut generator = Generator { random, newest: 0, compacted: 0 };
    for starts in starts.chunks(20) {
        let mut watching = Watching::open(recorder);
        for &start in starts {
            let request = all_from(start, generator.random.once_in(2));
            let request = if generator.random.once_in(2) {
                request
            } else {
                // An upside-down range is refused, which has been compared elsewhere.
                let (key, end) = (generator.key(), generator.end());
                let end = if end.is_empty() || end > key || end == b"\0"[..] { end } else { Bytes::new() };
                WatchCreateRequest { key, range_end: end, ..request }
            };
            watching.create(recorder, request).await;
        }
        watching.rest(recorder).await;
    }
}

/// How much is done with a seed.
#[derive(Clone, Copy)]
struct Size {
    steps: usize,
    /// The most watches that replay the history at the end.
    replays: i64,
}

async fn run_all(seeds: Vec<u64>, size: Size) {
    for seed in seeds {
        eprintln!("seed {seed}");
        let mut pair = Pair::start(&[]);
        run(&mut pair, seed, size).await;
        pair.finish("random");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn random_requests_are_answered_as_by_etcd() {
    run_all(seeds(3), Size { steps: 1500, replays: 60 }).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes half an hour"]
async fn many_random_requests_are_answered_as_by_etcd() {
    run_all(new_seeds(60), Size { steps: 6000, replays: 400 }).await;
}
