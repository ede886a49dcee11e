//! What the engine over PostgreSQL costs: a plain program, no statistics beyond a mean.
//!
//! `cargo bench -p kubewharf-engine-postgres -- [--keys N] [--url U]` fills a store, then prints commits a second at several batch sizes, with
//! prepared statements and with unnamed ones, and what views, reads and scans take. A write is what a Kubernetes update is: the key's
//! row in `Current` replaced, a row in `Log` added. Without a URL it starts a server of its own.

use std::ops::{Bound, ControlFlow};
use std::time::Instant;

use bytes::Bytes;
use kubewharf_engine::{Batch, Direction, Engine, Head, Operation, Reserve, Table};
use kubewharf_engine_postgres::{Options, Postgres};
use kubewharf_testkit::postgres::Postgres as Server;

const KEY_BYTES: usize = 70;
const VALUE_BYTES: usize = 512;

fn main() {
    let mut keys = 20_000;
    let mut url = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            // Cargo's own.
            "--bench" => {}
            "--keys" => keys = arguments.next().and_then(|keys| keys.parse().ok()).expect("a number of keys"),
            "--url" => url = arguments.next(),
            other => panic!("{other} is not known"),
        }
    }
    let server = url.is_none().then(|| Server::start().expect("a server"));
    let url = url.or_else(|| server.as_ref().map(Server::url)).expect("one of both");
    for is_pooled in [false, true] {
        println!("\n{keys} keys of {KEY_BYTES} B, values of {VALUE_BYTES} B, {}", statements(is_pooled));
        let schema = format!("probe {} {is_pooled}", std::process::id());
        let engine = Postgres::open(Options { schema, is_pooled, ..Options::new(&url) }).expect("opens");
        Probe { engine: &engine, keys, revision: 1, random: 1 }.run();
    }
}

fn statements(is_pooled: bool) -> &'static str {
    if is_pooled { "unnamed statements" } else { "prepared statements" }
}

struct Probe<'e> {
    engine: &'e Postgres,
    keys: u64,
    revision: i64,
    random: u64,
}

impl Probe<'_> {
    fn run(&mut self) {
        for first in (0..self.keys).step_by(1000) {
            self.write(first..self.keys.min(first + 1000));
        }
        for (batch, rounds) in [(1, 1000), (64, 300), (512, 60)] {
            let begin = Instant::now();
            for _ in 0..rounds {
                let chosen: Vec<u64> = (0..batch).map(|_| self.next_random() % self.keys).collect();
                let mut chosen = chosen;
                chosen.sort_unstable();
                chosen.dedup();
                self.write(chosen);
            }
            let seconds = begin.elapsed().as_secs_f64();
            let commits = f64::from(rounds) / seconds;
            println!("batches of {batch}: {commits:.0} commits/s, {:.0} updates/s", commits * f64::from(batch as u32));
        }
        const READS: u32 = 2000;
        let begin = Instant::now();
        for _ in 0..READS {
            self.engine.snapshot().expect("a view");
        }
        println!("a view: {:.0} µs", begin.elapsed().as_micros() as f64 / f64::from(READS));
        let begin = Instant::now();
        for _ in 0..READS {
            let key = key(self.next_random() % self.keys);
            let view = self.engine.snapshot().expect("a view");
            assert!(view.get(Table::Current, &key, &mut |_| {}).expect("reads"));
        }
        println!("a view and a get: {:.0} µs", begin.elapsed().as_micros() as f64 / f64::from(READS));
        let begin = Instant::now();
        for _ in 0..READS {
            let key = key(self.next_random() % self.keys);
            let (_, rows) = self.engine.read(&[(Table::Current, &key)]).expect("reads");
            assert!(rows[0].is_some());
        }
        println!("a get by itself: {:.0} µs", begin.elapsed().as_micros() as f64 / f64::from(READS));
        let view = self.engine.snapshot().expect("a view");
        let keys: Vec<Bytes> = (0..64).map(|_| key(self.next_random() % self.keys)).collect();
        let begin = Instant::now();
        for key in &keys {
            view.get(Table::Current, key, &mut |_| {}).expect("reads");
        }
        println!("64 gets in a view: {:.0} µs each", begin.elapsed().as_micros() as f64 / 64.0);
        let keys: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
        drop(view);
        let view = self.engine.snapshot().expect("a view");
        let begin = Instant::now();
        view.prefetch(Table::Current, &keys).expect("fetches");
        println!("64 rows fetched early: {:.0} µs in all", begin.elapsed().as_micros() as f64);
        let mut rows = 0_u32;
        let begin = Instant::now();
        let visit = &mut |_: &[u8], _: &[u8]| {
            rows += 1;
            ControlFlow::Continue(())
        };
        let all = (Bound::Unbounded, Bound::Unbounded);
        view.scan(Table::Current, all, Direction::Forward, visit).expect("scans");
        println!("a scan: {:.0} rows/s", f64::from(rows) / begin.elapsed().as_secs_f64());
        drop(view);
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
            let (table, key) = (Table::Current, key(number));
            let mut row = Vec::with_capacity(16);
            row.extend(self.revision.to_be_bytes());
            row.extend((at as u64).to_be_bytes());
            log.push(Operation::Put { table: Table::Log, key: row.into(), value: value.clone() });
            operations.push(Operation::Put { table, key, value: value.clone() });
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
