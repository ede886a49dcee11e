//! What the default engine costs: a plain program, no statistics beyond a mean.
//!
//! `cargo bench -p kubewharf-engine -- [keys…] [--directory D] [--delta-mib M]` fills a store for each number of keys, then prints CPU and wall time of a write
//! at several batch sizes, of a get by a snapshot of its own, and of a row in a scan. A write is what a Kubernetes update is:
//! the key's row in `Current` replaced, a row in `Log` added.

use std::ops::{Bound, ControlFlow};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kubewharf_engine::lmdb::{DELTA_BYTES, Lmdb, Options};
use kubewharf_engine::{Batch, Direction, Engine, Head, Operation, Reserve, Table};

const KEY_BYTES: usize = 70;
const VALUE_BYTES: usize = 512;

fn main() {
    let mut sizes = Vec::new();
    let mut directory = None;
    let mut delta_bytes = DELTA_BYTES;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            // Cargo's own.
            "--bench" => {}
            "--directory" => directory = arguments.next().map(PathBuf::from),
            "--delta-mib" => {
                let mib: Option<u64> = arguments.next().and_then(|mib| mib.parse().ok());
                delta_bytes = mib.expect("a number of MiB") << 20;
            }
            number => sizes.push(number.parse().expect("an argument is a number of keys")),
        }
    }
    if sizes.is_empty() {
        sizes = vec![20_000, 1_000_000];
    }
    for keys in sizes {
        let scratch = match &directory {
            Some(directory) => tempfile::tempdir_in(directory),
            None => tempfile::tempdir(),
        };
        let scratch = scratch.expect("a scratch directory");
        let engine = Lmdb::open(Options { delta_bytes, ..Options::new(scratch.path()) }).expect("opens");
        Probe { engine: &engine, keys, revision: 1, random: 1 }.run();
    }
}

struct Probe<'e> {
    engine: &'e Lmdb,
    keys: u64,
    revision: i64,
    random: u64,
}

impl Probe<'_> {
    fn run(&mut self) {
        println!("\n{} keys of {KEY_BYTES} B, values of {VALUE_BYTES} B", self.keys);
        let clock = Clock::start();
        for first in (0..self.keys).step_by(1000) {
            let batch: Vec<u64> = (first..(first + 1000).min(self.keys)).collect();
            self.write(&batch);
        }
        clock.print("fill, 1000 a batch", self.keys);

        for batch_keys in [1, 16, 64, 256] {
            // Enough that most of it is merged while it is measured.
            let rounds = if batch_keys == 1 { 1000 } else { 100_000 / batch_keys };
            let clock = Clock::start();
            for _ in 0..rounds {
                let batch: Vec<u64> = (0..batch_keys).map(|_| self.random_key()).collect();
                self.write(&batch);
            }
            clock.print(&format!("write, {batch_keys} a batch"), rounds * batch_keys);
        }

        let rounds = 500_000;
        let clock = Clock::start();
        for _ in 0..rounds {
            std::hint::black_box(self.engine.snapshot().expect("a snapshot"));
        }
        clock.print("snapshot", rounds);

        let clock = Clock::start();
        for _ in 0..rounds {
            let key = key(self.random_key());
            let snapshot = self.engine.snapshot().expect("a snapshot");
            let mut length = 0;
            let found = snapshot.get(Table::Current, &key, &mut |value| length = value.len()).expect("reads");
            assert!(found && length == VALUE_BYTES);
        }
        clock.print("snapshot and get", rounds);

        for (name, direction) in
            [("scan forward, a row", Direction::Forward), ("scan reverse, a row", Direction::Reverse)]
        {
            let mut rows = 0;
            let clock = Clock::start();
            while rows < 2_000_000 {
                let snapshot = self.engine.snapshot().expect("a snapshot");
                let visit = &mut |key: &[u8], value: &[u8]| {
                    rows += 1;
                    std::hint::black_box((key, value));
                    ControlFlow::Continue(())
                };
                snapshot.scan(Table::Current, (Bound::Unbounded, Bound::Unbounded), direction, visit).expect("scans");
            }
            clock.print(name, rows);
        }

        let clock = Clock::start();
        for _ in 0..100_000 {
            std::hint::black_box(self.engine.size().expect("a size"));
        }
        clock.print("size", 100_000);
        println!("  {:?}", self.engine.size().expect("a size"));
    }

    fn random_key(&mut self) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % self.keys
    }

    /// One commit that updates the keys.
    fn write(&mut self, keys: &[u64]) {
        let mut keys = keys.to_vec();
        keys.sort_unstable();
        keys.dedup();
        let value = Bytes::from(vec![b'v'; VALUE_BYTES]);
        let mut operations = Vec::with_capacity(keys.len() * 2);
        for &number in &keys {
            operations.push(Operation::Put { table: Table::Current, key: key(number), value: value.clone() });
        }
        for _ in &keys {
            self.revision += 1;
            let key = Bytes::copy_from_slice(&self.revision.to_be_bytes());
            operations.push(Operation::Put { table: Table::Log, key, value: value.clone() });
        }
        let expected = self.engine.snapshot().and_then(|snapshot| snapshot.head()).expect("a head");
        let next = Head { seq: expected.seq + 1, revision: self.revision, ..expected };
        self.engine.commit(&Batch { expected, next, operations, reserve: Reserve::Untouched }).expect("commits");
    }
}

fn key(number: u64) -> Bytes {
    // Namespaces and names in an order unlike that of writing.
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
    let key = format!("/registry/pods/namespace-{:03}/deployment-{mixed:011x}-", number % 500);
    Bytes::from(format!("{key:x<KEY_BYTES$}"))
}

/// CPU time of this process and wall time.
struct Clock {
    wall: Instant,
    cpu: Duration,
}

impl Clock {
    fn start() -> Self {
        Self { wall: Instant::now(), cpu: cpu() }
    }

    fn print(&self, what: &str, operations: u64) {
        let each = |time: Duration| time.as_nanos() as f64 / operations as f64 / 1000.0;
        let (cpu, wall) = (each(cpu() - self.cpu), each(self.wall.elapsed()));
        println!("  {what:<22} {cpu:9.3} µs CPU {wall:9.3} µs wall");
    }
}

/// The time of all threads on a processor, in user and system mode.
fn cpu() -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").expect("Linux lists the threads");
    let times = tasks.filter_map(|task| {
        // A thread may end meanwhile.
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(times.sum())
}
