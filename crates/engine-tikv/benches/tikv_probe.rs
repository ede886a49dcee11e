//! What the engine over TiKV costs: a plain program, no statistics beyond a mean.
//!
//! `cargo bench -p kubewharf-engine-tikv -- [--keys N]` fills a store in the cluster that `PD_ADDRS` names, then prints commits a second at several
//! batch sizes, and what views, reads and scans take. A write is what a Kubernetes update is: the key's row in `Current` replaced, a row in
//! `Log` added.

use std::ops::{Bound, ControlFlow};
use std::time::Instant;

use bytes::Bytes;
use kubewharf_engine::{Batch, Direction, Engine, Head, Operation, Reserve, Table};
use kubewharf_engine_tikv::{Options, Tikv};
use kubewharf_testkit::tikv::Tikv as Place;

const KEY_BYTES: usize = 70;
const VALUE_BYTES: usize = 512;
const READS: u32 = 1000;

fn main() {
    let mut keys = 20_000;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            // Cargo's own.
            "--bench" => {}
            "--keys" => keys = arguments.next().and_then(|keys| keys.parse().ok()).expect("a number of keys"),
            other => panic!("{other} is not known"),
        }
    }
    let Some(place) = Place::from_environment() else { return };
    println!("{keys} keys of {KEY_BYTES} B, values of {VALUE_BYTES} B");
    let engine = Tikv::open(Options { schema: place.schema, ..Options::new(place.url) }).expect("opens");
    Probe { engine: &engine, keys, revision: 1, random: 1 }.run();
}

struct Probe<'e> {
    engine: &'e Tikv,
    keys: u64,
    revision: i64,
    random: u64,
}

impl Probe<'_> {
    fn run(&mut self) {
        for first in (0..self.keys).step_by(1000) {
            self.write(first..self.keys.min(first + 1000));
        }
        for (batch, rounds) in [(1, 500), (8, 300), (64, 200), (512, 40), (4096, 4)] {
            let begin = Instant::now();
            for _ in 0..rounds {
                let mut chosen: Vec<u64> = (0..batch).map(|_| self.next_random() % self.keys).collect();
                chosen.sort_unstable();
                chosen.dedup();
                self.write(chosen);
            }
            let commits = f64::from(rounds) / begin.elapsed().as_secs_f64();
            println!("batches of {batch}: {commits:.0} commits/s, {:.0} updates/s", commits * f64::from(batch as u32));
        }
        let begin = Instant::now();
        for _ in 0..READS {
            self.engine.snapshot().expect("a view");
        }
        println!("a view: {:.0} µs", begin.elapsed().as_micros() as f64 / f64::from(READS));
        let begin = Instant::now();
        for _ in 0..READS {
            let key = key(self.next_random() % self.keys);
            let view = self.engine.snapshot_with(&[(Table::Current, &key)]).expect("a view");
            assert!(view.get(Table::Current, &key, &mut |_| {}).expect("reads"));
        }
        println!("a view with a row: {:.0} µs", begin.elapsed().as_micros() as f64 / f64::from(READS));
        let keys: Vec<Bytes> = (0..64).map(|_| key(self.next_random() % self.keys)).collect();
        let keys: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
        let view = self.engine.snapshot().expect("a view");
        let begin = Instant::now();
        view.prefetch(Table::Current, &keys).expect("fetches");
        println!("64 rows fetched early: {:.0} µs in all", begin.elapsed().as_micros() as f64);
        for direction in [Direction::Forward, Direction::Reverse] {
            let mut rows = 0_u32;
            let begin = Instant::now();
            let visit = &mut |_: &[u8], _: &[u8]| {
                rows += 1;
                ControlFlow::Continue(())
            };
            view.scan(Table::Current, (Bound::Unbounded, Bound::Unbounded), direction, visit).expect("scans");
            println!("a scan {direction:?}: {:.0} rows/s", f64::from(rows) / begin.elapsed().as_secs_f64());
        }
        let begin = Instant::now();
        let size = self.engine.size().expect("a size");
        println!("the size: {} µs, {size:?}", begin.elapsed().as_micros());
    }

    fn write(&mut self, keys: impl IntoIterator<Item = u64>) {
        let expected = self.engine.snapshot().expect("a view").head().expect("a head");
        let value = Bytes::from(vec![self.revision as u8; VALUE_BYTES]);
        let mut operations = Vec::new();
        let mut log = Vec::new();
        for (at, number) in keys.into_iter().enumerate() {
            let mut row = Vec::with_capacity(16);
            row.extend(self.revision.to_be_bytes());
            row.extend((at as u64).to_be_bytes());
            log.push(Operation::Put { table: Table::Log, key: row.into(), value: value.clone() });
            operations.push(Operation::Put { table: Table::Current, key: key(number), value: value.clone() });
        }
        operations.extend(log);
        self.revision += 1;
        let next = Head { seq: expected.seq + 1, revision: self.revision, ..expected };
        let batch = Batch { expected, next, operations, reserve: Reserve::Untouched };
        self.engine.commit(&batch).expect("commits");
    }

    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.random >> 33
    }
}

fn key(number: u64) -> Bytes {
    let mut key = format!("/registry/pods/namespace-{:04}/pod-{number:012}", number % 1000).into_bytes();
    key.resize(KEY_BYTES, b'x');
    key.into()
}
